"""The machine as it is in this run: its ceilings, measured, and what else a figure depends on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
from race import median_seconds

from dcgan_fast import _C, __version__, build_info
from dcgan_fast.bench import FMA, Ceilings

_PAGES_KEPT = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def measure_ceilings(seconds: float, megabytes: int) -> Ceilings:
    """GFLOP/s of each kind of arithmetic and GB/s of a copy, on torch's number of threads, now."""
    found: Ceilings = {
        FMA: _C.measure_fma(seconds),
        "tiles bfloat16": _C.measure_tiles_bfloat16(seconds),
        "brgemm float32": _C.measure_brgemm_float32(seconds),
        "brgemm bfloat16": _C.measure_brgemm_bfloat16(seconds),
        "copy": _copy_bandwidth(seconds, megabytes),
    }
    return {name: rate for name, rate in found.items() if rate is not None}


def _copy_bandwidth(seconds: float, megabytes: int) -> float:
    """GB/s, read and write counted: the ceiling of an elementwise pass over a map larger than the caches."""
    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.zeros_like(source)
    return 2 * source.numel() * 4 / median_seconds(lambda: target.copy_(source), seconds) / 1e9


def conditions() -> dict[str, str | int]:
    return {
        "threads": torch.get_num_threads(),
        "allocator": _allocator(),
        "torch": torch.__version__,
        "dcgan_fast": __version__,
        "capability": build_info()["cpu_capability"],
    }


def _allocator() -> str:
    """Whether freed memory goes back to the system, to be faulted in again page by page."""
    preloaded = [
        Path(name).name.split(".")[0] for name in os.environ.get("LD_PRELOAD", "").split(":")
    ]
    known = [
        name for name in preloaded if any(k in name for k in ("jemalloc", "tcmalloc", "mimalloc"))
    ]
    if known:
        return known[0]
    kept = all(int(os.environ.get(name, 0)) >= 2**30 for name in _PAGES_KEPT)
    return f"{platform.libc_ver()[0] or platform.system()}, {'pages kept' if kept else 'default'}"
