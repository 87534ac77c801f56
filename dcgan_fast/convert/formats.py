"""What a format of trained networks is, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Checkpoint = dict[str, Any]
StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Format:
    """A way in which trained networks are kept.

    ``recognises(path)`` looks without raising; ``read(path)`` returns a checkpoint; ``write``, if
    there is one, takes a checkpoint and a path and returns the files it wrote.
    """

    name: str
    summary: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Checkpoint]
    write: Callable[[Checkpoint, Path], list[Path]] | None = None


def saved_content(path: Path) -> Mapping[str, Any]:
    """What a file of torch.save holds, or nothing if it is not one that can be read safely."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises a different type for each way a file can be something else
        return {}
    return content if isinstance(content, Mapping) else {}
