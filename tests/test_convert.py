"""Conversions against the arithmetic of the codes that the weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcgan_fast import models
from dcgan_fast.convert import FORMATS, convert
from dcgan_fast.errors import UserError
from dcgan_fast.training.checkpoint import load_checkpoint, load_networks, save_checkpoint

# ------------------------------------------------------------------------------- pytorch/examples


class ExampleNet(nn.Module):
    """pytorch/examples' 64x64 generator or discriminator (this one's logits)."""

    def __init__(self, role: str, width: int = 4, nz: int = 6) -> None:
        super().__init__()
        widths = [width, width * 2, width * 4, width * 8]
        layers: list[nn.Module] = []
        if role == "generator":
            layers.append(nn.ConvTranspose2d(nz, widths[3], 4, 1, 0, bias=False))
            for wide, narrow in zip(widths[:0:-1], widths[-2::-1], strict=True):
                layers += [nn.BatchNorm2d(wide), nn.ReLU(True)]
                layers.append(nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False))
            layers += [nn.BatchNorm2d(width), nn.ReLU(True)]
            layers += [nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh()]
        else:
            layers += [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
            for narrow, wide in zip(widths[:-1], widths[1:], strict=True):
                layers.append(nn.Conv2d(narrow, wide, 4, 2, 1, bias=False))
                layers += [nn.BatchNorm2d(wide), nn.LeakyReLU(0.2, True)]
            layers.append(nn.Conv2d(widths[3], 1, 4, 1, 0, bias=False))
        self.main = nn.Sequential(*layers)

    def forward(self, input: Tensor) -> Tensor:
        return self.main(input)


def example_pair() -> tuple[ExampleNet, ExampleNet]:
    torch.manual_seed(0)
    pair = ExampleNet("generator"), ExampleNet("discriminator")
    pair[1](pair[0](torch.randn(8, 6, 1, 1)))  # running statistics of their own
    return pair[0].eval(), pair[1].eval()


def check_example(checkpoint: Path, pair: tuple[ExampleNet, ExampleNet]) -> None:
    generator, discriminator, content = load_networks(checkpoint)
    assert content["preset"] == "pytorch"
    latent = torch.randn(3, 6, 1, 1)
    assert isinstance(generator, models.Generator)
    images = pair[0](latent)
    torch.testing.assert_close(models.generate(generator, latent), images.detach())
    assert discriminator is not None
    torch.testing.assert_close(discriminator.eval()(images), pair[1](images).flatten())


def save_pair(folder: Path, pair: tuple[ExampleNet, ExampleNet], suffix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for name, network in zip("GD", pair, strict=True):
        torch.save(network.state_dict(), folder / f"net{name}{suffix}.pth")
    return folder


@pytest.mark.parametrize("suffix", ("", "_epoch_24"))
def test_a_folder_of_the_examples_becomes_a_checkpoint(tmp_path: Path, suffix: str) -> None:
    pair = example_pair()
    folder = save_pair(tmp_path / "out", pair, suffix)
    done = convert(folder, tmp_path / "net.pt")
    assert (done.source_format, done.target_format) == ("pytorch-examples", "dcgan-fast")
    check_example(tmp_path / "net.pt", pair)


def test_the_last_epoch_of_a_folder_is_taken(tmp_path: Path) -> None:
    pair = example_pair()
    folder = save_pair(tmp_path / "out", example_pair(), "_epoch_9")
    with torch.no_grad():
        for network in pair:
            for parameter in network.parameters():
                parameter.mul_(1.5)
    save_pair(folder, pair, "_epoch_10")
    convert(folder, tmp_path / "net.pt")
    check_example(tmp_path / "net.pt", pair)


@pytest.mark.parametrize("prefix", ("main.", "module.main.", "model."))
@pytest.mark.parametrize("role", ("generator", "discriminator"))
def test_one_bare_state_dict(tmp_path: Path, role: str, prefix: str) -> None:
    """Under DataParallel's prefix and huggan's too, whatever the name of the file."""
    network = example_pair()[role == "discriminator"]
    state = {key.replace("main.", prefix, 1): value for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    convert(tmp_path / "pytorch_model.bin", tmp_path / "net.pt")
    content = load_checkpoint(tmp_path / "net.pt")
    assert set(content["config"]) == {role}
    assert content[role].keys() == network.state_dict().keys()
    for key, value in network.state_dict().items():
        assert torch.equal(content[role][key], value), key
    loaded = load_networks(tmp_path / "net.pt")[role == "discriminator"]
    assert loaded is not None


def test_a_bare_pair_with_labels(tmp_path: Path) -> None:
    pair = models.build("cgan-dcgan", image_size=16, ngf=2, ndf=2, ngfc=4, ndfc=4)
    folder = tmp_path / "run"
    folder.mkdir()
    for name, network in zip(("netG.pth", "netD.pth"), pair, strict=True):
        torch.save(network.state_dict(), folder / name)
    done = convert(folder, tmp_path / "net.pt")
    assert done.preset == "cgan-dcgan"
    for loaded, network in zip(load_networks(tmp_path / "net.pt"), pair, strict=False):
        assert type(loaded) is type(network)
        for key, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key


def test_a_checkpoint_becomes_a_pair_that_loads_strictly(tmp_path: Path) -> None:
    torch.manual_seed(1)
    generator, discriminator = models.build(nz=6, ngf=4, ndf=4)
    discriminator(generator(generator.sample_latent(4)))
    save(tmp_path / "net.pt", generator, discriminator)
    done = convert(tmp_path / "net.pt", tmp_path / "pair")
    assert (done.source_format, done.target_format) == ("dcgan-fast", "pytorch-examples")
    assert [path.name for path in done.files] == ["netG.pth", "netD.pth"]
    pair = ExampleNet("generator"), ExampleNet("discriminator")
    for path, network in zip(done.files, pair, strict=True):
        network.load_state_dict(torch.load(path, weights_only=True), strict=True)
    check_example(tmp_path / "net.pt", (pair[0].eval(), pair[1].eval()))
    # of one network alone not beside another's
    with pytest.raises(UserError, match="pair holds netD.pth, of another model"):
        convert(done.files[0], tmp_path / "pair", target_format="pytorch-examples")
    # and back, unchanged
    convert(tmp_path / "pair", tmp_path / "again.pt")
    before, after = load_checkpoint(tmp_path / "net.pt"), load_checkpoint(tmp_path / "again.pt")
    assert before["config"] == after["config"]
    for role in ("generator", "discriminator"):
        for key, value in before[role].items():
            assert torch.equal(after[role][key], value), key


def save(path: Path, generator: models.Generator, discriminator: models.Discriminator) -> Path:
    save_checkpoint(
        path,
        {
            "preset": "pytorch",
            "config": {"generator": generator.config, "discriminator": discriminator.config},
            "generator": generator.state_dict(),
            "discriminator": discriminator.state_dict(),
        },
    )
    return path


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("newmu", {}, "the generator is no net of pytorch/examples', .* cannot be written as one"),
        ("carpedm20", {}, "the generator is no net of pytorch/examples'"),
        ("pytorch", {"bias": True}, "'main.0.bias' is"),
        ("pytorch", {"bn_eps": 1e-3}, "batch norm eps is 0.001 where pytorch/examples has 1e-05"),
    ],
)
def test_other_nets_are_not_written_as_the_examples(
    tmp_path: Path, preset: str, settings: dict[str, Any], message: str
) -> None:
    networks = models.build(preset, image_size=16, ngf=2, ndf=2, **settings)
    with pytest.raises(UserError, match=message):
        convert(save(tmp_path / "net.pt", *networks), tmp_path / "pair")
    assert not (tmp_path / "pair").exists()


# ----------------------------------------------------------------------------------- every format


def test_a_checkpoint_can_be_copied(tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", *models.build("newmu", image_size=16, ngf=2, ndf=2))
    done = convert(path, tmp_path / "copy.pt", target_format="dcgan-fast")
    assert done.target_format == "dcgan-fast"
    assert load_checkpoint(tmp_path / "copy.pt")["config"] == load_checkpoint(path)["config"]


def test_a_checkpoint_that_does_not_say_its_preset(tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt", *models.build("newmu", image_size=16, ngf=2, ndf=2))
    content = load_checkpoint(path)
    del content["preset"]
    save_checkpoint(path, content)
    with pytest.raises(UserError, match="net.pt does not say of which preset its networks are"):
        convert(path, tmp_path / "copy.pt", target_format="dcgan-fast")
    content["preset"] = 3
    save_checkpoint(path, content)
    with pytest.raises(UserError, match="net.pt is a damaged checkpoint: its 'preset' is no name"):
        load_checkpoint(path)


def test_formats_are_known_by_their_names() -> None:
    assert list(FORMATS)[:3] == ["dcgan-fast", "pytorch-examples", "newmu-arrays"]
    assert all(name == entry.name and entry.summary for name, entry in FORMATS.items())


@pytest.mark.parametrize("name", FORMATS)
def test_a_source_that_is_not_of_the_format_it_is_said_to_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("nothing of this kind")
    for source in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError):
            convert(source, tmp_path / "net.pt", source_format=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "missing"}, "no such file or folder: .*missing"),
        ({"source": "notes.txt"}, "notes.txt is of no known format .*newmu-arrays: a folder of"),
        ({"source": "."}, "is of no known format"),
        ({"source": "other.pt"}, "is of no known format"),
        (
            {"source": "run/netG.pth", "source_format": "caffe"},
            "'source_format' must be one of dcgan",
        ),
        (
            {"source": "run/netG.pth", "target_format": "caffe"},
            "'target_format' must be one of dcgan",
        ),
        ({"source": "run/netG.pth", "out": "no/such/folder/net.pt"}, "cannot write"),
        ({"source": "run/netG.pth", "out": "run"}, "cannot write"),
        (
            {"source": "run/netG.pth", "out": "notes.txt", "target_format": "pytorch-examples"},
            "cannot",
        ),
        ({"source": "twice"}, "holds two generators, the second in netG.pth"),
        ({"source": "run/netG.pth", "out": "run/netG.pth"}, "must be another file than the source"),
        ({"source": "empty.pt"}, "empty.pt holds no network"),
        ({"source": "torn.pt"}, "its 'networks' are no mapping"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    generator, _ = example_pair()
    (tmp_path / "notes.txt").write_text("nothing of this kind")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    save_checkpoint(tmp_path / "empty.pt", {"preset": "pytorch", "config": {}})
    save_checkpoint(tmp_path / "torn.pt", {"preset": "pytorch", "config": {}, "networks": 3})
    save_pair(tmp_path / "run", example_pair())
    save_pair(tmp_path / "twice", (generator, generator))
    options = {"out": "net.pt", **arguments}
    source, out = tmp_path / options.pop("source"), tmp_path / options.pop("out")
    with pytest.raises(UserError, match=message) as caught:
        convert(source, out, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.pt").exists()
