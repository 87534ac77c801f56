"""Whole training steps as one CUDA graph: a step is one launch, whatever it consists of.

A step is hundreds of launches of kernels that run for microseconds; from Python, one by one, they may take longer than
they run. Captured once, all are launched together: the images and the latents of a step are copied to where the graph
reads them, and it is replayed. One step a replay: of what a launch costs, little is left to share out among several.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from .step import Draw, Sample, Step, as_sample
from .update import keep

Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor]], Replay]

WARM_UPS = (
    3  # as torch.cuda.graphs asks for, so that libraries have chosen their algorithms and allocated
)


def why_not(step: Step) -> str:
    """Why ``step`` cannot be one graph; empty where it can."""
    weights = [*step.update_g.weights, *step.update_d.weights]
    if not all(weight.is_cuda for weight in weights):
        return "the networks are not on a CUDA device"
    return _obstacle(step)


def _obstacle(step: Step) -> str:
    """What the step does that a graph cannot, on whatever device."""
    for update in (step.update_g, step.update_d):
        if not isinstance(update.optimizer, Adam):
            return (
                f"{type(update.optimizer).__name__} takes its settings from the host; Adam does not"
            )
        if update.scaler.is_enabled():
            return "scaled losses (float16) ask the device at each update whether it overflowed"
        if update.average is not keep:
            return "several processes average their gradients"
    if step.penalty is not None and step.penalty.every > 1:
        return "a penalty that is due at some steps makes two kinds of them"
    if step.instance_noise:
        return "instance noise changes from step to step"
    return ""


def cuda_graph(run: Callable[[], Tensor]) -> Replay:
    """``run`` captured, as what replays it and returns where its result lies."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class GraphedStep:
    """A :class:`Step` that is captured at its first call and replayed from then on: called as that one is.

    Before the capture the step is run three times, as CUDA graphs ask for; weights, running statistics, the optimisers'
    state and the random numbers are then put back, so that the first step is the first. Learning rates live on the
    device: what :class:`.schedule.Schedule` sets holds from the next step on, without another capture. So do seeds. A
    batch of another shape than the first is refused.

    A step that cannot be captured runs as itself: :attr:`reason` says why.

    Args:
        step: what to capture; its networks on a CUDA device.
        capture: makes a replay of a function; another one than :func:`cuda_graph` is for tests.

    Raises:
        ValueError: images or latents of other shapes than those of the first step.
    """

    def __init__(self, step: Step, capture: Capture = cuda_graph) -> None:
        self.step = step
        self._capture = capture
        self._replay: Replay | None = None
        self._real: list[Sample] = []
        self._drawn: list[Sample] = []
        self.reason = why_not(step) if capture is cuda_graph else _obstacle(step)

    def __call__(self, real: Tensor | Sample | list[Tensor | Sample], draw: Draw) -> Tensor:
        if self._replay is None and not self.reason:
            self.reason = _obstacle(self.step)  # settings may have changed since
        if self.reason:
            return self.step(real, draw)
        given = [as_sample(batch) for batch in (real if isinstance(real, list) else [real])]
        if self._replay is None:
            try:
                self._prepare(given, draw)
            except RuntimeError as error:
                self.reason = f"it could not be captured: {error}"
                warnings.warn(f"training steps run one op at a time: {self.reason}", stacklevel=2)
                return self.step(real, self._replayed_draws(draw))
        else:
            _copy("real images", self._real, given)
            _copy("latents", self._drawn, [as_sample(draw()) for _ in self._drawn])
        assert self._replay is not None
        number = self.step.number
        row = self._replay().clone()
        self.step.number = number + 1
        return row

    def _prepare(self, real: list[Sample], draw: Draw) -> None:
        """Warm up, put all back, capture. What was drawn for the warm-up is what the first replay reads."""
        step = self.step
        self._real = [tuple(part.clone() for part in batch) for batch in real]
        self._drawn = []
        number = step.number

        def draw_once() -> Sample:
            self._drawn.append(tuple(part.clone() for part in as_sample(draw())))
            return self._drawn[-1]

        for update in (step.update_g, step.update_d):
            _live_on_device(update.optimizer)
        before = _State(step)
        on_side = torch.cuda.is_available()
        stream = torch.cuda.Stream() if on_side else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                self._run(draw_once)
                for _ in range(WARM_UPS - 1):
                    self._run(self._again())
            if stream is not None:
                torch.cuda.current_stream().wait_stream(stream)
            before.put_back()
            self._replay = self._capture(lambda: self._run(self._again()))
        finally:
            before.put_back()
            step.number = number

    def _run(self, draw: Callable[[], Sample]) -> Tensor:
        real: Any = self._real if len(self._real) > 1 else self._real[0]
        return self.step(real, draw)

    def _again(self) -> Callable[[], Sample]:
        """Draws what lies where the graph reads it."""
        drawn = iter(self._drawn)
        return lambda: next(drawn)

    def _replayed_draws(self, draw: Draw) -> Draw:
        """What was drawn for a capture that failed, then what ``draw`` gives."""
        kept: Iterator[Sample] = iter(self._drawn)
        return lambda: next(kept, None) or draw()


class _State:
    """All that a step changes, as it was."""

    def __init__(self, step: Step) -> None:
        self._values: list[tuple[Tensor, Tensor]] = []
        self._optimizers = [step.update_g.optimizer, step.update_d.optimizer]
        for network in (step.generator, step.discriminator):
            tensors = [*network.parameters(), *network.buffers()]
            self._values += [(t, t.detach().clone()) for t in tensors]
        self._moments = [
            {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
            for optimizer in self._optimizers
        ]
        self._rng = torch.get_rng_state()
        self._cuda_rng = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    @torch.no_grad()
    def put_back(self) -> None:
        """In place: the graph reads where the values lie. Moments that were not there are zeros, as new ones are."""
        for tensor, value in self._values:
            tensor.copy_(value)
        for optimizer, moments in zip(self._optimizers, self._moments, strict=True):
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    before = moments.get(id(parameter))
                    value.copy_(before[name]) if before else value.zero_()
        torch.set_rng_state(self._rng)
        if self._cuda_rng is not None:
            torch.cuda.set_rng_state(self._cuda_rng)


def _live_on_device(optimizer: Optimizer) -> None:
    """Its learning rates as tensors, and its step counts, where a graph reads them."""
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device).clone()
        group["capturable"] = device.type == "cuda"


def portable_state(optimizer: Optimizer) -> dict[str, Any]:
    """``optimizer.state_dict()`` as one that no graph holds has it: plain numbers, for any device."""
    state = optimizer.state_dict()
    groups = [
        {
            **group,
            "lr": float(group["lr"]),
            **({"capturable": False} if "capturable" in group else {}),
        }
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def _copy(what: str, static: list[Sample], given: list[Sample]) -> None:
    shapes = [[tuple(part.shape) for part in batch] for batch in static]
    if shapes != (found := [[tuple(part.shape) for part in batch] for batch in given]):
        raise ValueError(f"a captured step takes {what} of the shapes {shapes}, got {found}")
    for batch, new in zip(static, given, strict=True):
        for part, value in zip(batch, new, strict=True):
            part.copy_(value, non_blocking=True)
