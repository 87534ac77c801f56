"""``dcgan-fast guided-backprop``: what a discriminator's features look for, as :mod:`dcgan_fast.guided` shows it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import models
from ..data import Dataset, normalize
from ..devices import pick_device
from ..errors import UserError
from ..guided import RULES, TopResponses, guided_backprop, random_twin
from ..layers import DISCRIMINATORS, check_images, with_population_statistics
from ..networks import integer
from ..slides import above, beside, grid, slide, titled
from ..training import load_networks
from .common import (
    AddCommand,
    Outputs,
    bars,
    check_class,
    class_argument,
    data_arguments,
    open_images,
    output_arguments,
    some_of,
)

_IMAGES = 10_000


def _guided_backprop(
    checkpoint: str,
    data: str | None,
    split: str,
    images: int,
    layer: int,
    features: int,
    top: int,
    rule: str,
    seed: int,
    label: int | None,
    out: str,
    device: str,
) -> int:
    outputs = Outputs(out)
    generator, discriminator, content = load_networks(checkpoint)
    if discriminator is None:
        raise UserError(f"{checkpoint} holds no discriminator")
    if not isinstance(discriminator, DISCRIMINATORS):
        raise UserError(
            f"{checkpoint} holds a {type(discriminator).__name__}, which has no maps; guided-backprop looks "
            "into the convolutions of a discriminator"
        )
    check_class(label, discriminator.classes)
    chosen = pick_device(device)
    discriminator.to(chosen)
    if generator is not None:
        generator.to(chosen)
    size, channels = discriminator.image_size, discriminator.nc
    found = open_images(
        checkpoint, content, generator, data, split, image_size=size, channels=channels, label=label
    )
    if discriminator.classes:
        found = _of_class(found, label, discriminator.classes)
    dataset = some_of(found, integer("guided-backprop", "images", images, 1))
    check_images("guided-backprop", discriminator, dataset.images)
    labels = dataset.labels if discriminator.classes else None
    value_range = _range_of(generator, discriminator)
    settled = partial(
        with_population_statistics,
        images=dataset.images,
        labels=labels,
        value_range=value_range,
    )
    twin = settled(random_twin(discriminator, seed))
    if content.get("bn") == "batch":  # then running statistics may never have been kept
        discriminator = settled(discriminator)
    sides: dict[str, TopResponses] = {}
    for name, network in (("trained", discriminator), ("random", twin)):
        sides[name] = guided_backprop(
            network,
            dataset.images,
            labels,
            value_range=value_range,
            layer=layer,
            features=features,
            top=top,
            rule=rule,
            progress=bars(),
        )
    first = sides["trained"]
    seen = dataset.name if label is None else f"{dataset.name}, class {label}"
    picture = slide(
        f"Guided backpropagation from convolution {first.layer.number} of the discriminator",
        beside([_column(f"{name} discriminator", side) for name, side in sides.items()], gap=32),
        caption=f"For each feature: those of {len(dataset):,} images ({seen}) that it responds to most, and below "
        "each what in it raises the response.",
    )
    outputs.picture(
        picture, f"{len(first.features)} features of the discriminator, trained and not"
    )
    outputs.figures(
        {
            "command": "guided-backprop",
            "checkpoint": checkpoint,
            "data": dataset.name,
            "images": len(dataset),
            "class": label,
            "layer": first.layer.number,
            "layer_name": first.layer.name,
            "maps": first.layer.shape[0],
            "rule": rule,
            "seed": seed,
            "features": list(first.features),
            "likeness_of_any_images": _likeness_of_any(first, dataset),
            **{name: _figures(side, dataset) for name, side in sides.items()},
        }
    )
    return 0


def _of_class(dataset: Dataset, label: int | None, classes: int) -> Dataset:
    """The images of the class ``label``, or all; where the data has no labels, all are taken for that class."""
    if dataset.labels is None:
        if label is None:
            raise UserError(
                f"{dataset.name} has no labels, which the discriminator is told with each image: give --class"
            )
        return replace(dataset, labels=np.full(len(dataset), label))
    if dataset.labels.max(initial=0) >= classes:
        raise UserError(
            f"{dataset.name} has labels up to {dataset.labels.max()}, the discriminator {classes} classes"
        )
    if label is None:
        return dataset
    rows = np.flatnonzero(dataset.labels == label)
    if not len(rows):
        raise UserError(f"{dataset.name} has no image of the class {label}")
    return Dataset(dataset.name, dataset.images[rows], dataset.labels[rows], dataset.classes)


def _range_of(generator: nn.Module | None, discriminator: nn.Module) -> tuple[float, float]:
    """In which the discriminator was trained: that of its generator, or of the generators that such have."""
    if generator is not None:
        assert isinstance(generator, models.LatentNetwork)
        return generator.output_range
    return (-1.0, 1.0) if isinstance(discriminator, models.Discriminator) else (0.0, 1.0)


def _column(title: str, found: TopResponses) -> Image.Image:
    rows = []
    for feature, images, gradients in zip(
        found.features, found.images, found.gradients, strict=True
    ):
        strips = torch.cat([normalize(images), _shown(gradients)])
        rows.append(titled(f"feature {feature}", grid(strips, len(images))))
    return titled(title, above(rows, gap=6))


def _shown(gradients: Tensor) -> Tensor:
    """Each scaled to its largest value, 0 as grey; without an opacity, whose gradient would hide it."""
    largest = gradients.abs().amax((1, 2, 3), keepdim=True)
    shown = gradients / torch.where(largest > 0, largest, 1)
    if shown.shape[1] in (2, 4):
        shown[:, -1] = 1
    return shown


def _figures(found: TopResponses, dataset: Dataset) -> dict[str, Any]:
    named: dict[str, Any] = {
        "rows": found.rows.tolist(),
        "responses": found.responses.tolist(),
        "places": found.places.tolist(),
        "mean_response": found.mean_response.tolist(),
        "likeness": found.likeness().tolist(),
    }
    if dataset.labels is not None:
        named["purity"] = found.purity(dataset.labels).tolist()
    return named


def _likeness_of_any(found: TopResponses, dataset: Dataset) -> float:
    """The likeness of images drawn at random, to compare with."""
    draw = np.random.default_rng(0)
    rows = draw.integers(0, len(dataset), (64, found.rows.shape[1]))
    drawn = TopResponses(
        found.layer,
        tuple(range(64)),
        rows,
        found.responses,
        found.places,
        dataset.images[rows],
        found.gradients,
        found.mean_response,
    )
    return float(drawn.likeness().mean())


def add_guided_command(add: AddCommand) -> None:
    parser = add(
        "guided-backprop",
        _guided_backprop,
        "show what the discriminator's features respond to",
        "Of the first features of a convolution the images that raise them most, and by guided\n"
        "backpropagation what in these images does; beside it the same of a discriminator with\n"
        "random weights. Rules for the LeakyReLU: a gradient passes where it is above 0; relu: and\n"
        "the input is above 0; leaky: below 0 a fifth of it passes.",
        "dcgan-fast guided-backprop runs/digits-pytorch --layer -1 --features 6",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a checkpoint, a run folder, or a bare discriminator",
    )
    data_arguments(parser, _IMAGES)
    class_argument(
        parser,
        "of a conditional discriminator: images of this class alone; where the data has no labels, all are "
        "taken for it (default: all, each with its label)",
    )
    parser.add_argument(
        "--layer",
        type=int,
        default=-1,
        metavar="N",
        help="which convolution, from 1; -1 is the last (default: -1)",
    )
    parser.add_argument(
        "--features", type=int, default=6, metavar="N", help="the first so many (default: 6)"
    )
    parser.add_argument(
        "--top", type=int, default=8, metavar="N", help="images of each (default: 8)"
    )
    parser.add_argument("--rule", default=RULES[0], choices=RULES, help=f"(default: {RULES[0]})")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the random weights (default: 0)"
    )
    output_arguments(parser, "guided-backprop.png")
