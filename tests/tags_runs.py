"""A set of images and tags small enough for a test, with something to be learned from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dcgan_fast.tags import Features, TagConfig, TagData, WordVectors
from dcgan_fast.tags.table import TaggedImages

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SHADES = ("dark", "bright")
WORDS = (*COLOURS, *SHADES, "unused")

TINY: dict[str, Any] = {
    "nz": 4,
    "noise_units": 8,
    "g_feature_units": 16,
    "word_units": 8,
    "d_feature_units": 16,
    "d_joint_units": 8,
    "batch_size": 16,
    "updates": 12,
    "score_every": 5,
    "log_every": 3,
    "save_seconds": None,
    "device": "cpu",
}


def word_vectors() -> WordVectors:
    return WordVectors(WORDS, torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))


def tag_data(count: int = 60, held: int = 12) -> TagData:
    """Features of 6 numbers that say which two of five words an image has."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 6, count)
    values = np.eye(6, dtype=np.float32)[kinds] + rng.normal(0, 0.1, (count, 6)).astype(np.float32)
    names = [f"{n}.png" for n in range(count)]
    tags = [[int(kind) % 3, 3 + int(kind) // 3] for kind in kinds]
    everything = TaggedImages(list(range(count)), names, names, tags)
    return TagData(
        Features(names, values),
        word_vectors(),
        everything.select(range(held, count)),
        everything.select(range(held)),
        {"images without tags": ["x.png"]},
    )


def config(out: Path | None = None, **changes: Any) -> TagConfig:
    return TagConfig(**{**TINY, "out": None if out is None else str(out), **changes})


def write_set(root: Path, count: int = 24) -> Path:
    """``photos/`` of plain colours, ``tags.tsv``, ``words.txt``; what is wrong with it is listed below."""
    (root / "photos").mkdir(parents=True)
    lines = ["gone.png\tred", "000.png\tunknown"]
    for number in range(count):
        colour, shade = list(COLOURS)[number % 3], SHADES[number // 3 % 2]
        pixels = np.array(COLOURS[colour]) // (1 if shade == "bright" else 3)
        image = np.broadcast_to(pixels.astype(np.uint8), (8, 8, 3))
        Image.fromarray(np.ascontiguousarray(image)).save(root / "photos" / f"{number:03}.png")
        lines.append(f"{number:03}.png\t{colour},{shade}")
    Image.new("RGB", (8, 8)).save(root / "photos" / "untagged.png")
    (root / "tags.tsv").write_text("".join(f"{line}\n" for line in lines))
    rows = word_vectors().vectors.tolist()
    text = (f"{word} {' '.join(map(str, row))}\n" for word, row in zip(WORDS, rows, strict=True))
    (root / "words.txt").write_text("".join(text))
    return root
