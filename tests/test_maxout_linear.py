"""maxout_linear against float64 and PyTorch's own error, its manners as a PyTorch op, and the layer made of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from accuracy import assert_as_accurate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from dcgan_fast import functional, reference
from dcgan_fast.nn import MaxoutLinear

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# of the papers' networks: rows, in, out, pieces
LAYERS = [(100, 784, 240, 5), (100, 10, 50, 5), (100, 290, 240, 4), (32, 1700, 1000, 3)]


def make(rows, n_in, out, pieces, dtype=torch.float32, bias=True) -> list[Tensor]:
    """Input, weight and bias of a layer."""
    bound = n_in**-0.5
    tensors = [torch.randn(rows, n_in), torch.empty(out, pieces, n_in).uniform_(-bound, bound)]
    if bias:
        tensors.append(torch.empty(out, pieces).uniform_(-bound, bound))
    return [t.to(dtype) for t in tensors]


def decided(tensors: list[Tensor]) -> Tensor:
    """Of each output: does its winner lead by more than rounding can undo?"""
    x, weight, *bias = (t.double() for t in tensors)
    pieces = torch.einsum("...i,opi->...op", x, weight) + (bias[0] if bias else 0)
    if pieces.size(-1) == 1:
        return torch.ones(pieces.shape[:-1], dtype=torch.bool)
    first, second = pieces.topk(2).values.unbind(-1)
    return first - second > 32 * torch.finfo(tensors[0].dtype).eps * pieces.abs().amax(-1)


def run(module, tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
    """[output, gradients] of one call of ``module.maxout_linear``."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = module.maxout_linear(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def compare(tensors: list[Tensor], floor: float = 2.0) -> None:
    """The gradient is taken of those outputs only whose winner is beyond doubt."""
    clear = decided(tensors)
    grad = (torch.randn(clear.shape) * clear).to(tensors[0].dtype)
    exact = run(reference, [t.double() for t in tensors], grad)
    theirs, ours = (run(module, tensors, grad) for module in (reference, functional))
    assert all(t.is_contiguous() for t in ours)
    assert_as_accurate(ours, theirs, exact, floor=floor)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_agrees_on_the_papers_layers(layer, dtype):
    compare(make(*layer, dtype))


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 257, 2100])
def test_it_agrees_on_any_batch(rows):
    compare(make(rows, 67, 45, 3))


@pytest.mark.parametrize("pieces", [1, 2, 7, 119, 121, 256])
def test_it_agrees_on_any_number_of_pieces(pieces):
    compare(make(21, 33, 4, pieces))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("units", [1, 5])
def test_it_agrees_where_units_of_many_pieces_are_fewer_than_all_shares(units, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        compare(make(21, 33, units, 68))  # a unit a share, and no share without one
    finally:
        torch.set_num_threads(before)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 140),
    n_in=st.integers(1, 150),
    out=st.integers(1, 70),
    pieces=st.integers(1, 9),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
def test_it_agrees_on_any_shape(rows, n_in, out, pieces, bias, dtype, seed):
    torch.manual_seed(seed)
    compare(make(rows, n_in, out, pieces, dtype, bias), floor=64)


def test_it_serves_float64():
    tensors = make(7, 20, 6, 3, torch.float64)
    grad = torch.randn(7, 6).double()
    ours, exact = (run(m, tensors, grad) for m in (functional, reference))
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("shape", [(0, 6, 4, 3), (5, 0, 4, 3), (5, 6, 0, 3)])
def test_it_takes_what_is_empty(shape, dtype):
    tensors = [
        t.to(dtype)
        for t in (torch.randn(shape[0], shape[1]), torch.randn(shape[2], shape[3], shape[1]))
    ]
    tensors.append(torch.randn(shape[2], shape[3]).to(dtype))
    grad = torch.randn(shape[0], shape[2])
    ours, theirs = (run(m, tensors, grad) for m in (functional, reference))
    torch.testing.assert_close(ours, theirs)


def test_it_takes_any_number_of_dimensions_and_any_strides():
    x = torch.randn(6, 2, 40, 3).permute(3, 1, 0, 2)[..., ::2]
    weight, bias = torch.randn(20, 8, 4).transpose(0, 1).transpose(1, 2), torch.randn(4, 8).t()
    grad = torch.randn(1, 2, 1, 8).expand(3, 2, 6, 8)
    ours, theirs = (run(m, [x, weight, bias], grad) for m in (functional, reference))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    one = functional.maxout_linear(x[0, 0, 0], weight, bias)
    torch.testing.assert_close(one, ours[0][0, 0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", range(3))
def test_a_nan_wins_as_it_does_in_pytorch(where):
    tensors = make(70, 20, 6, 3)
    tensors[where].view(-1)[5] = torch.nan
    grad = torch.ones(70, 6)
    ours, theirs = (run(m, tensors, grad)[0] for m in (functional, reference))
    assert ours.isnan().any() and not ours.isnan().all()
    assert torch.equal(ours.isnan(), theirs.isnan())


def test_an_infinity_is_a_number():
    infinite = functional.maxout_linear(
        torch.full((1, 1), torch.inf), torch.tensor([[[1.0], [2.0]], [[-1.0], [-2.0]]])
    )
    assert infinite.tolist() == [[torch.inf, -torch.inf]]


def test_it_does_not_depend_on_the_number_of_threads():
    tensors, grad = make(300, 333, 130, 5), torch.randn(300, 130)
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(run(functional, tensors, grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("frozen", range(3))
def test_only_wanted_gradients_are_computed(frozen):
    tensors = make(9, 20, 6, 3)
    leaves = [t.clone().requires_grad_(i != frozen) for i, t in enumerate(tensors)]
    functional.maxout_linear(*leaves).square().sum().backward()
    expected = [t.clone().requires_grad_() for t in tensors]
    reference.maxout_linear(*expected).square().sum().backward()
    for i, (leaf, other) in enumerate(zip(leaves, expected, strict=True)):
        if i == frozen:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_backward_keeps_the_winners_alone():
    tensors = [t.requires_grad_() for t in make(8, 20, 6, 3)]
    kept: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        functional.maxout_linear(*tensors)
    others = [t for t in kept if all(t.data_ptr() != own.data_ptr() for own in tensors)]
    assert [(t.dtype, tuple(t.shape)) for t in others] == [(torch.uint8, (8, 6))]


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


# ---------------------------------------------------------------- calculus


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_the_derivatives(bias):
    torch.manual_seed(0)
    tensors = [t.requires_grad_() for t in make(5, 4, 3, 2, torch.float64, bias)]
    assert gradcheck(functional.maxout_linear, tensors, check_batched_grad=False)
    assert gradgradcheck(functional.maxout_linear, tensors)


def test_a_gradient_penalty_agrees():
    tensors = [t.requires_grad_() for t in make(5, 14, 3, 2)]
    found = []
    for module in (functional, reference):
        y = module.maxout_linear(*tensors).tanh()
        (slope,) = torch.autograd.grad(y.sum(), tensors[0], create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), tensors))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- a PyTorch op


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias):
    tensors = [*make(5, 14, 3, 2, bias=bias), *([] if bias else [None])]
    for save in (True, False):
        torch.library.opcheck(torch.ops.dcgan_fast.maxout_linear_forward.default, (*tensors, save))
    y, winner = torch.ops.dcgan_fast.maxout_linear_forward(*tensors, True)
    for mask in ([True, True, bias], [False, True, False]):
        torch.library.opcheck(
            torch.ops.dcgan_fast.maxout_linear_backward.default, (y, *tensors[:2], winner, mask)
        )
    wanted = [t if t is None else t.requires_grad_() for t in tensors]
    torch.library.opcheck(torch.ops.dcgan_fast.maxout_linear.default, tuple(wanted))


def test_the_halves_refuse_to_be_differentiated():
    tensors = [t.requires_grad_() for t in make(5, 14, 3, 2)]
    y, _ = torch.ops.dcgan_fast.maxout_linear_forward(*tensors, True)
    with pytest.raises(RuntimeError, match="not implemented"):
        y.sum().backward()


def test_compile_fullgraph():
    layer = MaxoutLinear(14, 6, 3)
    compiled = torch.compile(lambda x: layer(x).square(), fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 14)
    compiled(x).sum().backward()
    found = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.testing.assert_close(found, [p.grad for p in layer.parameters()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_it_as_a_linear_layer(dtype):
    tensors = [t.requires_grad_() for t in make(30, 40, 16, 3)]
    with torch.autocast("cpu", dtype):
        y = functional.maxout_linear(*tensors)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), functional.maxout_linear(*tensors), rtol=0.05, atol=0.05)
    for gradient in torch.autograd.grad(y.float().sum(), tensors):
        assert gradient.dtype == torch.float32


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"input": torch.tensor(1.0)}, ValueError, r"maxout_linear\(\): 'input' must be \(..., in\), got a scalar"),
        ({"input": torch.randn(2, 5)}, ValueError, r"must be \(out, pieces, in\) with in = 5, got \[3, 2, 4\]"),
        ({"input": torch.ones(2, 4).int()}, TypeError, "'input' must be float32, .* got Int"),
        ({"weight": torch.randn(6, 4)}, ValueError, r"'weight' must be \(out, pieces, in\)"),
        ({"weight": torch.randn(3, 0, 4)}, ValueError, r"'weight' must have 1 to 256 pieces, got \[3, 0, 4\]"),
        ({"weight": torch.randn(3, 257, 4)}, ValueError, "'weight' must have 1 to 256 pieces"),
        ({"weight": torch.randn(3, 2, 4).double()}, TypeError, r"must have input's dtype \(Float\), got Double"),
        ({"weight": torch.randn(3, 2, 4, device="meta")}, ValueError, "'weight' must be on input's device"),
        ({"bias": torch.randn(6)}, ValueError, r"'bias' must be \(out, pieces\) = \[3, 2\], got \[6\]"),
        ({"bias": torch.randn(3, 2).double()}, TypeError, "'bias' must have input's dtype"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(changes, error, words):
    tensors = {
        "input": torch.randn(2, 4),
        "weight": torch.randn(3, 2, 4),
        "bias": torch.randn(3, 2),
    }
    with pytest.raises(error, match=words):
        functional.maxout_linear(**(tensors | changes))


@pytest.mark.parametrize("capability", ["default", pytest.param("avx2", marks=pytest.mark.slow)])
def test_the_kernels_of_lesser_machines_agree(capability):
    names = "agrees or nan or threads"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", names],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),  # not the source folder, whose package has no compiled half
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]


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
