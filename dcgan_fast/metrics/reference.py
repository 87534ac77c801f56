"""The metrics in plain PyTorch, in float64: what the kernels are tested against and what runs where none serves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["parzen_log_likelihood"]

_PAIRS = 1 << 22  # whose distances are held at once


def parzen_log_likelihood(samples: Tensor, data: Tensor, sigma: Tensor) -> Tensor:
    """See :func:`dcgan_fast.metrics.parzen_log_likelihood`; ``(rows, features)`` and ``(sigmas,)``."""
    name = "parzen_log_likelihood"
    if len(samples) == 0 or samples.size(1) == 0:
        raise ValueError(
            f"{name}(): 'samples' must have rows and features, got {tuple(samples.shape)}"
        )
    if data.size(1) != samples.size(1):
        raise ValueError(
            f"{name}(): 'data' must have as many features as 'samples', {samples.size(1)}, got {data.size(1)}"
        )
    for width in sigma.tolist():
        if not width > 0:
            raise ValueError(f"{name}(): 'sigma' must be above 0, got {width:g}")
    for values, which in ((samples, "samples"), (data, "data")):
        if not values.isfinite().all():
            raise ValueError(f"{name}(): {which!r} must be finite")
    rows, features = data.double(), samples.size(1)
    centre = samples.double().mean(0)
    y = samples.double() - centre
    half_squares = y.square().sum(1) / 2
    inverse_variance = sigma.double().pow(-2).tolist()
    log_sums = []
    for x in (rows - centre).split(max(1, _PAIRS // len(y))) if inverse_variance else ():
        half_distances = half_squares - x @ y.T + x.square().sum(1, keepdim=True) / 2
        log_sums.append(
            torch.stack([(-factor * half_distances).logsumexp(1) for factor in inverse_variance])
        )
    found = torch.cat(log_sums, 1) if log_sums else rows.new_empty(0, len(rows))
    of_all = math.log(len(y)) + features * math.log(2 * math.pi) / 2
    return found - (features * sigma.to(found).log() + of_all)[:, None]
