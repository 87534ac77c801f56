from __future__ import annotations

import pytest
import torch

from dcgan_fast.errors import UserError
from dcgan_fast.tags import Score, commonest, neighbours, score


def test_score_by_hand() -> None:
    found = score([[1, 2, 3, 4], [5, 6, 7, 8], [9, 1]], [[1, 9], [0], [1, 2, 9]])
    assert found == Score(precision=0.4167, recall=0.3889, hit_rate=0.6667, images=3)
    assert found.to_dict() == {
        "precision": 0.4167,
        "recall": 0.3889,
        "hit_rate": 0.6667,
        "images": 3,
    }


def test_words_named_twice_count_once() -> None:
    assert score([[1, 1, 2]], [[1, 1]]) == Score(0.5, 1.0, 1.0, 1)


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        ([], [], "at least one; got 0 and 0"),
        ([[1]], [[1], [2]], "got 1 and 2"),
        ([[]], [[1]], "a word predicted, and a true one"),
        ([[1]], [[]], "a word predicted, and a true one"),
    ],
)
def test_wrong_lists(predicted: list, truth: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(predicted, truth)


def test_commonest() -> None:
    training = [[3, 1], [3, 2], [1, 3], [7]]
    assert commonest(training, 3) == [3, 1, 2]
    assert commonest(training, 10) == [3, 1, 2, 7]


def test_neighbours_vote_with_their_cosines() -> None:
    training_features = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0], [-1.0, 0.0]])
    training = [[0, 4], [1, 4], [2], [3, 4]]
    query = torch.tensor([[5.0, 0.0]])
    for k, top, wanted in (
        (1, 2, [4, 0]),  # equal votes: 4 is the commoner tag
        (2, 3, [4, 0, 1]),
        (4, 5, [4, 0, 1, 2, 3]),  # image 3 points away: its vote is nothing
        (1, 4, [4, 0, 1, 2]),  # filled with the commonest
    ):
        assert neighbours(query, training_features, training, k=k, top=top) == [wanted]


def test_neighbours_of_images_that_are_there_are_themselves() -> None:
    features = torch.randn(2100, 5)
    tags = [[n] for n in range(2100)]
    assert neighbours(features, features, tags, k=1, top=1) == tags


@pytest.mark.parametrize("k", [0, 3])
def test_wrong_k(k: int) -> None:
    with pytest.raises(UserError, match=f"'k' must be from 1 to the 2 training images, got {k}"):
        neighbours(torch.zeros(1, 2), torch.zeros(2, 2), [[0], [1]], k=k, top=1)
