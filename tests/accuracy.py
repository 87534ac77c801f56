"""How near to the truth: the measure of agreement that every test of a kernel uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def relative_error(result: Tensor, exact: Tensor) -> float:
    """||result - exact|| / ||exact||, in float64."""
    exact = exact.double()
    return ((result.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def assert_as_accurate(
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    exact: Sequence[Tensor],
    times: float = 2.0,
    rounded: torch.dtype | None = None,
    floor: float = 2.0,
) -> None:
    """Holds our error against float64 to ``times`` PyTorch's own in the same dtype.

    PyTorch's error can be zero by luck on small tensors, so ``floor`` epsilons are always allowed: 1/std, its product
    with the weight, the centred value and the sum round once each, which makes two. They are of the result's dtype,
    or of ``rounded``: the dtype of an intermediate result that both sides round to. Random shapes ask for a higher
    floor, since sums of a few terms may nearly cancel; a wrong index is off by far more.
    """
    assert len(ours) == len(theirs) == len(exact)
    for i, (o, t, e) in enumerate(zip(ours, theirs, exact, strict=True)):
        assert o.shape == e.shape and o.dtype == t.dtype, i
        bound = max(times * relative_error(t, e), floor * torch.finfo(rounded or o.dtype).eps)
        assert relative_error(o, e) <= bound, (i, relative_error(o, e), bound)
