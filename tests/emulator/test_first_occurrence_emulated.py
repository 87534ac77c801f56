"""The CUDA kernels that find first occurrences, run on the CPU: values, order, races, bounds.

The reference is a dictionary. All is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from emulator_harness import SCHEDULES, Emulated, Refused, Tensors
from first_occurrence_emulated import (
    EmulatedFirstOccurrence,
    code_of_hash,
    colliding_codes,
    first_occurrences,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

ROWS = [0, 1, 2, 31, 32, 33, 255, 256, 257, 4095, 4096, 4097, 20_000]
WORDS = [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def emulated(start: Callable[..., Emulated]) -> EmulatedFirstOccurrence:
    """The kernels without a sanitizer."""
    return start(EmulatedFirstOccurrence)


def random_codes(rows: int, words: int, kinds: int, seed: int = 0) -> Tensor:
    """Codes that differ in all their bits, of about so many kinds."""
    random = torch.Generator().manual_seed(seed)
    of_each = torch.randint(-(2**63), 2**63 - 1, (max(kinds, 1), words), generator=random)
    return of_each[torch.randint(max(kinds, 1), (rows,), generator=random)]


def half_are_one(rows: int, words: int) -> Tensor:
    codes = random_codes(rows, words, rows)
    codes[torch.rand(rows, generator=torch.Generator().manual_seed(1)) < 0.5] = 7
    return codes


def rows_of(rows: int, words: int, numbers: Tensor) -> Tensor:
    return numbers[:rows, None].expand(rows, words).contiguous()


AWKWARD: dict[str, Callable[[int, int], Tensor]] = {
    "all equal": lambda n, w: torch.full((n, w), -1),
    "all zero": lambda n, w: torch.zeros(n, w, dtype=torch.int64),
    "all distinct": lambda n, w: rows_of(n, w, torch.arange(n)),
    "descending": lambda n, w: rows_of(n, w, torch.arange(n, 0, -1) // 3),
    "half are one": half_are_one,
    "runs": lambda n, w: rows_of(n, w, torch.arange(n) // 100),
    "first word agrees": lambda n, w: torch.cat(
        [torch.zeros(n, 1).long(), random_codes(n, w, n // 2)[:, 1:]], 1
    ),
    "last word alone": lambda n, w: torch.cat(
        [torch.zeros(n, w - 1).long(), random_codes(n, 1, n // 2)], 1
    ),
    "last row repeats the first": lambda n, w: rows_of(n, w, torch.arange(n) % (n - 1)),
}


def assert_right(expected: Tensors, result: Tensors) -> None:
    for name, values in result.items():
        assert torch.equal(values, expected[name]), name


def assert_agrees(emulated: EmulatedFirstOccurrence, codes: Tensor, *schedule, **options) -> None:
    expected = first_occurrences(codes)
    for groups in (True, False):
        assert_right(expected, emulated.find(codes, *schedule, groups=groups, **options))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("words", WORDS)
def test_values(emulated: EmulatedFirstOccurrence, words: int, rows: int) -> None:
    for kinds in (1, 5, rows // 10, rows, 10 * rows):
        assert_agrees(emulated, random_codes(rows, words, kinds))


@pytest.mark.parametrize("data", AWKWARD)
@pytest.mark.parametrize("words", WORDS)
def test_awkward_data(emulated: EmulatedFirstOccurrence, words: int, data: str) -> None:
    codes = AWKWARD[data](5000, words)
    assert_agrees(emulated, codes)
    assert_agrees(emulated, codes, "random_threads", 3)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(0, 1500),
    words=st.sampled_from(WORDS),
    values=st.integers(1, 50),
    low=st.integers(0, 62),
    misaligned=st.booleans(),
    schedule=st.sampled_from(list(SCHEDULES)),
    seed=st.integers(0, 2**16),
    hash_seed=st.tuples(st.integers(0, 2**50), st.integers(0, 2**50)),
)
def test_any_codes(
    emulated: EmulatedFirstOccurrence,
    rows: int,
    words: int,
    values: int,
    low: int,
    misaligned: bool,
    schedule: str,
    seed: int,
    hash_seed: tuple[int, int],
) -> None:
    """Few values in few bits, so that words agree in part."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(values, (rows, words), generator=random) << low
    assert_agrees(emulated, codes, schedule, seed, misaligned=misaligned, hash_seed=hash_seed)


def many_codes() -> tuple[Tensor, Tensors]:
    """More rows than one pass of the scan, every fifth of which repeats an earlier one; and what they give."""
    rows = torch.arange((1 << 20) + 5000)
    repeats = rows % 5 == 4
    codes = torch.where(repeats, rows // 2 - rows // 2 % 5, rows)
    number = (~repeats).cumsum(0) - 1
    group = number[codes]
    return codes[:, None].contiguous(), {
        "keep": ~repeats,
        "group": group,
        "counts": group.bincount(),
    }


def test_more_rows_than_a_pass_of_the_scan(emulated: EmulatedFirstOccurrence) -> None:
    codes, expected = many_codes()
    assert_right(expected, emulated.find(codes, "random_warps", 2))


def test_hashes_can_be_undone() -> None:
    def mix(x: int) -> int:
        mask = (1 << 64) - 1
        x ^= x >> 32
        x = x * 0xFF51AFD7ED558CCD & mask
        x ^= x >> 29
        x = x * 0xC4CEB9FE1A85EC53 & mask
        return x ^ x >> 32

    for value in (0, 1, 0x123456789ABCDEF, (1 << 64) - 1):
        assert mix(code_of_hash(value) & (1 << 64) - 1) == value


@pytest.mark.parametrize("same_tag", [False, True])
@pytest.mark.parametrize("slot", [0.0, 0.4, 0.9999])
def test_colliding_codes(emulated: EmulatedFirstOccurrence, slot: float, same_tag: bool) -> None:
    """All searches begin at one slot, near the end of the table too; whole codes tell them apart."""
    for kinds, copies in ((2, 1), (200, 1), (150, 5)):
        codes = colliding_codes(kinds, copies, slot, same_tag)
        for schedule in SCHEDULES:
            assert_agrees(emulated, codes, schedule, 4)


@pytest.mark.parametrize("words", WORDS)
def test_same_bits_under_every_schedule(emulated: EmulatedFirstOccurrence, words: int) -> None:
    for codes in (random_codes(3000, words, 300), half_are_one(3000, words)):
        for schedule in list(SCHEDULES)[1:]:
            for seed in range(4):
                assert_agrees(emulated, codes, schedule, seed)


@pytest.mark.parametrize("sanitizer", ["tsan", "asan"])
def test_sanitizers_are_silent(
    emulated: EmulatedFirstOccurrence, start: Callable[..., Emulated], sanitizer: str
) -> None:
    watched = start(EmulatedFirstOccurrence, sanitizer)
    for words in (1, 2, 3):
        for rows in (1, 33, 4097, 5000):
            assert_agrees(watched, random_codes(rows, words, rows // 3), "random_warps", 5)
        assert_agrees(watched, half_are_one(2000, words), "random_threads", 5)
        assert_agrees(watched, half_are_one(100, words), "random_threads", 5, misaligned=True)
    assert_agrees(watched, colliding_codes(100, 3, 0.9999, True), "random_threads", 5)
    watched.close()


def test_rules(emulated: EmulatedFirstOccurrence) -> None:
    for numbers, words in (
        ({"rows": -1}, "negative"),
        ({"rows": 2**31}, "at most 2\\^31 - 1 rows"),
        ({"words": 0}, "at least one word"),
        ({"groups": True}, "'links' and 'groups' must be given together"),
        ({}, "'codes', 'keep' or 'table' is null"),
    ):
        with pytest.raises(Refused, match=words):
            emulated.rules(**numbers)
