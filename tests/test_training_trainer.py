from __future__ import annotations

import errno
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch
from PIL import Image
from tiny_runs import (
    STEPS_PER_EPOCH,
    assert_same_checkpoint,
    assert_same_state,
    one_thread,  # noqa: F401
)
from torch import nn

from dcgan_fast import files, models
from dcgan_fast.data import Dataset
from dcgan_fast.errors import UserError
from dcgan_fast.nn import FusedSequential
from dcgan_fast.training import (
    Callback,
    TrainConfig,
    Trainer,
    TrainingDiverged,
    load_checkpoint,
    load_networks,
)
from dcgan_fast.training.checkpoint import save_checkpoint
from dcgan_fast.training.log import MetricsWindow


class At(Callback):
    """Calls ``act`` after the step of that number."""

    def __init__(self, step: int, act) -> None:
        self.step, self.act = step, act

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            self.act(trainer)


class Killed(BaseException):
    """As a kill: nothing in the trainer handles it."""


def kill(_: Trainer) -> None:
    raise Killed


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers(run: Path) -> list[dict[str, float]]:
    """The records without what depends on the clock."""
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines(run)]


# ------------------------------------------------------------------------- a run and its folder


def test_a_run_leaves_its_folder(tmp_path: Path) -> None:
    trainer = tiny_runs.trainer(tmp_path)
    run = trainer.fit()
    assert run == tmp_path / "noise-pytorch"
    assert sorted(os.listdir(run)) == [
        "checkpoint.previous.pt",
        "checkpoint.pt",
        "config.json",
        "discriminator.pth",
        "generator.pth",
        "losses.png",
        "metrics.jsonl",
        "real.png",
        "samples",
        "watch.png",
    ]
    assert sorted(os.listdir(run / "samples")) == ["epoch_0001.png", "epoch_0002.png"]
    with Image.open(run / "samples" / "epoch_0002.png") as grid:
        assert grid.size == (2 * 66 + 2, 2 * 66 + 2)
    with Image.open(run / "losses.png") as curves:
        assert curves.size == (900, 640)
    records = lines(run)
    assert [record["step"] for record in records] == [3, 6, 8]
    assert [record["epoch"] for record in records] == [1, 2, 2]
    keys = "step epoch loss_d loss_g d_x d_g_z1 d_g_z2 grad_norm_d grad_norm_g images_per_s".split()
    assert list(records[0]) == keys
    assert records == trainer.records
    config = TrainConfig.from_json((run / "config.json").read_text())
    assert (config.name, config.grid_every, config.epochs) == ("noise-pytorch", 1, 2)


def test_bare_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    run = tiny_runs.trainer(tmp_path).fit()
    checkpoint = load_checkpoint(run)
    for role in ("generator", "discriminator"):
        state = torch.load(run / f"{role}.pth", weights_only=True)
        assert_same_state(dict(state), dict(checkpoint[role]))
        assert models.infer_config(state)[0] == role


def test_weights_move(tmp_path: Path) -> None:
    trainer = tiny_runs.trainer()
    before = {key: value.clone() for key, value in trainer.generator.state_dict().items()}
    assert trainer.fit() is None
    after = trainer.generator.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before)


def test_runs_of_one_name(tmp_path: Path) -> None:
    for expected in ("noise-pytorch", "noise-pytorch-2", "noise-pytorch-3"):
        assert tiny_runs.trainer(tmp_path, max_steps=1).fit().name == expected
    tiny_runs.trainer(tmp_path, max_steps=1, name="mine").fit()
    with pytest.raises(UserError, match="mine holds a run already: continue it with --resume"):
        tiny_runs.trainer(tmp_path, max_steps=1, name="mine").fit()


def test_a_run_that_never_saved_can_be_begun_again(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        tiny_runs.trainer(tmp_path, name="mine").fit([At(3, kill)])
    assert numbers(tmp_path / "mine")[0]["step"] == 3
    tiny_runs.trainer(tmp_path, name="mine").fit()
    assert [record["step"] for record in lines(tmp_path / "mine")] == [3, 6, 8]


def test_grids_come_at_intervals(tmp_path: Path) -> None:
    run = tiny_runs.trainer(tmp_path, epochs=5, grid_every=2).fit()
    names = sorted(os.listdir(run / "samples"))
    assert names == ["epoch_0002.png", "epoch_0004.png", "epoch_0005.png"]
    assert tiny_runs.trainer(epochs=120).config.grid_every == 3


def test_epochs_by_default() -> None:
    small = Trainer(tiny_runs.config(epochs=None), dataset=tiny_runs.dataset())
    assert small.last_step == 1400 and small.config.grid_every == 7
    large = Trainer(tiny_runs.config(epochs=None, batch_size=1), dataset=tiny_runs.dataset())
    assert large.epochs == 25


def test_width_by_default() -> None:
    """Small on digits, so that the first run of all is short; the preset's on anything else."""
    for name, ngf, expected in (("digits", None, 32), ("digits", 8, 8), ("photos", None, 64)):
        data = Dataset(name, tiny_runs.dataset().images)
        trainer = Trainer(tiny_runs.config(ngf=ngf), dataset=data)
        assert trainer.generator.ngf == expected
        assert (trainer.config.data, trainer.config.ndf) == (name, 4)


def test_weights_of_every_epoch_as_pytorch_examples_names_them(tmp_path: Path) -> None:
    run = tiny_runs.trainer(tmp_path, epoch_weights=True).fit()
    names = {f"net{network}_epoch_{epoch}.pth" for network in "GD" for epoch in (0, 1)}
    assert names <= set(os.listdir(run))


def test_one_seed_one_run() -> None:
    runs = [tiny_runs.trainer(seed=seed) for seed in (3, 3, 4)]
    for run in runs:
        run.fit()
    assert_same_state(*(dict(run.generator.state_dict()) for run in runs[:2]))
    assert not torch.equal(runs[1].generator.main[0].weight, runs[2].generator.main[0].weight)


def test_neither_grids_nor_checkpoints_touch_the_numbers(tmp_path: Path) -> None:
    for bn in models.BN_MODES:
        watched = tiny_runs.trainer(tmp_path, bn=bn, save_steps=1)
        watched.fit()
        alone = tiny_runs.trainer()
        alone.fit()
        assert_same_state(
            dict(watched.generator.state_dict()), dict(alone.generator.state_dict()), bn
        )


# --------------------------------------------------------------------------------------- variants


@pytest.mark.parametrize("preset", models.PRESETS)
def test_every_preset_trains_in_its_dialect(preset: str) -> None:
    widths = {} if models.PRESETS[preset].knows("ngf") else {"ngf": None, "ndf": None}
    trainer = tiny_runs.trainer(preset=preset, image_size=16, nz=None, **widths)
    trainer.fit()
    assert trainer.step == trainer.last_step == 8 // trainer.config.batches_per_step
    assert all(math.isfinite(value) for record in trainer.records for value in record.values())


def test_an_alternating_step_passes_over_every_other_batch() -> None:
    seen = []
    trainer = tiny_runs.trainer(alternate=True)
    update = trainer._update
    trainer._update = lambda real, draw: seen.append(real.clone()) or update(real, draw)
    trainer.fit()
    everything = []
    plain = tiny_runs.trainer()
    update_plain = plain._update
    plain._update = lambda real, draw: everything.append(real.clone()) or update_plain(real, draw)
    plain.fit()
    assert len(seen) == 4 and len(everything) == 8
    assert all(torch.equal(a, b) for a, b in zip(seen, everything[1::2], strict=True))


# ------------------------------------------------------------------------------------ with labels


@pytest.mark.parametrize("conditioning", ["concat", "projection"])
def test_labels_reach_the_networks_in_every_dialect(conditioning: str) -> None:
    for dialect in ("alternate", "joint_pass", "reuse_fake_output", None):
        changes = {"alternate": False, **({dialect: True} if dialect else {})}
        trainer = tiny_runs.trainer(preset="cgan-dcgan", conditioning=conditioning, **changes)
        seen: dict[str, set[int]] = {"generator": set(), "discriminator": set()}
        for role, labels in seen.items():
            getattr(trainer, role).register_forward_pre_hook(
                lambda _, inputs, labels=labels: labels.update(inputs[1].tolist())
            )
        trainer.fit()
        assert seen == {"generator": {0, 1, 2}, "discriminator": {0, 1, 2}}, dialect
        assert trainer.classes == trainer.generator.classes == 3
        assert all(math.isfinite(value) for record in trainer.records for value in record.values())


def test_real_images_come_with_their_labels() -> None:
    """D is shown each image beside the label that the data has for it."""
    trainer = tiny_runs.trainer(preset="cgan-dcgan", alternate=False)
    data, seen = trainer.dataset, []
    update = trainer._update
    trainer._update = lambda real, draw: seen.append(real) or update(real, draw)
    trainer.fit()
    label_of = dict(zip((i.tobytes() for i in data.images), data.labels, strict=True))
    for images, labels in seen:
        pixels = (images * 255).round().to(torch.uint8).numpy()
        assert [label_of[np.ascontiguousarray(i).tobytes()] for i in pixels] == labels.tolist()


def test_drawn_labels_are_as_frequent_as_in_the_data() -> None:
    images = np.zeros((64, 1, 16, 16), np.uint8)
    labels = np.repeat([0, 2], [48, 16])
    data = Dataset("uneven", images, labels)
    trainer = Trainer(tiny_runs.config(preset="cgan-dcgan"), dataset=data)
    drawn = torch.cat([trainer._draw()[1] for _ in range(100)])
    assert trainer.classes == 3 and not (drawn == 1).any()
    assert 0.7 < (drawn == 0).float().mean() < 0.8


def test_a_grid_has_a_row_for_each_class(tmp_path: Path) -> None:
    run = tiny_runs.trainer(tmp_path, preset="cgan-dcgan", nz=8).fit()
    for picture in ("samples/epoch_0001.png", "real.png"):
        with Image.open(run / picture) as image:
            assert image.size == (8 * 66 + 2, 3 * 66 + 2), picture


def test_of_many_classes_some_have_rows() -> None:
    images = np.zeros((200, 1, 16, 16), np.uint8)
    data = Dataset("many", images, np.arange(200) % 100)
    trainer = Trainer(tiny_runs.config(preset="cgan-dcgan"), dataset=data)
    shown = trainer._grid.classes
    assert len(shown) == 32 and (shown[0], shown[-1]) == (0, 99)


class OwnConditionalGenerator(nn.Module):
    output_range = (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.of_label = nn.Linear(8, 256), nn.Embedding(3, 256)

    def forward(self, latent: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (
            (self.linear(latent.flatten(1)) + self.of_label(labels)).sigmoid().view(-1, 1, 16, 16)
        )


class OwnConditionalDiscriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.of_label = nn.Linear(256, 1), nn.Embedding(3, 256)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1) * self.of_label(labels)).flatten()


def test_networks_of_ones_own_may_take_labels(tmp_path: Path) -> None:
    networks = {
        "generator": OwnConditionalGenerator(),
        "discriminator": OwnConditionalDiscriminator(),
    }
    trainer = Trainer(
        tiny_runs.config(tmp_path, conditional=True), dataset=tiny_runs.dataset(), **networks
    )
    run = trainer.fit()
    checkpoint = load_checkpoint(run)
    assert checkpoint["networks"]["generator"] == "OwnConditionalGenerator"
    with Image.open(run / "samples/epoch_0001.png") as image:
        assert image.size == (8 * 66 + 2, 3 * 66 + 2)


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        (None, {"preset": "cgan-dcgan"}, "mine has no labels, which conditional networks need"),
        ([0] * 32, {"preset": "cgan-dcgan"}, "mine has 1 class, conditional networks need 2"),
        (
            [0, 1] * 16,
            {"conditional": True},
            r"needs a preset whose .* \(cgan-dcgan, cgan-mnist\), got 'pytorch'",
        ),
    ],
)
def test_labels_that_are_missing(labels, changes: dict[str, object], message: str) -> None:
    images = np.zeros((32, 1, 16, 16), np.uint8)
    data = Dataset("mine", images, None if labels is None else np.array(labels))
    with pytest.raises(UserError, match=message):
        Trainer(tiny_runs.config(**changes), dataset=data)


def test_networks_of_other_classes_are_refused() -> None:
    small = {"image_size": 16, "ngf": 2, "ndf": 2, "ngfc": 2, "ndfc": 2, "nz": 8}
    generator, discriminator = models.build("cgan-dcgan", classes=2, **small)
    with pytest.raises(UserError, match="'generator' has 2 classes, noise has 3"):
        Trainer(
            tiny_runs.config(),
            generator=generator,
            discriminator=discriminator,
            dataset=tiny_runs.dataset(),
        )


# ---------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "changes",
    [
        {"amp": "bf16"},
        {"loss_output": "sigmoid"},
        {"channels_last": False},
        {"reuse_fake_output": True},
        {"joint_pass": True, "amp": "bf16"},
        {"flip": True},
        {"bn": "batch"},
        {"bn": "population"},
        {"objective": "minimax", "real_label": 0.9},
        {"objective": "hinge", "ema": 0.9, "clip_grad": 0.5},
        {"objective": "wasserstein", "d_steps_per_g": 2, "beta1": 0.0, "beta2": 0.9},
        {"penalty": "r1", "penalty_every": 2, "joint_pass": True, "amp": "bf16"},
        {"amp": "fp16", "accumulate": 2, "instance_noise": 0.1},
    ],
)
def test_settings(tmp_path: Path, changes: dict[str, object]) -> None:
    trainer = tiny_runs.trainer(tmp_path, **changes)
    trainer.fit()
    assert all(math.isfinite(value) for record in trainer.records for value in record.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.9, "penalty": "r1", "penalty_every": 3, "joint_pass": True},
        {"objective": "wasserstein", "d_steps_per_g": 2, "instance_noise": 0.2, "epochs": 4},
        {"amp": "fp16", "accumulate": 2, "clip_grad": 1.0, "epochs": 4},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_continued_run_of_any_objective_is_the_unbroken_one(tmp_path: Path, changes) -> None:
    whole = tiny_runs.trainer(tmp_path / "whole", **changes)
    whole.fit()
    part = tiny_runs.trainer(tmp_path / "part", **changes, max_steps=5)
    part.fit()
    rest = Trainer.resume(part.run.path, dataset=tiny_runs.dataset(), max_steps=None)
    rest.fit()
    found, expected = (load_checkpoint(t.run.checkpoint) for t in (rest, whole))
    for content in (found, expected):
        del content["train_config"]
    tiny_runs.assert_same_state(found, expected)


def test_an_average_of_the_generator_draws(tmp_path: Path) -> None:
    trainer = tiny_runs.trainer(tmp_path, ema=0.5, epochs=1)
    name, weight = next(iter(trainer.generator.named_parameters()))
    seen: list[torch.Tensor] = []

    class Note(Callback):
        def on_step(self, trainer: Trainer) -> None:
            seen.append(weight.detach().clone())

    trainer.fit([Note()])
    average = None
    for value in seen:  # the first is taken as it is
        average = value if average is None else average.lerp(value, 0.5)
    torch.testing.assert_close(dict(trainer.ema.module.named_parameters())[name], average)
    generator, _, content = load_networks(trainer.run.path)
    torch.testing.assert_close(dict(generator.named_parameters())[name], average)
    assert not torch.equal(content["generator"][name], average)
    bare = torch.load(trainer.run.generator_ema, weights_only=True)
    torch.testing.assert_close(bare[name], average)


def test_a_step_of_several_updates_takes_several_batches(tmp_path: Path) -> None:
    trainer = tiny_runs.trainer(d_steps_per_g=2, epochs=1)
    assert (trainer.steps_per_epoch, trainer.images_per_step) == (2, 32)
    sizes = []
    update = trainer._update
    trainer._update = lambda real, draw: sizes.append([len(b) for b in real]) or update(real, draw)
    trainer.fit()
    assert sizes == [[16, 16], [16, 16]]


def test_fused_and_plain_networks_agree() -> None:
    fused, plain = tiny_runs.trainer(), tiny_runs.trainer(fuse=False)
    assert isinstance(fused.generator.main, FusedSequential)
    assert type(plain.generator.main) is nn.Sequential
    for trainer in (fused, plain):
        trainer.fit()
    for a, b in zip(fused.records, plain.records, strict=True):
        assert a["loss_d"] == pytest.approx(b["loss_d"], rel=1e-3)
        assert a["loss_g"] == pytest.approx(b["loss_g"], rel=1e-3)


class OwnGenerator(nn.Module):
    """With dropout: its draws come from PyTorch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(8, 64),
            nn.BatchNorm1d(64),
            nn.Dropout(),
            nn.Linear(64, 256),
            nn.Tanh(),
        )

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.layers(latent).reshape(-1, 1, 16, 16)


def own_networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(7)
    return OwnGenerator(), nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.Flatten(), nn.Linear(256, 1))


def own_trainer(out: Path, **changes: object) -> Trainer:
    generator, discriminator = own_networks()
    return Trainer(
        tiny_runs.config(out, **changes),
        generator=generator,
        discriminator=discriminator,
        dataset=tiny_runs.dataset(),
    )


def test_networks_of_ones_own_train_and_continue(tmp_path: Path) -> None:
    whole = own_trainer(tmp_path, name="whole").fit()
    with pytest.raises(Killed):
        own_trainer(tmp_path, name="broken", save_steps=1).fit([At(6, kill)])
    generator, discriminator = own_networks()
    resumed = Trainer.resume(
        tmp_path / "broken",
        generator=generator,
        discriminator=discriminator,
        dataset=tiny_runs.dataset(),
    )
    assert resumed.generator is generator and resumed.step == 5
    resumed.fit()
    assert_same_checkpoint(whole, tmp_path / "broken")
    assert "samples" in os.listdir(whole)


def test_networks_of_ones_own_have_no_population_grid(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bn='population' needs a dcgan_fast.models.Generator"):
        own_trainer(tmp_path, bn="population").fit()


def test_one_network_alone_is_refused() -> None:
    with pytest.raises(UserError, match="give both 'generator' and 'discriminator', or neither"):
        Trainer(tiny_runs.config(), generator=OwnGenerator(), dataset=tiny_runs.dataset())


def test_starting_weights(tmp_path: Path) -> None:
    run = tiny_runs.trainer(tmp_path).fit()
    started = tiny_runs.trainer(
        init_generator=str(run / "generator.pth"), init_discriminator=str(run)
    )
    checkpoint = load_checkpoint(run)
    assert_same_state(dict(started.generator.state_dict()), dict(checkpoint["generator"]))
    assert_same_state(dict(started.discriminator.state_dict()), dict(checkpoint["discriminator"]))
    (run / "generator.pth").rename(tmp_path / "start.pth")
    first = tiny_runs.trainer(
        tmp_path, init_generator=str(tmp_path / "start.pth"), max_steps=1
    ).fit()
    (tmp_path / "start.pth").rename(run / "generator.pth")
    resumed = Trainer.resume(first, dataset=tiny_runs.dataset())
    assert resumed.config.init_generator == str(tmp_path / "start.pth")  # gone, and not missed
    with pytest.raises(UserError, match="discriminator.pth .*'main"):
        tiny_runs.trainer(init_generator=str(run / "discriminator.pth"))
    with pytest.raises(UserError, match="'main.0.weight' is .* in the file, .* in the generator"):
        tiny_runs.trainer(init_generator=str(run / "generator.pth"), ngf=8)


# ---------------------------------------------------------------------- stopping and continuing


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"preset": "newmu", "nz": 100},
        {"flip": True, "amp": "bf16"},
        {"preset": "cgan-dcgan", "alternate": False},
    ],
)
@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_killed_run_continues_bit_for_bit(
    tmp_path: Path, step: int, changes: dict[str, object]
) -> None:
    changes = {"epochs": 4, "save_steps": 2, **changes}
    whole = tiny_runs.trainer(tmp_path, name="whole", **changes).fit()
    broken = tmp_path / "broken"
    with pytest.raises(Killed):
        tiny_runs.trainer(tmp_path, name="broken", **changes).fit([At(step + 2, kill)])
    resumed = Trainer.resume(broken, dataset=tiny_runs.dataset())
    assert resumed.step == (step + 1) // 2 * 2
    resumed.fit()
    assert_same_checkpoint(whole, broken)
    assert numbers(whole) == numbers(broken)
    for picture in ("samples/epoch_0002.png", "losses.png", "generator.pth"):
        assert (whole / picture).read_bytes() == (broken / picture).read_bytes()


def test_metrics_are_neither_doubled_nor_torn(tmp_path: Path) -> None:
    whole = tiny_runs.trainer(tmp_path, name="whole", epochs=4).fit()
    with pytest.raises(Killed):
        tiny_runs.trainer(tmp_path, name="broken", epochs=4).fit([At(7, kill)])
    broken = tmp_path / "broken"
    assert [record["step"] for record in lines(broken)] == [3, 6]
    with open(broken / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "loss')  # what a loss of power leaves
    resumed = Trainer.resume(broken, dataset=tiny_runs.dataset())
    assert resumed.step == 4
    resumed.fit()
    assert numbers(broken) == numbers(whole)


def test_epochs_may_be_raised(tmp_path: Path) -> None:
    whole = tiny_runs.trainer(tmp_path, name="whole", epochs=3).fit()
    longer = tiny_runs.trainer(tmp_path, name="longer", epochs=2).fit()
    assert Trainer.resume(longer, dataset=tiny_runs.dataset()).fit() == longer  # nothing to do
    assert [record["step"] for record in lines(longer)] == [3, 6, 8]
    Trainer.resume(longer, dataset=tiny_runs.dataset(), epochs=3).fit()
    assert numbers(longer) == numbers(whole)
    assert_same_checkpoint(whole, longer)


def test_a_moved_run_continues_where_it_is(tmp_path: Path) -> None:
    run = tiny_runs.trainer(tmp_path, epochs=1).fit()
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    run.rename(moved)
    trainer = Trainer.resume(moved, dataset=tiny_runs.dataset(), epochs=2)
    assert trainer.fit() == moved
    assert trainer.config.name == "moved" and not run.exists()


def test_the_newest_run_of_a_folder_is_meant(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tiny_runs.trainer(tmp_path, name=name, max_steps=1).fit()
    os.utime(tmp_path / "one" / "checkpoint.pt", (2e9, 2e9))
    trainer = Trainer.resume(tmp_path, dataset=tiny_runs.dataset(), max_steps=2)
    assert trainer.fit() == tmp_path / "one"


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    whole = tiny_runs.trainer(tmp_path, name="whole").fit()
    run = tiny_runs.trainer(tmp_path, name="damaged").fit()
    content = (run / "checkpoint.pt").read_bytes()
    (run / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="continuing from .*checkpoint.previous.pt"):
        trainer = Trainer.resume(run, dataset=tiny_runs.dataset())
    assert trainer.step == STEPS_PER_EPOCH
    trainer.fit()
    assert_same_checkpoint(whole, run)


def test_a_missing_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    run = tiny_runs.trainer(tmp_path).fit()
    (run / "checkpoint.pt").unlink()
    assert Trainer.resume(run, dataset=tiny_runs.dataset()).step == STEPS_PER_EPOCH


def test_what_cannot_be_continued(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to continue from: .*nowhere does not exist"):
        Trainer.resume(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint to continue from"):
        Trainer.resume(tmp_path)
    run = tiny_runs.trainer(tmp_path).fit()
    with pytest.raises(UserError, match="cannot change 'ngf': it was made with 4, got 8"):
        Trainer.resume(run, dataset=tiny_runs.dataset(), ngf=8)
    with pytest.raises(UserError, match=r"other data: images \(64, 1, 16, 16\) then, \(80, 1, 16"):
        Trainer.resume(run, dataset=tiny_runs.dataset(80))
    generator, discriminator = own_networks()
    with pytest.raises(UserError, match="'layers.1.weight' is missing in the file"):
        Trainer.resume(
            run, dataset=tiny_runs.dataset(), generator=generator, discriminator=discriminator
        )
    checkpoint = load_checkpoint(run)
    del checkpoint["train_config"]
    save_checkpoint(tmp_path / "bare.pt", checkpoint)
    with pytest.raises(UserError, match="networks but no training run to continue"):
        Trainer.resume(tmp_path / "bare.pt")


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_saves_and_ends(tmp_path: Path, number: int, error: type[BaseException]) -> None:
    handlers = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    whole = tiny_runs.trainer(tmp_path, name="whole").fit()
    stopped = tiny_runs.trainer(tmp_path, name="stopped")
    with pytest.raises(error) as caught:
        stopped.fit([At(6, lambda _: os.kill(os.getpid(), number))])
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    assert load_checkpoint(tmp_path / "stopped")["step"] == stopped.step == 6
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == handlers
    stopped.fit()  # a notebook goes on with the same object
    assert_same_checkpoint(whole, tmp_path / "stopped")
    assert numbers(whole) == numbers(tmp_path / "stopped")


# -------------------------------------------------------------------------------------- divergence


def poison(weight: str, value: float):
    def act(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.generator.get_parameter(weight).fill_(value)

    return act


def test_nan_stops_with_step_loss_and_checkpoint(tmp_path: Path) -> None:
    trainer = tiny_runs.trainer(tmp_path, name="run", epochs=4)
    with pytest.raises(TrainingDiverged) as caught:
        trainer.fit([At(6, poison("main.0.weight", math.nan))])
    run = tmp_path / "run"
    assert str(caught.value) == (
        "loss_d is nan at step 7: training diverged; the last good checkpoint is "
        f"{run / 'checkpoint.pt'}; a lower --lr may help"
    )
    assert load_checkpoint(run)["step"] == 4
    assert [record["step"] for record in lines(run)] == [3, 6]


def test_a_checkpoint_never_holds_weights_that_are_not_finite(tmp_path: Path) -> None:
    """The losses of the last step before a checkpoint do not show what its update did."""
    trainer = tiny_runs.trainer(tmp_path, name="run", epochs=4, grid_every=9)
    with pytest.raises(TrainingDiverged, match="a weight of the generator is not finite after ste"):
        trainer.fit([At(8, poison("main.3.weight", math.inf))])
    assert load_checkpoint(tmp_path / "run")["step"] == 4


def test_divergence_before_the_first_checkpoint(tmp_path: Path) -> None:
    trainer = tiny_runs.trainer(tmp_path, lr=1e30)
    with pytest.raises(TrainingDiverged, match="step 1: training diverged; there is no checkpoint"):
        trainer.fit()


def test_the_first_step_that_is_not_finite_is_named() -> None:
    window = MetricsWindow(("a", "b"), every=4)
    for step, row in enumerate([(1, 1), (2, math.inf), (math.nan, 1)], start=9):
        window.add(step, torch.tensor(row))
    with pytest.raises(TrainingDiverged, match="^b is inf at step 10$"):
        window.add(12, torch.zeros(2))


# ---------------------------------------------------------------------------------- what goes wrong


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_runs.trainer(tmp_path, name="run", epochs=4)

    def fill(_: Trainer) -> None:
        monkeypatch.setattr(files.os, "fsync", full_disk)

    with pytest.raises(UserError, match="cannot write .*: No space left on device"):
        trainer.fit([At(7, fill)])
    monkeypatch.undo()
    run = tmp_path / "run"
    assert load_checkpoint(run)["step"] == 4
    assert not list(run.rglob("*.tmp"))
    Trainer.resume(run, dataset=tiny_runs.dataset()).fit()
    assert load_checkpoint(run)["step"] == 16


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_metrics_on_a_full_disk(tmp_path: Path) -> None:
    trainer = tiny_runs.trainer(tmp_path, name="run")
    trainer._open_run()
    (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="metrics.jsonl: No space left on device"):
        trainer._metrics.append({"step": 1})


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    run = tiny_runs.trainer(tmp_path, epochs=1).fit()
    leftovers = [run / ".checkpoint.pt.1.tmp", run / "samples" / ".epoch_0001.png.1.tmp"]
    for path in leftovers:
        path.touch()
    Trainer.resume(run, dataset=tiny_runs.dataset(), epochs=2).fit()
    assert not any(path.exists() for path in leftovers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 65}, "noise holds 64 images, fewer than the 65 of one step"),
        ({"batch_size": 33, "alternate": True}, "64 images, fewer than the 66 of one step"),
        ({"device": "tpu9"}, "the device 'tpu9' cannot be used here: "),
        ({"device": "cuda:99"}, "the device 'cuda:99' cannot be used here: "),
        ({"image_size": 24}, "'image_size' must be a power of two between 16 and 256, got 24"),
        ({"image_size": 8}, "'image_size' must be a power of two between 16 and 256, got 8"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_runs.trainer(**changes)


def test_own_data_decides_size_and_channels() -> None:
    images = np.zeros((32, 3, 32, 32), np.uint8)
    trainer = Trainer(tiny_runs.config(), dataset=Dataset("mine", images))
    assert trainer.config.image_size == 32
    assert trainer.generator.nc == trainer.discriminator.nc == 3
