"""``metrics.jsonl``: a line for every few steps, whether or not the run was ever broken off."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..files import cannot_write
from ..reading import parse_json

Record = dict[str, float]


class TrainingDiverged(UserError):
    """A loss is no longer a number; the message says which, at which step, and what can be done."""


class MetricsWindow:
    """Collects a step's metrics on the device and averages them over ``every`` steps.

    A window ends at multiples of ``every`` whatever else happens, so that the records do not depend
    on when checkpoints were written; an unfinished window travels in the checkpoint.
    """

    def __init__(self, names: Sequence[str], every: int) -> None:
        self.names, self.every = tuple(names), every
        self._rows: list[Tensor] = []
        self._last_step = 0

    def add(self, step: int, row: Tensor) -> Record | None:
        """Take the metrics of ``step``, counted from 1; the record of the window that it ends.

        Raises:
            TrainingDiverged: a metric of the window that ends is NaN or infinite.
        """
        self._rows.append(row)
        self._last_step = step
        if step % self.every:
            return None
        record = self.mean()
        self._rows = []
        return record

    def mean(self) -> Record:
        """The record of the window as it is, which must not be empty."""
        self.check()
        means = torch.stack(self._rows).mean(0).tolist()
        return dict(zip(self.names, means, strict=True))

    def check(self) -> None:
        """Raise :class:`TrainingDiverged` where a step of the unfinished window was not finite.

        The one place where the loop waits for the device.
        """
        rows = torch.stack(self._rows).tolist() if self._rows else []
        first = self._last_step - len(rows) + 1
        for step, row in enumerate(rows, start=first):
            for name, value in zip(self.names, row, strict=True):
                if not math.isfinite(value):
                    raise TrainingDiverged(f"{name} is {value} at step {step}")

    def state(self) -> Tensor:
        """The unfinished window as ``(steps, metrics)``, for a checkpoint."""
        width = len(self.names)
        return torch.stack(self._rows).cpu() if self._rows else torch.empty(0, width)

    def load(self, state: Tensor, step: int, device: torch.device) -> None:
        """Raises ValueError where ``state`` is not of such a window."""
        if state.dim() != 2 or state.size(1) != len(self.names):
            raise ValueError(
                f"the metrics are {tuple(state.shape)}, not (steps, {len(self.names)})"
            )
        self._rows = list(state.to(device).unbind())
        self._last_step = step


class MetricsFile:
    """The records of a run, in memory and, with a ``path``, one JSON object a line in a file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: list[Record] = []

    def append(self, record: Record) -> None:
        """Add one line, whole or not at all; raises :class:`UserError` where the disk is full."""
        self.records.append(record)
        if self.path is None:
            return
        try:
            line = json.dumps(record).encode() + b"\n"
            with open(self.path, "ab", buffering=0) as file:
                size = file.tell()
                if file.write(line) != len(line):
                    file.truncate(size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def sync(self) -> None:
        """Force the lines to disk: a checkpoint must never be ahead of them."""
        if self.path is None or not self.path.exists():
            return
        try:
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def rewind(self, step: int, every: int) -> None:
        """Drop what came after ``step``, a torn line, a window cut short by the run's end."""
        self.records = []
        if self.path is None or not self.path.exists():
            return
        try:
            with open(self.path, "rb+") as file:
                end = 0
                for line in file:
                    record = _parse(line)
                    if record is None or record["step"] > step or record["step"] % every:
                        break
                    self.records.append(record)
                    end += len(line)
                file.truncate(end)
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _parse(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record: Any = parse_json(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and type(record.get("step")) is int
    return record if is_record else None
