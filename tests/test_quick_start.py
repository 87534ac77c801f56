"""The quick start runs as it stands in the documentation, which includes it."""

from __future__ import annotations

import functools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import one_thread  # noqa: F401

import dcgan_fast
import dcgan_fast.training

ROOT = Path(__file__).parent.parent
QUICK_START = ROOT / "examples" / "quick_start.py"
PICTURES = ("samples.png", "walk.png", "nearest.png")


def assert_it_left_what_it_says(folder: Path, least_shades: int) -> None:
    for name in PICTURES:
        with Image.open(folder / name) as picture:
            assert len(np.unique(np.asarray(picture))) >= least_shades
    assert (folder / "runs" / "digits-pytorch" / "config.json").exists()


def test_the_quick_start_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DCGAN_FAST_CACHE", str(tmp_path / "cache"))
    short = functools.partial(dcgan_fast.training.TrainConfig, max_steps=4, ngf=8, ndf=8)
    monkeypatch.setattr(dcgan_fast.training, "TrainConfig", short)
    found = runpy.run_path(str(QUICK_START))
    assert found["images"].shape == (64, 1, 16, 16) and found["walk"].shape == (10, 1, 16, 16)
    assert found["nearest"][0] == 0  # nothing is more like an image than itself
    assert "labels of the nearest: [0, " in capsys.readouterr().out
    assert_it_left_what_it_says(tmp_path, least_shades=3)  # of an untrained net's pictures


@pytest.mark.slow
def test_the_quick_start(tmp_path: Path) -> None:
    """As a user runs it: its features find images of the same digit."""
    paths = [str(Path(dcgan_fast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment["DCGAN_FAST_CACHE"] = str(tmp_path / "cache")
    command = [sys.executable, "-W", "error", str(QUICK_START)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    labels = re.search(r"labels of the nearest: \[(.*)\]", done.stdout)
    assert labels and labels[1].split(", ").count("0") >= 6
    assert_it_left_what_it_says(tmp_path, least_shades=50)


def test_it_is_thirty_lines_and_in_the_documentation() -> None:
    assert len(QUICK_START.read_text().splitlines()) <= 30
    page = (ROOT / "docs" / "quick-start.md").read_text()
    assert "```{literalinclude} ../examples/quick_start.py" in page
