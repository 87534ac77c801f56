"""``dcgan-fast nearest``: did the generator memorise its images? By :mod:`dcgan_fast.memorisation` and distances."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from .. import latent, models
from ..data import Dataset, normalize, prepare
from ..data.source import NoSplit
from ..devices import pick_device
from ..errors import UserError
from ..latent import latents_of
from ..layers import DISCRIMINATORS, AnyDiscriminator, with_population_statistics
from ..memorisation import (
    AtSize,
    Nearness,
    check_sizes,
    draw_bytes,
    look_for_copies,
    pixel_features,
    pooled_features,
    real_to_samples,
)
from ..metrics import extract_features, frechet_distance, kernel_distance, real_features
from ..metrics.distances import FeatureExtractor
from ..networks import integer
from ..slides import beside, grid, slide, titled
from ..training import load_networks
from ..training.checkpoint import FILE_NAME
from .common import (
    CHECKPOINT_HELP,
    AddCommand,
    Outputs,
    bars,
    data_arguments,
    labels_of,
    open_images,
    parse_numbers,
    sampling_arguments,
    some_of,
    which_images,
)

_SEEDS, _SIZES = "0-11", "1000,10000,100000"
_IMAGES, _QUERIES = (
    100_000,
    10_000,
)  # training images, and real images that look for samples, at most
_SAMPLES = 5_000  # that distances are of
_WALK_SEEDS, _WALK_STEPS = 16, 16
_SUBSETS = 20  # of kernel distances
_SMALL = 16  # side of the images of which pixels are features


def _nearest(
    checkpoint: str,
    data: str | None,
    split: str,
    images: int,
    seeds: str,
    k: int,
    sizes: str,
    samples: int,
    features: str | None,
    label: int | None,
    bn: str,
    out: str,
    device: str,
) -> int:
    chosen, numbers = parse_numbers("--seeds", seeds), parse_numbers("--sizes", sizes)
    samples = integer("nearest", "samples", samples, 2)
    check_sizes(numbers)  # now, not after all else
    outputs = Outputs(out)
    generator, discriminator, content = load_networks(checkpoint)
    if generator is None:
        raise UserError(f"{checkpoint} holds no generator")
    assert isinstance(generator, models.LatentNetwork)
    where = pick_device(device)
    generator.to(where)
    size, channels = generator.config["image_size"], generator.config["nc"]
    data, split = which_images(content, data, split)
    whole = open_images(checkpoint, content, None, data, split, image_size=size, channels=channels)
    training = some_of(whole, integer("nearest", "images", images, 2))
    held_out = _test_images(str(data), size, channels) if split == "train" else None

    spaces: dict[str, FeatureExtractor] = {"pixels": pixel_features}
    if not isinstance(discriminator, DISCRIMINATORS):
        discriminator = None
    elif content.get("bn") == "batch":  # then running statistics may never have been kept
        discriminator = _settled(discriminator.to(where), training, generator.output_range)
    if discriminator is not None:
        discriminator.to(where)
        spaces["discriminator"] = pooled_features(discriminator, value_range=generator.output_range)
    extractors = _extractors(features, discriminator, generator.output_range, where)
    latents = latents_of(generator, chosen)
    shown = draw_bytes(generator, latents, labels_of(generator, range(len(chosen)), label), bn)
    drawn = draw_bytes(
        generator,
        generator.sample_latent(samples, generator=torch.Generator().manual_seed(0)),
        labels_of(generator, range(samples), label),
        bn,
    )
    near, how_near = {}, {}
    for name, space in spaces.items():
        near[name], how_near[name] = look_for_copies(
            shown,
            drawn,
            training.images,
            None if held_out is None else held_out.images,
            k=k,
            extractor=space,
            progress=bars(),
        )
    tested = some_of(held_out or training, _QUERIES)
    at_sizes = real_to_samples(
        generator, tested.images, tested.labels, sizes=numbers, bn=bn, progress=bars()
    )
    walked = latent.walk(
        generator,
        latents_of(generator, range(_WALK_SEEDS)),
        steps=_WALK_STEPS,
        label=label,
        bn=bn,
    ).smoothness
    distances = _distances(training, drawn, extractors)
    figures = {
        "command": "nearest",
        "checkpoint": checkpoint,
        "data": training.name,
        "training_images": len(training),
        "held_out_images": 0 if held_out is None else len(held_out),
        "bn": bn,
        "seeds": chosen,
        "neighbours": {
            name: {"rows": found.rows.tolist(), "distances": found.distances.tolist()}
            for name, found in near.items()
        },
        "nearness": {name: {**asdict(n), "ratio": n.ratio} for name, n in how_near.items()},
        "real_to_samples": {
            "real_images": f"{len(tested):,} {'held out' if held_out else 'of training'}",
            "at": [asdict(each) for each in at_sizes],
        },
        "smoothness": {**asdict(walked), "jump": walked.jump, "steps": _WALK_STEPS},
        "distances": distances,
    }
    outputs.picture(
        _picture(shown, training, near, how_near["pixels"], k), "samples and their neighbours"
    )
    outputs.figures(figures)
    _print(how_near, at_sizes, distances)
    return 0


def _settled(
    discriminator: AnyDiscriminator, training: Dataset, value_range: tuple[float, float]
) -> AnyDiscriminator | None:
    """With the statistics of the training images; None where these have no labels for one that takes some."""
    labels = training.labels if discriminator.classes else None
    if discriminator.classes and labels is None:
        return None
    return with_population_statistics(
        discriminator, training.images, labels, value_range=value_range
    )


def _test_images(data: str, size: int, channels: int) -> Dataset | None:
    """The part that was not trained on, where the data has one."""
    try:
        return prepare(data, image_size=size, channels=channels, split="test", progress=bars())
    except NoSplit:
        return None


# ------------------------------------------------------------------------------------- distances


def _small_pixels(images: np.ndarray) -> np.ndarray:
    small = nn.functional.adaptive_avg_pool2d(normalize(images, (0.0, 1.0)), _SMALL)
    return small.flatten(1).numpy()


def _extractors(
    features: str | None,
    discriminator: AnyDiscriminator | None,
    value_range: tuple[float, float],
    device: torch.device,
) -> dict[str, tuple[FeatureExtractor, str]]:
    """By name: what computes features, and a key that stands for it."""
    found: dict[str, tuple[FeatureExtractor, str]] = {}
    found[f"pixels at {_SMALL}x{_SMALL}"] = (_small_pixels, f"pixels {_SMALL}")
    if discriminator is not None:
        digest = hashlib.sha256()
        for value in discriminator.state_dict().values():
            digest.update(np.ascontiguousarray(value.cpu().numpy()).tobytes())
        digest.update(str(value_range).encode())
        extractor = pooled_features(discriminator, 1, value_range)
        found["discriminator's maps"] = (extractor, digest.hexdigest())
    if features is not None:
        from ..tags.features import Extractor, load_extractor

        def adapted(extractor: Extractor) -> FeatureExtractor:
            side = extractor.image_size

            def extract(images: np.ndarray) -> np.ndarray:
                pixels = normalize(images, (0.0, 255.0))
                if pixels.shape[1] != extractor.channels:
                    pixels = pixels[:, :1].expand(-1, extractor.channels, -1, -1)
                resized = nn.functional.interpolate(
                    pixels, (side, side), mode="bilinear", antialias=True
                )
                return extractor(resized.round().clamp(0, 255).byte().numpy())

            return extract

        network = load_extractor(features, device=device)
        path = Path(features)
        file = path / FILE_NAME if path.is_dir() else path
        key = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else features
        found[features] = (adapted(network), key)
    return found


def _distances(
    dataset: Dataset, samples: np.ndarray, extractors: Mapping[str, tuple[FeatureExtractor, str]]
) -> dict[str, Any]:
    found = {}
    for name, (extractor, key) in extractors.items():
        real = real_features(dataset, extractor, key, progress=bars())
        fake = extract_features(samples, extractor, progress=bars())
        kernel = kernel_distance(real.features, fake, subsets=_SUBSETS)
        halves = np.array_split(np.random.default_rng(0).permutation(real.features), 2)
        among_real = kernel_distance(*halves, subsets=_SUBSETS)
        found[name] = {
            "features": int(fake.shape[1]),
            "real_images": real.statistics.count,
            "samples": len(fake),
            "frechet": frechet_distance(real.statistics, fake),
            "kernel": kernel.distance,
            "kernel_standard_error": kernel.standard_error,
            "kernel_between_halves_of_real": among_real.distance,
        }
    return found


# --------------------------------------------------------------------------------------- results


def _picture(
    shown: np.ndarray, training: Dataset, near: Mapping[str, Any], how_near: Nearness, k: int
) -> Image.Image:
    half = math.ceil(len(shown) / 2) if len(shown) > 6 else len(shown)
    columns = []
    for rows in (slice(0, half), slice(half, len(shown))):
        if not len(shown[rows]):
            continue
        blocks = [titled("sample", grid(normalize(shown[rows]), 1))]
        for name, found in near.items():
            images = training.images[found.rows[rows].ravel()]
            blocks.append(titled(f"nearest by {name}", grid(normalize(images), k)))
        columns.append(beside(blocks, gap=10))
    caption = (
        f"Median distance of pixels to the nearest training image: samples {how_near.samples:.2f}, "
        f"other training images {how_near.training:.2f}"
    )
    if how_near.held_out is not None:
        caption += f", images held out {how_near.held_out:.2f}"
    return slide(
        f"Samples and the nearest of {len(training):,} training images",
        beside(columns, gap=32),
        caption=f"{caption}.",
    )


def _print(
    how_near: Mapping[str, Nearness], at_sizes: list[AtSize], distances: Mapping[str, Any]
) -> None:
    for name, found in how_near.items():
        held_out = "" if found.held_out is None else f", held out {found.held_out:.2f}"
        print(
            f"{name}: nearest training image at {found.samples:.2f} from samples{held_out}, "
            f"{found.training:.2f} from each other; {found.copies:.1%} of samples are copies"
        )
    for each in at_sizes:
        accuracy = "" if each.accuracy is None else f", its label right in {each.accuracy:.1%}"
        print(
            f"{each.samples:,} samples: nearest to a real image at {each.mean_distance:.3f}{accuracy}"
        )
    for name, values in distances.items():
        print(
            f"{name}: Fréchet distance {values['frechet']:.4g}, kernel distance {values['kernel']:.3g}"
        )


def add_nearest_command(add: AddCommand) -> None:
    parser = add(
        "nearest",
        _nearest,
        "look whether the generator memorised its training images",
        "Writes a picture of samples and the training images nearest to them, by pixels and by the\n"
        "discriminator's features, and figures: how near samples are to training images and these to\n"
        "each other; at several numbers of samples how near real images are to one, and, of a\n"
        "generator with labels, how often its label is theirs; how smooth walks are; Fréchet and\n"
        "kernel distances of features (of no Inception network: they are no FID or KID).",
        "dcgan-fast nearest runs/mnist-pytorch",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    data_arguments(parser, _IMAGES)
    parser.add_argument(
        "--seeds", default=_SEEDS, metavar="LIST", help=f"in the picture (default: {_SEEDS})"
    )
    parser.add_argument(
        "-k", type=int, default=5, metavar="N", help="neighbours of each (default: 5)"
    )
    parser.add_argument(
        "--sizes",
        default=_SIZES,
        metavar="LIST",
        help=f"numbers of samples (default: {_SIZES}; 100,000 of 64x64 take minutes on a CPU)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=_SAMPLES,
        metavar="N",
        help=f"that distances are of (default: {_SAMPLES})",
    )
    parser.add_argument(
        "--features",
        metavar="FILE",
        help="a network for distances beside pixels and the discriminator: a .pt2 by torch.export, "
        "TorchScript, or a checkpoint of ours",
    )
    sampling_arguments(parser, "nearest.png", classes="default: all in turn")
