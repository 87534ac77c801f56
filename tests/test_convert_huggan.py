"""Folders of the Hugging Face hub, as huggan's ``Generator`` and PyTorchModelHubMixin keep them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcgan_fast import models
from dcgan_fast.convert import convert
from dcgan_fast.errors import UserError
from dcgan_fast.training.checkpoint import load_checkpoint, load_networks, save_checkpoint


class HubNet(nn.Module):
    """What huggan's config stands for: 4x4 kernels, keys under ``model.``; ``role`` 'D' its discriminator."""

    def __init__(self, role: str, num_channels: int, latent_dim: int, hidden_size: int) -> None:
        super().__init__()
        inner = [hidden_size << scale for scale in range(4)]
        layers: list[nn.Module] = []
        if role == "G":
            sizes = [latent_dim, *inner[::-1], num_channels]
            for i, (wide, narrow) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
                stride, pad = (2, 1) if i else (1, 0)
                layers.append(nn.ConvTranspose2d(wide, narrow, 4, stride, pad, bias=False))
                layers += [nn.BatchNorm2d(narrow), nn.ReLU()] if i < 4 else [nn.Tanh()]
        else:
            sizes = [num_channels, *inner, 1]
            for i, (narrow, wide) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
                stride, pad = (2, 1) if i < 4 else (1, 0)
                layers.append(nn.Conv2d(narrow, wide, 4, stride, pad, bias=False))
                layers += [nn.BatchNorm2d(wide)] if 0 < i < 4 else []
                layers += [nn.LeakyReLU(0.2) if i < 4 else nn.Sigmoid()]
        self.model = nn.Sequential(*layers)

    def forward(self, input: Tensor) -> Tensor:
        return self.model(input)


CONFIG = {"num_channels": 1, "latent_dim": 7, "hidden_size": 3}


def hub_net(role: str = "G") -> HubNet:
    torch.manual_seed(0)
    net = HubNet(role, **CONFIG)
    net(torch.randn(8, 7, 1, 1) if role == "G" else torch.randn(8, 1, 64, 64))  # statistics
    return net.eval()


def save_folder(folder: Path, net: nn.Module, kind: str, config: dict[str, Any] | None) -> Path:
    folder.mkdir()
    if kind == "pytorch_model.bin":
        torch.save(net.state_dict(), folder / kind)
    else:
        pytest.importorskip("safetensors.torch").save_file(net.state_dict(), folder / kind)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("config", [CONFIG, None])
@pytest.mark.parametrize("kind", ["pytorch_model.bin", "model.safetensors"])
def test_a_generator_of_the_hub(tmp_path: Path, kind: str, config: dict[str, int] | None) -> None:
    net = hub_net()
    folder = save_folder(tmp_path / "dcgan-mnist", net, kind, config)
    done = convert(folder, tmp_path / "net.pt")
    assert (done.source_format, done.preset) == ("huggan", "pytorch")
    generator, discriminator, _ = load_networks(tmp_path / "net.pt")
    assert isinstance(generator, models.Generator) and discriminator is None
    latent = torch.randn(3, 7)
    expected = net(latent[..., None, None]).detach()
    torch.testing.assert_close(models.generate(generator, latent), expected)


def test_a_discriminator_of_that_layout(tmp_path: Path) -> None:
    net = hub_net("D")
    config = {"num_channels": 1, "hidden_size": 3, "image_size": 64}
    folder = save_folder(tmp_path / "d", net, "pytorch_model.bin", config)
    convert(folder, tmp_path / "net.pt")
    _, discriminator, _ = load_networks(tmp_path / "net.pt")
    assert isinstance(discriminator, models.Discriminator)
    images = torch.randn(2, 1, 64, 64)
    logits = discriminator.eval()(images)
    torch.testing.assert_close(logits.sigmoid(), net(images).flatten())


def save_net(path: Path, preset: str = "pytorch", **settings: Any) -> Path:
    torch.manual_seed(1)
    generator, discriminator = models.build(preset, **{"ngf": 3, "ndf": 3, **settings})
    generator(generator.sample_latent(4))
    content = {
        "preset": preset,
        "config": {"generator": generator.config, "discriminator": discriminator.config},
        "generator": generator.state_dict(),
        "discriminator": discriminator.state_dict(),
    }
    save_checkpoint(path, content)
    return path


def test_what_is_written_loads_into_their_class(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = save_net(tmp_path / "net.pt", nc=1, nz=7)
    done = convert(path, tmp_path / "hub", target_format="huggan")
    names = ["pytorch_model.bin", "model.safetensors", "config.json"]
    assert [file.name for file in done.files] == names
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config == CONFIG
    latent = torch.randn(3, 7)
    expected = models.generate(load_networks(path)[0], latent)  # type: ignore[arg-type]
    import safetensors.torch

    for state in (
        torch.load(done.files[0], weights_only=True),
        safetensors.torch.load_file(done.files[1]),
    ):
        net = HubNet("G", **config).eval()
        net.load_state_dict(state, strict=True)
        torch.testing.assert_close(net(latent[..., None, None]).detach(), expected)
    # and back, unchanged
    convert(tmp_path / "hub", tmp_path / "again.pt")
    before, after = load_checkpoint(path), load_checkpoint(tmp_path / "again.pt")
    assert before["config"]["generator"] == after["config"]["generator"]
    for key, value in before["generator"].items():
        assert torch.equal(value, after["generator"][key]), key


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    path = save_net(tmp_path / "net.pt")
    done = convert(path, tmp_path / "hub", target_format="huggan")
    assert [file.name for file in done.files] == ["pytorch_model.bin", "config.json"]
    assert convert(tmp_path / "hub", tmp_path / "again.pt").source_format == "huggan"
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"")  # not read, as there is the other
    assert convert(tmp_path / "hub", tmp_path / "again.pt").source_format == "huggan"
    with pytest.raises(UserError, match="hub holds model.safetensors, of another model"):
        convert(path, tmp_path / "hub", target_format="huggan")
    (tmp_path / "hub" / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="reading model.safetensors needs safetensors: pip install"):
        convert(tmp_path / "hub", tmp_path / "again.pt")


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("newmu", {}, "the generator is no net of pytorch/examples'"),
        ("pytorch", {"image_size": 32}, "huggan's generators draw images of 64x64, this one of 32"),
        ("pytorch", {"bn_eps": 1e-3}, "batch norm eps is 0.001"),
    ],
)
def test_other_nets_are_not_written(
    tmp_path: Path, preset: str, settings: dict[str, Any], message: str
) -> None:
    path = save_net(tmp_path / "net.pt", preset, **settings)
    with pytest.raises(UserError, match=message):
        convert(path, tmp_path / "hub", target_format="huggan")
    assert not (tmp_path / "hub").exists()


def test_a_discriminator_alone_is_not_written(tmp_path: Path) -> None:
    torch.save(hub_net("D").state_dict(), tmp_path / "netD.pth")
    with pytest.raises(UserError, match="huggan's models are generators, the checkpoint holds non"):
        convert(tmp_path / "netD.pth", tmp_path / "hub", target_format="huggan")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"hidden_size": 64}', "'hidden_size' is 64 in config.json, the weights in .* are of 3"),
        ('{"image_size": 32}', "'image_size' is 32 in config.json, the weights in .* are of 64"),
        ("{torn", "cannot read .*config.json"),
        ("[3]", "config.json must hold an object, got a list"),
        ('{"network": "Transformer"}', "is of a 'Transformer'; the networks are Generator, Disc"),
        ('{"network": ["Generator"]}', r"is of a '\['Generator'\]'; the networks are"),
        ('{"network": "Generator", "ngf": 4}', "is of another architecture"),
        ('{"network": "Generator", "width": 3}', "describes a generator that cannot be built"),
    ],
)
def test_configs_that_are_not_of_the_weights(tmp_path: Path, config: str, message: str) -> None:
    folder = save_folder(tmp_path / "hub", hub_net(), "pytorch_model.bin", None)
    (folder / "config.json").write_text(config)
    with pytest.raises(UserError, match=message) as caught:
        convert(folder, tmp_path / "net.pt")
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds neither model.safetensors nor pytorch_model.bin"):
        convert(tmp_path, tmp_path / "net.pt", source_format="huggan")
