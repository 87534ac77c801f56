"""Options of the benchmarks, the fixture that runs and records a case, and the tables that end a run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import machine
import pytest
from race import Contender, Race

from dcgan_fast.bench import Ceilings, Row, tables
from dcgan_fast.bench.rows import ceilings_text
from dcgan_fast.profiling import measure_ceilings

_rows: list[tuple[Row, dict[str, Any]]] = []  # with the extra_info that each goes into
_best: Ceilings = {}  # seen so far in this run


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dcgan_fast's benchmarks")
    group.addoption(
        "--small",
        action="store_true",
        help="narrow networks, small batches, two rounds, nothing compiled: does every benchmark run?",
    )
    group.addoption(
        "--seconds",
        type=float,
        default=1.0,
        metavar="S",
        help="that the rounds of one case may take: between the fewest and the most rounds that it has "
        "(default: %(default)s)",
    )


@pytest.fixture(scope="session")
def small(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--small")


@pytest.fixture
def compare(
    benchmark, small: bool, request: pytest.FixtureRequest
) -> Callable[[dict[str, Contender], Row], None]:
    """``compare(contenders, row)`` times the contenders and puts ``row``, completed, into JSON and tables."""

    def run(
        contenders: dict[str, Contender],
        row: Row,
        *,
        agree: Callable[[dict[str, Any]], object] = lambda results: None,
        between: Callable[[], object] = lambda: None,
        settle: float = 0.0,
        least: int = 5,
        most: int = 21,
    ) -> None:
        for name, rate in _sample(small).items():
            _best[name] = max(rate, _best.get(name, 0.0))
        least, most = (2, 2) if small else (least, most)
        race = Race(contenders, agree, between, settle)
        row.seconds = race.run(benchmark, request.config.getoption("--seconds"), least, most)
        row.fma_beside = statistics.median(race.fma)
        row.rounds = len(race.fma)
        row.conditions = machine.conditions()
        _rows.append((row, benchmark.extra_info))

    return run


def _sample(small: bool) -> Ceilings:
    """A look at the machine: a longer one before the first case."""
    if small:
        return measure_ceilings(seconds=0.01, megabytes=16)
    return measure_ceilings(seconds=0.05 if _best else 1.0, megabytes=128)


def _complete() -> list[Row]:
    """Every row under the ceilings of the whole run."""
    for row, extra_info in _rows:
        row.ceilings = dict(_best)
        extra_info.update(row.to_extra_info())
    return [row for row, _ in _rows]


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: Any) -> None:
    _complete()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = _complete()
    for table in tables(rows):
        terminalreporter.section(table.title)
        terminalreporter.line(f"ceilings: {ceilings_text(rows)}")
        for line in table.text():
            terminalreporter.line(line)
