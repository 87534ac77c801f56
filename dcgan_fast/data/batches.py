"""Shuffled float batches from a prepared data set, without Python work for each image.

A data set that takes little of the device's memory lies there as bytes, and one op makes a batch of them:
gather, mirror and normalise in one pass (:func:`dcgan_fast.functional.gather_images`). Of a larger one a thread
gathers two batches of bytes ahead, so that page faults and disk reads hide behind the training step; bytes, not
floats, travel to the device.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import functional
from ..devices import memory_of
from ..errors import UserError
from .dataset import Dataset

_AHEAD = 2
_SHARE_OF_MEMORY = 4  # the data set may take a quarter of the device's
_ORDER, _FLIPS = 0, 1  # the independent random streams of an epoch


def normalize(
    images: Tensor | np.ndarray,
    value_range: tuple[float, float] = (-1.0, 1.0),
    *,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """uint8 images (N, C, H, W) to float32 of the same shape, 0 to ``low`` and 255 to ``high``.

    For (-1, 1) bit for bit what torchvision's ``ToTensor`` and ``Normalize(0.5, 0.5)`` give.
    """
    low, high = value_range
    tensor = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    tensor = tensor.to(device, non_blocking=True) if device is not None else tensor
    tensor = tensor.to(torch.float32, copy=True, memory_format=memory_format)
    return tensor.div_(255 / (high - low)).add_(low)


class Batches:
    """Draws batches for ever, one epoch an iteration::

        batches = Batches(dataset, 128, seed=0)
        for images in batches:                  # the rest of this epoch
            ...
        for images, labels in batches.labelled():
            ...

    dataset:       a :class:`Dataset`
    batch_size:    B, images in a batch of this process
    seed:          with the epoch, decides order and flips: a non-negative integer
    flip:          mirrors each image left to right with probability 1/2
    device:        where the batches are wanted
    value_range:   what 0 and 255 become: (-1, 1) for a tanh output, (0, 1) for a sigmoid
    memory_format: ``torch.contiguous_format`` or ``torch.channels_last``
    rank, world_size: this process's share. Each drawn batch of ``B * world_size`` images is cut in
                   ``world_size`` parts, so all processes together see what one would with that
                   batch size
    start:         (epoch, position) to begin at; a position counts the batches already drawn

    Yields float32 (B, C, S, S), with labels int64 (B,) from :meth:`labelled`. What does not fill a
    last batch is dropped; an epoch's order is a new permutation, so nothing is dropped for good.

    Order and flips are pure functions of (seed, epoch): numpy's Philox generator, seeded by
    ``SeedSequence(seed, spawn_key=(epoch, stream))``, one draw for all N positions. Hence to
    restore (epoch, position) is to continue bit for bit. numpy keeps such streams the same within
    a version, and in practice across them.

    Only one iteration may run at a time. Raises UserError for a bad argument and for a data set
    smaller than one batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        flip: bool = False,
        device: torch.device | str = "cpu",
        value_range: tuple[float, float] = (-1.0, 1.0),
        memory_format: torch.memory_format = torch.contiguous_format,
        rank: int = 0,
        world_size: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        _require_integer("batch_size", batch_size, 1)
        _require_integer("seed", seed, 0)
        _require_integer("world_size", world_size, 1)
        _require_integer("rank", rank, 0, world_size - 1)
        if not value_range[0] < value_range[1]:
            raise UserError(f"Batches(): 'value_range' must be (low, high), got {value_range!r}")
        drawn = batch_size * world_size
        if len(dataset) < drawn:
            shares = f" x world_size {world_size}" if world_size > 1 else ""
            raise UserError(
                f"Batches(): 'batch_size' {batch_size}{shares} is more than the "
                f"{len(dataset)} images of {dataset.name}"
            )
        self.dataset, self.batch_size, self.seed, self.flip = dataset, batch_size, seed, flip
        self.device, self.value_range = torch.device(device), value_range
        self.memory_format = memory_format
        self.rank, self.world_size = rank, world_size
        # A plain view: the memory map's subclass costs microseconds an operation.
        self._images = np.asarray(dataset.images)
        self._resident: Tensor | None = None  # all images on the device, from the first batch on
        self.seek(*start)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.dataset) // (self.batch_size * self.world_size)

    @property
    def epoch(self) -> int:
        """The epoch being drawn, from 0."""
        return self._epoch

    @property
    def position(self) -> int:
        """Batches of this epoch already drawn; ``len(self)`` until the iteration has ended."""
        return self._position

    def seek(self, epoch: int, position: int = 0) -> None:
        """Makes the next iteration begin there. Not for use while one runs."""
        _require_integer("epoch", epoch, 0)
        _require_integer("position", position, 0, len(self))
        self._epoch, self._position = epoch, position

    def __iter__(self) -> Iterator[Tensor]:
        for images, _ in self._draw():
            yield images

    def labelled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """As iteration, with each batch's labels, int64 (B,). UserError where there are none."""
        if self.dataset.labels is None:
            raise UserError(f"Batches.labelled(): {self.dataset.name} has no labels")
        return self._with_labels(self.dataset.labels)

    def indices(self, epoch: int, position: int) -> np.ndarray:
        """Which images, int64 (B,), this process's batch at (epoch, position) holds."""
        return self._share(self._plan(epoch)[0], position)

    def state_dict(self) -> dict[str, int | bool]:
        """The place, and everything that decides what comes after it; plain values."""
        return {**self._identity(), "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where ``state`` was taken.

        UserError when a setting that decides the batches was another then, naming it.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise UserError(
                    f"Batches.load_state_dict(): {name!r} was {state.get(name)!r} "
                    f"when the state was saved, and is {value!r} now"
                )
        self.seek(state["epoch"], state["position"])

    def _identity(self) -> dict[str, int | bool]:
        return {
            "images": len(self.dataset),
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "seed": self.seed,
            "flip": self.flip,
        }

    def _with_labels(self, labels: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        for images, rows in self._draw():
            chosen = torch.from_numpy(labels[rows]).to(self.device, non_blocking=True)
            yield images, chosen

    def _draw(self) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Batches on the device and their rows, to the end of the epoch."""
        order, flips = self._plan(self._epoch)
        if self._resident is None and self._fits():
            self._resident = _as_tensor(self._images).to(self.device)
        for images, rows in (
            self._ahead(order, flips) if self._resident is None else self._at_once(order, flips)
        ):
            self._position += 1
            yield images, rows
        self.seek(self._epoch + 1)

    def _fits(self) -> bool:
        """Whether the data set is dense and takes at most a quarter of the device's memory."""
        if not self._images.flags.c_contiguous or not functional.served(
            torch.empty(0, device=self.device)
        ):
            return False
        return bool(self._images.nbytes <= (memory_of(self.device) or 0) // _SHARE_OF_MEMORY)

    def _at_once(self, order: np.ndarray, flips: np.ndarray) -> Iterator[tuple[Tensor, np.ndarray]]:
        """From the images on the device; what travels there is the numbers of the rows."""
        assert self._resident is not None
        for position in range(self._position, len(self)):
            rows = self._share(order, position)
            mirrored = self._on_device(self._share(flips, position)) if self.flip else None
            images = functional.gather_images(
                self._resident,
                self._on_device(rows),
                mirrored,
                value_range=self.value_range,
                memory_format=self.memory_format,
            )
            yield images, rows

    def _on_device(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _ahead(self, order: np.ndarray, flips: np.ndarray) -> Iterator[tuple[Tensor, np.ndarray]]:
        """From the host's images, gathered as bytes by one thread, two batches ahead."""
        with ThreadPoolExecutor(1, thread_name_prefix="dcgan_fast-batches") as pool:
            jobs = (
                pool.submit(self._gather, self._share(order, p), self._share(flips, p))
                for p in range(self._position, len(self))
            )
            ahead: deque[Future[tuple[Tensor, np.ndarray]]] = deque(islice(jobs, _AHEAD))
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(islice(jobs, 1))
                yield self._to_device(batch[0]), batch[1]

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        def stream(which: int) -> np.random.Generator:
            sequence = np.random.SeedSequence(self.seed, spawn_key=(epoch, which))
            return np.random.Generator(np.random.Philox(sequence))

        count = len(self.dataset)
        flips = stream(_FLIPS).integers(0, 2, count, np.uint8).astype(bool)
        return stream(_ORDER).permutation(count), flips if self.flip else np.zeros(count, bool)

    def _share(self, plan: np.ndarray, position: int) -> np.ndarray:
        first = (position * self.world_size + self.rank) * self.batch_size
        return plan[first : first + self.batch_size]

    def _gather(self, rows: np.ndarray, flips: np.ndarray) -> tuple[Tensor, np.ndarray]:
        batch = np.empty((len(rows), *self._images.shape[1:]), np.uint8)
        # The rows are in range by construction; mode="raise" would gather into a copy first.
        np.take(self._images, rows, axis=0, out=batch, mode="clip")
        if self.flip:
            batch[flips] = batch[flips, :, :, ::-1]
        tensor = torch.from_numpy(batch)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor, rows

    def _to_device(self, images: Tensor) -> Tensor:
        return normalize(
            images, self.value_range, device=self.device, memory_format=self.memory_format
        )


def _as_tensor(images: np.ndarray) -> Tensor:
    """A view, of a file that is open for reading alone too: PyTorch warns of those, for it cannot know that nobody
    writes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)


def _require_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise UserError(
            f"Batches(): {name!r} must be an integer of at least {low}{upper}, got {value!r}"
        )
