"""A set of faces from photographs of people, as the DCGAN paper made its own.

The paper (section 4.2) ran OpenCV's face detector on 3 million images of 10,000 people and kept the boxes that were
large enough, some 350,000, without any augmentation. :func:`crop_faces` does so, on the command line ``dcgan-fast
faces``.
"""

from __future__ import annotations

from .crops import Crop, FaceCrops, crop_faces, crop_square
from .detectors import DETECTORS, Face, FaceDetector, load_detector

__all__ = [
    "DETECTORS",
    "Crop",
    "Face",
    "FaceCrops",
    "FaceDetector",
    "crop_faces",
    "crop_square",
    "load_detector",
]
