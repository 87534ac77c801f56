"""Images in a numpy file: one .npy, or an .npz with labels and splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import UserError
from .pictures import ArrayPictures, Pictures
from .source import Source, check_labels, fingerprint, no_split

SUFFIXES = frozenset((".npy", ".npz"))
_IMAGES, _LABELS = ("images", "x", "data", "arr_0"), ("labels", "y", "targets", "arr_1")


def array_source(path: Path, split: str) -> Source:
    """uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 to 4 channels.

    In an .npz the array is called ``images``, ``x``, ``data`` or ``arr_0`` and the labels
    ``labels``, ``y``, ``targets`` or ``arr_1``; or, with splits, ``train_images`` or ``x_train``
    and so on, as Keras and MedMNIST write them.
    """

    @contextmanager
    def open_array() -> Iterator[Pictures]:
        yield _read(path, split)

    return Source(path.stem, str(path), fingerprint(path.parent, [path.name]), open_array)


def _read(path: Path, split: str) -> ArrayPictures:
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(content, np.ndarray):
            with content:
                return _read_npz(path, content, split)
    except UserError:
        raise
    except Exception as error:  # a damaged header or zip raises nearly anything
        raise UserError(f"{path}: cannot be read as a numpy file: {error}") from error
    if split == "test":
        raise no_split(path, split, ("train",))
    return ArrayPictures(_channels_last(path, content))


def _read_npz(path: Path, content: Mapping[str, np.ndarray], split: str) -> ArrayPictures:
    parts: dict[str, tuple[str, str | None]] = {}
    for part, marked in (("train", "train"), ("test", "test"), ("train", "")):
        name = _key(content, _IMAGES, marked)
        if name is not None:
            parts.setdefault(part, (name, _key(content, _LABELS, marked)))
    if not parts:
        raise UserError(f"{path}: no array named {' or '.join(_IMAGES)}, got {', '.join(content)}")
    chosen = [parts[part] for part in parts if split in (part, "all")]
    if not chosen:
        raise no_split(path, split, parts)
    images = np.concatenate([_channels_last(path, content[name]) for name, _ in chosen])
    named = [content[labels] for _, labels in chosen if labels is not None]
    if len(named) < len(chosen):
        return ArrayPictures(images)
    # MedMNIST's and CIFAR's labels are (N, 1).
    labels = np.concatenate([part.reshape(len(part), -1)[:, 0] for part in named])
    return ArrayPictures(images, check_labels(path, labels, len(images)))


def _key(content: Mapping[str, np.ndarray], names: tuple[str, ...], part: str = "") -> str | None:
    forms = ("{part}_{name}", "{name}_{part}") if part else ("{name}",)
    spelled = (form.format(part=part, name=name) for name in names for form in forms)
    return next((name for name in spelled if name in content), None)


def _channels_last(path: Path, images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8 and images.size:
        if images.ndim == 3:
            return images[..., None]
        if images.ndim == 4 and 1 <= images.shape[3] <= 4:
            return images
        if images.ndim == 4 and 1 <= images.shape[1] <= 4:
            return images.transpose(0, 2, 3, 1)
    raise UserError(
        f"{path}: images must be uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) "
        f"with 1 to 4 channels, got {images.dtype} {images.shape}"
    )
