"""When to stop: the log-likelihood of held-out images at the end of each epoch, and the best so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..data import Dataset
from ..errors import UserError
from ..metrics.likelihood import draw_samples, held_out, pixels
from ..metrics.parzen import search_sigma
from ..models import LatentNetwork

__all__ = ["Validation", "hold_out"]

_FEWEST_IMAGES = 12  # of a set that is to be divided: two are held out then


def hold_out(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """``dataset`` without its last sixth (at most 10,000 images), and that sixth: of MNIST 50,000 and 10,000.

    They are the images by which ``dcgan-fast parzen`` chooses sigma.

    Raises:
        UserError: it is too small to be divided.
    """
    if len(dataset) < _FEWEST_IMAGES:
        raise UserError(
            f"'patience' needs {_FEWEST_IMAGES} images at least, some to be held out, {dataset.name} has {len(dataset)}"
        )
    count = held_out(dataset)

    def part(rows: slice) -> Dataset:
        labels = None if dataset.labels is None else dataset.labels[rows]
        return dataclasses.replace(dataset, images=dataset.images[rows], labels=labels, path=None)

    return part(slice(None, -count)), part(slice(-count, None))


class Validation:
    """Measures a generator on held-out images and remembers the best epoch.

    Attributes:
        best: the highest log-likelihood so far, None before the first.
        best_epoch: after which epoch, counted from 1, that was; 0 before.
        patience: epochs without a better one after which a run ends.

    Raises:
        UserError: of the generator: one that is not of this library.
    """

    def __init__(self, images: Dataset, patience: int, generator: object) -> None:
        if not isinstance(generator, LatentNetwork):
            raise UserError(
                "'patience' needs a generator of this library, whose images have a range"
            )
        self._images = pixels(images.images)
        self._generator = generator
        self.patience = patience
        self.best: float | None = None
        self.best_epoch = 0

    def measure(self, epoch: int, *, bn: str) -> tuple[float, float]:
        """The mean log-likelihood in nats after ``epoch``, and the sigma under which it is that high.

        As the adversarial nets' papers have it: as many samples as images are held out, of all classes alike, and the
        best of ten sigmas. The latent vectors are the same each time. No random state of PyTorch is touched.
        """
        samples = draw_samples(self._generator, len(self._images), bn=bn)
        sigma, means = search_sigma(samples, self._images)
        found = float(means.max())
        self.note(found, epoch)
        return found, sigma

    def note(self, found: float, epoch: int) -> None:
        """Keep the log-likelihood after ``epoch``, measured by another process say, if it is the best."""
        if self.best is None or found > self.best:
            self.best, self.best_epoch = found, epoch

    def is_best(self, epoch: int) -> bool:
        return self.best_epoch == epoch

    def exhausted(self, epoch: int) -> bool:
        """Whether a run that has done ``epoch`` epochs should end."""
        return self.best is not None and epoch - self.best_epoch >= self.patience

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load(self, state: Mapping[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]
