"""The launchers of bn_act, called in the emulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from emulator_harness import ACTIVATIONS, DTYPES, SCHEDULES, Emulated, Tensors


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of bn_act, forward and backward: sizes, types and options, in `bn_act.h`'s words."""

    batch: int
    channels: int
    spatial: int = 1
    channels_last: bool = True
    dtype: torch.dtype = torch.float32
    param_dtype: torch.dtype = torch.float32
    activation: str = "relu"
    negative_slope: float = 0.2
    training: bool = True
    stat_groups: int = 1
    affine: bool = True
    running: bool = True
    momentum: float = 0.1
    eps: float = 1e-5
    misaligned_elements: int = 0
    in_place: bool = False
    mean: float = 0.5
    std: float = 2.0

    def __str__(self) -> str:
        """What differs from the defaults."""
        words = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={str(value).removeprefix('torch.')}")
        return " ".join(words)

    def inputs(self, seed: int = 0) -> dict[str, torch.Tensor | None]:
        """x, dy (N, C, S) and parameters (C,), of the case's types, the same for the same seed."""
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64) * std + mean

        size, c = (self.batch, self.channels, self.spatial), self.channels
        given = {
            "x": normal(*size, mean=self.mean, std=self.std).to(self.dtype),
            "dy": normal(*size).to(self.dtype),
            "weight": normal(c, mean=1.0, std=0.3).to(self.param_dtype),
            "bias": normal(c, std=0.5).to(self.param_dtype),
            "running_mean": normal(c, mean=self.mean).to(self.param_dtype),
            "running_var": (normal(c).abs() + self.std**2 / 2).to(self.param_dtype),
        }
        if not self.affine:
            given["weight"] = given["bias"] = None
        if not self.running:
            given["running_mean"] = given["running_var"] = None
        return given


class EmulatedBnAct(Emulated):
    """`launch_bn_act_forward` and `launch_bn_act_backward`."""

    OP = "bn_act"

    @staticmethod
    def _numbers(case: Case, schedule: str, seed: int) -> dict[str, float]:
        names = "batch channels spatial channels_last training stat_groups negative_slope momentum"
        numbers = {name: getattr(case, name) for name in f"{names} eps in_place".split()}
        numbers["misaligned_elements"] = case.misaligned_elements
        numbers["dtype"] = DTYPES.index(case.dtype)
        numbers["param_dtype"] = DTYPES.index(case.param_dtype)
        numbers["activation"] = ACTIVATIONS.index(case.activation)
        numbers["weight"] = numbers["bias"] = case.affine
        numbers["running"] = case.running
        return numbers | {"schedule": SCHEDULES[schedule], "seed": seed}

    @staticmethod
    def _to_memory(case: Case, tensor: torch.Tensor | None) -> bytes:
        if tensor is None:
            return b""
        if tensor.dim() == 3 and case.channels_last:
            tensor = tensor.transpose(1, 2)
        return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()

    def _receive_like_x(self, case: Case) -> torch.Tensor:
        n, c, s = case.batch, case.channels, case.spatial
        if case.channels_last:
            return self.receive(case.dtype, (n, s, c)).transpose(1, 2)
        return self.receive(case.dtype, (n, c, s))

    def forward(
        self,
        case: Case,
        given: dict[str, torch.Tensor | None],
        schedule: str = "in_order",
        seed: int = 1,
    ) -> Tensors:
        """y, mean, rstd and the running statistics after launch_bn_act_forward()."""
        names = ["x", "weight", "bias", "running_mean", "running_var"]
        arrays = [self._to_memory(case, given[name]) for name in names]
        self.call("forward", self._numbers(case, schedule, seed), arrays)
        result = {"y": self._receive_like_x(case)}
        for name in ("mean", "rstd"):
            result[name] = self.receive(torch.float32, (case.stat_groups, case.channels))
        for name in ("running_mean", "running_var"):
            if case.running:
                result[name] = self.receive(case.param_dtype, (case.channels,))
        return result

    def backward(
        self,
        case: Case,
        given: dict[str, torch.Tensor | None],
        statistics: Tensors,
        schedule: str = "in_order",
        seed: int = 1,
        wanted: Iterable[str] = ("dx", "dweight", "dbias"),
    ) -> Tensors:
        """dx, dweight and dbias after launch_bn_act_backward(), those that are wanted."""
        wanted = set(wanted) if case.affine else set(wanted) & {"dx"}
        numbers = self._numbers(case, schedule, seed)
        numbers |= {name: name in wanted for name in ("dx", "dweight", "dbias")}
        given = {**given, **statistics}
        names = ["dy", "x", "weight", "bias", "mean", "rstd"]
        self.call("backward", numbers, [self._to_memory(case, given[name]) for name in names])
        result = {"dx": self._receive_like_x(case)} if "dx" in wanted else {}
        for name in ("dweight", "dbias"):
            if name in wanted:
                result[name] = self.receive(case.param_dtype, (case.channels,))
        return result

    def both(
        self,
        case: Case,
        given: dict[str, torch.Tensor | None] | None = None,
        schedule: str = "in_order",
        seed: int = 1,
    ) -> Tensors:
        """Everything that forward() and backward() return."""
        given = case.inputs() if given is None else given
        forward = self.forward(case, given, schedule, seed)
        return forward | self.backward(case, given, forward, schedule, seed)

    def far_end(self, case: Case, tail: torch.Tensor) -> Tensors:
        """The last elements of y and dx, and the last channel's mean and rstd, of an input of zeros
        that ends in `tail` and is too large to process: only each kernel's last block runs."""
        bytes_ = tail.view(torch.uint8).numpy().tobytes()
        numbers = self._numbers(case, "in_order", 1) | {"tail_bytes": len(bytes_)}
        self.call("far_end", numbers, [bytes_])
        y, dx = (self.receive(case.dtype, tuple(tail.shape)) for _ in range(2))
        mean, rstd = (self.receive(torch.float32, ()) for _ in range(2))
        return {"y": y, "dx": dx, "mean": mean, "rstd": rstd}
