"""The CUDA kernels of Parzen windows, run on the CPU: values, order, races, bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conv_emulated import PRECISIONS
from emulator_harness import SCHEDULES, Emulated, Refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parzen_emulated import EmulatedParzen, ParzenCase
from torch import Tensor

CASES = [
    ParzenCase(1, 1, 1),
    ParzenCase(31, 3, 5),  # half a warp's samples, and none of the other warp's
    ParzenCase(64, 128, 16),  # tiles that are full
    ParzenCase(65, 129, 17, (0.1, 0.5)),
    ParzenCase(500, 7, 40, (0.05, 0.3, 5.0)),  # samples of a row shared by blocks
    ParzenCase(130, 260, 33, tuple(0.1 * i for i in range(1, 11))),
    ParzenCase(20, 10, 6, tuple(0.1 * i for i in range(1, 33))),  # as many as a launch takes
    ParzenCase(17_000, 2, 3),  # blocks that meet several tiles
    ParzenCase(40, 0, 3),
    ParzenCase(100, 130, 50, (0.2, 1.0), "tf32"),
    ParzenCase(3, 5, 4, precision="tf32"),
    ParzenCase(70, 20, 30, (0.3, 0.4), "fma"),
]
FEW_SAMPLES = [case for case in CASES if case.count < 10_000]


@pytest.fixture(scope="module")
def emulated(start: Callable[..., Emulated]) -> EmulatedParzen:
    """The kernels without a sanitizer."""
    return start(EmulatedParzen)


def assert_right(
    case: ParzenCase, samples: Tensor, data: Tensor, result: tuple[Tensor, int]
) -> None:
    log_sums, bad_row = result
    exact = case.exactly(samples, data)
    # distances of some features / 6, known to a few parts in 10^7; tensor cores cut what they add
    each = 4e-6 if case.precision == "tf32" else 2e-6
    bound = (
        each * (1 + case.features / 6) * torch.tensor(case.sigmas).double()[:, None].pow(-2) + 1e-5
    )
    assert ((log_sums - exact).abs() <= bound).all(), ((log_sums - exact).abs() / bound).max()
    assert bad_row == -1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(emulated: EmulatedParzen, case: ParzenCase) -> None:
    inputs = case.inputs()
    assert_right(case, *inputs, emulated.windows(case, *inputs))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    count=st.integers(1, 300),
    rows=st.integers(0, 150),
    features=st.integers(1, 70),
    sigmas=st.lists(st.floats(0.1, 10), min_size=1, max_size=5).map(tuple),
    precision=st.sampled_from(PRECISIONS),
    schedule=st.sampled_from(list(SCHEDULES)),
    seed=st.integers(0, 2**16),
)
def test_values_of_any_shape(
    emulated: EmulatedParzen,
    count: int,
    rows: int,
    features: int,
    sigmas: tuple[float, ...],
    precision: str,
    schedule: str,
    seed: int,
) -> None:
    case = ParzenCase(count, rows, features, sigmas, precision)
    inputs = case.inputs(seed)
    assert_right(case, *inputs, emulated.windows(case, *inputs, schedule, seed))


def test_far_samples_change_nothing(emulated: EmulatedParzen) -> None:
    """Windows whose terms vanish beside the nearest, whichever comes first."""
    near, data = torch.rand(5, 20), torch.rand(40, 20)
    for far_first in (True, False):
        far = torch.rand(300, 20) + 30
        samples = torch.cat([far, near] if far_first else [near, far])
        case = ParzenCase(305, 40, 20, (0.5,))
        log_sums, _ = emulated.windows(case, samples, data)
        expected = ParzenCase(5, 40, 20, (0.5,)).exactly(near, data)
        torch.testing.assert_close(log_sums, expected, rtol=0, atol=0.02)  # of squares of some 10^4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_rows_that_are_no_numbers_are_named(emulated: EmulatedParzen, value: float) -> None:
    case = ParzenCase(70, 50, 9)
    samples, data = case.inputs()
    centre = samples.mean(0)
    data[13, 8] = data[31, 0] = value
    assert emulated.windows(case, samples, data)[1] == 70 + 13
    samples[69, 8] = value
    # the mean is no number either: each row is one of those that are none
    assert (centre == centre).all() and emulated.windows(case, samples, data)[1] in (0, 69)


@pytest.mark.parametrize("case", FEW_SAMPLES, ids=str)
def test_same_bits_under_every_schedule(emulated: EmulatedParzen, case: ParzenCase) -> None:
    inputs = case.inputs()
    first = emulated.windows(case, *inputs)
    for schedule in list(SCHEDULES)[1:]:
        log_sums, bad_row = emulated.windows(case, *inputs, schedule, 2)
        assert torch.equal(log_sums, first[0]) and bad_row == first[1]


@pytest.mark.parametrize("sanitizer", ["tsan", "asan"])
def test_sanitizers_are_silent(
    emulated: EmulatedParzen, start: Callable[..., Emulated], sanitizer: str
) -> None:
    watched = start(EmulatedParzen, sanitizer)
    for case in FEW_SAMPLES:
        inputs = case.inputs()
        ours, theirs = (e.windows(case, *inputs, "random_warps", 5) for e in (emulated, watched))
        # sanitizers may round otherwise: nothing is fused where nothing is optimised
        torch.testing.assert_close(theirs[0], ours[0], rtol=1e-5, atol=1e-4)
        assert ours[1] == theirs[1]
    watched.close()


def test_rules(emulated: EmulatedParzen) -> None:
    for numbers, words in (
        ({"rows": -1}, "negative"),
        ({"count": 0}, "samples and features"),
        ({"features": 0}, "samples and features"),
        ({"sigmas": 0}, "1 to 32 sigmas"),
        ({"sigmas": 33}, "1 to 32 sigmas"),
        ({"bad_row": False}, "'bad_row' or 'workspace' is null"),
        ({"inputs": False}, "an input is null"),
        ({}, "'data' or 'log_sums' is null"),
    ):
        with pytest.raises(Refused, match=words):
            emulated.rules(**numbers)
