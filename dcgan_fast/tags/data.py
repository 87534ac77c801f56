"""What training on tags reads: tags, features and word vectors, joined and split in two."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..devices import pick_device
from ..errors import UserError
from ..training.checkpoint import FILE_NAME
from ..training.setup import derived_seed
from .config import TagConfig
from .features import Extractor, Features, extract, load_extractor, load_features
from .skip_gram import train_skip_gram
from .table import TaggedImages, Tags, join_tags, read_tags
from .words import WordVectors, load_words

__all__ = ["TagData", "centred", "extractor_of", "file_digest", "load_tag_data"]


@dataclass(eq=False)
class TagData:
    """What a run learns from and is scored on.

    features:   of all images
    words:      to choose from
    training:   images and the rows of their tags in ``words``
    validation: the same, of images not trained on; may be empty
    left_out:   by kind what could not be used
    extractor:  SHA-256 of the file that made the features, None where none did
    """

    features: Features
    words: WordVectors
    training: TaggedImages
    validation: TaggedImages
    left_out: dict[str, list[str]]
    extractor: str | None = None

    def fingerprint(self) -> str:
        """Changes with anything that training depends on."""
        digest = hashlib.sha256()
        for part in (self.training, self.validation):
            digest.update(json.dumps([part.names, part.words]).encode())
        digest.update("\0".join(self.words.words).encode(errors="backslashreplace"))
        digest.update(self.words.vectors.numpy().tobytes())
        digest.update(np.ascontiguousarray(self.features.values).tobytes())
        return digest.hexdigest()


def load_tag_data(config: TagConfig, features: Features | None = None) -> TagData:
    """Read tags, make or read features, read or learn word vectors, and put them together.

    Tags without a vector, images of the file that are not there and images without tags are left
    out, with a warning that counts and names them.

    Args:
        config: where they are.
        features: those of a run that is continued; None: as ``config`` says.

    Raises:
        UserError: a file is missing or of another form, or nothing is left to train on.
    """
    tags = read_tags(config.tags)
    held = None if config.validation_tags is None else read_tags(config.validation_tags)
    words = _words(config, tags, held or {})  # before the features, which take their time
    if features is None:
        features = _features(config, sys.stderr.isatty())
    joined = join_tags({**tags, **(held or {})}, features.names, words)
    joined.warn()
    training, validation = _split(joined, config) if held is None else _parted(joined, tags, held)
    if not training:
        raise UserError(
            f"{config.tags}: no image is left to train on: of {len(tags):,} that it names "
            f"{len(set(tags) & set(joined.absent)):,} are not there; of {len(features):,} that are "
            f"there {len(joined.untagged):,} have no tags, {len(joined.wordless):,} none with a vector"
        )
    if config.candidates == "tags":
        rare = config.min_count or 1
        words, training, validation = _only_tags(words, training, validation, rare)
    if config.centre_words:
        words = centred(words)
    made_by = file_digest(config.features)
    return TagData(features, words, training, validation, joined.left_out(), made_by)


def _words(config: TagConfig, tags: Tags, held: Tags) -> WordVectors:
    if config.words is None:
        assert config.min_count is not None  # TagConfig has set it
        return train_skip_gram(tags.values(), min_count=config.min_count, seed=config.seed)
    everything = {tag for own in (*tags.values(), *held.values()) for tag in own}
    only = None if config.candidates == "all" else everything
    return load_words(config.words, config.vocabulary, only=only)


def _features(config: TagConfig, progress: bool) -> Features:
    if config.features.lower().endswith(".npy"):
        return load_features(config.features, config.feature_names)
    if config.feature_names is not None:
        raise UserError("'feature_names' goes with a .npy of features")
    images = Path(config.tags).parent if config.images is None else config.images
    return extract(images, extractor_of(config), progress=progress)


def extractor_of(config: TagConfig) -> Extractor:
    """What makes the features of a run."""
    return load_extractor(
        config.features,
        image_size=config.feature_size,
        scaling=config.feature_scaling,
        device=pick_device(config.device),
    )


def _split(joined: TaggedImages, config: TagConfig) -> tuple[TaggedImages, TaggedImages]:
    """Training and validation images, drawn by the seed, each in the order of the set."""
    held = int(config.validation * len(joined))
    order = np.random.default_rng(derived_seed(config.seed, "validation")).permutation(len(joined))
    return joined.select(sorted(order[held:])), joined.select(sorted(order[:held]))


def _parted(joined: TaggedImages, tags: Tags, held: Tags) -> tuple[TaggedImages, TaggedImages]:
    """Training and validation images by the file that names them."""
    twice = [name for name in held if name in tags]
    if twice:
        raise UserError(
            f"'{twice[0]}' is in both files of tags: an image is trained on or scored, not both"
        )
    of_held = [by in held for by in joined.named_by]
    return (
        joined.select(place for place, is_held in enumerate(of_held) if not is_held),
        joined.select(place for place, is_held in enumerate(of_held) if is_held),
    )


def _only_tags(
    words: WordVectors, training: TaggedImages, validation: TaggedImages, min_count: int
) -> tuple[WordVectors, TaggedImages, TaggedImages]:
    """The words that ``min_count`` training images have; training images without one go.

    Validation images keep their other words as rows beyond those: nobody can predict them, but they
    count as tags that were missed.
    """
    counts = Counter(word for own in training.words for word in own)
    kept = sorted(word for word, count in counts.items() if count >= min_count)
    if not kept:
        raise UserError(
            f"no tag is on {min_count} training images or more ('min_count'); the commonest is on "
            f"{max(counts.values())}"
        )
    row = {word: place for place, word in enumerate(kept)}
    of_training = [[row[word] for word in own if word in row] for own in training.words]
    for own in validation.words:
        for word in own:
            row.setdefault(word, len(row))
    of_validation = [[row[word] for word in own] for own in validation.words]
    training = dataclasses.replace(training, words=of_training)
    some = [place for place, own in enumerate(of_training) if own]
    return (
        words.select(kept),
        training.select(some),
        dataclasses.replace(validation, words=of_validation),
    )


def centred(words: WordVectors) -> WordVectors:
    """Each number of the vectors to mean 0 and deviation 1 over the words.

    The vectors of published files share a large part, which puts a few words near to all others.
    """
    wide = words.vectors.double()
    deviation = wide.std(0, unbiased=False)
    deviation[deviation == 0] = 1.0
    return WordVectors(words.words, ((wide - wide.mean(0)) / deviation).float())


def file_digest(features: str) -> str | None:
    """SHA-256 of the file that makes features, of a run folder that of its checkpoint."""
    path = Path(features)
    if path.suffix.lower() == ".npy":
        return None
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
