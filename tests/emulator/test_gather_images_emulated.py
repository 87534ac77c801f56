"""The CUDA kernel that makes batches of images, run on the CPU: values, order, bounds. All is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from emulator_harness import SCHEDULES, Emulated, Refused
from gather_images_emulated import EmulatedGatherImages, GatherCase, expected
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASES = [
    GatherCase((3, 8, 8)),
    GatherCase((3, 8, 8), channels_last=True),
    GatherCase((3, 8, 8), channels_last=True, misaligned_elements=1),
    GatherCase((1, 28, 28), channels_last=True),
    GatherCase((4, 5, 7)),
    GatherCase((3, 5, 7), channels_last=True),  # no whole access of 16 bytes
    GatherCase((3, 40, 40), batch=2, channels_last=True),  # more than a block an image
    GatherCase((3, 64, 64), batch=2, flips=False),
    GatherCase((1, 1, 1), batch=300),
    GatherCase((2, 3, 1), value_range=(0.0, 1.0)),
    GatherCase((3, 4, 4), batch=0),
]


@pytest.fixture(scope="module")
def emulated(start: Callable[..., Emulated]) -> EmulatedGatherImages:
    """The kernel without a sanitizer."""
    return start(EmulatedGatherImages)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_under_every_schedule(emulated: EmulatedGatherImages, case: GatherCase) -> None:
    given_tensors = case.tensors()
    for schedule in SCHEDULES:
        result = emulated.gather(case, *given_tensors, schedule, 2)
        assert torch.equal(result, expected(case, *given_tensors))


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
    batch=st.integers(0, 4),
    count=st.integers(1, 4),
    channels_last=st.booleans(),
    flips=st.booleans(),
    value_range=st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (-0.3, 2.5)]),
    misaligned=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_values_of_any_shape(
    emulated: EmulatedGatherImages,
    shape: tuple[int, int, int],
    batch: int,
    count: int,
    channels_last: bool,
    flips: bool,
    value_range: tuple[float, float],
    misaligned: int,
    seed: int,
) -> None:
    case = GatherCase(shape, batch, count, channels_last, flips, value_range, misaligned)
    given_tensors = case.tensors(seed)
    assert torch.equal(emulated.gather(case, *given_tensors), expected(case, *given_tensors))


def test_rows_that_are_not_there_become_nan(emulated: EmulatedGatherImages) -> None:
    case = GatherCase((3, 4, 4), channels_last=True)
    images, rows, flips = case.tensors()
    right = expected(case, images, rows, flips)
    rows[1], rows[3] = -1, case.count
    result = emulated.gather(case, images, rows, flips)
    assert result[[1, 3]].isnan().all() and torch.equal(result[[0, 2, 4]], right[[0, 2, 4]])


@pytest.mark.parametrize("sanitizer", ["tsan", "asan"])
def test_sanitizers_are_silent(
    emulated: EmulatedGatherImages, start: Callable[..., Emulated], sanitizer: str
) -> None:
    watched = start(EmulatedGatherImages, sanitizer)
    for case in CASES:
        given_tensors = case.tensors()
        ours, theirs = (
            e.gather(case, *given_tensors, "random_warps", 5) for e in (emulated, watched)
        )
        assert torch.equal(ours, theirs)
    watched.close()


def test_rules(emulated: EmulatedGatherImages) -> None:
    for numbers, words in (
        ({"batch": -1}, "negative"),
        ({"channels": 0}, "at least one value"),
        ({"height": 2**20, "width": 2**20}, "less than 2\\^31 values"),
        ({"divisor": 0}, "'divisor' must be positive"),
        ({}, "'images', 'rows' or 'output' is null"),
    ):
        with pytest.raises(Refused, match=words):
            emulated.rules(**numbers)
