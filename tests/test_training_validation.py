"""Early stopping: what is held out, what is measured, when a run ends, what it leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch
from tiny_runs import assert_same_checkpoint, assert_same_state, one_thread  # noqa: F401
from torch import nn

from dcgan_fast.errors import UserError
from dcgan_fast.metrics.likelihood import draw_samples, pixels
from dcgan_fast.metrics.parzen import estimate
from dcgan_fast.mlp_models import MlpGenerator
from dcgan_fast.training import Trainer, load_checkpoint
from dcgan_fast.training.validation import Validation, hold_out

SMALL = {"preset": "cgan-mnist", "ngf": None, "ndf": None}
MLP = {"image_size": 16, "nz": 8, "classes": 3, "z_units": 4, "y_units": 4, "joint_units": 4}


def test_a_sixth_is_held_out() -> None:
    whole = tiny_runs.dataset(64)
    training, held_out = hold_out(whole)
    assert (len(training), len(held_out)) == (54, 10)
    assert np.array_equal(np.concatenate([training.images, held_out.images]), whole.images)
    assert np.array_equal(np.concatenate([training.labels, held_out.labels]), whole.labels)
    with pytest.raises(UserError, match="'patience' needs 12 images at least, .* noise has 11"):
        hold_out(tiny_runs.dataset(11))


def test_the_figure_is_the_best_estimate_of_ten() -> None:
    torch.manual_seed(0)
    generator, (_, held_out) = MlpGenerator(**MLP), hold_out(tiny_runs.dataset(60))
    before = torch.get_rng_state()
    found, sigma = Validation(held_out, 3, generator).measure(1, bn="running")
    assert torch.equal(torch.get_rng_state(), before)
    samples = draw_samples(generator, 10)
    expected = [
        estimate(samples, pixels(held_out.images), float(s)).log_likelihood
        for s in np.logspace(-1, 0, 10)
    ]
    assert found == pytest.approx(max(expected))
    assert sigma == pytest.approx(np.logspace(-1, 0, 10)[int(np.argmax(expected))])


def test_samples_are_of_all_classes_alike() -> None:
    generator = MlpGenerator(**MLP)
    seen: list[int] = []
    generator.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1].tolist()))
    assert draw_samples(generator, 2400).shape == (2400, 256)
    assert np.bincount(seen).tolist() == [800, 800, 800]


def test_a_run_ends_when_its_patience_does() -> None:
    generator, (_, held_out) = MlpGenerator(**MLP), hold_out(tiny_runs.dataset(60))
    validation = Validation(held_out, 2, generator)
    validation.load({"best": 5.0, "best_epoch": 3})
    assert not validation.exhausted(4) and validation.exhausted(5)
    again = Validation(held_out, 2, generator)
    assert not again.exhausted(9)  # nothing was measured yet
    again.load(validation.state())
    assert (again.best, again.best_epoch) == (5.0, 3)


def run(out: Path | None, monkeypatch: pytest.MonkeyPatch, figures: list[float], **changes):
    """A run whose epochs have the likelihoods ``figures``."""
    left = iter(figures)
    monkeypatch.setattr(
        "dcgan_fast.training.validation.search_sigma",
        lambda samples, images: (0.1, torch.tensor([next(left)])),
    )
    trainer = tiny_runs.trainer(out, **SMALL, epochs=6, patience=2, **changes)
    trainer.fit()
    return trainer


def test_the_best_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = run(tmp_path, monkeypatch, [1.0, 3.0, 2.0, 2.5, 9.0])
    assert trainer.epoch == 4 and len(trainer.dataset) == 54
    assert load_checkpoint(trainer.run.best)["epoch"] == 2
    assert load_checkpoint(trainer.run.checkpoint)["epoch"] == 4
    lines = [json.loads(line) for line in trainer.run.validation.read_text().splitlines()]
    assert lines == list(trainer.likelihoods)
    assert [(line["epoch"], line["log_likelihood"]) for line in lines] == [
        (1, 1),
        (2, 3),
        (3, 2),
        (4, 2.5),
    ]
    assert trainer.run.grid(4).exists()  # of a run that ends there
    resumed = Trainer.resume(trainer.run.path, dataset=tiny_runs.dataset())
    assert resumed.fit() == trainer.run.path and resumed.epoch == 4  # it has ended


def test_a_continued_run_remembers_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", monkeypatch, [1.0, 3.0, 2.0, 2.5])
    part = run(
        tmp_path / "part",
        monkeypatch,
        [1.0, 3.0, 2.0, 2.5],
        max_steps=whole.steps_per_epoch * 2 + 1,
    )
    rest = Trainer.resume(part.run.path, dataset=tiny_runs.dataset(), max_steps=None)
    rest.fit()
    assert rest.epoch == 4
    assert_same_checkpoint(rest.run.checkpoint, whole.run.checkpoint)
    assert rest.run.validation.read_text() == whole.run.validation.read_text()


def test_measuring_does_not_touch_the_numbers() -> None:
    """But for the images that are held out."""
    watched = tiny_runs.trainer(**SMALL, patience=9)
    watched.fit()
    training, _ = hold_out(tiny_runs.dataset())
    alone = Trainer(dataclasses.replace(watched.config, patience=None), dataset=training)
    alone.fit()
    assert_same_state(dict(watched.generator.state_dict()), dict(alone.generator.state_dict()))


def test_networks_of_ones_own_are_refused() -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(8, 256), nn.Unflatten(1, (1, 16, 16)))
    judge = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
    with pytest.raises(UserError, match="'patience' needs a generator of this library"):
        Trainer(
            tiny_runs.config(patience=2),
            generator=own,
            discriminator=judge,
            dataset=tiny_runs.dataset(),
        )
