"""The experiment on images that are easy to tell apart, its table and files, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dcgan_fast import models
from dcgan_fast.cli import main
from dcgan_fast.data import Dataset, normalize
from dcgan_fast.errors import UserError
from dcgan_fast.features import baselines
from dcgan_fast.features.classify import classify, draw_bars
from dcgan_fast.training.checkpoint import save_checkpoint

SETTINGS = {"image_size": 16, "nc": 1, "ndf": 8, "scales": 2}
QUICK: dict[str, Any] = {"resamples": 3, "grid": (1e-3, 1e-2)}


def bars(count: int, seed: int, classes: int = 3) -> Dataset:
    """Noise with a bright bar, whose row is the class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    images = random.integers(0, 120, (count, 1, 16, 16), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 5 * label : 5 * label + 3] += 100
    return Dataset("bars", images, labels)


@pytest.fixture
def network() -> models.Discriminator:
    """Of random weights, with statistics of batch norm as training leaves them."""
    found = baselines.random_discriminator(models.Discriminator(**SETTINGS), seed=1)
    for child in found.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.momentum = 1.0
    with torch.no_grad():
        found.train()(normalize(bars(50, 2).images))
    return found.eval()


def test_tells_bars_apart_by_everything(
    network: models.Discriminator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_PATCHES", 2000)
    monkeypatch.setattr(baselines, "_CENTRES", 50)
    found = classify(
        network, bars(120, 0), bars(60, 1), baselines=("pixels", "random", "kmeans", "cnn"), **QUICK
    )
    assert [row.name for row in found.rows] == [
        "the discriminator",
        "raw pixels",
        "a discriminator of random weights",
        "single-layer K-means",
        "a supervised CNN of its shape",
    ]
    assert [row.features for row in found.rows] == [16 * (8 + 16), 256, 16 * 24, 200, 0]
    assert all(row.accuracy > 0.9 for row in found.rows), found.rows
    assert (found.labels, found.validation_images, found.test_images) == (100, 20, 60)
    assert found.resamples == 1 and found.classes == 3
    assert all(row.gap <= 1e-3 for row in found.rows[:4]) and found.rows[4].gap == 0
    assert any(row.gap > 0 for row in found.rows[:4])  # of one it may be less than can be told
    p = found.rows[1].accuracy
    assert found.rows[1].interval == pytest.approx(1.96 * (p * (1 - p) / 60) ** 0.5)
    picture = np.asarray(draw_bars(found))
    blue = (picture == (33, 102, 172)).all(2).any(0)
    assert blue.sum() == pytest.approx(530 * found.rows[0].accuracy, abs=3)


def test_few_labels(network: models.Discriminator) -> None:
    found = classify(network, bars(120, 0), bars(60, 1), labels=10, baselines=("pixels",), **QUICK)
    assert (found.labels, found.resamples) == (10, 6)
    row = found.rows[1]
    assert set(row.validation) == {"0.001", "0.01"}
    assert row.C == float(max(row.validation, key=lambda C: row.validation[C]))
    assert 0.5 < row.accuracy <= 1 and row.interval < 0.5
    again = classify(network, bars(120, 0), bars(60, 1), labels=10, baselines=("pixels",), **QUICK)
    assert again.rows[1] == row


def test_random_labels_are_not_told(network: models.Discriminator) -> None:
    training, test = bars(120, 0), bars(200, 1)
    mixed = np.random.default_rng(0).permutation(training.labels)
    found = classify(network, replace(training, labels=mixed), test, baselines=(), **QUICK)
    assert found.rows[0].accuracy < 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"training": replace(bars(30, 0), labels=None)},
            "bars: the training images have no labels",
        ),
        ({"test": replace(bars(30, 0), labels=None)}, "bars: the test images have no labels"),
        ({"training": bars(30, 0, classes=1)}, "two classes at least are needed, got one class"),
        ({"training": bars(30, 0, classes=2)}, "have class 2, which no training image has"),
        ({"labels": 2}, "'labels' must be from 3, one of each class, to .*, got 2"),
        ({"labels": 300}, "as many as there are, got 300"),
        ({"resamples": 1}, "'resamples' must be at least 2, got 1"),
        ({"baselines": ("hog",)}, "'baselines' must be of pixels, random, kmeans, cnn, got 'hog'"),
        ({"layers": (2,)}, "'layers' must be different numbers from 0 to 1"),
    ],
)
def test_refuses(network: models.Discriminator, change: dict[str, Any], message: str) -> None:
    given = {"network": network, "training": bars(60, 0), "test": bars(30, 1), **change}
    with pytest.raises(UserError, match=message):
        classify(**given)


def test_command(
    network: models.Discriminator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = {"preset": "pytorch", "config": {"discriminator": network.config}}
    save_checkpoint("d.pt", {**content, "discriminator": network.state_dict()})
    command = ["features", "d.pt", "--data", "digits"]
    flags = [
        "--classify",
        "--labels",
        "40",
        "--resamples",
        "2",
        "--train-images",
        "300",
        "--test-images",
        "100",
    ]
    assert main([*command, *flags, "--out", "found"]) == 0
    printed = capsys.readouterr().out
    assert "10 classes, 40 labelled images (2 draws), 100 to test on" in printed
    figures = json.loads(Path("found/accuracy.json").read_text())
    assert [row["name"] for row in figures["rows"]][1:] == [
        "raw pixels",
        "a discriminator of random weights",
    ]
    assert all(0.4 < row["accuracy"] <= 1 for row in figures["rows"])
    assert Image.open("found/accuracy.png").size[0] == 900
    assert main([*command, "--dtype", "float16", "--layers", "1", "--out", "rows"]) == 0
    rows, labels = np.load("rows/features.npy"), np.load("rows/labels.npy")
    assert rows.dtype == np.float16 and rows.shape == (len(labels), 256)
    assert main([*command, "--layers", "5"]) == 2
    assert "'layers' must be different numbers from 0 to 1" in capsys.readouterr().err
