"""What may happen to a run at any moment: a signal, a kill, a full disk, a damaged file."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from tiny_runs import assert_same_checkpoint, one_thread  # noqa: F401

from dcgan_fast import cli, files
from dcgan_fast.errors import UserError
from dcgan_fast.training import Trainer, load_checkpoint, load_networks, log
from dcgan_fast.training.checkpoint import save_bare_state, save_checkpoint
from dcgan_fast.training.signals import StopRequest


def numbers(run: Path) -> list[dict[str, float]]:
    """The records of a run without their speeds."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines]


# -------------------------------------------------------------------------------------- signals


@contextmanager
def before_each_line(code: CodeType, act: Callable[[], None]) -> Iterator[None]:
    """Calls ``act`` before every line that a function runs."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not code:
            return None
        if event == "line":
            act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_at_any_line_of_the_loop_keeps_all_that_was_done(
    tmp_path: Path, every: int
) -> None:
    whole = tiny_runs.trainer(tmp_path, name="whole", epochs=1, log_every=2, watch=False)
    lines = 0

    def count() -> None:
        nonlocal lines
        lines += 1

    with before_each_line(Trainer._loop.__code__, count):
        whole.fit()
    assert lines > 40 and whole.run is not None

    step = lines // 4
    for at in (
        *range(lines // 2, lines // 2 + step, every),
        lines - 1,
        lines,
    ):  # a step, and the end
        left = at

        def signal_in_time() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)

        stopped = tiny_runs.trainer(
            tmp_path, name=f"at-{at}", epochs=1, log_every=2, watch=False, save_steps=3
        )
        with (
            pytest.raises(KeyboardInterrupt),
            before_each_line(Trainer._loop.__code__, signal_in_time),
        ):
            stopped.fit()
        assert load_checkpoint(tmp_path / f"at-{at}")["step"] == stopped.step, f"line {at}"
        if at % 6 == 0:
            resumed = Trainer.resume(tmp_path / f"at-{at}", dataset=tiny_runs.dataset())
            assert resumed.step == stopped.step
            resumed.fit()
            assert_same_checkpoint(whole.run.path, tmp_path / f"at-{at}")


def test_a_signal_after_the_loop_is_not_lost() -> None:
    with pytest.raises(SystemExit) as caught, StopRequest():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    with pytest.raises(ZeroDivisionError), StopRequest():
        signal.raise_signal(signal.SIGTERM)
        raise ZeroDivisionError


# ---------------------------------------------------------------------------------------- kills

# For each line of input forks a process that begins or continues a run, and kills it after so many milliseconds (none:
# lets it complete). Answers with the exit status. No interpreter is started for a kill, and nothing has run in this one
# that a fork would leave behind: neither a pool of threads nor autograd.
FORKING = """
import os, signal, sys, time
from pathlib import Path
import torch
import tiny_runs
from dcgan_fast.training import Trainer

torch.set_num_threads(1)
settings = dict(epochs=6, log_every=2, save_steps=1, grid_every=2, ema=0.9, flip=True)
folder, data = Path(sys.argv[1]), tiny_runs.dataset()
tiny_runs.trainer(**settings)  # imports what is imported on demand

def work(name):
    if list((folder / name).glob("checkpoint*.pt")):
        Trainer.resume(folder / name, dataset=data).fit()
    else:
        Trainer(tiny_runs.config(folder, name=name, **settings), dataset=data).fit()

for line in sys.stdin:
    name, *milliseconds = line.split()
    child = os.fork()
    if not child:
        try:
            work(name)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if milliseconds:
        time.sleep(float(milliseconds[0]) / 1000)
        os.kill(child, signal.SIGKILL)  # a process that has ended is there until it was waited for
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
STEPS = 24  # of a run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_runs_killed_at_random_moments_continue_bit_for_bit(
    tmp_path: Path, kills: int, seed: int
) -> None:
    moments = random.Random(seed)  # what the machine does meanwhile no seed can repeat
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    server = subprocess.Popen(
        [sys.executable, "-c", FORKING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        env={**os.environ, "PYTHONPATH": paths},
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None

    def work(name: str, milliseconds: float | str = "") -> int:
        server.stdin.write(f"{name} {milliseconds}\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    with server:
        assert work("first") == 0
        began = time.monotonic()
        assert work("whole") == 0
        longest = 500 * (time.monotonic() - began)  # half of it, in milliseconds
        killed, run, left_at = 0, 0, set()
        while killed < kills:
            name = f"run-{run}"
            status = work(name, moments.uniform(1, longest))
            assert status in (0, -signal.SIGKILL)
            killed += status != 0
            if status == 0 or killed == kills:
                assert work(name) == 0
                assert_same_checkpoint(tmp_path / "whole", tmp_path / name)
                assert numbers(tmp_path / "whole") == numbers(tmp_path / name)
                for weights in ("generator.pth", "generator_ema.pth", "discriminator.pth"):
                    mine, theirs = (tmp_path / at / weights for at in (name, "whole"))
                    assert mine.read_bytes() == theirs.read_bytes()
                assert not list((tmp_path / name).rglob("*.tmp"))
                run += 1
            elif (tmp_path / name / "checkpoint.pt").exists():
                left_at.add((run, load_checkpoint(tmp_path / name)["step"]))
    print(f"{killed} kills of {run} runs, left at {sorted(left_at)}")
    assert load_checkpoint(tmp_path / "whole")["step"] == STEPS
    assert len(left_at) >= kills // 10  # they had come to different steps


# ------------------------------------------------------------------------------------ full disks


class FullDisk:
    """A disk on which the call of that number, of all that write, fails; and every one after it until it is freed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
        self.calls, self.fails, self.freed = 0, fails, False
        for name in ("fsync", "replace", "link"):
            monkeypatch.setattr(os, name, self._limited(getattr(os, name)))
        for module in (files, log):
            monkeypatch.setattr(module, "open", self._open, raising=False)

    def spend(self) -> None:
        self.calls += 1
        if not self.freed and self.calls >= self.fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _limited(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def limited(*arguments: Any, **options: Any) -> Any:
            self.spend()
            return call(*arguments, **options)

        return limited

    def _open(self, path: Any, mode: str = "r", **options: Any) -> Any:
        if mode == "rb":
            return open(path, mode, **options)
        self.spend()
        file = open(path, mode, **options)
        return _OnFullDisk(file, self)


class _OnFullDisk:
    """A file of which half is written where the disk is full."""

    def __init__(self, file: Any, disk: FullDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, content: Any) -> int:
        try:
            self._disk.spend()
        except OSError:
            self._file.write(memoryview(content)[: len(content) // 2])
            raise
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)

    def __enter__(self) -> _OnFullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_at_any_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    settings = {"epochs": 1, "log_every": 2, "save_steps": 2}
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, fails=1 << 30)
        whole = tiny_runs.trainer(tmp_path, name="whole", **settings).fit()
    assert whole is not None and disk.calls > 50
    for fails in range(1, disk.calls + 1, every):
        name = f"full-{fails}"
        with monkeypatch.context() as patch:
            FullDisk(patch, fails)
            trainer = tiny_runs.trainer(tmp_path, name=name, **settings)
            with pytest.raises(UserError, match="cannot write .*: No space left on device"):
                trainer.fit()
        assert not list((tmp_path / name).rglob("*.tmp"))
        if list((tmp_path / name).glob("checkpoint*.pt")):
            trainer = Trainer.resume(tmp_path / name, dataset=tiny_runs.dataset())
        else:  # a run that never saved is begun again
            trainer = tiny_runs.trainer(tmp_path, name=name, **settings)
        trainer.fit()
        assert_same_checkpoint(whole, tmp_path / name)
        assert numbers(whole) == numbers(tmp_path / name)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a file system")
def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs")
    try:
        trainer = tiny_runs.trainer(disk, name="run", epochs=200, save_steps=1, grid_every=1)
        with pytest.raises(UserError, match="cannot write .*: No space left on device"):
            trainer.fit()
        checkpoints = [
            load_checkpoint(path)["step"] for path in (disk / "run").glob("checkpoint*.pt")
        ]
        assert checkpoints and max(checkpoints) <= trainer.step
        assert not list((disk / "run").rglob("*.tmp"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------------------- damaged checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two checkpoints, with all that one can hold."""
    out = tmp_path_factory.mktemp("runs")
    settings: dict[str, Any] = {"epochs": 1, "save_steps": 3, "ema": 0.9}
    path = tiny_runs.trainer(out, name="run", **settings).fit()
    assert path is not None
    return path


def outcome(action: Callable[[], Any]) -> str:
    """What came of it: "done", or the message of the UserError; any other error passes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            action()
        except UserError as error:
            assert str(error)
            return str(error)
    return "done"


def read_every_way(file: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    def continued() -> None:
        trainer = Trainer.resume(file, dataset=tiny_runs.dataset(), epochs=2, max_steps=5)
        trainer.config.out, trainer.run = None, None
        trainer.fit()

    out = str(file.with_suffix(".png"))
    found = [outcome(lambda: load_networks(file)), outcome(continued)]
    status = cli.main(["sample", str(file), "--out", out])
    assert status in (0, 2)
    printed = capsys.readouterr()
    assert (status == 0) or printed.err.startswith("dcgan-fast: error: ")
    return found


@pytest.mark.parametrize("count", [12, pytest.param(120, marks=pytest.mark.slow)])
def test_a_checkpoint_cut_short_is_refused(
    run: Path, tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (run / "checkpoint.pt").read_bytes()
    for length in np.linspace(0, len(whole) - 1, count).astype(int):
        file = tmp_path / "cut.pt"
        file.write_bytes(whole[:length])
        for found in read_every_way(file, capsys):
            assert "cut.pt is not a checkpoint that can be read: " in found, length


@pytest.mark.parametrize("count", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_a_checkpoint_with_a_flipped_bit_is_refused_or_the_same(
    run: Path, tmp_path: Path, count: int, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    places = random.Random(seed)
    whole = (run / "checkpoint.pt").read_bytes()
    refused = 0
    for _ in range(count):
        place, bit = places.randrange(len(whole)), places.randrange(8)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        file = tmp_path / "flipped.pt"
        file.write_bytes(damaged)
        found = read_every_way(file, capsys)
        if found == ["done", "done"]:  # in what is no part of the contents: padding, a date
            tiny_runs.assert_same_state(load_checkpoint(file), load_checkpoint(run))
        else:
            assert all("flipped.pt" in message for message in found), (place, bit)
            refused += 1
    assert refused > count // 2


def test_the_older_checkpoint_takes_over(run: Path, tmp_path: Path) -> None:
    whole = (run / "checkpoint.pt").read_bytes()
    older = load_checkpoint(run / "checkpoint.previous.pt")["step"]
    (tmp_path / "checkpoint.previous.pt").write_bytes((run / "checkpoint.previous.pt").read_bytes())
    state = load_checkpoint(run)
    for role in ("generator", "discriminator"):
        weight = next(v for k, v in state[role].items() if k.endswith("running_var"))
        place = whole.index(weight.numpy().tobytes())
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        with pytest.warns(UserWarning, match="continuing from .*checkpoint.previous.pt"):
            assert Trainer.resume(tmp_path, dataset=tiny_runs.dataset()).step == older
        with pytest.raises(UserError, match="checkpoint.previous.pt"):
            load_networks(tmp_path / "checkpoint.pt")


WRONG = (
    None,
    -1,
    3.5,
    "text",
    [],
    {},
    [1],
    {"a": 1},
    torch.zeros(3),
    torch.zeros(()),
    1 << 33,
    1 << 70,
)


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places_in(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 2)):
            yield from places_in(value[index], (*path, index))


@pytest.mark.parametrize("every", [60, pytest.param(9, marks=pytest.mark.slow)])
def test_a_checkpoint_with_a_wrong_value_is_refused_or_serves(
    run: Path, tmp_path: Path, every: int, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each value in turn is missing or another: no error but a UserError, whoever reads."""
    content = load_checkpoint(run)
    damages = [(place, wrong) for place in places_in(content) for wrong in ("missing", *WRONG)]
    file = tmp_path / "wrong.pt"
    for place, wrong in damages[seed % every :: every]:
        damaged = copy.deepcopy(content)
        inner = damaged
        for key in place[:-1]:
            inner = inner[key]
        if isinstance(wrong, str) and wrong == "missing":
            del inner[place[-1]]
        else:
            inner[place[-1]] = wrong
        save_checkpoint(file, damaged)
        try:
            read_every_way(file, capsys)
        except Exception as error:
            raise AssertionError(f"{place} = {wrong!r}: {error!r}") from error


def test_shapes_that_lie_take_no_memory(run: Path, tmp_path: Path) -> None:
    content = load_checkpoint(run)
    content["config"]["generator"]["nz"] = 1 << 40
    save_checkpoint(tmp_path / "wide.pt", content)
    with pytest.raises(UserError, match=r"wide.pt is of another architecture"):
        load_networks(tmp_path / "wide.pt")
    huge = (1 << 40, *content["generator"]["main.0.weight"].shape[1:])
    content["generator"]["main.0.weight"] = torch.zeros(1).expand(huge)
    content.pop("generator_ema")
    save_checkpoint(tmp_path / "stretched.pt", content)
    with pytest.raises(UserError, match="stretched.pt is damaged: .* fewer values than its shape"):
        load_networks(tmp_path / "stretched.pt")
    for moment in content["optimizer_g"]["state"][0]:
        wrong = load_checkpoint(run)
        wrong["optimizer_g"]["state"][0][moment] = torch.zeros(0)
        save_checkpoint(tmp_path / "moments.pt", wrong)
        with pytest.raises(UserError, match=f"damaged checkpoint: the optimiser's '{moment}'"):
            Trainer.resume(tmp_path / "moments.pt", dataset=tiny_runs.dataset())


def test_a_checkpoint_that_unpacks_to_more_is_refused(run: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(run / "checkpoint.pt") as plain:
        with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed:
            for entry in plain.namelist():
                packed.writestr(entry, plain.read(entry))
    with pytest.raises(UserError, match="bomb.pt is not a checkpoint .* is compressed"):
        load_checkpoint(tmp_path / "bomb.pt")


def test_a_checkpoint_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        save_bare_state(tmp_path / "netG.pth", tiny_runs.trainer().generator.state_dict())
    finally:
        torch.serialization.set_crc32_options(before)
    assert load_networks(tmp_path / "netG.pth")[0] is not None
