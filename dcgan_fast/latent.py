"""The latent space of a generator: walks through it, arithmetic in it, directions of it.

The DCGAN paper's figures 4, 7 and 8. A sample is named by its seed, as for ``dcgan-fast sample``: :func:`latents_of`
gives the latent vectors of seeds, :func:`best_seeds` finds the seeds whose images score highest by any callable.

Batch norm uses running statistics unless asked otherwise (``bn``, as for :func:`dcgan_fast.models.generate`): the
images of a walk resemble each other, so the statistics of their own batch would be none of the training's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import models
from .errors import UserError
from .networks import check_shape, choice, integer

__all__ = [
    "ATTRIBUTES",
    "PATHS",
    "Arithmetic",
    "Score",
    "Smoothness",
    "Turn",
    "Walk",
    "arithmetic",
    "best_seeds",
    "interpolate",
    "latents_of",
    "smoothness",
    "turn",
    "walk",
]

PATHS = ("spherical", "straight")

Score = Callable[[Tensor], Tensor]
"""float32 images (N, C, S, S) in [0, 1] on the CPU to a number each, (N,): a classifier's output, say."""


def latents_of(generator: models.LatentNetwork, seeds: Sequence[int]) -> Tensor:
    """The latent vectors (len(seeds), nz) of samples by their seeds, each from a random stream of its own.

    On the generator's device and in its dtype; a seed's vector does not depend on the others.
    """
    rows = [
        generator.sample_latent(1, generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ]
    return torch.cat(rows) if rows else generator.sample_latent(0)


# ------------------------------------------------------------------------------ choosing samples


def _brightness(images: Tensor) -> Tensor:
    return images[:, :3].mean((1, 2, 3))


def _contrast(images: Tensor) -> Tensor:
    return images[:, :3].mean(1).flatten(1).std(1)


def _colour(channel: int) -> Score:
    """How much more of one colour there is than of the two others."""

    def score(images: Tensor) -> Tensor:
        if images.shape[1] < 3:
            raise UserError(f"images of {images.shape[1]} channels have no colours to score")
        means = images[:, :3].mean((2, 3))
        return means[:, channel] - (means.sum(1) - means[:, channel]) / 2

    return score


ATTRIBUTES: Mapping[str, Score] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "red": _colour(0),
    "green": _colour(1),
    "blue": _colour(2),
}
"""Scores that need no classifier; those of colours want images of 3 channels or more."""


def score_images(score: Score, images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """float32 (N,) on the CPU: ``score`` of images (N, C, S, S) in ``value_range``.

    Raises:
        UserError: it gives anything but a finite number for each image.
    """
    low, high = value_range
    found = score((images.detach().float().cpu() - low) / (high - low))
    values = torch.as_tensor(found).detach().float().cpu()
    if values.shape != (len(images),):
        raise UserError(
            f"a score must be a number for each image, ({len(images)},), got {tuple(values.shape)}"
        )
    if not values.isfinite().all():
        raise UserError("a score must be a finite number for each image, got NaN or infinity")
    return values


def best_seeds(
    generator: models.LatentNetwork,
    score: Score,
    count: int = 3,
    *,
    among: int = 512,
    lowest: bool = False,
    label: int | None = None,
    bn: str = "running",
) -> list[int]:
    """Of the seeds from 0 to ``among - 1`` those whose images score highest (or lowest), best first.

    Args:
        generator: a trained one.
        score: images in [0, 1] to a number each: :data:`Score`; :data:`ATTRIBUTES` has some.
        count: how many, at most ``among``.
        among: how many are drawn.
        lowest: whether low scores are sought.
        label: the class, of a generator that has classes; None is 0 there.
        bn: as for :func:`dcgan_fast.models.generate`.

    Raises:
        UserError: a setting is out of range, or ``score`` gives anything but a finite number for each image.
    """
    among = integer("best_seeds", "among", among, 1)
    count = integer("best_seeds", "count", count, 1, among)
    images = _draw("best_seeds", generator, latents_of(generator, range(among)), label, bn)
    scores = score_images(score, images, generator.output_range)
    order = torch.sort(scores, descending=not lowest, stable=True).indices
    return order[:count].tolist()


def _draw(
    owner: str, generator: models.LatentNetwork, latents: Tensor, label: int | None, bn: str
) -> Tensor:
    """float32 images on the CPU, all in one call: with ``bn`` batch they see each other. They are of the latent vectors
    alone: units left out, others for each, would change more than a step of a walk does.
    """
    labels = None
    if generator.classes:
        label = integer(owner, "label", label or 0, 0, generator.classes - 1)
        labels = torch.full((len(latents),), label)
    elif label is not None:
        raise UserError(f"{owner}(): 'label' is for a generator with classes, this one has none")
    images = models.generate(generator, latents, labels, bn=bn, dropout=False).float().cpu()
    if not images.isfinite().all():
        raise UserError(f"{owner}(): the generator's images hold NaN: its training has diverged")
    return images


def _check_latents(
    owner: str, name: str, latents: Tensor, generator: models.LatentNetwork, least: int
) -> Tensor:
    """(N, nz) in the generator's dtype, from (N, nz) or (N, nz, 1, 1), of at least ``least`` rows."""
    check_shape(f"{owner}()", name, latents, (generator.nz,), (generator.nz, 1, 1))
    if len(latents) < least:
        raise UserError(
            f"{owner}(): {name!r} must hold at least {least} latent vectors, got {len(latents)}"
        )
    parameter = next(generator.parameters())
    return latents.detach().flatten(1).to(parameter.device, parameter.dtype)


# ----------------------------------------------------------------------------------------- walks


def interpolate(a: Tensor, b: Tensor, positions: Tensor, path: str = "spherical") -> Tensor:
    """Latent vectors between ``a`` and ``b``: (len(positions), nz).

    ``straight``: ``(1 - t) a + t b``. ``spherical``: ``(sin((1 - t) w) a + sin(t w) b) / sin w`` with w the angle
    between them (Shoemake's slerp; White 2016, arXiv 1609.04468): in between, vectors are as long as normal ones are,
    where the straight path comes too near the origin. Where a and b are parallel, opposite or zero it is straight.

    Args:
        a, b: (nz,), one floating-point dtype.
        positions: (n,), 0 is ``a`` and 1 is ``b``; values beyond go on along the same path.
        path: ``spherical`` or ``straight``.

    Raises:
        UserError: shapes differ, or an unknown path.
    """
    choice("interpolate", "path", path, PATHS)
    if a.dim() != 1 or a.shape != b.shape:
        raise UserError(
            f"interpolate(): 'a' and 'b' must be (nz,), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    t = positions.to(a.device, torch.float64)[:, None]
    start, end = a.double(), b.double()
    if path == "spherical":
        product = start.norm() * end.norm()
        cosine = (start @ end / product).clamp(-1, 1) if product > 0 else product + 1
        angle = cosine.arccos()
        if angle.sin() > 1e-6:
            weights = (((1 - t) * angle).sin(), (t * angle).sin())
            return ((weights[0] * start + weights[1] * end) / angle.sin()).to(a.dtype)
    return ((1 - t) * start + t * end).to(a.dtype)


@dataclass(frozen=True)
class Smoothness:
    """How evenly a walk's images change; differences are root mean squares over pixels, in units of 0 to 255.

    mean_step, largest_step: from an image to the next
    between_ends:            between the images of one seed and the next, which have nothing in common
    jump:                    largest_step / between_ends: near 1 the generator leaps from one image to another
                             somewhere, as one that memorised would; with n even steps it is 1 / n
    """

    mean_step: float
    largest_step: float
    between_ends: float

    @property
    def jump(self) -> float:
        return self.largest_step / self.between_ends if self.between_ends > 0 else 0.0


def smoothness(
    images: Tensor, steps: int, value_range: tuple[float, float] = (-1.0, 1.0)
) -> Smoothness:
    """How evenly the images of a walk change.

    Args:
        images: (n, C, S, S), where each ``steps`` steps lead from one seed to the next: ``n = k * steps + 1``, k >= 1.
        steps: at least 1.
        value_range: of the images.

    Raises:
        UserError: the number of images is none of these.
    """
    if images.dim() != 4 or steps < 1 or len(images) < 2 or (len(images) - 1) % steps:
        raise UserError(
            f"smoothness(): 'images' must be (k * {steps} + 1, C, S, S), got {tuple(images.shape)}"
        )
    pixels = images.double().flatten(1) * (255 / (value_range[1] - value_range[0]))
    each = (pixels[1:] - pixels[:-1]).square().mean(1).sqrt()
    seeds = pixels[::steps]
    between = (seeds[1:] - seeds[:-1]).square().mean(1).sqrt()
    return Smoothness(float(each.mean()), float(each.max()), float(between.mean()))


@dataclass(frozen=True)
class Walk:
    """What :func:`walk` made.

    latents:     (frames, nz), images: float32 (frames, C, S, S) on the CPU, in ``value_range``
    steps:       from one seed to the next
    path:        spherical or straight
    """

    latents: Tensor
    images: Tensor
    steps: int
    path: str
    value_range: tuple[float, float]

    @property
    def smoothness(self) -> Smoothness:
        return smoothness(self.images, self.steps, self.value_range)

    @property
    def rows(self) -> Tensor:
        """(segments * (steps + 1), C, S, S): a row from each seed to the next, both included."""
        starts = range(0, len(self.images) - 1, self.steps)
        return torch.cat([self.images[start : start + self.steps + 1] for start in starts])


def walk(
    generator: models.LatentNetwork,
    latents: Tensor,
    *,
    steps: int = 9,
    path: str | None = None,
    closed: bool = False,
    label: int | None = None,
    bn: str = "running",
) -> Walk:
    """Walk from each latent vector to the next (the DCGAN paper's figure 4).

    Args:
        generator: a trained one.
        latents: (K, nz) or (K, nz, 1, 1) with K >= 2: :func:`latents_of` seeds.
        steps: from one to the next, at least 1.
        path: ``spherical`` or ``straight``, as of :func:`interpolate`; None: spherical where the generator's latent
            vectors are normal, straight where they are uniform (whose length is no sphere's).
        closed: whether to return to the first.
        label: the class, of a generator that has classes; None is 0 there.
        bn: as for :func:`dcgan_fast.models.generate`.

    Returns:
        K - 1 segments (K where closed) of ``steps`` steps, and one image more.

    Raises:
        UserError: a shape or setting is wrong, or the images are no numbers.
    """
    points = _check_latents("walk", "latents", latents, generator, 2)
    steps = integer("walk", "steps", steps, 1)
    if path is None:
        path = "spherical" if generator.latent_distribution == "normal" else "straight"
    choice("walk", "path", path, PATHS)
    if closed:
        points = torch.cat([points, points[:1]])
    positions = torch.arange(steps, dtype=torch.float64) / steps
    parts = [
        interpolate(a, b, positions, path) for a, b in zip(points[:-1], points[1:], strict=True)
    ]
    way = torch.cat([*parts, points[-1:]])
    images = _draw("walk", generator, way, label, bn)
    return Walk(way.cpu(), images, steps, path, generator.output_range)


# ------------------------------------------------------------------------------------ arithmetic


@dataclass(frozen=True)
class Arithmetic:
    """What :func:`arithmetic` made; images are float32 on the CPU, in ``value_range``.

    examples: of each concept, (n, C, S, S)
    means:    (concepts, C, S, S), the images of the concepts' mean latent vectors
    latent:   (nz,), the signed sum of those means
    results:  (9, C, S, S), a 3x3 grid: the image of ``latent`` in the middle, noise added to it around
    pixels:   (C, S, S), the control: the same sum of the examples' mean pixels, clamped to ``value_range``
    """

    examples: tuple[Tensor, ...]
    means: Tensor
    latent: Tensor
    results: Tensor
    pixels: Tensor
    value_range: tuple[float, float]


def arithmetic(
    generator: models.LatentNetwork,
    concepts: Sequence[Tensor],
    signs: Sequence[float] = (1, -1, 1),
    *,
    noise: float = 0.25,
    seed: int = 0,
    label: int | None = None,
    bn: str = "running",
) -> Arithmetic:
    """Add and subtract concepts, each the mean of some latent vectors (the DCGAN paper's figure 7).

    With one example a concept the sum is unstable; the paper takes three.

    Args:
        generator: a trained one.
        concepts: of each, (n, nz) or (n, nz, 1, 1), n >= 1: "smiling woman", "neutral woman", "neutral man".
        signs: by which the means are multiplied: the first minus the second plus the third.
        noise: the 8 neighbours of the result have uniform noise of up to this added to each number.
        seed: of that noise.
        label: the class, of a generator that has classes; None is 0 there.
        bn: as for :func:`dcgan_fast.models.generate`.

    Raises:
        UserError: a shape or setting is wrong, or the images are no numbers.
    """
    if len(concepts) < 1 or len(concepts) != len(signs):
        raise UserError(
            f"arithmetic(): 'signs' must be one for each of the concepts, at least one, got "
            f"{len(signs)} for {len(concepts)}"
        )
    if not (0 <= noise < float("inf")):
        raise UserError(f"arithmetic(): 'noise' must be a number of at least 0, got {noise!r}")
    groups = [_check_latents("arithmetic", "concepts", each, generator, 1) for each in concepts]
    means = torch.stack([group.double().mean(0) for group in groups])
    factors = torch.tensor(list(signs), dtype=torch.float64, device=means.device)
    latent = (factors @ means).to(groups[0].dtype)
    around = torch.rand(9, generator.nz, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    around[4] = 0
    grid = latent + noise * around.to(latent)
    images = _draw("arithmetic", generator, torch.cat([*groups, means.to(latent), grid]), label, bn)
    *examples, mean_images, results = images.split([*map(len, groups), len(groups), 9])
    pixels = sum(sign * each.mean(0) for sign, each in zip(signs, examples, strict=True))
    assert isinstance(pixels, Tensor)
    low, high = generator.output_range
    return Arithmetic(
        tuple(examples),
        mean_images,
        latent.cpu(),
        results,
        pixels.clamp(low, high),
        generator.output_range,
    )


# ------------------------------------------------------------------------------------------ turn


@dataclass(frozen=True)
class Turn:
    """What :func:`turn` made; images are float32 on the CPU, in ``value_range``.

    images:    (subjects, steps, C, S, S), from the side of ``source`` to that of ``target``
    direction: (nz,), from the mean of ``source`` to that of ``target``
    positions: (steps,), how much of it was added
    """

    images: Tensor
    direction: Tensor
    positions: Tensor
    value_range: tuple[float, float]

    def scores(self, score: Score) -> Tensor:
        """float32 (subjects, steps): a :data:`Score` of each image."""
        subjects, steps = self.images.shape[:2]
        return score_images(score, self.images.flatten(0, 1), self.value_range).view(
            subjects, steps
        )


def turn(
    generator: models.LatentNetwork,
    source: Tensor,
    target: Tensor,
    subjects: Tensor,
    *,
    steps: int = 9,
    reach: float = 1.0,
    label: int | None = None,
    bn: str = "running",
) -> Turn:
    """Move samples along a direction found from two sets of samples (the DCGAN paper's figure 8).

    There four faces that look left and four that look right are averaged; adding multiples of the difference turned
    other faces.

    Args:
        generator: a trained one.
        source, target: (n, nz) or (n, nz, 1, 1), n >= 1 each: the samples of either kind.
        subjects: likewise: the samples that are moved.
        steps: images of each, at least 2.
        reach: from ``-reach`` to ``reach`` times the direction is added.
        label: the class, of a generator that has classes; None is 0 there.
        bn: as for :func:`dcgan_fast.models.generate`.

    Raises:
        UserError: a shape or setting is wrong, or the images are no numbers.
    """
    ends = [
        _check_latents("turn", name, latents, generator, 1).double().mean(0)
        for name, latents in (("source", source), ("target", target))
    ]
    start = _check_latents("turn", "subjects", subjects, generator, 1)
    steps = integer("turn", "steps", steps, 2)
    if not (0 < reach < float("inf")):
        raise UserError(f"turn(): 'reach' must be a number above 0, got {reach!r}")
    direction = ends[1] - ends[0]
    positions = torch.from_numpy(np.linspace(-reach, reach, steps))
    moved = start.double()[:, None] + positions.to(direction)[:, None] * direction
    images = _draw("turn", generator, moved.flatten(0, 1).to(start), label, bn)
    return Turn(
        images.unflatten(0, (len(start), steps)),
        direction.to(start).cpu(),
        positions,
        generator.output_range,
    )
