"""The networks of the CGAN paper's experiment on MNIST: layers of units, no convolutions, a label beside each image.

Mirza & Osindero 2014 (arXiv 1411.1784), section 4.1. Where the paper is silent, what the code that it builds on does
(goodfeli/adversarial, ``mnist.yaml``): biases of 0 and weights uniform in ±0.05 in the generator, ±0.005 in the
discriminator. Dropout is of hidden units, as there; inputs are left whole, where that code drops a fifth of D's.

The paper drops units of the generator too, and does not say whether of samples. Here also of those: the masks are most
of the noise that the trained generator makes its images of, and without them all images of a class are nearly the same
(``benchmarks/results/conditional.md``). The code that it builds on leaves the generator whole, but for its
``IntrinsicDropoutGenerator``, which samples with dropout as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UserError
from .labels import check_labels, one_hot
from .networks import Described, LatentNetwork, check_shape, choice, integer
from .nn import MaxoutLinear

__all__ = ["MlpDiscriminator", "MlpGenerator"]

_DISTRIBUTIONS = ("unit", "uniform", "normal")


class _Dropout(nn.Dropout):
    """``nn.Dropout`` that gets four masks of a random number on the CPU. PyTorch's draws one for each, in five times
    the time, a sixth of a training step.

    What is kept is kept with the multiple of 2**-16 next to ``1 - p``, and scaled by the inverse of just that.
    """

    def forward(self, input: Tensor) -> Tensor:
        kept = round((1 - self.p) * 2**16)
        plain = not self.training or self.p == 0 or kept == 0 or input.device.type != "cpu"
        if plain or torch.compiler.is_compiling():
            return super().forward(input)
        words = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        mask = words.view(torch.int16)[: input.numel()].view(input.shape) < kept - 2**15
        return input * mask.to(input.dtype).mul_(2**16 / kept)


class _MlpNetwork(Described):
    """What the two share: checked settings, labels as vectors, how weights are drawn."""

    def __init__(self, settings: dict[str, tuple[Any, int]], dropout: float, irange: float) -> None:
        super().__init__()
        owner = type(self).__name__
        self.config = {
            name: integer(owner, name, value, low) for name, (value, low) in settings.items()
        }
        for name, number, rule, holds in (
            ("dropout", dropout, "from 0 to below 1", 0 <= dropout < 1),
            ("irange", irange, "above 0", irange > 0),
        ):
            if not holds:
                raise UserError(f"{owner}(): '{name}' must be a number {rule}, got {number}")
        self.config |= {"dropout": float(dropout), "irange": float(irange)}
        self.image_size: int = self.config["image_size"]
        self.nc: int = self.config["nc"]
        self.classes = self.config["classes"]
        self._pixels = self.nc * self.image_size**2
        self.dropout = _Dropout(dropout)

    def reset_parameters(self) -> None:
        """Weights uniform within ``irange`` of 0, biases 0."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -self.config["irange"], self.config["irange"])


class MlpGenerator(_MlpNetwork, LatentNetwork):
    """Latent vectors and labels to images in [0, 1], through units of their own and then common ones, all ReLU.

    Args:
        image_size: side of the image.
        nc: channels of the image.
        nz: length of a latent vector.
        classes: how many labels there are, at least 2.
        z_units: hidden units that see the latent vector.
        y_units: hidden units that see the label.
        joint_units: hidden units that see all of those.
        dropout: part of the hidden units that is left out in training.
        irange: weights are drawn uniformly within this of 0.
        sampling_dropout: whether :func:`dcgan_fast.models.generate` leaves them out of its images as well, by
            :meth:`sample`. Without, it draws each image with all units, as evaluation mode does.
        latent_distribution: what :meth:`sample_latent` draws: ``unit`` U(0, 1), ``uniform`` U(-1, 1) or ``normal``
            N(0, 1).

    Attributes:
        config: the settings above as plain JSON types; ``MlpGenerator(**config)`` rebuilds it.
        output_range: the range of its images, (0, 1).

    Raises:
        UserError: a setting breaks its rule.

    Source: Mirza & Osindero 2014, section 4.1.
    """

    output_range = (0.0, 1.0)

    def __init__(
        self,
        image_size: int = 28,
        nc: int = 1,
        nz: int = 100,
        classes: int = 10,
        *,
        z_units: int = 200,
        y_units: int = 1000,
        joint_units: int = 1200,
        dropout: float = 0.5,
        irange: float = 0.05,
        sampling_dropout: bool = True,
        latent_distribution: str = "unit",
    ) -> None:
        super().__init__(
            {
                "image_size": (image_size, 1),
                "nc": (nc, 1),
                "nz": (nz, 1),
                "classes": (classes, 2),
                "z_units": (z_units, 1),
                "y_units": (y_units, 1),
                "joint_units": (joint_units, 1),
            },
            dropout,
            irange,
        )
        self.nz = self.config["nz"]
        self.latent_distribution = choice(
            "MlpGenerator", "latent_distribution", latent_distribution, _DISTRIBUTIONS
        )
        if not isinstance(sampling_dropout, bool):
            raise UserError(
                f"MlpGenerator(): 'sampling_dropout' must be True or False, got {sampling_dropout!r}"
            )
        self.sampling_dropout = sampling_dropout
        self.config |= {
            "sampling_dropout": sampling_dropout,
            "latent_distribution": self.latent_distribution,
        }
        self._hidden = z_units + y_units, joint_units
        self.z = nn.Linear(self.nz, z_units)
        self.y = nn.Linear(self.classes, y_units)
        self.joint = nn.Linear(z_units + y_units, joint_units)
        self.output = nn.Linear(joint_units, self._pixels)
        self.reset_parameters()

    def forward(self, latent: Tensor, labels: Tensor, *, masks: Tensor | None = None) -> Tensor:
        """Images (N, nc, S, S) of ``latent`` (N, nz) or (N, nz, 1, 1) and ``labels``.

        ``labels``: int64 (N,) from 0 to classes - 1, or weights of the classes (N, classes). ``masks``: what the
        hidden units are multiplied by, in place of dropout, (N, z_units + y_units + joint_units).

        Raises:
            UserError: ``latent`` or ``labels`` have another shape, or a label is out of range.
        """
        where = "MlpGenerator.forward()"
        check_shape(where, "latent", latent, (self.nz,), (self.nz, 1, 1))
        check_labels(where, labels, latent.shape[0], self.classes)
        flat = latent.flatten(1)
        hot = one_hot(labels, self.classes, flat.dtype)
        first = last = self.dropout
        if masks is not None:
            check_shape(where, "masks", masks, (sum(self._hidden),))
            first, last = (part.mul for part in masks.split(self._hidden, 1))
        hidden = first(torch.cat([self.z(flat), self.y(hot)], 1).relu())
        hidden = last(self.joint(hidden).relu())
        images = self.output(hidden).sigmoid()
        return images.view(-1, self.nc, self.image_size, self.image_size)

    def sample(self, latent: Tensor, labels: Tensor) -> Tensor:
        """As :meth:`forward`, with units left out in either mode: the images that the discriminator saw.

        Which ones is drawn from the bits of the latent vector, as float32: it has one image, whatever stands beside it,
        and loses the same units with every label. No random state is touched.
        """
        check_shape("MlpGenerator.sample()", "latent", latent, (self.nz,), (self.nz, 1, 1))
        images: Tensor = self(latent, labels, masks=self._masks(latent))
        return images

    def _masks(self, latent: Tensor) -> Tensor:
        """0 or 1 / (1 - dropout) for each hidden unit, (N, units). They take half as long as the images."""
        rows = latent.detach().flatten(1).float().cpu().contiguous().numpy()
        drawn = np.empty((len(rows), sum(self._hidden)), np.float32)
        for row, numbers in zip(rows, drawn, strict=True):
            np.random.default_rng(row.view(np.uint32)).random(out=numbers, dtype=np.float32)
        left_out = self.config["dropout"]
        return torch.from_numpy(drawn).ge_(left_out).div_(1 - left_out).to(latent)

    @property
    def values_per_image(self) -> int:
        """No batch norm averages over anything: an image may be drawn alone."""
        return 2


class MlpDiscriminator(_MlpNetwork):
    """Images and labels to one number each, through maxout units of their own and then common ones.

    Args:
        image_size, nc, classes, dropout, irange: as :class:`MlpGenerator`'s.
        x_units, x_pieces: maxout units that see the image, and their pieces.
        y_units, y_pieces: those that see the label.
        joint_units, joint_pieces: those that see all of these.
        output: ``logits``, or ``sigmoid`` to end in one, as the paper's does.

    Attributes:
        config: the settings above as plain JSON types; ``MlpDiscriminator(**config)`` rebuilds it.

    Raises:
        UserError: a setting breaks its rule.

    Source: Mirza & Osindero 2014, section 4.1; maxout: Goodfellow et al. 2013.
    """

    def __init__(
        self,
        image_size: int = 28,
        nc: int = 1,
        classes: int = 10,
        *,
        x_units: int = 240,
        x_pieces: int = 5,
        y_units: int = 50,
        y_pieces: int = 5,
        joint_units: int = 240,
        joint_pieces: int = 4,
        dropout: float = 0.5,
        irange: float = 0.005,
        output: str = "logits",
    ) -> None:
        super().__init__(
            {
                "image_size": (image_size, 1),
                "nc": (nc, 1),
                "classes": (classes, 2),
                "x_units": (x_units, 1),
                "x_pieces": (x_pieces, 1),
                "y_units": (y_units, 1),
                "y_pieces": (y_pieces, 1),
                "joint_units": (joint_units, 1),
                "joint_pieces": (joint_pieces, 1),
            },
            dropout,
            irange,
        )
        self.output = choice("MlpDiscriminator", "output", output, ("logits", "sigmoid"))
        self.config |= {"output": self.output}
        self.x = MaxoutLinear(self._pixels, x_units, x_pieces)
        self.y = MaxoutLinear(self.classes, y_units, y_pieces)
        self.joint = MaxoutLinear(x_units + y_units, joint_units, joint_pieces)
        self.head = nn.Linear(joint_units, 1)
        self.reset_parameters()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Logits, or probabilities of "real" (see ``output``), (N,), of ``images`` (N, nc, S, S) and ``labels``.

        ``labels``: int64 (N,) from 0 to classes - 1, or weights of the classes (N, classes).

        Raises:
            UserError: ``images`` or ``labels`` have another shape, or a label is out of range.
        """
        shape = (self.nc, self.image_size, self.image_size)
        where = "MlpDiscriminator.forward()"
        check_shape(where, "images", images, shape)
        check_labels(where, labels, images.shape[0], self.classes)
        hot = one_hot(labels, self.classes, images.dtype)
        hidden = self.dropout(torch.cat([self.x(images.flatten(1)), self.y(hot)], 1))
        result = self.head(self.dropout(self.joint(hidden))).flatten()
        return result.sigmoid() if self.output == "sigmoid" else result
