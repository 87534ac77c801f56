"""The CGAN paper's networks: their sizes, what they compute, how they are drawn, what they refuse."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from exports import assert_exports_with_any_batch

from dcgan_fast import models
from dcgan_fast.errors import UserError
from dcgan_fast.mlp_models import MlpDiscriminator, MlpGenerator

SMALL_G = {"image_size": 4, "nz": 5, "classes": 3, "z_units": 6, "y_units": 7, "joint_units": 8}
SMALL_D = {"image_size": 4, "classes": 3, "x_units": 6, "y_units": 5, "joint_units": 7}


def test_the_sizes_are_the_papers():
    generator, discriminator = models.build("cgan-mnist")
    assert {k: tuple(v.shape) for k, v in generator.state_dict().items() if "weight" in k} == {
        "z.weight": (200, 100),
        "y.weight": (1000, 10),
        "joint.weight": (1200, 1200),
        "output.weight": (784, 1200),
    }
    assert {k: tuple(v.shape) for k, v in discriminator.state_dict().items() if "weight" in k} == {
        "x.weight": (240, 5, 784),
        "y.weight": (50, 5, 10),
        "joint.weight": (240, 4, 290),
        "head.weight": (1, 240),
    }
    assert generator.dropout.p == discriminator.dropout.p == 0.5
    latent, labels = generator.sample_latent(6), torch.arange(6)
    images = generator(latent, labels)
    assert images.shape == (6, 1, 28, 28) and discriminator(images, labels).shape == (6,)
    assert 0 <= images.min() and images.max() <= 1 and generator.output_range == (0, 1)


def test_the_networks_compute_what_the_paper_says():
    torch.manual_seed(0)
    generator, discriminator = MlpGenerator(**SMALL_G).eval(), MlpDiscriminator(**SMALL_D).eval()
    for parameter in (*generator.parameters(), *discriminator.parameters()):
        torch.nn.init.normal_(parameter)
    latent, labels = torch.rand(9, 5), torch.arange(9) % 3
    hot = F.one_hot(labels, 3).float()
    g = {name: parameter for name, parameter in generator.named_parameters()}
    hidden = torch.cat(
        [F.relu(F.linear(latent, g["z.weight"], g["z.bias"])), F.relu(F.linear(hot, g["y.weight"], g["y.bias"]))], 1
    )  # fmt: skip
    hidden = F.relu(F.linear(hidden, g["joint.weight"], g["joint.bias"]))
    images = torch.sigmoid(F.linear(hidden, g["output.weight"], g["output.bias"])).view(9, 1, 4, 4)
    torch.testing.assert_close(generator(latent, labels), images)
    torch.testing.assert_close(generator(latent[..., None, None], hot), images)

    def maxout(x, name):
        d = dict(discriminator.named_parameters())
        pieces = torch.einsum("ni,opi->nop", x, d[f"{name}.weight"]) + d[f"{name}.bias"]
        return pieces.amax(-1)

    hidden = torch.cat([maxout(images.flatten(1), "x"), maxout(hot, "y")], 1)
    logits = discriminator.head(maxout(hidden, "joint"))[:, 0]
    torch.testing.assert_close(discriminator(images, labels), logits, rtol=1e-4, atol=1e-4)
    probabilities = MlpDiscriminator(**SMALL_D, output="sigmoid").eval()
    probabilities.load_state_dict(discriminator.state_dict())
    torch.testing.assert_close(probabilities(images, hot), logits.sigmoid(), rtol=1e-4, atol=1e-4)


def test_dropout_is_of_training_alone():
    generator, latent = MlpGenerator(**SMALL_G), torch.rand(4, 5)
    labels = torch.zeros(4, dtype=torch.int64)
    assert not torch.equal(generator(latent, labels), generator(latent, labels))
    generator.eval()
    assert torch.equal(generator(latent, labels), generator(latent, labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_leaves_out_its_part_and_scales_the_rest(p, dtype):
    dropout, x = MlpGenerator(**SMALL_G, dropout=p).dropout, torch.ones(301, 999, dtype=dtype)
    x.requires_grad_()
    torch.manual_seed(0)
    y = dropout(x)
    kept = y != 0
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=0.004)
    for axis in (0, 1):  # nothing is left out by rows or columns
        assert 0.2 * (1 - p) < kept.double().mean(axis).min() < kept.double().mean(axis).max() < 1
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)), rtol=1e-2, atol=0)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y) and not torch.equal(dropout(x), y)


def test_dropout_of_nothing_and_of_few():
    dropout = MlpGenerator(**SMALL_G).dropout
    assert dropout(torch.ones(0, 3)).shape == (0, 3)
    assert dropout(torch.ones(1, 1)).item() in (0.0, 2.0)
    assert dropout(torch.ones(2, 2, device="meta")).device.type == "meta"


def spreading(**settings):
    """A small generator whose hidden units all have a say."""
    torch.manual_seed(0)
    generator = MlpGenerator(**SMALL_G, **settings)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return generator


@pytest.mark.parametrize("training", [False, True])
def test_samples_are_distributed_as_those_of_training(training):
    generator = spreading(dropout=0.3)
    latent, labels = generator.sample_latent(20_000), torch.ones(20_000, dtype=torch.int64)
    with torch.no_grad():
        of_training = generator(latent, labels).flatten(1)
        whole = generator.eval()(latent, labels).flatten(1)
        samples = generator.train(training).sample(latent, labels).flatten(1)
    assert not torch.equal(samples, of_training)
    torch.testing.assert_close(samples.mean(0), of_training.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(torch.cov(samples.T), torch.cov(of_training.T), rtol=0, atol=0.005)
    assert samples.var(0).sum() > 1.5 * whole.var(0).sum()


def test_a_sample_depends_on_its_latent_vector_and_its_label_alone():
    generator, latent = spreading().eval(), torch.rand(9, 5)
    labels, state = torch.arange(9) % 3, torch.get_rng_state()
    samples = generator.sample(latent, labels)
    assert torch.equal(generator.sample(latent[..., None, None], labels), samples)
    torch.testing.assert_close(generator.sample(latent[4:5], labels[4:5]), samples[4:5])
    assert torch.equal(torch.get_rng_state(), state)
    torch.nn.init.zeros_(generator.y.weight)
    first, second = (generator.sample(latent, torch.full((9,), label)) for label in (0, 1))
    assert torch.equal(first, second)  # the same units with every label
    moved = (generator.sample(latent + shift, labels) for shift in (1e-3, 2e-3))
    assert all((one - first).abs().amax((1, 2, 3)).median() > 0.02 for one in moved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_samples_without_dropout_or_of_nothing(dtype):
    generator = spreading(dropout=0.0).to(dtype).eval()
    latent, labels = generator.sample_latent(3), torch.arange(3)
    assert torch.equal(generator.sample(latent, labels), generator(latent, labels))
    generator = spreading().to(dtype)
    assert generator.sample(latent, labels).dtype == dtype
    assert generator.sample(latent[:0], labels[:0]).shape == (0, 1, 4, 4)


def test_generate_leaves_units_out_where_the_generator_says_so():
    generator, whole = spreading(), spreading(sampling_dropout=False)
    latent, labels = generator.sample_latent(5), torch.arange(5) % 3
    samples = generator.sample(latent, labels)
    every_unit = generator.eval()(latent, labels)
    assert not torch.allclose(samples, every_unit, atol=1e-2)
    generator.train()
    for network, dropout, expected in (
        (generator, None, samples),
        (generator, True, samples),
        (generator, False, every_unit),
        (whole, None, every_unit),
        (whole, True, samples),
    ):
        images = models.generate(network, latent, labels, dropout=dropout, batch_size=2)
        torch.testing.assert_close(images, expected)
    assert generator.training
    other, _ = models.build("pytorch", image_size=16, ngf=2, ndf=2)
    latent = other.sample_latent(2)
    images = models.generate(other, latent)
    assert torch.equal(models.generate(other, latent, dropout=True), images)


def test_weights_are_drawn_as_the_adversarial_code_draws_them():
    for network, bound in zip(models.build("cgan-mnist"), (0.05, 0.005), strict=True):
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                assert parameter.count_nonzero() == 0
            else:
                assert 0.95 * bound < parameter.abs().max() <= bound
    torch.manual_seed(3)
    first = models.build("cgan-mnist", nz=4)[0]
    torch.manual_seed(3)
    assert torch.equal(first.z.weight, models.build("cgan-mnist", nz=4)[0].z.weight)


def test_latents_are_uniform_in_the_unit_cube():
    generator = MlpGenerator(**SMALL_G)
    latent = generator.sample_latent(2000, generator=torch.Generator().manual_seed(0))
    assert latent.shape == (2000, 5) and 0 <= latent.min() < 0.01 and 0.99 < latent.max() <= 1
    again = generator.sample_latent(2000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(latent, again)


@pytest.mark.parametrize(
    "network, settings", [(MlpGenerator, SMALL_G), (MlpDiscriminator, SMALL_D)]
)
def test_the_config_rebuilds_the_network(network, settings):
    first = network(**settings)
    second = network(**json.loads(json.dumps(first.config)))
    assert second.config == first.config and set(settings) <= set(first.config)
    second.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: MlpGenerator(nz=0), r"MlpGenerator\(\): 'nz' must be an integer of at least 1, got 0"),
        (lambda: MlpGenerator(classes=True), "'classes' must be an integer of at least 2, got True"),
        (lambda: MlpGenerator(dropout=1.0), "'dropout' must be a number from 0 to below 1, got 1.0"),
        (lambda: MlpGenerator(sampling_dropout=1), "'sampling_dropout' must be True or False, got 1"),
        (lambda: MlpDiscriminator(irange=0), "'irange' must be a number above 0, got 0"),
        (lambda: MlpDiscriminator(output="tanh"), "'output' must be one of logits, sigmoid; got 'tanh'"),
        (lambda: MlpGenerator(latent_distribution="unif"), "must be one of unit, uniform, normal; got"),
        (lambda: MlpDiscriminator(x_pieces=1.5), "'x_pieces' must be an integer of at least 1, got 1.5"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize(
    "labels, words",
    [
        (torch.tensor([0, 3]), "'labels' must be from 0 to 2, got 3"),
        (torch.tensor([-1, 0]), "'labels' must be from 0 to 2, got -1"),
        (torch.tensor([0]), r"'labels' must be int64 \(2,\), .* got torch.int64 of shape \(1,\)"),
        (torch.zeros(2, 4), r"or floating point \(2, 3\), got shape \(2, 4\)"),
        (torch.zeros(2, dtype=torch.int32), "got torch.int32"),
    ],
)
def test_wrong_labels_are_named(labels, words):
    generator, discriminator = MlpGenerator(**SMALL_G), MlpDiscriminator(**SMALL_D)
    with pytest.raises(UserError, match=rf"MlpGenerator.forward\(\): .*{words}"):
        generator(torch.rand(2, 5), labels)
    with pytest.raises(UserError, match=rf"MlpDiscriminator.forward\(\): .*{words}"):
        discriminator(torch.rand(2, 1, 4, 4), labels)


def test_wrong_shapes_are_named():
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UserError, match=r"sample\(\): 'latent' must be \(N, 5\) or"):
        MlpGenerator(**SMALL_G).sample(torch.rand(2, 6), labels)
    with pytest.raises(UserError, match=r"'masks' must be \(N, 21\), got \(2, 20\)"):
        MlpGenerator(**SMALL_G)(torch.rand(2, 5), labels, masks=torch.ones(2, 20))
    with pytest.raises(
        UserError, match=r"'latent' must be \(N, 5\) or \(N, 5, 1, 1\), got \(2, 6\)"
    ):
        MlpGenerator(**SMALL_G)(torch.rand(2, 6), labels)
    with pytest.raises(UserError, match=r"'images' must be \(N, 1, 4, 4\), got \(2, 16\)"):
        MlpDiscriminator(**SMALL_D)(torch.rand(2, 16), labels)


def test_they_export_with_any_batch_as_pytorchs_own_ops():
    assert_exports_with_any_batch(MlpGenerator(**SMALL_G), (5,))
    assert_exports_with_any_batch(MlpDiscriminator(**SMALL_D), (1, 4, 4))
