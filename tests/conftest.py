"""Every test draws the same random numbers on every run. With DCGAN_FAST_TEST_SEED=random those that look for what
nobody thought of draw others and name the seed, which the variable takes."""

from __future__ import annotations

import os
import random

import pytest
import torch
from hypothesis import settings

TEST_SEED = os.environ.get("DCGAN_FAST_TEST_SEED", "0")
settings.register_profile("repeatable", derandomize=TEST_SEED != "random")
settings.load_profile("repeatable")

if device := os.environ.get(
    "DCGAN_FAST_TEST_DEVICE"
):  # test_functional.py draws all its tensors there
    torch.set_default_device(device)
torch.backends.cudnn.allow_tf32 = False  # float32 is held to float32's errors on GPUs too


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def seed() -> int:
    """Of a test's own drawing, printed where the test fails."""
    found = random.randrange(1 << 31) if TEST_SEED == "random" else int(TEST_SEED)
    print(f"DCGAN_FAST_TEST_SEED={found}")
    return found
