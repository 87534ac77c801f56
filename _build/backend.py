"""PEP 517 backend: setuptools' own, run against the torch that the target environment has.

A C++ extension of torch works with the torch minor it was built against and no other, so a plain `torch` in the build
requirements would build against the newest release and then fail to import beside an older one. Under build isolation
pip hides the target's site-packages from sys.path but still runs the target's interpreter, whose prefix names them:
they are appended to the end of sys.path, where the isolated setuptools and ninja win and torch is found. torch is asked
for as a build requirement only where the target has none.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from setuptools import build_meta

OLDEST_TORCH = "2.11"


def _target_site_packages() -> list[str]:
    candidates = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    if venv := os.environ.get(
        "VIRTUAL_ENV"
    ):  # uv builds in an environment of its own and names the target so
        bases = {"base": venv, "platbase": venv, "installed_base": venv, "installed_platbase": venv}
        candidates.append(sysconfig.get_path("platlib", vars=bases))
    config = Path(sys.prefix, "pyvenv.cfg")
    if config.exists() and "include-system-site-packages = true" in config.read_text().lower():
        candidates += site.getsitepackages([sys.base_prefix])
    if site.ENABLE_USER_SITE or sys.prefix == sys.base_prefix:
        candidates.append(site.getusersitepackages())
    return [p for p in dict.fromkeys(candidates) if os.path.isdir(p)]


def _where_torch_is() -> str | None:
    """The folder to append to sys.path so that torch imports; "" where it imports already."""
    if PathFinder.find_spec("torch"):
        return ""
    return next((p for p in _target_site_packages() if PathFinder.find_spec("torch", [p])), None)


def _with_torch(hook: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if folder := _where_torch_is():
            sys.path.append(folder)
        return hook(*args, **kwargs)

    return run


def _requirements(config_settings: Any = None) -> list[str]:
    return [] if _where_torch_is() is not None else [f"torch>={OLDEST_TORCH}", "numpy"]


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    return []


get_requires_for_build_wheel = _requirements
get_requires_for_build_editable = _requirements
prepare_metadata_for_build_wheel = _with_torch(build_meta.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = _with_torch(build_meta.prepare_metadata_for_build_editable)
build_wheel = _with_torch(build_meta.build_wheel)
build_editable = _with_torch(build_meta.build_editable)
build_sdist = _with_torch(build_meta.build_sdist)
