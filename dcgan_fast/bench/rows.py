"""One benchmark's figures, what follows from them, and how they are kept in pytest-benchmark's JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError

OURS = "ours"
FMA = "FMA float32"
COPY = "copy"

Ceilings = dict[str, float]
"""Highest rates that a run has seen: GFLOP/s under ``<what> <dtype>``, GB/s under ``copy``."""


@dataclass
class Row:
    """Contenders on one case.

    Attributes:
        table: the table it belongs to.
        case: what was run, a value for each column.
        dtype: of the arithmetic ("float32", "bfloat16"), or of the data where there is none.
        seconds: the median of each contender.
        skipped: why the others did not run.
        gflop: work of the direct convolutions, in 10^9 operations, whatever was computed in truth.
        gigabytes: bytes that must be moved, by the count that ``profiling/work.py`` explains.
        images: in a batch (or codes), where a rate is more telling than a time.
        conditions: threads, allocator, versions.
        ceilings: of the machine, the best of the whole run.
        fma_beside: GFLOP/s of fused multiply-adds between the rounds of this very row, median.
        rounds: over which the medians are.
    """

    table: str
    case: dict[str, str]
    dtype: str
    seconds: dict[str, float]
    gflop: float
    gigabytes: float
    skipped: dict[str, str] = field(default_factory=dict)
    images: int | None = None
    conditions: dict[str, str | int] = field(default_factory=dict)
    ceilings: Ceilings = field(default_factory=dict)
    fma_beside: float = 0.0
    rounds: int = 0

    @property
    def best_other(self) -> str | None:
        others = {name: s for name, s in self.seconds.items() if name != OURS}
        return min(others, key=others.__getitem__) if others else None

    @property
    def speedup(self) -> float | None:
        """Over the fastest of the others."""
        return self.seconds[self.best_other] / self.seconds[OURS] if self.best_other else None

    @property
    def gflops(self) -> float:
        return self.gflop / self.seconds[OURS]

    @property
    def peak(self) -> float:
        """GFLOP/s of the fastest arithmetic measured in this dtype; of FMA where there is none."""
        rates = [rate for name, rate in self.ceilings.items() if name.split()[-1] == self.dtype]
        return max(rates, default=self.ceilings[FMA])

    @property
    def floor(self) -> float:
        """Seconds that neither the arithmetic of direct convolution nor the memory can go below.

        A convolution with fewer multiplications, or maps that stay in a cache, can.
        """
        return max(self.gflop / self.peak, self.gigabytes / self.ceilings[COPY])

    @property
    def attained(self) -> float:
        """Fraction of the ceiling: the floor over our time."""
        return self.floor / self.seconds[OURS]

    def to_extra_info(self) -> dict[str, Any]:
        """As JSON: the fields, and for other readers what follows from them."""
        derived = {
            "speedup": self.speedup,
            "best_other": self.best_other,
            "gflops": {name: self.gflop / s for name, s in self.seconds.items()},
            "floor_seconds": self.floor,
            "attained": self.attained,
        }
        if self.images is not None:
            derived["images_per_second"] = {n: self.images / s for n, s in self.seconds.items()}
        return {**dataclasses.asdict(self), "derived": derived}

    @classmethod
    def from_extra_info(cls, info: Mapping[str, Any]) -> Row:
        """The inverse of :meth:`to_extra_info`; KeyError names what is missing."""
        row = cls(**{item.name: info[item.name] for item in dataclasses.fields(cls)})
        for name, where in ((OURS, row.seconds), (FMA, row.ceilings), (COPY, row.ceilings)):
            where[name]
        return row


@dataclass
class Run:
    """The rows of one JSON file, and where, when and from what sources it was made."""

    rows: list[Row]
    cpu: str
    date: str
    commit: str


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read what ``pytest benchmarks/ --benchmark-json=PATH`` wrote.

    Raises:
        UserError: no such file, not such a file, or one without a benchmark of this library.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror} (`make bench` makes one)") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    try:
        infos = [benchmark["extra_info"] for benchmark in content["benchmarks"]]
        rows = [Row.from_extra_info(info) for info in infos if "ceilings" in info]
        machine, commit = content["machine_info"], content["commit_info"]
        run = Run(
            rows=rows,
            cpu=machine.get("cpu", {}).get("brand_raw", machine["machine"]),
            date=content["datetime"][:10],
            commit=(commit.get("id") or "?")[:10] + ("+" if commit.get("dirty") else ""),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not pytest-benchmark's JSON of benchmarks/: {error!r}"
        ) from error
    if not run.rows:
        raise UserError(f"{path} holds no benchmark of dcgan_fast")
    return run


def ceilings_text(rows: Sequence[Row]) -> str:
    """The ceilings of the run that ``rows`` are of, in a line."""
    units = {name: "GB/s" if name == COPY else "GFLOP/s" for name in rows[0].ceilings}
    return ", ".join(f"{name} {rows[0].ceilings[name]:,.0f} {unit}" for name, unit in units.items())
