"""The falling learning rate and the growing momentum, by their definition and as a run sets them."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_runs
import torch
from tiny_runs import STEPS_PER_EPOCH, assert_same_checkpoint, one_thread  # noqa: F401
from torch import nn

from dcgan_fast.errors import UserError
from dcgan_fast.training import TrainConfig, Trainer
from dcgan_fast.training.schedule import Schedule

SMALL = {"preset": "cgan-mnist", "ngf": None, "ndf": None}


def test_the_preset_has_the_papers_optimiser() -> None:
    config = TrainConfig(preset="cgan-mnist")
    schedule = Schedule(config, 500)
    assert (config.optimizer, config.batch_size) == ("sgd", 100)
    assert schedule.lr(0) == 0.1
    assert schedule.lr(10_000) == pytest.approx(0.1 / 1.00004**10_000)
    assert schedule.lr(500_000) == 1e-6
    assert schedule.momentum(0) == schedule.momentum(499) == 0.5
    assert schedule.momentum(500 * 125) == pytest.approx(0.6)
    assert schedule.momentum(500 * 250) == schedule.momentum(10**6) == pytest.approx(0.7)


def test_the_conditional_preset_falls_as_its_script_does() -> None:
    """niter = niter_decay = 100: after each epoch from the 101st on a hundredth of the first rate is taken off."""
    config = TrainConfig(preset="cgan-dcgan")
    schedule, steps = Schedule(config, 195), 195
    rate, count = config.lr, 0
    for epoch in range(200):
        assert schedule.lr(epoch * steps) == pytest.approx(rate, rel=1e-9)
        assert schedule.lr(epoch * steps + steps - 1) == schedule.lr(epoch * steps)
        count += 1
        if count > 100:
            rate -= config.lr / 100
    assert schedule.lr(199 * steps) == pytest.approx(0.01 * config.lr)
    assert schedule.lr(300 * steps) == 0


def test_both_ways_of_falling_and_the_floor() -> None:
    config = TrainConfig(lr=1, lr_decay=2, constant_epochs=1, falling_epochs=4, min_lr=0.01)
    schedule = Schedule(config, 2)
    found = [schedule.lr(step) for step in range(12)]
    parts = [1, 1, 1, 1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0, 0]
    assert found == [max(part / 2**step, 0.01) for step, part in enumerate(parts)]
    at_once = TrainConfig(lr=1, constant_epochs=0, falling_epochs=2)
    assert [Schedule(at_once, 3).lr(step) for step in (0, 3, 6)] == [1, 0.5, 0]


def test_by_default_nothing_changes() -> None:
    config = TrainConfig(min_lr=1.0)  # above the rate, which does not fall
    schedule = Schedule(config, 10)
    assert {schedule.lr(step) for step in (0, 10, 10**6)} == {config.lr}
    assert Schedule(TrainConfig(optimizer="sgd", momentum=0.9), 10).momentum(10**6) == 0.9


def test_a_floor_above_the_first_rate_raises_nothing() -> None:
    schedule = Schedule(TrainConfig(lr=1e-3, lr_decay=1.1, min_lr=1.0), 10)
    assert {schedule.lr(step) for step in (0, 1, 100)} == {1e-3}


def test_the_optimisers_get_what_the_step_has() -> None:
    layer = nn.Linear(2, 2)
    sgd, adam = torch.optim.SGD(layer.parameters(), lr=9), torch.optim.Adam(layer.parameters())
    config = TrainConfig(
        optimizer="sgd", lr=1, lr_decay=2, momentum=0.2, final_momentum=0.6, momentum_epochs=4
    )
    Schedule(config, 3, sgd, adam).set(7)
    assert sgd.param_groups[0]["lr"] == adam.param_groups[0]["lr"] == 2.0**-7
    assert sgd.param_groups[0]["momentum"] == pytest.approx(0.4)
    assert adam.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_run_follows_its_schedule() -> None:
    trainer = tiny_runs.trainer(**SMALL, lr_decay=2.0, momentum_epochs=2)
    seen = []
    update = trainer._update

    def watch(real, draw):
        seen.append(
            [{k: g[k] for k in ("lr", "momentum")} for g in trainer.optimizer_d.param_groups]
        )
        return update(real, draw)

    trainer._update = watch
    trainer.fit()
    assert isinstance(trainer.optimizer_g, torch.optim.SGD)
    assert [group["lr"] for (group,) in seen] == [0.1 / 2**step for step in range(8)]
    momenta = [group["momentum"] for (group,) in seen]
    assert momenta == [0.5] * STEPS_PER_EPOCH + [pytest.approx(0.6)] * STEPS_PER_EPOCH


def test_a_run_falls_by_epochs() -> None:
    trainer = tiny_runs.trainer(**SMALL, lr_decay=1.0, constant_epochs=0, falling_epochs=4)
    seen = []
    update = trainer._update

    def watch(real, draw):
        seen.append(trainer.optimizer_g.param_groups[0]["lr"])
        return update(real, draw)

    trainer._update = watch
    trainer.fit()
    assert seen == [0.1] * STEPS_PER_EPOCH + [pytest.approx(0.075)] * STEPS_PER_EPOCH


def test_a_continued_run_is_the_run_that_was_not_interrupted(tmp_path: Path) -> None:
    """Momentum, schedule and dropout's random numbers included."""
    whole = tiny_runs.trainer(tmp_path / "whole", **SMALL)
    whole.fit()
    part = tiny_runs.trainer(tmp_path / "part", **SMALL, max_steps=5)
    part.fit()
    rest = Trainer.resume(part.run.path, dataset=tiny_runs.dataset(), max_steps=None)
    rest.fit()
    assert_same_checkpoint(rest.run.checkpoint, whole.run.checkpoint)


def test_no_epoch_trains_at_a_rate_of_zero() -> None:
    """None is asked for, and a small set, which gets more epochs than others, gets no more than have a rate."""
    with pytest.raises(UserError, match="'epochs' must be at most 5, after which the rate is 0"):
        Schedule(TrainConfig(constant_epochs=2, falling_epochs=3, epochs=6), 1)
    Schedule(TrainConfig(constant_epochs=2, falling_epochs=3, epochs=6, min_lr=1e-6), 1)
    assert tiny_runs.trainer(epochs=None, constant_epochs=2, falling_epochs=3).epochs == 5
