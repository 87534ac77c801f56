"""Linear SVMs by Newton's method on their weights: for tables whose rows are too many for a Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from .svm_problem import OVERFLOW, Gram, Measured, Problem

__all__ = ["Newton", "sample_size"]

_SHARE = 16  # the sample's Gram matrix has at most this part of the table's elements
_MOST_SAMPLE = 8192
_MOST_PRODUCTS = 150  # with the curvature, a step
_STALLED = 10  # steps in a row without progress: rounding lets none
_LEAST_CURVATURE = 1e-20  # of a row, where none is inside the margin
_PROGRESS = 1e-4  # of an objective


def sample_size(rows: int, features: int) -> int:
    """Rows of the sample that stands for the others in the preconditioner."""
    most = min(_MOST_SAMPLE, int((rows * features / _SHARE) ** 0.5), 4 * (features + 1))
    return max(1, min(rows, max(64, most)))


class Newton:
    """Steps by conjugate gradients, and as long as lowers the objective most.

    The objective is quadratic in each region where the same rows are inside the margin, so that some ten steps find the
    minimum. What takes time is to solve for a step where features are large, uncentred and alike, as a network's are:
    there coordinate descent in blocks was 5% from the minimum after 200 readings of the data. A sample of the rows
    tells the directions that matter: with ``S`` those, ``M = I + s S^T S`` stands for the curvature, and by Woodbury's
    formula its inverse takes only a Cholesky factor of the sample's Gram matrix.

    A product with the curvature costs ``4 * n * features * columns`` operations and one reading of the table. Since the
    objective is at least as curved as ``|w|^2 / 2``, it is at most ``|gradient|^2 / 2`` above the least: that, or what
    an earlier step says, is the gap. Gradients are sums in float32: of large C or rows, whose terms cancel, their
    rounding is the larger part of the gap, and the objective much nearer to the least than can be told.

    Sources: Keerthi, DeCoste 2005 (Newton's method and the line search), Lin, Weng, Keerthi 2008 (inexact steps).
    """

    def __init__(self, gram: Gram, weights: Tensor) -> None:
        """gram: of the sample; weights: to begin at."""
        self.gram, self.weights = gram, weights
        self._factor = torch.empty(0)
        self._scale = 0.0  # s, of the factor

    def solve(
        self,
        problem: Problem,
        C: float,
        tol: float,
        most: int,
        verbose: bool,
        least: Tensor | None = None,
    ) -> tuple[Measured, int]:
        """``least``: what is known already that the objectives cannot be below."""
        signs = problem.signs()
        smallest, lowest, stalled = float("inf"), float("inf"), 0
        least = torch.zeros(problem.columns, dtype=torch.float64) if least is None else least
        for step in range(most + 1):
            scores = problem.scores(self.weights)
            short = (1 - signs * scores).clamp_(min=0)
            found, gradient = self._measure(problem, signs, short, C, least)
            least = found.least
            if verbose:
                print(f"step {step}: {found}")
            left = found.unfinished(tol)
            gap, value = float(found.gap.sum()), float(found.objective.sum())
            if gap < 0.9 * smallest or value < (1 - _PROGRESS) * lowest:
                stalled = -1
            stalled += 1
            smallest, lowest = min(smallest, gap), min(lowest, value)
            if not left.any() or step == most or stalled == _STALLED:
                break
            inside = (short > 0).float().mul_(2 * C)
            self._precondition(problem, float(inside[:, left].mean()))
            direction, change = self._direction(problem, found, gradient, inside, tol)
            lengths = _best_lengths(self.weights, direction, signs, scores, change, C)
            self.weights += lengths[:, None] * direction
        return found, max(1, step)

    def _measure(
        self, problem: Problem, signs: Tensor, short: Tensor, C: float, least: Tensor
    ) -> tuple[Measured, Tensor]:
        gradient = self.weights - problem.sums(signs.mul(short).mul_(2 * C))
        squares = self.weights.double().square().sum(1)
        value = squares / 2 + C * short.double().square().sum(0)
        below = value - gradient.double().square().sum(1) / 2
        return Measured(value, torch.maximum(least, below)), gradient

    def _direction(
        self, problem: Problem, found: Measured, gradient: Tensor, inside: Tensor, tol: float
    ) -> tuple[Tensor, Tensor]:
        """Newton's, of the unfinished columns, and how scores change along it. Cruder far from the minimum."""
        direction, change = torch.zeros_like(gradient), torch.zeros_like(inside)
        forcing = (found.gap / found.objective).sqrt().clamp(max=0.3)
        of_gradient = _dot(gradient, gradient)
        enough = torch.maximum(of_gradient * forcing.square(), 0.6 * tol * found.objective).float()
        left = found.unfinished(tol).nonzero()[:, 0]
        enough, residual, inside = enough[left], -gradient[left], inside[:, left].contiguous()
        towards, last = torch.zeros_like(residual), torch.ones(len(left))
        for _ in range(_MOST_PRODUCTS):
            z = self._solve(problem, residual)
            power = _dot(residual, z)
            lost = power <= 0  # rounding: M is too far from I for float32
            if lost.any():
                z = torch.where(lost[:, None], residual, z)
                power = _dot(residual, z)
            towards = z + (power / last)[:, None] * towards
            scores, curved = problem.curvature(towards, inside)
            curved += towards
            bend = _dot(towards, curved)
            length = torch.where(bend > 0, power / bend, 0)
            direction[left] += length[:, None] * towards
            change[:, left] += length * scores
            residual = residual - length[:, None] * curved
            last = power
            on = _dot(residual, residual) > enough
            if not on.any():
                break
            if not on.all():
                left, enough, last = left[on], enough[on], last[on]
                residual, towards, inside = residual[on], towards[on], inside[:, on].contiguous()
        return direction, change

    def _precondition(self, problem: Problem, inside: float) -> None:
        """Factors I / s + S S^T, where s has become another: `inside` is the mean of a row's curvature."""
        scale = max(inside, _LEAST_CURVATURE) / 2 * len(problem.rows) / len(self.gram.order)
        if self._scale and 0.5 < scale / self._scale < 2:
            return
        ridge = 1 / scale
        while True:
            matrix = self.gram.matrix(True, ridge)
            if not self._factor.numel():
                self._factor = torch.empty_like(matrix).mT
            failed = torch.empty((), dtype=torch.int32)
            torch.linalg.cholesky_ex(matrix, out=(self._factor, failed))
            if not failed:
                break
            ridge *= 10  # rounding has made the matrix indefinite
            if ridge > 1e35:
                raise ValueError(OVERFLOW)
        self._scale = scale

    def _solve(self, problem: Problem, residual: Tensor) -> Tensor:
        """M^-1 of it."""
        of_rows = problem.scores(residual, self.gram.order)
        half = torch.linalg.solve_triangular(self._factor, of_rows, upper=False)
        solved = torch.linalg.solve_triangular(self._factor.mT, half, upper=True)
        return residual - problem.sums(solved.contiguous(), self.gram.order)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _best_lengths(
    weights: Tensor, direction: Tensor, signs: Tensor, scores: Tensor, change: Tensor, C: float
) -> Tensor:
    """By Newton's method, where the slope, piecewise linear and growing, is 0; else by halves."""
    with_weights, squares = _dot(weights, direction), _dot(direction, direction)
    length = torch.ones(len(weights))
    low, high = torch.zeros(len(weights)), torch.full((len(weights),), float("inf"))
    margin, along = 1 - signs * scores, signs * change
    for _ in range(30):
        short = (margin - length * along).clamp_(min=0)
        slope = with_weights + length * squares - 2 * C * (short * along).sum(0)
        bend = squares + 2 * C * (along.square() * (short > 0)).sum(0)
        low = torch.where(slope < 0, length, low)
        high = torch.where(slope > 0, length, high)
        wanted = torch.where(bend > 0, length - slope / bend, length)
        within = (wanted >= low) & (wanted <= high)
        wanted = torch.where(within, wanted, (low + high.clamp(max=2 * low + 2)) / 2)
        if ((wanted - length).abs() <= 1e-6 * length).all():
            break
        length = wanted
    return wanted
