"""A data set in memory or on disk, and what it costs to trust the one on disk.

A prepared set is a folder:

    images.npy    uint8 (N, C, S, S), plain numpy format, mapped read-only by several processes
    labels.npy    int64 (N,), where there are labels
    header.json   shapes, file sizes, SHA-256 of the contents, class names, what was left out

Every open compares the files' sizes: microseconds. The SHA-256, about a second per GB, is compared
right after preparing and whenever the images' modification time is not the recorded one (copied or
touched since). The recorded time is then put back, so that a sound copy is read through only once.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..reading import parse_json, read_array

FORMAT, VERSION = "dcgan_fast.data", 1
HEADER, IMAGES, LABELS = "header.json", "images.npy", "labels.npy"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in one uint8 array, and what is known of them.

    images:  uint8 (N, C, S, S); a read-only memory map when it comes from :func:`prepare`
    labels:  int64 (N,), or None
    classes: the labels' names, or None
    path:    the folder of the prepared set, or None for an array of one's own
    skipped: how many unreadable images were left out
    removed: how many images of the set that this is a part of were not taken

    A prepared set is pickled as its path, so handing it to another process copies no pixels.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    path: Path | None = None
    skipped: int = 0
    removed: int = 0

    def __post_init__(self) -> None:
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 4 or shape[2] != shape[3]:
            raise UserError(
                f"Dataset(): 'images' must be uint8 (N, C, S, S), got {self.images.dtype} {shape}"
            )
        if self.labels is not None and self.labels.shape != shape[:1]:
            raise UserError(
                f"Dataset(): 'labels' must be ({shape[0]},), got shape {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        return int(self.images.shape[1])

    @property
    def image_size(self) -> int:
        return int(self.images.shape[2])

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is not None:
            return open_prepared, (self.path,)
        numbers = (self.skipped, self.removed)
        return Dataset, (self.name, self.images, self.labels, self.classes, None, *numbers)


def open_prepared(path: str | Path, *, verify: bool = False) -> Dataset:
    """Opens a prepared set by its folder, which is ``Dataset.path``.

    ``verify`` compares the SHA-256 even where the file's time says that it is untouched. Raises
    UserError when there is no prepared set or it is damaged.
    """
    path = Path(path)
    try:
        header = parse_json((path / HEADER).read_text("utf-8"))
        if (header["format"], header["version"]) != (FORMAT, VERSION):
            raise UserError(f"{path}: a prepared data set of another version; prepare it again")
        images = _map_array(path / IMAGES, header["images"], verify)
        labels = header["labels"] and np.array(_map_array(path / LABELS, header["labels"], verify))
        numbers = (len(header["skipped"]), header.get("removed", 0))
        return Dataset(header["name"], images, labels, header["classes"], path, *numbers)
    except UserError:
        raise
    except (OSError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a prepared data set: {error}") from error


def describe_array(path: Path, shape: tuple[int, ...], dtype: str, sha256: str) -> dict[str, Any]:
    """The header's entry for an array file as it lies on disk; ``sha256`` is of its elements."""
    stat = path.stat()
    return {
        "shape": list(shape),
        "dtype": dtype,
        "bytes": stat.st_size,
        "sha256": sha256,
        "mtime_ns": stat.st_mtime_ns,
    }


def _map_array(path: Path, expected: dict[str, Any], verify: bool) -> np.ndarray:
    stat = path.stat()
    if stat.st_size != expected["bytes"]:
        raise UserError(f"{path}: {expected['bytes']} bytes expected, {stat.st_size} found")
    array = read_array(path)
    if (list(array.shape), str(array.dtype)) != (expected["shape"], expected["dtype"]):
        raise UserError(
            f"{path}: {expected['dtype']} {expected['shape']} expected, "
            f"{array.dtype} {list(array.shape)} found"
        )
    touched = stat.st_mtime_ns != expected["mtime_ns"]
    if verify or touched:
        if hashlib.sha256(array.data).hexdigest() != expected["sha256"]:
            raise UserError(f"{path}: damaged: its checksum is not the recorded one")
        if touched and os.access(path, os.W_OK):
            os.utime(path, ns=(stat.st_atime_ns, expected["mtime_ns"]))
    return array
