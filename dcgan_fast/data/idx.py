"""MNIST's idx files, plain or gzipped, one or a folder of them.

Format, as the MNIST page defines it: two zero bytes, a type code (8: unsigned byte), the number of
dimensions, each dimension as a big-endian 32-bit integer, then the elements.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np

from ..errors import UserError
from .pictures import ArrayPictures, Pictures
from .source import Source, check_labels, fingerprint, no_split

_NAME = re.compile(
    r"(?P<set>.*?)(?P<split>train|t10k|test)-(?P<what>images|labels)[-.]idx[13]-ubyte(?:\.gz)?"
)
_UNSIGNED_BYTE = 8
_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")


def read_idx(path: Path, *, ndim: int) -> np.ndarray:
    """Reads one idx file of unsigned bytes with ``ndim`` dimensions, plain or gzipped.

    Returns a uint8 array. Raises UserError when the file is not one, is cut short or too long,
    naming the expected and the found sizes.
    """
    try:
        with _open(path) as file:
            shape = _read_header(path, file.read(4 + 4 * ndim), ndim)
            expected = math.prod(shape)
            body = _read_at_most(file, expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if len(body) != expected:
        found = f"{len(body)} found" if len(body) < expected else "more follow"
        raise UserError(
            f"{path}: {' x '.join(map(str, shape))} = {expected} bytes expected after the header, "
            f"{found}; the file is cut short or damaged"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if zipped else path.open("rb")


def _read_at_most(file: IO[bytes], size: int) -> bytearray:
    """Block by block: one read() of a size that a lying header names would allocate it first."""
    body = bytearray()
    while block := file.read(min(size - len(body), 1 << 20)):
        body += block
    return body


def _read_header(path: Path, header: bytes, ndim: int) -> tuple[int, ...]:
    magic = bytes((0, 0, _UNSIGNED_BYTE, ndim))
    if header[:4] != magic:
        raise UserError(
            f"{path}: not an idx file of {ndim}-dimensional unsigned bytes: "
            f"expected the magic number 0x{magic.hex()}, found 0x{header[:4].hex()}"
        )
    if len(header) < 4 + 4 * ndim:
        raise UserError(f"{path}: header of {4 + 4 * ndim} bytes expected, {len(header)} found")
    return tuple(int(extent) for extent in np.frombuffer(header, ">u4", offset=4))


def is_idx_images(path: Path) -> bool:
    """Whether the file begins as an idx file of images does."""
    try:
        with _open(path) as file:
            return file.read(4) == bytes((0, 0, _UNSIGNED_BYTE, 3))
    except (OSError, EOFError, zlib.error):
        return False


def idx_sets(files: Sequence[str]) -> dict[str, list[str]]:
    """The files named as MNIST's are, by what their paths have before ``train`` or ``t10k``."""
    sets: dict[str, list[str]] = {}
    for path in files:
        folder, slash, name = path.rpartition("/")
        if "ubyte" in name and (match := _NAME.fullmatch(name)):
            sets.setdefault(folder + slash + match["set"], []).append(path)
    return sets


def idx_file_source(path: Path) -> Source:
    """One file of images; its labels are taken from the file that MNIST's naming puts beside it."""
    beside = path.name.replace("images", "labels").replace("idx3", "idx1")
    labels = path.with_name(beside)
    paired = labels if beside != path.name and labels.is_file() else None
    return _source(path, [(path, paired)])


def idx_folder_source(folder: Path, files: Sequence[Path], split: str) -> Source:
    """One set of files as :func:`idx_sets` found it; ``train`` before ``t10k``."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(files, reverse=True):  # of a plain file and its .gz twin, the plain one wins
        match = _NAME.fullmatch(path.name)
        if match:
            part = "train" if match["split"] == "train" else "test"
            found.setdefault(part, {})[match["what"]] = path
    with_images = {part: pair for part, pair in found.items() if "images" in pair}
    chosen = [part for part in ("train", "test") if part in with_images and split in (part, "all")]
    if not chosen:
        raise no_split(folder, split, with_images)
    pairs = [(with_images[part]["images"], with_images[part].get("labels")) for part in chosen]
    return _source(folder, pairs)


def _source(location: Path, pairs: Sequence[tuple[Path, Path | None]]) -> Source:
    files = [path for pair in pairs for path in pair if path is not None]
    root = location if location.is_dir() else location.parent

    @contextmanager
    def open_idx() -> Iterator[Pictures]:
        parts = [_read_pair(images, labels) for images, labels in pairs]
        shapes = {images.shape[1:] for images, _ in parts}
        if len(shapes) > 1:
            raise UserError(f"{location}: the splits hold images of different sizes: {shapes}")
        images = np.concatenate([images for images, _ in parts])[..., None]
        known = [labels for _, labels in parts if labels is not None]
        if len(known) < len(parts):
            yield ArrayPictures(images)
            return
        labels = np.concatenate(known)
        fashion = "fashion" in str(location).lower() and labels.max() < len(_FASHION)
        classes = _FASHION if fashion else [str(label) for label in range(labels.max() + 1)]
        yield ArrayPictures(images, labels, list(classes))

    name = location.name if location.is_dir() else location.name.split(".")[0]
    return Source(name, str(location), fingerprint(root, [path.name for path in files]), open_idx)


def _read_pair(images_path: Path, labels_path: Path | None) -> tuple[np.ndarray, np.ndarray | None]:
    images = read_idx(images_path, ndim=3)
    if images.size == 0:
        raise UserError(f"{images_path}: holds no images: its shape is {images.shape}")
    if labels_path is None:
        return images, None
    return images, check_labels(labels_path, read_idx(labels_path, ndim=1), len(images))
