from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dcgan_fast import models
from dcgan_fast.errors import UserError
from dcgan_fast.latent import (
    ATTRIBUTES,
    arithmetic,
    best_seeds,
    interpolate,
    latents_of,
    smoothness,
    turn,
    walk,
)

NZ = 8


def small(**settings: Any) -> models.Generator:
    """A generator whose images differ: with its own 0.02 weights all would be nearly grey."""
    generator, _ = models.build("pytorch", image_size=16, nz=NZ, ngf=4, ndf=4, **settings)
    for weight in generator.parameters():
        if weight.dim() == 4:
            weight.data *= 20
    return generator.eval()


def images_of(generator: models.LatentNetwork, *input: Tensor) -> Tensor:
    with torch.no_grad():
        return generator(*input)


def test_a_seeds_latent_does_not_depend_on_the_others() -> None:
    generator = small()
    several = latents_of(generator, [5, 7, 5])
    assert several.shape == (3, NZ)
    assert torch.equal(several[0], several[2]) and not torch.equal(several[0], several[1])
    assert torch.equal(latents_of(generator, [7])[0], several[1])
    assert latents_of(generator, []).shape == (0, NZ)
    assert latents_of(generator.double(), [7]).dtype == torch.float64


# ---------------------------------------------------------------------------------- interpolation


def test_straight_interpolation() -> None:
    a, b = torch.randn(2, NZ)
    t = torch.tensor([0.0, 0.25, 1.0, 1.5])
    found = interpolate(a, b, t, "straight")
    torch.testing.assert_close(found, (1 - t[:, None]) * a + t[:, None] * b)


def test_spherical_interpolation_turns_evenly_and_keeps_length() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 100, dtype=torch.float64)) * 10
    found = interpolate(a, b, torch.linspace(0, 1, 8), "spherical")
    torch.testing.assert_close(found[[0, -1]], torch.stack([a, b]))
    torch.testing.assert_close(found.norm(dim=1), torch.full((8,), 10.0, dtype=torch.float64))
    angles = torch.nn.functional.cosine_similarity(found[1:], found[:-1]).arccos()
    torch.testing.assert_close(angles, angles[:1].expand(7))
    plane = torch.linalg.matrix_rank(torch.cat([found, a[None], b[None]]))
    assert plane == 2


@pytest.mark.parametrize("factor", [0.0, 1.0, 3.0, -1.0])
def test_spherical_between_parallel_vectors_is_straight(factor: float) -> None:
    a, t = torch.randn(NZ), torch.tensor([0.0, 0.3, 1.0])
    found = interpolate(a, factor * a, t, "spherical")
    torch.testing.assert_close(found, interpolate(a, factor * a, t, "straight"))
    assert interpolate(0 * a, 0 * a, t).isfinite().all()


# ------------------------------------------------------------------------------------------ walks


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("path", ["straight", "spherical"])
def test_a_walk_passes_through_its_seeds(path: str, closed: bool) -> None:
    generator = small()
    points = latents_of(generator, [1, 2, 3])
    made = walk(generator, points, steps=4, path=path, closed=closed)
    assert (made.path, made.steps) == (path, 4)
    assert made.images.shape == ((3 if closed else 2) * 4 + 1, 3, 16, 16)
    ends = torch.cat([points, points[:1]]) if closed else points
    torch.testing.assert_close(made.latents[::4], ends)
    torch.testing.assert_close(made.images, images_of(generator, made.latents))
    rows = made.rows.unflatten(0, (-1, 5))
    assert torch.equal(rows[0, -1], rows[1, 0]) and torch.equal(rows[1, -1], made.images[8])


def test_the_path_follows_the_distribution() -> None:
    for distribution, path in (("normal", "spherical"), ("uniform", "straight")):
        generator = small(latent_distribution=distribution)
        assert walk(generator, latents_of(generator, [0, 1]), steps=1).path == path


def test_4d_latents_and_other_statistics() -> None:
    generator = small()
    points = latents_of(generator, [1, 2])
    made = walk(generator, points[..., None, None], steps=3, bn="batch")
    expected = models.generate(generator, made.latents, bn="batch")
    torch.testing.assert_close(made.images, expected)
    assert not torch.allclose(made.images, images_of(generator, made.latents), atol=1e-3)


def test_smoothness() -> None:
    even = torch.linspace(-1, 1, 9).reshape(9, 1, 1, 1).expand(9, 3, 4, 4)
    found = smoothness(even, 4)
    assert found.mean_step == pytest.approx(255 / 8) == pytest.approx(found.largest_step)
    assert found.between_ends == pytest.approx(127.5) and found.jump == pytest.approx(1 / 4)
    leap = torch.tensor([0.0, 0, 0, 1, 1]).reshape(5, 1, 1, 1)
    assert smoothness(leap, 4, (0.0, 1.0)).jump == 1
    assert smoothness(leap * 0, 4).jump == 0
    with pytest.raises(UserError, match=r"\(k \* 3 \+ 1, C, S, S\), got \(5, 1, 1, 1\)"):
        smoothness(leap, 3)


# --------------------------------------------------------------------------------------- choosing


def test_best_seeds() -> None:
    generator = small()
    drawn = images_of(generator, latents_of(generator, range(40))).add(1).div(2)
    order = drawn.mean((1, 2, 3)).argsort().tolist()
    found = best_seeds(generator, ATTRIBUTES["brightness"], 4, among=40)
    assert found == order[::-1][:4]
    assert best_seeds(generator, ATTRIBUTES["brightness"], 2, among=40, lowest=True) == order[:2]
    corner = best_seeds(generator, lambda images: images[:, 0, 0, 0], 1, among=40)
    assert corner == [int(drawn[:, 0, 0, 0].argmax())]


def test_attributes() -> None:
    red = torch.zeros(2, 3, 4, 4)
    red[0, 0], red[1] = 0.9, 0.5
    red[1, :, :2] = 0
    expected = {"brightness": [0.3, 0.25], "red": [0.9, 0], "green": [-0.45, 0], "blue": [-0.45, 0]}
    for name, values in expected.items():
        assert ATTRIBUTES[name](red).tolist() == pytest.approx(values)
    flat, halves = ATTRIBUTES["contrast"](red).tolist()
    assert flat == pytest.approx(0, abs=1e-6) and halves > 0.2
    with pytest.raises(UserError, match="images of 1 channels have no colours"):
        ATTRIBUTES["red"](red[:, :1])


# -------------------------------------------------------------------------------------- arithmetic


def test_arithmetic_is_of_mean_latents() -> None:
    generator = small()
    groups = [latents_of(generator, seeds) for seeds in ([0, 1, 2], [3, 4], [5])]
    made = arithmetic(generator, groups, noise=0.5, seed=3)
    means = torch.stack([group.mean(0) for group in groups])
    latent = means[0] - means[1] + means[2]
    torch.testing.assert_close(made.latent, latent)
    torch.testing.assert_close(made.results[4], images_of(generator, latent[None])[0])
    torch.testing.assert_close(made.means, images_of(generator, means))
    for shown, group in zip(made.examples, groups, strict=True):
        torch.testing.assert_close(shown, images_of(generator, group))
    pixels = [images_of(generator, group).mean(0) for group in groups]
    torch.testing.assert_close(made.pixels, (pixels[0] - pixels[1] + pixels[2]).clamp(-1, 1))
    assert made.results.shape == (9, 3, 16, 16)
    assert len({tuple(image.flatten().tolist()) for image in made.results}) == 9


def test_noise_is_uniform_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, seen = small(), []
    generate = models.generate

    def note(generator: Any, latents: Tensor, *rest: Any, **settings: Any) -> Tensor:
        seen.append(latents)
        return generate(generator, latents, *rest, **settings)

    monkeypatch.setattr(models, "generate", note)
    made = arithmetic(generator, [latents_of(generator, [0])], [2.0])
    noise = seen[0][-9:] - made.latent
    torch.testing.assert_close(made.latent, 2 * latents_of(generator, [0])[0])
    assert (noise[4] == 0).all()
    assert 0.2 < noise.abs().max() <= 0.25 + 1e-6 and noise.mean().abs() < 0.05
    again = arithmetic(generator, [latents_of(generator, [0])], [2.0])
    assert torch.equal(again.results, made.results)


# -------------------------------------------------------------------------------------------- turn


def test_turn() -> None:
    generator = small()
    source, target, subjects = (latents_of(generator, s) for s in ([0, 1], [2, 3, 4], [5, 6]))
    made = turn(generator, source, target, subjects, steps=5, reach=2)
    direction = target.mean(0) - source.mean(0)
    torch.testing.assert_close(made.direction, direction)
    assert made.positions.tolist() == [-2, -1, 0, 1, 2]
    assert made.images.shape == (2, 5, 3, 16, 16)
    torch.testing.assert_close(made.images[:, 2], images_of(generator, subjects))
    torch.testing.assert_close(
        made.images[1, 4], images_of(generator, subjects[1:] + 2 * direction)[0]
    )
    scores = made.scores(ATTRIBUTES["brightness"])
    torch.testing.assert_close(scores, made.images.add(1).div(2).mean((2, 3, 4)))


# ------------------------------------------------------------------------------------------ labels


def test_labels() -> None:
    generator, _ = models.build("cgan-dcgan", image_size=16, nc=1, nz=NZ, ngf=4, ndf=4, classes=3)
    points = latents_of(generator, [0, 1])
    made = walk(generator, points, steps=2, label=2)
    expected = models.generate(generator, made.latents, torch.full((3,), 2))
    torch.testing.assert_close(made.images, expected)
    assert made.value_range == (0, 1)
    first = walk(generator, points, steps=2)
    assert torch.equal(first.images, walk(generator, points, steps=2, label=0).images)
    with pytest.raises(UserError, match="'label' must be an integer from 0 to 2, got 3"):
        walk(generator, points, label=3)


def test_no_unit_is_left_out_of_a_walk() -> None:
    """Which of them are differs from one point to the next, and would hide what the points change."""
    generator, _ = models.build("cgan-mnist", image_size=4, nz=NZ, classes=3)
    made = walk(generator, latents_of(generator, [0, 1]), steps=4)
    labels = torch.zeros(len(made.latents), dtype=torch.int64)
    expected = images_of(generator.eval(), made.latents, labels)
    torch.testing.assert_close(made.images, expected)
    assert not torch.allclose(models.generate(generator, made.latents, labels), expected, atol=1e-2)


# ------------------------------------------------------------------------------------ wrong input


def test_wrong_arguments() -> None:
    generator = small()
    z = latents_of(generator, [0, 1])

    def fails(message: str, call: Any, *args: Any, **settings: Any) -> None:
        with pytest.raises(UserError, match=message):
            call(*args, **settings)

    fails(r"walk\(\): 'latents' must hold at least 2 latent vectors, got 1", walk, generator, z[:1])
    fails(r"'latents' must be \(N, 8\) or", walk, generator, z[:, :3])
    fails("'steps' must be an integer of at least 1, got 0", walk, generator, z, steps=0)
    fails("'path' must be one of spherical, straight; got 'x'", walk, generator, z, path="x")
    fails("'label' is for a generator with classes", walk, generator, z, label=1)
    fails("'signs' must be one for each .* got 3 for 1", arithmetic, generator, [z])
    fails("'concepts' must hold at least 1", arithmetic, generator, [z[:0]], [1])
    fails("'noise' must be", arithmetic, generator, [z], [1], noise=-1)
    fails("'reach' must be a number above 0, got 0", turn, generator, z, z, z, reach=0)
    fails("'steps' must be an integer of at least 2, got 1", turn, generator, z, z, z, steps=1)
    fails("'subjects' must hold at least 1", turn, generator, z, z, z[:0])
    fails("'count' must be an integer from 1 to 4, got 5", best_seeds, generator, len, 5, among=4)
    fails(r"\(9,\), got \(\)", best_seeds, generator, lambda x: x.mean(), among=9)
    score = lambda x: x[:, 0, 0, 0] * math.nan  # noqa: E731
    fails("finite number for each image", best_seeds, generator, score, among=9)
    fails("must be \\(nz,\\)", interpolate, z[0], z[1, :3], torch.zeros(1))
    for weight in generator.parameters():
        weight.data.fill_(math.nan)
    fails("the generator's images hold NaN", walk, generator, z)
