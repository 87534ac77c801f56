"""Nearest neighbours by Euclidean distance, in parts, and the figure of the DCGAN authors' MNIST script."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from ..errors import UserError

__all__ = ["NearestSoFar", "nearest_neighbour_accuracy"]

_ROWS = 1024  # of the data whose neighbours are sought at once, so that a bar moves


class NearestSoFar:
    """The ``k`` nearest of candidates that come in parts, to each row of ``data``.

    Memory is that of ``data`` and of one part, so candidates may be many more than fit. The search itself is
    scikit-learn's, exact, with squares summed in float64.

    Args:
        data: ``(N, ...)``, finite numbers; rows are flattened, and computed with in float32 unless they are float64.
        k: neighbours of each row, at least 1.

    Attributes:
        distances: float64 ``(N, j)``, nearest first, with j the lesser of k and the candidates seen.
        indices:   int64 ``(N, j)``, their numbers, counted from 0 over all parts; of equally near ones the first.

    Raises:
        UserError: ``data`` is no such table, ``k`` is less than 1.
    """

    def __init__(self, data: ArrayLike, k: int = 1) -> None:
        self._data = _rows("NearestSoFar", "data", data)
        if k < 1:
            raise UserError(f"NearestSoFar(): 'k' must be at least 1, got {k}")
        self._k = k
        self._seen = 0
        self.distances: NDArray[np.float64] = np.empty((len(self._data), 0))
        self.indices: NDArray[np.int64] = np.empty((len(self._data), 0), np.int64)

    def add(self, candidates: ArrayLike, *, progress: bool = False) -> None:
        """Take more candidates, ``(M, ...)`` of as many values a row.

        Raises:
            UserError: rows are of another length, or hold NaN or infinity.
        """
        from sklearn.neighbors import NearestNeighbors  # most of a second to import

        rows = _rows("NearestSoFar.add", "candidates", candidates)
        if rows.shape[1] != self._data.shape[1]:
            raise UserError(
                f"NearestSoFar.add(): 'candidates' must have {self._data.shape[1]} values a row, as the "
                f"data, got {rows.shape[1]}"
            )
        if len(rows) == 0:
            return
        rows = rows.astype(self._data.dtype, copy=False)
        index = NearestNeighbors(n_neighbors=min(self._k, len(rows)), algorithm="brute").fit(rows)
        found = []
        with tqdm(
            total=len(self._data), desc="neighbours", unit=" rows", disable=not progress
        ) as bar:
            for start in range(0, len(self._data), _ROWS):
                part = self._data[start : start + _ROWS]
                found.append(index.kneighbors(part))
                bar.update(len(part))
        distances = np.concatenate([self.distances, *_stacked(found, 0)], 1)
        indices = np.concatenate(
            [self.indices, *(each + self._seen for each in _stacked(found, 1))], 1
        )
        order = np.argsort(distances, axis=1, kind="stable")[:, : self._k]
        self.distances = np.take_along_axis(distances, order, 1)
        self.indices = np.take_along_axis(indices, order, 1)
        self._seen += len(rows)


def _stacked(found: list[tuple[Any, Any]], which: int) -> list[np.ndarray]:
    return [np.concatenate([each[which] for each in found])] if found else []


def _rows(owner: str, name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim < 2 or array.dtype.kind not in "fiu":
        raise UserError(
            f"{owner}(): {name!r} must be numbers (rows, ...), got {array.dtype} {array.shape}"
        )
    wide = np.float64 if array.dtype == np.float64 else np.float32
    rows = np.ascontiguousarray(array.reshape(len(array), math.prod(array.shape[1:])), dtype=wide)
    if not np.isfinite(rows).all():
        raise UserError(f"{owner}(): {name!r} must be finite")
    return rows


def nearest_neighbour_accuracy(
    samples: ArrayLike,
    sample_labels: ArrayLike,
    data: ArrayLike,
    labels: ArrayLike,
    *,
    progress: bool = False,
) -> float:
    """How many of ``data`` have the label of the nearest sample: generated images as a training set for real ones.

    The DCGAN authors report it for their conditional generator of MNIST at 1,000, 10,000 and 100,000 samples
    (Newmu/dcgan_code, ``mnist/train_cond_dcgan.py``).

    Args:
        samples: ``(M, ...)`` with M >= 1, of as many values a row as ``data``; distances are Euclidean.
        sample_labels: integers ``(M,)``.
        data: ``(N, ...)`` with N >= 1.
        labels: integers ``(N,)``.
        progress: whether to show a bar.

    Returns:
        From 0 to 1.

    Raises:
        UserError: a shape is wrong, a value is NaN or infinite, or there are no rows.
    """
    known = _labels("sample_labels", sample_labels, np.shape(samples))
    truth = _labels("labels", labels, np.shape(data))
    nearest = NearestSoFar(data)
    nearest.add(samples, progress=progress)
    return float((known[nearest.indices[:, 0]] == truth).mean())


def _labels(name: str, labels: ArrayLike, of: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.shape != of[:1] or array.size == 0:
        raise UserError(
            f"nearest_neighbour_accuracy(): {name!r} must be integers ({of[0] if of else 0},), one for "
            f"each row, at least one; got {array.dtype} {array.shape}"
        )
    return array
