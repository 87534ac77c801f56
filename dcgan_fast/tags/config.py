"""Every setting of a training run on tags, in one plain dataclass that goes to ``config.json``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .features import PIXELS, SCALINGS
from .skip_gram import MIN_COUNT

__all__ = ["TagConfig"]

LEARNING_RATES = {"sgd": 0.1, "adam": 5e-4}
OPTIMIZERS = tuple(LEARNING_RATES)
CANDIDATES = ("tags", "all")

# What a continued run may change.
CHANGEABLE = frozenset({"updates", "save_seconds", "device", "threads"})


@dataclass
class TagConfig:
    """The settings of one training run on tags; ``TagTrainer(TagConfig(...)).fit()``.

    **P**: the CGAN paper's, section 4.2; the others are choices where it is silent.

    Raises:
        UserError: a value outside its range, naming the field, the rule and what came.
    """

    # Data
    tags: str = "tags.tsv"  # images and their tags: read_tags()
    images: str | None = None  # None: the folder of the tags file
    features: str = PIXELS  # what makes them (load_extractor), or a .npy of them (load_features)
    feature_names: str | None = None  # names of the images in a .npy; None: beside it
    feature_size: int | None = None  # side of the images that features are made of
    feature_scaling: str | None = None  # of their pixels: a name in SCALINGS
    words: str | None = None  # word vectors: load_words(); None: learned from the tags
    vocabulary: str | None = None  # words of a .npy of vectors; None: beside it
    candidates: str = (
        "tags"  # words to choose from: "tags" of the training images, or "all" vectors
    )
    min_count: int | None = (
        None  # of those tags the ones on so many training images ; None: 1, 5 of learned ones
    )
    centre_words: bool = True  # each number of the vectors to mean 0, deviation 1
    validation: float = 0.1  # share of the images that is not trained on, but scored, at random
    validation_tags: str | None = None  # in its place: a second file of tags, of images to score

    # Networks: the widths of TagGenerator and TagDiscriminator (P)
    nz: int = 100
    noise_units: int = 500
    g_feature_units: int = 2000
    g_joint_units: int = 0
    word_units: int = 500
    d_feature_units: int = 1200
    d_joint_units: int = 1000
    pieces: int = 3
    dropout: float = 0.5

    # Optimisation
    updates: int = 3000
    batch_size: int = 100  # P
    optimizer: str = "sgd"  # P; "adam", with beta1 0.5, was steadier and better on emoji
    lr: float | None = None  # None: LEARNING_RATES; P: 0.1
    lr_decay: float = 1.00004  # P: divides the rate after each update
    lr_min: float = 1e-6  # P
    momentum: float = 0.5  # P
    momentum_final: float = 0.7  # P
    momentum_updates: int | None = None  # in which it grows, in equal steps; None: all of the run
    seed: int = 0

    # Machine
    device: str = "auto"  # "auto": CUDA where there is one, else the CPU
    threads: int | None = None  # None: PyTorch's choice

    # Output
    out: str | None = "runs"  # None: nothing is written
    name: str | None = None  # None: "tags"
    log_every: int = 50  # updates averaged into one line of metrics.jsonl
    score_every: int = 500  # updates between looks at the validation images
    save_seconds: float | None = 60.0  # a checkpoint every so many seconds, besides the looks

    def __post_init__(self) -> None:
        for name, (rule, holds) in _RULES.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL or _satisfies(value, holds)):
                raise UserError(f"'{name}' must be {rule}, got {value!r}")
        if self.min_count is None:
            self.min_count = MIN_COUNT if self.words is None else 1
        if self.lr is None:
            self.lr = LEARNING_RATES[self.optimizer]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TagConfig:
        known = {item.name for item in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise UserError(
                    f"unknown setting '{name}': the settings are {', '.join(sorted(known))}"
                )
        return cls(**values)

    def changed(self, changes: Mapping[str, Any]) -> TagConfig:
        """This configuration with the changes that a continued run may have.

        Raises:
            UserError: naming the first setting that may not change, or ``updates`` if it would fall.
        """
        new = dataclasses.replace(self, **changes)
        for name in changes:
            before, after = getattr(self, name), getattr(new, name)
            if before != after and name not in CHANGEABLE:
                raise UserError(
                    f"a continued run cannot change '{name}': it was made with {before!r}, "
                    f"got {after!r}"
                )
        if new.updates < self.updates:
            raise UserError(
                f"'updates' can only be raised: the run has {self.updates}, got {new.updates}"
            )
        return new


_Rule = tuple[str, Callable[[Any], bool]]


def _whole(low: int) -> _Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    return f"a whole number of at least {low}", holds


def _one_of(*choices: str) -> _Rule:
    return "one of " + ", ".join(choices), lambda value: value in choices


_POSITIVE: _Rule = ("a positive number", lambda value: 0 < value < math.inf)
_SHARE: _Rule = ("a number from 0 to below 1", lambda value: 0 <= value < 1)

_RULES: dict[str, _Rule] = {
    "feature_size": _whole(1),
    "feature_scaling": _one_of(*SCALINGS),
    "candidates": _one_of(*CANDIDATES),
    "min_count": _whole(1),
    "centre_words": ("true or false", lambda value: isinstance(value, bool)),
    "validation": _SHARE,
    "nz": _whole(1),
    "noise_units": _whole(1),
    "g_feature_units": _whole(1),
    "g_joint_units": _whole(0),
    "word_units": _whole(1),
    "d_feature_units": _whole(1),
    "d_joint_units": _whole(1),
    "pieces": _whole(1),
    "dropout": _SHARE,
    "updates": _whole(1),
    "batch_size": _whole(1),
    "optimizer": _one_of(*OPTIMIZERS),
    "lr": _POSITIVE,
    "lr_decay": ("a number of at least 1", lambda value: 1 <= value < math.inf),
    "lr_min": ("a number of at least 0", lambda value: 0 <= value < math.inf),
    "momentum": _SHARE,
    "momentum_final": _SHARE,
    "momentum_updates": _whole(1),
    "seed": _whole(0),
    "threads": _whole(1),
    "log_every": _whole(1),
    "score_every": _whole(1),
    "save_seconds": _POSITIVE,
}
_OPTIONAL = {item.name for item in dataclasses.fields(TagConfig) if "None" in str(item.type)}


def _satisfies(value: Any, holds: Callable[[Any], bool]) -> bool:
    try:
        return bool(holds(value))
    except TypeError:
        return False
