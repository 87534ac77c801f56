"""Linear SVMs by dual coordinate descent on the Gram matrix of all rows: for tables of few rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .newton import Newton
from .svm_problem import Measured, Problem

__all__ = ["Descent"]

_ops = torch.ops.dcgan_fast
_SWEEPS = 30  # an epoch, at most
_EPOCHS = 10
_LANES = 16


class Descent:
    """A dual variable a row and column; a sweep solves each once, in an order drawn anew, with all else held.

    A sweep costs ``2 * n^2 * columns`` operations, whatever the features, and the matrix ``n^2 * features`` once. The
    weights follow at the end of an epoch, and their scores, in float32, begin the next: rounding of the matrix delays,
    and does not mislead. On a network's features that takes one to five epochs; where ten do not suffice (large C for
    rows that nearly depend on one another) Newton's method goes on, all rows being its sample.

    Source: Hsieh et al. 2008, LIBLINEAR's; of all rows as one block of Yu et al. 2010.
    """

    def __init__(self, problem: Problem, gram: Tensor) -> None:
        self.gram = gram
        self.weights = problem.zeros()
        width = -(-problem.columns // _LANES) * _LANES
        self.dual = torch.zeros(len(problem.rows), width)
        self.newton: Newton | None = None

    def solve(
        self, problem: Problem, C: float, tol: float, most: int, seed: int, verbose: bool
    ) -> tuple[Measured, int]:
        scores, signs = problem.scores(self.weights), problem.signs()
        found, epoch = None, 0
        while self.newton is None and epoch < min(most, _EPOCHS):
            epoch += 1
            padding = (0, self.dual.size(1) - problem.columns)
            delta = _ops._svm_descend_(
                *(self.gram, problem.targets, problem.columns, self.dual, pad(scores, padding)),
                *(C, _SWEEPS, tol / 10, seed + epoch),
            )
            self.weights += problem.sums(delta[:, : problem.columns].contiguous())
            scores = problem.scores(self.weights)
            found = self._measure(scores, signs, C)
            if verbose:
                print(f"epoch {epoch}: {found}")
            if not found.unfinished(tol).any():
                return found, epoch
        if found is not None and epoch == most:
            return found, epoch
        if self.newton is None:
            self.newton = Newton(torch.arange(len(problem.rows)), self.gram, self.weights)
        found, steps = self.newton.solve(problem, C, tol, most - epoch, seed, verbose)
        return found, epoch + steps

    def _measure(self, scores: Tensor, signs: Tensor, C: float) -> Measured:
        dual = self.dual[:, : scores.size(1)].double()
        half_squares = self.weights.double().square().sum(1) / 2
        losses = (1 - signs * scores).clamp_(min=0).double().square().sum(0)
        value = half_squares + C * losses
        least = dual.sum(0) - dual.square().sum(0) / (4 * C) - half_squares
        return Measured(value, value - least)
