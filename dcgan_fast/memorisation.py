"""Whether a generator memorised its training images: their nearest neighbours, and how near these are.

The DCGAN paper looks at walks and at nearest neighbours for it; its authors' MNIST script takes samples as the training
set of a nearest neighbour classifier of real images. Distances are Euclidean, of pixels in [0, 1] or of the
discriminator's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from . import models
from .conditional import ConditionalDiscriminator
from .data import normalize
from .errors import UserError
from .layers import AnyDiscriminator, map_layers, run_layers
from .metrics import NearestSoFar, extract_features
from .metrics.distances import FeatureExtractor
from .metrics.likelihood import pixels
from .networks import integer
from .visualize import to_uint8

__all__ = [
    "AtSize",
    "Nearness",
    "Neighbours",
    "check_sizes",
    "draw_bytes",
    "look_for_copies",
    "nearest_images",
    "nearness",
    "pixel_features",
    "pooled_features",
    "real_to_samples",
]

_PART = 10_000  # samples, or training images, at once
_NEXT = 10  # neighbours beyond the nearest, with which it is compared


def pixel_features(images: np.ndarray) -> np.ndarray:
    """uint8 (N, C, S, S) as float32 rows (N, C * S * S) in [0, 1]."""
    return pixels(images).numpy()


def pooled_features(
    discriminator: AnyDiscriminator,
    side: int = 4,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> FeatureExtractor:
    """What turns uint8 images into the features of the paper's classifiers: every convolution's activations, max-pooled
    to ``side`` x ``side``, flattened, concatenated; ``side`` 1 leaves a number a map.

    Batch norm uses the discriminator's running statistics. One with classes is told all of them alike, the weights
    1 / classes, so that features depend on the image alone; it takes images in ``value_range``.
    """
    if isinstance(discriminator, ConditionalDiscriminator):
        return partial(_features_of_no_class, discriminator, side, value_range)
    from .features import DiscriminatorFeatures  # scikit-learn takes most of a second to import

    device = str(next(discriminator.parameters()).device)
    return DiscriminatorFeatures(discriminator, size=side, device=device).fit().transform


def _features_of_no_class(
    discriminator: ConditionalDiscriminator,
    side: int,
    value_range: tuple[float, float],
    images: np.ndarray,
) -> np.ndarray:
    from .features.discriminator import pool_features

    parameter = next(discriminator.parameters())
    maps = normalize(
        images, value_range, device=parameter.device, memory_format=torch.channels_last
    ).to(parameter.dtype)
    classes = discriminator.classes
    labels = torch.full((len(maps), classes), 1 / classes).to(parameter)
    was_training = discriminator.training
    discriminator.eval()
    layers = map_layers(discriminator)
    features = torch.empty(len(maps), sum(layer.shape[0] for layer in layers) * side**2)
    start = column = 0
    try:
        with torch.no_grad():
            for layer in layers:
                maps = run_layers(discriminator, maps, labels, start, layer.end)
                pool_features(maps, side, features, column)
                start, column = layer.end, column + layer.shape[0] * side**2
    finally:
        discriminator.train(was_training)
    return features.numpy()


def draw_bytes(
    generator: models.LatentNetwork, latents: Tensor, labels: Tensor | None, bn: str
) -> np.ndarray:
    """uint8 (N, C, S, S): samples as pictures hold them.

    Raises:
        UserError: the images are no numbers.
    """
    images = models.generate(generator, latents, labels, bn=bn)
    if not images.isfinite().all():
        raise UserError("the generator's images hold NaN: its training has diverged")
    pixels = to_uint8(images, value_range=generator.output_range)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


# ------------------------------------------------------------------------------------- neighbours


@dataclass(frozen=True)
class Neighbours:
    """Of each sample the nearest training images: their rows, int64 (N, k), and distances, float64 (N, k)."""

    rows: np.ndarray
    distances: np.ndarray


def nearest_images(
    samples: np.ndarray,
    training: np.ndarray,
    *,
    k: int = 5,
    extractor: FeatureExtractor = pixel_features,
    progress: bool = False,
) -> Neighbours:
    """Find the training images nearest to each sample, in one pass over them, 10,000 at a time.

    Args:
        samples: uint8 (N, C, S, S), N >= 1.
        training: uint8 (M, C, S, S), M >= k.
        k: how many.
        extractor: uint8 images to features (N, d): :func:`pixel_features`, :func:`pooled_features` of a discriminator.
        progress: whether to show bars.

    Raises:
        UserError: shapes differ, or there are less than k images.
    """
    _check_pair("nearest_images", samples, training)
    k = integer("nearest_images", "k", k, 1, len(training))
    nearest = NearestSoFar(extract_features(samples, extractor), k)
    for start in range(0, len(training), _PART):
        part = training[start : start + _PART]
        nearest.add(extract_features(part, extractor, progress=progress))
    return Neighbours(nearest.indices, nearest.distances)


def _check_pair(owner: str, samples: np.ndarray, training: np.ndarray) -> None:
    for name, images in (("samples", samples), ("training", training)):
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
            raise UserError(
                f"{owner}(): {name!r} must be uint8 (N, C, S, S) with N >= 1, got {images.dtype} {images.shape}"
            )
    if samples.shape[1:] != training.shape[1:]:
        raise UserError(
            f"{owner}(): 'training' must be images of {samples.shape[1:]}, as the samples, got "
            f"{training.shape[1:]}"
        )


@dataclass(frozen=True)
class Nearness:
    """How far images are from the nearest training image, in the units of the features; medians.

    samples:  of samples
    training: of training images, to the nearest other one
    held_out: of images that the generator was not trained on; None where there are none
    copies:   the share of samples less than half as far from the nearest training image as from the ten next (their
              mean): of something between all of them that is rare. Blurred samples are near to everything; this does
              not count them. Of Carlini et al. 2023 (arXiv 2301.13188), section 4.2, the relative distance
    training_copies: the share of training images that have such a near one among the others
    """

    samples: float
    training: float
    held_out: float | None
    copies: float
    training_copies: float

    @property
    def ratio(self) -> float:
        """``samples / training``: far below 1, samples are copies; far above, they are not of the kind."""
        return self.samples / self.training if self.training > 0 else float("nan")


def nearness(
    samples: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray | None = None,
    *,
    queries: int = 1000,
    extractor: FeatureExtractor = pixel_features,
    progress: bool = False,
) -> Nearness:
    """Compare how near samples are to training images with how near these are to each other.

    Args:
        samples, training: as of :func:`nearest_images`; at least three training images.
        held_out: likewise, images that the generator has not seen.
        queries: at most so many of each kind, drawn at random, are asked for their neighbours.
        extractor: as of :func:`nearest_images`.
        progress: whether to show bars.

    Raises:
        UserError: as :func:`nearest_images`.
    """
    return look_for_copies(
        samples[:1], samples, training, held_out,
        k=1, queries=queries, extractor=extractor, progress=progress,
    )[1]  # fmt: skip


def look_for_copies(
    shown: np.ndarray,
    samples: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray | None = None,
    *,
    k: int = 5,
    queries: int = 1000,
    extractor: FeatureExtractor = pixel_features,
    progress: bool = False,
) -> tuple[Neighbours, Nearness]:
    """:func:`nearest_images` of ``shown`` and :func:`nearness` of ``samples``, in one pass over the training images.

    Args:
        shown: uint8 (N, C, S, S), N >= 1; of these the neighbours are returned.
        samples, training, held_out, queries: as of :func:`nearness`.
        k, extractor, progress: as of :func:`nearest_images`.

    Raises:
        UserError: as these.
    """
    if len(training) < 3:
        raise UserError(f"nearness(): 'training' must hold at least 3 images, got {len(training)}")
    k = integer("nearest_images", "k", k, 1, len(training))
    rng = np.random.default_rng(0)

    def some(images: np.ndarray) -> np.ndarray:
        count = min(integer("nearness", "queries", queries, 1), len(images))
        return np.sort(rng.choice(len(images), count, replace=False))

    rows = {"samples": some(samples), "training": some(training)}
    asked = [shown, samples[rows["samples"]], np.asarray(training[rows["training"]])]
    if held_out is not None:
        asked.append(np.asarray(held_out[some(held_out)]))
    for each in asked:
        _check_pair("nearness", each, training)
    others = min(_NEXT + 2, len(training))  # one more, for training images find themselves
    found = nearest_images(
        np.concatenate(asked),
        training,
        k=max(k, others),
        extractor=extractor,
        progress=progress,
    )
    ends = np.cumsum([len(each) for each in asked])[:-1]
    of_shown, *distances = np.split(found.distances, ends)
    indices = np.split(found.rows, ends)
    neighbours = Neighbours(indices[0][:, :k], of_shown[:, :k])
    distances = [each[:, :others] for each in distances]
    itself = indices[2][:, :others] == rows["training"][:, None]
    itself[~itself.any(1), 0] = True  # a copy took its place
    to_others = distances[1][~itself].reshape(len(itself), others - 1)
    return neighbours, Nearness(
        float(np.median(distances[0][:, 0])),
        float(np.median(to_others[:, 0])),
        None if held_out is None else float(np.median(distances[2][:, 0])),
        _share_of_copies(distances[0][:, :-1]),
        _share_of_copies(to_others),
    )


def _share_of_copies(distances: np.ndarray) -> float:
    """Of rows of distances, nearest first, how many have a first below half the mean of the others."""
    return float((distances[:, 0] < distances[:, 1:].mean(1) / 2).mean())


# ---------------------------------------------------------------------- samples as a training set


@dataclass(frozen=True)
class AtSize:
    """With ``samples`` of them: the mean distance of real images to the nearest, and the accuracy of its label.

    The accuracy is None of a generator without labels, and of data without.
    """

    samples: int
    mean_distance: float
    accuracy: float | None


def check_sizes(sizes: Sequence[int]) -> list[int]:
    """The numbers of samples that :func:`real_to_samples` takes; raises :class:`UserError`."""
    numbers = [integer("real_to_samples", "sizes", size, 1) for size in sizes]
    if not numbers or any(b <= a for a, b in zip(numbers, numbers[1:], strict=False)):
        raise UserError(f"real_to_samples(): 'sizes' must ascend, at least one, got {list(sizes)}")
    return numbers


def real_to_samples(
    generator: models.LatentNetwork,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    sizes: Sequence[int] = (1_000, 10_000, 100_000),
    bn: str = "running",
    seed: int = 0,
    progress: bool = False,
) -> list[AtSize]:
    """The nearest of many samples to each real image, by pixels in [0, 1]: the DCGAN authors' figures for MNIST.

    The more samples, the nearer; how fast the distance falls says how much of the data they cover. With a generator
    that has classes, as many samples of each, a real image gets the label of its nearest sample
    (:func:`dcgan_fast.metrics.nearest_neighbour_accuracy`). Samples are drawn 10,000 at a time.

    Args:
        generator: a trained one.
        images: uint8 (N, C, S, S), those of the generator's shape; ones it was not trained on say more.
        labels: int64 (N,), or None.
        sizes: at how many samples, ascending, each at least 1.
        bn: as for :func:`dcgan_fast.models.generate`.
        seed: of the latent vectors.
        progress: whether to show bars.

    Raises:
        UserError: sizes do not ascend, images or labels are of other shapes or classes, or the samples are no numbers.
    """
    numbers = check_sizes(sizes)
    if labels is not None and labels.shape != images.shape[:1]:
        raise UserError(
            f"real_to_samples(): 'labels' must be ({len(images)},), one an image, got {labels.shape}"
        )
    classes = generator.classes
    if classes and labels is not None and labels.max(initial=0) >= classes:
        raise UserError(
            f"real_to_samples(): 'labels' must be below {classes}, the generator's classes, got {labels.max()}"
        )
    nearest = NearestSoFar(pixel_features(images))
    stream = torch.Generator().manual_seed(seed)
    drawn, found, of_samples = 0, [], np.empty(0, np.int64)
    for size in numbers:
        while drawn < size:
            count = min(_PART, size - drawn)
            latents = generator.sample_latent(count, generator=stream)
            known = torch.arange(drawn, drawn + count) % classes if classes else None
            part = draw_bytes(generator, latents, known, bn)
            _check_pair("real_to_samples", part, images)
            nearest.add(pixel_features(part), progress=progress)
            if known is not None:
                of_samples = np.concatenate([of_samples, known.numpy()])
            drawn += count
        accuracy = None
        if classes and labels is not None:
            accuracy = float((of_samples[nearest.indices[:, 0]] == labels).mean())
        found.append(AtSize(size, float(nearest.distances[:, 0].mean()), accuracy))
    return found
