"""Each fused op against PyTorch's own modules on the layers of the DCGANs.

``pytest benchmarks/ --benchmark-only`` runs all; ``--small`` a quick version of each.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from contenders import interleave

from dcgan_fast import functional

# (channels, side of the map, activation) of every layer with batch norm of pytorch/examples' nets at 64x64
LAYERS = [
    (512, 4, "relu"),
    (256, 8, "relu"),
    (128, 16, "relu"),
    (64, 32, "relu"),
    (128, 16, "leaky_relu"),
    (256, 8, "leaky_relu"),
    (512, 4, "leaky_relu"),
]


def batch_norm_then_activation(x, weight, bias, mean, var, activation):
    z = F.batch_norm(x, mean, var, weight, bias, training=True)
    return F.relu_(z) if activation == "relu" else F.leaky_relu_(z, 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("channels, side, activation", LAYERS)
def test_bn_act(channels, side, activation, dtype, small, bandwidth, benchmark, record):
    """Forward + backward, training, channels_last; floor: 8 passes over the maps at the copy's bandwidth."""
    batch, rounds = (8, 3) if small else (128, 21)
    x = torch.randn(batch, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
    x.requires_grad_()
    grad = torch.randn_like(x)
    weight, bias = (
        torch.ones(channels, requires_grad=True),
        torch.zeros(channels, requires_grad=True),
    )
    mean, var = torch.zeros(channels), torch.ones(channels)

    def ours():
        y = functional.bn_act(x, weight, bias, mean, var, activation=activation, training=True)
        return torch.autograd.grad(y, (x, weight, bias), grad)

    def eager(forward=batch_norm_then_activation):
        y = forward(x, weight, bias, mean, var, activation)
        return torch.autograd.grad(y, (x, weight, bias), grad)

    contenders = {"ours": ours, "eager": eager}
    if not small:
        compiled = torch.compile(batch_norm_then_activation)
        contenders["compile"] = lambda: eager(compiled)
    seconds = interleave(contenders, rounds)
    benchmark.pedantic(ours, rounds=rounds, warmup_rounds=1)
    gigabytes = 8 * x.numel() * x.element_size() / 1e9
    record(
        op="bn_act",
        dtype=str(dtype).removeprefix("torch."),
        shape=f"{batch}x{channels}x{side}x{side}",
        activation=activation,
        **{f"{name} ms": s * 1e3 for name, s in seconds.items()},
        **{f"vs {name}": s / seconds["ours"] for name, s in seconds.items() if name != "ours"},
        **{"GB/s": gigabytes / seconds["ours"], "of copy": gigabytes / seconds["ours"] / bandwidth},
    )
