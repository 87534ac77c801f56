"""A prepared data set as a source of pictures again, at other sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .dataset import HEADER, IMAGES, Dataset, open_prepared
from .pictures import ArrayPictures, Pictures
from .source import Source, fingerprint, no_split


def is_prepared(path: Path) -> bool:
    return (path / HEADER).is_file() and (path / IMAGES).is_file()


def prepared_source(path: Path, split: str) -> Source:
    """The folder of a prepared set (``Dataset.path``); its split was chosen when it was made."""
    if split == "test":
        raise no_split(path, split, ("train",))

    @contextmanager
    def open_folder() -> Iterator[Pictures]:
        yield pictures_of(open_prepared(path))

    return Source(path.name, str(path), fingerprint(path, (HEADER, IMAGES)), open_folder)


def pictures_of(dataset: Dataset) -> ArrayPictures:
    """The images of a data set, to be rendered at any size; nothing is copied."""
    return ArrayPictures(dataset.images.transpose(0, 2, 3, 1), dataset.labels, dataset.classes)
