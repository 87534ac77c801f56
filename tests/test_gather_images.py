"""Batches of images out of a data set of bytes: against the reference, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcgan_fast import functional, reference
from dcgan_fast.data import normalize


def data(count: int = 9, shape: tuple[int, int, int] = (3, 6, 5), seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=stream).to(torch.uint8)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
    count=st.integers(1, 5),
    batch=st.integers(0, 70),
    channels_last=st.booleans(),
    flipped=st.booleans(),
    value_range=st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (-0.3, 2.5)]),
    seed=st.integers(0, 2**16),
)
def test_any_shape(shape, count, batch, channels_last, flipped, value_range, seed) -> None:
    images = data(count, shape, seed)
    stream = torch.Generator().manual_seed(seed)
    rows = torch.randint(count, (batch,), generator=stream)
    flips = torch.rand(batch, generator=stream) < 0.5 if flipped else None
    layout = torch.channels_last if channels_last else torch.contiguous_format
    ours, theirs = (
        m.gather_images(images, rows, flips, value_range=value_range, memory_format=layout)
        for m in (functional, reference)
    )
    assert torch.equal(ours, theirs)
    assert ours.dtype == torch.float32 and ours.is_contiguous(memory_format=layout)


def test_the_numbers_of_normalize() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    for value_range in ((-1.0, 1.0), (0.0, 1.0)):
        ours = functional.gather_images(images, torch.zeros(1).long(), value_range=value_range)
        assert torch.equal(ours, normalize(images, value_range))


def test_the_same_bits_with_one_thread() -> None:
    images, rows = data(50, (3, 64, 64)), torch.arange(50)
    several = functional.gather_images(images, rows, rows % 2 == 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(functional.gather_images(images, rows, rows % 2 == 0), several)
    finally:
        torch.set_num_threads(threads)


def test_operator_is_a_citizen() -> None:
    arguments = (data(), torch.tensor([3, 1]), torch.tensor([True, False]), -1.0, 1.0, True)
    torch.library.opcheck(torch.ops.dcgan_fast.gather_images.default, arguments)
    compiled = torch.compile(functional.gather_images, fullgraph=True, backend="aot_eager")
    expected = functional.gather_images(*arguments[:2])
    assert torch.equal(compiled(*arguments[:2]), expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": data().float()}, TypeError, "'images' must be uint8, got Float"),
        ({"images": data()[0]}, ValueError, r"'images' must be \(N, C, H, W\)"),
        ({"images": data().transpose(2, 3)}, ValueError, "'images' must be contiguous"),
        ({"rows": torch.tensor([0], dtype=torch.int32)}, TypeError, "'rows' must be int64"),
        ({"rows": torch.tensor([[0]])}, ValueError, r"'rows' must be \(batch,\)"),
        ({"rows": torch.tensor([0, 9])}, IndexError, "'rows' must be from 0 to 8, got 9"),
        ({"rows": torch.tensor([-1])}, IndexError, "got -1"),
        ({"flips": torch.tensor([1])}, TypeError, "'flips' must be bool"),
        ({"flips": torch.tensor([True] * 3)}, ValueError, "'flips' must be"),
        ({"value_range": (1.0, 1.0)}, ValueError, "'low' must be less than 'high'"),
        ({"memory_format": torch.preserve_format}, ValueError, "'memory_format' must be"),
    ],
)
def test_wrong_arguments(changes, error, message) -> None:
    arguments = {"images": data(), "rows": torch.tensor([0]), "flips": None, **changes}
    with pytest.raises(error, match=message):
        functional.gather_images(**arguments)
