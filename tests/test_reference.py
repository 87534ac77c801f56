"""The reference against torch.nn modules, and synchronised statistics over processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from dcgan_fast import functional, reference

ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.2),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "none": nn.Identity(),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("transposed", [False, True])
def test_reference_is_the_three_modules(transposed, activation):
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(3, 5, 4, 2, 1, bias=False)
    bn, act = nn.BatchNorm2d(5), ACTIVATIONS[activation]
    x = torch.randn(4, 3, 8, 8)
    mean, var = torch.zeros(5), torch.ones(5)
    op = reference.conv_transpose_bn_act if transposed else reference.conv_bn_act
    y = op(
        x,
        conv.weight,
        bn.weight,
        bn.bias,
        mean,
        var,
        stride=2,
        padding=1,
        activation=activation,
        training=True,
    )
    torch.testing.assert_close(y, act(bn(conv(x))))
    torch.testing.assert_close([mean, var], [bn.running_mean, bn.running_var])
    op = reference.conv_transpose_act if transposed else reference.conv_act
    y = op(x, conv.weight, stride=2, padding=1, activation=activation)
    torch.testing.assert_close(y, act(conv(x)))


def test_reference_names_wrong_arguments():
    with pytest.raises(ValueError, match="'activation' must be .* got 'gelu'"):
        reference.conv_act(torch.randn(1, 3, 8, 8), torch.randn(3, 3, 1, 1), activation="gelu")
    with pytest.raises(ValueError, match="'stat_groups' must divide the batch of 3, got 2"):
        reference.bn_act(
            torch.randn(3, 2, 2, 2), *torch.ones(2, 2), None, None, training=True, stat_groups=2
        )


def _joined_batch(rank: int, world: int, store: str, results: mp.Queue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(0)
    x, grad = torch.randn(2 * world, 3, 4, 4), torch.randn(2 * world, 5, 4, 4)
    weight, bn = torch.randn(5, 3, 3, 3), torch.randn(2, 5)
    mine = slice(2 * rank, 2 * rank + 2)
    leaves = [t.clone().requires_grad_() for t in (x[mine], weight, *bn)]
    running = [torch.zeros(5), torch.ones(5)]
    y = functional.conv_bn_act(
        *leaves, *running, padding=1, training=True, process_group=dist.group.WORLD
    )
    y.backward(grad[mine])
    for leaf in leaves[1:]:  # parameters' gradients are summed over processes, as DDP does
        dist.all_reduce(leaf.grad)
    out = [y.detach(), *(leaf.grad for leaf in leaves), *running]
    results.put((rank, [t.tolist() for t in out]))
    dist.destroy_process_group()


def test_process_group_equals_one_process_on_the_joined_batch(tmp_path):
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_joined_batch, args=(rank, 2, str(tmp_path / "store"), results))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    parts = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    torch.manual_seed(0)
    x, grad = torch.randn(4, 3, 4, 4), torch.randn(4, 5, 4, 4)
    leaves = [t.clone().requires_grad_() for t in (x, torch.randn(5, 3, 3, 3), *torch.randn(2, 5))]
    running = [torch.zeros(5), torch.ones(5)]
    y = functional.conv_bn_act(*leaves, *running, padding=1, training=True)
    y.backward(grad)
    for rank, values in parts.items():
        mine = slice(2 * rank, 2 * rank + 2)
        expected = [
            y.detach()[mine],
            leaves[0].grad[mine],
            *(leaf.grad for leaf in leaves[1:]),
            *running,
        ]
        for ours, other in zip(values, expected, strict=True):
            torch.testing.assert_close(torch.tensor(ours), other, rtol=1e-4, atol=1e-4)
