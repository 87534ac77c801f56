"""Benchmarks on a GPU: layers, training steps, labels and dedup, beside PyTorch's and the device's own ceilings.

    python benchmarks/gpu.py --out benchmarks/results     # minutes on an H200
    python benchmarks/gpu.py --small                       # does it run? On the emulator too, where times mean nothing
    python benchmarks/gpu.py --table FILE.json             # what a run found, as Markdown

Times are medians of CUDA events around one call, between which other memory is written, so that no call finds
its operands in the L2 cache; contenders take turns in each round. Whole steps are timed over several steps in
a row, captured in one CUDA graph where the contender says so. Rows are written as they come: a run that is
stopped keeps what it has.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contenders import operands, ours, plain
from layers import (
    FORWARD,
    INPUT_GRAD,
    NETS,
    SMALL,
    SMALL_BATCH,
    WEIGHT_GRAD,
    Layer,
    distinct,
    layers_of,
)
from torch import nn
from torch.optim import Adam
from training_loops import BETAS, LEARNING_RATE, ExampleLoop, TunedLoop

import dcgan_fast
from dcgan_fast import backends, dedup, functional, models, reference, unfuse

ON_A_GPU = torch.cuda.is_available()
COPIED = ("bfloat16", "tf32")  # of DTYPES: what the copy engine may serve
DTYPES = {"bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
Contender = Callable[[], object]


@dataclass
class Row:
    """One line of the results."""

    table: str  # ceilings, layers, steps, kernels, planes, dedup
    case: dict[str, str]
    gflop: float = 0.0
    gigabytes: float = 0.0
    milliseconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    keys: float = 0.0  # millions

    def rates(self) -> str:
        """Of ours, of what it did."""
        ours, found = self.milliseconds.get("ours"), []
        if ours and self.keys:
            found.append(f"{self.keys / ours:.2f} Gkeys/s")
        if ours and self.gflop:
            found.append(f"{self.gflop / ours:.1f} TFLOP/s")
        if ours and self.gigabytes:
            found.append(f"{1e3 * self.gigabytes / ours:.0f} GB/s")
        return ", ".join(found)

    def text(self) -> str:
        case = " ".join(self.case.values())
        times = "  ".join(f"{name} {ms:.4f}" for name, ms in self.milliseconds.items())
        return f"{self.table:8} {case:60} {times}  {self.rates()} {self.failed or ''}"


def markdown(content: dict[str, Any]) -> str:
    """A run's results, a table for each kind of rows. Milliseconds."""
    lines = [f"# {content['device']}, torch {content['torch']}"]
    rows = [Row(**row) for row in content["rows"]]
    for table in dict.fromkeys(row.table for row in rows):
        own = [row for row in rows if row.table == table]
        cases = list(dict.fromkeys(name for row in own for name in row.case))
        who = list(dict.fromkeys(name for row in own for name in row.milliseconds))
        rated = any(row.rates() for row in own)
        head = [*cases, *(f"{name}, ms" for name in who), *(["rates of ours"] if rated else [])]
        lines += ["", f"## {table}", "| " + " | ".join(head) + " |"]
        lines.append("|" + " --- |" * len(cases) + " ---: |" * (len(head) - len(cases)))
        for row in own:
            cells = [row.case.get(name, "").replace("|", "/") for name in cases]
            times = (row.milliseconds.get(name) for name in who)
            cells += ["" if ms is None else f"{ms:.4f}" for ms in times]
            lines.append("| " + " | ".join(cells + ([row.rates()] if rated else [])) + " |")
    return "\n".join(lines) + "\n"


def synchronize() -> None:
    if ON_A_GPU:
        torch.cuda.synchronize()


class Timer:
    """Milliseconds of calls, by events on the device; by the clock where there is none."""

    def __init__(self, small: bool) -> None:
        self.small = small
        self.flush = torch.empty(
            1 if small else 256 << 20, dtype=torch.uint8
        )  # larger than any L2 cache

    def once(self, contender: Contender) -> float:
        self.flush.zero_()
        if not ON_A_GPU:
            start = time.perf_counter()
            contender()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        contender()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def race(
        self, contenders: dict[str, Contender], seconds: float, most: int
    ) -> tuple[dict, dict]:
        """Median milliseconds of each over the same rounds, and why those failed that did."""
        failed: dict[str, str] = {}
        most = 1 if self.small else most
        for name, contender in list(contenders.items()):
            try:
                for _ in range(0 if self.small else 3):
                    contender()
                synchronize()
            except Exception as error:  # a contender that cannot run here is a fact, not an end
                failed[name] = f"{type(error).__name__}: {error}"[:200]
                del contenders[name]
        times: dict[str, list[float]] = {name: [] for name in contenders}
        start = time.perf_counter()
        for turn in range(most):
            for name, contender in contenders.items():
                times[name].append(self.once(contender))
            if turn >= 4 and time.perf_counter() - start > seconds:
                break
        return {name: statistics.median(t) for name, t in times.items()}, failed


def graphed(contender: Contender, warm_ups: int = 3) -> Contender:
    """The contender's launches, captured once; without a GPU the contender itself."""
    if not ON_A_GPU:
        return contender
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_ups):
            contender()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        contender()

    def replay(of: Contender = contender) -> None:  # which keeps what the graph reads and writes
        graph.replay()

    return replay


def by_copy_engine(contender: Contender) -> Contender:
    """The same with the switch on, which is off until this has been measured (docs/gpu-notes.md)."""

    def run() -> object:
        before = backends.cuda.copy_engine
        backends.cuda.copy_engine = True
        try:
            return contender()
        finally:
            backends.cuda.copy_engine = before

    return run


# --- what is measured ---


def ceilings(timer: Timer, small: bool) -> Iterator[Row]:
    """Rates of a copy and of matrix products by PyTorch's libraries, on data that is not zero."""
    elements = 1 << (16 if small else 29)
    source = torch.rand(elements)
    target = torch.empty_like(source)
    times, _ = timer.race({"copy": lambda: target.copy_(source)}, 1, 20)
    yield Row("ceilings", {"what": "copy"}, 0, 2 * 4 * elements / 1e9, {"ours": times["copy"]})
    n = 64 if small else 8192
    for name, dtype in DTYPES.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, b = torch.randn(2, n, n).to(dtype)
        times, _ = timer.race({"product": lambda a=a, b=b: a @ b}, 1, 20)
        yield Row("ceilings", {"what": name}, 2 * n**3 / 1e9, 0, {"ours": times["product"]})
    torch.backends.cuda.matmul.allow_tf32 = False


def allow_tf32(name: str) -> None:
    torch.backends.cudnn.allow_tf32 = name == "tf32"


def layer_rows(timer: Timer, small: bool, net: str) -> Iterator[Row]:
    """Each layer of a net: forward, and forward with backward, ours and PyTorch's, each as a graph."""
    for layer in distinct({net: NETS[net]}, small):
        if layer.op == "linear":
            continue
        for name, dtype in DTYPES.items():
            allow_tf32(name)
            given = on_device(layer, dtype)
            for passes in ("forward", "forward+backward"):
                run = partial(_forward if passes == "forward" else _both, layer)
                calls = {
                    "ours": partial(run, ours, given),
                    "ours, copy engine": by_copy_engine(partial(run, ours, given)),
                    "channels_last": partial(run, plain, given),
                }
                if name not in COPIED:
                    del calls["ours, copy engine"]
                contenders: dict[str, Contender] = {}
                failed: dict[str, str] = {}
                for who, call in calls.items():
                    try:
                        contenders[who] = graphed(call)
                    except Exception as error:
                        failed[who] = f"{type(error).__name__}: {error}"[:200]
                times, more = timer.race(contenders, 0.5, 50)
                counted = [FORWARD] if passes == "forward" else [FORWARD, WEIGHT_GRAD]
                if passes != "forward" and not layer.data_in:
                    counted.append(INPUT_GRAD)
                yield Row(
                    "layers",
                    {"layer": f"{layer.op} {layer}", "dtype": name, "passes": passes},
                    layer.flop(*counted) / 1e9,
                    layer.bytes(dtype.itemsize, *counted) / 1e9,
                    times,
                    failed | more,
                )


def on_device(layer: Layer, dtype: torch.dtype) -> Any:
    with torch.device("cpu"):
        given = operands(layer, dtype, torch.channels_last)
    if not ON_A_GPU:
        return given
    for name, tensor in vars(given).items():
        if tensor is not None:
            moved = tensor.detach().cuda().requires_grad_(tensor.requires_grad)
            setattr(given, name, moved)
    return given


def _forward(layer: Layer, function: Callable, given: Any) -> torch.Tensor:
    with torch.no_grad():
        return function(layer, given)


def _both(layer: Layer, function: Callable, given: Any) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(function(layer, given), given.leaves(layer), given.grad)


class Step:
    """A whole training step without a word to the host: D on real and fake, then G, capturable fused Adam."""

    def __init__(self, networks: tuple[nn.Module, nn.Module], real: torch.Tensor, autocast) -> None:
        self.loop = TunedLoop(*networks, real, networks[0].nz, autocast)
        for name, network in (("adam_g", networks[0]), ("adam_d", networks[1])):
            optimizer = Adam(
                network.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True, capturable=ON_A_GPU
            )
            setattr(self.loop, name, optimizer)

    def __call__(self) -> object:
        return self.loop()


class Nets:
    """A generator, a discriminator and real images for them, at random."""

    def __init__(self, net: str, batch: int, small: bool) -> None:
        preset, overrides, _ = NETS[net]
        pair = models.build(preset, **overrides, **(SMALL if small else {}))
        self.pair = tuple(network.to("cuda" if ON_A_GPU else "cpu") for network in pair)
        size = self.pair[0].image_size
        self.real = torch.rand(batch, self.pair[0].nc, size, size) * 2 - 1
        self.nhwc = self.real.contiguous(memory_format=torch.channels_last)

    def copies(self, *, fused: bool) -> tuple[nn.Module, nn.Module]:
        made = copy.deepcopy(self.pair)
        made = made if fused else tuple(map(unfuse, made))
        return tuple(network.to(memory_format=torch.channels_last) for network in made)


def autocast_to(name: str) -> Any:
    if DTYPES[name] != torch.bfloat16:
        return nullcontext
    return partial(torch.autocast, "cuda" if ON_A_GPU else "cpu", dtype=torch.bfloat16)


def step_rows(timer: Timer, small: bool, without: list[str], net: str, batch: int) -> Iterator[Row]:
    """Whole steps: the example as it stands, PyTorch at its best, ours; with and without a CUDA graph."""
    batch = SMALL_BATCH if small else batch
    nets = Nets(net, batch, small)
    pair, real, nhwc, copies = nets.pair, nets.real, nets.nhwc, nets.copies
    for name in list(DTYPES)[: 1 if small else None]:
        allow_tf32(name)
        autocast = autocast_to(name)
        makers: dict[str, Callable[[], Contender]] = {
            "ours": lambda a=autocast: graphed(Step(copies(fused=True), nhwc, a)),
            "ours, copy engine": lambda a=autocast: graphed(
                by_copy_engine(Step(copies(fused=True), nhwc, a))
            ),
            "ours, eager": lambda a=autocast: Step(copies(fused=True), nhwc, a),
            "channels_last, graph": lambda a=autocast: graphed(Step(copies(fused=False), nhwc, a)),
            "channels_last, eager": lambda a=autocast: Step(copies(fused=False), nhwc, a),
        }
        if name == "bfloat16" and net == "pytorch-64" and batch == 128:  # a minute of tuning each
            makers["compiled"] = lambda a=autocast: Step(
                tuple(
                    torch.compile(n, mode="max-autotune", dynamic=False)
                    for n in copies(fused=False)
                ),
                nhwc,
                a,
            )
        if name not in COPIED:
            del makers["ours, copy engine"]
        if name == "float32":
            generator, discriminator = copy.deepcopy(tuple(map(unfuse, pair)))
            with_sigmoid = nn.Sequential(discriminator, nn.Sigmoid())
            makers["example"] = lambda g=generator, d=with_sigmoid: ExampleLoop(
                g, d, real, g.nz, nullcontext
            )
        contenders: dict[str, Contender] = {}
        failed: dict[str, str] = {}
        for who in without:
            makers.pop(who, None)
        for who, make in makers.items():
            try:
                contenders[who] = make()
            except Exception as error:
                failed[who] = f"{type(error).__name__}: {error}"[:200]
        times, more = timer.race(contenders, 4, 60)
        generator_layers, discriminator_layers = layers_of(net, small, batch)
        work = sum(
            layer.flop(FORWARD, WEIGHT_GRAD, *([INPUT_GRAD] if i else []))
            for layers, calls in ((generator_layers, 1), (discriminator_layers, 2))
            for _ in range(calls)
            for i, layer in enumerate(layers)
        ) + sum(layer.flop(FORWARD, INPUT_GRAD) for layer in discriminator_layers)
        case = {"net": net, "batch": str(batch), "dtype": name}
        row = Row("steps", case, work / 1e9, 0, times, failed | more)
        yield row


def kernel_rows(timer: Timer, small: bool, net: str, batch: int) -> Iterator[Row]:
    """What our step's time goes to: of each kernel, the launches in a step and their time together."""
    nets = Nets(net, SMALL_BATCH if small else batch, small)
    names = list(DTYPES)[: 1 if small else None]
    for name, copied in [(name, how) for name in names for how in (False, True)]:
        if copied and name not in COPIED:
            continue
        allow_tf32(name)
        whole = Step(nets.copies(fused=True), nets.nhwc, autocast_to(name))
        step = graphed(by_copy_engine(whole) if copied else whole)
        steps = 1 if small else 10
        step()
        synchronize()
        with torch.profiler.profile() as profile:
            for _ in range(steps):
                step()
            synchronize()
        total: dict[str, list[float]] = {}
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                total.setdefault(kernel_name(event.name), []).append(event.time_range.elapsed_us())
        for kernel, times in sorted(total.items(), key=lambda item: -sum(item[1])):
            how = f"{name}, copy engine" if copied else name
            case = {"net": net, "batch": str(batch), "dtype": how}
            case |= {"launches": f"{len(times) / steps:g}", "kernel": kernel}
            yield Row("kernels", case, milliseconds={"each step": sum(times) / 1e3 / steps})


def kernel_name(name: str) -> str:
    """Without namespaces and parameters."""
    for part in ("void ", "dcgan_fast::cuda::", "at::native::", "(anonymous namespace)::"):
        name = name.replace(part, "")
    return name.rsplit("(", 1)[0][:120]


CODE_BITS = 128  # the paper's
KINDS_OF_DATA: dict[str, Callable[[int], torch.Tensor]] = {
    "10% duplicates": lambda n: _codes(n, n - n // 10),
    "90% duplicates": lambda n: _codes(n, n // 10),
    "half are one": lambda n: torch.where(torch.rand(n, 1) < 0.5, 7, _codes(n, n)),
}


# Of cgan-dcgan and a layer of 128x128 images: maps, patterns of rows and of columns, activation.
PLANES = [
    ((128, 64, 14, 14), 3, "leaky_relu"),
    ((128, 64, 14, 14), 5, "none"),
    ((128, 128, 7, 7), 3, "none"),
    ((128, 1, 28, 28), 5, "sigmoid"),
    ((16, 64, 128, 128), 3, "leaky_relu"),
]


def _planes(module: Any, given: Any, activation: str, grad: torch.Tensor | None) -> object:
    with torch.set_grad_enabled(grad is not None):
        output = module.plane_bias_act(*given, activation=activation)
    return output if grad is None else torch.autograd.grad(output, given[:2], grad)


def plane_rows(timer: Timer, small: bool) -> Iterator[Row]:
    """What labels add to a convolution, and activation: ours and the reference, each as a graph."""
    for shape, patterns, activation in PLANES:
        n, c, h, w = (2, 8, 6, 6) if small else shape
        rows, columns = torch.arange(h) % patterns, torch.arange(w) % patterns
        for name in ("bfloat16", "float32"):
            maps, grad = (
                torch.randn(n, c, h, w).to(DTYPES[name]).to(memory_format=torch.channels_last)
                for _ in range(2)
            )
            bias = torch.randn(n, c, patterns, patterns)
            given = (maps.requires_grad_(), bias.requires_grad_(), rows, columns)
            for passes in ("forward", "forward+backward"):
                gradient = None if passes == "forward" else grad
                contenders = {
                    who: graphed(partial(_planes, module, given, activation, gradient))
                    for who, module in (("ours", functional), ("reference", reference))
                }
                times, failed = timer.race(contenders, 0.5, 50)
                moved = 2 if passes == "forward" else 3 if activation == "none" else 5
                case = {
                    "maps": f"{n}x{c}x{h}x{w}",
                    "patterns": f"{patterns}x{patterns}",
                    "activation": activation,
                    "dtype": name,
                    "passes": passes,
                }
                yield Row("planes", case, 0, moved * maps.nbytes / 1e9, times, failed)


def _codes(rows: int, kinds: int) -> torch.Tensor:
    """Of so many kinds, each of them there, in random order."""
    of_each = torch.randint(-(2**63), 2**63 - 1, (kinds, CODE_BITS // 64))
    return of_each[torch.randperm(rows) % kinds]


def _bytes_of_first_occurrence(keep: torch.Tensor, groups: bool) -> int:
    """What csrc/cuda/first_occurrence.cuh counts, for codes of two words."""
    rows = len(keep)
    duplicates = rows - int(keep.sum())
    inserted = (16 + 32) * rows + 32 * (rows - duplicates) + 32 * duplicates
    if not groups:
        return 17 * rows + inserted + duplicates
    return (20 + 5 + 8 + 12) * rows + inserted + 8 * (rows - duplicates) + (4 + 96) * duplicates


def dedup_rows(timer: Timer, small: bool, rows: int) -> Iterator[Row]:
    """Packing activations and finding first occurrences; PyTorch by its own operators, and by sorting."""
    for name in ("float32", "bfloat16"):
        case = {"op": "pack_codes", "rows": f"{rows:,}", "data": name}
        try:
            activations = torch.randn(rows, CODE_BITS, dtype=DTYPES[name])
        except torch.OutOfMemoryError as error:
            yield Row("dedup", case, failed={"data": str(error)[:200]})
            continue
        contenders: dict[str, Contender] = {
            "ours": partial(dedup.pack_codes, activations),
            "reference": partial(dedup.reference.pack_codes, activations),
        }
        times, failed = timer.race(contenders, 2, 20)
        moved = activations.nbytes + rows * CODE_BITS // 8
        yield Row("dedup", case, 0, moved / 1e9, times, failed, rows / 1e6)
        del activations, contenders
    for name, make in KINDS_OF_DATA.items():
        codes = make(rows)
        keep = dedup.first_of_each(codes)
        unique = partial(torch.unique, codes, dim=0, return_inverse=True, return_counts=True)
        for op, groups in (("first_occurrence", True), ("first_of_each", False)):
            contenders = {"ours": partial(getattr(dedup, op), codes)}
            if groups:
                contenders["unique"] = unique
            times, failed = timer.race(contenders, 5, 20)
            case = {"op": op, "rows": f"{rows:,}", "data": name}
            moved = _bytes_of_first_occurrence(keep, groups)
            yield Row("dedup", case, 0, moved / 1e9, times, failed, rows / 1e6)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, help="folder for <gpu>-<date>.json and .md; none: print only"
    )
    parser.add_argument(
        "--table", type=Path, metavar="JSON", help="print the tables of a run, and run nothing"
    )
    parser.add_argument("--small", action="store_true", help="tiny layers: does it run?")
    parser.add_argument(
        "--only",
        choices=["ceilings", "layers", "steps", "kernels", "planes", "dedup"],
        help="one table",
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="CONTENDER", help='of steps: "compiled"'
    )
    options = parser.parse_args(arguments)
    if options.table:
        print(markdown(json.loads(options.table.read_text())), end="")
        return 0
    if not ON_A_GPU and not options.small:
        parser.error("there is no GPU; with --small it runs on what there is")
    if ON_A_GPU:
        torch.set_default_device("cuda")
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if ON_A_GPU else "no GPU"
    rows: list[Row] = []
    target = None
    if options.out:
        stem = "-".join(name.lower().split()) + time.strftime("-%Y-%m-%d")
        options.out.mkdir(parents=True, exist_ok=True)
        target = options.out / f"{stem}.json"
    print(f"{name}, torch {torch.__version__}, dcgan_fast {dcgan_fast.__version__}")
    timer = Timer(options.small)
    net = "pytorch-32" if options.small else "pytorch-64"
    steps = [(net, 128)] if options.small else [(net, 128), (net, 32), ("paper-64", 128)]
    sizes = [2_000] if options.small else [1_000_000, 10_000_000, 100_000_000]
    tables = {
        "ceilings": [partial(ceilings, timer, options.small)],
        "steps": [
            partial(step_rows, timer, options.small, options.without, *step) for step in steps
        ],
        "kernels": [partial(kernel_rows, timer, options.small, *steps[0])],
        "layers": [partial(layer_rows, timer, options.small, net)],
        "planes": [partial(plane_rows, timer, options.small)],
        "dedup": [partial(dedup_rows, timer, options.small, rows) for rows in sizes],
    }
    for table, makers in tables.items():
        if options.only not in (None, table):
            continue
        for rows_of in makers:
            for row in rows_of():
                rows.append(row)
                print(row.text(), flush=True)
                if target:
                    content = {
                        "device": name,
                        "torch": torch.__version__,
                        "rows": list(map(asdict, rows)),
                    }
                    for path, text in (
                        (target, json.dumps(content, indent=1)),
                        (target.with_suffix(".md"), markdown(content)),
                    ):
                        unfinished = path.with_name(path.name + ".unfinished")
                        unfinished.write_text(text)
                        unfinished.replace(path)
    geometric = [
        row.milliseconds["channels_last"] / row.milliseconds["ours"]
        for row in rows
        if row.table == "layers" and {"ours", "channels_last"} <= row.milliseconds.keys()
    ]
    if geometric:
        mean = math.exp(statistics.fmean(map(math.log, geometric)))
        print(
            f"layers: {mean:.2f} x PyTorch channels_last (geometric mean of {len(geometric)} rows)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
