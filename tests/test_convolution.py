"""Every convolution engine that runs here, each forced in turn, on random shapes against float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcgan_fast import _C, functional

ENGINES = _C.convolution_engines()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (op, channels in and out, map, kernel, stride, padding): what the DCGANs are made of, at a small width
LAYERS = [
    ("conv_act", 3, 64, 16, 4, 2, 1),
    ("conv_act", 64, 96, 8, 4, 2, 1),
    ("conv_act", 40, 1, 4, 4, 1, 0),
    ("conv_act", 33, 35, 9, 5, 2, 2),
    ("conv_act", 16, 24, 7, 3, 1, 1),
    ("conv_act", 16, 24, 7, 3, 2, 1),
    # strides longer than the kernel: most pixels meet nothing
    ("conv_act", 5, 3, 17, 3, 7, 1),
    ("conv_transpose_act", 8, 5, 2, 2, 40, 0),
    # so many channels that Winograd's phases, here of different taps, are transformed one after another
    ("conv_act", 256, 136, 6, 3, 2, 1),
    ("conv_act", 200, 256, 5, 5, 2, 2),
    ("conv_transpose_act", 256, 136, 3, 5, 2, 2),
    ("conv_transpose_act", 100, 64, 1, 4, 1, 0),
    ("conv_transpose_act", 64, 40, 4, 4, 2, 1),
    ("conv_transpose_act", 64, 3, 8, 4, 2, 1),
    ("conv_transpose_act", 40, 24, 4, 5, 2, 2),
]


@pytest.fixture(params=ENGINES)
def engine(request) -> Iterator[str]:
    _C._force_engine(request.param)
    yield request.param
    _C._force_engine("")


def served(
    engine: str, op: str, x: Tensor, weight: Tensor, stride, padding, extra=(0, 0)
) -> list[bool]:
    """Whether ``engine`` runs the forward, the data gradient and the weight gradient."""
    names = torch.ops.dcgan_fast._convolution_engines(
        x, weight, stride, padding, extra, "transpose" in op
    )
    assert set(names) <= {engine, "ATen"}
    return [name == engine for name in names]


def both_ways(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor, **options
) -> list[Tensor]:
    """[output, gradients of input, weight and bias] of our op."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, *([] if bias is None else [bias]))]
    y = getattr(functional, op)(*leaves, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y))]


def in_dtype(
    dtype: torch.dtype, op: str, tensors: list[Tensor | None], rounded: torch.dtype, **options
) -> list[Tensor]:
    """The same by PyTorch in ``dtype``, rounded.

    For 16-bit tensors in float32: of odd shapes torch 2.13's own 16-bit convolutions make garbage.
    """
    x, weight, bias, grad = (None if t is None else t.to(dtype).contiguous() for t in tensors)
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    convolve = F.conv_transpose2d if "transpose" in op else F.conv2d
    y = convolve(*leaves, **options)
    return [t.to(rounded) for t in (y.detach(), *torch.autograd.grad(y, leaves, grad))]


def compare(
    engine: str, op: str, x: Tensor, weight: Tensor, bias: Tensor | None, floor: float, **options
) -> None:
    convolve = F.conv_transpose2d if "transpose" in op else F.conv2d
    grad = torch.randn(convolve(x.double(), weight.double(), **options).shape).to(x.dtype)
    ours = both_ways(op, x, weight, bias, grad, activation="none", **options)
    tensors = [x, weight, bias, grad]
    theirs = in_dtype(torch.float32, op, tensors, x.dtype, **options)
    exact = in_dtype(torch.float64, op, tensors, torch.float64, **options)
    assert_as_accurate(ours, theirs, exact, times=3 if engine == "winograd" else 2, floor=floor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layer", LAYERS, ids=lambda layer: f"{layer[0]}-{layer[1]}-{layer[2]}-k{layer[4]}s{layer[5]}"
)
def test_engines_agree_on_dcgan_layers(engine, layer, dtype):
    op, cin, cout, side, kernel, stride, padding = layer
    transposed = "transpose" in op
    x = torch.randn(5, cin, side, side).to(dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(*((cin, cout) if transposed else (cout, cin)), kernel, kernel).to(dtype)
    if not any(served(engine, op, x, weight, [stride] * 2, [padding] * 2)):
        pytest.skip("served by ATen")
    compare(engine, op, x, weight, None, 2, stride=stride, padding=padding)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    op=st.sampled_from(["conv_act", "conv_transpose_act"]),
    n=st.integers(1, 40),
    channels=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    last=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_engines_agree_on_any_shape(
    engine, op, n, channels, size, kernel, stride, padding, bias, dtype, last, seed
):
    torch.manual_seed(seed)
    transposed = "transpose" in op
    x = torch.randn(n, channels[0], *size).to(dtype)
    weight = torch.randn(*(channels if transposed else channels[::-1]), *kernel).to(dtype)
    if last:
        x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    options = {"stride": stride, "padding": padding}
    try:
        (F.conv_transpose2d if transposed else F.conv2d)(x.double(), weight.double(), **options)
    except RuntimeError:  # no such convolution
        return
    if dtype != torch.float32 and not all(served(engine, op, x, weight, stride, padding)):
        return  # ATen's 16-bit convolutions are not ours to test
    compare(
        engine, op, x, weight, torch.randn(channels[1]).to(dtype) if bias else None, 64, **options
    )


@pytest.mark.parametrize("size", [1e-22, 1e-9, 1e9, 1e25])
def test_engines_take_values_of_any_size(engine, size):
    """Those that split floats into halves scale them first: maps as they come, zeros, and a weight of another size."""
    x = (torch.randn(40, 16, 6, 6) * size).to(memory_format=torch.channels_last)
    x[:3] = 0
    weight = torch.randn(24, 16, 4, 4) * 1e-6
    if any(served(engine, "conv_act", x, weight, [2, 2], [1, 1])):
        compare(engine, "conv_act", x, weight, None, 2, stride=2, padding=1)


def test_a_small_image_keeps_its_digits_beside_large_ones(engine):
    """The images of a batch are scaled together, up to 2^17 apart without loss."""
    x = torch.randn(40, 16, 6, 6).to(memory_format=torch.channels_last)
    x[7] *= 2.0**-15
    weight = torch.randn(24, 16, 4, 4)
    if served(engine, "conv_act", x, weight, [2, 2], [1, 1])[0]:
        ours = functional.conv_act(x, weight, stride=2, padding=1, activation="none")
        theirs, exact = (
            F.conv2d(t, w, stride=2, padding=1)
            for t, w in ((x, weight), (x.double(), weight.double()))
        )
        times = 3 if engine == "winograd" else 2
        assert_as_accurate([ours[7]], [theirs[7]], [exact[7]], times=times)


def test_what_is_not_finite_stays_in_its_image(engine):
    x = torch.randn(3, 16, 6, 6).to(memory_format=torch.channels_last)
    x[0, 3, 2, 2], x[1, 3, 2, 2] = float("inf"), float("nan")
    weight = torch.randn(24, 16, 4, 4)
    if served(engine, "conv_act", x, weight, [2, 2], [1, 1])[0]:
        y = functional.conv_act(x, weight, stride=2, padding=1, activation="none")
        assert not y[0].isfinite().all() and not y[1].isfinite().all()
        torch.testing.assert_close(
            y[2], F.conv2d(x[2:], weight, stride=2, padding=1)[0], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("op", ["conv_bn_act", "conv_transpose_bn_act"])
def test_engines_gather_the_statistics_of_what_they_store(engine, op, groups, dtype):
    """mean and variance come out of the epilogue: those of a second look at the maps."""
    cin, cout = (16, 40) if op == "conv_bn_act" else (40, 24)
    x = (torch.randn(6, cin, 9, 7) + 1).to(dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(*((cout, cin) if op == "conv_bn_act" else (cin, cout)), 4, 4).to(dtype)
    half = torch.ops.dcgan_fast.conv_bn_act_forward(
        x, weight, torch.ones(cout), torch.zeros(cout), None, None, [2, 2], [1, 1], [0, 0],
        op == "conv_transpose_bn_act", "none", 0.0, True, 0.1, 1e-5, groups, True,
    )  # fmt: skip
    maps = half[1].double().view(groups, 6 // groups, cout, -1).transpose(1, 2).flatten(2)
    torch.testing.assert_close(half[2].double(), maps.mean(2), rtol=1e-5, atol=1e-6)
    rstd = (maps.var(2, unbiased=False) + 1e-5).rsqrt()
    torch.testing.assert_close(half[3].double(), rstd, rtol=1e-5, atol=0)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid", "none"])
@pytest.mark.parametrize("op", ["conv_bn_act", "conv_transpose_bn_act"])
def test_engines_fold_batch_norm_when_evaluating(engine, op, activation):
    x, weight = torch.randn(3, 20, 6, 5), torch.randn(20, 20, 4, 4)
    bn = [torch.randn(20), torch.randn(20), torch.randn(20), torch.rand(20) + 0.5]
    options = {"stride": 2, "padding": 1, "training": False, "activation": activation}
    with torch.no_grad():
        ours = getattr(functional, op)(x, weight, *bn, **options)
        exact = getattr(functional, op)(*(t.double() for t in (x, weight, *bn)), **options)
    torch.testing.assert_close(ours.double(), exact, rtol=2e-5, atol=2e-5)


def test_engines_give_the_same_bits_each_time(engine):
    x = torch.randn(40, 32, 10, 10).to(memory_format=torch.channels_last)
    weight, grad = torch.randn(48, 32, 4, 4), torch.randn(40, 48, 5, 5)
    calls = (both_ways("conv_act", x, weight, None, grad, stride=2, padding=1) for _ in range(5))
    first, *others = islice(calls, 2)
    # where one thread takes over what another has no core for
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as busy:
        others += calls
        busy.kill()
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("input_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images", [0, 1, 33])
@pytest.mark.parametrize("op", ["conv_act", "conv_transpose_act"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_kernel_as_large_as_the_map(op, images, input_format, weight_format, with_bias):
    """A generator's first layer and a discriminator's last: one product of matrices, laid out as PyTorch's are."""
    transposed = "transpose" in op
    size = (images, 100, 1, 1) if transposed else (images, 20, 4, 3)
    x = torch.randn(size).contiguous(memory_format=input_format)
    weight = torch.randn(100, 20, 4, 3).contiguous(memory_format=weight_format)
    bias = torch.randn(20 if transposed else 100) if with_bias else None
    compare("", op, x, weight, bias, 4, stride=1, padding=0)
    ours = getattr(functional, op)(x, weight, bias, stride=1, padding=0, activation="none")
    convolve = F.conv_transpose2d if transposed else F.conv2d
    assert ours.stride() == convolve(x, weight, bias).stride()


@pytest.fixture
def winograd() -> Iterator[None]:
    _C._force_engine("winograd")
    yield
    _C._force_engine("")


@pytest.mark.parametrize("size", [(7, 7), (7, 8), (8, 7), (1, 9), (5, 1), (1, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("kernel, stride, padding", [(5, 2, 2), (4, 2, 1), (3, 1, 1), (3, 2, 1)])
@pytest.mark.parametrize("op", ["conv_act", "conv_transpose_act"])
def test_tiles_that_are_half_outside(winograd, op, size, kernel, stride, padding):
    """Winograd's tiles are of two pixels: of the last one of an odd side a point of the transform is left out.

    Its error is up to 3 epsilons on all of these maps; PyTorch's is below 0.7 on one of a pixel, a sum of 80 terms.
    """
    fine = [stride * side for side in size]
    # 11 images: blocks of tiles end within one
    x = torch.randn(11, 20, *(fine if op == "conv_act" else size))
    weight = torch.randn(20, 20, kernel, kernel)
    assert all(served("winograd", op, x, weight, [stride] * 2, [padding] * 2))
    floor = 4 if size == (1, 1) else 2
    compare("winograd", op, x, weight, None, floor, stride=stride, padding=padding)


@pytest.mark.parametrize("op", ["conv_act", "conv_transpose_act"])
@pytest.mark.parametrize("channels, kernel, stride", [((16, 24), 3, 1), ((256, 136), 3, 2)])
def test_what_is_not_finite_reaches_no_half_tile(winograd, op, channels, kernel, stride):
    """Products that are left out leave what the call before put in their place, also where sums wait for others."""
    convolve = F.conv2d if op == "conv_act" else F.conv_transpose2d
    fused = getattr(functional, op)
    side = 7 * stride if op == "conv_act" else 7
    weight = torch.randn(*(channels[::-1] if op == "conv_act" else channels), kernel, kernel) / 16
    x = torch.randn(9, channels[0], side, side)
    assert served("winograd", op, x, weight, [stride] * 2, [1, 1])[0]
    options = {"stride": stride, "padding": 1}
    fused(torch.full((9, channels[0], 16, 16), float("nan")), weight, **options)
    y = fused(x, weight, activation="none", **options)
    torch.testing.assert_close(y, convolve(x, weight, **options), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel, stride", [(3, 1), (4, 2)])
def test_no_bit_of_a_weights_gradient_by_winograd_hangs_on_the_threads(winograd, kernel, stride):
    """How many channels a task takes does: one task for all of them would leave the other threads idle."""
    x = torch.randn(5, 200, 11, 12).to(memory_format=torch.channels_last)
    weight = torch.randn(150, 200, kernel, kernel)
    grad = torch.randn_like(torch.conv2d(x, weight, stride=stride, padding=1))
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 16):
            torch.set_num_threads(n)
            found.append(both_ways("conv_act", x, weight, None, grad, stride=stride, padding=1)[2])
    finally:
        torch.set_num_threads(threads)
    assert found[0].shape == weight.shape
    assert all(torch.equal(each, found[0]) for each in found)


def test_an_unknown_engine_is_named():
    with pytest.raises(ValueError, match="'quantum'"):
        _C._force_engine("quantum")


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_the_lesser_capabilities_pass_these_tests(capability):
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),  # not the source folder, whose package has no compiled half
    )
    assert result.returncode == 0, result.stdout[-4000:]
