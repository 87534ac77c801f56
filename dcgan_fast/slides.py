"""Pictures for a slide: grids of images under titles, beside and above each other on white, and films of them."""

from __future__ import annotations

import io
import math
import os
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .errors import UserError
from .files import atomic_write, write_bytes
from .visualize import to_image

__all__ = ["above", "beside", "grid", "numbered", "save_gif", "save_mp4", "slide", "titled"]

_TEXT, _QUIET = (30, 30, 30), (110, 110, 110)
_TITLE, _CAPTION, _GAP = 15, 12, 20  # heights of letters and the space between pictures, in pixels
_MARGIN, _LINE = 12, 2
_SHEET = (200, 200, 200)  # between images
_READABLE = 64  # pixels that an image should have to be looked at
_FILM_SIDE = 256  # pixels that a film should be high


def grid(
    images: Tensor,
    columns: int | None = None,
    *,
    scale: int | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Image.Image:
    """Images ``(N, C, H, W)``, at least one, row by row on grey, from which black and white ones stand out; in RGB.

    ``columns`` and ``scale`` are as of :func:`~dcgan_fast.visualize.image_grid`; transparency is laid on white.
    """
    count, _, height, width = images.shape
    scale = scale or max(1, _READABLE // max(height, width, 1))
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    step_x, step_y = width * scale + _LINE, height * scale + _LINE
    size = (columns * step_x + _LINE, math.ceil(count / columns) * step_y + _LINE)
    page = Image.new("RGB", size, _SHEET)
    for index, image in enumerate(images):
        picture = _on_white(to_image(image, value_range=value_range))
        picture = picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        page.paste(picture, (_LINE + index % columns * step_x, _LINE + index // columns * step_y))
    return page


def titled(title: str, picture: Image.Image, caption: str = "") -> Image.Image:
    """``picture`` under a title and over a caption; either may be empty. Lines end where they are broken."""
    head, foot = _text_size(title, _TITLE), _text_size(caption, _CAPTION)
    width = max(picture.width, head[0], foot[0])
    page = Image.new("RGB", (width, head[1] + picture.height + foot[1]), "white")
    draw = ImageDraw.Draw(page)
    draw.multiline_text((0, 0), title, fill=_TEXT, font=ImageFont.load_default(_TITLE))
    page.paste(_on_white(picture), (0, head[1]))
    place = (0, head[1] + picture.height + 4)
    draw.multiline_text(place, caption, fill=_QUIET, font=ImageFont.load_default(_CAPTION))
    return page


def beside(pictures: Sequence[Image.Image], *, gap: int = _GAP) -> Image.Image:
    """Pictures from left to right, their tops in line."""
    page = Image.new(
        "RGB",
        (
            sum(p.width for p in pictures) + gap * (len(pictures) - 1),
            max(p.height for p in pictures),
        ),
        "white",
    )
    x = 0
    for picture in pictures:
        page.paste(_on_white(picture), (x, 0))
        x += picture.width + gap
    return page


def above(pictures: Sequence[Image.Image], *, gap: int = _GAP, margin: int = 0) -> Image.Image:
    """Pictures from top to bottom, their left sides in line, within a margin."""
    width = max(p.width for p in pictures) + 2 * margin
    height = sum(p.height for p in pictures) + gap * (len(pictures) - 1) + 2 * margin
    page = Image.new("RGB", (width, height), "white")
    y = margin
    for picture in pictures:
        page.paste(_on_white(picture), (margin, y))
        y += picture.height + gap
    return page


def slide(title: str, *rows: Image.Image, caption: str = "") -> Image.Image:
    """A whole picture: rows below a title, with a margin around them."""
    return above([titled(title, above(rows), caption)], margin=_MARGIN)


def numbered(
    images: Tensor,
    names: Sequence[str],
    columns: int,
    *,
    scale: int | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Image.Image:
    """Images in rows, each over its name: a contact sheet to choose from."""
    cells = [
        titled("", grid(image[None], scale=scale, value_range=value_range), name)
        for image, name in zip(images, names, strict=True)
    ]
    rows = [beside(cells[i : i + columns], gap=4) for i in range(0, len(cells), columns)]
    return above(rows, gap=4)


def _text_size(text: str, size: int) -> tuple[int, int]:
    """Width and height of lines of text; the height depends on their number alone."""
    if not text:
        return 0, 0
    draw, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), ImageFont.load_default(size)
    box = draw.multiline_textbbox((0, 0), text, font=font)
    lines = text.count("\n") + 1
    return int(box[2]) + 1, int(
        draw.multiline_textbbox((0, 0), "Àg\n" * (lines - 1) + "Àg", font=font)[3]
    ) + 6


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode not in ("LA", "RGBA"):
        return picture.convert("RGB")
    page = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(page, picture.convert("RGBA")).convert("RGB")


# ------------------------------------------------------------------------------------------ films


def _frames(images: Tensor, value_range: tuple[float, float]) -> list[Image.Image]:
    """Images large enough to be watched, of an even number of pixels each way, as H.264 wants them."""
    scale = max(2, 2 * round(_FILM_SIDE / (2 * images.shape[2])))
    size = (images.shape[3] * scale, images.shape[2] * scale)
    pictures = [_on_white(to_image(image, value_range=value_range)) for image in images]
    return [picture.resize(size, Image.Resampling.NEAREST) for picture in pictures]


def save_gif(
    images: Tensor,
    path: str | os.PathLike[str],
    *,
    fps: float = 12,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> None:
    """Write images ``(N, C, H, W)``, at least one, as a GIF that repeats; raises :class:`UserError`."""
    first, *others = _frames(images, value_range)
    buffer = io.BytesIO()
    # Hundredths of a second are a GIF's unit.
    first.save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=others,
        duration=max(20, 10 * round(100 / fps)),
        loop=0,
    )
    write_bytes(path, buffer.getbuffer())


def save_mp4(
    images: Tensor,
    path: str | os.PathLike[str],
    *,
    fps: float = 12,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> bool:
    """Write images ``(N, C, H, W)`` as an MP4 where the program ffmpeg is found; whether it was.

    Raises:
        UserError: ffmpeg fails, or the file cannot be written.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        return False
    frames = _frames(images, value_range)
    width, height = frames[0].size
    with atomic_write(path) as file:
        command = [program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-", "-an"]
        command += ["-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", file.name]
        done = subprocess.run(
            command, input=b"".join(np.asarray(f).tobytes() for f in frames), capture_output=True
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise UserError(f"ffmpeg cannot write {path}: {lines[-1]}")
    return True
