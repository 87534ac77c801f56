"""Word vectors learned from the tags themselves, as the CGAN paper did: skip-gram, by gensim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import UserError
from .words import WordVectors

__all__ = ["train_skip_gram"]

WIDTH, MIN_COUNT, EPOCHS = 200, 5, 50


def train_skip_gram(
    tags: Iterable[Sequence[str]],
    *,
    width: int = WIDTH,
    min_count: int = MIN_COUNT,
    epochs: int = EPOCHS,
    seed: int = 0,
) -> WordVectors:
    """Learn a vector for each tag from the tags it stands beside.

    The tags of an image are one sentence, of which every tag is every other's context: their order
    means nothing. The same call gives the same vectors: one thread, words in the order of their
    counts, then of the alphabet.

    Args:
        tags: of each image.
        width: of the vectors; 200 as the paper's.
        min_count: tags on fewer images are left out. The paper had 200, for all of Flickr's.
        epochs: passes over the images.
        seed: of the starting vectors and the negative samples.

    Raises:
        UserError: the package gensim is missing, or no tag is common enough.

    Source: Mirza & Osindero 2014, section 4.2; Mikolov et al. 2013.
    """
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise UserError(
            "word vectors are learned from the tags with the extra 'tags': pip install "
            "'dcgan-fast[tags]'; or give vectors with --words"
        ) from error
    sentences = [sorted(set(each)) for each in tags]
    longest = max(map(len, sentences), default=0)
    model = Word2Vec(
        vector_size=width,
        window=max(1, longest),
        shrink_windows=False,
        min_count=min_count,
        sg=1,
        negative=10,
        sample=1e-3,
        seed=seed,
        workers=1,
        epochs=epochs,
        sorted_vocab=1,
    )
    model.build_vocab(sentences)
    words: list[str] = list(model.wv.index_to_key)
    if not words:
        raise UserError(
            f"train_skip_gram(): no tag is on {min_count} images or more ('min_count'), of "
            f"{len(sentences):,} images"
        )
    model.train(sentences, total_examples=len(sentences), epochs=epochs)
    return WordVectors(words, np.array(model.wv.vectors))
