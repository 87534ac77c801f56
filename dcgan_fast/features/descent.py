"""Linear SVMs by dual coordinate descent on the Gram matrix of all rows: for tables of few rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .newton import Newton
from .svm_problem import Gram, Measured, Problem

__all__ = ["Descent"]

_ops = torch.ops.dcgan_fast
_SWEEPS = 30  # an epoch, at most
_EPOCHS = 10
_ROUNDING = 2**-10  # of bfloat16, in the mean
_MOST_DELAY = 0.1
_LANES = 16


class Descent:
    """A dual variable a row and column; a sweep solves each once, in an order drawn anew, with all else held.

    A sweep costs ``2 * n^2 * columns`` operations, whatever the features, and the matrix ``n^2 * features`` once. The
    weights follow at the end of an epoch, and their scores, in float32, begin the next: rounding of the matrix delays,
    and does not mislead. On a network's features that takes one to five epochs; where ten do not suffice (large C for
    rows that nearly depend on one another) Newton's method goes on, all rows being its sample.

    Source: Hsieh et al. 2008, LIBLINEAR's; of all rows as one block of Yu et al. 2010.
    """

    def __init__(self, problem: Problem, gram: Gram, seed: int) -> None:
        self.gram, self.seed = gram, seed
        self.weights = problem.zeros()
        width = -(-problem.columns // _LANES) * _LANES
        self.dual = torch.zeros(len(problem.rows), width)
        self.newton: Newton | None = None

    def solve(
        self, problem: Problem, C: float, tol: float, most: int, verbose: bool
    ) -> tuple[Measured, int]:
        if self.newton is not None:
            return self.newton.solve(problem, C, tol, most, verbose)
        found, epochs = self._descend(problem, C, tol, min(most, _EPOCHS), verbose)
        if epochs == most or not found.unfinished(tol).any():
            return found, epochs
        self.newton = Newton(self.gram, self.weights)
        found, steps = self.newton.solve(problem, C, tol, most - epochs, verbose, found.least)
        return found, epochs + steps

    def _descend(
        self, problem: Problem, C: float, tol: float, most: int, verbose: bool
    ) -> tuple[Measured, int]:
        gram = self.gram.matrix(_delay(problem, C) > _MOST_DELAY)
        padding = (0, self.dual.size(1) - problem.columns)
        scores, signs = problem.scores(self.weights), problem.signs()
        for epoch in range(1, most + 1):
            delta = _ops._svm_descend_(
                *(gram, problem.targets, problem.columns, self.dual, pad(scores, padding)),
                *(C, _SWEEPS, tol / 10, self.seed + epoch),
            )
            self.weights += problem.sums(delta[:, : problem.columns].contiguous())
            scores = problem.scores(self.weights)
            found = self._measure(scores, signs, C)
            if verbose:
                print(f"epoch {epoch}: {found}")
            if not found.unfinished(tol).any():
                break
        return found, epoch

    def _measure(self, scores: Tensor, signs: Tensor, C: float) -> Measured:
        dual = self.dual[:, : scores.size(1)].double()
        half_squares = self.weights.double().square().sum(1) / 2
        losses = (1 - signs * scores).clamp_(min=0).double().square().sum(0)
        value = half_squares + C * losses
        least = dual.sum(0) - dual.square().sum(0) / (4 * C) - half_squares
        return Measured(value, least)


def _delay(problem: Problem, C: float) -> float:
    """What an epoch leaves of the distance to the minimum where the matrix is of rounded rows.

    Rounding adds a random table e to the rows, whose norm is about ``sqrt(n) + sqrt(features)`` times its elements'.
    The matrix and the ridge ``1 / 2C`` then differ by ``2 |e| sqrt(2C)`` of themselves, in their own norm.
    """
    some = problem.rows[:: max(1, len(problem.rows) // 64)].float()
    size = float(some.square().mean().sqrt())
    rows, features = problem.rows.shape
    return 2 * size * _ROUNDING * (rows**0.5 + features**0.5) * (2 * C) ** 0.5
