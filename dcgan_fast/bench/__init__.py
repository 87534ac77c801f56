"""Benchmark figures: the rows that ``benchmarks/`` leaves in pytest-benchmark's JSON, and reports made of them."""

from __future__ import annotations

from .report import report_markdown, write_report
from .rows import FMA, Ceilings, Row, Run, load_run
from .tables import Table, tables

__all__ = [
    "FMA",
    "Ceilings",
    "Row",
    "Run",
    "Table",
    "load_run",
    "report_markdown",
    "tables",
    "write_report",
]
