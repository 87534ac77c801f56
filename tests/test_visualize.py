from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan_fast.visualize import (
    contact_sheet,
    image_grid,
    running_mean,
    save_png,
    to_image,
    to_uint8,
    training_curves,
    watch_curves,
)


def records(steps: int) -> list[dict[str, float]]:
    return [
        {"step": 10 * i, "loss_d": 1.0, "loss_g": 2.0 + i, "d_x": 0.8, "d_g_z1": 0.3, "d_g_z2": 0.2}
        for i in range(1, steps + 1)
    ]


def test_bytes_are_rounded_and_clamped() -> None:
    values = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.5, 1.0, 9.0]).reshape(1, 1, 1, 7)
    assert to_uint8(values).ravel().tolist() == [0, 0, 0, 128, 191, 255, 255]


def test_every_byte_survives_the_way_to_float_and_back() -> None:
    pixels = torch.arange(256).reshape(1, 1, 16, 16)
    assert np.array_equal(to_uint8(pixels / 127.5 - 1)[0, ..., 0], pixels[0, 0].numpy())
    assert np.array_equal(to_uint8(pixels, value_range=(0, 255))[0, ..., 0], pixels[0, 0].numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_float_dtype(dtype: torch.dtype) -> None:
    assert to_uint8(torch.ones(1, 3, 2, 2, dtype=dtype)).min() == 255


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_channels_become_modes(channels: int, mode: str) -> None:
    assert to_image(torch.zeros(channels, 4, 5)).mode == mode
    assert to_image(torch.zeros(channels, 4, 5)).size == (5, 4)
    assert image_grid(torch.zeros(2, channels, 4, 4)).mode == mode


def test_padding_of_a_transparent_grid_is_opaque_black() -> None:
    assert image_grid(-torch.ones(1, 4, 2, 2)).getpixel((0, 0)) == (0, 0, 0, 255)


def test_grid_places_each_image(tmp_path: Path) -> None:
    images = torch.linspace(0, 255, 5).reshape(5, 1, 1, 1).expand(5, 1, 3, 3)
    grid = image_grid(images, columns=2, padding=1, scale=2, value_range=(0, 255))
    assert grid.size == (2 * 7 + 1, 3 * 7 + 1)
    corners = [grid.getpixel((1 + 7 * (i % 2), 1 + 7 * (i // 2))) for i in range(5)]
    assert corners == to_uint8(images, value_range=(0, 255))[:, 0, 0, 0].tolist()
    assert grid.getpixel((7, 7)) == 0
    assert grid.getpixel((8, 15)) == 0  # no sixth image
    save_png(grid, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as read:
        assert np.array_equal(np.asarray(read), np.asarray(grid))


def test_grid_is_as_square_as_can_be() -> None:
    assert image_grid(torch.zeros(10, 1, 4, 4), padding=0, scale=1).size == (16, 12)
    assert image_grid(torch.zeros(3, 1, 4, 4), padding=0, scale=1, columns=8).size == (12, 4)


@pytest.mark.parametrize(("size", "side"), [(16, 64), (28, 56), (32, 64), (64, 64), (128, 128)])
def test_small_images_are_enlarged(size: int, side: int) -> None:
    assert image_grid(torch.zeros(1, 1, size, size), padding=0).size == (side, side)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(0, 1, 4, 4), {}, "at least one image"),
        (torch.zeros(4, 4), {}, r"\(N, C, H, W\), got \(4, 4\)"),
        (torch.zeros(1, 5, 4, 4), {}, "1 to 4 channels, got 5"),
        (torch.zeros(1, 1, 4, 4), {"scale": 0}, "'scale' must be at least 1, got 0"),
    ],
)
def test_wrong_images(images: torch.Tensor, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_grid(images, **options)


@pytest.mark.parametrize("steps", [0, 1, 2, 700])
def test_curves_of_any_length(steps: int) -> None:
    image = training_curves(records(steps))
    assert image.size == (900, 640)
    drawn = (np.asarray(image.convert("HSV"))[..., 1] > 128).any()  # a saturated colour
    assert drawn  # at the least the legend


def test_curve_is_where_its_values_are() -> None:
    image = np.asarray(training_curves(records(100)))[:320].astype(int)
    blue = (image[..., 2] - image[..., 0] > 100) & (image[..., 1] < 160)
    rows, columns = np.nonzero(blue[40:280, 70:870])
    assert columns.min() < 15 and columns.max() > 780  # a line over all the steps
    assert rows.max() - rows.min() <= 3  # loss_d is constant


@pytest.mark.parametrize("steps", [0, 1, 2, 700])
def test_curves_of_what_is_watched(steps: int) -> None:
    found = [{**record, "grad_norm_d": 3.0, "grad_norm_g": 1.0} for record in records(steps)]
    for record in found[::10]:  # what a look adds
        record |= {"diversity": 0.5, "collapsed": 0.02}
    image = watch_curves(found)
    assert image.size == (900, 1280)
    green = np.asarray(image).astype(int)[320 + 40 : 640 - 45, 70:890]
    green = (green[..., 1] - green[..., 0] > 60) & (green[..., 1] - green[..., 2] > 60)
    assert green.any() == (steps > 0)
    if steps == 700:
        rows, columns = np.nonzero(green)
        assert columns.max() - columns.min() > 780 and rows.max() - rows.min() <= 3
        assert (
            110 < rows.mean() < 140
        )  # half of the height: the axis goes to 1 though no value does
    assert watch_curves(records(steps)).size == (900, 1280)  # of a run that was not watched


def test_running_mean() -> None:
    assert running_mean(np.array([1.0, 3, 5, 7]), 2).tolist() == [1, 2, 4, 6]
    assert running_mean(np.array([]), 3).size == 0


def test_a_contact_sheet_wraps_its_groups_like_words() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    groups = [
        (str(c), np.broadcast_to(np.array(c, np.uint8)[:, None, None], (n, 3, 10, 20)))
        for n, c in zip((3, 1, 2), colours, strict=True)
    ]
    sheet = np.asarray(contact_sheet(groups, columns=5))
    assert sheet.shape == (2 * (16 + 10) + 3 * 8, 5 * 21 + 16, 3)

    def place(colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
        rows, columns = np.nonzero((sheet == colour).all(2))
        return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1

    assert place(colours[0]) == (24, 34, 8, 8 + 3 * 21 - 1)
    assert place(colours[1]) == (24, 34, 8 + 3 * 21 + 8, 8 + 3 * 21 + 8 + 20)
    assert place(colours[2]) == (58, 68, 8, 8 + 2 * 21 - 1)
    assert (sheet[8:24] != 200).any()  # titles


@pytest.mark.parametrize(
    ("sizes", "message"), [([], "at least one group"), ([0], "1 to 16"), ([17], "1 to 16.*17")]
)
def test_wrong_contact_sheets(sizes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contact_sheet([("", np.zeros((size, 3, 4, 4), np.uint8)) for size in sizes])
