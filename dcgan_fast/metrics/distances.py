"""How far samples are from real images as distributions of features: Fréchet and kernel distances.

Both depend on what computes the features, so figures compare only under the same one. With features of the Inception
network that Heusel et al. 2017 used (arXiv 1706.08500) the Fréchet distance is called FID, the kernel distance KID
(Bińkowski et al. 2018, arXiv 1801.01401); with any others they are neither, and nothing here calls them so.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from ..data.cache import cache_directory
from ..data.dataset import Dataset
from ..errors import UserError
from ..files import atomic_write, make_folder

__all__ = [
    "FeatureStatistics",
    "KernelDistance",
    "RealFeatures",
    "extract_features",
    "frechet_distance",
    "kernel_distance",
    "real_features",
]

FeatureExtractor = Callable[[np.ndarray], ArrayLike]
"""uint8 images (N, C, S, S) to features (N, d)."""

_BATCH, _ROWS = 256, 4096
_MOST_FEATURES = 4096  # whose covariance is 128 MiB
_KERNEL_ROWS = 4096  # of real features that are kept


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean, float64 (d,), and covariance, float64 (d, d), of ``count`` rows of features."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    count: int

    @classmethod
    def of(cls, features: ArrayLike) -> FeatureStatistics:
        """Of features (N, d), N >= 2: the unbiased covariance, as of :func:`numpy.cov`.

        Raises:
            UserError: another shape, NaN or infinity, or more features than a covariance is made of here (4,096).
        """
        rows = _features("FeatureStatistics.of", "features", features, 2)
        if rows.shape[1] > _MOST_FEATURES:
            raise UserError(
                f"FeatureStatistics.of(): 'features' must have at most {_MOST_FEATURES} columns, got "
                f"{rows.shape[1]}; pool or project them"
            )
        mean = rows.mean(0, dtype=np.float64)
        products = np.zeros((rows.shape[1], rows.shape[1]))
        for start in range(0, len(rows), _ROWS):
            centred = rows[start : start + _ROWS] - mean
            products += centred.T @ centred
        return cls(mean, products / (len(rows) - 1), len(rows))


def _features(owner: str, name: str, values: ArrayLike, least: int) -> np.ndarray:
    rows = np.asarray(values)
    if rows.ndim != 2 or rows.dtype.kind not in "fiu" or len(rows) < least or rows.shape[1] == 0:
        raise UserError(
            f"{owner}(): {name!r} must be numbers (N, d) with N >= {least}, got {rows.dtype} {rows.shape}"
        )
    if not np.isfinite(rows).all():
        raise UserError(f"{owner}(): {name!r} must be finite")
    return rows


def frechet_distance(a: ArrayLike | FeatureStatistics, b: ArrayLike | FeatureStatistics) -> float:
    """The squared Fréchet distance between Gaussians of the means and covariances of two sets of features.

    ``|m - n|^2 + tr(C + D - 2 (C D)^(1/2))``, Dowson and Landau 1982. The trace of the root is taken of the symmetric
    ``C^(1/2) D C^(1/2)``, which has the same eigenvalues as ``C D`` and none below 0 but by rounding. With few rows the
    estimate is too large, by more the more features there are: compare figures of equal numbers of rows, several times
    the features'.

    Args:
        a, b: features (N, d), N >= 2 each, or their :class:`FeatureStatistics`.

    Raises:
        UserError: a shape is wrong, the numbers of features differ, or a value is NaN or infinite.
    """
    first, second = (
        each if isinstance(each, FeatureStatistics) else FeatureStatistics.of(each)
        for each in (a, b)
    )
    if first.mean.shape != second.mean.shape:
        raise UserError(
            f"frechet_distance(): 'a' and 'b' must have as many features, got {len(first.mean)} and "
            f"{len(second.mean)}"
        )
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    products = np.linalg.eigvalsh(root @ second.covariance @ root)
    cross = float(np.sqrt(np.maximum(products, 0)).sum())
    difference = first.mean - second.mean
    traces = float(np.trace(first.covariance) + np.trace(second.covariance))
    return max(0.0, float(difference @ difference) + traces - 2 * cross)


class KernelDistance(NamedTuple):
    """The squared kernel distance, and the standard error of that mean over subsets (NaN of one subset).

    Subsets overlap, so the error of the distance is larger where they take much of the rows.
    """

    distance: float
    standard_error: float


def kernel_distance(
    a: ArrayLike,
    b: ArrayLike,
    *,
    degree: int = 3,
    gamma: float | None = None,
    constant: float = 1.0,
    subset: int = 1000,
    subsets: int = 50,
    seed: int = 0,
) -> KernelDistance:
    """The squared maximum mean discrepancy of the kernel ``(gamma x.y + constant)^degree``, by its unbiased estimate.

    The mean over subsets of both sets, as Bińkowski et al. 2018 (arXiv 1801.01401) report it. It is right in the mean
    with any number of rows, where the Fréchet distance is not, and may fall below 0.

    Args:
        a, b: features (N, d), N >= 2 each.
        degree: at least 1.
        gamma: None: 1 / d.
        constant: added to products.
        subset: rows of each subset, drawn without replacement; the lesser N where that is less.
        subsets: how many; one where ``subset`` takes all rows of both.
        seed: of the drawing.

    Raises:
        UserError: a shape or setting is wrong, the numbers of features differ, or a value is NaN or infinite.
    """
    x, y = (
        _features("kernel_distance", name, each, 2).astype(np.float64)
        for name, each in (("a", a), ("b", b))
    )
    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"kernel_distance(): 'a' and 'b' must have as many features, got {x.shape[1]} and {y.shape[1]}"
        )
    for name, value, low in (("degree", degree, 1), ("subset", subset, 2), ("subsets", subsets, 1)):
        if value < low:
            raise UserError(f"kernel_distance(): {name!r} must be at least {low}, got {value}")
    scale = 1 / x.shape[1] if gamma is None else gamma
    size = min(subset, len(x), len(y))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(1 if size == len(x) == len(y) else subsets):
        p = x[rng.choice(len(x), size, replace=False)]
        q = y[rng.choice(len(y), size, replace=False)]
        pp, qq, pq = ((scale * (s @ t.T) + constant) ** degree for s, t in ((p, p), (q, q), (p, q)))
        within = (pp.sum() - np.trace(pp) + qq.sum() - np.trace(qq)) / (size * (size - 1))
        found.append(within - 2 * pq.mean())
    error = np.std(found, ddof=1) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return KernelDistance(float(np.mean(found)), float(error))


# ------------------------------------------------------------------------------- features of images


def extract_features(
    images: np.ndarray, extractor: FeatureExtractor, *, progress: bool = False
) -> NDArray[np.float32]:
    """float32 (N, d): what ``extractor`` makes of uint8 images (N, C, S, S), in batches.

    Raises:
        UserError: there are no images, or it gives anything but finite numbers (rows, d).
    """
    if len(images) == 0:
        raise UserError("extract_features(): 'images' must hold at least one image, got none")
    parts = []
    with tqdm(total=len(images), desc="features", unit=" images", disable=not progress) as bar:
        for start in range(0, len(images), _BATCH):
            batch = np.ascontiguousarray(images[start : start + _BATCH])
            found = np.asarray(extractor(batch))
            if found.ndim != 2 or len(found) != len(batch) or not np.isfinite(found).all():
                raise UserError(
                    f"extract_features(): 'extractor' must give finite features ({len(batch)}, d), got "
                    f"{found.dtype} {found.shape}"
                )
            parts.append(found.astype(np.float32))
            bar.update(len(batch))
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class RealFeatures:
    """Of a data set: the statistics of all its features, and some of the features, float32 (rows, d), for kernels."""

    statistics: FeatureStatistics
    features: NDArray[np.float32]


def real_features(
    dataset: Dataset,
    extractor: FeatureExtractor,
    key: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> RealFeatures:
    """Features of a data set's images, computed once and found again.

    Args:
        dataset: one from :func:`dcgan_fast.data.prepare` is kept in the cache; of others nothing is.
        extractor: uint8 images (N, C, S, S) to features (N, d).
        key: stands for the extractor: with the same set and key the first result is found again.
        cache_dir: as of :func:`dcgan_fast.data.prepare`.
        progress: whether to show a bar.

    Raises:
        UserError: as of :func:`extract_features` and :class:`FeatureStatistics`, or the cache cannot be written.
    """
    path = None
    if dataset.path is not None:
        digest = hashlib.sha256(f"{dataset.path.name} {len(dataset)} {key}".encode()).hexdigest()
        folder = make_folder(
            cache_directory(None if cache_dir is None else str(cache_dir)) / "features"
        )
        path = folder / f"{digest[:32]}.npz"
        if (found := _read(path)) is not None:
            return found
    features = extract_features(dataset.images, extractor, progress=progress)
    statistics = FeatureStatistics.of(features)
    if len(features) > _KERNEL_ROWS:
        rows = np.random.default_rng(0).choice(len(features), _KERNEL_ROWS, replace=False)
        features = features[np.sort(rows)]
    if path is not None:
        with atomic_write(path) as file:
            np.savez(
                file,
                mean=statistics.mean,
                covariance=statistics.covariance,
                count=statistics.count,
                features=features,
            )
    return RealFeatures(statistics, features)


def _read(path: Path) -> RealFeatures | None:
    """None where there is none, or none that is whole: it is made again."""
    try:
        with np.load(path, allow_pickle=False) as content:
            statistics = FeatureStatistics(
                content["mean"], content["covariance"], int(content["count"])
            )
            return RealFeatures(statistics, content["features"])
    except Exception:  # zip, zlib and NumPy each raise types of their own
        return None
