"""Maxout layers of the CGAN paper's networks, against PyTorch's product and maximum.

FLOPs are those that cannot be avoided: forward a product with all pieces, backward one with each unit's winner alone,
for either gradient. Products with the matrix of all pieces' gradients do ``pieces`` times those of backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contenders import DTYPES
from torch import Tensor

from dcgan_fast import functional
from dcgan_fast.bench import Row

LAYERS = {  # in, out, pieces
    "cgan-mnist.x": (784, 240, 5),
    "cgan-mnist.y": (10, 50, 5),
    "cgan-mnist.joint": (290, 240, 4),
    "cgan-multimodal.joint": (1700, 1000, 3),
}
BATCHES = (100, 1000)
_CLOSE = {"float32": 0.01, "bfloat16": 0.1}  # of the norm: close winners may change places


def _amax(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight.flatten(0, 1), bias.flatten()).unflatten(-1, bias.shape).amax(-1)


def _max(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight.flatten(0, 1), bias.flatten()).unflatten(-1, bias.shape).max(-1)[0]


@pytest.mark.parametrize("passes", ("forward", "forward+backward"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layer", LAYERS)
def test_maxout_linear(
    layer: str, batch: int, dtype: str, passes: str, small: bool, compare
) -> None:
    n_in, out, pieces = LAYERS[layer]
    batch = batch // 10 if small else batch
    torch.manual_seed(0)
    shapes = ((batch, n_in), (out, pieces, n_in), (out, pieces), (batch, out))
    *leaves, grad = ((torch.randn(s) / n_in**0.5).to(DTYPES[dtype]) for s in shapes)
    for leaf in leaves:
        leaf.requires_grad_()
    functions: dict[str, Callable[..., Tensor]] = {
        "ours": functional.maxout_linear,
        "amax": _amax,
        "max": _max,
    }
    if not small:
        torch._dynamo.reset()
        functions["compile amax"] = torch.compile(_amax, dynamic=False)

    def contender(function: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        if passes == "forward":
            return lambda: (function(*leaves).detach(),)  # keeps for backward what it must
        return lambda: torch.autograd.grad(function(*leaves), leaves, grad)

    product = 2e-9 * batch * n_in * out
    size = DTYPES[dtype].itemsize
    moved = batch * (n_in + out) + out * pieces * n_in
    backward = passes != "forward"
    compare(
        {name: contender(function) for name, function in functions.items()},
        Row(
            table="maxout",
            case={
                "layer": layer,
                "size": f"{n_in} -> {out} x {pieces}",
                "batch": str(batch),
                "dtype": dtype,
                "passes": passes,
            },
            dtype=dtype,
            seconds={},
            skipped={"compile amax": "left out of --small"} if small else {},
            gflop=product * (pieces + 2 * backward),
            gigabytes=size * moved * (1 + 2 * backward) / 1e9,
        ),
        agree=lambda results: _check_agreement(results, _CLOSE[dtype]),
    )


def _check_agreement(results: dict[str, Any], close: float) -> None:
    for name, result in results.items():
        for got, want in zip(result, results["max"], strict=True):
            error = (got.float() - want.float()).norm()
            assert error <= close * want.float().norm(), name
