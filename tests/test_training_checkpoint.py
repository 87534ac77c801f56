from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from tiny_runs import assert_same_state
from torch import nn

from dcgan_fast import models
from dcgan_fast.errors import UserError
from dcgan_fast.training.checkpoint import (
    bare_state,
    load_checkpoint,
    load_networks,
    load_state,
    save_bare_state,
    save_checkpoint,
)


def networks(**settings: int) -> tuple[models.Generator, models.Discriminator]:
    return models.build("pytorch", **{"image_size": 16, "nc": 1, "ngf": 4, "ndf": 4, **settings})


def contents() -> dict[str, object]:
    generator, discriminator = networks()
    return {
        "preset": "pytorch",
        "config": {"generator": generator.config, "discriminator": discriminator.config},
        "generator": generator.state_dict(),
        "discriminator": discriminator.state_dict(),
    }


def test_round_trip(tmp_path: Path) -> None:
    saved = contents()
    save_checkpoint(tmp_path / "c.pt", saved)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert (loaded["format"], loaded["version"]) == ("dcgan_fast", 1)
    generator, discriminator, meta = load_networks(tmp_path / "c.pt")
    assert meta["preset"] == "pytorch"
    assert_same_state(dict(generator.state_dict()), dict(saved["generator"]))
    assert_same_state(dict(discriminator.state_dict()), dict(saved["discriminator"]))


def test_a_run_folder_stands_for_its_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint.pt", contents())
    assert load_checkpoint(tmp_path)["preset"] == "pytorch"


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / "c.pt", {**contents(), "step": step}, keep="old.pt")
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 3
    assert load_checkpoint(tmp_path / "old.pt")["step"] == 2
    assert sorted(os.listdir(tmp_path)) == ["c.pt", "old.pt"]


def test_a_kill_between_keeping_and_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {**contents(), "step": 1})
    os.link(tmp_path / "c.pt", tmp_path / "old.pt")  # as it is then
    save_checkpoint(tmp_path / "c.pt", {**contents(), "step": 2}, keep="old.pt")
    assert load_checkpoint(tmp_path / "old.pt")["step"] == 1
    assert sorted(os.listdir(tmp_path)) == ["c.pt", "old.pt"]


def test_keeping_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    for step in (1, 2):
        save_checkpoint(tmp_path / "c.pt", {**contents(), "step": step}, keep="old.pt")
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 2
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_full_disk_leaves_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "c.pt", {**contents(), "step": 1}, keep="old.pt")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(tmp_path / "c.pt", {**contents(), "step": 2}, keep="old.pt")
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 1
    assert sorted(os.listdir(tmp_path)) == ["c.pt", "old.pt"]


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_bare_state_dicts_load(tmp_path: Path, prefix: str) -> None:
    generator, discriminator = networks(nz=7)
    for name, network in (("netG.pth", generator), ("netD.pth", discriminator)):
        state = {
            key.replace("main.", prefix + "main."): v for key, v in bare_state(network).items()
        }
        save_bare_state(tmp_path / name, state)
    loaded, nothing, _ = load_networks(tmp_path / "netG.pth")
    assert nothing is None and loaded.nz == 7
    assert_same_state(dict(loaded.state_dict()), dict(generator.state_dict()))
    nothing, loaded, _ = load_networks(tmp_path / "netD.pth")
    assert nothing is None
    assert_same_state(dict(loaded.state_dict()), dict(discriminator.state_dict()))


def test_bare_state_dicts_of_networks_with_labels_load(tmp_path: Path) -> None:
    pair = models.build("cgan-dcgan", image_size=16, ngf=4, ndf=4, classes=3)
    for name, network in zip(("netG.pth", "netD.pth"), pair, strict=True):
        save_bare_state(tmp_path / name, bare_state(network))
    generator, nothing, content = load_networks(tmp_path / "netG.pth")
    assert nothing is None and content["preset"] == "cgan-dcgan"
    latent, labels = pair[0].sample_latent(2), torch.tensor([0, 2])
    assert torch.equal(generator.eval()(latent, labels), pair[0].eval()(latent, labels))
    nothing, discriminator, _ = load_networks(tmp_path / "netD.pth")
    assert nothing is None
    assert_same_state(dict(discriminator.state_dict()), dict(pair[1].state_dict()))


def test_bare_state_is_plain_and_contiguous() -> None:
    generator, _ = networks()
    generator.to(memory_format=torch.channels_last)
    state = bare_state(generator)
    assert all(value.is_contiguous() for value in state.values())
    assert list(state) == list(generator.state_dict())


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole.pt", contents())
    whole = (tmp_path / "whole.pt").read_bytes()
    for name, content in {
        "empty.pt": b"",
        "text.pt": b"hello",
        "cut.pt": whole[: len(whole) // 2],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is not a checkpoint that can be read: "):
            load_checkpoint(tmp_path / name)
    for name, value, message in (
        ("list.pt", [1], "it holds a list"),
        ("none.pt", {}, "it holds no tensors"),
        ("number.pt", {"epoch": 3}, "'epoch' is a int, not a tensor"),
        ("net.pt", {"fc.weight": torch.zeros(3)}, "not a state dict of pytorch/examples' DCGAN"),
        ("new.pt", {"format": "dcgan_fast", "version": 99}, "version 99, .* reads up to 1"),
        ("torn.pt", {"format": "dcgan_fast", "version": 1}, "damaged checkpoint"),
    ):
        torch.save(value, tmp_path / name)
        with pytest.raises(UserError, match=message):
            load_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="no such checkpoint: .*missing.pt"):
        load_checkpoint(tmp_path / "missing.pt")


def test_pickles_are_not_run(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UserError, match="not a checkpoint that can be read"):
        load_checkpoint(tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ngf": 8},
            r"'main.0.weight' is \(100, 8, 4, 4\) in the file, \(100, 16, 4, 4\) in the g",
        ),
        ({"nz": 5}, r"'main.0.weight' is \(100, 8, 4, 4\) in the file, \(5, 8, 4, 4\) in the g"),
        ({"image_size": 32}, r"'main.0.weight' is \(100, 8, 4, 4\) in the file, \(100, 16, 4, 4\)"),
    ],
)
def test_another_architecture_names_the_first_difference(
    change: dict[str, int], message: str
) -> None:
    state = networks()[0].state_dict()
    with pytest.raises(UserError, match="file.pth is of another architecture: " + message):
        load_state(networks(**change)[0], state, source="file.pth")


def test_missing_and_unexpected_keys() -> None:
    generator = networks()[0]
    state = dict(generator.state_dict())
    weight = state.pop("main.3.weight")
    with pytest.raises(UserError, match="'main.3.weight' is missing in the file, "):
        load_state(generator, state, source="f")
    with pytest.raises(UserError, match=r"'extra' is \(2,\) in the file, missing in the generator"):
        load_state(
            generator, {**state, "main.3.weight": weight, "extra": torch.ones(2)}, source="f"
        )


def test_num_batches_tracked_may_be_missing() -> None:
    generator, other = networks()[0], networks()[0]
    state = {k: v for k, v in generator.state_dict().items() if "num_batches" not in k}
    load_state(other, state, source="old.pth")
    assert torch.equal(other.main[0].weight, generator.main[0].weight)


def test_networks_of_other_code_are_refused_with_the_cure(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {**contents(), "config": {"generator": {}}})
    with pytest.raises(UserError, match="a generator that is not ours"):
        load_networks(tmp_path / "c.pt")
    save_checkpoint(tmp_path / "c.pt", {**contents(), "config": {"generator": {"size": 3}}})
    with pytest.raises(UserError, match="a generator that cannot be built: "):
        load_networks(tmp_path / "c.pt")
