"""Statistics of several processes on the kernels: the numbers of one process on the joined batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_together
from torch import Tensor
from torch.library import opcheck

from dcgan_fast import functional

CHANNELS, OUT = 3, 20


@dataclass(frozen=True)
class Case:
    op: str = "bn_act"
    sizes: tuple[int, ...] = (4, 2, 6, 2)  # of the processes' batches
    stat_groups: int = 1
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.channels_last
    options: tuple[tuple[str, Any], ...] = ()

    def parts(self, processes: int) -> list[list[int]]:
        """Which images of the joined batch each process has: its chunk of each group."""
        sizes = [size // self.stat_groups for size in self.sizes[:processes]]
        rows = torch.arange(sum(sizes) * self.stat_groups).view(self.stat_groups, -1)
        return [part.flatten().tolist() for part in rows.split(sizes, 1)]

    def tensors(self, processes: int) -> dict[str, Tensor]:
        torch.manual_seed(1)
        count = sum(self.sizes[:processes])
        tensors = {"input": torch.randn(count, CHANNELS, 6, 6) * 3 + 1}
        channels = CHANNELS
        if self.op != "bn_act":
            shape = (OUT, CHANNELS, 4, 4) if self.op == "conv_bn_act" else (CHANNELS, OUT, 4, 4)
            tensors["weight"] = torch.randn(shape)
            channels = OUT
        tensors = {k: v.to(memory_format=self.layout) for k, v in tensors.items()}
        tensors |= {"bn_weight": torch.rand(channels) + 0.5, "bn_bias": torch.randn(channels)}
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return {k: v.to(wide if k[:2] == "bn" else self.dtype) for k, v in tensors.items()}

    def run(self, tensors: dict[str, Tensor], grad_of: Any, group: Any = None) -> dict[str, Tensor]:
        """Output, gradients and running statistics; ``grad_of(output)`` goes backward."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        wide = leaves["bn_weight"].dtype
        channels = len(leaves["bn_weight"])
        running = [torch.zeros(channels, dtype=wide), torch.ones(channels, dtype=wide)]
        conv = {} if self.op == "bn_act" else {"stride": 2, "padding": 1}
        options = {"activation": "leaky_relu", **conv, **dict(self.options)}
        output = getattr(functional, self.op)(
            *leaves.values(),
            *running,
            training=True,
            stat_groups=self.stat_groups,
            process_group=group,
            **options,
        )
        output.backward(grad_of(output))
        found = {"output": output.detach(), "mean": running[0], "var": running[1]}
        return found | {f"grad of {name}": leaf.grad for name, leaf in leaves.items()}


BN, CONV, UP = "bn_act", "conv_bn_act", "conv_transpose_bn_act"
CASES = [
    Case(),
    Case(layout=torch.contiguous_format),
    Case(stat_groups=2, options=(("activation", "tanh"),)),
    Case(stat_groups=2, layout=torch.contiguous_format, options=(("momentum", 0.3),)),
    Case(sizes=(6, 0, 1, 3)),
    Case(sizes=(0, 1, 0, 0), layout=torch.contiguous_format),
    *(Case(op, dtype=t) for op in (BN, CONV, UP) for t in (torch.bfloat16, torch.float64)),
    *(Case(op, stat_groups=2) for op in (CONV, UP)),
    *(Case(op, sizes=(6, 0, 1, 3)) for op in (CONV, UP)),
    Case(UP, options=(("stride", (1, 2)), ("padding", (2, 1)), ("output_padding", (0, 1)))),
]
SUMMED = ("grad of weight", "grad of bn_weight", "grad of bn_bias")


def gradient_like(output: Tensor) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(output.shape, dtype=torch.float64).to(output)


def _all_cases(rank: int, processes: int) -> list[dict[str, Tensor]]:
    answers = []
    for case in CASES:
        tensors, mine = case.tensors(processes), case.parts(processes)[rank]

        def gradient(output: Tensor, case: Case = case, mine: list[int] = mine) -> Tensor:
            whole = output.new_empty(sum(case.sizes[:processes]), *output.shape[1:])
            return gradient_like(whole)[mine]

        tensors["input"] = tensors["input"][mine]
        answers.append(case.run(tensors, gradient, dist.group.WORLD))
    return answers


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_give_what_one_gives(tmp_path, processes):
    answers = run_together(_all_cases, processes, tmp_path / "run", processes)
    for case, *parts in zip(CASES, *answers, strict=True):
        whole = case.run(case.tensors(processes), gradient_like)
        for name, expected in whole.items():
            found = [part[name] for part in parts]
            if name in ("output", "grad of input"):
                joined = torch.empty_like(expected)
                for rows, part in zip(case.parts(processes), found, strict=True):
                    joined[rows] = part
                    assert part.dtype == case.dtype
                found = [joined]
            elif name in SUMMED:
                found = [sum(part.double() for part in found)]
            narrow = case.dtype if name not in ("mean", "var") else expected.dtype
            tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[narrow]
            scale = float(expected.abs().max())
            for one in found:
                worst = float((one.double() - expected.double()).abs().max())
                assert worst <= tolerance * max(scale, 1e-3), (case, name, worst, scale)


def test_values_far_from_zero_keep_their_variance(tmp_path):
    """A sum of squares would lose it: the mean is 3,000 standard deviations from 0."""
    found = run_together(_far_from_zero, 2, tmp_path / "run")
    x = far_from_zero()
    expected = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=2e-3)


def far_from_zero() -> Tensor:
    return torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(3)) + 3000


def _far_from_zero(rank: int) -> Tensor:
    part = far_from_zero()[rank * 5 : rank * 5 + 5]
    options = {"activation": "none", "eps": 0.0, "training": True}
    return functional.bn_act(
        part, torch.ones(4), torch.zeros(4), None, None, process_group=dist.group.WORLD, **options
    )


def penalty(op: Any, x: Tensor, weight: Tensor, gain: Tensor, group: Any) -> Tensor:
    """The sum of squares of the gradient of the input, whose own gradient is a second derivative."""
    extra = {} if op is functional.bn_act else {"stride": 2, "padding": 1}
    inputs = (x, gain, gain * 0.1) if op is functional.bn_act else (x, weight, gain, gain * 0.1)
    y = op(*inputs, None, None, activation="tanh", training=True, process_group=group, **extra)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return grad.square().sum()


def second_order(rows: slice, group: Any = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    x, found = draw(4, CHANNELS, 6, 6)[rows], []
    for op, channels in ((functional.bn_act, CHANNELS), (functional.conv_bn_act, OUT)):
        leaves = [
            t.requires_grad_()
            for t in (x.clone(), draw(OUT, CHANNELS, 4, 4), draw(channels).abs() + 0.5)
        ]
        value = penalty(op, *leaves, group)
        value.backward()
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]
        found += [value.detach(), *grads[1:], grads[0]]
    return found


def _second_order(rank: int) -> dict[str, Any]:
    group = dist.group.WORLD
    return {"double": second_order(slice(0, 3) if rank == 0 else slice(3, 4), group), **_uses()}


def _uses() -> dict[str, Any]:
    """Autocast, torch.compile, evaluation and errors with a group."""
    group, found = dist.group.WORLD, {}
    case = Case(CONV)
    tensors = case.tensors(2)
    arguments = (*tensors.values(), None, None)
    options = {"stride": 2, "padding": 1, "training": True, "process_group": group}
    with torch.autocast("cpu", torch.bfloat16):
        found["autocast"] = functional.conv_bn_act(*arguments, **options)
    lowered = [t.bfloat16() if t.dim() == 4 else t for t in tensors.values()]
    found["lowered"] = functional.conv_bn_act(*lowered, None, None, **options)

    def call(input: Tensor, weight: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        return functional.conv_bn_act(input, weight, gain, bias, None, None, **options)

    compiled = torch.compile(call, backend="aot_eager")
    for name, function in {"eager": call, "compiled": compiled}.items():
        leaves = [t.detach().clone().requires_grad_() for t in tensors.values()]
        output = function(*leaves)
        output.square().sum().backward()
        found[name] = [output.detach(), *(leaf.grad for leaf in leaves)]
    running = [torch.zeros(OUT), torch.ones(OUT)]
    if dist.get_rank() == 0:  # no statistics of a batch, so nobody to wait for
        functional.conv_bn_act(
            *tensors.values(), *running, stride=2, padding=1, training=False, process_group=group
        )
    one = torch.randn(1 - dist.get_rank(), 3)
    found["errors"] = []
    for bad in ({"input": one}, {"input": torch.randn(3, 3), "stat_groups": 2}):
        rest = {"training": True, "process_group": group}
        weights = (torch.ones(3), torch.zeros(3), None, None)
        try:
            functional.bn_act(bad.pop("input"), *weights, **rest, **bad)
        except ValueError as error:
            found["errors"].append(str(error))
    return found


def test_second_derivatives_and_other_uses(tmp_path):
    (first, second) = run_together(_second_order, 2, tmp_path / "run")
    expected = second_order(slice(None))
    for i, (a, b, e) in enumerate(zip(first["double"], second["double"], expected, strict=True)):
        found = torch.cat([a, b]) if i % 4 == 3 else a + b
        torch.testing.assert_close(found, e, rtol=1e-9, atol=1e-9)
    for found in (first, second):
        assert torch.equal(found["autocast"], found["lowered"])
        assert found["autocast"].dtype == torch.bfloat16
        for ours, other in zip(found["eager"], found["compiled"], strict=True):
            torch.testing.assert_close(ours, other)
        few, groups = found["errors"]
        assert "bn_act(): expected more than 1 value per channel when training, got 1" in few
        assert "bn_act(): 'stat_groups' must divide the batch of 3, got 2" in groups


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_halves_pass_opcheck(dtype, layout):
    ops = torch.ops.dcgan_fast
    case = replace(Case(CONV), dtype=dtype, layout=layout)
    input, weight, gain, bias = case.tensors(1).values()
    geometry = ((2, 2), (1, 1), (0, 0), False)
    opcheck(ops.bn_act_moments.default, (input, 2))
    opcheck(ops.conv_bn_act_moments.default, (input, weight, *geometry, 2))
    maps, moments = ops.conv_bn_act_moments(input, weight, *geometry, 2)
    torch.testing.assert_close(moments, ops.bn_act_moments(maps, 2), rtol=1e-4, atol=1e-4)
    of_all = torch.stack([moments, moments * 1.5])
    running = (torch.zeros_like(gain), torch.ones_like(gain))
    forward = (maps, gain, bias, *running, of_all, "leaky_relu", 0.2, 0.1, 1e-5)
    opcheck(ops.bn_act_joined_forward.default, forward)
    output, mean, rstd = ops.bn_act_joined_forward(*forward)
    given = (torch.randn_like(output), maps, gain, bias, mean, rstd)
    opcheck(ops.bn_act_joined_sums.default, (*given, "leaky_relu", 0.2))
    sums = ops.bn_act_joined_sums(*given, "leaky_relu", 0.2)
    opcheck(ops.bn_act_joined_backward.default, (*given, sums / 100, "leaky_relu", 0.2))
