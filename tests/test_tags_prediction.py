from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dcgan_fast.errors import UserError
from dcgan_fast.tags import TagGenerator, Tagger, WordVectors
from dcgan_fast.tags.prediction import FeatureScaling, vote


def tagger(words: int = 40, features: int = 7, width: int = 5) -> Tagger:
    generator = TagGenerator(features, width, 4, noise_units=6, feature_units=8)
    vectors = WordVectors([f"w{n}" for n in range(words)], torch.randn(words, width))
    scaling = FeatureScaling(torch.randn(features), torch.rand(features) + 0.5)
    return Tagger(generator, vectors, scaling)


def vote_slowly(vectors: Tensor, words: WordVectors, nearest: int, top: int) -> list[list[int]]:
    """The paper's rule in loops: 20 nearest of each sample, then the commonest."""
    lists = []
    for own in vectors:
        counts: Counter[int] = Counter()
        sums: Counter[int] = Counter()
        for vector in own:
            cosines = torch.nn.functional.cosine_similarity(vector[None], words.vectors)
            for row in sorted(range(len(words)), key=lambda r: -cosines[r])[:nearest]:
                counts[row] += 1
                sums[row] += float(cosines[row])
        lists.append(sorted(counts, key=lambda row: (-counts[row], -sums[row]))[:top])
    return lists


def test_vote_is_the_papers_rule() -> None:
    words = WordVectors([f"w{n}" for n in range(30)], torch.randn(30, 4))
    vectors = torch.randn(6, 25, 4)
    lists, votes = vote(vectors, words, nearest=7, top=5)
    assert lists == vote_slowly(vectors, words, 7, 5)
    assert all(own == sorted(own, reverse=True) and own[0] <= 25 for own in votes)


def test_fewer_words_than_are_asked_for() -> None:
    words = WordVectors(["a", "b", "c"], torch.eye(3))
    lists, votes = vote(torch.tensor([[[1.0, 0.5, 0.1]]]), words, nearest=3, top=10)
    assert lists == [[0, 1, 2]] and votes == [[1, 1, 1]]


def test_predict_generates_and_votes() -> None:
    found = tagger()
    features = torch.randn(3, 7)
    lists, votes = found.predict(features, samples=20, nearest=4, top=3, seed=5)
    latent = torch.randn(20, 4, generator=torch.Generator().manual_seed(5))
    found.generator.eval()
    scaled = (features - found.scaling.mean) / found.scaling.deviation * 6 / 7**0.5
    with torch.no_grad():
        vectors = torch.stack([found.generator(latent, own.expand(20, -1)) for own in scaled])
    assert lists == vote_slowly(vectors, found.words, 4, 3)
    assert all(sum(own) <= 80 for own in votes)


def test_an_images_words_do_not_depend_on_the_others() -> None:
    found = tagger()
    features = torch.randn(150, 7).numpy()
    together, _ = found.predict(features)
    assert [
        own for some in np.array_split(features, 7) for own in found.predict(some)[0]
    ] == together
    dropped, _ = found.predict(features, dropout=True)
    assert dropped != together
    assert found.predict(features[100:], dropout=True)[0] == dropped[100:]
    assert found.predict(features[:2], seed=1)[0] != together[:2]
    assert found.predict(features[:0]) == ([], [])


def test_predict_leaves_mode_and_random_state_alone() -> None:
    found = tagger()
    found.generator.train()
    before = torch.get_rng_state()
    found.predict(torch.randn(2, 7, generator=torch.Generator().manual_seed(0)))
    assert found.generator.training and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("features", "settings", "message"),
    [
        (torch.zeros(2, 6), {}, r"'features' must be \(N, 7\), as in training, got \(2, 6\)"),
        (torch.full((2, 7), float("nan")), {}, "'features' hold NaN or infinity in row 0"),
        (torch.zeros(2, 7), {"samples": 0}, "'samples' must be an integer of at least 1"),
        (torch.zeros(2, 7), {"nearest": 41}, "'nearest' must be an integer from 1 to 40, got 41"),
        (torch.zeros(2, 7), {"top": 0}, "'top' must be an integer of at least 1"),
    ],
)
def test_wrong_arguments(features: Tensor, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tagger().predict(features, **settings)


def test_words_of_another_width() -> None:
    with pytest.raises(UserError, match="makes vectors of 5 numbers, 'words' has 2"):
        Tagger(tagger().generator, WordVectors(["a"], torch.ones(1, 2)), tagger().scaling)


def test_scaling() -> None:
    features = torch.randn(50, 3) * torch.tensor([1.0, 100.0, 0.0]) + torch.tensor([0.0, 9.0, 1e4])
    scaled = FeatureScaling.of(features)(features)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    wanted = torch.tensor([1.0, 1.0, 0.0]) * 6 / 3**0.5
    torch.testing.assert_close(scaled.std(0, unbiased=False), wanted, atol=1e-5, rtol=0)


def test_scaled_features_have_one_length_whatever_their_number() -> None:
    for width in (10, 1000):
        features = torch.randn(200, width) * 7 + 3
        lengths = FeatureScaling.of(features)(features).norm(dim=1)
        assert lengths.square().mean().sqrt() == pytest.approx(6, rel=1e-4)


def test_scaling_of_one_image() -> None:
    assert torch.equal(FeatureScaling.of(torch.ones(1, 2))(torch.ones(1, 2)), torch.zeros(1, 2))


def test_what_is_no_checkpoint_of_tags(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        Tagger.load(tmp_path)
    torch.save({"format": "dcgan_fast", "version": 1, "config": {}}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="is not a checkpoint of dcgan-fast tags train"):
        Tagger.load(tmp_path / "c.pt")
    content = {"format": "dcgan_fast", "version": 1, "config": {}, "preset": "cgan-multimodal"}
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(UserError, match="is a damaged checkpoint: KeyError"):
        Tagger.load(tmp_path / "c.pt")
