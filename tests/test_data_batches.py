"""Drawing batches: dcgan_fast/data/batches.py."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcgan_fast.data import Batches, Dataset, normalize, prepare
from dcgan_fast.errors import UserError


def numbered(count: int, size: int = 4) -> Dataset:
    """Image i is i in channel 0 (low byte), i // 256 in channel 1, and tells left from right."""
    images = np.zeros((count, 3, size, size), np.uint8)
    images[:, 0], images[:, 1] = [
        part[:, None, None] for part in (np.arange(count) % 256, np.arange(count) // 256)
    ]
    images[:, 2, :, : size // 2] = 255
    return Dataset("numbered", images, np.arange(count), [str(i) for i in range(count)])


def numbers(batch: torch.Tensor) -> list[int]:
    pixels = (batch[:, :2, 0, 0] * 127.5 + 127.5).round().long()
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()


def flipped(batch: torch.Tensor) -> list[bool]:
    return (batch[:, 2, 0, 0] < 0).tolist()


def drawn(batches: Batches) -> list[tuple[list[int], list[bool]]]:
    return [(numbers(batch), flipped(batch)) for batch in batches]


sizes = st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@settings(deadline=None)  # machines stall
@given(sizes, st.integers(0, 2**70), st.integers(0, 5), st.booleans())
def test_every_image_once_an_epoch(
    size: tuple[int, int], seed: int, epoch: int, flip: bool
) -> None:
    count, batch_size = size
    batches = Batches(numbered(count), batch_size, seed=seed, flip=flip, start=(epoch, 0))
    seen = [number for batch, _ in drawn(batches) for number in batch]
    assert len(seen) == count // batch_size * batch_size == len(set(seen))
    assert set(seen) <= set(range(count))
    assert (batches.epoch, batches.position) == (epoch + 1, 0)


@settings(deadline=None)  # machines stall
@given(sizes, st.integers(0, 2**32), st.data())
def test_a_resumed_run_equals_an_unbroken_one(
    size: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    dataset, batch_size = numbered(size[0]), size[1]

    def fresh(**options: Any) -> Batches:
        return Batches(dataset, batch_size, seed=seed, flip=True, **options)

    unbroken = fresh()
    expected = drawn(unbroken) + drawn(unbroken)
    stop = data.draw(st.integers(0, len(unbroken)))
    broken, head = fresh(), []
    for batch in broken:
        if len(head) == stop:
            break
        head.append((numbers(batch), flipped(batch)))
        state = broken.state_dict()
    if stop == 0:
        state = fresh().state_dict()
    assert (state["epoch"], state["position"]) == (0, stop)
    resumed = fresh()
    resumed.load_state_dict(state)
    again = fresh(start=(0, stop))
    assert head + drawn(resumed) + drawn(resumed) == expected
    assert head + drawn(again) + drawn(again) == expected


def test_epochs_and_seeds_differ() -> None:
    batches, other = (Batches(numbered(64), 8, seed=seed, flip=True) for seed in (0, 1))
    first, second, third = drawn(batches), drawn(batches), drawn(other)
    assert first != second and first != third
    assert [flips for _, flips in first] != [flips for _, flips in second]


def test_flip_mirrors_about_half_and_nothing_else() -> None:
    dataset = numbered(1000)
    plain = drawn(Batches(dataset, 100, seed=3))
    mirrored = drawn(Batches(dataset, 100, seed=3, flip=True))
    assert [batch for batch, _ in plain] == [batch for batch, _ in mirrored]
    assert not any(flag for _, flags in plain for flag in flags)
    assert 400 < sum(flag for _, flags in mirrored for flag in flags) < 600


def test_the_data_set_is_not_changed_by_flipping() -> None:
    dataset = numbered(20)
    before = dataset.images.copy()
    drawn(Batches(dataset, 5, seed=0, flip=True))
    assert np.array_equal(dataset.images, before)


def test_labels_go_with_their_images() -> None:
    batches = Batches(numbered(300), 32, seed=0, flip=True)
    for position, (images, labels) in enumerate(batches.labelled()):
        assert labels.dtype == torch.int64 and numbers(images) == labels.tolist()
        assert batches.indices(0, position).tolist() == labels.tolist()
    assert batches.epoch == 1


def test_labels_that_are_not_there() -> None:
    dataset = Dataset("bare", np.zeros((4, 1, 2, 2), np.uint8))
    with pytest.raises(UserError, match=r"Batches.labelled\(\): bare has no labels"):
        Batches(dataset, 2, seed=0).labelled()


@settings(deadline=None)  # machines stall
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))
def test_the_shares_of_all_ranks_make_up_the_batch_of_one(
    batch_size: int, world_size: int, rest: int
) -> None:
    dataset = numbered(3 * batch_size * world_size + rest)
    shares = [
        drawn(Batches(dataset, batch_size, seed=1, flip=True, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    whole = drawn(Batches(dataset, batch_size * world_size, seed=1, flip=True))
    joined = [
        (sum((batch for batch, _ in parts), []), sum((flags for _, flags in parts), []))
        for parts in zip(*shares, strict=True)
    ]
    assert joined == whole


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)])
def test_normalize(value_range: tuple[float, float]) -> None:
    bytes_ = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    low, high = value_range
    out = normalize(bytes_, value_range)
    assert out.dtype == torch.float32 and out.shape == (1, 1, 16, 16)
    assert out.min() == low and out.max() == high
    expected = torch.from_numpy(bytes_ / 255.0 * (high - low) + low)
    torch.testing.assert_close(out, expected.float())
    assert torch.equal(normalize(torch.from_numpy(bytes_), value_range), out)


def test_normalize_equals_torchvision_bit_for_bit() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    expected = pixels.to(torch.float32).div(255).sub(0.5).div(0.5)  # ToTensor, Normalize(.5, .5)
    assert torch.equal(normalize(pixels), expected)


def test_memory_format() -> None:
    options = {"seed": 0, "flip": True}
    plain = Batches(numbered(64), 16, **options)
    last = Batches(numbered(64), 16, memory_format=torch.channels_last, **options)
    for one, other in zip(plain, last, strict=True):
        assert one.is_contiguous() and other.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one, other) and one.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_equal_those_on_the_cpu() -> None:
    pairs = [Batches(numbered(64), 16, seed=0, flip=True, device=d) for d in ("cpu", "cuda")]
    for one, other in zip(*(batches.labelled() for batches in pairs), strict=True):
        assert other[0].is_cuda and torch.equal(one[0], other[0].cpu())
        assert torch.equal(one[1], other[1].cpu())


def streamed(*arguments: Any, **options: Any) -> Batches:
    """As of a data set that is too large to lie on the device."""
    batches = Batches(*arguments, **options)
    batches._fits = lambda: False
    return batches


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_data_on_the_device_and_data_that_is_not_give_the_same_batches(memory_format) -> None:
    options = {"seed": 3, "flip": True, "memory_format": memory_format, "value_range": (0.0, 1.0)}
    on_device, off = Batches(numbered(70), 8, **options), streamed(numbered(70), 8, **options)
    for _ in range(2):
        for (one, labels), (other, other_labels) in zip(
            on_device.labelled(), off.labelled(), strict=True
        ):
            assert torch.equal(one, other) and torch.equal(labels, other_labels)
            assert one.stride() == other.stride()
            assert on_device.position == off.position
    assert on_device._resident is not None and off._resident is None
    assert on_device.state_dict() == off.state_dict()


def test_a_data_set_of_more_than_a_quarter_of_the_memory_does_not_fit(monkeypatch) -> None:
    batches = Batches(numbered(70), 8, seed=0)
    assert batches._fits()
    monkeypatch.setattr(
        "os.sysconf", lambda name: {"SC_PAGE_SIZE": 4, "SC_PHYS_PAGES": 70 * 48 - 1}[name]
    )
    assert not batches._fits()


def test_a_broken_off_iteration_ends_its_thread_and_goes_on_later() -> None:
    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("dcgan_fast-batches")]

    batches = streamed(numbered(64), 8, seed=0)
    expected = drawn(streamed(numbered(64), 8, seed=0))
    iterator = iter(batches)
    got = [next(iterator), next(iterator)]
    assert threads()
    del iterator
    assert not threads() and batches.position == 2
    assert [numbers(batch) for batch in [*got, *batches]] == [batch for batch, _ in expected]
    assert not threads()


def test_the_end_of_an_epoch_is_a_place_of_its_own() -> None:
    batches = Batches(numbered(10), 3, seed=0)
    states = [batches.state_dict() for _ in batches]
    assert [(state["epoch"], state["position"]) for state in states] == [(0, 1), (0, 2), (0, 3)]
    resumed = Batches(numbered(10), 3, seed=0)
    resumed.load_state_dict(states[-1])
    assert drawn(resumed) == [] and (resumed.epoch, resumed.position) == (1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "'seed' was 0 when the state was saved, and is 1 now"),
        ({"batch_size": 4}, "'batch_size' was 3"),
        ({"flip": True}, "'flip' was False"),
        ({"world_size": 2}, "'world_size' was 1"),
        ({"dataset": numbered(31)}, "'images' was 30"),
    ],
)
def test_a_state_of_other_settings_is_refused(change: dict[str, Any], message: str) -> None:
    options = {"dataset": numbered(30), "batch_size": 3, "seed": 0}
    state = Batches(**options).state_dict()
    with pytest.raises(UserError, match=message):
        Batches(**{**options, **change}).load_state_dict(state)


def test_a_state_that_is_none() -> None:
    with pytest.raises(UserError, match="'images' was None"):
        Batches(numbered(8), 2, seed=0).load_state_dict({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "'batch_size' must be an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, "'batch_size' must be an integer"),
        ({"batch_size": 11}, "'batch_size' 11 is more than the 10 images of numbered"),
        ({"batch_size": 4, "world_size": 3}, "'batch_size' 4 x world_size 3 is more than the 10"),
        ({"seed": -1}, "'seed' must be an integer of at least 0, got -1"),
        ({"rank": 1}, "'rank' must be an integer of at least 0 and at most 0, got 1"),
        ({"world_size": 0}, "'world_size' must be"),
        ({"value_range": (1, -1)}, r"'value_range' must be \(low, high\), got \(1, -1\)"),
        ({"start": (-1, 0)}, "'epoch' must be"),
        ({"start": (0, 6)}, "'position' must be an integer of at least 0 and at most 5, got 6"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"Batches\(\): {message}"):
        Batches(numbered(10), **{"batch_size": 2, "seed": 0, **options})


def test_batches_of_a_prepared_set(tmp_path: Path) -> None:
    dataset = prepare("digits", image_size=16, cache_dir=tmp_path, progress=False)
    images, labels = next(iter(Batches(dataset, 128, seed=0).labelled()))
    assert images.shape == (128, 1, 16, 16) and images.min() == -1 and images.max() == 1
    rows = Batches(dataset, 128, seed=0).indices(0, 0)
    assert torch.equal(images, normalize(dataset.images[rows]))
    assert np.array_equal(labels, dataset.labels[rows])
