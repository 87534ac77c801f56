"""The networks against plain-PyTorch replicas, published shapes and their sources' arithmetic."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dcgan_fast import models
from dcgan_fast.errors import UserError
from dcgan_fast.models import Discriminator, Generator, build, generate
from dcgan_fast.nn import population_statistics

PRESETS = tuple(name for name, preset in models.PRESETS.items() if not preset.conditional)
SIZES = (16, 32, 64, 128, 256)
SMALL: dict[str, Any] = {"ngf": 2, "ndf": 2, "nz": 5}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def small(preset: str, **overrides: Any) -> tuple[Generator, Discriminator]:
    return build(preset, **{"image_size": 16, **SMALL, **overrides})


# ------------------------------------------------------ replicas of pytorch/examples' dcgan/main.py


class ExampleGenerator(nn.Module):
    def __init__(self, nz: int = 100, ngf: int = 64, nc: int = 3, image_size: int = 64) -> None:
        super().__init__()
        width = ngf * image_size // 8
        layers: list[nn.Module] = [nn.ConvTranspose2d(nz, width, 4, 1, 0, bias=False)]
        while width > ngf:
            layers += [nn.BatchNorm2d(width), nn.ReLU(True)]
            layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False)]
            width //= 2
        layers += [nn.BatchNorm2d(ngf), nn.ReLU(True)]
        layers += [nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        return self.main(latent)


class ExampleDiscriminator(nn.Module):
    def __init__(self, ndf: int = 64, nc: int = 3, image_size: int = 64) -> None:
        super().__init__()
        width, layers = ndf, [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
        while width < ndf * image_size // 8:
            layers += [nn.Conv2d(width, width * 2, 4, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(width * 2), nn.LeakyReLU(0.2, True)]
            width *= 2
        layers += [nn.Conv2d(width, 1, 4, 1, 0, bias=False), nn.Sigmoid()]
        self.main = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images).view(-1, 1).squeeze(1)


def example_weights_init(module: nn.Module) -> None:
    name = module.__class__.__name__
    if name.find("Conv") != -1:
        torch.nn.init.normal_(module.weight, 0.0, 0.02)
    elif name.find("BatchNorm") != -1:
        torch.nn.init.normal_(module.weight, 1.0, 0.02)
        torch.nn.init.zeros_(module.bias)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def test_default_nets_have_the_keys_of_the_examples() -> None:
    generator, discriminator = Generator(), Discriminator()
    weights = [key for key in shapes(generator) if generator.state_dict()[key].dim() == 4]
    assert weights == [f"main.{index}.weight" for index in (0, 3, 6, 9, 12)]
    assert [key for key in shapes(generator) if "running_mean" in key] == [
        f"main.{index}.running_mean" for index in (1, 4, 7, 10)
    ]
    weights = [key for key in shapes(discriminator) if discriminator.state_dict()[key].dim() == 4]
    assert weights == [f"main.{index}.weight" for index in (0, 2, 5, 8, 11)]
    assert [key for key in shapes(discriminator) if "running_mean" in key] == [
        f"main.{index}.running_mean" for index in (3, 6, 9)
    ]


@pytest.mark.parametrize("size", SIZES)
def test_default_nets_are_the_examples_module_for_module(size: int) -> None:
    sizes = {"image_size": size, "nc": 2}
    for ours, theirs in (
        (Generator(nz=7, ngf=3, **sizes), ExampleGenerator(nz=7, ngf=3, **sizes)),
        (Discriminator(ndf=3, output="sigmoid", **sizes), ExampleDiscriminator(ndf=3, **sizes)),
    ):
        assert shapes(ours) == shapes(theirs)
        assert [repr(child) for child in ours.main] == [repr(child) for child in theirs.main]


@pytest.mark.parametrize("size", (16, 64))
@pytest.mark.parametrize("training", (False, True))
def test_state_dicts_load_strictly_both_ways_and_compute_the_same(
    size: int, training: bool
) -> None:
    theirs_g, theirs_d = ExampleGenerator(6, 4, 3, size), ExampleDiscriminator(4, 3, size)
    theirs_g.apply(example_weights_init)
    ours_g, ours_d = build(image_size=size, nz=6, ngf=4, ndf=4, output="sigmoid")
    ours_g.load_state_dict(theirs_g.state_dict(), strict=True)
    theirs_d.load_state_dict(ours_d.state_dict(), strict=True)
    latent = torch.randn(5, 6, 1, 1)
    networks = (ours_g, theirs_g, ours_d, theirs_d)
    for network in networks:
        network.train(training)
    images = theirs_g(latent)
    torch.testing.assert_close(ours_g(latent), images)
    torch.testing.assert_close(ours_g(latent.flatten(1)), images)
    torch.testing.assert_close(ours_d(images), theirs_d(images))
    assert ours_d(images).shape == (5,)


def test_weights_init_of_the_examples_works_by_class_name() -> None:
    generator, discriminator = build(ngf=4, ndf=4)
    for network in (generator, discriminator):
        for parameter in network.parameters():
            nn.init.constant_(parameter, 9.0)
        network.apply(example_weights_init)
        for name, parameter in network.named_parameters():
            assert parameter.abs().max() < 2, f"{name} was not initialised"


def test_one_seed_gives_the_weights_of_the_example_script() -> None:
    torch.manual_seed(7)
    theirs_g = ExampleGenerator(ngf=4)
    theirs_g.apply(example_weights_init)
    theirs_d = ExampleDiscriminator(ndf=4)
    theirs_d.apply(example_weights_init)
    torch.manual_seed(7)
    ours = build("pytorch", ngf=4, ndf=4)
    for network, theirs in zip(ours, (theirs_g, theirs_d), strict=True):
        for name, value in theirs.state_dict().items():
            assert torch.equal(network.state_dict()[name], value), name


def example_losses(generator: nn.Module, discriminator: nn.Module, steps: int) -> list[float]:
    """The training loop of dcgan/main.py, on random images."""
    torch.manual_seed(3)
    dtype = next(generator.parameters()).dtype
    criterion = nn.BCELoss()
    adam_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    adam_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    losses = []
    for _ in range(steps):
        discriminator.zero_grad()
        real = (torch.rand(4, 3, 64, 64) * 2 - 1).to(dtype)
        error_real = criterion(discriminator(real), torch.ones(4, dtype=dtype))
        error_real.backward()
        fake = generator(torch.randn(4, 10, 1, 1).to(dtype))
        error_fake = criterion(discriminator(fake.detach()), torch.zeros(4, dtype=dtype))
        error_fake.backward()
        adam_d.step()
        generator.zero_grad()
        error_g = criterion(discriminator(fake), torch.ones(4, dtype=dtype))
        error_g.backward()
        adam_g.step()
        losses += [error_real.item(), error_fake.item(), error_g.item()]
    return losses


@pytest.mark.parametrize(
    "dtype, steps, tolerance", [(torch.float64, 20, 1e-7), (torch.float32, 10, 1e-3)]
)
def test_the_examples_training_loop_gives_the_same_losses(
    dtype: torch.dtype, steps: int, tolerance: float
) -> None:
    """Adam's steps hang on the signs of gradients near zero: from the twelfth on, rounding of float32 is seen."""
    ours_g, ours_d = build(nz=10, ngf=4, ndf=4, output="sigmoid")
    theirs_g, theirs_d = ExampleGenerator(10, 4), ExampleDiscriminator(4)
    theirs_g.load_state_dict(ours_g.state_dict())
    theirs_d.load_state_dict(ours_d.state_dict())
    networks = [network.to(dtype) for network in (ours_g, ours_d, theirs_g, theirs_d)]
    ours, theirs = (example_losses(*networks[i : i + 2], steps) for i in (0, 2))
    assert ours == pytest.approx(theirs, rel=tolerance)


# ------------------------------------------------------------ the shapes that other sources publish

# Newmu/dcgan_code: the arrays that faces/train_uncond_dcgan.py makes and those stored in models/.
# Kernel size, nz, (in, out) of each transposed convolution, (out, in) of each convolution.
NEWMU = {
    "newmu": (
        5,
        100,
        [(1024, 512), (512, 256), (256, 128), (128, 3)],
        [(128, 3), (256, 128), (512, 256), (1024, 512)],
    ),
    "newmu-svhn": (5, 100, [(256, 128), (128, 64), (64, 3)], [(64, 3), (128, 64), (256, 128)]),
    "newmu-imagenet32": (
        3,
        256,
        [(512, 512), (512, 256), (256, 256), (256, 128), (128, 128), (128, 3)],
        [(128, 3), (128, 128), (256, 128), (256, 256), (512, 256), (512, 512)],
    ),
}


@pytest.mark.parametrize("preset", NEWMU)
def test_newmu_nets_have_the_arrays_of_the_code(preset: str) -> None:
    kernel, nz, up, down = NEWMU[preset]
    with torch.device("meta"):
        generator, discriminator = build(preset)
    units = up[0][0] * 4 * 4
    expected: list[tuple[int, ...]] = [(units, nz), (units,), (units,)]
    for inner, outer in up:
        expected += [(inner, outer, kernel, kernel), (outer,), (outer,)]
    assert [tuple(p.shape) for p in generator.parameters()] == expected[:-2]
    expected = []
    for outer, inner in down:
        expected += [(outer, inner, kernel, kernel), (outer,), (outer,)]
    expected = [expected[0], *expected[3:], (1, down[-1][0] * 4 * 4)]
    assert [tuple(p.shape) for p in discriminator.parameters()] == expected
    norms = [m for net in (generator, discriminator) for m in net.modules() if "Batch" in repr(m)]
    assert {m.eps for m in norms if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)} == {1e-8}


def test_newmu_imagenet32_strides_alternate() -> None:
    generator, discriminator = small("newmu-imagenet32", image_size=32)
    down = [m.stride[0] for m in discriminator.main if isinstance(m, nn.Conv2d)]
    up = [m.stride[0] for m in generator.main if isinstance(m, nn.ConvTranspose2d)]
    assert down == [1, 2, 1, 2, 1, 2] and up == [2, 1, 2, 1, 2, 1]


@pytest.mark.parametrize(
    ("preset", "generator", "discriminator"),
    [
        ("pytorch", 3_576_704, 2_765_568),  # as the tutorial's nets
        # carpedm20: linear 100 -> 8192 and four 5x5 layers, all with biases, and their batch norms
        (
            "carpedm20",
            (100 + 1) * 8192
            + 25 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 3)
            + (256 + 128 + 64 + 3)
            + 2 * (512 + 256 + 128 + 64),
            25 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512)
            + (64 + 128 + 256 + 512)
            + 2 * (128 + 256 + 512)
            + (8192 + 1),
        ),
        (
            "paper",
            100 * 1024 * 16
            + 25 * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3)
            + 2 * (1024 + 512 + 256 + 128),
            25 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024)
            + 2 * (256 + 512 + 1024)
            + 1024 * 16,
        ),
    ],
)
def test_parameter_counts(preset: str, generator: int, discriminator: int) -> None:
    with torch.device("meta"):
        networks = build(preset)
    assert [sum(p.numel() for p in net.parameters()) for net in networks] == [
        generator,
        discriminator,
    ]


# ----------------------------------------------------------------------------- what a preset can do


def check_forward_and_backward(generator: Generator, discriminator: Discriminator) -> None:
    size, channels = generator.image_size, generator.nc
    images = generator(generator.sample_latent(2))
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    logits = discriminator(images)
    assert logits.shape == (2,)
    F.softplus(-logits).mean().backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_every_size(preset: str, size: int) -> None:
    check_forward_and_backward(*small(preset, image_size=size))


@pytest.mark.parametrize("channels", (1, 2, 3, 4))
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_every_channel_count(preset: str, channels: int) -> None:
    check_forward_and_backward(*small(preset, nc=channels))


@pytest.mark.parametrize("size", (48, 112, 240))
def test_carpedm20_has_four_scales_at_every_multiple_of_16(size: int) -> None:
    generator, discriminator = small("carpedm20", image_size=size)
    check_forward_and_backward(generator, discriminator)
    assert [m.stride for m in discriminator.main if isinstance(m, nn.Conv2d)] == [(2, 2)] * 4


@settings(max_examples=25, deadline=None)
@given(
    preset=st.sampled_from(PRESETS),
    size=st.sampled_from((16, 32)),
    ngf=st.integers(1, 9),
    ndf=st.integers(1, 9),
    nz=st.integers(1, 9),
)
def test_any_widths(preset: str, size: int, ngf: int, ndf: int, nz: int) -> None:
    check_forward_and_backward(*build(preset, image_size=size, ngf=ngf, ndf=ndf, nz=nz))


@pytest.mark.parametrize("kernel_size", (2, 3, 4, 5, 6, 7))
def test_every_kernel_size_doubles_and_halves(kernel_size: int) -> None:
    check_forward_and_backward(*small("pytorch", kernel_size=kernel_size))


@pytest.mark.parametrize("preset", PRESETS)
def test_batch_norm_is_everywhere_but_at_the_images(preset: str) -> None:
    for network, first in zip(small(preset, image_size=32), (True, False), strict=True):
        kinds = [type(child).__name__ for child in network.main]
        layers = [i for i, kind in enumerate(kinds) if kind.startswith(("Conv", "Linear"))]
        normed = [
            any(kind.startswith("BatchNorm") for kind in kinds[start:stop])
            for start, stop in zip(layers, [*layers[1:], len(kinds)], strict=True)
        ]
        assert normed == [first, *[True] * (len(layers) - 2), False]
        biased = {child.bias is not None for child in network.main if hasattr(child, "stride")}
        assert biased == {preset == "carpedm20"}
        slopes = [m.negative_slope for m in network.main if isinstance(m, nn.LeakyReLU)]
        assert set(slopes) <= {0.2} and bool(slopes) != first


def test_sigmoid_output_is_the_sigmoid_of_the_logits() -> None:
    _, logits = small("newmu")
    _, sigmoid = small("newmu", output="sigmoid")
    sigmoid.load_state_dict(logits.state_dict())
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(sigmoid(images), logits(images).sigmoid())


def test_newmu_normalises_each_unit_of_the_projection() -> None:
    generator, _ = small("newmu")
    latent = generator.sample_latent(6)
    linear, norm = generator.main[0], generator.main[1]
    assert isinstance(linear, nn.Linear) and norm.num_features == linear.out_features
    units = latent @ linear.weight.T
    mean, variance = units.mean(0), units.var(0, unbiased=False)
    normal = (units - mean) / (variance + 1e-8).sqrt() * norm.weight + norm.bias
    channels = linear.out_features // 16
    torch.testing.assert_close(generator.main[:4](latent), normal.relu().view(6, channels, 4, 4))
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)


@pytest.mark.parametrize("preset", ("paper", "carpedm20"))
def test_other_projections_normalise_each_channel(preset: str) -> None:
    generator, _ = small(preset, image_size=64)
    latent = generator.sample_latent(6)
    linear, norm = generator.main[0], generator.main[2]
    maps = F.linear(latent, linear.weight, linear.bias).view(6, -1, 4, 4)
    assert norm.num_features == maps.shape[1] == linear.out_features // 16
    normal = F.batch_norm(maps, None, None, norm.weight, norm.bias, True, 0.1, 1e-5)
    torch.testing.assert_close(generator.main[:4](latent), normal.relu())


def test_carpedm20_is_tensorflows_net_in_a_mirror() -> None:
    """SAME padding of a 5x5 stride-2 convolution is (1, 2); its transpose is its gradient."""
    generator, discriminator = small("carpedm20", image_size=32)
    conv, deconv = discriminator.main[0], generator.main[4]

    def same(images: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(F.pad(images, (1, 2, 1, 2)), kernel, stride=2)

    images = torch.randn(2, 3, 32, 32)
    theirs = same(images, conv.weight) + conv.bias.view(-1, 1, 1)
    conv.weight.data = conv.weight.data.flip(2, 3)
    torch.testing.assert_close(conv(images.flip(2, 3)).flip(2, 3), theirs)

    maps = torch.randn(2, deconv.in_channels, 4, 4)
    wide = torch.zeros(2, deconv.out_channels, 8, 8, requires_grad=True)
    (theirs,) = torch.autograd.grad(same(wide, deconv.weight), wide, maps)
    theirs = theirs + deconv.bias.view(-1, 1, 1)
    deconv.weight.data = deconv.weight.data.flip(2, 3)
    torch.testing.assert_close(deconv(maps.flip(2, 3)).flip(2, 3), theirs)


# ------------------------------------------------------------------------------ citizens of PyTorch


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients(preset: str) -> None:
    generator, discriminator = (net.double() for net in small(preset, ngf=1, ndf=1, nz=2))
    for network in (generator, discriminator):
        for parameter in network.parameters():
            nn.init.normal_(parameter, 0.5, 0.5)  # away from the kinks and from vanishing gradients
    latent = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    for network, value in ((generator, latent), (discriminator, images)):
        assert torch.autograd.gradcheck(network, value, fast_mode=True)
        assert torch.autograd.gradgradcheck(network, value, fast_mode=True)


@pytest.mark.parametrize("preset", PRESETS)
def test_compiles_without_graph_breaks(preset: str) -> None:
    generator, discriminator = small(preset)
    latent = generator.sample_latent(3)
    for network, value in ((generator, latent), (discriminator, torch.rand(3, 3, 16, 16))):
        for training in (False, True):
            network.train(training)
            torch._dynamo.reset()
            compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(value), network(value))


@pytest.mark.parametrize("preset", PRESETS)
def test_exports_with_any_batch(preset: str) -> None:
    generator, discriminator = small(preset)
    batch = torch.export.Dim("batch", min=1)
    for network, shape in ((generator, (5,)), (discriminator, (3, 16, 16))):
        network.eval()
        program = torch.export.export(
            network, (torch.rand(3, *shape),), dynamic_shapes=({0: batch},)
        )
        value = torch.rand(7, *shape)
        torch.testing.assert_close(program.module()(value), network(value))


@pytest.mark.parametrize("preset", PRESETS)
def test_autocast_and_channels_last(preset: str) -> None:
    generator, discriminator = small(preset, ngf=8, ndf=8, nz=20)
    latent = generator.sample_latent(16)
    images = generator(latent).detach()
    logits = discriminator(images).detach()
    for network in (generator, discriminator):
        network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(generator(latent), images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(discriminator(images), logits, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert (generator(latent) - images).abs().mean() < 0.02
        assert (discriminator(images) - logits).abs().mean() < 0.02


# ---------------------------------------------------------------------------- settings and presets


@pytest.mark.parametrize("preset", PRESETS)
def test_config_goes_through_json(preset: str) -> None:
    networks = small(preset, nc=1, output="sigmoid")
    config = {"generator": networks[0].config, "discriminator": networks[1].config}
    rebuilt = models.build_from_config(json.loads(json.dumps(config)))
    for network, again in zip(networks, rebuilt, strict=True):
        assert again.config == network.config
        assert repr(again) == repr(network)
        again.load_state_dict(network.state_dict(), strict=True)


def test_config_holds_every_setting() -> None:
    for network in (Generator, Discriminator):
        assert set(network(16).config) == set(inspect.signature(network).parameters)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({}, "generator"),
        ({"generator": {}}, "discriminator"),
        ({"generator": {"depth": 3}, "discriminator": {}}, "depth"),
        ({"generator": {"image_size": 20}, "discriminator": {}}, "power of two"),
        (None, "two networks"),
    ],
)
def test_config_of_something_else(config: Any, what: str) -> None:
    with pytest.raises(UserError, match=what):
        models.build_from_config(config)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("pytorch", {"latent_distribution": "normal", "batch_size": 128, "bn": "running"}),
        ("paper", {"latent_distribution": "uniform", "batch_size": 128, "alternate": False}),
        (
            "newmu",
            {
                "latent_distribution": "uniform",
                "batch_size": 128,
                "weight_decay": 1e-5,
                "adam_eps": 1e-8,
                "alternate": True,
                "bn": "batch",
            },
        ),
        (
            "newmu-svhn",
            {"latent_distribution": "normal", "batch_size": 64, "lr": 5e-4, "bn": "batch"},
        ),
        ("newmu-imagenet32", {"latent_distribution": "uniform", "weight_decay": 1e-5}),
        (
            "carpedm20",
            {
                "latent_distribution": "uniform",
                "batch_size": 64,
                "g_steps_per_d": 2,
                "weight_decay": 0.0,
            },
        ),
    ],
)
def test_training_defaults(preset: str, expected: dict[str, Any]) -> None:
    defaults = models.training_defaults(preset)
    assert defaults == {"lr": 2e-4, "beta1": 0.5, **defaults, **expected}
    assert json.loads(json.dumps(defaults)) == defaults
    assert set(defaults) == set(models.training_defaults("pytorch"))
    assert small(preset)[0].latent_distribution == defaults["latent_distribution"]
    defaults["batch_size"] = -1  # a copy: the preset stays as it is
    assert models.training_defaults(preset)["batch_size"] != -1


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_are_drawn_as_in_the_source(preset: str) -> None:
    for network in build(preset, image_size=32, ngf=16, ndf=16):
        for module in network.main:
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                spread = 0.0 if preset == "carpedm20" else 0.02
                assert module.weight.mean().item() == pytest.approx(1.0, abs=0.02)
                assert module.weight.std().item() == pytest.approx(spread, abs=0.01)
                assert not module.bias.any()
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                cut = preset == "carpedm20" and isinstance(module, nn.Conv2d)
                assert module.weight.mean().item() == pytest.approx(0.0, abs=5e-3)
                assert module.weight.std().item() == pytest.approx(0.0176 if cut else 0.02, rel=0.1)
                assert not cut or module.weight.abs().max() <= 0.04
                assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("dcgan"), r"build\(\): 'preset' must be one of pytorch, paper, .*'dcgan'"),
        (lambda: models.training_defaults("x"), r"training_defaults\(\): 'preset' must be one of"),
        (lambda: build(depth=3), r"unknown setting 'depth'; known are image_size, nc, nz, ngf"),
        (lambda: build(image_size=48), "power of two between 16 and 256, got 48"),
        (lambda: build(image_size=8), "power of two between 16 and 256, got 8"),
        (lambda: build(image_size=512), "power of two between 16 and 256, got 512"),
        (lambda: build(image_size="64"), "'image_size' must be an integer .* got '64'"),
        (lambda: build(image_size=64.0), "'image_size' must be an integer"),
        (lambda: build("newmu", image_size=28), "power of two .* got 28"),
        (
            lambda: build("carpedm20", image_size=100),
            r"multiple of 2\*\*scales = 16 between 16 and 256, got 100",
        ),
        (lambda: build(nc=0), "'nc' must be an integer from 1 to 4, got 0"),
        (lambda: build(nc=5), "'nc' must be an integer from 1 to 4, got 5"),
        (lambda: build(nz=0), "'nz' must be an integer of at least 1, got 0"),
        (lambda: build(ngf=-1), r"Generator\(\): 'ngf' must be an integer of at least 1, got -1"),
        (lambda: build(ndf=True), r"Discriminator\(\): 'ndf' must be an integer .* got True"),
        (lambda: build(kernel_size=1), "'kernel_size' must be an integer from 2 to 7"),
        (lambda: build(convs_per_scale=2), "'kernel_size' must be odd .* got 4"),
        (lambda: build(scales=0), "'scales' must be an integer from 1 to 8"),
        (lambda: build(bias=1), "'bias' must be True or False, got 1"),
        (lambda: build(bn_eps=-1e-5), "'bn_eps' must be a number of at least 0, got -1e-05"),
        (lambda: build(bn_eps=float("nan")), "'bn_eps' must be"),
        (lambda: build(projection="fc"), "'projection' must be one of conv, linear, linear-bn1d"),
        (lambda: build(latent_distribution="gauss"), "must be one of normal, uniform"),
        (lambda: build(head="fc"), "'head' must be one of conv, linear"),
        (lambda: build(output="prob"), "'output' must be one of logits, sigmoid"),
        (lambda: models.weights_init(nn.Module(), "xavier"), "'scheme' must be one of dcgan"),
        (lambda: small("pytorch")[0](torch.zeros(2, 6)), r"'latent' must be \(N, 5\) or"),
        (lambda: small("pytorch")[0](torch.zeros(5)), r"got \(5,\)"),
        (lambda: small("newmu")[0](torch.zeros(2, 5, 4, 4)), r"got \(2, 5, 4, 4\)"),
        (
            lambda: small("pytorch")[1](torch.zeros(2, 1, 16, 16)),
            r"'images' must be \(N, 3, 16, 16\), got \(2, 1, 16, 16\)",
        ),
        (lambda: small("newmu")[0].sample_latent(-1), "'n' must be an integer of at least 0"),
    ],
)
def test_wrong_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------- sampling


def test_latent_distributions() -> None:
    normal, uniform = small("pytorch")[0], small("newmu")[0]
    draw = normal.sample_latent(20_000)
    assert draw.shape == (20_000, 5) and draw.dtype == torch.float32
    assert draw.mean().item() == pytest.approx(0, abs=0.02)
    assert draw.std().item() == pytest.approx(1, abs=0.02)
    draw = uniform.sample_latent(20_000)
    assert -1 <= draw.min() < -0.99 and 0.99 < draw.max() < 1
    assert draw.std().item() == pytest.approx(3**-0.5, abs=0.01)
    assert uniform.sample_latent(0).shape == (0, 5)


@pytest.mark.parametrize("preset", ("pytorch", "newmu"))
def test_latents_are_a_function_of_the_seed(preset: str) -> None:
    generator, _ = small(preset)

    def draw(seed: int, **options: Any) -> Tensor:
        stream = torch.Generator().manual_seed(seed)
        return generator.sample_latent(4, generator=stream, **options)

    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draw(1, dtype=torch.float64), draw(1).double())
    assert torch.equal(generator.bfloat16().sample_latent(0), torch.empty(0, 5).bfloat16())
    assert torch.equal(draw(1), draw(1, dtype=torch.float32).bfloat16())
    assert draw(1, device="meta").device.type == "meta"


@pytest.fixture(params=PRESETS)
def trained(request: pytest.FixtureRequest) -> Iterator[Generator]:
    """A generator with running statistics of its own; it must come back unchanged."""
    generator, _ = small(request.param, image_size=32)
    for _ in range(3):
        generator(generator.sample_latent(8))
    generator.main[1].eval()  # modes may differ from child to child
    buffers = {name: value.clone() for name, value in generator.named_buffers()}
    modes = [module.training for module in generator.modules()]
    yield generator
    assert [module.training for module in generator.modules()] == modes
    for name, value in generator.named_buffers():
        assert torch.equal(value, buffers[name]), name


@pytest.mark.parametrize("bn", models.BN_MODES)
def test_generate_is_deterministic_and_leaves_no_trace(trained: Generator, bn: str) -> None:
    latent = trained.sample_latent(7)
    before = torch.get_rng_state()
    images = generate(trained, latent, bn=bn, batch_size=4, population_batches=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert images.shape == (7, 3, 32, 32) and not images.requires_grad
    again = generate(trained, latent[:, :, None, None], bn=bn, batch_size=4, population_batches=3)
    assert torch.equal(again, images)


@pytest.mark.parametrize("bn", ("running", "population"))
def test_one_image_does_not_depend_on_the_others(trained: Generator, bn: str) -> None:
    latent = trained.sample_latent(5)
    images = generate(trained, latent, bn=bn, population_batches=2)
    alone = generate(trained, latent[2:3], bn=bn, population_batches=2)
    torch.testing.assert_close(alone, images[2:3])


def plain_images(generator: Generator, latent: Tensor, training: bool) -> Tensor:
    """What PyTorch's modules draw in the one mode, on a copy."""
    copy = Generator(**generator.config)
    copy.load_state_dict(generator.state_dict())
    with torch.no_grad():
        return nn.Sequential(*copy.train(training).main)(
            latent[:, :, None, None] if copy.projection == "conv" else latent
        )


def test_running_is_eval_mode(trained: Generator) -> None:
    latent = trained.sample_latent(5)
    images = generate(trained, latent, batch_size=2)
    torch.testing.assert_close(images, plain_images(trained, latent, training=False))


def test_batch_is_train_mode_in_even_batches(trained: Generator) -> None:
    latent = trained.sample_latent(10)
    images = generate(trained, latent, bn="batch", batch_size=4)  # 4, 3 and 3, not 4, 4 and 2
    expected = [plain_images(trained, part, training=True) for part in latent.tensor_split(3)]
    torch.testing.assert_close(images, torch.cat(expected))


def test_population_is_running_mode_on_the_populations_statistics(trained: Generator) -> None:
    latent = trained.sample_latent(3)
    options: dict[str, Any] = {"bn": "population", "batch_size": 6, "population_batches": 4}
    images = generate(trained, latent, seed=5, **options)
    assert not torch.equal(generate(trained, latent, seed=6, **options), images)
    copy = Generator(**trained.config)
    copy.load_state_dict(trained.state_dict())
    stream = torch.Generator().manual_seed(5)
    population_statistics(copy, [copy.sample_latent(6, generator=stream) for _ in range(4)])
    torch.testing.assert_close(images, plain_images(copy, latent, training=False))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", (16, 32))
def test_one_image_of_batch_statistics_follows_pytorch(preset: str, size: int) -> None:
    """Batch norm over maps averages many values of one image; over units, or 1x1 maps, one."""
    generator, _ = small(preset, image_size=size)
    latent = generator.sample_latent(1)
    if preset.startswith("newmu") or (preset, size) == ("carpedm20", 16):
        with pytest.raises(UserError, match="bn='batch' needs batches of at least 2 images"):
            generate(generator, latent, bn="batch")
        with pytest.raises(UserError, match="bn='batch' needs"):
            generate(generator, generator.sample_latent(3), bn="batch", batch_size=2)
        with pytest.raises(UserError, match="bn='population' needs"):
            generate(generator, latent, bn="population", batch_size=1)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            generator.train()(latent)
    else:
        images = generate(generator, latent, bn="batch")
        torch.testing.assert_close(images, plain_images(generator, latent, training=True))


def test_generate_of_nothing() -> None:
    generator, _ = small("pytorch")
    assert generate(generator, generator.sample_latent(0)).shape == (0, 3, 16, 16)


def test_generate_casts_to_the_network() -> None:
    generator, _ = small("pytorch")
    latent = generator.sample_latent(2)
    assert generate(generator.double(), latent).dtype == torch.float64
    assert generate(generator.bfloat16(), latent).dtype == torch.bfloat16


def test_generate_restores_after_an_error() -> None:
    generator, _ = small("newmu")
    with pytest.raises(UserError, match="at least 2 images"):
        generate(generator, generator.sample_latent(1), bn="batch")
    assert all(module.training for module in generator.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bn": "eval"}, "'bn' must be one of running, batch, population; got 'eval'"),
        ({"batch_size": 0}, "'batch_size' must be an integer of at least 1"),
        ({"bn": "population", "population_batches": 0}, "'population_batches' must be"),
        ({"latent": torch.zeros(2, 4)}, r"generate\(\): 'latent' must be \(N, 5\) or"),
    ],
)
def test_wrong_arguments_of_generate(options: dict[str, Any], message: str) -> None:
    generator, _ = small("pytorch")
    with pytest.raises(UserError, match=message):
        generate(generator, **{"latent": torch.zeros(2, 5), **options})


# ------------------------------------------------------------------------- state dicts from outside


@pytest.mark.parametrize("prefix", ("main.", "", "module.main.", "model.", "_orig_mod.main."))
@pytest.mark.parametrize("size", SIZES)
def test_infer_config_reads_every_size(size: int, prefix: str) -> None:
    channels = 1 + SIZES.index(size) % 4
    generator = ExampleGenerator(nz=7, ngf=2, nc=channels, image_size=size)
    discriminator = ExampleDiscriminator(ndf=3, nc=channels, image_size=size)
    for role, network, expected in (
        ("generator", generator, {"nz": 7, "ngf": 2}),
        ("discriminator", discriminator, {"ndf": 3}),
    ):
        state = {
            prefix + name.removeprefix("main."): value
            for name, value in network.state_dict().items()
            if not name.endswith("num_batches_tracked")  # as PyTorch 0.4.0 and older wrote it
        }
        found, config = models.infer_config(state)
        assert found == role
        assert config.items() >= {**expected, "image_size": size, "nc": channels}.items()
        ours = Generator(**config) if role == "generator" else Discriminator(**config)
        ours.load_state_dict(models.plain_state_dict(state), strict=True)


def without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {}, r"the weights of its convolutions are \[\]"),
        (lambda state: {"fc.weight": torch.zeros(3, 4)}, "not a state dict of pytorch/examples'"),
        (lambda state: without(state, "main.1.bias"), "'main.1.bias' is missing where .* has"),
        (lambda state: {**state, "main.0.bias": torch.zeros(8)}, r"'main.0.bias' is \(8,\) where"),
        (
            lambda state: {**state, "main.3.weight": torch.zeros(8, 5, 4, 4)},
            r"'main.3.weight' is \(8, 5, 4, 4\) where the generator .* has \(8, 4, 4, 4\)",
        ),
        (lambda state: without(state, "main.6.weight"), "not a state dict of pytorch/examples'"),
    ],
)
def test_infer_config_names_what_differs(change: Callable[..., Any], message: str) -> None:
    state = ExampleGenerator(ngf=2, image_size=32).state_dict()
    with pytest.raises(UserError, match=message):
        models.infer_config(change(dict(state)))


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "pytorch"])
def test_infer_config_refuses_other_nets(preset: str) -> None:
    for network in small(preset, image_size=32):
        with pytest.raises(UserError, match="not a state dict of pytorch/examples' DCGAN"):
            models.infer_config(network.state_dict())


@pytest.mark.parametrize("settings", [
    {},
    {"image_size": 28, "nc": 3, "nz": 7, "classes": 11, "ngfc": 0, "ndfc": 9, "kernel_size": 4},
    {"image_size": 48, "scales": 3, "bias": True, "bn_affine": True, "ndfc": 0},
    {"conditioning": "projection", "embedding": 6, "bias": True},
    {"image_size": 24, "scales": 1, "kernel_size": 3},
], ids=str)  # fmt: skip
def test_infer_network_reads_networks_with_labels(settings: dict[str, Any]) -> None:
    settings = {"image_size": 16, "ngfc": 8, "ndfc": 8, **settings}
    for network in models.build("cgan-dcgan", ngf=2, ndf=3, **settings):
        state = {
            f"module.{name}" if name.startswith("main.") else name: value
            for name, value in network.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        name, config = models.infer_network(state)
        assert name == type(network).__name__
        again = models.NETWORKS[name](**config)
        again.load_state_dict(models.plain_state_dict(state), strict=False)
        ours, theirs = dict(again.config), dict(network.config)
        scales = [one.pop("scales") for one in (ours, theirs)]
        if "embedding" in theirs and theirs["conditioning"] == "concat":
            del ours["embedding"], theirs["embedding"]  # of no use there
        assert ours == theirs and scales[1] in (None, scales[0])


def test_infer_network_reads_what_infer_config_does() -> None:
    for nz, ngf in ((7, 2), (5, 16)):
        for network in (ExampleGenerator(nz=nz, ngf=ngf), ExampleDiscriminator(ndf=ngf)):
            role, config = models.infer_config(network.state_dict())
            assert models.infer_network(network.state_dict()) == (role.capitalize(), config)


@pytest.mark.parametrize(
    ("role", "settings", "message"),
    [
        (0, {"scales": 1, "ngfc": 0}, "do not show how many classes there are: give the run's"),
        (
            1,
            {"conditioning": "projection", "ndfc": 0},
            "do not show how large the images are: give",
        ),
    ],
)
def test_infer_network_says_what_shapes_do_not_show(
    role: int, settings: dict[str, Any], message: str
) -> None:
    network = models.build("cgan-dcgan", image_size=16, ngf=2, ndf=2, **settings)[role]
    with pytest.raises(UserError, match=message):
        models.infer_network(network.state_dict())


@pytest.mark.parametrize("preset", ["newmu", "newmu-imagenet32", "carpedm20", "cgan-mnist"])
def test_infer_network_refuses_other_nets_with_the_cure(preset: str) -> None:
    own = models.build(preset) if preset == "cgan-mnist" else small(preset, image_size=32)
    for network in own:
        with pytest.raises(UserError, match=r"give the run's checkpoint\.pt instead"):
            models.infer_network(network.state_dict())


def test_infer_network_names_what_differs() -> None:
    network, _ = models.build("cgan-dcgan", image_size=16, ngf=2, ngfc=8)
    state = {**network.state_dict(), "main.10.weight": torch.zeros(12, 1, 3, 3)}
    with pytest.raises(
        UserError, match=r"of a ConditionalGenerator: 'main.10.weight' is \(12, 1, 3, 3\) where"
    ):
        models.infer_network(state)


@pytest.mark.parametrize("preset", models.PRESETS)
def test_the_preset_of_a_config(preset: str) -> None:
    generator, discriminator = models.build(preset)
    assert models.preset_of(type(generator).__name__, generator.config) == preset
    # two presets may have discriminators that differ in size alone
    alike = {"newmu-svhn": "newmu"}.get(preset, preset)
    assert models.preset_of(type(discriminator).__name__, discriminator.config) == alike


def test_a_config_of_no_preset() -> None:
    generator, _ = models.build("newmu", bias=True)
    assert models.preset_of("Generator", generator.config) == "pytorch"
