"""Pairs of codes within a few bits, against comparing all with all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcgan_fast import dedup
from dcgan_fast.dedup import reference


def brute_force(codes: Tensor, radius: int) -> list[tuple[int, int, int]]:
    rows = codes.tolist()
    found = []
    for i, a in enumerate(rows):
        for j in range(i + 1, len(rows)):
            apart = sum(
                ((x ^ y) & (2**64 - 1)).bit_count() for x, y in zip(a, rows[j], strict=True)
            )
            if apart <= radius:
                found.append((i, j, apart))
    return found


def assert_agrees(codes: Tensor, radius: int, expected=None) -> None:
    pairs, distances = dedup.near_duplicates(codes, radius)
    assert pairs.dtype == distances.dtype == torch.int64
    if expected is None:
        expected = reference.near_duplicates(codes, radius)
    assert torch.equal(pairs, expected[0]) and torch.equal(distances, expected[1])


def clustered(rows: int, words: int, centres: int, bits: int = 64, flips: int = 3) -> Tensor:
    """Codes that differ from one of some centres in up to ``flips`` of the first ``bits`` bits of each word."""
    codes = torch.randint(-(2**63), 2**63 - 1, (centres, words))[torch.randint(centres, (rows,))]
    for _ in range(flips):
        flip = torch.zeros(rows, words).long()
        column = torch.randint(words, (rows, 1))
        flip.scatter_(1, column, 1 << torch.randint(bits, (rows, 1)))
        codes = torch.where(torch.rand(rows, 1) < 0.6, codes ^ flip, codes)
    return codes


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 60),
    words=st.integers(1, 4),
    radius=st.integers(0, 3),
    centres=st.integers(1, 20),
    bits=st.integers(1, 64),
    seed=st.integers(0, 2**16),
)
def test_agrees_with_plain_python(rows, words, radius, centres, bits, seed):
    torch.manual_seed(seed)
    codes = clustered(rows, words, centres, bits)
    expected = brute_force(codes, radius)
    for module in (dedup, reference):
        pairs, distances = module.near_duplicates(codes, radius)
        assert [
            (i, j, d) for (i, j), d in zip(pairs.tolist(), distances.tolist(), strict=True)
        ] == expected


@pytest.mark.parametrize("radius", [0, 1, 2, 3])
@pytest.mark.parametrize("words", [1, 2, 3])
def test_agrees_with_comparing_all(words, radius):
    assert_agrees(clustered(4000, words, 800), radius)
    assert_agrees(torch.randint(-(2**63), 2**63 - 1, (3000, words)), radius)


@pytest.mark.parametrize("radius", [0, 1, 2, 3])
def test_few_bits_vary(radius):
    """Fewer than parts, fewer than rows can be told apart by, the last bits unused."""
    for span in (1, 2, 4, 2**10, 2**12):
        assert_agrees(torch.randint(span, (700, 1)) << 52, radius)
    assert_agrees(dedup.pack_codes(torch.randn(1500, 13)), radius)


def test_one_bucket_holds_more_rows_than_a_tile():
    """All agree in most bits: tiles, tasks and their edges."""
    codes = torch.arange(1, 1601)[:, None].expand(1600, 2) << torch.tensor([0, 30])
    for radius in (1, 3):
        assert_agrees(codes[torch.randperm(1600)], radius)


def test_does_not_depend_on_the_number_of_threads():
    codes, before = clustered(6000, 2, 500), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(dedup.near_duplicates(codes, 3))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_planted_pairs_are_found_among_many():
    codes = torch.randint(-(2**63), 2**63 - 1, (200_000, 2))
    near = codes[:500].clone()
    for k in range(3):  # three different bits of one word
        near[:, k % 2] ^= 1 << (torch.arange(500) % 20 + 20 * k)
    order = torch.randperm(200_500)
    pairs, distances = dedup.near_duplicates(torch.cat([codes, near])[order], 3)
    place = order.argsort()
    planted = torch.stack([place[:500], place[200_000:]], 1).sort(1).values
    assert torch.equal(pairs, planted[planted[:, 0].argsort()]) and (distances == 3).all()


def test_strided_codes():
    codes = torch.randint(4, (3, 500)).t()
    assert_agrees(codes[::2, 1:], 2)


def test_opcheck_and_compile():
    codes = clustered(300, 2, 30)
    torch.library.opcheck(torch.ops.dcgan_fast.near_duplicates.default, (codes, 2))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def doubled(codes):
        pairs, distances = dedup.near_duplicates(codes, 3)
        return pairs * 2, distances

    pairs, distances = dedup.near_duplicates(codes, 3)
    for ours, plain in zip(doubled(codes), (pairs * 2, distances), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("module", [dedup, reference])
def test_wrong_arguments_are_named(module):
    codes = torch.zeros(3, 2, dtype=torch.int64)
    for radius in (-1, 4):
        with pytest.raises(
            ValueError, match=rf"near_duplicates\(\): 'radius' must be 0, 1, 2 or 3, got {radius}"
        ):
            module.near_duplicates(codes, radius)
    with pytest.raises(TypeError, match=r"near_duplicates\(\): 'codes' must be int64"):
        module.near_duplicates(codes.float(), 1)
    with pytest.raises(ValueError, match=r"near_duplicates\(\): 'codes' must be \(N, words\)"):
        module.near_duplicates(codes[0], 1)


def test_too_many_pairs_are_refused():
    with pytest.raises(ValueError, match="more than 1000000000 pairs: leave out equal codes first"):
        dedup.near_duplicates(torch.zeros(45_000, 2, dtype=torch.int64), 1)
