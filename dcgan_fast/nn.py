"""Sequential networks that run on the fused ops and keep the modules, names and state dict of plain PyTorch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.modules.module as module_globals
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.optim.swa_utils import update_bn

from . import functional, reference, synchronised

__all__ = [
    "FusedSequential",
    "MaxoutLinear",
    "batch_norm_mode",
    "explain",
    "fuse",
    "population_statistics",
    "stat_groups",
    "synchronised_statistics",
    "unfuse",
]

M = TypeVar("M", bound=nn.Module)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NORMALISATIONS = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
    nn.SyncBatchNorm: (2, 3, 4, 5),
}  # input ranks
_ACTIVATIONS = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}
_FUSIBLE = {*_CONVOLUTIONS, *_NORMALISATIONS, *_ACTIVATIONS}


@dataclass(frozen=True)
class Run:
    """Consecutive children that one call serves."""

    modules: Sequence[nn.Module]
    convolution: nn.Conv2d | nn.ConvTranspose2d | None = None
    normalisation: _BatchNorm | None = None
    activation: nn.Module | None = None
    reason: str = ""  # why a run of one module is not fused

    @property
    def op(self) -> str | None:
        if self.convolution is None:
            return None if self.normalisation is None else "bn_act"
        transposed = "_transpose" if isinstance(self.convolution, nn.ConvTranspose2d) else ""
        return f"conv{transposed}{'' if self.normalisation is None else '_bn'}_act"

    def serves(self, input: Tensor) -> bool:
        if input.dtype not in _DTYPES or not functional.served(input):
            return False
        if self.convolution is not None:
            return input.dim() == 4
        return (
            self.normalisation is not None
            and input.dim() in _NORMALISATIONS[type(self.normalisation)]
        )

    def __call__(self, input: Tensor) -> Tensor:
        if self.op is None or not self.serves(input):
            for module in self.modules:
                input = module(input)
            return input
        conv, bn = self.convolution, self.normalisation
        arguments: list[Tensor | None] = []
        options: dict[str, object] = {**activation_options(self.activation)}
        if conv is not None:
            arguments.append(conv.weight)  # one look: a parametrized weight is worked out at each
            watch_engines(conv, input, cast(Tensor, arguments[0]))
            options |= {"stride": conv.stride, "padding": conv.padding}
            if isinstance(conv, nn.ConvTranspose2d):
                options["output_padding"] = conv.output_padding
        if bn is not None:
            arguments += [*_gain_and_bias(bn, input), *_running_statistics(bn)]
            options |= {
                "training": bn.training or bn.running_mean is None,
                "momentum": bn.momentum,
                "eps": bn.eps,
                "stat_groups": _groups_of(bn),
                "process_group": _processes_of(bn),
            }
        elif conv is not None:
            arguments.append(conv.bias)
        return getattr(functional, self.op)(input, *arguments, **options)


def activation_options(module: nn.Module | None) -> dict[str, Any]:
    """The arguments of the fused ops that stand for an activation."""
    activation = "none" if module is None else _ACTIVATIONS[type(module)]
    slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
    return {"activation": activation, "negative_slope": slope}


_engines: dict[nn.Module, str] | None = None  # what explain() watches while it runs a model


def watch_engines(conv: nn.Conv2d | nn.ConvTranspose2d, input: Tensor, weight: Tensor) -> None:
    """Tells :func:`explain`, where it watches, what runs a convolution by ``weight`` in its three directions."""
    if _engines is None:
        return
    extra = conv.output_padding if isinstance(conv, nn.ConvTranspose2d) else (0, 0)
    device = input.device.type
    if torch.is_autocast_enabled(device):  # as the op will do
        input, weight = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (input, weight))
    names = torch.ops.dcgan_fast._convolution_engines(
        input,
        weight,
        conv.stride,
        conv.padding,
        extra,
        isinstance(conv, nn.ConvTranspose2d),
    )
    directions = ("forward", "input gradient", "weight gradient")
    several = ", ".join(f"{d}: {n}" for d, n in zip(directions, names, strict=True))
    _engines[conv] = names[0] if len(set(names)) == 1 else several


def _gain_and_bias(bn: _BatchNorm, input: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the module; one and zero of ``affine=False``."""
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    if not bn.affine:
        one = torch.ones(bn.num_features, dtype=wide, device=input.device)
        return one, torch.zeros_like(one)
    return bn.weight, torch.zeros_like(bn.weight) if bn.bias is None else bn.bias


def _running_statistics(bn: _BatchNorm) -> tuple[Tensor | None, Tensor | None]:
    """The statistics this forward reads or updates; counts the batch, as BatchNorm's own forward does."""
    if bn.training and not bn.track_running_stats:
        return None, None
    if bn.training and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(_groups_of(bn))
    return bn.running_mean, bn.running_var


def _groups_of(bn: nn.Module) -> int:
    """How many batches a batch norm takes its input for: see :func:`stat_groups`."""
    own_statistics = bn.training or bn.running_mean is None
    return vars(bn).get("_stat_groups", 1) if own_statistics else 1


def _processes_of(bn: _BatchNorm) -> dist.ProcessGroup | None:
    """Whose statistics are joined: see :func:`synchronised_statistics`; of a SyncBatchNorm as its own forward does."""
    if "_process_group" in vars(bn):
        return cast("dist.ProcessGroup | None", vars(bn)["_process_group"])
    is_joined = isinstance(bn, nn.SyncBatchNorm) and bn.training
    if not (is_joined and dist.is_available() and dist.is_initialized()):
        return None
    return bn.process_group or dist.group.WORLD  # type: ignore[return-value]


def _marked_forward(bn: _BatchNorm, input: Tensor) -> Tensor:
    """A batch norm's forward within :func:`stat_groups` or :func:`synchronised_statistics`, for whoever calls it by
    itself."""
    groups, processes = _groups_of(bn), _processes_of(bn)
    own = vars(bn).get("_own_forward")
    if own is not None:
        forward = own
    elif synchronised.wanted(processes, bn.training or bn.running_mean is None):
        forward = partial(_joined_forward, bn)
    else:  # past SyncBatchNorm's, which would look for processes by itself
        kind = _BatchNorm if isinstance(bn, nn.SyncBatchNorm) else type(bn)
        forward = partial(kind.forward, bn)
    if groups == 1:
        return forward(input)
    if len(input) % groups:
        raise ValueError(f"'stat_groups' must divide the batch of {len(input)}, got {groups}")
    return torch.cat([forward(part) for part in input.chunk(groups)])


def _joined_forward(bn: _BatchNorm, input: Tensor) -> Tensor:
    """One batch of a batch norm whose statistics are joined."""
    bn._check_input_dim(input)
    if bn.training and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
    momentum = bn.momentum
    if momentum is None:
        momentum = 1 / float(bn.num_batches_tracked or 1)
    updated = bn.training and bn.track_running_stats
    return functional.bn_act(
        input,
        *_gain_and_bias(bn, input),
        bn.running_mean if updated else None,
        bn.running_var if updated else None,
        activation="none",
        training=True,
        momentum=momentum,
        eps=bn.eps,
        process_group=_processes_of(bn),
    )


def why_watched(module: nn.Module) -> str:
    """Why ``module`` must be called, whatever it is; empty when nobody but its class has a say in its forward."""
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return "has hooks"
    if ("_own_forward" if vars(module).keys() & _MARKS else "forward") in vars(module):
        return "its forward is replaced"
    return ""


def _kind(module: nn.Module) -> type[nn.Module]:
    """The class of ``module``, that of before its parametrizations (spectral norm, say) where it is of no fused op."""
    kind = type(module)
    return kind if kind in _FUSIBLE else parametrize.type_before_parametrizations(module)


def _obstacle(module: nn.Module) -> str:
    """Why ``module`` must run as itself; empty when a fused op may stand in for it."""
    kind = _kind(module)
    if kind not in _FUSIBLE:
        return f"{type(module).__name__} is not part of a fused op"
    if watched := why_watched(module):
        return watched
    if kind is not type(module):
        # a weight is read once in a pass, as the module's own forward does; other tensors are not
        free = ("weight",) if kind in _CONVOLUTIONS else ()
        parametrized = [name for name in cast(Any, module).parametrizations if name not in free]
        if parametrized:
            return f"parametrized {parametrized[0]}"
    if isinstance(module, _CONVOLUTIONS):
        if module.groups != 1:
            return f"groups={module.groups}"
        if module.dilation != (1, 1):
            return f"dilation={module.dilation}"
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            return f"padding={module.padding!r}, padding_mode={module.padding_mode!r}"
    elif isinstance(module, _BatchNorm):
        if module.affine and module.bias is None:
            return "bias=False"
        if module.momentum is None:
            return "momentum=None"
        if module.eps <= 0:
            return f"eps={module.eps}"  # PyTorch's to refuse
    return ""


def plain_is_wanted(input: Tensor) -> bool:
    """Whether somebody watches or transforms the children: exporters, tracers, hooks, torch.func."""
    if (
        module_globals._global_forward_hooks
        or module_globals._global_forward_pre_hooks
        or module_globals._global_backward_hooks
        or module_globals._global_backward_pre_hooks
    ):
        return True
    if functional.transformed():
        return True
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return torch.jit.is_tracing() or isinstance(input, torch.fx.Proxy)


def activation_at(
    modules: Sequence[nn.Module], i: int, *, result_is_kept: bool
) -> nn.Module | None:
    """The activation at ``i`` that the op before it can take over, if there is one.

    An op that keeps its result for backward cannot have the module after it work in place.
    """
    act = modules[i] if i < len(modules) else None
    if act is None or type(act) not in _ACTIVATIONS or _obstacle(act):
        return None
    overwritten = i + 1 < len(modules) and bool(getattr(modules[i + 1], "inplace", False))
    if result_is_kept and isinstance(act, nn.LeakyReLU) and not act.inplace and overwritten:
        return None
    return act


def plan(modules: Sequence[nn.Module]) -> Iterator[Run]:
    """Cuts a sequence into runs: [convolution] [batch norm] [activation] in this order, or one module by itself."""
    reasons = [_obstacle(module) for module in modules]

    def at(i: int, kinds: Iterable[type]) -> nn.Module | None:
        return (
            modules[i]
            if i < len(modules) and not reasons[i] and _kind(modules[i]) in kinds
            else None
        )

    i = 0
    while i < len(modules):
        start = i
        conv = at(i, _CONVOLUTIONS)
        i += conv is not None
        bn = None if conv is not None and conv.bias is not None else at(i, _NORMALISATIONS)
        if isinstance(conv, _CONVOLUTIONS) and type(bn) in (nn.BatchNorm1d, nn.BatchNorm3d):
            bn = None
        i += bn is not None
        act = activation_at(modules, i, result_is_kept=bn is None) if i > start else None
        i += act is not None
        if i > start:
            yield Run(modules[start:i], conv, bn, act)  # type: ignore[arg-type]
        else:
            yield Run(
                modules[i : i + 1],
                reason=reasons[i]
                or "an activation after no convolution or batch norm, or overwritten in place",
            )
            i += 1


def refuse_script(model: nn.Module) -> NoReturn:
    """What ``torch.jit.script`` asks of a fused sequence: it would compile the planning, in words of its own."""
    raise RuntimeError(
        f"torch.jit.script(): a {type(model).__name__} cannot be scripted; script dcgan_fast.unfuse(model), or use "
        "torch.jit.trace or torch.export"
    )


class FusedSequential(nn.Sequential):
    """An ``nn.Sequential`` that runs (transposed) convolution, batch norm and activation as one op.

    The children stay plain ``nn.Conv2d``, ``nn.ConvTranspose2d``, ``nn.BatchNorm1d/2d/3d``, ``nn.SyncBatchNorm``,
    ``nn.ReLU``, ``nn.LeakyReLU``, ``nn.Tanh``, ``nn.Sigmoid``: the state dict, initialisation by class name, ``.to()``,
    indexing are those of ``nn.Sequential``, and the result is the same to rounding. A convolution may have its weight
    parametrized (``torch.nn.utils.parametrizations``). A child that no fused op equals (hooks, groups, dilation,
    padding modes, ``momentum=None``, subclasses, any other module) runs as itself, as does every child while the
    network is exported or traced (so that such graphs hold PyTorch's own ops alone), under ``torch.func`` transforms
    and in forward-mode differentiation.
    :func:`explain` shows what runs as what. The plan is made anew in each call (about a microsecond a child), so that
    hooks and replaced children are seen.
    """

    __prepare_scriptable__ = refuse_script

    def forward(self, input: Tensor) -> Tensor:
        if plain_is_wanted(input):
            return super().forward(input)
        for run in self.runs():
            input = run(input)
        return input

    def runs(self) -> Iterator[Run]:
        """What one call serves, in order."""
        return plan(list(self))


# Each kind of sequence that runs its children one by one, and the kind that fuses them.
FUSED: dict[type[nn.Sequential], type[nn.Sequential]] = {nn.Sequential: FusedSequential}


def fuse(model: M, inplace: bool = False) -> M:
    """Lets every ``nn.Sequential`` in ``model`` run on the fused ops.

    Args:
        model: any module. Its ``nn.Sequential`` parts (itself included, subclasses not) become
            :class:`FusedSequential`; parameters, buffers, hooks and state dict stay what they are.
        inplace: change ``model`` itself instead of a deep copy.

    Returns:
        The fused model.
    """
    return _reclass(model, FUSED, inplace)


def unfuse(model: M, inplace: bool = False) -> M:
    """The inverse of :func:`fuse`: every :class:`FusedSequential` becomes a plain ``nn.Sequential``."""
    return _reclass(model, {fused: plain for plain, fused in FUSED.items()}, inplace)


def _reclass(
    model: M, kinds: Mapping[type[nn.Sequential], type[nn.Sequential]], inplace: bool
) -> M:
    model = model if inplace else copy.deepcopy(model)
    for module in model.modules():
        new = kinds.get(type(module))  # type: ignore[arg-type]
        if new is not None:
            module.__class__ = new  # which adds no state, so the object is complete as it is
    return model


class MaxoutLinear(nn.Module):
    """A layer of maxout units, each the largest of ``pieces`` linear functions of the input, on
    :func:`dcgan_fast.functional.maxout_linear`.

    Its state dict holds ``weight``, ``(out_features, pieces, in_features)``, and, if it has one, ``bias``,
    ``(out_features, pieces)``, drawn as those of :class:`torch.nn.Linear` are: uniform within
    ``1 / sqrt(in_features)`` of 0.

    Args:
        in_features: of the input's last dimension, at least 1.
        out_features: units, at least 1.
        pieces: of each unit, 1 to 256.
        bias: whether each piece has one.
        device, dtype: of the parameters.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pieces: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise ValueError(f"MaxoutLinear(): {name!r} must be at least 1, got {size}")
        if not 1 <= pieces <= 256:
            raise ValueError(f"MaxoutLinear(): 'pieces' must be 1 to 256, got {pieces}")
        self.in_features, self.out_features, self.pieces = in_features, out_features, pieces
        self.weight = nn.Parameter(
            torch.empty(out_features, pieces, in_features, device=device, dtype=dtype)
        )
        self.bias = (
            nn.Parameter(torch.empty(out_features, pieces, device=device, dtype=dtype))
            if bias
            else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias anew."""
        bound = self.in_features**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``; PyTorch's own ops alone where it is exported."""
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return reference.maxout_linear(input, self.weight, self.bias)
        return functional.maxout_linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"pieces={self.pieces}, bias={self.bias is not None}"
        )


def explain(model: nn.Module, *inputs: Tensor) -> str:
    """What runs as what: a line for each run of children of each sequence in ``model``.

    Args:
        model: any module; it is left as it is.
        inputs: what ``model`` takes. With them a copy of it runs once, and each fused convolution's line tells which
            engine serves its forward and its gradients: that depends on batch, map sizes, dtype, machine and switches
            (:mod:`dcgan_fast.backends`).

    Returns:
        Lines of ``path  children  ->  op``; where no op serves, the reason. Convolutions and batch norms outside an
        ``nn.Sequential`` are listed as left alone. The empty string for a model with none of these.
    """
    engines = convolution_engines(model, *inputs) if inputs else {}
    lines: list[tuple[str, str, str]] = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, nn.Sequential):
            continue
        keys = iter(module._modules)  # one module may stand at several places
        fused = isinstance(module, tuple(FUSED.values()))
        runs: Iterator[Run] = cast(Any, module).runs() if fused else plan(list(module))
        for run in runs:
            names = [next(keys) for _ in run.modules]
            seen.update(map(id, run.modules))
            if isinstance(run.modules[0], nn.Sequential):
                continue  # has lines of its own
            if fused:
                verdict = f"dcgan_fast.{run.op}" if run.op else f"itself: {run.reason}"
                verdict += _whose_statistics(run.normalisation) if run.op else ""
                if run.convolution in engines:
                    verdict += f" ({engines[run.convolution]})"
            else:
                verdict = "itself: in a plain Sequential (fuse() changes that)"
            where = ".".join(
                filter(None, [path, f"{names[0]}-{names[-1]}" if len(names) > 1 else names[0]])
            )
            lines.append((where, " + ".join(type(m).__name__ for m in run.modules), verdict))
    for path, module in model.named_modules():
        if isinstance(module, (*_CONVOLUTIONS, _BatchNorm)) and id(module) not in seen:
            lines.append((path, type(module).__name__, "itself: not a child of an nn.Sequential"))
    widths = [max((len(line[i]) for line in lines), default=0) for i in (0, 1)]
    return "\n".join(f"{w:<{widths[0]}}  {kinds:<{widths[1]}}  -> {v}" for w, kinds, v in lines)


def _whose_statistics(bn: _BatchNorm | None) -> str:
    """For :func:`explain`: where they are, or could be, not those of one process."""
    if bn is None:
        return ""
    group = _processes_of(bn)
    if group is not None and synchronised.wanted(group, bn.training):
        of = f", statistics of {dist.get_world_size(group)} processes"
        served = all(synchronised.served(state) for state in bn.state_dict().values())
        return (
            of
            if served
            else f"{of} (dcgan_fast.reference: its kernels join those on the CPU alone)"
        )
    if not isinstance(bn, nn.SyncBatchNorm):
        return ""
    return ", statistics of this process: " + (
        "evaluation" if not bn.training else "there is no group of several"
    )


def convolution_engines(model: nn.Module, *inputs: Tensor) -> dict[nn.Module | None, str]:
    """The engines of each convolution that a fused op of ``model`` serves, in words, in a forward pass of ``inputs``.

    A copy of the model makes it.
    """
    global _engines
    twin = copy.deepcopy(model)
    _engines = {}
    try:
        with torch.no_grad():
            twin(*inputs)
        found = _engines
    finally:
        _engines = None
    originals = dict(zip(twin.modules(), model.modules(), strict=True))
    return {originals[conv]: engines for conv, engines in found.items()}


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _joins(layers: Sequence[_BatchNorm]) -> bool:
    return any(isinstance(bn, nn.SyncBatchNorm) or "_process_group" in vars(bn) for bn in layers)


@contextmanager
def batch_norm_mode(model: nn.Module, mode: Literal["batch", "running"]) -> Iterator[None]:
    """Within the context every batch norm of ``model`` normalises by the statistics of its own batch (``"batch"``,
    leaving the running ones as they are) or by its running statistics (``"running"``).

    Everything else, dropout say, stays in the mode it is in. The batch is this process's alone, also where
    :func:`synchronised_statistics` or a fused :class:`torch.nn.SyncBatchNorm` would join it with others.

    Raises:
        ValueError: ``mode`` is neither.
    """
    if mode not in ("batch", "running"):
        raise ValueError(f"batch_norm_mode(): 'mode' must be 'batch' or 'running', got {mode!r}")
    layers = _batch_norms(model)
    before = [(bn.training, bn.track_running_stats) for bn in layers]
    alone = (
        _marked(model, _process_group=None) if mode == "batch" and _joins(layers) else nullcontext()
    )
    try:
        for bn in layers:
            bn.training = mode == "batch"
            if mode == "batch":
                bn.track_running_stats = False
        with alone:
            yield
    finally:
        for bn, (training, track) in zip(layers, before, strict=True):
            bn.training, bn.track_running_stats = training, track


@contextmanager
def stat_groups(model: nn.Module, groups: int) -> Iterator[None]:
    """Within the context every batch norm of ``model`` takes a batch for ``groups`` equal, consecutive ones.

    In training each part is normalised by statistics of its own and the running ones are updated part after part. Where
    batch norm is all that couples images, one pass over ``torch.cat([real, fake])`` gives the numbers of two,
    ``model(real)`` and ``model(fake)``. It costs less time than two where the batch is small, and the memory of twice
    the batch. Contexts nest: the innermost counts.

    Raises:
        ValueError: ``groups`` is less than 1, or ``model`` holds TorchScript; in a forward pass: ``groups`` does not
            divide the batch.
    """
    if groups < 1:
        raise ValueError(f"stat_groups(): 'groups' must be at least 1, got {groups}")
    _refuse_scripts("stat_groups", model)
    with _marked(model, _stat_groups=groups):
        yield


@contextmanager
def synchronised_statistics(
    model: nn.Module, process_group: dist.ProcessGroup | None = None
) -> Iterator[None]:
    """Within the context every batch norm of ``model`` normalises, in training, by the joined statistics of the batches
    of all processes of the group (of all there are, where none is given), and updates its running ones by them.

    What :class:`torch.nn.SyncBatchNorm` does (which runs synchronised in a :class:`FusedSequential` too, on the CPU as
    well), with no change to the model; batch norms that run as themselves are synchronised alike, but for those whose
    forward was replaced. All processes must run the same passes in the same order, also backward. A model that only
    some of them call, one that draws samples say, must be called outside. It goes with :func:`stat_groups`.

    Raises:
        ValueError: ``model`` holds TorchScript, or there is no process group.
    """
    _refuse_scripts("synchronised_statistics", model)
    if process_group is None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "synchronised_statistics(): there are no processes to join: call "
                "torch.distributed.init_process_group first"
            )
        process_group = dist.group.WORLD
    with _marked(model, _process_group=process_group):
        yield


# What a batch norm is told by these contexts.
_MARKS = frozenset({"_stat_groups", "_process_group"})


@contextmanager
def _marked(model: nn.Module, **marks: object) -> Iterator[None]:
    """Within the context every batch norm of ``model`` has these marks, and a forward that heeds them."""
    names = ("forward", "_own_forward", *_MARKS)
    before = [
        (vars(bn), {name: vars(bn)[name] for name in names if name in vars(bn)})
        for bn in _batch_norms(model)
    ]
    try:
        for bn in _batch_norms(model):
            state = vars(bn)
            # one object for good: torch.compile compiles anew for another
            marked = state.setdefault("_marked_forward", partial(_marked_forward, bn))
            own = state.get("forward")
            if own is not None and own is not marked:
                state["_own_forward"] = own
            state.update(forward=marked, **marks)
        yield
    finally:
        for state, entries in before:
            for name in names:
                state.pop(name, None)
            state.update(entries)


def _refuse_scripts(function: str, model: nn.Module) -> None:
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError(f"{function}(): the batch norms of a ScriptModule cannot be reached")


@dataclass(frozen=True)
class _Arguments:
    """What a model is called with, past update_bn(), which would take the first of a tuple for all."""

    values: tuple[Tensor, ...]


class _Called(nn.Module):
    """A model that takes :class:`_Arguments`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, arguments: _Arguments) -> Tensor:
        return self.model(*arguments.values)


def population_statistics(model: nn.Module, inputs: Iterable[Tensor | tuple[Tensor, ...]]) -> None:
    """Sets the running statistics of every batch norm to their average over the batches ``inputs``.

    One forward pass per batch, without gradients. The estimate does not depend on momentum or on the order of the
    batches. The DCGAN authors' SVHN code does so at test time (Newmu/dcgan_code, svhn), with biased variances; here
    they are unbiased, as PyTorch's running variances are.

    Args:
        model: called as ``model(batch)`` for each batch, ``model(*batch)`` where that is a tuple, with batch norms (and
            dropout) in training mode.
        inputs: batches of latents or images, or tuples of them and their labels.

    Raises:
        ValueError: ``inputs`` holds no batch.
    """
    batches = iter(inputs)
    try:
        first = next(batches)
    except StopIteration:
        raise ValueError(
            "population_statistics(): 'inputs' must hold at least one batch, got none"
        ) from None

    def all_batches() -> Iterator[_Arguments]:
        for batch in itertools.chain([first], batches):
            yield _Arguments(batch if isinstance(batch, tuple) else (batch,))

    was_training = model.training
    update_bn(all_batches(), _Called(model))
    model.train(was_training)
