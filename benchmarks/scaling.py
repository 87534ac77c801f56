"""Images a second of training in one process and in several, each of one thread: what is lost to talking.

    python benchmarks/scaling.py                                   # 2 minutes on 2 cores
    python benchmarks/scaling.py --net pytorch-32 --batch 32 --dtype bfloat16

Whole steps of :mod:`dcgan_fast.training` on images at hand, as ``torchrun`` would run them: batch norm over all images,
gradients averaged before each update. In turns, in one run of the same processes: the first alone with its own batch,
the first alone with the batch of all, all together. A figure is the median of the rounds. Beside them stand the time
that the first process had a core for, which neighbours on the machine lengthen less, and what the machine itself
gains: fused multiply-adds of one process and of all at once, in the same rounds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from layers import NETS
from torch import nn
from torch.optim import Adam

from dcgan_fast import _C, models
from dcgan_fast.nn import synchronised_statistics
from dcgan_fast.training import distributed
from dcgan_fast.training.distributed import Processes
from dcgan_fast.training.step import Step

FMA_SECONDS = 0.2


class Loop:
    """Steps of ``batch`` images in this process, alone or as one of ``processes``."""

    def __init__(
        self,
        pair: tuple[nn.Module, nn.Module],
        batch: int,
        arguments: argparse.Namespace,
        processes: Processes,
    ) -> None:
        self.synchronises = processes.count > 1 and arguments.sync_bn
        self.pair = [copy.deepcopy(n).to(memory_format=torch.channels_last) for n in pair]
        self.processes, self.batch = processes, batch
        size = self.pair[0].image_size
        real = torch.rand(batch, self.pair[0].nc, size, size) * 2 - 1
        self.real = real.contiguous(memory_format=torch.channels_last)
        autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
        self.step = Step(
            *self.pair,
            *(Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True) for n in self.pair),
            autocast=autocast if arguments.dtype == "bfloat16" else nullcontext,
            average=processes.average_gradients,
        )

    def seconds(self, steps: int) -> tuple[float, float]:
        """Of a step: that passed, and that this process computed."""
        began, computed = time.perf_counter(), time.process_time()
        for _ in range(steps):
            with ExitStack() as stack:
                if self.synchronises:
                    for network in self.pair:
                        stack.enter_context(synchronised_statistics(network, self.processes.group))
                row = self.step(self.real, lambda: self.pair[0].sample_latent(self.batch))
                self.processes.mean(row)
            self.processes.agree(0, 0)
        passed = time.perf_counter() - began
        return passed / steps, (time.process_time() - computed) / steps


def measure(rank: int, folder: str, arguments: argparse.Namespace) -> None:
    count = arguments.processes
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count
    )
    together = distributed.join()
    torch.manual_seed(0)
    preset, overrides, _ = NETS[arguments.net]
    pair = models.build(preset, **overrides)
    of_all = Loop(pair, arguments.batch, arguments, together)
    alone = {
        "alone": Loop(pair, arguments.batch, arguments, Processes()),
        "alone, the batch of all": Loop(pair, arguments.batch * count, arguments, Processes()),
    }
    rounds: list[dict[str, Any]] = []
    for _ in range(arguments.rounds + 1):
        timed: dict[str, Any] = {}
        for name, loop in alone.items():
            timed[name] = _of_first(rank, partial(loop.seconds, arguments.steps))
        timed["fma 1"] = _of_first(rank, partial(_C.measure_fma, FMA_SECONDS))
        timed["fma n"] = _C.measure_fma(FMA_SECONDS)
        dist.barrier()
        timed["together"] = of_all.seconds(arguments.steps)
        rounds.append(timed)
    found = {name: [r[name] for r in rounds[1:]] for name in rounds[0]}  # the first warmed up
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def _of_first(rank: int, work: Callable[[], Any]) -> Any:
    """What ``work`` returns in the first process, while the others wait without a core."""
    value = work() if rank == 0 else None
    dist.barrier()
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=NETS, default="pytorch-64")
    parser.add_argument("--batch", type=int, default=64, help="of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--sync-bn", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="in a round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (folder, arguments), nprocs=arguments.processes)
        found: dict[str, Any] = torch.load(Path(folder) / "found.pt")
    count, batch = arguments.processes, arguments.batch
    cases = {
        f"1 process, batch {batch}": ("alone", batch),
        f"1 process, batch {batch * count}": ("alone, the batch of all", batch * count),
        f"{count} processes, batch {batch} each": ("together", batch * count),
    }
    speeds = {
        case: images / statistics.median(passed for passed, _ in found[name])
        for case, (name, images) in cases.items()
    }
    together = list(speeds.values())[-1]
    joined = "joined" if arguments.sync_bn else "own"
    print(
        f"{arguments.net}, {arguments.dtype}, {joined} statistics, one thread a process, median of {arguments.rounds}"
    )
    print("| | images/s | together, times this | ms of a core for an image |\n|---|---|---|---|")
    for case, (name, images) in cases.items():
        computed = statistics.median(computed for _, computed in found[name])
        of_image = 1e3 * computed / images * (count if name == "together" else 1)
        print(f"| {case} | {speeds[case]:.1f} | {together / speeds[case]:.2f} | {of_image:.2f} |")
    alone, all_ = (statistics.median(found[f"fma {of}"]) for of in ("1", "n"))
    print(f"| multiply-adds, GFLOP/s | {alone:.0f} | {count * all_ / alone:.2f} | |")


if __name__ == "__main__":
    main()
