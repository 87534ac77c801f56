"""Most memory that a process is given for training steps of the networks with labels, ours and explicit concatenation.

Each contender runs by itself in a process of its own, under the default allocator: ``python benchmarks/peak_memory.py
[--batch N] [--steps N] [--image-size S]``. "at rest" is the same process without the steps.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

CONTENDERS = ("at rest", "ours", "joint pass", "tuned", "contiguous")


def run(contender: str, batch: int, steps: int, image_size: int) -> None:
    """Runs the steps and prints the peak, in MB."""
    import torch
    from bench_train import _ours
    from training_loops import TunedLoop

    from dcgan_fast import models, unfuse

    torch.manual_seed(0)
    pair = models.build("cgan-dcgan", image_size=image_size)
    labels = torch.arange(batch) % pair[0].classes
    layout = torch.contiguous_format if contender == "contiguous" else torch.channels_last
    real = torch.rand(batch, 1, image_size, image_size).contiguous(memory_format=layout)
    networks = [n.to(memory_format=layout) for n in pair]
    if contender in ("at rest", "ours", "joint pass"):
        step = _ours(*networks, real, nullcontext, labels, joint=contender == "joint pass")
    else:
        plain = [unfuse(n, inplace=True) for n in networks]
        step = TunedLoop(*plain, real, pair[0].nz, nullcontext, labels)
    for _ in range(0 if contender == "at rest" else steps):
        step()
    status = Path(
        "/proc/self/status"
    ).read_text()  # ru_maxrss would be the parent's where that is larger
    print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--image-size", type=int, default=28)
    given = parser.parse_args()
    if given.contender:
        run(given.contender, given.batch, given.steps, given.image_size)
        return
    for contender in CONTENDERS:
        command = [sys.executable, __file__, *sys.argv[1:], "--contender", contender]
        print(f"{contender:12}{float(subprocess.check_output(command)):8.0f} MB", flush=True)


if __name__ == "__main__":
    main()
