"""Squares around the faces in a folder of pictures, a file each, and a record of what came from where."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ..data.files import images_among, list_files, no_images
from ..data.pictures import fit, quiet_pillow, read_upright, with_channels
from ..errors import UserError
from ..files import cannot_write, make_folder, remove_if_there, write_bytes, write_text
from ..networks import integer
from ..reading import parse_json
from .detectors import DETECTORS, Face, FaceDetector, load_detector

__all__ = ["Crop", "FaceCrops", "crop_faces", "crop_square"]

IMAGES, RECORD, _LOG = "images", "faces.json", "faces.log.jsonl"


@dataclass(frozen=True)
class Crop:
    """A face that was kept.

    file:   of the square, from the folder written into
    source: of the picture, from the folder read
    box:    the detector's, (x, y, width, height) in pixels of the picture
    square: what was cut out, (x, y, side) in pixels of the picture
    score:  of the detector, in its own units
    """

    file: str
    source: str
    box: tuple[float, float, float, float]
    square: tuple[int, int, int]
    score: float


@dataclass(frozen=True)
class FaceCrops:
    """What :func:`crop_faces` did.

    crops:      the faces kept, in the order of their pictures
    pictures:   how many there were, those that could not be read included
    unreadable: of those the names and why
    too_small:  faces whose square had too few pixels
    unsure:     faces whose score was too low
    gone:       faces that an earlier call wrote and somebody has taken away
    read:       pictures looked at by this call; the others were known from an earlier one
    record:     the file that tells all this
    """

    crops: tuple[Crop, ...]
    pictures: int
    unreadable: Mapping[str, str]
    too_small: int
    unsure: int
    gone: int
    read: int
    record: Path


def crop_faces(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int = 64,
    margin: float = 0.3,
    min_side: int | None = None,
    detector: str = "haar",
    min_score: float | None = None,
    progress: bool = False,
) -> FaceCrops:
    """Write a square of ``size`` pixels around each face in a folder of pictures.

    Files are ``OUT/images/PICTURE.1.png``, with the folders of the pictures, faces numbered from left to right: a data
    set for ``dcgan-fast train OUT/images``. What came from where is in ``OUT/faces.json``. Broken off, the same call
    continues where it was; called again, it looks at new pictures alone, and faces that were taken away stay away.

    Args:
        folder: of pictures, with those in its folders.
        out: made where it is missing; neither within ``folder`` nor around it so that its faces would be.
        size: side of the squares, 16 to 1024.
        margin: how much larger than its box a square is, in parts of the longer side: 0 is the box itself, at most 4.
            A square that would reach beyond the picture is moved into it, and made smaller if it must.
        min_side: pixels of a square in the picture, below which it is left out; None: ``size``, so that none is
            enlarged.
        detector: of :data:`~dcgan_fast.faces.DETECTORS`: ``haar`` or ``centerface``.
        min_score: of the detector's own, below which a face is left out; None: 3 of the cascade, 0.5 of CenterFace.
        progress: whether to show a progress bar.

    Raises:
        UserError: a wrong setting, no pictures, ``out`` was made with other settings or cannot be written, or the
            detector's package is not installed.
    """
    size = integer("crop_faces", "size", size, 16, 1024)
    least = size if min_side is None else integer("crop_faces", "min_side", min_side, 1)
    if not 0 <= margin <= 4:
        raise UserError(f"crop_faces(): 'margin' must be a number from 0 to 4, got {margin!r}")
    if detector not in DETECTORS:
        known = ", ".join(DETECTORS)
        raise UserError(f"crop_faces(): 'detector' must be one of {known}; got {detector!r}")
    lowest = DETECTORS[detector].least_score if min_score is None else float(min_score)
    if not math.isfinite(lowest):
        raise UserError(f"crop_faces(): 'min_score' must be a finite number, got {lowest}")
    source = _source(Path(folder), Path(out))
    names = images_among(list_files(source))
    if not names:
        raise no_images(source)
    detect = load_detector(detector)
    target = make_folder(Path(out).resolve())
    settings = {
        "folder": str(source),
        "size": size,
        "margin": float(margin),
        "min_side": least,
        "detector": detector,
        "min_score": lowest,
    }
    log = _Log(target, settings)
    done = {name: log.known[name] for name in names if _is_done(log.known.get(name), source, name)}
    for name in log.known.keys() - set(names):
        _remove_faces(target, log.known.pop(name))
    read = 0
    with log, quiet_pillow(), tqdm(names, unit=" pictures", disable=not progress) as bar:
        for name in bar:
            if name in done:
                continue
            if name in log.known:
                _remove_faces(target, log.known[name])
            done[name] = _look(name, detect, settings, target)
            log.add(done[name])
            read += 1
    return _finish(target, settings, [done[name] for name in names], read)


def _source(folder: Path, out: Path) -> Path:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"crop_faces(): {folder} {what}; a folder of pictures is needed")
    source = folder.resolve()
    faces = out.resolve() / IMAGES
    if faces.is_relative_to(source) or source.is_relative_to(faces):
        raise UserError(
            f"crop_faces(): {out / IMAGES} and {folder} must be apart: the faces would be among the pictures"
        )
    return source


# -------------------------------------------------------------------------------------- a picture


def _look(
    name: str, detect: FaceDetector, settings: Mapping[str, Any], target: Path
) -> dict[str, Any]:
    """Write the faces of a picture; what the log keeps of it."""
    source, margin, least = Path(settings["folder"]), settings["margin"], settings["min_side"]
    result: dict[str, Any] = {"picture": name, "crops": [], "too_small": 0, "unsure": 0}
    try:
        status = os.stat(source / name)
        result |= {"bytes": status.st_size, "modified": status.st_mtime_ns}
        with open(source / name, "rb") as file:
            picture = with_channels(read_upright(file), 3)
    except UnidentifiedImageError:  # whose message is of our file object
        return {
            **result,
            "unreadable": "not a picture of a known kind, or its beginning is damaged",
        }
    except Exception as error:  # Pillow's decoders raise nearly anything on a corrupt file
        return {**result, "unreadable": str(error) or type(error).__name__}
    # Of half the side too, so that those too small are counted; below that a detector would look for hours.
    faces = detect(np.asarray(picture), 0.5 * least / (1 + margin))
    for face in faces:
        square = crop_square(face, picture.size, margin)
        if face.score < settings["min_score"]:
            result["unsure"] += 1
        elif square[2] < least:
            result["too_small"] += 1
        else:
            file_name = f"{IMAGES}/{name}.{len(result['crops']) + 1}.png"
            _save(picture, square, settings["size"], target / file_name)
            box = (round(face.x, 1), round(face.y, 1), round(face.width, 1), round(face.height, 1))
            score = round(face.score, 4)
            result["crops"].append(asdict(Crop(file_name, name, box, square, score)))
    return result


def crop_square(face: Face, picture: tuple[int, int], margin: float) -> tuple[int, int, int]:
    """The square (x, y, side) around a face within a picture of (width, height) pixels; see :func:`crop_faces`."""
    side = min(round(max(face.width, face.height) * (1 + margin)), *picture)
    corner = (
        min(max(round(start + length / 2 - side / 2), 0), whole - side)
        for start, length, whole in zip(face[:2], face[2:4], picture, strict=True)
    )
    x, y = corner
    return x, y, side


def _save(picture: Image.Image, square: tuple[int, int, int], size: int, path: Path) -> None:
    x, y, side = square
    pixels = fit(picture.crop((x, y, x + side, y + side)), size, 3).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    make_folder(path.parent)
    write_bytes(path, buffer.getbuffer())


# ----------------------------------------------------------------------------------------- record


def _is_done(result: Mapping[str, Any] | None, source: Path, name: str) -> bool:
    """Whether the log knows the picture as it is now."""
    if result is None:
        return False
    try:
        status = os.stat(source / name)
    except OSError:
        return False
    now = (status.st_size, status.st_mtime_ns)
    return now == (result.get("bytes"), result.get("modified"))


class _Log:
    """A line of JSON for each picture looked at, after its faces were written; the first line are the settings.

    A line that a crash tore is left out, and its picture looked at again, which writes the same files.
    """

    def __init__(self, target: Path, settings: Mapping[str, Any]) -> None:
        self._path = target / _LOG
        self.known: dict[str, dict[str, Any]] = {}
        lines = list(self._lines())
        if lines and lines[0] != settings:
            keys = lines[0].keys() | settings.keys()
            differs = min(key for key in keys if lines[0].get(key) != settings.get(key))
            raise UserError(
                f"crop_faces(): {target} was made with '{differs}' {lines[0].get(differs)!r}, not "
                f"{settings.get(differs)!r}; choose another folder"
            )
        self._settings = settings
        self.known = {line["picture"]: line for line in lines[1:]}

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise UserError(f"crop_faces(): cannot read {self._path}: {error}") from error
        for line in text.splitlines():
            try:
                yield parse_json(line)
            except ValueError:
                return

    def __enter__(self) -> _Log:
        # Anew: without what was torn, without the first of two lines of a picture and what is known no more.
        lines = [self._settings, *self.known.values()]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file: IO[str] = open(self._path, "a")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, result: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(result) + "\n")
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error


def _remove_faces(target: Path, result: Mapping[str, Any]) -> None:
    """Those that an earlier call wrote of a picture that is gone or another now; before the log forgets them."""
    for crop in result["crops"]:
        remove_if_there(target / crop["file"])


def _crop(crop: Mapping[str, Any]) -> Crop:
    """As it was before it was JSON, which has no tuples."""
    tuples = {name: tuple(crop[name]) for name in ("box", "square")}
    return Crop(**{**crop, **tuples})


def _finish(
    target: Path, settings: Mapping[str, Any], results: list[dict[str, Any]], read: int
) -> FaceCrops:
    written = [crop for result in results for crop in result["crops"]]
    crops = [crop for crop in written if (target / crop["file"]).is_file()]
    unreadable = {r["picture"]: r["unreadable"] for r in results if "unreadable" in r}
    counts = {key: sum(r[key] for r in results) for key in ("too_small", "unsure")}
    record = {
        **settings,
        "pictures": len(results),
        "faces": len(crops),
        **counts,
        "gone": len(written) - len(crops),
        "unreadable": unreadable,
        "crops": crops,
    }
    write_text(target / RECORD, json.dumps(record, indent=1) + "\n")
    return FaceCrops(
        tuple(map(_crop, crops)),
        len(results),
        unreadable,
        counts["too_small"],
        counts["unsure"],
        len(written) - len(crops),
        read,
        target / RECORD,
    )
