"""The networks with labels: against explicit concatenation, their sources' shapes, and wrong settings."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate
from exports import assert_exports_with_any_batch
from torch import Tensor, nn

from dcgan_fast import UserError, models, unfuse
from dcgan_fast.conditional import ConditionalDiscriminator, ConditionalGenerator
from dcgan_fast.nn import stat_groups

SMALL: dict[str, Any] = {"ngf": 4, "ndf": 4, "nz": 5, "ngfc": 12, "ndfc": 12, "classes": 3}
CONDITIONINGS = ("concat", "projection")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def small(**overrides: Any) -> tuple[ConditionalGenerator, ConditionalDiscriminator]:
    return models.build("cgan-dcgan", **{"image_size": 16, **SMALL, **overrides})


# ------------------------------------------- replicas of Newmu/dcgan_code's mnist/train_cond_dcgan.py


def beside(x: Tensor, y: Tensor) -> Tensor:
    """``x`` with the one-hot labels ``y`` beside it: of maps, with planes of them."""
    planes = y.view(*y.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    return torch.cat([x, planes], 1)


def normalised(x: Tensor, groups: int = 1) -> Tensor:
    """Batch norm without gain and bias, by the batch's statistics, eps 1e-8."""
    return torch.cat(
        [F.batch_norm(part, None, None, training=True, eps=1e-8) for part in x.chunk(groups)]
    )


def replica_g(weights: list[Tensor], z: Tensor, y: Tensor) -> Tensor:
    w1, w2, w3, wx = weights
    h = normalised(beside(z, y) @ w1.T).relu()
    h = normalised(beside(h, y) @ w2.T).relu()
    h = h.view(len(z), -1, 7, 7)
    h = normalised(F.conv_transpose2d(beside(h, y), w3, None, 2, 2, 1)).relu()
    return F.conv_transpose2d(beside(h, y), wx, None, 2, 2, 1).sigmoid()


def replica_d(weights: list[Tensor], x: Tensor, y: Tensor, groups: int = 1) -> Tensor:
    w1, w2, w3, wy = weights
    h = F.leaky_relu(F.conv2d(beside(x, y), w1, None, 2, 2), 0.2)
    h = F.leaky_relu(normalised(F.conv2d(beside(h, y), w2, None, 2, 2), groups), 0.2)
    h = F.leaky_relu(normalised(beside(h.flatten(1), y) @ w3.T, groups), 0.2)
    return (beside(h, y) @ wy.T).flatten()


def weights_of(network: nn.Module) -> list[Tensor]:
    return list(network.parameters())


def test_shapes_are_the_published_ones():
    G, D = models.build("cgan-dcgan")
    assert [tuple(w.shape) for w in weights_of(G)] == [
        (1024, 110),
        (128 * 7 * 7, 1034),
        (138, 64, 5, 5),
        (74, 1, 5, 5),
    ]
    assert [tuple(w.shape) for w in weights_of(D)] == [
        (64, 11, 5, 5),
        (128, 74, 5, 5),
        (1024, 128 * 7 * 7 + 10),
        (1, 1034),
    ]
    assert G.output_range == (0.0, 1.0) and G.latent_distribution == "uniform"
    training = models.training_defaults("cgan-dcgan")
    expected = {
        "batch_size": 128,
        "lr": 2e-4,
        "beta1": 0.5,
        "weight_decay": 2.5e-5,
        "alternate": True,
    }
    assert expected.items() <= training.items()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("role", ["generator", "discriminator"])
def test_the_networks_compute_what_the_script_does(role, groups):
    """Outputs and all gradients, held to the error that naive concatenation has in float32 itself."""
    G, D = models.build("cgan-dcgan", ngf=16, ndf=16, ngfc=64, ndfc=64)
    network, replica = (G, replica_g) if role == "generator" else (D, replica_d)
    network = network.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(5)  # at 0.02 all labels look nearly alike
    x = torch.rand(16, 100) if role == "generator" else torch.rand(16, 1, 28, 28)
    labels = torch.randint(10, (16,))
    target = torch.randn(16, 1, 28, 28) if role == "generator" else torch.randn(16)

    def results(call, x, weights) -> list[Tensor]:
        x = x.detach().requires_grad_()
        y = call(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *weights], target.to(y.dtype))]

    def naive(dtype: torch.dtype) -> list[Tensor]:
        weights = [w.detach().to(dtype).requires_grad_() for w in network.parameters()]
        hot = F.one_hot(labels, 10).to(dtype)
        options = {} if role == "generator" else {"groups": groups}
        return results(lambda t: replica(weights, t, hot, **options), x.to(dtype), weights)

    if role == "generator" and groups == 2:
        pytest.skip("G makes no joint pass")
    with stat_groups(network, groups):
        ours = results(lambda t: network(t, labels), x, list(network.parameters()))
    assert_as_accurate(ours, naive(torch.float32), naive(torch.float64), times=3.0, floor=8.0)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_fused_networks_are_the_plain_ones(conditioning):
    pair = small(image_size=28, conditioning=conditioning, bn_affine=True, bias=True)
    for network, x in zip(pair, (torch.rand(6, 5), torch.rand(6, 1, 28, 28)), strict=True):
        labels = torch.randint(3, (6,))
        soft = F.one_hot(labels, 3).float()
        plain = unfuse(network)
        for given in (labels, soft):
            expected = copy.deepcopy(plain)(x, given)
            torch.testing.assert_close(
                copy.deepcopy(network)(x, given), expected, rtol=1e-3, atol=1e-4
            )
        assert network.state_dict().keys() == plain.state_dict().keys()
        plain(x, labels)
        network(x, labels)
        for (name, ours), (_, theirs) in zip(
            network.named_buffers(), plain.named_buffers(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("size, nc", [(16, 1), (28, 1), (28, 3), (40, 2), (96, 3), (256, 4)])
def test_sizes_and_channels(size, nc, conditioning):
    G, D = small(image_size=size, nc=nc, conditioning=conditioning)
    images = G(G.sample_latent(2), torch.tensor([0, 2]))
    assert images.shape == (2, nc, size, size)
    assert D(images, torch.tensor([0, 2])).shape == (2,)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_without_linear_layers(conditioning):
    G, D = small(image_size=64, ngfc=0, ndfc=0, conditioning=conditioning)
    images = G(G.sample_latent(3), torch.tensor([0, 1, 2]))
    assert D(images, torch.tensor([0, 1, 2])).shape == (3,)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in D.modules())


def test_projection_is_the_product_of_features_and_a_classs_vector():
    _, D = small(conditioning="projection", ndfc=0)
    D.eval()
    x, labels = torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 1])
    features = D.main(x).sum((2, 3))
    expected = D.head(features).flatten() + (features * D.embedding.weight[labels]).sum(1)
    torch.testing.assert_close(D(x, labels), expected)
    assert D.embedding.weight.shape == (3, 8)


def test_the_label_counts():
    for conditioning in CONDITIONINGS:
        G, D = small(conditioning=conditioning)
        z = G.sample_latent(1).expand(2, -1)
        one, other = G.eval()(z, torch.tensor([0, 1]))
        assert not torch.equal(one, other)
        image = torch.rand(1, 1, 16, 16).expand(2, -1, -1, -1)
        one, other = D.eval()(image, torch.tensor([0, 1]))
        assert one != other


@pytest.mark.parametrize("output", ["logits", "sigmoid"])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_config_rebuilds(conditioning, output):
    pair = small(conditioning=conditioning, output=output, output_activation="tanh", embedding=7)
    for network in pair:
        config = json.loads(json.dumps(network.config))
        again = models.NETWORKS[type(network).__name__](**config)
        again.load_state_dict(network.state_dict())
        assert again.config == network.config
    assert pair[0].output_range == (-1.0, 1.0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"image_size": 30}, "'image_size' must be 4, 5, 6 or 7 times a power of two, .* got 30"),
        ({"image_size": 12}, "'image_size' must be"),
        ({"image_size": 512}, "'image_size' must be"),
        ({"image_size": 30, "scales": 2}, r"'image_size' must be a multiple of 2\*\*scales = 4"),
        ({"classes": 1}, "'classes' must be an integer of at least 2, got 1"),
        ({"ngfc": -1}, "'ngfc' must be an integer of at least 0"),
        ({"bn_affine": 1}, "'bn_affine' must be True or False"),
        ({"conditioning": "film"}, "'conditioning' must be one of concat, projection; got 'film'"),
        ({"output_activation": "relu"}, "'output_activation' must be one of sigmoid, tanh"),
        ({"nc": 5}, "'nc' must be an integer from 1 to 4"),
        ({"convs_per_scale": 2}, "unknown setting 'convs_per_scale'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        small(**settings)


def test_wrong_input():
    G, D = small()
    with pytest.raises(
        UserError, match=r"'latent' must be \(N, 5\) or \(N, 5, 1, 1\), got \(2, 6\)"
    ):
        G(torch.rand(2, 6), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="'labels' must be from 0 to 2, got 3"):
        G(torch.rand(2, 5), torch.tensor([0, 3]))
    with pytest.raises(UserError, match="'labels' must be int64"):
        D(torch.rand(2, 1, 16, 16), torch.tensor([0]))
    with pytest.raises(UserError, match="'images' must be"):
        D(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("bn", models.BN_MODES)
def test_generate(bn):
    G, _ = small()
    G(torch.rand(8, 5), torch.randint(3, (8,)))
    before = {name: value.clone() for name, value in G.state_dict().items()}
    z, labels = G.sample_latent(7), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    images = models.generate(G, z, labels, bn=bn, batch_size=4, population_batches=2)
    assert images.shape == (7, 1, 16, 16) and not images.requires_grad and G.training
    assert all(torch.equal(before[name], value) for name, value in G.state_dict().items())
    if bn == "running":
        one = models.generate(G, z[3:4], labels[3:4])
        torch.testing.assert_close(images[3:4], one)


def test_generate_wants_labels_where_there_are_classes():
    G, _ = small()
    with pytest.raises(UserError, match="'labels' must be given, as the generator has 3 classes"):
        models.generate(G, G.sample_latent(2))
    with pytest.raises(UserError, match="'labels' must be from 0 to 2, got 5"):
        models.generate(G, G.sample_latent(2), torch.tensor([0, 5]))
    other, _ = models.build("pytorch", image_size=16, ngf=2, ndf=2)
    with pytest.raises(UserError, match="'labels' must be None, as the generator has no classes"):
        models.generate(other, other.sample_latent(2), torch.tensor([0, 1]))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_exports_with_any_batch(conditioning: str) -> None:
    generator, discriminator = small(conditioning=conditioning)
    assert_exports_with_any_batch(generator, (5,))
    assert_exports_with_any_batch(discriminator, (1, 16, 16))
