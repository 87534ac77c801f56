"""Packing and first occurrences against plain PyTorch and NumPy, and their manners as PyTorch ops."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcgan_fast import dedup
from dcgan_fast.dedup import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
WORDS = [1, 2, 3, 4, 5, 9]  # a path of its own each, but for the last two
ROWS = [0, 1, 2, 255, 256, 257, 8191, 8192, 20_000, 70_001]


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random_codes(rows: int, words: int, kinds: int) -> Tensor:
    """Codes that differ in all their bits, of about so many kinds."""
    of_each = torch.randint(-(2**63), 2**63 - 1, (max(kinds, 1), words))
    return of_each[torch.randint(max(kinds, 1), (rows,))]


def by_dictionary(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What first_occurrence() returns, the plain way."""
    groups: dict[tuple[int, ...], int] = {}
    keep, group = [], []
    for row in map(tuple, codes.tolist()):
        keep.append(row not in groups)
        group.append(groups.setdefault(row, len(groups)))
    of_rows = torch.tensor(group, dtype=torch.int64)
    return torch.tensor(keep, dtype=torch.bool), of_rows, of_rows.bincount()


def assert_agrees(codes: Tensor, module=dedup) -> None:
    expected = by_dictionary(codes)
    for mine, other in zip(module.first_occurrence(codes), expected, strict=True):
        assert mine.dtype == other.dtype and torch.equal(mine, other)
    assert torch.equal(module.first_of_each(codes), expected[0])


# ---------------------------------------------------------------- pack_codes


@pytest.mark.parametrize("bits", [1, 2, 31, 63, 64, 65, 100, 127, 128, 129, 200, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_agrees(dtype, bits):
    x = torch.randn(37, bits).to(dtype)
    for threshold in (0.0, 0.1, -0.3, float("inf"), -float("inf")):
        assert torch.equal(dedup.pack_codes(x, threshold), reference.pack_codes(x, threshold))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bit_j_is_activation_j(dtype):
    for j in (0, 1, 62, 63, 64, 99):
        x = torch.zeros(2, 100, dtype=dtype)
        x[1, j] = 1
        expected = [[0, 0], [0, 0]]
        expected[1][j // 64] = 1 << j % 64 if j % 64 < 63 else -(2**63)
        assert dedup.pack_codes(x).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(0, 40),
    bits=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    threshold=st.sampled_from([0.0, -0.0, 0.5, 1 / 3, -2.0]),
    seed=st.integers(0, 2**16),
)
def test_pack_agrees_with_numpy(rows, bits, dtype, threshold, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, bits, generator=generator) * 4).round().div(2).to(dtype)  # many ties
    bytes_of_codes = np.packbits((x > threshold).numpy(), axis=1, bitorder="little")
    words = (bits + 63) // 64
    padded = np.zeros((rows, 8 * words), np.uint8)
    padded[:, : bytes_of_codes.shape[1]] = bytes_of_codes
    expected = torch.from_numpy(padded.view(np.int64).reshape(rows, words))
    assert torch.equal(dedup.pack_codes(x, threshold), expected)


def test_the_threshold_itself_is_not_above_it():
    tiny = torch.tensor([[0.0, -0.0, 1e-45, -1e-45, float("inf"), -float("inf")]])
    assert dedup.pack_codes(tiny).item() == 0b010100
    third = torch.tensor([[1 / 3]])  # which is not 1/3 in float64
    assert dedup.pack_codes(third, 1 / 3).item() == 0
    assert dedup.pack_codes(third.bfloat16(), 1 / 3).item() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [(0, 0), (6, 63), (999, 64), (500, 99)])
def test_nan_is_named(dtype, place):
    x = torch.randn(1000, 100).to(dtype)
    x[place] = float("nan")
    for module in (dedup, reference):
        with pytest.raises(
            ValueError,
            match=rf"pack_codes\(\): 'activations' must not hold NaN, got one in row {place[0]}, column {place[1]}",
        ):
            module.pack_codes(x)


def test_pack_takes_strided_input():
    x = torch.randn(30, 12, 2)
    for view in (x[:, :, 1], x[:, :, 0].t(), x[::3, 2:9, 0], x[:1, :, 0].expand(5, 12)):
        assert torch.equal(dedup.pack_codes(view), reference.pack_codes(view.contiguous()))


# ---------------------------------------------------------------- pixel_codes


def random_layer(rows: int, features: int, bits: int, dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (rows, features), dtype=torch.uint8, generator=generator)
    weight = (torch.randn(bits, features, generator=generator) / 255).to(dtype)
    return pixels, weight, torch.randn(bits, generator=generator)


def unpacked(codes: Tensor, bits: int) -> Tensor:
    return (codes.unsqueeze(2) >> torch.arange(64) & 1).flatten(1)[:, :bits].bool()


def assert_codes_of(codes: Tensor, pixels, weight, bias, threshold: float) -> None:
    """The float64 activations' signs, but for those as near to the threshold as twice PyTorch's float32 error and a
    unit in the last place of the largest; no bits beyond."""
    bits, features = weight.shape
    assert codes.dtype == torch.int64 and codes.shape == (len(pixels), (bits + 63) // 64)
    units = pixels.double() @ weight.double().t() + bias.double()
    theirs = torch.nn.functional.linear(pixels.float(), weight.float(), bias)
    error, largest = ((x.abs().max() if x.numel() else 0) for x in (theirs - units, units))
    close = (units - threshold).abs() <= 2 * error + 2**-23 * largest
    assert (unpacked(codes, bits) == (units > threshold))[~close].all()
    assert close.double().mean() < 0.02 or close.numel() < 500
    assert torch.equal(dedup.pack_codes(unpacked(codes, bits).float(), 0.5), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "rows, features, bits",
    [(0, 5, 3), (1, 1, 1), (2, 31, 63), (33, 32, 64), (253, 33, 65), (77, 769, 128), (300, 3072, 128),
     (31, 100, 1000)],
)  # fmt: skip
@pytest.mark.parametrize("threads", [1, 2])
def test_pixel_codes_are_signs_of_a_linear_layer(dtype, rows, features, bits, threads, set_threads):
    set_threads(threads)
    pixels, weight, bias = random_layer(rows, features, bits, dtype)
    for threshold in (0.0, 0.3, float("inf"), -float("inf")):
        codes = dedup.pixel_codes(pixels, weight, bias, threshold)
        assert_codes_of(codes, pixels, weight, bias, threshold)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 300),
    features=st.integers(1, 900),
    bits=st.integers(1, 200),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_pixel_codes_of_any_shape(rows, features, bits, dtype, seed):
    pixels, weight, bias = random_layer(rows, features, bits, dtype, seed)
    assert_codes_of(dedup.pixel_codes(pixels, weight, bias), pixels, weight, bias, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixel_codes_do_not_depend_on_the_batch(dtype, set_threads):
    pixels, weight, bias = random_layer(517, 400, 100, dtype)
    whole = dedup.pixel_codes(pixels, weight, bias)
    for begin, end in ((0, 1), (516, 517), (3, 40), (100, 353), (1, 517)):
        part = dedup.pixel_codes(pixels[begin:end], weight, bias)
        assert torch.equal(part, whole[begin:end])
    for threads in (1, 2, 3):
        set_threads(threads)
        assert torch.equal(dedup.pixel_codes(pixels, weight, bias), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_byte_counts_as_itself(dtype):
    pixels = torch.arange(256, dtype=torch.uint8).unsqueeze(1)
    thresholds = torch.arange(256) + 0.5
    codes = dedup.pixel_codes(pixels, torch.ones(256, 1, dtype=dtype), -thresholds)
    assert torch.equal(unpacked(codes, 256), torch.arange(256).unsqueeze(1) > thresholds)


def test_pixel_codes_take_strided_input():
    pixels, weight, bias = random_layer(60, 80, 33, torch.float32)
    expected = dedup.pixel_codes(
        pixels[::2, 10:50].contiguous(), weight[:, 10:50].contiguous(), bias
    )
    wide = torch.stack([bias, bias], 1)
    got = dedup.pixel_codes(pixels[::2, 10:50], weight.t().contiguous().t()[:, 10:50], wide[:, 1])
    assert torch.equal(got, expected)


@pytest.mark.parametrize("module", [dedup, reference])
@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"pixels": torch.zeros(3, 4)}, TypeError, "'pixels' must be uint8, got"),
        ({"weight": torch.zeros(5, 4).half()}, TypeError, "'weight' must be float32 or bfloat16, got"),
        ({"bias": torch.zeros(5).double()}, TypeError, "'bias' must be float32, got"),
        ({"pixels": torch.zeros(4, dtype=torch.uint8)}, ValueError, r"'pixels' must be \(N, features\)"),
        ({"pixels": torch.zeros(3, 0, dtype=torch.uint8)}, ValueError, "at least one feature, got"),
        ({"weight": torch.zeros(5, 3)}, ValueError, r"'weight' must be \(bits, features\) .* 4 features, got"),
        ({"weight": torch.zeros(0, 4)}, ValueError, "at least one bit"),
        ({"bias": torch.zeros(6)}, ValueError, r"'bias' must be \(bits,\) with 5 bits, got"),
        ({"weight": torch.full((5, 4), float("nan"))}, ValueError, "'weight' and 'bias' must be finite"),
        ({"bias": torch.full((5,), float("inf"))}, ValueError, "'weight' and 'bias' must be finite"),
        ({"threshold": float("nan")}, ValueError, "'threshold' must be a number, got nan"),
    ],
)  # fmt: skip
def test_wrong_layers_are_named(module, change, error, words):
    arguments = {
        "pixels": torch.zeros(3, 4, dtype=torch.uint8),
        "weight": torch.zeros(5, 4),
        "bias": torch.zeros(5),
        **change,
    }
    with pytest.raises(error, match=rf"pixel_codes\(\): .*{words}"):
        module.pixel_codes(**arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixel_codes_of_pytorchs_own_product(dtype, monkeypatch):
    """As on other devices; with numbers whose sums are exact in bfloat16, so that no bit may differ."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 4, (50, 20), dtype=torch.uint8, generator=generator)
    weight = torch.randint(-2, 3, (70, 20), generator=generator).to(dtype)
    bias = torch.randint(-3, 4, (70,), generator=generator).float() + 0.5
    expected = dedup.pixel_codes(pixels, weight, bias)
    assert 0.2 < unpacked(expected, 70).double().mean() < 0.8
    monkeypatch.setattr(dedup.codes, "served", lambda *_, **__: False)
    monkeypatch.setattr(dedup.codes, "_ops", None)
    assert torch.equal(dedup.pixel_codes(pixels, weight, bias), expected)


# ---------------------------------------------------------------- first_occurrence


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("words", WORDS)
def test_first_occurrence_agrees(words, rows):
    for kinds in (1, 5, rows // 10, rows, 10 * rows):
        assert_agrees(random_codes(rows, words, kinds))


@pytest.mark.parametrize("rows", [0, 1, 2, 3000])
@pytest.mark.parametrize("words", [1, 3])
def test_the_reference_agrees(words, rows):
    for kinds in (1, rows // 10, 10 * rows):
        assert_agrees(random_codes(rows, words, kinds), reference)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 3000),
    words=st.sampled_from(WORDS),
    values=st.integers(1, 50),
    low=st.integers(0, 62),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_first_occurrence_agrees_on_any_codes(rows, words, values, low, threads, seed):
    """Few values in few bits, so that words agree in part."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(values, (rows, words), generator=generator) << low
    with_threads(threads, lambda: assert_agrees(codes))


def half_are_one(rows: int, words: int) -> Tensor:
    codes = random_codes(rows, words, rows)
    codes[torch.rand(rows) < 0.5] = 7
    return codes


SHAPES_OF_DATA: dict[str, Callable[[int, int], Tensor]] = {
    "all equal": lambda n, w: torch.full((n, w), -1),
    "all zero": lambda n, w: torch.zeros(n, w, dtype=torch.int64),
    "sorted": lambda n, w: torch.arange(n)[:, None].expand(n, w) * 9 // 10,
    "descending": lambda n, w: torch.arange(n, 0, -1)[:, None].expand(n, w) // 3,
    "low bits agree": lambda n, w: random_codes(n, w, n) & -(2**50),
    "high bits agree": lambda n, w: random_codes(n, w, n) & (2**17 - 1),
    "first word agrees": lambda n, w: torch.cat([torch.zeros(n, 1).long(), random_codes(n, w, n)[:, 1:]], 1),
    "last word alone": lambda n, w: torch.cat([torch.zeros(n, w - 1).long(), random_codes(n, 1, n // 2)], 1),
    "half are one": half_are_one,
    "runs": lambda n, w: torch.arange(n)[:, None].expand(n, w) // 100,
    "few bits": lambda n, w: (torch.rand(n, w, 64) < 0.03).long().mul(1 << torch.arange(64)).sum(2),
    "last row repeats the first": lambda n, w: torch.arange(n).remainder(n - 1)[:, None].expand(n, w),
}  # fmt: skip


@pytest.mark.parametrize("data", SHAPES_OF_DATA)
@pytest.mark.parametrize("words", [1, 2, 4, 6])
def test_first_occurrence_agrees_on_awkward_data(words, data):
    assert_agrees(SHAPES_OF_DATA[data](40_000, words))


def with_threads(threads: int, run: Callable[[], object]) -> object:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        return run()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("data", ["half are one", "few bits", "runs"])
def test_first_occurrence_does_not_depend_on_the_number_of_threads(data):
    codes = SHAPES_OF_DATA[data](100_000, 2)
    results = [with_threads(n, lambda: dedup.first_occurrence(codes)) for n in (1, 2, 3, 7)]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_groups_number_the_kept_rows():
    codes = random_codes(50_000, 2, 9000)
    keep, group, counts = dedup.first_occurrence(codes)
    assert torch.equal(codes[keep][group], codes)
    assert torch.equal(group[keep], torch.arange(len(counts)))
    assert torch.equal(counts, group.bincount())


def test_a_partition_may_outgrow_its_table():
    """The first partition expects as many kinds as it has rows; later ones as many as those before had."""
    few = torch.zeros(40_000, 2, dtype=torch.int64)
    many = random_codes(40_000, 2, 400_000)
    assert_agrees(torch.cat([few, many, few]))
    assert_agrees(torch.cat([many, few, many]))


def test_words_that_undo_one_another():
    """Keys of words that are a known distance apart give these one hash under every seed, and this takes minutes."""
    t = torch.arange(500_000)
    of_carry = [(0x9E3779B9 + carry << 32) - (1 << 64) | t for carry in (0, 1)]
    codes = torch.cat([torch.stack([0 * t, word, 500_000 - t], 1) for word in of_carry])
    assert dedup.first_of_each(codes).all()
    assert dedup.DedupIndex(words=3).add(codes[:300_000]).all()


def test_first_occurrence_takes_strided_input():
    codes = torch.randint(3, (4, 5000)).t()
    for view in (codes, codes[::2], codes[:, 1:3], codes[:, :1].expand(5000, 2)):
        assert_agrees(view)


def test_results_are_ordinary_tensors():
    """Their memory comes from a pool; it must still be one's own to change and to keep."""
    codes = random_codes(100_000, 2, 1000)
    kept = [t.clone() for t in dedup.first_occurrence(codes)]
    first = dedup.first_occurrence(codes)
    dedup.first_occurrence(codes)[1].zero_()
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    first[1].add_(1).resize_(3)


# ---------------------------------------------------------------- citizens of PyTorch


def test_opcheck():
    ops, codes = torch.ops.dcgan_fast, random_codes(300, 2, 100)
    torch.library.opcheck(ops.pack_codes.default, (torch.randn(5, 70), 0.5))
    torch.library.opcheck(ops.pack_codes.default, (torch.randn(5, 70).half(), 0.5))
    torch.library.opcheck(ops.pixel_codes.default, random_layer(5, 9, 70, torch.float32))
    torch.library.opcheck(ops.pixel_codes.default, random_layer(5, 9, 70, torch.bfloat16))
    torch.library.opcheck(ops.first_occurrence.default, (codes,))
    torch.library.opcheck(ops.first_of_each.default, (codes,))


def test_compiled_as_one_graph():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def hashed(x):
        codes = dedup.pack_codes(x, 0.25)
        keep, group, counts = dedup.first_occurrence(codes)
        return codes, keep, group, counts * 2, dedup.first_of_each(codes)

    for rows in (20, 30):
        x = torch.randn(rows, 3)
        codes = dedup.pack_codes(x, 0.25)
        keep, group, counts = dedup.first_occurrence(codes)
        for ours, plain in zip(hashed(x), (codes, keep, group, counts * 2, keep), strict=True):
            assert torch.equal(ours, plain)


def test_other_devices_run_the_reference():
    with pytest.raises(NotImplementedError):  # so it got to aten, which has no unique on meta
        dedup.first_occurrence(torch.zeros(3, 2, dtype=torch.int64, device="meta"))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("module", [dedup, reference])
@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((torch.zeros(3, 4, dtype=torch.int32),), TypeError, "'activations' must be float32"),
        ((torch.zeros(3, 4, dtype=torch.bool),), TypeError, "'activations' must be float32"),
        ((torch.zeros(3),), ValueError, r"'activations' must be \(N, bits\) with at least one bit, got"),
        ((torch.zeros(3, 0),), ValueError, "with at least one bit, got"),
        ((torch.zeros(3, 4, 5),), ValueError, r"'activations' must be \(N, bits\)"),
        ((torch.zeros(3, 4), float("nan")), ValueError, "'threshold' must be a number, got nan"),
    ],
)  # fmt: skip
def test_wrong_activations_are_named(module, arguments, error, words):
    with pytest.raises(error, match=rf"pack_codes\(\): .*{words}"):
        module.pack_codes(*arguments)


@pytest.mark.parametrize("module", [dedup, reference])
@pytest.mark.parametrize("op", ["first_occurrence", "first_of_each"])
@pytest.mark.parametrize(
    "codes, error, words",
    [
        (torch.zeros(3, 2), TypeError, "'codes' must be int64, got"),
        (torch.zeros(3, 2, dtype=torch.int32), TypeError, "'codes' must be int64, got"),
        (torch.zeros(3, dtype=torch.int64), ValueError, r"'codes' must be \(N, words\)"),
        (torch.zeros(3, 0, dtype=torch.int64), ValueError, "with at least one word, got"),
    ],
)
def test_wrong_codes_are_named(module, op, codes, error, words):
    with pytest.raises(error, match=rf"{op}\(\): .*{words}"):
        getattr(module, op)(codes)


def test_sparse_tensors_are_refused():
    with pytest.raises((TypeError, NotImplementedError)):
        dedup.first_occurrence(torch.zeros(3, 2, dtype=torch.int64).to_sparse())


# ---------------------------------------------------------------- other machines


@pytest.mark.parametrize("capability", ["default", pytest.param("avx2", marks=pytest.mark.slow)])
def test_the_kernels_of_other_machines_agree(capability):
    names = "agrees or named or activation_j or threads or strided"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", names],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),  # not the source folder, whose package has no compiled half
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]
