"""Runs small enough for a test: 16x16 images, networks of width 4, four steps an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcgan_fast.data import Dataset
from dcgan_fast.training import TrainConfig, Trainer, load_checkpoint

STEPS_PER_EPOCH = 4


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small lose more to a second thread than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dataset(count: int = 64, channels: int = 1, size: int = 16) -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return Dataset("noise", images, rng.integers(0, 3, count), ["one", "two", "three"])


def config(out: Path | None = None, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "image_size": 16,
        "ngf": 4,
        "ndf": 4,
        "nz": 8,
        "batch_size": 16,
        "epochs": 2,
        "log_every": 3,
        "grid_images": 4,
        "save_seconds": None,
        "device": "cpu",
        "out": None if out is None else str(out),
    }
    return TrainConfig(**{**settings, **changes})


def trainer(out: Path | None = None, **changes: Any) -> Trainer:
    return Trainer(config(out, **changes), dataset=dataset())


def assert_same_state(a: Any, b: Any, where: str = "state") -> None:
    """Nested dicts and lists of tensors and plain values are equal bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same_state(left, right, f"{where}[{index}]")
    else:
        assert a == b, where


def assert_same_checkpoint(a: Path, b: Path) -> None:
    """Two checkpoints are equal in all but where the runs lie and when they saved."""
    states = [load_checkpoint(path) for path in (a, b)]
    for state in states:
        for setting in ("out", "name", "save_steps", "save_seconds", "epochs", "max_steps"):
            state["train_config"].pop(setting)
    assert_same_state(*states)
