"""Pictures on disk to batches on a device, in three steps.

1. A *source* (:mod:`.find`) is anything that holds pictures: the built-in ``digits`` and ``fake``,
   idx files, CIFAR pickles, a folder or zip of images, an LSUN lmdb, a numpy array.
2. :func:`prepare` decodes, crops and resizes it once, into one memory-mapped uint8 array
   (:mod:`.cache`, :mod:`.dataset`).
3. :class:`Batches` draws shuffled float batches from that array (:mod:`.batches`).

::

    dataset = prepare("digits", image_size=32)
    for images in Batches(dataset, 128, seed=0):        # one epoch of (128, 1, 32, 32) in [-1, 1]
        ...
"""

from __future__ import annotations

from .batches import Batches, normalize
from .cache import cache_directory, prepare
from .dataset import Dataset, open_prepared

__all__ = ["Batches", "Dataset", "cache_directory", "normalize", "open_prepared", "prepare"]
