"""The layers of the DCGANs, with and without labels, by number, for whoever looks inside them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .conditional import ConditionalDiscriminator, ConditionalGenerator
from .data import normalize
from .errors import UserError
from .labels import LabelSequential, check_labels
from .networks import Discriminator, Generator, integer
from .nn import population_statistics

__all__ = [
    "DISCRIMINATORS",
    "GENERATORS",
    "AnyDiscriminator",
    "AnyGenerator",
    "MapLayer",
    "check_image_labels",
    "check_images",
    "choose_layer",
    "map_layers",
    "run_layers",
    "with_population_statistics",
]

AnyGenerator = Generator | ConditionalGenerator
AnyDiscriminator = Discriminator | ConditionalDiscriminator
D = TypeVar("D", bound=AnyDiscriminator)
GENERATORS = (Generator, ConditionalGenerator)
DISCRIMINATORS = (Discriminator, ConditionalDiscriminator)

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


def map_layers(network: AnyGenerator | AnyDiscriminator) -> list[MapLayer]:
    """The layers whose activations are maps, in the order in which they run.

    Of a generator the last is the one before the image; the first is its projection.
    """
    return list(_walk(network))


def _walk(network: AnyGenerator | AnyDiscriminator) -> Iterator[MapLayer]:
    images = isinstance(network, DISCRIMINATORS)
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


def run_layers(
    network: AnyGenerator | AnyDiscriminator,
    input: Tensor,
    labels: Tensor | None,
    start: int = 0,
    end: int | None = None,
) -> Tensor:
    """What the children of ``main`` from ``start`` to before ``end`` make of ``input``, with labels if they take them.

    They are fused as in the network itself, but for a run that ``start`` or ``end`` cuts in two.
    """
    part = network.main[start:end]
    return part(input, labels) if isinstance(part, LabelSequential) else part(input)


def _kind(network: AnyGenerator | AnyDiscriminator) -> str:
    return "discriminator" if isinstance(network, DISCRIMINATORS) else "generator"


def choose_layer(owner: str, network: AnyGenerator | AnyDiscriminator, layer: int) -> MapLayer:
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
            f"{_kind(network)} ({known}); got {layer!r}"
        ) from None


def check_images(owner: str, network: AnyGenerator | AnyDiscriminator, images: np.ndarray) -> None:
    """``images`` are uint8, at least one, of the size and the channels of ``network``'s; or :class:`UserError`."""
    shape = (network.nc, network.image_size, network.image_size)
    if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
        raise UserError(
            f"{owner}(): 'images' must be uint8 (N, {', '.join(map(str, shape))}) with N >= 1, as the "
            f"{_kind(network)}'s are; got {images.dtype} {images.shape}"
        )


def check_image_labels(
    owner: str, network: AnyDiscriminator, labels: np.ndarray | None, count: int
) -> Tensor | None:
    """The labels of ``count`` images for ``network``, int64 (count,) on the CPU; None for one that takes none.

    Raises:
        UserError: they are missing, given to a network without classes, or not these.
    """
    if not network.classes:
        if labels is not None:
            raise UserError(
                f"{owner}(): 'labels' are for a discriminator with classes, this one has none"
            )
        return None
    if labels is None:
        raise UserError(
            f"{owner}(): 'labels' must be given, one for each image: the discriminator has "
            f"{network.classes} classes"
        )
    found = torch.as_tensor(labels)
    check_labels(f"{owner}()", found, count, network.classes)
    return found


def with_population_statistics(
    discriminator: D,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> D:
    """A copy whose batch norms use the statistics of ``images``, uint8 (N, C, S, S), as the discriminator's.

    They are averages over at most 50 batches of 128 spread over the images, as the paper's SVHN code takes them over
    its training set. For a discriminator without running statistics of its own: a new one, or one whose code kept none.

    Args:
        discriminator: left as it is.
        images: those of its size, to be brought to ``value_range``, in which it was trained.
        labels: int64 (N,), of a discriminator with classes.

    Raises:
        UserError: labels are missing, or there are none to be given.
    """
    twin = copy.deepcopy(discriminator)
    device = next(twin.parameters()).device
    rows = np.random.default_rng(0).permutation(len(images))[: _BATCHES * _BATCH_SIZE]
    parts = np.array_split(rows, max(1, len(rows) // _BATCH_SIZE))
    known = check_image_labels("with_population_statistics", discriminator, labels, len(images))

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for part in map(np.sort, parts):
            batch = normalize(images[part], value_range, device=device)
            yield (batch,) if known is None else (batch, known[part].to(device))

    with torch.no_grad():
        population_statistics(twin, batches())
    twin.eval()
    return twin
