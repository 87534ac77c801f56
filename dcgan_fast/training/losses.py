"""The adversarial losses: the one place where they are computed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

REAL, FAKE = 1.0, 0.0


def adversarial_loss(output: Tensor, label: float, *, kind: str = "logits") -> Tensor:
    """Binary cross-entropy of D's ``output`` against the one ``label``, mean over the batch.

    Args:
        output: one number an image, of any shape and float dtype; taken to float32 first, for in
            bfloat16 a confident D is indistinguishable from a certain one.
        label: :data:`REAL` or :data:`FAKE`. The generator's loss is the one against ``REAL`` (the
            non-saturating form, which the paper and all its descendants use).
        kind: "logits" (BCEWithLogits: finite whatever D says) or "sigmoid" (BCE of probabilities,
            logarithms clamped at -100, as in pytorch/examples).
    """
    output = output.float()
    labels = torch.full_like(output, label)
    if kind == "logits":
        return F.binary_cross_entropy_with_logits(output, labels)
    return F.binary_cross_entropy(output, labels)


def mean_probability(output: Tensor, *, kind: str = "logits") -> Tensor:
    """Mean probability that D gives its images of being real: D(x), D(G(z)). No gradient."""
    output = output.detach().float()
    return (output.sigmoid() if kind == "logits" else output).mean()
