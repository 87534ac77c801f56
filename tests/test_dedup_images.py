from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_dedup_hasher import pictures
from tiny_runs import one_thread  # noqa: F401

from dcgan_fast.data import Dataset, open_prepared, prepare
from dcgan_fast.data.pictures import EncodedPictures
from dcgan_fast.dedup import SemanticHasher, first_occurrence, images
from dcgan_fast.dedup.images import Deduplicated, deduplicate, without_near_duplicates
from dcgan_fast.errors import UserError

COUNT = 96


def quick(**changes: Any) -> SemanticHasher:
    return SemanticHasher(**{"epochs": 3, "batch_size": 32, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 pictures of 40x32, then copies of the first 20, 5 of them twice."""
    root = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pictures(COUNT).permute(0, 2, 3, 1).numpy()):
        image = Image.fromarray(picture).resize((40, 32))
        image.save(root / f"a{number:03}.png")
        for copy in "bc"[: (number < 20) + (number < 5)]:
            image.save(root / f"{copy}{number:03}.png")
    return root


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Deduplicated:
    return deduplicate(folder, tmp_path_factory.mktemp("out") / "kept.txt", hasher=quick())


def rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


# --------------------------------------------------------------------------------------- results


def test_lists_of_what_is_kept_and_what_goes(done: Deduplicated) -> None:
    assert (done.images, done.removed, done.groups, done.unreadable) == (COUNT + 25, 25, 20, [])
    assert done.hashed == COUNT + 25 and done.seconds > 0
    kept, removed = rows(done.kept_file), rows(done.removed_file)
    assert kept == [[f"a{number:03}.png", str(number)] for number in range(COUNT)]
    copies = [("b", n) for n in range(20)] + [("c", n) for n in range(5)]
    assert removed == [[f"{c}{n:03}.png", str(n), f"a{n:03}.png"] for c, n in copies]


def test_files_are_named_after_the_list(done: Deduplicated) -> None:
    names = sorted(path.name for path in done.kept_file.parent.iterdir())
    assert names == ["kept.groups.png", "kept.hasher.safetensors", "kept.removed.txt", "kept.txt"]
    assert done.sheet == done.kept_file.with_name("kept.groups.png")
    assert done.unreadable_file is None


def test_the_sheet_shows_the_largest_groups_first(done: Deduplicated, folder: Path) -> None:
    with Image.open(done.sheet) as sheet, Image.open(folder / "a000.png") as first:
        shown = np.asarray(sheet.crop((8, 24, 8 + 3 * 65, 24 + 64)))
        for place in range(3):  # a000, b000 and c000
            picture = shown[:, place * 65 : place * 65 + 64].astype(int)
            wanted = np.asarray(first.resize((80, 64), Image.BILINEAR).crop((8, 0, 72, 64)))
            assert np.abs(picture - wanted).max() <= 1
        assert (shown[:, 64] == 200).all()


def test_the_hasher_of_one_run_serves_another(
    done: Deduplicated, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasher = SemanticHasher.load(done.hasher_file, device="cpu")
    monkeypatch.setattr(SemanticHasher, "fit", None)
    again = deduplicate(folder, tmp_path / "list", hasher=hasher, trained=True)
    assert again.kept_file.read_text() == done.kept_file.read_text()
    assert again.hasher_file is None
    assert {p.name for p in tmp_path.iterdir()} == {"list", "list.removed.txt", "list.groups.png"}


def test_the_same_call_gives_the_same_files(
    done: Deduplicated, folder: Path, tmp_path: Path
) -> None:
    again = deduplicate(folder, tmp_path / "kept.txt", hasher=quick(), workers=3)
    for path in done.kept_file.parent.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert again.images == done.images


def test_nothing_to_remove(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "pictures.npy", pictures(40).numpy())
    for name in ("kept.groups.png", "kept.unreadable.txt"):
        (tmp_path / name).write_text("of an earlier run")
    found = deduplicate(tmp_path / "pictures.npy", tmp_path / "kept.txt", hasher=quick())
    assert (found.removed, found.groups, found.sheet) == (0, 0, None)
    assert rows(found.kept_file) == [[str(n), str(n)] for n in range(40)]  # numbers for names
    assert found.removed_file.read_bytes() == b""
    assert not (tmp_path / "kept.groups.png").exists()
    assert not (tmp_path / "kept.unreadable.txt").exists()


def test_prepared_sets_and_zips(done: Deduplicated, folder: Path, tmp_path: Path) -> None:
    prepared = prepare(folder, image_size=48, cache_dir=tmp_path / "cache", progress=False)
    found = deduplicate(prepared.path, tmp_path / "prepared.txt", hasher=quick())
    assert (found.images, found.removed) == (COUNT + 25, 25)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"top/train/{path.name}")
    found = deduplicate(tmp_path / "pictures.zip", tmp_path / "zip.txt", hasher=quick())
    assert rows(found.kept_file)[0] == ["top/train/a000.png", "0"]
    assert found.removed == 25
    with pytest.raises(UserError, match="has no 'test' split"):
        deduplicate(tmp_path / "pictures.zip", tmp_path / "zip.txt", split="test")


def test_lsun(done: Deduplicated, folder: Path, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "bedroom_train_lmdb"), map_size=1 << 24) as base:
        with base.begin(write=True) as transaction:
            for path in folder.iterdir():
                transaction.put(path.stem.encode(), path.read_bytes())
    hasher = SemanticHasher.load(done.hasher_file, device="cpu")
    source = tmp_path / "bedroom_train_lmdb"
    found = deduplicate(source, tmp_path / "kept.txt", hasher=hasher, trained=True)
    assert [name for name, *_ in rows(found.removed_file)][:2] == ["b000", "b001"]


def test_names_that_would_break_lines(tmp_path: Path) -> None:
    for name in ("a\nb.png", "c\td.png", "e\udcff.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / "made.png")
        try:
            (tmp_path / "made.png").rename(tmp_path / "in" / name)
        except FileNotFoundError:
            (tmp_path / "in").mkdir()
            (tmp_path / "made.png").rename(tmp_path / "in" / name)
    with pytest.warns(UserWarning, match="bits are the same"):
        found = deduplicate(tmp_path / "in", tmp_path / "kept.txt", hasher=quick())
    assert rows(found.kept_file) == [[r"a\nb.png", "0"]]
    assert [name for name, *_ in rows(found.removed_file)] == [r"c\td.png", r"e\udcff.png"]


# ------------------------------------------------------------------------------------- unreadable


@pytest.mark.filterwarnings("ignore:.*bits are the same")
def test_unreadable_images_are_named_and_counted(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for number in range(70):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / f"{number:03}.bmp")
    for number in (0, 65):
        (root / f"{number:03}.bmp").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"2 of 70 images could not be read .*000.bmp.*065.bmp"):
        found = deduplicate(root, tmp_path / "kept.txt", hasher=quick())
    assert found.images == 68 and len(found.unreadable) == 2
    listed = {name for path in (found.kept_file, found.removed_file) for name, *_ in rows(path)}
    assert listed == {f"{number:03}.bmp" for number in range(70) if number not in (0, 65)}
    assert [line.split(":")[0] for line in found.unreadable_file.read_text().splitlines()] == [
        "000.bmp",
        "065.bmp",
    ]


def test_no_image_can_be_read(done: Deduplicated, tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of the 1 images to train on could be read.*1.png"):
        deduplicate(root, tmp_path / "kept.txt", hasher=quick())
    hasher = SemanticHasher.load(done.hasher_file, device="cpu")
    with pytest.raises(UserError, match="none of its 1 images could be read; the first: 1.png"):
        deduplicate(root, tmp_path / "kept.txt", hasher=hasher, trained=True)
    assert not (tmp_path / "kept.txt").exists()


# ------------------------------------------------------------------------------------ continuing


class Killed(BaseException):
    pass


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ends a run when that many batches of 16 pictures are hashed; what comes after is free to run."""
    monkeypatch.setattr("dcgan_fast.data.pictures._BLOCK", 16)
    monkeypatch.setattr(images, "_BLOCKS", 1)

    def run(batches: int, *arguments: Any, **settings: Any) -> None:
        def append(self: Any, *given: Any) -> None:
            if len(self) >= batches * 16:
                raise Killed
            original(self, *given)

        original = images.CodesLog.append
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(images.CodesLog, "append", append)
            with pytest.raises(Killed):
                deduplicate(*arguments, **settings)

    yield run


@pytest.mark.parametrize("batches", [0, 1, 4])
def test_a_run_that_was_broken_off_continues(
    done: Deduplicated, folder: Path, tmp_path: Path, killed_after: Any, batches: int
) -> None:
    out = tmp_path / "kept.txt"
    killed_after(batches, folder, out, hasher=quick())
    assert not out.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SemanticHasher, "fit", None)  # the hasher is there
        found = deduplicate(folder, out, hasher=quick())
    assert found.hashed == COUNT + 25 - 16 * batches
    for path in done.kept_file.parent.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / "kept.codes").exists()


@pytest.mark.parametrize(
    "change", [{"hasher": quick(code_noise=1.0)}, {"train_images": 50}, {"split": "train"}]
)
def test_other_settings_begin_anew(
    folder: Path, tmp_path: Path, killed_after: Any, change: dict[str, Any]
) -> None:
    killed_after(2, folder, tmp_path / "kept.txt", hasher=quick())
    found = deduplicate(folder, tmp_path / "kept.txt", **{"hasher": quick(), **change})
    assert found.hashed == COUNT + 25


def test_other_images_begin_anew(tmp_path: Path, killed_after: Any) -> None:
    np.save(tmp_path / "a.npy", pictures(64).numpy())
    killed_after(2, tmp_path / "a.npy", tmp_path / "kept.txt", hasher=quick())
    np.save(tmp_path / "a.npy", pictures(65).numpy())
    found = deduplicate(tmp_path / "a.npy", tmp_path / "kept.txt", hasher=quick())
    assert found.hashed == 65


def test_a_hasher_that_is_damaged_is_trained_again(
    folder: Path, tmp_path: Path, killed_after: Any
) -> None:
    killed_after(2, folder, tmp_path / "kept.txt", hasher=quick())
    (tmp_path / "kept.hasher.safetensors").write_bytes(b"")
    assert deduplicate(folder, tmp_path / "kept.txt", hasher=quick()).removed == 25


# ----------------------------------------------------------------------------------------- errors


def test_places_for_the_lists(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; a file"):
        deduplicate(folder, tmp_path)
    with pytest.raises(UserError, match="lies among the images"):
        deduplicate(folder, folder / "lists" / "kept.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        deduplicate(folder, tmp_path / "file" / "kept.txt")
    found = deduplicate(folder, tmp_path / "new" / "folders" / "kept.txt", hasher=quick())
    assert found.kept_file.exists()


def test_wrong_arguments(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'split' must be one of"):
        deduplicate(folder, tmp_path / "k", split="some")
    with pytest.raises(UserError, match="'train_images' must be at least 1, got 0"):
        deduplicate(folder, tmp_path / "k", train_images=0)
    with pytest.raises(UserError, match="no such file or folder"):
        deduplicate(tmp_path / "none", tmp_path / "k")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="needs safetensors"):
        deduplicate(folder, tmp_path / "k")


# ------------------------------------------------------------------------------- before training


def test_a_prepared_set_without_its_near_duplicates(folder: Path, tmp_path: Path) -> None:
    whole = prepare(folder, image_size=24, cache_dir=tmp_path, progress=False)
    part = without_near_duplicates(whole, quick())
    assert (len(part), part.removed, whole.removed) == (COUNT, 25, 0)
    assert np.array_equal(part.images, whole.images[:COUNT])
    assert open_prepared(part.path, verify=True).removed == 25
    codes = quick().fit(part).transform(part)
    assert first_occurrence(codes)[0].all()


def test_it_is_made_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(folder, image_size=24, cache_dir=tmp_path, progress=False)
    hasher = quick()
    part = without_near_duplicates(whole, hasher)
    assert not hasattr(hasher, "encoder_")  # it is the caller's
    other = without_near_duplicates(whole, quick(code_noise=0.5))
    assert other.path != part.path
    monkeypatch.setattr(SemanticHasher, "fit", None)
    assert without_near_duplicates(whole, quick(progress=True)).path == part.path


def test_only_prepared_sets() -> None:
    with pytest.raises(UserError, match="noise is no prepared data set"):
        without_near_duplicates(Dataset("noise", pictures(4).numpy()), quick())


def test_a_sample_leaves_unreadable_images_out() -> None:
    def open_picture(index: int) -> io.BytesIO:
        buffer = io.BytesIO()
        if index % 3:
            Image.new("RGB", (4, 4), (index, 0, 0)).save(buffer, "PNG")
        buffer.seek(0)
        return buffer

    encoded = EncodedPictures([str(n) for n in range(90)], open_picture)
    sample = images._sample(encoded, 60, 0, 2, False)
    reds = sample[:, 0, 0, 0].tolist()
    assert sample.shape[1:] == (3, 32, 32) and 30 < len(sample) < 50
    assert reds == sorted(set(reds)) and all(red % 3 for red in reds)
    assert np.array_equal(sample, images._sample(encoded, 60, 0, 1, False))
    assert torch.equal(
        torch.from_numpy(images._sample(encoded, 1000, 0, 2, False)).sum(),
        torch.tensor(sum(n for n in range(90) if n % 3) * 32 * 32),
    )
