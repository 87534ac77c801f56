"""What a name or a path is: a built-in source, a well-known set, or some kind of file or folder."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..errors import UserError
from . import arrays
from .arrays import array_source
from .builtin import digits_source, fake_source
from .cifar import cifar_folders, cifar_source
from .files import folder_source, images_among, list_files, no_images, zip_source
from .idx import idx_file_source, idx_folder_source, idx_sets, is_idx_images
from .lsun import lmdb_folders, lmdb_source
from .pictures import SUFFIXES
from .prepared import is_prepared, prepared_source
from .source import Source

# Beside the work, as torchvision unpacks them, and where Debian's packages install them.
_BASES = (Path("data"), Path("."), Path("/usr/share/datasets"))
_WELL_KNOWN = {
    "mnist": ("mnist", "MNIST/raw", "MNIST"),
    "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
    "cifar10": ("cifar-10-batches-py", "cifar10"),
}
NAMES = ("digits", "fake", *_WELL_KNOWN)


def find_source(source: str | Path, split: str) -> Source:
    """Recognises ``source``: a name of ``NAMES`` or a path. UserError when it is neither."""
    if source == "digits":
        return digits_source(split)
    if isinstance(source, str) and source.partition(":")[0] == "fake":
        return fake_source(source, split)
    if source in _WELL_KNOWN:
        return _well_known(str(source), split)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path.resolve(), split)
    if path.is_file():
        return _file(path.resolve(), split)
    what = "not a file or folder" if path.exists() else "no such file or folder"
    raise UserError(f"{source}: {what}, nor one of the names {', '.join(NAMES)}")


def _well_known(name: str, split: str) -> Source:
    places = [base / folder for base in _BASES for folder in _WELL_KNOWN[name]]
    for place in places:
        if place.is_dir() and _candidates(place.resolve(), split):
            return replace(_folder(place.resolve(), split), name=name)
    package = " (Debian: apt install dataset-fashion-mnist)" if name == "fashion-mnist" else ""
    raise UserError(
        f"{name}: not found in {', '.join(map(str, places))}; give the path of its folder{package}"
    )


def _file(path: Path, split: str) -> Source:
    suffix = path.suffix.lower()
    if suffix in arrays.SUFFIXES:
        return array_source(path, split)
    if zipfile.is_zipfile(path) or suffix == ".zip":
        return zip_source(path, split)
    if is_idx_images(path) or idx_sets([path.name]):
        return idx_file_source(path)
    if suffix in SUFFIXES or path.name.startswith(("data_batch_", "test_batch")):
        raise UserError(f"{path}: is one file of a data set; give the folder that holds it")
    raise UserError(
        f"{path}: not a data set: expected a folder, a .zip of images, an idx file of images, "
        "a .npy or .npz"
    )


def _folder(path: Path, split: str) -> Source:
    if is_prepared(path):
        return prepared_source(path, split)
    candidates = _candidates(path, split)
    if len(candidates) > 1:
        several = ", ".join(repr(place) for place in candidates)
        raise UserError(f"{path}: holds several data sets, name one of them: {several}")
    if not candidates:
        raise no_images(path)
    found = next(iter(candidates.values()))()
    return replace(found, name=path.name.removesuffix("_lmdb") or found.name)


def _candidates(root: Path, split: str) -> dict[str, Callable[[], Source]]:
    """The data sets in a folder, by where they lie; images count where there is nothing else."""
    files = list_files(root)
    found: dict[str, Callable[[], Source]] = {}
    for place, names in idx_sets(files).items():
        paths = [root / name for name in names]
        found[place] = partial(idx_folder_source, paths[0].parent, paths, split)
    for folder in cifar_folders(files):
        found[folder] = partial(cifar_source, root / folder, split)
    if bases := lmdb_folders(files):
        found["lmdb"] = partial(lmdb_source, root, [root / base for base in bases], split)
    if not found and (images := images_among(files)):
        found["images"] = partial(folder_source, root, images, split)
    return found
