"""The networks of the DCGAN family, and one preset for each code they were published in.

Each network is one flat :class:`~dcgan_fast.nn.FusedSequential` of plain ``torch.nn`` modules,
``main``: its state dict is the plain one, and every run *convolution, batch norm, activation* in it
can be served by one fused op. A generator and a discriminator of the same settings are mirror
images, drawn from the one list of layers that :func:`_layers` makes.

================  ==============================================================================
preset            source
================  ==============================================================================
pytorch           pytorch/examples ``dcgan/main.py``: its layout and its state-dict keys
paper             Radford, Metz, Chintala 2015 (arXiv 1511.06434), section 3 and figure 1
newmu             the paper's code, Newmu/dcgan_code: ``faces/train_uncond_dcgan.py``
newmu-svhn        the same: the 32x32 SVHN model of ``svhn/`` (``svhn_unsup_all_conv_dcgan_...``)
newmu-imagenet32  the same: ``imagenet/load_pretrained.py``
carpedm20         carpedm20/DCGAN-tensorflow ``model.py``, the net without labels
cgan-multimodal   Mirza, Osindero 2014 (arXiv 1411.1784), section 4.2: :mod:`dcgan_fast.tags`
================  ==============================================================================

Where a source is silent the choice made here stands beside the preset in :data:`PRESETS`.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import UserError
from .nn import FusedSequential, batch_norm_mode, population_statistics

__all__ = [
    "BN_MODES",
    "INIT_SCHEMES",
    "PRESETS",
    "WORD_PRESETS",
    "Discriminator",
    "Generator",
    "Preset",
    "build",
    "build_from_config",
    "generate",
    "infer_config",
    "plain_state_dict",
    "training_defaults",
    "weights_init",
]

Config = dict[str, Any]

BN_MODES = ("running", "batch", "population")
INIT_SCHEMES = ("dcgan", "carpedm20")

_MIN_SIZE, _MAX_SIZE = 16, 256
_LEAK = 0.2  # the slope of every LeakyReLU: paper, section 4, and every code named above


# ------------------------------------------------------------------------------------- checks


def _integer(owner: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` as an int within [low, high]; numpy integers are welcome, booleans are not."""
    try:
        number = low - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = low - 1
    if number < low or (high is not None and number > high):
        rule = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{owner}(): '{name}' must be an integer {rule}, got {value!r}")
    return number


def _choice(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UserError(f"{owner}(): '{name}' must be one of {', '.join(choices)}; got {value!r}")
    return value


def _check_shape(owner: str, name: str, tensor: Tensor, *shapes: tuple[int, ...]) -> None:
    """Each row of ``tensor`` has one of ``shapes``."""
    if tuple(tensor.shape[1:]) not in shapes:
        rule = " or ".join(f"(N, {', '.join(map(str, shape))})" for shape in shapes)
        raise UserError(f"{owner}: '{name}' must be {rule}, got {tuple(tensor.shape)}")


# ----------------------------------------------------------------------------------- networks


class _Layer(NamedTuple):
    """A convolution as a discriminator runs it; a generator runs it from ``inner`` to ``outer``."""

    outer: int
    inner: int
    stride: int


def _layers(nc: int, width: int, scales: int, convs_per_scale: int) -> list[_Layer]:
    """From the image inwards: halve the map ``scales`` times, with twice the channels each time."""
    layers, outer = [], nc
    for scale in range(scales):
        inner = width << scale
        for stride in (1,) * (convs_per_scale - 1) + (2,):
            layers.append(_Layer(outer, inner, stride))
            outer = inner
    return layers


class _Network(nn.Module):
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
        self.image_size = _integer(owner, "image_size", image_size, 1)
        self.nc = _integer(owner, "nc", nc, 1, 4)
        width = _integer(owner, self._width_name, width, 1)
        self._kernel_size = _integer(owner, "kernel_size", kernel_size, 2, 7)
        convs_per_scale = _integer(owner, "convs_per_scale", convs_per_scale, 1, 4)
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
            "scales": scales if scales is None else _integer(owner, "scales", scales, 1, 8),
            "convs_per_scale": convs_per_scale,
            "bias": self._bias,
            "bn_eps": self._bn_eps,
        }
        scales = self._count_scales(owner, self.config["scales"])
        self._layers = _layers(self.nc, width, scales, convs_per_scale)
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


class Generator(_Network):
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
        self.nz = _integer(owner, "nz", nz, 1)
        self.ngf: int = self.config["ngf"]
        self.latent_distribution = _choice(
            owner, "latent_distribution", latent_distribution, ("normal", "uniform")
        )
        self.projection = _choice(
            owner, "projection", projection, ("conv", "linear", "linear-bn1d")
        )
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

    def _upsample(self, layer: _Layer) -> nn.ConvTranspose2d:
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
        _check_shape("Generator.forward()", "latent", latent, (self.nz,), (self.nz, 1, 1))
        flat = latent.flatten(1)
        return self.main(flat.unflatten(1, (self.nz, 1, 1)) if self.projection == "conv" else flat)

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
        n = _integer("sample_latent", "n", n, 0)
        parameter = next(self.parameters())
        device = parameter.device if device is None else torch.device(device)
        source = device if generator is None else generator.device
        draw = torch.randn if self.latent_distribution == "normal" else torch.rand
        latent = draw(n, self.nz, generator=generator, device=source, dtype=torch.float32)
        if self.latent_distribution == "uniform":
            latent = latent.mul_(2).sub_(1)
        return latent.to(device, dtype or parameter.dtype)

    @property
    def values_per_image(self) -> int:
        """Values that one image adds to the smallest of the groups that batch norm averages over.

        1 where each unit of the projection is normalised by itself: batch statistics need a batch
        of two images there.
        """
        return 1 if self.projection == "linear-bn1d" else self._base**2


class Discriminator(_Network):
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
        self.head = _choice(owner, "head", head, ("conv", "linear"))
        self.output = _choice(owner, "output", output, ("logits", "sigmoid"))
        self.config |= {"head": self.head, "output": self.output}
        first, *hidden = self._layers
        modules: list[nn.Module] = [self._downsample(first), nn.LeakyReLU(_LEAK, True)]
        for layer in hidden:
            modules += [
                self._downsample(layer),
                self._batch_norm(layer.inner),
                nn.LeakyReLU(_LEAK, True),
            ]
        modules += self._last_layer()
        self.main = FusedSequential(*modules)

    def _last_layer(self) -> list[nn.Module]:
        top, base = self._top, self._base
        end: list[nn.Module] = [nn.Sigmoid()] if self.output == "sigmoid" else []
        if self.head == "conv":
            return [nn.Conv2d(top, 1, base, 1, 0, bias=self._bias), *end]
        return [nn.Flatten(), nn.Linear(top * base * base, 1, bias=self._bias), *end]

    def _downsample(self, layer: _Layer) -> nn.Conv2d:
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
        _check_shape("Discriminator.forward()", "images", images, shape)
        return self.main(images).flatten()


# -------------------------------------------------------------------------------------- presets


@dataclass(frozen=True)
class Preset:
    """What tells one published DCGAN from another.

    ``shared`` are the settings of both networks where they differ from the defaults of
    :class:`Generator` and :class:`Discriminator`, ``generator`` and ``discriminator`` those of one,
    ``training`` those where the training loop differs from :data:`_TRAINING`.
    """

    summary: str
    shared: Config
    generator: Config
    discriminator: Config
    training: Config


# pytorch/examples' loop, in the words of the trainer.
_TRAINING: Config = {
    "batch_size": 64,
    "lr": 2e-4,
    "beta1": 0.5,
    "adam_eps": 1e-8,
    "weight_decay": 0.0,  # coupled L2 on all parameters, as torch.optim.Adam's
    "g_steps_per_d": 1,  # G's steps to one of D's, on the latent vectors that D's step drew
    "reuse_fake_output": False,  # dcgan.torch: G's loss from D's output of before D's update
    "alternate": False,  # each minibatch trains G or D, not both
    "init": "dcgan",  # scheme of weights_init()
    "bn": "running",  # statistics for sampling
}

_NEWMU_SHARED: Config = {"kernel_size": 5, "bn_eps": 1e-8}
_NEWMU_GENERATOR: Config = {"projection": "linear-bn1d", "latent_distribution": "uniform"}
_NEWMU_TRAINING: Config = {
    "batch_size": 128,
    "weight_decay": 1e-5,
    "alternate": True,
    "bn": "batch",
}

PRESETS: dict[str, Preset] = {
    "pytorch": Preset(
        summary="pytorch/examples dcgan: 4x4 kernels, normal z",
        shared={},
        generator={},
        discriminator={},
        training={"batch_size": 128},  # the paper's; the script's own default is 64
    ),
    # Of the paper: the generator of figure 1 (5x5 kernels, 1024 channels at 4x4), uniform z of 100,
    # a projection "reshaped into a 4-dimensional tensor", D's last map flattened, batch, optimiser,
    # N(0, .02). Chosen where it is silent: batch norm per channel of the reshaped map (so that one
    # image can be drawn) with PyTorch's eps; no biases and a mirror image as D, as in its code.
    "paper": Preset(
        summary="the DCGAN paper's figure 1: 5x5 kernels, 1024 to 128 channels, uniform z",
        shared={"kernel_size": 5},
        generator={"ngf": 128, "projection": "linear", "latent_distribution": "uniform"},
        discriminator={"ndf": 128, "head": "linear"},
        training={"batch_size": 128},
    ),
    "newmu": Preset(
        summary="the paper's code, faces: batch norm of each projected unit, of the batch always",
        shared=_NEWMU_SHARED,
        generator={"ngf": 128, **_NEWMU_GENERATOR},
        discriminator={"ndf": 128, "head": "linear"},
        training=_NEWMU_TRAINING,
    ),
    # z, learning rate and batch are in the name of the authors' model folder:
    # svhn_unsup_all_conv_dcgan_100z_gaussian_lr_0.0005_64mb. The rest of its training was not
    # published; it is taken to be that of the faces.
    "newmu-svhn": Preset(
        summary="the paper's code, SVHN at 32x32: the newmu net at half the width, normal z",
        shared={**_NEWMU_SHARED, "image_size": 32},
        generator={**_NEWMU_GENERATOR, "latent_distribution": "normal"},
        discriminator={"head": "linear"},
        training={**_NEWMU_TRAINING, "batch_size": 64, "lr": 5e-4},
    ),
    # Its training script was not published either.
    "newmu-imagenet32": Preset(
        summary="the paper's code, ImageNet at 32x32: two 3x3 convolutions a scale, z of 256",
        shared={**_NEWMU_SHARED, "kernel_size": 3, "convs_per_scale": 2, "image_size": 32},
        generator={"ngf": 128, "nz": 256, **_NEWMU_GENERATOR},
        discriminator={"ndf": 128, "head": "linear"},
        training=_NEWMU_TRAINING,
    ),
    # TensorFlow's SAME padding of a 5x5 stride-2 convolution is 1 before and 2 after the image;
    # here it is 2 before and 1 after, which keeps each convolution one module that fuses. The two
    # are the same net in a mirror: flip every kernel and map in H and W, and the numbers agree.
    "carpedm20": Preset(
        summary="DCGAN-tensorflow: 5x5 kernels with biases, four scales at every size, uniform z",
        shared={"kernel_size": 5, "bias": True, "scales": 4},
        generator={"projection": "linear", "latent_distribution": "uniform"},
        discriminator={"head": "linear"},
        training={"g_steps_per_d": 2, "init": "carpedm20"},
    ),
}

WORD_PRESETS: dict[str, str] = {
    "cgan-multimodal": "the CGAN paper's section 4.2: image features and noise to word vectors",
}
"""Presets of :func:`build` whose networks make no images, and what they are; ``dcgan-fast tags`` trains them."""


def _preset(owner: str, name: str) -> Preset:
    return PRESETS[_choice(owner, "preset", name, tuple(PRESETS))]


def _settings(network: type[_Network]) -> tuple[str, ...]:
    return tuple(inspect.signature(network).parameters)


def build(preset: str = "pytorch", **overrides: Any) -> tuple[Any, Any]:
    """Build and initialise the two networks of ``preset``, a :class:`Generator` and a :class:`Discriminator`.

    Presets are the names in :data:`PRESETS`; ``cgan-multimodal`` gives a
    :class:`~dcgan_fast.tags.TagGenerator` and a :class:`~dcgan_fast.tags.TagDiscriminator`, with the
    settings of :func:`dcgan_fast.tags.nets.build`.

    Any argument of :class:`Generator` or :class:`Discriminator` may be overridden; one that both
    have goes to both. Weights are drawn from PyTorch's default random generator by the preset's own
    scheme, the generator's first, as the original scripts do.

    >>> G, D = build("pytorch", image_size=32, nc=1, ngf=32, ndf=32)

    Raises:
        UserError: an unknown preset or setting, or one that breaks its rule.
    """
    if preset in WORD_PRESETS:
        return _build_tag_networks(overrides)
    chosen = _preset("build", preset)
    known = dict.fromkeys(_settings(Generator) + _settings(Discriminator))
    unknown = [name for name in overrides if name not in known]
    if unknown:
        raise UserError(f"build(): unknown setting '{unknown[0]}'; known are {', '.join(known)}")

    def settings(network: type[_Network], own: Config) -> Config:
        mine = _settings(network)
        return {**chosen.shared, **own, **{k: v for k, v in overrides.items() if k in mine}}

    scheme = training_defaults(preset)["init"]
    generator = Generator(**settings(Generator, chosen.generator))
    weights_init(generator, scheme)
    discriminator = Discriminator(**settings(Discriminator, chosen.discriminator))
    weights_init(discriminator, scheme)
    return generator, discriminator


def _build_tag_networks(overrides: Config) -> tuple[Any, Any]:
    from .tags import nets  # which stands on the networks above

    known = inspect.signature(nets.build).parameters
    unknown = [name for name in overrides if name not in known]
    if unknown:
        raise UserError(f"build(): unknown setting '{unknown[0]}'; known are {', '.join(known)}")
    return nets.build(**overrides)


def build_from_config(config: Mapping[str, Config]) -> tuple[Generator, Discriminator]:
    """Rebuild ``{"generator": G.config, "discriminator": D.config}``, with PyTorch's own weights.

    Raises:
        UserError: a part or a setting is missing, unknown or breaks its rule.
    """
    try:
        return Generator(**config["generator"]), Discriminator(**config["discriminator"])
    except (KeyError, TypeError) as error:
        raise UserError(f"build_from_config(): 'config' is not of two networks: {error}") from error


def training_defaults(preset: str = "pytorch") -> Config:
    """How the code behind ``preset`` trains: the settings of :data:`_TRAINING`, its own values.

    Raises:
        UserError: an unknown preset.
    """
    chosen = _preset("training_defaults", preset)
    latent = chosen.generator.get("latent_distribution", "normal")
    return {**_TRAINING, "latent_distribution": latent, **chosen.training}


def weights_init(module: nn.Module, scheme: str = "dcgan") -> None:
    """Draw the weights of ``module`` and all its children from PyTorch's default random generator.

    ``dcgan``: N(0, 0.02) for convolutions and linear layers (paper, section 4), N(1, 0.02) for
    batch norm gains, 0 for all biases (its authors' codes). On the default nets these are the very
    numbers that pytorch/examples' ``net.apply(weights_init)`` draws from the same seed.
    ``carpedm20``: the same, but gains are 1, and strided convolutions are cut off at two sigma.

    Raises:
        UserError: an unknown scheme.
    """
    _choice("weights_init", "scheme", scheme, INIT_SCHEMES)
    for child in module.modules():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)) and child.affine:
            if scheme == "dcgan":
                nn.init.normal_(child.weight, 1.0, 0.02)
            else:
                nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)
        elif isinstance(child, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            if scheme == "carpedm20" and isinstance(child, nn.Conv2d):
                nn.init.trunc_normal_(child.weight, 0.0, 0.02, -0.04, 0.04)
            else:
                nn.init.normal_(child.weight, 0.0, 0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


# ------------------------------------------------------------------------------------- sampling


def generate(
    generator: Generator,
    latent: Tensor,
    *,
    bn: str = "running",
    batch_size: int = 128,
    population_batches: int = 50,
    seed: int = 0,
) -> Tensor:
    """Draw the images of ``latent`` (N, nz) or (N, nz, 1, 1): (N, nc, S, S), without gradients.

    ``bn`` says which statistics batch norm uses:

    * ``running``: the averages kept in training. An image does not depend on its neighbours.
    * ``batch``: those of the images drawn with it, as the paper's code and pytorch/examples sample.
      The latent vectors are drawn in batches as even as can be, of at most ``batch_size``.
    * ``population``: averages over ``population_batches`` batches of ``batch_size`` latent vectors
      drawn from ``seed`` (so does the paper's SVHN code): as ``running``, for a net whose running
      averages are missing or stale. They are computed at each call; to sample often, call
      :func:`dcgan_fast.nn.population_statistics` once and use ``running``.

    The network comes back as it was, modes and running statistics included, and no random state of
    PyTorch is touched. ``latent`` is moved to the network's device and dtype.

    Raises:
        UserError: a wrong argument, or a batch in which batch norm would average over one value: a
            single image under ``batch`` where the net normalises each unit of its projection.
    """
    _choice("generate", "bn", bn, BN_MODES)
    batch_size = _integer("generate", "batch_size", batch_size, 1)
    _check_shape("generate()", "latent", latent, (generator.nz,), (generator.nz, 1, 1))
    parameter = next(generator.parameters())
    latent = latent.to(parameter.device, parameter.dtype)
    batches = latent.tensor_split(max(1, -(-len(latent) // batch_size)))
    with torch.no_grad(), _preserved(generator):
        if bn == "population":
            count = _integer("generate", "population_batches", population_batches, 1)
            _check_batch(generator, bn, batch_size)
            stream = torch.Generator().manual_seed(seed)
            population_statistics(
                generator,
                (generator.sample_latent(batch_size, generator=stream) for _ in range(count)),
            )
        generator.eval()
        if bn == "batch":
            _check_batch(generator, bn, len(batches[-1]))  # none is smaller than the last
            with batch_norm_mode(generator, "batch"):
                return torch.cat([generator(batch) for batch in batches])
        return torch.cat([generator(batch) for batch in batches])


def _check_batch(generator: Generator, bn: str, images: int) -> None:
    if images * generator.values_per_image < 2:
        raise UserError(
            f"generate(): bn='{bn}' needs batches of at least 2 images for this generator (its "
            f"batch norm would average over one value), got {images}; "
            "one image can be drawn with bn='running' or 'population'"
        )


@contextmanager
def _preserved(module: nn.Module) -> Iterator[None]:
    """Put back the modes and buffers of ``module`` and of every child at the end."""
    modes = [(child, child.training) for child in module.modules()]
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])


# ----------------------------------------------------------------------- state dicts from outside

_KEY = re.compile(r"(?:(?:module|model|main|_orig_mod)\.)*(\d+\..+)")


def plain_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` with its keys as ours: ``main.<index>.<name>``.

    What DataParallel (``module.``) and torch.compile (``_orig_mod.``) put before ``main.`` goes,
    and what huggan's models have in its place (``model.``); other keys stay as they are.
    """
    return {
        f"main.{match[1]}" if (match := _KEY.fullmatch(key)) else key: value
        for key, value in state_dict.items()
    }


def infer_config(state_dict: Mapping[str, Tensor]) -> tuple[str, Config]:
    """What rebuilds the network of a bare pytorch/examples state dict, read off its shapes.

    Prefixes are allowed as in :func:`plain_state_dict`, and any image size, width and number of
    channels; ``num_batches_tracked`` may be missing, as in files older than PyTorch 0.4.1.

    Returns:
        ``("generator", config)`` for :class:`Generator` or ``("discriminator", config)`` for
        :class:`Discriminator`.

    Raises:
        UserError: the keys or shapes are not such a network's; the first that differs is named.
    """
    state = plain_state_dict(state_dict)
    weights = [value for value in state.values() if isinstance(value, Tensor) and value.dim() == 4]
    try:
        first, last = weights[0].shape, weights[-1].shape
        size = 4 << (len(weights) - 1)
        network: _Network
        with torch.device("meta"):
            if "main.1.weight" in state:
                network = Generator(size, nc=last[1], nz=first[0], ngf=last[0])
            else:
                network = Discriminator(size, nc=first[1], ndf=first[0])
    except (IndexError, UserError) as error:
        raise UserError(
            "infer_config(): not a state dict of pytorch/examples' DCGAN: the weights of its "
            f"convolutions are {[tuple(weight.shape) for weight in weights]}"
        ) from error
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    for name in dict.fromkeys([*expected, *found]):
        optional = name.endswith("num_batches_tracked") and name not in found
        if not optional and expected.get(name) != found.get(name):
            raise UserError(
                f"infer_config(): not a state dict of pytorch/examples' DCGAN: '{name}' is "
                f"{found.get(name, 'missing')} where the {type(network).__name__.lower()} that the "
                f"other shapes tell has {expected.get(name, 'none')}"
            )
    return type(network).__name__.lower(), network.config
