"""What ours is compared with, layer by layer: PyTorch's own ops in the ways that people run them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from layers import Layer
from torch import Tensor

from dcgan_fast import functional

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Operands:
    """The tensors of one layer in one memory format; batch norm's are float32, as autocast keeps them."""

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    grad: Tensor  # of the output

    def leaves(self, layer: Layer) -> list[Tensor]:
        """What gradients are wanted of in training."""
        weights = [t for t in (self.weight, self.bias, self.gamma, self.beta) if t is not None]
        return weights if layer.data_in else [self.input, *weights]

    @torch.no_grad()
    def new_version(self) -> None:
        """As after an optimiser's step: what was packed of the weight must be packed again."""
        if self.weight is not None:
            self.weight.mul_(1)


def operands(layer: Layer, dtype: torch.dtype, memory_format: torch.memory_format) -> Operands:
    """The same numbers whenever it is asked for the same layer, in whatever format."""
    stream = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        values = (torch.randn(shape, generator=stream) * scale).to(dtype)
        return values.to(memory_format=memory_format) if len(shape) == 4 else values

    channels = (layer.channels,)
    made = Operands(
        input=draw(layer.input),
        weight=draw(layer.weight, 0.02) if layer.weight else None,
        bias=draw(channels, 0.02) if layer.bias else None,
        gamma=torch.ones(channels) if layer.normalised else None,
        beta=torch.zeros(channels) if layer.normalised else None,
        mean=torch.zeros(channels) if layer.normalised else None,
        var=torch.ones(channels) if layer.normalised else None,
        grad=draw(layer.output),
    )
    for leaf in made.leaves(layer):
        leaf.requires_grad_()
    return made


def ours(layer: Layer, given: Operands) -> Tensor:
    options = {"activation": layer.activation, "negative_slope": layer.slope}
    if layer.weight:
        options |= {"stride": layer.stride, "padding": layer.padding}
    if layer.transposed:
        options |= {"output_padding": layer.output_padding}
    op = getattr(functional, layer.op)
    weight = [given.weight] if layer.weight else []
    if not layer.normalised:
        return op(given.input, *weight, given.bias, **options)
    norm = (given.gamma, given.beta, given.mean, given.var)
    return op(given.input, *weight, *norm, training=True, **options)


def plain(layer: Layer, given: Operands) -> Tensor:
    """The same by PyTorch's modules: activations in place where the published networks have them so."""
    y = given.input
    if layer.transposed:
        y = F.conv_transpose2d(
            y, given.weight, given.bias, layer.stride, layer.padding, layer.output_padding
        )
    elif layer.weight:
        y = F.conv2d(y, given.weight, given.bias, layer.stride, layer.padding)
    if layer.normalised:
        y = F.batch_norm(y, given.mean, given.var, given.gamma, given.beta, training=True)
    if layer.activation == "relu":
        return F.relu_(y)
    if layer.activation == "leaky_relu":
        return F.leaky_relu_(y, layer.slope)
    return torch.tanh(y) if layer.activation == "tanh" else y
