from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dcgan_fast import models
from dcgan_fast.errors import UserError
from dcgan_fast.nn import MaxoutLinear
from dcgan_fast.tags import TagDiscriminator, TagGenerator
from dcgan_fast.tags.nets import build

SMALL: dict[str, Any] = {
    "feature_width": 7,
    "word_width": 5,
    "nz": 4,
    "noise_units": 6,
    "g_feature_units": 8,
    "word_units": 3,
    "d_feature_units": 9,
    "d_joint_units": 10,
}


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in network.named_parameters()}


def test_the_preset_is_the_papers() -> None:
    with torch.device("meta"):
        generator, discriminator = models.build("cgan-multimodal")
    assert isinstance(generator, TagGenerator) and isinstance(discriminator, TagDiscriminator)
    assert shapes(generator) == {
        "noise.weight": (500, 100),
        "noise.bias": (500,),
        "features.weight": (2000, 4096),
        "features.bias": (2000,),
        "joint.0.weight": (200, 2500),
        "joint.0.bias": (200,),
    }
    assert shapes(discriminator) == {
        "words.weight": (500, 200),
        "words.bias": (500,),
        "features.weight": (1200, 4096),
        "features.bias": (1200,),
        "joint.weight": (1000, 3, 1700),
        "joint.bias": (1000, 3),
        "last.weight": (1, 1000),
        "last.bias": (1,),
    }
    assert generator.dropout.p == discriminator.dropout.p == 0.5


def test_other_widths_through_the_preset() -> None:
    generator, discriminator = models.build("cgan-multimodal", **SMALL, output="sigmoid")
    vectors = generator(generator.sample_latent(3), torch.randn(3, 7))
    judged = discriminator(vectors, torch.randn(3, 7))
    assert vectors.shape == (3, 5) and judged.shape == (3,)
    assert ((0 < judged) & (judged < 1)).all()
    with pytest.raises(UserError, match=r"build\(\): unknown setting 'ngf'; known are feature_w"):
        models.build("cgan-multimodal", ngf=3)


@pytest.mark.parametrize("joint_units", [0, 6])
def test_generator_is_what_its_docstring_says(joint_units: int) -> None:
    generator, _ = build(**SMALL, g_joint_units=joint_units)
    generator.eval()
    latent, features = generator.sample_latent(4), torch.randn(4, 7)
    hidden = torch.cat([generator.noise(latent).relu(), generator.features(features).relu()], 1)
    if joint_units:
        hidden = generator.joint[0](hidden).relu()
    wanted = nn.functional.linear(hidden, generator.joint[-1].weight, generator.joint[-1].bias)
    torch.testing.assert_close(generator(latent, features), wanted)


def test_discriminator_is_what_its_docstring_says() -> None:
    discriminator = TagDiscriminator(7, 5, word_units=3, feature_units=4, joint_units=6, pieces=2)
    discriminator.eval()
    vectors, features = torch.randn(3, 5), torch.randn(3, 7)
    hidden = torch.cat(
        [discriminator.words(vectors).relu(), discriminator.features(features).relu()], 1
    )
    joint = discriminator.joint
    assert isinstance(joint, MaxoutLinear)
    units = (torch.einsum("ni,opi->nop", hidden, joint.weight) + joint.bias).amax(2)
    torch.testing.assert_close(
        discriminator(vectors, features), discriminator.last(units).flatten()
    )


@pytest.mark.parametrize("joint_units", [0, 6])
def test_sample_is_every_noise_with_every_image(joint_units: int) -> None:
    generator, _ = build(**SMALL, g_joint_units=joint_units)
    latent, features = generator.sample_latent(6), torch.randn(3, 7)
    found = generator.sample(latent, features)
    generator.eval()
    assert found.shape == (3, 6, 5)
    for image in range(3):
        wanted = generator(latent, features[image].expand(6, -1))
        torch.testing.assert_close(found[image], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("joint_units", [0, 6])
def test_sample_with_dropout(joint_units: int) -> None:
    generator, _ = build(**{**SMALL, "noise_units": 50}, g_joint_units=joint_units)
    latent, features = generator.sample_latent(4000), torch.randn(2, 7)

    def drawn(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            masks = torch.Generator().manual_seed(1)
            return generator.sample(latent, rows, dropout=masks)

    found = drawn(features)
    torch.testing.assert_close(drawn(features[1:])[0], found[1])  # whatever stands beside it
    with torch.no_grad():
        wanted = [generator(latent, own.expand(4000, -1)) for own in features]  # in training mode
    for own, like in zip(found, wanted, strict=True):
        torch.testing.assert_close(own.mean(0), like.mean(0), atol=0.03, rtol=0)
        torch.testing.assert_close(own.std(0), like.std(0), atol=0, rtol=0.1)


def test_without_a_joint_layer_an_image_only_moves_the_cloud() -> None:
    generator, _ = build(**SMALL)
    generator.eval()
    first, second = generator.sample(generator.sample_latent(5), torch.randn(2, 7))
    moved = second - first
    torch.testing.assert_close(moved, moved[:1].expand(5, -1), atol=1e-5, rtol=1e-5)


def test_dropout_is_in_both_and_only_in_training() -> None:
    for network, width in zip(build(**SMALL), (4, 5), strict=True):
        first, features = torch.randn(64, width), torch.randn(64, 7)
        assert not torch.equal(network(first, features), network(first, features))
        network.eval()
        assert torch.equal(network(first, features), network(first, features))
    for network, width in zip(build(**SMALL, dropout=0.0), (4, 5), strict=True):
        first, features = torch.randn(64, width), torch.randn(64, 7)
        assert torch.equal(network(first, features), network(first, features))


def test_every_weight_has_a_gradient() -> None:
    generator, discriminator = build(**SMALL)
    features = torch.randn(32, 7)
    discriminator(generator(generator.sample_latent(32), features), features).sum().backward()
    for network in (generator, discriminator):
        for name, weight in network.named_parameters():
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_config_rebuilds() -> None:
    for network in build(**SMALL, g_joint_units=2, dropout=0.25):
        again = type(network)(**network.config)
        assert shapes(again) == shapes(network)
        assert again.config == network.config and again.dropout.p == 0.25


def test_latents_are_gaussian_and_repeat() -> None:
    generator, _ = build(**SMALL)
    draws = [
        generator.sample_latent(5000, generator=torch.Generator().manual_seed(3)) for _ in "ab"
    ]
    assert torch.equal(*draws)
    assert draws[0].mean().abs() < 0.05 and (draws[0].std() - 1).abs() < 0.05


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (0, ((3, 5), (3, 7)), r"'latent' must be \(N, 4\), got \(3, 5\)"),
        (0, ((3, 4), (3, 6)), r"'features' must be \(3, 7\), got \(3, 6\)"),
        (0, ((3, 4), (2, 7)), r"'features' must be \(3, 7\), got \(2, 7\)"),
        (1, ((5,), (3, 7)), r"'vectors' must be \(N, 5\), got \(5,\)"),
        (1, ((3, 5), (1, 7)), r"'features' must be \(3, 7\), got \(1, 7\)"),
    ],
)
def test_wrong_shapes(network: int, shape: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**SMALL)[network](*map(torch.zeros, shape))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("feature_width", 0, "'feature_width' must be an integer of at least 1, got 0"),
        ("word_width", 2.5, "'word_width' must be an integer of at least 1, got 2.5"),
        ("nz", True, "'nz' must be an integer"),
        ("g_joint_units", -1, "'joint_units' must be an integer of at least 0, got -1"),
        ("pieces", 300, "'pieces' must be an integer from 1 to 256, got 300"),
        ("dropout", 1.0, "'dropout' must be a number from 0 to below 1, got 1.0"),
        ("output", "odds", "'output' must be logits or sigmoid, got 'odds'"),
    ],
)
def test_wrong_settings(setting: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**{**SMALL, setting: value})
