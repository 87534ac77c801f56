"""The features' parts in plain PyTorch, in float64: what the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["linear_svm", "svm_objective"]


def svm_objective(
    rows: Tensor, signs: Tensor, weights: Tensor, intercept: Tensor, C: float, scaling: float = 1.0
) -> Tensor:
    """What :func:`linear_svm` minimises, of each column, float64 ``(columns,)``."""
    scores = rows.double() @ weights + scaling * intercept
    losses = (1 - signs * scores).clamp_min(0).square().sum(0)
    return (weights.square().sum(0) + intercept.square()) / 2 + C * losses


def linear_svm(
    rows: Tensor, signs: Tensor, C: float, scaling: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Linear L2-SVMs by Newton's method: another way to the one minimum, so that agreement means something.

    Minimises ``(|w|^2 + b^2) / 2 + C * sum of max(0, 1 - y (x w + scaling b))^2`` of each column.

    Args:
        rows: ``(n, d)``.
        signs: ``(n, columns)``, 1 or -1.
        C: weight of the losses.
        scaling: of the intercept's feature; 0: no intercept.

    Returns:
        Weights ``(d, columns)`` and those of the intercept's feature ``(columns,)``, float64.

    Source: Keerthi, DeCoste 2005.
    """
    x = torch.cat([rows.double(), torch.full((len(rows), 1), scaling, dtype=torch.float64)], 1)
    found = []
    for y in signs.double().T:
        w = x.new_zeros(x.size(1))
        for _ in range(100):
            inside = y * (x @ w) < 1
            z = x[inside]
            hessian = torch.eye(len(w), dtype=torch.float64) + 2 * C * z.T @ z
            step = torch.linalg.solve(hessian, 2 * C * z.T @ y[inside]) - w
            value = _objective(x, y, w, C)
            size = 1.0
            while size > 1e-12 and _objective(x, y, w + size * step, C) > value:
                size /= 2
            w = w + size * step
            if step.norm() <= 1e-12 * w.norm().clamp_min(1e-300):
                break
        found.append(w)
    both = torch.stack(found, 1)
    return both[:-1], both[-1]


def _objective(x: Tensor, y: Tensor, w: Tensor, C: float) -> float:
    return float(w.square().sum() / 2 + C * (1 - y * (x @ w)).clamp_min(0).square().sum())
