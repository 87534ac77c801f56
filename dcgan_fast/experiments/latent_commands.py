"""``dcgan-fast walk | arithmetic | turn``: the latent space, as :mod:`dcgan_fast.latent` looks at it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from .. import latent, models
from ..errors import UserError
from ..latent import ATTRIBUTES, latents_of
from ..slides import above, beside, grid, numbered, save_gif, save_mp4, slide, titled
from .common import (
    CHECKPOINT_HELP,
    SAMPLES_HELP,
    AddCommand,
    Outputs,
    check_class,
    choose_samples,
    find_score,
    load_generator,
    parse_numbers,
    sampling_arguments,
)

_WALK_SEEDS = "0-8"  # nine, as the paper's figure 4
_SUBJECTS = "0-5"
_EXAMPLES, _ENDS = 3, 4  # of a concept; of either side of a turn
_AMONG, _SHEET = 512, 80
_TERMS = [("+", "most:contrast"), ("-", "least:contrast"), ("+", "0-2")]
_TITLE = 16  # letters over a picture


def _walk(
    checkpoint: str,
    seeds: str,
    steps: int,
    path: str | None,
    closed: bool,
    fps: float,
    label: int | None,
    bn: str,
    out: str,
    device: str,
) -> int:
    chosen = parse_numbers("--seeds", seeds)
    _check_fps(fps)
    outputs = Outputs(out)
    generator = load_generator(checkpoint, device)
    check_class(label, generator.classes)
    points = latents_of(generator, chosen)
    made = latent.walk(generator, points, steps=steps, path=path, closed=closed, label=label, bn=bn)
    value_range = made.value_range
    found = made.smoothness
    picture = slide(
        f"Walk between {len(chosen)} samples ({made.path})",
        grid(made.rows, made.steps + 1, value_range=value_range),
        caption=f"Each row leads from one seed (left) to the next (right) in {made.steps} steps.\n"
        f"The largest change in one step is {found.jump:.0%} of that between two samples.",
    )
    outputs.picture(picture, f"{len(made.images)} images of the walk between {len(chosen)} seeds")
    save_gif(made.images, outputs.path(".gif"), fps=fps, value_range=value_range)
    outputs.note(outputs.path(".gif"), "the walk as a film")
    if save_mp4(made.images, outputs.path(".mp4"), fps=fps, value_range=value_range):
        outputs.note(outputs.path(".mp4"), "the same")
    outputs.figures(
        {
            "command": "walk",
            "checkpoint": checkpoint,
            "seeds": chosen,
            "steps": made.steps,
            "path": made.path,
            "closed": closed,
            "bn": bn,
            "images": len(made.images),
            "smoothness": {**asdict(found), "jump": found.jump},
        }
    )
    return 0


def _check_fps(fps: float) -> None:
    if not 0 < fps <= 50:  # most that show GIFs take less than 2 hundredths for 10
        raise UserError(f"--fps must be above 0 and at most 50, got {fps:g}")


def _arithmetic(
    checkpoint: str,
    terms: list[tuple[str, str]] | None,
    examples: int,
    noise: float,
    seed: int,
    among: int,
    sheet: int,
    label: int | None,
    bn: str,
    out: str,
    device: str,
) -> int:
    outputs = Outputs(out)
    generator = load_generator(checkpoint, device)
    check_class(label, generator.classes)
    written, seeds = terms or _TERMS, []
    for sign, text in written:
        flag = "--plus" if sign == "+" else "--minus"
        seeds.append(
            choose_samples(flag, text, generator, examples, among=among, label=label, bn=bn)[0]
        )
    made = latent.arithmetic(
        generator,
        [latents_of(generator, each) for each in seeds],
        [1.0 if sign == "+" else -1.0 for sign, _ in written],
        noise=noise,
        seed=seed,
        label=label,
        bn=bn,
    )
    outputs.picture(_arithmetic_slide(made, written, seeds, noise), "the sum and what it is of")
    _save_sheet(outputs, generator, sheet, label, bn)
    parts = torch.cat([made.means, made.results[4:5], made.pixels[None]])
    outputs.figures(
        {
            "command": "arithmetic",
            "checkpoint": checkpoint,
            "bn": bn,
            "noise": noise,
            "concepts": [
                {"sign": sign, "chosen_by": text, "seeds": its, "mean": scores}
                for (sign, text), its, scores in zip(
                    written, seeds, _attributes(made.means, made.value_range), strict=True
                )
            ],
            "result": _attributes(parts[-2:-1], made.value_range)[0],
            "pixel_control": _attributes(parts[-1:], made.value_range)[0],
        }
    )
    return 0


def _arithmetic_slide(
    made: latent.Arithmetic,
    terms: Sequence[tuple[str, str]],
    seeds: Sequence[Sequence[int]],
    noise: float,
) -> Any:
    def show(images: Tensor, columns: int, scale: int | None = None) -> Any:
        return grid(images, columns, scale=scale, value_range=made.value_range)

    columns = []
    for (sign, text), its, images, mean in zip(
        terms, seeds, made.examples, made.means, strict=True
    ):
        name = text if len(text) <= _TITLE else "seeds"
        shown = ", ".join(map(str, its[:4])) + (" ..." if len(its) > 4 else "")
        rows = -(-len(images) // -(-len(images) // 4))  # four in a column at most
        examples = titled(f"{sign} {name}", show(images, -(-len(images) // rows)), shown)
        columns.append(above([examples, titled("their mean z", show(mean[None], 1))], gap=8))
    result = titled("= result", show(made.results, 3), f"around it: noise of ±{noise:g} in z")
    pixels = titled("the same of pixels", show(made.pixels[None], 1), "control")
    return slide("Arithmetic on mean latent vectors", beside([*columns, result, pixels]))


def _turn(
    checkpoint: str,
    source: str,
    target: str,
    subjects: str,
    ends: int,
    steps: int,
    reach: float,
    among: int,
    sheet: int,
    label: int | None,
    bn: str,
    out: str,
    device: str,
) -> int:
    moved = parse_numbers("--subjects", subjects)
    outputs = Outputs(out)
    generator = load_generator(checkpoint, device)
    check_class(label, generator.classes)
    chosen = [
        choose_samples(flag, text, generator, ends, among=among, label=label, bn=bn)
        for flag, text in (("--from", source), ("--to", target))
    ]
    sides = [seeds for seeds, _ in chosen]
    made = latent.turn(
        generator,
        *(latents_of(generator, seeds) for seeds in (*sides, moved)),
        steps=steps,
        reach=reach,
        label=label,
        bn=bn,
    )
    scores = {name: None for name in ATTRIBUTES} | {name: None for _, name in chosen if name}
    along = {}
    for name in scores:
        try:
            along[name] = made.scores(find_score("--from", name)).mean(0).tolist()
        except UserError:  # colours of grey images
            continue
    examples = torch.cat([_images(generator, seeds, label, bn) for seeds in sides])
    picture = slide(
        "A direction from two sets of samples",
        beside(
            [
                titled(title, grid(images, None, value_range=made.value_range))
                for title, images in zip(
                    (f"from: {source}", f"to: {target}"),
                    examples.split([len(seeds) for seeds in sides]),
                    strict=True,
                )
            ]
        ),
        titled(
            f"{len(moved)} other samples, moved along it",
            grid(made.images.flatten(0, 1), steps, value_range=made.value_range),
            f"from {-reach:g} (left) to {reach:g} (right) times the direction; seeds {subjects}",
        ),
    )
    outputs.picture(picture, f"{len(moved)} samples moved along the direction")
    _save_sheet(outputs, generator, sheet, label, bn)
    outputs.figures(
        {
            "command": "turn",
            "checkpoint": checkpoint,
            "bn": bn,
            "from": {"chosen_by": source, "seeds": sides[0]},
            "to": {"chosen_by": target, "seeds": sides[1]},
            "subjects": moved,
            "positions": made.positions.tolist(),
            "direction_length": float(made.direction.norm()),
            "mean_scores_along": along,
        }
    )
    return 0


def _images(
    generator: models.LatentNetwork, seeds: Sequence[int], label: int | None, bn: str
) -> Tensor:
    labels = torch.full((len(seeds),), label or 0) if generator.classes else None
    latents = latents_of(generator, seeds)
    return models.generate(generator, latents, labels, bn=bn, dropout=False).float().cpu()


def _save_sheet(
    outputs: Outputs, generator: models.LatentNetwork, count: int, label: int | None, bn: str
) -> None:
    """A numbered sheet of samples, from which a person chooses seeds."""
    if count < 1:
        return
    images = _images(generator, range(count), label, bn)
    cells = numbered(images, [str(n) for n in range(count)], 10, value_range=generator.output_range)
    outputs.picture(
        slide("Samples by seed: choose from these", cells),
        "samples to choose seeds from",
        ".seeds.png",
    )


def _attributes(images: Tensor, value_range: tuple[float, float]) -> list[dict[str, float]]:
    """The scores of each image that apply to it."""
    names = list(ATTRIBUTES) if images.shape[1] >= 3 else ["brightness", "contrast"]
    columns = [latent.score_images(ATTRIBUTES[n], images, value_range).tolist() for n in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


# ------------------------------------------------------------------------------------- arguments


class _Term(argparse.Action):
    """``--plus`` and ``--minus`` in the order in which they come."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        terms = list(getattr(namespace, self.dest) or [])
        setattr(namespace, self.dest, [*terms, ("+" if option == "--plus" else "-", values)])


def add_latent_commands(add: AddCommand) -> None:
    parser = add(
        "walk",
        _walk,
        "walk through the latent space between samples",
        "Writes a picture with a row from each sample to the next, the same as a GIF (and an MP4\n"
        "where ffmpeg is found), and how evenly the images change.",
        "dcgan-fast walk runs/digits-pytorch --seeds 3,14,15,92 --closed --out walk.png",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument(
        "--seeds", default=_WALK_SEEDS, metavar="LIST", help=f"(default: {_WALK_SEEDS})"
    )
    parser.add_argument(
        "--steps", type=int, default=9, metavar="N", help="from one to the next (default: 9)"
    )
    parser.add_argument(
        "--path",
        choices=latent.PATHS,
        help="(default: spherical where latent vectors are normal, straight where uniform)",
    )
    parser.add_argument("--closed", action="store_true", help="return to the first")
    parser.add_argument(
        "--fps", type=float, default=12, metavar="X", help="images a second (default: 12)"
    )
    sampling_arguments(parser, "walk.png")

    parser = add(
        "arithmetic",
        _arithmetic,
        "add and subtract samples in the latent space",
        "Averages the latent vectors of three samples a concept and adds and subtracts the means: the\n"
        "picture shows the samples, the result amid 8 with noise, and the same done to pixels.\n"
        f"A concept is {SAMPLES_HELP}.\narithmetic.seeds.png shows samples to choose from.",
        "dcgan-fast arithmetic runs/faces --plus 4,17,40 --minus 2,9,11 --plus 5,6,30",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    for flag, what in (("--plus", "add this concept"), ("--minus", "subtract this one")):
        parser.add_argument(
            flag,
            dest="terms",
            action=_Term,
            metavar="SAMPLES",
            help=f"{what}; again for more (default of all: "
            + " ".join(f"--{'plus' if s == '+' else 'minus'} {t}" for s, t in _TERMS)
            + ")",
        )
    parser.set_defaults(terms=None)
    parser.add_argument(
        "--examples",
        type=int,
        default=_EXAMPLES,
        metavar="N",
        help=f"that a score chooses for a concept (default: {_EXAMPLES})",
    )
    parser.add_argument(
        "--noise", type=float, default=0.25, metavar="X", help="around the result (default: 0.25)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of it (default: 0)")
    _choice_arguments(parser)
    sampling_arguments(parser, "arithmetic.png")

    parser = add(
        "turn",
        _turn,
        "move samples along a direction between two kinds of samples",
        "The direction leads from the mean latent vector of four samples to that of four others, and\n"
        "is added to other samples, more and more from left to right.\n"
        f"Samples are {SAMPLES_HELP}.\nturn.seeds.png shows samples to choose from.",
        "dcgan-fast turn runs/faces --from 4,17,40,8 --to 2,9,11,33 --subjects 50-55",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    for flag, dest, default in (
        ("--from", "source", "least:brightness"),
        ("--to", "target", "most:brightness"),
    ):
        parser.add_argument(
            flag, dest=dest, default=default, metavar="SAMPLES", help=f"(default: {default})"
        )
    parser.add_argument(
        "--subjects", default=_SUBJECTS, metavar="LIST", help=f"seeds (default: {_SUBJECTS})"
    )
    parser.add_argument(
        "--examples",
        dest="ends",
        type=int,
        default=_ENDS,
        metavar="N",
        help=f"that a score chooses for either side (default: {_ENDS})",
    )
    parser.add_argument("--steps", type=int, default=9, metavar="N", help="images (default: 9)")
    parser.add_argument(
        "--reach", type=float, default=1.0, metavar="X", help="in directions (default: 1)"
    )
    _choice_arguments(parser)
    sampling_arguments(parser, "turn.png")


def _choice_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--among",
        type=int,
        default=_AMONG,
        metavar="N",
        help=f"samples that scores choose from (default: {_AMONG})",
    )
    parser.add_argument(
        "--sheet",
        type=int,
        default=_SHEET,
        metavar="N",
        help=f"samples on the sheet to choose from; 0: none (default: {_SHEET})",
    )
