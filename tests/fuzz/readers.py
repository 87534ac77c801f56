"""Every reader of files that somebody else may have made, with files that it reads: what both fuzzers start from."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dcgan_fast import models
from dcgan_fast.convert import FORMATS
from dcgan_fast.data.find import find_source
from dcgan_fast.data.pictures import quiet_pillow
from dcgan_fast.dedup import DedupIndex
from dcgan_fast.dedup.codes_log import CodesLog
from dcgan_fast.errors import UserError
from dcgan_fast.forgetting import load_boxes
from dcgan_fast.optional import installed_module
from dcgan_fast.tags import load_words, read_tags
from dcgan_fast.tags.features import load_features
from dcgan_fast.training import TrainConfig, load_networks
from dcgan_fast.training.checkpoint import save_bare_state, save_checkpoint
from dcgan_fast.training.config_file import read_settings


@dataclass(frozen=True)
class Reader:
    """What is fuzzed: ``read`` is given a folder in which ``name`` has been changed; beside it lies what ``beside``
    makes. ``seeds`` are sound contents of ``name``."""

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    beside: Callable[[Path], object] = lambda _: None
    needs: str | None = None  # a package

    def __call__(self, folder: Path, content: bytes) -> bool:
        """Whether the file was read; False where a UserError said why not. Any other error passes."""
        (folder / self.name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.read(folder)
            except UserError as error:
                assert str(error)
                return False
        return True


# ------------------------------------------------------------------------------------- data sets


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _draw(path: Path) -> None:
    """As ``prepare`` does, without a cache."""
    with quiet_pillow(), find_source(path, "all").open() as pictures:
        channels = pictures.channels
        assert channels in (1, 2, 3, 4)
        images, _ = pictures.render(range(min(len(pictures), 4)), 8, channels)
        assert images.dtype == np.uint8 and images.shape[1:] == (channels, 8, 8)
        if pictures.labels is not None:
            assert len(pictures.labels) == len(pictures)


def _idx() -> bytes:
    return bytes((0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0, 5)) + _pixels(4, 6, 5).tobytes()


def _idx_labels(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 4, 1, 0, 2, 1)))


def _cifar(protocol: int) -> bytes:
    batch = {b"data": _pixels(3, 3072), b"labels": [1, 2, 0], b"batch_label": b"one"}
    return pickle.dumps(batch, protocol)


def _saved(save: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def _picture(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(_pixels(9, 7, 3)).convert(mode).save(file, kind)
    return file.getvalue()


_KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP")


def _pictures() -> list[bytes]:
    return [_picture(kind) for kind in _KINDS if kind in Image.SAVE] + [_picture("PNG", "P")]


def _zip(compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("train/cat/1.png", _picture("PNG"))
        archive.writestr("train/dog/2.jpg", _picture("JPEG"))
        archive.writestr("test/dog/3.gif", _picture("GIF"))
    return file.getvalue()


def _lmdb() -> list[bytes]:
    import tempfile

    lmdb = installed_module("lmdb")
    assert lmdb is not None
    with tempfile.TemporaryDirectory() as folder:
        with lmdb.open(folder, map_size=1 << 20) as base, base.begin(write=True) as transaction:
            for number in range(3):
                transaction.put(b"key%d" % number, _picture("PNG"))
        return [Path(folder, "data.mdb").read_bytes()]


def _header(folder: Path) -> None:
    (folder / "images.npy").write_bytes(_saved(np.save, _pixels(4, 1, 8, 8)))


def _prepared() -> list[bytes]:
    images = {
        "shape": [4, 1, 8, 8],
        "dtype": "uint8",
        "bytes": len(_saved(np.save, _pixels(4, 1, 8, 8))),
        "sha256": "0",
        "mtime_ns": 1,
    }
    header = {"format": "dcgan_fast.data", "version": 1, "name": "a", "source": "b"}
    header |= {"fingerprint": "c", "images": images, "labels": None, "classes": None, "skipped": []}
    return [json.dumps(header).encode()]


# ---------------------------------------------------------------------------- networks and codes


def _networks() -> dict[str, Any]:
    torch.manual_seed(0)
    pair = models.build("pytorch", image_size=16, nc=1, ngf=2, ndf=2, nz=3)
    content: dict[str, Any] = {"preset": "pytorch", "config": {}}
    for role, network in zip(("generator", "discriminator"), pair, strict=True):
        content["config"][role], content[role] = network.config, network.state_dict()
    return content


def _written(name: str, write: Callable[[Path], object]) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return Path(folder, name).read_bytes()


def _checkpoints() -> list[bytes]:
    content = _networks()
    content |= {"format": "dcgan_fast", "version": 1}
    return [
        _written("a.pt", lambda folder: save_checkpoint(folder / "a.pt", content)),
        _written("a.pt", lambda folder: save_bare_state(folder / "a.pt", content["generator"])),
        _saved(
            lambda file, value: torch.save(value, file, _use_new_zipfile_serialization=False),
            content,
        ),
    ]


def _in_format(name: str, file: str, preset: str) -> list[bytes]:
    pair = models.build(preset, **({"image_size": 16} | {"ngf": 2, "ndf": 2}))
    content: dict[str, Any] = {"preset": preset, "config": {}, "bn": "batch"}
    for role, network in zip(("generator", "discriminator"), pair, strict=True):
        content["config"][role], content[role] = network.config, network.state_dict()
    write = FORMATS[name].write
    assert write is not None
    return [
        _written(file, lambda folder: write(content, folder if "gen" in file else folder / file))
    ]


def _newmu_beside(folder: Path) -> None:
    shapes = {2: (256,), 3: (256,), 4: (16, 8, 5, 5), 5: (8,), 6: (8,), 7: (8, 1, 5, 5)}
    for number, shape in shapes.items():
        np.save(folder / f"gen_{number:02d}.npy", np.zeros(shape, np.float32))


def _codes(folder: Path) -> None:
    log = CodesLog(folder / "codes", bytes(32), 2)
    log.append(torch.arange(6).view(3, 2), {1: "note"})
    log.append(torch.arange(8).view(4, 2), {})
    log.close()


def _read_codes(folder: Path) -> None:
    log = CodesLog(folder / "codes", bytes(32), 2)
    assert log.codes.shape == (len(log), 2)
    log.close()


def _index(folder: Path) -> None:
    index = DedupIndex(2)
    for start in (0, 10):
        index.add(torch.arange(start, start + 10).view(5, 2))
        index.save(folder / "seen")


def _read_index(folder: Path) -> None:
    DedupIndex.load(folder / "seen", recover=True)
    DedupIndex.load(folder / "seen")


# --------------------------------------------------------------------------------- words and texts


def _configure(path: Path) -> None:
    TrainConfig(**read_settings(path))


_TAGS = {"a/b.png": ["dog", "brown dog"], "c.png": [], "d.png": ["cat"]}
_VECTORS = b"dog 0.5 1e-3 -2\nbrown dog 1 2 3\ncat 0 0 1\n"
_SETTINGS: dict[str, Any] = {"epochs": 3, "lr": 2e-4, "flip": True, "data": "digits", "out": None}
_YAML = b"# a run\nepochs: 3\nlr: 2e-4\nflip: true\nname: &name text\ndata: digits\n"

READERS = {
    "idx": Reader(
        "train-images-idx3-ubyte",
        lambda: [_idx()],
        lambda folder: _draw(folder / "train-images-idx3-ubyte"),
        _idx_labels,
    ),
    "idx-gz": Reader("train-images-idx3-ubyte.gz", lambda: [gzip.compress(_idx(), mtime=0)], _draw),
    "idx-labels": Reader(
        "train-labels-idx1-ubyte",
        lambda: [bytes((0, 0, 8, 1, 0, 0, 0, 4, 1, 0, 2, 1))],
        _draw,
        lambda folder: (folder / "train-images-idx3-ubyte").write_bytes(_idx()),
    ),
    "cifar": Reader("data_batch_1", lambda: [_cifar(protocol) for protocol in (0, 2, 5)], _draw),
    "npy": Reader(
        "a.npy", lambda: [_saved(np.save, _pixels(4, 6, 5))], lambda folder: _draw(folder / "a.npy")
    ),
    "npz": Reader(
        "a.npz",
        lambda: [
            _saved(save, images=_pixels(4, 6, 5, 3), labels=np.array([0, 1, 2, 1]))
            for save in (np.savez, np.savez_compressed)
        ],
        lambda folder: _draw(folder / "a.npz"),
    ),
    "zip": Reader(
        "a.zip",
        lambda: [_zip(zipfile.ZIP_STORED), _zip(zipfile.ZIP_DEFLATED)],
        lambda folder: _draw(folder / "a.zip"),
    ),
    "image": Reader("a.png", _pictures, _draw),
    "lsun": Reader("data.mdb", _lmdb, _draw, needs="lmdb"),
    "prepared": Reader("header.json", _prepared, _draw, _header),
    "checkpoint": Reader("a.pt", _checkpoints, lambda folder: load_networks(folder / "a.pt")),
    "safetensors": Reader(
        "a.safetensors",
        lambda: _in_format("safetensors", "a.safetensors", "pytorch"),
        lambda folder: FORMATS["safetensors"].read(folder / "a.safetensors"),  # type: ignore[misc]
        needs="safetensors",
    ),
    "carpedm20": Reader(
        "a.npz",
        lambda: _in_format("carpedm20-mirrored", "a.npz", "carpedm20"),
        lambda folder: FORMATS["carpedm20"].read(folder / "a.npz"),  # type: ignore[misc]
    ),
    "newmu": Reader(
        "gen_01.npy",
        lambda: [_saved(np.save, np.zeros((5, 256), np.float32))],
        lambda folder: FORMATS["newmu-arrays"].read(folder),  # type: ignore[misc]
        _newmu_beside,
    ),
    "huggan": Reader(
        "config.json",
        lambda: [
            b'{"num_channels": 1, "latent_dim": 3}',
            b'{"network": "Generator", "image_size": 16, "nc": 1, "ngf": 2, "nz": 3}',
        ],
        lambda folder: FORMATS["huggan"].read(folder),  # type: ignore[misc]
        lambda folder: save_bare_state(folder / "pytorch_model.bin", _networks()["generator"]),
    ),
    "codes": Reader("codes", lambda: [_written("codes", _codes)], _read_codes),
    "index": Reader("seen", lambda: [_written("seen", _index)], _read_index),
    "tags-json": Reader(
        "a.json", lambda: [json.dumps(_TAGS).encode()], lambda folder: read_tags(folder / "a.json")
    ),
    "tags-text": Reader(
        "a.tsv", lambda: [b"a.png\tdog, cat\nb.png\t\n"], lambda folder: read_tags(folder / "a.tsv")
    ),
    "words": Reader(
        "a.txt",
        lambda: [_VECTORS, b"3 3\n" + _VECTORS],
        lambda folder: load_words(folder / "a.txt"),
    ),
    "words-gz": Reader(
        "a.txt.gz",
        lambda: [gzip.compress(_VECTORS, mtime=0)],
        lambda folder: load_words(folder / "a.txt.gz"),
    ),
    "words-npy": Reader(
        "a.npy",
        lambda: [_saved(np.save, np.ones((2, 3), np.float32))],
        lambda folder: load_words(folder / "a.npy"),
        lambda folder: (folder / "a.txt").write_text("dog\ncat\n"),
    ),
    "features": Reader(
        "a.npy",
        lambda: [_saved(np.save, np.ones((2, 3), np.float32))],
        lambda folder: load_features(folder / "a.npy"),
        lambda folder: (folder / "a.names.txt").write_text("a.png\nb.png\n"),
    ),
    "boxes": Reader(
        "a.json",
        lambda: [b'{"17": [[4, 0, 12, 20]], "18": []}'],
        lambda folder: load_boxes(folder / "a.json"),
    ),
    "config-json": Reader(
        "a.json",
        lambda: [json.dumps(_SETTINGS).encode()],
        lambda folder: _configure(folder / "a.json"),
    ),
    "config-yaml": Reader(
        "a.yaml", lambda: [_YAML], lambda folder: _configure(folder / "a.yaml"), needs="yaml"
    ),
}
