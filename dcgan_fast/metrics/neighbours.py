"""Nearest neighbours by Euclidean distance, in parts, and the figure of the DCGAN authors' MNIST script."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError

__all__ = ["NearestSoFar", "nearest_neighbour_accuracy"]

_ROWS, _CANDIDATES = 1024, 16384  # whose products are made at once: 64 MB
_FEW = 128  # candidates that are left to a row are measured one by one, more by scikit-learn
_GATHERED = 1 << 20  # values of them that are subtracted at once: 8 MB
_UNIT = 2.0**-24  # of float32


class NearestSoFar:
    """The ``k`` nearest of candidates that come in parts, to each row of ``data``.

    Memory is that of ``data`` and of one part, so candidates may be many more than fit. Exact, with squares summed in
    float64: of float32 rows only where a product in float32, whose error is bounded, does not tell. scikit-learn's
    search, whose products are of float64, has the others, and rows to which many candidates are left.

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
        self._lengths = _lengths(self._data)
        self.distances: NDArray[np.float64] = np.empty((len(self._data), 0))
        self.indices: NDArray[np.int64] = np.empty((len(self._data), 0), np.int64)

    def add(self, candidates: ArrayLike, *, progress: bool = False) -> None:
        """Take more candidates, ``(M, ...)`` of as many values a row.

        Raises:
            UserError: rows are of another length, or hold NaN or infinity.
        """
        rows = _rows("NearestSoFar.add", "candidates", candidates)
        if rows.shape[1] != self._data.shape[1]:
            raise UserError(
                f"NearestSoFar.add(): 'candidates' must have {self._data.shape[1]} values a row, as the "
                f"data, got {rows.shape[1]}"
            )
        if len(rows) == 0:
            return
        rows = rows.to(self._data.dtype)
        nearest = _widened(self.distances, self.indices, min(self._k, self._seen + len(rows)))
        with tqdm(
            total=len(self._data) * len(rows),
            desc="neighbours",
            unit=" pairs",
            unit_scale=True,
            disable=not progress,
        ) as bar:
            for first in range(0, len(rows), _CANDIDATES):
                some = rows[first : first + _CANDIDATES]
                lengths = _lengths(some)
                for start in range(0, len(self._data), _ROWS):
                    part = slice(start, start + _ROWS)
                    asking, limits = self._data[part], nearest[0][part, -1]
                    possible = _possible(
                        asking, some, self._lengths[part], lengths, limits, self._k
                    )
                    distances, columns = _measured(asking, some, possible, self._k)
                    _merge(
                        nearest[0][part], nearest[1][part], distances, columns + self._seen + first
                    )
                    bar.update(len(asking) * len(some))
        self.distances, self.indices = nearest
        self._seen += len(rows)


def _lengths(rows: Tensor) -> Tensor:
    """float64 (N,)."""
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def _widened(
    distances: np.ndarray, indices: np.ndarray, width: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Copies of ``width`` columns; what is not known yet is infinitely far."""
    missing = ((0, 0), (0, width - distances.shape[1]))
    return np.pad(distances, missing, constant_values=np.inf), np.pad(indices, missing)


def _possible(
    asking: Tensor,
    some: Tensor,
    asking_lengths: Tensor,
    some_lengths: Tensor,
    limits: np.ndarray,
    k: int,
) -> Tensor:
    """Bool (rows, candidates): which may be nearer than the row's limit, or among its k nearest of these.

    A sum of d products a b in float32 has an error of at most (d + 2) u |a| |b|, in any order of summation (Higham
    2002, section 3.1), all else here one of a few u (|a|^2 + |b|^2).
    """
    a, longest = asking_lengths, some_lengths.max()
    least, most = 1e-12, 1e15  # of which the squares are ordinary float32 numbers
    in_range = least < a.maximum(longest).max() < most
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    lowered = precision not in ("none", "ieee")
    if asking.dtype != torch.float32 or lowered or not in_range:
        return torch.ones(len(asking), len(some), dtype=torch.bool)
    terms = asking.shape[1] + 2
    error = _UNIT * (2 * terms * a * longest + 16 * (a.square() + longest.square()))
    with torch.autocast("cpu", enabled=False):
        # |b|^2 - 2 a b: a square of the distance but for |a|^2
        products = torch.addmm(some_lengths.square().float(), asking, some.T, alpha=-2)
    limit = torch.from_numpy(limits).square()
    if k <= len(some) and limit.isinf().any():
        kth = products.topk(k, dim=1, largest=False, sorted=False).values.amax(1)
        limit = limit.minimum(kth.double() + a.square() + error)
    limit = limit.minimum((a + longest).square())  # none is farther, and larger numbers are coarser
    return products <= (limit + error - a.square()).float()[:, None]


def _measured(
    asking: Tensor, some: Tensor, possible: Tensor, k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distances of possible candidates, and which: a row's in its first columns; infinitely far the others.

    Of rows that have many only the k nearest.
    """
    counts = possible.sum(1)
    many = counts > _FEW
    k = min(k, len(some)) if many.any() else 0
    counts[many] = k
    nothing = np.empty((len(asking), 0))
    found = _widened(nothing, nothing.astype(np.int64), int(counts.max()))
    rows, columns = possible.logical_and(~many[:, None]).nonzero(as_tuple=True)
    places = torch.arange(len(rows)) - torch.searchsorted(rows, rows)
    found[1][rows, places] = columns
    step = max(1, _GATHERED // max(1, asking.shape[1]))
    for part in torch.arange(len(rows)).split(step):
        apart = asking[rows[part]].double().sub_(some[columns[part]])
        found[0][rows[part], places[part]] = torch.linalg.vector_norm(apart, dim=1)
    if k:
        from sklearn.neighbors import NearestNeighbors  # most of a second to import

        search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(some.numpy())
        found[0][many, :k], found[1][many, :k] = search.kneighbors(asking[many].numpy())
    return found


def _merge(
    distances: np.ndarray, indices: np.ndarray, new_distances: np.ndarray, new_indices: np.ndarray
) -> None:
    """Put new ones into their places among the nearest; of equally near ones those that are there stay first."""
    both = np.concatenate([distances, new_distances], 1)
    order = np.argsort(both, axis=1, kind="stable")[:, : distances.shape[1]]
    distances[:] = np.take_along_axis(both, order, 1)
    indices[:] = np.take_along_axis(np.concatenate([indices, new_indices], 1), order, 1)


def _rows(owner: str, name: str, values: ArrayLike) -> Tensor:
    array = np.asarray(values)
    if array.ndim < 2 or array.dtype.kind not in "fiu":
        raise UserError(
            f"{owner}(): {name!r} must be numbers (rows, ...), got {array.dtype} {array.shape}"
        )
    wide = np.float64 if array.dtype == np.float64 else np.float32
    rows = np.ascontiguousarray(array.reshape(len(array), math.prod(array.shape[1:])), dtype=wide)
    if not np.isfinite(rows).all():
        raise UserError(f"{owner}(): {name!r} must be finite")
    with warnings.catch_warnings():  # they are only read
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(rows)


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
