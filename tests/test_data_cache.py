"""Preparing, reusing, trusting: dcgan_fast/data/{cache,dataset}.py."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcgan_fast.data import Dataset, cache, cache_directory, open_prepared, prepare
from dcgan_fast.data.cache import prepare_subset
from dcgan_fast.errors import UserError

resource = pytest.importorskip("resource")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCGAN_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """200 pictures in two classes, more than one block of work; picture i has the colour i."""
    root = tmp_path / "pictures"
    for number in range(200):
        path = root / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (number, 0, 0)).save(path)
    return root


def make(source: Any, **settings: Any) -> Dataset:
    return prepare(source, **{"image_size": 8, "progress": False, **settings})


def colours(dataset: Dataset) -> list[int]:
    return dataset.images[:, 0, 4, 4].tolist()


IN_ORDER = [*range(0, 200, 2), *range(1, 200, 2)]


def test_what_is_prepared(folder: Path) -> None:
    dataset = make(folder)
    assert isinstance(dataset.images, np.memmap) and not dataset.images.flags.writeable
    assert dataset.images.shape == (200, 3, 8, 8) and dataset.images.dtype == np.uint8
    assert (len(dataset), dataset.channels, dataset.image_size) == (200, 3, 8)
    assert colours(dataset) == IN_ORDER
    assert dataset.labels.tolist() == [0] * 100 + [1] * 100 and dataset.labels.dtype == np.int64
    assert dataset.classes == ["a", "b"] and dataset.name == "pictures" and dataset.skipped == 0
    assert np.array_equal(np.load(dataset.path / "images.npy"), dataset.images)


@pytest.mark.parametrize("workers", [1, 7])
def test_the_number_of_workers_changes_nothing(folder: Path, workers: int) -> None:
    assert colours(make(folder, workers=workers)) == IN_ORDER


@pytest.mark.parametrize("source", ["digits", "fake:20"])
def test_built_in_sources(source: str) -> None:
    dataset = make(source, image_size=32)
    assert dataset.images.shape[1:] == ((1 if source == "digits" else 3), 32, 32)
    assert make(source, image_size=32).path == dataset.path


def test_a_prepared_set_is_reused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(folder)
    monkeypatch.setattr(cache, "_build", None)
    assert make(folder).path == first.path


@pytest.mark.parametrize(
    "settings", [{"image_size": 9}, {"channels": 1}, {"split": "all"}, {"channels": 3}]
)
def test_other_settings_are_another_set(folder: Path, settings: dict[str, Any]) -> None:
    assert make(folder).path != make(folder, **settings).path


def test_a_changed_source_is_prepared_again(folder: Path) -> None:
    first = make(folder)
    (folder / "a" / "000.png").unlink()
    second = make(folder)
    assert len(second) == 199 and second.path != first.path
    Image.new("RGB", (8, 8), (99, 0, 0)).save(folder / "a" / "002.png")
    assert colours(make(folder))[0] == 99


def test_unreadable_pictures_are_named_and_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (0, 64, 199):
        (folder / "ab"[number % 2] / f"{number:03}.png").write_bytes(b"damaged")
    with pytest.warns(
        UserWarning, match=r"3 of 200 images could not be read .*a/000\.png: "
    ) as seen:
        dataset = make(folder, progress=True)
    assert seen[0].filename == __file__
    assert "left out: a/064.png" in capsys.readouterr().err
    assert len(dataset) == 197 and dataset.skipped == 3 and dataset.labels.sum() == 99
    assert colours(dataset) == [colour for colour in IN_ORDER if colour not in (0, 64, 199)]
    header = json.loads((dataset.path / "header.json").read_text())
    assert [reason.split(":")[0] for reason in header["skipped"]] == [
        "a/000.png",
        "a/064.png",
        "b/199.png",
    ]
    assert make(folder).skipped == 3  # and no second warning


def test_a_long_list_of_unreadable_pictures_is_cut(folder: Path) -> None:
    for path in sorted(folder.rglob("*.png"))[:150]:
        path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="150 of 200 .*; and 140 more"):
        assert len(make(folder)) == 50


def test_no_readable_picture_at_all(folder: Path, own_cache: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(
        UserError, match="none of its 200 images could be read; the first: a/000.png"
    ):
        make(folder)
    assert not list(own_cache.glob("*.partial")) and not list(own_cache.glob("*/header.json"))


# ---- trust


def damage(path: Path, keep_time: bool) -> None:
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_cut_file_is_noticed_and_made_again(folder: Path) -> None:
    dataset = make(folder)
    os.truncate(dataset.path / "images.npy", 1000)
    with pytest.raises(UserError, match="38528 bytes expected, 1000 found"):
        open_prepared(dataset.path)
    with pytest.warns(UserWarning, match="1000 found; preparing it again"):
        again = make(folder)
    assert again.path == dataset.path and colours(again) == IN_ORDER


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
def test_a_changed_byte_is_noticed_by_the_time(folder: Path, name: str) -> None:
    dataset = make(folder)
    damage(dataset.path / name, keep_time=False)
    with pytest.raises(UserError, match="checksum"):
        open_prepared(dataset.path)


def test_a_changed_byte_is_noticed_on_demand(folder: Path) -> None:
    dataset = make(folder)
    damage(dataset.path / "images.npy", keep_time=True)
    open_prepared(dataset.path)
    with pytest.raises(UserError, match="checksum"):
        open_prepared(dataset.path, verify=True)
    with pytest.warns(UserWarning, match="checksum.*preparing it again"):
        assert colours(make(folder, verify=True)) == IN_ORDER


def test_a_sound_copy_is_read_through_once(folder: Path, tmp_path: Path) -> None:
    dataset = make(folder)
    shutil.copytree(dataset.path, tmp_path / "copy", copy_function=shutil.copyfile)
    recorded = (dataset.path / "images.npy").stat().st_mtime_ns
    assert (tmp_path / "copy" / "images.npy").stat().st_mtime_ns != recorded
    assert colours(open_prepared(tmp_path / "copy")) == IN_ORDER
    assert (tmp_path / "copy" / "images.npy").stat().st_mtime_ns == recorded


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(version=99),
        lambda header: header.update(images={}),
        lambda header: header.pop("labels"),
        lambda header: header["images"].update(shape=[200, 3, 64]),
        lambda header: header["images"].update(dtype="int8"),
    ],
)
def test_a_damaged_header(folder: Path, change: Any) -> None:
    path = make(folder).path
    header = json.loads((path / "header.json").read_text())
    change(header)
    (path / "header.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match=str(path)):
        open_prepared(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b"null"])
def test_a_header_that_is_none(folder: Path, content: bytes) -> None:
    path = make(folder).path
    (path / "header.json").write_bytes(content)
    with pytest.raises(UserError, match="not a prepared data set"):
        open_prepared(path)
    with pytest.warns(UserWarning, match="preparing it again"):
        make(folder)


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a prepared data set"):
        open_prepared(tmp_path / "missing")


def test_a_prepared_set_is_pickled_as_its_path(folder: Path) -> None:
    dataset = make(folder)
    content = pickle.dumps(dataset)
    assert len(content) < 1000
    assert colours(pickle.loads(content)) == IN_ORDER
    own = Dataset("own", np.zeros((2, 1, 4, 4), np.uint8))
    assert pickle.loads(pickle.dumps(own)).images.shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 4, 4)), None, "must be uint8"),
        (np.zeros((2, 3, 4, 5), np.uint8), None, r"must be uint8 \(N, C, S, S\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(3, int), r"'labels' must be \(2,\)"),
    ],
)
def test_arrays_of_the_wrong_form(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dataset("own", images, labels)


# ---- writing


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*") if path.suffix != ".lock"]


def test_a_full_disk_leaves_nothing_behind(folder: Path, own_cache: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write the prepared .*\$DCGAN_FAST_CACHE"):
            make(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_over(own_cache) == []
    assert len(make(folder)) == 200


def test_too_little_space_is_said_at_once(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="needs 39 MB, 0 MB are free"):
        make(folder, image_size=256)
    assert left_over(own_cache) == []


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the prepared data set: Not a directory"):
        make(folder, cache_dir=tmp_path / "file" / "cache")


def test_an_interrupt_leaves_nothing_behind(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "_write_labels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(folder)
    assert left_over(own_cache) == []


def test_what_a_killed_process_left_is_removed(folder: Path) -> None:
    path = make(folder).path
    shutil.rmtree(path)
    stale = path.with_name(f"{path.name}.999-abcd.partial")
    stale.mkdir()
    (stale / "images.npy").write_bytes(b"half")
    assert len(make(folder)) == 200
    assert not stale.exists()


PREPARE = """
import sys, time
from pathlib import Path
from dcgan_fast.data import cache
build = cache._build
def slowly(*arguments):
    print("building", flush=True)
    time.sleep(0.5)
    build(*arguments)
cache._build = slowly
if sys.argv[2] == "no locks":
    cache.fcntl = None
print("ready", flush=True)
sys.stdin.readline()
dataset = cache.prepare(Path(sys.argv[1]), image_size=8, progress=False)
print(len(dataset), int(dataset.images.astype(int).sum()), flush=True)
"""


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_two_processes_prepare_the_same_set_at_once(
    folder: Path, own_cache: Path, locks: str
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE, str(folder), locks],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    expected = f"200 {sum(range(200)) * 64}"
    assert [lines[-1] for lines in outputs] == [expected, expected]
    builds = sum(lines.count("building") for lines in outputs)
    assert builds == (1 if locks == "locks" else 2)
    assert len(left_over(own_cache)) == 1


def test_a_process_killed_while_preparing_blocks_nobody(folder: Path, own_cache: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE.replace("sleep(0.5)", "sleep(60)"), str(folder), "locks"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    process.stdin.write("\n")
    process.stdin.flush()
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "building\n"]
    process.kill()
    process.communicate()
    begin = time.monotonic()
    assert len(make(folder)) == 200
    assert time.monotonic() - begin < 30


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "'image_size' must be an integer from 1 to 4096, got 0"),
        ({"image_size": 32.0}, "'image_size' must be"),
        ({"image_size": True}, "'image_size' must be"),
        ({"channels": 5}, "'channels' must be 1, 2, 3, 4 or None, got 5"),
        ({"split": "val"}, "'split' must be one of train, test, all, got 'val'"),
        ({"workers": 0}, "'workers' must be a positive integer or None, got 0"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"prepare\(\): {message}"):
        make("digits", **settings)


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCGAN_FAST_CACHE", str(tmp_path / "one"))
    assert cache_directory() == tmp_path / "one"
    assert cache_directory(tmp_path / "two") == tmp_path / "two"
    monkeypatch.delenv("DCGAN_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "dcgan_fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "dcgan_fast"


# ------------------------------------------------------------------------------------- subsets


def test_a_subset_is_a_prepared_set(tmp_path: Path) -> None:
    whole = prepare("digits", image_size=8, cache_dir=tmp_path, progress=False)
    chosen = np.arange(len(whole)) % 3 == 1
    part = prepare_subset(whole, "every third", lambda: chosen)
    assert np.array_equal(part.images, whole.images[chosen])
    assert np.array_equal(part.labels, whole.labels[chosen]) and part.classes == whole.classes
    assert part.removed == (~chosen).sum() and open_prepared(part.path, verify=True).removed
    assert pickle.loads(pickle.dumps(part)).removed == part.removed

    def again() -> np.ndarray:
        raise AssertionError("it was made before")

    assert prepare_subset(whole, "every third", again).path == part.path
    none = prepare_subset(whole, "none", lambda: np.zeros(len(whole), bool))
    assert len(none) == 0


def test_a_damaged_subset_is_made_again(tmp_path: Path) -> None:
    whole = prepare("digits", image_size=8, cache_dir=tmp_path, progress=False)
    part = prepare_subset(whole, "all", lambda: np.ones(len(whole), bool))
    (part.path / "images.npy").write_bytes(b"")
    part = prepare_subset(whole, "all", lambda: np.ones(len(whole), bool))
    assert np.array_equal(part.images, whole.images)
    assert not list(tmp_path.glob("*.partial"))


def test_a_failed_choice_leaves_nothing(tmp_path: Path) -> None:
    whole = prepare("digits", image_size=8, cache_dir=tmp_path, progress=False)
    before = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    with pytest.raises(ZeroDivisionError):
        prepare_subset(whole, "k", lambda: 1 // 0)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == before
    with pytest.raises(UserError, match="mine is no prepared data set"):
        prepare_subset(Dataset("mine", np.array(whole.images)), "k", lambda: np.ones(1797, bool))
