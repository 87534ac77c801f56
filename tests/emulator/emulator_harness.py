"""Builds the CUDA kernels for the emulator, once per state of the sources, and calls them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

import torch

EMULATOR = Path(__file__).resolve().parent
KERNELS = EMULATOR.parents[1] / "csrc" / "cuda"
CXX = shutil.which(os.environ.get("CXX", "g++"))

COMMON_FLAGS = ["-std=c++17", "-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
SCHEDULER = ["emulator.cpp", "fiber.cpp"]
# Optimising takes longer under AddressSanitizer than it saves, but ThreadSanitizer is half blind
# without: there, g++ does not instrument the assignment of a struct.
SANITIZERS = {
    "plain": ["-O1"],
    "tsan": ["-O1", "-fsanitize=thread"],
    # Alignment matters: a misaligned 16-byte access is an error on the device, and none on x86.
    "asan": [
        "-O0",
        "-fsanitize=address,alignment,bounds,shift,signed-integer-overflow",
        "-fno-sanitize-recover=all",
    ],
}
SCHEDULES = {"in_order": 0, "random_threads": 1, "random_warps": 2}
ACTIVATIONS = ["none", "relu", "leaky_relu", "tanh", "sigmoid"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def run_compiler(arguments: Iterable[str | Path]) -> None:
    command = [str(CXX), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[:4000]}")


class Builder:
    """Compiles programs for the emulator into `folder`, each part once per state of its sources."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def driver(self, sanitizer: str = "plain", kernels: Path = KERNELS) -> Path:
        """The program that calls the launchers in the .cu files of `kernels`."""
        objects = self._objects(["bn_act_driver.cpp"], sanitizer)
        objects += [self._object(source, sanitizer, kernels) for source in kernels.glob("*.cu")]
        return self._program("bn_act", sanitizer, objects)

    def self_test(self, sanitizer: str) -> Path:
        """The program that tests the emulator."""
        return self._program("self", sanitizer, self._objects(["test_emulator.cpp"], sanitizer))

    def _objects(self, names: list[str], sanitizer: str) -> list[Path]:
        names = [*SCHEDULER, *names]
        return [self._object(EMULATOR / name, sanitizer, KERNELS) for name in names]

    def _object(self, source: Path, sanitizer: str, kernels: Path) -> Path:
        watched = [f"-I{EMULATOR / 'include'}", *SANITIZERS[sanitizer]]
        # The scheduler is told of the sanitizer, but not watched by it.
        scheduler = ["-O2", f"-DEMULATOR_{sanitizer.upper()}"]
        flags = [*COMMON_FLAGS, *(scheduler if source.name in SCHEDULER else watched)]
        headers = [
            *EMULATOR.glob("*.h"),
            *(EMULATOR / "include").glob("*.h"),
            *kernels.parent.glob("*.h"),
            *kernels.glob("*.h"),
            *kernels.glob("*.cuh"),
        ]
        digest = hashlib.sha256(" ".join([str(CXX), *flags]).encode())
        for file in [source, *sorted(headers)]:
            digest.update(file.read_bytes())
        target = self.folder / f"{source.name}-{digest.hexdigest()[:16]}.o"
        self._make(target, [*flags, "-x", "c++", "-c", source])
        return target

    def _program(self, name: str, sanitizer: str, objects: list[Path]) -> Path:
        digest = hashlib.sha256("".join(map(str, objects)).encode()).hexdigest()
        target = self.folder / f"{name}-{sanitizer}-{digest[:16]}"
        self._make(target, [*objects, *SANITIZERS[sanitizer]])
        return target

    def _make(self, target: Path, arguments: list[str | Path]) -> None:
        if target.exists():
            return
        unfinished = target.with_name(f"{os.getpid()}-{threading.get_ident()}-{target.name}")
        run_compiler([*arguments, "-o", unfinished])
        unfinished.replace(target)  # whole, for whoever runs the tests at the same time


class Refused(Exception):
    """A launcher returned this message."""


class Fault(Exception):
    """The emulator or a sanitizer found this wrong with a kernel."""


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


Tensors = dict[str, torch.Tensor]


class Emulated:
    """The launchers of bn_act, run by the emulator in a process of its own."""

    def __init__(self, program: Path) -> None:
        # Fibers that a fault left unfinished never free what they hold.
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        self._report = tempfile.TemporaryFile()  # a pipe would fill up while nobody reads it
        self._process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._report,
            env=environment,
        )

    def close(self) -> None:
        """Ends the process; Fault if a sanitizer had something to say."""
        self._process.communicate()
        if self._process.returncode:
            raise self._fault()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _fault(self) -> Fault:
        self._report.seek(0)
        return Fault(self._report.read().decode(errors="replace"))

    def _call(self, what: str, numbers: dict[str, float], arrays: Iterable[bytes]) -> None:
        assert self._process.stdin and self._process.stdout
        words = " ".join(f"{name}={float(value)!r}" for name, value in numbers.items())
        try:
            self._process.stdin.write(f"{what} {words}\n".encode())
            for array in arrays:
                self._process.stdin.write(array)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer, or the lack of one, says why
        kind, _, message = self._process.stdout.readline().decode().rstrip("\n").partition(": ")
        if kind == "refused":
            raise Refused(message)
        if kind == "fault":
            raise Fault(message)
        if kind != "ok":  # the process died
            self._process.wait()
            raise self._fault()

    def _receive(self, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        assert self._process.stdout
        size = math.prod(shape) * dtype.itemsize
        data = bytearray(self._process.stdout.read(size))
        assert len(data) == size
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).reshape(shape)

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
            return self._receive(case.dtype, (n, s, c)).transpose(1, 2)
        return self._receive(case.dtype, (n, c, s))

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
        self._call("forward", self._numbers(case, schedule, seed), arrays)
        result = {"y": self._receive_like_x(case)}
        for name in ("mean", "rstd"):
            result[name] = self._receive(torch.float32, (case.stat_groups, case.channels))
        for name in ("running_mean", "running_var"):
            if case.running:
                result[name] = self._receive(case.param_dtype, (case.channels,))
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
        self._call("backward", numbers, [self._to_memory(case, given[name]) for name in names])
        result = {"dx": self._receive_like_x(case)} if "dx" in wanted else {}
        for name in ("dweight", "dbias"):
            if name in wanted:
                result[name] = self._receive(case.param_dtype, (case.channels,))
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
        self._call("far_end", numbers, [bytes_])
        y, dx = (self._receive(case.dtype, tuple(tail.shape)) for _ in range(2))
        mean, rstd = (self._receive(torch.float32, ()) for _ in range(2))
        return {"y": y, "dx": dx, "mean": mean, "rstd": rstd}
