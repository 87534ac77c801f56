"""The CUDA kernels of bn_act, run on the CPU: values against float64, order, races, bounds.

The errors that are allowed are PyTorch's own, as the contract of every op says: at most twice those
of batch_norm + activation in the same type, both against float64, plus one rounding of the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from bn_act_emulated import Case, EmulatedBnAct
from emulator_harness import (
    ACTIVATIONS,
    DTYPES,
    SCHEDULES,
    Emulated,
    Refused,
    Tensors,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

f32, bf16, f16 = DTYPES


@pytest.fixture(scope="module")
def emulated(start: Callable[..., Emulated]) -> EmulatedBnAct:
    """The kernels without a sanitizer."""
    return start(EmulatedBnAct)


def activate(z: torch.Tensor, case: Case) -> torch.Tensor:
    if case.activation == "none":
        return z
    if case.activation == "leaky_relu":
        return F.leaky_relu(z, case.negative_slope)
    return getattr(torch, case.activation)(z)


def pytorch(case: Case, inputs: dict[str, torch.Tensor | None], exact: bool) -> Tensors:
    """What PyTorch computes, chunk after chunk: in float64 if exact, else in the case's types."""

    def take(name: str) -> torch.Tensor | None:
        tensor = inputs[name]
        if tensor is None:
            return None
        return tensor.to(torch.float64 if exact else tensor.dtype, copy=True)

    leaves = {name: take(name) for name in ("x", "weight", "bias")}
    for leaf in leaves.values():
        if leaf is not None:
            leaf.requires_grad_()
    running = [take("running_mean"), take("running_var")]
    outputs, statistics = [], {"mean": [], "rstd": []}
    for x in leaves["x"].chunk(case.stat_groups):
        z = F.batch_norm(
            x,
            *running,
            leaves["weight"],
            leaves["bias"],
            training=case.training,
            momentum=case.momentum,
            eps=case.eps,
        )
        outputs.append(activate(z, case))
        values = x.detach().double()
        mean, variance = (
            (values.mean((0, 2)), values.var((0, 2), unbiased=False))
            if case.training
            else (running[0].double(), running[1].double())
        )
        statistics["mean"].append(mean)
        statistics["rstd"].append((variance + case.eps).rsqrt())
    y = torch.cat(outputs)
    y.backward(take("dy"))
    result = {"y": y.detach(), "dx": leaves["x"].grad}
    if case.affine:
        result |= {"dweight": leaves["weight"].grad, "dbias": leaves["bias"].grad}
    if case.running:
        result |= {"running_mean": running[0], "running_var": running[1]}
    if exact:
        result |= {name: torch.stack(rows) for name, rows in statistics.items()}
    return result


def rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def assert_right(
    case: Case,
    inputs: dict[str, torch.Tensor | None],
    result: Tensors,
    names: Iterable[str] | None = None,
) -> None:
    """Every result is as near to float64 as the contract asks."""
    exact, own = pytorch(case, inputs, exact=True), pytorch(case, inputs, exact=False)
    for name in result if names is None else names:
        right, ours = exact[name], result[name]
        assert ours.shape == right.shape, name
        allowed = rounding(ours.dtype) * right.abs().max().item()
        if name in own:
            allowed += 2 * (own[name].double() - right).abs().max().item()
        # PyTorch keeps its saved statistics to itself, and sums up in float64 on a CPU. The sums of
        # these kernels are good to a few roundings of float32, counted in standard deviations.
        if name == "rstd":
            allowed *= 4
        elif name in ("mean", "running_mean") and case.training:
            share = case.momentum if name == "running_mean" else 1.0
            allowed += 4 * rounding(f32) * share / exact["rstd"].min().item()
        error = (ours.double() - right).abs().max().item()
        assert error <= allowed, f"{name}: {error:.3g} off, {allowed:.3g} allowed ({case})"


def assert_same(one: Tensors, other: Tensors) -> None:
    """Bit for bit, NaNs included."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        bits = [t.contiguous().flatten().view(torch.uint8) for t in (tensor, other[name])]
        assert torch.equal(*bits), name


# Each kernel at least once: types, memory orders, wide and single accesses, all activations,
# several tiles, groups and channel blocks, ragged ends of each.
CASES = [
    Case(8, 64, 16),
    Case(8, 64, 16, dtype=bf16, activation="leaky_relu"),
    Case(8, 64, 16, dtype=f16, activation="tanh"),
    Case(6, 24, 35, activation="sigmoid", stat_groups=2),
    Case(6, 24, 35, dtype=bf16, activation="none", stat_groups=3),
    Case(4, 3, 333, activation="leaky_relu", stat_groups=2),
    Case(4, 37, 50, dtype=bf16, param_dtype=bf16),
    Case(4, 100, 9, dtype=f16, param_dtype=f16, activation="leaky_relu", negative_slope=-0.5),
    Case(300, 40, dtype=bf16, activation="tanh"),
    Case(40, 1, 100, activation="leaky_relu", stat_groups=2),
    Case(5, 1, 99, dtype=f16, activation="sigmoid"),
    Case(6, 5, 64, channels_last=False),
    Case(6, 5, 64, channels_last=False, dtype=bf16, activation="leaky_relu", stat_groups=3),
    Case(6, 2, 1544, channels_last=False, dtype=f16, activation="sigmoid", stat_groups=2),
    Case(40, 3, 49, channels_last=False, activation="tanh", stat_groups=2),
    Case(7, 3, 49, channels_last=False, dtype=bf16, activation="none"),
    Case(2, 2, 2500, channels_last=False, dtype=f16),
    Case(8, 16, 20, training=False, activation="tanh"),
    Case(8, 16, 20, training=False, dtype=bf16, param_dtype=bf16, activation="leaky_relu"),
    Case(8, 3, 20, training=False, channels_last=False, dtype=f16, stat_groups=2),
    Case(8, 16, 20, affine=False, running=False),
    Case(8, 16, 20, misaligned_elements=1, dtype=bf16),
    Case(8, 3, 64, misaligned_elements=3, channels_last=False),
    Case(8, 16, 20, in_place=True, activation="leaky_relu"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(emulated: EmulatedBnAct, case: Case) -> None:
    inputs = case.inputs()
    assert_right(case, inputs, emulated.both(case, inputs))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_of_every_activation(
    emulated: EmulatedBnAct, activation: str, dtype: torch.dtype, channels_last: bool
) -> None:
    for training in (True, False):
        case = Case(
            4,
            8,
            24,
            channels_last,
            dtype,
            activation=activation,
            training=training,
            stat_groups=2,
        )
        inputs = case.inputs(seed=1)
        assert_right(case, inputs, emulated.both(case, inputs))


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_values_of_any_shape(emulated: EmulatedBnAct, data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 3))
    dtype = data.draw(st.sampled_from(DTYPES))
    case = Case(
        batch=groups * data.draw(st.integers(1, 9)),
        channels=data.draw(st.integers(1, 40) | st.sampled_from([64, 72, 130])),
        spatial=data.draw(st.integers(2, 30) | st.sampled_from([64, 127])),
        channels_last=data.draw(st.booleans()),
        dtype=dtype,
        param_dtype=data.draw(st.sampled_from([f32, dtype])),
        activation=data.draw(st.sampled_from(ACTIVATIONS)),
        negative_slope=data.draw(st.sampled_from([0.2, 0.0, 1.5])),
        training=data.draw(st.booleans()),
        stat_groups=groups,
        affine=data.draw(st.booleans()),
        momentum=data.draw(st.sampled_from([0.1, 1.0, 0.0])),
        misaligned_elements=data.draw(st.integers(0, 3)),
    )
    inputs = case.inputs(seed=2)
    assert_right(case, inputs, emulated.both(case, inputs))


@pytest.mark.parametrize("channels_last", [True, False])
def test_large_mean(emulated: EmulatedBnAct, channels_last: bool) -> None:
    case = Case(16, 8, 100, channels_last, activation="none", mean=1e4, std=1.0)
    inputs = case.inputs()
    result = emulated.both(case, inputs)
    assert_right(case, inputs, result)
    exact = pytorch(case, inputs, exact=True)
    assert torch.equal(result["mean"], exact["mean"].float())  # rounded once
    assert (result["rstd"].double() / exact["rstd"] - 1).abs().max() < 2e-7
    assert (result["y"].double() - exact["y"]).abs().max() < 1e-3  # mean rounded to 1e4 * 2^-24


@pytest.mark.parametrize("channels_last", [True, False])
def test_outlier_first(emulated: EmulatedBnAct, channels_last: bool) -> None:
    """Values are taken relative to the group's first: nothing may hang on that being a good one."""
    case = Case(16, 4, 100, channels_last, activation="none")
    inputs = case.inputs()
    inputs["x"][:, :, 0] = 1e3
    result = emulated.both(case, inputs)
    assert_right(case, inputs, result, ["y", "dx", "dbias", "mean", "rstd", "running_var"])
    exact = pytorch(case, inputs, exact=True)
    assert (result["rstd"].double() / exact["rstd"] - 1).abs().max() < 2e-7


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_channels_have_no_variance(
    emulated: EmulatedBnAct, dtype: torch.dtype, channels_last: bool
) -> None:
    case = Case(6, 8, 77, channels_last, dtype, activation="none")
    inputs = case.inputs()
    inputs["x"] = torch.linspace(-3e4, 3e4, 8)[:, None].expand(6, 8, 77).to(dtype).contiguous()
    result = emulated.both(case, inputs)
    assert torch.equal(result["mean"][0], inputs["x"][0, :, 0].float())
    assert torch.equal(result["rstd"], torch.full((1, 8), 1e-5**-0.5))
    assert torch.equal(result["y"], inputs["bias"][:, None].expand(6, 8, 77).to(dtype))
    assert all(tensor.isfinite().all() for tensor in result.values())


def test_one_value_a_channel(emulated: EmulatedBnAct) -> None:
    case = Case(2, 8, 1, stat_groups=2)
    inputs = case.inputs()
    result = emulated.both(case, inputs)
    assert torch.equal(result["y"], inputs["bias"].relu()[:, None].expand(2, 8, 1))
    assert torch.equal(result["dx"], torch.zeros(2, 8, 1))
    assert result["running_var"].isnan().all()  # 0 / 0, as ATen has it


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", [Case(0, 8, 4, stat_groups=2), Case(3, 5, 0), Case(4, 0, 3)])
def test_empty(emulated: EmulatedBnAct, case: Case, training: bool) -> None:
    case = dataclasses.replace(case, training=training)
    inputs = case.inputs()
    result = emulated.both(case, inputs)
    for name in ("running_mean", "running_var"):
        assert torch.equal(result[name], inputs[name])
    for name in ("dweight", "dbias"):
        assert torch.equal(result[name], torch.zeros(case.channels))
    if training:
        assert torch.equal(result["mean"], torch.zeros(case.stat_groups, case.channels))


@pytest.mark.parametrize("channels_last", [True, False])
def test_groups_are_calls_in_turn(emulated: EmulatedBnAct, channels_last: bool) -> None:
    case = Case(12, 10, 14, channels_last, bf16, bf16, stat_groups=3, momentum=0.3)
    inputs = case.inputs()
    together = emulated.both(case, inputs)
    one = dataclasses.replace(case, batch=4, stat_groups=1)
    state, parts = dict(inputs), []
    for i in range(3):
        state |= {name: inputs[name].chunk(3)[i] for name in ("x", "dy")}
        parts.append(emulated.both(one, state))
        state |= {name: parts[-1][name] for name in ("running_mean", "running_var")}
    for name, rows in (("y", 0), ("dx", 0), ("mean", 0), ("rstd", 0)):
        assert torch.equal(together[name], torch.cat([part[name] for part in parts], rows)), name
    for name in ("running_mean", "running_var"):
        assert torch.equal(together[name], parts[-1][name]), name


def test_signs_of_zero_and_infinities(emulated: EmulatedBnAct) -> None:
    """In eval mode, elementwise: what PyTorch's activations make of special values, and of none."""
    special = [0.0, -3.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, -1e-30]
    for activation in ACTIVATIONS:
        for slope in (0.2, 0.0):
            case = Case(1, 8, 1, activation=activation, negative_slope=slope, training=False, eps=0)
            inputs = case.inputs() | {
                "x": torch.tensor(special)[None, :, None],
                "dy": torch.full((1, 8, 1), 3.0),
                "weight": torch.ones(8),
                "bias": torch.zeros(8),
                "running_mean": torch.zeros(8),
                "running_var": torch.ones(8),
            }
            x = inputs["x"].clone().requires_grad_()
            y = activate(x, case)
            y.backward(inputs["dy"])
            result = emulated.both(case, inputs)
            torch.testing.assert_close(result["y"], y.detach(), equal_nan=True)
            torch.testing.assert_close(result["dx"], x.grad, equal_nan=True)
            finite = ~result["y"].isnan()
            assert torch.equal(result["y"].signbit()[finite], y.detach().signbit()[finite])


def test_huge_values_do_not_turn_into_nan(emulated: EmulatedBnAct) -> None:
    """Squares overflow: the variance is infinite and the output the bias, as PyTorch has it."""
    case = Case(6, 8, 30, activation="none", mean=0.0, std=1e25)
    inputs = case.inputs()
    result = emulated.forward(case, inputs)
    assert torch.equal(result["y"], pytorch(case, inputs, exact=False)["y"])
    assert torch.equal(result["rstd"], torch.zeros(1, 8))


@pytest.mark.parametrize("wanted", [{"dx"}, {"dweight"}, {"dbias"}, {"dweight", "dbias"}, set()])
@pytest.mark.parametrize("training", [True, False])
def test_only_wanted_gradients(emulated: EmulatedBnAct, wanted: set[str], training: bool) -> None:
    case = Case(6, 12, 10, training=training, stat_groups=2)
    inputs = case.inputs()
    forward = emulated.forward(case, inputs)
    some = emulated.backward(case, inputs, forward, wanted=wanted)
    everything = emulated.backward(case, inputs, forward)
    assert_same(some, {name: everything[name] for name in some})
    assert some.keys() == wanted


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        (Case(5, 4, 2, stat_groups=2), "'stat_groups' must divide the batch"),
        (Case(4, 4, 2, stat_groups=0), "'stat_groups' must be at least 1"),
        (Case(4, 4, 2, dtype=bf16, param_dtype=f16), "parameters must be float32"),
        (Case(4, 4, 2, eps=-1e-5), "'eps' must be at least 0"),
        (Case(4, 4, 2, eps=float("nan")), "'eps' must be at least 0"),
        (Case(4, 4, 2, training=False, running=False), "eval mode needs running statistics"),
    ],
)
def test_rules(emulated: EmulatedBnAct, case: Case, rule: str) -> None:
    with pytest.raises(Refused, match=rule):
        emulated.forward(case, case.inputs())


@pytest.mark.parametrize("channels_last", [True, False])
def test_more_than_2_to_the_32_elements(emulated: EmulatedBnAct, channels_last: bool) -> None:
    case = Case(4, 8, 2**27 + 8, channels_last, bf16, activation="none")
    n = case.batch * case.spatial
    tail = (torch.arange(1, 9) * 1e3).to(bf16)  # the last row, or the end of the last plane
    result = emulated.far_end(case, tail)
    x = tail.double()
    x = x[-1:] if channels_last else x  # those of the last channel
    mean = x.sum() / n
    rstd = (x.square().sum() / n - mean.square() + case.eps).rsqrt()
    assert abs(result["mean"] / mean - 1) < 1e-6
    assert abs(result["rstd"] / rstd - 1) < 1e-6
    y = (x - mean) * rstd
    torch.testing.assert_close(result["y"][-len(x) :].double(), y, rtol=2**-8, atol=0)
    # dy = x is the mean plus a multiple of x - mean, which is what the backward pass takes off.
    assert (result["dx"][-len(x) :].double() / (rstd * y)).abs().max() < 1e-4


@pytest.mark.parametrize("case", CASES[:20:3], ids=str)
def test_same_bits_under_every_schedule(emulated: EmulatedBnAct, case: Case) -> None:
    inputs = case.inputs()
    first = emulated.both(case, inputs)
    for schedule in SCHEDULES:
        for seed in (1, 2):
            assert_same(first, emulated.both(case, inputs, schedule, seed))


@pytest.mark.parametrize("sanitizer", ["tsan", "asan"])
def test_sanitizers_are_silent(
    emulated: EmulatedBnAct, start: Callable[..., Emulated], sanitizer: str
) -> None:
    """No race and no access out of bounds or out of line, and the same bits as without."""
    watched = start(EmulatedBnAct, sanitizer)
    for case in CASES:
        if case.channels <= 40:  # fewer blocks
            inputs = case.inputs()
            assert_same(emulated.both(case, inputs), watched.both(case, inputs, "random_warps", 5))
    for case in (Case(0, 8, 4), Case(2, 8, 1, stat_groups=2)):
        watched.both(case)
    watched.close()
