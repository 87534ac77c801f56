"""The CUDA kernel of maxout units, run on the CPU: values, order, races, bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from conv_emulated import PRECISIONS
from emulator_harness import DTYPES, SCHEDULES, Emulated, Refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from maxout_linear_emulated import EmulatedMaxout, MaxoutCase

CASES = [
    MaxoutCase(1, 1, 1, 2),
    MaxoutCase(64, 32, 32, 2),  # tiles that are full
    MaxoutCase(65, 33, 33, 3),  # and elements one by one
    MaxoutCase(70, 72, 50, 4),
    MaxoutCase(5, 10, 50, 5),  # a label
    MaxoutCase(33, 40, 20, 5, bias=False),
    MaxoutCase(33, 40, 20, 5, misaligned_elements=1),
    MaxoutCase(0, 8, 8, 2),
]


@pytest.fixture(scope="module")
def emulated(start: Callable[..., Emulated]) -> EmulatedMaxout:
    """The kernel without a sanitizer."""
    return start(EmulatedMaxout)


def assert_right(case: MaxoutCase, tensors: dict, result: dict) -> None:
    for name, exact in case.exactly(tensors).items():
        assert torch.equal(result[name], exact), name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(
    emulated: EmulatedMaxout, case: MaxoutCase, dtype: torch.dtype, precision: str
) -> None:
    if dtype != torch.float32 and precision != PRECISIONS[0]:
        return  # they have one
    case = dataclasses.replace(case, dtype=dtype, precision=precision)
    tensors = case.tensors()
    assert_right(case, tensors, emulated.units(case, tensors))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(0, 140),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 70),
    pieces=st.integers(2, 5),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    schedule=st.sampled_from(list(SCHEDULES)),
    seed=st.integers(0, 2**16),
)
def test_values_of_any_shape(
    emulated: EmulatedMaxout,
    rows: int,
    inputs: int,
    outputs: int,
    pieces: int,
    dtype: torch.dtype,
    bias: bool,
    schedule: str,
    seed: int,
) -> None:
    case = MaxoutCase(rows, inputs, outputs, pieces, dtype, bias=bias)
    tensors = case.tensors(seed)
    assert_right(case, tensors, emulated.units(case, tensors, schedule, seed))


def test_float32_is_as_accurate_as_its_precision(emulated: EmulatedMaxout) -> None:
    case = MaxoutCase(40, 300, 30, 4)
    random = torch.Generator().manual_seed(0)
    tensors = {n: torch.randn(t.shape, generator=random) for n, t in case.tensors().items()}
    exact = case.exactly(tensors)["output"]
    for precision, error in (("tf32x3", 2e-6), ("fma", 2e-6), ("tf32", 3e-3)):
        found = emulated.units(dataclasses.replace(case, precision=precision), tensors)["output"]
        assert (found - exact).norm() / exact.norm() < error


def test_nan_wins(emulated: EmulatedMaxout) -> None:
    """The first of several, as torch.max finds it; infinities are numbers."""
    case = MaxoutCase(3, 4, 2, 3)
    tensors = {name: torch.ones_like(tensor) for name, tensor in case.tensors().items()}
    tensors["bias"] = torch.tensor(
        [[1.0, float("nan"), float("nan")], [-float("inf"), float("inf"), 0.0]]
    )
    found = emulated.units(case, tensors)
    assert found["output"][:, 0].isnan().all() and (found["winner"] == 1).all()
    assert (found["output"][:, 1] == float("inf")).all()


def test_winners_are_left_out(emulated: EmulatedMaxout) -> None:
    case = MaxoutCase(10, 8, 6, 2)
    tensors = case.tensors()
    found = emulated.units(case, tensors, winner=False)
    assert torch.equal(found["output"], case.exactly(tensors)["output"])
    assert (found["winner"] == 0xFF).all()  # as they were


@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_under_every_schedule(emulated: EmulatedMaxout, case: MaxoutCase) -> None:
    tensors = case.tensors()
    first = emulated.units(case, tensors)
    for schedule in list(SCHEDULES)[1:]:
        found = emulated.units(case, tensors, schedule, 2)
        assert all(torch.equal(found[name], first[name]) for name in first)


@pytest.mark.parametrize("sanitizer", ["tsan", "asan"])
def test_sanitizers_are_silent(
    emulated: EmulatedMaxout, start: Callable[..., Emulated], sanitizer: str
) -> None:
    watched = start(EmulatedMaxout, sanitizer)
    for dtype in DTYPES:
        for case in CASES:
            case = dataclasses.replace(case, dtype=dtype)
            tensors = case.tensors()
            ours, theirs = (e.units(case, tensors, "random_warps", 5) for e in (emulated, watched))
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    watched.close()


def test_rules(emulated: EmulatedMaxout) -> None:
    for numbers, words in (
        ({"rows": -1}, "negative"),
        ({"inputs": 0}, "inputs and outputs"),
        ({"outputs": 0}, "inputs and outputs"),
        ({"pieces": 1}, "2 to 5 pieces"),
        ({"pieces": 6}, "2 to 5 pieces"),
        ({}, "'input', 'weight' or 'output' is null"),
    ):
        with pytest.raises(Refused, match=words):
            emulated.rules(**numbers)
