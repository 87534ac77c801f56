"""maxout_linear against float64 and PyTorch's own error, its manners as a PyTorch op, and the layer made of it."""

from __future__ import annotations

import pytest
import torch

from dcgan_fast import functional
from dcgan_fast.nn import MaxoutLinear


def test_it_is_the_largest_of_the_pieces():
    x, weight, bias = torch.randn(3, 4, 6), torch.randn(5, 2, 6), torch.randn(5, 2)
    pieces = torch.einsum("abi,opi->abop", x, weight)
    torch.testing.assert_close(functional.maxout_linear(x, weight), pieces.amax(-1))
    torch.testing.assert_close(functional.maxout_linear(x, weight, bias), (pieces + bias).amax(-1))


def test_the_first_of_equal_pieces_has_the_gradient():
    x, weight = torch.randn(3, 4), torch.randn(2, 1, 4).repeat(1, 3, 1).requires_grad_()
    functional.maxout_linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad[:, 0], x.sum(0).expand(2, -1))
    assert weight.grad[:, 1:].count_nonzero() == 0


# ---------------------------------------------------------------- the layer


def test_the_layer_has_the_state_of_its_description():
    torch.manual_seed(0)
    layer = MaxoutLinear(400, 6, 3)
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {
        "weight": (6, 3, 400),
        "bias": (6, 3),
    }
    for parameter in layer.parameters():
        assert 0.03 < parameter.abs().max() <= 0.05  # 1 / sqrt(400)
    x = torch.randn(2, 400)
    assert torch.equal(layer(x), functional.maxout_linear(x, layer.weight, layer.bias))
    assert repr(layer) == "MaxoutLinear(in_features=400, out_features=6, pieces=3, bias=True)"


def test_the_layer_does_without_a_bias():
    layer = MaxoutLinear(4, 6, 3, bias=False, dtype=torch.float64)
    assert list(layer.state_dict()) == ["weight"]
    assert layer(torch.randn(2, 4).double()).dtype == torch.float64


@pytest.mark.parametrize(
    "sizes, words",
    [
        ((0, 1, 1), "'in_features' must be at least 1, got 0"),
        ((1, 0, 1), "'out_features' must be at least 1, got 0"),
        ((1, 1, 0), "'pieces' must be 1 to 256, got 0"),
        ((1, 1, 257), "'pieces' must be 1 to 256, got 257"),
    ],
)
def test_the_layer_refuses_sizes_out_of_range(sizes, words):
    with pytest.raises(ValueError, match=words):
        MaxoutLinear(*sizes)
