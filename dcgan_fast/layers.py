"""The layers of the networks without labels, by number, for whoever looks inside them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .data import normalize
from .errors import UserError
from .networks import Discriminator, Generator, integer
from .nn import population_statistics

__all__ = ["MapLayer", "check_images", "choose_layer", "map_layers", "with_population_statistics"]

_BATCHES, _BATCH_SIZE = 50, 128  # of images whose statistics stand for a data set's


@dataclass(frozen=True)
class MapLayer:
    """A layer with its activation.

    number: from 1, the first that the input meets
    name:   of its weights in the state dict, ``main.3``
    end:    how many children of ``main`` run up to and with it
    shape:  of an image's activations, (channels, height, width)
    """

    number: int
    name: str
    end: int
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.number}: {'x'.join(map(str, self.shape))}"


def map_layers(network: Generator | Discriminator) -> list[MapLayer]:
    """The layers whose activations are maps, in the order in which they run.

    Of a generator the last is the one before the image; the first is its projection.
    """
    return list(_walk(network))


def _walk(network: Generator | Discriminator) -> Iterator[MapLayer]:
    images = isinstance(network, Discriminator)
    channels, size = (network.nc, network.image_size) if images else (0, 1)
    number, name, active = 0, "", False
    for index, child in enumerate(network.main):
        if isinstance(child, (nn.Conv2d, nn.ConvTranspose2d)):
            kernel, stride, pad = child.kernel_size[0], child.stride[0], int(child.padding[0])
            if isinstance(child, nn.ConvTranspose2d):
                size = (size - 1) * stride - 2 * pad + kernel + child.output_padding[0]
            else:
                size = (size + 2 * pad - kernel) // stride + 1
            channels, name, active = child.out_channels, f"main.{index}", False
        elif isinstance(child, nn.Linear):
            channels, name, active = 0, f"main.{index}", False
        elif isinstance(child, nn.Unflatten):
            channels, size = child.unflattened_size[0], child.unflattened_size[1]
        elif isinstance(child, (nn.ReLU, nn.LeakyReLU)):
            active = True
        if active and channels:
            number, active = number + 1, False
            yield MapLayer(number, name, index + 1, (channels, size, size))


def choose_layer(owner: str, network: Generator | Discriminator, layer: int) -> MapLayer:
    """The layer of that number, from 1, or from the end: -1 is the last.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    found = map_layers(network)
    try:
        number = integer(owner, "layer", layer, -len(found), len(found))
        return found[number - 1 if number > 0 else len(found) + number]
    except (UserError, IndexError):  # the latter of 0
        known = ", ".join(map(str, found))
        raise UserError(
            f"{owner}(): 'layer' must be 1 to {len(found)}, or -1 to {-len(found)} from the end, of the "
            f"{type(network).__name__.lower()} ({known}); got {layer!r}"
        ) from None


def check_images(owner: str, network: Generator | Discriminator, images: np.ndarray) -> None:
    """``images`` are uint8, at least one, of the size and the channels of ``network``'s; or :class:`UserError`."""
    shape = (network.nc, network.image_size, network.image_size)
    if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
        raise UserError(
            f"{owner}(): 'images' must be uint8 (N, {', '.join(map(str, shape))}) with N >= 1, as the "
            f"{type(network).__name__.lower()}'s are; got {images.dtype} {images.shape}"
        )


def with_population_statistics(discriminator: Discriminator, images: np.ndarray) -> Discriminator:
    """A copy whose batch norms use the statistics of ``images``, uint8 (N, C, S, S).

    They are averages over at most 50 batches of 128 spread over the images, as the paper's SVHN code takes them over
    its training set. For a discriminator without running statistics of its own: a new one, or one whose code kept none.
    """
    twin = copy.deepcopy(discriminator)
    device = next(twin.parameters()).device
    rows = np.random.default_rng(0).permutation(len(images))[: _BATCHES * _BATCH_SIZE]
    parts = np.array_split(rows, max(1, len(rows) // _BATCH_SIZE))

    def batches() -> Iterator[Tensor]:
        for part in parts:
            yield normalize(images[np.sort(part)], device=device)

    with torch.no_grad():
        population_statistics(twin, batches())
    return twin.eval()
