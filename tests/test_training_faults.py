"""What may happen to a run at any moment: a signal, a kill, a full disk, a damaged file."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import tiny_runs
from tiny_runs import assert_same_checkpoint, one_thread  # noqa: F401

from dcgan_fast.training import Trainer, load_checkpoint
from dcgan_fast.training.signals import StopRequest

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
