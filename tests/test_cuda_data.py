"""Batches of images on CUDA tensors: on a GPU, and in a build for the emulator on CPU tensors in their place."""

from __future__ import annotations

import pytest
import torch

from dcgan_fast import _C, functional, reference
from dcgan_fast.data import Batches, Dataset

EMULATED = _C.cuda_architectures == "emulated"
DEVICE = "cpu" if EMULATED else "cuda"
pytestmark = pytest.mark.skipif(
    not (EMULATED or (_C.cuda_architectures and torch.cuda.is_available())), reason="needs a GPU"
)
on_a_gpu = pytest.mark.skipif(EMULATED, reason="the emulator has none of this")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (3, 5, 7)])
def test_the_numbers_of_the_reference(shape, layout) -> None:
    images = torch.randint(256, (9, *shape)).to(torch.uint8)
    rows = torch.randint(9, (20,))
    for flips in (None, torch.rand(20) < 0.5):
        on_device = [None if t is None else t.to(DEVICE) for t in (images, rows, flips)]
        ours = functional.gather_images(*on_device, memory_format=layout)
        expected = reference.gather_images(images, rows, flips, memory_format=layout)
        assert torch.equal(ours.cpu(), expected)
        assert ours.is_contiguous(memory_format=layout)


def test_rows_that_are_not_there_become_nan() -> None:
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8, device=DEVICE)
    rows = torch.tensor([0, 2, -1], device=DEVICE)
    found = functional.gather_images(images, rows).isnan().flatten(1).all(1)
    assert found.tolist() == [False, True, True]


@on_a_gpu
def test_capture() -> None:
    images = torch.randint(256, (9, 3, 8, 8)).to(torch.uint8).cuda()
    rows = torch.zeros(4, dtype=torch.long, device="cuda")
    functional.gather_images(images, rows)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = functional.gather_images(images, rows)
    rows.copy_(torch.tensor([3, 1, 4, 1]))
    graph.replay()
    assert torch.equal(result, functional.gather_images(images, rows))


@on_a_gpu
def test_a_data_set_lies_on_the_device() -> None:
    data = Dataset("noise", torch.randint(256, (40, 3, 8, 8)).to(torch.uint8).numpy())
    batches = [list(Batches(data, 8, seed=0, flip=True, device=d)) for d in ("cuda", "cpu")]
    for one, other in zip(*batches, strict=True):
        assert one.is_cuda and torch.equal(one.cpu(), other)
