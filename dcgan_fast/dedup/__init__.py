"""Removing near-duplicates by binary codes: the DCGAN paper's way, in linear time.

Activations of an autoencoder are thresholded to bits (:func:`pack_codes`); images whose code was seen before go
(:func:`first_occurrence`).
"""

from __future__ import annotations

from .codes import first_occurrence, first_of_each, pack_codes

__all__ = ["first_occurrence", "first_of_each", "pack_codes"]

OPS = ("pack_codes", "first_occurrence", "first_of_each")
"""Those with kernels of their own, for :func:`dcgan_fast.build_info`."""

CUDA_OPS = ("pack_codes", "first_occurrence", "first_of_each")
"""Those that have kernels for CUDA."""
