"""Near-duplicates out of a set of pictures: which are kept, which go, and a picture to judge it by."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.base import clone
from torch import Tensor
from tqdm import tqdm

from ..data.cache import prepare_subset
from ..data.dataset import Dataset
from ..data.find import find_source
from ..data.pictures import Pictures, quiet_pillow, render_blocks
from ..data.prepared import pictures_of
from ..data.source import SPLITS, Source
from ..errors import UserError
from ..files import atomic_write, make_folder, remove_if_there
from ..visualize import contact_sheet, save_png
from .codes import first_occurrence, first_of_each
from .codes_log import CodesLog
from .hasher import CHANNELS, SIDE, SemanticHasher, import_safetensors

TRAIN_IMAGES = 20_000  # what the hasher learns from at most: more makes no better codes on CIFAR-10
_BLOCKS = 16  # of 64 pictures: encoded at once, and the most that a kill loses
_LINES = 1 << 16  # written at once: Python's numbers take 40 bytes each
_SHEET_GROUPS, _SHEET_IMAGES, _SHEET_SIDE = 64, 8, 64
_NAMED = 10  # unreadable images named in the warning


@dataclass(frozen=True)
class Deduplicated:
    """What :func:`deduplicate` found and wrote.

    images:      that could be read
    removed:     of them, because an earlier one has the same code
    groups:      of two images or more
    unreadable:  names and reasons
    kept_file, removed_file: a line for each image: its name (its number where it has none), a tab, its group's number;
                 for a removed image also a tab and the name of the one that is kept
    unreadable_file, sheet: None where all were read, where nothing was removed
    hashed:      images decoded and encoded by this call; a continued run found the others' codes on disk
    seconds:     which that took
    hasher_file: None where the hasher was given
    """

    images: int
    removed: int
    groups: int
    unreadable: list[str]
    kept_file: Path
    removed_file: Path
    unreadable_file: Path | None
    sheet: Path | None
    hashed: int = 0
    seconds: float = 0.0
    hasher_file: Path | None = None


@dataclass
class _Files:
    """All outputs lie beside the first and are named after it."""

    kept: Path
    removed: Path = field(init=False)
    unreadable: Path = field(init=False)
    sheet: Path = field(init=False)
    hasher: Path = field(init=False)
    codes: Path = field(init=False)  # gone when all is done

    def __post_init__(self) -> None:
        suffix = self.kept.suffix or ".txt"
        for name, ending in (
            ("removed", f"removed{suffix}"),
            ("unreadable", f"unreadable{suffix}"),
            ("sheet", "groups.png"),
            ("hasher", "hasher.safetensors"),
            ("codes", "codes"),
        ):
            setattr(self, name, self.kept.with_name(f"{self.kept.stem}.{ending}"))


def deduplicate(
    source: str | Path,
    out: str | os.PathLike[str] = "kept.txt",
    *,
    hasher: SemanticHasher | None = None,
    trained: bool = False,
    split: str = "all",
    train_images: int = TRAIN_IMAGES,
    workers: int | None = None,
    progress: bool = False,
) -> Deduplicated:
    """Hashes all pictures of a source and lists those to keep: the first of each code.

    Reads each picture once, and those that the hasher is trained on twice; nothing is copied. Codes go to disk as they
    come, so the same call continues a run that was broken off, at most 1,024 pictures earlier. Memory is 16 bytes an
    image beside the names, at the end 140: 10 million images of 128 bits need 1.4 GB then, 160 MB of disk, and a
    minute of one core beside the time that it takes to decode them.

    Args:
        source: whatever :func:`dcgan_fast.data.prepare` takes.
        out: the list of those to keep; the other files are named after it: ``kept.removed.txt``, ``kept.groups.png``,
            a contact sheet of the largest groups, ``kept.hasher.safetensors``. Must not lie in a folder of images that
            is the source.
        hasher: with the settings to train with; None takes the default ones.
        trained: whether ``hasher`` is to be used as it is.
        split: "train", "test" or "all".
        train_images: how many pictures, drawn at random, the hasher is trained on at most.
        workers: threads that decode; None takes one for each core.
        progress: whether to show progress bars.

    Raises:
        UserError: no such source, no picture that can be read, no package safetensors, files that cannot be written.
    """
    if split not in SPLITS:
        raise UserError(f"deduplicate(): 'split' must be one of {', '.join(SPLITS)}, got {split!r}")
    if train_images < 1:
        raise UserError(f"deduplicate(): 'train_images' must be at least 1, got {train_images}")
    hasher = hasher or SemanticHasher()
    import_safetensors()  # now, not after the training
    try:
        found = find_source(source, split)
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror or error}") from error
    files = _Files(Path(out).absolute())
    _check_place(files.kept, found)
    workers = workers or os.cpu_count() or 1
    with found.open() as pictures, quiet_pillow():
        identity = [found.location, found.fingerprint, split, len(pictures)]
        if not trained:
            hasher = _trained(hasher, pictures, identity, train_images, files, workers, progress)
        log = CodesLog(files.codes, _key(identity, hasher), (hasher.bits + 63) // 64)
        try:
            before, start = len(log), time.perf_counter()
            _hash(hasher, pictures, log, found.name, workers, progress)
            hashed, seconds = len(log) - before, time.perf_counter() - start
        finally:
            log.close()
        if len(log.notes) == len(log):
            first = f"; the first: {log.notes[0]}" if log.notes else ""
            raise UserError(f"{found.location}: none of its {len(log)} images could be read{first}")
        result = _write_results(pictures, log, files)
    remove_if_there(files.codes)
    _warn_of_unreadable(found.name, result.unreadable, len(log))
    hasher_file = None if trained else files.hasher
    return replace(result, hashed=hashed, seconds=seconds, hasher_file=hasher_file)


def without_near_duplicates(
    dataset: Dataset, hasher: SemanticHasher | None = None, *, progress: bool = False
) -> Dataset:
    """A prepared set without the images whose code an earlier one has; made once, beside the set, and found again.

    It is a second copy of the images that are kept, so that it is mapped into memory as any set is.

    Args:
        dataset: from :func:`dcgan_fast.data.prepare`.
        hasher: with the settings to train with; None takes the default ones.
        progress: whether to show a progress bar.

    Raises:
        UserError: the set is none on disk, or the copy cannot be written.
    """
    hasher = clone(SemanticHasher() if hasher is None else hasher).set_params(progress=progress)

    def choose() -> np.ndarray:
        pictures = pictures_of(dataset)
        workers = os.cpu_count() or 1
        hasher.fit(_sample(pictures, TRAIN_IMAGES, hasher.random_state, workers, progress))
        blocks = render_blocks(pictures, SIDE, CHANNELS, workers)
        codes = [hasher.transform(images) for _, images, _ in _batches(blocks)]
        return first_of_each(torch.cat(codes)).numpy()

    return prepare_subset(dataset, f"dedup {_settings(hasher)}", choose, progress)


# ---------------------------------------------------------------------------------------- steps


def _check_place(kept: Path, found: Source) -> None:
    if kept.is_dir():
        raise UserError(f"{kept} is a folder; a file for the list of kept images is needed")
    folder = Path(found.location)
    if folder.is_dir() and kept.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{kept} lies among the images, where its contact sheet would be taken for one of them; "
            "choose a place outside"
        )
    make_folder(kept.parent)


def _trained(
    hasher: SemanticHasher,
    pictures: Pictures,
    identity: list[object],
    train_images: int,
    files: _Files,
    workers: int,
    progress: bool,
) -> SemanticHasher:
    """The hasher of the run that was broken off, or else a new one, on disk."""
    identity.append(train_images)
    run_settings = {name: getattr(hasher, name) for name in ("device", "progress", "callback")}
    if files.codes.exists() and files.hasher.exists():
        try:
            earlier = SemanticHasher.load(files.hasher, **run_settings)
        except UserError:  # not what a run left; it is replaced below
            pass
        else:
            if _settings(earlier) == _settings(hasher) and CodesLog.is_of(
                files.codes, _key(identity, earlier)
            ):
                return earlier
    hasher.fit(_sample(pictures, train_images, hasher.random_state, workers, progress))
    hasher.save(files.hasher)
    return hasher


def _settings(hasher: SemanticHasher) -> str:
    return json.dumps(hasher.settings(), sort_keys=True)


def _key(identity: list[object], hasher: SemanticHasher) -> bytes:
    """32 bytes that stand for all that the codes depend on."""
    return hashlib.sha256(json.dumps(identity).encode() + hasher.to_bytes()).digest()


def _sample(pictures: Pictures, count: int, seed: int, workers: int, progress: bool) -> np.ndarray:
    """uint8 (M, 3, 32, 32): pictures drawn without replacement, those that can be read."""
    count = min(count, len(pictures))
    rows = np.sort(np.random.default_rng(seed).choice(len(pictures), count, replace=False))
    images = np.empty((count, CHANNELS, SIDE, SIDE), np.uint8)
    reason, read = "", 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dcgan_fast-dedup")
    bar = tqdm(total=count, desc="reading a sample", unit=" images", disable=not progress)
    try:
        ranges = [range(row, row + 1) for row in rows.tolist()]
        for image, unreadable in pool.map(lambda r: pictures.render(r, SIDE, CHANNELS), ranges):
            bar.update()
            reason = unreadable.get(0, "")
            if not reason:
                images[read] = image[0]
                read += 1
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
    if read == 0:
        raise UserError(f"none of the {count} images to train on could be read; the last: {reason}")
    return images[:read]


def _hash(
    hasher: SemanticHasher,
    pictures: Pictures,
    log: CodesLog,
    name: str,
    workers: int,
    progress: bool,
) -> None:
    blocks = render_blocks(pictures, SIDE, CHANNELS, workers, start=len(log))
    with tqdm(
        total=len(pictures), initial=len(log), desc=name, unit=" images", disable=not progress
    ) as bar:
        for count, images, unreadable in _batches(blocks):
            log.append(hasher.transform(images), unreadable)
            for reason in unreadable.values():
                if progress:
                    bar.write(f"left out: {reason}", file=sys.stderr)
            bar.update(count)


def _batches(
    blocks: Iterator[tuple[range, tuple[np.ndarray, dict[int, str]]]],
) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
    """Blocks joined: how many images, the images, and by row why one could not be read."""
    while several := list(islice(blocks, _BLOCKS)):
        first = several[0][0].start
        unreadable = {
            rows[row] - first: reason
            for rows, (_, reasons) in several
            for row, reason in reasons.items()
        }
        images = np.concatenate([images for _, (images, _) in several])
        yield len(images), images, unreadable


# -------------------------------------------------------------------------------------- results


def _write_results(pictures: Pictures, log: CodesLog, files: _Files) -> Deduplicated:
    rows = torch.ones(len(log), dtype=torch.bool)
    rows[list(log.notes)] = False
    rows = rows.nonzero()[:, 0]  # of the images that could be read
    keep, group, counts = first_occurrence(log.codes[rows])
    first = rows[keep]  # by group
    name = _name_of(pictures)
    with atomic_write(files.kept) as kept, atomic_write(files.removed) as removed:
        for part in torch.arange(len(rows)).split(_LINES):
            columns = (rows[part], keep[part], group[part], first[group[part]])
            for row, is_kept, its_group, of in zip(*(c.tolist() for c in columns), strict=True):
                if is_kept:
                    kept.write(f"{name(row)}\t{its_group}\n".encode())
                else:
                    removed.write(f"{name(row)}\t{its_group}\t{name(of)}\n".encode())
    unreadable = list(log.notes.values())
    _write_unreadable(unreadable, files.unreadable)
    large = _largest(counts)
    if large:
        members = [(g, int(counts[g]), rows[(group == g).nonzero()[:, 0]]) for g in large]
        save_png(_sheet(pictures, members), files.sheet)
    else:
        remove_if_there(files.sheet)  # of another run
    return Deduplicated(
        images=len(rows),
        removed=int((~keep).sum()),
        groups=int((counts > 1).sum()),
        unreadable=unreadable,
        kept_file=files.kept,
        removed_file=files.removed,
        unreadable_file=files.unreadable if unreadable else None,
        sheet=files.sheet if large else None,
    )


def _name_of(pictures: Pictures) -> Callable[[int], str]:
    """Of a row. What would break a line or a column is written as Python writes it."""
    names = pictures.names
    if names is None:
        return str
    escaped = str.maketrans({"\n": r"\n", "\r": r"\r", "\t": r"\t"})
    return lambda row: names[row].translate(escaped).encode(errors="backslashreplace").decode()


def _write_unreadable(reasons: list[str], path: Path) -> None:
    if not reasons:
        remove_if_there(path)
        return
    with atomic_write(path) as file:
        for reason in reasons:
            file.write(" ".join(reason.split()).encode(errors="backslashreplace") + b"\n")


def _largest(counts: Tensor) -> list[int]:
    """The groups of the sheet, largest first."""
    order = torch.sort(counts, descending=True, stable=True).indices[:_SHEET_GROUPS]
    return [group for group in order.tolist() if counts[group] > 1]


def _sheet(pictures: Pictures, members: list[tuple[int, int, Tensor]]) -> Image.Image:
    groups = []
    for group, count, rows in members:
        images = [
            pictures.render(range(row, row + 1), _SHEET_SIDE, CHANNELS)[0]
            for row in rows[:_SHEET_IMAGES].tolist()
        ]
        groups.append((f"{group}: {count}", np.concatenate(images)))
    return contact_sheet(groups)


def _warn_of_unreadable(name: str, reasons: list[str], images: int) -> None:
    if reasons:
        more = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
        warnings.warn(
            f"{name}: {len(reasons)} of {images} images could not be read and were left out: "
            f"{'; '.join(reasons[:_NAMED])}{more}",
            stacklevel=3,
        )
