"""What a step is made of: its plan beside our own plain loop, and D's update with a gradient penalty."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from layers import FORWARD, INPUT_GRAD, NETS, SMALL, SMALL_BATCH, WEIGHT_GRAD, layers_of
from race import Contender
from torch import Tensor, nn
from torch.optim import Adam
from training_loops import BETAS, LEARNING_RATE, ExampleLoop, TunedLoop

from dcgan_fast import models, unfuse
from dcgan_fast.bench import Row
from dcgan_fast.training import GradientPenalty, Objective, Step

MOST_ROUNDS, FEWEST_ROUNDS = 15, 7


def networks(net: str, small: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    preset, overrides, _ = NETS[net]
    return models.build(preset, **overrides, **(SMALL if small else {}))


def channels_last(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch", [128, 32])
@pytest.mark.parametrize("net", ["pytorch-64", "pytorch-32"])
def test_plan(net: str, batch: int, small: bool, compare) -> None:
    """One plan (D once over real and made images, frozen in G's update, no waiting for a log) on the same fused
    networks as the loop that pytorch/examples has, and as that loop with nothing in vain."""
    batch = SMALL_BATCH if small else batch
    generator, discriminator = networks(net, small)
    size = generator.image_size
    real = torch.rand(batch, generator.nc, size, size) * 2 - 1
    real = real.contiguous(memory_format=torch.channels_last)

    def pair() -> tuple[nn.Module, nn.Module]:
        return channels_last(generator), channels_last(discriminator)

    def adam(network: nn.Module) -> Adam:
        return Adam(network.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True)

    g, d = pair()
    step = Step(g, d, adam(g), adam(d), joint_pass=True)
    g_plain, d_plain = pair()
    contenders: dict[str, Contender] = {
        "ours": lambda: step(real, lambda: g.sample_latent(batch)),
        "plain loop": ExampleLoop(
            g_plain, nn.Sequential(d_plain, nn.Sigmoid()), real, generator.nz, nullcontext
        ),
        "tuned loop": TunedLoop(*pair(), real, generator.nz, nullcontext),
    }
    of_g, of_d = layers_of(net, small, batch)
    flop = _flop(of_g, FORWARD, INPUT_GRAD, WEIGHT_GRAD)
    flop += 2 * _flop(of_d, FORWARD, INPUT_GRAD, WEIGHT_GRAD) + _flop(of_d, FORWARD, INPUT_GRAD)
    compare(
        contenders,
        _row("step", {"net": net, "batch": str(batch)}, batch, flop),
        least=FEWEST_ROUNDS,
        most=MOST_ROUNDS,
    )


@pytest.mark.parametrize("penalty", ["r1", "wgan-gp"])
@pytest.mark.parametrize("batch", [64, 16])
def test_penalty(penalty: str, batch: int, small: bool, compare) -> None:
    """D's update with a penalty at every step, in the published net; in PyTorch in both memory formats.

    Not compiled: torch.compile has no second derivatives.
    """
    batch = SMALL_BATCH if small else batch
    _, discriminator = networks("pytorch-64", small)
    size = discriminator.image_size
    real, fake = (torch.rand(2, batch, 3, size, size) * 2 - 1).unbind()
    names = {"r1": "non-saturating", "wgan-gp": "wasserstein"}

    def update(network: nn.Module, layout: torch.memory_format) -> Contender:
        network = copy.deepcopy(network).to(memory_format=layout)
        generator = _Given(fake.contiguous(memory_format=layout))
        images = real.contiguous(memory_format=layout)
        adam = Adam(network.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True)
        step = Step(
            generator,
            network,
            adam,
            adam,
            objective=Objective(names[penalty]),
            penalty=GradientPenalty(penalty),
        )
        return lambda: step._update_discriminator([(images,)], lambda: (generator.images,))

    plain = unfuse(discriminator)
    contenders = {
        "ours": update(discriminator, torch.channels_last),
        "channels_last": update(plain, torch.channels_last),
        "contiguous": update(plain, torch.contiguous_format),
    }
    of_d = layers_of("pytorch-64", small, batch)[1]
    # D on real and made images; the slope, its two derivatives, and what flows on through batch norm
    flop = 2 * _flop(of_d, FORWARD, INPUT_GRAD, WEIGHT_GRAD)
    flop += _flop(of_d, FORWARD, INPUT_GRAD, WEIGHT_GRAD)
    if penalty == "wgan-gp":
        flop += _flop(of_d, FORWARD, INPUT_GRAD, WEIGHT_GRAD)
    compare(
        contenders,
        _row(
            "penalty", {"penalty": penalty, "net": "pytorch-64", "batch": str(batch)}, batch, flop
        ),
        least=FEWEST_ROUNDS,
        most=MOST_ROUNDS,
    )


class _Given(nn.Module):
    """A generator that has made its images."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.weight = nn.Parameter(torch.zeros(()))


def _flop(layers, *parts) -> float:
    return sum(layer.flop(*parts) for layer in layers)


def _row(table: str, case: dict[str, str], images: int, flop: float) -> Row:
    """Bytes are not counted."""
    return Row(
        table=table,
        case=case,
        dtype="float32",
        seconds={},
        images=images,
        gflop=flop / 1e9,
        gigabytes=0.0,
    )
