"""Builds the CUDA kernels for the emulator, once per state of the sources, and talks to the programs that call them."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

EMULATOR = Path(__file__).resolve().parent
ROOT = EMULATOR.parents[1]
sys.path.insert(0, str(ROOT / "_build"))

from kernels import CCACHE, EMULATED_FLAGS  # noqa: E402

KERNELS = ROOT / "csrc" / "cuda"
CXX = shutil.which(os.environ.get("CXX", "g++"))

SCHEDULER = ["emulator.cpp", "fiber.cpp", "tensor_core.cpp"]
# Optimising takes longer under AddressSanitizer than it saves, but ThreadSanitizer is half blind
# without: there, g++ does not instrument the assignment of a struct.
SANITIZERS = {
    "plain": ["-O1"],
    "quick": ["-O0"],  # to compile, of what runs once
    "tsan": ["-O1", "-fsanitize=thread"],
    # Alignment matters: a misaligned 16-byte access is an error on the device, and none on x86.
    "asan": [
        "-O0",
        "-fsanitize=address,alignment,bounds,shift,signed-integer-overflow",
        "-fno-sanitize-recover=all",
    ],
}
_INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]', re.MULTILINE)
SCHEDULES = {"in_order": 0, "random_threads": 1, "random_warps": 2}
ACTIVATIONS = ["none", "relu", "leaky_relu", "tanh", "sigmoid"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Builder:
    """Compiles programs for the emulator into `folder`, each part once per state of its sources."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._compilers = ThreadPoolExecutor(2)  # each takes up to half a gigabyte
        self._compiled: dict[Path, Future[None]] = {}
        self._lock = threading.Lock()

    def driver(self, op: str, sanitizer: str = "plain", kernels: Path = KERNELS) -> Path:
        """The program that calls an op's launchers in the .cu files of `kernels`."""
        sources = [EMULATOR / f"{op}_driver.cpp", *sorted(kernels.glob(f"{op}*.cu"))]
        return self._program(op, sanitizer, sources)

    def self_test(self, sanitizer: str) -> Path:
        """The program that tests the emulator."""
        return self._program("self", sanitizer, [EMULATOR / "test_emulator.cpp"])

    def _program(self, name: str, sanitizer: str, sources: list[Path]) -> Path:
        sources = [*(EMULATOR / scheduler for scheduler in SCHEDULER), *sources]
        parts = [self._object(source, sanitizer) for source in sources]
        for _, compiled in parts:
            compiled.result()
        objects = [target for target, _ in parts]
        digest = hashlib.sha256("".join(map(str, objects)).encode()).hexdigest()
        target = self.folder / f"{name}-{sanitizer}-{digest[:16]}"
        make(target, [*objects, *SANITIZERS[sanitizer]])
        return target

    def _object(self, source: Path, sanitizer: str) -> tuple[Path, Future[None]]:
        watched = [f"-I{EMULATOR / 'include'}", *SANITIZERS[sanitizer]]
        # The scheduler is told of the sanitizer, but not watched by it.
        scheduler = ["-O2", f"-DEMULATOR_{sanitizer.upper()}"]
        flags = [*EMULATED_FLAGS, *(scheduler if source.name in SCHEDULER else watched)]
        digest = hashlib.sha256(" ".join([str(CXX), *flags]).encode())
        for file in with_includes(source):
            digest.update(file.name.encode() + file.read_bytes())
        target = self.folder / f"{source.name}-{digest.hexdigest()[:16]}.o"
        with self._lock:
            if target not in self._compiled:
                self._compiled[target] = self._compilers.submit(
                    make, target, [*flags, "-x", "c++", "-c", source], CCACHE
                )
        return target, self._compiled[target]


def with_includes(source: Path) -> list[Path]:
    """A source and the files of ours that it includes, also by way of others. So copies of the kernels that differ in a
    header share what does not read it, which is most of what the planted bugs compile."""
    found = [source]
    for file in found:
        for name in _INCLUDE.findall(file.read_text()):
            for folder in (file.parent, EMULATOR / "include"):
                header = (folder / name).resolve()
                if header.is_file():
                    if header not in found:
                        found.append(header)
                    break
    return found


def make(target: Path, arguments: list[str | Path], wrapper: Sequence[str] = ()) -> None:
    if target.exists():
        return
    unfinished = target.with_name(f"{os.getpid()}-{threading.get_ident()}-{target.name}")
    command = [*wrapper, str(CXX), *map(str, arguments), "-o", str(unfinished)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[:4000]}")
    unfinished.replace(target)  # whole, for whoever runs the tests at the same time


class Refused(Exception):
    """A launcher returned this message."""


class Fault(Exception):
    """The emulator or a sanitizer found this wrong with a kernel."""


Tensors = dict[str, torch.Tensor]


class Emulated:
    """An op's launchers, run by the emulator in a process of its own."""

    OP: str

    def __init__(self, program: Path) -> None:
        # Fibers that a fault left unfinished never free what they hold; one race is enough.
        options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
        environment = {**os.environ, **options}
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

    def call(self, what: str, numbers: dict[str, float], arrays: Iterable[bytes]) -> None:
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

    def receive(self, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        assert self._process.stdout
        size = math.prod(shape) * dtype.itemsize
        data = bytearray(self._process.stdout.read(size))
        assert len(data) == size
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).reshape(shape)
