"""How good lists of words are: against the true tags, and beside two baselines without a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

__all__ = ["Score", "commonest", "neighbours", "score"]

_QUERIES = 1024  # compared with all training images at once


@dataclass(frozen=True)
class Score:
    """Means over images of what a list of words has of the true tags.

    precision: the share of the list that is right
    recall:    the share of the true tags that is in the list
    hit_rate:  the share of images with at least one right word
    images:    how many
    """

    precision: float
    recall: float
    hit_rate: float
    images: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def score(predicted: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> Score:
    """Compare a list of words (rows of the word vectors) for each image with its true tags.

    Raises:
        UserError: another number of lists than of images, no image, or an empty list.
    """
    if len(predicted) != len(truth) or not truth:
        raise UserError(
            f"score(): 'predicted' and 'truth' must be of the same images, at least one; got "
            f"{len(predicted)} and {len(truth)}"
        )
    if not all(map(len, predicted)) or not all(map(len, truth)):
        raise UserError("score(): every image must have a word predicted, and a true one")
    right = np.array([len({*p} & {*t}) for p, t in zip(predicted, truth, strict=True)])
    precision = right / [len({*words}) for words in predicted]
    recall = right / [len({*words}) for words in truth]
    return Score(
        round(float(precision.mean()), 4),
        round(float(recall.mean()), 4),
        round(float((right > 0).mean()), 4),
        len(truth),
    )


def commonest(training: Sequence[Sequence[int]], top: int) -> list[int]:
    """The ``top`` tags that most training images have: the list that says nothing of an image."""
    counts = Counter(word for words in training for word in words)
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))][:top]


def neighbours(
    features: Tensor,
    training_features: Tensor,
    training: Sequence[Sequence[int]],
    *,
    k: int,
    top: int,
) -> list[list[int]]:
    """The ``top`` tags of each image's ``k`` nearest training images, by cosine of the features.

    Each neighbour votes for its tags with its cosine (none where that is negative); equal votes go
    to the commoner tag, and where neighbours have too few tags the commonest fill the list.

    Args:
        features: float (N, width), scaled as the training images'.
        training_features: float (M, width).
        training: the tags of each training image.
        k: 1 to M.
        top: length of the lists.
    """
    if not 1 <= k <= len(training):
        raise UserError(
            f"neighbours(): 'k' must be from 1 to the {len(training)} training images, got {k}"
        )
    counts = Counter(word for words in training for word in words)
    fill = commonest(training, top)
    directions = torch.nn.functional.normalize(training_features)
    lists = []
    for some in torch.nn.functional.normalize(features).split(_QUERIES):
        found = (some @ directions.t()).topk(k)
        for cosines, rows in zip(found.values.tolist(), found.indices.tolist(), strict=True):
            votes: dict[int, float] = {}
            for cosine, row in zip(cosines, rows, strict=True):
                for word in training[row]:
                    votes[word] = votes.get(word, 0.0) + max(cosine, 0.0)
            ranked = sorted(votes, key=lambda word: (-votes[word], -counts[word], word))
            lists.append(list(dict.fromkeys([*ranked[:top], *fill]))[:top])
    return lists
