"""Layers are watched, their work is counted and their time given to them, whatever network it is."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_state, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcgan_fast import models, unfuse
from dcgan_fast.errors import UserError
from dcgan_fast.profiling import measure_ceilings, profile_steps
from dcgan_fast.profiling.calls import watch
from dcgan_fast.profiling.ceilings import floor_seconds, peak
from dcgan_fast.profiling.steps import StepProfile
from dcgan_fast.profiling.work import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Work
from dcgan_fast.training import TrainConfig
from dcgan_fast.training.setup import make_optimizer
from dcgan_fast.training.step import Step

BATCH = 8
CASES: dict[str, dict[str, Any]] = {
    "pytorch": {"image_size": 16, "ngf": 4, "ndf": 4},
    "newmu": {"image_size": 16, "ngf": 4, "ndf": 4},
    "cgan-dcgan": {"ngf": 4, "ndf": 4, "ngfc": 8, "ndfc": 8},
    "cgan-mnist": {},
}


def networks(preset: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return models.build(preset, **CASES[preset])


def training_step(preset: str, pair: tuple[Any, Any], **settings: Any) -> Callable[[], Tensor]:
    generator, discriminator = pair
    config = TrainConfig(preset=preset)
    step = Step(*pair, *(make_optimizer(network, config) for network in pair), **settings)
    shape = (BATCH, generator.nc, generator.image_size, generator.image_size)
    real = torch.rand(shape)
    if not generator.classes:
        return lambda: step(real, lambda: generator.sample_latent(BATCH))
    labels = torch.arange(BATCH) % generator.classes
    return lambda: step((real, labels), lambda: (generator.sample_latent(BATCH), labels))


def profiled(preset: str, pair: tuple[Any, Any], **settings: Any) -> StepProfile:
    named = dict(zip("GD", pair, strict=True))
    return profile_steps(training_step(preset, pair, **settings), named, steps=2, warmup=1)


# ------------------------------------------------------------------------------------------ work


def test_work_of_a_convolution() -> None:
    work = Work((2, 3, 8, 8), (2, 5, 4, 4), (5, 3, 4, 4), normalised=True)
    assert work.flop(FORWARD) == 2 * 5 * 3 * 16 * 2 * 16
    assert work.flop(FORWARD, INPUT_GRAD, WEIGHT_GRAD) == 3 * work.flop(FORWARD)
    x, y, w = 2 * 3 * 64, 2 * 5 * 16, 5 * 3 * 16
    assert work.bytes(4, FORWARD) == 4 * (x + w + 3 * y)
    assert work.bytes(2, FORWARD, training=False) == 2 * (x + w + y)
    assert work.bytes(4, INPUT_GRAD) == 4 * (5 * y + y + w + x)
    transposed = Work((2, 5, 4, 4), (2, 3, 8, 8), (5, 3, 4, 4), transposed=True, active=True)
    assert transposed.flop(FORWARD) == work.flop(FORWARD)
    assert transposed.bytes(4, WEIGHT_GRAD) == 4 * (3 * x + x + y + w)


def test_work_of_others() -> None:
    linear = Work((7, 10), (7, 4), (4, 10))
    assert linear.flop(FORWARD) == 2 * 7 * 10 * 4
    norm = Work((2, 3, 4, 4), (2, 3, 4, 4), (), normalised=True)
    assert (norm.flop(FORWARD), norm.bytes(4, FORWARD)) == (0, 4 * 3 * 96)
    assert norm.bytes(4) == 0  # nothing is wanted


def test_floors() -> None:
    ceilings = {"FMA float32": 100.0, "brgemm float32": 110.0, "copy": 10.0}
    assert peak(ceilings, "float32") == 110 and peak(ceilings, "bfloat16") == 100
    assert floor_seconds(ceilings, "float32", 220e9, 10e9) == 2
    assert floor_seconds(ceilings, "float32", 11e9, 10e9) == 1
    tiles = ceilings | {"tiles bfloat16": 1200.0}
    assert peak(tiles, "bfloat16") == 1200 and peak(tiles, "float32") in (200, 400)


def test_ceilings_of_this_machine() -> None:
    state = torch.get_rng_state()
    found = measure_ceilings(0.01, megabytes=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert {"FMA float32", "copy"} <= found.keys()
    assert all(0 < rate < math.inf for rate in found.values())


def test_ceilings_of_lesser_machines() -> None:
    script = "from dcgan_fast.profiling import measure_ceilings as m; print(*m(0.01, megabytes=1), sep=',')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,  # not the source folder, whose package has no compiled half
    )
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.strip().split(","))
    assert {"FMA float32", "copy"} <= found and "brgemm bfloat16" not in found


# ---------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("preset", CASES)
def test_watching_changes_nothing(preset: str, fused: bool) -> None:
    generator, _ = networks(preset)
    if not fused:
        unfuse(generator, inplace=True)
    twin = copy.deepcopy(generator)
    labels = (torch.arange(BATCH) % 10,) if generator.classes else ()
    latent = generator.sample_latent(BATCH)
    seen = []

    def watcher(layer: Any, run: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        seen.append(layer)
        return run(*inputs)

    with watch({"G": generator}, watcher):
        torch.manual_seed(1)
        watched = generator(latent, *labels)
    torch.manual_seed(1)
    assert torch.equal(watched, twin(latent, *labels))
    assert_same_state(dict(generator.state_dict()), dict(twin.state_dict()))
    assert all(
        vars(m).keys() == vars(t).keys()
        for m, t in zip(generator.modules(), twin.modules(), strict=True)
    )
    # Every module once, but those that hold others and the dropout that is called for two layers
    weighted = [m for layer in seen for m in layer.modules if list(m.parameters())]
    leaves = [m for m in generator.modules() if list(m.parameters(recurse=False))]
    assert {id(m) for m in weighted} == {id(m) for m in leaves} and len(weighted) == len(leaves)
    assert any(layer.op for layer in seen) == (fused and preset != "cgan-mnist")


def test_what_was_replaced_comes_back_after_an_error() -> None:
    generator, _ = networks("pytorch")
    before = [dict(vars(module)) for module in generator.modules()]
    with pytest.raises(ZeroDivisionError), watch({"G": generator}, lambda *_: 1 / 0):
        generator(generator.sample_latent(BATCH))
    assert [dict(vars(module)) for module in generator.modules()] == before


# -------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize(
    ("preset", "fused", "settings"),
    [
        ("pytorch", True, {}),
        ("pytorch", False, {}),
        ("pytorch", True, {"joint_pass": True}),
        ("pytorch", False, {"joint_pass": True}),
        ("pytorch", True, {"g_steps_per_d": 2}),
        ("newmu", True, {"alternate": True}),
        ("cgan-mnist", True, {}),
    ],
)
def test_all_multiplications_are_found(preset: str, fused: bool, settings: Any) -> None:
    """As many as torch's own counter finds in the same step of plain modules, each in the right direction."""
    pair = networks(preset)
    plain = tuple(unfuse(network) for network in pair)
    found = profiled(preset, pair if fused else plain, **settings)
    step = training_step(preset, tuple(unfuse(network) for network in networks(preset)), **settings)
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    counted = sum(row.gflop for row in found.rows) * 1e9
    if preset == "cgan-mnist":  # the counter does not know our op
        assert counted > 0
    else:
        assert counted == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert {row.direction for row in found.rows} == {"forward", "backward"}
    assert all(row.calls > 0 and row.seconds > 0 for row in found.rows)


def test_passes_of_a_step() -> None:
    """D learns from two batches and G through a third, whose pass wants no gradients of weights."""
    found = profiled("pytorch", networks("pytorch"))
    calls = {(row.layer, row.direction): row.calls for row in found.rows}
    layers = {name.split()[0] for name, _ in calls}
    assert layers == {"G", "D"}
    assert all(count == (1 if name.startswith("G") else 3) for (name, _), count in calls.items())
    by_name = {(row.layer, row.direction): row for row in found.rows}
    first = by_name["D main.0-1", "backward"].gflop / by_name["D main.0-1", "forward"].gflop
    later = by_name["D main.2-4", "backward"].gflop / by_name["D main.2-4", "forward"].gflop
    assert (first, later) == (pytest.approx(1), pytest.approx(5 / 3))
    assert by_name["G main.0-2", "forward"].op == "conv_transpose_bn_act"


def test_times_are_a_steps(tmp_path: Path) -> None:
    """A layer made slow, forward and backward, is the one that is told to be slow."""
    slow_at: list[float] = []

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, input: Tensor) -> Tensor:
            slow_at.append(spin())
            return input.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            slow_at.append(spin())
            return gradient

    def spin() -> float:
        a = torch.randn(300, 300)
        for _ in range(30):
            a = (a @ a).tanh()
        return float(a[0, 0])

    class SlowLayer(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return Slow.apply(input)

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(SlowLayer()), nn.Conv2d(2, 1, 3))
    input = torch.randn(2, 1, 8, 8)
    found = profile_steps(lambda: model(input).sum().backward(), {"net": model}, out=tmp_path)
    assert len(slow_at) == 2 * 7
    most = sorted(found.rows, key=lambda row: -row.seconds)[:2]
    assert {(row.layer, row.op) for row in most} == {("net 1.0", "SlowLayer")}
    assert {row.direction for row in most} == {"forward", "backward"}
    assert sum(row.seconds for row in found.rows) + found.other == pytest.approx(found.seconds)
    assert found.optimizer == 0


def test_what_a_profile_writes(tmp_path: Path) -> None:
    pair = networks("pytorch")
    step = training_step("pytorch", pair)
    found = profile_steps(step, {"G": pair[0], "D": pair[1]}, steps=1, out=tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "profile.json",
        "profile.txt",
        "trace.json",
    ]
    trace = json.loads((tmp_path / "new" / "trace.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert "layer: G main.0-2 conv_transpose_bn_act" in names
    assert any(name.startswith("dcgan_fast::") for name in names)
    table = (tmp_path / "new" / "profile.txt").read_text()
    assert table == found.to_text() and "D main.2-4" in table and "optimizers" in table
    figures = json.loads((tmp_path / "new" / "profile.json").read_text())
    assert figures["rows"][0]["layer"] == found.rows[0].layer and figures["optimizer"] > 0


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'steps' must be at least 1"):
        profile_steps(lambda: None, {}, steps=0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        profile_steps(lambda: None, {}, out=tmp_path / "file")


def test_a_step_that_fails_leaves_nothing_watched() -> None:
    pair = networks("pytorch")
    step = training_step("pytorch", pair)
    with pytest.raises(ZeroDivisionError):
        profile_steps(lambda: (step(), 1 / 0), {"G": pair[0], "D": pair[1]}, warmup=0)
    assert not any("runs" in vars(m) or "forward" in vars(m) for m in pair[0].modules())
    assert profiled("pytorch", pair).rows  # and another profile can begin
