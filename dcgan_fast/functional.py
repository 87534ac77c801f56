"""The fused ops: (transposed) convolution, batch normalisation and activation in one node each.

Arguments carry the names of :mod:`torch.nn.functional`. All are differentiable to any order, on kernels as far as
gradient penalties go (:func:`maxout_linear`, :func:`plane_bias_act` and a ``process_group`` twice, through PyTorch's
ops), traceable by ``torch.compile(fullgraph=True)`` and known to autocast, which lowers the convolution's operands and
leaves the parameters of the normalisation alone. Inputs may be contiguous or channels_last; the result keeps the
format that PyTorch's own ops would give. Statistics are accumulated in float32 (float64 for float64) as mean and
squared deviations, and do not depend on the number of threads.

CPU tensors, and CUDA tensors where the CUDA half was built, run the kernels of this library (:func:`maxout_linear`: CPU
tensors alone); any other device, transforms of ``torch.func`` and forward-mode differentiation run
:mod:`dcgan_fast.reference`. :func:`dcgan_fast.build_info` tells which. With a ``process_group`` of several processes,
training runs the kernels on CPU tensors alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, cast

import torch
import torch.distributed as dist
from torch import Tensor

from . import _C, reference, synchronised

__all__ = [
    "bn_act",
    "conv_act",
    "conv_bn_act",
    "conv_transpose_act",
    "conv_transpose_bn_act",
    "gather_images",
    "maxout_linear",
    "plane_bias_act",
]

IntOrPair = int | tuple[int, int]
P = ParamSpec("P")

_ops = torch.ops.dcgan_fast
_SERVED_DEVICES = ("cpu", "cuda") if _C.cuda_architectures else ("cpu",)


def served(input: Tensor) -> bool:
    """Whether the kernels of this library run on ``input``'s device."""
    return input.device.type in _SERVED_DEVICES


def transformed() -> bool:
    """Whether ``torch.func`` transforms a call, or forward mode differentiates it: C++ nodes know of neither."""
    return (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    )


def _where_served(op: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """``op`` where our kernels serve the call, its namesake in :mod:`dcgan_fast.reference` elsewhere."""
    stand_in: Callable[P, Tensor] = getattr(reference, op.__name__)

    @functools.wraps(op)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        input = cast(Tensor, args[0] if args else kwargs["input"])
        group = cast("dist.ProcessGroup | None", kwargs.get("process_group"))
        joined = synchronised.wanted(group, bool(kwargs.get("training")))
        if served(input) and not transformed() and (not joined or synchronised.served(input)):
            return op(*args, **kwargs)
        return stand_in(*args, **kwargs)

    return run


def _pair(value: IntOrPair) -> Sequence[int]:
    if isinstance(value, int):
        return (value, value)
    return (value[0], value[0]) if len(value) == 1 else value


@_where_served
def bn_act(
    input: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    activation: str = "relu",
    negative_slope: float = 0.2,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stat_groups: int = 1,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """``activation(batch_norm(input))`` in two passes over the data each way.

    Saves only ``input`` for backward, where PyTorch's two ops save both their inputs.

    Args:
        input: ``(N, C, ...)``, float32, bfloat16, float16 or float64.
        bn_weight, bn_bias: ``(C,)``, of input's dtype, or float32 where that is narrower.
        running_mean, running_var: ``(C,)`` as ``bn_weight``, updated in place when ``training``, or both None.
        activation: ``"relu"``, ``"leaky_relu"``, ``"tanh"``, ``"sigmoid"`` or ``"none"``.
        negative_slope: of ``"leaky_relu"``.
        training: normalise by the statistics of the batch (True) or by the running ones (False).
        momentum: ``running = (1 - momentum) * running + momentum * batch``; the variance unbiased, as in PyTorch.
        eps: added to the variance, at least 0.
        stat_groups: the batch is normalised in so many equal consecutive parts, and the running statistics are updated
            part after part: the same numbers as so many calls.
        process_group: in training, normalise by the joined statistics of all processes of the group, each chunk of
            ``stat_groups`` by that of all: forward and backward are those of one process on the joined batch, and the
            gradients of ``bn_weight`` and ``bn_bias`` this process's share of them, as :class:`torch.nn.SyncBatchNorm`
            has it. All processes must call, one with an empty batch too, and go backward in the same order.

    Returns:
        A tensor of input's shape, dtype and memory format.

    Raises:
        ValueError: a shape, device or value is wrong, or a channel has only one value to normalise.
        TypeError: a dtype is wrong.

    Source: Ioffe & Szegedy 2015, Algorithms 1 and 2; :func:`torch.nn.functional.batch_norm`.
    """
    if process_group is not None and synchronised.wanted(process_group, training):
        joined = synchronised.Joined(
            "bn_act",
            activation,
            negative_slope,
            momentum,
            eps,
            stat_groups,
            process_group,
        )
        return joined(input, None, bn_weight, bn_bias, running_mean, running_var)
    return _ops.bn_act(
        input,
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        activation,
        negative_slope,
        training,
        momentum,
        eps,
        stat_groups,
    )


@_where_served
def conv_bn_act(
    input: Tensor,
    weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    activation: str = "relu",
    negative_slope: float = 0.2,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stat_groups: int = 1,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """``activation(batch_norm(conv2d(input, weight)))``: a hidden layer of a DCGAN discriminator.

    Args:
        input: ``(N, in, H, W)``, float32, bfloat16, float16 or float64.
        weight: ``(out, in, kH, kW)`` of input's dtype (under autocast both are cast).
        bn_weight, bn_bias, running_mean, running_var: ``(out,)``, as in :func:`bn_act`.
        stride, padding: of the convolution, one number or (vertical, horizontal).
        activation, negative_slope, training, momentum, eps, stat_groups, process_group: as in :func:`bn_act`.

    Returns:
        ``(N, out, H', W')`` with ``H' = (H + 2 padding - kH) // stride + 1``, W' likewise; input's dtype.

    Raises:
        ValueError: a shape, device or value is wrong, or a channel has only one value to normalise.
        TypeError: a dtype is wrong.

    Source: the DCGAN paper, section 3 (strided convolutions, batch norm, LeakyReLU in the discriminator).
    """
    if process_group is not None and synchronised.wanted(process_group, training):
        joined = synchronised.Joined(
            "conv_bn_act",
            activation,
            negative_slope,
            momentum,
            eps,
            stat_groups,
            process_group,
            stride=_pair(stride),
            padding=_pair(padding),
        )
        return joined(input, weight, bn_weight, bn_bias, running_mean, running_var)
    return _ops.conv_bn_act(
        input,
        weight,
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        _pair(stride),
        _pair(padding),
        activation,
        negative_slope,
        training,
        momentum,
        eps,
        stat_groups,
    )


@_where_served
def conv_transpose_bn_act(
    input: Tensor,
    weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    activation: str = "relu",
    negative_slope: float = 0.2,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stat_groups: int = 1,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """``activation(batch_norm(conv_transpose2d(input, weight)))``: a hidden layer of a DCGAN generator.

    Args:
        input: ``(N, in, H, W)``, float32, bfloat16, float16 or float64.
        weight: ``(in, out, kH, kW)`` of input's dtype (under autocast both are cast).
        bn_weight, bn_bias, running_mean, running_var: ``(out,)``, as in :func:`bn_act`.
        stride, padding, output_padding: of the convolution, one number or (vertical, horizontal); ``output_padding``
            smaller than ``stride``.
        activation, negative_slope, training, momentum, eps, stat_groups, process_group: as in :func:`bn_act`.

    Returns:
        ``(N, out, H', W')`` with ``H' = (H - 1) stride - 2 padding + kH + output_padding``, W' likewise; input's dtype.

    Raises:
        ValueError: a shape, device or value is wrong, or a channel has only one value to normalise.
        TypeError: a dtype is wrong.

    Source: the DCGAN paper, section 3 (fractionally-strided convolutions, batch norm, ReLU in the generator).
    """
    if process_group is not None and synchronised.wanted(process_group, training):
        joined = synchronised.Joined(
            "conv_transpose_bn_act",
            activation,
            negative_slope,
            momentum,
            eps,
            stat_groups,
            process_group,
            stride=_pair(stride),
            padding=_pair(padding),
            output_padding=_pair(output_padding),
        )
        return joined(input, weight, bn_weight, bn_bias, running_mean, running_var)
    return _ops.conv_transpose_bn_act(
        input,
        weight,
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        _pair(stride),
        _pair(padding),
        _pair(output_padding),
        activation,
        negative_slope,
        training,
        momentum,
        eps,
        stat_groups,
    )


@_where_served
def conv_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    activation: str = "relu",
    negative_slope: float = 0.2,
) -> Tensor:
    """``activation(conv2d(input, weight, bias))``: the first and the last layer of a DCGAN discriminator.

    Saves only its result for backward, from which the activation's derivative is taken.

    Args:
        input: ``(N, in, H, W)``, float32, bfloat16, float16 or float64.
        weight: ``(out, in, kH, kW)`` of input's dtype (under autocast both are cast).
        bias: ``(out,)`` of input's dtype, or float32 where that is narrower, or None.
        stride, padding: of the convolution, one number or (vertical, horizontal).
        activation, negative_slope: as in :func:`bn_act`.

    Returns:
        ``(N, out, H', W')``, H' and W' as in :func:`conv_bn_act`; input's dtype.

    Raises:
        ValueError: a shape, device or value is wrong.
        TypeError: a dtype is wrong.
    """
    return _ops.conv_act(
        input, weight, bias, _pair(stride), _pair(padding), activation, negative_slope
    )


@_where_served
def conv_transpose_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    activation: str = "relu",
    negative_slope: float = 0.2,
) -> Tensor:
    """``activation(conv_transpose2d(input, weight, bias))``: the last layer of a DCGAN generator.

    Args:
        input: ``(N, in, H, W)``, float32, bfloat16, float16 or float64.
        weight: ``(in, out, kH, kW)`` of input's dtype (under autocast both are cast).
        bias: ``(out,)`` of input's dtype, or float32 where that is narrower, or None.
        stride, padding, output_padding: as in :func:`conv_transpose_bn_act`.
        activation, negative_slope: as in :func:`bn_act`.

    Returns:
        ``(N, out, H', W')``, H' and W' as in :func:`conv_transpose_bn_act`; input's dtype.

    Raises:
        ValueError: a shape, device or value is wrong.
        TypeError: a dtype is wrong.
    """
    return _ops.conv_transpose_act(
        input,
        weight,
        bias,
        _pair(stride),
        _pair(padding),
        _pair(output_padding),
        activation,
        negative_slope,
    )


def gather_images(
    images: Tensor,
    rows: Tensor,
    flips: Tensor | None = None,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """A batch of images out of a data set of bytes: gather, mirror and normalise in one pass.

    The numbers are those of :func:`dcgan_fast.data.normalize` on the CPU, bit for bit, on every device: what
    torchvision's ``ToTensor`` and ``Normalize`` give for (-1, 1). Not differentiable.

    Args:
        images: ``(N, C, H, W)`` uint8, contiguous.
        rows: ``(batch,)`` int64, on the device of ``images``: which images, from 0 to N - 1. On CUDA, where a look at
            them would wait, others become NaN.
        flips: ``(batch,)`` bool, likewise: which are mirrored left to right; None: none.
        value_range: what 0 and 255 become.
        memory_format: of the result, ``torch.contiguous_format`` or ``torch.channels_last``.

    Returns:
        ``(batch, C, H, W)`` float32.

    Raises:
        ValueError: a shape, device or value is wrong.
        TypeError: a dtype is wrong.
        IndexError: a row that is not there.
    """
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(
            "gather_images(): 'memory_format' must be torch.contiguous_format or torch.channels_last, "
            f"got {memory_format}"
        )
    if not served(images):
        return reference.gather_images(
            images, rows, flips, value_range=value_range, memory_format=memory_format
        )
    last = memory_format == torch.channels_last
    return _ops.gather_images(images, rows, flips, *map(float, value_range), last)


@_where_served
def maxout_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``max over p of (input @ weight[o, p] + bias[o, p])`` for each unit ``o``: a maxout layer.

    Of equal pieces the first wins, and has the whole gradient, as in ``torch.max(dim)`` (``torch.amax`` shares it out).
    Backward keeps a byte for each output, which piece won; in float32 the pieces are never stored, and backward spends
    its multiplications on the winners alone. On CUDA neither are they, of 2 to 5 pieces in all dtypes but float64;
    there backward is PyTorch's product with a matrix of the gradients at the winners, and an infinity among float32
    inputs may come out as NaN.

    Args:
        input: ``(..., in)``, float32, bfloat16, float16 or float64.
        weight: ``(out, pieces, in)`` of input's dtype (under autocast both are cast), with 1 to 256 pieces.
        bias: ``(out, pieces)`` of input's dtype, or float32 where that is narrower, or None.

    Returns:
        ``(..., out)``, contiguous, of input's dtype.

    Raises:
        ValueError: a shape or device is wrong.
        TypeError: a dtype is wrong.

    Source: Goodfellow et al. 2013, Maxout Networks, section 3.
    """
    return _ops.maxout_linear(input, weight, bias)


@_where_served
def plane_bias_act(
    input: Tensor,
    bias: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    activation: str = "none",
    negative_slope: float = 0.2,
    inplace: bool = False,
) -> Tensor:
    """``activation(input[n, c, h, w] + bias[n, c, rows[h], columns[w]])``: what constant planes beside a convolution's
    input add to its output (:mod:`dcgan_fast.labels`).

    Keeps only its result for backward, and nothing without an activation. On CUDA PyTorch's own ops serve maps of more
    than 1,024 columns, more than 64 patterns and float64.

    Args:
        input: ``(N, C, H, W)``, float32, bfloat16, float16 or float64.
        bias: ``(N, C, R, S)`` of input's dtype, or float32 where that is narrower: one for each image, channel, pattern
            of rows and pattern of columns.
        rows: ``(H,)``, int64: the pattern of each row, from 0 to R - 1. On CUDA, where a look at them would wait,
            pixels of other patterns become NaN.
        columns: ``(W,)``, int64: the pattern of each column, from 0 to S - 1.
        activation, negative_slope: as in :func:`bn_act`.
        inplace: write the result over ``input``, which whoever computed it must not need (``conv_act`` without an
            activation does not). Not done for a negative ``negative_slope``: its derivative needs more than the result.

    Returns:
        A tensor of input's shape, dtype and memory format; ``input`` itself where that was overwritten.

    Raises:
        ValueError: a shape, device or value is wrong.
        TypeError: a dtype is wrong.
    """
    over_input = inplace and not (activation == "leaky_relu" and negative_slope < 0)
    op = _ops.plane_bias_act_ if over_input else _ops.plane_bias_act
    return op(input, bias, rows, columns, activation, negative_slope)


# ---------------------------------------------------------------- shapes without data
#
# Fake kernels of the registered halves: what torch.compile and export need to know. The public ops
# decompose into these.


def _dense_maps(input: Tensor) -> Tensor:
    return input.contiguous(memory_format=torch._prims_common.suggest_memory_format(input))


def _statistics(input: Tensor, channels: Any, training: bool, stat_groups: int) -> Tensor:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return input.new_empty((stat_groups if training else 1, channels), dtype=dtype)


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    transposed: bool,
) -> Tensor:
    torch._check_value(
        weight.device == input.device,
        lambda: f"'weight' must be on input's device ({input.device}), got {weight.device}",
    )
    return torch.ops.aten.convolution(
        input, weight, bias, stride, padding, [1, 1], transposed, output_padding, 1
    )


def _check_devices(input: Tensor, **others: Tensor | None) -> None:
    """One tensor without contents brings a call here, whatever the others are: its result would hold anything."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != input.device:
            raise ValueError(
                f"{name!r} must be on input's device ({input.device}), got {tensor.device}"
            )


@torch.library.register_fake("dcgan_fast::bn_act_forward")
def _(  # type: ignore[no-untyped-def]
    input,
    bn_weight,
    bn_bias,
    running_mean,
    running_var,
    activation,
    negative_slope,
    training,
    momentum,
    eps,
    stat_groups,  # fmt: skip
):
    _check_devices(
        input,
        bn_weight=bn_weight,
        bn_bias=bn_bias,
        running_mean=running_mean,
        running_var=running_var,
    )
    maps = _dense_maps(input)
    mean = _statistics(input, input.size(1), training, stat_groups)
    return torch.empty_like(maps), mean, torch.empty_like(mean)


@torch.library.register_fake("dcgan_fast::bn_act_backward")
def _(  # type: ignore[no-untyped-def]
    grad,
    input,
    bn_weight,
    bn_bias,
    mean,
    rstd,
    activation,
    negative_slope,
    training,
    stat_groups,
    output_mask,  # fmt: skip
):
    wanted = (_dense_maps(input), bn_weight, bn_bias)
    return tuple(
        torch.empty_like(t) if m else None for t, m in zip(wanted, output_mask, strict=True)
    )


@torch.library.register_fake("dcgan_fast::conv_bn_act_forward")
def _(  # type: ignore[no-untyped-def]
    input,
    weight,
    bn_weight,
    bn_bias,
    running_mean,
    running_var,
    stride,
    padding,
    output_padding,
    transposed,
    activation,
    negative_slope,
    training,
    momentum,
    eps,
    stat_groups,
    save,  # fmt: skip
):
    _check_devices(
        input,
        weight=weight,
        bn_weight=bn_weight,
        bn_bias=bn_bias,
        running_mean=running_mean,
        running_var=running_var,
    )
    maps = _dense_maps(
        _convolution(input, weight, None, stride, padding, output_padding, transposed)
    )
    mean = _statistics(input, maps.size(1), training, stat_groups)
    saved = maps if save else maps.new_empty(0)
    if not (save or training):
        return torch.empty_like(maps), saved, maps.new_empty(0), maps.new_empty(0)
    return torch.empty_like(maps), saved, mean, torch.empty_like(mean)


@torch.library.register_fake("dcgan_fast::conv_bn_act_backward")
def _(  # type: ignore[no-untyped-def]
    grad,
    input,
    weight,
    conv_output,
    bn_weight,
    bn_bias,
    mean,
    rstd,
    stride,
    padding,
    output_padding,
    transposed,
    activation,
    negative_slope,
    training,
    stat_groups,
    output_mask,  # fmt: skip
):
    grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
        torch.empty_like(conv_output),
        input,
        weight,
        None,
        stride,
        padding,
        [1, 1],
        transposed,
        output_padding,
        1,
        [*output_mask[:2], False],  # fmt: skip
    )
    params = zip((bn_weight, bn_bias), output_mask[2:], strict=True)
    return grad_input, grad_weight, *(torch.empty_like(t) if m else None for t, m in params)


def _moments(maps: Tensor, stat_groups: int) -> Tensor:
    return maps.new_empty((stat_groups, 3, maps.size(1)), dtype=torch.float64)


@torch.library.register_fake("dcgan_fast::bn_act_moments")
def _(input, stat_groups):  # type: ignore[no-untyped-def]
    return _moments(input, stat_groups)


@torch.library.register_fake("dcgan_fast::conv_bn_act_moments")
def _(input, weight, stride, padding, output_padding, transposed, stat_groups):  # type: ignore[no-untyped-def]
    maps = _dense_maps(
        _convolution(input, weight, None, stride, padding, output_padding, transposed)
    )
    return torch.empty_like(maps), _moments(maps, stat_groups)


@torch.library.register_fake("dcgan_fast::bn_act_joined_forward")
def _(  # type: ignore[no-untyped-def]
    input,
    bn_weight,
    bn_bias,
    running_mean,
    running_var,
    moments,
    activation,
    negative_slope,
    momentum,
    eps,  # fmt: skip
):
    mean = _statistics(input, input.size(1), True, moments.size(1))
    return torch.empty_like(_dense_maps(input)), mean, torch.empty_like(mean)


@torch.library.register_fake("dcgan_fast::bn_act_joined_sums")
def _(grad, input, bn_weight, bn_bias, mean, rstd, activation, negative_slope):  # type: ignore[no-untyped-def]
    return mean.new_empty((2, *mean.shape))


@torch.library.register_fake("dcgan_fast::bn_act_joined_backward")
def _(  # type: ignore[no-untyped-def]
    grad, input, bn_weight, bn_bias, mean, rstd, averages, activation, negative_slope
):
    return torch.empty_like(_dense_maps(input))


@torch.library.register_fake("dcgan_fast::conv_act_forward")
def _(  # type: ignore[no-untyped-def]
    input, weight, bias, stride, padding, output_padding, transposed, activation, negative_slope
):
    _check_devices(input, weight=weight, bias=bias)
    return _convolution(input, weight, bias, stride, padding, output_padding, transposed)


@torch.library.register_fake("dcgan_fast::conv_act_backward")
def _(  # type: ignore[no-untyped-def]
    grad,
    input,
    weight,
    output,
    stride,
    padding,
    output_padding,
    transposed,
    activation,
    negative_slope,
    output_mask,  # fmt: skip
):
    bias_sizes = [weight.size(1 if transposed else 0)]
    return torch.ops.aten.convolution_backward(
        grad,
        input,
        weight,
        bias_sizes,
        stride,
        padding,
        [1, 1],
        transposed,
        output_padding,
        1,
        output_mask,  # fmt: skip
    )


@torch.library.register_fake("dcgan_fast::gather_images")
def _(images, rows, flips, low, high, channels_last):  # type: ignore[no-untyped-def]
    _check_devices(images, rows=rows, flips=flips)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (rows.size(0), *images.shape[1:])
    return torch.empty(shape, dtype=torch.float32, device=images.device, memory_format=layout)


@torch.library.register_fake("dcgan_fast::maxout_linear_forward")
def _(input, weight, bias, save):  # type: ignore[no-untyped-def]
    _check_devices(input, weight=weight, bias=bias)
    output = input.new_empty((*input.shape[:-1], weight.size(0)))
    winner_shape = output.shape if save else (0,)
    return output, input.new_empty(winner_shape, dtype=torch.uint8)


@torch.library.register_fake("dcgan_fast::maxout_linear_backward")
def _(grad, input, weight, winner, output_mask):  # type: ignore[no-untyped-def]
    shapes = (input.shape, weight.shape, weight.shape[:2])
    return tuple(
        input.new_empty(s) if m else None for s, m in zip(shapes, output_mask, strict=True)
    )


@torch.library.register_fake("dcgan_fast::plane_bias_act_forward")
def _(input, bias, rows, columns, activation, negative_slope):  # type: ignore[no-untyped-def]
    _check_devices(input, bias=bias, rows=rows, columns=columns)
    return torch.empty_like(_dense_maps(input))


@torch.library.register_fake("dcgan_fast::plane_bias_act_forward_")
def _(input, bias, rows, columns, activation, negative_slope):  # type: ignore[no-untyped-def]
    _check_devices(input, bias=bias, rows=rows, columns=columns)
    return None


def _of_patterns(output: Tensor, row_patterns: Any, column_patterns: Any) -> Tensor:
    sizes = (output.size(0), output.size(1), row_patterns, column_patterns)
    dtype = torch.float64 if output.dtype == torch.float64 else torch.float32
    layout = torch.contiguous_format if output.is_contiguous() else torch.channels_last
    return torch.empty(sizes, dtype=dtype, device=output.device, memory_format=layout)


@torch.library.register_fake("dcgan_fast::plane_bias_act_backward")
def _(  # type: ignore[no-untyped-def]
    grad,
    output,
    rows,
    columns,
    row_patterns,
    column_patterns,
    activation,
    negative_slope,
    output_mask,  # fmt: skip
):
    maps = _dense_maps(output)
    of_input = torch.empty_like(maps) if output_mask[0] else None
    return of_input, _of_patterns(maps, row_patterns, column_patterns) if output_mask[1] else None


@torch.library.register_fake("dcgan_fast::plane_bias_act_backward_")
def _(  # type: ignore[no-untyped-def]
    grad, output, rows, columns, row_patterns, column_patterns, activation, negative_slope
):
    return _of_patterns(_dense_maps(output), row_patterns, column_patterns)
