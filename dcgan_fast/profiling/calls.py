"""Which layers a network's forward pass calls, and with what: watched without taking the fusion apart.

Hooks on the children of a fused sequence would make each run as itself, so what is replaced here is what the sequence
asks for its runs; modules outside of one have their ``forward`` replaced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..labels import LabelRun, takes_labels
from ..nn import FUSED, MaxoutLinear, Run
from .work import INPUT_GRAD, WEIGHT_GRAD, Work

_WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, MaxoutLinear)
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid)


@dataclass(frozen=True)
class Layer:
    """What one call serves: a run of a fused sequence, or a module by itself.

    network: the name that its network was given
    path:    of its modules, ``main.0-2``
    modules: these
    op:      the name in :mod:`dcgan_fast.functional`, None where the modules run as themselves
    """

    network: str
    path: str
    modules: tuple[nn.Module, ...] = field(compare=False)
    op: str | None = None

    def __str__(self) -> str:
        return f"{self.network} {self.path}".rstrip()

    @property
    def weighted(self) -> nn.Module | None:
        """The module whose weight multiplies the input."""
        return next((m for m in self.modules if isinstance(m, _WEIGHTED)), None)

    @property
    def kind(self) -> str:
        """What runs, in a word: the op's name, or the modules'."""
        return self.op or " + ".join(type(module).__name__ for module in self.modules)


Watcher = Callable[[Layer, Callable[..., Any], tuple[Any, ...]], Any]
"""Called in the place of a layer with it, what runs it, and the arguments; returns the layer's result."""


@contextmanager
def watch(networks: Mapping[str, nn.Module], watcher: Watcher) -> Iterator[None]:
    """Within the context ``watcher`` is called in the place of every layer of ``networks``, which have names."""
    replaced: list[tuple[nn.Module, str, Any]] = []

    def replace(module: nn.Module, name: str, value: object) -> None:
        replaced.append((module, name, vars(module).get(name)))
        vars(module)[name] = value

    try:
        for network, root in networks.items():
            served: set[int] = set()
            for path, module in root.named_modules():
                if type(module) in FUSED.values():
                    replace(module, "runs", _WatchedRuns(network, path, module, watcher))
                    served.update(id(child) for child in module if not _sees_itself(child))
                elif id(module) not in served and next(module.children(), None) is None:
                    layer = Layer(network, path, (module,))
                    replace(module, "forward", functools.partial(_call, watcher, layer, module))
        yield
    finally:
        for module, name, value in reversed(replaced):
            if value is None:
                del vars(module)[name]
            else:
                vars(module)[name] = value


def _sees_itself(child: nn.Module) -> bool:
    """Whether a fused sequence calls this child by itself, and not in a run: with labels, or with layers inside."""
    return (takes_labels(child) and not hasattr(child, "fused")) or bool(list(child.children()))


def _call(watcher: Watcher, layer: Layer, module: nn.Module, *inputs: Any, **options: Any) -> Any:
    own = functools.partial(type(module).forward, module, **options)
    return watcher(layer, own, inputs)


class _WatchedRuns:
    """In the place of a fused sequence's ``runs``: the same, with the watcher around each."""

    def __init__(self, network: str, path: str, sequence: nn.Module, watcher: Watcher) -> None:
        self.network, self.path, self.sequence, self.watcher = network, path, sequence, watcher

    def __call__(self) -> Iterator[Run]:
        start = 0
        for run in type(self.sequence).runs(self.sequence):  # type: ignore[attr-defined]
            end = start + len(run.modules)
            if any(_sees_itself(module) for module in run.modules):
                yield run  # watched inside
            else:
                where = f"{start}-{end - 1}" if end - start > 1 else f"{start}"
                path = ".".join(filter(None, [self.path, where]))
                layer = Layer(self.network, path, tuple(run.modules), run.op)
                kind = _WatchedLabelRun if isinstance(run, LabelRun) else _WatchedRun
                yield kind(
                    run.modules,
                    run.convolution,
                    run.normalisation,
                    run.activation,
                    run.reason,
                    layer,
                    self.watcher,
                )
            start = end


@dataclass(frozen=True)
class _Watched:
    """Before a kind of run: what calls the watcher in its place."""

    layer: Layer | None = None
    watcher: Watcher | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        assert self.layer is not None and self.watcher is not None
        run: Callable[..., Any] = super().__call__  # type: ignore[misc]
        result: Tensor = self.watcher(self.layer, run, inputs)
        return result


@dataclass(frozen=True)
class _WatchedRun(_Watched, Run):
    pass


@dataclass(frozen=True)
class _WatchedLabelRun(_Watched, LabelRun):
    pass


def work_of(layer: Layer, input: Tensor, output: Tensor) -> Work:
    """What ``layer`` must do for one call; of modules that are not known here, to read and to write."""
    module = layer.weighted
    shape: tuple[int, ...] = ()
    if isinstance(module, _WEIGHTED):
        shape = tuple(module.weight.shape)
        if layer.op and takes_labels(module):  # planes of labels, which nobody multiplies with
            axis = 0 if isinstance(module, nn.ConvTranspose2d) else 1
            shape = shape[:axis] + (shape[axis] - int(module.classes),) + shape[axis + 1 :]  # type: ignore[arg-type]
    return Work(
        input=tuple(input.shape),
        output=tuple(output.shape),
        weight=shape,
        transposed=isinstance(module, nn.ConvTranspose2d),
        normalised=any(isinstance(m, _BatchNorm) for m in layer.modules),
        active=any(isinstance(m, _ACTIVATIONS) for m in layer.modules),
    )


def is_view(layer: Layer) -> bool:
    """Whether ``layer`` gives the same numbers another shape, or none at all to do."""
    return all(isinstance(m, (nn.Flatten, nn.Unflatten, nn.Identity)) for m in layer.modules)


def wanted_gradients(layer: Layer, inputs: tuple[Any, ...]) -> tuple[str, ...]:
    """Which gradients a backward pass through a call would make, as the tensors are now."""
    if not torch.is_grad_enabled():
        return ()
    of_input = any(isinstance(i, Tensor) and i.requires_grad for i in inputs)
    of_weight = any(p.requires_grad for m in layer.modules for p in m.parameters())
    return (INPUT_GRAD,) * of_input + (WEIGHT_GRAD,) * of_weight


def itemsize_of(input: Tensor) -> int:
    """Bytes of a number of the maps, by autocast where that is on."""
    if torch.is_autocast_enabled(input.device.type):
        return torch.get_autocast_dtype(input.device.type).itemsize
    return input.element_size()
