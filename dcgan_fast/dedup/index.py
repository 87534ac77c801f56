"""Codes seen so far, over data sets larger than memory and over crashes.

The file is a header, and after it one section for each save: how many codes, a SHA-256 over all codes up to there, the
codes, little-endian words in order of first appearance. A save appends; what a crash leaves of an unfinished section is
told by its checksum.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import atomic_write, cannot_write
from .reference import check_codes

__all__ = ["DedupIndex"]

_ops = torch.ops.dcgan_fast

_MAGIC = b"dcgan_fast.dedup"
_VERSION = 1
_HEADER = struct.Struct("<16sII")  # magic, version, words
_SECTION = struct.Struct("<Q32s")  # codes, SHA-256 of the section before and of the codes

_MOST_CODES = 2**31 - 1  # slots number them in 32 bits, at most half full
_LEAST_ROOM = 1 << 12


@dataclass(frozen=True)
class _Saved:
    """A file as it was when its last whole section had been written or read."""

    path: Path
    size: int
    sections: int
    count: int
    digest: bytes  # of the last section
    last: int = 0  # where the last section begins


class DedupIndex:
    """Which codes were seen, batch by batch.

    >>> index = DedupIndex(words=2)
    >>> for images in loader:
    ...     keep = index.add(pack_codes(encode(images)))  # True: nothing like it came before
    ...     index.save("seen.dedup")  # writes what is new; a crash loses at most the batch after the last save

    Holds each code once, with 8 to 16 bytes beside it: 24 to 32 bytes a code of 128 bits in use, and as much again
    for a moment where it grows. At most 2^31 - 1 codes. The same codes are kept whatever the number of threads and
    however the data is cut into batches. Not to be used from two threads at once.

    Args:
        words: of a code, 64 bits each: 2 for 128 bits.

    Raises:
        ValueError: ``words`` is not a positive integer.
    """

    def __init__(self, words: int = 2) -> None:
        if not isinstance(words, int) or isinstance(words, bool) or words < 1:
            raise ValueError(f"DedupIndex(): 'words' must be a positive integer, got {words!r}")
        self._count = torch.zeros(1, dtype=torch.int64)
        self._seen = torch.empty(0, words, dtype=torch.int64)
        self._table = torch.zeros(1, dtype=torch.int32)
        self._saved: _Saved | None = None

    @property
    def words(self) -> int:
        return self._seen.size(1)

    @property
    def codes(self) -> Tensor:
        """int64 ``(len(self), words)``: the codes in order of their first appearance. A view: not to be changed."""
        return self._seen[: len(self)]

    def __len__(self) -> int:
        return int(self._count)

    def __repr__(self) -> str:
        return f"DedupIndex(words={self.words}), {len(self)} codes"

    def add(self, codes: Tensor) -> Tensor:
        """Tells which rows are new, and remembers them.

        Args:
            codes: int64 ``(N, words)``, on any device (the index itself is in main memory).

        Returns:
            bool ``(N,)`` on the same device: True where the code is neither in the index nor in an earlier row.

        Raises:
            ValueError: the shape is wrong, or the index would grow beyond 2^31 - 1 codes.
            TypeError: the dtype is wrong.
        """
        check_codes("DedupIndex.add", codes)
        if codes.size(1) != self.words:
            raise ValueError(
                f"DedupIndex.add(): 'codes' must have {self.words} words, got {codes.size(1)}"
            )
        self._make_room(len(codes))
        keep = _ops._dedup_index_add_(self._table, self._seen, self._count, codes.cpu())
        return keep.to(codes.device)

    def merge(self, other: DedupIndex) -> Tensor:
        """Adds what another index has seen.

        Returns:
            bool ``(len(other),)``: which of its codes are new here.

        Raises:
            ValueError: its codes have another width.
        """
        if other.words != self.words:
            raise ValueError(
                f"DedupIndex.merge(): 'other' must have codes of {self.words} words, got {other.words}"
            )
        return self.add(other.codes.clone() if other is self else other.codes)

    def _make_room(self, rows: int) -> None:
        """For so many codes more. Pages that are never written cost no memory, so there may be room for all rows."""
        wanted = len(self) + rows
        if wanted > _MOST_CODES:
            # rows that are not new need no room, but that is not known yet
            raise ValueError(
                f"DedupIndex.add(): an index holds at most {_MOST_CODES} codes, "
                f"got {rows} rows for one that has {len(self)}"
            )
        seen, table = self._seen, self._table
        if wanted > len(seen):
            room = max(wanted, len(seen) * 3 // 2, _LEAST_ROOM)
            seen = _empty(torch.int64, room, self.words)
            seen[: len(self)] = self.codes
        if 2 * wanted > len(table):
            table = _empty(torch.int32, 1 << (2 * max(wanted, _LEAST_ROOM) - 1).bit_length())
            _ops._dedup_index_fill_(table, seen, self._count)
        self._seen, self._table = seen, table

    # ---- pickle and copy: slots are by a hash that is another one in each process

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_codes, (self.codes.clone(),)

    # ---- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index, or what is new where ``path`` is the file it was last saved to or loaded from.

        The new part is forced to disk before this returns. A crash on the way leaves what was saved before: of a new
        file nothing, of one that grows a tail that :meth:`load` offers to leave out. An existing file that this index
        did not write is replaced as a whole.

        Raises:
            UserError: the file cannot be written; it is then as it was.
        """
        path = Path(path).absolute()
        if self._saved is None or not _is_as_saved(self._saved, path):
            with atomic_write(path) as file:
                file.write(_HEADER.pack(_MAGIC, _VERSION, self.words))
                saved = self._write_section(file, _Saved(path, _HEADER.size, 0, 0, b""))
        elif self._saved.count == len(self):
            return
        else:
            saved = self._append(self._saved)
        self._saved = saved

    def _append(self, saved: _Saved) -> _Saved:
        try:
            with open(saved.path, "r+b") as file:
                file.seek(saved.size)
                after = self._write_section(file, saved)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            _cut(saved)
            if isinstance(error, OSError):
                raise cannot_write(saved.path, error) from error
            raise
        return after

    def _write_section(self, file: BinaryIO, before: _Saved) -> _Saved:
        new = self.codes[before.count :].numpy().astype("<i8", copy=False)
        digest = _digest(before.digest, new)
        file.write(_SECTION.pack(len(new), digest))
        file.write(new.data)
        size = before.size + _SECTION.size + new.nbytes
        return _Saved(before.path, size, before.sections + 1, len(self), digest, before.size)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, words: int | None = None, recover: bool = False
    ) -> DedupIndex:
        """Reads an index that :meth:`save` wrote. The file is never changed.

        Args:
            path: the file.
            words: of the codes; None takes what the file has.
            recover: where the file is cut short or damaged, take the codes up to the last save that is whole. The next
                :meth:`save` to it writes the file anew.

        Raises:
            UserError: no such file, not such a file, one of another version or of codes of another width, or (unless
                ``recover``) one that is damaged: the error says how many codes are whole.
        """
        path = Path(path).absolute()
        try:
            with open(path, "rb") as file:
                return cls._read(file, path, words, recover)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error

    @classmethod
    def _read(cls, file: BinaryIO, path: Path, words: int | None, recover: bool) -> DedupIndex:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise UserError(f"{path} is no dedup index")
        _, version, found = _HEADER.unpack(header)
        if version != _VERSION:
            raise UserError(f"{path} has version {version}, this library reads version {_VERSION}")
        if found < 1 or (words is not None and words != found):
            raise UserError(
                f"{path} has codes of {found} words, expected {words or 'at least one'}"
            )
        index = cls(found)
        saved = _Saved(path, _HEADER.size, 0, 0, b"")
        file_size = os.fstat(file.fileno()).st_size
        while saved.size < file_size:
            section = _read_section(file, saved, found, file_size)
            if section is None:
                break
            codes, saved = section
            if not index.add(codes).all():
                raise UserError(f"{path} holds a code twice: it was not written by this library")
        whole = saved.size == file_size and saved.sections > 0
        if not whole and not recover:
            raise UserError(
                f"{path} is damaged after its first {saved.sections} saves, {saved.count} codes: "
                "load(..., recover=True) takes those"
            )
        index._saved = saved if whole else None
        return index


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    """On huge pages: slots and codes are looked up all over the place."""
    return _ops._empty_maps(shape, dtype=dtype, memory_format=torch.contiguous_format)


def _with_codes(codes: Tensor) -> DedupIndex:
    index = DedupIndex(codes.size(1))
    index.add(codes)
    return index


def _digest(before: bytes, codes: np.ndarray) -> bytes:
    digest = hashlib.sha256(before)
    digest.update(codes.data)
    return digest.digest()


def _cut(saved: _Saved) -> None:
    """Takes away what was written of a section that failed."""
    try:
        os.truncate(saved.path, saved.size)
    except OSError:  # load() tells a torn section by its checksum
        pass


def _is_as_saved(saved: _Saved, path: Path) -> bool:
    """Whether ``path`` still is what this index wrote or read: its size, and the checksum of all that it held."""
    if path != saved.path:
        return False
    try:
        with open(path, "rb") as file:
            file.seek(saved.last)
            head = file.read(_SECTION.size)
            return os.fstat(file.fileno()).st_size == saved.size and head.endswith(saved.digest)
    except OSError:
        return False


def _read_section(
    file: BinaryIO, before: _Saved, words: int, file_size: int
) -> tuple[Tensor, _Saved] | None:
    """The next section's codes and the state after it; None where it is not whole."""
    head = file.read(_SECTION.size)
    if len(head) < _SECTION.size:
        return None
    rows, digest = _SECTION.unpack(head)
    size = before.size + _SECTION.size + rows * words * 8
    if size > file_size:  # before memory is taken for what a damaged number says
        return None
    codes = np.fromfile(file, "<i8", rows * words).reshape(-1, words)
    if _digest(before.digest, codes) != digest:
        return None
    count = before.count + rows
    after = _Saved(before.path, size, before.sections + 1, count, digest, before.size)
    return torch.from_numpy(codes.astype(np.int64, copy=False)), after
