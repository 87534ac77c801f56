"""Biases of patterns of rows and columns: against float64, and the op's manners as a PyTorch op."""

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

from dcgan_fast import build_info, functional, reference

ACTIVATIONS = ["relu", "leaky_relu", "tanh", "sigmoid", "none"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = [torch.contiguous_format, torch.channels_last]


def case(
    shape: tuple[int, ...],
    patterns: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    fmt: torch.memory_format = torch.contiguous_format,
) -> list[Tensor]:
    """input, bias, rows, columns; no value so near zero that rounding decides on which side of a kink it is."""
    n, c, h, w = shape
    rows, columns = torch.randint(patterns[0], (h,)), torch.randint(patterns[1], (w,))
    x = torch.randn(shape).to(dtype)
    bias = torch.randn(n, c, *patterns).to(dtype)
    z = x.double() + bias.double()[:, :, rows][..., columns]
    x = torch.where(z.abs() < 0.02, x + 0.5, x)
    return [x.to(memory_format=fmt), bias, rows, columns]


def run(module, x, bias, rows, columns, inplace=False, **options) -> list[Tensor]:
    """[output, gradients of input and bias] of one call of ``module.plane_bias_act``."""
    leaves = [t.detach().requires_grad_() for t in (x, bias)]
    start = leaves[0].mul(1) if inplace else leaves[0]  # what a leaf does not allow
    y = module.plane_bias_act(start, leaves[1], rows, columns, inplace=inplace, **options)
    if inplace and module is functional and options.get("negative_slope", 0) >= 0:
        assert y.data_ptr() == start.data_ptr()
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def compare(tensors: list[Tensor], floor: float = 2.0, **options) -> None:
    exact = run(
        reference, *(t.double() if t.is_floating_point() else t for t in tensors), **options
    )
    theirs, ours = run(reference, *tensors, **options), run(functional, *tensors, **options)
    layout = torch._prims_common.suggest_memory_format(tensors[0])
    assert ours[0].is_contiguous(memory_format=layout)
    assert_as_accurate(ours, theirs, exact, rounded=tensors[0].dtype, floor=floor)


@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fmt", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees(dtype, fmt, activation, inplace):
    for shape in ((3, 5, 6, 7), (2, 40, 9, 8), (2, 1, 14, 150)):  # short lines and long ones
        compare(case(shape, (3, 4), dtype, fmt), activation=activation, inplace=inplace)


@pytest.mark.parametrize("fmt", FORMATS, ids=["contiguous", "channels_last"])
def test_agrees_on_the_layers_of_a_dcgan(fmt):
    compare(case((128, 64, 14, 14), (3, 3), fmt=fmt), activation="leaky_relu")
    compare(case((64, 1, 28, 28), (5, 5), fmt=fmt), activation="sigmoid", inplace=True)
    compare(case((2, 3, 128, 128), (4, 4), fmt=fmt), activation="tanh", inplace=True)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20)),
    patterns=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    dtype=st.sampled_from(DTYPES),
    fmt=st.sampled_from(FORMATS),
    activation=st.sampled_from(ACTIVATIONS),
    inplace=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_agrees_on_any_shape(shape, patterns, dtype, fmt, activation, inplace, seed):
    torch.manual_seed(seed)
    tensors = case(shape, patterns, dtype, fmt)
    compare(tensors, floor=64, activation=activation, inplace=inplace)


@pytest.mark.parametrize("fmt", FORMATS, ids=["contiguous", "channels_last"])
def test_serves_float64(fmt):
    x, bias, rows, columns = case((3, 5, 9, 30), (3, 2), fmt=fmt)
    tensors = (x.double(), bias.double(), rows, columns)
    ours, exact = (run(m, *tensors, activation="sigmoid") for m in (functional, reference))
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("slope", [0.0, -0.5, 1.5])
@pytest.mark.parametrize("inplace", [False, True])
def test_takes_any_negative_slope(slope, inplace):
    options = {"activation": "leaky_relu", "negative_slope": slope, "inplace": inplace}
    compare(case((3, 5, 6, 7), (2, 3)), **options)


def test_takes_a_float32_bias_of_narrow_maps():
    x, bias, rows, columns = case((2, 33, 8, 8), (3, 3), torch.bfloat16)
    for fmt in FORMATS:
        given = [x.to(memory_format=fmt), bias.float(), rows, columns]
        y, of_input, of_bias = run(functional, *given, activation="tanh")
        exact = run(reference, *(t.double() for t in given[:2]), rows, columns, activation="tanh")
        assert (y.dtype, of_input.dtype, of_bias.dtype) == (torch.bfloat16,) * 2 + (torch.float32,)
        torch.testing.assert_close(y.double(), exact[0], rtol=0.01, atol=0.01)
        torch.testing.assert_close(of_bias.double(), exact[2], rtol=0.02, atol=0.05)


def test_takes_strided_input_and_expanded_gradients():
    x = torch.randn(4, 6, 5, 8)[:, ::2, :, 1::2].requires_grad_()
    bias, rows, columns = torch.randn(4, 3, 2, 2), torch.arange(5) % 2, torch.arange(4) % 2
    functional.plane_bias_act(x, bias, rows, columns, activation="tanh").sum().backward()
    z = x.detach().clone().requires_grad_()
    reference.plane_bias_act(z, bias, rows, columns, activation="tanh").sum().backward()
    torch.testing.assert_close(x.grad, z.grad)
    strided = x.detach()
    expected = reference.plane_bias_act(strided.clone(), bias, rows, columns, activation="relu")
    given = functional.plane_bias_act(strided, bias, rows, columns, activation="relu", inplace=True)
    assert given is strided or given.data_ptr() == strided.data_ptr()
    torch.testing.assert_close(strided, expected)


def test_keeps_nan_as_pytorch_does():
    x, bias, rows, columns = case((2, 33, 5, 5), (2, 2), fmt=torch.channels_last)
    x[1, 1, 2, 3] = float("nan")
    for activation in ACTIVATIONS:
        ours, theirs = (
            run(m, x, bias, rows, columns, activation=activation) for m in (functional, reference)
        )
        assert all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(ours, theirs, strict=True))


def test_does_not_depend_on_the_number_of_threads():
    tensors = case((64, 64, 14, 14), (3, 3), fmt=torch.channels_last)
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(run(functional, *tensors, activation="leaky_relu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---------------------------------------------------------------- calculus


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "sigmoid", "none"])
def test_gradients_are_the_derivatives(activation, inplace):
    x, bias, rows, columns = case((2, 3, 4, 5), (2, 3))
    leaves = [x.double().requires_grad_(), bias.double().requires_grad_()]

    def call(x, bias):
        x = x.mul(1) if inplace else x
        return functional.plane_bias_act(
            x, bias, rows, columns, activation=activation, inplace=inplace
        )

    assert gradcheck(call, leaves, check_batched_grad=False)
    assert gradgradcheck(call, leaves)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
@pytest.mark.parametrize("activation", ["relu", "none"])
def test_only_wanted_gradients_are_computed(activation, wanted):
    x, bias, rows, columns = case((3, 5, 6, 7), (2, 3))
    full = run(reference, x, bias, rows, columns, activation=activation)
    leaves = [t.clone().requires_grad_(want) for t, want in zip((x, bias), wanted, strict=True)]
    y = functional.plane_bias_act(*leaves, rows, columns, activation=activation)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64).float()
    y.backward(grad)
    for leaf, want, expected in zip(leaves, wanted, full[1:], strict=True):
        assert (leaf.grad is not None) == want
        if want:
            torch.testing.assert_close(leaf.grad, expected)


def test_without_an_activation_no_map_is_kept():
    x, bias, rows, columns = case((3, 5, 6, 7), (2, 3))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = functional.plane_bias_act(x.requires_grad_(), bias, rows, columns)
    assert all(t.numel() < 20 for t in kept)
    y.mul_(2).sum().backward()  # so it may be overwritten
    torch.testing.assert_close(x.grad, torch.full_like(x, 2))


def test_a_convolutions_output_may_be_overwritten():
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    x, bias = torch.randn(2, 3, 6, 6), torch.randn(2, 4, 1, 1)
    nowhere = torch.zeros(4, dtype=torch.int64)
    z = functional.conv_act(x, weight, activation="none")
    functional.plane_bias_act(
        z, bias, nowhere, nowhere, activation="tanh", inplace=True
    ).sum().backward()
    other = weight.detach().clone().requires_grad_()
    (torch.nn.functional.conv2d(x, other) + bias).tanh().sum().backward()
    torch.testing.assert_close(weight.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_the_callers_gradient_stays():
    x, bias, rows, columns = case((3, 5, 6, 7), (2, 3))
    y = functional.plane_bias_act(
        x.requires_grad_(), bias.requires_grad_(), rows, columns, activation="relu"
    )
    grad = torch.randn_like(y)
    kept = grad.clone()
    torch.autograd.grad(y, [x, bias], grad)
    assert torch.equal(grad, kept)


def test_a_leaf_is_not_overwritten():
    x, bias, rows, columns = case((3, 5, 6, 7), (2, 3))
    with pytest.raises(RuntimeError, match="leaf Variable"):
        functional.plane_bias_act(x.requires_grad_(), bias, rows, columns, inplace=True)


def test_writing_in_place_is_seen():
    x, bias, rows, columns = case((3, 5, 6, 7), (2, 3))
    before = x._version
    functional.plane_bias_act(x, bias, rows, columns, inplace=True)
    assert x._version > before
    a = torch.randn(3, 5, 6, 7, requires_grad=True)
    squared = a.exp()
    functional.plane_bias_act(squared, bias, rows, columns, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


def test_opcheck():
    x, bias, rows, columns = case((4, 5, 6, 7), (2, 3), fmt=torch.channels_last)
    ops, act = torch.ops.dcgan_fast, ("leaky_relu", 0.2)
    leaves = [x.requires_grad_(), bias.requires_grad_()]
    torch.library.opcheck(ops.plane_bias_act.default, (*leaves, rows, columns, *act))
    plain = [t.detach() for t in leaves]
    torch.library.opcheck(ops.plane_bias_act_forward.default, (*plain, rows, columns, *act))
    y = ops.plane_bias_act_forward(*plain, rows, columns, *act)
    grad = torch.randn_like(y)
    for mask in ([True, True], [False, True], [True, False]):
        arguments = (grad, y, rows, columns, 2, 3, *act, mask)
        torch.library.opcheck(ops.plane_bias_act_backward.default, arguments)


def test_compile_fullgraph():
    x, bias, rows, columns = case((4, 5, 6, 7), (2, 3), fmt=torch.channels_last)

    def step(x, bias):
        return functional.plane_bias_act(x.sin(), bias, rows, columns, activation="tanh").square()

    results = []
    for f in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (x, bias)]
        y = f(*leaves)
        y.sum().backward()
        results.append([y.detach(), *(t.grad for t in leaves)])
    torch.testing.assert_close(*results)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"input": torch.randn(3, 5, 6)}, ValueError, r"plane_bias_act\(\): 'input' must be \(N, C, H, W\), got"),
        ({"input": torch.ones(3, 5, 6, 7).int()}, TypeError, "'input' must be float32"),
        ({"bias": torch.randn(3, 4, 2, 3)}, ValueError, r"'bias' must be .* with \(N, C\) = \(3, 5\), got"),
        ({"bias": torch.randn(3, 5, 2)}, ValueError, "'bias' must be"),
        ({"bias": torch.randn(3, 5, 2, 3).double()}, TypeError, "'bias' must have input's dtype"),
        ({"rows": torch.zeros(7, dtype=torch.int64)}, ValueError, r"'rows' must be \(6,\), got \[7\]"),
        ({"rows": torch.zeros(6)}, TypeError, "'rows' must be int64, got Float"),
        ({"rows": torch.full((6,), 2)}, ValueError, "'rows' must be from 0 to 1, as 'bias' .* got 2"),
        ({"columns": torch.full((7,), -1)}, ValueError, "'columns' must be from 0 to 2, .* got -1"),
        ({"activation": "gelu"}, ValueError, "'activation' must be .* got 'gelu'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("inplace", [False, True])
def test_wrong_arguments_are_named(changes, error, words, inplace):
    arguments = {
        "input": torch.randn(3, 5, 6, 7),
        "bias": torch.randn(3, 5, 2, 3),
        "rows": torch.zeros(6, dtype=torch.int64),
        "columns": torch.zeros(7, dtype=torch.int64),
    }
    with pytest.raises(error, match=words):
        functional.plane_bias_act(**(arguments | changes), inplace=inplace)


# ---------------------------------------------------------------- other machines


def test_build_info_says_what_serves():
    info = build_info()
    serves = info["ops"]["plane_bias_act"]
    assert serves["cpu"] == "dcgan_fast"
    built = bool(info["cuda_architectures"])
    assert (
        serves["cuda"].startswith("dcgan_fast") == built and "PyTorch's own ops" in serves["cuda"]
    )


@pytest.mark.parametrize("capability", ["default", pytest.param("avx2", marks=pytest.mark.slow)])
def test_the_kernels_of_lesser_machines_agree(capability):
    """The variants for machines without AVX-512 pass the comparisons above, in a process of their own."""
    names = "test_agrees or float64 or nan"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", names]  # fmt: skip
    result = subprocess.run(
        command,
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),  # not the source folder, whose package has no compiled half
    )
    assert result.returncode == 0, result.stdout[-4000:]
