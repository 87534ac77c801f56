"""The build: what it asks for, how it fails, and that archives and wheels of it install."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dcgan_fast

ROOT = Path(__file__).parent.parent
TORCH_MINOR = ".".join(torch.__version__.split(".")[:2])


def load_backend():
    spec = importlib.util.spec_from_file_location("dcgan_fast_backend", ROOT / "_build/backend.py")
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    return backend


def test_torch_is_asked_for_only_where_there_is_none(monkeypatch):
    backend = load_backend()
    assert backend.get_requires_for_build_wheel() == []
    assert backend.get_requires_for_build_sdist() == []
    monkeypatch.setattr(backend, "PathFinder", SimpleNamespace(find_spec=lambda *args: None))
    assert backend.get_requires_for_build_wheel() == ["torch>=2.11", "numpy"]


def test_the_target_environments_torch_is_found_from_an_isolated_one():
    """As pip runs the hooks: the target's interpreter with its site-packages off the path."""
    code = (
        "import importlib.util as u; s = u.spec_from_file_location('b', '_build/backend.py');"
        "b = u.module_from_spec(s); s.loader.exec_module(b); print(b._where_torch_is())"
    )
    setuptools = Path(importlib.util.find_spec("setuptools").origin).parent
    isolated = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.append({str(setuptools.parent)!r}); {code}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert isolated.returncode == 0, isolated.stderr
    assert isolated.stdout.strip() in ("", str(Path(torch.__file__).parent.parent))


@pytest.mark.skipif(sys.platform != "linux", reason="links as on Linux")
@pytest.mark.parametrize(
    "installed, linked",
    [("libstdc++.so", []), ("libstdc++.so.6", ["/lib/libstdc++.so.6"]), ("", [])],
)
def test_the_shared_libstdcxx_is_linked_where_the_compiler_would_take_the_archive(
    tmp_path, installed, linked
):
    cxx = tmp_path / "c++"
    cxx.write_text(
        f'#!/bin/sh\nname=${{1#-print-file-name=}}\n[ "$name" = "{installed}" ] && echo "/lib/$name" || echo "$name"\n'
    )
    cxx.chmod(0o755)
    spec = importlib.util.spec_from_file_location("dcgan_fast_kernels", ROOT / "_build/kernels.py")
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    assert kernels.shared_libstdcxx(str(cxx)) == linked


def setup_fails(tmp_path: Path, **environment: str) -> str:
    """The message with which setup.py stops in this environment."""
    result = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0 and "Traceback" not in result.stderr
    return re.search(r"dcgan_fast cannot be built: (.*)", result.stderr)[1]


def fake_torch(folder: Path, code: str) -> str:
    (folder / "torch").mkdir()
    (folder / "torch/__init__.py").write_text(code)
    return str(folder)


def test_errors_name_the_cure(tmp_path):
    assert "install g++" in setup_fails(tmp_path, CXX="no-such-compiler")
    assert "DCGAN_FAST_CUDA must be auto, 0, 1 or emulated, got '2'" in setup_fails(
        tmp_path, DCGAN_FAST_CUDA="2"
    )
    old = fake_torch(tmp_path, "__version__ = '2.4.1'")
    message = setup_fails(tmp_path, PYTHONPATH=old)
    assert "torch 2.11 or newer is needed, found 2.4.1: pip install --upgrade torch" in message


def test_missing_torch_is_named(tmp_path):
    none = fake_torch(tmp_path, "raise ImportError")
    assert "pip install torch" in setup_fails(tmp_path, PYTHONPATH=none)


def test_setup_stays_small():
    assert len((ROOT / "setup.py").read_text().splitlines()) < 120


def build(kind: str, source: Path, out: Path, **environment: str) -> Path:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            f"--{kind}",
            "--outdir",
            str(out),
            str(source),
        ],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )
    return next(out.iterdir())


@pytest.mark.slow
def test_sdist_and_wheel_install_and_run(tmp_path):
    """Sources, without a build folder, to an archive; the archive to a wheel; the wheel into a new environment."""
    archive = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    assert {
        "_build/backend.py",
        "csrc/cpu/bn_act.cpp",
        "csrc/cuda/bn_act.cu",
        "csrc/checks.h",
    } <= names
    shutil.unpack_archive(archive, tmp_path / "source")
    source = next((tmp_path / "source").iterdir())
    # The least that there is to compile, and of that what ccache has of these sources elsewhere.
    least = {"DCGAN_FAST_CUDA": "0", "DCGAN_FAST_GENERIC": "1", "CCACHE_BASEDIR": str(source)}
    wheel = build("wheel", source, tmp_path / "wheel", **least)
    with zipfile.ZipFile(wheel) as z:
        metadata = z.read(next(n for n in z.namelist() if n.endswith("METADATA"))).decode()
        assert any(name.endswith("py.typed") for name in z.namelist())
    assert f"Requires-Dist: torch=={TORCH_MINOR}.*" in metadata

    target = tmp_path / "venv"
    venv.create(target, with_pip=True)
    python = target / "bin/python"
    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    Path(site, "torch_of_this_test.pth").write_text(str(Path(torch.__file__).parent.parent))
    code = "import dcgan_fast, pathlib; print(pathlib.Path(dcgan_fast.__file__).parent); print(dcgan_fast.build_info())"
    printed = subprocess.check_output([python, "-I", "-c", code], text=True, cwd=tmp_path)
    assert printed.startswith(site) and "cpu_capability" in printed


@pytest.mark.parametrize(
    "compiled, cure",
    [(None, "is a source folder without the compiled half"), (b"", "minor it was built against")],
)
def test_import_errors_name_the_cure(tmp_path, compiled, cure):
    shutil.copytree(
        Path(dcgan_fast.__file__).parent,
        tmp_path / "dcgan_fast",
        ignore=shutil.ignore_patterns("_C.*", "__pycache__"),
    )
    if compiled is not None:
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        (tmp_path / f"dcgan_fast/_C{suffix}").write_bytes(compiled)
    result = subprocess.run(
        [sys.executable, "-c", "import dcgan_fast"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1 and cure in result.stderr.splitlines()[-1]
