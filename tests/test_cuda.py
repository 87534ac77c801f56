"""The ops on CUDA tensors: on a GPU, and in a build for the emulator on CPU tensors that stand in for them.

The emulator computes about a thousand-millionth of what a GPU does, so what needs real layers, streams or
graphs is for the GPU alone. test_functional.py, which draws its tensors from the default device, holds the
same kernels to PyTorch's manners: `.ci/gpu` runs both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from accuracy import assert_as_accurate
from torch import Tensor

from dcgan_fast import _C, backends, functional, reference

EMULATED = _C.cuda_architectures == "emulated"
DEVICE = "cpu" if EMULATED else "cuda"
pytestmark = pytest.mark.skipif(
    not (EMULATED or (_C.cuda_architectures and torch.cuda.is_available())), reason="needs a GPU"
)
on_a_gpu = pytest.mark.skipif(EMULATED, reason="the emulator has none of this")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CONV_OPS = ["conv_bn_act", "conv_transpose_bn_act", "conv_act", "conv_transpose_act"]

# batch, channels in and out, side, kernel, stride, padding
SMALL_LAYERS = [
    (4, 16, 24, 8, 4, 2, 1),
    (6, 3, 16, 7, 5, 2, 2),
    (32, 100, 16, 1, 4, 1, 0),
    (4, 24, 3, 6, 4, 2, 1),
    (64, 32, 1, 4, 4, 1, 0),
    (2, 12, 20, 5, 3, 1, 1),
]
DCGAN_LAYERS = [  # batch 128, 64 x 64
    (128, 3, 64, 64, 4, 2, 1),
    (128, 64, 128, 32, 4, 2, 1),
    (128, 256, 512, 8, 4, 2, 1),
    (128, 512, 1, 4, 4, 1, 0),
    (128, 100, 512, 1, 4, 1, 0),
    (128, 128, 64, 16, 4, 2, 1),
    (128, 64, 3, 32, 4, 2, 1),
]


def layer_tensors(op: str, layer: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, list]:
    """input, weight and the rest of the op's tensors, in float64 on the CPU but representable in ``dtype``."""
    n, cin, cout, side, kernel, _, _ = layer
    shape = (cin, cout) if "transpose" in op else (cout, cin)
    x = (torch.randn(n, cin, side, side) + 1).to(dtype).double()
    weight = torch.randn(*shape, kernel, kernel).to(dtype).double() / (cin * kernel) ** 0.5
    vectors = [torch.rand(cout).double() + 0.5, torch.randn(cout).double()]
    running = [torch.zeros(cout).double(), torch.ones(cout).double()]
    return x, weight.to(dtype).double(), [*vectors, *running] if "bn" in op else vectors[1:]


def run(
    module,
    op: str,
    layer: Sequence[int],
    tensors: tuple,
    dtype: torch.dtype,
    device: str,
    **options,
) -> list[Tensor]:
    """[output, gradients of input, weight and vectors, running statistics], on the CPU."""
    x, weight, rest = tensors
    vectors, running = (rest[:2], rest[2:]) if "bn" in op else (rest, [])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = x.to(device, dtype).to(memory_format=torch.channels_last).requires_grad_()
    weight = weight.to(device, dtype).to(memory_format=torch.channels_last).requires_grad_()
    vectors = [v.to(device, wide, copy=True).requires_grad_() for v in vectors]
    running = [v.to(device, wide, copy=True) for v in running]
    if module is reference and "bn" not in op:
        vectors = [v.detach().to(dtype).requires_grad_() for v in vectors]
    y = getattr(module, op)(
        x, weight, *vectors, *running, stride=layer[5], padding=layer[6], **options
    )
    grad = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape).to(device, y.dtype)
    grads = torch.autograd.grad(y, [x, weight, *vectors], grad)
    return [t.detach().cpu() for t in (y, *grads, *running)]


def compare(
    op: str, layer: Sequence[int], dtype: torch.dtype, times: float = 2.0, **options
) -> None:
    if "bn" in op:
        options |= {"training": True}
    if layer[2] == 1 and layer[3] == 4 and "transpose" in op:
        layer = (*layer[:3], 1, *layer[4:])
    if "transpose" not in op and layer[3] < layer[4]:
        return
    tensors = layer_tensors(op, layer, dtype)
    ours = run(functional, op, layer, tensors, dtype, DEVICE, **options)
    theirs = run(reference, op, layer, tensors, dtype, DEVICE, **options)
    exact = run(reference, op, layer, tensors, torch.float64, DEVICE, **options)
    assert_as_accurate(
        ours, [t.to(o.dtype) for t, o in zip(theirs, ours, strict=True)], exact, times, dtype, 16.0
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", SMALL_LAYERS, ids=str)
@pytest.mark.parametrize("op", CONV_OPS)
def test_small_layers(op: str, layer: Sequence[int], dtype: torch.dtype) -> None:
    compare(op, layer, dtype, activation="tanh")


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", DCGAN_LAYERS, ids=str)
@pytest.mark.parametrize("op", CONV_OPS)
def test_dcgan_layers(op: str, layer: Sequence[int], dtype: torch.dtype) -> None:
    compare(op, layer, dtype, activation="tanh")


@pytest.mark.parametrize("how", ["tf32", "tf32x3", "fma"])
def test_float32_is_multiplied_as_the_switches_say(how: str) -> None:
    layer = SMALL_LAYERS[0]
    x, weight, _ = layer_tensors("conv_act", layer, torch.float32)
    exact = torch.conv2d(x, weight, stride=2, padding=1)
    try:
        backends.cuda.allow_tf32 = how == "tf32"
        backends.cuda.strict_float32 = "fma" if how == "fma" else "tf32x3"
        y = functional.conv_act(
            x.float().to(DEVICE), weight.float().to(DEVICE), stride=2, padding=1, activation="none"
        )
        names = torch.ops.dcgan_fast._convolution_engines(
            x.float().to(DEVICE), weight.float().to(DEVICE), [2, 2], [1, 1], [0, 0], False
        )
    finally:
        backends.cuda.allow_tf32, backends.cuda.strict_float32 = None, "tf32x3"
    wanted = {
        "tf32": "tensor cores, tf32",
        "tf32x3": "tensor cores, 3 x tf32",
        "fma": "float32 multiply-add",
    }
    assert names == [wanted[how]] * 3
    error = ((y.cpu().double() - exact).norm() / exact.norm()).item()
    assert (1e-5 < error < 1e-3) if how == "tf32" else error < 5e-7


def test_statistics_are_gathered_with_the_convolution() -> None:
    """stat_groups, and maps whose mean is 1,000 times their deviation."""
    x = torch.randn(4, 8, 6, 6, device=DEVICE).to(memory_format=torch.channels_last)
    weight = torch.randn(16, 8, 4, 4, device=DEVICE)
    weight -= weight.mean((1, 2, 3), keepdim=True) - 30
    bn = [torch.ones(16, device=DEVICE), torch.zeros(16, device=DEVICE)]
    results = []
    for module, dtype in ((functional, torch.float32), (reference, torch.float64)):
        running = [
            torch.zeros(16, device=DEVICE, dtype=dtype),
            torch.ones(16, device=DEVICE, dtype=dtype),
        ]
        y = module.conv_bn_act(
            (x + 30).to(dtype), weight.to(dtype), *(v.to(dtype) for v in bn), *running,
            stride=2, padding=0, training=True, stat_groups=2, activation="none",
        )  # fmt: skip
        results.append([y, *running])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=2e-3, atol=2e-3)


def test_a_slice_of_a_batch_may_begin_anywhere() -> None:
    x = (
        torch.randn(3, 8, 3, 3, device=DEVICE)
        .to(torch.bfloat16)
        .to(memory_format=torch.channels_last)
    )
    flat = torch.empty(x.numel() + 1, dtype=x.dtype, device=DEVICE)[1:]
    moved = flat.as_strided(x.shape, x.stride()).copy_(x)
    weight = torch.randn(8, 8, 3, 3, device=DEVICE).to(torch.bfloat16)
    first, other = (
        functional.conv_act(t, weight, padding=1, activation="relu") for t in (x, moved)
    )
    assert torch.equal(first, other)


@on_a_gpu
def test_ops_run_on_the_current_stream_and_in_graphs() -> None:
    layer = DCGAN_LAYERS[1]
    x, weight, rest = layer_tensors("conv_bn_act", layer, torch.bfloat16)
    x, weight = (t.cuda().bfloat16().to(memory_format=torch.channels_last) for t in (x, weight))
    rest = [t.cuda().float() for t in rest]

    def step() -> Sequence[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, weight)]
        y = functional.conv_bn_act(*leaves, *rest, stride=2, padding=1, training=True)
        return [y, *torch.autograd.grad(y.float().square().sum(), leaves)]

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
    layer = DCGAN_LAYERS[1]
    tensors = layer_tensors("conv_bn_act", layer, torch.bfloat16)
    run(functional, "conv_bn_act", layer, tensors, torch.bfloat16, DEVICE, training=True)
    x, weight, rest = tensors
    x, weight = (t.cuda().bfloat16().requires_grad_() for t in (x, weight))
    rest = [t.cuda().float() for t in rest]
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = functional.conv_bn_act(x, weight, *rest, stride=2, padding=1, training=True)
        y.backward(torch.ones_like(y))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_gradients(op: Callable[..., Tensor], *tensors: Tensor) -> None:
    assert torch.autograd.gradcheck(op, [t.double().to(DEVICE).requires_grad_() for t in tensors])


@pytest.mark.parametrize("training", [True, False])
def test_float64_goes_through_aten(training: bool) -> None:
    x, weight, (g, b, mean, var) = layer_tensors(
        "conv_bn_act", (2, 3, 4, 5, 3, 2, 1), torch.float64
    )

    def op(x: Tensor, weight: Tensor, g: Tensor, b: Tensor) -> Tensor:
        running = [mean.to(DEVICE, copy=True), var.to(DEVICE, copy=True)]
        return functional.conv_bn_act(
            x, weight, g, b, *running, stride=2, padding=1, training=training, activation="tanh"
        )

    check_gradients(op, x, weight, g, b)
