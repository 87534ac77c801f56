"""``dcgan-fast forget``: samples without what is inside boxes, by :mod:`dcgan_fast.forgetting`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..forgetting import MARKS, Box, Detector, Forgotten, forget, load_boxes, mark_pixels
from ..latent import latents_of
from ..layers import GENERATORS
from ..networks import integer
from ..slides import beside, grid, slide, titled
from .common import (
    CHECKPOINT_HELP,
    AddCommand,
    Outputs,
    class_argument,
    labels_of,
    load_function,
    load_generator,
    output_arguments,
    parse_numbers,
)

_SEEDS = "0-149"  # the paper's 150 samples
_MARK, _SHARE = "bright", 0.1


def _forget(
    checkpoint: str,
    boxes: str | None,
    mark: str | None,
    share: float | None,
    seeds: str | None,
    layer: int,
    strength: float,
    show: int,
    seed: int,
    label: int | None,
    bn: str,
    out: str,
    device: str,
) -> int:
    show = integer("forget", "show", show, 1)
    where: Sequence[Sequence[Box]] | Detector
    if boxes is None:
        chosen = parse_numbers("--seeds", seeds or _SEEDS)
        mark = mark or _MARK
        where = _detector(mark, share)
    else:
        if mark is not None or seeds is not None or share is not None:
            raise UserError(
                "--boxes names the samples and what is on them; leave --mark, --share, --seeds out"
            )
        of_seeds = load_boxes(boxes)
        chosen, where = list(of_seeds), list(of_seeds.values())
    outputs = Outputs(out)
    generator = load_generator(checkpoint, device)
    if not isinstance(generator, GENERATORS):
        raise UserError(
            f"{checkpoint} holds a {type(generator).__name__}, which has no maps; forget looks into the "
            "convolutions of a generator"
        )
    labels = labels_of(generator, chosen, label)
    found = forget(
        generator,
        latents_of(generator, chosen),
        where,
        labels=labels,
        layer=layer,
        bn=bn,
        strength=strength,
        seed=seed,
    )
    what = f"in the boxes of {boxes}" if boxes is not None else f"marked as {mark}"
    outputs.picture(_picture(found, what, show), "samples with what was marked, and without")
    dropped = int(found.dropped.sum())
    outputs.figures(
        {
            "command": "forget",
            "checkpoint": checkpoint,
            "boxes": boxes,
            "mark": mark,
            "seeds": chosen,
            "classes": None if labels is None else labels.tolist(),
            "bn": bn,
            "layer": found.layer.number,
            "layer_name": found.layer.name,
            "maps": len(found.dropped),
            "dropped_maps": dropped,
            "dropped": np.flatnonzero(found.dropped).tolist(),
            "positions": {"inside": found.positives, "outside": found.negatives},
            "accuracy_on_other_samples": found.accuracy,
            "chance": found.chance,
            "change": found.change(found.without_them),
            "change_without_random_maps": found.change(found.control),
            "weights": found.weights.tolist(),
        }
    )
    return 0


def _detector(mark: str, share: float | None) -> Detector:
    if mark in MARKS:
        return mark_pixels(mark, _SHARE if share is None else share)
    if ":" not in mark:
        raise UserError(
            f"--mark must be one of {', '.join(MARKS)}, or MODULE:FUNCTION; got '{mark}'"
        )
    if share is not None:
        raise UserError("--share is of the marks that have a threshold, not of a function")
    return load_function("--mark", mark)


def _picture(found: Forgotten, what: str, count: int) -> Image.Image:
    """Of the samples with most marked, four pictures: what was marked, with, without, and the control."""
    marked = found.masks.mean((1, 2))
    rows = torch.from_numpy(np.argsort(-marked, kind="stable")[:count].copy())
    columns = 4
    change, control = found.change(found.without_them), found.change(found.control)
    blocks = [
        titled(title, grid(images[rows], columns), caption)
        for title, images, caption in (
            ("samples", found.with_them, ""),
            (f"what is {what}", _outlined(found.with_them, found.masks), ""),
            (
                f"without {int(found.dropped.sum())} of {len(found.dropped)} maps",
                found.without_them,
                f"changed {change['ratio']:.1f} times as much\ninside as outside",
            ),
            (
                "without as many random ones",
                found.control,
                f"changed {control['ratio']:.1f} times as much",
            ),
        )
    ]
    return slide(f"Forgetting what is {what}", beside(blocks))


def _outlined(images: Tensor, masks: np.ndarray) -> Tensor:
    """What is outside the masks faded: to dark where light things are marked, else to light."""
    inside = torch.from_numpy(masks)[:, None]
    mean = (images * inside).sum((1, 2, 3), keepdim=True)
    faded = images * 0.2 + torch.where(mean > 0, -0.7, 0.7)
    return torch.where(inside, images, faded)


def add_forget_command(add: AddCommand) -> None:
    parser = add(
        "forget",
        _forget,
        "draw samples without what is inside boxes",
        "A logistic regression tells positions inside boxes from others by the maps of a layer of the\n"
        "generator; maps with a weight above 0 are dropped. The picture shows samples as they are,\n"
        "what is inside, and the samples without these maps and without as many random ones.\n"
        'Boxes are JSON, pixels of samples by seed: {"17": [[left, top, right, bottom], ...], ...}.\n'
        "Without them pixels are marked by a threshold, or by a function of uint8 images\n"
        "(N, C, S, S) to boxes for each, or to masks, bool (N, S, S).",
        "dcgan-fast forget runs/faces --boxes glasses.json",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument("--boxes", metavar="FILE", help="JSON: boxes of samples, by their seeds")
    parser.add_argument(
        "--mark",
        metavar="WHAT",
        help=f"{', '.join(MARKS)}, or MODULE:FUNCTION (default: {_MARK})",
    )
    parser.add_argument(
        "--share", type=float, metavar="X", help=f"of pixels that are marked (default: {_SHARE})"
    )
    parser.add_argument("--seeds", metavar="LIST", help=f"the samples (default: {_SEEDS})")
    class_argument(
        parser,
        "of a conditional generator's samples (default: all in turn, seed by seed: that of seed 17 of "
        "ten classes is 7)",
    )
    parser.add_argument(
        "--layer",
        type=int,
        default=-2,
        metavar="N",
        help="whose maps: from 1, the projection, or from the end, -1 (default: -2)",
    )
    parser.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="X",
        help="inverse of the regularisation (default: 1)",
    )
    parser.add_argument(
        "--show", type=int, default=24, metavar="N", help="samples in the picture (default: 24)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the positions outside and the random maps (default: 0)",
    )
    parser.add_argument(
        "--bn", default="running", choices=("running", "population"), help="(default: running)"
    )
    output_arguments(parser, "forget.png")
