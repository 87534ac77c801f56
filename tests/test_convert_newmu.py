"""The authors' Theano arrays against their code's arithmetic, summed tap by tap in float64."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dcgan_fast import models
from dcgan_fast.convert import convert
from dcgan_fast.errors import UserError
from dcgan_fast.nn import batch_norm_mode
from dcgan_fast.training.checkpoint import load_checkpoint, load_networks, save_checkpoint

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


def test_newmu_arrays_of_the_other_byte_order(tmp_path: Path) -> None:
    gen, discrim = random_arrays()
    swapped = [[array.astype(">f4") for array in arrays] for arrays in (gen, discrim)]
    convert(save_arrays(tmp_path / "arrays", *swapped), tmp_path / "net.pt")
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
            lambda folder: np.savez((folder / "gen_02.npy").open("wb"), a=np.zeros(256)),
            "cannot read .*gen_02.npy: it is an archive, not one array",
        ),
        (
            lambda folder: np.save(folder / "discrim_01.npy", np.float32(3)),
            r"discrim_01.npy must have 4 dimensions, got \(\)",
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


# ---------------------------------------------------------------------------------------- writing


def save_net(path: Path, preset: str, **settings: Any) -> Path:
    torch.manual_seed(0)
    generator, discriminator = models.build(preset, **settings)
    with torch.no_grad():
        for parameter in [*generator.parameters(), *discriminator.parameters()]:
            parameter.add_(0.1 * torch.randn(parameter.shape))
    content = {
        "preset": preset,
        "config": {"generator": generator.config, "discriminator": discriminator.config},
        "generator": generator.state_dict(),
        "discriminator": discriminator.state_dict(),
        "bn": "batch",
    }
    save_checkpoint(path, content)
    return path


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("newmu", {"image_size": 64, "nz": 20}),
        ("newmu-svhn", {}),
        ("newmu-imagenet32", {"nz": 30}),
    ],
)
def test_arrays_that_are_written_compute_in_their_code_what_the_net_does(
    tmp_path: Path, preset: str, settings: dict[str, Any]
) -> None:
    path = save_net(tmp_path / "net.pt", preset, ngf=4, ndf=4, **settings)
    done = convert(path, tmp_path / "arrays", target_format="newmu-arrays")
    written = {
        stem: [np.load(file) for file in done.files if file.name.startswith(stem)]
        for stem in ("gen", "discrim")
    }
    expected = random_arrays(
        size=settings.get("image_size", 32),
        nz=settings.get("nz", 100),
        kernel=3 if preset == "newmu-imagenet32" else 5,
    )
    for arrays, theirs in zip(written.values(), expected, strict=True):
        assert [array.shape for array in arrays] == [array.shape for array in theirs]
        assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    check_newmu(path, written["gen"], written["discrim"])
    again = convert(tmp_path / "arrays", tmp_path / "again.pt")
    assert again.preset == preset
    before, after = load_networks(path), load_networks(tmp_path / "again.pt")
    assert before[2]["config"] == after[2]["config"]
    for mine, back in zip(before[:2], after[:2], strict=True):
        assert mine is not None and back is not None
        for (name, value), other in zip(mine.named_parameters(), back.parameters(), strict=True):
            assert torch.equal(value, other), name


def test_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    gen, discrim = random_arrays()
    convert(save_arrays(tmp_path / "a", gen, discrim), tmp_path / "net.pt")
    done = convert(tmp_path / "net.pt", tmp_path / "b", target_format="newmu-arrays")
    for file, array in zip(done.files, [*gen, *discrim], strict=True):
        assert np.array_equal(np.load(file), array), file.name
    # again into the same folder, but not another model's into it
    convert(tmp_path / "net.pt", tmp_path / "b", target_format="newmu-arrays")
    smaller = save_net(tmp_path / "small.pt", "newmu", image_size=16, ngf=4, ndf=4)
    with pytest.raises(UserError, match=r"holds (gen|discrim)_\d+.npy, of another model"):
        convert(smaller, tmp_path / "b", target_format="newmu-arrays")


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("pytorch", {}, "generator is no net of Newmu.*.'kernel_size' is 4 where theirs has 5"),
        ("paper", {}, "'bn_eps' is 1e-05 where theirs has 1e-08"),
        ("newmu", {"bias": True}, "'bias' is True where theirs has False"),
        ("newmu", {"head": "conv"}, "the discriminator is no .*'head' is 'conv' .* 'linear'"),
        ("newmu", {"scales": 1}, "'scales' is 1 where theirs has 2"),
        ("newmu", {"convs_per_scale": 2}, "'convs_per_scale' is 2 where theirs has 1"),
        ("newmu-imagenet32", {"convs_per_scale": 1}, "'convs_per_scale' is 1 where theirs has 2"),
    ],
)
def test_other_nets_are_not_written_as_arrays(
    tmp_path: Path, preset: str, settings: dict[str, Any], message: str
) -> None:
    path = save_net(tmp_path / "net.pt", preset, image_size=16, ngf=2, ndf=2, **settings)
    with pytest.raises(UserError, match=message):
        convert(path, tmp_path / "arrays", target_format="newmu-arrays")
    assert not (tmp_path / "arrays").exists()


def test_arrays_are_written_of_no_discriminator_alone(tmp_path: Path) -> None:
    _, discriminator = models.build("newmu", image_size=16, ndf=2)
    content = {"config": {"discriminator": discriminator.config}, "preset": "newmu"}
    save_checkpoint(tmp_path / "d.pt", {**content, "discriminator": discriminator.state_dict()})
    with pytest.raises(UserError, match="newmu-arrays need a generator, the checkpoint holds none"):
        convert(tmp_path / "d.pt", tmp_path / "arrays", target_format="newmu-arrays")


def test_the_default_number_of_scales_may_be_said_outright(tmp_path: Path) -> None:
    path = save_net(tmp_path / "net.pt", "newmu", image_size=16, scales=2, ngf=2, ndf=2)
    assert convert(path, tmp_path / "arrays", target_format="newmu-arrays").preset == "newmu"


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
        back = convert(tmp_path / "svhn.pt", tmp_path / "back", target_format="newmu-arrays")
        for file, array in zip(back.files, [*arrays[0], *arrays[1]], strict=True):
            assert np.array_equal(np.load(file), array), file.name
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
