"""How fast a preset will train here, and how fast it could at best: layer by layer, before any data is there."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..bench.rows import COPY, Ceilings
from ..bench.tables import Table
from ..nn import convolution_engines
from ..profiling.calls import Layer, is_view, itemsize_of, wanted_gradients, watch, work_of
from ..profiling.ceilings import floor_seconds
from ..profiling.work import FORWARD
from .config import TrainConfig
from .setup import build_networks, make_optimizer, placed

__all__ = ["Forecast", "ForecastRow", "forecast"]

LEARN, THROUGH, DRAW = "learn", "through", "draw"
"""Passes of a network: with gradients of its weights; with those of its images alone; without any."""

_FEWEST_CALLS = 3
# The times that it reads or writes a number for each weight.
_MAPS_OF_AN_OPTIMIZER = {"adam": 7, "sgd": 5}


@dataclass(frozen=True)
class ForecastRow:
    """A layer in one training step, over all its passes.

    layer, op: ``G main.0-2``, ``conv_transpose_bn_act``
    engines:   what runs its convolution ("" where it has none)
    gflop, gigabytes, floor: work of the direct convolutions, bytes that must be moved, seconds it cannot go below
    seconds:   measured, of the layer by itself; None where nothing was measured
    """

    layer: str
    op: str
    engines: str
    gflop: float
    gigabytes: float
    floor: float | None
    seconds: float | None


@dataclass(frozen=True)
class Forecast:
    """What :func:`forecast` found.

    Attributes:
        preset, batch_size, image_size, dtype, threads: of what.
        rows: the layers, the optimisers' updates last.
        images: real images that a step takes.
        ceilings: of the machine.
    """

    preset: str
    batch_size: int
    image_size: int
    dtype: str
    threads: int
    rows: tuple[ForecastRow, ...]
    images: int
    ceilings: Ceilings

    @property
    def seconds(self) -> float | None:
        """Of a step: the layers' own, without losses, data and logs; None where nothing was measured."""
        times = [row.seconds for row in self.rows if row.seconds is not None]
        return sum(times) if len(times) == len(self.rows) else None

    @property
    def floor(self) -> float | None:
        floors = [row.floor for row in self.rows if row.floor is not None]
        return sum(floors) if len(floors) == len(self.rows) else None

    def to_dict(self) -> dict[str, Any]:
        derived: dict[str, Any] = {"seconds": self.seconds, "floor": self.floor}
        for name in ("seconds", "floor"):
            value = derived[name]
            derived[f"images_per_second_by_{name}"] = value and self.images / value
        return {**asdict(self), **derived}

    def table(self) -> Table:
        cells = [
            [
                row.layer,
                row.op,
                row.engines,
                f"{row.gflop:.3g}",
                f"{row.gigabytes * 1e3:,.1f}",
                _ms(row.floor),
                _ms(row.seconds),
                f"{row.seconds / row.floor:.1f}" if row.seconds and row.floor else "",
            ]
            for row in self.rows
        ]
        return Table(
            title=f"A training step of {self.preset}",
            columns=["layer", "runs as", "by", "GFLOP", "MB", "floor ms", "ms", "x floor"],
            numeric=[False] * 3 + [True] * 5,
            cells=cells,
            notes=[],
        )

    def to_text(self) -> str:
        lines = [
            f"a training step of {self.images} images of {self.image_size}x{self.image_size}, {self.dtype}, "
            f"{self.threads} threads:",
            *("  " + line for line in self.table().text()),
        ]
        if self.seconds and self.floor:
            lines += [
                f"predicted {self.images / self.seconds:,.0f} images/s ({self.seconds * 1e3:,.0f} ms a step); "
                f"floor {self.images / self.floor:,.0f} images/s ({self.floor * 1e3:,.0f} ms)",
                "Predicted: each layer timed by itself, forward and backward, as often as a step calls it, and the "
                "optimisers; without losses,",
                "data, grids and checkpoints. Floor: direct convolutions at the machine's peak, each map read and "
                "written in memory.",
            ]
        return "\n".join(lines) + "\n"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.2f}"


def step_passes(config: TrainConfig) -> dict[str, dict[str, int]]:
    """How often a step of ``config`` runs each network in each way.

    Where one pass of D serves both updates (``reuse_fake_output``) its second backward has no forward of its own. A
    penalty on D's gradient is not among them.
    """
    if config.alternate:
        return {"G": {LEARN: 1, DRAW: 1}, "D": {LEARN: 2, THROUGH: 1}}
    if config.reuse_fake_output:
        return {"G": {LEARN: 1}, "D": {LEARN: 2, THROUGH: 1, DRAW: -1}}
    of_g = config.g_steps_per_d * config.accumulate
    of_d = config.d_steps_per_g * config.accumulate
    drawn = of_d - (config.accumulate == 1)  # G's update goes on with the last images that D's had
    return {"G": {LEARN: of_g, DRAW: drawn}, "D": {LEARN: 2 * of_d, THROUGH: of_g}}


def forecast(
    config: TrainConfig,
    ceilings: Ceilings,
    *,
    channels: int | None = None,
    classes: int = 10,
    seconds: float = 3.0,
) -> Forecast:
    """How fast ``config`` will train on this machine's CPU.

    Each layer is run by itself, forward and backward, on maps that the layers before it made of noise, with weights
    that count as new each time, and its time is the median; a step is the sum over layers and passes, and over the
    optimisers' updates. What it leaves out (losses, data, grids, checkpoints) and what runs better alone than in its
    place, with maps in cache that a whole step would have driven out, makes it too fast: networks of convolutions by at
    most a seventh, those of small linear layers by almost half (``docs/runs.md``).

    Args:
        config: its preset, sizes, amp, fuse, channels_last and optimiser count; ``joint_pass`` and penalties do not.
        ceilings: :func:`dcgan_fast.profiling.measure_ceilings`; {}: no floors.
        channels, classes: of the images (None: the preset's), and of labels where the networks take them.
        seconds: for all measurements together, at least three calls each; 0: nothing is measured.

    Raises:
        UserError: the networks cannot have these settings.
    """
    torch.manual_seed(config.seed)
    channels = channels or models.PRESETS[config.preset].setting("nc")
    generator, discriminator = build_networks(config, channels, classes)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    networks: dict[str, nn.Module] = {
        "G": placed(generator, torch.device("cpu"), layout),
        "D": placed(discriminator, torch.device("cpu"), layout),
    }
    half = torch.float16 if config.amp == "fp16" else torch.bfloat16
    dtype = "float32" if config.amp is None else str(half).removeprefix("torch.")

    def autocast() -> AbstractContextManager[Any]:
        return nullcontext() if config.amp is None else torch.autocast("cpu", half)

    inputs = _inputs(generator, config.batch_size, classes)
    engines: dict[nn.Module | None, str] = {}
    with autocast():
        for name, network in networks.items():
            engines |= convolution_engines(network, *inputs[name])
    meter = _Meter(ceilings, dtype, engines, _budget(seconds, networks, inputs))
    for name, passes in step_passes(config).items():
        for kind, count in passes.items():
            if count:
                with autocast():
                    meter.run(networks[name], name, kind, count, inputs[name])
    updates = {"G": config.g_steps_per_d, "D": config.d_steps_per_g}
    rows = [*meter.rows(), _optimizer_row(config, networks, updates, ceilings, seconds)]
    return Forecast(
        preset=config.preset,
        batch_size=config.batch_size,
        image_size=config.image_size,
        dtype=dtype,
        threads=torch.get_num_threads(),
        rows=tuple(rows),
        images=config.batch_size * config.batches_per_step,
        ceilings=ceilings,
    )


def _inputs(generator: Any, batch: int, classes: int) -> dict[str, tuple[Tensor, ...]]:
    labels = (torch.arange(batch) % classes,) if generator.classes else ()
    with torch.no_grad():
        latent = generator.sample_latent(batch)
        return {"G": (latent, *labels), "D": (generator(latent, *labels), *labels)}


def _budget(
    seconds: float, networks: Mapping[str, nn.Module], inputs: Mapping[str, tuple[Tensor, ...]]
) -> float:
    """Seconds for each measurement, of which there are as many as layers, D's twice."""
    calls: Counter[str] = Counter()

    def count(layer: Layer, run: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        calls[layer.network] += 1
        return run(*inputs)

    with torch.no_grad(), watch(networks, count):
        for name, network in networks.items():
            network(*inputs[name])
    return seconds / (calls["G"] + 2 * calls["D"])


@dataclass
class _Sum:
    gflop: float = 0.0
    gigabytes: float = 0.0
    floor: float = 0.0
    seconds: float = 0.0


class _Meter:
    """Adds up what the layers of passes need, one pass after the other."""

    def __init__(
        self,
        ceilings: Ceilings,
        dtype: str,
        engines: Mapping[nn.Module | None, str],
        budget: float,
    ) -> None:
        self.ceilings, self.dtype, self.engines, self.budget = ceilings, dtype, engines, budget
        self._sums: dict[Layer, _Sum] = {}

    def run(
        self, network: nn.Module, name: str, kind: str, count: int, inputs: tuple[Tensor, ...]
    ) -> None:
        """One pass of ``network``, which counts for ``count``."""
        weights = list(network.parameters())
        for weight in weights:
            weight.requires_grad_(kind == LEARN)
        first = inputs[0].detach().requires_grad_(kind == THROUGH)

        def measure(layer: Layer, run: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
            gradients = wanted_gradients(layer, inputs)
            seconds = self._seconds(layer, run, inputs) if self.budget else 0.0
            output = run(*inputs)
            work = work_of(layer, inputs[0], output)
            size = 0 if is_view(layer) else itemsize_of(inputs[0])
            found = self._sums.setdefault(layer, _Sum())
            for passes in ((FORWARD,), gradients):
                flop, moved = work.flop(*passes), work.bytes(size, *passes)
                found.gflop += count * flop / 1e9
                found.gigabytes += count * moved / 1e9
                if self.ceilings:
                    found.floor += count * floor_seconds(self.ceilings, self.dtype, flop, moved)
            found.seconds += count * seconds
            return output

        with torch.set_grad_enabled(kind != DRAW), watch({name: network}, measure):
            network(first, *inputs[1:])
        for weight in weights:
            weight.requires_grad_(True)

    def _seconds(self, layer: Layer, run: Callable[..., Any], inputs: tuple[Any, ...]) -> float:
        """Of one call and its backward pass, by itself."""
        weights = [p for m in layer.modules for p in m.parameters() if p.requires_grad]
        leaves = [i.detach() if isinstance(i, Tensor) else i for i in inputs]
        leaves[0].requires_grad_(inputs[0].requires_grad)
        wanted = [*leaves[:1], *weights] if leaves[0].requires_grad else weights
        inplace = any(getattr(module, "inplace", False) for module in layer.modules)
        gradient: Tensor | None = None
        times: list[float] = []
        while len(times) <= _FEWEST_CALLS or sum(times) < self.budget:  # the first does not count
            with torch.no_grad():
                for weight in weights:
                    weight.mul_(1)  # as after an update: what kernels keep of it is made anew
            start = time.perf_counter()
            first = leaves[0].clone() if inplace and layer.op is None else leaves[0]
            output = run(first, *leaves[1:])
            if output.requires_grad:
                if gradient is None:
                    gradient = torch.randn_like(output)
                torch.autograd.grad(output, wanted, gradient, allow_unused=True)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def rows(self) -> list[ForecastRow]:
        return [
            ForecastRow(
                layer=str(layer),
                op=f"dcgan_fast.{layer.op}" if layer.op else layer.kind,
                engines=self.engines.get(layer.weighted, ""),
                gflop=found.gflop,
                gigabytes=found.gigabytes,
                floor=found.floor if self.ceilings else None,
                seconds=found.seconds if self.budget else None,
            )
            for layer, found in self._sums.items()
        ]


def _optimizer_row(
    config: TrainConfig,
    networks: Mapping[str, nn.Module],
    updates: Mapping[str, int],
    ceilings: Ceilings,
    seconds: float,
) -> ForecastRow:
    spent = moved = 0.0
    for name, network in networks.items():
        weights = list(network.parameters())
        maps = _MAPS_OF_AN_OPTIMIZER[config.optimizer]
        moved += updates[name] * maps * sum(w.numel() * w.element_size() for w in weights)
        if seconds:
            optimizer = make_optimizer(network, config)
            for weight in weights:
                weight.grad = torch.zeros_like(weight)
            times = []
            for _ in range(_FEWEST_CALLS + 1):
                start = time.perf_counter()
                optimizer.step()
                times.append(time.perf_counter() - start)
            spent += updates[name] * statistics.median(times[1:])
    return ForecastRow(
        layer="optimizers",
        op=config.optimizer,
        engines="",
        gflop=0.0,
        gigabytes=moved / 1e9,
        floor=moved / 1e9 / ceilings[COPY] if ceilings else None,
        seconds=spent if seconds else None,
    )
