from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from test_training_trainer import At, Killed, kill, lines, numbers
from tiny_runs import assert_same_checkpoint, one_thread  # noqa: F401
from torch import Tensor, nn

from dcgan_fast import models, unfuse
from dcgan_fast.data import Dataset
from dcgan_fast.training import (
    CollapseWatch,
    Trainer,
    TrainingDiverged,
    load_checkpoint,
    trainer,
    watch,
)
from dcgan_fast.training.watch import (
    EARLY,
    IN_A_ROW,
    SWING,
    FilterLook,
    filter_looks,
    gradient_norm,
    pair_distance,
)

SIDE, FILTERS, SAMPLES = 16, 40, 64


class Planted(nn.Module):
    """Maps, (N, filters, 16, 16), with something else in the place of some filters."""

    def __init__(self, plant: Callable[[Tensor], None] = lambda maps: None) -> None:
        super().__init__()
        self.plant = plant

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps.clone()
        self.plant(maps)
        return maps


def planted(plant: Callable[[Tensor], None] = lambda maps: None) -> nn.Module:
    """A healthy generator but for what is planted between its last convolutions."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ConvTranspose2d(8, FILTERS, 4, 1, 0),
        nn.BatchNorm2d(FILTERS),
        nn.ReLU(True),
        nn.ConvTranspose2d(FILTERS, FILTERS, 4, 4, 0),
        nn.BatchNorm2d(FILTERS),
        nn.ReLU(),
        Planted(plant),
        nn.Conv2d(FILTERS, 1, 3, 1, 1),
        nn.Tanh(),
    )


def latents(count: int = SAMPLES) -> Tensor:
    return torch.randn(count, 8, 1, 1, generator=torch.Generator().manual_seed(1))


def waves(phases: Tensor) -> Tensor:
    """(N, 16, 16): diagonal waves of two periods, one for each phase."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return 1 + (2 * math.pi * (2 * x + y) / SIDE + phases[:, None, None]).sin()


def phases(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(2)) * 2 * math.pi


def one_wave(maps: Tensor) -> None:
    maps[:, 3:6] = waves(torch.zeros(1))[:, None]


def a_wave_a_sample(maps: Tensor) -> None:
    maps[:, 3:6] = waves(phases(len(maps)))[:, None]


def one_picture(maps: Tensor) -> None:
    maps[:, 3:6] = maps[:1, 3:6].clone()


def nothing(maps: Tensor) -> None:
    maps[:, 3:6] = 0.25


# ---------------------------------------------------------------------------------- one look


def test_measures_are_what_they_are_said_to_be() -> None:
    generator = planted()
    (first, second), images = filter_looks(generator, latents())
    assert (first.layer, first.shape) == ("0", (FILTERS, 4, 4))
    assert (second.layer, second.shape) == ("3", (FILTERS, SIDE, SIDE))
    with torch.no_grad():
        maps = generator[:6].train()(latents()).double().numpy()
        torch.testing.assert_close(images, generator.train()(latents()), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second.deviation, maps.std((0, 2, 3)), rtol=1e-4)
    share = maps.mean(0).var((1, 2)) / maps.var((0, 2, 3))
    np.testing.assert_allclose(second.sameness, share, rtol=1e-3)
    power = np.abs(np.fft.fft2(maps[:16])) ** 2
    power[..., 0, 0] = 0
    flat = power.reshape(16, FILTERS, -1)
    # a real map's component comes twice, at a frequency and at its negative, but for four that are their own
    own = np.zeros((SIDE, SIDE), bool)
    own[np.ix_([0, SIDE // 2], [0, SIDE // 2])] = True
    strongest = np.where(own.ravel(), flat, 2 * flat).max(2)
    np.testing.assert_allclose(second.wave, strongest.sum(0) / flat.sum((0, 2)), rtol=1e-3)
    assert not first.collapsed.any() and not second.collapsed.any()


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (one_wave, "same"),
        (a_wave_a_sample, "waves"),
        (one_picture, "same"),
        (nothing, "dead"),
    ],
)
def test_a_planted_collapse_is_found(plant: Callable[[Tensor], None], kind: str) -> None:
    (first, second), _ = filter_looks(planted(plant), latents())
    expected = torch.zeros(FILTERS, dtype=torch.bool)
    expected[3:6] = True
    for name in ("dead", "same", "waves"):
        assert torch.equal(getattr(second, name), expected & (name == kind)), name
    assert torch.equal(second.collapsed, expected) and not first.collapsed.any()
    if plant in (one_wave, a_wave_a_sample):
        torch.testing.assert_close(second.wave[3:6], torch.ones(3))


def test_a_wave_that_a_relu_halves() -> None:
    def half(maps: Tensor) -> None:
        maps[:, 3] = (waves(phases(len(maps))) - 1).relu()

    (_, second), _ = filter_looks(planted(half), latents())
    expected = (1 / 8) / (1 / 4 - 1 / math.pi**2)  # of the first harmonic in max(0, sin)
    assert second.wave[3] == pytest.approx(expected, abs=0.02)


def test_on_small_maps_nothing_is_a_wave() -> None:
    def look(side: int) -> FilterLook:
        ones = torch.ones(8)
        return FilterLook("x", (8, side, side), ones, 0 * ones, ones, torch.zeros(8, 16))

    assert look(8).waves.all() and not look(4).collapsed.any()


@pytest.mark.parametrize(
    ("preset", "layers"),
    [
        ("pytorch", ["main.0", "main.3", "main.6"]),
        ("newmu", ["main.0", "main.4", "main.7"]),
        ("cgan-dcgan", ["main.3", "main.7", "main.10"]),
        ("cgan-mnist", []),
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_generator_comes_back_as_it_was(preset: str, layers: list[str], fused: bool) -> None:
    sizes = {} if preset == "cgan-mnist" else {"image_size": 32, "ngf": 4, "ndf": 4}
    generator = models.build(preset, **sizes)[0].train()
    generator = generator if fused else unfuse(generator)
    drawn = generator.sample_latent(8)
    labels = (torch.arange(8) % generator.classes,) if generator.classes else ()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    state = torch.get_rng_state()
    found, images = filter_looks(generator, drawn, *labels)
    assert [each.layer for each in found] == layers and len(images) == 8
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(m.training and not m._forward_pre_hooks for m in generator.modules())
    again, _ = filter_looks(generator, drawn, *labels)
    for a, b in zip(found, again, strict=True):
        assert torch.equal(a.projection, b.projection)


def test_pair_distance() -> None:
    images = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [0.0, 1.0]])
    assert pair_distance(images) == pytest.approx(
        (5 + 10 + 1 + 5 + math.hypot(3, 3) + math.hypot(6, 7)) / 6
    )
    assert pair_distance(images, torch.tensor([0, 1, 1, 0])) == pytest.approx(3)
    assert math.isnan(pair_distance(images, torch.arange(4))) and math.isnan(
        pair_distance(images[:1])
    )


def test_gradient_norm() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(1, 1))
    network[:2](torch.randn(5, 3)).sum().backward()
    gradients = [p.grad.flatten() for p in network[:2].parameters()]
    assert gradient_norm(network) == pytest.approx(float(torch.cat(gradients).norm()))
    assert gradient_norm(nn.Linear(1, 1)) == 0


# ------------------------------------------------------------------------- from look to look


def swings(pictures: list[Tensor]) -> Tensor:
    """Of filters that show these pictures, (N, filters, 16, 16), look after look."""
    at = iter(pictures)
    generator = planted(lambda maps: maps.copy_(next(at)))
    watch = CollapseWatch((latents(),))
    for _ in pictures:
        watch.look(generator)
    return watch.swings[1]


def noise(seed: int) -> Tensor:
    shape = (SAMPLES, FILTERS, SIDE, SIDE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_swings() -> None:
    still, other = noise(0), noise(1)
    assert (swings([still] * 8) == 0).all()
    assert (swings([still + 0.3 * n * other for n in range(8)]) == 0).all()  # a drift
    torch.testing.assert_close(
        swings([still * (-1) ** n for n in range(8)]).mean(), torch.tensor(2.0), rtol=0.05, atol=0
    )
    between = swings([(still, other)[n % 2] for n in range(8)])
    torch.testing.assert_close(between.mean(), torch.tensor(2.0).sqrt(), rtol=0.1, atol=0)
    unrelated = swings([noise(n) for n in range(8)])
    torch.testing.assert_close(unrelated.mean(), torch.tensor(1.0), rtol=0.1, atol=0)
    small = swings([still + 0.1 * other * (-1) ** n for n in range(8)])
    torch.testing.assert_close(small.mean(), torch.tensor(0.2), rtol=0.1, atol=0)


def test_swings_are_of_the_last_eight_looks() -> None:
    still = noise(0)
    calm = swings([still * (-1) ** n for n in range(6)] + [still] * 8)
    assert (calm == 0).all()
    watch = CollapseWatch((latents(),))
    for looks in range(4):
        assert not watch.swings
        assert "swing" not in (watch.look(planted()) if looks < 3 else {})
    watch.look(planted())
    assert len(watch.swings) == 2


def test_a_generator_of_other_layers_begins_anew() -> None:
    watch = CollapseWatch((latents(),))
    for _ in range(4):
        watch.look(planted())
    watch.look(planted()[:6].append(nn.Conv2d(FILTERS, 1, 1)).append(nn.ConvTranspose2d(1, 1, 2)))
    assert len(watch.layers) == 3 and not watch.swings


def test_a_record_of_a_look() -> None:
    watch = CollapseWatch((latents(),), real_distance=4.0, value_range=(-1.0, 1.0))
    found = watch.look(planted(nothing))
    images = filter_looks(planted(nothing), latents())[1]
    assert found["diversity"] == pytest.approx(pair_distance((images + 1) / 2) / 4)
    assert found["collapsed"] == pytest.approx(3 / (2 * FILTERS))
    of_layers = torch.cat([each.sameness for each in watch.layers])
    assert found["sameness"] == pytest.approx(float(of_layers.mean()))
    assert list(found) == ["diversity", "sameness", "wave", "collapsed"]
    assert "diversity" not in CollapseWatch((latents(),)).look(planted())


# ------------------------------------------------------------------------------------ warnings


def complaints(looks: int, generator_of: Callable[[int], nn.Module], **settings: Any) -> list[Any]:
    watch = CollapseWatch((latents(),), **settings)
    found = []
    for number in range(looks):
        watch.look(generator_of(number))
        found.append(watch.warning())
    return found


def test_a_healthy_generator_is_left_in_peace() -> None:
    generator = planted()
    images = filter_looks(generator, latents())[1]
    distance = pair_distance((images + 1) / 2)
    drift = torch.randn(generator[3].weight.shape) * 0.01

    def moving(_: int) -> nn.Module:
        with torch.no_grad():
            generator[3].weight += drift
        return generator

    assert complaints(12, moving, real_distance=distance) == [None] * 12


@pytest.mark.parametrize(
    ("plant", "what", "early"),
    [
        (one_wave, "draw one picture whatever the latent", EARLY),  # as all do at first
        (a_wave_a_sample, "draw a single wave", 0),
        (nothing, "draw nothing", 0),
    ],
)
def test_collapsed_filters_are_reported_once(
    plant: Callable[[Tensor], None], what: str, early: int
) -> None:
    found = complaints(12, lambda number: planted(plant))
    first, what = early + IN_A_ROW - 1, f"3 of the 40 filters of 3 {what}"
    assert found[first] == f"the generator collapses: {what}"
    assert not any(found[:first]) and not any(found[first + 1 :])


def test_one_filter_alone_and_collapses_that_pass_are_not_reported() -> None:
    def one(maps: Tensor) -> None:
        maps[:, 0] = 0

    assert not any(complaints(12, lambda number: planted(one)))
    healthy, ill = planted(), planted(nothing)
    assert not any(complaints(16, lambda number: ill if number in (8, 9) else healthy))


def test_oscillating_filters_are_reported() -> None:
    def flip(sign: int) -> Callable[[Tensor], None]:
        return lambda maps: maps[:, 3:6].mul_(sign)

    found = complaints(8, lambda number: planted(flip((-1) ** number)))
    assert found[5] == (  # the third look at which there is a swing
        "the generator collapses: 3 of the 40 filters of 3 draw another picture at each look"
    )


def test_samples_that_are_alike_are_reported() -> None:
    images = filter_looks(planted(), latents())[1]
    distance = pair_distance((images + 1) / 2)
    found = complaints(8, lambda number: planted(), real_distance=10 * distance)
    assert found[7] == "the generator collapses: its samples are nearly alike"


def test_a_state_continues_the_watch() -> None:
    whole, first, second = (CollapseWatch((latents(),)) for _ in range(3))
    generators = [planted(lambda maps, n=n: maps[:, 3:6].mul_((-1) ** n)) for n in range(10)]
    records = [(whole.look(each), whole.warning()) for each in generators]
    found = [(first.look(each), first.warning()) for each in generators[:6]]
    second.load(first.state())
    found += [(second.look(each), second.warning()) for each in generators[6:]]
    assert found == records and any(warning for _, warning in records)
    third = CollapseWatch((latents(),))
    third.load(second.state())
    assert third.look(generators[9]) and third.warning() is None  # said already


# ------------------------------------------------------------------------------- in a training


@pytest.fixture
def at_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at each; that samples of tiny networks hardly differ is no matter."""
    monkeypatch.setattr(trainer, "WATCHED_STEPS", 1)
    monkeypatch.setattr(watch, "ALIKE", 0.0)


WATCHED = ["diversity", "sameness", "wave", "collapsed"]


@pytest.mark.usefixtures("at_every_line")
def test_a_run_logs_what_is_watched(tmp_path: Path) -> None:
    run = tiny_runs.trainer(tmp_path, epochs=4, log_every=2).fit()
    records = lines(run)
    assert [list(record)[7:-1] for record in records] == (
        [["grad_norm_d", "grad_norm_g", *WATCHED]] * 3
        + [["grad_norm_d", "grad_norm_g", *WATCHED, "swing", "oscillating"]] * 5
    )
    assert all(record["grad_norm_d"] > 0 and record["grad_norm_g"] > 0 for record in records)
    assert (run / "watch.png").exists()


def test_looks_are_a_hundred_steps_apart() -> None:
    for log_every, first in ((10, 100), (30, 90), (7, 98), (250, 250)):
        run = tiny_runs.trainer(log_every=log_every, max_steps=1)
        run.watch.look = lambda generator: {"diversity": 1.0}
        for step in range(log_every, 501, log_every):
            run.step = step
            assert ("diversity" in run._watched(run.watch)) == (step % first == 0), step


def test_gradients_are_those_of_the_last_step() -> None:
    run = tiny_runs.trainer(log_every=2, max_steps=2)
    run.fit()
    for name, network in (("grad_norm_d", run.discriminator), ("grad_norm_g", run.generator)):
        assert run.records[0][name] == pytest.approx(float(gradient_norm(network)), rel=1e-6)


def test_a_run_that_is_not_watched(tmp_path: Path) -> None:
    alone = tiny_runs.trainer(tmp_path, watch=False)
    run = alone.fit()
    assert "grad_norm_g" not in lines(run)[0] and not (run / "watch.png").exists()
    assert alone.watch is None and load_checkpoint(run)["watch"] is None
    watched = tiny_runs.trainer()
    watched.fit()
    for a, b in zip(alone.records, watched.records, strict=True):
        assert all(a[name] == b[name] for name in a if name != "images_per_s")
    resumed = Trainer.resume(run, dataset=tiny_runs.dataset(), epochs=3, watch=True)
    resumed.fit()
    assert "grad_norm_g" in resumed.records[-1] and (run / "watch.png").exists()


@pytest.mark.usefixtures("at_every_line")
@pytest.mark.parametrize(
    "changes",
    [{}, {"preset": "cgan-dcgan"}, {"preset": "cgan-mnist", "ngf": None, "ndf": None}],
)
def test_looks_touch_no_number(changes: dict[str, Any]) -> None:
    states = []
    for watched in (True, False):  # one after the other: dropout draws from PyTorch's own stream
        run = tiny_runs.trainer(watch=watched, log_every=1, **changes)
        run.fit()
        states.append(dict(run.generator.state_dict()))
    tiny_runs.assert_same_state(*states)


@pytest.mark.usefixtures("at_every_line")
@pytest.mark.parametrize("changes", [{}, {"preset": "cgan-dcgan", "alternate": False}])
@pytest.mark.parametrize("step", [5, 11])
def test_a_killed_run_is_watched_on(tmp_path: Path, step: int, changes: dict[str, Any]) -> None:
    changes = {"epochs": 4, "save_steps": 1, "log_every": 1, **changes}
    whole = tiny_runs.trainer(tmp_path, name="whole", **changes).fit()
    with pytest.raises(Killed):
        tiny_runs.trainer(tmp_path, name="broken", **changes).fit([At(step, kill)])
    broken = Trainer.resume(tmp_path / "broken", dataset=tiny_runs.dataset()).fit()
    assert_same_checkpoint(whole, broken)
    assert numbers(whole) == numbers(broken)
    assert (whole / "watch.png").read_bytes() == (broken / "watch.png").read_bytes()


@pytest.mark.usefixtures("at_every_line")
def test_a_collapse_is_warned_of_once_whatever_the_breaks(tmp_path: Path) -> None:
    """Half of the projection's filters are silenced at each step; the run is broken off after the warning."""

    def silence(run: Trainer) -> None:
        with torch.no_grad():
            run.generator.main[1].weight[::2] = 0
            run.generator.main[1].bias[::2] = 0

    class Silence(At):
        def on_step(self, run: Trainer) -> None:
            silence(run)

    run = tiny_runs.trainer(tmp_path, name="run", epochs=4, log_every=1, save_steps=1)
    with pytest.warns(UserWarning) as caught, pytest.raises(Killed):
        run.fit([Silence(0, None), At(10, kill)])
    (warning,) = caught
    assert str(warning.message) == (
        "step 4: the generator collapses: 4 of the 8 filters of main.0 draw nothing; "
        f"{tmp_path / 'run/watch.png'} and {tmp_path / 'run/samples'} show since when; a lower --lr than 0.0002 may "
        "help, or an end before it"
    )
    resumed = Trainer.resume(tmp_path / "run", dataset=tiny_runs.dataset())
    assert resumed.step == 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.fit([Silence(0, None)])
    assert [record["collapsed"] > 0 for record in lines(tmp_path / "run")[1:]] == [True] * 15


def test_gradients_that_are_no_numbers_end_a_run() -> None:
    run = tiny_runs.trainer(log_every=1)
    run._update = lambda real, draw: (
        [p.grad.fill_(math.inf) for p in run.generator.parameters() if p.grad is not None]
        and torch.zeros(5)
    )
    for network in (run.generator, run.discriminator):
        for weight in network.parameters():
            weight.grad = torch.zeros_like(weight)
    with pytest.raises(TrainingDiverged, match="grad_norm_g is inf at step 1: training diverged"):
        run.fit()


@pytest.mark.usefixtures("at_every_line")
def test_samples_that_are_no_numbers_end_a_run() -> None:
    """The losses of a step do not show what its update did; a look does."""
    run = tiny_runs.trainer(log_every=1)
    update = run._update

    def poisoned(real: Any, draw: Any) -> Tensor:
        row = update(real, draw)
        with torch.no_grad():
            run.generator.main[0].weight.fill_(math.nan)
        return row

    run._update = poisoned
    with pytest.raises(TrainingDiverged, match="^diversity is nan at step 1: training diverged"):
        run.fit()


def test_diversity_is_of_pairs_of_one_class() -> None:
    rng = np.random.default_rng(0)
    templates = rng.integers(0, 256, (12, 1, 16, 16))
    labels = np.arange(240) % 12
    images = (templates[labels] / 2 + rng.integers(0, 20, (240, 1, 16, 16))).astype(np.uint8)
    settings = tiny_runs.config(preset="cgan-dcgan", alternate=False)
    run = Trainer(settings, dataset=Dataset("classes", images, labels))
    watch = run.watch
    shown = watch._input[1]
    assert shown.bincount().tolist().count(8) == 8 and len(shown) == 64
    chosen = np.isin(labels, shown.numpy())
    expected = pair_distance(
        torch.from_numpy(images[chosen]) / 255, torch.from_numpy(labels[chosen])
    )
    assert watch._real_distance == pytest.approx(expected)
    assert expected < pair_distance(torch.from_numpy(images) / 255) / 3
    assert SWING == 1.0


def test_data_of_one_picture_has_no_diversity() -> None:
    data = Dataset("flat", np.zeros((64, 1, 16, 16), np.uint8))
    run = Trainer(tiny_runs.config(), dataset=data)
    assert "diversity" not in run.watch.look(run.generator)
