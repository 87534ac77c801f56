"""Linear L2-SVMs of all classes at once, by block dual coordinate descent: a scikit-learn estimator."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import assert_all_finite, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

__all__ = ["LinearSVM"]

_ops = torch.ops.dcgan_fast
_MOST_COLUMNS = 64  # that are solved together
_SWEEPS = 30  # over a block, at most, each time that it is met
_SHARE = 5  # a block's Gram matrix may be as large as this part of its rows
_MOST_BLOCK = 8192
_SMALL = 1 << 20  # or have so many elements in all
_PART = 1 << 24  # elements of rows that are looked at, or widened, at once


class LinearSVM(ClassifierMixin, BaseEstimator):
    """One linear SVM a class against the rest: squared hinge, L2, what scikit-learn's ``LinearSVC`` minimises.

    Of each class ``(|w|^2 + b^2) / 2 + C * sum over rows of max(0, 1 - y (x w + b))^2``, to a duality gap of ``tol`` of
    that: its value is within ``tol`` of the least there is. LinearSVC's defaults are the same problem; how far it is
    from the minimum it does not say.

    Exact block dual coordinate descent: rows are shared out to blocks at random, a block's dual variables are solved on
    its Gram matrix for all classes at once, and the weights follow. An epoch takes 4 * n_samples * n_features *
    width operations, width being the classes rounded up to 16, and reads the data twice. Blocks are as large as their
    Gram matrices may take a fifth of the data's memory: up to n_features / 5 rows are a single block. Memory beside the
    data: that, and n_samples and n_features times width.

    Args:
        C: weight of the losses, above 0.
        tol: the duality gap that ends the fit, as a share of the objective, of each class.
        max_iter: epochs at most; a ConvergenceWarning where they do not suffice.
        fit_intercept: whether to have b.
        intercept_scaling: b is the weight of a feature of this value, times it; larger ones weaken its regularisation.
        warm_start: begin ``fit`` at the last one's result, for a path of C on the same rows; with others anew.
        random_state: of the order of rows: an integer, a numpy RandomState or None.
        verbose: whether to print a line an epoch.

    Attributes:
        classes_: ``(n_classes,)``.
        coef_: float32 ``(n_classes, n_features)``, of two classes ``(1, n_features)``: of ``classes_[1]``.
        intercept_: float32 ``(n_classes,)`` or ``(1,)``.
        objective_, dual_gap_: float64, of each row of ``coef_``: the objective, and by how much at most it is above the
            least. In float64 sums of float32 products.
        n_iter_: epochs. ``n_features_in_``: features of a row.

    float16 and float32 rows are read as they are, also from a memory map; others become float32. Results are the same
    for the same ``random_state`` and number of threads.

    Descent is slow where C is large for rows that nearly depend on one another (few, large, uncentred features), as
    LIBLINEAR's is: scale such features first.

    Source: Hsieh et al. 2008 (coordinate descent of the dual, LIBLINEAR's); blocks as in Yu et al. 2010.
    """

    classes_: NDArray[Any]
    coef_: NDArray[np.float32]
    intercept_: NDArray[np.float32]
    objective_: NDArray[np.float64]
    dual_gap_: NDArray[np.float64]
    n_iter_: int

    def __init__(
        self,
        C: float = 1.0,
        *,
        tol: float = 1e-3,
        max_iter: int = 200,
        fit_intercept: bool = True,
        intercept_scaling: float = 1.0,
        warm_start: bool = False,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.C = C
        self.tol = tol
        self.max_iter = max_iter
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike) -> LinearSVM:
        """Fit to rows ``X`` ``(n_samples, n_features)`` of classes ``y`` ``(n_samples,)``.

        Raises:
            ValueError: a setting breaks its rule, ``X`` is not such a table of finite numbers, ``y`` does not match it,
                or holds a single class.
        """
        self._check_settings()
        X, y = validate_data(
            self, X, y, dtype=[np.float32, np.float16], order="C", ensure_all_finite=False
        )
        _check_finite(X)
        check_classification_targets(y)
        classes, targets = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"LinearSVM(): 'y' must hold two classes at least, got one class: {classes[0]}"
            )
        columns = 1 if len(classes) == 2 else len(classes)
        positive = targets - 1 if columns == 1 else targets  # of two classes, the second
        rows, random = _as_tensor(X), check_random_state(self.random_state)
        size, draw = len(rows), random.randint(2**31)
        block = min(_MOST_BLOCK, max(64, int(rows.size(1) / _SHARE), _SMALL // size))
        start = self._last_result(classes, targets, rows)
        self.classes_ = classes
        if start is None or start.blocks != -(-size // block):
            generator = torch.Generator().manual_seed(draw)
            start = _State(targets, torch.randperm(size, generator=generator), -(-size // block))
        parts = [
            _Columns(rows, start, torch.from_numpy(positive - first), first, columns)
            for first in range(0, columns, _MOST_COLUMNS)
        ]
        start.settings = (self.fit_intercept, self.intercept_scaling)
        scaling = float(self.intercept_scaling) if self.fit_intercept else 0.0
        grams = _ops._svm_grams(rows, start.order, start.blocks, scaling)
        epochs = [
            part.solve(grams, scaling, self.C, self.tol, self.max_iter, draw, self.verbose)
            for part in parts
        ]
        self._state = start
        self.n_iter_ = max(epochs)
        self.coef_ = np.concatenate([part.coef() for part in parts])
        self.intercept_ = np.concatenate([part.intercept(scaling) for part in parts])
        self.objective_ = np.concatenate([part.objective for part in parts])
        self.dual_gap_ = np.concatenate([part.gap for part in parts])
        if (self.dual_gap_ > self.tol * self.objective_).any():
            worst = (self.dual_gap_ / self.objective_).max()
            warnings.warn(
                f"LinearSVM did not converge in {self.max_iter} epochs: the objective may be {worst:.2%} "
                "above its least value; raise max_iter",
                ConvergenceWarning,
                stacklevel=2,
            )
        if not self.warm_start:
            del self._state
        return self

    def _check_settings(self) -> None:
        rules = {
            "C": "a number above 0",
            "tol": "a number above 0",
            "max_iter": "a whole number of at least 1",
            "intercept_scaling": "a number above 0",
        }
        for name, rule in rules.items():
            value = getattr(self, name)
            whole = name == "max_iter"
            right = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
            if not (right and 0 < value < np.inf):
                raise ValueError(f"LinearSVM(): {name!r} must be {rule}, got {value!r}")

    def _last_result(self, classes: Any, targets: Any, rows: Tensor) -> _State | None:
        last = getattr(self, "_state", None) if self.warm_start else None
        same = (
            last is not None
            and np.array_equal(classes, self.classes_)
            and np.array_equal(targets, last.targets)
            and self.coef_.shape[1] == rows.size(1)
            and last.settings == (self.fit_intercept, self.intercept_scaling)
        )
        return last if same else None

    def decision_function(self, X: ArrayLike) -> NDArray[np.float32]:
        """Distances from the planes, float32 ``(n_samples, n_classes)``; of two classes ``(n_samples,)``.

        Raises:
            ValueError: ``X`` is no table of finite numbers with as many features as were fitted.
            NotFittedError: before ``fit``.
        """
        check_is_fitted(self)
        X = validate_data(
            self, X, dtype=[np.float32, np.float16], reset=False, ensure_all_finite=False
        )
        _check_finite(X)
        parts = [
            part.astype(np.float32, copy=False) @ self.coef_.T + self.intercept_
            for part in _parts(X)
        ]
        scores = np.concatenate(parts)
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likeliest class of each row, ``(n_samples,)``. Raises as :meth:`decision_function`."""
        scores = self.decision_function(X)
        best = (scores > 0).astype(np.int64) if scores.ndim == 1 else scores.argmax(1)
        return self.classes_[best]


class _State:
    """What a warm start begins at."""

    settings: tuple[Any, ...]

    def __init__(self, targets: NDArray[Any], order: Tensor, blocks: int) -> None:
        self.targets = targets
        self.order = order
        self.blocks = blocks
        self.columns: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # dual, weights, intercept


class _Columns:
    """Up to 64 of the problems, solved together."""

    objective: NDArray[np.float64]
    gap: NDArray[np.float64]

    def __init__(
        self, rows: Tensor, state: _State, targets: Tensor, first: int, columns: int
    ) -> None:
        self.rows, self.order, self.blocks = rows, state.order, state.blocks
        self.columns = min(_MOST_COLUMNS, columns - first)
        self.targets = targets.long().contiguous()
        width = -(-self.columns // 16) * 16
        size, features = rows.shape
        if first not in state.columns:
            shapes = ((size, width), (features, width), (width,))
            state.columns[first] = tuple(torch.zeros(shape) for shape in shapes)  # type: ignore[assignment]
        self.dual, self.weights, self.b = state.columns[first]

    def solve(
        self,
        grams: Tensor,
        scaling: float,
        C: float,
        tol: float,
        most: int,
        seed: int,
        verbose: bool,
    ) -> int:
        """Descends until the duality gap is small; returns the epochs that it took."""
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(1, most + 1):
            blocks = torch.randperm(self.blocks, generator=generator)
            found = _ops._svm_epoch_(
                *(self.rows, self.order, self.targets, self.columns, grams, blocks),
                *(self.dual, self.weights, self.b, scaling, C, _SWEEPS, tol / 10, seed + epoch),
            )
            # The losses were met on the way, with weights that have moved since: when they say that it is done, it is
            # worth half an epoch to know. A single block is solved at once.
            last = epoch == most
            if self.blocks == 1 or last or self._measure(found, C) <= tol:
                found = _ops._svm_losses(
                    *(self.rows, self.order, self.targets, self.columns),
                    *(self.weights, self.b, scaling, self.blocks),
                )
                done = self._measure(found, C) <= tol
            else:
                done = False
            if verbose:
                print(
                    f"epoch {epoch}: objective {self.objective.sum():.6g}, gap {self.gap.sum():.3g}"
                )
            if done or last:
                break
        return epoch

    def _measure(self, losses: Tensor, C: float) -> float:
        """Sets objective and gap; returns the largest gap as a share of its objective."""
        weights = [_sum_of_squares(self.weights), self.b.double().square()]
        half_squares = sum(weights) / 2
        value = half_squares + C * losses
        dual = self.dual.sum(0, dtype=torch.float64) - _sum_of_squares(self.dual) / (4 * C)
        kept = slice(self.columns)
        self.objective = value[kept].numpy()
        self.gap = (value - (dual - half_squares))[kept].numpy()
        return float((self.gap / self.objective).max())

    def coef(self) -> NDArray[np.float32]:
        return self.weights[:, : self.columns].T.contiguous().numpy()

    def intercept(self, scaling: float) -> NDArray[np.float32]:
        return (scaling * self.b[: self.columns]).numpy()


def _sum_of_squares(table: Tensor) -> Tensor:
    """Of each column, in float64."""
    return sum((part.double().square().sum(0) for part in table.split(4096)), torch.zeros(()))


def _as_tensor(X: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a read-only memory map, which is only read
        return torch.from_numpy(np.ascontiguousarray(X))


def _parts(X: Any) -> Iterator[NDArray[Any]]:
    rows = max(1, _PART // X.shape[1])
    return (X[first : first + rows] for first in range(0, len(X), rows))


def _check_finite(X: Any) -> None:
    """In parts: scikit-learn's own check of float16 takes a copy of the whole."""
    for part in _parts(X):
        if not np.isfinite(part).all():
            assert_all_finite(part, input_name="X")
