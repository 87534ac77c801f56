"""Conversions against the arithmetic of the codes that the weights come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcgan_fast import models
from dcgan_fast.convert import FORMATS, convert
from dcgan_fast.errors import UserError
from dcgan_fast.nn import batch_norm_mode
from dcgan_fast.training.checkpoint import load_checkpoint, load_networks, save_checkpoint

# ------------------------------------------------------------------------------- Newmu/dcgan_code

Arrays = list[np.ndarray]


def random_arrays(
    *, size: int = 32, width: int = 4, nc: int = 3, nz: int = 100, kernel: int = 5
) -> tuple[Arrays, Arrays]:
    """Arrays in the shapes and the order of Newmu's code, one convolution a scale (3x3: two)."""
    rng = np.random.default_rng(0)

    def kernels(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    def norm(n: int) -> Arrays:
        gain, shift = 1 + 0.2 * rng.standard_normal(n), 0.2 * rng.standard_normal(n)
        return [gain.astype(np.float32), shift.astype(np.float32)]

    down, channels = [], nc
    while size > 4:
        inner = channels * 2 if down else width
        down.append((channels, inner))
        if kernel == 3:
            down.append((inner, inner))
        channels, size = inner, size // 2
    gen = [kernels(nz, channels * 16), *norm(channels * 16)]
    discrim = []
    for outer, inner in reversed(down):
        gen += [kernels(inner, outer, kernel, kernel), *norm(outer)]
    for outer, inner in down:
        discrim += [kernels(inner, outer, kernel, kernel), *norm(inner)]
    return gen[:-2], [discrim[0], *discrim[3:], kernels(channels * 16, 1)]


def save_arrays(folder: Path, gen: Arrays, discrim: Arrays, stem: str = "{}_{:02d}.npy") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, arrays in (("gen", gen), ("discrim", discrim)):
        for number, array in enumerate(arrays, 1):
            np.save(folder / stem.format(name, number), array)
    return folder


def theano_batchnorm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    axes = [0, *range(2, x.dim())]
    mean = x.mean(axes, keepdim=True)
    variance = (x - mean).square().mean(axes, keepdim=True)
    shape = [-1] + [1] * (x.dim() - 2)
    return (x - mean) / (variance + 1e-8).sqrt() * gain.view(shape) + shift.view(shape)


def theano_conv(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """A true convolution: out[i] = sum over k of x[s i + p - k] w[k], summed tap by tap."""
    size, pad = kernel.shape[2], kernel.shape[2] // 2
    padded = F.pad(x, (pad,) * 4)
    n = x.shape[2] // stride
    out = torch.zeros(x.shape[0], kernel.shape[0], n, n, dtype=x.dtype)
    for a in range(size):
        for b in range(size):
            rows = slice(size - 1 - a, size - 1 - a + stride * n, stride)
            columns = slice(size - 1 - b, size - 1 - b + stride * n, stride)
            taps = padded[:, :, rows, columns][:, :, :n, :n]
            out += torch.einsum("nchw,oc->nohw", taps, kernel[:, :, a, b])
    return out


def theano_deconv(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """The gradient of :func:`theano_conv` with respect to its input, as the code computes it."""
    n = x.shape[2] * stride
    image = torch.zeros(x.shape[0], kernel.shape[1], n, n, dtype=x.dtype, requires_grad=True)
    (out,) = torch.autograd.grad(theano_conv(image, kernel, stride), image, x)
    return out


def strides(kernel: int, count: int) -> list[int]:
    return [2, 1] * (count // 2) if kernel == 3 else [2] * count


def theano_generator(arrays: Arrays, latent: Tensor) -> Tensor:
    """The code's gen() in float64."""
    first, gain, shift, *rest = (torch.from_numpy(array).double() for array in arrays)
    x = theano_batchnorm(latent.double() @ first, gain, shift).relu()
    x = x.view(len(x), -1, 4, 4)
    for i, stride in enumerate(strides(rest[0].shape[2], len(arrays) // 3)):
        x = theano_deconv(x, rest[3 * i], stride)
        last = 3 * i + 1 == len(rest)
        x = x.tanh() if last else theano_batchnorm(x, rest[3 * i + 1], rest[3 * i + 2]).relu()
    return x


def theano_discriminator(arrays: Arrays, images: Tensor) -> Tensor:
    """The code's discrim() in float64, before its sigmoid."""
    first, *rest, last = (torch.from_numpy(array).double() for array in arrays)
    stride, *more = reversed(strides(first.shape[2], len(arrays) // 3 + 1))
    x = F.leaky_relu(theano_conv(images.double(), first, stride), 0.2)
    for i, stride in enumerate(more):
        x = theano_conv(x, rest[3 * i], stride)
        x = F.leaky_relu(theano_batchnorm(x, rest[3 * i + 1], rest[3 * i + 2]), 0.2)
    return (x.flatten(1) @ last).flatten()


def check_newmu(checkpoint: Path, gen: Arrays, discrim: Arrays) -> None:
    """The networks in ``checkpoint`` compute what the code does with these arrays."""
    generator, discriminator, content = load_networks(checkpoint)
    assert isinstance(generator, models.Generator)
    latent = generator.sample_latent(16, generator=torch.Generator().manual_seed(1))
    images = models.generate(generator, latent, bn=content["bn"])
    expected = theano_generator(gen, latent)
    assert (images - expected).abs().max() < 1e-5
    assert isinstance(discriminator, models.Discriminator)
    with torch.no_grad(), batch_norm_mode(discriminator, "batch"):
        logits = discriminator.double()(expected)
    torch.testing.assert_close(logits, theano_discriminator(discrim, expected))


@pytest.mark.parametrize(
    ("preset", "shape"),
    [
        ("newmu-svhn", {}),
        ("newmu", {"size": 64, "nz": 20, "nc": 1}),
        ("newmu", {"size": 16, "nc": 4}),
        ("newmu-imagenet32", {"kernel": 3, "nz": 30}),
    ],
)
def test_newmu_arrays_compute_what_their_code_does(
    tmp_path: Path, preset: str, shape: dict[str, int]
) -> None:
    gen, discrim = random_arrays(**shape)
    folder = save_arrays(tmp_path / "arrays", gen, discrim)
    done = convert(folder, tmp_path / "net.pt")
    assert (done.source_format, done.target_format) == ("newmu-arrays", "dcgan-fast")
    assert done.preset == preset and done.files == (tmp_path / "net.pt",)
    check_newmu(tmp_path / "net.pt", gen, discrim)
    content = load_checkpoint(tmp_path / "net.pt")
    assert content["preset"] == preset and content["bn"] == "batch"
    drawn = content["config"]["generator"]["latent_distribution"]
    assert drawn == ("normal" if preset == "newmu-svhn" else "uniform")


def test_newmu_generator_draws_single_images(tmp_path: Path) -> None:
    """Its running statistics are the population's, though the arrays hold none."""
    folder = save_arrays(tmp_path / "arrays", *random_arrays())
    convert(folder, tmp_path / "net.pt")
    generator, _, _ = load_networks(tmp_path / "net.pt")
    assert isinstance(generator, models.Generator)
    latent = generator.sample_latent(64, generator=torch.Generator().manual_seed(2))
    running = models.generate(generator, latent)
    torch.testing.assert_close(running, models.generate(generator, latent, bn="population"))
    torch.testing.assert_close(models.generate(generator, latent[:1]), running[:1])
    batch = models.generate(generator, latent, bn="batch")
    assert (running - batch).abs().mean() < 0.2 * batch.abs().mean()


def test_newmu_files_as_joblib_names_them(tmp_path: Path) -> None:
    gen, discrim = random_arrays()
    folder = save_arrays(tmp_path / "a", gen, discrim, "200_{}_params.jl_{:02d}.npy")
    (folder / "200_gen_params.jl").write_bytes(b"a pickle that nobody reads")
    convert(folder, tmp_path / "net.pt")
    check_newmu(tmp_path / "net.pt", gen, discrim)


def test_newmu_generator_alone(tmp_path: Path) -> None:
    folder = save_arrays(tmp_path / "a", random_arrays()[0], [])
    convert(folder, tmp_path / "net.pt")
    generator, discriminator, _ = load_networks(tmp_path / "net.pt")
    assert generator is not None and discriminator is None


Change = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "gen_03.npy").unlink(), "lacks the array 03 of 'gen'"),
        (lambda folder: (folder / "discrim_01.npy").unlink(), "lacks the array 01 of 'discrim'"),
        (lambda folder: (folder / "discrim_08.npy").unlink(), "has 8 arrays, got 7"),
        (lambda folder: (folder / "gen_10.npy").unlink(), "are not a DCGAN generator's"),
        (
            lambda folder: [path.unlink() for path in folder.glob("gen_*")],
            "holds no generator",
        ),
        (
            lambda folder: np.save(folder / "gen_05.npy", np.zeros(15, np.float32)),
            r"gen_05.npy must be \(8,\), as the generator's 'main.5.weight', got \(15,\)",
        ),
        (
            lambda folder: np.save(folder / "discrim_08.npy", np.zeros((1, 256), np.float32)),
            r"discrim_08.npy must be \(256, 1\), as the discriminator's 'main.9.weight'",
        ),
        (
            lambda folder: np.save(folder / "gen_02.npy", np.zeros(256, np.int64)),
            "gen_02.npy must hold floating-point numbers, got int64",
        ),
        (
            lambda folder: (folder / "gen_02.npy").write_bytes(b"\x93NUMPY torn"),
            "cannot read .*gen_02.npy",
        ),
        (
            lambda folder: np.save(folder / "gen_02.npy", np.array([{}]), allow_pickle=True),
            "cannot read .*gen_02.npy",
        ),
        (
            lambda folder: np.save(folder / "25_gen_params.jl_01.npy", np.zeros(3, np.float32)),
            "holds two models: 25_gen_params.jl_01.npy and gen_01.npy",
        ),
    ],
)
def test_newmu_arrays_that_make_no_network(tmp_path: Path, change: Change, message: str) -> None:
    folder = save_arrays(tmp_path / "arrays", *random_arrays())
    change(folder)
    with pytest.raises(UserError, match=message):
        convert(folder, tmp_path / "net.pt")
    assert not (tmp_path / "net.pt").exists()


# The authors' own arrays are not part of this repository. Who has them points DCGAN_FAST_DATA at
# the folder that holds newmu-svhn; nobody else collects this test.
if data := os.environ.get("DCGAN_FAST_DATA"):

    def test_the_authors_svhn_model(tmp_path: Path) -> None:
        folder = Path(data) / "newmu-svhn"
        done = convert(folder, tmp_path / "svhn.pt")
        assert done.preset == "newmu-svhn"
        arrays = [
            [np.load(folder / f"{name}_{number:02d}.npy") for number in range(1, count + 1)]
            for name, count in (("gen", 10), ("discrim", 8))
        ]
        check_newmu(tmp_path / "svhn.pt", *arrays)
        generator, discriminator, _ = load_networks(tmp_path / "svhn.pt")
        assert isinstance(generator, models.Generator) and discriminator is not None
        latent = generator.sample_latent(128, generator=torch.Generator().manual_seed(0))
        images = models.generate(generator, latent, bn="batch")
        # Neighbouring pixels of a picture resemble each other, those of noise do not: unflipped
        # kernels draw noise.
        neighbours = torch.corrcoef(
            torch.stack([images[..., 1:].flatten(), images[..., :-1].flatten()])
        )[0, 1]
        assert neighbours > 0.95
        with torch.no_grad(), batch_norm_mode(discriminator, "batch"):
            assert discriminator(images).sigmoid().mean() < 0.2  # it was trained to tell them apart


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


def test_formats_are_known_by_their_names() -> None:
    assert list(FORMATS) == ["dcgan-fast", "pytorch-examples", "newmu-arrays"]
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
            {"source": "run/netG.pth", "source_format": "onnx"},
            "'source_format' must be one of dcgan",
        ),
        (
            {"source": "run/netG.pth", "target_format": "onnx"},
            "'target_format' must be one of dcgan",
        ),
        ({"source": "run/netG.pth", "target_format": "newmu-arrays"}, "can be read only"),
        ({"source": "run/netG.pth", "out": "no/such/folder/net.pt"}, "cannot write"),
        ({"source": "run/netG.pth", "out": "run"}, "cannot write"),
        (
            {"source": "run/netG.pth", "out": "notes.txt", "target_format": "pytorch-examples"},
            "cannot",
        ),
        ({"source": "twice"}, "holds two generators, the second in netG.pth"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    generator, _ = example_pair()
    (tmp_path / "notes.txt").write_text("nothing of this kind")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    save_pair(tmp_path / "run", example_pair())
    save_pair(tmp_path / "twice", (generator, generator))
    options = {"out": "net.pt", **arguments}
    source, out = tmp_path / options.pop("source"), tmp_path / options.pop("out")
    with pytest.raises(UserError, match=message) as caught:
        convert(source, out, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.pt").exists()
