"""What a source is, before it is opened, and what every kind of source needs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .pictures import Pictures

SPLITS = ("train", "test", "all")


@dataclass(frozen=True)
class Source:
    """A set of pictures that was found, not yet read.

    ``fingerprint`` changes whenever the contents may have. It costs a stat of each file and reads
    nothing, so that a prepared set is reopened at once.
    """

    name: str
    location: str
    fingerprint: str
    open: Callable[[], AbstractContextManager[Pictures]]


def fingerprint(root: Path, files: Iterable[str | Path]) -> str:
    """Names, sizes and modification times of the files, given by their paths from ``root``."""
    digest = hashlib.sha256()
    for name in files:  # strings, not Paths: there may be a million
        stat = os.stat(os.path.join(root, name))
        digest.update(os.fsencode(name) + b"\0%d\0%d\0" % (stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


class NoSplit(UserError):
    """The data has no such part."""


def no_split(where: object, split: str, found: Iterable[str]) -> NoSplit:
    return NoSplit(
        f"{where}: has no {split!r} split (found: {', '.join(sorted(found)) or 'none'}); "
        "use split='all' to take everything"
    )


def check_labels(where: object, labels: np.ndarray, images: int) -> np.ndarray:
    """Labels as int64, one from 0 for each image; UserError otherwise."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != images:
        raise UserError(
            f"{where}: expected {images} integer labels, one for each image, "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    if labels.min(initial=0) < 0:
        raise UserError(f"{where}: labels must not be negative, got {labels.min()}")
    return labels.astype(np.int64)
