"""Parzen windows: log-densities of MNIST-like rows, under one sigma and under the ten of the papers' script.

Work is counted as one product of all pairs, however often a contender computes the distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from race import OURS
from torch import Tensor

from dcgan_fast import metrics
from dcgan_fast.bench import Row

FEATURES, SIGMA = 784, 0.2
CASES = {"one-sigma": ((10_000, 10_000), (SIGMA,)), "ten-sigmas": ((10_000, 10_000), metrics.SIGMAS),
         "ten-sigmas-1000-rows": ((10_000, 1_000), metrics.SIGMAS)}  # fmt: skip
ROWS = 500  # whose distances the others hold at once: 20 MB, the fastest of 100, 250, 500, 1000 and 2000


@pytest.mark.parametrize("case", CASES)
def test_parzen(case: str, small: bool, compare) -> None:
    (count, rows), sigmas = CASES[case]
    if small:
        count, rows = count // 50, rows // 50
    torch.manual_seed(0)
    # as digits: most pixels are dark, a few bright; samples are noisy copies of rows
    data = torch.rand(rows, FEATURES) * (torch.rand(rows, FEATURES) < 0.2)
    samples = data[torch.randint(rows, (count,))] + 0.1 * torch.randn(count, FEATURES)
    contenders: dict[str, Callable[[], Any]] = {
        OURS: partial(metrics.parzen_log_likelihood, samples, data, list(sigmas)),
        "linear": partial(_chunked, samples, data, sigmas, _by_linear),
        "addmm": partial(_chunked, samples, data, sigmas, _by_addmm),
        "numpy": partial(_chunked_numpy, samples.numpy(), data.numpy(), sigmas),
        "cdist": partial(_chunked, samples, data, sigmas, _by_cdist),
    }
    compare(
        contenders,
        Row(
            table="parzen",
            case={"samples": f"{count:,}", "rows": f"{rows:,}", "sigmas": str(len(sigmas))},
            dtype="float32",
            seconds={},
            gflop=2e-9 * count * rows * FEATURES,
            gigabytes=4e-9 * (count + rows) * FEATURES,
        ),
        agree=_check_agreement,
        least=3,
    )


def _constant(count: int, sigmas: Sequence[float]) -> list[float]:
    return [math.log(count) + FEATURES * math.log(s * math.sqrt(2 * math.pi)) for s in sigmas]


def _chunked(
    samples: Tensor,
    data: Tensor,
    sigmas: Sequence[float],
    half_distances: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Distances once for all sigmas."""
    squares = samples.square().sum(1) / 2
    parts = []
    for x in data.split(ROWS):
        half = half_distances(samples, squares, x)
        parts.append(torch.stack([torch.logsumexp(half * (-1 / s**2), 1) for s in sigmas]))
    return torch.cat(parts, 1) - torch.tensor(_constant(len(samples), sigmas))[:, None]


def _by_linear(samples: Tensor, squares: Tensor, x: Tensor) -> Tensor:
    product = torch.nn.functional.linear(x, samples)
    return (squares - product).add_(x.square().sum(1, keepdim=True) / 2)


def _by_addmm(samples: Tensor, squares: Tensor, x: Tensor) -> Tensor:
    return torch.addmm(squares, x, samples.T, alpha=-1).add_(x.square().sum(1, keepdim=True) / 2)


def _by_cdist(samples: Tensor, squares: Tensor, x: Tensor) -> Tensor:
    return torch.cdist(x, samples).square_().div_(2)


def _chunked_numpy(samples: np.ndarray, data: np.ndarray, sigmas: Sequence[float]) -> Tensor:
    squares = np.einsum("ij,ij->i", samples, samples) / 2
    out = np.empty((len(sigmas), len(data)))
    for start in range(0, len(data), ROWS):
        x = data[start : start + ROWS]
        half = x @ samples.T
        half -= squares
        half -= (np.einsum("ij,ij->i", x, x) / 2)[:, None]
        half -= (top := half.max(1, keepdims=True))
        for i, s in enumerate(sigmas):
            terms = (
                half * np.float32(1 / s**2)
                if len(sigmas) > 1
                else np.multiply(half, np.float32(1 / s**2), out=half)
            )
            np.exp(terms, out=terms)
            out[i, start : start + ROWS] = np.log(terms.sum(1)) + top[:, 0] / s**2
    return torch.from_numpy(out - np.array(_constant(len(samples), sigmas))[:, None])


def _check_agreement(results: dict[str, Any]) -> None:
    for name, found in results.items():
        # the others' distances lose digits in cancellation: 100 * 1e-6 * squares of some 40 at sigma 0.1
        torch.testing.assert_close(found.double(), results[OURS], rtol=0, atol=0.1, msg=name)
