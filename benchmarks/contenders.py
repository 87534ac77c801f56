"""Timing contenders fairly: in turn, in one process, on the same data, threads and allocator; medians over rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Contender = Callable[[], object]


def interleave(contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Median seconds of each contender over ``rounds`` rounds, each contender once a round, after two warm-ups.

    What the machine does beside us then slows all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
        contender()
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def copy_bandwidth(rounds: int = 9, megabytes: int = 128) -> float:
    """GB/s that a plain copy of a large tensor moves, read and write counted: the ceiling of an elementwise pass."""
    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.empty_like(source)
    seconds = interleave({"copy": lambda: target.copy_(source)}, rounds)["copy"]
    return 2 * source.numel() * 4 / seconds / 1e9
