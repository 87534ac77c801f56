"""Whole training steps: D on real and on fake images, then G, with Adam, on images that are at hand."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from contenders import DTYPES
from layers import FORWARD, INPUT_GRAD, NETS, SMALL, SMALL_BATCH, WEIGHT_GRAD, layers_of
from race import Contender
from torch import nn
from torch.optim import Adam
from torch.utils.flop_counter import FlopCounterMode
from training_loops import BETAS, LEARNING_RATE, Autocast, ExampleLoop, TunedLoop

from dcgan_fast import models, unfuse
from dcgan_fast.bench import Row
from dcgan_fast.training.step import Step

CONDITIONAL = [("cgan-dcgan", {}, 128), ("cgan-dcgan-64", {"image_size": 64, "nc": 3}, 64)]
CASES = [("pytorch-64", 128), ("pytorch-64", 32), ("pytorch-32", 128), ("newmu-64", 128)]
MOST_ROUNDS, FEWEST_ROUNDS = 15, 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("net, batch", CASES, ids=[f"{net}-batch-{batch}" for net, batch in CASES])
def test_step(net: str, batch: int, dtype: str, small: bool, compare) -> None:
    """bfloat16: autocast, float32 weights. Every contender starts from the same weights.

    The newmu net too is trained by the example's step (its own code updates one network a minibatch),
    so that each step is the same work for all.
    """
    batch = SMALL_BATCH if small else batch
    torch.manual_seed(0)
    preset, overrides, _ = NETS[net]
    generator, discriminator = models.build(preset, **overrides, **(SMALL if small else {}))
    size = generator.image_size
    real = torch.rand(batch, generator.nc, size, size) * 2 - 1
    autocast: Autocast = nullcontext
    if dtype == "bfloat16":
        autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)

    def networks() -> tuple[nn.Module, nn.Module]:
        return copy.deepcopy(generator), copy.deepcopy(discriminator)

    def channels_last(networks: tuple[nn.Module, nn.Module]) -> tuple[nn.Module, nn.Module]:
        return tuple(n.to(memory_format=torch.channels_last) for n in networks)

    def plain() -> tuple[nn.Module, nn.Module]:
        return tuple(unfuse(network) for network in networks())

    nhwc = real.contiguous(memory_format=torch.channels_last)
    with_sigmoid = _with_sigmoid(plain())
    contenders: dict[str, Contender] = {
        "ours": _ours(*channels_last(networks()), nhwc, autocast),
        "example": ExampleLoop(*with_sigmoid, real, generator.nz, autocast),
        "tuned": TunedLoop(*channels_last(plain()), nhwc, generator.nz, autocast),
    }
    if not small:
        torch._dynamo.reset()
        compiled = [torch.compile(n, dynamic=False) for n in channels_last(plain())]
        contenders["tuned, compiled"] = TunedLoop(*compiled, nhwc, generator.nz, autocast)
    itemsize = DTYPES[dtype].itemsize
    compare(
        contenders,
        Row(
            table="train",
            case={"net": net, "batch": str(batch), "dtype": dtype},
            dtype=dtype,
            seconds={},
            skipped={"tuned, compiled": "left out of --small"} if small else {},
            images=batch,
            gflop=_work(net, small, batch, lambda layer, *p: layer.flop(*p)) / 1e9,
            gigabytes=_work(net, small, batch, lambda layer, *p: layer.bytes(itemsize, *p)) / 1e9,
        ),
        least=FEWEST_ROUNDS,
        most=MOST_ROUNDS,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("joint", [False, True], ids=["two-passes", "joint-pass"])
@pytest.mark.parametrize("net, overrides, batch", CONDITIONAL, ids=[c[0] for c in CONDITIONAL])
def test_conditional_step(
    net: str,
    overrides: dict[str, object],
    batch: int,
    joint: bool,
    dtype: str,
    small: bool,
    compare,
) -> None:
    """Against explicit concatenation: what ``unfuse`` makes of the same networks, in both memory formats.

    "joint pass": D sees real and made images in one, which batch norm of PyTorch's cannot. Bytes are not counted.
    """
    batch = SMALL_BATCH if small else batch
    torch.manual_seed(0)
    widths = {**SMALL, "ngfc": 16, "ndfc": 16} if small else {}
    pair = models.build("cgan-dcgan", **overrides, **widths)
    generator = pair[0]
    real = torch.rand(batch, generator.nc, generator.image_size, generator.image_size)
    labels = torch.arange(batch) % generator.classes
    autocast: Autocast = nullcontext
    if dtype == "bfloat16":
        autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)

    def tuned(layout: torch.memory_format, compiled: bool = False) -> Contender:
        plain = [unfuse(network).to(memory_format=layout) for network in pair]
        if compiled:
            plain = [torch.compile(network, dynamic=False) for network in plain]
        images = real.contiguous(memory_format=layout)
        return TunedLoop(*plain, images, generator.nz, autocast, labels)

    last = torch.channels_last
    fused = [copy.deepcopy(network).to(memory_format=last) for network in pair]
    contenders = {
        "ours": _ours(*fused, real.contiguous(memory_format=last), autocast, labels, joint),
        "tuned": tuned(last),
        "contiguous": tuned(torch.contiguous_format),
    }
    if not small:
        torch._dynamo.reset()
        contenders["tuned, compiled"] = tuned(last, compiled=True)
    with FlopCounterMode(display=False) as counter:
        contenders["tuned"]()
    compare(
        contenders,
        Row(
            table="train",
            case={
                "net": net + (", joint pass" if joint else ""),
                "batch": str(batch),
                "dtype": dtype,
            },
            dtype=dtype,
            seconds={},
            skipped={"tuned, compiled": "left out of --small"} if small else {},
            images=batch,
            gflop=counter.get_total_flops() / 1e9,
            gigabytes=0.0,
        ),
        least=FEWEST_ROUNDS,
        most=MOST_ROUNDS,
    )


def _ours(
    generator: nn.Module,
    discriminator: nn.Module,
    real: torch.Tensor,
    autocast: Autocast,
    labels: torch.Tensor | None = None,
    joint: bool = False,
) -> Contender:
    def adam(network: nn.Module) -> Adam:
        return Adam(network.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True)

    adams = adam(generator), adam(discriminator)
    step = Step(generator, discriminator, *adams, autocast=autocast, joint_pass=joint)
    if labels is None:
        return lambda: step(real, lambda: generator.sample_latent(len(real)))

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        return generator.sample_latent(len(labels)), labels[torch.randperm(len(labels))]

    return lambda: step((real, labels), draw)


def _with_sigmoid(networks: tuple[nn.Module, nn.Module]) -> tuple[nn.Module, nn.Module]:
    """As the example's networks are: latents of (N, nz, 1, 1), D ends in probabilities."""
    generator, discriminator = networks
    return generator, nn.Sequential(discriminator, nn.Sigmoid())


def _work(net: str, small: bool, batch: int, count) -> float:
    """Of the step with nothing in vain: no gradient of data, none of D's weights in G's update."""
    generator, discriminator = layers_of(net, small, batch)
    both = (INPUT_GRAD, WEIGHT_GRAD)

    def learn(layers) -> float:
        return sum(
            count(layer, FORWARD, *(both if index else (WEIGHT_GRAD,)))
            for index, layer in enumerate(layers)
        )

    through = sum(count(layer, FORWARD, INPUT_GRAD) for layer in discriminator)
    return learn(generator) + 2 * learn(discriminator) + through
