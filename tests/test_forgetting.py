from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dcgan_fast import models
from dcgan_fast.conditional import ConditionalGenerator
from dcgan_fast.errors import UserError
from dcgan_fast.forgetting import box_masks, forget, load_boxes, mark_pixels
from dcgan_fast.latent import latents_of
from dcgan_fast.layers import map_layers
from dcgan_fast.networks import Generator

COUNT, SIDE = 40, 8  # samples, and cells of the second of three layers


def small(preset: str = "pytorch", **settings: Any) -> Generator:
    generator, _ = models.build(preset, image_size=32, nc=3, nz=8, ngf=4, ndf=4, **settings)
    for weight in generator.parameters():
        if weight.dim() == 4:
            weight.data *= 20
    latents = generator.sample_latent(256)
    generator.train()(latents)  # running statistics of its own
    return generator


def maps_of(generator: Generator, latents: Tensor, layer: int) -> Tensor:
    """Maps of a layer by a hook, in PyTorch's own modules."""
    seen = []
    child = list(generator.main)[map_layers(generator)[layer - 1].end - 1]
    handle = child.register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    with torch.no_grad():
        generator.eval()(latents)
    handle.remove()
    return seen[0]


def masks_of(maps: Tensor, which: int) -> np.ndarray:
    """bool (N, 32, 32): where one map is among its largest fifth."""
    values = maps[:, which].numpy()
    cell = 32 // values.shape[1]
    return (values > np.quantile(values, 0.8)).repeat(cell, 1).repeat(cell, 2)


@pytest.mark.parametrize("preset", ["pytorch", "newmu", "paper"])
def test_the_map_that_draws_it_is_found_and_dropped(preset: str) -> None:
    generator = small(preset)
    latents = latents_of(generator, range(COUNT))
    maps = maps_of(generator, latents, 2)
    masks = masks_of(maps, 5)
    found = forget(generator, latents, masks)
    assert found.layer.number == 2 and found.layer.shape == (8, SIDE, SIDE)
    deviation = maps.transpose(0, 1).flatten(1).std(1).numpy()
    assert (found.weights * deviation).argmax() == 5
    assert np.array_equal(found.dropped, found.weights > 0) and found.dropped[5]
    assert found.accuracy > 0.9 and found.chance == 0.5
    cells = masks[:, ::4, ::4]
    fitted = np.arange(COUNT) % 5 != 4
    assert found.positives == cells[fitted].sum() == found.negatives
    assert np.array_equal(found.masks, masks)


def test_samples_without_them_are_what_a_hook_makes_of_them() -> None:
    generator = small().train()
    latents = latents_of(generator, range(COUNT))
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    masks = masks_of(maps_of(generator, latents, 1), 3)
    found = forget(generator.train(), latents[..., None, None], masks, layer=1)
    assert generator.training
    for name, value in generator.state_dict().items():
        assert torch.equal(value, state[name])
    generator.eval()
    with torch.no_grad():
        torch.testing.assert_close(found.with_them, generator(latents))
        child = list(generator.main)[found.layer.end - 1]
        child.register_forward_hook(
            lambda m, i, o: o * torch.from_numpy(~found.dropped).float()[:, None, None]
        )
        torch.testing.assert_close(found.without_them, generator(latents))
    assert not torch.allclose(found.without_them, found.with_them, atol=0.01)
    assert not torch.allclose(found.without_them, found.control, atol=0.01)


def test_change() -> None:
    generator = small()
    latents = latents_of(generator, range(COUNT))
    found = forget(generator, latents, masks_of(maps_of(generator, latents, 2), 1))
    assert found.change(found.with_them) == pytest.approx(
        {"inside": 0, "outside": 0, "ratio": float("nan")}, nan_ok=True
    )
    inside = torch.from_numpy(found.masks)[:, None]
    moved = found.with_them + torch.where(inside, 0.2, -0.1)
    change = found.change(moved)
    assert change == pytest.approx({"inside": 25.5, "outside": 12.75, "ratio": 2.0}, rel=1e-5)


def test_boxes_and_their_masks_give_the_same() -> None:
    generator = small()
    latents = latents_of(generator, range(COUNT))
    boxes = [[(0, 0, 9, 13)] if n % 3 else [(4, 4, 12, 8), (20, 0, 32, 32)] for n in range(COUNT)]
    by_boxes = forget(generator, latents, boxes)
    by_masks = forget(generator, latents, box_masks(boxes, 32))
    by_function = forget(generator, latents, lambda images: boxes)
    by_arrays = forget(generator, latents, [np.array(each, np.float32) for each in boxes])
    for other in (by_masks, by_function, by_arrays):
        assert np.array_equal(other.weights, by_boxes.weights)
        assert torch.equal(other.without_them, by_boxes.without_them)
    again = forget(generator, latents, boxes, seed=1)
    assert not np.array_equal(again.weights, by_boxes.weights)


def test_a_detector_sees_the_samples_as_bytes() -> None:
    generator = small()
    latents = latents_of(generator, range(COUNT))
    seen = []

    def detect(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return images.mean(1) > 130

    found = forget(generator, latents, detect)
    assert seen[0].dtype == np.uint8 and seen[0].shape == (COUNT, 3, 32, 32)
    expected = found.with_them.add(1).mul(127.5).add(0.5).clamp(0, 255).byte().numpy()
    assert np.array_equal(seen[0], expected)


def test_population_statistics_are_made_for_the_call() -> None:
    generator = small()
    latents = latents_of(generator, range(COUNT))
    for buffer in generator.buffers():
        buffer.fill_(2)
    masks = masks_of(maps_of(generator, latents, 2), 1)
    population = forget(generator, latents, masks, bn="population").with_them
    expected = models.generate(generator, latents, bn="population")
    torch.testing.assert_close(population, expected)
    assert all((buffer == 2).all() for buffer in generator.buffers())


# ------------------------------------------------------------------------------------ with labels


def conditional(conditioning: str, activation: str = "sigmoid") -> ConditionalGenerator:
    sizes = {"image_size": 32, "nc": 3, "nz": 8, "ngf": 4, "ndf": 4, "ngfc": 16, "ndfc": 16}
    generator = models.build("cgan-dcgan", classes=3, conditioning=conditioning, **sizes)[0]
    generator = type(generator)(**{**generator.config, "output_activation": activation})
    for weight in generator.parameters():
        if weight.dim() == 4:
            weight.data *= 5
    generator.train()(generator.sample_latent(256), torch.arange(256) % 3)
    return generator


@pytest.mark.parametrize("conditioning", ["concat", "projection"])
def test_samples_of_classes(conditioning: str) -> None:
    """Both halves see each sample's label: what a hook in the whole network does, forget() does."""
    generator = conditional(conditioning)
    latents = latents_of(generator, range(150))  # two batches
    labels = torch.arange(150) % 3
    seen: list[np.ndarray] = []

    def detect(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return images.mean(1) > np.quantile(images.mean(1), 0.8)

    found = forget(generator, latents, detect, labels=labels)
    assert (found.layer.number, found.layer.shape) == (2, (8, SIDE, SIDE))
    with torch.no_grad():
        whole = generator.eval()(latents, labels)
        torch.testing.assert_close(found.with_them, whole * 2 - 1, rtol=1e-4, atol=1e-5)
        assert np.array_equal(
            seen[0], found.with_them.add(1).mul(127.5).add(0.5).clamp(0, 255).byte().numpy()
        )
        child = list(generator.main)[found.layer.end - 1]
        kept = torch.from_numpy(~found.dropped).float()[:, None, None]
        child.register_forward_hook(lambda m, i, o: o * kept)
        without = generator(latents, labels)
    torch.testing.assert_close(found.without_them, without * 2 - 1, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.without_them, found.with_them, atol=0.01)


def test_images_are_in_one_range_whatever_the_generators() -> None:
    for activation in ("sigmoid", "tanh"):
        generator = conditional("concat", activation)
        latents, labels = latents_of(generator, range(COUNT)), torch.zeros(COUNT, dtype=torch.int64)
        found = forget(generator, latents, [[(0, 0, 16, 16)]] * COUNT, labels=labels)
        with torch.no_grad():
            images = generator.eval()(latents, labels)
        low, high = generator.output_range
        torch.testing.assert_close(found.with_them, (images - low) * 2 / (high - low) - 1)


def test_population_statistics_are_of_all_classes() -> None:
    generator = conditional("concat")
    latents, labels = latents_of(generator, range(COUNT)), torch.arange(COUNT) % 3
    for buffer in generator.buffers():
        buffer.fill_(2)
    boxes = [[(0, 0, 16, 16)]] * COUNT
    found = forget(generator, latents, boxes, labels=labels, bn="population")
    expected = models.generate(generator, latents, labels, bn="population")
    torch.testing.assert_close(found.with_them, expected * 2 - 1, rtol=1e-4, atol=1e-5)
    assert all((buffer == 2).all() for buffer in generator.buffers())


# -------------------------------------------------------------------------------- boxes and masks


def test_box_masks() -> None:
    found = box_masks([[(1, 0, 3, 2)], [], [(0, 0, 1, 1), (2.4, 2.4, 9, 9)]], 4)
    assert found[0].sum() == 4 and found[0][:2, 1:3].all()
    assert not found[1].any()
    assert np.argwhere(found[2]).tolist() == [[0, 0], [2, 2], [2, 3], [3, 2], [3, 3]]


@pytest.mark.parametrize("what", ["bright", "dark", "edges", "red", "green", "blue"])
def test_marks(what: str) -> None:
    images = np.full((3, 3, 10, 10), 100, np.uint8)
    values = {"bright": [250, 240, 245], "dark": [0, 5, 3], "red": [200, 90, 90]}
    values |= {"green": [90, 200, 90], "blue": [90, 90, 200], "edges": [255, 255, 255]}
    images[1, :, 3:6, 2:4] = np.array(values[what], np.uint8)[:, None, None]
    found = mark_pixels(what, 6 / 300)(images)
    assert found.shape == (3, 10, 10) and not found[[0, 2]].any()
    if what == "edges":
        assert found.any() and not found[1, 7:].any()
    else:
        assert found[1].sum() == 6 and found[1, 3:6, 2:4].all()


def test_boxes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text('{"17": [[4, 0, 12, 20], [1, 1, 2.5, 3]], "3": []}')
    assert load_boxes(path) == {17: [[4, 0, 12, 20], [1, 1, 2.5, 3]], 3: []}
    with pytest.raises(UserError, match="cannot read .*missing.json"):
        load_boxes(tmp_path / "missing.json")
    path.write_text("{17")
    with pytest.raises(UserError, match="is not JSON"):
        load_boxes(path)
    for wrong in ([], {}, {"a": []}, {"1": [[1, 2, 3]]}, {"1": [[5, 0, 4, 2]]}, {"1": 4}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="boxes must be like"):
            load_boxes(path)


# ------------------------------------------------------------------------------------ wrong input


def test_wrong_arguments() -> None:
    generator = small()
    latents = latents_of(generator, range(10))
    some = np.zeros((10, 32, 32), bool)
    some[:, :8, :8] = True

    def fails(message: str, boxes: Any = some, **settings: Any) -> None:
        with pytest.raises(UserError, match=message):
            forget(generator, latents, boxes, **settings)

    fails("'layer' must be 1 to 3, .*got 8", layer=8)
    fails("nothing is inside: no box covers half of one of the 8x8", ~(some | True))
    fails("nothing is inside", [[(0, 0, 1, 1)]] * 10)
    fails("nothing is outside: the boxes cover all 8x8 positions", some | True)
    fails(r"masks must be bool \(10, 32, 32\), got uint8 \(10, 32, 32\)", some.astype(np.uint8))
    fails(r"masks must be bool \(10, 32, 32\), got bool \(9, 32, 32\)", some[:9])
    fails("boxes must be of 10 images, got 9", [[(0, 0, 9, 9)]] * 9)
    fails("not empty, got .4, 4, 4, 9. on image 0", [[(4, 4, 4, 9)]] * 10)
    fails("covers no pixel of its 32x32", [[(40, 4, 50, 9)]] * 10)
    fails("'bn' must be running or population, got 'batch'", bn="batch")
    fails("'strength' must be a number above 0, got 0", strength=0)
    only_held_out = some & (np.arange(10) % 5 == 4)[:, None, None]
    fails("positions of one class only", only_held_out)
    fails("images of 1 channels have no red", lambda images: mark_pixels("red")(images[:, :1]))
    with pytest.raises(UserError, match="'what' must be one of bright, dark"):
        mark_pixels("loud")
    with pytest.raises(UserError, match="'share' must be above 0 and below 1, got 1"):
        mark_pixels("dark", 1)
    fails("'labels' must be None: the generator has no classes", labels=torch.zeros(10).long())
    labelled = conditional("concat")
    for labels, message in (
        (None, "'labels' must be given, one a sample: the generator has 3 classes"),
        (torch.full((10,), 3), "'labels' must be from 0 to 2, got 3"),
        (torch.zeros(9, dtype=torch.int64), r"'labels' must be int64 \(10,\)"),
    ):
        with pytest.raises(UserError, match=message):
            forget(labelled, latents, some, labels=labels)
    units = models.build("cgan-mnist")[0]
    with pytest.raises(UserError, match="or a ConditionalGenerator, got a MlpGenerator"):
        forget(units, latents, some)
