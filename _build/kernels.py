"""How the kernels are compiled: the CPU's once per capability, those of CUDA by nvcc, none by torch's builder."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

CSRC = Path("csrc")
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]
# DCGAN_FAST_CUDA=emulated: the CUDA kernels run on CPU tensors, by tests/emulator. DCGAN_FAST_GENERIC=1: only the CPU
# kernels that every machine has, which is all that an emulated build has a use for.
EMULATED = os.environ.get("DCGAN_FAST_CUDA") == "emulated"
GENERIC = EMULATED or os.environ.get("DCGAN_FAST_GENERIC") == "1"
_ON_X86 = platform.machine().lower() in ("x86_64", "amd64")
X86 = _ON_X86 and not GENERIC
# at::vec's vectors of an x86 without AVX2 are arrays. To optimise those takes longer than all other variants together
# (446 s against 349), for the machines of before 2013, which pay with 1.2 to 1.6 times the time.
_DEFAULT = ["-O1"] if _ON_X86 else []
CCACHE = ["ccache"] if shutil.which("ccache") else []  # torch's builder calls it too where there is one
CPU_VARIANTS = {  # name of the namespace: flags, and the at::vec to compile against
    "DEFAULT": (_DEFAULT, "DEFAULT"),
    "AVX2": (["-mavx2", "-mfma", "-mf16c"], "AVX2"),
    "AVX512": (_AVX512, "AVX512"),
    "AVX512_BF16": ([*_AVX512, "-mavx512bf16"], "AVX512"),
    "AMX": ([*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"], "AVX512"),
    # what tiles.h makes of float maps where the matrix unit multiplies halves
    "AMX_FP16": ([*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-DTILE_HALF"], "AVX512"),
    "DEFAULT_FP16": ([*_DEFAULT, "-DTILE_HALF"], "DEFAULT"),
}
# Compiled once per variant; the rest of csrc once. Generic first: the linker keeps the first copy of an inline
# function, which must run everywhere.
CPU_KERNELS = {
    **dict.fromkeys(
        (
            CSRC / "cpu" / f"{name}.cpp"
            for name in (
                "bn_act",
                "bn_act_double_backward",
                "first_occurrence",
                "gemm",
                "linear_svm",
                "maxout_linear",
                "near_duplicates",
                "pack_codes",
                "parzen",
                "plane_bias_act",
                "pool_features",
                "row_products",
                "winograd_kernels",
                "winograd_weight_grad",
            )
        ),
        ["DEFAULT", "AVX2", "AVX512"],
    ),  # fmt: skip
    CSRC / "cpu/pixel_codes.cpp": ["DEFAULT", "AVX2", "AVX512", "AVX512_BF16", "AMX"],
    CSRC / "cpu/thin_kernels.cpp": ["DEFAULT", "AVX2", "AVX512", "AVX512_BF16", "AMX"],
    CSRC / "cpu/tile_conv.cpp": ["DEFAULT", "DEFAULT_FP16", "AVX512_BF16", "AMX", "AMX_FP16"],
}
OLDEST_TORCH = (2, 11)
CUDA_ARCHITECTURES = "8.0;9.0a;10.0;12.0+PTX"


def stop(message: str) -> NoReturn:
    raise SystemExit(f"\ndcgan_fast cannot be built: {message}\n")


def import_torch() -> tuple[Any, tuple[int, ...]]:
    """The torch to build against, and its (major, minor)."""
    try:
        import torch
    except ImportError:
        stop("torch is not installed: pip install torch")
    found = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if found < OLDEST_TORCH:
        stop(
            f"torch 2.11 or newer is needed, found {torch.__version__}: pip install --upgrade torch"
        )
    return torch, found


def cxx_flags() -> tuple[list[str], list[str]]:
    """The compiler's and the linker's, of kernels and glue alike."""
    # checks of null and of object sizes say what AddressSanitizer says anyway, and checks called instead of written
    # out compile in a tenth of the time
    watched = ["-fsanitize=address,undefined", "-fno-sanitize=null,object-size,vptr", "-fno-sanitize-recover=undefined",
               "--param=asan-instrumentation-with-call-threshold=0"]  # fmt: skip
    sanitize = os.environ.get("DCGAN_FAST_SANITIZE") == "1"
    flags = [*(["-O1", "-g1", *watched] if sanitize else ["-O3", "-g0"]),
             "-fvisibility=hidden", "-Wno-unknown-pragmas", "-Wno-psabi"]  # fmt: skip
    if sys.platform == "linux":
        flags.append("-fopenmp")  # not linked: libgomp comes with libtorch, one pool for both
    return flags, watched if sanitize else []


def shared_libstdcxx(cxx: str) -> list[str]:
    """What to link so that exceptions come from the C++ library that torch loads, the shared one.

    Where only the archive is installed beside the compiler (seen on Ubuntu 24.04, GCC 13.3), -lstdc++ would put a
    second copy into the extension, and the first error that it throws would end the process.
    """

    def found(name: str) -> str:  # the name itself where there is none
        return subprocess.check_output([cxx, f"-print-file-name={name}"], text=True).strip()

    if sys.platform != "linux" or os.sep in found("libstdc++.so"):
        return []
    shared = found("libstdc++.so.6")
    return [shared] if os.sep in shared else []


def cpu_commands(cxx: str, flags: list[str], includes: list[str]) -> list[list[str]]:
    """Compiler calls, each without its last argument, the folder's object file: ``<variant>_<source>.o``."""
    jobs = [
        (variant, source)
        for variant in CPU_VARIANTS
        for source, variants in CPU_KERNELS.items()
        if variant in variants and (variant.startswith("DEFAULT") or X86)
    ]
    return [
        [*CCACHE, cxx, "-std=c++20", *flags, "-fPIC", *CPU_VARIANTS[variant][0], f"-DCPU_CAPABILITY={variant}",
         f"-DCPU_CAPABILITY_{CPU_VARIANTS[variant][1]}", *(f"-I{path}" for path in includes),
         "-c", str(source), "-o", f"{variant}_{source.name}.o"]
        for variant, source in jobs
    ]  # fmt: skip


def cuda_home() -> Path | None:
    """The toolkit to build with. nvcc on PATH may be a wrapper script: only a root with the runtime in it counts."""
    wanted = os.environ.get("DCGAN_FAST_CUDA", "auto").lower()
    if wanted not in ("auto", "0", "1", "emulated"):
        stop(f"DCGAN_FAST_CUDA must be auto, 0, 1 or emulated, got {wanted!r}")
    if wanted in ("0", "emulated"):
        return None
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    for root in (
        [named] if named else ["/usr/local/cuda", nvcc and Path(nvcc).resolve().parent.parent]
    ):
        if (
            root
            and Path(root, "bin/nvcc").exists()
            and Path(root, "lib64/libcudart_static.a").exists()
        ):
            return Path(root)
    if wanted == "1":
        stop(
            "DCGAN_FAST_CUDA=1 and no CUDA toolkit: install nvcc, or set CUDA_HOME to the toolkit's root"
        )
    return None


def cuda_targets(home: Path, asked: str | None = None) -> list[str]:
    """nvcc's -gencode flags for what is `asked` for, or TORCH_CUDA_ARCH_LIST, or those of our own list that it knows."""
    asked = asked or os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    known = subprocess.check_output([home / "bin/nvcc", "--list-gpu-arch"], text=True).split()
    flags = []
    for entry in re.split(r"[;,\s]+", asked or CUDA_ARCHITECTURES):
        parts = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", entry)
        if not parts:
            stop(
                f"TORCH_CUDA_ARCH_LIST must list numbers like 8.0, 9.0a or 12.0+PTX, got {entry!r}"
            )
        major, minor, suffix, ptx = parts.groups()
        if f"compute_{major}{minor}" not in known:
            if asked:
                stop(
                    f"this nvcc does not know {entry} of TORCH_CUDA_ARCH_LIST; it knows {', '.join(known)}"
                )
            continue
        target = f"{major}{minor}{suffix}"
        flags += [
            f"-gencode=arch=compute_{target},code={code}_{target}"
            for code in ("sm", *(["compute"] if ptx else []))
        ]
    return flags


def cuda_commands(home: Path, targets: list[str]) -> list[list[str]]:
    """nvcc calls, shaped as :func:`cpu_commands`."""
    flags = ["-O3", "-std=c++17", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden",
             "-Xptxas", "--warn-on-spills,--warning-as-error"]  # fmt: skip
    of_sm90a = [target for target in targets if target.endswith("code=sm_90a")]
    if of_sm90a:
        flags.append(SM90A)
    return [
        [*CCACHE, str(home / "bin/nvcc"), *flags, *(of_sm90a if only_sm90a(cu) else targets),
         "-c", str(cu), "-o", f"{cu.name}.o"]
        for cu in sorted(CSRC.glob("cuda/*.cu"))
        if of_sm90a or not only_sm90a(cu)
    ]  # fmt: skip


SM90A = "-DDCGAN_FAST_SM90A"  # there are kernels of warpgroups
# As those of tests/emulator's programs, which share their objects by way of ccache.
EMULATED_FLAGS = ["-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
                  "-Wno-psabi", SM90A]  # fmt: skip


def only_sm90a(source: Path) -> bool:
    """Whether it is made of instructions that no other architecture has."""
    return source.stem.endswith("_sm90a")


def emulated_commands(cxx: str) -> list[list[str]]:
    """Compiler calls that make the CUDA kernels run on the CPU (tests/emulator), shaped as :func:`cpu_commands`."""
    emulator = Path("tests/emulator")
    sources = [emulator / f"{name}.cpp" for name in ("emulator", "fiber", "tensor_core")]
    return [
        [*CCACHE, cxx, *EMULATED_FLAGS, f"-I{emulator / 'include'}", "-O1", "-x", "c++", "-c", str(source), "-o", f"emulated_{source.name}.o"]
        for source in [*sorted(CSRC.glob("cuda/*.cu")), *sources]
    ]  # fmt: skip


def cuda_half(
    cxx: str, home: Path | None, cuda_of_torch: str | None
) -> tuple[list[list[str]], list[tuple[str, str | None]], list[str]]:
    """Compiler calls, macros of the glue and linker flags of the CUDA kernels; nothing without a toolkit."""
    if EMULATED:
        names = [("DCGAN_FAST_EMULATED", None), ("DCGAN_FAST_CUDA_ARCHITECTURES", '"emulated"')]
        return emulated_commands(cxx), [("DCGAN_FAST_CUDA", None), *names], []
    if not home:
        return [], [], []
    targets = cuda_targets(home)
    names = ";".join(target.rsplit("=", 1)[1] for target in targets)
    # one copy of the CUDA runtime in a process: torch's own where it has one, else ours
    own = ["-Wl,--exclude-libs,libcudart_static.a", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    return (
        cuda_commands(home, targets),
        [("DCGAN_FAST_CUDA", None), ("DCGAN_FAST_CUDA_ARCHITECTURES", f'"{names}"')],
        [f"-L{home}/lib64", *(["-lcudart"] if cuda_of_torch else own)],
    )
