"""Linear SVMs against Newton's method in float64, scikit-learn's LinearSVC, and scikit-learn's rules for estimators."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from dcgan_fast.features import LinearSVM, reference, svm


def table(
    rows: int, features: int, classes: int, seed: int = 0, mean: float = 0.5
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows that no plane separates, sorted by class as folders of images are."""
    random = np.random.default_rng(seed)
    labels = np.sort(np.arange(rows) % classes)
    centres = random.normal(size=(classes, features))
    found = centres[labels] / 2 + random.normal(size=(rows, features)) + mean
    return found.astype(np.float32), labels


def signs(labels: NDArray[Any], classes: int) -> torch.Tensor:
    columns = 2 * (labels[:, None] == np.arange(classes)) - 1
    return torch.from_numpy(columns[:, 1:] if classes == 2 else columns)


def least(X: Any, labels: Any, classes: int, C: float, scaling: float = 1.0) -> torch.Tensor:
    y, rows = signs(labels, classes), torch.from_numpy(X)
    return reference.svm_objective(rows, y, *reference.linear_svm(rows, y, C, scaling), C, scaling)


@parametrize_with_checks([LinearSVM()])
def test_is_a_scikit_learn_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


@settings(deadline=None, max_examples=15)
@given(
    rows=st.integers(6, 200),
    features=st.integers(1, 150),
    classes=st.integers(2, 20),
    log_C=st.floats(-4, -0.5),
    seed=st.integers(0, 2**16),
)
def test_reaches_the_minimum(
    rows: int, features: int, classes: int, log_C: float, seed: int
) -> None:
    classes, C = max(2, min(classes, rows // 3)), 10**log_C
    X, labels = table(rows, features, classes, seed, mean=0.1)
    found = LinearSVM(C=C, max_iter=2000).fit(X, labels)
    exact = least(X, labels, classes, C).numpy()
    assert found.coef_.shape == (1 if classes == 2 else classes, features)
    assert (found.objective_ >= exact * (1 - 1e-5)).all()
    assert (found.objective_ <= exact * 1.001).all()
    assert (found.objective_ - exact <= found.dual_gap_ + 1e-5 * exact).all()


@pytest.mark.parametrize("scaling", [0.0, 1.0, 3.0])
def test_objective_is_that_of_the_planes(scaling: float) -> None:
    X, labels = table(300, 40, 4)
    found = LinearSVM(
        C=0.02, fit_intercept=scaling > 0, intercept_scaling=scaling or 1.0, tol=1e-5
    ).fit(X, labels)
    weights = torch.from_numpy(found.coef_.T).double()
    b = torch.from_numpy(found.intercept_).double() / (scaling or 1.0)
    value = reference.svm_objective(
        torch.from_numpy(X), signs(labels, 4), weights, b, 0.02, scaling
    )
    np.testing.assert_allclose(found.objective_, value.numpy(), rtol=1e-5)
    np.testing.assert_allclose(value.numpy(), least(X, labels, 4, 0.02, scaling), rtol=2e-5)
    assert (found.intercept_ == 0).all() == (scaling == 0)


@pytest.mark.parametrize("classes", [2, 5, 17, 70])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_finds_the_planes_of_linear_svc(classes: int) -> None:
    X, labels = table(420, 60, classes)
    ours = LinearSVM(C=0.01, tol=1e-7, max_iter=20).fit(X, labels)
    theirs = LinearSVC(C=0.01, tol=1e-7, max_iter=20_000).fit(X.astype(np.float64), labels)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-4)
    scores = theirs.decision_function(X)
    np.testing.assert_allclose(ours.decision_function(X), scores, atol=1e-3)
    assert (ours.predict(X) == theirs.predict(X)).mean() > 0.99
    assert ours.score(X, labels) == pytest.approx(theirs.score(X, labels), abs=0.01)


def test_many_blocks_find_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    X, labels = table(300, 70, 3)
    monkeypatch.setattr(svm, "_SMALL", 0)
    several = LinearSVM(C=0.01, tol=1e-5).fit(X, labels)
    assert several.n_iter_ > 3
    monkeypatch.setattr(svm, "_SHARE", 1 / 100)
    one = LinearSVM(C=0.01, tol=1e-5).fit(X, labels)
    np.testing.assert_allclose(several.objective_, one.objective_, rtol=2e-5)
    np.testing.assert_allclose(one.objective_, least(X, labels, 3, 0.01), rtol=2e-5)
    np.testing.assert_allclose(several.coef_, one.coef_, atol=2e-3)


def test_halves_are_read_as_they_are(tmp_path: Any) -> None:
    X, labels = table(200, 90, 3)
    half = X.astype(np.float16)
    np.save(tmp_path / "half.npy", half)
    mapped = np.load(tmp_path / "half.npy", mmap_mode="r")
    found = LinearSVM(C=0.01).fit(mapped, labels)
    same = LinearSVM(C=0.01).fit(half.astype(np.float32), labels)
    np.testing.assert_array_equal(found.coef_, same.coef_)
    np.testing.assert_array_equal(found.predict(mapped), same.predict(half.astype(np.float32)))


def test_warm_start_follows_a_path_of_C(monkeypatch: pytest.MonkeyPatch) -> None:
    X, labels = table(300, 60, 4)
    monkeypatch.setattr(svm, "_SMALL", 0)  # several blocks
    path = LinearSVM(warm_start=True)
    for C in (1e-4, 1e-3, 1e-3):
        path.set_params(C=C).fit(X, labels)
        np.testing.assert_allclose(path.objective_, least(X, labels, 4, C), rtol=1e-3)
    cold = LinearSVM(C=1e-3).fit(X, labels)
    assert path.n_iter_ < cold.n_iter_  # it stands at the result already
    path.fit(X[:250], labels[:250])  # other rows: anew
    np.testing.assert_allclose(path.objective_, least(X[:250], labels[:250], 4, 1e-3), rtol=1e-3)


def test_same_seed_same_planes() -> None:
    X, labels = table(200, 30, 3)
    first, second = (LinearSVM(C=0.1, random_state=7).fit(X, labels) for _ in range(2))
    np.testing.assert_array_equal(first.coef_, second.coef_)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(first)).coef_, first.coef_)


def test_says_when_epochs_do_not_suffice() -> None:
    X, labels = table(1000, 64, 3)
    with pytest.warns(
        ConvergenceWarning, match=r"in 1 epochs: the objective may be .* raise max_iter"
    ):
        found = LinearSVM(C=100.0, max_iter=1, tol=1e-6).fit(X, labels)
    assert (found.dual_gap_ > 1e-6 * found.objective_).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LinearSVM(C=1e-4).fit(X, labels)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"C": 0}, "'C' must be a number above 0, got 0"),
        ({"tol": -1.0}, "'tol' must be a number above 0, got -1.0"),
        ({"max_iter": 1.5}, "'max_iter' must be a whole number of at least 1, got 1.5"),
        ({"intercept_scaling": 0.0}, "'intercept_scaling' must be a number above 0, got 0.0"),
    ],
)
def test_refuses_settings(setting: dict[str, Any], message: str) -> None:
    X, labels = table(10, 3, 2)
    with pytest.raises(ValueError, match=message):
        LinearSVM(**setting).fit(X, labels)


def test_refuses_one_class_and_nan() -> None:
    X, labels = table(10, 3, 2)
    with pytest.raises(ValueError, match="two classes at least, got one class: 4"):
        LinearSVM().fit(X, np.full(10, 4))
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        LinearSVM().fit(X, labels)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        LinearSVM().fit(X.astype(np.float16), labels)


def ops_arguments() -> dict[str, Any]:
    width, rows, features = 16, 70, 9
    return {
        "rows": torch.randn(rows, features),
        "order": torch.arange(rows),
        "targets": torch.zeros(rows, dtype=torch.long),
        "columns": 2,
        "grams": torch.zeros(1, 128, 128),
        "blocks": torch.zeros(1, dtype=torch.long),
        "dual": torch.zeros(rows, width),
        "weights": torch.zeros(features, width),
        "intercept": torch.zeros(width),
        "scaling": 1.0,
        "C": 1.0,
        "sweeps": 1,
        "tolerance": 0.0,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": torch.zeros(70, 9).double()}, "'rows' must be float32 or float16, got Double"),
        ({"order": torch.full((70,), 70)}, "'order' must be of rows 0 to 69, got 70"),
        ({"targets": torch.zeros(70)}, "'targets' must be Long on the CPU, got Float on cpu"),
        ({"columns": 17}, "'columns' must be from 1 to 16, got 17"),
        ({"grams": torch.zeros(1, 64, 64)}, r"'grams' must be \[1, 128, 128\], contiguous, got \[1, 64, 64\]"),
        ({"blocks": torch.ones(1, dtype=torch.long)}, "'blocks' must be from 0 to 0, got 1"),
        ({"dual": torch.zeros(69, 16)}, r"'dual' must be \[70, 16\], contiguous, got \[69, 16\]"),
        ({"intercept": torch.zeros(8)}, "'intercept' must have 16, 32, 48 or 64 columns, got 8"),
    ],
)  # fmt: skip
def test_ops_refuse_wrong_arguments(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=r"_svm_epoch_\(\): " + message):
        torch.ops.dcgan_fast._svm_epoch_(**{**ops_arguments(), **wrong})


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("rows", "features", "blocks"), [(1, 1, 1), (70, 9, 1), (700, 300, 1), (900, 131, 3)]
)
def test_gram_matrices(rows: int, features: int, blocks: int, half: bool) -> None:
    x = torch.randn(rows, features)
    x = x.half() if half else x
    order = torch.randperm(rows)
    grams = torch.ops.dcgan_fast._svm_grams(x, order, blocks, 2.0)
    for q in range(blocks):
        block = x[order[q::blocks]].double()
        found = grams[q, : len(block), : len(block)]
        size = block.norm(dim=1)
        # of bfloat16 parts where there is a matrix unit: see the kernel
        error = (found - (block @ block.T + 4)).abs() / (size[:, None] * size + 4)
        assert error.max() < 2**-14


def test_losses_of_rows() -> None:
    x, order = torch.randn(150, 70), torch.randperm(150)
    targets = torch.randint(-1, 4, (150,))
    weights, b = torch.randn(70, 16) / 10, torch.randn(16)
    found = torch.ops.dcgan_fast._svm_losses(x, order, targets, 4, weights, b, 0.5, 2)
    y = 2.0 * (targets[:, None] == torch.arange(16)) - 1
    exact = (1 - y * (x.double() @ weights.double() + 0.5 * b)).clamp_min(0).square().sum(0)
    torch.testing.assert_close(found[:4], exact[:4], rtol=1e-5, atol=0)
    assert (found[4:] == 0).all()
