from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dcgan_fast.errors import UserError
from dcgan_fast.metrics import NearestSoFar, nearest_neighbour_accuracy


def rows(count: int, width: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def by_hand(data: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    distances = np.linalg.norm(data[:, None].astype(float) - candidates[None], axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, 1), order


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("parts", [1, 2, 40])
def test_parts_give_what_all_at_once_do(k: int, parts: int) -> None:
    data, candidates = rows(30), rows(57, seed=1)
    nearest = NearestSoFar(data, k)
    for part in np.array_split(candidates, parts):
        nearest.add(part)
    distances, order = by_hand(data, candidates, k)
    np.testing.assert_allclose(nearest.distances, distances, rtol=1e-5)
    assert np.array_equal(nearest.indices, order)


def test_more_rows_than_a_block_and_fewer_candidates_than_k() -> None:
    data, candidates = rows(2100, 3), rows(2, 3, seed=1)
    nearest = NearestSoFar(data, 5)
    assert nearest.distances.shape == (2100, 0)
    nearest.add(candidates[:0])
    nearest.add(candidates)
    distances, order = by_hand(data, candidates, 5)
    assert np.array_equal(nearest.indices, order) and nearest.distances.shape == (2100, 2)
    nearest.add(data)
    assert nearest.distances[:, 0].max() < 1e-3 and nearest.distances.shape == (2100, 5)


def tables(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Data and candidates that are hard to tell apart by their products, or easy."""
    data, candidates = rows(90, 33, seed), rows(700, 33, seed + 1)
    if kind == "far from the origin":
        data, candidates = data + 1000, candidates + 1000
    elif kind == "almost alike":
        candidates = candidates[:1] + candidates * np.float32(1e-4)
    elif kind == "partly alike":
        candidates[:400] = candidates[:1] + candidates[:400] * np.float32(1e-4)
    elif kind == "each thrice":
        candidates = np.tile(candidates[:240], (3, 1))
    elif kind == "of the data":
        candidates[300:390] = data
    elif kind == "zero":
        data, candidates = data * 0, candidates * 0
    elif kind in ("tiny", "huge"):
        factor = np.float32(1e-20 if kind == "tiny" else 1e18)
        data, candidates = data * factor, candidates * factor
    elif kind == "of all lengths":
        data *= np.logspace(-8, 4, 90, dtype=np.float32)[:, None]
        candidates *= np.logspace(-8, 4, 700, dtype=np.float32)[:, None]
    elif kind == "float64":
        data, candidates = data.astype(float) + 1e5, candidates.astype(float) + 1e5
    return data, candidates


KINDS = ("random", "far from the origin", "almost alike", "partly alike", "each thrice", "of the data", "zero", "tiny",
         "huge", "of all lengths", "float64")  # fmt: skip


@pytest.mark.parametrize("blocks", [(1024, 16384), (40, 150)])
@pytest.mark.parametrize("k", [1, 12, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_what_products_do_not_tell_is_measured(
    kind: str, k: int, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcgan_fast.metrics.neighbours._ROWS", blocks[0])
    monkeypatch.setattr("dcgan_fast.metrics.neighbours._CANDIDATES", blocks[1])
    data, candidates = tables(kind, seed=3)
    nearest = NearestSoFar(data, k)
    for part in np.array_split(candidates, [5, 450]):
        nearest.add(part)
    squares = by_hand(data, candidates, k)[0] ** 2
    # scikit-learn, which some rows are left to, subtracts squares in float64 and rounds distances as the data are
    error = 1e-14 * np.square(candidates, dtype=float).sum(1).max()
    np.testing.assert_allclose(nearest.distances**2, squares, rtol=5e-7, atol=error)
    found = np.linalg.norm(data[:, None].astype(float) - candidates[nearest.indices], axis=2)
    np.testing.assert_allclose(found**2, squares, rtol=5e-7, atol=error)
    assert all(len(set(row)) == k for row in nearest.indices.tolist())


def test_rows_without_values_are_all_alike() -> None:
    nearest = NearestSoFar(np.zeros((3, 0)), 2)
    nearest.add(np.zeros((4, 0)))
    assert nearest.indices.tolist() == [[0, 1]] * 3 and not nearest.distances.any()


@pytest.fixture(params=["autocast", "bf16", "tf32"])
def lowered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where torch's products of float32 are of fewer digits."""
    if request.param == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            yield
        return
    kept = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = request.param
    yield
    torch.backends.mkldnn.matmul.fp32_precision = kept


def test_no_digits_are_lost_where_products_are_lowered(lowered: None) -> None:
    data, candidates = rows(50, 300), rows(500, 300, seed=1)
    nearest = NearestSoFar(data, 3)
    nearest.add(candidates)
    distances, order = by_hand(data, candidates, 3)
    np.testing.assert_allclose(nearest.distances, distances, rtol=1e-6)
    assert np.array_equal(nearest.indices, order)


def test_what_is_read_only() -> None:
    data, candidates = rows(9), rows(20, seed=1)
    for each in (data, candidates):
        each.flags.writeable = False
    nearest = NearestSoFar(data)
    nearest.add(candidates)
    assert np.array_equal(nearest.indices, by_hand(data, candidates, 1)[1])


def test_of_equally_near_ones_the_first() -> None:
    nearest = NearestSoFar(np.zeros((1, 2)))
    for part in ([[3.0, 4.0]], [[4.0, 3.0]], [[0.0, 5.0]]):
        nearest.add(np.array(part))
    assert nearest.indices.tolist() == [[0]] and nearest.distances.tolist() == [[5.0]]


def test_images_integers_and_tensors() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), dtype=np.uint8)
    nearest = NearestSoFar(torch.from_numpy(images))
    nearest.add(images[::-1])
    assert nearest.indices[:, 0].tolist() == [5, 4, 3, 2, 1, 0]


def test_accuracy_is_of_the_nearest_samples_label() -> None:
    centres = np.array([[0.0, 0], [10, 0], [0, 10]])
    labels = np.repeat([0, 1, 2], 20)
    samples = centres[labels] + rows(60, 2)
    data = centres[labels] + rows(60, 2, seed=1)
    assert nearest_neighbour_accuracy(samples, labels, data, labels) == 1
    swapped = np.where(labels == 2, 1, labels)
    assert nearest_neighbour_accuracy(samples, swapped, data, labels) == pytest.approx(2 / 3)
    assert nearest_neighbour_accuracy(samples[:1], labels[:1], data, labels) == pytest.approx(1 / 3)


def test_scikit_learns_classifier_agrees() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    samples, data = rows(300, 5), rows(200, 5, seed=1)
    known, truth = rng.integers(0, 4, 300), rng.integers(0, 4, 200)
    expected = KNeighborsClassifier(1).fit(samples, known).score(data, truth)
    assert nearest_neighbour_accuracy(samples, known, data, truth) == pytest.approx(expected)


def test_wrong_arguments() -> None:
    good, labels = rows(4), np.zeros(4, np.int64)

    def fails(message: str, *arguments: Any) -> None:
        with pytest.raises(UserError, match=message):
            nearest_neighbour_accuracy(*arguments)

    fails(r"'labels' must be integers \(4,\)", good, labels, good, labels[:3])
    fails("'sample_labels' must be integers", good, labels.astype(float), good, labels)
    fails("at least one", good[:0], labels[:0], good, labels)
    fails("must have 7 values a row, as the data, got 3", rows(4, 3), labels, good, labels)
    fails("'data' must be finite", good, labels, good * np.nan, labels)
    fails("'candidates' must be finite", good * np.inf, labels, good, labels)
    with pytest.raises(
        UserError, match=r"'data' must be numbers \(rows, ...\), got float32 \(7,\)"
    ):
        NearestSoFar(good[0])
    with pytest.raises(UserError, match="'k' must be at least 1, got 0"):
        NearestSoFar(good, 0)
