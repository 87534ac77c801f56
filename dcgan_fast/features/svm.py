"""Linear L2-SVMs of all classes at once: a scikit-learn estimator."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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

from .descent import Descent
from .newton import Newton, sample_size
from .svm_problem import Gram, Problem, Solver

__all__ = ["LinearSVM"]

_MOST_COLUMNS = 64  # that are solved together
_FEW_ROWS = 1024  # whose Gram matrix is made, whatever the features
_MOST_ROWS = 8192  # and where there are half as many features: 256 MB
_PART = 1 << 24  # elements of rows that are looked at, or widened, at once


class LinearSVM(ClassifierMixin, BaseEstimator):
    """One linear SVM a class against the rest: squared hinge, L2, what scikit-learn's ``LinearSVC`` minimises.

    Of each class ``(|w|^2 + b^2) / 2 + C * sum over rows of max(0, 1 - y (x w + b))^2``, to a duality gap of ``tol`` of
    that: its value is within ``tol`` of the least there is. LinearSVC's defaults are the same problem; how far it is
    from the minimum it does not say.

    Of few rows (8,192 at most, and twice the features, or 1,024) the Gram matrix is made, in float32, and dual
    coordinates descend on it for all classes at once: ``n_samples^2 * n_features`` operations, half of them by
    symmetry, take most of the time. Others are solved by Newton's method on the weights, preconditioned by a sample of
    the rows: some 100 readings of the data of ``4 * n_samples * n_features * n_classes`` operations each, fewer for
    small C. Memory beside the data: ``n_samples^2`` floats, twice where Newton's method has to go on, or an eighth of
    the data's elements; and n_samples and n_features times the classes.

    Args:
        C: weight of the losses, above 0.
        tol: the duality gap that ends the fit, as a share of the objective, of each class.
        max_iter: epochs and steps at most; a ConvergenceWarning where they do not suffice.
        fit_intercept: whether to have b.
        intercept_scaling: b is the weight of a feature of this value, times it; larger ones weaken its regularisation.
        warm_start: begin ``fit`` at the last one's result, for a path of C on the same rows; with others anew. Keeps
            the Gram matrix between fits.
        random_state: of the order and the sample of rows: an integer, a numpy RandomState or None.
        verbose: whether to print a line an epoch or step.

    Attributes:
        classes_: ``(n_classes,)``.
        coef_: float32 ``(n_classes, n_features)``, of two classes ``(1, n_features)``: of ``classes_[1]``.
        intercept_: float32 ``(n_classes,)`` or ``(1,)``.
        objective_, dual_gap_: float64, of each row of ``coef_``: the objective, and by how much at most it is above the
            least. In float64 sums of float32 products.
        n_iter_: epochs and steps. ``n_features_in_``: features of a row.

    float16 and float32 rows are read as they are, also from a memory map; others become float32. Results are the same
    for the same ``random_state`` and number of threads.

    Sources: Hsieh et al. 2008 (coordinate descent of the dual, LIBLINEAR's), Keerthi, DeCoste 2005 (Newton's method).
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
                or holds a single class; or numbers so large that float32 cannot hold their products.
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
        seed = random.randint(2**31)
        scaling = float(self.intercept_scaling) if self.fit_intercept else 0.0
        state = self._last_result(classes, targets, rows)
        if state is None:
            state = _State(targets, (scaling, _fingerprint(rows) if self.warm_start else ""))
        make = _solvers_for(rows, scaling, seed)
        found, steps, weights = [], [], []
        for first in range(0, columns, _MOST_COLUMNS):
            of_part = torch.from_numpy(positive - first).long().contiguous()
            problem = Problem(rows, of_part, min(_MOST_COLUMNS, columns - first), scaling)
            if first not in state.solvers:
                state.solvers[first] = make(problem)
            solver = state.solvers[first]
            measured, taken = solver.solve(
                problem, float(self.C), self.tol, self.max_iter, self.verbose
            )
            found.append(measured)
            steps.append(taken)
            weights.append(solver.weights)
        both = torch.cat(weights)
        self.classes_ = classes
        if self.warm_start:
            self._state = state
        self.n_iter_ = max(steps)
        self.coef_ = both[:, :-1].contiguous().numpy()
        self.intercept_ = (scaling * both[:, -1]).numpy()
        self.objective_ = torch.cat([part.objective for part in found]).numpy()
        self.dual_gap_ = torch.cat([part.gap for part in found]).numpy()
        if (self.dual_gap_ > self.tol * self.objective_).any():
            worst = (self.dual_gap_ / self.objective_).max()
            more = self.n_iter_ >= self.max_iter
            cure = (
                "raise max_iter" if more else "float32 tells no more: scale the features or lower C"
            )
            warnings.warn(
                f"LinearSVM did not converge in {self.n_iter_} epochs and steps: the objective may be {worst:.2%} "
                f"above its least value; {cure}",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # a copy
        state.pop("_state", None)  # holds the rows
        return state

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
        last = self.__dict__.pop("_state", None)  # a broken fit leaves none
        if not self.warm_start or last is None:
            return None
        scaling = float(self.intercept_scaling) if self.fit_intercept else 0.0
        same = (
            np.array_equal(classes, self.classes_)
            and np.array_equal(targets, last.targets)
            and last.about == (scaling, _fingerprint(rows))
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


@dataclass
class _State:
    """What a warm start begins at: one solver for up to 64 columns."""

    targets: NDArray[Any]
    about: tuple[Any, ...]
    solvers: dict[int, Solver] = field(default_factory=dict)


def _solvers_for(rows: Tensor, scaling: float, seed: int) -> Callable[[Problem], Solver]:
    """Of few rows dual coordinates descend on their Gram matrix; else Newton's method has that of a sample."""
    size, features = rows.shape
    if size <= max(_FEW_ROWS, min(_MOST_ROWS, 2 * features)):
        gram = Gram(rows, torch.arange(size), scaling)
        return lambda problem: Descent(problem, gram, seed)
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(size, generator=generator)[: sample_size(size, features)].contiguous()
    of_sample = Gram(rows, sample, scaling)
    return lambda problem: Newton(of_sample, problem.zeros())


def _fingerprint(rows: Tensor) -> str:
    """Of all rows: whether a table is the one that was seen last."""
    vector = torch.cos(torch.arange(rows.size(1), dtype=torch.float32))[None]
    digest = hashlib.blake2b(repr((tuple(rows.shape), rows.dtype)).encode())
    digest.update(torch.ops.dcgan_fast._row_products(rows, None, vector).numpy().tobytes())
    return digest.hexdigest()


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
