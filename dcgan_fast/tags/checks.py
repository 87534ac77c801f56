"""Checks that the modules here share."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor

from ..errors import UserError


def whole(owner: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` as an int within [low, high]; numpy integers are welcome, booleans are not."""
    try:
        number = low - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = low - 1
    if number < low or (high is not None and number > high):
        rule = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{owner}(): '{name}' must be an integer {rule}, got {value!r}")
    return number


def check_rows(owner: str, name: str, tensor: Tensor, width: int, rows: int | None = None) -> None:
    """``tensor`` is (rows, width)."""
    shape = tuple(tensor.shape)
    if len(shape) != 2 or shape[1] != width or rows not in (None, shape[0]):
        wanted = "N" if rows is None else rows
        raise UserError(f"{owner}: '{name}' must be ({wanted}, {width}), got {shape}")
