from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import assert_same_checkpoint, one_thread, trainer  # noqa: F401

from dcgan_fast import cli
from dcgan_fast.errors import UserError
from dcgan_fast.training import Profile


def test_a_profiled_run_has_the_same_numbers(tmp_path: Path) -> None:
    profile = Profile(steps=2, warmup=1)  # within an epoch of four
    profiled = trainer(tmp_path, name="profiled").fit([profile])
    plain = trainer(tmp_path, name="plain").fit()
    assert profiled is not None and plain is not None and profile.result is not None
    assert_same_checkpoint(profiled / "checkpoint.pt", plain / "checkpoint.pt")
    assert profile.table == profiled / "profile.txt" and profile.table.exists()
    assert json.loads((profiled / "trace.json").read_text())["traceEvents"]
    assert (profile.result.steps, profile.result.dtype) == (2, "float32")
    calls = {(row.layer.split()[0], row.direction, row.calls) for row in profile.result.rows}
    assert calls == {
        (n, way, c) for n, c in (("G", 1), ("D", 3)) for way in ("forward", "backward")
    }


def test_a_penalty_is_its_layers_time(tmp_path: Path) -> None:
    """Backward through backward: its nodes were made within those of D's layers, whose rows they go to."""
    found = {}
    for penalty in (None, "r1"):
        profile = Profile(steps=2, warmup=1, folder=tmp_path)
        trainer(epochs=1, penalty=penalty).fit([profile])
        assert profile.result is not None
        found[penalty] = {(row.layer, row.direction): row.calls for row in profile.result.rows}
    assert found[None].keys() == found["r1"].keys()


def test_without_a_warm_up_or_a_folder(tmp_path: Path) -> None:
    profile = Profile(steps=1, warmup=0, folder=tmp_path / "here")
    trainer(epochs=1, amp="bf16").fit([profile])
    assert profile.result is not None and profile.result.dtype == "bfloat16"
    assert (tmp_path / "here" / "trace.json").exists()
    with pytest.raises(UserError, match="a run without a folder"):
        trainer(epochs=1).fit([Profile()])


def test_a_run_that_is_too_short(tmp_path: Path) -> None:
    profile = Profile(steps=5, warmup=2)
    run = trainer(tmp_path, epochs=1)
    with pytest.warns(UserWarning, match="ended after 4 steps, 7 are needed"):
        folder = run.fit([profile])
    assert folder is not None and profile.result is None and not profile.table.exists()
    assert not any("runs" in vars(module) for module in run.generator.modules())


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="'steps' must be at least 1"):
        Profile(steps=0)


def test_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DCGAN_FAST_CACHE", str(tmp_path / "cache"))
    tiny = "fake:64 --image-size 16 --channels 1 --ngf 4 --ndf 4 --nz 8 --batch-size 16"
    tiny += " --device cpu --grid-images 4 --max-steps 7 --name run --profile 2"
    assert cli.main(["train", *tiny.split()]) == 0
    assert "runs/run/profile.txt: where the time of a step goes\n" in capsys.readouterr().out
    figures = json.loads(Path("runs/run/profile.json").read_text())
    assert figures["steps"] == 2 and len(figures["rows"]) == 12
