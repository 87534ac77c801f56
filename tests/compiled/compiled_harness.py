"""Compiles CUDA sources as the build does and reads what came out, without a GPU."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "cuda"
sys.path.insert(0, str(ROOT / "_build"))

from kernels import cuda_commands, cuda_home, cuda_targets  # noqa: E402

# The oldest architecture that is supported, the one that has its own code paths, and a newer one.
WANTED_ARCHITECTURES = ["80", "90a", "120"]


def tool_folders() -> list[Path]:
    """Where nvcc, cuobjdump and nvdisasm may lie: a toolkit, or NVIDIA's packages on PyPI."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(home) / "bin" for home in homes if home]
    return [*folders, *Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/bin")]


def find_tool(name: str) -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, tool_folders())])
    return shutil.which(name, path=path)


# cuobjdump calls nvdisasm.
TOOLS = {name: find_tool(name) for name in ("nvcc", "cuobjdump", "nvdisasm")}
MISSING = [name for name, path in TOOLS.items() if path is None]


@functools.cache
def architectures() -> list[str]:
    """Those of WANTED_ARCHITECTURES that this nvcc knows."""
    if MISSING:
        return []
    known = run("nvcc", "--list-gpu-arch").split()
    return [a for a in WANTED_ARCHITECTURES if f"compute_{a.rstrip('a')}" in known]


def run(tool: str, *arguments: str | Path) -> str:
    return call(str(TOOLS[tool]), *arguments)


def call(*arguments: str | Path) -> str:
    command = [str(argument) for argument in arguments]
    environment = {**os.environ, "NVDISASM_PATH": str(TOOLS["nvdisasm"])}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr or result.stdout}")
    return result.stdout


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What one kernel became on one architecture."""

    name: str  # mangled
    registers: int  # of a thread
    stack: int  # bytes of local memory of a thread: spilled registers show here
    instructions: list[str]  # opcodes with their modifiers, such as LDG.E.128
    back: dict[int, int]  # where loops end, by place: the place that the branch goes back to

    def count(self, opcode: str) -> int:
        return self.instructions.count(opcode)

    def first(self, opcode: str) -> int:
        """The place of its first occurrence."""
        return self.instructions.index(opcode)

    def loop(self, opcode: str) -> list[str]:
        """The innermost loop around the first occurrence."""
        place = self.first(opcode)
        around = [(begin, end) for end, begin in self.back.items() if begin <= place <= end]
        begin, end = min(around, key=lambda own: own[1] - own[0])
        return self.instructions[begin : end + 1]

    def having(self, pattern: str) -> set[str]:
        """The opcodes that begin as the regular expression says."""
        return {opcode for opcode in self.instructions if re.match(pattern, opcode)}


def compile_kernels(source: Path, architecture: str) -> dict[str, Kernel]:
    """The kernels of a .cu file, by mangled name; RuntimeError with ptxas's words if one spills.

    By the command of a build for that TORCH_CUDA_ARCH_LIST alone: after one, ccache has nothing left to do.
    """
    home = cuda_home() or Path(str(TOOLS["nvcc"])).resolve().parent.parent
    targets = cuda_targets(home, re.sub(r"(\d)(a?)$", r".\1\2", architecture))
    command = next(c for c in cuda_commands(home, targets) if c[-1] == f"{source.name}.o")
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / command[-1]
        call(*command[:-1], compiled)
        sass = run("cuobjdump", "-sass", compiled)
        usage = run("cuobjdump", "--dump-resource-usage", compiled)
    instructions: dict[str, list[str]] = {}
    back: dict[str, dict[int, int]] = {}
    for line in sass.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            current, branches = instructions.setdefault(match[1], []), back.setdefault(match[1], {})
            places: dict[str, int] = {}
        elif match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)(.*)", line):
            places[match[1].lstrip("0")] = len(current)
            if target := match[2].startswith("BRA") and re.search(r"0x([0-9a-f]+)", match[3]):
                if target[1] in places:
                    branches[len(current)] = places[target[1]]
            current.append(match[2])
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", usage)
    return {
        name: Kernel(name, int(registers), int(stack), instructions[name], back[name])
        for name, registers, stack in found
    }
