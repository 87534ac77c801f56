"""The one exception that means "the person at the keyboard can mend this"."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong path, setting or file: one line that says what was expected and what came.

    The command line prints it as ``dcgan-fast: error: …`` and exits with status 2; in Python it is an
    ordinary :class:`ValueError`.
    """
