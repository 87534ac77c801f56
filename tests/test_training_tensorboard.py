from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_runs import config, dataset, one_thread, trainer  # noqa: F401

from dcgan_fast import cli
from dcgan_fast.errors import UserError
from dcgan_fast.training import Callback, TensorBoard, Trainer


@pytest.fixture
def installed() -> None:
    pytest.importorskip("tensorboard")


def content(run: Path) -> tuple[dict[str, list[tuple[int, float]]], list[tuple[int, np.ndarray]]]:
    """All scalars and images as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    log.Reload()
    scalars = {tag: [(e.step, e.value) for e in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    images = [
        (event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string))))
        for event in log.Images("samples")
    ]
    return scalars, images


def assert_holds_the_run(run: Path, steps: list[int], grids: dict[int, int]) -> None:
    """Every record once, every grid once: ``grids`` are steps and epochs."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == steps
    scalars, images = content(run)
    for name in set().union(*records) - {"step", "epoch"}:
        expected = [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in records if name in r]
        assert scalars[f"training/{name}"] == expected
    assert [step for step, _ in images] == list(grids)
    for (_, pixels), epoch in zip(images, grids.values(), strict=True):
        drawn = Image.open(run / "samples" / f"epoch_{epoch:04d}.png").convert("RGB")
        assert np.array_equal(pixels, np.asarray(drawn))


def test_records_and_grids(tmp_path: Path, installed: None) -> None:
    run = trainer(tmp_path, name="run", grid_every=2, epochs=3).fit([TensorBoard()])
    assert run is not None
    assert_holds_the_run(run, [3, 6, 9, 12], {8: 2, 12: 3})
    assert len(list((run / "tensorboard").iterdir())) == 1


class Kill(Callback):
    """Ends the run between two checkpoints, as kill -9 would: nothing is closed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Any) -> None:
        if trainer.step == self.step:
            raise ZeroDivisionError


def test_a_continued_run_has_one_log(tmp_path: Path, installed: None) -> None:
    killed = trainer(tmp_path, name="run", epochs=2)
    with pytest.raises(ZeroDivisionError):
        killed.fit([TensorBoard(), Kill(7)])  # its checkpoint is of step 4
    run = tmp_path / "run"
    assert [step for step, _ in content(run)[0]["training/loss_d"]] == [3, 6]
    Trainer.resume(run, dataset=dataset()).fit([TensorBoard()])
    assert_holds_the_run(run, [3, 6, 8], {4: 1, 8: 2})
    # More epochs: the record of step 8 was of a window cut short, and goes; the grid of step 8 stays
    Trainer.resume(run, dataset=dataset(), epochs=3).fit([TensorBoard()])
    assert_holds_the_run(run, [3, 6, 9, 12], {4: 1, 8: 2, 12: 3})
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_what_was_written_before_is_outweighed(tmp_path: Path, installed: None) -> None:
    """Killed after the new file was begun and before the old one was removed."""
    run = trainer(tmp_path, name="run", epochs=1).fit([TensorBoard()])
    assert run is not None
    (old,) = (run / "tensorboard").iterdir()
    kept = old.read_bytes()
    Trainer.resume(run, dataset=dataset(), epochs=2).fit([TensorBoard()])
    old.write_bytes(kept)
    assert_holds_the_run(run, [3, 6, 8], {4: 1, 8: 2})


def test_a_log_asked_for_late_is_whole(tmp_path: Path, installed: None) -> None:
    run = trainer(tmp_path, name="run", epochs=1).fit()
    assert run is not None
    Trainer.resume(run, dataset=dataset(), epochs=2).fit([TensorBoard()])
    assert_holds_the_run(run, [3, 6, 8], {4: 1, 8: 2})


def test_validation(tmp_path: Path, installed: None) -> None:
    run = trainer(tmp_path, name="run", epochs=2, patience=5, batch_size=12).fit([TensorBoard()])
    assert run is not None
    lines = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert content(run)[0]["training/log_likelihood"] == [
        (line["step"], pytest.approx(line["log_likelihood"], rel=1e-6)) for line in lines
    ]


def test_a_run_without_a_folder(tmp_path: Path, installed: None) -> None:
    with pytest.raises(UserError, match="a run without a folder"):
        trainer(epochs=1).fit([TensorBoard()])
    trainer(epochs=1).fit([TensorBoard(tmp_path / "tensorboard")])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    assert [event.step for event in log.Scalars("training/loss_g")] == [3, 4]


def test_without_its_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"needs tensorboard: pip install tensorboard, or .*\[ten"):
        TensorBoard()
    assert cli.main("train nothing-is-read --tensorboard".split()) == 2
    assert "needs tensorboard" in capsys.readouterr().err


def test_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DCGAN_FAST_CACHE", str(tmp_path / "cache"))
    tiny = (
        "fake:64 --image-size 16 --channels 1 --ngf 4 --ndf 4 --nz 8 --batch-size 16 --log-every 3"
    )
    tiny += " --device cpu --grid-images 4 --epochs 1 --name run --tensorboard"
    assert cli.main(["train", *tiny.split()]) == 0
    run = tmp_path / "runs" / "run"
    assert_holds_the_run(run, [3, 4], {4: 1})
    assert cli.main("train --resume --epochs 2".split()) == 0  # it goes on without being asked for
    assert_holds_the_run(run, [3, 6, 8], {4: 1, 8: 2})
    assert cli.main("train --resume --epochs 3 --no-tensorboard".split()) == 0
    assert [step for step, _ in content(run)[1]] == [4, 8]
