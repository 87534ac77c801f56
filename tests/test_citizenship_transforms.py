"""The ops and networks under what transforms, traces or fakes calls: torch.func, forward mode, vmap, fake tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from dcgan_fast import functional, fuse, models, reference, unfuse
from dcgan_fast.labels import _pattern

TRAINING = {"training": True, "running_mean": None, "running_var": None}
PATTERNS = torch.tensor([0, 1, 1, 0])

OPS: dict[str, tuple[tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    # what they are differentiated by, and the rest
    "bn_act": (((4, 3, 4, 4), (3,), (3,)), {**TRAINING, "activation": "tanh"}),
    "conv_bn_act": (
        ((4, 3, 6, 6), (5, 3, 3, 3), (5,), (5,)),
        {**TRAINING, "stride": 2, "padding": 1, "activation": "tanh"},
    ),
    "conv_transpose_bn_act": (
        ((4, 3, 4, 4), (3, 5, 4, 4), (5,), (5,)),
        {**TRAINING, "stride": 2, "padding": 1, "activation": "sigmoid"},
    ),
    "conv_act": (((4, 3, 6, 6), (5, 3, 3, 3), (5,)), {"activation": "leaky_relu"}),
    "conv_transpose_act": (((4, 3, 4, 4), (3, 5, 4, 4), (5,)), {"activation": "tanh"}),
    "maxout_linear": (((4, 6), (5, 3, 6), (5, 3)), {}),
    "plane_bias_act": (
        ((4, 3, 4, 4), (4, 3, 2, 2)),
        {"rows": PATTERNS, "columns": PATTERNS, "activation": "tanh"},
    ),
}


def call_of(module: Any, op: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """``op`` as a function of what it is differentiated by, and values of that."""
    shapes, options = OPS[op]
    generator = torch.Generator().manual_seed(0)
    values = tuple(torch.randn(shape, generator=generator).double() for shape in shapes)
    names = ("bn_weight", "bn_bias") if "bn_" in op else ("bias",)
    if op == "maxout_linear" or op.startswith("conv"):
        names = ("weight", *names)
    return lambda *given: getattr(module, op)(
        given[0], **dict(zip(names, given[1:], strict=True)), **options
    ), values


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda f, v: torch.func.grad(lambda *a: f(*a).square().sum(), tuple(range(len(v))))(*v),
    "vjp": lambda f, v: torch.func.vjp(f, *v)[1](torch.ones_like(f(*v))),
    "jvp": lambda f, v: torch.func.jvp(f, v, tuple(t.cos() for t in v)),
    "jacrev": lambda f, v: torch.func.jacrev(lambda *a: f(*a).sum(0), 1)(*v),
    "jacfwd": lambda f, v: torch.func.jacfwd(lambda *a: f(*a).sum(0), len(v) - 1)(*v),
    "hessian": lambda f, v: torch.func.hessian(lambda *a: f(*a).square().sum(), len(v) - 1)(*v),
    "vmap": lambda f, v: torch.func.vmap(f)(*(torch.stack([t, 2 * t, -t]) for t in v)),
    "vmap of grad": lambda f, v: torch.func.vmap(
        torch.func.grad(lambda *a: f(*a).square().sum(), 1), (None, *(0 for _ in v[1:]))
    )(v[0], *(torch.stack([t, 2 * t]) for t in v[1:])),
    "functionalize": lambda f, v: torch.func.functionalize(f)(*v),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", OPS)
def test_ops_under_torch_func(op: str, transform: str) -> None:
    ours, theirs = (TRANSFORMS[transform](*call_of(m, op)) for m in (functional, reference))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("op", OPS)
def test_ops_in_forward_mode(op: str) -> None:
    f, values = call_of(functional, op)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(v, v.cos()) for v in values]
        found = torch.autograd.forward_ad.unpack_dual(f(*duals)).tangent
    expected = torch.func.jvp(call_of(reference, op)[0], values, tuple(v.cos() for v in values))[1]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("op", OPS)
def test_gradients_in_batches(op: str) -> None:
    """As vectorised Jacobians take them: vmap over the nodes' own backward."""
    f, values = call_of(functional, op)
    leaves = tuple(v.requires_grad_() for v in values)
    assert torch.autograd.gradcheck(
        f,
        leaves,
        fast_mode=True,
        check_batched_grad=True,
        check_forward_ad=True,
        check_batched_forward_grad=True,
    )


def test_a_batch_of_statistics_is_pytorchs_error() -> None:
    running = torch.zeros(3), torch.ones(3)

    def f(x: Tensor) -> Tensor:
        return functional.bn_act(x, torch.ones(3), torch.zeros(3), *running, training=True)

    with pytest.raises(RuntimeError, match="running_mean or running_var.* were not batched"):
        torch.func.vmap(f)(torch.randn(2, 4, 3, 5, 5))


# --------------------------------------------------------------------------------------- networks

PRESETS = ("pytorch", "newmu", "cgan-dcgan", "cgan-mnist")
NARROW = {
    "pytorch": {"image_size": 16, "ngf": 4, "ndf": 4, "nz": 5},
    "newmu": {"image_size": 16, "ngf": 4, "ndf": 4, "nz": 5},
    "cgan-dcgan": {"image_size": 16, "ngf": 4, "ndf": 4, "nz": 5, "ngfc": 8, "ndfc": 8},
    "cgan-mnist": {"image_size": 8, "nz": 5, "joint_units": 9, "x_units": 8, "y_units": 7},
}


def networks(preset: str, **options: Any) -> tuple[Any, Any, tuple[Tensor, ...]]:
    """G and D in evaluation, and what G is called with: latents, and labels where there are classes."""
    torch.manual_seed(0)
    G, D = models.build(preset, **NARROW[preset], **options)
    with torch.no_grad():
        for network in (G, D):
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(5)  # so that outputs differ
    labels = (torch.arange(4) % G.classes,) if G.classes else ()
    return G.eval(), D.eval(), (G.sample_latent(4), *labels)


@pytest.mark.parametrize("preset", PRESETS)
def test_networks_under_torch_func(preset: str) -> None:
    G, D, (latent, *labels) = networks(preset)

    def score(latent: Tensor, *labels: Tensor) -> Tensor:
        return D(G(latent, *labels), *labels)

    expected = score(latent, *labels)
    each = torch.func.vmap(lambda z, *y: score(z[None], *(of_one[None] for of_one in y))[0])
    torch.testing.assert_close(each(latent, *labels), expected, rtol=1e-4, atol=1e-5)

    leaf = latent.clone().requires_grad_()
    (of_latent,) = torch.autograd.grad(score(leaf, *labels).sum(), leaf)
    of_images = torch.func.grad(lambda z: score(z, *labels).sum())(latent)
    torch.testing.assert_close(of_images, of_latent, rtol=1e-3, atol=1e-5)
    _, tangent = torch.func.jvp(lambda z: score(z, *labels).sum(), (latent,), (latent,))
    torch.testing.assert_close(tangent, (of_latent * latent).sum(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_of_each_image(preset: str) -> None:
    """torch.func's own recipe: the weights' gradient for each sample, of a whole network."""
    _, D, (latent, *labels) = networks(preset)
    images = torch.rand(4, D.nc, D.image_size, D.image_size)
    weights = dict(D.named_parameters())

    def loss(weights: dict[str, Tensor], image: Tensor, *label: Tensor) -> Tensor:
        inputs = image[None], *(y[None] for y in label)
        return torch.func.functional_call(D, weights, inputs).square().sum()

    of_each = torch.func.vmap(torch.func.grad(loss), (None, 0, *(0 for _ in labels)))
    found = of_each(weights, images, *labels)
    for i in range(4):
        D.zero_grad()
        D(images[i : i + 1], *(y[i : i + 1] for y in labels)).square().sum().backward()
        for name, weight in weights.items():
            scale = weight.grad.abs().max().item()
            torch.testing.assert_close(
                found[name][i], weight.grad, rtol=1e-3, atol=1e-4 * scale, msg=name
            )


def test_an_ensemble_of_networks() -> None:
    """torch.func's recipe for many networks as one: vmap over stacked weights."""
    discriminators = [networks("pytorch")[1] for _ in range(3)]
    for factor, network in enumerate(discriminators, 1):
        nn.init.normal_(network.main[0].weight, 0, 0.1 * factor)
    weights, buffers = torch.func.stack_module_state(discriminators)
    images = torch.rand(4, 3, 16, 16)
    call = torch.func.vmap(
        lambda w, b: torch.func.functional_call(discriminators[0], (w, b), (images,))
    )
    expected = torch.stack([network(images) for network in discriminators])
    torch.testing.assert_close(call(weights, buffers), expected, rtol=1e-4, atol=1e-5)


def test_functional_call_runs_on_the_fused_ops() -> None:
    """Outside a transform nothing hides the tensors given for weights from the kernels."""
    _, D, _ = networks("pytorch")
    images = torch.rand(4, 3, 16, 16)
    weights = {k: (v.detach() + 0.01).requires_grad_() for k, v in D.named_parameters()}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = torch.func.functional_call(D, weights, (images,))
    assert "dcgan_fast::conv_bn_act_forward" in {event.name for event in profile.events()}
    found.sum().backward()
    D.load_state_dict({k: v.detach() for k, v in weights.items()}, strict=False)
    D(images).sum().backward()
    for name, parameter in D.named_parameters():
        torch.testing.assert_close(weights[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
        lambda f, x: torch.func.vmap(lambda image: f(image[None])[0])(x),
    ],
    ids=["grad", "vmap"],
)
def test_compiled_transforms(transform: Callable[..., Any]) -> None:
    """Not jvp: torch 2.13 compiles it of no network with a batch norm in evaluation, plain or not."""
    _, D, _ = networks("pytorch")
    images = torch.rand(4, 3, 16, 16)
    compiled = torch.compile(transform, backend="aot_eager", fullgraph=True)
    expected = transform(unfuse(D), images)
    torch.testing.assert_close(compiled(D, images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "function",
    [
        lambda f, x: torch.autograd.functional.jacobian(f, x),
        lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
        lambda f, x: torch.autograd.functional.jacobian(
            f, x, vectorize=True, strategy="forward-mode"
        ),
        lambda f, x: torch.autograd.functional.hvp(lambda x: f(x).square().sum(), x, x),
        lambda f, x: torch.autograd.functional.vhp(lambda x: f(x).square().sum(), x, x),
        lambda f, x: torch.autograd.functional.jvp(f, x, x),
    ],
    ids=["jacobian", "vectorised", "forward mode", "hvp", "vhp", "jvp"],
)
def test_autograd_functional(function: Callable[..., Any]) -> None:
    G, _, (latent,) = networks("pytorch")
    f = fuse(nn.Sequential(*G.main[1:-1], nn.AdaptiveAvgPool2d(1))).double().train()
    x = torch.rand(3, 8, 4, 4).double()
    torch.testing.assert_close(function(f, x), function(unfuse(f), x))


# ------------------------------------------------------------------- shapes without data, tracing


@pytest.mark.parametrize("preset", models.PRESETS)
def test_networks_of_fake_tensors(preset: str) -> None:
    """Built and trained a step without memory: how large runs are planned."""
    with torch.device("meta"):
        configured = models.build(preset)
    with FakeTensorMode():
        G, D = (type(network)(**network.config) for network in configured)
        labels = (torch.zeros(2, dtype=torch.int64),) if G.classes else ()
        images = G(G.sample_latent(2), *labels)
        D(images, *labels).sum().backward()
    assert images.shape == (2, G.nc, G.image_size, G.image_size)
    for network in (G, D):
        assert all(p.grad.shape == p.shape for p in network.parameters())


def test_nothing_fake_is_kept() -> None:
    """What a layer with labels keeps between calls is made of real tensors: fake ones are gone with their mode."""
    _pattern.cache_clear()
    G, _, inputs = networks("cgan-dcgan")
    expected = unfuse(G)(*inputs)
    with FakeTensorMode():
        type(G)(**G.config)(torch.rand(4, 5), torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(G(*inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", models.PRESETS)
def test_networks_on_the_meta_device(preset: str) -> None:
    with torch.device("meta"):
        G, D = models.build(preset)
        labels = (torch.zeros(2, dtype=torch.int64),) if G.classes else ()
        images = G(G.sample_latent(2), *labels)
        D(images, *labels).sum().backward()
    assert images.device.type == "meta"
    assert images.shape == (2, G.nc, G.image_size, G.image_size)
    assert all(p.grad.shape == p.shape for p in G.parameters())
    G.to_empty(device="cpu")  # as PyTorch's own recipe goes on
    models.weights_init(G)
    assert all(p.device.type == "cpu" for p in G.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_traced_networks_take_any_batch(preset: str) -> None:
    G, D, inputs = networks(preset)
    images = G(*inputs).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("error", torch.jit.TracerWarning)
        for network, given in ((G, inputs), (D, (images, *inputs[1:]))):
            traced = torch.jit.trace(network, given)
            few = [value[:3] for value in given]
            torch.testing.assert_close(traced(*few), network(*few), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("op", ["bn_act", "conv_bn_act", "conv_transpose_act", "maxout_linear"])
def test_traced_ops_are_the_ops(op: str) -> None:
    f, values = call_of(functional, op)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(f, values)
    assert f"dcgan_fast::{op}" in str(traced.graph)
    torch.testing.assert_close(traced(*(2 * v for v in values)), f(*(2 * v for v in values)))


@pytest.mark.parametrize("preset", ["pytorch", "cgan-dcgan"])
def test_scripting_names_the_way(preset: str) -> None:
    G, _, inputs = networks(preset)
    holder = nn.ModuleDict({"main": G.main})
    for module in (G.main, holder):
        with pytest.raises(RuntimeError, match=r"cannot be scripted; script dcgan_fast.unfuse\("):
            torch.jit.script(module)
    assert holder["main"] is G.main
    if preset == "pytorch":
        scripted = torch.jit.script(unfuse(G.main))
        latent = inputs[0][..., None, None]
        torch.testing.assert_close(scripted(latent), G.main(latent), rtol=1e-4, atol=1e-5)
