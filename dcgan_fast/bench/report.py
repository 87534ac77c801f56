"""Runs as a report: Markdown with every table, and a roofline for each run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..files import make_folder, write_bytes, write_text
from .roofline import check_matplotlib, roofline_png
from .rows import Run, ceilings_text
from .tables import tables

REPORT, ROOFLINE = "report.md", "roofline{}.png"

_LEGEND = """\
Times are medians over rounds in which each contender ran once, in an order drawn anew each round.

* *vs best*: the time of the fastest of the others over ours.
* *GFLOP*: of the direct convolutions, whatever computes them. *GB*: what must be moved if no map outlives a pass in
  cache. *peak*: the fastest arithmetic of that dtype measured in the run, GFLOP/s; *copy*: GB/s of a large copy.
* *floor*: GFLOP / peak or GB / copy, whichever is longer. *of floor*: the floor over our time. Above 1, fewer
  multiplications than direct convolution has, or maps that stayed in a cache. *of FMA*: GFLOP/s over the FMA ceiling.
* *FMA now*: the rate of fused multiply-adds between the rounds of that row. Where it is far below the FMA ceiling,
  something else was using the cores.
"""


def report_markdown(runs: Sequence[Run], pictures: Sequence[str] = ()) -> str:
    """The tables of all ``runs`` with what they depend on; ``pictures`` are the files beside it, one a run."""
    parts = ["# Benchmarks\n", _LEGEND]
    for index, run in enumerate(runs):
        parts.append(_conditions(run))
        if pictures:
            parts.append(f"![roofline]({pictures[index]})\n")
        parts += [table.markdown() for table in tables(run.rows)]
    return "\n".join(parts)


def write_report(runs: Sequence[Run], folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``report.md`` and ``roofline.png`` (a second run's: ``roofline-2.png`` …) into ``folder``.

    Raises:
        UserError: matplotlib is missing (then nothing is written), or the folder cannot be written.
    """
    check_matplotlib()
    folder = make_folder(folder)
    names = [
        ROOFLINE.format(f"-{number}" if number > 1 else "") for number in range(1, len(runs) + 1)
    ]
    for run, name in zip(runs, names, strict=True):
        write_bytes(folder / name, roofline_png(run))
    write_text(folder / REPORT, report_markdown(runs, names))
    return [folder / name for name in (REPORT, *names)]


def _conditions(run: Run) -> str:
    told = run.rows[0].conditions
    return (
        f"**{run.date}**, commit {run.commit}, {run.cpu}, {told['threads']} threads, torch {told['torch']}, "
        f"kernels for {told['capability']}, allocator: {told['allocator']}.\n"
        f"Ceilings measured in the run: {ceilings_text(run.rows)}.\n"
    )
