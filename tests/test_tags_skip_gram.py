from __future__ import annotations

import sys
from itertools import combinations

import pytest
import torch

from dcgan_fast.errors import UserError
from dcgan_fast.tags import train_skip_gram

# Two subjects, whose tags are never on one picture.
SEA, TOWN = ("sea", "sand", "wave", "boat"), ("street", "car", "shop", "tram")
TAGS = [list(some) for subject in (SEA, TOWN) for some in combinations(subject, 3)]


def test_words_of_one_subject_are_near_each_other() -> None:
    pytest.importorskip("gensim")
    found = train_skip_gram(TAGS * 20, width=16, min_count=1, epochs=500)
    assert sorted(found.words) == sorted(SEA + TOWN) and found.width == 16
    _, rows = found.nearest(found.vectors, 4)
    for word, own in zip(found.words, rows.tolist(), strict=True):
        assert {found.words[row] for row in own} == set(SEA if word in SEA else TOWN)


def test_the_same_call_gives_the_same_vectors() -> None:
    pytest.importorskip("gensim")
    first, second = (train_skip_gram(TAGS, width=8, min_count=2, epochs=2, seed=3) for _ in "ab")
    assert first.words == second.words and torch.equal(first.vectors, second.vectors)


def test_rare_tags_are_left_out() -> None:
    pytest.importorskip("gensim")
    assert "once" not in train_skip_gram([*TAGS, ["once", "sea"]], min_count=2, epochs=1).words
    with pytest.raises(UserError, match="no tag is on 100 images or more .'min_count'., of 8"):
        train_skip_gram(TAGS, min_count=100)
    with pytest.raises(UserError, match="no tag is on 5 images or more"):
        train_skip_gram([])


def test_without_gensim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(UserError, match=r"pip install 'dcgan-fast\[tags\]'; or give vectors"):
        train_skip_gram(TAGS)
