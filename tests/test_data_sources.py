"""Finding and opening sources: dcgan_fast/data/{find,builtin,idx,cifar,arrays,files,lsun}.py."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dcgan_fast.data import find, prepare
from dcgan_fast.data.cifar import load_plain_pickle
from dcgan_fast.data.files import arrange, list_files
from dcgan_fast.data.find import find_source
from dcgan_fast.data.idx import read_idx
from dcgan_fast.data.pictures import Rendered
from dcgan_fast.errors import UserError


class Read:
    """Everything of a source, read at 8x8."""

    def __init__(
        self, source: str | Path, split: str = "train", channels: int | None = None
    ) -> None:
        found = find_source(source, split)
        with found.open() as pictures:
            self.name = found.name
            self.channels = channels or pictures.channels
            self.labels, self.classes = pictures.labels, pictures.classes
            rendered: Rendered = pictures.render(range(len(pictures)), 8, self.channels)
            self.images, self.unreadable = rendered


def png(value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(file, "PNG")
    return file.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ---- built in


def test_digits() -> None:
    digits = Read("digits")
    assert digits.images.shape == (1797, 1, 8, 8) and digits.images.max() == 255
    assert digits.classes == list("0123456789") and len(digits.labels) == 1797
    with pytest.raises(UserError, match="no 'test' split"):
        find_source("digits", "test")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_fake_is_the_same_every_time(channels: int) -> None:
    first, second = Read("fake:50", channels=channels), Read("fake:50", channels=channels)
    assert first.images.shape == (50, channels, 8, 8)
    assert np.array_equal(first.images, second.images)
    assert len(np.unique(first.images.reshape(50, -1), axis=0)) == 50


@pytest.mark.parametrize("spec", ["fake:", "fake:0", "fake:-3", "fake:many"])
def test_fake_with_a_bad_count(spec: str) -> None:
    with pytest.raises(UserError, match="fake:COUNT"):
        find_source(spec, "train")


# ---- idx


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, pack: Callable[[bytes], bytes] = bytes, suffix: str = "") -> Path:
    for prefix, count, value in (("train", 6, 10), ("t10k", 4, 20)):
        images = np.full((count, 8, 8), value)
        write(folder / f"{prefix}-images-idx3-ubyte{suffix}", pack(idx(images)))
        write(folder / f"{prefix}-labels-idx1-ubyte{suffix}", pack(idx(np.arange(count))))
    return folder


@pytest.mark.parametrize(("pack", "suffix"), [(bytes, ""), (gzip.compress, ".gz")])
def test_idx_folder_and_its_splits(tmp_path: Path, pack: Any, suffix: str) -> None:
    write_mnist(tmp_path / "set", pack, suffix)
    train, test, both = (Read(tmp_path / "set", split) for split in ("train", "test", "all"))
    assert train.name == "set" and train.channels == 1
    assert train.images.shape == (6, 1, 8, 8) and np.all(train.images == 10)
    assert test.images.shape == (4, 1, 8, 8) and np.all(test.images == 20)
    assert both.labels.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert train.classes == list("012345") and train.labels.dtype == np.int64


def test_idx_single_file_takes_its_labels_from_beside(tmp_path: Path) -> None:
    path = write_mnist(tmp_path) / "t10k-images-idx3-ubyte"
    assert Read(path).labels.tolist() == [0, 1, 2, 3]
    lone = write(tmp_path / "lone.bin", path.read_bytes())
    assert Read(lone).labels is None


def test_idx_inside_torchvisions_folder_and_fashion_names(tmp_path: Path) -> None:
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    assert Read(tmp_path).classes[:2] == ["T-shirt/top", "Trouser"]


def test_idx_only_one_split(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for path in tmp_path.glob("t10k*"):
        path.unlink()
    with pytest.raises(UserError, match=r"no 'test' split \(found: train\)"):
        find_source(tmp_path, "test")


def test_several_sets_in_a_folder_are_ambiguous(tmp_path: Path) -> None:
    write_mnist(tmp_path / "a")
    write_mnist(tmp_path / "b")
    with pytest.raises(UserError, match="several data sets, name one of them: 'a/', 'b/'"):
        find_source(tmp_path, "train")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "magic number 0x00000803, found 0x$"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "magic number 0x00000803, found 0x89504e47"),
        (idx(np.zeros((3, 2, 2)))[:9], "header of 16 bytes expected, 9 found"),
        (idx(np.zeros((3, 2, 2)))[:-1], "3 x 2 x 2 = 12 bytes expected after the header, 11 found"),
        (idx(np.zeros((3, 2, 2))) + b"!", "12 bytes expected after the header, more follow"),
        (
            struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3),
            "= 79228162458924105385300197375 bytes",
        ),
        (idx(np.zeros((0, 2, 2))), "holds no images"),
        (struct.pack(">4B3I", 0, 0, 13, 3, 1, 1, 1) + bytes(4), "found 0x00000d03"),
    ],
)
def test_damaged_idx_images(tmp_path: Path, content: bytes, message: str, pack: Any) -> None:
    path = write(tmp_path / "train-images-idx3-ubyte", pack(content))
    with pytest.raises(UserError, match=message):
        Read(path)


def test_truncated_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (50, 8, 8))))
    path = write(tmp_path / "train-images-idx3-ubyte.gz", whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        Read(path)


def test_labels_must_match_the_images(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write(tmp_path / "train-labels-idx1-ubyte", idx(np.arange(5)))
    with pytest.raises(UserError, match="expected 6 integer labels"):
        Read(tmp_path)


@settings(deadline=None)  # machines stall
@given(st.binary(max_size=200), st.booleans())
@example(bytes((0, 0, 8, 3)), False)
@example(b"\x1f\x8b", False)
@example(struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 2**31), True)
def test_idx_of_random_bytes_gives_an_array_or_a_user_error(body: bytes, zipped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder, "x"), gzip.compress(body) if zipped else body)
        try:
            array = read_idx(path, ndim=3)
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert array.nbytes == len(body) - 16


@settings(deadline=None)  # machines stall
@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(-3, 3), st.booleans())
def test_idx_of_the_right_form(shape: list[int], change: int, zipped: bool) -> None:
    array = np.random.default_rng(sum(shape)).integers(0, 256, shape).astype(np.uint8)
    content = idx(array)
    content = content + bytes(change) if change >= 0 else content[:change]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder, "x"), gzip.compress(content) if zipped else content)
        if change == 0:
            assert np.array_equal(read_idx(path, ndim=len(shape)), array)
        else:
            with pytest.raises(UserError):
                read_idx(path, ndim=len(shape))


# ---- CIFAR


def cifar_batch(count: int, value: int, protocol: int = 2) -> bytes:
    data = np.full((count, 3072), value, np.uint8)
    labels = [i % 2 for i in range(count)]
    return pickle.dumps(
        {b"data": data, b"labels": labels, b"filenames": [b"x.png"] * count}, protocol
    )


def write_cifar(folder: Path, protocol: int = 2) -> Path:
    for number in range(1, 6):
        write(folder / f"data_batch_{number}", cifar_batch(2, number, protocol))
    write(folder / "test_batch", cifar_batch(3, 99, protocol))
    write(folder / "batches.meta", pickle.dumps({"label_names": ["cat", "dog"]}, protocol))
    return folder


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_cifar_batches(tmp_path: Path, protocol: int) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py", protocol)
    train, test = Read(tmp_path), Read(tmp_path / "cifar-10-batches-py", "test")
    assert train.images[:, 0, 0, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert train.labels.tolist() == [0, 1] * 5 and train.classes == ["cat", "dog"]
    assert np.all(test.images == 99) and len(test.images) == 3 and test.channels == 3
    assert len(Read(tmp_path, "all").images) == 13


def test_cifar_pickled_by_python_2(tmp_path: Path) -> None:
    """As the author's own files: byte strings, numpy.core.multiarray, dtype 'u1'."""
    raw = bytes(range(256)) * 12
    stream = (
        b"(dp1\nS'data'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n(I0\ntp5\n"
        b"S'b'\np6\ntRp7\n(I1\n(I1\nI3072\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntRp11\n"
        b"(I3\nS'|'\np12\nNNNI-1\nI-1\nI0\ntbI00\nT" + struct.pack("<I", 3072) + raw + b"tbs"
        b"S'labels'\np13\n(lp14\nI7\nas."
    )
    write(tmp_path / "data_batch_1", stream)
    cifar = Read(tmp_path)
    assert cifar.labels.tolist() == [7] and cifar.classes is None
    planes = np.frombuffer(raw, np.uint8).reshape(3, 32, 32)
    assert np.array_equal(load_plain_pickle(tmp_path / "data_batch_1")["data"][0], planes.ravel())


def test_cifar_100(tmp_path: Path) -> None:
    content = {
        "data": np.zeros((2, 3072), np.uint8),
        "fine_labels": [1, 0],
        "coarse_labels": [0, 0],
    }
    for part in ("train", "test"):
        write(tmp_path / part, pickle.dumps(content))
    write(tmp_path / "meta", pickle.dumps({"fine_label_names": ["apple", "fish"]}))
    assert Read(tmp_path).labels.tolist() == [1, 0] and Read(tmp_path).classes == ["apple", "fish"]


class Malicious:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.system, exec, eval, getattr, np.save, np.load])
def test_malicious_pickles_are_refused(tmp_path: Path, protocol: int, function: Any) -> None:
    trace = tmp_path / "trace"
    arguments = {os.system: (f"touch {trace}",), np.save: (str(trace), 0)}
    command = arguments.get(function, (f"open({str(trace)!r}, 'w')",))
    content = {b"data": Malicious(function, *command), b"labels": []}
    path = write(tmp_path / "data_batch_1", pickle.dumps(content, protocol))
    with pytest.raises(UserError, match="which is not allowed"):
        Read(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": 1, "labels": [0]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.float32), "labels": [0, 0]}),
        pickle.dumps({"data": np.zeros((2, 9), np.uint8), "labels": [0, 0]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, -1]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": ["a", "b"]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [2**70, 1]}),
        pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": []}),
        pickle.dumps({"data": np.zeros((2, 3072), object), "labels": [0, 0]}),
        cifar_batch(2, 1)[:-100],
        b"\x80\x02}r\xff\xff\xff\xff.",
    ],
)
def test_damaged_cifar(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "data_batch_1", content)
    with pytest.raises(UserError, match="data_batch_1: |no 'train'"):
        Read(tmp_path)


def test_cifar_label_without_a_name(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    write(tmp_path / "batches.meta", pickle.dumps({"label_names": ["cat"]}))
    with pytest.raises(UserError, match=r"label 1, but batches.meta names 1"):
        Read(tmp_path)


@settings(deadline=None)  # machines stall
@given(st.data())
def test_a_damaged_pickle_gives_a_dict_or_a_user_error(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps({"data": np.zeros((1, 30), np.uint8), "labels": [1, 2]}, 2))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder, "x"), bytes(content))
        try:
            assert isinstance(load_plain_pickle(path), dict)
        except UserError as error:
            assert "not a CIFAR batch" in str(error)


# ---- numpy files


@pytest.mark.parametrize(
    ("shape", "channels"), [((5, 8, 8), 1), ((5, 8, 8, 3), 3), ((5, 3, 8, 8), 3), ((5, 1, 8, 8), 1)]
)
def test_npy(tmp_path: Path, shape: tuple[int, ...], channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.save(tmp_path / "pictures.npy", images)
    read = Read(tmp_path / "pictures.npy")
    assert read.images.shape == (5, channels, 8, 8) and read.name == "pictures"
    expected = images.transpose(0, 3, 1, 2) if shape[-1] == 3 else images.reshape(5, channels, 8, 8)
    assert np.array_equal(read.images, expected)


@pytest.mark.parametrize(
    ("images", "labels"), [("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("x_{}", "unknown_{}")]
)
def test_npz_with_splits(tmp_path: Path, images: str, labels: str) -> None:
    content = {}
    for part, count in (("train", 3), ("test", 2)):
        content[images.format(part)] = np.full((count, 8, 8), count, np.uint8)
        content[labels.format(part)] = np.arange(count).reshape(count, 1)
    np.savez(tmp_path / "set.npz", **content)
    read = Read(tmp_path / "set.npz", "all")
    assert read.images[:, 0, 0, 0].tolist() == [3, 3, 3, 2, 2]
    assert labels.startswith("unknown") == (read.labels is None)
    if read.labels is not None:
        assert read.labels.tolist() == [0, 1, 2, 0, 1]
    assert len(Read(tmp_path / "set.npz", "test").images) == 2


def test_npz_without_splits(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=np.zeros((3, 8, 8, 3), np.uint8), labels=np.array([2, 1, 0], np.uint8))
    assert Read(path).labels.tolist() == [2, 1, 0]
    with pytest.raises(UserError, match="no 'test' split"):
        Read(path, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": np.zeros((2, 8, 8))}, "must be uint8"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, "must be uint8"),
        ({"images": np.zeros((2, 8, 8, 5), np.uint8)}, "must be uint8"),
        ({"other": np.zeros((2, 8, 8), np.uint8)}, "no array named images or x or data or arr_0"),
        (
            {"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros(3, int)},
            "expected 2 integer",
        ),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros(2)}, "expected 2 integer"),
        ({"images": np.array([{}, {}])}, "allow_pickle"),
    ],
)
def test_bad_npz(tmp_path: Path, content: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "set.npz", **content)
    with pytest.raises(UserError, match=message):
        Read(tmp_path / "set.npz")


@settings(deadline=None)  # machines stall
@given(st.binary(max_size=100), st.sampled_from([".npy", ".npz"]), st.booleans())
def test_random_numpy_files_give_a_user_error(content: bytes, suffix: str, magic: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder, f"x{suffix}"), b"\x93NUMPY" * magic + content)
        with pytest.raises(UserError):
            Read(path)


# ---- folders and zips


def zip_of(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for entry in sorted(folder.rglob("*"), reverse=True):  # the order must not matter
            archive.write(entry, entry.relative_to(folder.parent))
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_classes_and_splits_from_folders(tmp_path: Path, zipped: bool) -> None:
    root = tmp_path / "set"
    for name, value in [("train/b/1", 1), ("train/b/0", 2), ("train/a/deep/9", 3), ("test/b/7", 4)]:
        write(root / f"{name}.png", png(value))
    source = zip_of(root, tmp_path / "set.zip") if zipped else root
    train, test, both = (Read(source, split) for split in ("train", "test", "all"))
    assert train.images[:, 0, 0, 0].tolist() == [3, 2, 1]
    assert train.labels.tolist() == [0, 1, 1] and train.classes == ["a", "b"]
    assert test.labels.tolist() == [1] and test.classes == ["a", "b"]
    assert both.images[:, 0, 0, 0].tolist() == [4, 3, 2, 1]
    assert train.name == "set"


@pytest.mark.parametrize("zipped", [False, True])
def test_only_images_count(tmp_path: Path, zipped: bool) -> None:
    root = tmp_path / "set"
    for name in ["b.PNG", "a.jpeg", "sub/c.bmp"]:
        write(root / name, png(9))
    for name in [".hidden.png", "__MACOSX/x.png", ".git/y.png", "notes.txt", "z.eps", "list.csv"]:
        write(root / name, png())
    read = Read(zip_of(root, tmp_path / "set.zip") if zipped else root)
    assert len(read.images) == 3 and np.all(read.images == 9)
    assert read.labels is None and read.classes is None


def test_grey_files_give_one_channel(tmp_path: Path) -> None:
    write(tmp_path / "a.png", png(7, mode="L"))
    write(tmp_path / "b.png", png(8, mode="L"))
    assert Read(tmp_path).images.shape == (2, 1, 8, 8)
    assert Read(tmp_path, channels=3).images.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("paths", "split", "chosen", "labels", "classes"),
    [
        ("1 2", "train", "1 2", None, None),
        ("d/1 d/2", "train", "d/1 d/2", None, None),
        ("a/1 b/2", "all", "a/1 b/2", [0, 1], ["a", "b"]),
        ("a/1 b/2 3", "train", "a/1 b/2 3", None, None),
        ("w/a/1 w/b/2", "train", "w/a/1 w/b/2", [0, 1], ["a", "b"]),
        ("w/train/1 w/val/2", "test", "w/val/2", None, None),
        ("Train/a/1 VALID/b/2", "train", "Train/a/1", [0], ["a", "b"]),
        ("train/a/1 train/b/2 test/3", "train", "train/a/1 train/b/2", [0, 1], ["a", "b"]),
        ("train/a/1 train/b/2 test/3", "all", "train/a/1 train/b/2 test/3", None, None),
        ("train/a/1 train/b/2", "train", "train/a/1 train/b/2", [0, 1], ["a", "b"]),
        ("train/1 car/2", "train", "train/1 car/2", [1, 0], ["car", "train"]),
    ],
)
def test_arrange(paths: str, split: str, chosen: str, labels: Any, classes: Any) -> None:
    parts = [tuple(path.split("/")) for path in paths.split()]
    rows, found_labels, found_classes = arrange(Path("x"), parts, split)
    assert ["/".join(parts[row]) for row in rows] == chosen.split()
    assert (None if found_labels is None else found_labels.tolist()) == labels
    assert found_classes == classes


def test_arrange_without_the_split() -> None:
    with pytest.raises(UserError, match=r"no 'test' split \(found: train\)"):
        arrange(Path("x"), [("a.png",)], "test")


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.png", png())
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(root)
    (root / "nowhere.png").symlink_to(root / "missing")
    assert list_files(root) == ["link/a.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="no images"):
        find_source(tmp_path, "train")


def test_zip_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as a zip"):
        Read(write(tmp_path / "x.zip", b"PK\x03\x04 and then nothing"))


def test_zip_members_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png(5))
        archive.writestr("b.png", png(6))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 0xFF  # breaks the member's CRC
    path.write_bytes(bytes(content))
    read = Read(path)
    assert list(read.unreadable) == [0] and read.unreadable[0].startswith("a.png: Bad CRC-32")


def test_zip_member_too_long_to_be_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(1 << 20))
    monkeypatch.setattr("dcgan_fast.data.files._LONGEST", 1 << 19)
    assert "1048576 bytes" in Read(path, channels=3).unreadable[0]


# ---- LSUN


def test_lmdb_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    write(tmp_path / "bedroom_train_lmdb" / "data.mdb", b"x")
    with pytest.raises(UserError, match=r"needs lmdb: pip install lmdb, or 'dcgan-fast\[lmdb\]'"):
        Read(tmp_path / "bedroom_train_lmdb")


def write_lmdb(folder: Path, images: dict[str, bytes]) -> None:
    lmdb = pytest.importorskip("lmdb")
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 20) as base, base.begin(write=True) as transaction:
        for key, image in images.items():
            transaction.put(key.encode(), image)


def test_lmdb(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "bedroom_train_lmdb", {"b": png(2), "a": png(1), "c": b"damaged"})
    write_lmdb(tmp_path / "church_train_lmdb", {"d": png(4)})
    write_lmdb(tmp_path / "church_val_lmdb", {"e": png(5)})
    one = Read(tmp_path / "bedroom_train_lmdb")
    assert one.images[:2, 0, 0, 0].tolist() == [1, 2] and list(one.unreadable) == [2]
    assert one.labels is None and one.name == "bedroom_train"
    train, test = Read(tmp_path), Read(tmp_path, "test")
    assert train.labels.tolist() == [0, 0, 0, 1] and train.classes == ["bedroom", "church"]
    assert test.images[:, 0, 0, 0].tolist() == [5] and test.labels is None


def test_damaged_lmdb(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    write(tmp_path / "data.mdb", b"not a data base" * 1000)
    with pytest.raises(UserError, match="cannot be read as an lmdb data base"):
        Read(tmp_path)


# ---- recognising


def test_well_known_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    write_mnist(tmp_path / "fashion-mnist", gzip.compress, ".gz")
    write_cifar(tmp_path / "cifar-10-batches-py")
    monkeypatch.setattr(find, "_BASES", (tmp_path / "nowhere", tmp_path))
    for name, count in (("mnist", 6), ("fashion-mnist", 6), ("cifar10", 10)):
        read = Read(name)
        assert read.name == name and len(read.images) == count
    assert Read("fashion-mnist").classes[0] == "T-shirt/top"


def test_well_known_name_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_BASES", (tmp_path,))
    with pytest.raises(UserError, match="not found in .*apt install dataset-fashion-mnist"):
        find_source("fashion-mnist", "train")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "no such file or folder, nor one of the names digits, fake, mnist"),
        ("empty", r"no images in it \(looked for .avif, .bmp"),
        ("notes.txt", "not a data set: expected a folder, a .zip"),
        ("a.png", "one file of a data set; give the folder"),
        ("data_batch_1", "one file of a data set; give the folder"),
        ("text.zip", "no images in it"),
        ("train-labels-idx1-ubyte", "expected the magic number 0x00000803, found 0x00000801"),
    ],
)
def test_what_is_not_a_data_set(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "notes.txt", b"hello")
    write(tmp_path / "a.png", png())
    write(tmp_path / "data_batch_1", b"")
    write(tmp_path / "train-labels-idx1-ubyte", idx(np.arange(3)))
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(UserError, match=message):
        Read(tmp_path / path)


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    def now() -> str:
        return find_source(tmp_path, "train").fingerprint

    write(tmp_path / "a.png", png(1))
    first = now()
    assert now() == first
    os.utime(tmp_path / "a.png", ns=(0, 0))
    touched = now()
    write(tmp_path / "b.png", png(1))
    added = now()
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert len({first, touched, added, now()}) == 4


# ---------------------------------------------------------------------------------- prepared sets


def test_a_prepared_set_is_a_source(tmp_path: Path) -> None:
    first = prepare("digits", image_size=8, cache_dir=tmp_path, progress=False)
    again = prepare(first.path, image_size=8, cache_dir=tmp_path, progress=False)
    assert again.path != first.path
    assert np.array_equal(again.images, first.images)
    assert np.array_equal(again.labels, first.labels) and again.classes == first.classes
    assert prepare(first.path, image_size=4, channels=3, cache_dir=tmp_path).images.shape[1:] == (
        3,
        4,
        4,
    )
    with pytest.raises(UserError, match="'test' split"):
        prepare(first.path, image_size=8, split="test", cache_dir=tmp_path)


def test_pictures_in_files_have_names(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    with find_source(tmp_path, "all").open() as pictures:
        assert list(pictures.names) == ["a/1.png", "b/2.png"]
    with find_source("digits", "all").open() as pictures:
        assert pictures.names is None
