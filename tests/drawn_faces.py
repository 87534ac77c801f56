"""A face, drawn: OpenCV's cascade and CenterFace both take it for one."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFilter

_BACKGROUND, _HAIR, _SKIN, _SHADE = (120, 130, 140), (60, 45, 35), (225, 190, 165), (150, 110, 90)
_BROW, _WHITE, _PUPIL, _NOSE = (70, 50, 40), (240, 240, 240), (30, 20, 20), (240, 210, 190)
_NOSTRILS, _MOUTH = (160, 110, 95), (150, 60, 60)


def draw_faces(
    size: tuple[int, int], *faces: tuple[int, int, int], background: tuple[int, ...] = _BACKGROUND
) -> Image.Image:
    """A picture of (width, height) pixels with faces at (x, y) of a side each."""
    picture = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(picture)
    for x, y, side in faces:
        _draw_face(draw, x, y, side / 100)
    return picture.filter(ImageFilter.GaussianBlur(max((f[2] for f in faces), default=0) / 60))


def _draw_face(draw: ImageDraw.ImageDraw, x: int, y: int, scale: float) -> None:
    def ellipse(cx: float, cy: float, rx: float, ry: float, colour: tuple[int, int, int]) -> None:
        box = [x + (cx - rx) * scale, y + (cy - ry) * scale]
        box += [x + (cx + rx) * scale, y + (cy + ry) * scale]
        draw.ellipse(box, fill=colour)

    ellipse(50, 45, 44, 50, _HAIR)
    ellipse(50, 55, 38, 48, _SKIN)
    for eye in (34, 66):
        ellipse(eye, 46, 11, 6, _SHADE)
        ellipse(eye, 38, 12, 3, _BROW)
        ellipse(eye, 46, 7, 4, _WHITE)
        ellipse(eye, 46, 4, 4, _PUPIL)
    ellipse(50, 62, 5, 9, _NOSE)
    ellipse(50, 69, 8, 3, _NOSTRILS)
    ellipse(50, 82, 15, 4, _MOUTH)
