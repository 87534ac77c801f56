"""The CUDA kernel that packs codes, run on the CPU: values, order, races, bounds. Nothing is rounded: all is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from emulator_harness import DTYPES, SCHEDULES, Emulated, Refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack_codes_emulated import EmulatedPackCodes, PackCase, packed
from torch import Tensor

BITS = [1, 2, 31, 32, 33, 63, 64, 65, 96, 100, 127, 128, 129, 200, 256, 1000, 1024]
CASES = [
    *(PackCase(37, bits) for bits in BITS),
    *(PackCase(rows, 128) for rows in (1, 2, 255, 256, 257, 700)),
    *(PackCase(rows, 104) for rows in (1, 129, 700)),
    PackCase(0, 128),
    PackCase(1, 1),
    PackCase(2, 70_000),  # rows that a block takes several turns for
    PackCase(3, 40_001),
    PackCase(50, 128, misaligned_elements=1),
    PackCase(50, 104, misaligned_elements=2),
]


@pytest.fixture(scope="module")
def emulated(start: Callable[..., Emulated]) -> EmulatedPackCodes:
    """The kernel without a sanitizer."""
    return start(EmulatedPackCodes)


def assert_right(case: PackCase, activations: Tensor, result: tuple[Tensor, int]) -> None:
    codes, first_nan = result
    assert torch.equal(codes, packed(case, activations))
    assert first_nan == -1


def with_dtype(case: PackCase, dtype: torch.dtype, threshold: float = 0.0) -> PackCase:
    return PackCase(case.rows, case.bits, dtype, threshold, case.misaligned_elements)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(emulated: EmulatedPackCodes, case: PackCase, dtype: torch.dtype) -> None:
    for threshold in (0.0, 0.25, -0.5, float("inf"), -float("inf")):
        case = with_dtype(case, dtype, threshold)
        activations = case.activations()
        assert_right(case, activations, emulated.pack(case, activations))


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(0, 300),
    bits=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    threshold=st.sampled_from([0.0, 0.25, -1.0, 3e4]),
    misaligned=st.integers(0, 3),
    schedule=st.sampled_from(list(SCHEDULES)),
    seed=st.integers(0, 2**16),
)
def test_values_of_any_shape(
    emulated: EmulatedPackCodes,
    rows: int,
    bits: int,
    dtype: torch.dtype,
    threshold: float,
    misaligned: int,
    schedule: str,
    seed: int,
) -> None:
    threshold = torch.tensor(threshold).to(dtype).item()
    case = PackCase(rows, bits, dtype, threshold, misaligned)
    activations = case.activations(seed)
    assert_right(case, activations, emulated.pack(case, activations, schedule, seed))


def test_numbers_near_zero_and_infinities(emulated: EmulatedPackCodes) -> None:
    inf = float("inf")
    for dtype, tiny in zip(DTYPES, (1e-45, 1e-40, 6e-8), strict=True):
        values = torch.tensor([[0.0, -0.0, tiny, -tiny, inf, -inf, 1, -1]]).to(dtype)
        codes, first_nan = emulated.pack(PackCase(1, 8, dtype), values)
        assert codes.item() == 0b01010100 and first_nan == -1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case", [PackCase(300, 128), PackCase(300, 100), PackCase(40, 33)], ids=str
)
def test_the_first_nan_is_found(
    emulated: EmulatedPackCodes, case: PackCase, dtype: torch.dtype
) -> None:
    """Also among others, in any order of threads; its bit is 0."""
    case = with_dtype(case, dtype)
    for place in ((0, 0), (0, 31), (case.rows - 1, case.bits - 1), (17, 32), (39, 5)):
        activations = case.activations()
        activations[place] = float("nan")
        first = place[0] * case.bits + place[1]
        activations.view(-1)[first + 1 :: 997] = float("nan")
        for schedule in SCHEDULES:
            codes, found = emulated.pack(case, activations, schedule, 3)
            assert found == first
            assert torch.equal(codes, packed(case, activations))


@pytest.mark.parametrize("bits", [128, 100, 33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_far_end_of_many_rows(
    emulated: EmulatedPackCodes, dtype: torch.dtype, bits: int
) -> None:
    """Places that no 32 bits hold: of rows, of activations and of bytes."""
    case = PackCase(2**33 + 3, bits, dtype)
    last = PackCase(3, bits, dtype)
    tail = last.activations()
    tail[1, bits - 1] = float("nan")
    codes, place = emulated.far_end(case, tail)
    assert torch.equal(codes, packed(last, tail))
    assert place == (case.rows - 2) * bits + bits - 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_under_every_schedule(emulated: EmulatedPackCodes, case: PackCase) -> None:
    activations = case.activations()
    first = emulated.pack(case, activations)
    for schedule in list(SCHEDULES)[1:]:
        codes, first_nan = emulated.pack(case, activations, schedule, 2)
        assert torch.equal(codes, first[0]) and first_nan == first[1]


@pytest.mark.parametrize("sanitizer", ["tsan", "asan"])
def test_sanitizers_are_silent(
    emulated: EmulatedPackCodes, start: Callable[..., Emulated], sanitizer: str
) -> None:
    watched = start(EmulatedPackCodes, sanitizer)
    for dtype in DTYPES:
        for case in CASES:
            case = with_dtype(case, dtype)
            activations = case.activations()
            activations[case.rows // 2 :, case.bits // 2] = float("nan")
            ours, theirs = (
                e.pack(case, activations, "random_warps", 5) for e in (emulated, watched)
            )
            assert torch.equal(ours[0], theirs[0]) and ours[1] == theirs[1]
    watched.close()


def test_rules(emulated: EmulatedPackCodes) -> None:
    for numbers, words in (
        ({"rows": -1}, "negative"),
        ({"bits": 0}, "at least one bit"),
        ({"bits": 2**31 + 1}, "at most 2\\^31 - 64 bits"),
        ({"threshold": float("nan")}, "'threshold' must be a number"),
        ({"first_nan": False}, "'first_nan' is null"),
        ({}, "'activations' or 'codes' is null"),
        ({"bits": 2**40}, "'activations' or 'codes' is null"),  # whole words: any length
    ):
        with pytest.raises(Refused, match=words):
            emulated.rules(**numbers)
