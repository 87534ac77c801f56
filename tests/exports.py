"""What an exported network must be: PyTorch's own ops, of a batch of any size."""

from __future__ import annotations

import torch
from torch import nn


def assert_exports_with_any_batch(network: nn.Module, shape: tuple[int, ...]) -> None:
    """``network`` takes float inputs (N, *shape) and labels of three classes."""
    batch = torch.export.Dim("batch")
    network.eval()
    program = torch.export.export(
        network,
        (torch.rand(2, *shape), torch.tensor([2, 0])),
        dynamic_shapes=({0: batch}, {0: batch}),
    )
    assert "dcgan_fast" not in program.graph_module.code
    for n in (1, 7):
        inputs = torch.rand(n, *shape), torch.arange(n) % 3
        torch.testing.assert_close(program.module()(*inputs), network(*inputs))
