"""CIFAR-10 and CIFAR-100 as their author distributes them: Python 2 pickles, read without trust."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .pictures import ArrayPictures, Pictures
from .source import Source, check_labels, fingerprint, no_split

_SIDE = 32
_TEN, _HUNDRED = {"data_batch_1", "test_batch"}, {"train", "test", "meta"}
_NUMPY_INTERNALS = {  # before numpy 2 and since
    f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")
}


def cifar_folders(files: Sequence[str]) -> list[str]:
    """The folders that hold CIFAR-10's or CIFAR-100's batches, of files as paths with slashes."""
    named: dict[str, set[str]] = {}
    for path in files:
        folder, _, name = path.rpartition("/")
        if name in _TEN or name in _HUNDRED:
            named.setdefault(folder, set()).add(name)
    return [f for f, names in named.items() if names & _TEN or names >= _HUNDRED]


def cifar_source(folder: Path, split: str) -> Source:
    """A folder with CIFAR-10's ``data_batch_*`` and ``test_batch``, or CIFAR-100's two files."""
    ten = any((folder / name).exists() for name in _TEN)
    parts = {
        "train": sorted(folder.glob("data_batch_?" if ten else "train")),
        "test": sorted(folder.glob("test_batch" if ten else "test")),
    }
    found = {part for part in parts if parts[part]}
    batches = [path for part in parts if split in (part, "all") for path in parts[part]]
    if not batches:
        raise no_split(folder, split, found)
    meta = folder / ("batches.meta" if ten else "meta")
    files = [path.name for path in (*batches, meta) if path.is_file()]

    @contextmanager
    def open_cifar() -> Iterator[Pictures]:
        images, labels = zip(*(_read_batch(path) for path in batches), strict=True)
        label = np.concatenate(labels)
        classes = _read_classes(meta) if meta.is_file() else None
        if classes is not None and label.max() >= len(classes):
            raise UserError(f"{folder}: label {label.max()}, but {meta.name} names {len(classes)}")
        yield ArrayPictures(np.concatenate(images), label, classes)

    return Source(folder.name, str(folder), fingerprint(folder, files), open_cifar)


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = load_plain_pickle(path)
    data = content.get("data")
    labels = content.get("fine_labels", content.get("labels"))
    width = 3 * _SIDE**2
    if not isinstance(data, np.ndarray) or data.shape != (max(len(data), 1), width):
        raise UserError(f"{path}: expected 'data', a uint8 array (N, {width}), as in CIFAR")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise UserError(f"{path}: expected 'labels' or 'fine_labels', a list of integers")
    images = data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return images, check_labels(path, np.array(labels), len(images))


def _read_classes(path: Path) -> list[str]:
    content = load_plain_pickle(path)
    names = content.get("fine_label_names", content.get("label_names"))
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise UserError(f"{path}: expected 'label_names' or 'fine_label_names', a list of names")
    return [_text(name) for name in names]


def load_plain_pickle(path: Path) -> dict[str, Any]:
    """Reads a pickled dict of plain values and uint8 arrays, and runs nothing from the file.

    The pickle may name numpy's array constructors, which are replaced by our own, and nothing else.
    Raises UserError for any other name and for whatever else is wrong with the file.
    """
    try:
        content = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"expected a dict, got {type(content).__name__}")
        return {_text(key): _plain(value) for key, value in content.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path}: not a CIFAR batch: {error or type(error).__name__}") from error


class _PlainUnpickler(pickle._Unpickler):
    """The unpickler written in Python: a short hostile file makes the one in C allocate 64 GB."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        # A fresh function each time: a pickle may set attributes on what it is given.
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return lambda *arguments: _PickledType(arguments)
        if module in _NUMPY_INTERNALS and name == "_reconstruct":
            return lambda *_: _PickledArray()
        if module in _NUMPY_INTERNALS and name == "_frombuffer":  # protocol 5
            return lambda raw, dtype, shape, order: _PickledArray(shape, dtype, order == "F", raw)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in protocol 2
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")


class _PickledType:
    """Stands for numpy.dtype: keeps its name only."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.name = _text(arguments[0])

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: a byte has none."""


class _PickledArray:
    """Stands for numpy.ndarray, so that no hostile state reaches numpy's own __setstate__."""

    def __init__(self, *state: Any) -> None:
        self.state: Any = state  # shape, dtype, whether in Fortran order, bytes

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, *self.state = state

    def array(self) -> np.ndarray:
        shape, dtype, fortran, raw = self.state
        if dtype.name not in ("u1", "uint8"):
            raise pickle.UnpicklingError(f"expected a uint8 array, got {dtype.name}")
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _plain(value: object) -> object:
    return value.array() if isinstance(value, _PickledArray) else value


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    if not isinstance(value, str):
        raise pickle.UnpicklingError(f"expected a name, got {type(value).__name__}")
    return value
