"""Words for images, as the CGAN paper chose them: of many generated vectors the commonest neighbours."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from ..training.checkpoint import load_checkpoint, load_state
from .checks import whole
from .nets import TagGenerator
from .words import WordVectors

__all__ = ["LENGTH", "NEAREST", "PRESET", "SAMPLES", "TOP", "FeatureScaling", "Tagger", "vote"]

PRESET = "cgan-multimodal"
SAMPLES, NEAREST, TOP = 100, 20, 10  # the paper's
LENGTH = 6.0  # of what the networks see, features and word vectors; the paper is silent
_IMAGES = 64  # whose vectors are held at once


@dataclass(frozen=True, eq=False)
class FeatureScaling:
    """What the networks see of features: minus ``mean``, by ``deviation``, both float32 (width,), and
    all by what gives them the length :data:`LENGTH` on average.

    With every number at deviation 1 the length would be sqrt(width), 64 of AlexNet's, and the paper's
    learning rate of 0.1 would be too much for the layers over them.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> FeatureScaling:
        """Each feature to mean 0 and the same deviation; one that is the same for all images to 0."""
        wide = features.double()
        deviation = wide.std(0, unbiased=False)
        deviation[deviation < 1e-6 * (1 + wide.mean(0).abs())] = 1.0
        return cls(wide.mean(0).float(), deviation.float())

    def __call__(self, features: Tensor) -> Tensor:
        mean, deviation = self.mean.to(features.device), self.deviation.to(features.device)
        return (features - mean) / deviation * (LENGTH * features.shape[1] ** -0.5)


def vote(
    vectors: Tensor, words: WordVectors, *, nearest: int = NEAREST, top: int = TOP
) -> tuple[list[list[int]], list[list[int]]]:
    """The ``top`` words that are most often among the ``nearest`` of an image's generated vectors.

    Equal counts go to the word with the larger sum of cosines.

    Args:
        vectors: float (N, samples, width).
        words: among which.
        nearest: words that each vector votes for: 1 to the number of words.
        top: length of the lists, which are shorter where fewer words got a vote.

    Returns:
        For each image the words' rows, and the votes they got.
    """
    images, samples = vectors.shape[:2]
    cosines, rows = words.nearest(vectors.flatten(0, 1), nearest)
    lists, counts = [], []
    for its_cosines, its_rows in zip(
        cosines.view(images, samples * nearest).cpu().numpy(),
        rows.view(images, samples * nearest).cpu().numpy(),
        strict=True,
    ):
        found, inverse, votes = np.unique(its_rows, return_inverse=True, return_counts=True)
        sums = np.bincount(inverse, weights=its_cosines)
        order = np.lexsort((-sums, -votes))[:top]
        lists.append(found[order].tolist())
        counts.append(votes[order].tolist())
    return lists, counts


class Tagger:
    """A trained generator and all that it takes to name words for image features.

    Args:
        generator: trained on vectors as :attr:`words` has them, but for their length. It may be in any
            mode.
        words: to choose from.
        scaling: of the features.

    Attributes:
        generator, words, scaling: the same.
        about: of a loaded one, ``train_config``, and under ``extractor`` the SHA-256 of the file that
            made its features; else empty.
    """

    def __init__(
        self, generator: TagGenerator, words: WordVectors, scaling: FeatureScaling
    ) -> None:
        if generator.word_width != words.width:
            raise UserError(
                f"Tagger(): the generator makes vectors of {generator.word_width} numbers, "
                f"'words' has {words.width}"
            )
        self.generator, self.words, self.scaling = generator, words, scaling
        self.about: dict[str, Any] = {}

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, best: bool = True) -> Tagger:
        """Read the checkpoint of a training run, or the newest of a run folder.

        ``best``: the generator that did best on the validation images, if there were any; otherwise
        the last.

        Raises:
            UserError: no such file, or not a checkpoint of ``dcgan-fast tags train``.
        """
        content = load_checkpoint(path)
        if content.get("preset") != PRESET:
            raise UserError(f"{path} is not a checkpoint of dcgan-fast tags train")
        try:
            generator = TagGenerator(**content["config"]["generator"])
            words = WordVectors(content["words"]["words"], content["words"]["vectors"])
            scaling = FeatureScaling(content["scaling"]["mean"], content["scaling"]["deviation"])
            about = {**content["data"], "train_config": dict(content["train_config"])}
            weights = content["best"]["generator"] if best and content["best"] else None
            weights = weights or content["generator"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is a damaged checkpoint: {error!r}") from error
        load_state(generator, weights, source=path)
        tagger = cls(generator, words, scaling)
        tagger.about = about
        return tagger

    @torch.no_grad()
    def predict(
        self,
        features: Tensor | np.ndarray,
        *,
        samples: int = SAMPLES,
        nearest: int = NEAREST,
        top: int = TOP,
        seed: int = 0,
        dropout: bool = False,
        progress: bool = False,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The words for each image, as rows of :attr:`words`, and the votes each got.

        All images get the same ``samples`` vectors of noise, drawn from ``seed``: an image's words
        do not depend on what stands beside it.

        Args:
            features: float (N, width), as the extractor gives them.
            samples: vectors generated for an image.
            nearest, top: as for :func:`vote`.
            seed: of the noise.
            dropout: leave units out as in training, other ones for each of the ``samples``. What is
                drawn then is what the discriminator saw; without it vectors lie closer together.
            progress: whether to show a progress bar.

        Raises:
            UserError: a wrong argument, or features that are of another width or not finite.
        """
        samples = whole("Tagger.predict", "samples", samples, 1)
        nearest = whole("Tagger.predict", "nearest", nearest, 1, len(self.words))
        top = whole("Tagger.predict", "top", top, 1)
        given = torch.as_tensor(features, dtype=torch.float32)
        if given.dim() != 2 or given.shape[1] != self.generator.feature_width:
            raise UserError(
                f"Tagger.predict(): 'features' must be (N, {self.generator.feature_width}), as in "
                f"training, got {tuple(given.shape)}"
            )
        if not given.isfinite().all():
            row = int((~given.isfinite().all(1)).nonzero()[0])
            raise UserError(f"Tagger.predict(): 'features' hold NaN or infinity in row {row}")
        latent = self.generator.sample_latent(
            samples, generator=torch.Generator().manual_seed(seed)
        )
        lists: list[list[int]] = []
        votes: list[list[int]] = []
        with tqdm(total=len(given), desc="tagging", unit=" images", disable=not progress) as bar:
            for some in given.to(latent.device).split(_IMAGES):
                masks = torch.Generator().manual_seed(seed) if dropout else None
                vectors = self.generator.sample(latent, self.scaling(some), dropout=masks)
                its_lists, its_votes = vote(vectors, self.words, nearest=nearest, top=top)
                lists += its_lists
                votes += its_votes
                bar.update(len(some))
        return lists, votes
