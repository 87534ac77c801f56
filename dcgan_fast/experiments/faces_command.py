"""``dcgan-fast faces``: a set of faces from photographs, by :mod:`dcgan_fast.faces`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..faces import DETECTORS, Crop, FaceCrops, crop_faces
from ..slides import grid, slide, titled
from ..visualize import save_png
from .common import AddCommand, bars

_SHEET = "faces.png"
_SHOWN, _LEAST_SURE, _COLUMNS = 96, 24, 12  # faces on the sheet
_NAMED = 5  # pictures that could not be read


def _faces(
    folder: str,
    out: str,
    size: int,
    margin: float,
    min_side: int | None,
    detector: str,
    min_score: float | None,
) -> int:
    try:
        found = crop_faces(
            folder,
            out,
            size=size,
            margin=margin,
            min_side=min_side,
            detector=detector,
            min_score=min_score,
            progress=bars(),
        )
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was", file=sys.stderr)
        return 130
    for name, why in list(found.unreadable.items())[:_NAMED]:
        print(f"{name}: left out: {' '.join(why.split())}", file=sys.stderr)
    if len(found.unreadable) > _NAMED:
        more = len(found.unreadable) - _NAMED
        print(f"and {more:,} more, listed in {os.path.relpath(found.record)}", file=sys.stderr)
    pictures = len({crop.source for crop in found.crops})
    print(
        f"{len(found.crops):,} faces of {size}x{size} in {pictures:,} of {found.pictures:,} pictures; left out: "
        f"{found.too_small:,} too small, {found.unsure:,} below the least score; {len(found.unreadable):,} pictures "
        "could not be read"
    )
    if found.gone:
        print(f"{found.gone:,} faces of earlier calls were taken away since, and stay away")
    target = Path(out)
    if found.crops:
        save_png(_sheet(found, target, size), target / _SHEET)
        print(f"{os.path.relpath(target / 'images')}: the faces, for dcgan-fast train")
        print(f"{os.path.relpath(target / _SHEET)}: some of them: look whether they are faces")
    print(f"{os.path.relpath(found.record)}: what came from where")
    return 0


def _sheet(found: FaceCrops, target: Path, size: int) -> Image.Image:
    crops = found.crops
    draw = np.random.default_rng(0).permutation(len(crops))[:_SHOWN]
    rows = [titled("drawn at random", _grid([crops[i] for i in sorted(draw)], target, size))]
    if len(crops) > _SHOWN:
        least = sorted(crops, key=lambda crop: crop.score)[:_LEAST_SURE]
        rows.append(titled("of the lowest scores", _grid(least, target, size)))
    return slide(f"{len(crops):,} faces of {found.pictures:,} pictures", *rows)


def _grid(crops: Sequence[Crop], target: Path, size: int) -> Image.Image:
    pixels = []
    for crop in crops:
        with Image.open(target / crop.file) as image:
            pixels.append(np.asarray(image.convert("RGB").resize((min(size, 64),) * 2)))
    images: Tensor = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    return grid(images, _COLUMNS, value_range=(0, 255))


def add_faces_command(add: AddCommand) -> None:
    parser = add(
        "faces",
        _faces,
        "cut the faces out of photographs: a data set to train on",
        "As the DCGAN paper made its faces: a detector's boxes, those with enough pixels, as squares of\n"
        "one size. Writes OUT/images/, faces.json (box, square and score of each) and faces.png, a sheet\n"
        "to look at. Broken off, the same command continues; again, it looks at new pictures alone,\n"
        "and faces that you took away stay away. Pictures that cannot be read are named and left out.\n"
        "Nothing of yours is changed.\n"
        "Needs OpenCV: pip install 'opencv-python-headless<5'. Detectors:\n"
        + "\n".join(f"{name + ':':12}{kind.summary}" for name, kind in DETECTORS.items()),
        "dcgan-fast faces photos/ --out faces && dcgan-fast train faces/images --image-size 64",
    )
    parser.add_argument("folder", metavar="FOLDER", help="of pictures, and of folders of them")
    parser.add_argument(
        "--out", default="faces", metavar="DIR", help="made if it is missing (default: faces)"
    )
    parser.add_argument(
        "--size", type=int, default=64, metavar="S", help="side of the squares (default: 64)"
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.3,
        metavar="PART",
        help="by which a square is larger than the detector's box (default: 0.3)",
    )
    parser.add_argument(
        "--min-side",
        type=int,
        metavar="N",
        help="pixels that a square must have in the picture (default: S, so that none is enlarged)",
    )
    parser.add_argument(
        "--detector", default="haar", choices=tuple(DETECTORS), help="(default: haar)"
    )
    parser.add_argument(
        "--min-score",
        type=float,
        metavar="X",
        help="of the detector's own (default: haar 3, centerface 0.5)",
    )
