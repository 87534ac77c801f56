"""Several processes train as one does, write as one does, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_together
from tiny_runs import assert_same_checkpoint, config, dataset, one_thread  # noqa: F401
from torch import nn

from dcgan_fast import models
from dcgan_fast.errors import UserError
from dcgan_fast.training import Callback, Trainer, distributed, load_checkpoint
from dcgan_fast.training.distributed import ProcessLost

SGD = {"optimizer": "sgd", "lr": 0.02, "momentum": 0.5}  # Adam would make a sign of rounding
# Of settings whose numbers must not depend on the number of processes.
ALIKE: dict[str, dict[str, Any]] = {
    "standard": SGD,
    "joint pass": {**SGD, "joint_pass": True, "flip": True},
    "alternating": {**SGD, "alternate": True},
    "sharing": {**SGD, "reuse_fake_output": True},
    # of few steps: batch norm over eight vectors makes much of rounding
    "with labels": {**SGD, "preset": "cgan-dcgan", "ngf": None, "ndf": None, "max_steps": 3},
    "plain": {**SGD, "fuse": False},
    "clipped": {**SGD, "clip_grad": 0.5, "accumulate": 2, "ema": 0.5, "objective": "hinge"},
    "penalised": {**SGD, "penalty": "r1", "penalty_weight": 0.1, "max_steps": 3},
    "patient": {**SGD, "patience": 1, "epochs": 3},
}


def trainer(out: Path | None, images: int, processes: int = 1, **changes: Any) -> Trainer:
    settings = {"batch_size": images // processes, **changes}
    return Trainer(config(out, **settings), dataset=dataset())


def result(run: Trainer) -> dict[str, Any]:
    return {
        "generator": run.generator.state_dict(),
        "discriminator": run.discriminator.state_dict(),
        "records": [{k: v for k, v in r.items() if k != "images_per_s"} for r in run.records],
        "likelihoods": list(run.likelihoods),
        "step": run.step,
    }


def of_kind(kind: str, processes: int = 1) -> dict[str, Any]:
    run = trainer(None, 8, processes, **ALIKE[kind])
    run.fit()
    return result(run)


class StopAt(Callback):
    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            os.kill(os.getpid(), self.number)


def dropping_out() -> dict[str, nn.Module]:
    """Networks of one's own: images of 16x16, which D sees without a third of their pixels."""
    torch.manual_seed(0)
    generator, discriminator = models.build("pytorch", image_size=16, nc=1, nz=8, ngf=4, ndf=4)
    dropping = nn.Sequential(nn.Dropout(0.33), discriminator)
    return {"generator": generator, "discriminator": dropping}


def _dropping_out(rank: int, folder: Path) -> None:
    for name, callbacks in (("whole", []), ("stopped", [StopAt(3, signal.SIGTERM)])):
        settings = config(folder, name=name, batch_size=8)
        run = Trainer(settings, dataset=dataset(), **dropping_out())
        with pytest.raises(SystemExit) if callbacks else nullcontext():
            run.fit(callbacks if rank == 1 else [])
    Trainer.resume(folder / "stopped", dataset=dataset(), **dropping_out()).fit()


def test_dropout_goes_on_in_every_process(tmp_path):
    run_together(_dropping_out, 2, tmp_path, tmp_path)
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "stopped")
    own = load_checkpoint(tmp_path / "whole")
    assert not torch.equal(own["rng"]["torch"], own["rng_of_others"][0]["torch"])


def _together(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {kind: of_kind(kind, 2) for kind in ALIKE}
    apart = trainer(None, 16, 2, sync_bn=False)
    apart.fit()
    found["apart"] = result(apart)

    whole = trainer(folder / "runs", 16, 2, name="whole")
    found["path"] = str(whole.fit())
    for number, error in ((signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)):
        stopped = trainer(folder / "runs", 16, 2, name=f"stopped by {number}")
        with pytest.raises(error):
            stopped.fit([StopAt(3, number)] if rank == 1 else [])
        found[f"stopped by {number}"] = stopped.step
    continued = Trainer.resume(folder / "runs" / "stopped by 15", dataset=dataset())
    continued.fit()

    alone = trainer(folder / "alone", 16, 2, name="begun by two", **SGD, max_steps=5)
    alone.fit()
    more = Trainer.resume(folder / "alone" / "begun by one", dataset=dataset(), max_steps=8)
    found["share"] = more.config.batch_size
    more.fit()
    found["continued"] = result(more)

    errors = []
    for settings in ({"name": "whole"}, {"name": "diverging", **SGD, "lr": 1e30, "log_every": 1}):
        try:
            trainer(folder / "runs", 16, 2, **settings).fit()
        except UserError as error:
            errors.append((type(error).__name__, str(error)))
    found["errors"] = errors
    return found


def assert_alike(ours: dict[str, Any], other: dict[str, Any], kind: str) -> None:
    for role in ("generator", "discriminator"):
        for key, expected in other[role].items():
            torch.testing.assert_close(
                ours[role][key],
                expected,
                rtol=1e-3,
                atol=1e-4,
                msg=lambda m, k=key: f"{kind}: {k}: {m}",
            )
    for a, b in zip(ours["records"], other["records"], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4), kind
    for a, b in zip(ours["likelihoods"], other["likelihoods"], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3), kind


def test_two_processes_are_one(tmp_path):
    one = trainer(tmp_path / "alone", 16, name="begun by one", **SGD, max_steps=5)
    one.fit()
    first, second = run_together(_together, 2, tmp_path, tmp_path)
    for kind in ALIKE:
        assert_alike(first[kind], of_kind(kind), kind)
    for kind in (
        *ALIKE,
        "apart",
    ):  # the same bits in all processes, but for statistics that are nobody else's
        for role in ("generator", "discriminator"):
            for key, value in first[kind][role].items():
                if kind != "apart" or "running" not in key:
                    assert torch.equal(value, second[kind][role][key]), (kind, key)
        assert first[kind]["step"] == second[kind]["step"]

    runs = tmp_path / "runs"
    assert first["path"] == second["path"] == str(runs / "whole")
    written = {path.name for path in (runs / "whole").rglob("*") if path.is_file()}
    assert {"checkpoint.pt", "config.json", "metrics.jsonl", "losses.png"} <= written
    assert first["stopped by 15"] == second["stopped by 15"] == 3
    assert first["stopped by 2"] == second["stopped by 2"] == 3
    assert load_checkpoint(runs / "stopped by 2")["step"] == 3
    assert_same_checkpoint(runs / "whole", runs / "stopped by 15")  # continued, bit for bit

    whole = trainer(None, 16, **SGD)
    whole.fit()
    assert first["share"] == 8
    assert_alike(first["continued"] | {"records": []}, result(whole) | {"records": []}, "joined by")
    back = Trainer.resume(tmp_path / "alone" / "begun by two", dataset=dataset(), max_steps=8)
    assert back.config.batch_size == 16
    back.fit()
    assert_alike(result(back), result(whole), "left alone")

    (name, message), (kind, why) = first["errors"]
    assert (name, kind) == ("UserError", "TrainingDiverged")
    assert "holds a run already" in message and "at step" in why
    assert second["errors"][0] == ("ToldByFirst", message)
    assert second["errors"][1] == (kind, why)


def test_a_batch_that_cannot_be_shared_is_refused():
    assert distributed.split_batch(12, 4) == 3
    with pytest.raises(UserError, match="12 images .* 5 processes .* with 1, 2, 3, 4, 6 or 12"):
        distributed.split_batch(12, 5)


class EndAt(Callback):
    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == 3:
            os._exit(0)


def _lose_one(rank: int, folder: Path) -> None:
    run = trainer(folder / "runs", 16, 2, name="lost", save_steps=2)
    torch.save("", folder / "1.pt")
    try:
        run.fit([EndAt()] if rank == 1 else [])
    except ProcessLost as error:
        torch.save(str(error), folder / "0.pt")
    os._exit(0)


def test_a_process_that_ends_ends_all(tmp_path):
    message, _ = run_together(_lose_one, 2, tmp_path, tmp_path)
    assert "another process of this run has ended" in message
    assert (
        f"continue from its last checkpoint with --resume {tmp_path / 'runs' / 'lost'}" in message
    )
    assert load_checkpoint(tmp_path / "runs" / "lost")["step"] == 2


def _four(rank: int, folder: Path) -> dict[str, Any]:
    return of_kind("standard", 4)


@pytest.mark.slow
def test_four_processes_are_one(tmp_path):
    parts = run_together(_four, 4, tmp_path, tmp_path)
    assert_alike(parts[0], of_kind("standard"), "four")


# ------------------------------------------------------------------------------------- torchrun

TINY = (
    "digits --image-size 16 --ngf 4 --ndf 4 --nz 8 --batch-size 32 --log-every 5 --grid-images 4 "
    "--device cpu --threads 1 --epochs 3"
).split()


def launched(folder: Path, *arguments: str, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "-m", "dcgan_fast", "train", *TINY, *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_torchrun_starts_again_from_the_last_checkpoint(tmp_path):
    whole = launched(tmp_path, "--name", "whole")
    output, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, output
    assert "cpu, 2 processes of 32 images" in output
    assert output.count("sample it with") == 1  # the first alone speaks

    killed = launched(tmp_path, "--save-every", "5", restarts=1)
    run = tmp_path / "runs" / "digits-pytorch"
    wait_for(run / "checkpoint.previous.pt")
    os.kill(children(killed.pid)[-1], signal.SIGKILL)
    output, _ = killed.communicate(timeout=600)
    assert killed.returncode == 0, output
    assert not (tmp_path / "runs" / "digits-pytorch-2").exists()
    assert "has ended or does not answer" in output or "SIGTERM" in output
    assert_same_checkpoint(tmp_path / "runs" / "whole", run)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_signal_to_torchrun_stops_all_with_a_checkpoint(tmp_path):
    stopped = launched(tmp_path, "--save-every", "5", "--name", "stopped")
    wait_for(tmp_path / "runs" / "stopped" / "checkpoint.pt")
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate(timeout=120)
    assert "stopped after step" in output
    step = int(output.split("stopped after step ")[1].split(";")[0])
    assert load_checkpoint(tmp_path / "runs" / "stopped")["step"] == step
