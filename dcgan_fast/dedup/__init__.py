"""Removing near-duplicates by binary codes: the DCGAN paper's way, in linear time.

Activations of an autoencoder are thresholded to bits (:func:`pack_codes`); images whose code was seen before go
(:func:`first_occurrence`; :class:`DedupIndex` for data sets larger than memory).
"""

from __future__ import annotations

from .codes import first_occurrence, first_of_each, near_duplicates, pack_codes
from .index import DedupIndex

__all__ = ["DedupIndex", "first_occurrence", "first_of_each", "near_duplicates", "pack_codes"]

OPS = ("pack_codes", "first_occurrence", "first_of_each", "near_duplicates")
"""Those with kernels of their own, for :func:`dcgan_fast.build_info`."""
