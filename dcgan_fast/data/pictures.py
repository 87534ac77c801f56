"""One picture of any kind to uint8 (C, S, S): decoding, colour, resizing."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import IO, Protocol

import numpy as np
from PIL import Image, ImageOps

# Suffixes by which pictures are found in folders and zips.
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .jp2 .avif".split()
)
# Only these decoders are ever tried: Pillow also knows formats that start other programs (EPS).
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"})
_BLOCK = 64  # pictures a task: small enough for a progress bar to move on large photographs
# Decides grey or colour for a set of encoded pictures when the caller does not.
_PROBED = 32

# uint8 (rows, C, S, S) and, by row, why a picture could not be read (its row is then undefined).
Rendered = tuple[np.ndarray, dict[int, str]]


class Pictures(Protocol):
    """An opened source: numbered pictures, rendered at any size a block of rows at a time.

    ``render`` is called from several threads at once.
    """

    @property
    def channels(self) -> int:
        """The channels the pictures have by themselves."""

    @property
    def labels(self) -> np.ndarray | None:
        """int64 (N,), or None."""

    @property
    def classes(self) -> list[str] | None:
        """Names of the labels, or None."""

    @property
    def names(self) -> Sequence[str] | None:
        """Of the pictures, as paths or keys; None where they have but their numbers."""

    def __len__(self) -> int: ...

    def render(self, rows: range, image_size: int, channels: int) -> Rendered: ...


@dataclass
class ArrayPictures:
    """Pictures that lie decoded in one uint8 array (N, H, W, C)."""

    images: np.ndarray
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    resample: Image.Resampling = Image.Resampling.BILINEAR
    names: Sequence[str] | None = None

    @property
    def channels(self) -> int:
        return int(self.images.shape[3])

    def __len__(self) -> int:
        return len(self.images)

    def render(self, rows: range, image_size: int, channels: int) -> Rendered:
        block = self.images[rows.start : rows.stop]
        if block.shape[1:] == (image_size, image_size, channels):
            return np.ascontiguousarray(block.transpose(0, 3, 1, 2)), {}
        out = np.empty((len(block), channels, image_size, image_size), np.uint8)
        for row, pixels in enumerate(block):
            flat = pixels[..., 0] if self.channels == 1 else pixels
            image = Image.fromarray(np.ascontiguousarray(flat))
            out[row] = fit(image, image_size, channels, self.resample)
        return out, {}


@dataclass
class EncodedPictures:
    """Pictures that lie encoded, each by itself; ``open(i)`` gives picture i as a file."""

    names: Sequence[str]
    open: Callable[[int], IO[bytes]]
    labels: np.ndarray | None = None
    classes: list[str] | None = None

    @cached_property
    def channels(self) -> int:
        """1 when every probed picture is grey by its header, else 3."""
        modes = set()
        for index in np.linspace(0, len(self) - 1, min(len(self), _PROBED)).astype(int):
            try:
                with self.open(int(index)) as file, Image.open(file, formats=_formats()) as image:
                    modes.add(image.mode)
            except Exception:  # an unreadable picture has no say; render() reports it
                continue
        return 1 if modes and modes <= _GREY_MODES else 3

    def __len__(self) -> int:
        return len(self.names)

    def render(self, rows: range, image_size: int, channels: int) -> Rendered:
        out = np.empty((len(rows), channels, image_size, image_size), np.uint8)
        unreadable = {}
        for row, index in enumerate(rows):
            try:
                with self.open(index) as file:
                    out[row] = decode(file, image_size, channels)
            except Exception as error:  # Pillow's decoders raise nearly anything on a corrupt file
                unreadable[row] = f"{self.names[index]}: {error or type(error).__name__}"
        return out, unreadable


def render_blocks(
    pictures: Pictures, image_size: int, channels: int, workers: int, start: int = 0
) -> Iterator[tuple[range, Rendered]]:
    """Blocks of pictures from ``start`` on, in order, some rendered ahead by ``workers`` threads.

    Threads, because Pillow lets go of the GIL to decode.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dcgan_fast-prepare")
    ahead: deque[tuple[range, Future[Rendered]]] = deque()
    try:
        for first in range(start, len(pictures), _BLOCK):
            rows = range(first, min(first + _BLOCK, len(pictures)))
            ahead.append((rows, pool.submit(pictures.render, rows, image_size, channels)))
            if len(ahead) > 2 * workers:
                rows, block = ahead.popleft()
                yield rows, block.result()
        for rows, block in ahead:
            yield rows, block.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow's remarks on odd files; what cannot be read is reported by us, with its name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        yield


def decode(file: IO[bytes], image_size: int, channels: int) -> np.ndarray:
    """Decodes one image file to uint8 (C, S, S), turned upright as its EXIF orientation says.

    Raises ValueError for a picture of more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (mostly
    decompression bombs), and whatever Pillow raises for a file that it cannot read.
    """
    return fit(read_upright(file), image_size, channels)


def read_upright(file: IO[bytes]) -> Image.Image:
    """Decodes one image file at its own size; raises as :func:`decode` does."""
    image = Image.open(file, formats=_formats())
    _refuse_bomb(*image.size)
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # damaged EXIF in a sound picture: take the picture as it lies
        pass
    return image


def fit(
    image: Image.Image,
    image_size: int,
    channels: int,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Resizes the shorter side to ``image_size``, crops the centre: uint8 (C, S, S).

    The arithmetic of torchvision's ``Resize`` and ``CenterCrop`` on a PIL image: antialiased
    bilinear, long side truncated, crop offset rounded half to even. 1 channel is grey, 2 grey and
    alpha, 3 RGB, 4 RGBA; where alpha is not asked for, the picture is laid on white.
    """
    image = with_channels(image, channels)
    width, height = image.size
    short = min(width, height)
    width, height = image_size * width // short, image_size * height // short
    if (width, height) != image.size:
        _refuse_bomb(width, height)  # a 1 x 1,000,000 strip grows with the square of image_size
        image = image.resize((width, height), resample)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    if (left, top) != (0, 0) or width != height:
        image = image.crop((left, top, left + image_size, top + image_size))
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """As :func:`fit` has channels, at the size that it has."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; use 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if has_alpha and channels in (1, 3):
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey, which some versions of Pillow open as 32-bit; convert() would clip it at 255."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit pixels have no known range; use 8 or 16 bits")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _refuse_bomb(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"{width} x {height} pixels, above PIL.Image.MAX_IMAGE_PIXELS = {limit}")


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
