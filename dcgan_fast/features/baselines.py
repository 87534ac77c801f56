"""What a discriminator's features are held against: pixels, K-means, a random network, a supervised one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from tqdm import tqdm

from ..data import normalize
from ..models import Discriminator, weights_init

__all__ = ["KMeansFeatures", "pixels", "random_discriminator", "supervised_accuracy"]

_PART = 64  # images encoded at once
_SIDE = 6  # of a patch, as Coates and Ng's
_CENTRES, _PATCHES = 200, 50_000
_EPOCHS, _BATCH, _RATE = 10, 100, 1e-3


def pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 images ``(N, C, S, S)`` as float32 rows ``(N, C * S * S)`` from -1 to 1."""
    return images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1


class KMeansFeatures:
    """Single-layer K-means features: whitened 6x6 patches, "triangle" distances to 200 centres, summed over quadrants.

    Source: Coates, Lee, Ng 2011.
    """

    def fit(self, images: NDArray[np.uint8], seed: int = 0) -> KMeansFeatures:
        """Learns whitening, centres and scaling from uint8 images ``(N, C, S, S)``, S at least 6."""
        random = np.random.default_rng(seed)
        each = max(1, _PATCHES // len(images))
        drawn = []
        for start in range(0, len(images), _PART):
            patches = self._patches(images[start : start + _PART])
            chosen = random.integers(0, patches.shape[1], (len(patches), each))
            drawn.append(np.take_along_axis(patches, chosen[..., None], 1))
        table = np.concatenate(drawn).reshape(-1, drawn[0].shape[-1])
        self.mean_ = table.mean(0)
        values, vectors = np.linalg.eigh(np.cov(table - self.mean_, rowvar=False))
        self.whiten_ = (vectors / np.sqrt(values.clip(0) + 0.1) @ vectors.T).astype(np.float32)
        white = (table - self.mean_) @ self.whiten_
        centres = min(_CENTRES, len(white))
        found = MiniBatchKMeans(centres, random_state=seed, n_init=1, batch_size=4096).fit(white)
        self.centres_ = found.cluster_centers_.astype(np.float32)
        sample = self._sums(images[: 20 * _PART])
        self.shift_, self.scale_ = sample.mean(0), sample.std(0) + 1e-3
        return self

    def transform(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 ``(N, 4 * centres)``, each of about mean 0 and deviation 1."""
        found: NDArray[np.float32] = (self._sums(images) - self.shift_) / self.scale_
        return found

    @staticmethod
    def _patches(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """All patches of each image, of mean 0 and deviation about 1: (N, patches, C * 36)."""
        found = nn.functional.unfold(torch.from_numpy(np.array(images)).float(), _SIDE)
        found = found - found.mean(1, keepdim=True)
        return (found / (found.var(1, keepdim=True) + 10).sqrt()).mT.numpy()

    def _sums(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        places = images.shape[-1] - _SIDE + 1
        half = (places + 1) // 2
        squares = (self.centres_**2).sum(1)
        parts = []
        for start in range(0, len(images), _PART):
            x = (self._patches(images[start : start + _PART]) - self.mean_) @ self.whiten_
            square = (x**2).sum(-1, keepdims=True) + squares - 2 * x @ self.centres_.T
            distance = np.sqrt(square.clip(0))
            near = (distance.mean(-1, keepdims=True) - distance).clip(0)
            near = near.reshape(len(near), places, places, -1)
            rows, columns = (
                (slice(None, half), slice(half, None)),
                (slice(None, half), slice(half, None)),
            )
            parts.append(
                np.concatenate([near[:, r, c].sum((1, 2)) for r in rows for c in columns], 1)
            )
        return np.concatenate(parts).astype(np.float32)


def random_discriminator(like: Discriminator, seed: int = 0) -> Discriminator:
    """One of the same settings with weights as training begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = Discriminator(**like.config)
        weights_init(found)
    return found


def supervised_accuracy(
    like: Discriminator,
    training: tuple[NDArray[np.uint8], NDArray[Any]],
    validation: tuple[NDArray[np.uint8], NDArray[Any]],
    test: tuple[NDArray[np.uint8], NDArray[Any]],
    *,
    seed: int = 0,
    epochs: int = _EPOCHS,
    progress: bool = False,
) -> NDArray[np.bool_]:
    """Which test images a CNN of a discriminator's shape gets right, trained on labelled images alone.

    Its convolutions, batch norm and LeakyReLU, one linear layer, Adam; the epoch that is best on ``validation`` counts.
    Labels are classes from 0.
    """
    images, labels = training
    classes = int(max(part[1].max() for part in (training, validation, test))) + 1
    network = random_discriminator(like, seed)
    main = list(network.main)
    last = max(i for i, child in enumerate(main) if isinstance(child, nn.LeakyReLU))
    trunk = network.main[: last + 1]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        width = trunk.eval()(_floats(images[:1])).numel()
    head = nn.Linear(width, classes)
    nn.init.normal_(head.weight, 0, 0.02, generator=generator)
    nn.init.zeros_(head.bias)
    net = nn.Sequential(trunk, nn.Flatten(), head)
    optimizer = torch.optim.Adam(net.parameters(), _RATE)
    best, right = -1.0, np.zeros(len(test[0]), bool)
    targets = torch.from_numpy(labels)
    for _ in tqdm(range(epochs), desc="supervised CNN", unit=" epochs", disable=not progress):
        net.train()
        for batch in torch.randperm(len(images), generator=generator).split(_BATCH):
            if len(batch) == 1 and len(images) > 1:
                continue  # batch norm of one image may be of one number
            loss = nn.functional.cross_entropy(net(_floats(images[batch.numpy()])), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        score = _right(net, *validation).mean()
        if score > best:
            best, right = score, _right(net, *test)
    return right


@torch.inference_mode()
def _right(
    net: Callable[[Tensor], Tensor], images: NDArray[np.uint8], labels: NDArray[Any]
) -> NDArray[np.bool_]:
    parts = [
        net(_floats(images[start : start + _BATCH])).argmax(1).numpy()
        for start in range(0, len(images), _BATCH)
    ]
    found: NDArray[np.bool_] = np.concatenate(parts) == labels
    return found


def _floats(images: NDArray[np.uint8]) -> Tensor:
    return normalize(images, memory_format=torch.channels_last)
