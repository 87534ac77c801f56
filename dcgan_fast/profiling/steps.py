"""Where the time of a training step goes: by layer and direction, beside what each cannot go below."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from ..bench.rows import Ceilings
from ..bench.tables import Table
from ..files import make_folder, write_text
from .calls import Layer, is_view, itemsize_of, wanted_gradients, watch, work_of
from .ceilings import floor_seconds, measure_ceilings
from .work import FORWARD

__all__ = ["ProfileRow", "StepProfile", "StepProfiler", "profile_steps"]

TRACE, TABLE, FIGURES = "trace.json", "profile.txt", "profile.json"
_MARK = "layer: "
_BACKWARD = "autograd::engine::evaluate_function: "
_OPTIMIZER = "Optimizer.step#"


@dataclass(frozen=True)
class ProfileRow:
    """A layer in one direction; times and work are those of one step.

    layer, op, direction: ``G main.0-2``, ``conv_transpose_bn_act``, ``forward`` or ``backward``
    calls:   in a step
    seconds: of the thread that runs the step; on a GPU of its kernels
    gflop:   of the direct convolutions, in 10^9 operations
    floor:   seconds that this work cannot go below by the machine's ceilings, convolutions being direct
    """

    layer: str
    op: str
    direction: str
    calls: float
    seconds: float
    gflop: float
    floor: float

    @property
    def gflops(self) -> float:
        return self.gflop / self.seconds if self.seconds else 0.0

    @property
    def above_floor(self) -> float:
        """How many times the floor it takes; below 1 by fewer multiplications, or maps that stayed in a cache."""
        return self.seconds / self.floor if self.floor else float("nan")


@dataclass(frozen=True)
class StepProfile:
    """What :func:`profile_steps` found.

    Attributes:
        rows: in the order in which the layers first ran, forward before backward.
        steps, seconds: how many were watched, and what one of them took, slowed down by being watched.
        optimizer: seconds of a step in the optimisers' updates.
        dtype, ceilings: of the arithmetic, and of the machine, measured after the steps.
    """

    rows: tuple[ProfileRow, ...]
    steps: int
    seconds: float
    optimizer: float
    dtype: str
    ceilings: Ceilings

    @property
    def other(self) -> float:
        """Seconds of a step outside of layers and optimisers: losses, data, sums of gradients, callbacks."""
        return max(0.0, self.seconds - self.optimizer - sum(row.seconds for row in self.rows))

    @property
    def floor(self) -> float:
        return sum(row.floor for row in self.rows)

    def table(self) -> Table:
        cells = [
            [
                row.layer,
                row.op,
                row.direction,
                f"{row.calls:g}",
                f"{row.seconds * 1e3:.3f}",
                f"{row.gflop:.3g}",
                f"{row.gflops:,.0f}",
                f"{row.floor * 1e3:.3f}",
                f"{row.above_floor:.1f}" if row.floor else "",
            ]
            for row in self.rows
        ]
        for name, seconds in (("optimizers", self.optimizer), ("other", self.other)):
            cells.append([name, "", "", "", f"{seconds * 1e3:.3f}", "", "", "", ""])
        ceilings = ", ".join(f"{name} {rate:,.0f}" for name, rate in self.ceilings.items())
        return Table(
            title="Where the time of a step goes",
            columns=[
                *("layer", "op", "direction", "calls", "ms", "GFLOP", "GFLOP/s"),
                *("floor ms", "x floor"),
            ],
            numeric=[False] * 3 + [True] * 6,
            cells=cells,
            notes=[
                f"A step of {self.seconds * 1e3:.1f} ms, the mean of {self.steps}, in {self.dtype}; its layers' floor "
                f"{self.floor * 1e3:.1f} ms. Watching slows it down a little.",
                f"Ceilings, GFLOP/s (copy: GB/s): {ceilings}. Work of direct convolutions; each map read and written "
                "in memory.",
                "",
            ],
        )

    def to_text(self) -> str:
        return "\n".join(self.table().text()) + "\n"

    def to_json(self) -> str:
        derived = {"floor": self.floor, "other": self.other}
        return json.dumps({**asdict(self), **derived}, indent=2) + "\n"


@dataclass
class _Call:
    """One call of a layer that was watched."""

    layer: Layer
    forward: tuple[float, float]  # FLOP and bytes
    backward: tuple[float, float]  # of each pass
    seconds: float = 0.0
    backward_seconds: float = 0.0
    backward_passes: int = 0


class StepProfiler:
    """Watches from :meth:`start` to :meth:`stop`; :func:`profile_steps` for who has a step to call.

    Args:
        networks: with the names that their layers get, ``{"G": generator, "D": discriminator}``.
        dtype: of the arithmetic, for the floors: "float32" or "bfloat16".
        device: where the networks are.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        dtype: str = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.networks, self.dtype, self.device = dict(networks), dtype, torch.device(device)
        self._calls: list[_Call] = []
        self._stack: ExitStack | None = None

    def start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else two lines on standard error a profile
        self._calls = []
        self._stack = ExitStack()
        self._stack.enter_context(watch(self.networks, self._watch))
        self._profile = profile(activities=activities, record_shapes=True)
        self._synchronize()
        self._profile.start()
        self._started = time.perf_counter()

    def _watch(self, layer: Layer, run: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        gradients = wanted_gradients(layer, inputs)
        with record_function(f"{_MARK}{layer} {layer.kind}"):
            output = run(*inputs)
        work, size = work_of(layer, inputs[0], output), itemsize_of(inputs[0])
        if is_view(layer):
            size = 0
        self._calls.append(
            _Call(
                layer,
                forward=(work.flop(FORWARD), work.bytes(size, FORWARD)),
                backward=(work.flop(*gradients), work.bytes(size, *gradients)),
            )
        )
        return output

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def cancel(self) -> None:
        """Stop watching, without a result; nothing where nothing is watched."""
        if self._stack is not None:
            self._profile.stop()
            self._stack.close()
            self._stack = None

    def stop(self, steps: int, trace: str | os.PathLike[str] | None = None) -> StepProfile:
        """What the ``steps`` since :meth:`start` did.

        Args:
            trace: also write Chrome's trace of them to this file (chrome://tracing, ui.perfetto.dev).
        """
        self._synchronize()
        seconds = (time.perf_counter() - self._started) / steps
        self.cancel()
        if trace is not None:
            _export(self._profile, Path(trace))
        optimizer = self._attribute(list(self._profile.events() or ()))
        ceilings = measure_ceilings(0.3)
        return StepProfile(
            rows=self._rows(steps, ceilings),
            steps=steps,
            seconds=seconds,
            optimizer=optimizer / steps,
            dtype=self.dtype,
            ceilings=ceilings,
        )

    def _attribute(self, events: list[FunctionEvent]) -> float:
        """Give each call its time, and that of the backward nodes which it made; returns the optimisers'.

        A forward op and the node that it makes have one sequence number. An op that makes none has that of the next one
        that does, so of several the last counts, also where that is outside all layers.
        """
        events = sorted((e for e in events if e.device_type.name == "CPU"), key=_start)
        ranges = [event for event in events if event.name.startswith(_MARK)]
        assert len(ranges) == len(self._calls)
        calls = {event.id: call for event, call in zip(ranges, self._calls, strict=True)}
        made_by: dict[int, _Call | None] = {}
        owner: dict[int, _Call | None] = {}  # of events, by their ids
        nodes: dict[tuple[int, int], int] = {}  # of a call and a number: how often it ran backward
        optimizer = 0.0
        for event in events:
            number, parent = event.sequence_nr, event.cpu_parent
            found = owner.get(parent.id) if parent is not None else None
            if event.id in calls:
                found = calls[event.id]
                found.seconds += self._seconds(event)
            elif event.name.startswith(_BACKWARD):
                found = made_by.get(number)
                if found is not None:
                    found.backward_seconds += self._seconds(event)
                    passes = nodes[id(found), number] = nodes.get((id(found), number), 0) + 1
                    found.backward_passes = max(found.backward_passes, passes)
            elif number >= 0:
                made_by[number] = found
            if event.name.startswith(_OPTIMIZER):
                optimizer += self._seconds(event)
            owner[event.id] = found
        return optimizer

    def _seconds(self, event: FunctionEvent) -> float:
        cuda = self.device.type == "cuda"
        return (event.device_time_total if cuda else event.cpu_time_total) / 1e6

    def _rows(self, steps: int, ceilings: Ceilings) -> tuple[ProfileRow, ...]:
        groups: dict[Layer, list[_Call]] = {}
        for call in self._calls:
            groups.setdefault(call.layer, []).append(call)
        rows = []
        for layer, calls in groups.items():
            for backward in (False, True):
                counts = [call.backward_passes if backward else 1 for call in calls]
                if not any(counts):
                    continue
                work = [call.backward if backward else call.forward for call in calls]
                floors = [floor_seconds(ceilings, self.dtype, *amount) for amount in work]
                times = [call.backward_seconds if backward else call.seconds for call in calls]
                rows.append(
                    ProfileRow(
                        layer=str(layer),
                        op=layer.kind,
                        direction="backward" if backward else "forward",
                        calls=sum(counts) / steps,
                        seconds=sum(times) / steps,
                        gflop=sum(n * flop for n, (flop, _) in zip(counts, work, strict=True))
                        / (steps * 1e9),
                        floor=sum(n * floor for n, floor in zip(counts, floors, strict=True))
                        / steps,
                    )
                )
        return tuple(rows)


def _start(event: FunctionEvent) -> tuple[float, float]:
    """Parents before their children."""
    return event.time_range.start, -event.time_range.end


def _export(found: profile, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    found.export_chrome_trace(str(temporary))
    os.replace(temporary, path)


def profile_steps(
    step: Callable[[], object],
    networks: Mapping[str, nn.Module],
    *,
    steps: int = 5,
    warmup: int = 2,
    dtype: str = "float32",
    out: str | os.PathLike[str] | None = None,
) -> StepProfile:
    """Profile training steps of your own: ``profile_steps(step, {"G": generator, "D": discriminator})``.

    Args:
        step: one whole step, forward, backward and optimisers.
        networks: whose layers are told apart, with the names that they get.
        steps, warmup: calls that are watched, and before them calls that are not.
        dtype: of the arithmetic, for the floors: "float32" or "bfloat16".
        out: a folder to which Chrome's trace (``trace.json``), the table (``profile.txt``) and its figures
            (``profile.json``) are written.

    Returns:
        A row for each layer and direction. A backward pass is told by the nodes that the layer's forward made, so it
        belongs to the right layer whatever the shapes; sums of gradients over passes are not in it. Derivatives of
        derivatives (penalties on gradients) are in the time, and not in the FLOPs.

    Raises:
        ValueError: ``steps`` is below 1, or ``warmup`` below 0.
        UserError: ``out`` cannot be written.
    """
    if steps < 1 or warmup < 0:
        raise ValueError(
            f"profile_steps(): 'steps' must be at least 1 and 'warmup' at least 0, got {steps} and {warmup}"
        )
    device = next((p.device for n in networks.values() for p in n.parameters()), "cpu")
    profiler = StepProfiler(networks, dtype, device)
    for _ in range(warmup):
        step()
    folder = None if out is None else make_folder(out)
    profiler.start()
    try:
        for _ in range(steps):
            step()
        found = profiler.stop(steps, trace=None if folder is None else folder / TRACE)
    finally:
        profiler.cancel()
    if folder is not None:
        save_profile(found, folder)
    return found


def save_profile(found: StepProfile, folder: Path) -> None:
    """The table and its figures."""
    write_text(folder / TABLE, found.to_text())
    write_text(folder / FIGURES, found.to_json())
