from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dcgan_fast import models
from dcgan_fast.data import normalize
from dcgan_fast.errors import UserError
from dcgan_fast.layers import check_images, choose_layer, map_layers, with_population_statistics
from dcgan_fast.networks import Discriminator, Generator

PRESETS = ["pytorch", "paper", "newmu", "newmu-imagenet32", "carpedm20"]


def small(preset: str, **settings: Any) -> tuple[Generator, Discriminator]:
    return models.build(preset, image_size=32, nc=3, nz=8, ngf=4, ndf=4, **settings)


@pytest.mark.parametrize("preset", PRESETS)
def test_layers_are_what_their_children_compute(preset: str) -> None:
    generator, discriminator = small(preset)
    inputs = (generator.sample_latent(2), torch.randn(2, 3, 32, 32))
    for network, input in zip((generator, discriminator), inputs, strict=True):
        layers = map_layers(network)
        maps = [m for m in network.modules() if isinstance(m, (torch.nn.ReLU, torch.nn.LeakyReLU))]
        assert len(layers) == len(maps)
        if isinstance(network, Generator) and network.projection == "conv":
            input = input[..., None, None]
        for number, layer in enumerate(layers, 1):
            found = network.main[: layer.end](input)
            assert layer.number == number and layer.shape == tuple(found.shape[1:])
            weights = network.state_dict()[f"{layer.name}.weight"]
            assert layer.shape[0] in (*weights.shape[:2], weights.shape[0] // layer.shape[1] ** 2)
            first = found.flatten()
            assert (first.min() >= 0) == isinstance(network, Generator)


def test_layers_are_chosen_from_either_end() -> None:
    generator, discriminator = small("pytorch")
    assert choose_layer("f", discriminator, 1).name == "main.0"
    assert choose_layer("f", discriminator, -1).name == choose_layer("f", discriminator, 3).name
    assert choose_layer("f", generator, np.int64(-3)).number == 1
    for wrong in (0, 4, -4, 1.5, "main.0"):
        with pytest.raises(UserError) as error:
            choose_layer("f", generator, wrong)  # type: ignore[arg-type]
        assert str(error.value) == (
            "f(): 'layer' must be 1 to 3, or -1 to -3 from the end, of the generator "
            f"(1: 16x4x4, 2: 8x8x8, 3: 4x16x16); got {wrong!r}"
        )


def test_images_must_be_the_networks() -> None:
    _, discriminator = small("pytorch")
    good = np.zeros((2, 3, 32, 32), np.uint8)
    check_images("f", discriminator, good)
    for wrong in (good[:0], good[:, :1], good.astype(np.float32), good[..., 1:]):
        with pytest.raises(UserError, match=r"must be uint8 \(N, 3, 32, 32\) with N >= 1"):
            check_images("f", discriminator, wrong)


@pytest.mark.parametrize("count", [2, 100, 300])
def test_population_statistics(count: int) -> None:
    _, discriminator = small("pytorch")
    images = np.random.default_rng(1).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    twin = with_population_statistics(discriminator, images)
    assert not twin.training
    for name, value in discriminator.state_dict().items():
        assert torch.equal(value, before[name])
    maps = twin.main[:3](normalize(images))  # convolution, LeakyReLU, convolution
    tolerance = {2: 1e-4, 100: 1e-4, 300: 0.05}[count]  # of 300 two batches are averaged
    expected = maps.transpose(0, 1).flatten(1)
    mean, variance = twin.main[3].running_mean, twin.main[3].running_var
    deviation = expected.std(1)
    assert ((mean - expected.mean(1)).abs() / deviation).max() < tolerance
    torch.testing.assert_close(variance, expected.var(1), rtol=tolerance, atol=0)
