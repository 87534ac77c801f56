"""What a figure depends on beside the machine's ceilings."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from dcgan_fast import __version__, build_info

_PAGES_KEPT = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


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
