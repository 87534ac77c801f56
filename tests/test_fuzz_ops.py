"""Random arguments for every op, in a process of its own: a crash is a failed test that names the seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parent / "fuzz" / "ops.py"


def fuzz(examples: int, seed: int) -> None:
    command = [sys.executable, str(FUZZER), "--examples", str(examples), "--seed", str(seed)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        command, capture_output=True, text=True, cwd="/", env=environment, timeout=500
    )
    lines = found.stdout.splitlines()
    failures = [line for line in lines if line.startswith("FAILED")]
    assert not failures, "\n".join(failures)
    assert found.returncode == 0, f"after '{lines[-1:]}':\n{found.stderr[-2000:]}"
    summaries = [line for line in lines if line.startswith("SUMMARY")]
    assert len(summaries) == 14


def test_any_arguments_are_served_or_refused(seed: int) -> None:
    fuzz(40, seed)


@pytest.mark.slow
def test_many_arguments_are_served_or_refused(seed: int) -> None:
    fuzz(400, 1000 + seed)
