"""What the solvers of linear SVMs share: rows, classes, and how far weights are from the least objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["OVERFLOW", "Gram", "Measured", "Problem", "Solver"]

_ops = torch.ops.dcgan_fast
OVERFLOW = (
    "LinearSVM(): 'X' or 'intercept_scaling' is so large that products overflow float32: scale it"
)


@dataclass
class Problem:
    """SVMs of some classes against the rest, on the same rows; ``(|w|^2 + b^2) / 2 + C * squared hinge`` of each.

    Weights are ``(columns, features + 1)``, the last of a feature that is ``scaling`` everywhere: the intercept.

    rows: float32 or float16 ``(n, features)``
    targets: int64 ``(n,)``, the column for which a row is positive; none below 0
    columns: the SVMs
    scaling: of the intercept; 0 for none
    """

    rows: Tensor
    targets: Tensor
    columns: int
    scaling: float

    def zeros(self) -> Tensor:
        """Weights to begin at."""
        return torch.zeros(self.columns, self.rows.size(1) + 1)

    def signs(self) -> Tensor:
        """1 or -1, ``(n, columns)``."""
        positive = self.targets[:, None] == torch.arange(self.columns)
        return torch.where(positive, 1.0, -1.0)

    def scores(self, weights: Tensor, order: Tensor | None = None) -> Tensor:
        """``x w + b`` of all rows, or of those in ``order``: ``(n, columns)``."""
        products = _ops._row_products(self.rows, order, weights[:, :-1].contiguous())
        return products.add_(self.scaling * weights[:, -1])

    def sums(self, of_rows: Tensor, order: Tensor | None = None) -> Tensor:
        """Rows times their weights ``(n, columns)``, added up: ``(columns, features + 1)``."""
        return self._with_intercept(_ops._row_sums(self.rows, order, of_rows), of_rows)

    def curvature(self, weights: Tensor, of_rows: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of ``weights``, and the sums of rows times these and ``of_rows``: in one reading."""
        scores, sums = _ops._row_curvature(
            self.rows, weights[:, :-1].contiguous(), self.scaling * weights[:, -1], of_rows
        )
        return scores, self._with_intercept(sums, scores * of_rows)

    def _with_intercept(self, sums: Tensor, of_rows: Tensor) -> Tensor:
        return torch.cat([sums, self.scaling * of_rows.sum(0)[:, None]], 1)


class Gram:
    """Products of some rows with one another, the intercept's feature among them: made when they are asked for.

    On a matrix unit, of floats as they round to bfloat16 or, three times as long, ``whole``: of their two parts.
    """

    def __init__(self, rows: Tensor, order: Tensor, scaling: float) -> None:
        self.order = order
        self._rows, self._offset = rows, scaling**2
        self._found: Tensor | None = None
        self._diagonal = torch.empty(0)
        self._whole = False

    def matrix(self, whole: bool, ridge: float = 0.0) -> Tensor:
        """``(n, n)``, with ``ridge`` on its diagonal until it is asked for again.

        Raises:
            ValueError: products of such rows are beyond float32.
        """
        if self._found is None or (whole and not self._whole):
            self._found = None  # before the other is there
            self._found = _ops._svm_gram(self._rows, self.order, self._offset, whole)
            self._whole, self._diagonal = whole, self._found.diagonal().clone()
            if not torch.isfinite(self._diagonal).all():
                raise ValueError(OVERFLOW)
        torch.add(self._diagonal, ridge, out=self._found.diagonal())
        return self._found


class Measured:
    """Of each column, float64: the objective, and by how much at most it is above the least."""

    def __init__(self, objective: Tensor, least: Tensor) -> None:
        """least: what the objective cannot be below; it cannot be below 0 either.

        Raises:
            ValueError: there are others than numbers, of what is beyond float32.
        """
        if not torch.isfinite(objective).all():
            raise ValueError(OVERFLOW)
        self.objective = objective
        self.least = least.nan_to_num(0, 0, 0).clamp(min=0)
        self.gap = (objective - self.least).clamp(min=0)

    def unfinished(self, tol: float) -> Tensor:
        return self.gap > tol * self.objective

    def __str__(self) -> str:
        return f"objective {float(self.objective.sum()):.6g}, gap {float(self.gap.sum()):.3g}"


class Solver(Protocol):
    """Takes one :class:`Problem` to its minimum, for one C after another, each from where the last ended."""

    weights: Tensor

    def solve(
        self, problem: Problem, C: float, tol: float, most: int, verbose: bool
    ) -> tuple[Measured, int]:
        """Returns what was reached, and the steps that it took, ``most`` at most."""
