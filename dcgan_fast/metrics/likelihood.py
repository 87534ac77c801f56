"""The log-likelihood of a data set under a trained generator, as the adversarial nets' papers report it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import models
from ..data import Dataset
from ..errors import UserError
from .parzen import SIGMAS, Estimate, estimate, search_sigma

__all__ = ["Likelihood", "draw_samples", "generator_log_likelihood", "held_out", "pixels"]

SAMPLES = 10_000
"""Drawn from the generator; the same number of images, at most a sixth of the training set, is held out for sigma."""

_BATCH = 1000


@dataclass(frozen=True)
class Likelihood:
    """A figure and what it was made from.

    estimate: the mean log-likelihood of the images and its standard error, in nats, and sigma
    samples:  drawn from the generator
    images:   whose likelihood it is
    searched: the mean log-likelihood of the validation images under each sigma tried; empty where it was given
    """

    estimate: Estimate
    samples: int
    images: int
    searched: dict[float, float]


def pixels(images: np.ndarray) -> Tensor:
    """uint8 images (N, C, S, S) as float32 rows (N, C * S * S) in [0, 1], the units of published figures."""
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32)).div_(255)


def held_out(dataset: Dataset) -> int:
    """How many of a training set's last images choose sigma: of MNIST's 60,000 the papers' 10,000."""
    return min(SAMPLES, max(1, len(dataset) // 6))


def generator_log_likelihood(
    generator: models.LatentNetwork,
    images: Tensor,
    *,
    validation: Tensor | None = None,
    sigma: float | None = None,
    samples: int = SAMPLES,
    bn: str = "running",
    seed: int = 0,
    dropout: bool | None = None,
    progress: bool = False,
) -> Likelihood:
    """The Parzen estimate: a Gaussian window on each of ``samples`` images of ``generator``, in [0, 1].

    Args:
        generator: a trained one; of one with labels as many images of each class are drawn.
        images: float32 ``(N, d)`` rows in [0, 1] (:func:`pixels`), at least one: whose likelihood is asked for.
        validation: as ``images``: chooses sigma among :data:`~dcgan_fast.metrics.SIGMAS` where ``sigma`` is None.
        sigma: the windows' width, in units of [0, 1].
        samples: how many are drawn.
        bn: batch norm's statistics, as for :func:`dcgan_fast.models.generate`.
        seed: of the latent vectors.
        dropout: whether units are left out of samples, as for that function.
        progress: whether to show a bar.

    Raises:
        UserError: neither ``sigma`` nor ``validation`` is given, or the generator's images are no numbers.
        ValueError: a shape or value is wrong.
    """
    if sigma is None and validation is None:
        raise UserError("generator_log_likelihood(): give 'sigma', or 'validation' to choose it by")
    drawn = draw_samples(generator, samples, bn=bn, seed=seed, dropout=dropout, progress=progress)
    searched: dict[float, float] = {}
    if sigma is None:
        assert validation is not None
        sigma, means = search_sigma(drawn, validation)
        searched = dict(zip(SIGMAS, means.tolist(), strict=True))
    return Likelihood(estimate(drawn, images, sigma), samples, len(images), searched)


def draw_samples(
    generator: models.LatentNetwork,
    count: int,
    *,
    bn: str = "running",
    seed: int = 0,
    dropout: bool | None = None,
    progress: bool = False,
) -> Tensor:
    """``count`` images of ``generator`` as float32 rows in [0, 1] on the CPU; with labels, as many of each class.

    Raises:
        UserError: they are no numbers.
    """
    latent = generator.sample_latent(count, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count).mul_(generator.classes).div_(count, rounding_mode="floor")
    low, high = generator.output_range
    rows = []
    with tqdm(total=count, desc="samples", unit="image", disable=not progress) as bar:
        for part, of_part in zip(latent.split(_BATCH), labels.split(_BATCH), strict=True):
            known = of_part.to(part.device) if generator.classes else None
            made = models.generate(generator, part, known, bn=bn, dropout=dropout)
            made = made.flatten(1).float().cpu()
            rows.append(made.sub_(low).div_(high - low))
            bar.update(len(part))
    drawn = torch.cat(rows)
    if not drawn.isfinite().all():
        raise UserError("the generator's images hold NaN: its training has diverged")
    return drawn
