"""The codes of a long run on disk, batch by batch: what a run that was broken off continues from.

The file is a header, and after it one record for each batch: how many codes, how long the notes, a CRC-32 of both, the
codes as little-endian words, the notes as JSON. What a crash left unfinished is told by its length or checksum.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import cannot_write, write_bytes
from ..reading import parse_json

_MAGIC = b"dcgan_fast.codes"
_VERSION = 1
_HEADER = struct.Struct("<16sII32s")  # magic, version, words, key
_RECORD = struct.Struct("<III")  # codes, bytes of notes, CRC-32

Notes = dict[int, str]


class CodesLog:
    """Codes in the order of their images, 8 bytes a word, with a note here and there.

    Args:
        path: the file; continued where it was begun with the same ``key`` and ``words``, else begun anew.
        key: 32 bytes that stand for everything the codes depend on.
        words: of a code.

    Attributes:
        codes: int64 ``(N, words)``, those that the file has.
        notes: by row, those that the file has.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, key: bytes, words: int) -> None:
        self.path, self._words = path, words
        self._parts: list[Tensor] = []
        self.notes: Notes = {}
        self._rows = 0
        header = _HEADER.pack(_MAGIC, _VERSION, words, key)
        try:
            if _begins_with(path, header):
                end = self._read()
            else:
                write_bytes(path, header)
                end = len(header)
            self._file = open(path, "r+b", buffering=0)
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise cannot_write(path, error) from error

    def __len__(self) -> int:
        return self._rows

    @property
    def codes(self) -> Tensor:
        empty = torch.empty(0, self._words, dtype=torch.int64)
        self._parts = [torch.cat([empty, *self._parts])]
        return self._parts[0]

    def append(self, codes: Tensor, notes: Notes) -> None:
        """Adds a batch; ``notes`` are numbered by its rows. Raises :class:`UserError` where the disk is full."""
        text = json.dumps(notes).encode() if notes else b""
        payload = codes.numpy().astype("<i8", copy=False).tobytes() + text
        record = _RECORD.pack(len(codes), len(text), zlib.crc32(payload)) + payload
        try:
            if self._file.write(record) != len(record):
                raise OSError(
                    errno.ENOSPC, os.strerror(errno.ENOSPC)
                )  # the tail is dropped when the file is read again
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._take(codes, notes)

    @staticmethod
    def is_of(path: Path, key: bytes) -> bool:
        """Whether ``path`` was begun with this key."""
        try:
            with open(path, "rb") as file:
                return file.read(_HEADER.size).endswith(key)
        except OSError:
            return False

    def close(self) -> None:
        self._file.close()

    def _take(self, codes: Tensor, notes: Notes) -> None:
        self.notes |= {self._rows + row: note for row, note in notes.items()}
        self._parts.append(codes)
        self._rows += len(codes)

    def _read(self) -> int:
        """Takes the whole records; returns where they end."""
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            end = file.seek(_HEADER.size)
            while len(head := file.read(_RECORD.size)) == _RECORD.size:
                rows, length, checksum = _RECORD.unpack(head)
                wanted = rows * self._words * 8 + length
                if (
                    wanted > size - file.tell()
                ):  # before memory is taken for what a torn number says
                    break
                payload = file.read(wanted)
                if len(payload) != wanted or zlib.crc32(payload) != checksum:
                    break
                words = np.frombuffer(payload, "<i8", rows * self._words).astype(np.int64)
                notes = parse_json(payload[words.nbytes :] or "{}")
                codes = torch.from_numpy(words.reshape(rows, self._words))
                self._take(codes, {int(row): note for row, note in notes.items()})
                end = file.tell()
        return end


def _begins_with(path: Path, header: bytes) -> bool:
    if not path.exists():
        return False
    with open(path, "rb") as file:
        found = file.read(len(header))
    if found != header and not found.startswith(_MAGIC):
        raise UserError(f"{path} is there already and is no log of codes: move it away")
    return found == header
