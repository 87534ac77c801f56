"""Packages that only some of this library needs: imported where they are used, and named where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import UserError

__all__ = ["installed_module", "optional_module"]


def installed_module(name: str) -> Any | None:
    """The module ``name``, or None where its package is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def optional_module(name: str, what: str, extra: str, package: str | None = None) -> Any:
    """The module ``name``.

    Args:
        package: that it comes in, where that is not called as the module is.

    Raises:
        UserError: its package is not installed; the message says that ``what`` needs it, and that it, or this library's
            ``extra``, is to be installed.
    """
    module = installed_module(name)
    if module is None:
        package = package or name.partition(".")[0]
        raise UserError(f"{what} needs {package}: pip install {package}, or 'dcgan-fast[{extra}]'")
    return module
