"""Forgetting what is inside boxes: maps of a generator that draw an object are dropped, and samples drawn without it.

The DCGAN paper's figure 6: on 150 samples the windows of bedrooms were boxed; a logistic regression on the features of
"the second highest convolution layer" told positions inside boxes from positions outside; all maps with a weight above
0 (200 of them) were dropped at every position, and the samples drawn again had fewer windows. Which layer the second
highest is remains open in the text. It had more than 200 maps, so of the paper's 64x64 generator (1024, 512, 256 and
128 maps) it was not the last one before the image: the default here is the last but one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import UserError
from .labels import check_labels
from .layers import GENERATORS, AnyGenerator, MapLayer, choose_layer, run_layers
from .models import draw_input
from .networks import check_shape, integer
from .nn import population_statistics
from .reading import parse_json
from .visualize import to_uint8

__all__ = [
    "MARKS",
    "Box",
    "Detector",
    "Forgotten",
    "box_masks",
    "forget",
    "load_boxes",
    "mark_pixels",
]

Box = Sequence[float]
"""(left, top, right, bottom) in pixels of the image; the last two are outside."""

Detector = Callable[[np.ndarray], Sequence[Sequence[Box]] | np.ndarray]
"""uint8 images (N, C, S, S) to the boxes of each, lists or arrays (n, 4), or to masks, bool (N, S, S): any detector or
segmentation."""

_BATCH = 128


# ----------------------------------------------------------------------------------- boxes, masks


def load_boxes(path: str | os.PathLike[str]) -> dict[int, list[Box]]:
    """Read boxes of samples from JSON: ``{"17": [[4, 0, 12, 20], ...], "18": [], ...}``.

    Keys are the samples' seeds, boxes are (left, top, right, bottom) in pixels. A sample without boxes shows that there
    is nothing on it.

    Raises:
        UserError: the file cannot be read or is no such object.
    """
    path = Path(path)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    rule = (
        'must be like {"17": [[left, top, right, bottom], ...], ...}, with a sample\'s seed for key'
    )
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: boxes {rule}")
    found: dict[int, list[Box]] = {}
    for key, boxes in content.items():
        well_formed = key.isdecimal() and isinstance(boxes, list)
        if not (well_formed and all(_is_box(box) for box in boxes)):
            raise UserError(f"{path}: boxes {rule}; got {json.dumps({key: boxes})[:200]}")
        found[int(key)] = boxes
    return found


def _is_box(box: object) -> bool:
    if isinstance(box, np.ndarray):
        box = box.tolist()
    return (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(isinstance(n, (int, float)) and np.isfinite(n) for n in box)
        and box[0] < box[2]
        and box[1] < box[3]
    )


def box_masks(boxes: Sequence[Sequence[Box]], size: int) -> np.ndarray:
    """bool (len(boxes), size, size): the pixels whose centres are in any box of each image.

    Raises:
        UserError: a box is empty, no (left, top, right, bottom), or wholly outside the image.
    """
    masks = np.zeros((len(boxes), size, size), bool)
    centres = np.arange(size) + 0.5
    for index, of_image in enumerate(boxes):
        for box in of_image:
            if not _is_box(box):
                raise UserError(
                    f"a box must be (left, top, right, bottom), not empty, got {box} on image {index}"
                )
            left, top, right, bottom = box
            inside = np.outer(
                (centres >= top) & (centres < bottom), (centres >= left) & (centres < right)
            )
            if not inside.any():
                raise UserError(
                    f"the box {box} of image {index} covers no pixel of its {size}x{size}"
                )
            masks[index] |= inside
    return masks


def _pixel_scores(images: np.ndarray, what: str) -> np.ndarray:
    pixels = images[:, :3].astype(np.float32)
    if what in ("bright", "dark"):
        return pixels.mean(1) * (1 if what == "bright" else -1)
    if what == "edges":
        grey = pixels.mean(1)
        return np.hypot(*np.gradient(grey, axis=(1, 2)))
    if pixels.shape[1] < 3:
        raise UserError(f"images of {images.shape[1]} channels have no {what} in them")
    channel = ("red", "green", "blue").index(what)
    return pixels[:, channel] - (pixels.sum(1) - pixels[:, channel]) / 2


MARKS = ("bright", "dark", "edges", "red", "green", "blue")
"""What :func:`mark_pixels` finds."""


def mark_pixels(what: str, share: float = 0.1) -> Detector:
    """A segmentation by a threshold: of all pixels of all images the ``share`` that are most ``what``.

    Args:
        what: one of :data:`MARKS`; a colour is its channel minus the mean of the two others.
        share: above 0 and below 1.

    Raises:
        UserError: neither; when it is called: grey images have no colours.
    """
    if what not in MARKS:
        raise UserError(f"mark_pixels(): 'what' must be one of {', '.join(MARKS)}; got {what!r}")
    if not 0 < share < 1:
        raise UserError(f"mark_pixels(): 'share' must be above 0 and below 1, got {share!r}")

    def segment(images: np.ndarray) -> np.ndarray:
        scores = _pixel_scores(images, what)
        return scores > np.quantile(scores, 1 - share)

    return segment


def _masks_of(found: Sequence[Sequence[Box]] | np.ndarray, count: int, size: int) -> np.ndarray:
    if isinstance(found, np.ndarray) and found.shape[2:] != (4,):
        if found.dtype != np.bool_ or found.shape != (count, size, size):
            raise UserError(
                f"forget(): masks must be bool ({count}, {size}, {size}), got {found.dtype} {found.shape}"
            )
        return found
    if len(found) != count:
        raise UserError(f"forget(): boxes must be of {count} images, got {len(found)}")
    return box_masks(list(found), size)


def _cells(masks: np.ndarray, side: int) -> np.ndarray:
    """bool (N, side, side): the cells of a map of which at least half the pixels are marked."""
    count, size, _ = masks.shape
    cell = size // side
    return masks.reshape(count, side, cell, side, cell).mean((2, 4)) >= 0.5


# -------------------------------------------------------------------------------------- forgetting


@dataclass(frozen=True)
class Forgotten:
    """What :func:`forget` did; images are float32 (N, C, S, S) on the CPU, in [-1, 1] whatever the generator's range.

    layer:    whose maps were dropped
    weights:  float64 (maps,), of the logistic regression on each map's value
    dropped:  bool (maps,), those with a weight above 0
    accuracy, chance: of the regression on positions of images that it was not fitted on, and the share of the
              commoner class among those; NaN where there are none of both classes
    positives, negatives: positions it was fitted on
    masks:    bool (N, S, S), what was inside
    with_them, without_them: the samples as they are, and without the dropped maps
    control:  the samples without as many other maps, drawn at random
    """

    layer: MapLayer
    weights: np.ndarray
    dropped: np.ndarray
    accuracy: float
    chance: float
    positives: int
    negatives: int
    masks: np.ndarray
    with_them: Tensor
    without_them: Tensor
    control: Tensor

    def change(self, images: Tensor) -> dict[str, float]:
        """By how much ``images`` differ from the samples, inside and outside the masks.

        Root mean squares over pixels in units of 0 to 255, and their ratio: above 1 what changed is what was marked.
        """
        squares = ((images - self.with_them).double() * 127.5).square().mean(1).numpy()
        inside = float(np.sqrt(squares[self.masks].mean()))
        outside = float(np.sqrt(squares[~self.masks].mean())) if not self.masks.all() else 0.0
        ratio = inside / outside if outside > 0 else float("nan")
        return {"inside": inside, "outside": outside, "ratio": ratio}


def forget(
    generator: AnyGenerator,
    latents: Tensor,
    boxes: Detector | Sequence[Sequence[Box]] | np.ndarray,
    *,
    labels: Tensor | None = None,
    layer: int = -2,
    bn: str = "running",
    strength: float = 1.0,
    seed: int = 0,
) -> Forgotten:
    """Drop the maps of a layer that draw what is inside boxes.

    A position of the layer's maps is inside where at least half of the pixels it stands for are; as many positions
    outside are drawn at random from the same images. A logistic regression (scikit-learn's, each map scaled to unit
    deviation, which changes no sign) tells the two apart. Every fifth image is left out of it, to measure it by.

    Args:
        generator: a Generator or a ConditionalGenerator; left as it is.
        latents: (N, nz) or (N, nz, 1, 1): the samples.
        boxes: of each sample (:data:`Box`), or masks, bool (N, S, S), or a :data:`Detector` that finds them.
        labels: int64 (N,), the class of each sample, of a generator that has classes.
        layer: whose maps, from 1, the projection; negative ones count from the last before the image, -1. The default
            is the last but one (see the top of this module).
        bn: ``running`` or ``population`` statistics, as for :func:`dcgan_fast.models.generate`.
        strength: scikit-learn's C, the inverse of the regularisation.
        seed: of the positions outside, and of the control's maps.

    Raises:
        UserError: there is no such layer, labels are missing or there are no classes, ``boxes`` do not fit the samples
            or are empty, or leave positions of one class only; no map has a weight above 0.
    """
    if not isinstance(generator, GENERATORS):
        raise UserError(
            "forget(): 'generator' must be a Generator or a ConditionalGenerator, got a "
            f"{type(generator).__name__}"
        )
    check_shape("forget()", "latents", latents, (generator.nz,), (generator.nz, 1, 1))
    if (labels is None) != (generator.classes == 0):
        raise UserError(
            f"forget(): 'labels' must {'be given, one a sample' if generator.classes else 'be None'}: the "
            f"generator has {generator.classes or 'no'} classes"
        )
    if labels is not None:
        check_labels("forget()", labels, len(latents), generator.classes)
    chosen = choose_layer("forget", generator, layer)
    if bn not in ("running", "population"):
        raise UserError(f"forget(): 'bn' must be running or population, got {bn!r}")
    if not (0 < strength < float("inf")):
        raise UserError(f"forget(): 'strength' must be a number above 0, got {strength!r}")
    seed = integer("forget", "seed", seed, 0)
    with _prepared(generator, bn), torch.no_grad():
        maps = _first_half(generator, latents, labels, chosen)
        whole = _second_half(generator, maps, labels, chosen)
        found = boxes
        if callable(boxes):
            pixels = to_uint8(whole).transpose(0, 3, 1, 2)
            found = boxes(np.ascontiguousarray(pixels))
        assert not callable(found)
        masks = _masks_of(found, len(latents), generator.image_size)
        rng = np.random.default_rng(seed)
        fitted = _fit(maps, _cells(masks, chosen.shape[1]), strength, rng)
        dropped = fitted.weights > 0
        if not dropped.any():
            raise UserError(
                f"forget(): no map of layer {chosen} has a weight above 0: nothing to drop"
            )
        others = np.zeros(len(dropped), bool)
        others[rng.permutation(len(dropped))[: dropped.sum()]] = True
        without, control = (
            _second_half(generator, maps * _kept(which, maps), labels, chosen)
            for which in (dropped, others)
        )
    return Forgotten(
        chosen,
        fitted.weights,
        dropped,
        fitted.accuracy,
        fitted.chance,
        fitted.positives,
        fitted.negatives,
        masks,
        whole.float().cpu(),
        without.float().cpu(),
        control.float().cpu(),
    )


@contextmanager
def _prepared(generator: AnyGenerator, bn: str) -> Iterator[None]:
    """In evaluation mode, with the statistics asked for; afterwards as it was."""
    training = generator.training
    state = {name: buffer.clone() for name, buffer in generator.named_buffers()}
    try:
        if bn == "population":
            stream = torch.Generator().manual_seed(0)
            draws = (draw_input(generator, _BATCH, stream) for _ in range(50))
            with torch.no_grad():
                population_statistics(generator, draws)
        generator.eval()
        yield
    finally:
        generator.train(training)
        for name, buffer in generator.named_buffers():
            buffer.copy_(state[name])


def _parts(labels: Tensor | None, count: int, device: torch.device) -> Sequence[Tensor | None]:
    """The labels of each batch of ``count`` samples; None for each where there are none."""
    batches = range(0, count, _BATCH)
    return [None if labels is None else labels[n : n + _BATCH].to(device) for n in batches]


def _first_half(
    generator: AnyGenerator, latents: Tensor, labels: Tensor | None, layer: MapLayer
) -> Tensor:
    parameter = next(generator.parameters())
    latents = latents.detach().flatten(1).to(parameter.device, parameter.dtype)
    found = []
    of_batches = _parts(labels, len(latents), parameter.device)
    for batch, its_labels in zip(latents.split(_BATCH), of_batches, strict=True):
        arguments = (batch,) if its_labels is None else (batch, its_labels)
        input = generator.first_input(*arguments)
        found.append(run_layers(generator, input, its_labels, end=layer.end))
    return torch.cat(found)


def _second_half(
    generator: AnyGenerator, maps: Tensor, labels: Tensor | None, layer: MapLayer
) -> Tensor:
    """Images in [-1, 1]."""
    low, high = generator.output_range
    batches = zip(maps.split(_BATCH), _parts(labels, len(maps), maps.device), strict=True)
    images = torch.cat(
        [run_layers(generator, batch, its, start=layer.end) for batch, its in batches]
    )
    return images if (low, high) == (-1, 1) else (images - low) * (2 / (high - low)) - 1


def _kept(dropped: np.ndarray, maps: Tensor) -> Tensor:
    return torch.from_numpy(~dropped).to(maps)[:, None, None]


@dataclass(frozen=True)
class _Fitted:
    weights: np.ndarray
    accuracy: float
    chance: float
    positives: int
    negatives: int


def _fit(maps: Tensor, inside: np.ndarray, strength: float, rng: np.random.Generator) -> _Fitted:
    from sklearn.linear_model import LogisticRegression  # most of a second to import

    cells = f"{inside.shape[1]}x{inside.shape[2]} positions"
    if not inside.any():
        raise UserError(
            f"forget(): nothing is inside: no box covers half of one of the {cells} of the layer's maps "
            "(larger boxes, or a layer of more positions)"
        )
    if inside.all():
        raise UserError(f"forget(): nothing is outside: the boxes cover all {cells} of all samples")
    values = maps.float().permute(0, 2, 3, 1).cpu().numpy()
    held_out = np.arange(len(inside)) % 5 == 4
    rows, classes = _positions(values, inside, ~held_out, rng)
    if len(set(classes.tolist())) < 2:
        raise UserError(
            "forget(): positions of one class only on the samples to fit on: give more samples"
        )
    deviation = rows.std(0)
    scale = np.where(deviation > 0, deviation, 1)
    model = LogisticRegression(C=strength, max_iter=1000).fit(rows / scale, classes)
    accuracy = chance = float("nan")
    tested, truth = _positions(values, inside, held_out, rng)
    if len(set(truth.tolist())) == 2:
        accuracy = float(model.score(tested / scale, truth))
        chance = float(max(truth.mean(), 1 - truth.mean()))
    weights = np.where(deviation > 0, model.coef_[0] / scale, 0.0)
    return _Fitted(weights, accuracy, chance, int(classes.sum()), int((~classes).sum()))


def _positions(
    values: np.ndarray, inside: np.ndarray, images: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """All positions inside on the chosen images that have any, and as many outside from the same ones."""
    chosen = images & inside.any((1, 2))
    if not chosen.any():
        return np.empty((0, values.shape[3]), np.float32), np.empty(0, bool)
    positive, outside = values[chosen][inside[chosen]], values[chosen][~inside[chosen]]
    count = min(len(positive), len(outside))
    negative = outside[rng.choice(len(outside), count, replace=False)]
    classes = np.repeat([True, False], [len(positive), count])
    return np.concatenate([positive, negative]), classes
