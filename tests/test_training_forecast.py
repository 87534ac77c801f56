from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tiny_runs import one_thread  # noqa: F401
from torch.utils.flop_counter import FlopCounterMode

from dcgan_fast import cli, models, unfuse
from dcgan_fast.training import TrainConfig
from dcgan_fast.training.forecast import Forecast, forecast
from dcgan_fast.training.setup import make_optimizer
from dcgan_fast.training.step import Step

CEILINGS = {"FMA float32": 100.0, "tiles bfloat16": 600.0, "copy": 10.0}
TINY: dict[str, Any] = {"image_size": 16, "ngf": 4, "ndf": 4, "batch_size": 8}


def forecast_of(preset: str = "pytorch", seconds: float = 0.0, **settings: Any) -> Forecast:
    ceilings = CEILINGS if seconds else {}
    return forecast(TrainConfig(preset=preset, **{**TINY, **settings}), ceilings, seconds=seconds)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("pytorch", {}),
        ("carpedm20", {}),
        ("newmu", {}),
        ("pytorch", {"g_steps_per_d": 3}),
        ("pytorch", {"d_steps_per_g": 2}),
        ("pytorch", {"accumulate": 2, "d_steps_per_g": 2}),
        ("pytorch", {"fuse": False}),
    ],
)
def test_the_work_of_a_whole_step(preset: str, settings: dict[str, Any]) -> None:
    """As much as torch counts in a step, whatever the dialect."""
    config = TrainConfig(preset=preset, **{**TINY, **settings})
    pair = [unfuse(n) for n in models.build(preset, image_size=16, ngf=4, ndf=4)]
    step = Step(
        *pair,
        *(make_optimizer(network, config) for network in pair),
        alternate=config.alternate,
        g_steps_per_d=config.g_steps_per_d,
        d_steps_per_g=config.d_steps_per_g,
        accumulate=config.accumulate,
    )
    real = [torch.rand(8, pair[0].nc, 16, 16)] * (config.d_steps_per_g * config.accumulate)
    with FlopCounterMode(display=False) as counter:
        step(real, lambda: pair[0].sample_latent(8))
    found = forecast_of(preset, **settings)
    expected = pytest.approx(counter.get_total_flops() / 1e9, rel=1e-6)
    assert sum(row.gflop for row in found.rows) == expected


def test_one_pass_of_d_for_both_updates_is_counted_once() -> None:
    shared, standard = forecast_of(reuse_fake_output=True), forecast_of()
    for ours, theirs in zip(shared.rows, standard.rows, strict=True):
        assert (ours.gflop < theirs.gflop) == ours.layer.startswith("D")


def test_times_floors_and_rates() -> None:
    found = forecast_of(seconds=0.05)
    assert [row.layer for row in found.rows[:2]] == ["G main.0-2", "G main.3-5"]
    assert found.rows[0].op == "dcgan_fast.conv_transpose_bn_act" and found.rows[0].engines
    assert found.rows[-1].layer == "optimizers"
    assert all(row.seconds and row.floor and row.seconds > 0 for row in found.rows)
    told = found.to_dict()
    assert found.seconds is not None and found.floor is not None
    assert told["images_per_second_by_seconds"] == 8 / found.seconds
    assert told["images_per_second_by_floor"] == 8 / found.floor
    for row in found.rows[:-1]:  # two passes, forward and backward, each by what takes longer
        assert row.floor is not None
        assert row.floor >= max(row.gflop / 100, row.gigabytes / 10) * (1 - 1e-9)
    assert f"{8 / found.seconds:,.0f} images/s" in found.to_text()


def test_an_alternating_step_takes_two_minibatches() -> None:
    assert forecast_of("newmu").images == 16


@pytest.mark.parametrize("preset", ["cgan-dcgan", "cgan-mnist"])
@pytest.mark.parametrize("amp", [None, "bf16"])
def test_networks_with_labels(preset: str, amp: str | None) -> None:
    config = TrainConfig(preset=preset, batch_size=8, amp=amp)
    found = forecast(config, CEILINGS, seconds=0.01)
    assert found.seconds and found.dtype == ("float32" if amp is None else "bfloat16")
    assert {row.layer.split()[0] for row in found.rows} == {"G", "D", "optimizers"}


def test_nothing_is_measured_where_that_is_asked_for() -> None:
    found = forecast_of()
    assert found.seconds is None and found.floor is None
    assert found.to_dict()["images_per_second_by_seconds"] is None
    assert "predicted" not in found.to_text()
    assert all(row.engines in found.to_text() for row in found.rows)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--preset pytorch --image-size 16 --batch-size 4 --amp bf16 --channels 1 --seconds 0.1"
    assert cli.main(["info", *flags.split(), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["build"]["torch"] == torch.__version__
    assert told["machine"]["threads"] == torch.get_num_threads()
    assert told["ceilings"]["copy"] > 0
    assert told["weights"].keys() == {"Generator", "Discriminator"}
    of = told["forecast"]
    assert (of["preset"], of["images"], of["dtype"], of["image_size"]) == (
        "pytorch",
        4,
        "bfloat16",
        16,
    )
    assert of["images_per_second_by_seconds"] == pytest.approx(4 / of["seconds"])
    assert cli.main(["info", *flags.split()]) == 0
    out = capsys.readouterr().out
    assert "predicted " in out and "floor " in out and "FMA float32" in out


def test_the_command_without_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--seconds", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["forecast"], told["ceilings"], told["weights"]) == (None, {}, {})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("pytorch --preset newmu", "either as PRESET or with --preset"),
        ("--batch-size 3", "--batch-size is for the networks of a PRESET"),
        ("pytorch --seconds -1", "a number above 0 is needed, got '-1'"),
        ("pytorch --image-size 20", "'image_size' must be"),
        ("cgan-multimodal --batch-size 3", "--batch-size is for networks that make images"),
    ],
)
def test_wrong_flags(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert cli.main(["info", *flags.split()]) == 2
    except SystemExit as stop:
        assert stop.code == 2
    assert message in capsys.readouterr().err
