from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from tiny_runs import assert_same_state, one_thread  # noqa: F401

from dcgan_fast.data import Dataset, prepare
from dcgan_fast.data.pictures import fit
from dcgan_fast.dedup import SemanticHasher, first_occurrence, pack_codes
from dcgan_fast.errors import UserError


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth random colour pictures, uint8 (count, 3, 32, 32)."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, 32, mode="bilinear", align_corners=True)
    return (smooth * 255).round().byte()


def quick(**changes: Any) -> SemanticHasher:
    return SemanticHasher(**{"epochs": 2, "batch_size": 64, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return pictures(640)


@pytest.fixture(scope="module")
def hasher(images: torch.Tensor) -> SemanticHasher:
    """Trained on ``images``; not to be changed."""
    return quick(epochs=20).fit(images)


# ---------------------------------------------------------------------------------------- what it is for


def test_near_copies_share_codes_and_different_images_do_not(
    hasher: SemanticHasher, images: torch.Tensor
) -> None:
    noise = torch.randint(-1, 2, images.shape, generator=torch.Generator().manual_seed(1))
    copies = (images + noise).clamp(0, 255).byte()
    codes = hasher.transform(torch.cat([images, images, copies]))
    _, group, counts = first_occurrence(codes)
    first, exact, near = group.chunk(3)
    assert torch.equal(exact, first)
    assert (near == first).double().mean() > 0.7
    assert len(first.unique()) == len(images)


def test_a_code_is_the_signs_of_the_encoder(hasher: SemanticHasher, images: torch.Tensor) -> None:
    centred = images.reshape(-1, 3072).double() / 255 - hasher.mean_
    units = centred @ hasher.encoder_.weight.double().T + hasher.encoder_.bias
    bits = torch.stack([hasher.transform(images)[:, j // 64] >> j % 64 & 1 for j in range(128)], 1)
    sure = units.abs() > 1e-4
    assert sure.double().mean() > 0.99
    assert torch.equal(bits.bool()[sure], (units > 0)[sure])


def test_the_threshold_is_in_units_of_the_activation(
    hasher: SemanticHasher, images: torch.Tensor
) -> None:
    high = clone(hasher).set_params(threshold=1e6)
    high.encoder_, high.decoder_, high.mean_ = hasher.encoder_, hasher.decoder_, hasher.mean_
    assert not high.transform(images).any()
    assert (high.set_params(threshold=-1e6).transform(images) == -1).all()


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 1300), max_size=4))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_code_does_not_depend_on_the_batch(
    hasher: SemanticHasher, images: torch.Tensor, dtype: str, cuts: list[int]
) -> None:
    one = _as(hasher, dtype)
    many = torch.cat([images, images, images[:20]])
    bounds = [0, *sorted(cuts), len(many)]
    parts = [one.transform(many[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
    assert torch.equal(torch.cat(parts), one.transform(many))
    assert torch.equal(one.transform(many)[:640], one.transform(many)[640:1280])


def test_on_other_devices_all_products_have_the_same_shape(
    hasher: SemanticHasher, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def encode(pixels: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        assert pixels.device == weight.device == torch.device("meta")
        shapes.append(tuple(pixels.shape))
        return torch.arange(len(pixels))[:, None]

    monkeypatch.setattr("dcgan_fast.dedup.hasher.pick_device", lambda _: torch.device("meta"))
    monkeypatch.setattr("dcgan_fast.dedup.hasher.pixel_codes", encode)
    codes = hasher.transform(images)
    assert shapes == [(512, 3072)] * 2
    assert torch.equal(codes.flatten(), torch.cat([torch.arange(512), torch.arange(128)]))
    assert len(hasher.transform(images[:0])) == 0


def test_bfloat16_codes_are_nearly_those_of_float32(
    hasher: SemanticHasher, images: torch.Tensor
) -> None:
    a, b = hasher.transform(images), _as(hasher, "bfloat16").transform(images)
    different = sum(((a ^ b)[:, word] >> bit & 1).sum() for word in (0, 1) for bit in range(64))
    assert 0 < different < 0.02 * len(images) * 128


def _as(hasher: SemanticHasher, dtype: str) -> SemanticHasher:
    other = clone(hasher).set_params(dtype=dtype)
    other.encoder_, other.decoder_, other.mean_ = hasher.encoder_, hasher.decoder_, hasher.mean_
    return other


# ------------------------------------------------------------------------------------- training


def test_the_same_seed_gives_the_same_weights(images: torch.Tensor) -> None:
    one, two, other = (quick(random_state=seed).fit(images) for seed in (3, 3, 4))
    assert_same_state(dict(one._tensors()), dict(two._tensors()))
    assert one.history_ == two.history_
    assert not torch.equal(one.encoder_.weight, other.encoder_.weight)


def test_fit_leaves_the_global_random_numbers_alone(images: torch.Tensor) -> None:
    before = torch.get_rng_state()
    quick().fit(images[:64])
    assert torch.equal(torch.get_rng_state(), before)


def test_records_say_how_training_goes(images: torch.Tensor) -> None:
    seen: list[dict[str, float]] = []
    hasher = quick(epochs=30, noise=0.02, dropout=0.1, code_noise=0.1, callback=seen.append)
    hasher.fit(images)
    assert seen == hasher.history_ and hasher.n_iter_ == 30 and hasher.n_features_in_ == 3072
    assert [record["epoch"] for record in seen] == list(range(1, 31))
    last = seen[-1]
    assert last["explained"] > 0.5 > seen[0]["explained"]
    assert last["mse"] < seen[0]["mse"]
    on = torch.stack(
        [(hasher.transform(images)[:, j // 64] >> j % 64 & 1).double().mean() for j in range(128)]
    )
    assert last["active"] == pytest.approx(float(on.mean()), abs=1e-3)
    assert 100 < last["entropy"] <= 128 and last["idle"] == 0


def test_idle_bits_are_reported(images: torch.Tensor) -> None:
    with pytest.warns(UserWarning, match="128 of the hasher's 128 bits are the same"):
        hasher = quick(threshold=1e6).fit(images)
    assert hasher.history_[-1]["idle"] == 128 and hasher.history_[-1]["entropy"] == 0


def test_small_sets_are_trained_for_as_long_as_large_ones(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcgan_fast.dedup.hasher._UPDATES", 60)
    for count, epochs in ((200, 3), (640, 1), (3, 60)):
        hasher = SemanticHasher(device="cpu", batch_size=8).fit(images[:count])
        assert hasher.n_iter_ == epochs


@pytest.mark.parametrize("count", [1, 2, 65])
def test_odd_numbers_of_images(count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bits that are all the same, for two images
        codes = quick(bits=65).fit_transform(pictures(count))
    assert codes.shape == (count, 2) and codes.dtype == torch.int64
    assert not (codes[:, 1] >> 1).any()  # one bit in the second word


def test_nothing_to_hash(hasher: SemanticHasher) -> None:
    assert hasher.transform(torch.empty(0, 3, 32, 32, dtype=torch.uint8)).shape == (0, 2)
    assert hasher.transform(torch.empty(0, 1, 64, 64, dtype=torch.uint8)).shape == (0, 2)


# ---------------------------------------------------------------------------------------- input


def test_arrays_tensors_and_data_sets_are_alike(
    hasher: SemanticHasher, images: torch.Tensor
) -> None:
    codes = hasher.transform(images)
    assert torch.equal(hasher.transform(images.numpy()), codes)
    assert torch.equal(hasher.transform(Dataset("some", images.numpy())), codes)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(hasher.transform(strided), codes)


@pytest.mark.parametrize("shape", [(3, 48, 40), (1, 32, 32), (1, 8, 8), (4, 33, 32), (2, 5, 5)])
def test_other_sizes_are_cropped_and_resized(
    hasher: SemanticHasher, shape: tuple[int, ...]
) -> None:
    given = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    as_pillow = [
        Image.fromarray(i[..., 0] if shape[0] == 1 else i)
        for i in given.permute(0, 2, 3, 1).numpy()
    ]
    wanted = torch.from_numpy(np.stack([fit(image, 32, 3) for image in as_pillow]))
    assert torch.equal(hasher.transform(given), hasher.transform(wanted))


def test_a_prepared_set(hasher: SemanticHasher, tmp_path: Path) -> None:
    dataset = prepare("digits", image_size=16, cache_dir=tmp_path, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of memory that may not be written, say
        assert hasher.transform(dataset).shape == (1797, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 3, 32, 32), r"must be uint8 images \(N, C, H, W\), got torch.float32"),
        (np.zeros((2, 3072), np.uint8), r"got uint8 \(2, 3072\)"),
        (torch.zeros(2, 5, 32, 32, dtype=torch.uint8), "must have 1 to 4 channels"),
        (torch.zeros(2, 3, 0, 4, dtype=torch.uint8), "at least a pixel"),
    ],
)
def test_wrong_images(hasher: SemanticHasher, given: Any, message: str) -> None:
    for method in (hasher.transform, quick().fit):
        with pytest.raises(UserError, match=message):
            method(given)


def test_no_images_to_train_on() -> None:
    with pytest.raises(UserError, match="must hold at least one image"):
        quick().fit(torch.empty(0, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("bits", 0),
        ("bits", 1.5),
        ("noise", -1),
        ("noise", float("nan")),
        ("dropout", 1),
        ("dropout", "half"),
        ("code_noise", -0.1),
        ("threshold", float("inf")),
        ("epochs", 0),
        ("batch_size", True),
        ("lr", 0),
        ("random_state", -1),
        ("random_state", None),
        ("dtype", "float16"),
    ],
)
def test_wrong_settings(images: torch.Tensor, setting: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"SemanticHasher\(\): '{setting}' must be .*, got"):
        quick(**{setting: value}).fit(images)


def test_wrong_device(images: torch.Tensor) -> None:
    with pytest.raises(UserError, match="the device 'abacus' cannot be used here"):
        quick(device="abacus").fit(images)


# --------------------------------------------------------------------------- conventions, files


def test_scikit_learn_conventions(images: torch.Tensor) -> None:
    hasher = quick(bits=7)
    assert hasher.get_params()["bits"] == 7
    assert hasher.set_params(bits=9) is hasher and clone(hasher).bits == 9
    with pytest.raises(NotFittedError):
        hasher.transform(images)
    with pytest.raises(NotFittedError):
        hasher.save("nowhere")
    codes = hasher.fit_transform(images)
    assert torch.equal(codes, hasher.transform(images)) and codes.shape == (640, 1)
    assert torch.equal(make_pipeline(hasher).transform(images), codes)
    assert torch.equal(pickle.loads(pickle.dumps(hasher)).transform(images), codes)


def test_a_file_holds_all_of_it(
    hasher: SemanticHasher, images: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "h.safetensors"
    hasher.save(path)
    again = SemanticHasher.load(path, device="cpu")
    assert torch.equal(again.transform(images), hasher.transform(images))
    assert again.get_params() == hasher.get_params()
    assert again.history_ == hasher.history_ and again.n_iter_ == 20
    again.save(tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def _rewritten(path: Path, changes: dict[str, Any], drop: str | None = None) -> Path:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != drop}
        ((key, about),) = file.metadata().items()
    merged = {**json.loads(about), **changes}
    about = {name: value for name, value in merged.items() if value is not None}
    out = path.with_name("rewritten.safetensors")
    save_file(tensors, out, {key: json.dumps(about)})
    return out


@pytest.mark.parametrize(
    ("changes", "drop", "message"),
    [
        ({"version": 2}, None, "has version 2, this library reads version 1"),
        ({"settings": {"colour": 1}}, None, "is damaged: .*colour"),
        ({"settings": {"bits": 0}}, None, "'bits' must be"),
        ({"settings": {"bits": 64}}, None, r"'encoder.weight' must be .*\(64, 3072\)"),
        ({"history": None}, None, "is damaged: 'history'"),
        ({}, "mean", "'mean' must be .*, got none"),
    ],
)
def test_wrong_files(
    hasher: SemanticHasher, tmp_path: Path, changes: dict[str, Any], drop: str | None, message: str
) -> None:
    hasher.save(tmp_path / "h.safetensors")
    with pytest.raises(UserError, match=message):
        SemanticHasher.load(_rewritten(tmp_path / "h.safetensors", changes, drop))


def test_files_that_are_none(hasher: SemanticHasher, tmp_path: Path) -> None:
    path = tmp_path / "h.safetensors"
    with pytest.raises(UserError, match="cannot read .*h.safetensors: No such file"):
        SemanticHasher.load(path)
    hasher.save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="h.safetensors is damaged"):
        SemanticHasher.load(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="h.safetensors is no semantic hasher"):
        SemanticHasher.load(path)
    path.write_bytes(b"no hasher")
    with pytest.raises(UserError, match="h.safetensors is damaged"):
        SemanticHasher.load(path)


def test_without_safetensors(
    hasher: SemanticHasher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match=r"needs safetensors: .* or 'dcgan-fast\[dedup\]'"):
        hasher.save(tmp_path / "h.safetensors")
    with pytest.raises(UserError, match=r"needs safetensors: .* or 'dcgan-fast\[dedup\]'"):
        SemanticHasher.load(tmp_path / "h.safetensors")


def test_importing_the_package_does_not_import_scikit_learn(tmp_path: Path) -> None:
    code = "import sys, dcgan_fast.cli; raise SystemExit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_pack_codes_is_what_packs(hasher: SemanticHasher, images: torch.Tensor) -> None:
    units = hasher.encoder_(images.reshape(-1, 3072) / 255 - hasher.mean_).detach()
    same = (pack_codes(units) == hasher.transform(images)).all(1)
    assert same.double().mean() > 0.97  # but for units within a rounding of 0
