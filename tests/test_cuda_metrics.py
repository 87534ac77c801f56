"""Parzen windows on CUDA tensors: on a GPU, and in a build for the emulator on CPU tensors that stand in for them."""

from __future__ import annotations

import pytest
import torch

from dcgan_fast import _C, backends, build_info, metrics
from dcgan_fast.metrics import parzen_log_likelihood

EMULATED = _C.cuda_architectures == "emulated"
DEVICE = "cpu" if EMULATED else "cuda"
pytestmark = pytest.mark.skipif(
    not (EMULATED or (_C.cuda_architectures and torch.cuda.is_available())), reason="needs a GPU"
)
on_a_gpu = pytest.mark.skipif(EMULATED, reason="the emulator has none of this")
# samples, rows, features: the emulator takes a second for some 5 million products
SHAPES = [(1, 1, 1), (65, 3, 784), (300, 129, 33)]
SHAPES += [] if EMULATED else [(10_000, 10_000, 784), (100_000, 1_000, 3072)]


def digits(rows: int, features: int) -> torch.Tensor:
    """Most values dark, some bright, as a digit's pixels."""
    bright = torch.rand(rows, features, device=DEVICE) < 0.2
    return torch.rand(rows, features, device=DEVICE) * bright


def in_float64(samples: torch.Tensor, data: torch.Tensor, sigma: list[float]) -> torch.Tensor:
    return parzen_log_likelihood(samples.double(), data.double(), sigma)


def test_the_kernels_serve() -> None:
    assert build_info()["ops"]["parzen_log_likelihood"]["cuda"] == "dcgan_fast"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(
        "dcgan_fast::parzen_log_likelihood", "CUDA"
    )


@pytest.mark.parametrize("count, rows, features", SHAPES)
def test_within_a_thousandth_of_a_nat(count: int, rows: int, features: int) -> None:
    samples, data = digits(count, features), digits(rows, features)
    ours, exact = (f(samples, data, [0.2, 1.0]) for f in (parzen_log_likelihood, in_float64))
    assert ours.dtype == torch.float64 and ours.device == data.device
    bound = 1e-3 * max(1, features / 784)
    assert (ours - exact).abs().max() < bound
    assert (ours - exact).mean(1).abs().max() < bound / (10 if rows >= 1000 else 1)


def test_tf32_where_it_is_allowed() -> None:
    """The fast mode is off by what rounding the rows costs: some hundredths of a nat, and not by nothing."""
    samples, data = digits(130, 784), digits(20, 784)
    exact = in_float64(samples, data, [0.2])
    before = backends.cuda.allow_tf32
    try:
        backends.cuda.allow_tf32 = True
        error = (parzen_log_likelihood(samples, data, [0.2]) - exact).abs().max()
    finally:
        backends.cuda.allow_tf32 = before
    assert 1e-3 < error < 0.3


def test_more_sigmas_than_a_launch_takes() -> None:
    samples, data = torch.rand(40, 7, device=DEVICE), torch.rand(9, 7, device=DEVICE)
    sigmas = [0.1 + 0.01 * i for i in range(150)]
    torch.testing.assert_close(
        parzen_log_likelihood(samples, data, sigmas),
        in_float64(samples, data, sigmas),
        rtol=0,
        atol=1e-3,
    )
    assert parzen_log_likelihood(samples, data, []).shape == (0, 9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows(dtype: torch.dtype) -> None:
    samples, data = digits(50, 30).to(dtype), digits(20, 30).to(dtype)
    ours, exact = (f(samples, data, [0.3]) for f in (parzen_log_likelihood, in_float64))
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-3)


def test_values_that_are_no_numbers_are_errors_by_name() -> None:
    samples, data = torch.rand(70, 9, device=DEVICE), torch.rand(30, 9, device=DEVICE)
    data[29, 8] = float("nan")
    with pytest.raises(ValueError, match="'data' must be finite"):
        parzen_log_likelihood(samples, data, 0.2)
    samples[69, 0] = float("inf")
    with pytest.raises(ValueError, match="'samples' must be finite"):
        parzen_log_likelihood(samples, data, 0.2)
    assert parzen_log_likelihood(samples[:5], data[:0], 0.2).shape == (0,)


def test_search_and_estimate() -> None:
    samples, data = torch.randn(500, 1, device=DEVICE), torch.randn(200, 1, device=DEVICE)
    sigma, means = metrics.search_sigma(samples, data, [1e-4, 0.3, 30.0])
    assert sigma == 0.3 and means.device == data.device
    assert metrics.estimate(samples, data, sigma).standard_error > 0


@on_a_gpu
def test_in_a_graph() -> None:
    samples, data = digits(500, 784), digits(200, 784)
    sigma = torch.tensor([0.2], dtype=torch.float64)
    expected = parzen_log_likelihood(samples, data, sigma)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = torch.ops.dcgan_fast.parzen_log_likelihood(samples, data, sigma)
    found.zero_()
    graph.replay()
    assert torch.equal(found, expected)


@on_a_gpu
def test_devices_do_not_mix() -> None:
    with pytest.raises(TypeError, match="dtype and device of 'samples'"):
        parzen_log_likelihood(torch.rand(3, 2), torch.rand(3, 2, device="cuda"), 0.2)
