"""Layers that see a label beside their input, as if it were concatenated to it, without making planes of it.

A conditional DCGAN concatenates the label to every layer's input: of a convolution, a plane of ones or zeros for each
class (Newmu/dcgan_code, ``conv_cond_concat``). A plane of the constant ``y[n, k]`` adds to the pixel (h, w) of output
channel o the product of ``y[n, k]`` and the sum of the taps of its kernel that lie inside the plane there. Which do
depends on h only through a few patterns of rows, three for a strided convolution with padding (top, middle, bottom),
five for a transposed one (those of each phase), and on w likewise. So the planes are a bias for each image, channel,
pattern of rows and pattern of columns: a tiny tensor, which :func:`dcgan_fast.functional.plane_bias_act` adds to the
convolution of the rest of the input.

The layers here are ``nn.Linear``, ``nn.Conv2d`` and ``nn.ConvTranspose2d`` of as many more input channels as there are
classes: the state dict is that of the layers which one would concatenate for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from . import functional
from .errors import UserError
from .nn import (
    FUSED,
    Run,
    activation_at,
    activation_options,
    plain_is_wanted,
    plan,
    refuse_script,
    watch_engines,
    why_watched,
)

__all__ = [
    "FusedLabelSequential",
    "LabelConv2d",
    "LabelConvTranspose2d",
    "LabelLinear",
    "LabelSequential",
    "check_labels",
    "one_hot",
    "takes_labels",
]


def check_labels(owner: str, labels: Tensor, batch: int, classes: int) -> None:
    """Raises UserError unless ``labels`` are (batch,) integers below ``classes``, or (batch, classes) weights of each.

    The values of integers are left to the ops that read them where a look would wait for another device, and where
    there is nothing to look at: in a graph that is traced, under transforms, of tensors that are shapes alone.
    """
    if torch.jit.is_tracing():
        return  # sizes are values of the graph
    if labels.is_floating_point():
        if tuple(labels.shape) != (batch, classes):
            came = f"shape {tuple(labels.shape)}"
            raise UserError(f"{owner}: 'labels' must be {_rule(batch, classes)}, got {came}")
        return
    if labels.dtype != torch.int64 or tuple(labels.shape) != (batch,):
        came = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise UserError(f"{owner}: 'labels' must be {_rule(batch, classes)}, got {came}")
    if batch and _can_be_read(labels):
        low, high = (int(bound) for bound in labels.aminmax())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise UserError(f"{owner}: 'labels' must be from 0 to {classes - 1}, got {wrong}")


def _rule(batch: int, classes: int) -> str:
    """Worded for an error alone: a batch of any size, written down, would be one of this size to a compiler."""
    return f"int64 ({batch},), or floating point ({batch}, {classes})"


def _can_be_read(labels: Tensor) -> bool:
    traced = torch.compiler.is_compiling() or functional.transformed()
    return labels.device.type == "cpu" and not traced and not is_fake(labels)


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Labels as (N, classes) of ``dtype``: a one in the column of each, or what they are already."""
    if labels.is_floating_point():
        return labels.to(dtype)
    hot = torch.zeros(labels.shape[0], classes, dtype=dtype, device=labels.device)
    return hot.scatter(1, labels[:, None], 1)  # not in place, for vmap


# ---------------------------------------------------------------- planes


class Axis(NamedTuple):
    """One axis of a convolution, from ``extent`` pixels to ``output`` pixels."""

    extent: int
    output: int
    kernel: int
    stride: int
    padding: int
    transposed: bool

    def valid(self, pixel: int, tap: int) -> bool:
        """Whether ``tap`` of the kernel meets the input, not its padding, for output ``pixel``."""
        if not self.transposed:
            return 0 <= pixel * self.stride - self.padding + tap < self.extent
        place, rest = divmod(pixel + self.padding - tap, self.stride)
        return rest == 0 and 0 <= place < self.extent


def patterns(axis: Axis) -> tuple[list[int], list[tuple[bool, ...]]]:
    """Which pattern each output pixel of an axis has, and the patterns: for each tap, whether it counts."""
    found: dict[tuple[bool, ...], int] = {}
    of_pixels = []
    for pixel in range(axis.output):
        taps = tuple(axis.valid(pixel, tap) for tap in range(axis.kernel))
        of_pixels.append(found.setdefault(taps, len(found)))
    return of_pixels, list(found)


class _Pattern(NamedTuple):
    of_pixels: Tensor  # (output,), int64
    taps: Tensor  # (patterns, kernel), ones and zeros


@functools.lru_cache(maxsize=256)
def _pattern(axis: Axis, device: torch.device, dtype: torch.dtype) -> _Pattern:
    of_pixels, taps = patterns(axis)
    with torch.inference_mode(False):  # kept for calls that are to be differentiated
        return _Pattern(
            torch.tensor(of_pixels, dtype=torch.int64, device=device),
            torch.tensor(taps, dtype=dtype, device=device),
        )


def _plane_bias(weight: Tensor, labels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """What planes of ``labels`` add: (N, out, R, S), with channels_last strides, in float32 or float64.

    ``weight`` (out, classes, kH, kW) are the kernels of the planes; ``rows`` (R, kH) and ``columns`` (S, kW) the taps
    of each pattern. In torch's own differentiable ops: 2 * out * classes * R * S * kH * kW FLOPs, a few thousandths of
    the convolution's. Axis by axis would be fewer, in twice the time: these are calls rather than arithmetic.
    """
    taps = torch.kron(rows, columns)  # (R * S, kH * kW)
    kernels = weight.permute(1, 2, 3, 0).flatten(1, 2)  # (classes, kH * kW, out)
    of_images = not labels.is_floating_point() and len(labels) < len(kernels)
    if of_images:  # fewer than classes: theirs alone
        kernels = F.embedding(labels, kernels.flatten(1)).view(-1, *kernels.shape[1:])
    bias = taps @ kernels.to(taps.dtype)
    if not of_images:
        # by a product, as its gradient is one too: that of a selection adds up number by number, 50 times slower
        hot = one_hot(labels, len(kernels), bias.dtype)
        bias = hot @ bias.flatten(1)
    return bias.view(-1, len(rows), len(columns), weight.size(0)).permute(0, 3, 1, 2)


def _lowered(device: torch.device) -> Any:
    """A context in which autocast lowers nothing: sums of taps are to keep their digits."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


# ---------------------------------------------------------------- layers


class LabelLinear(nn.Linear):
    """``nn.Linear`` of vectors with their labels: ``layer(input, labels)``.

    Args:
        in_features: of the input without the label.
        classes: how many labels there are; ``weight`` is (out_features, in_features + classes).
        out_features, bias: as ``nn.Linear``'s.

    A label is one number for each class, hardly more than the vector has anyway, so here it is concatenated.
    """

    def __init__(self, in_features: int, classes: int, out_features: int, bias: bool = True):
        super().__init__(in_features + classes, out_features, bias)
        self.classes = classes

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """(N, out_features) of ``input`` (N, in_features) and labels (N,) or (N, classes)."""
        hot = one_hot(labels, self.classes, input.dtype)
        return F.linear(torch.cat([input, hot], 1), self.weight, self.bias)


class _LabelConvolution(nn.Module):
    """What the two convolutions share: ``layer(input, labels)``, the label as planes beside the input's channels."""

    weight: Tensor
    bias: Tensor | None
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    output_padding: tuple[int, ...]
    classes: int
    in_channels: int
    _transposed: bool

    def _concatenated(self, input: Tensor, labels: Tensor) -> Tensor:
        """(N, in_channels, H, W): with the planes that are otherwise never made."""
        planes = one_hot(labels, self.classes, input.dtype)[..., None, None]
        return torch.cat([input, planes.expand(-1, -1, *input.shape[2:])], 1)

    def fused(self, input: Tensor, labels: Tensor, activation: nn.Module | None) -> Tensor:
        """``activation(layer(input, labels))`` on the fused ops."""
        # one node whose gradient is one concatenation, where two slices would fill and add two whole weights
        channels = self.in_channels - self.classes
        weight = self.weight  # one look: a parametrized weight is worked out at each
        of_maps, of_planes = weight.split([channels, self.classes], 0 if self._transposed else 1)
        watch_engines(self, input, of_maps)  # type: ignore[arg-type]
        options: dict[str, Any] = {"stride": self.stride, "padding": self.padding}
        if self._transposed:
            options["output_padding"] = self.output_padding
            of_planes = of_planes.transpose(0, 1)
        convolve = functional.conv_transpose_act if self._transposed else functional.conv_act
        output = convolve(input, of_maps, self.bias, activation="none", **options)
        rows, columns = (self._pattern(input, output, weight.dtype, axis) for axis in (0, 1))
        with _lowered(input.device):
            bias = _plane_bias(of_planes, labels, rows.taps, columns.taps)
        return functional.plane_bias_act(
            output,
            bias,
            rows.of_pixels,
            columns.of_pixels,
            **activation_options(activation),
            inplace=not torch.compiler.is_compiling(),  # where it would be undone
        )

    def _pattern(self, input: Tensor, output: Tensor, dtype: torch.dtype, axis: int) -> _Pattern:
        along = Axis(
            input.size(2 + axis),
            output.size(2 + axis),
            self.kernel_size[axis],
            self.stride[axis],
            self.padding[axis],
            self._transposed,
        )
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        # what is kept between calls is no part of a compiled graph, and no fake tensor or other creature of a mode
        for_now = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
        find = _pattern.__wrapped__ if for_now else _pattern
        return find(along, input.device, wide)


class LabelConv2d(_LabelConvolution, nn.Conv2d):
    """``nn.Conv2d`` of maps with their labels as planes beside them: ``layer(input, labels)``.

    Args:
        in_channels: of the maps.
        classes: how many labels there are; ``weight`` is (out_channels, in_channels + classes, kH, kW).
        out_channels, kernel_size, stride, padding, bias: as ``nn.Conv2d``'s.
    """

    _transposed = False

    def __init__(
        self,
        in_channels: int,
        classes: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        *,
        bias: bool = True,
    ) -> None:
        nn.Conv2d.__init__(
            self, in_channels + classes, out_channels, kernel_size, stride, padding, bias=bias
        )
        self.classes = classes

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """(N, out_channels, H', W') of maps (N, in_channels, H, W) and labels (N,) or (N, classes)."""
        return nn.Conv2d.forward(self, self._concatenated(input, labels))


class LabelConvTranspose2d(_LabelConvolution, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` of maps with their labels as planes beside them: ``layer(input, labels)``.

    Args:
        in_channels: of the maps.
        classes: how many labels there are; ``weight`` is (in_channels + classes, out_channels, kH, kW).
        out_channels, kernel_size, stride, padding, output_padding, bias: as ``nn.ConvTranspose2d``'s.
    """

    _transposed = True

    def __init__(
        self,
        in_channels: int,
        classes: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        *,
        bias: bool = True,
    ) -> None:
        nn.ConvTranspose2d.__init__(
            self,
            in_channels + classes,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            bias=bias,
        )
        self.classes = classes

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """(N, out_channels, H', W') of maps (N, in_channels, H, W) and labels (N,) or (N, classes)."""
        return nn.ConvTranspose2d.forward(self, self._concatenated(input, labels))


_LABELLED = (LabelLinear, _LabelConvolution)


def takes_labels(module: nn.Module) -> bool:
    """Whether ``module`` is a layer of this module, called as ``layer(input, labels)``."""
    return isinstance(module, _LABELLED)


class LabelSequential(nn.Sequential):
    """An ``nn.Sequential`` called as ``sequence(input, labels)``, whose layers of this module get the labels too."""

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        for module in self:
            input = module(input, labels) if isinstance(module, _LABELLED) else module(input)
        return input


@dataclass(frozen=True)
class LabelRun(Run):
    """A convolution with labels and its activation."""

    @property
    def op(self) -> str:
        return f"{super().op} + plane_bias_act"

    def __call__(self, input: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        conv, act = self.convolution, self.activation
        assert isinstance(conv, _LabelConvolution)
        if self.serves(input):
            return conv.fused(input, labels, act)
        output = conv(input, labels)
        return output if act is None else act(output)


class FusedLabelSequential(LabelSequential):
    """A :class:`LabelSequential` on the fused ops, as :class:`~dcgan_fast.nn.FusedSequential` runs its children:
    without planes, an activation as its convolution's own, batch norm and activation as one op."""

    __prepare_scriptable__ = refuse_script

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        if plain_is_wanted(input):
            return super().forward(input, labels)
        for run in self.runs():
            if isinstance(run, LabelRun):
                input = run(input, labels)
            elif isinstance(run.modules[0], _LABELLED):
                input = run.modules[0](input, labels)
            else:
                input = run(input)
        return input

    def runs(self) -> Iterator[Run]:
        """What one call serves, in order."""
        modules, i = list(self), 0
        while i < len(modules):
            module = modules[i]
            if isinstance(module, _LabelConvolution) and not why_watched(module):
                act = activation_at(modules, i + 1, result_is_kept=True)
                count = 1 + (act is not None)
                yield LabelRun(modules[i : i + count], module, None, act)  # type: ignore[arg-type]
                i += count
            elif isinstance(module, _LABELLED):
                yield Run([module], reason=why_watched(module) or "a vector with its label")
                i += 1
            else:
                end = i
                while end < len(modules) and not isinstance(modules[end], _LABELLED):
                    end += 1
                yield from plan(modules[i:end])
                i = end


FUSED[LabelSequential] = FusedLabelSequential
