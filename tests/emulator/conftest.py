"""The emulated kernels as fixtures.

Needs a C++ compiler (`CXX`, or g++) and no CUDA. Without one these tests are not collected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# For pytest's --import-mode=importlib: this folder, and tests/ for accuracy.py.
sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]

from emulator_harness import CXX, KERNELS, Builder, Emulated  # noqa: E402

collect_ignore_glob: list[str] = []
if CXX is None:
    collect_ignore_glob.append("test_*.py")
    print("tests/emulator: not run, for there is no C++ compiler (CXX, g++)", file=sys.stderr)


@pytest.fixture(scope="session")
def builder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    cache = getattr(request.config, "cache", None)  # none under -p no:cacheprovider
    return Builder(Path(cache.mkdir("emulator") if cache else tmp_path_factory.mktemp("emulator")))


@pytest.fixture(scope="session")
def start(builder: Builder) -> Iterator[Callable[..., Emulated]]:
    """start(class, sanitizer, kernels): a new process with that class's op in the kernels of that folder."""
    started: list[Emulated] = []

    def start(kind: type[Emulated], sanitizer: str = "plain", kernels: Path = KERNELS) -> Emulated:
        started.append(kind(builder.driver(kind.OP, sanitizer, kernels)))
        return started[-1]

    yield start
    for emulated in started:
        emulated.kill()
