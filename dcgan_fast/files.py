"""Files that are either whole or not there: every output of the package is written through this."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import UserError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name ``path`` only when the block ends without an error.

    The bytes go to a temporary name in the same folder, are forced to disk, and are renamed over
    ``path``: a kill, a crash or a full disk leaves either the old file or the new one.

    Raises:
        UserError: the folder is missing, read-only or full (the temporary file is removed), or
            ``path`` is something else than a file: a folder, a device, a pipe.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a rename would put a file in the place of a device
        raise UserError(f"cannot write {path}: it is there already and is not a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        remove_if_there(temporary)
        raise cannot_write(path, error) from error
    except BaseException:
        remove_if_there(temporary)
        raise


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """:func:`atomic_write` of bytes that are already at hand."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """:func:`atomic_write` of text, in UTF-8."""
    write_bytes(path, content.encode())


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make ``path`` and its parents where they are missing; raises :class:`UserError`."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def sync_folder(folder: Path) -> None:
    """Force a rename in ``folder`` to disk where the system can (Windows cannot open folders)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_if_there(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the failure that led here is the one worth reporting
        pass


def cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}")
