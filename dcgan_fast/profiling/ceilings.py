"""What this machine can do at best, measured now: the yardsticks of profiles, forecasts and benchmarks."""

from __future__ import annotations

import statistics
import time

import torch

from .. import _C
from ..bench.rows import COPY, FMA, Ceilings

_TILES = "tiles bfloat16"
# Products of tiles that make one of float32 numbers: of bfloat16 ones, of half ones where there are some (tiles.h).
_PRODUCTS, _PRODUCTS_OF_HALVES = 6, 3


def measure_ceilings(seconds: float = 1.0, megabytes: int = 128) -> Ceilings:
    """GFLOP/s of each kind of arithmetic and GB/s of a copy, on torch's number of threads, now.

    On a machine that is shared the result is what the neighbours left.

    Args:
        seconds: for each of the five.
        megabytes: of the copy, which should not fit the caches.
    """
    with torch.random.fork_rng(
        devices=[]
    ):  # what brgemm multiplies is drawn, in the middle of a run perhaps
        found: dict[str, float | None] = {
            FMA: _C.measure_fma(seconds),
            _TILES: _C.measure_tiles_bfloat16(seconds),
            "brgemm float32": _C.measure_brgemm_float32(seconds),
            "brgemm bfloat16": _C.measure_brgemm_bfloat16(seconds),
            COPY: _copy_bandwidth(seconds, megabytes),
        }
    return {name: rate for name, rate in found.items() if rate is not None}


def _copy_bandwidth(seconds: float, megabytes: int) -> float:
    """GB/s, read and write counted: the ceiling of an elementwise pass over a map larger than the caches."""
    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.zeros_like(source)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2 * source.numel() * 4 / statistics.median(times) / 1e9


def peak(ceilings: Ceilings, dtype: str) -> float:
    """GFLOP/s of the fastest arithmetic that computes in ``dtype`` ("float32", "bfloat16") here.

    A matrix unit multiplies float32 too: as parts, several products of its own for one.
    """
    rates = [rate for name, rate in ceilings.items() if name.split()[-1] == dtype]
    if dtype == "float32" and _TILES in ceilings:
        halves = "tiles (AMX_FP16)" in _C.convolution_engines()
        rates.append(ceilings[_TILES] / (_PRODUCTS_OF_HALVES if halves else _PRODUCTS))
    return max(rates, default=ceilings[FMA])


def floor_seconds(ceilings: Ceilings, dtype: str, flop: float, moved: float) -> float:
    """Seconds that neither the arithmetic of ``flop`` operations nor the moving of ``moved`` bytes can go below.

    A convolution with fewer multiplications, or maps that stay in a cache, can.
    """
    return max(flop / 1e9 / peak(ceilings, dtype), moved / 1e9 / ceilings[COPY])
