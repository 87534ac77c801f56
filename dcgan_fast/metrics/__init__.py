"""Figures of merit of generative models.

:func:`parzen_log_likelihood` and :class:`ParzenWindow`: the log-likelihood of held-out data under a Gaussian Parzen
window on samples, as the adversarial nets' papers report it; :func:`search_sigma` chooses its width as they did.
:func:`nearest_neighbour_accuracy`: samples with labels as the training set of a nearest neighbour classifier.
:func:`frechet_distance` and :func:`kernel_distance`: between features of samples and of real images, of any extractor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import reference
from .distances import (
    FeatureStatistics,
    KernelDistance,
    RealFeatures,
    extract_features,
    frechet_distance,
    kernel_distance,
    real_features,
)
from .neighbours import NearestSoFar, nearest_neighbour_accuracy
from .parzen import SIGMAS, Estimate, estimate, parzen_log_likelihood, search_sigma

if TYPE_CHECKING:
    from .window import ParzenWindow

__all__ = [
    "SIGMAS",
    "Estimate",
    "FeatureStatistics",
    "KernelDistance",
    "NearestSoFar",
    "ParzenWindow",
    "RealFeatures",
    "estimate",
    "extract_features",
    "frechet_distance",
    "kernel_distance",
    "nearest_neighbour_accuracy",
    "parzen_log_likelihood",
    "real_features",
    "reference",
    "search_sigma",
]

OPS = ("parzen_log_likelihood",)
"""Those with kernels of their own, for :func:`dcgan_fast.build_info`."""


def __getattr__(name: str) -> Any:
    if name == "ParzenWindow":  # scikit-learn takes most of a second to import, needed once
        from .window import ParzenWindow

        return ParzenWindow
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
