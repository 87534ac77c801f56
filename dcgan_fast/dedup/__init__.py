"""Removing near-duplicates by binary codes: the DCGAN paper's way, in linear time.

Activations of an autoencoder are thresholded to bits (:class:`SemanticHasher`, :func:`pack_codes`); images whose code
was seen before go (:func:`first_occurrence`; :class:`DedupIndex` for data sets larger than memory).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .codes import first_occurrence, first_of_each, near_duplicates, pack_codes, pixel_codes
from .index import DedupIndex

if TYPE_CHECKING:
    from .hasher import SemanticHasher

__all__ = [
    "DedupIndex",
    "SemanticHasher",
    "first_occurrence",
    "first_of_each",
    "near_duplicates",
    "pack_codes",
    "pixel_codes",
]

OPS = ("pack_codes", "pixel_codes", "first_occurrence", "first_of_each", "near_duplicates")
"""Those with kernels of their own, for :func:`dcgan_fast.build_info`."""

CUDA_OPS = ("pack_codes", "first_occurrence", "first_of_each")
"""Those that have kernels for CUDA."""


def __getattr__(name: str) -> Any:
    if name == "SemanticHasher":  # scikit-learn takes most of a second to import, needed once
        from .hasher import SemanticHasher

        return SemanticHasher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
