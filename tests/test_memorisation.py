from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcgan_fast import models
from dcgan_fast.data import normalize
from dcgan_fast.errors import UserError
from dcgan_fast.layers import map_layers
from dcgan_fast.memorisation import (
    draw_bytes,
    look_for_copies,
    nearest_images,
    nearness,
    pixel_features,
    pooled_features,
    real_to_samples,
)
from dcgan_fast.metrics import nearest_neighbour_accuracy


def pictures(count: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    shape = (count, channels, 16, 16)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def networks() -> Any:
    return models.build("pytorch", image_size=16, nz=8, ngf=4, ndf=4)


def test_pooled_features_are_those_of_hooks(networks: Any) -> None:
    discriminator = networks[1].train()
    images = pictures(5)
    maps: list[torch.Tensor] = []
    extract = pooled_features(discriminator)
    found = extract(images)
    assert found.shape == (5, 16 * (4 + 8)) and discriminator.training
    for child in discriminator.main:
        if isinstance(child, nn.LeakyReLU):
            child.register_forward_hook(lambda m, i, o: maps.append(o.clone()))
    with torch.no_grad():
        discriminator.eval()(normalize(images))
    expected = torch.cat([nn.functional.adaptive_max_pool2d(m, 4).flatten(1) for m in maps], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert pooled_features(discriminator, 1)(images).shape == (5, 12)


def test_nearest_images_are_found_in_any_part(
    networks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = pictures(50)
    planted = [40, 3, 27]
    samples = training[planted] // 2 + training[planted] // 3
    for part in (10_000, 20):
        monkeypatch.setattr("dcgan_fast.memorisation._PART", part)
        for extractor in (pixel_features, pooled_features(networks[1])):
            found = nearest_images(samples, training, k=4, extractor=extractor)
            assert found.rows.shape == found.distances.shape == (3, 4)
            assert (np.diff(found.distances) >= 0).all()
        by_pixels = nearest_images(samples, training, k=4)
        assert by_pixels.rows[:, 0].tolist() == planted
        distance = np.linalg.norm((samples[0].astype(float) - training[40]) / 255)
        assert by_pixels.distances[0, 0] == pytest.approx(distance, rel=1e-5)


def test_copies_are_found_and_blurred_samples_are_none() -> None:
    training, others = pictures(300), pictures(300, seed=1)
    noisy = np.clip(training[:60].astype(int) + pictures(60, seed=3) // 8, 0, 255).astype(np.uint8)
    copies = nearness(np.concatenate([noisy, others[:40]]), training, others, queries=200)
    assert copies.copies == pytest.approx(0.6) and copies.ratio < 0.5
    fresh = nearness(others[:100], training, pictures(50, seed=2))
    assert fresh.copies == fresh.training_copies == 0
    assert fresh.ratio == pytest.approx(1, abs=0.05)
    assert fresh.held_out == pytest.approx(fresh.training, rel=0.05)
    assert nearness(others, training).held_out is None
    grey = np.full((50, 3, 16, 16), 128, np.uint8)
    blurred = nearness(grey, training)
    assert blurred.ratio < 0.8 and blurred.copies == 0
    twice = nearness(others, np.concatenate([training, training[:75]]), queries=375)
    assert twice.training_copies == pytest.approx(150 / 375)


def test_both_in_one_pass_are_what_each_is(networks: Any) -> None:
    training, samples, others = pictures(60), pictures(20, seed=1), pictures(15, seed=2)
    for extractor in (pixel_features, pooled_features(networks[1])):
        for k in (2, 20):
            near, how_near = look_for_copies(
                samples[:3], samples, training, others, k=k, queries=10, extractor=extractor
            )
            alone = nearest_images(samples[:3], training, k=k, extractor=extractor)
            assert np.array_equal(near.rows, alone.rows)
            np.testing.assert_allclose(near.distances, alone.distances, rtol=1e-6)
            apart = nearness(samples, training, others, queries=10, extractor=extractor)
            assert asdict(how_near) == pytest.approx(asdict(apart), rel=1e-6)


def test_nearness_to_another_training_image_is_never_to_itself() -> None:
    training = pictures(30)
    distances = np.linalg.norm(
        (training[:, None].astype(float) - training[None]).reshape(30, 30, -1) / 255, axis=2
    )
    np.fill_diagonal(distances, np.inf)
    found = nearness(pictures(3, seed=1), training)
    assert found.training == pytest.approx(np.median(distances.min(1)), rel=1e-5)
    doubled = np.concatenate([training, training])  # the copy counts, for it is another one
    assert nearness(pictures(3, seed=1), doubled).training == pytest.approx(0, abs=1e-3)


def test_real_to_samples(networks: Any) -> None:
    generator = networks[0]
    images = pictures(20)
    found = real_to_samples(generator, images, np.zeros(20, np.int64), sizes=[3, 50], seed=4)
    stream = torch.Generator().manual_seed(4)
    drawn = [
        draw_bytes(generator, generator.sample_latent(n, generator=stream), None, "running")
        for n in (3, 47)
    ]
    samples = np.concatenate(drawn).reshape(50, 1, -1) / 255
    distances = np.linalg.norm(samples - images.reshape(1, 20, -1) / 255, axis=2)
    assert [each.samples for each in found] == [3, 50]
    assert found[0].mean_distance == pytest.approx(distances[:3].min(0).mean(), rel=1e-5)
    assert found[1].mean_distance == pytest.approx(distances.min(0).mean(), rel=1e-5)
    assert found[0].accuracy is None


def test_accuracy_of_a_generator_with_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcgan_fast.memorisation._PART", 7)
    generator, _ = models.build("cgan-dcgan", image_size=16, nc=1, nz=8, ngf=4, ndf=4, classes=3)
    images, labels = pictures(40, channels=1), np.arange(40) % 3
    found = real_to_samples(generator, images, labels, sizes=[4, 30])
    stream, parts = torch.Generator().manual_seed(0), []
    known = np.arange(30) % 3
    for start, end in ((0, 4), (4, 11), (11, 18), (18, 25), (25, 30)):
        latents = generator.sample_latent(end - start, generator=stream)
        of_part = torch.from_numpy(known[start:end])
        parts.append(draw_bytes(generator, latents, of_part, "running"))
    samples = np.concatenate(parts)
    for each in found:
        expected = nearest_neighbour_accuracy(
            samples[: each.samples] / np.float32(255),
            known[: each.samples],
            images / np.float32(255),
            labels,
        )
        assert each.accuracy == pytest.approx(expected)
    assert real_to_samples(generator, images, sizes=[4])[0].accuracy is None
    with pytest.raises(UserError, match="'labels' must be below 3, the generator's classes, got 4"):
        real_to_samples(generator, images, labels * 2, sizes=[4])


@pytest.mark.parametrize("conditioning", ["concat", "projection"])
def test_pooled_features_of_a_conditional_discriminator(conditioning: str) -> None:
    """Those of hooks in the whole network, which is told all classes alike."""
    network = models.build(
        "cgan-dcgan", image_size=16, nc=3, ndf=4, ngf=4, classes=5, conditioning=conditioning
    )[1].train()
    network(torch.rand(64, 3, 16, 16), torch.arange(64) % 5)  # statistics of its own
    images = pictures(5)
    found = pooled_features(network, 2, (0.0, 1.0))(images)
    assert network.training
    maps: list[Any] = []
    for layer in map_layers(network):
        child = list(network.main)[layer.end - 1]
        child.register_forward_hook(lambda module, inputs, output: maps.append(output.clone()))
    with torch.no_grad():
        network.eval()(torch.from_numpy(images).float() / 255, torch.full((5, 5), 0.2))
    pooled = [nn.functional.adaptive_max_pool2d(each, 2).flatten(1) for each in maps]
    np.testing.assert_allclose(found, torch.cat(pooled, 1), rtol=1e-4, atol=1e-5)
    assert found.shape == (5, (4 + 8) * 4)


def test_wrong_arguments(networks: Any) -> None:
    generator = networks[0]
    good = pictures(5)

    def fails(message: str, call: Any, *arguments: Any, **settings: Any) -> None:
        with pytest.raises(UserError, match=message):
            call(*arguments, **settings)

    grey = pictures(5, channels=1)
    fails(r"'training' must be images of \(3, 16, 16\)", nearest_images, good, grey)
    fails("'samples' must be uint8", nearest_images, good.astype(float), good)
    fails("'k' must be an integer from 1 to 5, got 6", nearest_images, good, good, k=6)
    fails("at least 3 images, got 2", nearness, good, good[:2])
    fails("'queries' must be an integer", nearness, good, good, queries=0)
    fails("must be images of", nearness, grey, good)
    fails("'sizes' must ascend", real_to_samples, generator, good, sizes=[5, 5])
    fails("'sizes' must ascend", real_to_samples, generator, good, sizes=[])
    fails("must be images of", real_to_samples, generator, grey, sizes=[5])
    labels = np.zeros(4, np.int64)
    fails(r"'labels' must be \(5,\)", real_to_samples, generator, good, labels, sizes=[5])
