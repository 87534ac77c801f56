from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcgan_fast import models
from dcgan_fast.conditional import ConditionalDiscriminator
from dcgan_fast.data import normalize
from dcgan_fast.errors import UserError
from dcgan_fast.guided import guided_backprop, guided_gradient, random_twin
from dcgan_fast.layers import map_layers, with_population_statistics
from dcgan_fast.networks import Discriminator


def small(**settings: Any) -> Discriminator:
    settings = {"image_size": 16, "nc": 2, "ndf": 4, **settings}
    _, discriminator = models.build("pytorch", **settings)
    for bn in discriminator.modules():
        if isinstance(bn, nn.BatchNorm2d):
            bn.running_mean.uniform_(-0.1, 0.1)
            bn.running_var.uniform_(0.01, 0.02)
    return discriminator


def pictures(count: int, channels: int = 2, size: int = 16) -> np.ndarray:
    shape = (count, channels, size, size)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def by_hand(network: Discriminator, image: Tensor, end: int, place: Any, rule: str) -> Tensor:
    """The gradient of one activation of one image (1, C, S, S), layer by layer, from each layer's transpose."""
    children = list(network.main)[:end]
    inputs, x = [], image.double()
    for child in children:
        inputs.append(x)
        if isinstance(child, nn.Conv2d):
            x = nn.functional.conv2d(x, child.weight.double(), None, child.stride, child.padding)
        elif isinstance(child, nn.BatchNorm2d):
            scale = child.weight / (child.running_var + child.eps).sqrt()
            x = (x - child.running_mean[:, None, None]) * scale[:, None, None]
            x = x + child.bias[:, None, None]
        else:
            x = torch.where(x > 0, x, 0.2 * x)
    g = torch.zeros_like(x)
    g[(0, *place)] = 1
    for child, x in zip(reversed(children), reversed(inputs), strict=True):
        if isinstance(child, nn.Conv2d):
            weight = child.weight.double()
            g = nn.grad.conv2d_input(x.shape, weight, g, child.stride, child.padding)
        elif isinstance(child, nn.BatchNorm2d):
            g = g * (child.weight / (child.running_var + child.eps).sqrt())[:, None, None]
        else:
            below = 0.0 if rule == "relu" else 0.2
            g = torch.where(g > 0, g, 0) * torch.where(x > 0, 1.0, below)
    return g


@pytest.mark.parametrize("rule", ["relu", "leaky"])
@pytest.mark.parametrize("layer", [1, 2])
def test_gradients_follow_the_rule(layer: int, rule: str) -> None:
    network = small().train()
    images = normalize(pictures(3))
    where = map_layers(network)[layer - 1]
    features, places = torch.tensor([0, 3, 1]), torch.tensor([[0, 0], [3, 2], [1, 3]])
    found = guided_gradient(network, images, where, features, places, rule=rule)
    assert found.shape == images.shape and network.training
    with torch.no_grad():
        for n in range(3):
            place = (int(features[n]), *places[n].tolist())
            expected = by_hand(network, images[n : n + 1], where.end, place, rule)
            torch.testing.assert_close(found[n : n + 1].double(), expected, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_rules_differ() -> None:
    network, images = small(), normalize(pictures(1))
    where = map_layers(network)[1]
    one = torch.zeros(1, dtype=torch.int64), torch.ones(1, 2, dtype=torch.int64)
    relu, leaky = (
        guided_gradient(network, images, where, *one, rule=rule) for rule in ("relu", "leaky")
    )
    assert not torch.allclose(relu, leaky)
    with pytest.raises(UserError, match="'rule' must be one of relu, leaky; got 'deconv'"):
        guided_gradient(network, images, where, *one, rule="deconv")


@pytest.mark.parametrize("count", [5, 600])  # one batch, and three
def test_top_responses_are_those_of_all_images(count: int) -> None:
    images = pictures(count)
    network = with_population_statistics(small(), images)
    found = guided_backprop(network, images, layer=-1, features=[2, 0], top=4)
    with torch.no_grad():
        maps = network.eval().main[: found.layer.end](normalize(images))[:, [2, 0]]
    largest = maps.flatten(2).amax(2)
    assert found.features == (2, 0)
    np.testing.assert_allclose(found.mean_response, largest.mean(0), rtol=1e-4)
    for index in range(2):
        rows = torch.sort(largest[:, index], descending=True, stable=True).indices[:4]
        assert found.rows[index].tolist() == rows.tolist()
        assert np.array_equal(found.images[index], images[rows.numpy()])
        for n, row in enumerate(rows.tolist()):
            place = tuple(found.places[index, n])
            value = maps[row, index][place]
            assert value == largest[row, index]
            assert found.responses[index, n] == pytest.approx(float(value))
    assert found.gradients.shape == (2, 4, 2, 16, 16)
    assert found.responses.min() > 0 and (found.gradients.flatten(2).abs().amax(2) > 0).all()


def test_likeness_and_purity() -> None:
    found = guided_backprop(small(), pictures(40), features=2, top=3)
    images = found.images.reshape(2, 3, -1)
    expected = [np.corrcoef(each)[np.triu_indices(3, 1)].mean() for each in images]
    np.testing.assert_allclose(found.likeness(), expected, atol=1e-12)
    labels = np.zeros(40, np.int64)
    labels[found.rows[1, 0]] = 7
    assert found.purity(labels)[1] == pytest.approx(2 / 3)
    alone = guided_backprop(small(), pictures(40), features=2, top=1)
    assert alone.likeness().tolist() == [0, 0] and alone.purity(labels).tolist() == [1, 1]


def test_a_random_twin_has_the_settings_and_other_weights() -> None:
    network = small(head="linear", ndf=6)
    state = torch.random.get_rng_state()
    twin, again, other = random_twin(network), random_twin(network), random_twin(network, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert twin.config == network.config and not twin.training
    assert torch.equal(twin.main[0].weight, again.main[0].weight)
    assert not torch.equal(twin.main[0].weight, other.main[0].weight)
    assert not torch.equal(twin.main[0].weight, network.main[0].weight)
    settled = with_population_statistics(twin, pictures(64))
    assert guided_backprop(settled, pictures(64), features=2).responses.max() < 20


# ------------------------------------------------------------------------------------ with labels


def conditional(conditioning: str = "concat", **settings: Any) -> ConditionalDiscriminator:
    settings = {"image_size": 16, "nc": 2, "ndf": 4, "ngf": 4, "classes": 3, **settings}
    discriminator = models.build("cgan-dcgan", conditioning=conditioning, **settings)[1]
    assert isinstance(discriminator, ConditionalDiscriminator)
    return discriminator


@pytest.mark.parametrize("conditioning", ["concat", "projection"])
def test_a_conditional_discriminator_is_told_the_labels(conditioning: str) -> None:
    images, labels = pictures(300), np.random.default_rng(1).integers(0, 3, 300)
    network = with_population_statistics(
        conditional(conditioning), images, labels, value_range=(0.0, 1.0)
    )
    assert [str(each) for each in map_layers(network)] == ["1: 4x8x8", "2: 8x4x4"]
    found = guided_backprop(network, images, labels, value_range=(0.0, 1.0), features=3, top=4)
    maps = []
    child = list(network.main)[found.layer.end - 1]
    child.register_forward_hook(lambda module, inputs, output: maps.append(output.clone()))
    with torch.no_grad():
        network(normalize(images, (0.0, 1.0)), torch.from_numpy(labels))
    largest = maps[0][:, :3].flatten(2).amax(2)
    for feature in range(3):
        rows = largest[:, feature].topk(4).indices
        assert found.rows[feature].tolist() == rows.tolist()
        np.testing.assert_allclose(found.responses[feature], largest[rows, feature], rtol=1e-4)
    assert found.gradients.shape == (3, 4, 2, 16, 16)
    other = guided_backprop(network, images, (labels + 1) % 3, value_range=(0.0, 1.0), features=3)
    told = conditioning == "concat"  # by projection a label meets the features after all maps
    assert np.allclose(other.mean_response, found.mean_response) != told


@pytest.mark.parametrize("rule", ["relu", "leaky"])
def test_gradients_beside_labels_are_those_of_images_with_planes(rule: str) -> None:
    """A label's planes as channels of the image: a plain network of as many more channels has the same gradient."""
    network = conditional().eval()
    images, labels = normalize(pictures(3), (0.0, 1.0)), torch.tensor([2, 0, 1])
    where, features = map_layers(network)[1], torch.tensor([1, 5, 0])
    places = torch.tensor([[0, 3], [2, 2], [3, 1]])
    found = guided_gradient(network, images, where, features, places, labels=labels, rule=rule)
    planes = nn.functional.one_hot(labels, 3).double()[..., None, None]
    x = input = images.double().requires_grad_()
    for child in list(network.main)[: where.end]:
        if isinstance(child, nn.Conv2d):
            both = torch.cat([x, planes.expand(-1, -1, *x.shape[2:])], 1)
            weight = child.weight.double()
            x = nn.functional.conv2d(both, weight, None, child.stride, child.padding)
        elif isinstance(child, nn.BatchNorm2d):
            x = child.double()(x)
        else:
            x = Rule.apply(x, rule)
    chosen = x[torch.arange(3), features, places[:, 0], places[:, 1]].sum()
    expected = torch.autograd.grad(chosen, input)[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


class Rule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.below = 0.2 if rule == "leaky" else 0.0
        return torch.where(x > 0, x, 0.2 * x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g.clamp_min(0) * torch.where(ctx.saved_tensors[0] > 0, 1.0, ctx.below), None


def test_a_random_twin_of_a_conditional_discriminator() -> None:
    network, images, labels = conditional(), pictures(64), np.arange(64) % 3
    twin = random_twin(network)
    assert twin.config == network.config
    with pytest.raises(UserError, match=r"with_population_statistics\(\): 'labels' must be given"):
        with_population_statistics(twin, images)
    settled = with_population_statistics(twin, images, labels, value_range=(0.0, 1.0))
    assert guided_backprop(settled, images, labels, features=2).responses.max() < 50


def test_wrong_arguments() -> None:
    network, images = small(), pictures(4)

    def fails(message: str, *arguments: Any, **settings: Any) -> None:
        with pytest.raises(UserError, match=message):
            guided_backprop(*arguments, **settings)

    fails("'layer' must be 1 to 2, .*; got 9", network, images, layer=9, top=2)
    fails("'features' must be an integer from 1 to 8, got 9", network, images, features=9)
    fails("'features' must be an integer from 0 to 7, got 8", network, images, features=[8])
    fails("'features' must name at least one", network, images, features=[])
    fails("'top' must be an integer from 1 to 4, got 5", network, images, top=5)
    fails("'rule' must be one of", network, images, top=2, rule="x")
    fails(r"'images' must be uint8 \(N, 2, 16, 16\)", network, pictures(4, 3))
    fails("'labels' are for a discriminator with classes", network, images, np.zeros(4, int))
    labelled = conditional()
    fails("'labels' must be given, one for each image: .* has 3 classes", labelled, images)
    fails(r"'labels' must be int64 \(4,\)", labelled, images, np.zeros(3, int))
    fails("'labels' must be from 0 to 2, got 3", labelled, images, np.full(4, 3))
    units = models.build("cgan-mnist")[1]
    fails("or a ConditionalDiscriminator, got a MlpDiscriminator", units, images)
