"""safetensors files, of this package's networks and of bare state dicts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan_fast import models
from dcgan_fast.convert import convert
from dcgan_fast.errors import UserError
from dcgan_fast.training.checkpoint import load_checkpoint, load_networks, save_checkpoint


@pytest.fixture
def safetensors() -> Any:
    return pytest.importorskip("safetensors.torch")


def save(path: Path, preset: str, **settings: Any) -> Path:
    generator, discriminator = models.build(preset, ngf=2, ndf=2, **settings)
    content = {
        "preset": preset,
        "config": {"generator": generator.config, "discriminator": discriminator.config},
        "networks": {
            "generator": type(generator).__name__,
            "discriminator": type(discriminator).__name__,
        },
        "generator": generator.state_dict(),
        "discriminator": discriminator.state_dict(),
        "bn": "batch",
    }
    save_checkpoint(path, content)
    return path


@pytest.mark.parametrize("preset", ["pytorch", "newmu-svhn", "cgan-dcgan"])
def test_there_and_back(safetensors: Any, tmp_path: Path, preset: str) -> None:
    path = save(tmp_path / "net.pt", preset)
    done = convert(path, tmp_path / "net.safetensors")  # by the suffix
    assert (done.source_format, done.target_format) == ("dcgan-fast", "safetensors")
    assert done.preset == preset
    tensors = safetensors.load_file(tmp_path / "net.safetensors")
    assert "generator.main.0.weight" in tensors and "discriminator.main.0.weight" in tensors
    assert convert(tmp_path / "net.safetensors", tmp_path / "back.pt").preset == preset
    before, after = load_checkpoint(path), load_checkpoint(tmp_path / "back.pt")
    for key in ("preset", "config", "networks", "bn"):
        assert before[key] == after[key], key
    for role in ("generator", "discriminator"):
        assert before[role].keys() == after[role].keys()
        for key, value in before[role].items():
            assert torch.equal(value, after[role][key]), key
    load_networks(tmp_path / "back.pt")


def test_weights_of_any_layout_are_written(safetensors: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", "pytorch", image_size=16)
    content = load_checkpoint(path)
    weight = content["generator"]["main.3.weight"]
    content["generator"]["main.3.weight"] = weight.contiguous(memory_format=torch.channels_last)
    save_checkpoint(path, content)
    convert(path, tmp_path / "net.safetensors")
    tensors = safetensors.load_file(tmp_path / "net.safetensors")
    assert torch.equal(tensors["generator.main.3.weight"], weight)


@pytest.mark.parametrize("prefix", ["main.", "model.", "module.main."])
@pytest.mark.parametrize("role", ["generator", "discriminator"])
def test_a_bare_state_dict(safetensors: Any, tmp_path: Path, role: str, prefix: str) -> None:
    """At 64x64 it has five convolutions, which the file keeps in the order of the alphabet: 12 before 3."""
    networks = dict(zip(("generator", "discriminator"), models.build(ngf=2, ndf=2), strict=True))
    state = networks[role].state_dict()
    renamed = {key.replace("main.", prefix, 1): value for key, value in state.items()}
    safetensors.save_file(renamed, tmp_path / "model.safetensors")
    done = convert(tmp_path / "model.safetensors", tmp_path / "net.pt")
    assert (done.source_format, done.preset) == ("safetensors", "pytorch")
    content = load_checkpoint(tmp_path / "net.pt")
    assert content["config"] == {role: networks[role].config}
    assert all(torch.equal(content[role][key], value) for key, value in state.items())


def description(**changes: Any) -> dict[str, str]:
    generator, _ = models.build(image_size=16, ngf=2, ndf=2)
    known = {"version": 1, "preset": "pytorch", "config": {"generator": generator.config}}
    return {"dcgan_fast": json.dumps({**known, **changes})}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"dcgan_fast": "{torn"}, "the metadata of .*net.safetensors is damaged"),
        ({"dcgan_fast": "3"}, "the metadata of .*net.safetensors is damaged"),
        (description(version=2), "a checkpoint of version 2, this dcgan_fast reads up to 1"),
        (description(networks=3), "is a damaged checkpoint: its 'networks' are no mapping"),
        (description(config=None), "is a damaged checkpoint: it has no 'config'"),
        (description(config={"generator": {"ngf": 0}}), "a generator that cannot be built"),
        (description(config={"generator": {"ngf": 2}}), "is of another architecture"),
        ({}, "not a state dict of pytorch/examples"),
    ],
)
def test_files_that_make_no_network(
    safetensors: Any, tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    state = models.build(image_size=16, ngf=2, ndf=2)[0].state_dict()
    tensors = {f"generator.{key}": value for key, value in state.items()}
    safetensors.save_file(tensors, tmp_path / "net.safetensors", metadata)
    with pytest.raises(UserError, match=message) as caught:
        convert(tmp_path / "net.safetensors", tmp_path / "net.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.pt").exists()


def test_tensors_of_no_network(safetensors: Any, tmp_path: Path) -> None:
    safetensors.save_file({"format.x": torch.zeros(2)}, tmp_path / "a.safetensors", description())
    with pytest.raises(UserError, match="holds 'format.x', which is of neither network"):
        convert(tmp_path / "a.safetensors", tmp_path / "net.pt")


def test_a_torn_file(safetensors: Any, tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="cannot read .*net.safetensors"):
        convert(tmp_path / "net.safetensors", tmp_path / "net.pt")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "net.pt", "pytorch", image_size=16)
    (tmp_path / "net.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for source, out in ((path, "out.safetensors"), (tmp_path / "net.safetensors", "out.pt")):
        with pytest.raises(UserError, match=r"needs safetensors: pip install safetensors, or"):
            convert(source, tmp_path / out)
        assert not (tmp_path / out).exists()
