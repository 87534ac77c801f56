"""What ``dcgan-fast features`` does with a checkpoint and a data set."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Dataset, prepare
from ..data.source import NoSplit
from ..devices import pick_device
from ..files import atomic_write, make_folder, write_text
from ..models import Discriminator
from ..visualize import save_png
from .classify import Classification, classify, draw_bars
from .discriminator import DiscriminatorFeatures

__all__ = ["classify_images", "write_features"]


def write_features(
    checkpoint: str | os.PathLike[str],
    data: str,
    out: str | os.PathLike[str],
    *,
    layers: tuple[int, ...] | None = None,
    dtype: str = "float32",
    device: str = "auto",
    progress: bool = False,
) -> tuple[NDArray[Any], Path]:
    """Write ``features.npy`` of the training images into the folder ``out``, and ``labels.npy`` where there are labels.

    Returns the features, a read-only map, and their path. Raises UserError as :class:`DiscriminatorFeatures`.
    """
    pick_device(device)
    features = DiscriminatorFeatures(
        checkpoint, layers=layers, dtype=dtype, device=device, progress=progress
    ).fit()
    images = _images(data, features.network_, "train", progress)
    folder = make_folder(out)
    path = folder / "features.npy"
    found = features.transform(images, path)
    if images.labels is not None:
        with atomic_write(folder / "labels.npy") as file:
            np.save(file, images.labels)
    return found, path


def classify_images(
    checkpoint: str | os.PathLike[str],
    data: str,
    out: str | os.PathLike[str],
    *,
    train_images: int,
    test_images: int,
    seed: int = 0,
    progress: bool = False,
    **settings: Any,
) -> tuple[Classification, Sequence[Path]]:
    """:func:`~dcgan_fast.features.classify.classify` on so many training and test images, drawn at random.

    Writes ``accuracy.json`` and ``accuracy.png`` into the folder ``out``, and returns their paths. A set without a test
    split is split at random, a fifth to test on.

    Raises:
        UserError: as there, and as :class:`DiscriminatorFeatures`.
    """
    network = (
        DiscriminatorFeatures(checkpoint, layers=settings.get("layers"), device="cpu")
        .fit()
        .network_
    )
    training, test = _both(data, network, seed, progress)
    random = np.random.default_rng(seed)
    training, test = _some(training, train_images, random), _some(test, test_images, random)
    found = classify(network, training, test, seed=seed, progress=progress, **settings)
    folder = make_folder(out)
    files = folder / "accuracy.json", folder / "accuracy.png"
    about = {"checkpoint": str(checkpoint), "data": str(data), "seed": seed, **found.to_dict()}
    write_text(files[0], json.dumps(about, indent=2) + "\n")
    save_png(draw_bars(found), files[1])
    return found, files


def _images(data: str, network: Discriminator, split: str, progress: bool) -> Dataset:
    return prepare(
        data, image_size=network.image_size, channels=network.nc, split=split, progress=progress
    )


def _both(data: str, network: Discriminator, seed: int, progress: bool) -> tuple[Dataset, Dataset]:
    try:
        return _images(data, network, "train", progress), _images(data, network, "test", progress)
    except NoSplit:
        pass
    whole = _images(data, network, "all", progress)
    order = np.random.default_rng(seed).permutation(len(whole))
    tested = max(1, len(whole) // 5)
    return _rows(whole, np.sort(order[tested:])), _rows(whole, np.sort(order[:tested]))


def _some(dataset: Dataset, count: int, random: np.random.Generator) -> Dataset:
    if len(dataset) <= count:
        return dataset
    return _rows(dataset, np.sort(random.choice(len(dataset), count, replace=False)))


def _rows(dataset: Dataset, rows: NDArray[Any]) -> Dataset:
    labels = None if dataset.labels is None else dataset.labels[rows]
    return replace(dataset, images=dataset.images[rows], labels=labels, path=None)
