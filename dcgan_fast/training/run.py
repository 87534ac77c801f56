"""The folder of a run: what lies where in it, how a new one is made and an old one found."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files import cannot_write, make_folder, remove_if_there
from .checkpoint import FILE_NAME, PREVIOUS_NAME


@dataclass(frozen=True)
class RunFolder:
    """``runs/<name>/``: every path of it has one name here."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / FILE_NAME

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def launch(self) -> Path:
        """Which launch of ``torchrun`` works on it: one that starts its processes anew finds the run by that."""
        return self.path / "launch.txt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch, where a run validates."""
        return self.path / "best.pt"

    @property
    def validation(self) -> Path:
        return self.path / "validation.jsonl"

    @property
    def curves(self) -> Path:
        return self.path / "losses.png"

    @property
    def watch(self) -> Path:
        return self.path / "watch.png"

    @property
    def real(self) -> Path:
        return self.path / "real.png"

    @property
    def generator(self) -> Path:
        return self.path / "generator.pth"

    @property
    def generator_ema(self) -> Path:
        return self.path / "generator_ema.pth"

    @property
    def discriminator(self) -> Path:
        return self.path / "discriminator.pth"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def grid(self, epoch: int) -> Path:
        """The samples after ``epoch``, counted from 1."""
        return self.samples / f"epoch_{epoch:04d}.png"

    def folders(self) -> tuple[Path, ...]:
        """Those that are written to."""
        return self.path, self.samples

    def prepare(self) -> None:
        """Make the folders, and remove what a killed process was writing."""
        for folder in self.folders():
            make_folder(folder)
            for leftover in folder.glob(".*.tmp"):
                remove_if_there(leftover)


def new_run(
    out: str | os.PathLike[str],
    name: str | None,
    default_name: str,
    kind: type[RunFolder] = RunFolder,
) -> RunFolder:
    """Make the folder of a new run in ``out``: ``name``, or ``default_name`` and a free number.

    Raises:
        UserError: ``out/name`` holds a run already (nothing of it is touched), or cannot be made,
            or ``name`` is a path.
    """
    parent = make_folder(out)
    if name is None:
        stem = re.sub(r"[^\w.-]+", "-", default_name).strip("-.") or "run"
        for number in itertools.count(1):
            path = parent / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir()  # two processes never get the same folder
            except FileExistsError:
                continue
            except OSError as error:
                raise cannot_write(path, error) from error
            break
    else:
        if Path(name).name != name or name in (".", ".."):
            raise UserError(f"the name of a run must be one folder's name, got '{name}'")
        path = make_folder(parent / name)
    run = kind(path)
    if run.checkpoint.exists():
        raise UserError(
            f"{path} holds a run already: continue it with --resume, or choose another --name"
        )
    run.prepare()
    return run


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that ``path`` means: the file, or the newest of a run or a folder of runs.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    for place in (path, *sorted(_runs_in(path), key=_age)):
        for name in (FILE_NAME, PREVIOUS_NAME):
            if (place / name).is_file():
                return place / name
    raise UserError(
        f"no checkpoint to continue from: there is none in {path}"
        if path.exists()
        else f"no checkpoint to continue from: {path} does not exist"
    )


def find_launched(out: str | os.PathLike[str], launch: str) -> RunFolder | None:
    """The run in ``out`` that this launch has made, if it came so far."""
    for file in Path(out).glob("*/launch.txt"):
        if file.read_text() == launch:
            return RunFolder(file.parent)
    return None


def _runs_in(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob(f"*/{FILE_NAME}")]


def _age(run: Path) -> float:
    return -(run / FILE_NAME).stat().st_mtime
