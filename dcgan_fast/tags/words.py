"""Word vectors from the files they are published in, and the nearest words to a vector by cosine."""

from __future__ import annotations

import gzip
import itertools
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..reading import read_array

__all__ = ["WordVectors", "load_words"]

_LINES = 1 << 13  # parsed at once
# Similarities held at once while the nearest words are found: 32 MB of them stay near the cores,
# and 64 queries are enough for the product to be one of matrices.
_QUERIES, _SIMILARITIES = 64, 1 << 23


class WordVectors:
    """Words and a vector for each.

    Args:
        words: all different; at least one.
        vectors: float32 (V, width), a row a word, finite.

    Attributes:
        words, vectors: the same; a list, a CPU tensor.

    Raises:
        UserError: no words, one that is there twice, vectors of another shape or not finite.
    """

    def __init__(self, words: Sequence[str], vectors: Tensor | np.ndarray) -> None:
        vectors = torch.as_tensor(vectors, dtype=torch.float32, device="cpu")
        self.words = list(words)
        self._rows = {word: row for row, word in enumerate(self.words)}
        shape = tuple(vectors.shape)
        if len(shape) != 2 or 0 in shape or shape[0] != len(self.words):
            raise UserError(
                f"WordVectors(): 'vectors' must be (words, width) = ({len(self.words)}, at least 1) "
                f"of at least one word, got {shape}"
            )
        if len(self._rows) != len(self.words):
            twice = next(word for row, word in enumerate(self.words) if self._rows[word] != row)
            raise UserError(f"WordVectors(): 'words' must differ, '{twice}' is there twice")
        finite = vectors.isfinite().all(1)
        if not finite.all():
            word = self.words[int((~finite).nonzero()[0])]
            raise UserError(f"WordVectors(): the vector of '{word}' holds NaN or infinity")
        self.vectors = vectors
        self._directions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.words)

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    def find(self, tag: str) -> int | None:
        """The row of a tag: as it is, in small letters, or with ``_`` or ``-`` for its spaces."""
        for form in (tag, tag.lower()):
            for space in (" ", "_", "-"):
                row = self._rows.get(form.replace(" ", space))
                if row is not None:
                    return row
        return None

    def select(self, rows: Sequence[int]) -> WordVectors:
        """The words of these rows, in this order."""
        return WordVectors([self.words[row] for row in rows], self.vectors[list(rows)])

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` words nearest to each query by cosine, nearest first.

        The product of queries and words goes block by block: beside the result it takes some 64 MB,
        however many there are of either. A vector of zeros has cosine 0 with everything.

        Args:
            queries: float (N, width); it is computed on their device.
            k: 1 to the number of words.

        Returns:
            Cosines float32 (N, k) and rows int64 (N, k).

        Raises:
            UserError: ``queries`` has another width, or there are fewer words than ``k``.
        """
        if queries.dim() != 2 or queries.shape[1] != self.width:
            raise UserError(
                f"WordVectors.nearest(): 'queries' must be (N, {self.width}), got "
                f"{tuple(queries.shape)}"
            )
        if not 1 <= k <= len(self):
            raise UserError(
                f"WordVectors.nearest(): 'k' must be from 1 to the {len(self)} words, got {k}"
            )
        if self._directions is None or self._directions.device != queries.device:
            self._directions = _directions(self.vectors.to(queries.device))
        queries = _directions(queries.float())
        cosines = queries.new_empty(len(queries), k)
        rows = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
        many = max(_QUERIES, _SIMILARITIES // len(self))
        for start in range(0, len(queries), many):
            part = slice(start, start + many)
            cosines[part], rows[part] = self._nearest_of_block(queries[part], k)
        return cosines, rows

    def _nearest_of_block(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Of each block of words its best ``k``, then the best ``k`` of those."""
        assert self._directions is not None
        best: list[tuple[Tensor, Tensor]] = []
        block = max(k, _SIMILARITIES // max(1, len(queries)))
        for start in range(0, len(self), block):
            words = self._directions[start : start + block]
            found = (queries @ words.t()).topk(min(k, len(words)))
            best.append((found.values, found.indices + start))
        cosines, rows = (torch.cat(parts, 1) for parts in zip(*best, strict=True))
        if len(best) == 1:
            return cosines, rows
        chosen = cosines.topk(k)
        return chosen.values, rows.gather(1, chosen.indices)


def _directions(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors)


# ---------------------------------------------------------------------------------------- reading


def load_words(
    path: str | os.PathLike[str],
    vocabulary: str | os.PathLike[str] | None = None,
    *,
    only: Collection[str] | None = None,
) -> WordVectors:
    """Read word vectors: word2vec's or GloVe's text, also ``.gz``, or ``.npy`` and a list of words.

    In text a line is a word and its numbers; word2vec's has a line before them with how many and
    how wide. A word that comes again (as some do in published files) counts the first time.

    Args:
        path: the file.
        vocabulary: to a ``.npy`` of (V, width): text, a word a line. None: the file of the same
            name ending in ``.txt``.
        only: keep but these words, in whatever letters, and with ``_`` or ``-`` for spaces: of
            400,000 words a set of images uses a few thousand.

    Raises:
        UserError: no such file, another format, a line of another width (it is named), numbers that
            are none, or no word left.
    """
    path = Path(path)
    wanted = None if only is None else {_plain(word) for word in only}
    try:
        if path.suffix.lower() == ".npy":
            found = _from_array(path, vocabulary, wanted)
        elif vocabulary is not None:
            raise UserError(f"{path}: a vocabulary goes with a .npy of vectors")
        else:
            found = _from_text(path, wanted)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    words, vectors = found
    if not words:
        asked = "" if wanted is None else f" (none of the {len(wanted):,} that are asked for)"
        raise UserError(f"{path}: holds no word{asked}")
    finite = np.isfinite(vectors).all(1)
    if not finite.all():
        raise UserError(f"{path}: the vector of '{words[int(finite.argmin())]}' is not finite")
    return WordVectors(words, vectors)


def _plain(word: str) -> str:
    return word.lower().replace("_", " ").replace("-", " ")


def _from_array(
    path: Path, vocabulary: str | os.PathLike[str] | None, wanted: set[str] | None
) -> tuple[list[str], np.ndarray]:
    names = path.with_suffix(".txt") if vocabulary is None else Path(vocabulary)
    try:
        words = names.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the words of {path} cannot be read from {names}: {error}") from error
    try:
        vectors = read_array(path)
    except ValueError as error:
        raise UserError(f"{path}: is not an array of numbers: {error}") from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(words):
        raise UserError(
            f"{path}: must be floating-point (words, width) for the {len(words):,} words of {names}, "
            f"got {vectors.dtype} {vectors.shape}"
        )
    rows = _chosen(words, wanted)
    return [words[row] for row in rows], np.asarray(vectors[rows], np.float32)


def _chosen(words: Iterable[str], wanted: set[str] | None) -> list[int]:
    """The rows to keep: wanted, and the first of their word."""
    seen: set[str] = set()
    rows = []
    for row, word in enumerate(words):
        if (wanted is None or _plain(word) in wanted) and word not in seen:
            seen.add(word)
            rows.append(row)
    return rows


def _from_text(path: Path, wanted: set[str] | None) -> tuple[list[str], np.ndarray]:
    with _open_text(path) as file:
        lines = _numbered(file, path)
        first = next(lines, None)
        if first is None:
            raise UserError(f"{path}: is empty")
        width = _header_width(first[1])
        if width is None:
            width = len(first[1].rstrip().split(" ")) - 1
            lines = itertools.chain([first], lines)
        if width < 1:
            raise UserError(
                f"{path}, line 1: must be a word and the numbers of its vector, got {first[1][:60]!r}"
            )
        words: list[str] = []
        seen: set[str] = set()
        blocks = [np.empty((0, width), np.float32)]
        while some := list(itertools.islice(lines, _LINES)):
            numbers = []
            for number, line in some:
                # From the right: some published words have spaces in them.
                word, *values = line.rstrip().rsplit(" ", width)
                if len(values) != width or not word:
                    raise UserError(
                        f"{path}, line {number}: must be a word and {width} numbers, as the first "
                        f"line says, got {line.rstrip()[:60]!r}"
                    )
                if (wanted is None or _plain(word) in wanted) and word not in seen:
                    seen.add(word)
                    words.append(word)
                    numbers.append((number, values))
            blocks.append(_parsed(numbers, width, path))
        return words, np.concatenate(blocks)


def _parsed(lines: list[tuple[int, list[str]]], width: int, path: Path) -> np.ndarray:
    try:
        return np.array([values for _, values in lines], np.float32).reshape(-1, width)
    except ValueError:
        for number, values in lines:
            try:
                np.array(values, np.float32)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}") from error
        raise


def _header_width(line: str) -> int | None:
    """word2vec's first line: how many words, how wide."""
    parts = line.split()
    if len(parts) == 2 and all(part.isdecimal() and len(part) < 10 for part in parts):
        return int(parts[1])
    return None


def _numbered(file: IO[str], path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    try:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not text in UTF-8; of word2vec's formats the text is read, not the binary"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: is damaged: {error}") from error


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as file:
        yield file
