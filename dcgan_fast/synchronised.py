"""Batch normalisation by the joined statistics of several processes, on the kernels of one.

What :mod:`dcgan_fast.functional` does with a ``process_group``. One collective each way for a layer, whatever its
``stat_groups``: forward gathers counts, means and squared deviations (24 bytes a channel and process), which every
process joins by Chan's rule in order of rank; backward adds up the gradients of gain and offset, which the gradient of
the maps depends on. Those that are returned stay this process's own, as those of :class:`torch.nn.SyncBatchNorm`:
whoever averages the gradients of a model averages them too.

Source: Chan, Golub & LeVeque 1979; Ioffe & Szegedy 2015, Algorithm 1 and its derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import reference

_ops = torch.ops.dcgan_fast


def served(input: Tensor) -> bool:
    """Whether these kernels run on ``input``'s device; elsewhere :mod:`dcgan_fast.reference` does."""
    return input.device.type == "cpu"


def wanted(process_group: dist.ProcessGroup | None, training: bool) -> bool:
    """Whether there are other processes whose batches count."""
    return training and process_group is not None and dist.get_world_size(process_group) > 1


@dataclass(frozen=True)
class Joined:
    """A fused op's settings, and with them its call: ``Joined(...)(input, weight, ...)``.

    ``op`` is its name; the first three are a convolution's, whose absence ``bn_act`` ignores.
    """

    op: str
    activation: str
    negative_slope: float
    momentum: float
    eps: float
    stat_groups: int
    process_group: dist.ProcessGroup
    stride: Sequence[int] = (1, 1)
    padding: Sequence[int] = (0, 0)
    output_padding: Sequence[int] = (0, 0)

    @property
    def _is_transposed(self) -> bool:
        return self.op == "conv_transpose_bn_act"

    @property
    def _convolution(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.output_padding, self._is_transposed

    def __call__(
        self,
        input: Tensor,
        weight: Tensor | None,
        bn_weight: Tensor,
        bn_bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
    ) -> Tensor:
        if weight is not None and torch.is_autocast_enabled(input.device.type):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, weight = (t.to(dtype) if t.is_floating_point() else t for t in (input, weight))
        output: Tensor = _JoinedBatchNorm.apply(
            input, weight, bn_weight, bn_bias, running_mean, running_var, self
        )
        return output

    def maps_and_moments(self, input: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is to be normalised, and its moments, float64 (stat_groups, 3, channels)."""
        if weight is None:
            return input, _ops.bn_act_moments(input, self.stat_groups)
        maps, moments = _ops.conv_bn_act_moments(
            input, weight, *self._convolution, self.stat_groups
        )
        return maps, moments

    def convolution_backward(
        self, grad: Tensor, input: Tensor, weight: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        of_input, of_weight, _ = _ops.conv_act_backward(
            grad, input, weight, grad, *self._convolution, "none", 0.0, [*wanted, False]
        )
        return of_input, of_weight

    def in_plain_pytorch(self, *inputs: Tensor | None) -> Tensor:
        """The same of (input, weight, bn_weight, bn_bias), to be differentiated again; no running statistics change."""
        options: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("activation", "negative_slope", "eps", "stat_groups", "process_group")
        }
        if self.op != "bn_act":
            options |= {"stride": self.stride, "padding": self.padding}
        if self._is_transposed:
            options["output_padding"] = self.output_padding
        given = [tensor for tensor in inputs if tensor is not None]
        result: Tensor = getattr(reference, self.op)(*given, None, None, training=True, **options)
        return result


class _JoinedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bn_weight: Tensor,
        bn_bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        call: Joined,
    ) -> Tensor:
        maps, moments = call.maps_and_moments(input, weight)
        processes = dist.get_world_size(call.process_group)
        of_all = moments.new_empty((processes, *moments.shape))
        dist.all_gather(list(of_all.unbind()), moments, group=call.process_group)
        output, mean, rstd = _ops.bn_act_joined_forward(
            maps,
            bn_weight,
            bn_bias,
            running_mean,
            running_var,
            of_all,
            call.activation,
            call.negative_slope,
            call.momentum,
            call.eps,
        )
        count = of_all[:, 0, 0, 0].sum()
        kept = None if weight is None else maps
        ctx.save_for_backward(input, weight, bn_weight, bn_bias, kept, mean, rstd, count)
        ctx.call = call
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bn_weight, bn_bias, kept, mean, rstd, count = ctx.saved_tensors
        call: Joined = ctx.call
        needed = ctx.needs_input_grad[:4]
        none = (None, None, None)
        if torch.is_grad_enabled():
            leaves = (input, weight, bn_weight, bn_bias)
            return *_differentiable(call, leaves, grad, needed), *none
        given = (grad, input if kept is None else kept, bn_weight, bn_bias, mean, rstd)
        act = (call.activation, call.negative_slope)
        sums = _ops.bn_act_joined_sums(*given, *act)
        of_input = of_weight = None
        if needed[0] or needed[1]:
            joined = sums.clone()
            dist.all_reduce(joined, group=call.process_group)
            of_input = _ops.bn_act_joined_backward(*given, joined / count, *act)
            if weight is not None:
                of_input, of_weight = call.convolution_backward(of_input, input, weight, needed[:2])
        of_bn = sums.sum(1)
        return (
            of_input,
            of_weight,
            of_bn[0].to(bn_weight.dtype) if needed[2] else None,
            of_bn[1].to(bn_bias.dtype) if needed[3] else None,
            *none,
        )


def _differentiable(
    call: Joined, inputs: Sequence[Tensor | None], grad: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients as a graph that can be differentiated again; more collectives, for the reference's are plain.

    Of aliases: where one input was computed from another, a derivative with respect to the inputs themselves would
    count that path as well.
    """
    aliases = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    wanted = [a for a, n in zip(aliases, needed, strict=True) if a is not None and n]
    output = call.in_plain_pytorch(*aliases)
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True, allow_unused=True))
    return [
        next(found) if a is not None and n else None for a, n in zip(aliases, needed, strict=True)
    ]
