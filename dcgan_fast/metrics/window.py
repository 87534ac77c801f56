"""The Parzen window as a scikit-learn estimator."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from .parzen import parzen_log_likelihood

__all__ = ["ParzenWindow"]


class ParzenWindow(DensityMixin, BaseEstimator):
    """Density of Gaussian windows on the rows of a training set.

    Args:
        sigma: the windows' width (standard deviation), above 0. scikit-learn's ``GridSearchCV`` finds it by
            cross-validation, :func:`dcgan_fast.metrics.search_sigma` on one validation set, in one pass for all.

    Attributes:
        samples_: ``(n_samples, n_features)``, the windows' centres.
        n_features_in_: features of a row.

    float32 and float64 rows stay what they are (float64 ones take PyTorch's path, slower); others become float64.
    ``sklearn.neighbors.KernelDensity(bandwidth=sigma)`` computes the same; its ``score`` is the sum, ours the mean.
    """

    samples_: NDArray[Any]

    def __init__(self, sigma: float = 0.2) -> None:
        self.sigma = sigma

    def fit(self, X: ArrayLike, y: Any = None) -> ParzenWindow:
        """Keep ``X``, ``(n_samples, n_features)``, as the windows' centres.

        Raises:
            ValueError: ``X`` is not such a table of finite numbers, or ``sigma`` is not above 0.
        """
        if not (isinstance(self.sigma, Real) and self.sigma > 0):
            raise ValueError(f"ParzenWindow(): 'sigma' must be above 0, got {self.sigma!r}")
        self.samples_ = validate_data(self, X, dtype=[np.float64, np.float32])
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Log-densities of the rows of ``X``, in nats, float64 ``(n_samples,)``.

        Raises:
            ValueError: ``X`` is no table of finite numbers with as many features as were fitted.
            NotFittedError: before ``fit``.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=self.samples_.dtype, reset=False)
        samples = torch.from_numpy(self.samples_)
        return parzen_log_likelihood(samples, torch.from_numpy(rows), self.sigma).numpy()

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """The mean of :meth:`score_samples`: what papers print."""
        return float(self.score_samples(X).mean())
