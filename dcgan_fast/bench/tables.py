"""Rows as tables of text."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .rows import COPY, FMA, OURS, Row

TITLES = {
    "train": "Training steps, images/s",
    "step": "The step's plan beside our own loops, images/s",
    "penalty": "The discriminator's update with a gradient penalty, images/s",
    "infer": "Generator inference, images/s",
    "ops": "Layers as one op, ms",
    "bn_act": "Batch norm and activation alone, ms",
    "plane_bias_act": "What labels add to a convolution, and activation, ms",
    "convolution": "Convolutions alone, ms",
    "maxout": "Maxout layers, ms",
    "dedup": "First occurrences of 128-bit codes, codes/s",
    "dedup-data": "First occurrences in awkward data, codes/s",
    "pack_codes": "Activations to bits, ms",
    "parzen": "Log-likelihoods by Parzen windows, 784 features, ms",
    "linear svm": "Linear L2-SVMs of 10 classes, ms",
    "features": "Features of a discriminator, images/s",
}

_SLOWER = 0.95  # below this ratio to the best of the others a case counts as slower
_MARK = " ▼"
_NOTHING = "–"


@dataclass
class Table:
    title: str
    columns: list[str]
    numeric: list[bool]  # of each column
    cells: list[list[str]]
    notes: list[str]

    def markdown(self) -> str:
        rule = ["--:" if numeric else "---" for numeric in self.numeric]
        lines = [self.columns, rule, *self.cells]
        notes = "".join(f"{note}\n" for note in self.notes)
        return f"## {self.title}\n{notes}\n" + "".join(
            f"| {' | '.join(line)} |\n" for line in lines
        )

    def text(self) -> list[str]:
        """Lines for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.cells, strict=True)]
        return [
            *self.notes,
            *(
                "  ".join(
                    f"{cell:>{width}}" if numeric else f"{cell:<{width}}"
                    for cell, width, numeric in zip(line, widths, self.numeric, strict=True)
                ).rstrip()
                for line in (self.columns, *self.cells)
            ),
        ]


def tables(rows: Iterable[Row]) -> list[Table]:
    """A table for each kind of benchmark and each allocator."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.table, str(row.conditions.get("allocator"))), []).append(row)
    order = list(TITLES)
    keys = sorted(groups, key=lambda key: order.index(key[0]) if key[0] in order else len(order))
    return [_table(groups[key], allocator=key[1]) for key in keys]


def _table(rows: list[Row], allocator: str) -> Table:
    cases = list(dict.fromkeys(name for row in rows for name in row.case))
    names = dict.fromkeys(name for row in rows for name in (OURS, *row.seconds, *row.skipped))
    measures = _MEASURES if any(row.gflop for row in rows) else _MEASURES_OF_BYTES
    cells = [
        [
            *(row.case.get(name, "") for name in cases),
            *(_contender(row, name) for name in names),
            *(measure(row) for measure in measures.values()),
        ]
        for row in rows
    ]
    return Table(
        title=f"{TITLES.get(rows[0].table, rows[0].table)} ({allocator})",
        columns=[*cases, *names, *measures],
        numeric=[False] * len(cases) + [True] * (len(names) + len(measures)),
        cells=cells,
        notes=[*_digest(rows), *_reasons(rows)],
    )


def _contender(row: Row, name: str) -> str:
    if name not in row.seconds:
        return _NOTHING
    seconds = row.seconds[name]
    return f"{row.images / seconds:,.0f}" if row.images is not None else f"{seconds * 1e3:.3g}"


def _ratio(row: Row) -> str:
    if row.speedup is None:
        return _NOTHING
    return f"{row.speedup:.2f}{_MARK if row.speedup < _SLOWER else ''}"


_FLOPS: dict[str, Callable[[Row], str]] = {
    "GFLOP": lambda row: f"{row.gflop:.3g}",
    "GFLOP/s": lambda row: f"{row.gflops:,.0f}",
    "of FMA": lambda row: f"{row.gflops / row.ceilings[FMA]:.2f}",
    "peak": lambda row: f"{row.peak:,.0f}",
}
_BYTES: dict[str, Callable[[Row], str]] = {
    "GB": lambda row: f"{row.gigabytes:.3g}",
    "GB/s": lambda row: f"{row.gigabytes / row.seconds[OURS]:.1f}",
    "copy": lambda row: f"{row.ceilings[COPY]:.1f}",
}
_FLOOR: dict[str, Callable[[Row], str]] = {
    "floor ms": lambda row: f"{row.floor * 1e3:.3g}",
    "of floor": lambda row: f"{row.attained:.2f}",
    "FMA now": lambda row: f"{row.fma_beside:,.0f}",
}
_MEASURES = {"vs best": _ratio, **_FLOPS, **_BYTES, **_FLOOR}
_MEASURES_OF_BYTES = {"vs best": _ratio, **_BYTES, **_FLOOR}


def _digest(rows: list[Row]) -> list[str]:
    """One line a dtype: ours against the fastest of the others."""
    lines = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        ratios = [row.speedup for row in rows if row.dtype == dtype and row.speedup is not None]
        if ratios:
            slower = sum(ratio < _SLOWER for ratio in ratios)
            lines.append(
                f"{dtype}: against the best of the others {statistics.median(ratios):.2f} in the "
                f"median, {min(ratios):.2f} to {max(ratios):.2f}; "
                f"below {_SLOWER} ({_MARK.strip()}) in {slower} of {len(ratios)}."
            )
    return lines


def _reasons(rows: list[Row]) -> list[str]:
    """Why contenders did not run, once each."""
    reasons = dict.fromkeys((name, why) for row in rows for name, why in row.skipped.items())
    return [f"{_NOTHING} {name}: {why}." for name, why in reasons]
