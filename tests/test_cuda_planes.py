"""Biases of patterns on CUDA tensors: on a GPU, and in a build for the emulator on CPU tensors that stand in for them.

test_plane_bias_act.py holds the same kernels to PyTorch's manners in the latter: `.ci/gpu` runs both.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from accuracy import assert_as_accurate
from torch import Tensor, nn

from dcgan_fast import _C, build_info, functional, fuse, reference
from dcgan_fast.labels import LabelConv2d, LabelConvTranspose2d, LabelSequential

EMULATED = _C.cuda_architectures == "emulated"
DEVICE = "cpu" if EMULATED else "cuda"
pytestmark = pytest.mark.skipif(
    not (EMULATED or (_C.cuda_architectures and torch.cuda.is_available())), reason="needs a GPU"
)
on_a_gpu = pytest.mark.skipif(EMULATED, reason="the emulator has none of this")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ACTIVATIONS = ["relu", "leaky_relu", "tanh", "sigmoid", "none"]
# maps, and patterns of rows and of columns
SHAPES = [
    ((3, 64, 14, 14), (3, 3)),
    ((2, 64, 28, 28), (5, 5)),
    ((5, 1, 28, 28), (5, 5)),
    ((2, 6, 40, 40), (2, 4)),
    ((3, 5, 6, 7), (2, 3)),
]
SHAPES += (
    []
    if EMULATED
    else [
        ((128, 64, 14, 14), (3, 3)),
        ((128, 128, 7, 7), (3, 3)),
        ((128, 1, 28, 28), (5, 5)),
        ((16, 64, 128, 128), (3, 3)),
        ((1000, 3, 32, 32), (5, 5)),
    ]
)


def case(
    shape: Sequence[int],
    patterns: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    fmt: torch.memory_format = torch.channels_last,
) -> list[Tensor]:
    """input, bias, rows, columns; no value so near zero that rounding decides on which side of a kink it is."""
    rows, columns = (
        torch.arange(side, device=DEVICE) % count
        for side, count in zip(shape[2:], patterns, strict=True)
    )
    x = torch.randn(*shape, device=DEVICE).to(dtype)
    bias = torch.randn(*shape[:2], *patterns, device=DEVICE).to(dtype)
    z = x.double() + bias.double()[:, :, rows][..., columns]
    x = torch.where(z.abs() < 0.02, x + 0.5, x)
    return [x.to(memory_format=fmt), bias, rows, columns]


def run(module, x, bias, rows, columns, inplace=False, **options) -> list[Tensor]:
    """[output, gradients of input and bias] of one call of ``module.plane_bias_act``."""
    leaves = [t.detach().requires_grad_() for t in (x, bias)]
    start = leaves[0].mul(1) if inplace else leaves[0]  # what a leaf does not allow
    y = module.plane_bias_act(start, leaves[1], rows, columns, inplace=inplace, **options)
    grad = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape).to(DEVICE, y.dtype)
    grad = grad.contiguous(memory_format=torch._prims_common.suggest_memory_format(y))
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def compare(tensors: list[Tensor], **options) -> None:
    wide = [t.double() if t.is_floating_point() else t for t in tensors]
    exact = run(reference, *wide, **options)
    theirs, ours = run(reference, *tensors, **options), run(functional, *tensors, **options)
    assert_as_accurate(ours, theirs, exact, rounded=tensors[0].dtype)


def test_the_kernels_serve() -> None:
    assert build_info()["ops"]["plane_bias_act"]["cuda"].startswith("dcgan_fast")
    for half in ("forward", "forward_", "backward", "backward_"):
        name = f"dcgan_fast::plane_bias_act_{half}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")


@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees(dtype: torch.dtype, activation: str, inplace: bool) -> None:
    for shape, patterns in SHAPES:
        for fmt in (torch.channels_last, torch.contiguous_format):
            compare(case(shape, patterns, dtype, fmt), activation=activation, inplace=inplace)


def test_a_float32_bias_of_narrow_maps() -> None:
    x, bias, rows, columns = case((2, 64, 14, 14), (3, 3), torch.bfloat16)
    y, of_input, of_bias = run(functional, x, bias.float(), rows, columns, activation="relu")
    assert (y.dtype, of_input.dtype, of_bias.dtype) == (torch.bfloat16,) * 2 + (torch.float32,)


def test_what_the_kernels_do_not_serve_agrees() -> None:
    compare(case((1, 3, 3, 1100), (2, 2)), activation="tanh")  # too wide
    compare(case((2, 3, 4, 70), (2, 65)), activation="relu")  # too many patterns
    x, bias, rows, columns = case((2, 3, 4, 5), (2, 2))
    tensors = [x.double(), bias.double(), rows, columns]
    torch.testing.assert_close(*(run(m, *tensors) for m in (functional, reference)))


def test_maps_may_begin_anywhere() -> None:
    x, *rest = case((3, 8, 6, 6), (3, 3))
    flat = torch.empty(x.numel() + 1, device=DEVICE)[1:]
    moved = flat.as_strided(x.shape, x.stride()).copy_(x)
    for a, b in zip(
        *(run(functional, t, *rest, activation="relu") for t in (x, moved)), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layer", [LabelConv2d, LabelConvTranspose2d])
def test_layers_with_labels(layer) -> None:
    plain = LabelSequential(layer(8, 4, 16, 4, 2, 1), nn.LeakyReLU(0.2)).to(DEVICE)
    x, labels = torch.randn(6, 8, 8, 8, device=DEVICE), torch.arange(6, device=DEVICE) % 4
    results = []
    for net in (plain, fuse(plain)):
        net.zero_grad()
        y = net(x.to(memory_format=torch.channels_last), labels)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in net.parameters())])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@on_a_gpu
def test_patterns_that_do_not_exist_make_nan() -> None:
    x, bias, rows, columns = case((2, 8, 6, 6), (3, 3))
    rows[1] = 3
    y = functional.plane_bias_act(x, bias, rows, columns)
    assert y[:, :, 1].isnan().all() and y[:, :, [0, 2, 3, 4, 5]].isfinite().all()


@on_a_gpu
def test_on_the_current_stream_in_graphs_and_the_same_bits() -> None:
    tensors = case((128, 64, 14, 14), (3, 3), torch.bfloat16)
    grad = torch.randn_like(tensors[0])

    def step() -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in tensors[:2]]
        y = functional.plane_bias_act(*leaves, *tensors[2:], activation="leaky_relu")
        return [y, *torch.autograd.grad(y, leaves, grad)]

    eager = [t.clone() for t in step()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            on_side = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    for a, b, c in zip(eager, on_side, captured, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@on_a_gpu
def test_nothing_waits_for_the_device() -> None:
    tensors = case((16, 64, 14, 14), (3, 3))
    grad = torch.randn_like(tensors[0])
    leaves = [t.detach().requires_grad_() for t in tensors[:2]]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = functional.plane_bias_act(*leaves, *tensors[2:], activation="leaky_relu")
        y.backward(grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
