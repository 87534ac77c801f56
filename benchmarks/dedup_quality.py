"""How well the semantic hash finds near-duplicates, beside other hashes: known copies planted in CIFAR-10.

    pip install -e '.[dedup]' imagehash
    python benchmarks/dedup_quality.py cifar10.zip --sheet false.png   # a quarter of an hour on a core; prints Markdown
    python benchmarks/dedup_quality.py --emoji package/                # of npm pack emoji-datasource-google
    python benchmarks/dedup_quality.py --speed

Each kind of copy is made of 1 in 100 images; all are shuffled. Removed is every image that an earlier one matches; it
is rightly removed where one of those is of the same original, so that near-duplicates which CIFAR-10 has by itself
count as false. Found is a copy that its original matches.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dcgan_fast import _C
from dcgan_fast.data import prepare
from dcgan_fast.data.find import find_source
from dcgan_fast.dedup import SemanticHasher, first_occurrence, near_duplicates
from dcgan_fast.dedup.images import TRAIN_IMAGES
from dcgan_fast.visualize import contact_sheet, save_png

RATE = 0.01  # of the images, for each kind of copy
SEEDS = (0, 1, 2)
Copy = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Codes = np.ndarray  # int64 (N, words)


# ----------------------------------------------------------------------------------------- copies


def _pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def _array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def _jpeg(quality: int) -> Copy:
    def copy(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        buffer = io.BytesIO()
        _pillow(image).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as read:
            return _array(read)

    return copy


def _noise(deviation: float) -> Copy:
    def copy(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        noisy = image + draw.normal(0, deviation, image.shape)
        return np.rint(noisy).clip(0, 255).astype(np.uint8)

    return copy


def _shift(pixels: float) -> Copy:
    """To one of four sides; the edge is repeated. Parts of a pixel as of a picture that was larger."""

    def copy(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        down, right = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)][draw.integers(4)]) * pixels
        larger = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge")
        moved = _pillow(larger).transform(
            (36, 36), Image.Transform.AFFINE, (1, 0, right, 0, 1, down), Image.Resampling.BILINEAR
        )
        return _array(moved)[:, 2:34, 2:34]

    return copy


def _crop(border: int) -> Copy:
    def copy(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        side = image.shape[1] - border
        inner = _pillow(image).crop((border, border, side, side))
        return _array(inner.resize((32, 32), Image.Resampling.BILINEAR))

    return copy


def _enlarged(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    larger = _pillow(image).resize((64, 64), Image.Resampling.BICUBIC)
    return _array(larger.resize((32, 32), Image.Resampling.BILINEAR))


KINDS: dict[str, Copy] = {
    "exact": lambda image, draw: image,
    "JPEG 95": _jpeg(95),
    "JPEG 75": _jpeg(75),
    "JPEG 50": _jpeg(50),
    "noise 2": _noise(2),
    "noise 5": _noise(5),
    "enlarged": _enlarged,
    "shifted 1/8": _shift(1 / 8),
    "shifted 1/4": _shift(1 / 4),
    "shifted 1": _shift(1),
    "cropped 1": _crop(1),
}


@dataclass
class Planted:
    images: np.ndarray  # uint8 (N, 3, 32, 32)
    original: np.ndarray  # int64 (N,)
    kind: np.ndarray  # int64 (N,): of KINDS, -1 for originals

    def couples(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the copies of a kind, and of their originals."""
        place = np.empty(self.original.max() + 1, np.int64)
        originals = np.flatnonzero(self.kind < 0)
        place[self.original[originals]] = originals
        copies = np.flatnonzero(self.kind == kind)
        return copies, place[self.original[copies]]


def plant(images: np.ndarray, seed: int = 0) -> Planted:
    draw = np.random.default_rng(seed)
    each = max(1, round(RATE * len(images)))
    chosen = draw.permutation(len(images))[: each * len(KINDS)].reshape(len(KINDS), each)
    copies = [
        copy(np.array(images[row]), draw)
        for copy, rows in zip(KINDS.values(), chosen, strict=True)
        for row in rows
    ]
    original = np.concatenate([np.arange(len(images)), chosen.ravel()])
    kind = np.concatenate([np.full(len(images), -1), np.repeat(np.arange(len(KINDS)), each)])
    order = draw.permutation(len(original))
    return Planted(np.concatenate([images, np.stack(copies)])[order], original[order], kind[order])


# ----------------------------------------------------------------------------------------- hashes


def _sample(images: np.ndarray, seed: int) -> np.ndarray:
    """As the command line draws it."""
    count = min(TRAIN_IMAGES, len(images))
    return images[np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False))]


def _semantic(images: np.ndarray, seed: int, **settings: float | str) -> Codes:
    hasher = SemanticHasher(random_state=seed, device="cpu", **settings)
    return hasher.fit(_sample(images, seed)).transform(images).numpy()


def _perceptual(images: np.ndarray, method: str) -> Codes:
    import imagehash

    hash_of = getattr(imagehash, method)
    bits = np.stack([hash_of(_pillow(image)).hash.ravel() for image in images])
    return np.packbits(bits, axis=1, bitorder="little").view("<i8").astype(np.int64)


def _exact(images: np.ndarray) -> Codes:
    import hashlib

    digests = b"".join(hashlib.md5(image.tobytes()).digest() for image in images)
    return np.frombuffer(digests, "<i8").reshape(-1, 2).astype(np.int64)


_OTHER_SETTINGS: dict[str, dict[str, float | str]] = {
    "code noise 0": {"code_noise": 0.0},
    "code noise 1": {"code_noise": 1.0},
    "code noise 3": {"code_noise": 3.0},
    "code noise 4": {"code_noise": 4.0},
    "bfloat16": {"dtype": "bfloat16"},
}


def hashes(images: np.ndarray, all_settings: bool) -> Iterator[tuple[str, int, list[Codes]]]:
    """Names, how many bits may differ, and the codes by each seed."""
    codes = [_semantic(images, seed) for seed in SEEDS]
    yield "semantic hash, as it comes", 0, codes
    for radius in (1, 2, 3):
        yield f"the same, {radius} of its bits may differ", radius, codes
    for name, settings in _OTHER_SETTINGS.items() if all_settings else ():
        yield name, 0, [_semantic(images, seed, **settings) for seed in SEEDS]
    for method in ("phash", "dhash"):
        codes = [_perceptual(images, method)]
        for radius in (0, 2):
            may = f", {radius} bits may differ" if radius else ""
            yield f"{method} of imagehash, 64 bits{may}", radius, codes
    yield "MD5 of the pixels", 0, [_exact(images)]


# ---------------------------------------------------------------------------------------- figures


def matches(codes: Codes, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and earlier rows that match them: with radius 0 the first, else all."""
    tensor = torch.from_numpy(codes)
    if radius:
        pairs = near_duplicates(tensor, radius)[0].numpy()
        return pairs[:, 1], pairs[:, 0]
    keep, group, _ = first_occurrence(tensor)
    first = keep.nonzero()[:, 0][group]
    later = (~keep).nonzero()[:, 0]
    return later.numpy(), first[later].numpy()


def judge(planted: Planted, codes: Codes, radius: int) -> tuple[int, np.ndarray, list[float]]:
    """Images removed, the rows and matches of those removed wrongly, the share found of each kind."""
    later, earlier = matches(codes, radius)
    same = planted.original[later] == planted.original[earlier]
    removed = np.unique(later)
    wrongly = np.setdiff1d(removed, later[same])
    _, one_match = np.unique(later, return_index=True)
    partner = dict(zip(removed.tolist(), earlier[one_match].tolist(), strict=True))
    wrong = np.array([(row, partner[row]) for row in wrongly.tolist()], np.int64).reshape(-1, 2)
    found = []
    for kind in range(len(KINDS)):
        copies, originals = planted.couples(kind)
        different = np.bitwise_count(codes[copies] ^ codes[originals]).sum(1)
        found.append(float((different <= radius).mean()) if len(copies) else math.nan)
    return len(removed), wrong, found


def _span(values: list[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def quality(images: np.ndarray, sheet: str | None) -> None:
    planted = plant(images)
    count = len(planted.images)
    print(f"{len(images):,} images, {count - len(images):,} copies.\n")
    print(f"| hash | removed | falsely, of 100 | {' | '.join(KINDS)} |")
    print("|---" * (3 + len(KINDS)) + "|")
    for name, radius, by_seed in hashes(planted.images, all_settings=True):
        results = [judge(planted, codes, radius) for codes in by_seed]
        removed = _span([float(r[0]) for r in results], "{:,.0f}")
        wrong = _span([100 * len(r[1]) / max(r[0], 1) for r in results], "{:.2f}")
        found = np.mean([r[2] for r in results], 0)
        print(
            f"| {name} | {removed} | {wrong} | {' | '.join(f'{x:.0%}' for x in found)} |",
            flush=True,
        )
        if sheet is not None and name.startswith("semantic"):
            _draw_wrong(planted, [r[1] for r in results], sheet)


def _draw_wrong(planted: Planted, wrong: list[np.ndarray], path: str) -> None:
    groups = [
        (f"{seed}: {row}", planted.images[[other, row]].repeat(2, 2).repeat(2, 3))
        for seed, pairs in enumerate(wrong)
        for row, other in pairs
    ]
    if groups:
        save_png(contact_sheet(groups), Path(path))


def emoji(package: Path) -> None:
    """Skin tones of one picture are near-duplicates, and all others are not."""
    entries = json.loads((package / "emoji.json").read_text())
    family = {}
    for number, entry in enumerate(entries):
        for one in (entry, *entry.get("skin_variations", {}).values()):
            family[one["image"]] = number
    with find_source(package / "img" / "google" / "64", "all").open() as pictures:
        names = list(pictures.names or ())
        images, unreadable = pictures.render(range(len(names)), 32, 3)
        assert not unreadable
    of = np.array([family.get(name, -1 - number) for number, name in enumerate(names)])
    sizes = np.bincount(of[of >= 0])
    toned = int(sizes[sizes > 1].sum() - (sizes > 1).sum())
    print(f"{len(names):,} pictures; {toned:,} are another's in another skin tone.\n")
    print("| hash | removed | of another's skin tones | of other pictures |")
    print("|---|---|---|---|")
    for name, radius, by_seed in hashes(images, all_settings=False):
        rows = []
        for codes in by_seed:
            later, earlier = matches(codes, radius)
            same = np.unique(later[of[later] == of[earlier]])
            rows.append((len(np.unique(later)), len(same)))
        others = [float(all_ - same) for all_, same in rows]
        print(
            f"| {name} | {_span([float(r[0]) for r in rows], '{:.0f}')} "
            f"| {_span([float(r[1]) for r in rows], '{:.0f}')} | {_span(others, '{:.0f}')} |",
            flush=True,
        )


def speed() -> None:
    """Encoding and packing against the ceilings, interleaved; the best of 9 rounds each."""
    images = torch.randint(0, 256, (16_384, 3, 32, 32), dtype=torch.uint8)
    gflop = 2 * 3072 * 128 * len(images) / 1e9
    hasher = SemanticHasher(epochs=1, device="cpu").fit(images[:512])
    times: dict[str, float] = {}
    ceilings: dict[str, float] = {}
    for _ in range(9):
        for dtype, ceiling in (
            ("float32", _C.measure_brgemm_float32),
            ("bfloat16", _C.measure_brgemm_bfloat16),
        ):
            ceilings[dtype] = max(ceilings.get(dtype, 0), ceiling(0.1) or math.nan)
            hasher.set_params(dtype=dtype)
            start = time.perf_counter()
            hasher.transform(images)
            took = time.perf_counter() - start
            times[dtype] = min(times.get(dtype, math.inf), took)
    print(
        f"{torch.get_num_threads()} threads; fused multiply-adds {_C.measure_fma(0.3):.0f} GFLOP/s\n"
    )
    print("| dtype | images/s | GFLOP/s | brgemm | share |")
    print("|---|---|---|---|---|")
    for dtype, took in times.items():
        rate = gflop / took
        print(
            f"| {dtype} | {len(images) / took:,.0f} | {rate:.0f} | {ceilings[dtype]:.0f} "
            f"| {rate / ceilings[dtype]:.0%} |"
        )


def _first(source: str, images: int | None) -> np.ndarray:
    dataset = prepare(source, image_size=32, channels=3)
    return np.asarray(dataset.images[:images])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", nargs="?", help="32x32 images, whatever dcgan-fast train takes")
    parser.add_argument("--images", type=int, metavar="N", help="only the first N")
    parser.add_argument("--sheet", metavar="PNG", help="the pairs that were wrongly matched")
    parser.add_argument("--emoji", type=Path, metavar="FOLDER", help="of emoji-datasource-google")
    parser.add_argument("--speed", action="store_true", help="of encoding")
    arguments = parser.parse_args()
    if arguments.source:
        quality(_first(arguments.source, arguments.images), arguments.sheet)
    if arguments.emoji:
        emoji(arguments.emoji)
    if arguments.speed:
        speed()


if __name__ == "__main__":
    main()
