"""The networks of the DCGAN family, and one preset for each code they were published in.

The networks themselves are in :mod:`dcgan_fast.networks`, those with labels in
:mod:`dcgan_fast.conditional` and :mod:`dcgan_fast.mlp_models`: here are the presets, how weights are
drawn, how images are, and what is read off state dicts from outside.

================  ==============================================================================
preset            source
================  ==============================================================================
pytorch           pytorch/examples ``dcgan/main.py``: its layout and its state-dict keys
paper             Radford, Metz, Chintala 2015 (arXiv 1511.06434), section 3 and figure 1
newmu             the paper's code, Newmu/dcgan_code: ``faces/train_uncond_dcgan.py``
newmu-svhn        the same: the 32x32 SVHN model of ``svhn/`` (``svhn_unsup_all_conv_dcgan_...``)
newmu-imagenet32  the same: ``imagenet/load_pretrained.py``
carpedm20         carpedm20/DCGAN-tensorflow ``model.py``, the net without labels
cgan-dcgan        Newmu/dcgan_code ``mnist/train_cond_dcgan.py``, with labels
cgan-mnist        Mirza, Osindero 2014 (arXiv 1411.1784), section 4.1: layers of units, with labels
cgan-multimodal   Mirza, Osindero 2014 (arXiv 1411.1784), section 4.2: :mod:`dcgan_fast.tags`
================  ==============================================================================

Where a source is silent the choice made here stands beside the preset in :data:`PRESETS`.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .conditional import ConditionalDiscriminator, ConditionalGenerator
from .errors import UserError
from .labels import check_labels
from .mlp_models import MlpDiscriminator, MlpGenerator
from .networks import (
    Config,
    Described,
    Discriminator,
    Generator,
    LatentNetwork,
    Network,
    check_shape,
    choice,
    integer,
)
from .nn import batch_norm_mode, population_statistics

__all__ = [
    "BN_MODES",
    "INIT_SCHEMES",
    "NETWORKS",
    "PRESETS",
    "WORD_PRESETS",
    "ConditionalDiscriminator",
    "ConditionalGenerator",
    "Discriminator",
    "Generator",
    "LatentNetwork",
    "Preset",
    "build",
    "build_from_config",
    "generate",
    "infer_config",
    "infer_network",
    "plain_state_dict",
    "preset_of",
    "training_defaults",
    "weights_init",
]

BN_MODES = ("running", "batch", "population")
INIT_SCHEMES = ("dcgan", "carpedm20", "own")

NETWORKS: dict[str, type[Described]] = {
    network.__name__: network
    for network in (
        Generator,
        Discriminator,
        ConditionalGenerator,
        ConditionalDiscriminator,
        MlpGenerator,
        MlpDiscriminator,
    )
}
"""Every network that a checkpoint can name; ``NETWORKS[name](**config)`` rebuilds it."""


# -------------------------------------------------------------------------------------- presets


@dataclass(frozen=True)
class Preset:
    """What tells one published DCGAN from another.

    ``shared`` are the settings of both networks where they differ from the defaults of ``networks``,
    ``generator`` and ``discriminator`` those of one, ``training`` those where the training loop
    differs from :data:`_TRAINING`.
    """

    summary: str
    shared: Config
    generator: Config
    discriminator: Config
    training: Config
    networks: tuple[type[LatentNetwork], type[Described]] = (Generator, Discriminator)

    @property
    def conditional(self) -> bool:
        """Whether the networks take labels."""
        return self.networks[0] is not Generator

    def knows(self, name: str) -> bool:
        """Whether the generator or the discriminator has such a setting."""
        return any(name in _settings(network) for network in self.networks)

    def setting(self, name: str) -> Any:
        """What both networks, or the generator, have where nobody says otherwise."""
        default = inspect.signature(self.networks[0]).parameters[name].default
        return {**self.shared, **self.generator}.get(name, default)


# pytorch/examples' loop, in the words of the trainer.
_TRAINING: Config = {
    "batch_size": 64,
    "optimizer": "adam",
    "lr": 2e-4,
    "lr_decay": 1.0,  # by which the rate is divided at each step
    "constant_epochs": None,  # after so many epochs it falls by equal parts
    "falling_epochs": 100,  # to zero over so many
    "min_lr": 0.0,
    "beta1": 0.5,
    "adam_eps": 1e-8,
    "momentum": 0.5,  # of SGD
    "final_momentum": None,  # to which it grows
    "momentum_epochs": 250,  # over so many epochs
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

# The paper: batch, rate, its decay and floor, both ends of the momentum. How fast that grows it does not say; its
# forerunner's code (goodfeli/adversarial, mnist.yaml) takes 250 epochs, and divides the rate by 1.000004 instead.
# That code differs in more that the paper says nothing of, or says otherwise, and that its figure is reached without:
# half the loss for D, G's gradient through D's output of before its update (reuse_fake_output), a fifth of D's input
# dropped and nothing of G, log odds of the pixels as G's last biases, latent vectors from U(-1.73, 1.73).
_CGAN_TRAINING: Config = {
    "batch_size": 100,
    "optimizer": "sgd",
    "lr": 0.1,
    "lr_decay": 1.00004,
    "min_lr": 1e-6,
    "momentum": 0.5,
    "final_momentum": 0.7,
    "init": "own",
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
    # The defaults of the networks are this script's: a label beside every layer's input, linear
    # layers of 1024, 5x5 kernels, batch norm without gains and biases, images in [0, 1]. It draws its
    # samples with statistics of the batch, of all classes; those kept in training serve one class too.
    # Its rate falls to zero over the last 100 of 200 epochs.
    "cgan-dcgan": Preset(
        summary="the paper's code, conditional MNIST: the label beside the input of every layer",
        shared={},
        generator={},
        discriminator={},
        training={
            **_NEWMU_TRAINING,
            "weight_decay": 2.5e-5,
            "constant_epochs": 100,
            "falling_epochs": 100,
            "bn": "running",
        },
        networks=(ConditionalGenerator, ConditionalDiscriminator),
    ),
    "cgan-mnist": Preset(
        summary="the CGAN paper's nets for MNIST: maxout units, dropout, SGD of growing momentum",
        shared={},
        generator={},
        discriminator={},
        training=_CGAN_TRAINING,
        networks=(MlpGenerator, MlpDiscriminator),
    ),
}

WORD_PRESETS: dict[str, str] = {
    "cgan-multimodal": "the CGAN paper's section 4.2: image features and noise to word vectors",
}
"""Presets of :func:`build` whose networks make no images, and what they are; ``dcgan-fast tags`` trains them."""


def _preset(owner: str, name: str) -> Preset:
    return PRESETS[choice(owner, "preset", name, tuple(PRESETS))]


def _settings(network: type[nn.Module]) -> tuple[str, ...]:
    return tuple(inspect.signature(network).parameters)


def build(preset: str = "pytorch", **overrides: Any) -> tuple[Any, Any]:
    """Build and initialise the two networks of ``preset``, a generator and a discriminator.

    Presets are the names in :data:`PRESETS`; ``cgan-multimodal`` gives a
    :class:`~dcgan_fast.tags.TagGenerator` and a :class:`~dcgan_fast.tags.TagDiscriminator`, with the
    settings of :func:`dcgan_fast.tags.nets.build`.

    Any argument of its networks, :class:`Generator` and :class:`Discriminator` or those with labels,
    may be overridden; one that both have goes to both. Weights are drawn from PyTorch's default
    random generator by the preset's own scheme, the generator's first, as the original scripts do.

    >>> G, D = build("pytorch", image_size=32, nc=1, ngf=32, ndf=32)
    >>> G, D = build("cgan-dcgan", classes=10)  # called as G(latent, labels), D(images, labels)

    Raises:
        UserError: an unknown preset or setting, or one that breaks its rule.
    """
    if preset in WORD_PRESETS:
        return _build_tag_networks(overrides)
    chosen = _preset("build", preset)
    kinds = chosen.networks
    known = dict.fromkeys(_settings(kinds[0]) + _settings(kinds[1]))
    unknown = [name for name in overrides if name not in known]
    if unknown:
        raise UserError(f"build(): unknown setting '{unknown[0]}'; known are {', '.join(known)}")

    def settings(network: type[nn.Module], own: Config) -> Config:
        mine = _settings(network)
        return {**chosen.shared, **own, **{k: v for k, v in overrides.items() if k in mine}}

    scheme = training_defaults(preset)["init"]
    generator = kinds[0](**settings(kinds[0], chosen.generator))
    weights_init(generator, scheme)
    discriminator = kinds[1](**settings(kinds[1], chosen.discriminator))
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


def preset_of(network: str, config: Config) -> str:
    """The first preset that sets what ``config`` of a network of that name has; ``pytorch`` where none does.

    Sizes, widths and classes do not count, which are whatever the data wanted, nor does D's last sigmoid.
    """
    kind = NETWORKS[network]
    free = "image_size nc nz ngf ndf ngfc ndfc classes embedding output".split()
    for name, preset in PRESETS.items():
        if kind not in preset.networks:
            continue
        own = preset.generator if kind is preset.networks[0] else preset.discriminator
        settings = {
            setting: parameter.default
            for setting, parameter in inspect.signature(kind).parameters.items()
            if setting not in free and not setting.endswith("_units")
        }
        settings |= {key: value for key, value in (preset.shared | own).items() if key in settings}
        if all(value == config.get(key) for key, value in settings.items()):
            return name
    return "pytorch"


def training_defaults(preset: str = "pytorch") -> Config:
    """How the code behind ``preset`` trains: the settings of :data:`_TRAINING`, its own values.

    Raises:
        UserError: an unknown preset.
    """
    chosen = _preset("training_defaults", preset)
    latent = chosen.setting("latent_distribution")
    return {**_TRAINING, "latent_distribution": latent, **chosen.training}


def weights_init(module: nn.Module, scheme: str = "dcgan") -> None:
    """Draw the weights of ``module`` and all its children from PyTorch's default random generator.

    ``dcgan``: N(0, 0.02) for convolutions and linear layers (paper, section 4), N(1, 0.02) for
    batch norm gains, 0 for all biases (its authors' codes). On the default nets these are the very
    numbers that pytorch/examples' ``net.apply(weights_init)`` draws from the same seed.
    ``carpedm20``: the same, but gains are 1, and strided convolutions are cut off at two sigma.
    ``own``: as ``module.reset_parameters()`` draws them.

    Raises:
        UserError: an unknown scheme.
    """
    choice("weights_init", "scheme", scheme, INIT_SCHEMES)
    if scheme == "own":
        module.reset_parameters()  # type: ignore[operator]
        return
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
    generator: LatentNetwork,
    latent: Tensor,
    labels: Tensor | None = None,
    *,
    bn: str = "running",
    batch_size: int = 128,
    population_batches: int = 50,
    seed: int = 0,
    dropout: bool | None = None,
) -> Tensor:
    """Draw the images of ``latent`` (N, nz) or (N, nz, 1, 1): (N, nc, S, S), without gradients.

    ``labels`` (N,), or weights of the classes (N, classes), are for a generator that has classes.

    ``bn`` says which statistics batch norm uses:

    * ``running``: the averages kept in training. An image does not depend on its neighbours.
    * ``batch``: those of the images drawn with it, as the paper's code and pytorch/examples sample.
      The latent vectors are drawn in batches as even as can be, of at most ``batch_size``.
    * ``population``: averages over ``population_batches`` batches of ``batch_size`` latent vectors
      drawn from ``seed`` (so does the paper's SVHN code): as ``running``, for a net whose running
      averages are missing or stale. They are computed at each call; to sample often, call
      :func:`dcgan_fast.nn.population_statistics` once and use ``running``. Labels are drawn evenly.

    ``dropout`` says whether units are left out as in training, others for each latent vector; without they all count,
    as in evaluation mode. None: as the generator's ``sampling_dropout`` says (cgan-mnist: True).

    The network comes back as it was, modes and running statistics included, and no random state of
    PyTorch is touched. ``latent`` is moved to the network's device and dtype.

    Raises:
        UserError: a wrong argument, or a batch in which batch norm would average over one value: a
            single image under ``batch`` where the net normalises each unit of its projection.
    """
    choice("generate", "bn", bn, BN_MODES)
    batch_size = integer("generate", "batch_size", batch_size, 1)
    check_shape("generate()", "latent", latent, (generator.nz,), (generator.nz, 1, 1))
    if (labels is None) != (generator.classes == 0):
        rule = "be given, as" if generator.classes else "be None, as"
        has = f"{generator.classes} classes" if generator.classes else "no classes"
        raise UserError(f"generate(): 'labels' must {rule} the generator has {has}")
    leave_out = generator.sampling_dropout if dropout is None else dropout
    draw = generator.sample if leave_out else generator
    parameter = next(generator.parameters())
    latent = latent.to(parameter.device, parameter.dtype)
    parts = max(1, -(-len(latent) // batch_size))
    batches: list[tuple[Tensor, ...]] = [(part,) for part in latent.tensor_split(parts)]
    if labels is not None:
        check_labels("generate()", labels, len(latent), generator.classes)
        of_parts = labels.to(parameter.device).tensor_split(parts)
        batches = [(*part, of_part) for part, of_part in zip(batches, of_parts, strict=True)]
    with torch.no_grad(), _preserved(generator):
        if bn == "population":
            count = integer("generate", "population_batches", population_batches, 1)
            _check_batch(generator, bn, batch_size)
            stream = torch.Generator().manual_seed(seed)
            population_statistics(
                generator, (draw_input(generator, batch_size, stream) for _ in range(count))
            )
        generator.eval()
        if bn == "batch":
            _check_batch(generator, bn, len(batches[-1][0]))  # none is smaller than the last
            with batch_norm_mode(generator, "batch"):
                return torch.cat([draw(*batch) for batch in batches])
        return torch.cat([draw(*batch) for batch in batches])


def draw_input(generator: LatentNetwork, n: int, stream: torch.Generator) -> tuple[Tensor, ...]:
    """``n`` latent vectors, and with them labels, drawn evenly, of a generator that has classes."""
    latent = generator.sample_latent(n, generator=stream)
    if not generator.classes:
        return (latent,)
    labels = torch.randint(generator.classes, (n,), generator=stream)
    return latent, labels.to(latent.device)


def _check_batch(generator: LatentNetwork, bn: str, images: int) -> None:
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
        network: Network
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
    _check_shapes("infer_config(): not a state dict of pytorch/examples' DCGAN", network, state)
    return type(network).__name__.lower(), network.config


def infer_network(state_dict: Mapping[str, Tensor]) -> tuple[str, Config]:
    """What rebuilds the network of a bare state dict, with labels or without, read off its shapes.

    As :func:`infer_config`, and the networks with labels of :mod:`dcgan_fast.conditional`. What their shapes do not
    show is taken to be as in the preset ``cgan-dcgan``: the last activation, the distribution of latent vectors, the
    ``eps`` of batch norm.

    Returns:
        The network's name in :data:`NETWORKS`, and its config.

    Raises:
        UserError: the keys or shapes are not such a network's, or are those of several; what helps then is named.
    """
    state = plain_state_dict(state_dict)
    cure = "give the run's checkpoint.pt instead, which holds the settings"
    try:
        kind, config = _conditional_config(state)
    except UserError as error:
        raise UserError(f"{error}: {cure}") from error
    except (IndexError, ValueError, ZeroDivisionError):  # not the shapes of one
        try:
            role, config = infer_config(state)
        except UserError as error:
            raise UserError(f"{error}; nor is it one of a network with labels: {cure}") from error
        return role.capitalize(), config
    where = f"infer_network(): not a state dict of a {kind.__name__}"
    try:
        with torch.device("meta"):
            network = kind(**config)
    except UserError as error:
        raise UserError(f"{where}: {error}; {cure}") from error
    _check_shapes(where, network, state)
    return kind.__name__, network.config


def _conditional_config(state: Mapping[str, Tensor]) -> tuple[type[Described], Config]:
    """Which network with labels has such weights, and its settings, yet to be checked against all shapes.

    Channels double at each scale, so in a layer that follows another one the rest of the input are the classes.

    Raises:
        ValueError or IndexError: none has.
        UserError: several have.
    """
    own = [value.shape for name, value in state.items() if name.startswith("main.")]
    linear, convs = ([shape for shape in own if len(shape) == rank] for rank in (2, 4))
    going_up = "main.0.weight" in state and state["main.0.weight"].dim() == 2
    vectors = state["embedding.weight"].shape if "embedding.weight" in state else None
    normalised = any(name.startswith("main.1.") for name in state)  # the first layer, of generators
    if not convs or normalised != going_up:
        raise ValueError
    if vectors is not None:
        beside = 0  # the input of a layer
    elif len(convs) > 1:
        beside = convs[0][0] - 2 * convs[0][1] if going_up else convs[1][1] - convs[0][0]
    elif len(linear) > 1:
        beside = linear[1][1] - linear[0][0]
    else:
        raise UserError("infer_network(): the shapes do not show how many classes there are")
    classes = beside if vectors is None else vectors[0]
    if classes < 2:
        raise ValueError
    if not linear:
        raise UserError("infer_network(): the shapes do not show how large the images are")
    last_is_linear = going_up or vectors is None  # the layer at the map, or the one number
    units = linear[0][0] if len(linear) > last_is_linear else 0
    top = convs[0][0] - beside if going_up else convs[-1][0]
    pixels = linear[-1][0] if going_up else linear[0][1] - beside
    norm = state.get("main.1.weight" if going_up else "main.3.weight")
    config: Config = {
        "image_size": math.isqrt(pixels // top) << len(convs),
        "classes": classes,
        "kernel_size": convs[0][2],
        "scales": len(convs),
        "bias": "main.0.bias" in state,
        "bn_affine": norm is not None and norm.dim() == 1,
        "conditioning": "concat" if vectors is None else "projection",
    }
    if not going_up:
        of_maps = {"nc": convs[0][1] - beside, "ndf": convs[0][0], "ndfc": units}
        return ConditionalDiscriminator, config | of_maps
    config |= {"nc": convs[-1][1], "ngf": convs[-1][0] - beside, "ngfc": units}
    if vectors is not None:
        config["embedding"] = vectors[1]
    config["nz"] = linear[0][1] - (beside if vectors is None else vectors[1])
    return ConditionalGenerator, config


def _check_shapes(where: str, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raises UserError unless ``state`` has the keys and shapes of ``network``, but for ``num_batches_tracked``."""
    kind = type(network).__name__.lower()
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    for name in dict.fromkeys([*expected, *found]):
        optional = name.endswith("num_batches_tracked") and name not in found
        if not optional and expected.get(name) != found.get(name):
            raise UserError(
                f"{where}: '{name}' is {found.get(name, 'missing')} where the {kind} that the other shapes tell has "
                f"{expected.get(name, 'none')}"
            )
