"""What the dedup ops are compared with, and the data that they are compared on.

All return which rows to keep and how many rows each group has. The group of each row, which ours gives too, is not
asked of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import torch
from race import OURS, Contender
from torch import Tensor

from dcgan_fast import dedup

Answer = tuple[np.ndarray, np.ndarray]  # keep, counts in any order
LARGEST_SORTED = 1_000_000  # rows: sorting 10 million takes 5 to 20 seconds


def with_duplicates(rows: int, part: float) -> Tensor:
    """128-bit codes at random, so many of which were there before."""
    different = max(round(rows * (1 - part)), 1)
    codes = torch.randint(-(2**63), 2**63 - 1, (different, 2))
    which = torch.cat([torch.arange(different), torch.randint(different, (rows - different,))])
    return codes[which[torch.randperm(rows)]]


def half_are_one(rows: int) -> Tensor:
    codes = with_duplicates(rows, 0.0)
    codes[torch.rand(rows) < 0.5] = 7
    return codes


def few_are_hot(rows: int) -> Tensor:
    """Six in ten rows are of six codes."""
    codes = with_duplicates(rows, 0.0)
    hot = torch.randint(10, (rows,))
    codes[hot < 6] = hot[hot < 6, None].expand(-1, 2)
    return codes


def low_entropy(rows: int) -> Tensor:
    """As of an autoencoder whose units are hardly ever on: a quarter of the bits vary, and are rarely set."""
    words = []
    for chance in (1 / 16, 1 / 8):
        word = torch.zeros(rows, dtype=torch.int64)
        for place in range(0, 64, 4):
            word |= (torch.rand(rows) < chance).long() << place
        words.append(word)
    return torch.stack(words, 1)


KINDS: dict[str, Callable[[int], Tensor]] = {
    "half of all rows one code": half_are_one,
    "six hot codes": few_are_hot,
    "low entropy": low_entropy,
    "low bits agree": lambda n: torch.stack([torch.randint(n, (n,)) << 40, torch.zeros(n).long()], 1),
    "high bits agree": lambda n: torch.stack([torch.zeros(n).long(), torch.randint(n, (n,))], 1),
    "sorted": lambda n: torch.stack([torch.zeros(n).long(), torch.arange(n) * 9 // 10], 1),
    "all equal": lambda n: torch.full((n, 2), 42),
}  # fmt: skip


# ---------------------------------------------------------------- contenders


def ours(codes: Tensor) -> Contender:
    def run() -> Answer:
        keep, _, counts = dedup.first_occurrence(codes)
        return keep.numpy(), counts.numpy()

    return run


def torch_unique(codes: Tensor) -> Contender:
    rows = torch.arange(len(codes))

    def run() -> Answer:
        _, group, counts = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
        first = torch.full_like(counts, len(codes)).scatter_reduce_(0, group, rows, "amin")
        keep = torch.zeros(len(codes), dtype=torch.bool)
        keep[first] = True
        return keep.numpy(), counts.numpy()

    return run


def numpy_unique(codes: Tensor) -> Contender:
    keys = codes.numpy().view("V16").ravel()

    def run() -> Answer:
        _, first, counts = np.unique(keys, return_index=True, return_counts=True)
        return _mask(first, len(keys)), counts

    return run


def pandas(codes: Tensor) -> Contender:
    frame = importlib.import_module("pandas").DataFrame(codes.numpy(), columns=["a", "b"])

    def run() -> Answer:
        group = frame.groupby(["a", "b"], sort=False).ngroup().to_numpy()
        counts = np.bincount(group)
        return np.diff(np.maximum.accumulate(group), prepend=-1) > 0, counts

    return run


def polars(codes: Tensor) -> Contender:
    pl = importlib.import_module("polars")
    frame = pl.DataFrame(codes.numpy(), schema=["a", "b"]).with_row_index("i")

    def run() -> Answer:
        groups = frame.group_by("a", "b").agg(pl.col("i").first(), pl.len())
        return _mask(groups["i"].to_numpy(), len(codes)), groups["len"].to_numpy()

    return run


def duckdb(codes: Tensor) -> Contender:
    """On a table of its own, made beforehand."""
    connection = importlib.import_module("duckdb").connect()
    connection.execute(f"set threads to {torch.get_num_threads()}")
    columns = {
        "a": codes[:, 0].contiguous().numpy(),
        "b": codes[:, 1].contiguous().numpy(),
        "i": np.arange(len(codes)),
    }
    connection.execute("create table codes as select a, b, i from columns")
    del columns
    query = "select min(i) as first, count(*) as rows from codes group by a, b"

    def run() -> Answer:
        groups = connection.execute(query).fetchnumpy()
        return _mask(groups["first"], len(codes)), groups["rows"]

    return run


def _mask(first: np.ndarray, rows: int) -> np.ndarray:
    keep = np.zeros(rows, bool)
    keep[first] = True
    return keep


SORTING = {"torch.unique": torch_unique, "numpy.unique": numpy_unique}
HASHING = {"pandas": pandas, "polars": polars, "duckdb": duckdb}


def full_answer(codes: Tensor) -> tuple[dict[str, Contender], dict[str, str]]:
    """The contenders on these codes, and why others are left out."""
    makers = {OURS: ours, **SORTING, **HASHING}
    return _made(makers, codes)


def keep_alone(codes: Tensor) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that have a shorter way to the mask, or whose way to the whole answer is short."""

    def ours(codes: Tensor) -> Contender:
        return lambda: (dedup.first_of_each(codes).numpy(), None)

    def pandas(codes: Tensor) -> Contender:
        frame = importlib.import_module("pandas").DataFrame(codes.numpy())
        return lambda: (~frame.duplicated().to_numpy(), None)

    def polars(codes: Tensor) -> Contender:
        pl = importlib.import_module("polars")
        frame = pl.DataFrame(codes.numpy(), schema=["a", "b"])
        both = pl.struct("a", "b").is_first_distinct()
        return lambda: (frame.select(both).to_series().to_numpy(), None)

    return _made({OURS: ours, "pandas": pandas, "polars": polars, "duckdb": duckdb}, codes)


def _made(
    makers: dict[str, Callable[[Tensor], Contender]], codes: Tensor
) -> tuple[dict[str, Contender], dict[str, str]]:
    contenders, skipped = {}, {}
    for name, make in makers.items():
        if name in SORTING and len(codes) > LARGEST_SORTED:
            skipped[name] = f"takes too long beyond {LARGEST_SORTED:,} rows"
            continue
        try:
            contenders[name] = make(codes)
        except ModuleNotFoundError as error:
            skipped[name] = f"{error.name} is not installed"
    return contenders, skipped
