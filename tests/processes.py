"""Functions that several processes run together, and what each of them returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_together(function: Callable[..., Any], processes: int, folder: Path, *args: Any) -> list:
    """What ``function(rank, *args)`` returns in each of so many gloo processes of one thread; tensors and plain values.

    An error in one is raised here.
    """
    folder.mkdir(exist_ok=True)
    mp.spawn(_enter, (function, processes, folder, args), nprocs=processes)
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def _enter(rank: int, function: Callable[..., Any], processes: int, folder: Path, args: Any):
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    torch.manual_seed(0)
    torch.save(function(rank, *args), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
