"""The adversarial objectives: the one place where what D and G minimise is written down.

==================  ===================================  ==========================  =======================
objective           D on real images                     D on G's                    G
==================  ===================================  ==========================  =======================
``non-saturating``  ``-log D(x)``                        ``-log(1 - D(G(z)))``       ``-log D(G(z))``
``minimax``         ``-log D(x)``                        ``-log(1 - D(G(z)))``       ``log(1 - D(G(z)))``
``least-squares``   ``(d(x) - 1)**2 / 2``                ``d(G(z))**2 / 2``          ``(d(G(z)) - 1)**2 / 2``
``hinge``           ``max(0, 1 - d(x))``                 ``max(0, 1 + d(G(z)))``     ``-d(G(z))``
``wasserstein``     ``-d(x)``                            ``d(G(z))``                 ``-d(G(z))``
==================  ===================================  ==========================  =======================

``d`` is D's output, ``D = sigmoid(d)``; all are means over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

REAL, FAKE = 1.0, 0.0

OBJECTIVES = ("non-saturating", "minimax", "least-squares", "hinge", "wasserstein")
CROSS_ENTROPY = ("non-saturating", "minimax")
LABELLED = (*CROSS_ENTROPY, "least-squares")


def adversarial_loss(output: Tensor, label: float, *, kind: str = "logits") -> Tensor:
    """Binary cross-entropy of D's ``output`` against the one ``label``, mean over the batch.

    Args:
        output: one number an image, of any shape and float dtype; taken to float32 first, for in
            bfloat16 a confident D is indistinguishable from a certain one.
        label: :data:`REAL` or :data:`FAKE`, or what stands between them. The generator's loss is the one against
            ``REAL`` (the non-saturating form, which the paper and all its descendants use).
        kind: "logits" (BCEWithLogits: finite whatever D says) or "sigmoid" (BCE of probabilities,
            logarithms clamped at -100, as in pytorch/examples).
    """
    output = output.float()
    labels = torch.full_like(output, label)
    if kind == "logits":
        return F.binary_cross_entropy_with_logits(output, labels)
    return F.binary_cross_entropy(output, labels)


@dataclass(frozen=True)
class Objective:
    """What both networks minimise, as functions of D's output: one number an image, of any shape and float dtype.

    Args:
        name: one of :data:`OBJECTIVES`; the table at the top of this module.
        output: what D ends in: "logits", or "sigmoid" for the two objectives of probabilities.
        real_label: what D is told of real images, where the objective has labels: below 1 it never becomes certain
            (one-sided label smoothing).

    Raises:
        ValueError: an unknown name or output, or settings that do not go together.

    Sources: Goodfellow et al. 2014, section 3 (minimax, non-saturating); Mao et al. 2017, equation 9 (least squares);
    Lim & Ye 2017, Miyato et al. 2018 (hinge); Arjovsky et al. 2017 (Wasserstein); Salimans et al. 2016, section 3.4
    (one-sided smoothing).
    """

    name: str = "non-saturating"
    output: str = "logits"
    real_label: float = REAL

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise ValueError(
                f"'objective' must be one of {', '.join(OBJECTIVES)}, got {self.name!r}"
            )
        if self.output not in ("logits", "sigmoid"):
            raise ValueError(f"'output' must be 'logits' or 'sigmoid', got {self.output!r}")
        if self.output == "sigmoid" and self.name not in CROSS_ENTROPY:
            raise ValueError(
                f"the {self.name} objective takes D's output as it is, without a sigmoid"
            )
        if not FAKE < self.real_label <= REAL:
            raise ValueError(f"'real_label' must be above 0 and at most 1, got {self.real_label}")
        if self.real_label != REAL and self.name not in LABELLED:
            raise ValueError(f"the {self.name} objective has no labels that could be smoothed")

    def of_real(self, output: Tensor) -> Tensor:
        """D's loss, a float32 scalar, by its output on real images."""
        if self.name in CROSS_ENTROPY:
            return adversarial_loss(output, self.real_label, kind=self.output)
        output = output.float()
        if self.name == "least-squares":
            return (output - self.real_label).square().mean() / 2
        return (1 - output).relu().mean() if self.name == "hinge" else -output.mean()

    def of_fake(self, output: Tensor) -> Tensor:
        """D's loss by its output on G's images."""
        if self.name in CROSS_ENTROPY:
            return adversarial_loss(output, FAKE, kind=self.output)
        output = output.float()
        if self.name == "least-squares":
            return output.square().mean() / 2
        return (1 + output).relu().mean() if self.name == "hinge" else output.mean()

    def of_generator(self, output: Tensor) -> Tensor:
        """G's loss by D's output on its images."""
        if self.name == "non-saturating":
            return adversarial_loss(output, REAL, kind=self.output)
        if self.name == "minimax":
            return -adversarial_loss(output, FAKE, kind=self.output)
        output = output.float()
        return (
            (output - REAL).square().mean() / 2 if self.name == "least-squares" else -output.mean()
        )

    def score(self, output: Tensor) -> Tensor:
        """D(x) or D(G(z)) for the log, without gradient: the mean probability of being real where D gives one, else its
        mean output."""
        output = output.detach().float()
        probabilities = self.name in CROSS_ENTROPY and self.output == "logits"
        return (output.sigmoid() if probabilities else output).mean()
