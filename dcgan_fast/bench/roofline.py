"""The roofline: where each benchmark stands under the ceilings of its machine."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

from ..errors import UserError
from .rows import COPY, FMA, OURS, Row, Run
from .tables import TITLES

_COLOURS = {"train": "#d62728", "infer": "#2ca02c", "ops": "#1f77b4", "convolution": "#9467bd"}
_OTHERS = "#9a9a9a"
_DASHES = ("-", "--", "-.", ":")


def check_matplotlib() -> None:
    """Raise :class:`UserError` where there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "the roofline needs matplotlib: pip install matplotlib, or 'dcgan_fast[bench]'"
        )


def roofline_png(run: Run) -> bytes:
    """A panel a dtype: GFLOP/s over FLOP per byte, ours and the best of the others, under the ceilings.

    Cases without convolutions (batch norm alone) have no place in it.
    """
    from matplotlib.figure import Figure

    rows = [row for row in run.rows if row.gflop]
    dtypes = list(dict.fromkeys(row.dtype for row in rows)) or ["float32"]
    figure = Figure(figsize=(7.5 * len(dtypes), 6), dpi=120, layout="constrained")
    for axes, dtype in zip(figure.subplots(1, len(dtypes), squeeze=False)[0], dtypes, strict=True):
        draw_panel(axes, dtype, [row for row in rows if row.dtype == dtype])
    told = run.rows[0].conditions
    figure.suptitle(f"{run.cpu}, {told['threads']} threads, {told['allocator']}", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_panel(axes: Any, dtype: str, rows: list[Row]) -> None:
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte moved",
        ylabel="GFLOP/s, direct convolution",
    )
    axes.set_title(dtype)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for table in dict.fromkeys(row.table for row in rows):
        _points(axes, table, [row for row in rows if row.table == table])
    axes.plot([], [], "o", color=_OTHERS, fillstyle="none", label="the best of the others")
    if rows:
        _ceilings(axes, dtype, rows)
    # Below the axes, where no point can be under it
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=9, frameon=False)


def _points(axes: Any, table: str, rows: list[Row]) -> None:
    """Ours filled, the best of the others hollow below or above it, a line between the two."""
    colour = _COLOURS.get(table, "#17becf")
    for row in (row for row in rows if row.best_other is not None):
        intensity = row.gflop / row.gigabytes
        other = row.gflop / row.seconds[row.best_other or OURS]
        axes.plot([intensity] * 2, [other, row.gflops], color=_OTHERS, linewidth=0.7, zorder=1)
        axes.plot(intensity, other, "o", color=_OTHERS, fillstyle="none", markersize=5, zorder=2)
    label = f"ours: {TITLES.get(table, table).split(',')[0].lower()}"
    intensities = [row.gflop / row.gigabytes for row in rows]
    axes.plot(
        intensities,
        [row.gflops for row in rows],
        "o",
        color=colour,
        markersize=5,
        label=label,
        zorder=3,
    )


def _ceilings(axes: Any, dtype: str, rows: list[Row]) -> None:
    """The bandwidth of a copy up to each kind of arithmetic in this dtype, FMA among them as a scale."""
    ceilings = rows[0].ceilings
    copy = ceilings[COPY]
    names = [name for name in ceilings if name.split()[-1] == dtype or name == FMA]
    low, high = axes.get_xlim()
    corners = [ceilings[name] / copy for name in names]
    low, high = min(low, min(corners) / 2), max(high, max(corners) * 2)  # both sides of each
    for name, dashes in zip(sorted(names, key=lambda n: -ceilings[n]), _DASHES * 2, strict=False):
        peak = ceilings[name]
        xs = [low, peak / copy, high]
        ys = [min(peak, copy * x) for x in xs]
        axes.plot(
            xs,
            ys,
            dashes,
            color="black",
            linewidth=1.2,
            zorder=0,
            label=f"{name} {peak:,.0f} GFLOP/s",
        )
    axes.plot([], [], " ", label=f"slope: copy {copy:,.1f} GB/s")
    axes.set_xlim(low, high)
