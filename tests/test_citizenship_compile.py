"""torch.compile of whole training steps: one graph, and the numbers of eager ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dcgan_fast import models
from dcgan_fast.training.losses import FAKE, REAL, adversarial_loss
from dcgan_fast.training.step import Step

STEPS = 3
LR, KEPT = 0.02, 0.5
NETS: dict[str, dict[str, Any]] = {
    "pytorch": {"image_size": 16, "ngf": 8, "ndf": 8, "nz": 10},
    "cgan-dcgan": {"image_size": 16, "ngf": 4, "ndf": 4, "nz": 10, "ngfc": 8, "ndfc": 8},
}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def networks(preset: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return models.build(preset, **NETS[preset])


def batches(D: Any) -> list[tuple[Tensor, ...]]:
    """Images, latents and, where the networks take them, labels."""
    torch.manual_seed(1)
    labels = [torch.arange(6)] if D.classes else []
    shape = (6, D.nc, D.image_size, D.image_size)
    return [(torch.rand(shape), torch.randn(6, 10), *labels) for _ in range(STEPS)]


def state(*nets: nn.Module) -> list[Tensor]:
    return [value for net in nets for value in net.state_dict().values()]


class PlainStep:
    """D on real and fake images, then G, each with its update by gradients with momentum: what one graph may hold.

    Not an optimiser of torch.optim: torch 2.13 ends the graph at each of their steps (``torch._dynamo.graph_break()``
    in ``Optimizer.step``), and traces no ``zero_grad``. Nor ``loss.backward()``: it is traced, but spoils what the
    process compiles next.
    """

    def __init__(self, G: Any, D: Any, autocast: bool = False) -> None:
        self.G, self.D, self.autocast = G, D, autocast
        self.weights = {net: list(net.parameters()) for net in (G, D)}
        self.means = {net: [torch.zeros_like(p) for p in net.parameters()] for net in (G, D)}

    def __call__(self, real: Tensor, latent: Tensor, *labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            fake = self.G(latent, *labels)
            of_real = self.D(real, *labels)
            of_fake = self.D(fake.detach(), *labels)
        loss_d = adversarial_loss(of_real, REAL) + adversarial_loss(of_fake, FAKE)
        self.learn(self.D, loss_d)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            of_fake = self.D(fake, *labels)
        loss_g = adversarial_loss(of_fake, REAL)
        self.learn(self.G, loss_g)
        return torch.stack([loss_d.detach(), loss_g.detach()])

    def learn(self, net: nn.Module, loss: Tensor) -> None:
        weights = self.weights[net]
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient, mean in zip(weights, gradients, self.means[net], strict=True):
                mean.lerp_(gradient, KEPT)
                weight.add_(mean, alpha=-LR)


def train(
    preset: str,
    compile: Callable[..., Any] | None,
    autocast: bool = False,
    layout: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, list[Tensor]]:
    G, D = (net.to(memory_format=layout) for net in networks(preset))
    step: Callable[..., Tensor] = PlainStep(G, D, autocast)
    if compile is not None:
        step = compile(step.__call__)
    with torch._dynamo.config.patch(trace_autograd_ops=True):  # gradients within the graph
        losses = torch.stack([step(*batch) for batch in batches(D)])
    return losses, state(G, D)


def whole(backend: str) -> Callable[..., Any]:
    return lambda step: torch.compile(step, fullgraph=True, backend=backend)


def assert_close(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "preset, options",
    [
        ("pytorch", {}),
        pytest.param("pytorch", {"layout": torch.channels_last}, marks=pytest.mark.slow),
        pytest.param("pytorch", {"autocast": True}, marks=pytest.mark.slow),
        pytest.param("cgan-dcgan", {}, marks=pytest.mark.slow),
    ],
)
def test_a_training_step_is_one_graph(preset: str, options: dict[str, Any]) -> None:
    tolerance = 2e-2 if options.get("autocast") else 1e-4
    assert_close(
        train(preset, whole("aot_eager"), **options), train(preset, None, **options), tolerance
    )


@pytest.mark.slow
def test_a_training_step_is_one_graph_of_inductor() -> None:
    assert_close(train("pytorch", whole("inductor")), train("pytorch", None), 1e-3)


def test_the_graph_holds_the_halves() -> None:
    """Forward and backward of each fused op, and none of the convolutions that they stand for."""
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.append(graph.code)
        return graph.forward

    train(
        "pytorch",
        lambda step: torch.compile(step, fullgraph=True, backend=aot_autograd(fw_compiler=backend)),
    )
    assert len(seen) == 1
    for half in (
        "conv_bn_act_forward",
        "conv_act_forward",
        "conv_bn_act_backward",
        "conv_act_backward",
    ):
        assert f"dcgan_fast.{half}" in seen[0], half
    assert "aten.convolution" not in seen[0] and "native_batch_norm" not in seen[0]


class Compared(TorchDispatchMode):
    """Runs each op of ours once more on fake tensors; ``differences`` of shapes, dtypes and strides."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.differences: list[str] = []

    def __torch_dispatch__(self, op: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = op(*args, **(kwargs or {}))
        if op.namespace == "dcgan_fast":
            self.seen.add(op.__name__)
            with FakeTensorMode():
                faked = pytree.tree_map_only(
                    Tensor,
                    lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype),
                    args,
                )
                fakes = op(*faked)
            for i, (real, fake) in enumerate(
                zip(pytree.tree_leaves(found), pytree.tree_leaves(fakes), strict=True)
            ):
                known = [(t.shape, t.dtype, t.stride()) for t in (real, fake) if t is not None]
                if real is not None and known[0] != known[1]:
                    self.differences.append(f"{op}, result {i}: {known[0]}, faked {known[1]}")
        return found


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "preset, settings",
    [
        *NETS.items(),
        ("newmu", {"image_size": 16, "nc": 1, "ngf": 8, "ndf": 1, "nz": 10}),
        ("cgan-dcgan", {"image_size": 16, "ngf": 1, "ndf": 1, "nz": 10, "ngfc": 0, "ndfc": 0}),
    ],
)
def test_fake_tensors_have_the_strides_of_real_ones(
    preset: str, settings: dict[str, Any], layout: torch.memory_format, autocast: bool
) -> None:
    """Of one channel or one pixel too, where several strides are the same layout: compiled graphs go by them."""
    torch.manual_seed(0)
    G, D = (net.to(memory_format=layout) for net in models.build(preset, **settings))
    labels = (torch.arange(6),) if D.classes else ()
    with Compared() as compared, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        images = G(torch.randn(6, 10), *labels)
        D(images, *labels).float().sum().backward()
        with torch.no_grad():
            D(G(torch.randn(6, 10), *labels), *labels)
    assert not compared.differences
    assert {"conv_act_forward.default", "conv_act_backward.default"} <= compared.seen


# --------------------------------------------------------------------- the trainer's step, compiled

DIALECTS: list[dict[str, Any]] = [
    {},
    {"joint_pass": True},
    {"alternate": True},
    {"reuse_fake_output": True},
    {"g_steps_per_d": 2},
]


def adversarial(compiled: bool, backend: str = "aot_eager", **dialect: Any) -> Any:
    G, D = networks("pytorch")
    optimizers = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (G, D)]
    run_g, run_d = G, D
    if compiled:
        run_g, run_d = (torch.compile(net, fullgraph=True, backend=backend) for net in (G, D))
    step = Step(run_g, run_d, *optimizers, **dialect)
    metrics = []
    for real, latent in batches(D):
        latents = iter([latent, latent.flip(0)])
        metrics.append(step(real, lambda latents=latents: next(latents)))
    return torch.stack(metrics), state(G, D)


@pytest.mark.parametrize(
    "dialect",
    [
        DIALECTS[1],
        *(pytest.param(each, marks=pytest.mark.slow) for each in [DIALECTS[0], *DIALECTS[2:]]),
    ],
)
def test_the_step_takes_compiled_networks(dialect: dict[str, Any]) -> None:
    """Each network without a graph break, in training, in one pass of two groups of statistics too."""
    assert_close(adversarial(True, **dialect), adversarial(False, **dialect))


def test_optimizers_may_be_compiled() -> None:
    """Their own compiled step writes weights past autograd's eyes: packed weights must notice."""
    results = []
    for compiled in (False, True):
        G, D = networks("pytorch")
        optimizer = torch.optim.Adam(D.parameters(), 2e-3)
        update = torch.compile(optimizer.step, backend="aot_eager") if compiled else optimizer.step
        losses = []
        for real, _ in batches(D):
            optimizer.zero_grad()
            loss = adversarial_loss(D(real), REAL)
            loss.backward()
            update()
            with torch.no_grad():
                losses.append(D(real))
        results.append((torch.stack(losses), state(D)))
    assert_close(*results)


@pytest.mark.parametrize("preset", ["pytorch", "cgan-dcgan", "cgan-mnist"])
def test_a_compiled_network_takes_batches_of_any_size(preset: str) -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    _, D = models.build(preset, **NETS.get(preset, {"image_size": 16, "dropout": 0.0}))
    compiled = torch.compile(D, fullgraph=True, backend=counter)
    frames = []
    for n in (4, 5, 7, 9):
        inputs = torch.rand(n, D.nc, 16, 16), *([torch.arange(n)] if D.classes else [])
        torch.testing.assert_close(compiled(*inputs), D(*inputs), rtol=1e-4, atol=1e-5)
        compiled(*inputs).sum().backward()
        frames.append(counter.frame_count)
    assert len(set(frames[1:])) == 1  # the second size at the latest makes it dynamic


@pytest.mark.slow
def test_networks_of_inductor() -> None:
    assert_close(adversarial(True, "inductor"), adversarial(False), 1e-3)
