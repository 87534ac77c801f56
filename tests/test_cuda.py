"""The ops on CUDA tensors: on a GPU, and in a build for the emulator on CPU tensors that stand in for them.

The emulator computes about a thousand-millionth of what a GPU does, so what needs real layers, streams or
graphs is for the GPU alone. test_functional.py, which draws its tensors from the default device, holds the
same kernels to PyTorch's manners: `.ci/gpu` runs both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.utils.checkpoint
from accuracy import assert_as_accurate, relative_error
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
    (2, 64, 64, 8, 4, 2, 1),  # by warpgroups, where there are any
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


@pytest.fixture
def copy_engine() -> Iterator[None]:
    """The switch is on, which is off by default."""
    backends.cuda.copy_engine = True
    yield
    backends.cuda.copy_engine = False


SMALL_BOX_LAYERS = [
    (2, 64, 64, 8, 4, 2, 1),
    (3, 64, 128, 14, 4, 2, 1),
    (4, 128, 64, 6, 3, 1, 1),
    (8, 64, 8, 4, 4, 1, 0),
]
BOX_LAYERS = [  # of the example's and the paper's nets, and their like
    *((128, cin, 2 * cin, side, 4, 2, 1) for cin, side in ((64, 32), (128, 16), (256, 8))),
    *((128, 2 * cout, cout, side, 4, 2, 1) for cout, side in ((64, 16), (128, 8), (256, 4))),
    (128, 512, 1024, 8, 4, 2, 1),
    (128, 1024, 512, 4, 4, 2, 1),
    (32, 64, 128, 32, 4, 2, 1),
    (7, 128, 64, 14, 5, 2, 2),
    (16, 64, 192, 24, 3, 1, 1),
]


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("layer", SMALL_BOX_LAYERS, ids=str)
@pytest.mark.parametrize("op", CONV_OPS)
def test_small_layers_by_the_copy_engine(
    copy_engine: None, op: str, layer: Sequence[int], dtype: torch.dtype
) -> None:
    compare(op, layer, dtype, activation="tanh")


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("layer", [*DCGAN_LAYERS, *BOX_LAYERS], ids=str)
@pytest.mark.parametrize("op", CONV_OPS)
def test_layers_by_the_copy_engine(
    copy_engine: None, op: str, layer: Sequence[int], dtype: torch.dtype
) -> None:
    compare(op, layer, dtype, activation="tanh")


@pytest.mark.parametrize(
    "layer",
    [*SMALL_BOX_LAYERS, *(pytest.param(layer, marks=on_a_gpu) for layer in BOX_LAYERS)],
    ids=str,
)
@pytest.mark.parametrize("op", ["conv_act", "conv_transpose_act"])
def test_tf32_by_the_copy_engine(copy_engine: None, op: str, layer: Sequence[int]) -> None:
    """Operands are rounded, not cut, to tf32: the product is that of the nearest ones."""
    x, weight, _ = layer_tensors(op, layer, torch.float32)
    rounded = [
        ((t.float().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double().to(DEVICE)
        for t in (x, weight)
    ]
    options = {"stride": layer[5], "padding": layer[6], "activation": "none"}
    before = backends.cuda.allow_tf32
    try:
        backends.cuda.allow_tf32 = True
        with torch.no_grad():
            y = getattr(functional, op)(
                *(t.float().to(DEVICE).to(memory_format=torch.channels_last) for t in (x, weight)),
                **options,
            )
    finally:
        backends.cuda.allow_tf32 = None
        assert backends.cuda.allow_tf32 == before
    exact = getattr(reference, op)(*rounded, **options)
    assert relative_error(y.double(), exact) < 1e-5


@on_a_gpu
def test_the_copy_engine_serves_where_it_is_asked_to(copy_engine: None) -> None:
    """Its kernels run, both ways, and give the same bits every time."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("has no such engine")
    for op in ("conv_act", "conv_transpose_act"):
        layer = (128, 128, 256, 16, 4, 2, 1)
        tensors = layer_tensors(op, layer, torch.bfloat16)
        first = run(functional, op, layer, tensors, torch.bfloat16, DEVICE)
        with torch.profiler.profile() as profile:
            again = run(functional, op, layer, tensors, torch.bfloat16, DEVICE)
        assert sum("conv_boxes" in event.name for event in profile.events()) >= 2, op
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a, b)


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


class Chain:
    """Three layers whose middle one hands its gradient to the first's batch norm and gets its own from the last."""

    def __init__(self, dtype: torch.dtype = torch.float32, device: str = DEVICE, **options) -> None:
        random = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random).double()

        self.options = {"stride": 2, "padding": 1, "training": True} | options
        self.wide = torch.promote_types(dtype, torch.float32)
        self.x = normal(4, 8, 12, 8).to(device, dtype).to(memory_format=torch.channels_last)
        weights = normal(16, 8, 4, 4), normal(16, 12, 4, 4), normal(10, 12, 3, 3)
        self.weights = [(w / 8).to(device, dtype).requires_grad_() for w in weights]
        self.bn = [
            [(normal(c) + offset).to(device, self.wide).requires_grad_() for offset in (1, 0)]
            for c in (16, 12)
        ]

    def layer(self, module, i: int, x: Tensor) -> Tensor:
        op = (module.conv_bn_act, module.conv_transpose_bn_act)[i]
        channels = len(self.bn[i][0])
        running = [torch.full((channels,), v, dtype=self.wide, device=x.device) for v in (0.1, 2.0)]
        activation = ("leaky_relu", "relu")[i]
        return op(x, self.weights[i], *self.bn[i], *running, activation=activation, **self.options)

    def last(self, module, x: Tensor) -> Tensor:
        return module.conv_act(x, self.weights[2], activation="tanh")

    def run(self, module=functional, between: Callable[[Tensor], Tensor] = lambda y: y) -> Tensor:
        y = between(self.layer(module, 0, self.x))
        return self.last(module, between(self.layer(module, 1, y))).square().sum()

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.bn[0], *self.bn[1]]

    def grads(self, module=functional, **how) -> list[Tensor]:
        return list(torch.autograd.grad(self.run(module, **how), self.parameters))


def sums_given(run: Callable[[], object]) -> int:
    """How many batch norms got the sums of their gradient from a convolution while ``run`` ran."""
    with torch.profiler.profile() as profile:
        run()
    return sum("sums given" in event.name for event in profile.events())


def assert_near(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """But for float32's roundings; a wrong sum is off by far more."""
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("options", [{}, {"stat_groups": 2}, {"training": False}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_is_summed_up_where_it_is_made(dtype: torch.dtype, options: dict) -> None:
    ours, exact = Chain(dtype, **options), Chain(torch.float64, **options)
    with torch.no_grad():
        for a, b in zip([ours.x, *ours.parameters], [exact.x, *exact.parameters], strict=True):
            b.copy_(a)
    assert sums_given(ours.grads) == 2
    assert_as_accurate(
        ours.grads(), ours.grads(reference), exact.grads(reference), rounded=dtype, floor=16.0
    )


def test_sums_are_those_of_the_gradient_that_arrives() -> None:
    """A hook that changes it, another reader of the map, hooks on saved tensors: then none are taken over."""
    chain = Chain()
    plain = chain.grads()

    def changed(y: Tensor) -> Tensor:
        y.register_hook(lambda grad: 2 * grad)
        return y

    def changed_in_place(y: Tensor) -> Tensor:
        y.register_hook(lambda grad: grad.mul_(2))
        return y

    def read_twice(y: Tensor) -> Tensor:
        readers.append((y * 0.5).square().sum())
        return y

    def checkpointed(y: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(torch.clone, y, use_reentrant=False)

    for between, given in ((changed, 0), (changed_in_place, 0), (checkpointed, 0)):
        assert sums_given(lambda between=between: chain.grads(between=between)) == given
        theirs = chain.grads(reference, between=between)
        assert_near(chain.grads(between=between), theirs)

    results = []
    for module in (functional, reference):
        readers: list[Tensor] = []
        loss = chain.run(module, between=read_twice)
        results.append(torch.autograd.grad(loss + sum(readers), chain.parameters))
    assert_near(*results)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        assert sums_given(chain.grads) == 0
        hooked = chain.grads()
    assert_near(hooked, plain)

    loss = chain.run()
    for _ in range(2):
        again = torch.autograd.grad(loss, chain.parameters, retain_graph=True)
        torch.testing.assert_close(list(again), plain, rtol=0, atol=0)


def test_whole_layers_are_recomputed_under_checkpoint() -> None:
    chain = Chain()

    def run(module) -> list[Tensor]:
        def body(x: Tensor) -> Tensor:
            return chain.layer(module, 1, chain.layer(module, 0, x))

        y = torch.utils.checkpoint.checkpoint(body, chain.x, use_reentrant=False)
        return list(torch.autograd.grad(chain.last(module, y).square().sum(), chain.parameters))

    assert_near(run(functional), chain.grads())


def test_a_gradient_that_no_batch_norm_takes_leaves_nothing_behind() -> None:
    chain = Chain()
    y = chain.layer(functional, 0, chain.x)
    (grad,) = torch.autograd.grad(chain.layer(functional, 1, y).sum(), y)  # its node never runs
    plain = chain.grads()
    torch.testing.assert_close(chain.grads(), plain, rtol=0, atol=0)
    assert grad.shape == y.shape


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
@pytest.mark.parametrize("copied", [False, True])
def test_ops_run_on_the_current_stream_and_in_graphs(
    request: pytest.FixtureRequest, copied: bool
) -> None:
    if copied:
        request.getfixturevalue("copy_engine")
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
