"""DCGAN-tensorflow's variables against its net with SAME padding, convolved tap by tap in float64 and NHWC."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcgan_fast import models
from dcgan_fast.convert import convert
from dcgan_fast.errors import UserError
from dcgan_fast.training.checkpoint import load_checkpoint, load_networks, save_checkpoint

Arrays = dict[str, np.ndarray]


# ------------------------------------------------------------------------------------ TensorFlow's


def same_padding(n: int, kernel: int = 5, stride: int = 2) -> tuple[int, int]:
    """As TensorFlow documents SAME: the smaller half before."""
    total = max((math.ceil(n / stride) - 1) * stride + kernel - n, 0)
    return total // 2, total - total // 2


def tf_conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """tf.nn.conv2d(x, w, strides=2, padding="SAME"): x (N, H, W, in), w (kH, kW, in, out)."""
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), same_padding(height), same_padding(width), (0, 0)))
    out = np.zeros((len(x), math.ceil(height / 2), math.ceil(width / 2), w.shape[3]))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            window = padded[:, 2 * i : 2 * i + 5, 2 * j : 2 * j + 5]
            out[:, i, j] = np.einsum("nabc,abco->no", window, w)
    return out


def tf_deconv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """tf.nn.conv2d_transpose to twice the size, the transpose of :func:`tf_conv`; w (kH, kW, out, in)."""
    n, height, width, _ = x.shape
    top, left = same_padding(2 * height)[0], same_padding(2 * width)[0]
    padded = np.zeros((n, 2 * height + 3, 2 * width + 3, w.shape[2]))
    for i in range(height):
        for j in range(width):
            spread = np.einsum("nc,aboc->nabo", x[:, i, j], w)
            padded[:, 2 * i : 2 * i + 5, 2 * j : 2 * j + 5] += spread
    return padded[:, top : top + 2 * height, left : left + 2 * width]


def tf_norm(v: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    scale = v[f"{name}/gamma"] / np.sqrt(v[f"{name}/moving_variance"] + 1e-5)
    return (x - v[f"{name}/moving_mean"]) * scale + v[f"{name}/beta"]


def tf_generator(v: Arrays, z: np.ndarray) -> np.ndarray:
    """Its sampler: images (N, H, W, C)."""
    v = {name.removeprefix("generator/"): array.astype(np.float64) for name, array in v.items()}
    flat = z @ v["g_h0_lin/Matrix"] + v["g_h0_lin/bias"]
    channels = v["g_h1/w"].shape[3]
    base = math.isqrt(flat.shape[1] // channels)
    h = np.maximum(tf_norm(v, "g_bn0", flat.reshape(-1, base, base, channels)), 0)
    for layer in range(1, 5):
        h = tf_deconv(h, v[f"g_h{layer}/w"]) + v[f"g_h{layer}/biases"]
        h = np.maximum(tf_norm(v, f"g_bn{layer}", h), 0) if layer < 4 else np.tanh(h)
    return h


def tf_discriminator(v: Arrays, images: np.ndarray) -> np.ndarray:
    v = {name.removeprefix("discriminator/"): array.astype(np.float64) for name, array in v.items()}
    h = images
    for layer in range(4):
        h = tf_conv(h, v[f"d_h{layer}_conv/w"]) + v[f"d_h{layer}_conv/biases"]
        h = tf_norm(v, f"d_bn{layer}", h) if layer else h
        h = np.maximum(h, 0.2 * h)
    return (h.reshape(len(h), -1) @ v["d_h4_lin/Matrix"] + v["d_h4_lin/bias"])[:, 0]


def random_variables(*, base: int = 2, nz: int = 6, width: int = 3, nc: int = 3) -> Arrays:
    """All of the net's variables, lively enough for every one to count."""
    rng = np.random.default_rng(0)

    def normal(scale: float, *shape: int) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    v: Arrays = {}

    def norm(name: str, n: int) -> None:
        v[f"{name}/gamma"], v[f"{name}/beta"] = 1 + normal(0.2, n), normal(0.2, n)
        v[f"{name}/moving_mean"] = normal(0.2, n)
        v[f"{name}/moving_variance"] = rng.uniform(0.5, 2, n).astype(np.float32)

    sizes = [width << i for i in range(4)]
    units = base * base * sizes[3]
    v["generator/g_h0_lin/Matrix"] = normal(0.4, nz, units)
    v["generator/g_h0_lin/bias"] = normal(0.4, units)
    norm("generator/g_bn0", sizes[3])
    for layer, (inner, outer) in enumerate(zip(sizes[::-1], [*sizes[2::-1], nc], strict=True), 1):
        v[f"generator/g_h{layer}/w"] = normal(0.7 / inner**0.5, 5, 5, outer, inner)
        v[f"generator/g_h{layer}/biases"] = normal(0.2, outer)
        if layer < 4:
            norm(f"generator/g_bn{layer}", outer)
    for layer, (outer, inner) in enumerate(zip([nc, *sizes[:3]], sizes, strict=True)):
        v[f"discriminator/d_h{layer}_conv/w"] = normal(0.4 / outer**0.5, 5, 5, outer, inner)
        v[f"discriminator/d_h{layer}_conv/biases"] = normal(0.2, inner)
        if layer:
            norm(f"discriminator/d_bn{layer}", inner)
    v["discriminator/d_h4_lin/Matrix"] = normal(0.4 / units**0.5, units, 1)
    v["discriminator/d_h4_lin/bias"] = normal(0.4, 1)
    return v


def check(checkpoint: Path, v: Arrays, *, turned: bool) -> None:
    """The networks in ``checkpoint`` compute what TensorFlow's do with these variables."""
    generator, discriminator, content = load_networks(checkpoint)
    assert content["preset"] == "carpedm20" and content["bn"] == "running"
    assert isinstance(generator, models.Generator)
    latent = generator.sample_latent(3, generator=torch.Generator().manual_seed(1))
    expected = tf_generator(v, latent.double().numpy()).transpose(0, 3, 1, 2)
    assert expected.std() > 0.2
    mine = expected[:, :, ::-1, ::-1] if turned else expected
    with torch.no_grad():
        images = generator.double().eval()(latent.double())
    np.testing.assert_allclose(images, mine, rtol=1e-6, atol=1e-6)
    assert isinstance(discriminator, models.Discriminator)
    logits = tf_discriminator(v, expected.transpose(0, 2, 3, 1))
    assert np.abs(logits).min() > 1e-3
    with torch.no_grad():
        found = discriminator.double().eval()(torch.from_numpy(mine.copy()))
    np.testing.assert_allclose(found, logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("format", ["carpedm20", "carpedm20-mirrored"])
@pytest.mark.parametrize("shape", [{}, {"base": 1, "nc": 1}, {"base": 3, "nz": 4, "width": 2}])
def test_variables_compute_what_tensorflow_does(
    tmp_path: Path, shape: dict[str, int], format: str
) -> None:
    v = random_variables(**shape)
    np.savez(tmp_path / "faces.npz", **v)
    done = convert(tmp_path / "faces.npz", tmp_path / "net.pt", source_format=format)
    assert done.preset == "carpedm20"
    check(tmp_path / "net.pt", v, turned=format == "carpedm20-mirrored")
    config = load_checkpoint(tmp_path / "net.pt")["config"]["generator"]
    assert config["kernel_size"] == (6 if format == "carpedm20" else 5)
    # and back: every variable under its name, bit for bit
    convert(tmp_path / "net.pt", tmp_path / "back.npz", target_format=format)
    with np.load(tmp_path / "back.npz") as back:
        assert set(back.files) == set(v)
        for name, array in v.items():
            assert back[name].dtype == np.float32 and np.array_equal(back[name], array), name


def test_upright_images_are_the_default(tmp_path: Path) -> None:
    v = random_variables(base=1)
    np.savez(tmp_path / "faces.npz", **v)
    done = convert(tmp_path / "faces.npz", tmp_path / "net.pt")
    assert done.source_format == "carpedm20"
    check(tmp_path / "net.pt", v, turned=False)
    assert convert(tmp_path / "net.pt", tmp_path / "b.npz").target_format == "carpedm20"


def test_names_as_savers_write_them(tmp_path: Path) -> None:
    """With ``:0``, without scopes, beside an optimiser's."""
    v = random_variables(base=1)
    other = {"beta1_power": np.float32(0.5), "generator/g_h1/w/Adam": np.zeros(3, np.float32)}
    renamed = {f"{name.partition('/')[2]}:0": array for name, array in v.items()}
    np.savez(tmp_path / "faces.npz", **renamed, **other)
    convert(tmp_path / "faces.npz", tmp_path / "net.pt")
    check(tmp_path / "net.pt", v, turned=False)


def save(path: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    small = {"image_size": 32, "nz": 6, "ngf": 3, "ndf": 3, **settings}
    networks = dict(
        zip(("generator", "discriminator"), models.build("carpedm20", **small), strict=True)
    )
    with torch.no_grad():
        for network in networks.values():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
            for name, buffer in network.named_buffers():
                if name.endswith("running_var"):
                    buffer.uniform_(0.01, 0.1)
    content = {"preset": "carpedm20", "bn": "running"}
    config = {role: network.config for role, network in networks.items()}
    states = {role: network.state_dict() for role, network in networks.items()}
    save_checkpoint(path, {**content, "config": config, **states})
    return path


def test_a_net_of_the_preset_goes_mirrored(tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt")
    convert(path, tmp_path / "net.npz", target_format="carpedm20-mirrored")
    with np.load(tmp_path / "net.npz") as file:
        check(path, dict(file), turned=True)
    convert(tmp_path / "net.npz", tmp_path / "again.pt", source_format="carpedm20-mirrored")
    before, after = load_checkpoint(path), load_checkpoint(tmp_path / "again.pt")
    assert before["config"] == after["config"]
    for role in ("generator", "discriminator"):
        for key, value in before[role].items():
            assert torch.equal(value, after[role][key]), key


def test_one_network_alone(tmp_path: Path) -> None:
    v = random_variables(base=1)
    for role, letter in (("generator", "g"), ("discriminator", "d")):
        np.savez(
            tmp_path / "one.npz", **{n: a for n, a in v.items() if n.startswith(f"{role}/{letter}")}
        )
        convert(tmp_path / "one.npz", tmp_path / "net.pt")
        assert set(load_checkpoint(tmp_path / "net.pt")["config"]) == {role}
        convert(tmp_path / "net.pt", tmp_path / "back.npz", target_format="carpedm20")


@pytest.mark.parametrize(
    ("format", "settings", "message"),
    [
        ("carpedm20", {}, "'kernel_size' is 5 where it has 6.: use carpedm20-mirrored"),
        ("carpedm20-mirrored", {"kernel_size": 6}, "is 6 where it has 5.: use carpedm20, of the"),
        ("carpedm20", {"kernel_size": 6}, "the generator's 6x6 kernels were trained since"),
        ("carpedm20-mirrored", {"bias": False}, "'bias' is False where it has True"),
        ("carpedm20-mirrored", {"bn_eps": 1e-3}, "'bn_eps' is 0.001 where it has 1e-05"),
        ("carpedm20-mirrored", {"projection": "conv"}, "'projection' is 'conv' where it has 'line"),
        ("carpedm20-mirrored", {"head": "conv"}, "the discriminator is no net that 'carpedm20-mi"),
        ("carpedm20-mirrored", {"scales": 3}, "'scales' is 3 where it has 4"),
    ],
)
def test_other_nets_are_not_written(
    tmp_path: Path, format: str, settings: dict[str, Any], message: str
) -> None:
    path = save(tmp_path / "net.pt", **settings)
    with pytest.raises(UserError, match=message):
        convert(path, tmp_path / "net.npz", target_format=format)
    assert not (tmp_path / "net.npz").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator/g_h2/w": None}, "lacks g_h2/w"),
        ({"generator/g_h0_lin/Matrix": None}, "lacks g_h0_lin/Matrix"),
        ({"discriminator/d_h0_conv/w": None}, "lacks d_h0_conv/w"),
        ({"generator/g_h4/w": np.zeros((5, 5, 3, 0))}, r"must have 4 dimensions above 0, got \(5,"),
        ({"generator/g_h4/w": None}, "lacks g_h4/w"),
        ({"discriminator/d_bn3/moving_mean": None}, "lacks d_bn3/moving_mean"),
        ({"generator/g_h2/w": np.zeros((3, 3, 6, 12))}, r"must be \(5, 5, 6, 12\), got \(3, 3, 6,"),
        (
            {"generator/g_h4/w": np.zeros((5, 5))},
            r"g_h4/w in .* must have 4 dim.* above 0, got \(5, 5\)",
        ),
        ({"generator/g_h0_lin/Matrix": np.zeros((6, 60))}, "60 units, which are not 24 square map"),
        ({"generator/g_h1/biases": np.zeros(12, np.int64)}, "must hold floating-point numbers"),
        ({"generator/g_h1/biases": np.array([{}])}, "cannot read .*faces.npz"),
        ({"g_h1/biases:0": np.zeros(12)}, "holds g_h1/biases twice"),
        ({"generator/g_h1_lin/Matrix": np.zeros((3, 3))}, "a net with labels; only the one with"),
    ],
)
def test_variables_that_make_no_network(
    tmp_path: Path, changes: dict[str, np.ndarray | None], message: str
) -> None:
    v = {**random_variables(base=1), **changes}
    np.savez(tmp_path / "faces.npz", **{n: a for n, a in v.items() if a is not None})
    with pytest.raises(UserError, match=message) as caught:
        convert(tmp_path / "faces.npz", tmp_path / "net.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.pt").exists()


@pytest.mark.parametrize("dtype", [">f4", "<f8"])
def test_variables_of_other_types(tmp_path: Path, dtype: str) -> None:
    v = random_variables(base=1)
    np.savez(tmp_path / "faces.npz", **{name: array.astype(dtype) for name, array in v.items()})
    convert(tmp_path / "faces.npz", tmp_path / "net.pt")
    check(tmp_path / "net.pt", v, turned=False)


def test_other_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=np.zeros(3))
    with pytest.raises(UserError, match="is of no known format"):
        convert(tmp_path / "data.npz", tmp_path / "net.pt")
    with pytest.raises(UserError, match="is no .npz of carpedm20"):
        convert(tmp_path / "data.npz", tmp_path / "net.pt", source_format="carpedm20")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UserError, match="is of no known format"):
        convert(tmp_path / "torn.npz", tmp_path / "net.pt")
