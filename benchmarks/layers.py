"""The layers that the benchmarks run: read off the published networks, with the work that each cannot avoid."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dcgan_fast import models, unfuse
from dcgan_fast.profiling.work import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Work

__all__ = ["FORWARD", "INPUT_GRAD", "WEIGHT_GRAD", "NETS", "Layer", "distinct", "layers_of"]

# name -> (preset, overrides, batch). The two whose layers are the largest have smaller batches.
NETS: dict[str, tuple[str, dict[str, Any], int]] = {
    "pytorch-64": ("pytorch", {}, 128),
    "pytorch-32": ("pytorch", {"image_size": 32}, 128),
    "pytorch-128": ("pytorch", {"image_size": 128}, 32),
    "paper-64": ("paper", {}, 128),
    "newmu-64": ("newmu", {}, 128),
    "newmu-svhn-32": ("newmu-svhn", {}, 128),
    "newmu-imagenet-32": ("newmu-imagenet32", {}, 64),
}
SMALL: dict[str, Any] = {"ngf": 8, "ndf": 8}  # widths of --small, at a batch of SMALL_BATCH
SMALL_BATCH = 4

_ACTIVATIONS = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.Tanh: "tanh"}
_WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Layer:
    """One run of modules that one op serves, at one batch size.

    ``op`` is a name of :mod:`dcgan_fast.functional`, or ``linear``, which stays PyTorch's own. Shapes
    are those of the tensors, the batch first.
    """

    op: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    weight: tuple[int, ...]  # () of bn_act
    bias: bool
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    activation: str
    slope: float
    data_in: bool  # its input is data, whose gradient nobody wants in any step: the latent vectors
    places: tuple[str, ...] = field(
        default=(), compare=False
    )  # network and index of the first module

    @property
    def normalised(self) -> bool:
        return "bn" in self.op

    @property
    def transposed(self) -> bool:
        return "transpose" in self.op

    @property
    def batch(self) -> int:
        return self.input[0]

    @property
    def channels(self) -> int:
        return self.output[1]

    @property
    def id(self) -> str:
        return "+".join(self.places)

    def __str__(self) -> str:
        def size(shape: tuple[int, ...]) -> str:
            return "x".join(map(str, shape[1:]))

        if not self.weight:
            return f"{size(self.output)} {self.activation}"
        kernel = f"k{self.weight[-1]} s{self.stride[0]} " if len(self.weight) == 4 else ""
        return f"{size(self.input)} -> {size(self.output)} {kernel}{self.activation}"

    @property
    def work(self) -> Work:
        return Work(
            self.input,
            self.output,
            self.weight,
            transposed=self.transposed,
            normalised=self.normalised,
            active=self.activation != "none",
        )

    def flop(self, *passes: str) -> float:
        """See :meth:`Work.flop`."""
        return self.work.flop(*passes)

    def bytes(self, itemsize: int, *passes: str, training: bool = True) -> float:
        """See :meth:`Work.bytes`."""
        return self.work.bytes(itemsize, *passes, training=training)


@functools.cache
def layers_of(
    net: str, small: bool = False, batch: int | None = None
) -> tuple[tuple[Layer, ...], ...]:
    """The layers of the generator and of the discriminator of ``net``, in the order they run."""
    preset, overrides, full_batch = NETS[net]
    with torch.device("meta"):
        networks = models.build(preset, **overrides, **(SMALL if small else {}))
        batch = batch or (SMALL_BATCH if small else full_batch)
        shapes = ((batch, networks[0].nz), (batch, networks[1].nc, *[networks[1].image_size] * 2))
        return tuple(
            tuple(_walk(unfuse(network).eval().main, torch.empty(shape), f"{net}.{letter}"))
            for network, shape, letter in zip(networks, shapes, "GD", strict=True)
        )


def distinct(nets: dict[str, Any], small: bool) -> list[Layer]:
    """The layers of ``nets``, each once, with all the places where it stands."""
    found: dict[Layer, tuple[str, ...]] = {}
    for net in nets:
        for layer in (layer for network in layers_of(net, small) for layer in network):
            found[layer] = found.get(layer, ()) + layer.places
    return [dataclasses.replace(layer, places=places) for layer, places in found.items()]


def _walk(modules: nn.Sequential, data: torch.Tensor, name: str) -> Iterator[Layer]:
    """Convolution [batch norm] [activation], as FusedSequential runs them."""
    children, i = list(modules), 0
    if isinstance(children[0], nn.ConvTranspose2d):
        data = data[..., None, None]
    while i < len(children):
        start, before = i, data
        weighted = norm = activation = None
        if isinstance(children[i], _WEIGHTED):
            weighted, i = children[i], i + 1
        fusable = weighted is None or (
            not isinstance(weighted, nn.Linear) and weighted.bias is None
        )
        if fusable and i < len(children) and isinstance(children[i], _NORMS):
            norm, i = children[i], i + 1
        convolved = norm is not None or isinstance(weighted, nn.Conv2d | nn.ConvTranspose2d)
        if convolved and i < len(children) and type(children[i]) in _ACTIVATIONS:
            activation, i = children[i], i + 1
        i = max(i, start + 1)
        for module in children[start:i]:
            data = module(data)
        if weighted is None and norm is None:
            continue  # a reshape
        transposed = "_transpose" if isinstance(weighted, nn.ConvTranspose2d) else ""
        op = f"conv{transposed}{'' if norm is None else '_bn'}_act"
        yield Layer(
            op="bn_act"
            if weighted is None
            else "linear"
            if isinstance(weighted, nn.Linear)
            else op,
            input=tuple(before.shape),
            output=tuple(data.shape),
            weight=() if weighted is None else tuple(weighted.weight.shape),
            bias=getattr(weighted, "bias", None) is not None,
            stride=getattr(weighted, "stride", (1, 1)),
            padding=getattr(weighted, "padding", (0, 0)),
            output_padding=getattr(weighted, "output_padding", (0, 0)),
            activation="none" if activation is None else _ACTIVATIONS[type(activation)],
            slope=getattr(activation, "negative_slope", 0.0),
            data_in=start == 0 and ".G" in name,
            places=(f"{name}.{start}",),
        )
