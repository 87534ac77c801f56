"""The compiled half: torch glue by torch's own builder, kernels beside it (_build/kernels.py).

Environment: MAX_JOBS, CXX, DCGAN_FAST_CUDA=auto|0|1, TORCH_CUDA_ARCH_LIST, CUDA_HOME. For tests: DCGAN_FAST_GENERIC=1
builds no CPU kernels but those of any machine, DCGAN_FAST_SANITIZE=1 watches the memory accesses of the CPU kernels
(.ci/sanitize), DCGAN_FAST_CUDA=emulated runs the CUDA kernels on CPU tensors, by tests/emulator.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.modified import newer_group

sys.path.insert(0, str(Path(__file__).parent / "_build"))
from kernels import (
    CPU_KERNELS,
    CSRC,
    EMULATED,
    OLDEST_TORCH,
    X86,
    cpu_commands,
    cuda_half,
    cuda_home,
    cxx_flags,
    import_torch,
    shared_libstdcxx,
    stop,
)  # noqa: E402

VERSION = re.search(r'__version__ = "(.*)"', Path("dcgan_fast/__init__.py").read_text())[1]


def compiled_half():
    """setup()'s arguments for the extension, and the torch that it will run with."""
    torch, found = import_torch()
    from torch.utils.cpp_extension import (
        BuildExtension,
        CppExtension,
        get_cxx_compiler,
        include_paths,
    )

    cxx, home = get_cxx_compiler(), cuda_home()
    if not shutil.which(cxx):
        stop(f"no C++ compiler ({cxx}): install g++ (Debian: apt-get install g++), or set CXX")
    flags, link = cxx_flags()
    standard = ["-std=c++20"] if found < (2, 13) else []  # what newer ones ask for themselves
    sources = [
        str(p)
        for p in sorted(CSRC.rglob("*.cpp"))
        if p not in CPU_KERNELS and (home or EMULATED or "_cuda" not in p.stem)
    ]
    defines = [("DCGAN_FAST_X86", None)] if X86 else []
    commands = cpu_commands(cxx, flags, include_paths())
    more_commands, more_defines, more_link = cuda_half(cxx, home, torch.version.cuda)
    commands += more_commands
    defines += more_defines
    link = link + more_link + shared_libstdcxx(cxx)

    class Build(BuildExtension):
        def build_extensions(self):
            folder = Path(self.build_temp)
            folder.mkdir(parents=True, exist_ok=True)
            calls = [[*command[:-1], str(folder / command[-1])] for command in commands]
            headers = [*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")]
            stale = [
                call
                for call in calls
                if newer_group([call[call.index("-c") + 1], *headers], call[-1])
            ]
            with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
                list(pool.map(subprocess.check_call, stale))
            self.extensions[0].extra_objects = [call[-1] for call in calls]
            super().build_extensions()

    extension = CppExtension(
        "dcgan_fast._C",
        sources,
        define_macros=defines,
        extra_link_args=link,
        extra_compile_args={"cxx": flags + standard},
        depends=[str(p) for p in CSRC.rglob("*.h")],
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build},
    }, f"torch=={found[0]}.{found[1]}.*"


if "sdist" in sys.argv:  # an archive of the sources needs neither torch nor a compiler
    arguments, torch_requirement = {}, "torch>={}.{}".format(*OLDEST_TORCH)
else:
    arguments, torch_requirement = compiled_half()

setup(
    version=VERSION,
    packages=find_packages(include=["dcgan_fast*"]),
    package_data={"dcgan_fast": ["py.typed", "*.pyi"]},
    install_requires=[torch_requirement, "numpy", "scikit-learn", "pillow", "tqdm"],
    **arguments,
)
