"""Networks whose batch norms join the batches of several processes."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_together
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcgan_fast import models
from dcgan_fast.nn import (
    FusedSequential,
    batch_norm_mode,
    explain,
    fuse,
    stat_groups,
    synchronised_statistics,
    unfuse,
)

SHARES = (slice(0, 4), slice(4, 6))  # of a batch of six


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False),
        nn.BatchNorm2d(6, affine=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 64, 5),
        nn.BatchNorm1d(5, track_running_stats=False),
    ).double()  # so that rounding, of which batch norm makes much, hides nothing


def watched() -> nn.Module:
    net = fuse(layers())
    net[1].register_forward_hook(lambda *_: None)
    return net


def averaging() -> nn.Module:
    net = layers()
    net[1].momentum = net[4].momentum = None
    return fuse(net)


def converted() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(fuse(layers()))


KINDS = {
    "fused": lambda: fuse(layers()),
    "plain": layers,
    "watched": watched,
    "averaging": averaging,
    "converted": converted,
}


def batch() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 + 1


def numbers(net: nn.Module, x: Tensor, groups: int) -> dict[str, Tensor]:
    """Output, gradients and buffers after two passes."""
    x = x.requires_grad_()
    with stat_groups(net, groups) if groups > 1 else nullcontext():
        net(x * 0.5)
        output = net(x)
    (output.square() * torch.arange(1, 6)).sum().backward()
    found = {"output": output.detach(), "input": x.grad}
    found |= {f"grad of {name}": p.grad for name, p in net.named_parameters()}
    return found | {name: b.clone() for name, b in net.named_buffers()}


def _numbers(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, make in KINDS.items():
        net = make()
        outside = nullcontext() if kind == "converted" else synchronised_statistics(net)
        with outside:
            found[kind] = numbers(net, batch()[SHARES[rank]], 1)
    net = fuse(layers())
    with synchronised_statistics(net):
        found["groups"] = numbers(net, batch()[[0, 3] if rank == 0 else [1, 2, 4, 5]], 2)
    found["uses"] = uses(rank)
    return found


def uses(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    net = converted()
    found["explain"] = explain(net), explain(net.eval())
    net.train()
    with synchronised_statistics(net), batch_norm_mode(net, "batch"):
        inside = net(batch()[:3])
    if rank == 0:  # alone: nobody answers
        with batch_norm_mode(net, "batch"):
            assert torch.equal(net(batch()[:3]), inside)
        plain = unfuse(net)
        with batch_norm_mode(plain, "batch"):
            torch.testing.assert_close(plain(batch()[:3]), inside)
        net.eval()(batch())
    torch.testing.assert_close(inside, layers()(batch()[:3]))
    found["two passes"] = two_passes(rank)
    return found


def two_passes(rank: int) -> list[Tensor]:
    """DistributedDataParallel over a discriminator that sees real and fake images before it goes backward."""
    torch.manual_seed(2)
    _, discriminator = models.build("pytorch", image_size=16, ndf=4)
    twin = copy.deepcopy(discriminator)
    images = torch.randn(2, 8, 3, 16, 16)
    share = slice(4 * rank, 4 * rank + 4)
    wrapped = DistributedDataParallel(discriminator)
    with synchronised_statistics(wrapped):  # DDP itself takes a SyncBatchNorm on GPUs alone
        real, fake = (wrapped(part[share]) for part in images)
    (real.mean() - fake.square().mean()).backward()
    with synchronised_statistics(twin, None):
        real, fake = (twin(part[share]) for part in images)
    (real.mean() - fake.square().mean()).backward()
    for weight in twin.parameters():
        dist.all_reduce(weight.grad)
    pairs = zip(discriminator.parameters(), twin.parameters(), strict=True)
    for ours, other in pairs:
        torch.testing.assert_close(ours.grad, other.grad / 2)
    single = models.build("pytorch", image_size=16, ndf=4)[1]
    single.load_state_dict(
        {k: v for k, v in discriminator.state_dict().items() if "running" not in k}, strict=False
    )
    real, fake = (single(part) for part in images)
    (real.mean() - fake.square().mean()).backward()
    for ours, other in zip(discriminator.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-4, atol=1e-6)
    return [p.grad for p in discriminator.parameters()]


def assert_joined(name: str, parts: list[dict[str, Tensor]], whole: dict[str, Tensor]) -> None:
    for key, expected in whole.items():
        found = [part[key] for part in parts]
        if key in ("output", "input"):
            found = [torch.cat(found)]
        elif key.startswith("grad of"):
            found = [sum(found)]
        for one in found:
            torch.testing.assert_close(
                one, expected, rtol=1e-8, atol=1e-8, msg=lambda m, k=key: f"{name} {k}: {m}"
            )


def test_batch_norms_join_their_batches(tmp_path):
    parts = run_together(_numbers, 2, tmp_path / "run")
    for kind in KINDS:
        net = averaging() if kind == "averaging" else layers()
        assert_joined(kind, [part[kind] for part in parts], numbers(net, batch(), 1))
    # groups of (0, 1, 2) and (3, 4, 5), of which the first process has the first image
    whole = numbers(layers(), batch(), 2)
    for part, rows in zip((p["groups"] for p in parts), ([0, 3], [1, 2, 4, 5]), strict=True):
        torch.testing.assert_close(part["output"], whole["output"][rows])
        torch.testing.assert_close(part["1.running_var"], whole["1.running_var"])
        assert part["1.num_batches_tracked"] == 4
    first, second = (part["uses"] for part in parts)
    training, evaluation = first["explain"]
    assert training.count("statistics of 2 processes") == 3
    assert "dcgan_fast.conv_bn_act, statistics of 2 processes" in training
    assert "statistics of this process: evaluation" in evaluation
    for ours, other in zip(first["two passes"], second["two passes"], strict=True):
        assert torch.equal(ours, other)


def test_without_a_group_sync_batch_norm_is_an_ordinary_one():
    net = converted()
    assert isinstance(net, FusedSequential) and isinstance(net[1], nn.SyncBatchNorm)
    torch.testing.assert_close(net(batch()), layers()(batch()))
    assert "statistics of this process: there is no group of several" in explain(net)
    with (
        pytest.raises(ValueError, match="there are no processes to join"),
        synchronised_statistics(net),
    ):
        pass
