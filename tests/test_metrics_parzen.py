"""Parzen windows against float64, the papers' script and scikit-learn, and their manners as an op and an estimator."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.utils.estimator_checks import parametrize_with_checks

from dcgan_fast import build_info, metrics
from dcgan_fast.metrics import ParzenWindow, parzen_log_likelihood, reference, search_sigma


def exactly(samples, data, sigmas):
    """The definition, in NumPy's float64: one subtraction for each pair and value."""
    y, x = samples.double().flatten(1).numpy(), data.double().flatten(1).numpy()
    squares = np.stack([((row - y) ** 2).sum(1) for row in x]) if len(x) else np.empty((0, len(y)))
    of_each = [
        logsumexp(-squares / (2 * s * s), axis=1)
        - math.log(len(y))
        - y.shape[1] * math.log(s * math.sqrt(2 * math.pi))
        for s in sigmas
    ]
    return torch.from_numpy(np.stack(of_each))


def digits(rows: int, features: int = 784) -> torch.Tensor:
    """Most values dark, some bright, as a digit's pixels."""
    return torch.rand(rows, features) * (torch.rand(rows, features) < 0.2)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    "samples, rows", [(1, 1), (63, 5), (64, 126), (65, 127), (2048, 30), (2049, 7), (5000, 300)]
)
def test_of_digits(samples, rows):
    """The promise: within 1e-3 nats at 784 features and sigma 0.2, the mean within 1e-4."""
    data = digits(rows)
    y = (data[torch.randint(rows, (samples,))] + 0.1 * torch.randn(samples, 784)).clamp_(0, 1)
    ours, exact = parzen_log_likelihood(y, data, 0.2), exactly(y, data, [0.2])[0]
    assert ours.dtype == torch.float64 and ours.shape == (rows,)
    assert (ours - exact).abs().max() < 1e-3
    if rows >= 100:
        assert (ours - exact).mean().abs() < 1e-4


def test_of_identical_rows():
    """A row that is a sample: the nearest window's exponent is 0, and must come out as 0 from large squares."""
    data = digits(200)
    assert (
        parzen_log_likelihood(data, data, 0.1) - exactly(data, data, [0.1])[0]
    ).abs().max() < 4e-3


@given(
    st.integers(1, 300),
    st.integers(0, 200),
    st.integers(1, 900),
    st.lists(st.floats(0.05, 30), min_size=1, max_size=12),
    st.floats(-50, 50),
)
@settings(max_examples=40, deadline=None)
def test_random_shapes(count, rows, features, sigmas, offset):
    """An offset that all have in common costs no digits but those of the values themselves."""
    samples, data = torch.randn(count, features) + offset, torch.randn(rows, features) + offset
    ours, exact = parzen_log_likelihood(samples, data, sigmas), exactly(samples, data, sigmas)
    assert ours.shape == (len(sigmas), rows)
    # distances of some 2 * features, known to a few parts in 10^7
    bound = (
        2e-6 * features / torch.tensor(sigmas).double().square()[:, None]
        + 1e-6 * exact.abs()
        + 1e-5
    )
    assert ((ours - exact).abs() <= bound).all()


def test_several_sigmas_are_as_each_alone():
    samples, data = digits(700), digits(150)
    together = parzen_log_likelihood(samples, data, metrics.SIGMAS)
    for sigma, row in zip(metrics.SIGMAS, together, strict=True):
        torch.testing.assert_close(
            parzen_log_likelihood(samples, data, sigma), row, rtol=0, atol=2e-4
        )


def test_sigmas_of_the_script():
    np.testing.assert_allclose(metrics.SIGMAS, np.logspace(-1, 0, 10))


def test_far_samples_change_nothing():
    """Windows whose terms vanish beside the nearest, before and after it, in parts of their own.

    The centre lies among the far ones: from large squares PyTorch's distances have lost digits too, ours at most twice
    as many.
    """
    near, far = digits(40), digits(6000) + 1
    data = near + 0.01
    exact = exactly(near, data, [0.2])[0] - math.log(6040 / 40)
    for samples in (
        torch.cat([near, far]),
        torch.cat([far, near]),
        torch.cat([far[:3000], near, far[3000:]]),
    ):
        theirs = (by_pytorch(samples, data, 0.2) - exact).abs().max()
        assert (parzen_log_likelihood(samples, data, 0.2) - exact).abs().max() <= 2 * theirs < 0.02


def by_pytorch(samples, data, sigma):
    """The same in PyTorch's float32, centred as ours."""
    y, x = samples - samples.mean(0), data - samples.mean(0)
    half = torch.addmm(y.square().sum(1) / 2, x, y.T, alpha=-1) + x.square().sum(1)[:, None] / 2
    constant = math.log(len(y)) + y.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return torch.logsumexp(-half / sigma**2, 1).double() - constant


def test_as_kernel_density():
    samples, data = torch.randn(100, 5), torch.randn(40, 5)
    peer = KernelDensity(bandwidth=0.7).fit(samples.numpy()).score_samples(data.numpy())
    np.testing.assert_allclose(parzen_log_likelihood(samples, data, 0.7).numpy(), peer, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_count_as_what_they_are(dtype):
    samples, data = digits(50, 30).to(dtype), digits(20, 30).to(dtype)
    ours = parzen_log_likelihood(samples, data, 0.3)
    torch.testing.assert_close(ours, exactly(samples, data, [0.3])[0], rtol=0, atol=1e-4)


def test_float64():
    samples, data = torch.randn(300, 40).double(), torch.randn(50, 40).double()
    ours = parzen_log_likelihood(samples, data, [0.1, 2.0])
    torch.testing.assert_close(ours, exactly(samples, data, [0.1, 2.0]), rtol=1e-12, atol=1e-9)


def test_reference_takes_rows_in_blocks(monkeypatch):
    samples, data = torch.randn(30, 4), torch.randn(17, 4)
    sigma = torch.tensor([0.5, 1.0]).double()
    whole = reference.parzen_log_likelihood(samples, data, sigma)
    monkeypatch.setattr(reference, "_PAIRS", 100)
    torch.testing.assert_close(reference.parzen_log_likelihood(samples, data, sigma), whole)
    torch.testing.assert_close(whole, exactly(samples, data, [0.5, 1.0]))


def test_images_and_layouts():
    samples, data = torch.rand(20, 3, 8, 8), torch.rand(9, 3, 8, 8)
    expected = parzen_log_likelihood(samples.flatten(1), data.flatten(1), 0.2)
    strided = samples.contiguous(memory_format=torch.channels_last), data[:, :, :, :]
    assert torch.equal(parzen_log_likelihood(*strided, 0.2), expected)
    columns = samples.flatten(1).T.contiguous().T, data.flatten(1).repeat(1, 2)[:, :192]
    assert torch.equal(parzen_log_likelihood(*columns, 0.2), expected)


def test_independent_of_threads():
    samples, data = digits(500), digits(300)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = parzen_log_likelihood(samples, data, [0.1, 0.2])
        torch.set_num_threads(3)
        assert torch.equal(parzen_log_likelihood(samples, data, [0.1, 0.2]), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_on_lesser_machines(capability, tmp_path):
    code = (
        "import torch\nfrom dcgan_fast import metrics\n"
        "y, x = torch.rand(300, 100), torch.rand(130, 100)\n"
        "exact = metrics.parzen_log_likelihood(y.double(), x.double(), [0.1, 0.5])\n"
        "assert (metrics.parzen_log_likelihood(y, x, [0.1, 0.5]) - exact).abs().max() < 1e-3\n"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


# ---------------------------------------------------------------- the papers' figure


def test_estimate_is_what_the_script_prints():
    samples, data = digits(400), digits(100)
    sigma, means = search_sigma(samples, digits(60), [0.1, 0.3, 1.0])
    assert sigma in (0.1, 0.3, 1.0) and means.shape == (3,)
    found = metrics.estimate(samples, data, sigma)
    each = exactly(samples, data, [sigma])[0].numpy()
    assert found.log_likelihood == pytest.approx(each.mean(), abs=1e-3)
    assert found.standard_error == pytest.approx(each.std() / 10, rel=1e-3)
    assert found.sigma == sigma


def test_search_takes_the_likeliest_sigma():
    """Of samples and data from one normal distribution in one dimension, neither a needle nor a blanket."""
    sigma, means = search_sigma(torch.randn(2000, 1), torch.randn(2000, 1), [1e-4, 0.3, 30.0])
    assert sigma == 0.3 and means.argmax() == 1


# ---------------------------------------------------------------- errors


def test_errors():
    y, x = torch.rand(5, 4), torch.rand(3, 4)
    for samples, data, sigma, error, message in [
        (y, torch.rand(3, 5), 0.2, ValueError, "'data' must have as many features as 'samples', 4, got 5"),
        (torch.rand(0, 4), x, 0.2, ValueError, "'samples' must have rows and features"),
        (torch.rand(5, 0), torch.rand(3, 0), 0.2, ValueError, "'samples' must have rows and features"),
        (torch.rand(5), x, 0.2, ValueError, r"'samples' must be \(rows, features\) or images"),
        (y, torch.rand(4), 0.2, ValueError, r"'data' must be \(rows, features\) or images"),
        (y, x, 0.0, ValueError, "'sigma' must be above 0, got 0"),
        (y, x, [0.2, -1.0], ValueError, "'sigma' must be above 0, got -1"),
        (y, x, math.nan, ValueError, "'sigma' must be above 0, got nan"),
        (y, x, 1e-30, ValueError, "'sigma' must lie between"),
        (y.long(), x, 0.2, TypeError, "'samples' must be float32, bfloat16, float16 or float64"),
        (y, x.double(), 0.2, TypeError, "'data' must have the dtype and device of 'samples'"),
        (y * 1e30, x, 0.2, ValueError, "'(samples|data)' must be finite, and squares"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            parzen_log_likelihood(samples, data, sigma)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_are_no_numbers_are_errors_by_name(bad, dtype):
    samples, data = torch.rand(70, 9, dtype=dtype), torch.rand(30, 9, dtype=dtype)
    spoilt = data.clone()
    spoilt[29, 8] = bad
    with pytest.raises(ValueError, match="'data' must be finite"):
        parzen_log_likelihood(samples, spoilt, 0.2)
    samples[69, 0] = bad
    with pytest.raises(ValueError, match="'samples' must be finite"):
        parzen_log_likelihood(samples, data, 0.2)


def test_empty():
    assert parzen_log_likelihood(torch.rand(5, 4), torch.rand(0, 4), 0.2).shape == (0,)
    for dtype in (torch.float32, torch.float64):
        samples, data = torch.rand(5, 4, dtype=dtype), torch.rand(3, 4, dtype=dtype)
        assert parzen_log_likelihood(samples, data, []).shape == (0, 3)
        assert parzen_log_likelihood(samples, data[:0], [0.1, 0.2]).shape == (2, 0)
    with pytest.raises(ValueError, match="must not be empty"):
        search_sigma(torch.rand(5, 4), torch.rand(0, 4))
    with pytest.raises(ValueError, match="must not be empty"):
        search_sigma(torch.rand(5, 4), torch.rand(5, 4), [])
    with pytest.raises(ValueError, match="must not be empty"):
        metrics.estimate(torch.rand(5, 4), torch.rand(0, 4), 0.2)


# ---------------------------------------------------------------- manners


def test_as_an_op():
    arguments = (torch.rand(10, 4), torch.rand(6, 4), torch.tensor([0.2, 0.5]).double())
    torch.library.opcheck(torch.ops.dcgan_fast.parzen_log_likelihood, arguments)
    compiled = torch.compile(parzen_log_likelihood, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*arguments), parzen_log_likelihood(*arguments))


def test_build_info_names_it():
    built = build_info()
    on_cuda = "dcgan_fast" if built["cuda_architectures"] else "dcgan_fast.metrics.reference"
    assert built["ops"]["parzen_log_likelihood"] == {"cpu": "dcgan_fast", "cuda": on_cuda}


def test_no_gradient():
    samples = torch.rand(5, 4, requires_grad=True)
    assert not parzen_log_likelihood(samples, torch.rand(3, 4), 0.2).requires_grad


# ---------------------------------------------------------------- the estimator


@parametrize_with_checks([ParzenWindow(), ParzenWindow(sigma=1.5)])
def test_sklearn(estimator, check):
    check(estimator)


def test_estimator():
    samples, data = torch.randn(100, 3), torch.randn(50, 3)
    window = ParzenWindow(0.5).fit(samples.numpy())
    expected = parzen_log_likelihood(samples, data, 0.5).numpy()
    assert np.array_equal(window.score_samples(data.numpy()), expected)
    assert window.score(data.numpy()) == pytest.approx(expected.mean())
    assert window.n_features_in_ == 3 and window.samples_.dtype == np.float32
    with pytest.raises(ValueError, match="'sigma' must be above 0, got -1"):
        ParzenWindow(-1).fit(samples.numpy())


def test_grid_search():
    search = GridSearchCV(ParzenWindow(), {"sigma": [1e-3, 0.3, 30.0]}, cv=3)
    assert search.fit(torch.randn(300, 1).numpy()).best_params_ == {"sigma": 0.3}
