"""The compiled half: torch glue by torch's own builder, kernels beside it, one object per CPU capability or .cu file.

Environment: MAX_JOBS, CXX, DCGAN_FAST_CUDA=auto|0|1, TORCH_CUDA_ARCH_LIST, CUDA_HOME.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import find_packages, setup

VERSION = "0.1.0"
OLDEST_TORCH = (2, 11)
CSRC = Path("csrc")
X86 = platform.machine().lower() in ("x86_64", "amd64")
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []  # never linked: libgomp comes with libtorch, one pool for both
CPU_VARIANTS = {  # generic first: the linker keeps the first copy of an inline function, which must run everywhere
    "DEFAULT": [],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
}
CPU_KERNELS = [CSRC / "cpu/bn_act.cpp"]  # compiled once per variant; the rest of csrc once
CUDA_ARCHITECTURES = "8.0;9.0a;10.0;12.0+PTX"


def stop(message):
    raise SystemExit(f"\ndcgan_fast cannot be built: {message}\n")


def import_torch():
    try:
        import torch
    except ImportError:
        stop("torch is not installed: pip install torch")
    found = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if found < OLDEST_TORCH:
        stop(f"torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer is needed, found {torch.__version__}: "
             "pip install --upgrade torch")
    return torch, found


def cuda_home():
    """The toolkit to build with, or None. nvcc on PATH may be a wrapper script: only a root with the runtime counts."""
    wanted = os.environ.get("DCGAN_FAST_CUDA", "auto").lower()
    if wanted not in ("auto", "0", "1"):
        stop(f"DCGAN_FAST_CUDA must be auto, 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda",
             nvcc and Path(nvcc).resolve().parent.parent]
    for root in map(Path, filter(None, roots)):
        if (root / "bin/nvcc").exists() and (root / "lib64/libcudart_static.a").exists():
            return root
    if wanted == "1":
        stop("DCGAN_FAST_CUDA=1 and no CUDA toolkit: install nvcc, or set CUDA_HOME to the toolkit's root")
    return None


def gencode(home):
    """nvcc's flags for TORCH_CUDA_ARCH_LIST, or for those of our own list that this toolkit knows."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    known = subprocess.check_output([home / "bin/nvcc", "--list-gpu-arch"], text=True)
    flags = []
    for entry in re.split(r"[;,\s]+", asked.strip() or CUDA_ARCHITECTURES):
        number, suffix, ptx = re.fullmatch(r"([\d.]+)([af]?)(\+PTX)?", entry).groups()
        number = number.replace(".", "")
        if not asked and f"compute_{number}" not in known.split():
            continue
        flags.append(f"-gencode=arch=compute_{number}{suffix},code=sm_{number}{suffix}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{number}{suffix},code=compute_{number}{suffix}")
    return flags


def build_extension():
    torch, found = import_torch()
    from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler, include_paths

    cxx, home = get_cxx_compiler(), cuda_home()
    if not shutil.which(cxx):
        stop(f"no C++ compiler ({cxx}): install g++ (Debian: apt-get install g++), or set CXX")
    flags = ["-O3", "-g0", "-fvisibility=hidden", "-Wno-unknown-pragmas", "-Wno-psabi", *OPENMP]
    defines = [("DCGAN_FAST_X86", None)] if X86 else []
    sources = [p for p in sorted(CSRC.rglob("*.cpp")) if p not in CPU_KERNELS and (home or not p.stem.endswith("_cuda"))]
    link, commands = [], []
    includes = [f"-I{path}" for path in include_paths()]
    for variant, isa in CPU_VARIANTS.items():
        if variant == "DEFAULT" or X86:
            commands += [[cxx, "-std=c++20", *flags, "-fPIC", *isa, f"-DCPU_CAPABILITY={variant}",
                          f"-DCPU_CAPABILITY_{variant}", *includes, "-c", source, "-o", f"{variant}_{source.name}.o"]
                         for source in CPU_KERNELS]
    if home:
        archs = gencode(home)
        defines += [("DCGAN_FAST_CUDA", None),
                    ("DCGAN_FAST_CUDA_ARCHITECTURES", '"{}"'.format(";".join(a.rsplit("=", 1)[1] for a in archs)))]
        commands += [[home / "bin/nvcc", "-O3", "-std=c++17", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden",
                      "-Xptxas", "--warn-on-spills,--warning-as-error", *archs, "-c", cu, "-o", f"{cu.name}.o"]
                     for cu in sorted(CSRC.glob("cuda/*.cu"))]
        # one copy of the CUDA runtime in a process: torch's own where it has one, else ours
        link += [f"-L{home}/lib64"] + (["-lcudart"] if torch.version.cuda else [
            "-Wl,--exclude-libs,libcudart_static.a", "-lcudart_static", "-ldl", "-lrt", "-lpthread"])

    class Build(BuildExtension):
        def build_extensions(self):
            folder = Path(self.build_temp)
            folder.mkdir(parents=True, exist_ok=True)
            objects = [folder / command[-1] for command in commands]
            with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
                list(pool.map(subprocess.check_call, ([*c[:-1], o] for c, o in zip(commands, objects))))
            self.extensions[0].extra_objects = [str(o) for o in objects]
            super().build_extensions()

    extension = CppExtension("dcgan_fast._C", [str(p) for p in sources], define_macros=defines, extra_link_args=link,
                             extra_compile_args={"cxx": flags}, depends=[str(p) for p in CSRC.rglob("*.h")])
    return extension, Build, f"torch=={found[0]}.{found[1]}.*"


if "sdist" in sys.argv:  # metadata of a source archive needs neither torch nor a compiler
    compiled, pinned_torch = {}, f"torch>={OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}"
else:
    extension, builder, pinned_torch = build_extension()
    compiled = {"ext_modules": [extension], "cmdclass": {"build_ext": builder}}

setup(version=VERSION, packages=find_packages(include=["dcgan_fast*"]), package_data={"dcgan_fast": ["py.typed"]},
      install_requires=[pinned_torch, "numpy", "scikit-learn", "pillow", "tqdm"], **compiled)
