"""Timing contenders fairly: in turn, in one process, on the same data, threads and allocator; medians over rounds."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dcgan_fast import _C

Contender = Callable[[], object]

OURS = "ours"
_FMA_SECONDS = 0.01
_AWAKE_SECONDS = 0.01


@dataclass
class Race:
    """Runs each contender once a round, in an order drawn anew for each round.

    What the machine does beside us then slows all of them alike, and nobody always follows the one
    that leaves the caches in good order. Ours is timed by pytest-benchmark, the others between its
    rounds. Each round also measures the machine's rate of fused multiply-adds: where it falls far
    below the best of the run, something else was using the cores.

    Attributes:
        agree: called with the first result of each, before any timing; raises where they differ.
        between: called at the start of each round, outside all timing.
        settle: seconds of sleep before each turn, for contenders with threads of their own, which keep
            spinning for a while after their turn. Untimed calls then follow, for as long as it takes
            the processor to wake up and the caches to be the contender's again: what is timed is one
            call of many in a row.
    """

    contenders: dict[str, Contender]
    agree: Callable[[dict[str, Any]], object] = lambda results: None
    between: Callable[[], object] = lambda: None
    settle: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    fma: list[float] = field(default_factory=list)

    def run(self, benchmark, budget: float, least: int, most: int) -> dict[str, float]:
        """Median seconds of each contender, over as many rounds as fit ``budget`` seconds."""
        rounds = round(budget / max(self._warm_up(), 1e-9))
        rounds = min(max(rounds, least), most)
        turns = self._turns(rounds)
        self.seconds = {name: [] for name in self.contenders}

        def others() -> None:
            for name in turns:
                if name == OURS:
                    return
                self._turn(name)

        def prepare() -> None:
            others()
            self._prepare(OURS)

        benchmark.pedantic(self._timed, args=(OURS,), setup=prepare, rounds=rounds)
        others()  # those after ours in the last round
        return {name: statistics.median(times) for name, times in self.seconds.items() if times}

    def _warm_up(self) -> float:
        """Two calls of each; returns the seconds that a round will take."""
        self.agree({name: contender() for name, contender in self.contenders.items()})
        total = 0.0
        for contender in self.contenders.values():
            start = time.perf_counter()
            contender()
            took = time.perf_counter() - start
            total += took + (max(took, _AWAKE_SECONDS) + self.settle if self.settle else 0)
        return total + _FMA_SECONDS

    def _turns(self, rounds: int) -> Iterator[str]:
        order = random.Random(0)
        for _ in range(rounds):
            self.fma.append(_C.measure_fma(_FMA_SECONDS))
            self.between()
            yield from order.sample(list(self.contenders), len(self.contenders))

    def _turn(self, name: str) -> None:
        self._prepare(name)
        self._timed(name)

    def _prepare(self, name: str) -> None:
        if self.settle:
            time.sleep(self.settle)
            start = time.perf_counter()
            while time.perf_counter() - start < _AWAKE_SECONDS:
                self.contenders[name]()

    def _timed(self, name: str) -> None:
        start = time.perf_counter()
        self.contenders[name]()
        self.seconds[name].append(time.perf_counter() - start)
