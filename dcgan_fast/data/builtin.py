"""The two sources that need no file: ``digits`` and ``fake``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import UserError
from .pictures import ArrayPictures, Pictures, Rendered
from .source import Source, no_split

_FAKE_COUNT = 1000
_FAKE_SEED = 0


def digits_source(split: str) -> Source:
    """scikit-learn's embedded handwritten digits: 1,797 grey pictures of 8x8, labels 0 to 9."""
    if split == "test":
        raise no_split("digits", split, ("train",))
    return Source("digits", "digits", "1", _open_digits)


def fake_source(spec: str, split: str) -> Source:
    """``fake`` or ``fake:COUNT``: seeded coloured gratings for trying things out, labels 0 to 9."""
    if split == "test":
        raise no_split("fake", split, ("train",))
    _, _, number = spec.partition(":")
    count = int(number) if number.isdecimal() else 0 if ":" in spec else _FAKE_COUNT
    if count < 1:
        raise UserError(f"{spec}: expected fake:COUNT with a positive COUNT, as in fake:5000")

    @contextmanager
    def open_fake() -> Iterator[Pictures]:
        yield FakePictures(count)

    return Source("fake", "fake", f"1 {count}", open_fake)


@contextmanager
def _open_digits() -> Iterator[Pictures]:
    from sklearn.datasets import load_digits  # a second to import, needed once

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    yield ArrayPictures(
        images[..., None],
        bunch.target.astype(np.int64),
        [str(name) for name in bunch.target_names],
        # Enlarging fourfold, bilinear shows its facets; bicubic keeps strokes round.
        Image.Resampling.BICUBIC,
    )


@dataclass
class FakePictures:
    """Gratings: the label gives the direction, a seed the frequencies and each channel's phase."""

    count: int
    channels: int = 3
    names: None = None

    def __post_init__(self) -> None:
        draw = np.random.Generator(np.random.PCG64(_FAKE_SEED))
        self.labels: np.ndarray | None = draw.integers(0, 10, self.count)
        self.classes: list[str] | None = [f"{18 * label} degrees" for label in range(10)]
        self._frequency = draw.uniform(1, 4, self.count)
        self._phase = draw.uniform(0, 2 * np.pi, (self.count, 4))
        self._angle = self.labels * (np.pi / 10)

    def __len__(self) -> int:
        return self.count

    def render(self, rows: range, image_size: int, channels: int) -> Rendered:
        block = slice(rows.start, rows.stop)
        axis = np.linspace(-np.pi, np.pi, image_size)
        angle = self._angle[block, None, None]
        wave = np.cos(angle) * axis + np.sin(angle) * axis[:, None]
        wave = self._frequency[block, None, None] * wave
        value = np.cos(wave[:, None] + self._phase[block, :channels, None, None])
        return np.rint(127.5 * (value + 1)).astype(np.uint8), {}
