"""A run as TensorBoard shows it (extra ``tensorboard``)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import make_folder, remove_if_there
from ..optional import optional_module
from .callbacks import Callback
from .log import Record

if TYPE_CHECKING:
    from .trainer import Trainer

_PLACES = ("step", "epoch")  # of a record, which are its place and no figures
_FILES = "events.out.tfevents.*"


class TensorBoard(Callback):
    """Logs every line of ``metrics.jsonl`` as scalars, every grid as an image, the configuration as text.

    >>> Trainer(config).fit([TensorBoard()])  # then: tensorboard --logdir runs

    A continued run has one log, as if it had never been broken off: at its start all that the run's folder holds up to
    there is written into a new file, and those from before are removed. So the log may also be asked for late. A
    TensorBoard that is watching drops what it has read and reads anew.

    Args:
        folder: where the log is kept; None: the folder ``tensorboard`` of the run's.

    Raises:
        UserError: the package tensorboard is not installed; when the run starts: it has no folder and none was given,
            or that cannot be written. Without a folder of the run's own there are no images.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        optional_module("tensorboard", "the TensorBoard log", "tensorboard")
        self.folder = None if folder is None else Path(folder)
        self._writer: Any = None
        self._awaited: _Grid | None = None

    def on_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        if self.folder is None and trainer.run is None:
            raise UserError("TensorBoard(): a run without a folder ('out') needs 'folder'")
        folder = self.folder or log_folder(trainer)
        earlier = list(make_folder(folder).glob(_FILES))
        # "From step 0 on forget what was": for whoever reads both files, or has read the earlier one.
        self._writer = SummaryWriter(str(folder), purge_step=0)
        self._writer.add_text("config", f"```\n{trainer.config.to_json()}```")
        for record in trainer.records:
            self._add(record)
        for record in trainer.likelihoods:
            self._add(record)
        for epoch in range(1, trainer.epoch + 1):
            if trainer.run is not None and trainer.run.grid(epoch).exists():
                self._add_image(trainer.run.grid(epoch), epoch * trainer.steps_per_epoch)
        self._writer.flush()
        for path in earlier:
            remove_if_there(path)

    def on_record(self, trainer: Trainer, record: Record) -> None:
        self._add(record)
        self._writer.flush()  # a run that is killed leaves what metrics.jsonl has

    def on_epoch(self, trainer: Trainer) -> None:
        if trainer.likelihoods and trainer.likelihoods[-1]["step"] == trainer.step:
            self._add(trainer.likelihoods[-1])
        if trainer.run is not None:
            epoch = (trainer.step - 1) // trainer.steps_per_epoch + 1
            self._awaited = _Grid(trainer.run.grid(epoch), trainer.step)

    def on_step(self, trainer: Trainer) -> None:
        self._add_awaited()

    def on_end(self, trainer: Trainer) -> None:
        self._add_awaited()
        self._writer.close()

    def _add(self, record: Record) -> None:
        """As one event: of a long run there are a hundred thousand to write anew."""
        self._writer.file_writer.add_summary(_summary(record.items()), record["step"])

    def _add_awaited(self) -> None:
        """The grid of the last epoch, which the trainer draws after it has called :meth:`on_epoch`."""
        if self._awaited is not None and self._awaited.is_drawn():
            self._add_image(self._awaited.path, self._awaited.step)
        self._awaited = None

    def _add_image(self, path: Path, step: int) -> None:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image("samples", pixels, step, dataformats="HWC")


class _Grid:
    """A picture that will be drawn, or not, at a place where an older one may be."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step
        self._before = self._time()

    def _time(self) -> int | None:
        return self.path.stat().st_mtime_ns if self.path.exists() else None

    def is_drawn(self) -> bool:
        return self._time() not in (None, self._before)


def log_folder(trainer: Trainer) -> Path:
    """Where the log of a run is kept, if there is one."""
    assert trainer.run is not None
    return trainer.run.path / "tensorboard"


def _summary(values: Iterable[tuple[str, float]]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(
        value=[
            Summary.Value(tag=f"training/{name}", simple_value=value)
            for name, value in values
            if name not in _PLACES
        ]
    )
