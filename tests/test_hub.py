"""``from_pretrained``, ``save_pretrained`` and ``push_to_hub``, without a network: a folder stands for the hub."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan_fast import models
from dcgan_fast.convert import convert
from dcgan_fast.errors import UserError
from dcgan_fast.training.checkpoint import load_checkpoint


@pytest.fixture
def library() -> Any:
    pytest.importorskip("safetensors")
    return pytest.importorskip("huggingface_hub")


SMALL: dict[str, dict[str, Any]] = {
    "pytorch": {"ngf": 2, "ndf": 2},
    "newmu-svhn": {"ngf": 2, "ndf": 2},
    "cgan-dcgan": {"ngf": 2, "ndf": 2, "ngfc": 8, "ndfc": 8},
    "cgan-mnist": {"joint_units": 20, "x_units": 8},
}
# The preset that the settings tell: a discriminator of newmu-svhn is one of newmu as well.
FOUND = {name: (name, name) for name in SMALL} | {"newmu-svhn": ("newmu-svhn", "newmu")}


@pytest.mark.parametrize("preset", SMALL)
def test_a_folder_there_and_back(library: Any, tmp_path: Path, preset: str) -> None:
    for network, found in zip(models.build(preset, **SMALL[preset]), FOUND[preset], strict=True):
        folder = tmp_path / type(network).__name__
        attributes = set(vars(network))
        assert network.save_pretrained(folder) is None
        assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
        assert set(vars(network)) == attributes and network.training
        loaded = type(network).from_pretrained(folder)
        assert type(loaded) is type(network) and not loaded.training
        assert loaded.config == network.config and set(vars(loaded)) == attributes
        for key, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
        copy.deepcopy(loaded)
        # the folder is one that convert reads
        assert convert(folder, tmp_path / "net.pt").preset == found
        (config,) = load_checkpoint(tmp_path / "net.pt")["config"].values()
        assert config == network.config


def test_the_model_card_names_the_library(library: Any, tmp_path: Path) -> None:
    models.build(**SMALL["pytorch"])[0].save_pretrained(tmp_path / "g")
    card = library.ModelCard.load(tmp_path / "g" / "README.md")
    assert card.data.library_name == "dcgan_fast"
    assert {"dcgan", "pytorch_model_hub_mixin"} <= set(card.data.tags)


def test_push_uploads_what_save_writes(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = models.build(**SMALL["pytorch"])[1]
    calls: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls["token"] = token

        def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> Any:
            calls["private"] = private
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, **options: Any) -> str:
            calls.update(options)
            calls["config"] = json.loads(Path(folder_path, "config.json").read_text())
            calls["files"] = sorted(os.listdir(folder_path))
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert network.push_to_hub("me/d", token="t", private=True) == "https://hub/commit"
    assert (calls["repo_id"], calls["token"], calls["private"]) == ("me/d", "t", True)
    assert calls["files"] == ["README.md", "config.json", "model.safetensors"]
    assert calls["config"] == {**network.config, "network": "Discriminator"}


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_name_on_the_hub(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One of huggan's, whose keys and config are others."""
    network = models.build(nz=5, **SMALL["pytorch"])[0].eval()
    state = {key.replace("main.", "model."): value for key, value in network.state_dict().items()}
    if kind == "pytorch_model.bin":
        torch.save(state, tmp_path / kind)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, tmp_path / kind)
    (tmp_path / "config.json").write_text(json.dumps({"latent_dim": 5, "hidden_size": 2}))
    asked = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append((repo_id, filename, options["revision"]))
        if not (tmp_path / filename).exists():
            raise library.errors.EntryNotFoundError("none")
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    from dcgan_fast import hub

    hub._mixed_class.cache_clear()  # which has taken the name already
    try:
        loaded = models.Generator.from_pretrained("huggan/dcgan-mnist", revision="v1")
    finally:
        hub._mixed_class.cache_clear()
    assert ("huggan/dcgan-mnist", kind, "v1") in asked
    latent = network.sample_latent(2)
    assert torch.equal(loaded(latent), network(latent))


def test_what_is_no_such_network(library: Any, tmp_path: Path) -> None:
    generator, _ = models.build(**SMALL["pytorch"])
    generator.save_pretrained(tmp_path / "g")
    with pytest.raises(UserError, match="is a Generator, not a Discriminator: use Generator.from"):
        models.Discriminator.from_pretrained(tmp_path / "g")
    with pytest.raises(UserError, match="no such folder: .*missing"):
        models.Generator.from_pretrained(tmp_path / "missing")
    with pytest.raises(UserError, match="no such folder: missing"):
        models.Generator.from_pretrained("./missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds neither model.safetensors nor pytorch_model.bin"):
        models.Generator.from_pretrained(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        generator.save_pretrained(tmp_path / "file")
    weights = tmp_path / "g" / "model.safetensors"
    import safetensors.torch

    state = safetensors.torch.load_file(weights)
    del state["main.3.weight"]
    safetensors.torch.save_file(state, weights)
    with pytest.raises(UserError, match="'main.3.weight' is missing in the file"):
        models.Generator.from_pretrained(tmp_path / "g")
    for damaged, message in (
        (b"{torn", "cannot read .*config.json"),
        (b"\xff\xfe", "cannot read .*config.json"),
        (b"[]", "config.json must hold an object, got a list"),
    ):
        (tmp_path / "g" / "config.json").write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            models.Generator.from_pretrained(tmp_path / "g")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    network = models.build(**SMALL["pytorch"])[0]
    for call in (
        lambda: network.save_pretrained(tmp_path / "g"),
        lambda: network.push_to_hub("me/g"),
        lambda: models.Generator.from_pretrained("me/g"),
    ):
        with pytest.raises(UserError, match=r"\(\) needs huggingface_hub: pip install huggingface"):
            call()
    assert not (tmp_path / "g").exists()


def test_it_is_not_imported_before_it_is_needed(tmp_path: Path) -> None:
    code = "import sys, dcgan_fast.cli; assert not {'huggingface_hub', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
