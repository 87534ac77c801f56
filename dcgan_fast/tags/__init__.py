"""Tags for images: the CGAN paper's multimodal experiment (section 4.2), on any images and word vectors.

1. A file of images and tags (:mod:`.table`), word vectors (:mod:`.words`; :mod:`.skip_gram` learns
   them from the tags) and image features (:mod:`.features`).
2. A generator of word vectors and a discriminator (:mod:`.nets`), trained (:mod:`.training`).
3. Words for an image: of many generated vectors the commonest neighbours (:mod:`.prediction`), and
   how good they are (:mod:`.scoring`).

::

    trainer = TagTrainer(TagConfig(tags="tags.tsv", images="photos", words="glove.txt"))
    tagger = Tagger.load(trainer.fit())
    lists, votes = tagger.predict(features.values)
"""

from __future__ import annotations

from .config import TagConfig
from .data import TagData
from .features import Extractor, Features, extract, load_extractor, load_features
from .nets import TagDiscriminator, TagGenerator
from .prediction import Tagger
from .scoring import Score, commonest, neighbours, score
from .skip_gram import train_skip_gram
from .table import join_tags, read_tags
from .training import TagTrainer
from .words import WordVectors, load_words

__all__ = [
    "Extractor",
    "Features",
    "Score",
    "TagConfig",
    "TagData",
    "TagDiscriminator",
    "TagGenerator",
    "TagTrainer",
    "Tagger",
    "WordVectors",
    "commonest",
    "extract",
    "join_tags",
    "load_extractor",
    "load_features",
    "load_words",
    "neighbours",
    "read_tags",
    "score",
    "train_skip_gram",
]
