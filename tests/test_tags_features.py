from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dcgan_fast import models
from dcgan_fast.errors import UserError
from dcgan_fast.tags import Extractor, Features, extract, load_extractor, load_features
from dcgan_fast.training import save_checkpoint

COUNT, SIDE = 5, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        (root / f"{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / f"{number % 2}" / f"p{number}.png")
    return root


def images(channels: int = 3, side: int = SIDE, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


class Moments(nn.Module):
    """Of each channel the mean and the largest; in training it would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, images: Tensor) -> Tensor:
        found = torch.cat([images.mean((2, 3)), images.amax((2, 3))], 1) * self.scale
        return nn.functional.dropout(found, 0.9, self.training)


def moments(pixels: np.ndarray, scaling: str) -> np.ndarray:
    scaled = pixels / 255.0
    if scaling == "imagenet":
        mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        scaled = (scaled - mean) / std
    elif scaling == "symmetric":
        scaled = scaled * 2 - 1
    return np.concatenate([scaled.mean((2, 3)), scaled.max((2, 3))], 1)


# -------------------------------------------------------------------------------------- extractor


@pytest.mark.parametrize("scaling", ["imagenet", "symmetric", "unit"])
def test_a_module_of_ones_own(scaling: str) -> None:
    extractor = load_extractor(Moments(), image_size=SIDE, scaling=scaling)
    found = extractor(images(count=150))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, moments(images(count=150), scaling), atol=1e-5)


def test_maps_are_averaged() -> None:
    convolution = nn.Conv2d(3, 4, 3)
    found = load_extractor(convolution, scaling="unit")(images())
    wanted = convolution(torch.from_numpy(images()) / 255).mean((2, 3))
    np.testing.assert_allclose(found, wanted.detach(), atol=1e-5)


@pytest.mark.parametrize("batch", [2, None])
def test_exported_with_a_fixed_and_with_any_number_of_images(
    tmp_path: Path, batch: int | None
) -> None:
    shapes = None if batch else ({0: torch.export.Dim("n")},)
    example = torch.zeros(batch or 3, 3, SIDE, SIDE)
    program = torch.export.export(Moments().eval(), (example,), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    extractor = load_extractor(tmp_path / "net.pt2")
    assert (extractor.image_size, extractor.channels, extractor.scaling) == (SIDE, 3, "imagenet")
    assert extractor.fixed_batch == (batch is not None)
    np.testing.assert_allclose(extractor(images()), moments(images(), "imagenet"), atol=1e-5)


def test_exported_for_one_channel(tmp_path: Path) -> None:
    program = torch.export.export(nn.Flatten(), (torch.zeros(2, 1, 4, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    extractor = load_extractor(tmp_path / "net.pt2")
    assert (extractor.channels, extractor.scaling) == (1, "unit")
    assert extractor(images(1, 4)).shape == (COUNT, 16)


def test_torch_script(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Moments().eval(), torch.zeros(2, 3, SIDE, SIDE)).save(tmp_path / "net.pt")
    extractor = load_extractor(tmp_path / "net.pt", image_size=SIDE)
    np.testing.assert_allclose(extractor(images()), moments(images(), "imagenet"), atol=1e-5)


@pytest.mark.parametrize("preset", ["pytorch", "newmu", "carpedm20"])
def test_the_discriminator_of_a_checkpoint(tmp_path: Path, preset: str) -> None:
    _, discriminator = models.build(preset, image_size=32, nc=1, ngf=2, ndf=4)
    save_checkpoint(
        tmp_path / "checkpoint.pt",
        {
            "preset": preset,
            "config": {"discriminator": discriminator.config},
            "discriminator": discriminator.state_dict(),
        },
    )
    extractor = load_extractor(tmp_path)
    assert (extractor.image_size, extractor.channels, extractor.scaling) == (32, 1, "symmetric")
    found = extractor(images(1, 32))
    scaled = torch.from_numpy(images(1, 32)) / 127.5 - 1
    discriminator.eval()
    wanted = []
    for module in discriminator.main:
        scaled = module(scaled)
        if isinstance(module, nn.LeakyReLU):
            wanted.append(nn.functional.adaptive_max_pool2d(scaled, 4).flatten(1))
    assert found.shape[1] == sum(16 * 4 << scale for scale in range(len(wanted)))
    np.testing.assert_allclose(found, torch.cat(wanted, 1).detach(), atol=1e-4)
    with pytest.raises(UserError, match="is of images 32 wide, it cannot take 64"):
        load_extractor(tmp_path, image_size=64)


def test_pixels() -> None:
    found = load_extractor("pixels")(images(side=16))
    np.testing.assert_allclose(found, images(side=16).reshape(COUNT, -1) / 255, atol=1e-6)


def test_what_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("no network")
    with pytest.raises(UserError, match="text.pt2 is not a checkpoint that can be read"):
        load_extractor(tmp_path / "text.pt2")
    with pytest.raises(UserError, match="no such checkpoint: .*none.pt2"):
        load_extractor(tmp_path / "none.pt2")
    generator, _ = models.build("pytorch", image_size=16, nc=1, ngf=2, ndf=2)
    save_checkpoint(
        tmp_path / "g.pt",
        {"config": {"generator": generator.config}, "generator": generator.state_dict()},
    )
    with pytest.raises(UserError, match="holds no discriminator to take features from"):
        load_extractor(tmp_path / "g.pt")
    program = torch.export.export(nn.ReLU(), (torch.zeros(2, 3),))
    torch.export.save(program, tmp_path / "vectors.pt2")
    with pytest.raises(UserError, match=r"has one input \(N, C, S, S\), this one has \(2, 3\)"):
        load_extractor(tmp_path / "vectors.pt2")
    program = torch.export.export(nn.ReLU(), (torch.zeros(2, 3, 4, 5),))
    torch.export.save(program, tmp_path / "wide.pt2")
    with pytest.raises(UserError, match="takes images of 4x5, only square ones"):
        load_extractor(tmp_path / "wide.pt2")


def test_networks_that_give_something_else() -> None:
    class Pair(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images, images

    for network, message in (
        (Pair(), r"must give \(5, width\) or \(5, width, H, W\), got tuple"),
        (nn.Flatten(0), r"got \(6000,\)"),
        (nn.Flatten(0, 1), r"got \(15, 20, 20\)"),
        (nn.Linear(7, 2), r"fails on images \(5, 3, 20, 20\) \(.*\); does it take another size"),
    ):
        with pytest.raises(UserError, match=message):
            load_extractor(network)(images())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scaling": "other"}, "'scaling' must be one of imagenet, symmetric, unit; got 'other'"),
        ({"channels": 1}, "'scaling' imagenet is for 3 channels, the network takes 1"),
        ({"image_size": 0}, "'image_size' must be at least 1, got 0"),
    ],
)
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Extractor(nn.Identity(), **settings)


# ---------------------------------------------------------------------------------------- extract


def test_extract(folder: Path) -> None:
    found = extract(folder, load_extractor(Moments(), image_size=SIDE), workers=2)
    assert found.names == ["0/p0.png", "0/p2.png", "0/p4.png", "1/p1.png", "1/p3.png"]
    pixels = np.stack([np.asarray(Image.open(folder / name)) for name in found.names])
    wanted = moments(pixels.transpose(0, 3, 1, 2), "imagenet")
    np.testing.assert_allclose(found.values, wanted, atol=1e-5)


def test_images_without_names_have_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", images().transpose(0, 2, 3, 1))
    assert extract(tmp_path / "a.npy", load_extractor("pixels")).names == list("01234")


def test_images_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of its images could be read; the first: bad.png"):
        extract(tmp_path, load_extractor("pixels"))
    (tmp_path / "good.png").write_bytes((folder / "0" / "p0.png").read_bytes())
    with pytest.warns(UserWarning, match="left out 1 images that cannot be read: bad.png"):
        found = extract(tmp_path, load_extractor("pixels"))
    assert found.names == ["good.png"] and found.width == 768


def test_features_that_are_not_finite_name_the_image(folder: Path) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            found = images.flatten(1)[:, :3].clone()
            found[1:, 2] = float("nan")
            return found

    with pytest.raises(
        UserError, match="of 4 images hold NaN or infinity, the first is '0/p2.png'"
    ):
        extract(folder, load_extractor(Broken(), image_size=8))


# --------------------------------------------------------------------------------------- features


def test_features_on_disk(tmp_path: Path) -> None:
    features = Features(["a/b.png", "c\nd.png"], np.arange(6, dtype=np.float32).reshape(2, 3))
    features.save(tmp_path / "f.npy")
    again = load_features(tmp_path / "f.npy")
    assert again.names == ["a/b.png", r"c\nd.png"]
    assert np.array_equal(again.values, features.values) and again.width == 3 and len(again) == 2
    (tmp_path / "other.txt").write_text("x\r\ny\r\n")
    assert load_features(tmp_path / "f.npy", tmp_path / "other.txt").names == ["x", "y"]
    assert {path.name for path in tmp_path.iterdir()} == {"f.npy", "f.names.txt", "other.txt"}


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (["a"], np.zeros((2, 3)), r"for 1 names, at least one of each, got \(2, 3\)"),
        ([], np.zeros((0, 3)), r"got \(0, 3\)"),
        (["a"], np.zeros((1, 0)), r"got \(1, 0\)"),
        (["a", "a"], np.zeros((2, 3)), "must differ, 'a' is there twice"),
        (["a", "b"], np.array([[1.0], [np.inf]]), "of 1 images hold NaN .*'b'"),
    ],
)
def test_wrong_features(names: list[str], values: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Features(names, values)


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    with pytest.raises(UserError, match="cannot read .*f.npy: No such file"):
        load_features(path)
    path.write_bytes(b"no array")
    with pytest.raises(UserError, match="f.npy: is not an array of numbers"):
        load_features(path)
    np.save(path, np.zeros((2, 3), np.int32))
    with pytest.raises(UserError, match=r"must be floating-point \(images, width\), got int32"):
        load_features(path)
    np.save(path, np.zeros((2, 3)))
    with pytest.raises(UserError, match="names of .*f.npy cannot be read from .*f.names.txt"):
        load_features(path)
    (tmp_path / "f.names.txt").write_text("a\n")
    with pytest.raises(UserError, match="names 1 images, .*f.npy has 2 rows"):
        load_features(path)
