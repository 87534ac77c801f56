"""A file of images and their tags, and what of it can be used beside images and word vectors."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import UserError
from ..reading import parse_json, shown

__all__ = ["TaggedImages", "join_tags", "read_tags"]

_LISTED = 10  # of what is left out, in a warning

Tags = dict[str, list[str]]


class _Vocabulary(Protocol):
    """What :class:`~dcgan_fast.tags.WordVectors` is to this module."""

    def find(self, tag: str) -> int | None: ...


# ---------------------------------------------------------------------------------------- reading


def read_tags(path: str | os.PathLike[str]) -> Tags:
    """Read a file of images and tags: ``{"photos/dog.jpg": ["dog", "grass"], ...}``.

    ``.json`` is one object, its values lists of tags. Anything else is text, a line an image: its
    name, a tab, its tags separated by tabs or commas; the lines of one image add up, so a line a
    tag will do too. Spaces around tags and tags that an image has twice are dropped. Images without
    tags stay, with an empty list.

    Raises:
        UserError: no such file, not UTF-8, of another form (the line or the image is named), or
            without an image.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: tags must be text in UTF-8: {error}") from error
    tags = _from_json(text, path) if path.suffix.lower() == ".json" else _from_lines(text, path)
    if not tags:
        raise UserError(f"{path}: names no image")
    return tags


def _from_json(text: str, path: Path) -> Tags:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path}: must be one JSON object, of images to lists of tags, got a "
            f"{type(content).__name__}"
        )
    for image, tags in content.items():
        if not _is_list_of_text(tags):
            raise UserError(
                f"{path}: the tags of '{image}' must be a list of text, got {shown(tags)}"
            )
    return {image: _cleaned(tags) for image, tags in content.items()}


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _from_lines(text: str, path: Path) -> Tags:
    found: Tags = {}
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        image, tab, tags = line.partition("\t")
        image = image.strip()
        if not tab or not image:
            raise UserError(
                f"{path}, line {number}: must be an image's name, a tab and its tags, got {shown(line)}"
            )
        found.setdefault(image, []).extend(tags.replace(",", "\t").split("\t"))
    return {image: _cleaned(tags) for image, tags in found.items()}


def _cleaned(tags: Iterable[str]) -> list[str]:
    return [tag for tag in dict.fromkeys(tag.strip() for tag in tags) if tag]


# ---------------------------------------------------------------------------------------- joining


@dataclass
class TaggedImages:
    """The images that have a usable tag, and all that was left out.

    rows:     of the features, one an image
    names:    of the images
    named_by: what the file calls them
    words:    for each image the rows of its tags in the word vectors, at least one
    unknown:  tags without a vector, and on how many images they are
    absent:   images of the file that there are no features of
    untagged: images that the file does not name, or without a tag
    wordless: images none of whose tags has a vector
    """

    rows: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    named_by: list[str] = field(default_factory=list)
    words: list[list[int]] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    absent: list[str] = field(default_factory=list)
    untagged: list[str] = field(default_factory=list)
    wordless: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def pairs(self) -> int:
        """Images times their tags: what a pass over the training set sees."""
        return sum(map(len, self.words))

    def select(self, places: Iterable[int]) -> TaggedImages:
        """Those at ``places``, without the lists of what was left out."""
        places = list(places)
        return TaggedImages(
            [self.rows[place] for place in places],
            [self.names[place] for place in places],
            [self.named_by[place] for place in places],
            [self.words[place] for place in places],
        )

    def left_out(self) -> dict[str, list[str]]:
        """By kind what was left out, everything that was; tags with their counts, commonest first."""
        unknown = [f"{tag} ({count})" for tag, count in self.unknown.most_common()]
        return {
            "tags without a vector": unknown,
            "images of the tags file that are not there": self.absent,
            "images without tags": self.untagged,
            "images none of whose tags has a vector": self.wordless,
        }

    def warn(self) -> None:
        """One warning for each kind of thing left out, with its count and the first few."""
        for kind, things in self.left_out().items():
            if things:
                more = f" and {len(things) - _LISTED:,} more" if len(things) > _LISTED else ""
                named = ", ".join(things[:_LISTED])
                warnings.warn(f"left out {len(things):,} {kind}: {named}{more}", stacklevel=3)


def join_tags(
    tags: Mapping[str, Sequence[str]], images: Sequence[str], words: _Vocabulary
) -> TaggedImages:
    """The images of a set, in its order, with those of their tags that have a word vector.

    The file may name an image by its path in the set (``people/ann.jpg``) or, where only one image
    has it, by the end of its path (``ann.jpg``).

    Raises:
        UserError: two names of the file mean the same image.
    """
    place = {name: row for row, name in enumerate(images)}
    ends = _unique_ends(images)
    joined = TaggedImages()
    named: dict[int, str] = {}
    for name in tags:
        row = place.get(name, ends.get(name))
        if row is None:
            joined.absent.append(name)
        elif row in named:
            raise UserError(
                f"the tags file names '{images[row]}' twice: as '{named[row]}' and as '{name}'"
            )
        else:
            named[row] = name
    for row, image in enumerate(images):
        own = tags[named[row]] if row in named else ()
        if not own:
            joined.untagged.append(image)
            continue
        found = [(tag, words.find(tag)) for tag in own]
        joined.unknown.update(tag for tag, word in found if word is None)
        known = list(dict.fromkeys(word for _, word in found if word is not None))
        if known:
            joined.rows.append(row)
            joined.names.append(image)
            joined.named_by.append(named[row])
            joined.words.append(known)
        else:
            joined.wordless.append(image)
    return joined


def _unique_ends(images: Sequence[str]) -> dict[str, int]:
    """Ends of paths that one image has."""
    found: dict[str, int | None] = {}
    for row, image in enumerate(images):
        parts = image.split("/")
        for start in range(1, len(parts)):
            end = "/".join(parts[start:])
            found[end] = None if end in found else row
    return {end: row for end, row in found.items() if row is not None}
