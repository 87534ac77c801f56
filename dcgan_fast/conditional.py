"""The networks with labels: a DCGAN whose images are of a class that one asks for.

Two ways of telling a network the label:

``concat``
    The label beside the input of every layer, as a vector or as planes: Newmu/dcgan_code,
    ``mnist/train_cond_dcgan.py``, on :mod:`dcgan_fast.labels`, which makes no planes.
``projection``
    A learnt vector of each class beside the latent vector; in the discriminator, the product of another one with
    its features: Miyato & Koyama 2018 (arXiv 1802.05637).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .errors import UserError
from .labels import (
    FusedLabelSequential,
    LabelConv2d,
    LabelConvTranspose2d,
    LabelLinear,
    check_labels,
)
from .networks import LEAK, LatentNetwork, Layer, Network, check_shape, choice, integer
from .nn import FusedSequential

__all__ = ["ConditionalDiscriminator", "ConditionalGenerator"]

CONDITIONINGS = ("concat", "projection")
_SMALLEST_BASE, _LARGEST_BASE = 4, 7  # sides of the innermost map, where 'scales' is not given


class _ConditionalNetwork(Network):
    """What the two share: how a layer gets the label."""

    main: FusedLabelSequential | FusedSequential  # type: ignore[assignment]

    def __init__(
        self,
        image_size: int,
        nc: int,
        width: int,
        classes: int,
        units: tuple[str, int],
        kernel_size: int,
        scales: int | None,
        bias: bool,
        bn_eps: float,
        bn_affine: bool,
        conditioning: str,
    ) -> None:
        super().__init__(image_size, nc, width, kernel_size, scales, 1, bias, bn_eps)
        owner = type(self).__name__
        self.classes = integer(owner, "classes", classes, 2)
        self._units = integer(owner, units[0], units[1], 0)
        if not isinstance(bn_affine, bool):
            raise UserError(f"{owner}(): 'bn_affine' must be True or False, got {bn_affine!r}")
        self._bn_affine = bn_affine
        self.conditioning = choice(owner, "conditioning", conditioning, CONDITIONINGS)
        del self.config["convs_per_scale"]
        self.config |= {
            "classes": self.classes,
            units[0]: self._units,
            "bn_affine": self._bn_affine,
            "conditioning": self.conditioning,
        }

    def _count_scales(self, owner: str, scales: int | None) -> int:
        """How often the map is halved: down to 4x4 to 7x7, unless the caller fixed it."""
        if scales is not None:
            return super()._count_scales(owner, scales)
        size = self.image_size
        count = max(size // _SMALLEST_BASE, 1).bit_length() - 1
        base = size >> count
        fits = base << count == size and _SMALLEST_BASE <= base <= _LARGEST_BASE
        if not (fits and 16 <= size <= 256):
            raise UserError(
                f"{owner}(): 'image_size' must be 4, 5, 6 or 7 times a power of two, between 16 and 256 (others with "
                f"'scales'), got {size}"
            )
        return count

    @property
    def _concatenates(self) -> bool:
        return self.conditioning == "concat"

    def _linear(self, features: int, units: int) -> nn.Linear:
        if self._concatenates:
            return LabelLinear(features, self.classes, units, bias=self._bias)
        return nn.Linear(features, units, bias=self._bias)

    def _batch_norm(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, eps=self._bn_eps, affine=self._bn_affine)

    def _batch_norm_of_units(self, units: int) -> nn.BatchNorm1d:
        return nn.BatchNorm1d(units, eps=self._bn_eps, affine=self._bn_affine)

    def _sequence(self, modules: list[nn.Module]) -> FusedLabelSequential | FusedSequential:
        return (FusedLabelSequential if self._concatenates else FusedSequential)(*modules)

    def _run(self, input: Tensor, labels: Tensor) -> Tensor:
        return self.main(input, labels) if self._concatenates else self.main(input)


def _vectors_of(embedding: nn.Embedding, labels: Tensor) -> Tensor:
    """The vector of each label; of weights of the classes, the mean by them."""
    if labels.is_floating_point():
        return labels.to(embedding.weight.dtype) @ embedding.weight
    return embedding(labels)


class ConditionalGenerator(_ConditionalNetwork, LatentNetwork):
    """Latent vectors and labels to images: linear layers to a small map, then transposed convolutions.

    Every layer but the last is followed by batch norm and ReLU, batch norm of the linear ones being of each unit. With
    the default settings this is the generator of Newmu/dcgan_code's conditional MNIST model.

    Args:
        image_size: side of the image: 4, 5, 6 or 7 times a power of two, from 16 to 256 (or, where ``scales`` is
            given, a multiple of ``2**scales`` in that range).
        nc: channels of the image, 1 to 4.
        nz: length of a latent vector.
        ngf: channels of the last hidden layer; they double at each scale before it.
        classes: how many labels there are, at least 2.
        ngfc: units of a first linear layer before the one that makes the map; 0: no such layer.
        kernel_size: of the convolutions, 2 to 7.
        scales: how many times the map is doubled; None: from 4x4 to 7x7 up, as often as needed.
        bias: whether the layers have biases.
        bn_eps: of every batch norm.
        bn_affine: whether batch norms have gains and biases.
        conditioning: ``concat`` or ``projection``, see :mod:`dcgan_fast.conditional`.
        embedding: length of a class's vector where ``conditioning`` is ``projection``.
        output_activation: ``sigmoid`` for images in [0, 1], ``tanh`` for images in [-1, 1].
        latent_distribution: what :meth:`sample_latent` draws: ``normal`` N(0, 1) or ``uniform`` U(-1, 1).

    Attributes:
        config: the settings above as plain JSON types; ``ConditionalGenerator(**config)`` rebuilds it.
        output_range: the range of its images.

    Raises:
        UserError: a setting breaks its rule.
    """

    _width_name = "ngf"

    def __init__(
        self,
        image_size: int = 28,
        nc: int = 1,
        nz: int = 100,
        ngf: int = 64,
        classes: int = 10,
        *,
        ngfc: int = 1024,
        kernel_size: int = 5,
        scales: int | None = None,
        bias: bool = False,
        bn_eps: float = 1e-8,
        bn_affine: bool = False,
        conditioning: str = "concat",
        embedding: int = 128,
        output_activation: str = "sigmoid",
        latent_distribution: str = "uniform",
    ) -> None:
        super().__init__(
            image_size,
            nc,
            ngf,
            classes,
            ("ngfc", ngfc),
            kernel_size,
            scales,
            bias,
            bn_eps,
            bn_affine,
            conditioning,
        )
        owner = type(self).__name__
        self.nz = integer(owner, "nz", nz, 1)
        self.ngf: int = self.config["ngf"]
        self.latent_distribution = choice(
            owner, "latent_distribution", latent_distribution, ("normal", "uniform")
        )
        length = integer(owner, "embedding", embedding, 1)
        sigmoid = (
            choice(owner, "output_activation", output_activation, ("sigmoid", "tanh")) == "sigmoid"
        )
        self.output_range = (0.0, 1.0) if sigmoid else (-1.0, 1.0)
        self.config |= {
            "nz": self.nz,
            "embedding": length,
            "output_activation": output_activation,
            "latent_distribution": self.latent_distribution,
        }
        features = self.nz
        if not self._concatenates:
            self.embedding = nn.Embedding(self.classes, length)
            features += length
        modules: list[nn.Module] = []
        if self._units:
            modules += self._linear_layer(features, self._units)
            features = self._units
        modules += self._linear_layer(features, self._top * self._base**2)
        modules.append(nn.Unflatten(1, (self._top, self._base, self._base)))
        *hidden, last = reversed(self._layers)
        for layer in hidden:
            modules += [self._upsample(layer), self._batch_norm(layer.outer), nn.ReLU(True)]
        modules += [self._upsample(last), nn.Sigmoid() if sigmoid else nn.Tanh()]
        self.main = self._sequence(modules)

    def _linear_layer(self, features: int, units: int) -> list[nn.Module]:
        return [self._linear(features, units), self._batch_norm_of_units(units), nn.ReLU(True)]

    def _upsample(self, layer: Layer) -> nn.ConvTranspose2d:
        """Of stride 2, doubling the map exactly."""
        size, padding, extra = (
            self._kernel_size,
            (self._kernel_size - 1) // 2,
            self._kernel_size % 2,
        )
        if self._concatenates:
            return LabelConvTranspose2d(
                layer.inner, self.classes, layer.outer, size, 2, padding, extra, bias=self._bias
            )
        return nn.ConvTranspose2d(
            layer.inner, layer.outer, size, 2, padding, extra, bias=self._bias
        )

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Images (N, nc, S, S) of ``latent`` (N, nz) or (N, nz, 1, 1) and ``labels``.

        ``labels``: int64 (N,) from 0 to classes - 1, or weights of the classes (N, classes).

        Raises:
            UserError: ``latent`` or ``labels`` have another shape, or a label is out of range.
        """
        where = "ConditionalGenerator.forward()"
        check_shape(where, "latent", latent, (self.nz,), (self.nz, 1, 1))
        check_labels(where, labels, latent.shape[0], self.classes)
        return self._run(self.first_input(latent, labels), labels)

    def first_input(self, latent: Tensor, labels: Tensor) -> Tensor:
        """What ``main`` is called with for ``latent`` (N, nz) or (N, nz, 1, 1), labels aside where it takes them."""
        input = latent.flatten(1)
        if self._concatenates:
            return input
        return torch.cat([input, _vectors_of(self.embedding, labels).to(input.dtype)], 1)

    @property
    def values_per_image(self) -> int:
        """1: each unit is normalised by itself, so batch statistics need a batch of two images."""
        return 1


class ConditionalDiscriminator(_ConditionalNetwork):
    """Images and labels to one number each: strided convolutions, then linear layers.

    Every layer is followed by LeakyReLU(0.2), and every one but the first by batch norm before it. With the default
    settings this is the discriminator of Newmu/dcgan_code's conditional MNIST model.

    Args:
        image_size, nc, classes, kernel_size, scales, bias, bn_eps, bn_affine: as :class:`ConditionalGenerator`'s.
        ndf: channels of the first layer; they double at each scale after it.
        ndfc: units of a linear layer after the convolutions; 0: no such layer.
        conditioning: ``concat`` or ``projection``. The features whose product with a class's vector the latter adds
            are the units of that layer, or else the last map's sums over its pixels.
        output: ``logits``, or ``sigmoid`` to end in one.

    Attributes:
        config: the settings above as plain JSON types; ``ConditionalDiscriminator(**config)`` rebuilds it.

    Raises:
        UserError: a setting breaks its rule.
    """

    _width_name = "ndf"

    def __init__(
        self,
        image_size: int = 28,
        nc: int = 1,
        ndf: int = 64,
        classes: int = 10,
        *,
        ndfc: int = 1024,
        kernel_size: int = 5,
        scales: int | None = None,
        bias: bool = False,
        bn_eps: float = 1e-8,
        bn_affine: bool = False,
        conditioning: str = "concat",
        output: str = "logits",
    ) -> None:
        super().__init__(
            image_size,
            nc,
            ndf,
            classes,
            ("ndfc", ndfc),
            kernel_size,
            scales,
            bias,
            bn_eps,
            bn_affine,
            conditioning,
        )
        self.ndf: int = self.config["ndf"]
        self.output = choice(type(self).__name__, "output", output, ("logits", "sigmoid"))
        self.config |= {"output": self.output}
        first, *hidden = self._layers
        modules: list[nn.Module] = [self._downsample(first), nn.LeakyReLU(LEAK, True)]
        for layer in hidden:
            modules += [
                self._downsample(layer),
                self._batch_norm(layer.inner),
                nn.LeakyReLU(LEAK, True),
            ]
        features = self._top * self._base**2
        if self._units:
            modules += [
                nn.Flatten(),
                self._linear(features, self._units),
                self._batch_norm_of_units(self._units),
                nn.LeakyReLU(LEAK, True),
            ]
            features = self._units
        elif self._concatenates:
            modules.append(nn.Flatten())
        if self._concatenates:
            modules.append(self._linear(features, 1))
        else:
            features = self._units or self._top
            self.head = nn.Linear(features, 1, bias=self._bias)
            self.embedding = nn.Embedding(self.classes, features)
            nn.init.normal_(self.embedding.weight, 0.0, 0.02)  # as small as the other weights
        self.main = self._sequence(modules)

    def _downsample(self, layer: Layer) -> nn.Conv2d:
        size, padding = self._kernel_size, (self._kernel_size - 1) // 2
        if self._concatenates:
            return LabelConv2d(
                layer.outer, self.classes, layer.inner, size, 2, padding, bias=self._bias
            )
        return nn.Conv2d(layer.outer, layer.inner, size, 2, padding, bias=self._bias)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Logits, or probabilities of "real" (see ``output``), (N,), of ``images`` (N, nc, S, S) and ``labels``.

        ``labels``: int64 (N,) from 0 to classes - 1, or weights of the classes (N, classes).

        Raises:
            UserError: ``images`` or ``labels`` have another shape, or a label is out of range.
        """
        where = "ConditionalDiscriminator.forward()"
        check_shape(where, "images", images, (self.nc, self.image_size, self.image_size))
        check_labels(where, labels, images.shape[0], self.classes)
        result = self._run(images, labels)
        if not self._concatenates:
            features = result if self._units else result.sum((2, 3))
            of_class = _vectors_of(self.embedding, labels).to(features.dtype)
            result = self.head(features) + (features * of_class).sum(1, keepdim=True)
        return (result if self.output == "logits" else result.sigmoid()).flatten()
