"""The dedup ops: first occurrences of 128-bit codes, and packing of activations.

Rates are codes a second. Ours keeps memory between calls ("warm"); "cold" gives it back to the system before each
round. The others' memory is left to them and their allocators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from dedup_contenders import KINDS, full_answer, keep_alone, ours, with_duplicates
from race import OURS
from torch import Tensor

from dcgan_fast import backends, dedup
from dcgan_fast.bench import Row

ROWS, SMALL_ROWS = (1_000_000, 10_000_000, 30_000_000), (20_000,)
DUPLICATES = (0.1, 0.9)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BITS = 128
# Others have threads of their own, and everybody's spin for some time after their work.
SETTLE = 0.003


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    small = metafunc.config.getoption("--small")
    if "rows" in metafunc.fixturenames:
        rows = SMALL_ROWS if small else ROWS
        metafunc.parametrize("rows", rows, ids=[f"{n}-rows" for n in rows])


@pytest.mark.parametrize("memory", ["warm", "cold"])
@pytest.mark.parametrize("part", DUPLICATES, ids=["dup10", "dup90"])
def test_first_occurrence(rows: int, part: float, memory: str, compare) -> None:
    torch.manual_seed(0)
    contenders, skipped = full_answer(with_duplicates(rows, part))
    compare(
        contenders,
        Row(
            table="dedup",
            case=_case(rows, f"{part:.0%} duplicates", memory, answer="keep, group, counts"),
            dtype="int64",
            seconds={},
            skipped=skipped,
            gflop=0.0,
            gigabytes=_bytes(rows, round(rows * (1 - part))) / 1e9,
            images=rows,
        ),
        agree=_check_agreement,
        between=backends.cpu.release_memory if memory == "cold" else lambda: None,
        settle=SETTLE if memory == "warm" else 0.0,  # settling takes calls that are not timed
        least=3,
    )


@pytest.mark.parametrize("part", DUPLICATES, ids=["dup10", "dup90"])
def test_first_of_each(rows: int, part: float, compare) -> None:
    torch.manual_seed(0)
    contenders, skipped = keep_alone(with_duplicates(rows, part))
    compare(
        contenders,
        Row(
            table="dedup",
            case=_case(rows, f"{part:.0%} duplicates", "warm", answer="keep"),
            dtype="int64",
            seconds={},
            skipped=skipped,
            gflop=0.0,
            gigabytes=_bytes_of_keep(rows) / 1e9,
            images=rows,
        ),
        agree=_check_agreement,
        settle=SETTLE,
        least=3,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_awkward_data(kind: str, small: bool, compare) -> None:
    """Ours alone, beside the same number of codes at random of which one in ten was there before."""
    torch.manual_seed(0)
    rows = SMALL_ROWS[0] if small else 10_000_000
    codes = KINDS[kind](rows)
    contenders = {OURS: ours(codes), "random": ours(with_duplicates(rows, 0.1))}
    groups = int(dedup.first_of_each(codes).sum())
    compare(
        contenders,
        Row(
            table="dedup-data",
            case=_case(rows, kind, "warm", answer="keep, group, counts"),
            dtype="int64",
            seconds={},
            gflop=0.0,
            gigabytes=_bytes(rows, groups) / 1e9,
            images=rows,
        ),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_codes(dtype: str, small: bool, compare) -> None:
    """Beside "read": a sum of the activations, by PyTorch, which reads them and writes nothing."""
    torch.manual_seed(0)
    rows = 2000 if small else 1_000_000
    activations = torch.randn(rows, BITS).to(DTYPES[dtype])
    contenders: dict[str, Callable[[], Any]] = {
        OURS: partial(dedup.pack_codes, activations),
        "eager": partial(dedup.reference.pack_codes, activations),
        "numpy": partial(_pack_by_numpy, activations),
        "read": activations.sum,
    }
    compare(
        contenders,
        Row(
            table="pack_codes",
            case={"rows": str(rows), "bits": str(BITS), "dtype": dtype},
            dtype=dtype,
            seconds={},
            gflop=0.0,
            gigabytes=rows * BITS * DTYPES[dtype].itemsize / 1e9 + rows * BITS / 8 / 1e9,
        ),
        agree=_check_packed,
    )


def _case(rows: int, data: str, memory: str, answer: str) -> dict[str, str]:
    return {"answer": answer, "rows": f"{rows:,}", "data": data, "memory": memory}


def _bytes_of_keep(rows: int) -> int:
    """As csrc/cpu/first_occurrence.h counts them: codes read, dealt out, read; partitions, answers, result."""
    return rows * (3 * 16 + 2 * 2 + 2 * 1 + 1)


def _bytes(rows: int, groups: int) -> int:
    return rows * (3 * 16 + 2 * 2 + 2 * 4 + 1 + 8) + groups * (2 * 4 + 8)


def _pack_by_numpy(activations: Tensor) -> Tensor:
    bits = (activations > 0).numpy()
    return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view(np.int64))


def _check_agreement(results: dict[str, Any]) -> None:
    keep, counts = results[OURS]
    for name, (their_keep, their_counts) in results.items():
        assert np.array_equal(keep, their_keep), name
        if counts is not None:
            assert np.array_equal(np.sort(counts), np.sort(their_counts)), name


def _check_packed(results: dict[str, Any]) -> None:
    for name in ("eager", "numpy"):
        assert torch.equal(results[OURS], results[name]), name
