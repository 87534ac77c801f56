"""Tests of the emulator itself; most are in test_emulator.cpp, next to the kernels they run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from emulator_harness import SANITIZERS, Builder


@pytest.fixture(scope="module")
def programs(builder: Builder) -> dict[str, Path]:
    return {name: builder.self_test(name) for name in SANITIZERS}


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def test_kernels_run_and_faults_are_named(programs: dict[str, Path]) -> None:
    result = run(programs["plain"])
    assert result.returncode == 0 and result.stdout.count("ok: ") >= 45, result.stdout


@pytest.mark.parametrize(
    ("fault", "kernel", "sanitizer", "report"),
    [
        ("past_shared_memory", "past_shared_memory_kernel", "asan", "heap-buffer-overflow"),
        ("past_array", "past_array_kernel", "asan", "heap-buffer-overflow"),
        ("missing_barrier", "sum_kernel", "tsan", "data race"),
        ("between_blocks", "between_blocks_kernel", "tsan", "data race"),
        ("warp_race", "warp_race_kernel", "tsan", "data race"),
        ("plain_read", "plain_read_kernel", "tsan", "data race"),
        ("unawaited_box", "engine_kernel", "tsan", "data race"),
        ("past_box_array", "perform", "asan", "heap-buffer-overflow"),
    ],
)
def test_sanitizers_see_faults(
    programs: dict[str, Path], fault: str, kernel: str, sanitizer: str, report: str
) -> None:
    result = run(programs[sanitizer], fault)
    assert result.returncode != 0
    assert report in result.stderr and kernel in result.stderr


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_right_kernels_are_clean(programs: dict[str, Path], sanitizer: str) -> None:
    result = run(programs[sanitizer], "clean")
    assert result.returncode == 0 and not result.stderr, result.stderr


def test_16_bit_types_round_as_torch_does(programs: dict[str, Path]) -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    halves = torch.arange(-600, 600).float() / 512 + 1  # ties
    values = torch.cat([values * scale for scale in (1, 1e-4, 3e-7, 3e4, 1e-38, 1e38)] + [halves])
    values = torch.cat([values, torch.tensor([65504, 65519.996, 65520, 0.0, -0.0, torch.inf])])
    output = subprocess.run(
        [programs["plain"], "convert"], input=values.numpy().tobytes(), capture_output=True
    ).stdout
    bits = torch.frombuffer(bytearray(output), dtype=torch.int16).reshape(-1, 2)
    assert torch.equal(bits[:, 0], values.to(torch.float16).view(torch.int16))
    assert torch.equal(bits[:, 1], values.to(torch.bfloat16).view(torch.int16))
