"""Decoding, colour modes, resizing: dcgan_fast/data/pictures.py."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcgan_fast.data.pictures import ArrayPictures, EncodedPictures, decode, fit

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def resize_and_crop_as_torchvision(image: Image.Image, size: int) -> np.ndarray:
    """Resize(size) and CenterCrop(size), spelt out from their documentation."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(size * long / short)
    image = image.resize((size, longer) if width <= height else (longer, size), Image.BILINEAR)
    left, top = int(round((image.width - size) / 2.0)), int(round((image.height - size) / 2.0))
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


@settings(deadline=None)  # machines stall
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 48))
def test_fit_equals_resize_and_centre_crop(width: int, height: int, size: int) -> None:
    noise = np.random.default_rng(width * 91 + height).integers(0, 256, (height, width, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    expected = resize_and_crop_as_torchvision(image, size)
    assert np.array_equal(fit(image, size, 3), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"]
)
def test_every_mode_gives_every_number_of_channels(mode: str, channels: int) -> None:
    image = Image.new(mode, (9, 7), 0 if mode in ("1", "L", "P", "I;16") else None)
    out = fit(image, 4, channels)
    assert out.shape == (channels, 4, 4) and out.dtype == np.uint8


def test_alpha_is_laid_on_white_or_kept() -> None:
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    image.paste((*GREEN, 255), (0, 0, 8, 4))
    rgb = fit(image, 8, 3)
    assert tuple(rgb[:, 0, 0]) == GREEN and tuple(rgb[:, 7, 0]) == WHITE
    assert tuple(fit(image, 8, 4)[:, 7, 0]) == (200, 0, 0, 0)


def test_transparent_palette_entry_is_laid_on_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*RED, *GREEN])
    image.paste(0, (0, 0, 8, 4))
    out = decode(encoded(image, transparency=0), 8, 3)
    assert tuple(out[:, 0, 0]) == WHITE and tuple(out[:, 7, 0]) == GREEN


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.array([[0, 128, 257, 32896], [65535, 65406, 514, 300]], np.uint16).repeat(4, 0)
    image = Image.fromarray(np.ascontiguousarray(ramp[::2]))
    out = decode(encoded(image), 4, 1)[0]
    assert set(out.ravel()) == {0, 1, 2, 128, 254, 255}


def test_cmyk_jpeg_keeps_its_colour() -> None:
    out = decode(encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG"), 8, 3)
    assert np.abs(out[:, 4, 4].astype(int) - RED).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(orientation: int) -> None:
    """Top left red; wherever the camera put it, it comes out where EXIF says."""
    image = Image.new("RGB", (64, 64), WHITE)
    image.paste(RED, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = decode(encoded(image, "JPEG", exif=exif), 64, 3)
    corner = {
        1: (0, 0),
        2: (0, 1),
        3: (1, 1),
        4: (1, 0),
        5: (0, 0),
        6: (0, 1),
        7: (1, 1),
        8: (1, 0),
    }
    row, column = corner[orientation]
    quadrants = out[:, 16::32, 16::32].astype(int)  # (3, 2, 2)
    reddish = quadrants[0] - quadrants[1] > 128
    assert reddish[row, column] and reddish.sum() == 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_lose_the_picture() -> None:
    file = encoded(Image.new("RGB", (8, 8), RED), "JPEG", exif=b"Exif\0\0II*\0garbage!")
    assert decode(file, 8, 3).shape == (3, 8, 8)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_refused(mode: str) -> None:
    image = Image.new(mode, (4, 4), 100_000)
    with pytest.raises(ValueError, match="no known range"):
        fit(image, 4, 1)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded(Image.new("1", (300, 300)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80_000)
    with pytest.raises(ValueError, match="300 x 300 pixels"):
        decode(file, 8, 1)


def test_a_strip_that_would_explode_when_resized_is_refused() -> None:
    with pytest.raises(ValueError, match="25600000 x 256 pixels"):
        fit(Image.new("L", (100_000, 1)), 256, 1)


def test_programs_are_never_started_for_a_picture() -> None:
    postscript = io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(OSError, match="cannot identify"):
        decode(postscript, 8, 3)


def test_array_pictures_of_the_right_size_are_copied_as_they_are() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3)).astype(np.uint8)
    out, unreadable = ArrayPictures(images).render(range(1, 4), 6, 3)
    assert np.array_equal(out, images[1:4].transpose(0, 3, 1, 2)) and not unreadable


@pytest.mark.parametrize("own", [1, 2, 3, 4])
@pytest.mark.parametrize("wanted", [1, 2, 3, 4])
def test_array_pictures_change_channels_and_size(own: int, wanted: int) -> None:
    images = np.full((3, 5, 8, own), 255, np.uint8)
    out, _ = ArrayPictures(images).render(range(3), 4, wanted)
    assert out.shape == (3, wanted, 4, 4) and out.min() == 255


def test_encoded_pictures_name_what_they_cannot_read() -> None:
    good = encoded(Image.new("RGB", (4, 4), RED)).getvalue()
    contents = [good, b"", good[:-30], b"not an image", good]
    names = [f"{i}.png" for i in range(5)]
    pictures = EncodedPictures(names, lambda index: io.BytesIO(contents[index]))
    out, unreadable = pictures.render(range(5), 4, 3)
    assert sorted(unreadable) == [1, 2, 3]
    assert all(unreadable[row].startswith(f"{row}.png: ") for row in unreadable)
    assert tuple(out[0, :, 0, 0]) == tuple(out[4, :, 0, 0]) == RED


@pytest.mark.parametrize(
    ("modes", "channels"), [("LL", 1), ("L1", 1), ("LR", 3), ("RR", 3), ("", 3)]
)
def test_channels_of_encoded_pictures(modes: str, channels: int) -> None:
    spelled = {"L": "L", "1": "1", "R": "RGB"}
    contents = [encoded(Image.new(spelled[mode], (4, 4))).getvalue() for mode in modes] + [b"bad"]
    pictures = EncodedPictures(["x"] * len(contents), lambda index: io.BytesIO(contents[index]))
    assert pictures.channels == channels
