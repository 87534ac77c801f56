"""Files that may hold anything: what their readers share, so that a damaged or hostile one costs an error alone."""

from __future__ import annotations

import json
import os
import reprlib
from typing import Any

import numpy as np


def parse_json(text: str | bytes, **options: Any) -> Any:
    """``json.loads`` whose only error is ValueError: brackets in brackets without end are one too."""
    try:
        return json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_array(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of a ``.npy``, mapped read-only: no memory is taken for a shape that the file only claims to have.

    Raises:
        ValueError: it is none, of Python objects, or cut short.
        OSError: it cannot be read.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header or zip raises nearly anything
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError("it is an archive, not one array")
    return found


def shown(value: object) -> str:
    """A value for a message: cut where it is long, and finite where it holds itself."""
    cut = reprlib.Repr()
    cut.maxstring = cut.maxother = cut.maxlong = 100
    return cut.repr(value)
