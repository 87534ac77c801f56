"""Preparing a data set once, and finding it again.

A set is written under a temporary name and renamed when whole: a reader sees all of it or nothing.
A lock makes a second process wait for the first and reuse its work; where the file system has no
locks both prepare, and the first to finish wins.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from ..errors import UserError
from .dataset import FORMAT, HEADER, IMAGES, LABELS, VERSION, Dataset, describe_array, open_prepared
from .find import find_source
from .pictures import Pictures, quiet_pillow, render_blocks
from .source import SPLITS, Source

try:
    import fcntl
except ImportError:  # Windows has none; see the module's docstring
    fcntl = None  # type: ignore[assignment]

_BLOCK = 1024  # images of a subset copied at once
_MOST_WORKERS = 16
_NAMED = 10  # unreadable images named in the warning; header.json names all
_NPY_HEADER = 128  # numpy pads to a multiple of 64, and no shape of ours needs less or more


def prepare(
    source: str | Path,
    *,
    image_size: int,
    channels: int | None = None,
    split: str = "train",
    cache_dir: str | Path | None = None,
    progress: bool = True,
    workers: int | None = None,
    verify: bool = False,
) -> Dataset:
    """Makes a data set of square uint8 images, or opens the one that was made before.

    source:     ``"digits"``, ``"fake"`` or ``"fake:COUNT"``; ``"mnist"``, ``"fashion-mnist"`` or
                ``"cifar10"``, looked for in well-known places; or a path: a folder or zip of
                images, idx files, CIFAR pickles, an LSUN lmdb, a .npy or .npz, a prepared set
    image_size: S in pixels; the shorter side is resized to it and the centre cropped
    channels:   1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; None takes what the source has (image
                files: 1 if they are grey, else 3). Without alpha, transparency is laid on white
    split:      ``"train"``, ``"test"`` or ``"all"``; a source without splits is all ``"train"``
    cache_dir:  where prepared sets are kept; see :func:`cache_directory`
    progress:   whether to show a progress bar
    workers:    threads that decode; None takes one for each core, 16 at most
    verify:     compare the checksum even where the file's time says that it is untouched

    A set is reused as long as the source's path, its files' names, sizes and modification times,
    ``image_size``, ``channels`` and ``split`` are the same. Superseded sets stay in the cache until
    somebody deletes them. Unreadable images are named and left out, with a warning at the end.

    Raises UserError for a bad argument, a path that holds no known data set, a source that is
    damaged as a whole, and a cache that cannot be written; nothing half-written is left.
    """
    _check_arguments(image_size, channels, split, workers)
    try:
        found = find_source(source, split)
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror or error}") from error
    path = cache_directory(cache_dir) / _folder_name(found, image_size, channels, split)
    if path.exists():
        try:
            return open_prepared(path, verify=verify)
        except UserError as error:
            warnings.warn(f"{error}; preparing it again", stacklevel=2)
    workers = workers or min(os.cpu_count() or 1, _MOST_WORKERS)
    with _writing_to(path.parent), _locked(path, progress):
        if not _sound(path, verify):  # another process may have made it while we waited
            _build(found, path, image_size, channels, progress, workers)
    return open_prepared(path, verify=True)


def prepare_subset(
    dataset: Dataset, key: str, choose: Callable[[], np.ndarray], progress: bool = True
) -> Dataset:
    """Makes a prepared set of some images of another, or opens the one that was made before.

    dataset:  a prepared set
    key:      stands for how they are chosen: with the same set and key, the first choice is found again
    choose:   called where there is none yet: bool (N,), which images to take
    progress: whether to say that another process is at it

    It lies beside the set and is a copy. Raises UserError when ``dataset`` is not on disk and when the copy cannot be
    written.
    """
    if dataset.path is None:
        raise UserError(f"prepare_subset(): {dataset.name} is no prepared data set")
    digest = hashlib.sha256(f"{dataset.path.name} {key}".encode()).hexdigest()
    path = dataset.path.with_name(f"{dataset.path.name}-{digest[:16]}")
    with _writing_to(path.parent), _locked(path, progress):
        if not _sound(path, verify=False):
            _build_subset(dataset, path, choose())
    return open_prepared(path)


def cache_directory(cache_dir: str | Path | None = None) -> Path:
    """``cache_dir``, else ``$DCGAN_FAST_CACHE``, else ``dcgan_fast`` in the XDG cache folder."""
    chosen = cache_dir or os.environ.get("DCGAN_FAST_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dcgan_fast")


def _check_arguments(
    image_size: int, channels: int | None, split: str, workers: int | None
) -> None:
    def is_integer(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def fail(name: str, rule: str, value: object) -> None:
        raise UserError(f"prepare(): {name!r} must be {rule}, got {value!r}")

    if not is_integer(image_size) or not 1 <= image_size <= 4096:
        fail("image_size", "an integer from 1 to 4096", image_size)
    if channels is not None and not (is_integer(channels) and 1 <= channels <= 4):
        fail("channels", "1, 2, 3, 4 or None", channels)
    if split not in SPLITS:
        fail("split", f"one of {', '.join(SPLITS)}", split)
    if workers is not None and not (is_integer(workers) and workers >= 1):
        fail("workers", "a positive integer or None", workers)


def _folder_name(found: Source, image_size: int, channels: int | None, split: str) -> str:
    key = [VERSION, found.location, found.fingerprint, image_size, channels, split]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    slug = re.sub(r"[^\w.-]+", "-", found.name, flags=re.ASCII)[:64]
    return f"{slug}-{split}-{image_size}-{digest[:16]}"


# ---- writing


def _build(
    found: Source,
    path: Path,
    image_size: int,
    channels: int | None,
    progress: bool,
    workers: int,
) -> None:
    partial = _partial_name(path)
    partial.mkdir()
    try:
        with found.open() as pictures:
            shape = (len(pictures), channels or pictures.channels, image_size, image_size)
            _require_space(partial, shape)
            bar = tqdm(total=shape[0], desc=found.name, unit=" images", disable=not progress)
            with bar, quiet_pillow():
                images, kept, skipped = _write_images(partial, pictures, shape, workers, bar)
            header = {
                "format": FORMAT,
                "version": VERSION,
                "name": found.name,
                "source": found.location,
                "fingerprint": found.fingerprint,
                "images": images,
                "labels": _write_labels(partial, pictures.labels, kept),
                "classes": pictures.classes,
                "skipped": skipped,
            }
        _report_skipped(found, shape[0], skipped)
        with _durable(partial / HEADER) as file:
            file.write(json.dumps(header, indent=1).encode())
        _publish(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _build_subset(dataset: Dataset, path: Path, chosen: np.ndarray) -> None:
    assert dataset.path is not None
    header = json.loads((dataset.path / HEADER).read_text("utf-8"))
    rows = np.flatnonzero(chosen)
    shape = (len(rows), *dataset.images.shape[1:])
    partial = _partial_name(path)
    partial.mkdir()
    try:
        _require_space(partial, shape)
        digest = hashlib.sha256()
        with _durable(partial / IMAGES) as file:
            file.write(_npy_header(shape))
            for start in range(0, len(rows), _BLOCK):
                block = dataset.images[rows[start : start + _BLOCK]]
                digest.update(block.data)
                file.write(block.data)
        header["images"] = describe_array(partial / IMAGES, shape, "uint8", digest.hexdigest())
        header["labels"] = _write_labels(partial, dataset.labels, chosen)
        header["removed"] = len(dataset) - len(rows)
        with _durable(partial / HEADER) as file:
            file.write(json.dumps(header, indent=1).encode())
        _publish(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_images(
    folder: Path, pictures: Pictures, shape: tuple[int, ...], workers: int, bar: Any
) -> tuple[dict[str, Any], np.ndarray, list[str]]:
    """Returns the header's entry, which pictures were kept, and why the others were not.

    Streams, rather than fills a memory map: on a full disk write() fails, a mapped page kills.
    """
    kept = np.ones(shape[0], bool)
    skipped: list[str] = []
    digest = hashlib.sha256()
    with _durable(folder / IMAGES) as file:
        file.write(bytes(_NPY_HEADER))
        for rows, (block, unreadable) in render_blocks(pictures, shape[2], shape[1], workers):
            for row, reason in unreadable.items():
                kept[rows[row]] = False
                skipped.append(reason)
                if not bar.disable:
                    bar.write(f"left out: {reason}", file=sys.stderr)
            block = block[kept[rows.start : rows.stop]]
            digest.update(block.data)
            file.write(block.data)
            bar.update(len(rows))
        written = (int(kept.sum()), *shape[1:])
        file.seek(0)
        file.write(_npy_header(written))
    entry = describe_array(folder / IMAGES, written, "uint8", digest.hexdigest())
    return entry, kept, skipped


def _write_labels(
    folder: Path, labels: np.ndarray | None, kept: np.ndarray
) -> dict[str, Any] | None:
    if labels is None:
        return None
    labels = labels[kept]
    with _durable(folder / LABELS) as file:
        np.save(file, labels)
    return describe_array(
        folder / LABELS, labels.shape, "int64", hashlib.sha256(labels.data).hexdigest()
    )


def _npy_header(shape: tuple[int, ...]) -> bytes:
    header = BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    assert header.tell() == _NPY_HEADER
    return header.getvalue()


def _report_skipped(found: Source, total: int, skipped: list[str]) -> None:
    if len(skipped) == total:
        raise UserError(
            f"{found.location}: none of its {total} images could be read; the first: {skipped[0]}"
        )
    if skipped:
        more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
        warnings.warn(
            f"{found.name}: {len(skipped)} of {total} images could not be read and were left out: "
            f"{'; '.join(skipped[:_NAMED])}{more}",
            stacklevel=4,
        )


# ---- the cache folder


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the prepared data set: {error.strerror or error}; "
            "choose another folder with $DCGAN_FAST_CACHE"
        ) from error


def _require_space(folder: Path, shape: tuple[int, ...]) -> None:
    needed, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder.parent}: the prepared data set needs {needed / 1e6:.0f} MB, "
            f"{free / 1e6:.0f} MB are free; choose another folder with $DCGAN_FAST_CACHE"
        )


@contextmanager
def _durable(path: Path) -> Iterator[IO[bytes]]:
    """A file that is on the disk, not only on its way, before its folder gets its final name."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _locked(path: Path, progress: bool) -> Iterator[None]:
    """Lets one process at a time prepare ``path``. The empty lock file stays: removing it races."""
    if fcntl is None:
        yield
        return
    with path.with_name(f"{path.name}.lock").open("a") as file:
        if _lock(file, progress):
            for stale in path.parent.glob(f"{path.name}.*.partial"):  # its process was killed
                shutil.rmtree(stale, ignore_errors=True)
        yield


def _lock(file: IO[str], progress: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if progress:
            print("another process is preparing this data set; waiting for it", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return False
    return True


def _partial_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def _sound(path: Path, verify: bool) -> bool:
    try:
        open_prepared(path, verify=verify)
    except UserError:
        return False
    return True


def _publish(partial: Path, path: Path) -> None:
    """Gives a finished set its name, in place of a damaged one; a sound one stays."""
    if path.exists() and not _sound(path, verify=True):
        # Renamed before it is removed, so that nobody opens half of it.
        shutil.rmtree(path.rename(_partial_name(path)), ignore_errors=True)
    try:
        partial.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise  # else another process was first
