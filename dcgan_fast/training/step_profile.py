"""``--profile``: some steps of a run, layer by layer."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files import make_folder
from ..profiling.steps import TABLE, TRACE, StepProfile, StepProfiler, save_profile
from .callbacks import Callback

if TYPE_CHECKING:
    from .trainer import Trainer

STEPS, WARM_UP = 5, 5
_DTYPES = {None: "float32", "bf16": "bfloat16", "fp16": "float16"}  # by amp


class Profile(Callback):
    """Profiles some steps of a run once they are warm, and writes ``trace.json``, ``profile.txt`` and ``profile.json``.

    The run goes on after them, and no number of it is another; give ``max_steps`` to end it there. A checkpoint that
    falls among them is told under ``other``, as are callbacks that are called before this one; a grid at an epoch's
    end and a look of the watch, which run layers, are in their rows, where calls are then no whole number.

    Args:
        steps: how many are watched.
        warmup: how many go before, from where the run begins or continues.
        folder: where the files are written; None: the run's.

    Attributes:
        result: what was found, None until then.

    Raises:
        ValueError: ``steps`` is below 1, or ``warmup`` below 0.
        UserError: when the run starts: it has no folder and none was given, or that cannot be written.
    """

    def __init__(
        self,
        steps: int = STEPS,
        warmup: int = WARM_UP,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if steps < 1 or warmup < 0:
            raise ValueError(
                f"Profile(): 'steps' must be at least 1 and 'warmup' at least 0, got {steps} and {warmup}"
            )
        self.steps, self.warmup = steps, warmup
        self.folder = None if folder is None else Path(folder)
        self.result: StepProfile | None = None
        self._done = 0

    @property
    def table(self) -> Path:
        """The file that people read."""
        assert self.folder is not None
        return self.folder / TABLE

    def on_start(self, trainer: Trainer) -> None:
        if self.folder is None and trainer.run is None:
            raise UserError("Profile(): a run without a folder ('out') needs 'folder'")
        self.folder = make_folder(self.folder or trainer.run.path)  # type: ignore[union-attr]
        networks = {"G": trainer.generator, "D": trainer.discriminator}
        dtype = _DTYPES[trainer.config.amp]
        self._profiler = StepProfiler(networks, dtype, trainer.device)
        self._done = 0
        if self.warmup == 0:
            self._profiler.start()

    def on_step(self, trainer: Trainer) -> None:
        self._done += 1
        if self._done == self.warmup:
            self._profiler.start()
        elif self._done == self.warmup + self.steps:
            assert self.folder is not None
            self.result = self._profiler.stop(self.steps, trace=self.folder / TRACE)
            save_profile(self.result, self.folder)

    def on_end(self, trainer: Trainer) -> None:
        if self.result is None:
            self._profiler.cancel()
            warnings.warn(
                f"no profile: the run ended after {self._done} steps, {self.warmup + self.steps} are needed",
                stacklevel=2,
            )
