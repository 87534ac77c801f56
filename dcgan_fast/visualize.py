"""Pictures of what a network draws and of how its training went, made with Pillow alone."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .files import write_bytes

Path = str | os.PathLike[str]

_READABLE = 64  # pixels that an image in a grid should have to be looked at
_SHEET = (
    200,
    200,
    200,
)  # of a contact sheet: pictures with white and with black borders stand out from it
_ALPHA = {2: 1, 4: 3}  # channels of a picture -> which of them is its opacity


def to_uint8(
    images: Tensor, *, value_range: tuple[float, float] = (-1.0, 1.0)
) -> NDArray[np.uint8]:
    """Images ``(N, C, H, W)`` of any float dtype as bytes ``(N, H, W, C)``.

    ``value_range`` maps to 0 … 255, rounded and clamped as by torchvision's ``save_image``.
    """
    if images.dim() != 4:
        raise ValueError(f"to_uint8(): 'images' must be (N, C, H, W), got {tuple(images.shape)}")
    low, high = value_range
    scaled = (images.detach().float() - low) * (255 / (high - low))
    return scaled.add_(0.5).clamp_(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def to_image(image: Tensor, *, value_range: tuple[float, float] = (-1.0, 1.0)) -> Image.Image:
    """One image ``(C, H, W)`` for Pillow: grey, grey and alpha, RGB or RGBA by its channels."""
    return _pillow(to_uint8(image.unsqueeze(0), value_range=value_range)[0])


def image_grid(
    images: Tensor,
    *,
    columns: int | None = None,
    padding: int = 2,
    scale: int | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Image.Image:
    """Lay images ``(N, C, H, W)`` out row by row on black.

    ``columns`` defaults to the number that makes the grid as square as can be; ``padding`` is the
    gap in pixels around each image; ``scale`` repeats each pixel so many times both ways, by
    default as often as brings small images up to 64 pixels.
    """
    pixels = to_uint8(images, value_range=value_range)
    count, height, width, channels = pixels.shape
    if count == 0:
        raise ValueError("image_grid(): 'images' must hold at least one image, got none")
    if scale is None:
        scale = max(1, _READABLE // max(height, width, 1))
    if scale < 1:
        raise ValueError(f"image_grid(): 'scale' must be at least 1, got {scale}")
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    cell_h, cell_w = height * scale + padding, width * scale + padding
    canvas = np.zeros((rows * cell_h + padding, columns * cell_w + padding, channels), np.uint8)
    if channels in _ALPHA:
        canvas[..., _ALPHA[channels]] = 255
    for index, picture in enumerate(pixels):
        top = padding + index // columns * cell_h
        left = padding + index % columns * cell_w
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return _pillow(canvas)


def contact_sheet(
    groups: Sequence[tuple[str, NDArray[np.uint8]]], *, columns: int = 16
) -> Image.Image:
    """Lay groups of pictures out like words on a page, each under its title, on grey.

    ``groups``: titles, and uint8 images ``(n, 3, H, W)`` of one size for all, ``n`` from 1 to ``columns``, the number
    of pictures side by side.
    """
    if not groups:
        raise ValueError("contact_sheet(): 'groups' must hold at least one group, got none")
    height, width = groups[0][1].shape[2:]
    gap, title = 8, 16
    places, x, y = [], gap, gap
    right = columns * (width + 1) + 2 * gap
    for _, pictures in groups:
        if not 1 <= len(pictures) <= columns:
            raise ValueError(
                f"contact_sheet(): a group must have 1 to {columns} pictures, got {len(pictures)}"
            )
        if x + len(pictures) * (width + 1) > right:
            x, y = gap, y + title + height + gap
        places.append((x, y))
        x += len(pictures) * (width + 1) + gap
    sheet = Image.new("RGB", (right, y + title + height + gap), _SHEET)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for (text, pictures), (x, y) in zip(groups, places, strict=True):
        draw.text((x, y), text, fill=_DARK, font=font)
        for index, picture in enumerate(pictures):
            sheet.paste(_pillow(picture.transpose(1, 2, 0)), (x + index * (width + 1), y + title))
    return sheet


def save_png(image: Image.Image, path: Path) -> None:
    """Write ``image`` to ``path`` as PNG, whole or not at all; raises :class:`UserError`."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(path, buffer.getbuffer())


def _pillow(pixels: NDArray[np.uint8]) -> Image.Image:
    channels = pixels.shape[2]
    if not 1 <= channels <= 4:
        raise ValueError(f"a picture has 1 to 4 channels, got {channels}")
    return Image.fromarray(np.ascontiguousarray(pixels if channels > 1 else pixels[..., 0]))


# ---------------------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Curve:
    """One line of a panel: the key of the records it shows, and how."""

    key: str
    label: str
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class _Panel:
    """Curves under one title, to a height of ``top`` at least."""

    title: str
    curves: tuple[Curve, ...]
    top: float = 1e-3


_BLUE, _ORANGE, _GREEN, _VIOLET, _RED = (
    (31, 119, 180),
    (214, 96, 20),
    (44, 140, 60),
    (148, 103, 189),
    (170, 60, 70),
)
_TRAINING = (
    _Panel("loss", (Curve("loss_d", "D", _BLUE), Curve("loss_g", "G", _ORANGE))),
    _Panel(
        "probability of “real”",
        (
            Curve("d_x", "D(x)", _GREEN),
            Curve("d_g_z1", "D(G(z)) before D's step", _VIOLET),
            Curve("d_g_z2", "D(G(z)) after", _RED),
        ),
    ),
)
_WATCH = (
    _Panel(
        "norm of the gradient",
        (Curve("grad_norm_d", "D", _BLUE), Curve("grad_norm_g", "G", _ORANGE)),
    ),
    _Panel(
        "diversity: distance between samples / between real images",
        (Curve("diversity", "samples", _GREEN),),
        1.0,
    ),
    _Panel(
        "share of G's filters",
        (Curve("collapsed", "collapsed", _RED), Curve("oscillating", "oscillating", _VIOLET)),
        0.1,
    ),
    _Panel(
        "mean of G's filters",
        (
            Curve("sameness", "sameness", _GREEN),
            Curve("wave", "wave", _BLUE),
            Curve("swing", "swing", _VIOLET),
        ),
        1.0,
    ),
)
_SIZE = (900, 320)  # pixels of one panel
_MARGIN = (64, 34, 18, 40)  # left, top, right, bottom
_OVERSAMPLE = 2  # drawn larger and reduced: Pillow's own lines are not antialiased
_GREY, _DARK = (225, 225, 225), (60, 60, 60)


def training_curves(records: Sequence[Mapping[str, float]]) -> Image.Image:
    """Draw the losses and D's outputs over the steps: the records of a run's ``metrics.jsonl``.

    The pale line is what was recorded, the strong one its running mean over a fortieth of the run.
    """
    return _panels(_TRAINING, records)


def watch_curves(records: Sequence[Mapping[str, float]]) -> Image.Image:
    """Draw what :mod:`dcgan_fast.training.watch` measures over the steps, as :func:`training_curves` does the losses.

    A record may lack any of it.
    """
    return _panels(_WATCH, records)


def _panels(panels: Sequence[_Panel], records: Sequence[Mapping[str, float]]) -> Image.Image:
    width, height = _SIZE
    image = Image.new("RGB", (width, height * len(panels)), "white")
    for row, panel in enumerate(panels):
        image.paste(_draw_panel(panel, records), (0, row * height))
    return image


def _draw_panel(panel: _Panel, records: Sequence[Mapping[str, float]]) -> Image.Image:
    scale = _OVERSAMPLE
    width, height = (side * scale for side in _SIZE)
    left, top, right, bottom = (side * scale for side in _MARGIN)
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13 * scale)

    having = {c.key: [r for r in records if c.key in r] for c in panel.curves}
    steps = {k: np.array([r["step"] for r in having[k]], dtype=float) for k in having}
    values = {k: np.array([r[k] for r in having[k]], dtype=float) for k in having}
    x_end = max([1.0, *(float(record["step"]) for record in records)])
    x_ticks = [tick for tick in _ticks(x_end) if tick <= x_end]
    y_ticks = _ticks(max(panel.top, _top_of(list(values.values()))))
    y_end = y_ticks[-1]

    def place(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[float, float]]:
        px = left + x / x_end * (width - left - right)
        py = height - bottom - np.clip(y / y_end, 0, 1) * (height - top - bottom)
        return list(zip(px.tolist(), py.tolist(), strict=True))

    for tick in y_ticks:
        (x, y) = place(np.zeros(1), np.array([tick]))[0]
        draw.line([(x, y), (width - right, y)], fill=_GREY, width=scale)
        draw.text((x - 6 * scale, y), f"{tick:g}", fill=_DARK, font=font, anchor="rm")
    for tick in x_ticks:
        (x, y) = place(np.array([tick]), np.zeros(1))[0]
        draw.line([(x, y), (x, y + 4 * scale)], fill=_DARK, width=scale)
        draw.text((x, y + 7 * scale), f"{tick:g}", fill=_DARK, font=font, anchor="ma")
    draw.line([(left, height - bottom), (width - right, height - bottom)], fill=_DARK, width=scale)

    for curve in panel.curves:
        pale = tuple(255 - (255 - c) * 3 // 10 for c in curve.colour)
        _line(draw, place(steps[curve.key], values[curve.key]), pale, scale)
    for curve in panel.curves:
        smooth = running_mean(values[curve.key], max(1, len(values[curve.key]) // 40))
        _line(draw, place(steps[curve.key], smooth), curve.colour, 2 * scale)

    draw.text((left, top // 2), panel.title, fill=_DARK, font=font, anchor="lm")
    x = float(width - right)
    for curve in reversed(panel.curves):
        x -= draw.textlength(curve.label, font=font)
        draw.text((x, top // 2), curve.label, fill=curve.colour, font=font, anchor="lm")
        x -= 18 * scale
    draw.text((width - right, height - 4 * scale), "step", fill=_DARK, font=font, anchor="rd")
    return image.resize(_SIZE, Image.Resampling.LANCZOS)


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean over the last ``window`` values (over those there are, at the start)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _line(
    draw: ImageDraw.ImageDraw,
    points: list[tuple[float, float]],
    colour: tuple[int, ...],
    width: int,
) -> None:
    if len(points) == 1:
        (x, y) = points[0]
        draw.ellipse([x - width, y - width, x + width, y + width], fill=colour)
    elif points:
        draw.line(points, fill=colour, width=width, joint="curve")


def _top_of(values: Sequence[NDArray[np.float64]]) -> float:
    """The height a panel needs: all but the highest two in a hundred, which are single spikes."""
    together = np.concatenate(values)
    return float(np.quantile(together, 0.98)) if len(together) else 1.0


def _ticks(high: float) -> list[float]:
    """Round numbers from 0 to ``high`` or just past it, about five of them."""
    power = 10.0 ** math.floor(math.log10(high / 5))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= high / 5 * 0.999)
    return [index * step for index in range(math.ceil(high / step - 1e-9) + 1)]
