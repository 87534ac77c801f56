from __future__ import annotations

import json

import pytest

from dcgan_fast.errors import UserError
from dcgan_fast.models import PRESETS
from dcgan_fast.training import TrainConfig


def test_defaults_are_the_papers() -> None:
    config = TrainConfig()
    assert (config.data, config.preset, config.image_size) == ("digits", "pytorch", 32)
    assert (config.batch_size, config.lr, config.beta1) == (128, 2e-4, 0.5)
    assert (config.loss_output, config.bn) == ("logits", "running")


def test_a_preset_brings_its_dialect() -> None:
    newmu = TrainConfig(preset="newmu")
    assert (newmu.alternate, newmu.weight_decay, newmu.bn) == (True, 1e-5, "batch")
    assert newmu.batches_per_step == 2
    assert TrainConfig(preset="newmu-svhn").lr == 5e-4
    carpedm20 = TrainConfig(preset="carpedm20")
    assert (carpedm20.g_steps_per_d, carpedm20.batch_size) == (2, 64)


def test_what_is_given_outweighs_the_dialect() -> None:
    config = TrainConfig(preset="newmu", alternate=False, weight_decay=0.0, bn="running")
    assert (config.alternate, config.weight_decay, config.bn) == (False, 0.0, "running")


@pytest.mark.parametrize(
    ("data", "preset", "size"),
    [("mnist", "newmu", 32), ("photos", "pytorch", 64), ("photos", "newmu-imagenet32", 32)],
)
def test_image_size(data: str, preset: str, size: int) -> None:
    assert TrainConfig(data=data, preset=preset).image_size == size


def test_a_preset_with_labels_is_conditional() -> None:
    assert TrainConfig(preset="cgan-dcgan").conditional and not TrainConfig().conditional
    assert TrainConfig(conditional=True).conditional  # for networks of one's own
    config = TrainConfig(preset="cgan-dcgan", conditioning="projection")
    assert config.network_overrides() == {"conditioning": "projection"}


@pytest.mark.parametrize("preset", PRESETS)
def test_json_round_trip(preset: str) -> None:
    config = TrainConfig(preset=preset, ngf=8, amp="bf16", flip=True, save_steps=5)
    assert TrainConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["amp"] == "bf16"


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("lr", 0, "a positive number"),
        ("lr", float("nan"), "a positive number"),
        ("lr", "fast", "a positive number"),
        ("beta1", 1, "a number from 0 to below 1"),
        ("batch_size", 0, "a whole number of at least 1"),
        ("batch_size", 2.5, "a whole number of at least 1"),
        ("epochs", True, "a whole number of at least 1"),
        ("seed", -1, "a whole number of at least 0"),
        ("loss_output", "hinge", "one of logits, sigmoid"),
        ("amp", "fp8", "one of bf16, fp16"),
        ("bn", "fixed", "one of running, batch, population"),
        ("flip", 1, "true or false"),
        ("weight_decay", -1e-5, "a number of at least 0"),
        ("save_seconds", 0, "a positive number"),
        ("optimizer", "rmsprop", "one of adam, sgd"),
        ("lr_decay", 0.9, "a number of at least 1"),
        ("min_lr", -1, "a number of at least 0"),
        ("constant_epochs", -1, "a whole number of at least 0"),
        ("falling_epochs", 0, "a whole number of at least 1"),
        ("momentum", 1, "a number from 0 to below 1"),
        ("final_momentum", 1.5, "a number from 0 to below 1"),
        ("patience", 0, "a whole number of at least 1"),
        ("momentum_epochs", 0, "a whole number of at least 1"),
    ],
)
def test_values_outside_their_range(setting: str, value: object, rule: str) -> None:
    with pytest.raises(UserError, match=f"'{setting}' must be {rule}, got"):
        TrainConfig(**{setting: value})


def test_unknown_preset_names_the_known() -> None:
    with pytest.raises(UserError, match="unknown preset 'dcgan': the presets are pytorch, paper"):
        TrainConfig(preset="dcgan")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "hinge", "loss_output": "sigmoid"}, "without a sigmoid"),
        ({"objective": "wasserstein", "real_label": 0.9}, "no labels that could be smoothed"),
        ({"reuse_fake_output": True, "penalty": "r1"}, "'penalty' and 'reuse_fake_output'"),
        ({"alternate": True, "accumulate": 2}, "'accumulate' above 1 and 'alternate'"),
    ],
)
def test_objectives_that_do_not_go_together(settings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**settings)


def test_wasserstein_is_with_its_penalty() -> None:
    assert TrainConfig(objective="wasserstein").penalty == "wgan-gp"
    assert TrainConfig(objective="wasserstein", penalty="r1").penalty == "r1"
    assert TrainConfig().make_penalty() is None


def test_dialects_exclude_each_other() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        TrainConfig(preset="newmu", g_steps_per_d=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "must be a JSON object, got list"),
        (
            '{"learning_rate": 1}',
            "unknown setting 'learning_rate': the settings are accumulate, adam_eps,",
        ),
    ],
)
def test_bad_json(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig.from_json(text)


def test_a_continued_run_may_change_what_has_no_part_in_the_numbers() -> None:
    config = TrainConfig(epochs=3)
    changed = config.changed({"epochs": 5, "threads": 1, "save_steps": 7, "lr": 2e-4})
    assert (changed.epochs, changed.threads, changed.save_steps) == (5, 1, 7)
    with pytest.raises(UserError, match="cannot change 'lr': it was made with 0.0002, got 0.1"):
        config.changed({"lr": 0.1})
    with pytest.raises(UserError, match="'epochs' can only be raised: the run has 3, got 2"):
        config.changed({"epochs": 2})
