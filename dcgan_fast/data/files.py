"""Images in files: any folder or zip of them, with the splits and classes its folders show."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import UserError
from .pictures import SUFFIXES, EncodedPictures, Pictures
from .source import Source, fingerprint, no_split

_SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "val", "valid", "validation"), "test"),
}
# No encoded picture is that long; a zip member that claims it is a bomb.
_LONGEST = 1 << 28

# Of each picture: its path inside the root, folders and file name.
Parts = tuple[str, ...]


def list_files(root: Path) -> list[str]:
    """Every regular file under ``root``: its path from there with slashes, in order.

    Links are followed, hidden files left out. No pipes or devices, whose opening may wait for ever.
    """
    found: list[str] = []
    pending, seen = [""], set()
    while pending:
        prefix = pending.pop()
        try:
            status = os.stat(root / prefix)
            if (identity := (status.st_dev, status.st_ino)) in seen:  # a link back up
                continue
            seen.add(identity)
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    if _hidden(entry.name):
                        continue
                    if entry.is_dir():
                        pending.append(f"{prefix}{entry.name}/")
                    elif entry.is_file():
                        found.append(prefix + entry.name)
        except OSError as error:
            warnings.warn(f"{root / prefix}: left out: {error.strerror}", stacklevel=2)
    return sorted(found)


def images_among(files: Sequence[str]) -> list[str]:
    """Those with an image's suffix."""
    return [name for name in files if _has_image_suffix(name)]


def folder_source(root: Path, images: Sequence[str], split: str) -> Source:
    """The image files of a folder, by their paths from there."""

    @contextmanager
    def open_folder() -> Iterator[Pictures]:
        chosen, labels, classes = arrange(root, [tuple(name.split("/")) for name in images], split)
        names = [images[index] for index in chosen]

        def open_file(index: int) -> IO[bytes]:
            return open(os.path.join(root, names[index]), "rb")

        yield EncodedPictures(names, open_file, labels, classes)

    return Source(root.name or "images", str(root), fingerprint(root, images), open_folder)


def zip_source(path: Path, split: str) -> Source:
    """The image files in a zip, read where they are: nothing is extracted."""

    @contextmanager
    def open_zip() -> Iterator[Pictures]:
        try:
            archive = zipfile.ZipFile(path)
        except Exception as error:  # a damaged directory raises nearly anything
            raise UserError(f"{path}: cannot be read as a zip: {error}") from error
        with archive:
            members = [(_zip_parts(info), info) for info in archive.infolist()]
            images = [member for member in members if _is_zip_image(*member)]
            images.sort(key=lambda member: member[0])
            if not images:
                raise no_images(path)
            chosen, labels, classes = arrange(path, [parts for parts, _ in images], split)

            def open_member(index: int) -> IO[bytes]:
                info = images[chosen[index]][1]
                if info.file_size > _LONGEST:
                    raise ValueError(f"{info.file_size} bytes, more than an image can have")
                return BytesIO(archive.read(info))

            names = ["/".join(images[index][0]) for index in chosen]
            yield EncodedPictures(names, open_member, labels, classes)

    return Source(path.stem, str(path), fingerprint(path.parent, [path.name]), open_zip)


def no_images(where: Path) -> UserError:
    return UserError(f"{where}: no images in it (looked for {', '.join(sorted(SUFFIXES))})")


def arrange(
    where: Path, parts: Sequence[Parts], split: str
) -> tuple[list[int], np.ndarray | None, list[str] | None]:
    """Which pictures belong to the split, their labels and the classes' names.

    A folder around everything is ignored. If all first folders are then named as splits are
    (train, test, val, ...), they are; otherwise everything is ``train``. If all chosen pictures
    then lie in folders, and there are two or more, each folder is a class. Classes are numbered in
    the order of their names, alike in all splits.
    """
    depth = 0
    while _same_folder(parts, depth) and parts[0][depth].lower() not in _SPLIT_FOLDERS:
        depth += 1
    splits = ["train"] * len(parts)
    if all(len(p) > depth + 1 and p[depth].lower() in _SPLIT_FOLDERS for p in parts):
        splits = [_SPLIT_FOLDERS[p[depth].lower()] for p in parts]
        depth += 1
    chosen = [index for index, part in enumerate(splits) if split in (part, "all")]
    if not chosen:
        raise no_split(where, split, set(splits))
    folders = [p[depth] if len(p) > depth + 1 else None for p in parts]
    classes = sorted({name for name in folders if name is not None})
    if len(classes) < 2 or any(folders[index] is None for index in chosen):
        return chosen, None, None
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[folders[index] or ""] for index in chosen], np.int64)
    return chosen, labels, classes


def _same_folder(parts: Sequence[Parts], depth: int) -> bool:
    return all(len(p) > depth + 1 and p[depth] == parts[0][depth] for p in parts)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _zip_parts(info: zipfile.ZipInfo) -> Parts:
    names = info.filename.replace("\\", "/").split("/")
    return tuple(name for name in names if name not in ("", "."))


def _is_zip_image(parts: Parts, info: zipfile.ZipInfo) -> bool:
    if not parts or info.is_dir() or any(_hidden(name) for name in parts):
        return False
    return _has_image_suffix(parts[-1])
