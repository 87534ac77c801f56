"""The emulated kernels as fixtures.

Needs a C++ compiler (`CXX`, or g++) and no CUDA. Without one these tests are not collected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for pytest's --import-mode=importlib

from emulator_harness import CXX, KERNELS, SANITIZERS, Builder, Emulated  # noqa: E402

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
    """start(sanitizer, kernels): a new process with the kernels of that folder."""
    started: list[Emulated] = []

    def start(sanitizer: str = "plain", kernels: Path = KERNELS) -> Emulated:
        started.append(Emulated(builder.driver(sanitizer, kernels)))
        return started[-1]

    yield start
    for emulated in started:
        emulated.kill()


@pytest.fixture(scope="session")
def emulated(builder: Builder, start: Callable[..., Emulated]) -> Emulated:
    """The kernels without a sanitizer. Builds those with one as well, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(builder.driver, SANITIZERS))
    return start()
