"""What the commands share: how checkpoints are opened, how samples and scores are named, where outputs go."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import models
from ..data import Dataset, prepare
from ..data.source import SPLITS
from ..devices import pick_device
from ..errors import UserError
from ..files import make_folder, write_text
from ..latent import ATTRIBUTES, Score, best_seeds, latents_of
from ..layers import GENERATORS
from ..training import load_networks
from ..visualize import save_png, to_uint8

AddCommand = Callable[..., argparse.ArgumentParser]

_MOST_NUMBERS = 10_000  # that one list may name


class Outputs:
    """Files beside each other, named after the picture: ``walk.png``, ``walk.json``, ``walk.gif``."""

    def __init__(self, picture: str) -> None:
        path = Path(picture)
        self._picture = (
            path if path.suffix.lower() == ".png" else path.with_name(f"{path.name}.png")
        )
        if self._picture.is_dir():
            raise UserError(f"{self._picture} is a folder; a file for the picture is needed")
        make_folder(self._picture.parent)
        self.written: list[tuple[Path, str]] = []

    def path(self, suffix: str = ".png") -> Path:
        return self._picture.with_suffix(suffix)

    def note(self, path: Path, what: str) -> None:
        self.written.append((path, what))

    def picture(self, image: Image.Image, what: str, suffix: str = ".png") -> None:
        save_png(image, self.path(suffix))
        self.note(self.path(suffix), what)

    def figures(self, values: Mapping[str, Any]) -> None:
        """Write the figures, the last of the outputs, and say what there is."""
        path = self.path(".json")
        write_text(path, json.dumps(_without_nan(values), indent=2, allow_nan=False) + "\n")
        self.note(path, "the figures")
        for each, what in self.written:
            print(f"{os.path.relpath(each)}: {what}")


def _without_nan(value: Any) -> Any:
    """What JSON can hold: None for a figure that there is none of."""
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def load_generator(checkpoint: str, device: str) -> models.LatentNetwork:
    """The generator of a checkpoint, on the device of that name."""
    generator = load_networks(checkpoint)[0]
    if generator is None:
        raise UserError(f"{checkpoint} holds no generator")
    assert isinstance(generator, models.LatentNetwork)
    return generator.to(pick_device(device))


def bars() -> bool:
    """Whether somebody watches: progress bars are for people."""
    return sys.stderr.isatty()


# ---------------------------------------------------------------------------------------- images

SAMPLES = "samples"  # as DATA: images of the generator itself
_OWN_IMAGES = 4096  # of them


def open_images(
    checkpoint: str,
    content: Mapping[str, Any],
    generator: nn.Module | None,
    data: str | None,
    split: str,
    *,
    image_size: int,
    channels: int,
    label: int | None = None,
) -> Dataset:
    """The images that a command looks at: ``data``, or what the checkpoint was trained on, or the generator's own.

    Those of a generator with classes are of the class ``label``, or of all in turn, and have their labels.

    Raises:
        UserError: there are none of the chosen kind.
    """
    data, split = which_images(content, data, split)
    if data not in (None, SAMPLES):
        bar = bars()
        return prepare(data, image_size=image_size, channels=channels, split=split, progress=bar)
    if not isinstance(generator, GENERATORS):
        raise UserError(f"{checkpoint} does not say what it was trained on: give --data")
    seeds = range(_OWN_IMAGES)
    labels = labels_of(generator, seeds, label)
    images = models.generate(
        generator, latents_of(generator, seeds), labels, bn=content.get("bn", "running")
    )
    pixels = to_uint8(images, value_range=generator.output_range)
    return Dataset(
        f"{len(pixels):,} samples",
        np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)),
        None if labels is None else labels.numpy(),
    )


def labels_of(
    generator: models.LatentNetwork, seeds: Sequence[int], label: int | None
) -> Tensor | None:
    """The classes of samples, int64: ``label``, the argument of ``--class``; without it seed after seed all in turn.

    A seed's class does not depend on the others. None of a generator without classes.

    Raises:
        UserError: there is no such class.
    """
    check_class(label, generator.classes)
    if not generator.classes:
        return None
    if label is None:
        return torch.tensor([seed % generator.classes for seed in seeds])
    return torch.full((len(seeds),), label)


def check_class(label: int | None, classes: int) -> None:
    """``--class`` is one of the network's; raises :class:`UserError`."""
    if label is None:
        return
    if not classes:
        raise UserError("--class is for networks that were trained with labels")
    if not 0 <= label < classes:
        raise UserError(f"--class must be from 0 to {classes - 1}, got {label}")


def which_images(
    content: Mapping[str, Any], data: str | None, split: str
) -> tuple[str | None, str]:
    """``data`` and ``split``, or where no data is named those that the checkpoint was trained on, if it says."""
    trained_on = content.get("train_config") or {}
    if data is None and "data" in trained_on:
        return str(trained_on["data"]), str(trained_on.get("split", split))
    return data, split


def some_of(dataset: Dataset, count: int) -> Dataset:
    """``count`` of the images drawn without replacement, in their order; all where there are no more."""
    if len(dataset) <= count:
        return dataset
    rows = np.sort(np.random.default_rng(0).choice(len(dataset), count, replace=False))
    labels = None if dataset.labels is None else dataset.labels[rows]
    return Dataset(dataset.name, dataset.images[rows], labels, dataset.classes)


def data_arguments(parser: argparse.ArgumentParser, count: int) -> None:
    """Those of every command that looks at images, at ``count`` of them at most."""
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="whatever train takes, or samples: the generator's own (default: what the checkpoint "
        "was trained on, or samples where it does not say)",
    )
    parser.add_argument(
        "--split", default="train", choices=SPLITS, help="the part of them (default: train)"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=count,
        metavar="N",
        help=f"of them at most, drawn at random (default: {count})",
    )


# --------------------------------------------------------------------------------------- samples


def parse_numbers(flag: str, text: str) -> list[int]:
    """``1,2,3`` and ``1-10`` and mixtures of the two; raises :class:`UserError`."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= 2**63:
            raise UserError(f"{flag}: numbers look like 1,2,3 or 1-10, got '{text}'")
        if last - first >= _MOST_NUMBERS - len(numbers):
            raise UserError(f"{flag}: at most {_MOST_NUMBERS:,} numbers, got '{text}'")
        numbers += range(first, last + 1)
    return numbers


def load_function(flag: str, name: str) -> Callable[..., Any]:
    """The function ``module:name``, from the folder one is in or wherever Python finds modules."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{flag}: no function {name} can be imported: {error}") from error
    if not callable(found):
        raise UserError(f"{flag}: {name} is no function, it is a {type(found).__name__}")
    return found


def find_score(flag: str, name: str) -> Score:
    """An attribute of :data:`~dcgan_fast.latent.ATTRIBUTES`, or a function ``module:name``."""
    if name in ATTRIBUTES:
        return ATTRIBUTES[name]
    if ":" not in name:
        known = ", ".join(ATTRIBUTES)
        raise UserError(f"{flag}: a score is one of {known}, or MODULE:FUNCTION; got '{name}'")
    return load_function(flag, name)


SAMPLES_HELP = (
    "seeds (3,17,40), or most:SCORE or least:SCORE, with SCORE one of\n"
    f"{', '.join(ATTRIBUTES)}, or MODULE:FUNCTION: a function of images in [0, 1],\n"
    "float32 (N, C, S, S), to a number each"
)
CHECKPOINT_HELP = "a checkpoint, a run folder, or a bare generator"


def choose_samples(
    flag: str,
    text: str,
    generator: models.LatentNetwork,
    count: int,
    *,
    among: int,
    label: int | None,
    bn: str,
) -> tuple[list[int], str | None]:
    """The seeds that :data:`SAMPLES_HELP` describes, and the name of the score that chose them, if one did."""
    side, _, name = text.partition(":")
    if side not in ("most", "least"):
        return parse_numbers(flag, text), None
    score = find_score(flag, name)
    seeds = best_seeds(
        generator, score, count, among=among, lowest=side == "least", label=label, bn=bn
    )
    return seeds, name


# ------------------------------------------------------------------------------------- arguments


def class_argument(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--class", dest="label", type=int, metavar="N", help=text)


def sampling_arguments(
    parser: argparse.ArgumentParser, out: str, *, classes: str = "default: 0"
) -> None:
    """Those of every command that draws samples, with the picture called ``out``."""
    class_argument(parser, f"of a conditional generator ({classes})")
    parser.add_argument(
        "--bn",
        default="running",
        choices=models.BN_MODES,
        help="batch norm statistics, as of sample (default: running)",
    )
    output_arguments(parser, out)


def output_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument(
        "--out",
        default=out,
        metavar="FILE",
        help=f"the picture; other files are named after it (default: {out})",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)"
    )
