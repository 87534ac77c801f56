"""Features of discriminators against hooks, adaptive_max_pool2d and cat; files that are continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcgan_fast import _C, functional, models, unfuse
from dcgan_fast.errors import UserError
from dcgan_fast.features import DiscriminatorFeatures
from dcgan_fast.features import discriminator as module
from dcgan_fast.training.checkpoint import save_checkpoint

SETTINGS = {"image_size": 16, "nc": 3, "ndf": 10, "scales": 3, "kernel_size": 3}


@pytest.fixture
def network() -> models.Discriminator:
    found = models.Discriminator(**SETTINGS)
    for child in found.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.normal_(0, 0.1)
            child.running_var.uniform_(0.5, 2)
    return found


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (25, 3, 16, 16), np.uint8)


def by_hooks(network: nn.Module, images: np.ndarray, size: int = 4) -> torch.Tensor:
    maps: list[torch.Tensor] = []
    hooks = [
        child.register_forward_hook(lambda *call: maps.append(call[2].clone()))
        for child in network.modules()
        if isinstance(child, nn.LeakyReLU)
    ]
    with torch.inference_mode():
        network.eval()(torch.from_numpy(images).float() / 127.5 - 1)
    for hook in hooks:
        hook.remove()
    pooled = [nn.functional.adaptive_max_pool2d(each, size).flatten(1) for each in maps]
    return torch.cat(pooled, 1)


def test_features_are_those_of_hooks(network: models.Discriminator, images: np.ndarray) -> None:
    features = DiscriminatorFeatures(network, batch_size=10, device="cpu")
    found = features.fit_transform(images)
    assert found.shape == (25, 16 * (10 + 20 + 40)) and found.dtype == np.float32
    torch.testing.assert_close(
        torch.from_numpy(found), by_hooks(network, images), rtol=1e-4, atol=1e-5
    )
    half = DiscriminatorFeatures(network, dtype="float16", device="cpu").transform(images)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, found, rtol=1e-3, atol=1e-3)
    assert DiscriminatorFeatures(network, device="cpu").transform(images[:0]).shape == (0, 1120)


def test_layers_and_sizes(network: models.Discriminator, images: np.ndarray) -> None:
    whole = by_hooks(network, images, 3).numpy()
    found = DiscriminatorFeatures(network, layers=(2, 0), size=3, device="cpu").transform(images)
    expected = np.concatenate([whole[:, :90], whole[:, 270:]], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("out", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("channels", "side", "size"), [(1, 1, 4), (10, 7, 4), (33, 8, 3), (64, 28, 4), (65, 2, 4)]
)
def test_pooled_rows(
    dtype: torch.dtype, out: torch.dtype, channels: int, side: int, size: int
) -> None:
    maps = torch.randn(3, channels, side, side + 1).to(dtype)
    for given in (maps, maps.contiguous(memory_format=torch.channels_last)):
        rows = torch.full((3, 5 + channels * size**2), 7.0, dtype=out)
        torch.ops.dcgan_fast._pool_features_(given, size, rows, 3)
        expected = nn.functional.adaptive_max_pool2d(maps.float(), size).flatten(1).to(out)
        assert torch.equal(rows[:, 3:-2], expected)
        assert (rows[:, :3] == 7).all() and (rows[:, -2:] == 7).all()
    maps[1, 0, 0, 0] = torch.nan
    torch.ops.dcgan_fast._pool_features_(maps, size, rows, 3)
    assert rows[1].isnan().any() and not rows[0].isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": torch.zeros(2, 3, 4)}, r"'maps' must be \(N, C, H, W\)"),
        ({"maps": torch.zeros(2, 3, 4, 4).double()}, "'maps' must be float32, bfloat16 or float16, got Double"),
        ({"size": 0}, "'size' must be at least 1, got 0"),
        ({"features": torch.zeros(3, 48)}, r"'features' must be \(N, width\) with N = 2"),
        ({"features": torch.zeros(2, 48).double()}, "'features' must be float32 or float16, got Double"),
        ({"column": 1}, "'column' must leave room for 48 features of 48, got 1"),
    ],
)  # fmt: skip
def test_pool_refuses(change: dict[str, Any], message: str) -> None:
    given = {
        "maps": torch.zeros(2, 3, 4, 4),
        "size": 4,
        "features": torch.zeros(2, 48),
        "column": 0,
    }
    with pytest.raises((ValueError, TypeError), match=r"_pool_features_\(\): " + message):
        torch.ops.dcgan_fast._pool_features_(**{**given, **change})


def bn_of(channels: int) -> list[torch.Tensor]:
    weight, bias, mean = torch.randn(3, channels)
    return [weight, bias, mean, torch.rand(channels) + 0.5]


def pooled_by_convolution(
    maps: torch.Tensor,
    weight: torch.Tensor,
    bn: list[torch.Tensor],
    out: torch.dtype,
    size: int,
    stride: int,
) -> None:
    """The op's maps are those of the fused op, and its features their maxima, to the bit."""
    convolution = {"stride": [stride, stride], "padding": [1, 1]}
    activation = {"activation": "leaky_relu", "negative_slope": 0.2}
    if bn:
        expected = functional.conv_bn_act(
            maps, weight, *bn, training=False, eps=1e-3, **convolution, **activation
        )
    else:
        expected = functional.conv_act(maps, weight, None, **convolution, **activation)
    rows = torch.full((len(maps), 5 + weight.size(0) * size**2), 7.0, dtype=out)
    found = torch.ops.dcgan_fast._conv_pool_features_(
        maps, weight, None, bn, **convolution, **activation, eps=1e-3, size=size, features=rows, column=3
    )  # fmt: skip
    assert torch.equal(found, expected) and found.stride() == expected.stride()
    pooled = nn.functional.adaptive_max_pool2d(expected.float(), size).flatten(1).to(out)
    assert torch.equal(rows[:, 3:-2], pooled)
    assert (rows[:, :3] == 7).all() and (rows[:, -2:] == 7).all()


@pytest.mark.parametrize("engine", [*_C.convolution_engines(), "whichever"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("batch", "channels", "side", "size", "stride"),
    [
        (5, (3, 40), 16, 4, 1),  # whole images in blocks of the thin engine
        (2, (3, 70), 30, 4, 2),  # windows that overlap
        (1, (1, 16), 64, 4, 2),  # one image for two threads
        (3, (2, 33), 9, 4, 1),
        (5, (40, 96), 16, 4, 1),
        (3, (33, 65), 15, 3, 2),  # images that share a block of tiles
        (1, (64, 130), 8, 4, 1),  # panels of one image in two threads
        (70, (16, 32), 4, 2, 2),
        (0, (3, 8), 8, 4, 1),
    ],
)
def test_a_convolution_pools_what_it_makes(
    engine: str,
    dtype: torch.dtype,
    batch: int,
    channels: tuple[int, int],
    side: int,
    size: int,
    stride: int,
) -> None:
    kernel = 3 if stride == 1 else 4
    maps = torch.randn(batch, channels[0], side, side).to(dtype)
    weight = (torch.randn(channels[1], channels[0], kernel, kernel) / 8).to(dtype)
    _C._force_engine("" if engine == "whichever" else engine)
    try:
        pooled_by_convolution(maps, weight, [], torch.float16, size, stride)
        last = maps.contiguous(memory_format=torch.channels_last)
        pooled_by_convolution(last, weight, bn_of(channels[1]), torch.float32, size, stride)
    finally:
        _C._force_engine("")


def test_a_convolution_streams_large_maps_past_the_caches_and_pools_them() -> None:
    maps = torch.randn(30, 3, 32, 32)
    pooled_by_convolution(maps, torch.randn(128, 3, 3, 3), [], torch.float32, 4, 1)
    maps[7, 1, 20, 3] = torch.nan
    rows = torch.empty(30, 128 * 16)
    torch.ops.dcgan_fast._conv_pool_features_(
        maps, torch.randn(128, 3, 3, 3), None, [], 1, 1, "relu", 0.0, 0.0, 4, rows, 0
    )
    assert rows[7].isnan().any() and not rows[:7].isnan().any() and not rows[8:].isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(2, 3, 8, 8).double()}, "'input' must be float32, bfloat16 or float16, got Double"),
        ({"weight": torch.zeros(4, 2, 3, 3)}, r"'weight' must be \(out, in, kH, kW\) with in = 3"),
        ({"bias": torch.zeros(5)}, r"'bias' must be"),
        ({"bn": [torch.zeros(4)] * 3}, "'bn' must be empty, or four tensors in place of a 'bias', got 3"),
        ({"bn": [torch.zeros(4)] * 4, "bias": torch.zeros(4)}, "four tensors in place of a 'bias', got 4"),
        ({"bn": [torch.zeros(5)] * 4}, "'bn_weight' must be"),
        ({"activation": "gelu"}, "'activation' must be"),
        ({"features": torch.zeros(2, 63)}, "'column' must leave room for 64 features of 63, got 0"),
        ({"features": torch.zeros(3, 64)}, r"'features' must be \(N, width\) with N = 2"),
        ({"size": 0}, "'size' must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_a_convolution_that_pools_refuses(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "input": torch.zeros(2, 3, 8, 8),
        "weight": torch.zeros(4, 3, 3, 3),
        "bias": None,
        "bn": [],
        "stride": 1,
        "padding": 1,
        "activation": "relu",
        "negative_slope": 0.0,
        "eps": 1e-5,
        "size": 4,
        "features": torch.zeros(2, 64),
        "column": 0,
    }
    with pytest.raises((ValueError, TypeError), match=r"_conv_pool_features_\(\): .*" + message):
        torch.ops.dcgan_fast._conv_pool_features_(**{**given, **change})


@pytest.mark.parametrize("change", ["none", "hook", "unfused", "no affine", "batch", "two runs"])
def test_convolutions_pool_where_they_can(
    network: models.Discriminator,
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    if change == "hook":
        network.main[0].register_forward_hook(lambda *call: None)
    elif change == "unfused":
        network = unfuse(network)
    elif change == "no affine":
        network.main[3].weight = None
        network.main[3].bias = None
    elif change == "two runs":
        network.main[2].bias = nn.Parameter(torch.zeros(20))
    afterwards = []
    pool = module.pool_features
    monkeypatch.setattr(
        module, "pool_features", lambda *a: (afterwards.append(a[0].shape[1]), pool(*a))
    )
    statistics = "batch" if change == "batch" else "running"
    found = DiscriminatorFeatures(network, bn=statistics, device="cpu").transform(images)
    by_themselves = {"none": [], "hook": [10], "unfused": [10, 20, 40], "batch": [20, 40]}
    assert afterwards == by_themselves.get(change, [20])
    if change != "batch":
        torch.testing.assert_close(
            torch.from_numpy(found), by_hooks(network, images), rtol=1e-4, atol=1e-5
        )


def test_batch_statistics_leave_the_network_as_it_was(
    network: models.Discriminator, images: np.ndarray
) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    running = DiscriminatorFeatures(network, device="cpu").transform(images)
    batch = DiscriminatorFeatures(network, bn="batch", device="cpu").transform(images)
    assert np.abs(running - batch).max() > 0.1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_broken_file_is_continued(
    network: models.Discriminator,
    images: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = DiscriminatorFeatures(network, batch_size=4, device="cpu").transform(images)
    monkeypatch.setattr(module, "_SAVED_EVERY", 2)
    own, seen = DiscriminatorFeatures._take, []

    def failing(self: Any, maps: torch.Tensor, rows: Any) -> None:
        seen.append(len(rows))
        if len(seen) == 4:
            raise KeyboardInterrupt
        own(self, maps, rows)

    monkeypatch.setattr(DiscriminatorFeatures, "_take", failing)
    out = tmp_path / "features.npy"
    with pytest.raises(KeyboardInterrupt):
        DiscriminatorFeatures(network, batch_size=4, device="cpu").transform(images, out)
    assert not out.exists()
    assert json.loads((tmp_path / "features.npy.part.json").read_text())["rows"] == 8
    found = DiscriminatorFeatures(network, batch_size=4, device="cpu").transform(images, out)
    assert len(seen) == 4 + 5  # 8 of 25 images were done
    np.testing.assert_allclose(found, whole, atol=1e-5)  # whichever engines were the fastest
    assert [path.name for path in tmp_path.iterdir()] == ["features.npy"]


def test_a_file_of_other_weights_is_not_continued(
    network: models.Discriminator,
    images: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SAVED_EVERY", 1)
    out = tmp_path / "features.npy"
    monkeypatch.setattr(module._Partial, "finish", lambda self: None)
    DiscriminatorFeatures(network, batch_size=4, device="cpu").transform(images, out)
    monkeypatch.undo()
    with torch.no_grad():
        network.main[0].weight.mul_(2)
    found = DiscriminatorFeatures(network, batch_size=4, device="cpu").transform(images, out)
    torch.testing.assert_close(torch.tensor(found), by_hooks(network, images), rtol=1e-4, atol=1e-5)


def test_checkpoints(network: models.Discriminator, images: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    content = {"preset": "pytorch", "config": {"discriminator": network.config}}
    save_checkpoint(path, {**content, "discriminator": network.state_dict()})
    found = DiscriminatorFeatures(path, device="cpu").transform(torch.from_numpy(images))
    torch.testing.assert_close(
        torch.from_numpy(found), by_hooks(network, images), rtol=1e-4, atol=1e-5
    )
    save_checkpoint(path, {"preset": "pytorch", "config": {}})
    with pytest.raises(UserError, match="holds no discriminator to take features from"):
        DiscriminatorFeatures(path).fit()
    labelled = models.build("cgan-mnist")[1]
    with pytest.raises(
        UserError, match="must be a Discriminator, which sees images alone, got a MlpD"
    ):
        DiscriminatorFeatures(labelled).fit()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"layers": (3,)}, r"'layers' must be different numbers from 0 to 2, .* got \[3\]"),
        ({"layers": ()}, r"from 0 to 2, .* got \[\]"),
        ({"layers": (1, 1)}, r"got \[1, 1\]"),
        ({"size": 0}, "'size' must be a whole number of at least 1, got 0"),
        ({"dtype": "float64"}, "'dtype' must be float16 or float32, got 'float64'"),
        ({"bn": "population"}, "'bn' must be running or batch, got 'population'"),
    ],
)
def test_refuses_settings(
    network: models.Discriminator, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        DiscriminatorFeatures(network, **setting).fit()


def test_refuses_images(network: models.Discriminator, images: np.ndarray) -> None:
    features = DiscriminatorFeatures(network, device="cpu")
    with pytest.raises(
        UserError, match=r"uint8 images \('N', 3, 16, 16\), got uint8 \(25, 3, 8, 8\)"
    ):
        features.transform(images[:, :, :8, :8])
    with pytest.raises(UserError, match="got float32"):
        features.transform(images.astype(np.float32))
    with torch.no_grad():
        network.main[0].weight.fill_(torch.nan)
    with pytest.raises(UserError, match="the features of images 0 to 24 are no float32 numbers"):
        features.transform(images)
