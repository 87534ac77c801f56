"""The fused ops against float64 and against PyTorch's own error, and their manners as PyTorch ops."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from accuracy import assert_as_accurate
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from dcgan_fast import functional, reference

ACTIVATIONS = ["relu", "leaky_relu", "tanh", "sigmoid", "none"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = [torch.contiguous_format, torch.channels_last]
CONV_OPS = ["conv_bn_act", "conv_transpose_bn_act", "conv_act", "conv_transpose_act"]


def params_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def run_bn_act(module, x, weight, bias, mean, var, grad, **options) -> list[Tensor]:
    """[output, three gradients, two running statistics] of one call of ``module.bn_act``."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    leaves[0] = x.detach().requires_grad_()  # keeps the strides
    running = [t.clone() for t in (mean, var)]
    y = module.bn_act(*leaves, *running, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype)), *running]


def away_from_the_kink(x: Tensor, weight, bias, mean, var, **options) -> Tensor:
    """``x`` with those values moved that end so near zero that rounding alone decides which side they are on."""
    options |= {"activation": "none"}
    for _ in range(4):
        z = reference.bn_act(
            *(t.double() for t in (x, weight, bias, mean.clone(), var.clone())), **options
        )
        x = torch.where(z.abs() < 1e-4, x + 0.05 * x.abs().amax().nan_to_num(0), x)
    return x


def compare_bn_act(x: Tensor, floor: float = 2.0, **options) -> None:
    c, narrow = x.size(1), params_dtype(x.dtype)
    weight, bias, mean = torch.randn(3, c, dtype=narrow, device=x.device)
    var = torch.rand(c, dtype=narrow, device=x.device) + 0.5
    if x.numel():
        x = away_from_the_kink(x, weight, bias, mean, var, **options)
    grad = torch.randn_like(x)
    tensors = (x, weight, bias, mean, var, grad)
    ours = run_bn_act(functional, *tensors, **options)
    theirs = run_bn_act(reference, *tensors, **options)
    exact = run_bn_act(reference, *(t.double() for t in tensors), **options)
    if (
        floor > 2
    ):  # of a random shape: not of a few values whose gradients all but cancel in their sum
        least = 0.01 * grad.double().norm()
        assume(not x.numel() or (exact[2].norm() > least and exact[3].norm() > least))
    assert ours[0].stride() == x.contiguous(memory_format=x_format(x)).stride()
    assert_as_accurate(ours, theirs, exact, floor=floor)


def x_format(x: Tensor) -> torch.memory_format:
    return torch._prims_common.suggest_memory_format(x)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fmt", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bn_act_agrees(dtype, fmt, activation, training):
    x = (2 * torch.randn(6, 37, 5, 7) + 1).to(dtype).to(memory_format=fmt)
    compare_bn_act(x, activation=activation, training=training)
    compare_bn_act(
        x, activation=activation, training=training, stat_groups=3, momentum=0.3, eps=1e-3
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fmt", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bn_act_agrees_on_cuda(dtype, fmt, activation, training):
    x = (2 * torch.randn(6, 40, 5, 7, device="cuda") + 1).to(dtype).to(memory_format=fmt)
    compare_bn_act(x, activation=activation, training=training, stat_groups=3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fmt", FORMATS, ids=["contiguous", "channels_last"])
def test_bn_act_serves_float64(fmt, activation):
    x, grad = (torch.randn(6, 37, 5, 7).double().to(memory_format=fmt) for _ in range(2))
    tensors = (x, *torch.rand(4, 37).double(), grad)
    ours, exact = (
        run_bn_act(m, *tensors, activation=activation, training=True)
        for m in (functional, reference)
    )
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(128, 512, 4, 4), (128, 64, 32, 32)])
@pytest.mark.parametrize("fmt", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bn_act_agrees_on_dcgan_layers(shape, fmt, dtype):
    compare_bn_act(
        torch.randn(shape).to(dtype).to(memory_format=fmt), activation="relu", training=True
    )


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("shape", [(150, 5000), (280, 4096 + 8), (130, 2100, 2, 1), (12, 16_384)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bn_act_agrees_on_wide_rows(dtype, shape, training):
    """Cut into panels of channels, the last one narrow, and each panel into chunks of its rows."""
    x = (3 * torch.randn(shape) + 1).to(dtype)
    x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
    compare_bn_act(x, activation="leaky_relu", training=training, stat_groups=2)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 5),
    c=st.integers(1, 70),
    spatial=st.lists(st.integers(1, 9), max_size=3),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(ACTIVATIONS),
    training=st.booleans(),
    groups=st.integers(1, 3),
    last=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_bn_act_agrees_on_any_shape(n, c, spatial, dtype, activation, training, groups, last, seed):
    torch.manual_seed(seed)
    x = torch.randn(n * groups, c, *spatial).to(dtype)
    if last and len(spatial) == 2:
        x = x.to(memory_format=torch.channels_last)
    values = n * torch.Size(spatial).numel()
    options = {"activation": activation, "training": training, "stat_groups": groups}
    if values == 1 and training:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            functional.bn_act(x, torch.ones(c), torch.zeros(c), None, None, **options)
    elif values == 2 and training and dtype != torch.float32:
        pass  # two 16-bit values are often equal: the gradient is rounding alone
    else:
        # Two values are normalised to +1 and -1 whatever they are: the gradient is eps / var of its terms.
        compare_bn_act(x, floor=64e5 if values == 2 and training else 64, **options)


def test_bn_act_keeps_its_digits_when_the_mean_is_large():
    x = (torch.randn(64, 40, 8, 8, dtype=torch.float64) + 1e4).float()
    for fmt in FORMATS:
        compare_bn_act(x.to(memory_format=fmt), activation="none", training=True)


def test_bn_act_counts_groups_as_separate_calls():
    x, w, b = torch.randn(8, 5, 3, 3), torch.randn(5), torch.randn(5)
    together, apart = ([torch.zeros(5), torch.ones(5)] for _ in range(2))
    joint = functional.bn_act(x, w, b, *together, training=True, stat_groups=2)
    parts = [functional.bn_act(part, w, b, *apart, training=True) for part in x.chunk(2)]
    torch.testing.assert_close(joint, torch.cat(parts), rtol=0, atol=0)
    torch.testing.assert_close(together, apart, rtol=0, atol=0)


@pytest.mark.parametrize("fmt", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_bn_act_spreads_nan_exactly_as_pytorch_does(fmt, poison):
    x = torch.randn(4, 3, 5, 5).to(memory_format=fmt)
    x[1, 1, 2, 3] = poison
    for activation, training in itertools.product(ACTIVATIONS, [True, False]):
        args = x, torch.ones(3), torch.zeros(3), torch.zeros(3), torch.ones(3)
        ours = functional.bn_act(*args, activation=activation, training=training)
        theirs = reference.bn_act(*args, activation=activation, training=training)
        assert torch.equal(ours.isnan(), theirs.isnan()), (activation, training)


def test_bn_act_takes_constant_maps_without_eps():
    args = torch.full((4, 2, 3, 3), 5.0), torch.ones(2), torch.full((2,), 0.5), None, None
    y = functional.bn_act(*args, training=True, eps=0.0)
    torch.testing.assert_close(y, torch.full_like(y, 0.5), rtol=0, atol=0)


def test_bn_act_takes_strided_input_and_expanded_gradients():
    x = torch.randn(4, 6, 5, 8)[:, ::2, :, 1::2].requires_grad_()
    y = functional.bn_act(x, torch.ones(3), torch.zeros(3), None, None, training=True)
    y.sum().backward()
    z = x.detach().clone().requires_grad_()
    reference.bn_act(z, torch.ones(3), torch.zeros(3), None, None, training=True).sum().backward()
    torch.testing.assert_close(x.grad, z.grad)


def test_bn_act_does_not_depend_on_the_number_of_threads():
    x = torch.randn(64, 96, 16, 16).to(memory_format=torch.channels_last)
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(
                run_bn_act(functional, x, *torch.ones(4, 96), torch.ones_like(x), training=True)
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bn_act_bumps_the_version_of_running_statistics():
    mean, var = torch.zeros(3), torch.ones(3)
    functional.bn_act(
        torch.randn(2, 3, 4, 4), torch.ones(3), torch.zeros(3), mean, var, training=True
    )
    assert mean._version > 0 and var._version > 0


# ---------------------------------------------------------------- convolutions


def conv_case(
    op: str,
    n=3,
    cin=5,
    cout=7,
    size=(6, 9),
    kernel=(4, 4),
    bias=True,
    dtype=torch.float32,
    fmt=None,
):
    """Positional tensors of ``op``: input, weight and its parameters."""
    shape = (cin, cout) if "transpose" in op else (cout, cin)
    tensors = [torch.randn(n, cin, *size), torch.randn(*shape, *kernel) / 5]
    tensors = [t.to(dtype).to(memory_format=fmt or torch.contiguous_format) for t in tensors]
    narrow = params_dtype(dtype)
    if "_bn_" in op:
        tensors += [torch.randn(cout, dtype=narrow) for _ in range(2)]
    elif bias:
        tensors += [torch.randn(cout, dtype=dtype)]
    return tensors


def run_conv(module, op: str, tensors: list[Tensor], **options) -> list[Tensor]:
    """[output, gradients, running statistics] of one call of ``module.op``."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    running = []
    if "_bn_" in op:
        running = [torch.zeros_like(tensors[2]), torch.ones_like(tensors[2])]
    y = getattr(module, op)(*leaves, *running, **options)
    generator = torch.Generator(y.device).manual_seed(1)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64, device=y.device).to(
        y.dtype
    )
    return [y.detach(), *torch.autograd.grad(y, leaves, grad), *running]


def compare_conv(op: str, tensors: list[Tensor], floor: float = 2.0, **options) -> None:
    exact = run_conv(reference, op, [t.double() for t in tensors], **options)
    theirs = run_conv(reference, op, tensors, **options)
    ours = run_conv(functional, op, tensors, **options)
    assert ours[0].is_contiguous(memory_format=x_format(theirs[0]))
    if (
        floor > 2 and "_bn_" in op
    ):  # of a random shape: not of gradients that all but cancel in their sum
        assume(exact[3].norm() > 0.01 * exact[0].norm())
    assert_as_accurate(ours, theirs, exact, rounded=tensors[0].dtype, floor=floor)


def conv_options(op: str, **options):
    return options | ({"training": True} if "_bn_" in op else {})


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fmt", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", CONV_OPS)
def test_convolutions_agree(op, dtype, fmt, activation):
    tensors = conv_case(op, dtype=dtype, fmt=fmt)
    compare_conv(op, tensors, **conv_options(op, activation=activation, stride=2, padding=1))


@settings(max_examples=40, deadline=None)
@given(
    op=st.sampled_from(CONV_OPS),
    n=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    output_padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    fmt=st.sampled_from(FORMATS),
    training=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_convolutions_agree_on_any_shape(
    op, n, channels, size, kernel, stride, padding, output_padding, fmt, training, bias, seed
):
    """In float32: ATen's 16-bit convolutions themselves return NaN on some of these shapes (torch 2.13)."""
    torch.manual_seed(seed)
    transposed = "transpose" in op
    options = {"stride": stride, "padding": padding, "activation": "tanh"}
    if transposed:
        options["output_padding"] = tuple(
            min(o, s - 1) for o, s in zip(output_padding, stride, strict=True)
        )
    statistics = []
    if "_bn_" in op:
        options["training"] = training
        statistics = [torch.zeros(channels[1]), torch.ones(channels[1])]
    tensors = conv_case(op, n, *channels, size, kernel, bias, fmt=fmt)
    try:
        y = getattr(reference, op)(*(t.double() for t in tensors + statistics), **options)
    except (RuntimeError, ValueError):  # PyTorch refuses this shape: so must we
        with pytest.raises(ValueError):
            getattr(functional, op)(*tensors, *statistics, **options)
        return
    if (
        "_bn_" in op
        and training
        and (y[:, 0].numel() <= 8 or channels[0] * kernel[0] * kernel[1] <= 4)
    ):
        return  # batch norm ignores the weight's scale: with so few values its gradient is rounding alone
    compare_conv(op, tensors, floor=1024, **options)


@pytest.mark.parametrize("op", CONV_OPS)
def test_convolutions_take_an_empty_batch(op):
    tensors = conv_case(op, n=0)
    compare_conv(op, tensors, **conv_options(op, stride=2, padding=1))


@pytest.mark.parametrize("slope", [0.0, -0.5, 1.5])
@pytest.mark.parametrize("op", CONV_OPS)
def test_convolutions_take_any_negative_slope(op, slope):
    compare_conv(
        op, conv_case(op), **conv_options(op, activation="leaky_relu", negative_slope=slope)
    )


@pytest.mark.parametrize("frozen", range(4))
@pytest.mark.parametrize("op", CONV_OPS)
def test_only_wanted_gradients_are_computed(op, frozen):
    tensors = conv_case(op)
    if frozen >= len(tensors):
        frozen = 0
    leaves = [t.clone().requires_grad_(i != frozen) for i, t in enumerate(tensors)]
    running = [None, None] if "_bn_" in op else []
    getattr(functional, op)(
        *leaves, *running, **conv_options(op, padding=1)
    ).square().sum().backward()
    expected = [t.clone().requires_grad_() for t in tensors]
    getattr(reference, op)(
        *expected, *running, **conv_options(op, padding=1)
    ).square().sum().backward()
    for i, (leaf, other) in enumerate(zip(leaves, expected, strict=True)):
        if i == frozen:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- calculus


def closures(op: str, training: bool):
    """A float64 call of ``op`` as a function of its differentiable tensors, and those tensors."""
    if op == "bn_act":
        tensors = [torch.randn(4, 3, 2, 3), torch.randn(3), torch.randn(3)]
        options = {"training": training, "stat_groups": 2, "activation": "leaky_relu"}
    else:
        tensors = conv_case(op, n=2, cin=2, cout=3, size=(3, 4), kernel=(3, 2), bias=training)
        options = {"stride": 2, "padding": 1, "activation": "tanh"}
        if "_bn_" in op:
            options["training"] = training
    tensors = [t.double().requires_grad_() for t in tensors]

    def call(*leaves):
        running = [torch.zeros(3).double(), torch.ones(3).double()] if "bn_" in op else []
        return getattr(functional, op)(*leaves, *running, **options)

    return call, tensors


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("op", ["bn_act", *CONV_OPS])
def test_gradients_are_the_derivatives(op, training):
    call, tensors = closures(op, training)
    assert gradcheck(call, tensors, check_batched_grad=False)
    assert gradgradcheck(call, tensors)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "none", "tanh"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("op", ["bn_act", "conv_bn_act", "conv_transpose_act"])
def test_second_derivatives_of_each_activation(op, training, activation, layout):
    """gradcheck of the first gradients, whose own backward is a kernel for activations of straight pieces."""
    if op == "bn_act":
        tensors = [torch.randn(4, 3, 2, 3), torch.randn(3), torch.randn(3)]
        options = {}
    else:
        tensors = conv_case(op, n=4, cin=2, cout=3, size=(3, 4), kernel=(3, 2), bias=True)
        options = {"stride": 2, "padding": 1}
    if "bn_" in op:
        options |= {"training": training, "stat_groups": 2}
    tensors[0] = tensors[0].contiguous(memory_format=layout)
    tensors = [t.double().requires_grad_() for t in tensors]

    def call(*leaves):
        running = [torch.zeros(3).double(), torch.ones(3).double()] if "bn_" in op else []
        return getattr(functional, op)(*leaves, *running, activation=activation, **options)

    assert gradgradcheck(call, tensors)


def penalty_grads(op, module, tensors, options, dtype):
    """Gradients of all arguments of a loss of the output and of the first gradients of all of them."""
    leaves = [t.to(dtype).requires_grad_() for t in tensors]
    channels = leaves[1].size(1 if "transpose" in op else 0) if op != "bn_act" else len(leaves[1])
    running = [torch.zeros(channels).to(dtype), torch.ones(channels).to(dtype)]
    y = getattr(module, op)(*leaves, *(running if "bn_" in op else []), **options)
    target = torch.linspace(-1, 1, y.numel()).to(dtype).reshape(y.shape)
    firsts = torch.autograd.grad((y * target).sum(), leaves, create_graph=True)
    weights = [torch.linspace(1, 2, g.numel()).to(dtype).reshape(g.shape) for g in firsts]
    penalty = sum((g.square() * w).sum() for g, w in zip(firsts, weights, strict=True))
    return torch.autograd.grad(penalty + y.square().sum(), leaves)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "none"])
@pytest.mark.parametrize("op", ["bn_act", *CONV_OPS])
def test_a_penalty_on_first_gradients_is_as_accurate_as_pytorchs(op, activation, layout):
    torch.manual_seed(0)
    if op == "bn_act":  # channels of more than one vector and a rest, rows of more than one block
        tensors = [torch.randn(6, 37, 5, 7) * 2 + 1, torch.randn(37) + 1, torch.randn(37)]
        options = {"training": True, "stat_groups": 2}
    else:
        tensors, options = conv_case(op, cin=8, cout=7), conv_options(op)
    options |= {"activation": activation}
    tensors[0] = tensors[0].contiguous(memory_format=layout)
    exact = penalty_grads(op, reference, tensors, options, torch.float64)
    theirs = penalty_grads(op, reference, tensors, options, torch.float32)
    ours = penalty_grads(op, functional, tensors, options, torch.float32)
    for mine, their, true in zip(ours, theirs, exact, strict=True):
        scale = true.abs().max()
        allowed = 2 * (their - true).abs().max() + 1e-6 * scale
        assert (mine - true).abs().max() <= allowed


def test_a_gradient_of_a_gradient_goes_on():
    """Third derivatives, by way of the nodes and of the reference's batch norm."""
    call, tensors = closures("conv_bn_act", True)

    def slope(*leaves):
        (first,) = torch.autograd.grad(call(*leaves).square().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaves[1], create_graph=True)[0]

    assert gradcheck(slope, tensors, atol=1e-4, check_batched_grad=False)


@pytest.mark.parametrize("create_graph", [False, True])
def test_arguments_that_depend_on_each_other_keep_their_own_gradients(create_graph):
    x = torch.randn(4, 3, 6, 6).double().requires_grad_()

    def loss(module, x):
        gain = x.mean((0, 2, 3)).exp()
        weight = x[:3, :, :3, :3].sin()
        y = module.bn_act(x, gain, gain, None, None, training=True, activation="tanh")
        y = module.conv_bn_act(y, weight, gain, gain, None, None, training=True, activation="tanh")
        return module.conv_act(y, weight, gain, activation="sigmoid").square().sum()

    ours, theirs = (
        torch.autograd.grad(loss(m, x), x, create_graph=create_graph)[0]
        for m in (functional, reference)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("op", CONV_OPS)
def test_gradient_penalty_under_autocast(op):
    tensors = [t.requires_grad_() for t in conv_case(op)]
    grads = []
    for module in (functional, reference):
        running = [torch.zeros(7), torch.ones(7)] if "_bn_" in op else []
        with torch.autocast(tensors[0].device.type, torch.bfloat16):
            y = getattr(module, op)(*tensors, *running, **conv_options(op, activation="tanh"))
        (g,) = torch.autograd.grad(y.float().sum(), tensors[0], create_graph=True)
        grads.append(torch.autograd.grad(g.square().sum(), tensors[1])[0])
    scale = grads[1].abs().max().item()
    torch.testing.assert_close(*grads, rtol=0.1, atol=0.1 * scale)


def test_a_result_without_activation_may_be_overwritten():
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    functional.conv_act(x, weight, activation="none").mul_(2).sum().backward()
    expected = torch.ones_like(functional.conv_act(x, weight)) * 2
    torch.testing.assert_close(
        weight.grad, torch.nn.grad.conv2d_weight(x, weight.shape, expected), rtol=1e-4, atol=1e-4
    )


def test_one_number_in_a_tuple_serves_both_axes():
    tensors = conv_case("conv_act")
    torch.testing.assert_close(
        functional.conv_act(*tensors, stride=(2,), padding=(1,)),
        functional.conv_act(*tensors, stride=2, padding=1),
    )


def opcheck_cases():
    def p(*shape):
        return torch.randn(*shape, requires_grad=True)

    for training, transposed in itertools.product([True, False], [True, False]):
        running = torch.zeros(5), torch.ones(5)
        bn = p(5), p(5), *running
        attributes = "leaky_relu", 0.2, training, 0.1, 1e-5, 2
        weight = p(3, 5, 4, 4) if transposed else p(5, 3, 4, 4)
        conv = ([2, 2], [1, 1], *([[1, 1]] if transposed else []))
        prefix = "conv_transpose" if transposed else "conv"
        yield f"{prefix}_bn_act", (p(4, 3, 6, 6), weight, *bn, *conv, *attributes)
        yield (
            f"{prefix}_act",
            (p(4, 3, 6, 6), weight, p(5) if training else None, *conv, "tanh", 0.0),
        )
        yield "bn_act", (p(4, 5, 3, 3), *bn, *attributes)
        plain = [t.detach() if isinstance(t, Tensor) else t for t in bn]
        either = ([2, 2], [1, 1], [int(transposed)] * 2, transposed)
        yield (
            "conv_bn_act_forward",
            (torch.randn(4, 3, 6, 6), weight.detach(), *plain, *either, *attributes, training),
        )
        yield "bn_act_forward", (torch.randn(4, 5, 3, 3), *plain, *attributes)


@pytest.mark.parametrize("op, args", list(opcheck_cases()))
def test_opcheck(op, args):
    torch.library.opcheck(getattr(torch.ops.dcgan_fast, op).default, args)


def test_opcheck_of_the_backward_halves():
    torch.library.opcheck(
        torch.ops.dcgan_fast.bn_act_backward.default,
        (
            torch.randn(4, 5, 3, 3),
            torch.randn(4, 5, 3, 3),
            *torch.randn(2, 5),
            *torch.rand(2, 2, 5),
            "relu",
            0.2,
            True,
            2,
            [True, False, True],
        ),  # fmt: skip
    )
    for transposed in (False, True):
        x, weight = torch.randn(4, 3, 6, 6), torch.randn(*((3, 5) if transposed else (5, 3)), 4, 4)
        either = ([2, 2], [1, 1], [0, 0], transposed)
        y, conv_output, mean, rstd = torch.ops.dcgan_fast.conv_bn_act_forward(
            x,
            weight,
            torch.ones(5),
            torch.zeros(5),
            None,
            None,
            *either,
            "relu",
            0.2,
            True,
            0.1,
            1e-5,
            2,
            True,
        )
        torch.library.opcheck(
            torch.ops.dcgan_fast.conv_bn_act_backward.default,
            (
                torch.randn_like(y),
                x,
                weight,
                conv_output,
                torch.ones(5),
                torch.zeros(5),
                mean,
                rstd,
                *either,
                "relu",
                0.2,
                True,
                2,
                [True, True, True, False],
            ),  # fmt: skip
        )
        torch.library.opcheck(
            torch.ops.dcgan_fast.conv_act_backward.default,
            (torch.randn_like(y), x, weight, y, *either, "relu", 0.2, [True, True, True]),
        )


def test_the_halves_refuse_to_be_differentiated():
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    y, _, _ = torch.ops.dcgan_fast.bn_act_forward(
        x, *torch.ones(2, 3), None, None, "relu", 0.2, True, 0.1, 1e-5, 1
    )
    with pytest.raises(RuntimeError, match="not implemented"):
        y.sum().backward()


# ------------------------------------------------------------------------- gradients overwritten

READERS = {  # who else may read the gradient of an op's output, and what to call for it to be seen
    "nobody": lambda y, seen: None,
    "retain_grad": lambda y, seen: y.retain_grad(),
    "hook": lambda y, seen: y.register_hook(seen.append),
    "hook of the node": lambda y, seen: y.grad_fn.register_hook(
        lambda _, given: seen.append(given[0])
    ),
}


def bn_options(op: str) -> dict[str, object]:
    statistics = {"running_mean": None, "running_var": None, "training": True}
    return statistics if "_bn_" in op else {}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("activation", ["leaky_relu", "none"])
@pytest.mark.parametrize("op", CONV_OPS)
def test_a_gradient_is_overwritten_only_where_nobody_reads_it(op, activation, reader):
    tensors = conv_case(op, size=(16, 16))
    target = torch.randn(3, 7, *((32, 32) if "transpose" in op else (8, 8)))

    def gradients(module) -> tuple[list[Tensor], Tensor, set[str]]:
        """Of the leaves; that of the op's output as its reader finds it; the ops that ran."""
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = getattr(module, op)(
            *leaves, stride=2, padding=1, activation=activation, **bn_options(op)
        )
        seen: list[Tensor] = []
        READERS[reader](y, seen)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            (y * target).sum().backward()  # the product's gradient belongs to the op alone
        (of_output,) = [y.grad] if reader == "retain_grad" else seen or [target]
        return [leaf.grad for leaf in leaves], of_output, {event.name for event in profile.events()}

    found, of_output, ops = gradients(functional)
    expected, of_reference, _ = gradients(reference)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(of_output, of_reference)
    backward = f"dcgan_fast::conv_{'bn_' * ('_bn_' in op)}act_backward"
    overwrites = reader in ("nobody", "retain_grad")  # which keeps a clone
    assert {backward, backward + "_"} & ops == {backward + "_" if overwrites else backward}


@pytest.mark.parametrize("op", CONV_OPS)
def test_a_gradient_that_two_ops_share_is_not_overwritten(op):
    tensors = conv_case(op, size=(16, 16))

    def gradients(module) -> list[Tensor]:
        pairs = [[t.detach().requires_grad_() for t in tensors] for _ in range(2)]
        a, b = (
            getattr(module, op)(*leaves, stride=2, padding=1, activation="relu", **bn_options(op))
            for leaves in pairs
        )
        ((a + b) * torch.linspace(-1, 1, a.numel()).view_as(a)).sum().backward()
        return [leaf.grad for leaves in pairs for leaf in leaves]

    torch.testing.assert_close(gradients(functional), gradients(reference), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", ["conv_act", "conv_transpose_act"])  # whose forward writes nothing
def test_functional_tensors_take_the_op_that_overwrites_nothing(op):
    leaves = [t.requires_grad_() for t in conv_case(op)]
    options = {"activation": "relu", **bn_options(op)}

    def gradients(tensors: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            (getattr(functional, op)(*tensors, **options) ** 2).sum(), tensors
        )

    expected = gradients(leaves)
    torch._enable_functionalization(reapply_views=False)
    try:
        wrapped = [torch._to_functional_tensor(t.detach()).requires_grad_() for t in leaves]
        found = [torch._from_functional_tensor(g) for g in gradients(wrapped)]
    finally:
        torch._disable_functionalization()
    torch.testing.assert_close(found, list(expected))


@pytest.mark.parametrize("op", CONV_OPS)
def test_the_callers_gradient_stays(op):
    leaves = [t.requires_grad_() for t in conv_case(op)]
    y = getattr(functional, op)(*leaves, activation="relu", **bn_options(op))
    grad = torch.randn_like(y)
    kept = grad.clone()
    torch.autograd.grad(y, leaves, grad)
    assert torch.equal(grad, kept)


# --------------------------------------------------------------------------------------- compile


@pytest.mark.parametrize("op", ["bn_act", *CONV_OPS])
def test_compile_fullgraph(op):
    tensors = (
        [torch.randn(4, 3, 5, 5), torch.ones(3), torch.zeros(3)]
        if op == "bn_act"
        else conv_case(op)
    )
    channels = tensors[1].size(0) if op == "bn_act" else 7

    def step(running, *leaves):
        options = (
            {}
            if op.startswith("conv_act") or op.startswith("conv_transpose_act")
            else {"training": True}
        )
        return getattr(functional, op)(*leaves, *running, **options).square()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for f in (step, compiled):
        leaves = [t.clone().requires_grad_() for t in tensors]
        running = [torch.zeros(channels), torch.ones(channels)] if "bn_" in op else []
        y = f(running, *leaves)
        y.sum().backward()
        results.append([y.detach(), *(t.grad for t in leaves), *running])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(eager, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", CONV_OPS)
def test_autocast_lowers_the_convolution_alone(op, dtype):
    tensors = [t.requires_grad_() for t in conv_case(op)]
    running = [torch.zeros(7), torch.ones(7)] if "_bn_" in op else []
    expected = [t.detach().clone().requires_grad_() for t in tensors]
    other = [t.clone() for t in running]
    with torch.autocast(tensors[0].device.type, dtype):
        y = getattr(functional, op)(*tensors, *running, **conv_options(op))
        z = getattr(reference, op)(*expected, *other, **conv_options(op))
    assert y.dtype == z.dtype == dtype
    y.float().square().sum().backward()
    z.float().square().sum().backward()
    tolerance = {"rtol": 0.05, "atol": 0.05 * z.abs().max().item()}
    torch.testing.assert_close(y, z, **tolerance)
    for ours, theirs in zip(tensors, expected, strict=True):
        assert ours.grad.dtype == torch.float32
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0.05, atol=0.05 * scale)


# ---------------------------------------------------------------- errors


def call(op: str = "conv_bn_act", **changes):
    arguments = {
        "input": torch.randn(2, 3, 8, 8),
        "weight": torch.randn(4, 3, 4, 4),
        "bn_weight": torch.ones(4),
        "bn_bias": torch.zeros(4),
        "running_mean": torch.zeros(4),
        "running_var": torch.ones(4),
        "training": True,
    }
    return getattr(functional, op)(**(arguments | changes))


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"input": torch.randn(3, 8, 8)}, ValueError, r"conv_bn_act\(\): 'input' must be \(N, C, H, W\), got"),
        ({"weight": torch.randn(4, 5, 4, 4)}, ValueError, r"'weight' must be \(out, in, kH, kW\) with in = 3, got"),
        ({"weight": torch.randn(4, 3, 4)}, ValueError, "'weight' must be"),
        ({"weight": torch.randn(4, 3, 4, 4).double()}, TypeError, "'weight' must have input's dtype"),
        ({"weight": torch.randn(4, 3, 4, 4, device="meta")}, ValueError, "must be on input's device"),
        ({"input": torch.randn(2, 3, 8, 8).to(torch.complex64)}, TypeError, "'input' must be float32"),
        ({"input": torch.ones(2, 3, 8, 8).int()}, TypeError, "'input' must be float32"),
        ({"bn_weight": torch.ones(5)}, ValueError, r"'bn_weight' must be \(channels,\) = \(4,\), got \[5\]"),
        ({"bn_bias": torch.zeros(4, 1)}, ValueError, "'bn_bias' must be"),
        ({"bn_bias": torch.zeros(4).double()}, TypeError, "'bn_bias' must have input's dtype"),
        ({"running_mean": torch.zeros(3)}, ValueError, "'running_mean' must be"),
        ({"running_mean": None}, ValueError, "must be given together"),
        ({"running_mean": None, "running_var": None, "training": False}, ValueError, "when training=False"),
        ({"eps": -1e-5}, ValueError, "'eps' must be at least 0, got -1e-05"),
        ({"stride": (1, 2, 3)}, ValueError, "'stride' must be one number or"),
        ({"padding": ()}, ValueError, "'padding' must be one number or"),
        ({"stat_groups": 0}, ValueError, "'stat_groups' must be at least 1, got 0"),
        ({"stat_groups": 3}, ValueError, "'stat_groups' must divide the batch of 2, got 3"),
        ({"activation": "gelu"}, ValueError, "'activation' must be .* got 'gelu'"),
        ({"stride": 0}, ValueError, "'stride' must be at least 1, got"),
        ({"padding": -1}, ValueError, r"'padding' must be from 0 to 2\^31, got"),
        ({"padding": (1 << 63) - 1}, ValueError, r"'padding' must be from 0 to 2\^31, got"),
        ({"input": torch.randn(2, 3, 3, 3)}, ValueError, "too small for a kernel of"),
        ({"input": torch.randn(1, 3, 4, 4)}, ValueError, "expected more than 1 value per channel"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(changes, error, words):
    with pytest.raises(error, match=words):
        call(**changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [(1 << 62, 3), ((1 << 63) - 1, 1), (3, 1 << 40)])
def test_strides_over_the_whole_map_meet_one_pixel(stride, dtype):
    short = tuple(min(each, 64) for each in stride)  # which is over all of it too
    maps, weight = torch.randn(2, 8, 4, 4, dtype=dtype), torch.randn(3, 8, 3, 3, dtype=dtype)
    results = []
    for each in (stride, short):
        leaves = [maps.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = functional.conv_act(*leaves, stride=each, padding=1)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_transposed_strides_have_an_end():
    with pytest.raises(
        ValueError,
        match=r"conv_transpose_bn_act\(\): 'stride' must be at least 1 and at most 2\^31",
    ):
        call("conv_transpose_bn_act", weight=torch.randn(3, 4, 4, 4), stride=(1 << 31) + 1)


def test_wrong_output_padding_is_named():
    with pytest.raises(ValueError, match=r"conv_transpose_bn_act\(\): 'output_padding' must be"):
        call("conv_transpose_bn_act", weight=torch.randn(3, 4, 4, 4), stride=2, output_padding=2)


# ---------------------------------------------------------------- other machines


def test_the_generic_kernels_agree():
    """The variant for machines without AVX2 passes the comparisons above, in a process of its own."""
    names = "test_bn_act_agrees or any_shape or large or nan"
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            __file__,
            "-k",
            names,
        ],
        env={
            **os.environ,
            "ATEN_CPU_CAPABILITY": "default",
        },
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),  # not the source folder, whose package has no compiled half
    )
    assert result.returncode == 0, result.stdout[-4000:]
    code = "import dcgan_fast; print(dcgan_fast.build_info()['cpu_capability'])"
    printed = subprocess.check_output(
        [sys.executable, "-c", code],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        text=True,
        cwd=os.path.dirname(__file__),
    )
    assert printed.strip() == "DEFAULT"
