"""The networks without labels, generator and discriminator, and what they share with those that have them.

Each is one flat :class:`~dcgan_fast.nn.FusedSequential` of plain ``torch.nn`` modules, ``main``: its state dict is the
plain one, and every run *convolution, batch norm, activation* in it can be served by one fused op. A generator and a
discriminator of the same settings are mirror images, drawn from the one list of layers that :func:`layers_of` makes.
"""

from __future__ import annotations

import math
import operator
import os
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .errors import UserError
from .nn import FusedSequential

__all__ = ["Discriminator", "Generator"]

Config = dict[str, Any]

_MIN_SIZE, _MAX_SIZE = 16, 256
LEAK = 0.2  # the slope of every LeakyReLU: the DCGAN paper, section 4, and every code named in models.py


# ------------------------------------------------------------------------------------- checks


def integer(owner: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` as an int within [low, high]; numpy integers are welcome, booleans are not."""
    try:
        number = low - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = low - 1
    if number < low or (high is not None and number > high):
        rule = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{owner}(): '{name}' must be an integer {rule}, got {value!r}")
    return number


def choice(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UserError(f"{owner}(): '{name}' must be one of {', '.join(choices)}; got {value!r}")
    return value


def check_shape(owner: str, name: str, tensor: Tensor, *shapes: tuple[int, ...]) -> None:
    """Each row of ``tensor`` has one of ``shapes``."""
    if torch.jit.is_tracing():
        return  # sizes are values of the graph
    if tuple(tensor.shape[1:]) not in shapes:
        rule = " or ".join(f"(N, {', '.join(map(str, shape))})" for shape in shapes)
        raise UserError(f"{owner}: '{name}' must be {rule}, got {tuple(tensor.shape)}")


# ----------------------------------------------------------------------------------- networks


class Layer(NamedTuple):
    """A convolution as a discriminator runs it; a generator runs it from ``inner`` to ``outer``."""

    outer: int
    inner: int
    stride: int


def layers_of(nc: int, width: int, scales: int, convs_per_scale: int) -> list[Layer]:
    """From the image inwards: halve the map ``scales`` times, with twice the channels each time."""
    layers, outer = [], nc
    for scale in range(scales):
        inner = width << scale
        for stride in (1,) * (convs_per_scale - 1) + (2,):
            layers.append(Layer(outer, inner, stride))
            outer = inner
    return layers


class Described(nn.Module):
    """A network of ours: ``type(network)(**network.config)`` rebuilds it.

    ``classes`` is the number of labels; a network that has some is called with ``(input, labels)``, labels int64 (N,)
    or weights of each class (N, classes).
    """

    config: Config
    classes: int = 0

    @classmethod
    def from_pretrained(cls: type[D], name_or_path: str | os.PathLike[str], **options: Any) -> D:
        """The network of a folder, or of a model on the Hugging Face hub, in evaluation mode.

        Args:
            name_or_path: a folder with ``config.json`` and ``model.safetensors`` or
                ``pytorch_model.bin``, or a name on the hub: one that :meth:`push_to_hub` made, or
                one of huggan's DCGANs (``Generator.from_pretrained("huggan/dcgan-mnist")``).
            options: ``revision``, ``token``, ``cache_dir``, ``force_download``,
                ``local_files_only`` of ``huggingface_hub.ModelHubMixin.from_pretrained``, and
                ``map_location``.

        Raises:
            UserError: huggingface_hub is not installed, or what was found is no network of this
                class. Errors of the hub itself are huggingface_hub's.
        """
        from . import hub  # huggingface_hub is optional, and takes a third of a second to import

        return hub.from_pretrained(cls, name_or_path, **options)

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> str | None:
        """Write ``config.json``, ``model.safetensors`` and a model card ``README.md`` into ``folder``.

        ``options`` are those of ``huggingface_hub.ModelHubMixin.save_pretrained``.

        Raises:
            UserError: huggingface_hub or safetensors is not installed, or ``folder`` cannot be written.
        """
        from . import hub

        return hub.save_pretrained(self, folder, **options)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload what :meth:`save_pretrained` writes to ``repository``, "user/name", on the Hugging Face hub.

        Args:
            repository: made where it is missing.
            options: ``token``, ``private``, ``commit_message``, ``branch``, ``create_pr`` and others
                of ``huggingface_hub.ModelHubMixin.push_to_hub``.

        Returns:
            The address of the commit.

        Raises:
            UserError: huggingface_hub or safetensors is not installed. Errors of the hub itself are
                huggingface_hub's.
        """
        from . import hub

        return hub.push_to_hub(self, repository, **options)


D = TypeVar("D", bound=Described)


class LatentNetwork(Described):
    """What every generator has."""

    nz: int
    latent_distribution: str
    output_range: tuple[float, float]  # of its images
    sampling_dropout: bool = False  # whether units are left out of samples as they are in training

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """Images of ``forward``'s arguments as training makes them: of a network with dropout with units left out, in
        either mode."""
        images: Tensor = self(*args, **kwargs)
        return images

    @property
    def values_per_image(self) -> int:
        """Values that one image adds to the smallest of the groups that batch norm averages over."""
        raise NotImplementedError

    def sample_latent(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw ``n`` latent vectors, (n, nz), on the network's device and in its dtype unless told.

        They are drawn in float32 on the device of ``generator`` (without one: the target device),
        then moved and cast: a CPU generator gives the same vectors on every device, in every dtype.
        """
        n = integer("sample_latent", "n", n, 0)
        parameter = next(self.parameters())
        device = parameter.device if device is None else torch.device(device)
        source = device if generator is None else generator.device
        draw = torch.randn if self.latent_distribution == "normal" else torch.rand
        latent = draw(n, self.nz, generator=generator, device=source, dtype=torch.float32)
        if self.latent_distribution == "uniform":
            latent = latent.mul_(2).sub_(1)
        return latent.to(device, dtype or parameter.dtype)


class Network(Described):
    """What a generator and a discriminator share: checked settings and the list of layers."""

    main: FusedSequential
    _width_name: str  # the public name of the setting ``width``

    def __init__(
        self,
        image_size: int,
        nc: int,
        width: int,
        kernel_size: int,
        scales: int | None,
        convs_per_scale: int,
        bias: bool,
        bn_eps: float,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.image_size = integer(owner, "image_size", image_size, 1)
        self.nc = integer(owner, "nc", nc, 1, 4)
        width = integer(owner, self._width_name, width, 1)
        self._kernel_size = integer(owner, "kernel_size", kernel_size, 2, 7)
        convs_per_scale = integer(owner, "convs_per_scale", convs_per_scale, 1, 4)
        if convs_per_scale > 1 and self._kernel_size % 2 == 0:
            raise UserError(
                f"{owner}(): 'kernel_size' must be odd where 'convs_per_scale' is above 1 (an even "
                f"kernel at stride 1 changes the size of the map), got {kernel_size}"
            )
        if not isinstance(bias, bool):
            raise UserError(f"{owner}(): 'bias' must be True or False, got {bias!r}")
        if not (isinstance(bn_eps, float | int) and 0 <= bn_eps < math.inf):
            raise UserError(f"{owner}(): 'bn_eps' must be a number of at least 0, got {bn_eps!r}")
        self._bias, self._bn_eps = bias, float(bn_eps)
        self.config: Config = {
            "image_size": self.image_size,
            "nc": self.nc,
            self._width_name: width,
            "kernel_size": self._kernel_size,
            "scales": scales if scales is None else integer(owner, "scales", scales, 1, 8),
            "convs_per_scale": convs_per_scale,
            "bias": self._bias,
            "bn_eps": self._bn_eps,
        }
        scales = self._count_scales(owner, self.config["scales"])
        self._layers = layers_of(self.nc, width, scales, convs_per_scale)
        self._base = self.image_size >> scales  # side of the innermost map
        self._top = self._layers[-1].inner  # and its channels

    def _count_scales(self, owner: str, scales: int | None) -> int:
        """How often the map is halved: down to 4x4, unless the caller fixed it."""
        size = self.image_size
        if scales is None:
            fits, rule = size & (size - 1) == 0, "a power of two"
        else:
            fits, rule = size % 2**scales == 0, f"a multiple of 2**scales = {2**scales}"
        if not (fits and _MIN_SIZE <= size <= _MAX_SIZE):
            raise UserError(
                f"{owner}(): 'image_size' must be {rule} between {_MIN_SIZE} and {_MAX_SIZE}, "
                f"got {size}"
            )
        return (size // 4).bit_length() - 1 if scales is None else scales

    def _batch_norm(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, eps=self._bn_eps)


class Generator(Network, LatentNetwork):
    """Latent vectors to images: a projection to a small map, then transposed convolutions.

    Every layer but the last is followed by batch norm and ReLU, the last by tanh. With the default
    settings this is pytorch/examples' generator, key for key.

    Args:
        image_size: side of the image: a power of two from 16 to 256 (or, where ``scales`` is given,
            a multiple of ``2**scales`` in that range).
        nc: channels of the image, 1 to 4.
        nz: length of a latent vector.
        ngf: channels of the last hidden layer; they double at each scale before it.
        kernel_size: of the convolutions, 2 to 7. Stride 2 doubles the map exactly, whatever it is.
        scales: how many times the map is doubled; None: from 4x4 up, as often as needed.
        convs_per_scale: convolutions at each scale: one of stride 2, then the others of stride 1.
        bias: whether the projection and the convolutions have biases.
        bn_eps: of every batch norm.
        projection: how a latent vector becomes the first map. ``conv``: a transposed convolution of
            a 1x1 map, batch norm per channel. ``linear``: a matrix product, reshaped, batch norm
            per channel. ``linear-bn1d``: a matrix product, batch norm of **each unit**, reshaped.
        latent_distribution: what :meth:`sample_latent` draws: ``normal`` N(0, 1) or ``uniform``
            U(-1, 1).

    Attributes:
        config: the settings above as plain JSON types; ``Generator(**config)`` rebuilds it.
        output_range: the range of its images, (-1, 1).

    Raises:
        UserError: a setting breaks its rule.
    """

    _width_name = "ngf"
    output_range = (-1.0, 1.0)

    def __init__(
        self,
        image_size: int = 64,
        nc: int = 3,
        nz: int = 100,
        ngf: int = 64,
        *,
        kernel_size: int = 4,
        scales: int | None = None,
        convs_per_scale: int = 1,
        bias: bool = False,
        bn_eps: float = 1e-5,
        projection: str = "conv",
        latent_distribution: str = "normal",
    ) -> None:
        super().__init__(image_size, nc, ngf, kernel_size, scales, convs_per_scale, bias, bn_eps)
        owner = type(self).__name__
        self.nz = integer(owner, "nz", nz, 1)
        self.ngf: int = self.config["ngf"]
        self.latent_distribution = choice(
            owner, "latent_distribution", latent_distribution, ("normal", "uniform")
        )
        self.projection = choice(owner, "projection", projection, ("conv", "linear", "linear-bn1d"))
        self.config |= {
            "nz": self.nz,
            "projection": self.projection,
            "latent_distribution": self.latent_distribution,
        }
        modules = self._first_layer()
        *hidden, last = reversed(self._layers)
        for layer in hidden:
            modules += [self._upsample(layer), self._batch_norm(layer.outer), nn.ReLU(True)]
        modules += [self._upsample(last), nn.Tanh()]
        self.main = FusedSequential(*modules)

    def _first_layer(self) -> list[nn.Module]:
        top, base = self._top, self._base
        if self.projection == "conv":
            project = nn.ConvTranspose2d(self.nz, top, base, 1, 0, bias=self._bias)
            return [project, self._batch_norm(top), nn.ReLU(True)]
        units = top * base * base
        linear = nn.Linear(self.nz, units, bias=self._bias)
        reshape = nn.Unflatten(1, (top, base, base))
        if self.projection == "linear":
            return [linear, reshape, self._batch_norm(top), nn.ReLU(True)]
        return [linear, nn.BatchNorm1d(units, eps=self._bn_eps), nn.ReLU(True), reshape]

    def _upsample(self, layer: Layer) -> nn.ConvTranspose2d:
        return nn.ConvTranspose2d(
            layer.inner,
            layer.outer,
            self._kernel_size,
            layer.stride,
            padding=(self._kernel_size - 1) // 2,
            output_padding=(self._kernel_size % 2) * (layer.stride - 1),
            bias=self._bias,
        )

    def forward(self, latent: Tensor) -> Tensor:
        """Images (N, nc, image_size, image_size) in [-1, 1] of ``latent`` (N, nz) or (N, nz, 1, 1).

        Raises:
            UserError: ``latent`` has another shape.
        """
        check_shape("Generator.forward()", "latent", latent, (self.nz,), (self.nz, 1, 1))
        return self.main(self.first_input(latent))

    def first_input(self, latent: Tensor) -> Tensor:
        """What ``main`` is called with for ``latent`` (N, nz) or (N, nz, 1, 1)."""
        flat = latent.flatten(1)
        return flat.unflatten(1, (self.nz, 1, 1)) if self.projection == "conv" else flat

    @property
    def values_per_image(self) -> int:
        """Values that one image adds to the smallest of the groups that batch norm averages over.

        1 where each unit of the projection is normalised by itself: batch statistics need a batch
        of two images there.
        """
        return 1 if self.projection == "linear-bn1d" else self._base**2


class Discriminator(Network):
    """Images to one number each: strided convolutions, then one output over the whole last map.

    Every layer is followed by LeakyReLU(0.2), and every one but the first by batch norm before it.
    With the default settings this is pytorch/examples' discriminator, key for key.

    Args:
        image_size, nc, kernel_size, scales, convs_per_scale, bias, bn_eps: as :class:`Generator`'s;
            here the last of the convolutions at a scale has stride 2.
        ndf: channels of the first layer; they double at each scale after it.
        head: the last layer: ``conv``, a convolution as large as the map, or ``linear``, a matrix
            product of the map flattened in (C, H, W) order: the same numbers under other keys.
        output: ``logits``, or ``sigmoid`` to end in one.

    Attributes:
        config: the settings above as plain JSON types; ``Discriminator(**config)`` rebuilds it.

    Raises:
        UserError: a setting breaks its rule.
    """

    _width_name = "ndf"

    def __init__(
        self,
        image_size: int = 64,
        nc: int = 3,
        ndf: int = 64,
        *,
        kernel_size: int = 4,
        scales: int | None = None,
        convs_per_scale: int = 1,
        bias: bool = False,
        bn_eps: float = 1e-5,
        head: str = "conv",
        output: str = "logits",
    ) -> None:
        super().__init__(image_size, nc, ndf, kernel_size, scales, convs_per_scale, bias, bn_eps)
        owner = type(self).__name__
        self.ndf: int = self.config["ndf"]
        self.head = choice(owner, "head", head, ("conv", "linear"))
        self.output = choice(owner, "output", output, ("logits", "sigmoid"))
        self.config |= {"head": self.head, "output": self.output}
        first, *hidden = self._layers
        modules: list[nn.Module] = [self._downsample(first), nn.LeakyReLU(LEAK, True)]
        for layer in hidden:
            modules += [
                self._downsample(layer),
                self._batch_norm(layer.inner),
                nn.LeakyReLU(LEAK, True),
            ]
        modules += self._last_layer()
        self.main = FusedSequential(*modules)

    def _last_layer(self) -> list[nn.Module]:
        top, base = self._top, self._base
        end: list[nn.Module] = [nn.Sigmoid()] if self.output == "sigmoid" else []
        if self.head == "conv":
            return [nn.Conv2d(top, 1, base, 1, 0, bias=self._bias), *end]
        return [nn.Flatten(), nn.Linear(top * base * base, 1, bias=self._bias), *end]

    def _downsample(self, layer: Layer) -> nn.Conv2d:
        return nn.Conv2d(
            layer.outer,
            layer.inner,
            self._kernel_size,
            layer.stride,
            padding=(self._kernel_size - 1) // 2,
            bias=self._bias,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, or probabilities of "real" (see ``output``), (N,), of ``images`` (N, nc, S, S).

        Raises:
            UserError: ``images`` has another shape.
        """
        shape = (self.nc, self.image_size, self.image_size)
        check_shape("Discriminator.forward()", "images", images, shape)
        return self.main(images).flatten()
