"""What a run needs before its first step: the device, the data, the networks, their optimisers."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from .. import models
from ..data import Dataset, prepare
from ..devices import memory_of
from ..errors import UserError
from ..nn import unfuse
from .checkpoint import load_state, load_weights
from .config import TrainConfig


def configure_torch(config: TrainConfig, device: torch.device) -> None:
    """Set PyTorch's own switches, which hold for the whole process."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = config.deterministic
        torch.backends.cudnn.benchmark = not config.deterministic


def load_data(config: TrainConfig) -> Dataset:
    """The prepared data set; the first time takes a while, on whose progress a terminal is told."""
    progress = sys.stderr.isatty()
    dataset = prepare(
        config.data,
        image_size=config.image_size,
        channels=config.channels,
        split=config.split,
        progress=progress,
    )
    if config.dedup:
        from ..dedup.images import without_near_duplicates  # scikit-learn takes a while to import

        dataset = without_near_duplicates(dataset, progress=progress)
    return dataset


def check_networks(config: TrainConfig, device: torch.device) -> None:
    """Report settings that networks cannot have, or the device not hold, before hours go into preparing the data."""
    if config.conditional and not models.PRESETS[config.preset].conditional:
        fitting = ", ".join(name for name, p in models.PRESETS.items() if p.conditional)
        raise UserError(
            f"'conditional' needs a preset whose networks take labels ({fitting}), got '{config.preset}'"
        )
    asked = [f"'{name}' {value}" for name, value in config.network_overrides().items()]
    described = f"networks of {', '.join(asked)}" if asked else f"the networks of {config.preset}"
    try:
        with torch.device("meta"):
            networks = _preset_networks(config, config.channels or 3, 2)
    except (RuntimeError, TypeError) as error:  # of more elements than PyTorch counts
        raise UserError(f"{described} cannot be built: {str(error).splitlines()[0]}") from error
    # weights, gradients and what optimisers keep: momentum, and Adam's squares
    kept = 3 if config.optimizer == "sgd" else 4
    needed = kept * sum(weight.nbytes for network in networks for weight in network.parameters())
    memory = memory_of(device)
    if memory is not None and needed > memory:
        raise UserError(
            f"{described} take {needed / 1e9:,.0f} GB with their gradients and the optimisers' state; "
            f"{device} has {memory / 1e9:,.0f} GB"
        )


def count_classes(dataset: Dataset) -> int:
    """How many labels the data set has, at least 2.

    Raises:
        UserError: it has no labels, or one.
    """
    if dataset.labels is None:
        raise UserError(
            f"{dataset.name} has no labels, which conditional networks need: a folder of images has them where they "
            "lie in folders of their class, a .npz where it has an array 'labels'"
        )
    named = len(dataset.classes or ())
    classes = max(named, int(dataset.labels.max(initial=-1)) + 1)
    if classes < 2:
        raise UserError(f"{dataset.name} has {classes} class, conditional networks need 2 at least")
    return classes


def _preset_networks(
    config: TrainConfig, channels: int, classes: int
) -> tuple[nn.Module, nn.Module]:
    labelled = {"classes": classes} if models.PRESETS[config.preset].conditional else {}
    return models.build(
        config.preset,
        image_size=config.image_size,
        nc=channels,
        output=config.loss_output,
        **labelled,
        **config.network_overrides(),
    )


def build_networks(config: TrainConfig, channels: int, classes: int) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator with their starting weights, drawn or from the files given.

    ``classes`` counts where the preset's networks take labels.
    """
    networks = _preset_networks(config, channels, classes)
    starts = (("generator", config.init_generator), ("discriminator", config.init_discriminator))
    for network, (role, source) in zip(networks, starts, strict=True):
        if source is not None:
            load_state(network, load_weights(source, role), source=source)
    if not config.fuse:
        for network in networks:
            unfuse(network, inplace=True)
    return networks


def config_of(network: nn.Module) -> dict[str, Any]:
    """What rebuilds a network of ours; nothing for one of another's."""
    return network.config if type(network).__name__ in models.NETWORKS else {}  # type: ignore[return-value]


def placed(network: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    """``network`` itself, moved; the layout is that of its 4-dimensional weights."""
    return network.to(device).to(memory_format=layout)  # type: ignore[call-overload]


def make_optimizer(network: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimiser that ``config`` asks for, over the weights of ``network``, in PyTorch's fused form where the device
    has it."""

    def make(fused: bool) -> Optimizer:
        if config.optimizer == "sgd":
            return SGD(
                network.parameters(),
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                fused=fused,
            )
        return Adam(
            network.parameters(),
            lr=config.lr,
            betas=(float(config.beta1), float(config.beta2)),
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            fused=fused,
        )

    try:
        return make(fused=True)
    except RuntimeError:  # a device that has no fused form
        return make(fused=False)


def derived_seed(seed: int, purpose: str) -> int:
    """Independent streams from one seed: latents must not repeat the numbers of the weights."""
    words = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
