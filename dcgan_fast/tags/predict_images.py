"""``dcgan-fast tags predict``: words for the images of a source, and their score where tags are known."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from .config import TagConfig
from .data import file_digest
from .features import Features, extract, load_extractor, load_features, one_line
from .prediction import NEAREST, SAMPLES, TOP, Tagger
from .scoring import Score, score
from .table import join_tags, read_tags

__all__ = ["PredictedWords", "predict_images"]


@dataclass(frozen=True)
class PredictedWords:
    """Words for images.

    words:    of each image by its name, most votes first
    score:    of those images that have tags, where a file of them was given
    settings: how they were made
    """

    words: Mapping[str, list[str]]
    score: Score | None
    settings: Mapping[str, Any]

    def to_json(self) -> str:
        """What :func:`read_tags` reads as ``.json``."""
        return json.dumps(dict(self.words), indent=1, ensure_ascii=False) + "\n"

    def to_tsv(self) -> str:
        """What :func:`read_tags` reads as lines."""
        lines = ("\t".join([one_line(image), *own]) for image, own in self.words.items())
        return "".join(f"{line}\n" for line in lines)

    def figures(self) -> dict[str, Any]:
        """For a file of figures."""
        scored = {} if self.score is None else {"score": self.score.to_dict()}
        return {"images": len(self.words), **self.settings, **scored}


def predict_images(
    checkpoint: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    features: str | None = None,
    feature_names: str | None = None,
    truth: str | os.PathLike[str] | None = None,
    best: bool = True,
    samples: int = SAMPLES,
    nearest: int = NEAREST,
    top: int = TOP,
    seed: int = 0,
    dropout: bool = False,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> PredictedWords:
    """Words for all images of a source, as the CGAN paper chose them.

    Args:
        checkpoint: of a training run, or its folder.
        images: whatever training took, or a ``.npy`` of features.
        features: what makes the features; None: what made those of the run.
        feature_names: to a ``.npy``, as for :func:`load_features`.
        truth: a file of tags, to score the words by. A tag counts by the word that it means, also
            one that training never saw and that cannot be named.
        best: whether the generator is that of the best look in training, or the last.
        samples, nearest, top, seed, dropout: as for :meth:`Tagger.predict`; ``nearest`` is lowered to the
            number of words.
        device: where it runs.
        progress: whether to show progress bars.

    Raises:
        UserError: a file is missing or of another form, or features are not those of the run.
    """
    tagger = Tagger.load(checkpoint, best=best)
    tagger.generator.to(device)
    config = TagConfig.from_dict(tagger.about["train_config"])
    found = _features(tagger, config, images, features, feature_names, device, progress)
    lists, _ = tagger.predict(
        found.values,
        samples=samples,
        nearest=min(nearest, len(tagger.words)),
        top=top,
        seed=seed,
        dropout=dropout,
        progress=progress,
    )
    names = tagger.words.words
    words = {
        image: [names[word] for word in own] for image, own in zip(found.names, lists, strict=True)
    }
    settings = {
        "samples": samples,
        "nearest": nearest,
        "top": top,
        "seed": seed,
        "dropout": dropout,
    }
    scored = None if truth is None else _score(tagger, found, lists, truth)
    return PredictedWords(words, scored, settings)


def _features(
    tagger: Tagger,
    config: TagConfig,
    images: str | os.PathLike[str],
    source: str | None,
    names: str | None,
    device: torch.device | str,
    progress: bool,
) -> Features:
    if Path(images).suffix.lower() == ".npy":
        found = load_features(images, names)
    else:
        if names is not None:
            raise UserError("'feature_names' goes with a .npy of features")
        made_by = source or config.features
        if made_by.lower().endswith(".npy"):
            raise UserError(
                f"the run was trained on features from {made_by}: give those of the images as a "
                ".npy too, or what made them with --features"
            )
        before = tagger.about["extractor"]
        if before is not None and file_digest(made_by) not in (None, before):
            warnings.warn(
                f"{made_by} is not the file that made the features of the run, or has changed",
                stacklevel=3,
            )
        extractor = load_extractor(
            made_by,
            image_size=config.feature_size,
            scaling=config.feature_scaling,
            device=device,
        )
        found = extract(images, extractor, progress=progress)
    if found.width != tagger.generator.feature_width:
        raise UserError(
            f"the run was trained on features of {tagger.generator.feature_width} numbers, these "
            f"have {found.width}"
        )
    return found


class _Growing:
    """Rows of the words, and of any tag beyond them: each one is a tag that can be missed."""

    def __init__(self, tagger: Tagger) -> None:
        self.words = tagger.words
        self.others: dict[str, int] = {}

    def find(self, tag: str) -> int:
        row = self.words.find(tag)
        if row is not None:
            return row
        return self.others.setdefault(tag.lower(), len(self.words) + len(self.others))


def _score(
    tagger: Tagger, found: Features, lists: list[list[int]], truth: str | os.PathLike[str]
) -> Score:
    joined = join_tags(read_tags(truth), found.names, _Growing(tagger))
    joined.warn()
    if not joined:
        raise UserError(f"{truth} has no tags for any of the {len(found):,} images")
    return score([lists[row] for row in joined.rows], joined.words)
