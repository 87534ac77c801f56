"""The table that ends a benchmark run, and the ceilings of the machine measured in the same run."""

from __future__ import annotations

import pytest
import torch
from contenders import copy_bandwidth

_rows: list[dict[str, object]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--small", action="store_true", help="a few small cases: does every benchmark run?"
    )


@pytest.fixture(scope="session")
def small(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--small")


@pytest.fixture(scope="session")
def bandwidth(small: bool) -> float:
    """GB/s of a copy on this machine, now."""
    return copy_bandwidth(megabytes=16 if small else 128)


@pytest.fixture
def record(benchmark):
    """``record(**figures)`` puts figures into pytest-benchmark's JSON and the closing table."""

    def keep(**figures: object) -> None:
        benchmark.extra_info.update(
            figures, threads=torch.get_num_threads(), torch=torch.__version__
        )
        _rows.append(figures)

    return keep


def pytest_terminal_summary(terminalreporter) -> None:
    if not _rows:
        return
    columns = list(dict.fromkeys(key for row in _rows for key in row))
    cells = [[_text(row.get(column, "")) for column in columns] for row in _rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    terminalreporter.section("contenders, interleaved, medians")
    for line in (columns, *cells):
        terminalreporter.line(
            "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        )


def _text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
