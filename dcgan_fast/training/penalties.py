"""Penalties on the size of D's gradient by its images, which a second derivative then trains away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PENALTIES = ("r1", "wgan-gp")


@dataclass(frozen=True)
class GradientPenalty:
    """A term of D's loss: ``r1`` or ``wgan-gp``.

    ==============  ==========================================  ==================================================
    ``r1``          ``weight / 2 * mean(|grad d(x)|**2)``       at real images: D is to be flat where the data is
    ``wgan-gp``     ``weight * mean((|grad d(x')| - 1)**2)``    at points between real and made images
    ==============  ==========================================  ==================================================

    The norm is that of one image's gradient. With batch norm in D an output depends on the other images of its batch,
    and so does this gradient: the papers' critics of ``wgan-gp`` have none.

    Args:
        kind: one of :data:`PENALTIES`.
        weight: the papers' gamma (10) and lambda (10).
        every: charge it at every so many steps only, so many times as heavily (StyleGAN2's lazy regularisation).

    Raises:
        ValueError: an unknown kind, a weight that is not positive, ``every`` below 1.

    Sources: Mescheder et al. 2018, equation 9; Gulrajani et al. 2017, Algorithm 1; Karras et al. 2020, section 3.1.
    """

    kind: str = "r1"
    weight: float = 10.0
    every: int = 1

    def __post_init__(self) -> None:
        if self.kind not in PENALTIES:
            raise ValueError(f"'kind' must be one of {', '.join(PENALTIES)}, got {self.kind!r}")
        if not self.weight > 0:
            raise ValueError(f"'weight' must be a positive number, got {self.weight}")
        if self.every < 1:
            raise ValueError(f"'every' must be at least 1, got {self.every}")

    def is_due(self, step: int) -> bool:
        """Whether step number ``step``, from 0, has it."""
        return step % self.every == 0

    def at(self, images: Tensor, output: Tensor, scale: float = 1.0) -> Tensor:
        """The penalty, a float32 scalar that can be differentiated.

        Args:
            images: (N, C, H, W) that require a gradient.
            output: D's output on them, one number an image.
            scale: what ``output`` is multiplied by on the way back and the gradient divided by, against the underflow
                of float16.
        """
        (slope,) = torch.autograd.grad(output.float().sum() * scale, images, create_graph=True)
        squares = (slope.float() / scale).square().flatten(1).sum(1)
        if self.kind == "r1":
            return (self.weight * self.every / 2) * squares.mean()
        return (self.weight * self.every) * (_root(squares) - 1).square().mean()

    def between(
        self,
        real: Tensor,
        fake: Tensor,
        discriminate: Callable[[Tensor], Tensor],
        scale: float = 1.0,
    ) -> Tensor:
        """As :meth:`at`, at points drawn uniformly between each real image and a made one: a pass of D of its own."""
        share = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
        images = torch.lerp(fake.detach().to(real.dtype), real.detach(), share).requires_grad_()
        return self.at(images, discriminate(images), scale)


def _root(squares: Tensor) -> Tensor:
    """The square root, whose derivative at 0 is 0 in place of infinity: of an image that D does not see."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
