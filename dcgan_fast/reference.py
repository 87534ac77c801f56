"""The fused ops in plain PyTorch: what they compute, on any device and in any dtype.

Each function has the name, arguments and result of its namesake in :mod:`dcgan_fast.functional`, which documents them.
The kernels are tested against these in float64; what no kernel serves runs here.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F
from torch import Tensor

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


def _activate(input: Tensor, activation: str, negative_slope: float) -> Tensor:
    if activation == "relu":
        return F.relu(input)
    if activation == "leaky_relu":
        return F.leaky_relu(input, negative_slope)
    if activation == "tanh":
        return torch.tanh(input)
    if activation == "sigmoid":
        return torch.sigmoid(input)
    if activation == "none":
        return input
    raise ValueError(
        "'activation' must be 'relu', 'leaky_relu', 'tanh', 'sigmoid' or 'none', "
        f"got {activation!r}"
    )


def _synchronised_batch_norm(
    input: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    process_group: dist.ProcessGroup,
) -> Tensor:
    """Batch normalisation by the statistics of all processes' batches joined.

    Means and squared deviations are combined by Chan's rule; the reductions are differentiable, so the gradient is that
    of one process on the joined batch.
    """
    axes = [0, *range(2, input.dim())]
    shape = [1, -1] + [1] * (input.dim() - 2)
    x = input if input.dtype == torch.float64 else input.float()
    count = x.new_tensor(float(input.numel() // input.size(1)))
    total = count.clone()
    dist.all_reduce(total, group=process_group)
    if total.item() <= 1:
        raise ValueError("expected more than 1 value per channel when training, over all processes")
    local_mean = x.mean(axes) if count > 0 else x.sum(axes)
    mean = dist_nn.all_reduce(local_mean * (count / total), group=process_group)
    var = dist_nn.all_reduce((x - mean.view(shape)).square().sum(axes) / total, group=process_group)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (total / (total - 1))).to(running_var.dtype), momentum)
    z = (x - mean.view(shape)) * (torch.rsqrt(var + eps) * bn_weight).view(shape)
    return (z + bn_bias.view(shape)).to(input.dtype)


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
    """``activation(batch_norm(input))``; see :func:`dcgan_fast.functional.bn_act`."""
    if stat_groups < 1 or input.size(0) % stat_groups:
        raise ValueError(
            f"'stat_groups' must divide the batch of {input.size(0)}, got {stat_groups}"
        )
    normalised = []
    for part in input.chunk(stat_groups) if training and stat_groups > 1 else (input,):
        if training and process_group is not None:
            normalised.append(
                _synchronised_batch_norm(
                    part,
                    bn_weight,
                    bn_bias,
                    running_mean,
                    running_var,
                    momentum,
                    eps,
                    process_group,
                )
            )
        else:
            normalised.append(
                F.batch_norm(
                    part, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps
                )
            )
    z = normalised[0] if len(normalised) == 1 else torch.cat(normalised)
    return _activate(z, activation, negative_slope)


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
    """``activation(batch_norm(conv2d(input)))``; see :func:`dcgan_fast.functional.conv_bn_act`."""
    return bn_act(
        F.conv2d(input, weight, None, stride, padding),
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        activation=activation,
        negative_slope=negative_slope,
        training=training,
        momentum=momentum,
        eps=eps,
        stat_groups=stat_groups,
        process_group=process_group,
    )


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
    """``activation(batch_norm(conv_transpose2d(input)))``; see
    :func:`dcgan_fast.functional.conv_transpose_bn_act`."""
    return bn_act(
        F.conv_transpose2d(input, weight, None, stride, padding, output_padding),
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        activation=activation,
        negative_slope=negative_slope,
        training=training,
        momentum=momentum,
        eps=eps,
        stat_groups=stat_groups,
        process_group=process_group,
    )


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
    """``activation(conv2d(input))``; see :func:`dcgan_fast.functional.conv_act`."""
    return _activate(F.conv2d(input, weight, bias, stride, padding), activation, negative_slope)


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
    """``activation(conv_transpose2d(input))``; see
    :func:`dcgan_fast.functional.conv_transpose_act`."""
    z = F.conv_transpose2d(input, weight, bias, stride, padding, output_padding)
    return _activate(z, activation, negative_slope)


def gather_images(
    images: Tensor,
    rows: Tensor,
    flips: Tensor | None = None,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Images by their rows, mirrored and normalised; see :func:`dcgan_fast.functional.gather_images`."""
    low, high = value_range
    chosen = images[rows]
    if flips is not None:
        chosen = torch.where(flips.view(-1, 1, 1, 1), chosen.flip(-1), chosen)
    floats = chosen.to(torch.float32, copy=True, memory_format=memory_format)
    return floats.div_(255 / (high - low)).add_(low)


def maxout_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``max over pieces of linear(input)``; see :func:`dcgan_fast.functional.maxout_linear`."""
    flat_bias = None if bias is None else bias.flatten()
    pieces = F.linear(input, weight.flatten(0, 1), flat_bias).unflatten(-1, weight.shape[:2])
    return pieces.max(-1).values  # of equals the first has the gradient, which amax would share out


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
    """``activation(input + bias[:, :, rows][..., columns])``; see
    :func:`dcgan_fast.functional.plane_bias_act`. ``inplace`` frees nothing here."""
    of_pixels = bias.index_select(2, rows).index_select(3, columns)
    return _activate((input + of_pixels).to(input.dtype), activation, negative_slope)
