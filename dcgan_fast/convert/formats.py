"""What a format of trained networks is, and what several of them share."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import make_folder

Checkpoint = dict[str, Any]
StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Format:
    """A way in which trained networks are kept.

    Of a format that can be read, ``read(path)`` returns a checkpoint, and ``recognises(path)`` looks
    without raising; of one that can be written, ``write`` takes a checkpoint and a path and returns
    the files it wrote. A target of that ``suffix`` is of this format where nobody says otherwise.
    """

    name: str
    summary: str
    recognises: Callable[[Path], bool] | None = None
    read: Callable[[Path], Checkpoint] | None = None
    write: Callable[[Checkpoint, Path], list[Path]] | None = None
    suffix: str | None = None


def floats(array: object, what: str) -> np.ndarray:
    """An array of any floating-point type and byte order as float32; raises :class:`UserError` of anything else."""
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        got = array.dtype if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise UserError(f"convert(): {what} must hold floating-point numbers, got {got}")
    return array.astype(np.float32, copy=False)


def folder_for(names: Collection[str], out: Path, of_format: re.Pattern[str]) -> Path:
    """Make the folder ``out`` for files of these names.

    Raises:
        UserError: it cannot be made, or a file that matches ``of_format`` and is none of these lies there: of another
            model, and with them it would be read.
    """
    folder = make_folder(out)
    for entry in folder.iterdir():
        if of_format.fullmatch(entry.name) and entry.name not in names:
            raise UserError(
                f"convert(): {folder} holds {entry.name}, of another model; choose a new folder"
            )
    return folder


def saved_content(path: Path) -> Mapping[str, Any]:
    """What a file of torch.save holds, or nothing if it is not one that can be read safely.

    Torch is given the opened file: of a path it would read safetensors too.
    """
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of files that are none of its own
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch raises a different type for each way a file can be something else
        return {}
    return content if isinstance(content, Mapping) else {}
