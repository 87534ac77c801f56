from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from dcgan_fast.data import prepare
from dcgan_fast.errors import UserError
from dcgan_fast.metrics import (
    FeatureStatistics,
    extract_features,
    frechet_distance,
    kernel_distance,
    real_features,
)


def features(count: int, width: int = 6, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((width, width))
    return rng.standard_normal((count, width)) @ mixing + mean


# ---------------------------------------------------------------------------------------- Fréchet


@pytest.mark.parametrize("count", [50, 9000])  # of which the latter are added up in parts
def test_statistics_are_numpys(count: int) -> None:
    rows = features(count, mean=30).astype(np.float32)
    found = FeatureStatistics.of(rows)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(wide.T), rtol=1e-9, atol=1e-12)
    assert found.count == count


def test_frechet_distance_is_the_formula() -> None:
    a, b = features(200), 1.5 * features(300, seed=1, mean=0.7)
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)
    of_statistics = frechet_distance(FeatureStatistics.of(a), b)
    assert of_statistics == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_gaussians_that_are_known() -> None:
    mean, identity = np.zeros(3), np.eye(3)
    a = FeatureStatistics(mean, identity, 9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, FeatureStatistics(mean + 2, identity, 9)) == pytest.approx(12)
    assert frechet_distance(a, FeatureStatistics(mean, 9 * identity, 9)) == pytest.approx(12)


def test_fewer_rows_than_features_and_constant_features() -> None:
    a, b = features(5, 20), features(5, 20, seed=1)
    assert 0 < frechet_distance(a, b) < np.inf
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(np.ones((4, 3)), np.zeros((4, 3))) == pytest.approx(3)


# ----------------------------------------------------------------------------------------- kernel


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    x, y = features(8, 3), features(8, 3, seed=1, mean=0.4)

    def k(p: np.ndarray, q: np.ndarray) -> float:
        return (p @ q / 3 + 1) ** 3

    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    expected = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs) / 56
    expected -= 2 * sum(k(p, q) for p in x for q in y) / 64
    found = kernel_distance(x, y)
    assert found.distance == pytest.approx(expected, rel=1e-10)
    assert np.isnan(found.standard_error)  # all rows in one subset
    squares = kernel_distance(x, y, degree=1, gamma=1, constant=0).distance
    means = (x.sum(0) @ x.sum(0) - np.square(x).sum()) / 56
    means += (y.sum(0) @ y.sum(0) - np.square(y).sum()) / 56 - 2 * x.mean(0) @ y.mean(0)
    assert squares == pytest.approx(means)


def test_kernel_distance_of_equal_distributions_is_near_0() -> None:
    a, b, far = features(900), features(900, seed=1), features(900, seed=2, mean=1)
    same, other = (kernel_distance(a, x, subset=300, subsets=20) for x in (b, far))
    assert abs(same.distance) < 4 * same.standard_error
    assert other.distance > 10 * other.standard_error
    assert kernel_distance(a, far, subset=300, subsets=20) == other  # seeded


# --------------------------------------------------------------------------------- features, cache


def means(images: np.ndarray) -> np.ndarray:
    return images.mean((2, 3))


def test_features_are_extracted_in_batches() -> None:
    images = np.random.default_rng(0).integers(0, 256, (600, 3, 4, 4), dtype=np.uint8)
    found = extract_features(images, means)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, means(images), rtol=1e-6)
    for wrong in (lambda x: x.mean((1, 2, 3)), lambda x: means(x)[1:], lambda x: means(x) * np.nan):
        with pytest.raises(UserError, match=r"must give finite features \(256, d\)"):
            extract_features(images, wrong)
    with pytest.raises(UserError, match="at least one image"):
        extract_features(images[:0], means)


def test_real_features_are_found_again(tmp_path: Path) -> None:
    dataset = prepare("fake:5000", image_size=8, cache_dir=tmp_path, progress=False)
    calls = []

    def extractor(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return means(images)

    first = real_features(dataset, extractor, "means", cache_dir=tmp_path)
    assert sum(calls) == 5000 and first.features.shape == (4096, 3)
    assert first.statistics.count == 5000
    again = real_features(dataset, extractor, "means", cache_dir=tmp_path)
    assert sum(calls) == 5000
    assert np.array_equal(again.statistics.covariance, first.statistics.covariance)
    assert np.array_equal(again.features, first.features)
    all_rows = means(dataset.images)
    assert frechet_distance(first.statistics, all_rows) == pytest.approx(0, abs=1e-6)
    real_features(dataset, extractor, "others", cache_dir=tmp_path)
    assert sum(calls) == 10_000
    for file in (tmp_path / "features").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    real_features(dataset, extractor, "means", cache_dir=tmp_path)
    assert sum(calls) == 15_000  # a damaged one is made again


# ------------------------------------------------------------------------------------ wrong input


def test_wrong_arguments() -> None:
    good = features(5)

    def fails(message: str, call: Any, *arguments: Any, **settings: Any) -> None:
        with pytest.raises(UserError, match=message):
            call(*arguments, **settings)

    fails(
        r"must be numbers \(N, d\) with N >= 2, got float64 \(1, 6\)",
        frechet_distance,
        good[:1],
        good,
    )
    fails(
        "'a' and 'b' must have as many features, got 6 and 2", frechet_distance, good, good[:, :2]
    )
    fails("'features' must be finite", frechet_distance, good * np.nan, good)
    wide = np.zeros((2, 5000), np.float32)
    fails("at most 4096 columns, got 5000", FeatureStatistics.of, wide)
    fails("as many features, got 6 and 2", kernel_distance, good, good[:, :2])
    fails("'b' must be numbers", kernel_distance, good, good[0])
    for name, low in (("degree", 1), ("subset", 2), ("subsets", 1)):
        fails(f"'{name}' must be at least {low}", kernel_distance, good, good, **{name: low - 1})
