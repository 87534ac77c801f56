"""What a discriminator's features look for: guided backpropagation of their largest responses.

The DCGAN paper's figure 5, by the method of Springenberg, Dosovitskiy, Brox, Riedmiller 2014 (arXiv 1412.6806): the
gradient of one activation with respect to the image, from which whatever would lower the activation is left out at
every layer. Their networks have ReLUs, through which a gradient g passes where both the input x and g are above 0. A
DCGAN's discriminator has LeakyReLUs, on which neither paper says a word; the two rules here are

=========  =========================================  =============================================================
``relu``   ``max(g, 0)`` where x > 0, else 0          theirs: as if the leak were not there (the default)
``leaky``  ``max(g, 0)`` where x > 0, else 0.2 of it  the activation's own slope; negative maps speak too, so pictures
                                                      are fuller and less sharp
=========  =========================================  =============================================================

The forward pass is the network's own under both. A discriminator with classes is told a label with each image; the
gradient is that of the image alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .data import normalize
from .errors import UserError
from .labels import takes_labels
from .layers import (
    DISCRIMINATORS,
    AnyDiscriminator,
    D,
    MapLayer,
    check_image_labels,
    check_images,
    choose_layer,
    run_layers,
)
from .models import weights_init
from .networks import choice, integer

__all__ = ["RULES", "TopResponses", "guided_backprop", "guided_gradient", "random_twin"]

RULES = ("relu", "leaky")

_BATCH = 256


@dataclass(frozen=True)
class TopResponses:
    """What :func:`guided_backprop` found, of each feature the images that it responds to most, largest first.

    layer:     whose maps the features are
    features:  their numbers, from 0
    rows:      int64 (features, top), which images
    responses: float32 (features, top), the largest value of the feature's map on each
    places:    int64 (features, top, 2), where on the map that is, row and column
    images:    uint8 (features, top, C, S, S)
    gradients: float32 (features, top, C, S, S): guided backpropagation from that place to the image
    mean_response: float32 (features,), of the largest values on all images
    """

    layer: MapLayer
    features: tuple[int, ...]
    rows: np.ndarray
    responses: np.ndarray
    places: np.ndarray
    images: np.ndarray
    gradients: Tensor
    mean_response: np.ndarray

    def likeness(self) -> np.ndarray:
        """float64 (features,): the mean correlation of the pixels of a feature's images with each other's.

        Near 1 they are nearly the same picture; 0 also for a feature with one image.
        """
        count, top = self.rows.shape
        if top < 2:
            return np.zeros(count)
        found = []
        for images in self.images.reshape(count, top, -1).astype(np.float64):
            centred = images - images.mean(1, keepdims=True)
            lengths = np.linalg.norm(centred, axis=1, keepdims=True)
            unit = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
            products = unit @ unit.T
            found.append((products.sum() - np.trace(products)) / (top * (top - 1)))
        return np.array(found)

    def purity(self, labels: np.ndarray) -> np.ndarray:
        """float64 (features,): of each feature's images the share that has their commonest label."""
        return np.array([np.bincount(labels[rows]).max() / len(rows) for rows in self.rows])


class _GuidedLeakyReLU(torch.autograd.Function):
    """LeakyReLU forward, one of :data:`RULES` backward."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, slope: float, rule: str) -> Tensor:
        ctx.save_for_backward(input)
        ctx.slope = slope if rule == "leaky" else 0.0
        return nn.functional.leaky_relu(input, slope)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (input,) = ctx.saved_tensors
        passed = gradients[0].clamp_min(0)
        return torch.where(input > 0, passed, ctx.slope * passed), None, None


def guided_gradient(
    discriminator: AnyDiscriminator,
    images: Tensor,
    layer: MapLayer,
    features: Tensor,
    places: Tensor,
    *,
    labels: Tensor | None = None,
    rule: str = "relu",
) -> Tensor:
    """Guided backpropagation from one activation of each image to that image.

    Args:
        discriminator: batch norm uses its running statistics, whatever mode it is in.
        images: float (N, C, S, S), as the discriminator takes them.
        layer: of :func:`dcgan_fast.layers.map_layers`.
        features: int64 (N,), a map of the layer for each image.
        places: int64 (N, 2), row and column on it.
        labels: as the discriminator takes them; None for one without classes.
        rule: one of :data:`RULES`, described at the top of this module.

    Returns:
        Like ``images``.

    Raises:
        UserError: an unknown rule.
    """
    choice("guided_gradient", "rule", rule, RULES)
    was_training = discriminator.training
    discriminator.eval()
    try:
        input = images.detach().clone().requires_grad_()
        x = input
        with torch.enable_grad():
            for child in list(discriminator.main)[: layer.end]:
                if isinstance(child, nn.LeakyReLU):
                    x = _GuidedLeakyReLU.apply(x, child.negative_slope, rule)
                elif takes_labels(child):
                    x = child(x, labels)
                else:
                    x = child(x)
            chosen = x[torch.arange(len(x), device=x.device), features, places[:, 0], places[:, 1]]
            (gradient,) = torch.autograd.grad(chosen.sum(), input)
    finally:
        discriminator.train(was_training)
    return gradient


def guided_backprop(
    discriminator: AnyDiscriminator,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    layer: int = -1,
    features: int | Sequence[int] = 6,
    top: int = 8,
    rule: str = "relu",
    progress: bool = False,
) -> TopResponses:
    """Find the images that features respond to most, and what in them they respond to.

    Args:
        discriminator: batch norm uses its running statistics
            (:func:`dcgan_fast.layers.with_population_statistics` makes them for one that has none).
        images: uint8 (N, C, S, S), as the discriminator's: ``Dataset.images``. They are read in one pass.
        labels: int64 (N,), what a discriminator with classes is told of each; None for one without.
        value_range: of the images that the discriminator was trained on: the ``output_range`` of its generator.
        layer: of the discriminator's convolutions, from 1; -1 is the last, the paper's.
        features: the first so many of its maps, the paper's six; or their numbers from 0.
        top: images of each, at most N.
        rule: one of :data:`RULES`, described at the top of this module.
        progress: whether to show a bar.

    Raises:
        UserError: there is no such layer, map or rule, or images or labels are not the discriminator's.
    """
    owner = "guided_backprop"
    if not isinstance(discriminator, DISCRIMINATORS):
        raise UserError(
            f"{owner}(): 'discriminator' must be a Discriminator or a ConditionalDiscriminator, got a "
            f"{type(discriminator).__name__}"
        )
    check_images(owner, discriminator, images)
    known = check_image_labels(owner, discriminator, labels, len(images))
    chosen = choose_layer(owner, discriminator, layer)
    maps = chosen.shape[0]
    if isinstance(features, Sequence):
        numbers = [integer(owner, "features", each, 0, maps - 1) for each in features]
    else:
        numbers = list(range(integer(owner, "features", features, 1, maps)))
    if not numbers:
        raise UserError(f"{owner}(): 'features' must name at least one map, got none")
    top = integer(owner, "top", top, 1, len(images))
    choice(owner, "rule", rule, RULES)
    device = next(discriminator.parameters()).device

    def inputs(rows: np.ndarray | slice) -> tuple[Tensor, Tensor | None]:
        its_labels = None if known is None else known[rows].to(device)
        return normalize(images[rows], value_range, device=device), its_labels

    values, rows, places, mean = _scan(
        discriminator, inputs, len(images), chosen, numbers, top, progress
    )
    shown = images[rows.numpy()]
    gradients = []
    for number, its_rows, its_places in zip(numbers, rows.numpy(), places, strict=True):
        its_images, its_labels = inputs(its_rows)
        gradients.append(
            guided_gradient(
                discriminator,
                its_images,
                chosen,
                torch.full((top,), number, device=device),
                its_places.to(device),
                labels=its_labels,
                rule=rule,
            ).cpu()
        )
    return TopResponses(
        chosen,
        tuple(numbers),
        rows.numpy(),
        values.numpy(),
        places.numpy(),
        shown,
        torch.stack(gradients),
        mean.numpy(),
    )


def _scan(
    discriminator: AnyDiscriminator,
    inputs: Callable[[slice], tuple[Tensor, Tensor | None]],
    count: int,
    layer: MapLayer,
    features: list[int],
    top: int,
    progress: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, rows and places (features, top) of the largest responses, and the mean over all images, (features,).

    ``inputs`` gives some of the ``count`` images, as the discriminator takes them, and their labels.
    """
    values = torch.empty(len(features), 0)
    rows = torch.empty(len(features), 0, dtype=torch.int64)
    places = rows.clone()
    total = torch.zeros(len(features), dtype=torch.float64)
    was_training = discriminator.training
    discriminator.eval()
    try:
        with (
            torch.no_grad(),
            tqdm(total=count, desc="responses", unit=" images", disable=not progress) as bar,
        ):
            for start in range(0, count, _BATCH):
                batch, labels = inputs(slice(start, start + _BATCH))
                maps = run_layers(discriminator, batch, labels, end=layer.end)
                found, where = maps[:, features].float().flatten(2).max(2)
                total += found.double().sum(0).cpu()
                values = torch.cat([values, found.T.cpu()], 1)
                places = torch.cat([places, where.T.cpu()], 1)
                of_batch = torch.arange(start, start + len(batch)).expand(len(features), -1)
                rows = torch.cat([rows, of_batch], 1)
                values, order = values.sort(dim=1, descending=True, stable=True)
                values, order = values[:, :top], order[:, :top]
                rows, places = rows.gather(1, order), places.gather(1, order)
                bar.update(len(batch))
    finally:
        discriminator.train(was_training)
    width = layer.shape[2]
    two = torch.stack([places.div(width, rounding_mode="floor"), places % width], 2)
    return values, rows, two, (total / count).float()


def random_twin(discriminator: D, seed: int = 0) -> D:
    """A discriminator of the same settings whose weights are drawn from ``seed``: the control.

    On the same device. Its batch norms have no statistics yet: :func:`dcgan_fast.layers.with_population_statistics`.
    """
    parameter = next(discriminator.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = cast(D, type(discriminator)(**discriminator.config))
        weights_init(twin)
    twin.to(parameter.device, parameter.dtype).eval()
    return twin
