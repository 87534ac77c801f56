"""The two networks of the CGAN paper's section 4.2: image features and noise to word vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..nn import MaxoutLinear
from .checks import check_rows, whole

__all__ = ["TagDiscriminator", "TagGenerator", "build"]


def _dropout(owner: str, value: float) -> nn.Dropout:
    if not (isinstance(value, float | int) and 0 <= value < 1):
        raise UserError(f"{owner}(): 'dropout' must be a number from 0 to below 1, got {value!r}")
    return nn.Dropout(float(value))


class TagGenerator(nn.Module):
    """Noise and an image's features to a word vector.

    Both go through a ReLU layer of their own; one linear layer makes the vector of the two. It adds
    them: whatever the image, its vectors are one and the same cloud, moved. ``joint_units`` puts a
    ReLU layer over both before the last one, so that the cloud can have another shape for each
    image; the paper's net has none.

    Args:
        feature_width: of an image's features.
        word_width: of a word vector.
        nz: length of the noise, which is Gaussian.
        noise_units, feature_units: of the two ReLU layers.
        joint_units: of a third over both; 0: there is none.
        dropout: share of those units left out in training.

    Attributes:
        config: the settings above; ``TagGenerator(**config)`` rebuilds it.

    Raises:
        UserError: a setting breaks its rule.
    """

    def __init__(
        self,
        feature_width: int = 4096,
        word_width: int = 200,
        nz: int = 100,
        *,
        noise_units: int = 500,
        feature_units: int = 2000,
        joint_units: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.feature_width = whole(owner, "feature_width", feature_width, 1)
        self.word_width = whole(owner, "word_width", word_width, 1)
        self.nz = whole(owner, "nz", nz, 1)
        noise_units = whole(owner, "noise_units", noise_units, 1)
        feature_units = whole(owner, "feature_units", feature_units, 1)
        self.dropout = _dropout(owner, dropout)
        self.noise = nn.Linear(self.nz, noise_units)
        self.features = nn.Linear(self.feature_width, feature_units)
        joint_units = whole(owner, "joint_units", joint_units, 0)
        hidden = noise_units + feature_units
        layers: list[nn.Module] = []
        if joint_units:
            layers = [nn.Linear(hidden, joint_units), nn.ReLU(True), _dropout(owner, dropout)]
            hidden = joint_units
        self.joint = nn.Sequential(*layers, nn.Linear(hidden, self.word_width))
        self.config: dict[str, Any] = {
            "feature_width": self.feature_width,
            "word_width": self.word_width,
            "nz": self.nz,
            "noise_units": noise_units,
            "feature_units": feature_units,
            "joint_units": joint_units,
            "dropout": self.dropout.p,
        }

    def forward(self, latent: Tensor, features: Tensor) -> Tensor:
        """Word vectors (N, word_width) of ``latent`` (N, nz) and ``features`` (N, feature_width).

        Raises:
            UserError: an argument has another shape.
        """
        check_rows("TagGenerator.forward()", "latent", latent, self.nz)
        check_rows("TagGenerator.forward()", "features", features, self.feature_width, len(latent))
        hidden = torch.cat([self.noise(latent), self.features(features)], 1).relu_()
        return self.joint(self.dropout(hidden))

    def sample(
        self, latent: Tensor, features: Tensor, *, dropout: torch.Generator | None = None
    ) -> Tensor:
        """Every noise vector with every image: (N, samples, word_width) of ``latent`` (samples, nz)
        and ``features`` (N, feature_width), whatever the network's mode.

        Without dropout and ``joint_units`` each noise vector and each image is multiplied once, and
        their parts are added: the net has nothing else to say.

        Args:
            latent, features: the rows.
            dropout: leave units out as in training, drawn from this generator on its device: the
                same ones for a noise vector with every image.
        """
        owner = "TagGenerator.sample()"
        check_rows(owner, "latent", latent, self.nz)
        check_rows(owner, "features", features, self.feature_width)
        noise, seen = self.noise(latent).relu(), self.features(features).relu()
        first, *others = (layer for layer in self.joint if isinstance(layer, nn.Linear))
        if dropout is None:
            of_noise, of_features = first.weight.split([noise.shape[1], seen.shape[1]], 1)
            drawn = nn.functional.linear(noise, of_noise)
            vectors = drawn + nn.functional.linear(seen, of_features, first.bias)[:, None]
        else:
            shape = (len(features), len(latent))
            both = torch.cat([noise.expand(*shape, -1), seen[:, None].expand(*shape, -1)], 2)
            vectors = first(both * self._kept(both, dropout))
        for layer in others:
            vectors = vectors.relu()
            if dropout is not None:
                vectors = vectors * self._kept(vectors, dropout)
            vectors = layer(vectors)
        return vectors

    def _kept(self, units: Tensor, generator: torch.Generator) -> Tensor:
        """0 or 1 / (1 - dropout) for each unit of (N, samples, units), alike for all N."""
        kept = torch.rand(units.shape[1:], generator=generator, device=generator.device)
        return (kept >= self.dropout.p).to(units) / (1 - self.dropout.p)

    def sample_latent(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` noise vectors, N(0, 1), (n, nz), on the network's device and in its dtype.

        They are drawn in float32 on the device of ``generator`` (without one: the network's).
        """
        n = whole("sample_latent", "n", n, 0)
        weight = self.noise.weight
        source = weight.device if generator is None else generator.device
        latent = torch.randn(n, self.nz, generator=generator, device=source, dtype=torch.float32)
        return latent.to(weight.device, weight.dtype)


class TagDiscriminator(nn.Module):
    """A word vector and an image's features to one number: does the word go with the image?

    Both go through a ReLU layer of their own, then one maxout layer over the two and one output.

    Args:
        feature_width, word_width: as :class:`TagGenerator`'s.
        word_units, feature_units: of the two ReLU layers.
        joint_units, pieces: of the maxout layer: units, and linear pieces of each.
        dropout: share of the ReLU and the maxout units left out in training.
        output: ``logits``, or ``sigmoid`` to end in one.

    Attributes:
        config: the settings above; ``TagDiscriminator(**config)`` rebuilds it.

    Raises:
        UserError: a setting breaks its rule.
    """

    def __init__(
        self,
        feature_width: int = 4096,
        word_width: int = 200,
        *,
        word_units: int = 500,
        feature_units: int = 1200,
        joint_units: int = 1000,
        pieces: int = 3,
        dropout: float = 0.5,
        output: str = "logits",
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.feature_width = whole(owner, "feature_width", feature_width, 1)
        self.word_width = whole(owner, "word_width", word_width, 1)
        word_units = whole(owner, "word_units", word_units, 1)
        feature_units = whole(owner, "feature_units", feature_units, 1)
        joint_units = whole(owner, "joint_units", joint_units, 1)
        pieces = whole(owner, "pieces", pieces, 1, 256)
        self.dropout = _dropout(owner, dropout)
        if output not in ("logits", "sigmoid"):
            raise UserError(f"{owner}(): 'output' must be logits or sigmoid, got {output!r}")
        self.output = output
        self.words = nn.Linear(self.word_width, word_units)
        self.features = nn.Linear(self.feature_width, feature_units)
        self.joint = MaxoutLinear(word_units + feature_units, joint_units, pieces)
        self.last = nn.Linear(joint_units, 1)
        self.config: dict[str, Any] = {
            "feature_width": self.feature_width,
            "word_width": self.word_width,
            "word_units": word_units,
            "feature_units": feature_units,
            "joint_units": joint_units,
            "pieces": pieces,
            "dropout": self.dropout.p,
            "output": self.output,
        }

    def forward(self, vectors: Tensor, features: Tensor) -> Tensor:
        """One number for each of ``vectors`` (N, word_width) and ``features`` (N, feature_width): (N,).

        Raises:
            UserError: an argument has another shape.
        """
        owner = "TagDiscriminator.forward()"
        check_rows(owner, "vectors", vectors, self.word_width)
        check_rows(owner, "features", features, self.feature_width, len(vectors))
        hidden = torch.cat([self.words(vectors), self.features(features)], 1).relu_()
        joint = self.joint(self.dropout(hidden))
        judged = self.last(self.dropout(joint)).flatten()
        return judged.sigmoid() if self.output == "sigmoid" else judged


def build(
    feature_width: int = 4096,
    word_width: int = 200,
    nz: int = 100,
    *,
    noise_units: int = 500,
    g_feature_units: int = 2000,
    g_joint_units: int = 0,
    word_units: int = 500,
    d_feature_units: int = 1200,
    d_joint_units: int = 1000,
    pieces: int = 3,
    dropout: float = 0.5,
    output: str = "logits",
) -> tuple[TagGenerator, TagDiscriminator]:
    """Both networks, with PyTorch's own starting weights, the generator's drawn first.

    The settings are those of :class:`TagGenerator` and :class:`TagDiscriminator`; where both have
    one of a name with different values, it has ``g_`` or ``d_`` before it here. The defaults are the
    paper's.

    Raises:
        UserError: a setting breaks its rule.
    """
    generator = TagGenerator(
        feature_width,
        word_width,
        nz,
        noise_units=noise_units,
        feature_units=g_feature_units,
        joint_units=g_joint_units,
        dropout=dropout,
    )
    discriminator = TagDiscriminator(
        feature_width,
        word_width,
        word_units=word_units,
        feature_units=d_feature_units,
        joint_units=d_joint_units,
        pieces=pieces,
        dropout=dropout,
        output=output,
    )
    return generator, discriminator
