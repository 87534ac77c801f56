from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import assert_same_checkpoint, one_thread  # noqa: F401

import dcgan_fast
from dcgan_fast import cli, models
from dcgan_fast.training import Trainer, load_checkpoint
from dcgan_fast.training.signals import StopRequest

TINY = "fake:64 --image-size 16 --channels 1 --ngf 4 --ndf 4 --nz 8 --batch-size 16".split()
TINY += "--threads 1 --device cpu --grid-images 4".split()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCGAN_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Path:
    """A finished run of two epochs; not to be changed."""
    out = tmp_path_factory.mktemp("runs")
    assert cli.main(["train", *TINY, "--epochs", "2", "--out", str(out), "--name", "run"]) == 0
    return out / "run"


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that fails as user errors do; returns what its one line says."""

    def run_and_read(*argv: object) -> str:
        try:
            status = cli.main([str(word) for word in argv])
        except SystemExit as stop:  # argparse
            status = stop.code
        captured = capsys.readouterr()
        assert status == 2
        lines = [line for line in captured.err.splitlines() if "warning: " not in line]
        assert len(lines) == 1 and lines[0].startswith("dcgan-fast: error: "), captured.err
        return lines[0].removeprefix("dcgan-fast: error: ")

    return run_and_read


def dcgan_fast_process(*argv: object, **settings: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dcgan_fast", *map(str, argv)]
    environment = dict(os.environ)
    root = Path(dcgan_fast.__file__).parents[1]
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **settings)


# ------------------------------------------------------------------------------------------ train


def test_train(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (run / "samples" / "epoch_0002.png").exists()
    assert load_checkpoint(run)["step"] == 8
    config = json.loads((run / "config.json").read_text())
    assert (config["data"], config["ngf"], config["threads"]) == ("fake:64", 4, 1)


def test_train_says_what_it_does_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *TINY, "--max-steps", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "fake: 64 images of 1x16x16; pytorch: 1,624 + 720 weights; 350 epochs of 4 steps on cpu",
        "runs/fake-pytorch: 1 steps; sample it with: dcgan-fast sample runs/fake-pytorch",
    ]
    assert "images/s" not in captured.err  # no bar where nobody watches


def test_train_without_arguments_is_the_default_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Stop(Exception):
        pass

    def stop(config) -> None:
        seen.append(config)
        raise Stop

    monkeypatch.setattr(cli, "Trainer", stop)
    with pytest.raises(Stop):
        cli.main(["train"])
    assert seen == [cli.TrainConfig()]


def test_every_flag_reaches_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(config) -> None:
        seen.append(config)
        raise cli.UserError("enough")

    monkeypatch.setattr(cli, "Trainer", note)
    flags = (
        "photos --image-size 64 --channels 3 --split all --flip --dedup --preset paper --nz 10 --ngf 11 "
        "--ndf 12 --loss-output sigmoid --netG g.pth --netD d.pth --epochs 3 --patience 5 --max-steps 4 "
        "--batch-size 5 --optimizer sgd --lr 0.1 --lr-decay 1.5 --min-lr 0.01 --beta1 0.2 --momentum 0.4 "
        "--constant-epochs 2 --falling-epochs 4 "
        "--final-momentum 0.6 --momentum-epochs 3 --weight-decay 0.3 --alternate --joint-pass --seed 6 --device cpu "
        "--threads 2 --amp bf16 --no-channels-last --no-fuse --no-graph --no-deterministic --no-watch --out o --name n "
        "--bn batch --grid-images 7 --grid-every 8 --log-every 9 --save-every 90 "
        "--objective minimax --real-label 0.8 --penalty r1 --penalty-weight 3 --penalty-every 5 "
        "--instance-noise 0.3 --beta2 0.7 --clip-grad 2 --ema 0.5"
    )
    assert cli.main(["train", *flags.split()]) == 2
    assert seen[0] == cli.TrainConfig(
        data="photos",
        image_size=64,
        channels=3,
        split="all",
        flip=True,
        preset="paper",
        nz=10,
        ngf=11,
        ndf=12,
        dedup=True,
        loss_output="sigmoid",
        objective="minimax",
        real_label=0.8,
        penalty="r1",
        penalty_weight=3.0,
        penalty_every=5,
        instance_noise=0.3,
        init_generator="g.pth",
        init_discriminator="d.pth",
        epochs=3,
        patience=5,
        max_steps=4,
        batch_size=5,
        optimizer="sgd",
        lr=0.1,
        lr_decay=1.5,
        min_lr=0.01,
        constant_epochs=2,
        falling_epochs=4,
        beta1=0.2,
        beta2=0.7,
        momentum=0.4,
        final_momentum=0.6,
        momentum_epochs=3,
        weight_decay=0.3,
        alternate=True,
        joint_pass=True,
        clip_grad=2.0,
        ema=0.5,
        watch=False,
        seed=6,
        device="cpu",
        threads=2,
        amp="bf16",
        channels_last=False,
        fuse=False,
        graph=False,
        deterministic=False,
        out="o",
        name="n",
        bn="batch",
        grid_images=7,
        grid_every=8,
        log_every=9,
        save_steps=90,
    )
    assert cli.main("train --save-every 1.5s --reuse-fake-output".split()) == 2
    assert seen[1] == cli.TrainConfig(save_seconds=1.5, reuse_fake_output=True)
    assert cli.main("train --d-steps 2 --accumulate 3 --g-steps 4".split()) == 2
    assert seen[2] == cli.TrainConfig(d_steps_per_g=2, accumulate=3, g_steps_per_d=4)


def test_settings_from_a_file(
    run: Path, error_of: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.json").write_text((run / "config.json").read_text())
    flags = ["--config", "own.json", "--lr", "0.001", "--name", "again", "--out", "runs"]
    assert cli.main(["train", *flags, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert os.listdir() == ["own.json"]
    assert cli.main(["train", *flags]) == 0
    assert Path("runs/again/config.json").read_text() == printed
    then, now = json.loads((run / "config.json").read_text()), json.loads(printed)
    assert {name for name in then if then[name] != now[name]} == {"lr", "out", "name"}
    assert "--config is for a new run" in error_of("train", *flags, "--resume", "runs/again")


def test_a_run_again_by_its_own_configuration(run: Path, tmp_path: Path) -> None:
    assert cli.main(["train", "--config", str(run / "config.json"), "--out", str(tmp_path)]) == 0
    assert_same_checkpoint(run / "checkpoint.pt", tmp_path / "fake-pytorch" / "checkpoint.pt")


def test_a_file_may_ask_for_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cli, "Trainer", lambda config: seen.append(config) or sys.exit(7))
    Path("run.json").write_text('{"conditional": true}')
    with pytest.raises(SystemExit):
        cli.main(["train", "--config", "run.json"])
    assert seen[0].preset == "cgan-dcgan"


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (
            "--dataset folder --dataroot p --imageSize 64 --batchSize 8 --niter 3 --manualSeed 5",
            {"data": "p", "image_size": 64, "batch_size": 8, "epochs": 3, "seed": 5},
        ),
        ("--dataset cifar10 --dataroot p", {"data": "p"}),
        ("--dataset cifar10", {"data": "cifar10"}),
        ("--dataset mnist", {"data": "mnist"}),
        ("--dataset fake --dataroot p", {"data": "fake"}),
        ("--dataset lsun --dataroot p --workers 4", {"data": "p"}),
        ("--dataroot p --dry-run --accel", {"data": "p", "max_steps": 1, "device": "auto"}),
        ("--cuda", {"device": "cuda"}),
        (
            "--nz 9 --ngf 8 --ndf 7 --lr 1e-3 --beta1 0.4 --netG g --netD d",
            {
                "nz": 9,
                "ngf": 8,
                "ndf": 7,
                "lr": 1e-3,
                "beta1": 0.4,
                "init_generator": "g",
                "init_discriminator": "d",
            },
        ),
    ],
)
def test_flags_of_pytorch_examples(
    flags: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(cli, "Trainer", lambda config: seen.append(config) or sys.exit(7))
    with pytest.raises(SystemExit):
        cli.main(["train", *flags.split()])
    assert seen == [cli.TrainConfig(**settings)]


def test_outf_is_the_folder_and_keeps_the_weights_of_epochs(tmp_path: Path) -> None:
    flags = (
        "--dataset fake --imageSize 16 --batchSize 500 --ngf 4 --ndf 4 --niter 1 --outf here/out"
    )
    assert cli.main(["train", *flags.split(), "--device", "cpu"]) == 0
    state = torch.load(tmp_path / "here" / "out" / "netG_epoch_0.pth", weights_only=True)
    assert state["main.0.weight"].shape == (100, 8, 4, 4)
    assert (tmp_path / "here" / "out" / "netD_epoch_0.pth").exists()
    assert (tmp_path / "here" / "out" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--preset dcgan", "unknown preset 'dcgan': the presets are pytorch, paper, newmu"),
        ("--image-size 48", "'image_size' must be a power of two between 16 and 256, got 48"),
        ("--image-size big", "argument --image-size: invalid int value: 'big'"),
        ("--lr 0", "'lr' must be a positive number, got 0.0"),
        ("--beta1 1.5", "'beta1' must be a number from 0 to below 1, got 1.5"),
        ("--epochs 0", "'epochs' must be a whole number of at least 1, got 0"),
        ("--batch-size 100", "fake holds 64 images, fewer than the 100 of one step"),
        ("--channels 5", "must be an integer from 1 to 4, got 5"),
        ("--ngf 1000000", "'ngf' 1000000, 'ndf' 4 take "),
        ("--nz 9999999999999999", "GB with their gradients and the optimisers' state; cpu has"),
        ("--ndf 9999999999999999", "'ndf' 9999999999999999 cannot be built: "),
        ("--threads 100000", "'threads' must be a whole number from 1 to 1024, got 100000"),
        ("--amp fp8", "argument --amp: invalid choice: 'fp8'"),
        ("--device tpu", "the device 'tpu' cannot be used here"),
        ("--save-every often", "a number of steps (500) or seconds (30s), got 'often'"),
        ("--save-every 0s", "'save_seconds' must be a positive number, got 0.0"),
        ("--dataset fake", "give the data either as DATA or with --dataset and --dataroot"),
        ("--g-steps 2 --alternate", "exclude each other"),
        ("--netG nothing.pth", "no such checkpoint: nothing.pth"),
        ("--learning-rate 1", "unrecognized arguments: --learning-rate 1"),
        ("--batch 3", "unrecognized arguments: --batch 3"),
    ],
)
def test_bad_settings(error_of: Callable[..., str], flags: str, message: str) -> None:
    assert message in error_of("train", *TINY, *flags.split())
    assert os.listdir() == []


def test_bad_data(error_of: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: no images in it" in error_of("train", "empty")
    assert "missing: no such file or folder" in error_of("train", "missing")
    assert "--dataset folder needs --dataroot" in error_of("train", "--dataset", "folder")
    assert "--dataset must be one of digits" in error_of("train", "--dataset", "celeba")


def test_output_that_cannot_be_written(error_of: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert error_of("train", *TINY, "--out", "file") == "cannot write file: File exists"
    assert "Not a directory" in error_of("train", *TINY, "--out", "file/runs")


def test_a_run_is_not_overwritten(error_of: Callable[..., str], run: Path) -> None:
    before = (run / "checkpoint.pt").read_bytes()
    assert "holds a run already" in error_of("train", *TINY, "--out", run.parent, "--name", "run")
    assert (run / "checkpoint.pt").read_bytes() == before


def test_divergence(error_of: Callable[..., str]) -> None:
    message = error_of("train", *TINY, "--lr", "1e30")
    assert message.startswith("loss_") and "nan at step 1: training diverged" in message


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(cli.UserError, match="unknown preset"):
        cli.main(["train", "--preset", "dcgan", "--debug"])
    with pytest.raises(cli.UserError, match="unknown preset"):
        cli.main(["--debug", "train", "--preset", "dcgan"])


def test_what_is_our_fault_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "Trainer", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "x.png"), "x.png: Permission denied"),
        (MemoryError(), "out of memory: lower --batch-size"),
        (torch.OutOfMemoryError("CUDA"), "out of memory: lower --batch-size"),
    ],
)
def test_what_the_system_refuses(
    error: Exception, message: str, error_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "Trainer", refused)
    assert error_of("train").startswith(message)


# ----------------------------------------------------------------------------------------- resume


def test_resume(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *TINY, "--epochs", "1", "--name", "run"]) == 0
    assert cli.main(["train", "--resume", "--epochs", "2"]) == 0  # the newest in runs/
    assert_same_checkpoint(run, tmp_path / "runs" / "run")
    capsys.readouterr()
    assert cli.main(["train", "--resume", "--name", "run"]) == 0
    assert "complete at step 8 already" in capsys.readouterr().out
    assert cli.main(["train", "--resume", "runs/run/checkpoint.pt", "--epochs", "3"]) == 0
    assert load_checkpoint(tmp_path / "runs" / "run")["step"] == 12


def test_resume_refuses(error_of: Callable[..., str], run: Path, tmp_path: Path) -> None:
    def refusal(*flags: object) -> str:
        return error_of("train", "--resume", run, *flags)

    assert "cannot change 'lr': it was made with 0.0002, got 0.01" in refusal("--lr", "0.01")
    assert "cannot change 'data': it was made with 'fake:64', got 'digits'" in error_of(
        "train", "digits", "--resume", run
    )
    assert "'epochs' can only be raised: the run has 2, got 1" in refusal("--epochs", "1")
    assert "no checkpoint to continue from: runs does not exist" in error_of("train", "--resume")
    torch.save([1], tmp_path / "list.pt")
    assert "is not a checkpoint: it holds a list" in error_of("train", "--resume", "list.pt")


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def kill(process: subprocess.Popen[str]) -> bool:
    """Whether it was still running."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def last_step(run: Path) -> int:
    """The newest whole record of the run's metrics; 0 without one."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def kill_after_step(argv: list[object], run: Path, step: int) -> bool:
    """Starts a run, kills it up to 20 ms after it reports this step; whether it was still running."""
    process = dcgan_fast_process(*argv)
    while last_step(run) < step and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.02))
    return kill(process)


def kill_within(argv: list[object], seconds: float) -> bool:
    """Starts a run, kills it within that time; whether it was still running."""
    process = dcgan_fast_process(*argv)
    time.sleep(random.uniform(0, seconds))
    return kill(process)


def metrics(run: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["images_per_s"]
    return records


def test_kill_and_resume(tmp_path: Path, seed: int) -> None:
    settings = [*TINY, "--epochs", "40", "--save-every", "3", "--log-every", "7"]
    assert cli.main(["train", *settings, "--name", "whole"]) == 0
    whole, broken = tmp_path / "runs" / "whole", tmp_path / "runs" / "broken"
    argv = ["train", *settings, "--name", "broken"]
    assert kill_after_step(argv, broken, random.Random(seed).randrange(7, 80))
    assert load_checkpoint(broken)["step"] < 160
    assert cli.main(["train", "--resume", str(broken)]) == 0
    assert_same_checkpoint(whole, broken)
    assert metrics(whole) == metrics(broken)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["pytorch", "newmu"])
def test_more_kills(tmp_path: Path, preset: str, seed: int) -> None:
    """In the midst of steps, pictures, checkpoints, of starting; with all threads. Fifty in test_training_faults."""
    settings = "digits --image-size 16 --ngf 16 --ndf 16 --device cpu".split()
    settings += "--epochs 40 --save-every 3 --log-every 1 --preset".split() + [preset]
    whole, broken = tmp_path / "runs" / "whole", tmp_path / "runs" / "broken"
    begin = time.monotonic()
    process = dcgan_fast_process("train", *settings, "--name", "whole")
    wait_for(whole / "checkpoint.pt", process)
    start = time.monotonic() - begin
    assert process.wait() == 0
    argv: list[object] = ["train", *settings, "--name", "broken"]
    kills = 0
    for step in sorted(random.Random(seed).sample(range(10, 460), 2)):  # of 560
        kills += kill_after_step(argv, broken, step)
        argv = ["train", "--resume", broken]
        kills += kill_within(argv, start)
    assert kills >= 2
    process = dcgan_fast_process("train", "--resume", broken)
    assert process.wait() == 0, process.communicate()[1]
    assert_same_checkpoint(whole, broken)
    assert metrics(whole) == metrics(broken)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends(tmp_path: Path, number: int, status: int) -> None:
    out = tmp_path / "runs"
    process = dcgan_fast_process("train", *TINY, "--epochs", 10_000, "--name", "run", "--out", out)
    wait_for(out / "run" / "metrics.jsonl", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    step = load_checkpoint(out / "run")["step"]
    assert errors.splitlines() == [
        f"stopped after step {step}; continue with: dcgan-fast train --resume {out / 'run'}"
    ]


def test_the_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT and ended == []
        os.kill(os.getpid(), signal.SIGINT)
    assert ended == [130]


# ----------------------------------------------------------------------------------------- sample


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_sample_a_grid(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", str(run)]) == 0
    assert capsys.readouterr().out == "samples.png: a grid of 64 images\n"
    assert pixels("samples.png").shape == (8 * 66 + 2, 8 * 66 + 2)
    flags = "-n 6 --columns 3 --scale 2 --out six.png"
    assert cli.main(["sample", str(run / "checkpoint.pt"), *flags.split()]) == 0
    assert pixels("six.png").shape == (2 * 34 + 2, 3 * 34 + 2)


@pytest.mark.parametrize("bn", ["running", "population"])
def test_a_seed_is_an_image_whatever_is_drawn_beside_it(run: Path, bn: str) -> None:
    for out, flags in (("many", "-n 100"), ("few", "--seeds 70,3,12"), ("one", "--seeds 3")):
        argv = ["sample", str(run), "--images", "--bn", bn, "--out", out, *flags.split()]
        assert cli.main(argv) == 0
    assert len(os.listdir("many")) == 100
    assert sorted(os.listdir("few")) == ["seed_000003.png", "seed_000012.png", "seed_000070.png"]
    for name in os.listdir("few"):
        assert np.abs(pixels(f"few/{name}") - pixels(f"many/{name}")).max() <= 1  # of rounding
    name = "seed_000003.png"
    assert np.abs(pixels(f"one/{name}") - pixels(f"many/{name}")).max() <= 1
    assert (pixels("few/seed_000003.png") != pixels("few/seed_000012.png")).any()


@pytest.mark.parametrize(
    ("flags", "seeds"),
    [
        ("", range(64)),
        ("-n 3", [0, 1, 2]),
        ("--seeds 5,1-3", [5, 1, 2, 3]),
        ("--seeds 5,1-3 -n 2", [5, 1]),
        ("--seeds 1,2,3 -n 6", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_which_seeds(
    flags: str, seeds: list[int], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    latents = cli.latents_of
    monkeypatch.setattr(cli, "latents_of", lambda g, s: seen.append(list(s)) or latents(g, s))
    assert cli.main(["sample", str(run), *flags.split()]) == 0
    assert seen == [list(seeds)]


def test_sample_by_the_checkpoints_own_statistics(run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run)
    torch.save({**checkpoint, "bn": "batch"}, "batch.pt")
    for source, bn in (("batch.pt", None), ("batch.pt", "batch"), (run, None), (run, "running")):
        flags = [] if bn is None else ["--bn", bn]
        assert cli.main(["sample", str(source), *flags, "--out", f"{len(os.listdir())}.png"]) == 0
    by_default, by_batch, plain, running = (pixels(f"{number}.png") for number in (1, 2, 3, 4))
    assert (by_default == by_batch).all() and (plain == running).all()
    assert (by_default != plain).any()


def test_sample_a_bare_state_dict(run: Path) -> None:
    for source in (run, run / "generator.pth"):
        assert cli.main(["sample", str(source), "-n", "4", "--out", f"{source.stem}.png"]) == 0
    assert (pixels("run.png") == pixels("generator.png")).all()


# ------------------------------------------------------------------------------------ with labels


@pytest.fixture(scope="module")
def conditional_run(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Path:
    """A run with labels, of one step; not to be changed."""
    out = tmp_path_factory.mktemp("runs")
    flags = "--conditional --max-steps 1 --name run --out".split()
    assert cli.main(["train", *TINY, *flags, str(out)]) == 0
    return out / "run"


def test_train_conditional(
    conditional_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(conditional_run)
    assert checkpoint["preset"] == "cgan-dcgan"
    assert checkpoint["networks"]["discriminator"] == "ConditionalDiscriminator"
    assert checkpoint["config"]["generator"]["classes"] == 10
    argv = ["train", *TINY, "--conditional", "--conditioning", "projection", "--max-steps", "1"]
    assert cli.main([*argv, "--out", str(tmp_path), "--name", "other"]) == 0
    assert " of 10 classes; cgan-dcgan: " in capsys.readouterr().out
    other = load_checkpoint(tmp_path / "other")
    assert other["config"]["generator"]["conditioning"] == "projection"


def test_sample_classes(conditional_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(conditional_run)
    assert cli.main(["sample", run]) == 0
    assert capsys.readouterr().out == "samples.png: a grid of 100 images\n"
    assert pixels("samples.png").shape == (10 * 66 + 2, 10 * 66 + 2)  # a row a class
    assert cli.main(["sample", run, "--class", "0-9", "--out", "all.png"]) == 0
    assert (pixels("all.png") == pixels("samples.png")).all()
    assert (
        cli.main(["sample", run, "--class", "3", "-n", "10", "--columns", "10", "--out", "3.png"])
        == 0
    )
    assert (np.abs(pixels("3.png")[:68] - pixels("all.png")[3 * 66 : 3 * 66 + 68]) <= 1).all()
    assert (
        cli.main(["sample", run, "--class", "7,2", "--seeds", "5-6", "--images", "--out", "some"])
        == 0
    )
    names = [f"class_{label:03d}_seed_{seed:06d}.png" for label in (2, 7) for seed in (5, 6)]
    assert sorted(os.listdir("some")) == names


def test_bad_classes(error_of: Callable[..., str], conditional_run: Path, run: Path) -> None:
    wrong = error_of("sample", conditional_run, "--class", "3,10")
    assert wrong == "--class must be from 0 to 9, the classes of the generator, got 10"
    assert "classes look like" in error_of("sample", conditional_run, "--class", "9-0")
    assert "--class is for a generator" in error_of("sample", run, "--class", "3")
    labels_missing = error_of("train", *TINY, "--conditional", "--preset", "newmu")
    assert (
        "needs a preset whose networks take labels (cgan-dcgan, cgan-mnist), got 'newmu'"
        in labels_missing
    )


def test_conditional_training_wants_labels(error_of: Callable[..., str], tmp_path: Path) -> None:
    np.save(tmp_path / "unlabelled.npy", np.zeros((64, 16, 16), np.uint8))
    flags = "--image-size 16 --ngf 4 --ndf 4 --conditional".split()
    message = error_of("train", tmp_path / "unlabelled.npy", *flags)
    assert "unlabelled has no labels, which conditional networks need: a folder" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-n 0", "argument -n: a whole number of at least 1 is needed, got '0'"),
        ("--seeds 3-1", "argument --seeds: seeds look like 1,2,3 or 1-10, got '3-1'"),
        ("--seeds 1,,2", "seeds look like 1,2,3 or 1-10, got '1,,2'"),
        ("--bn fixed", "argument --bn: invalid choice: 'fixed'"),
        ("--grid --images", "argument --images: not allowed with argument --grid"),
        ("--out missing/grid.png", "cannot write missing/grid.png: No such file or directory"),
    ],
)
def test_bad_sampling(error_of: Callable[..., str], run: Path, flags: str, message: str) -> None:
    assert message in error_of("sample", run, *flags.split())
    assert os.listdir() == []


def test_bad_checkpoints(error_of: Callable[..., str], run: Path, tmp_path: Path) -> None:
    assert "no such checkpoint: missing.pt" in error_of("sample", "missing.pt")
    (tmp_path / "text.pt").write_text("hello")
    assert "text.pt is not a checkpoint that can be read" in error_of("sample", "text.pt")
    assert "discriminator.pth holds no generator" in error_of("sample", run / "discriminator.pth")
    checkpoint = load_checkpoint(run)
    checkpoint["config"]["generator"]["ngf"] = 8
    torch.save(checkpoint, "other.pt")
    assert error_of("sample", "other.pt") == (
        "other.pt is of another architecture: 'main.0.weight' is (8, 8, 4, 4) in the file, "
        "(8, 16, 4, 4) in the generator"
    )


# ---------------------------------------------------------------------------------------- parzen


def test_parzen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figure is the library's own, of the same samples and images."""
    from dcgan_fast import metrics
    from dcgan_fast.data import prepare
    from dcgan_fast.metrics.likelihood import pixels

    command = ["parzen", str(run), "--data", "fake:64", "--split", "train", "--samples", "300"]
    assert cli.main([*command, "--device", "cpu"]) == 0
    *searched, last = capsys.readouterr().out.splitlines()
    assert len(searched) == 10 and searched[0].startswith("sigma 0.100: ")
    assert searched[0].endswith(" nats, of 10 validation images")

    generator, _, _ = cli.load_networks(run)
    latent = generator.sample_latent(300, generator=torch.Generator().manual_seed(0))
    samples = models.generate(generator, latent).flatten(1) / 2 + 0.5
    images = pixels(prepare("fake:64", image_size=16, channels=1, progress=False).images)
    sigma, _ = metrics.search_sigma(samples, images[-10:])
    mean, error, _ = metrics.estimate(samples, images[:-10], sigma)
    assert last == (
        f"log-likelihood {mean:.2f} ± {error:.2f} nats: 54 images of fake (train) under 300 samples "
        f"of {run}, sigma {sigma:.3f}"
    )


def test_the_cgan_papers_networks_from_training_to_their_likelihood(
    tmp_path: Path, cache: None, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "fake:240 --preset cgan-mnist --epochs 2 --patience 1 --device cpu --name run --out"
    assert cli.main(["train", *flags.split(), str(tmp_path)]) == 0
    run = tmp_path / "run"
    assert load_checkpoint(run)["train_config"]["optimizer"] == "sgd"
    best = load_checkpoint(run / "best.pt")
    lines = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert max(lines, key=lambda line: line["log_likelihood"])["epoch"] == best["epoch"]
    capsys.readouterr()
    command = f"parzen {run / 'best.pt'} --data fake:240 --split train --samples 40 --device cpu"
    assert cli.main(command.split()) == 0
    # of the samples and the held-out images that the run measured itself by
    found = lines[best["epoch"] - 1]
    assert (
        f"sigma {found['sigma']:.3f}: {found['log_likelihood']:.2f} nats, of 40"
        in capsys.readouterr().out
    )
    images = {}
    for flags in ("", "--dropout", "--no-dropout"):
        assert cli.main(["sample", str(run), *flags.split(), "--class", "3", "--out", "3.png"]) == 0
        images[flags] = Path("3.png").read_bytes()
    assert images["--dropout"] == images[""] != images["--no-dropout"]
    capsys.readouterr()
    assert cli.main([*command.split(), "--no-dropout"]) == 0
    assert f"{found['log_likelihood']:.2f} nats, of 40" not in capsys.readouterr().out


def test_parzen_with_a_sigma_searches_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"parzen {run} --data fake:64 --split all --sigma 0.5 --samples 20 --device cpu"
    assert cli.main(command.split()) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "64 images of fake (all)" in line and line.endswith("sigma 0.500")


def test_parzen_errors(run: Path, error_of: Callable[..., str]) -> None:
    for flags, message in (
        (
            f"{run} --data fake:64 --sigma 0",
            "argument --sigma: a number above 0 is needed, got '0'",
        ),
        (f"{run} --data fake:64 --sigma nan", "a number above 0 is needed, got 'nan'"),
        (f"{run} --data fake:64", "test"),  # it has no such part
        (f"{run} --data fake:64 --samples 0", "a whole number of at least 1"),
        ("nothing --data fake:64", "nothing"),
        (f"{run}", "--data"),
    ):
        assert message in error_of("parzen", *flags.split())


def test_parzen_of_a_diverged_generator(run: Path, error_of: Callable[..., str]) -> None:
    weights = torch.load(run / "generator.pth", weights_only=True)
    torch.save({name: value * float("nan") for name, value in weights.items()}, "diverged.pth")
    assert "training has diverged" in error_of(
        "parzen", "diverged.pth", "--data", "fake:64", "--split", "train", "--samples", "5"
    )


# -------------------------------------------------------------------------------- convert and info


def test_convert_there_and_back(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", str(run), "--out", "plain", "--to", "pytorch-examples"]) == 0
    assert sorted(os.listdir("plain")) == ["netD.pth", "netG.pth"]
    assert cli.main(["convert", "plain", "--out", "back.pt", "--from", "pytorch-examples"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("dcgan-fast -> pytorch-examples: plain/netG.pth")
    assert out[1] == "pytorch-examples -> dcgan-fast: back.pt"
    before, after = load_checkpoint(run), load_checkpoint("back.pt")
    assert all(torch.equal(v, after["generator"][k]) for k, v in before["generator"].items())


def test_bad_conversions(error_of: Callable[..., str], run: Path) -> None:
    assert "no such file or folder: missing" in error_of("convert", "missing", "--out", "x")
    assert "the following arguments are required: --out" in error_of("convert", run)
    assert "invalid choice: 'caffe'" in error_of("convert", run, "--out", "x", "--to", "caffe")
    assert "invalid choice: 'onnx'" in error_of("convert", run, "--out", "x", "--from", "onnx")
    assert os.listdir() == []


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--seconds", "0"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out and "conv_transpose_bn_act" in out
    assert all(f"  {preset} " in out for preset in models.PRESETS)
    assert cli.main("info newmu --image-size 32 --batch-size 2 --seconds 0".split()) == 0
    out = capsys.readouterr().out
    assert "Generator, " in out and "dcgan_fast.conv_transpose" in out and "weight_decay" in out


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize(
    ("argv", "unbuffered"),
    [("info --seconds 0", "1"), ("info --seconds 0", ""), ("--version", "")],
)
def test_a_reader_that_stops_reading(
    monkeypatch: pytest.MonkeyPatch, argv: str, unbuffered: str
) -> None:
    """At the first line, or where what is buffered is written."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    ours, theirs = os.pipe()
    os.close(ours)
    process = dcgan_fast_process(*argv.split(), stdout=theirs)
    os.close(theirs)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (128 + signal.SIGPIPE, "")


def test_info_of_nothing(error_of: Callable[..., str]) -> None:
    assert "'preset' must be one of pytorch, " in error_of("info", "dcgan")
    assert "'image_size' must be a power of two" in error_of("info", "newmu", "--image-size", "20")


@pytest.mark.parametrize("command", ["", "train", "sample", "convert", "info"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "example:\n  dcgan-fast " in out
    assert "SUPPRESS" not in out


def test_no_command_and_version(
    error_of: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "the following arguments are required: COMMAND" in error_of()
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"dcgan-fast {dcgan_fast.__version__}\n"


def test_warnings_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(*_: object) -> None:
        warnings.warn("one\ntwo", stacklevel=1)
        raise cli.UserError("end")

    monkeypatch.setattr(cli, "Trainer", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.main(["train"])
    assert capsys.readouterr().err == "dcgan-fast: warning: one two\ndcgan-fast: error: end\n"


def test_the_trainer_of_the_command_line_is_the_librarys() -> None:
    assert cli.Trainer is Trainer


# ------------------------------------------------------------------------------------------ dedup


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 pictures of noise, the first ten of them twice."""
    path = tmp_path_factory.mktemp("twins") / "twins.npy"
    noise = np.random.default_rng(0).integers(0, 256, (80, 4, 4, 3), np.uint8)
    np.save(path, np.concatenate([noise, noise[:10]]))
    return path


def test_dedup(twins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dedup", str(twins), "--epochs", "5", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    first, *files = captured.out.splitlines()
    assert first.startswith("90 images: 10 near-duplicates removed (11.1%), in 10 groups; ")
    assert files == [
        "kept.txt: 80 images to keep: name, group",
        "kept.removed.txt: those removed: name, group, name of the one that is kept",
        "kept.groups.png: the largest groups: look whether they are near-duplicates",
        "kept.hasher.safetensors: the hasher, for --hasher",
    ]
    assert "images/s" not in captured.err  # no bar where nobody watches
    assert Path("kept.removed.txt").read_text().splitlines()[9] == "89\t9\t9"

    assert cli.main(["dedup", str(twins), "--hasher", "kept.hasher.safetensors", "--out", "b"]) == 0
    assert Path("b").read_text() == Path("kept.txt").read_text()


def test_dedup_flags_reach_their_settings(
    twins: Path, monkeypatch: pytest.MonkeyPatch, error_of: Callable[..., str]
) -> None:
    from dcgan_fast.dedup import images

    seen: list[Any] = []

    def note(*given: Any, **settings: Any) -> None:
        seen.append((given, settings))
        raise cli.UserError("enough")

    monkeypatch.setattr(images, "deduplicate", note)
    flags = "--out o --split test --code-noise 3 --epochs 4 --seed 5 --train-images 6 --device cpu"
    assert error_of("dedup", twins, *flags.split()) == "enough"
    given, settings = seen[0]
    hasher = settings.pop("hasher")
    assert given == (str(twins), "o")
    assert settings == {"trained": False, "split": "test", "train_images": 6, "progress": False}
    assert (hasher.code_noise, hasher.epochs, hasher.random_state) == (3, 4, 5)
    error_of("dedup", twins)
    assert seen[1][1]["hasher"].settings() == images.SemanticHasher().settings()


def test_dedup_that_is_broken_off(
    twins: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dcgan_fast.dedup import images

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "deduplicate", stop)
    assert cli.main(["dedup", str(twins)]) == 130
    assert capsys.readouterr().err == "stopped; the same command continues where it was\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("digits --split test", "has no 'test' split"),
        ("digits --hasher none.st", "cannot read none.st: No such file"),
        ("digits --hasher none.st --seed 1", "--random-state is for training"),
        ("digits --train-images 0", "a whole number of at least 1 is needed"),
        ("digits --code-noise -1", "'code_noise' must be a number of at least 0, got -1.0"),
        ("digits --device abacus", "the device 'abacus' cannot be used here"),
        ("digits --out .", "is a folder; a file for the list"),
    ],
)
def test_dedup_errors(flags: str, message: str, error_of: Callable[..., str]) -> None:
    assert message.replace("--random-state", "--seed") in error_of("dedup", *flags.split())


def test_train_dedup(
    twins: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dcgan_fast.dedup.hasher._UPDATES", 20)
    tiny = [str(twins), *TINY[1:], "--dedup", "--name", "run"]
    assert cli.main(["train", *tiny, "--max-steps", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("twins: 80 images of 1x16x16 (10 near-duplicates removed); ")
    assert load_checkpoint("runs/run")["data"]["shape"] == [80, 1, 16, 16]
    assert cli.main(["train", "--resume", "runs/run", "--max-steps", "3"]) == 0
    assert "80 images of 1x16x16 (10 near-duplicates removed)" in capsys.readouterr().out
