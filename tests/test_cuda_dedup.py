"""The dedup ops on CUDA tensors: on a GPU, and in a build for the emulator on CPU tensors that stand in for them.

test_dedup_codes.py holds the same kernels to all that the CPU's must keep to, in the build for the emulator
(`.ci/gpu --emulated`); here is what devices have of their own. What both compute is exact, so they agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dcgan_fast import _C, build_info, dedup
from dcgan_fast.dedup import reference

EMULATED = _C.cuda_architectures == "emulated"
DEVICE = "cpu" if EMULATED else "cuda"
pytestmark = pytest.mark.skipif(
    not (EMULATED or (_C.cuda_architectures and torch.cuda.is_available())), reason="needs a GPU"
)
on_a_gpu = pytest.mark.skipif(EMULATED, reason="the emulator has none of this")
MANY = 40_000 if EMULATED else 4_000_000  # rows: the emulator takes a second for some 100,000


def random_codes(rows: int, words: int, kinds: int) -> Tensor:
    """Codes that differ in all their bits, of about so many kinds."""
    of_each = torch.randint(-(2**63), 2**63 - 1, (max(kinds, 1), words), device=DEVICE)
    return of_each[torch.randint(max(kinds, 1), (rows,), device=DEVICE)]


def half_are_one(rows: int) -> Tensor:
    codes = random_codes(rows, 2, rows)
    codes[torch.rand(rows, device=DEVICE) < 0.5] = 7
    return codes


def assert_agrees(codes: Tensor) -> None:
    expected = reference.first_occurrence(codes.cpu())
    found = dedup.first_occurrence(codes)
    for ours, plain in zip(found, expected, strict=True):
        assert ours.device == codes.device and torch.equal(ours.cpu(), plain)
    assert torch.equal(dedup.first_of_each(codes), found[0])


def test_the_kernels_serve() -> None:
    assert {build_info()["ops"][op]["cuda"] for op in dedup.CUDA_OPS} == {"dcgan_fast"}
    assert torch._C._dispatch_has_kernel_for_dispatch_key("dcgan_fast::first_occurrence", "CUDA")


@pytest.mark.parametrize("words", [1, 2, 3, 5])
def test_first_occurrence_of_many_rows(words: int) -> None:
    for kinds in (1, MANY // 10, 10 * MANY):
        assert_agrees(random_codes(MANY, words, kinds))


@pytest.mark.parametrize(
    "codes",
    [
        half_are_one,
        lambda n: torch.full((n, 2), -1, device=DEVICE),
        lambda n: torch.arange(n, 0, -1, device=DEVICE)[:, None].expand(n, 2) // 3,
        lambda n: torch.randint(3, (2, n), device=DEVICE).t(),
        lambda n: random_codes(n + 1, 1, n // 3).view(-1)[1 : n + 1 - n % 2].view(-1, 2),
    ],
    ids=["half are one", "all equal", "descending", "strided", "not aligned"],
)
def test_first_occurrence_of_awkward_rows(codes: Callable[[int], Tensor]) -> None:
    assert_agrees(codes(MANY))


def test_runs_agree_bit_for_bit() -> None:
    codes = half_are_one(MANY)
    first = dedup.first_occurrence(codes)
    for _ in range(3):
        assert all(map(torch.equal, first, dedup.first_occurrence(codes)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bits", [1, 64, 100, 128, 333])
def test_pack_codes(bits: int, dtype: torch.dtype) -> None:
    x = torch.randn(MANY // 100, bits, device=DEVICE).to(dtype)
    for view in (x, x[1:], x[:, : bits // 2 + 1], x.flatten()[1 : 1 - bits].view(-1, bits)):
        for threshold in (0.0, 1 / 3):
            expected = reference.pack_codes(view.cpu(), threshold)
            assert torch.equal(dedup.pack_codes(view, threshold).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_first_nan_is_named(dtype: torch.dtype) -> None:
    x = torch.randn(500, 100, device=DEVICE).to(dtype)
    x[321, 45:] = float("nan")
    x[322] = float("nan")
    with pytest.raises(
        ValueError, match=r"'activations' must not hold NaN, got one in row 321, column 45$"
    ):
        dedup.pack_codes(x)


@pytest.mark.parametrize("op", ["first_occurrence", "first_of_each"])
def test_too_many_rows_are_refused(op: str) -> None:
    codes = torch.zeros(1, 1, dtype=torch.int64, device=DEVICE).expand(2**31, 1)
    with pytest.raises(
        ValueError,
        match=rf"{op}\(\): 'codes' must have at most 2147483647 rows on CUDA, got 2147483648",
    ):
        getattr(dedup, op)(codes)


@on_a_gpu
def test_the_current_stream_and_graphs() -> None:
    """pack_codes and first_of_each can be captured; NaNs pass then. first_occurrence says that it cannot."""
    x = torch.randn(50_000, 20, device=DEVICE)
    expected = [dedup.pack_codes(x), dedup.first_of_each(dedup.pack_codes(x))]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        on_side = [dedup.pack_codes(x), dedup.first_of_each(dedup.pack_codes(x))]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes = dedup.pack_codes(x)
        captured = [codes, dedup.first_of_each(codes)]
        with pytest.raises(RuntimeError, match=r"first_occurrence\(\): cannot be captured"):
            dedup.first_occurrence(codes)
    for _ in range(2):
        graph.replay()
        for results in (on_side, captured):
            assert all(map(torch.equal, expected, results))
    x[3, 7] = float("nan")
    graph.replay()
    assert torch.equal(captured[0], dedup.pack_codes(x.nan_to_num(-1)))


@on_a_gpu
def test_first_of_each_does_not_wait() -> None:
    codes = random_codes(1000, 2, 100)
    torch.cuda.set_sync_debug_mode("error")
    try:
        dedup.first_of_each(codes)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
def test_memory_is_what_is_said() -> None:
    """20 bytes a row beside codes and results."""
    rows = 1 << 22
    codes = random_codes(rows, 2, rows)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    dedup.first_occurrence(codes)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= (1 + 16 + 4.1) * rows + (1 << 22)
