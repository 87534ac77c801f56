"""The examples run as they stand, cut short, from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow  # for the packages' imports
EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = ["--epochs", "2", "--max-steps", "3", "--width", "4"]


def run(cwd: Path, *command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout + result.stderr


def assert_samples(path: Path) -> None:
    with Image.open(path) as picture:
        low, high = picture.convert("L").getextrema()
        assert min(picture.size) > 8 * 32 and low < high


@pytest.mark.parametrize("options", [[], ["--precision", "bf16-mixed"]])
def test_lightning(tmp_path: Path, options: list[str]) -> None:
    pytest.importorskip("lightning")
    script = str(EXAMPLES / "lightning_dcgan.py")
    printed = run(tmp_path, sys.executable, script, *SHORT, *options)
    assert "loss_d=" in printed and "loss_g=" in printed
    assert_samples(tmp_path / "digits.png")


@pytest.mark.parametrize("options", [[], ["--precision", "bf16"]])
def test_accelerate(tmp_path: Path, options: list[str]) -> None:
    pytest.importorskip("accelerate")
    script = str(EXAMPLES / "accelerate_dcgan.py")
    printed = run(tmp_path, sys.executable, script, *SHORT, *options)
    assert "epoch 2: loss_d" in printed
    assert_samples(tmp_path / "digits.png")


@pytest.mark.parametrize("package", ["lightning", "accelerate"])
def test_two_processes(tmp_path: Path, package: str) -> None:
    pytest.importorskip(package)
    script = str(EXAMPLES / f"{package}_dcgan.py")
    launch = [sys.executable, script, "--devices", "2"]
    if package == "accelerate":
        options = [
            "--cpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
            "--main_process_port",
            "0",
        ]
        launch = [sys.executable, "-m", "accelerate.commands.launch", *options, script]
    run(tmp_path, *launch, *SHORT)
    assert_samples(tmp_path / "digits.png")
