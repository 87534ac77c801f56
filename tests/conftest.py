"""Every test draws the same random numbers on every run."""

from __future__ import annotations

import os

import pytest
import torch

if device := os.environ.get(
    "DCGAN_FAST_TEST_DEVICE"
):  # test_functional.py draws all its tensors there
    torch.set_default_device(device)
torch.backends.cudnn.allow_tf32 = False  # float32 is held to float32's errors on GPUs too


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
