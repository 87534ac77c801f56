from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan_fast.errors import UserError
from dcgan_fast.slides import above, beside, grid, numbered, save_gif, save_mp4, slide, titled


def plain(colour: str, width: int = 10, height: int = 6) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_pictures_beside_and_above_each_other() -> None:
    row = beside([plain("red"), plain("blue", 4, 9)], gap=3)
    assert row.size == (17, 9)
    places = [row.getpixel(at) for at in ((9, 5), (10, 0), (13, 8), (0, 8))]
    white = (255, 255, 255)
    assert places == [(255, 0, 0), white, (0, 0, 255), white]
    column = above([plain("red"), plain("blue", 4, 9)], gap=3, margin=2)
    assert column.size == (14, 22)
    assert column.getpixel((2, 2)) == (255, 0, 0) and column.getpixel((2, 11)) == (0, 0, 255)
    assert column.getpixel((1, 1)) == white


def test_titles_and_captions_take_the_room_they_need() -> None:
    assert titled("", plain("red")).size == (10, 6)
    heights = {titled(text, plain("red")).height for text in ("a", "gjy", "Àé")}
    assert len(heights) == 1  # so that pictures beside each other stay in line
    long = titled("a title that is wider than its picture", plain("red"), "below\nin two lines")
    pixels = np.asarray(long)
    rows = np.flatnonzero((pixels == (255, 0, 0)).all(2).any(1))
    assert len(rows) == 6 and long.width > 100
    assert (pixels[: rows[0]] < 128).any() and (pixels[rows[-1] + 1 :] < 200).any()
    assert slide("A title", plain("red"), caption="c").width > 24


def test_grids_are_rgb_and_transparency_is_white() -> None:
    assert grid(torch.zeros(3, 1, 8, 8), 3).mode == "RGB"
    clear = torch.full((1, 4, 64, 64), -1.0)
    assert grid(clear).getpixel((30, 30)) == (255, 255, 255)
    sheet = numbered(torch.zeros(5, 1, 32, 32), [str(n) for n in range(5)], 3)
    assert sheet.width == 3 * 68 + 2 * 4 and sheet.height > 2 * 68


def test_gif_holds_all_frames(tmp_path: Path) -> None:
    images = torch.linspace(-1, 1, 7).reshape(7, 1, 1, 1).expand(7, 1, 16, 16)
    save_gif(images, tmp_path / "a.gif", fps=10)
    with Image.open(tmp_path / "a.gif") as read:
        assert (read.n_frames, read.size, read.info["duration"]) == (7, (256, 256), 100)
        assert read.info["loop"] == 0
        read.seek(6)
        assert read.convert("L").getpixel((5, 5)) == 255
        read.seek(0)
        assert read.convert("L").getpixel((5, 5)) == 0


def ffmpeg(folder: Path, text: str) -> None:
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)


def test_mp4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(3, 3, 16, 16)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not save_mp4(images, tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), "/bin", "/usr/bin"]))
    ffmpeg(tmp_path, 'for last; do :; done; echo "$@" > "$0.arguments"; cat > "$last"')
    assert save_mp4(images, tmp_path / "a.mp4", fps=7)
    assert (tmp_path / "a.mp4").stat().st_size == 3 * 256 * 256 * 3  # what it was given
    arguments = (tmp_path / "ffmpeg.arguments").read_text()
    assert "-pix_fmt rgb24 -s 256x256 -r 7 -i -" in arguments
    ffmpeg(tmp_path, "echo one >&2; echo no such codec >&2; exit 1")
    with pytest.raises(UserError, match="ffmpeg cannot write .*b.mp4: no such codec"):
        save_mp4(images, tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()
