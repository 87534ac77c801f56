"""Linear L2-SVMs on rows like a discriminator's features, and those features themselves.

An SVM's work is counted as the Gram matrix of its rows, half of it by symmetry: the descent on it comes beside.
Contenders stop where their own rules say so; the check holds their objectives to a percent above ours. Features are
counted as the direct convolutions of the discriminator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from race import OURS
from sklearn.svm import LinearSVC
from torch import nn

from dcgan_fast import models, unfuse
from dcgan_fast.bench import Row
from dcgan_fast.features import DiscriminatorFeatures, LinearSVM

try:
    from snapml import SupportVectorMachine
except ImportError:  # a contender where it is installed
    SupportVectorMachine = None

CLASSES, C = 10, 1e-3
CASES = {"1000-labels": (1000, 28_672), "5000-labels": (5000, 28_672)}
IMAGES, BATCH = 400, 100


def _rows(rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """As activations are: not centred, of a few hundred directions that matter, and noise."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, rows)
    hidden = random.normal(size=(rows, 300)) + random.normal(size=(CLASSES, 300))[labels] / 2
    x = hidden.astype(np.float32) @ random.normal(size=(300, features)).astype(np.float32) / 20
    x += random.normal(size=x.shape).astype(np.float32) / 2 + 0.5
    return np.where(x > 0, x, 0.2 * x).astype(np.float32), labels


@pytest.mark.parametrize("case", CASES)
def test_linear_svm(case: str, small: bool, compare) -> None:
    rows, features = CASES[case]
    if small:
        rows, features = rows // 10, features // 40
    x, labels = _rows(rows, features)
    contenders: dict[str, Callable[[], Any]] = {
        OURS: lambda: _objective(LinearSVM(C), x, labels),
        "LinearSVC": lambda: _objective(LinearSVC(C=C), x, labels),
    }
    if SupportVectorMachine is not None:
        contenders["snapml"] = partial(_with_snap, x, labels)
    compare(
        contenders,
        Row(
            table="linear svm",
            case={"rows": f"{rows:,}", "features": f"{features:,}", "classes": str(CLASSES)},
            dtype="float32",
            seconds={},
            gflop=1e-9 * rows**2 * features,
            gigabytes=4e-9 * rows * features,
        ),
        agree=_check_objectives,
        least=1 if rows == 5000 else 2,  # LinearSVC takes a minute then
        most=3,
    )


def _with_snap(x: np.ndarray, labels: np.ndarray) -> float:
    """It takes the inverse of C, and leaves OpenMP with one thread, for itself in the next call too."""
    threads = torch.get_num_threads()
    svm = SupportVectorMachine(
        loss="squared_hinge",
        regularizer=1 / C,
        fit_intercept=True,
        n_jobs=threads,
        random_state=0,
    )
    try:
        return _objective(svm, x, labels)
    finally:
        torch.set_num_threads(threads)


def _objective(svm: Any, x: np.ndarray, labels: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LinearSVC's 1,000 iterations may not do
        svm.fit(x, labels)
    signs = 2.0 * (labels[:, None] == svm.classes_) - 1
    short_of = np.maximum(0, 1 - signs * (x @ svm.coef_.T.astype(np.float32) + svm.intercept_))
    size = (svm.coef_.astype(np.float64) ** 2).sum() + (
        svm.intercept_.astype(np.float64) ** 2
    ).sum()
    return float(size / 2 + C * (short_of.astype(np.float64) ** 2).sum())


def _check_objectives(results: dict[str, float]) -> None:
    for name, value in results.items():
        assert value >= results[OURS] * 0.999, name
        assert value <= results[OURS] * 1.01, name


@pytest.mark.parametrize("preset", ["pytorch", "newmu-imagenet32"])
def test_features(preset: str, small: bool, compare) -> None:
    images, width = (IMAGES, None) if not small else (20, 8)
    overrides = {"image_size": 32} | ({} if width is None else {"ndf": width, "ngf": width})
    network = models.build(preset, **overrides)[1].eval()
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (images, network.nc, 32, 32), dtype=torch.uint8)
    plain = unfuse(network)
    gflop = 2e-9 * images * _products(plain, network.nc)
    features = DiscriminatorFeatures(network, batch_size=BATCH, device="cpu").fit()
    compare(
        {
            OURS: partial(features.transform, pictures),
            "hooks": partial(_by_hooks, plain, pictures, torch.contiguous_format),
            "hooks, channels_last": partial(_by_hooks, plain, pictures, torch.channels_last),
        },
        Row(
            table="features",
            case={"network": preset, "images": str(images)},
            dtype="float32",
            seconds={},
            gflop=gflop,
            gigabytes=4e-9 * images * features.n_features_out_,
            images=images,
        ),
        agree=_check_features,
        least=3,
    )


def _products(network: nn.Module, channels: int) -> int:
    """Multiplications of its convolutions for one image of 32x32, but for the last."""
    count, side = 0, 32
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.out_channels > 1:
            side //= layer.stride[0]
            count += layer.weight.numel() * side**2
    return count


@torch.inference_mode()
def _by_hooks(
    network: nn.Module, pictures: torch.Tensor, layout: torch.memory_format
) -> np.ndarray:
    maps: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda *call: maps.append(call[2]))
        for layer in network.modules()
        if isinstance(layer, nn.LeakyReLU)
    ]
    network.to(memory_format=layout)
    rows = []
    for part in pictures.split(BATCH):
        maps.clear()
        network(part.float().div_(127.5).sub_(1).contiguous(memory_format=layout))
        pooled = [nn.functional.max_pool2d(each, each.size(-1) // 4).flatten(1) for each in maps]
        rows.append(torch.cat(pooled, 1))
    for hook in hooks:
        hook.remove()
    return torch.cat(rows).numpy()


def _check_features(results: dict[str, Any]) -> None:
    for name, found in results.items():
        np.testing.assert_allclose(found, results[OURS], rtol=1e-3, atol=1e-3, err_msg=name)
