"""Layers with labels against the concatenation that they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dcgan_fast import UserError, explain, fuse, unfuse
from dcgan_fast.labels import (
    Axis,
    FusedLabelSequential,
    LabelConv2d,
    LabelConvTranspose2d,
    LabelLinear,
    LabelSequential,
    check_labels,
    one_hot,
    patterns,
)
from dcgan_fast.nn import stat_groups

CONVOLUTIONS = [LabelConv2d, LabelConvTranspose2d]


def some_labels(batch: int, classes: int, soft: bool = False) -> Tensor:
    return torch.rand(batch, classes).softmax(1) if soft else torch.randint(classes, (batch,))


def run(sequence: nn.Module, x: Tensor, labels: Tensor) -> list[Tensor]:
    """[output, gradient of the input, gradients of the parameters, gradient of soft labels]."""
    leaves = [x.detach().requires_grad_(), *sequence.parameters()]
    if labels.is_floating_point():
        labels = labels.detach().requires_grad_()
        leaves.append(labels)
    y = sequence(leaves[0], labels)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def as_float64(sequence: nn.Module) -> nn.Module:
    return copy.deepcopy(sequence).double()


def compare(plain: nn.Module, x: Tensor, labels: Tensor, floor: float = 2.0) -> None:
    """``plain`` concatenates; its fused twin is held to its error against float64."""
    fused = fuse(plain)
    soft = labels.is_floating_point()
    exact = run(as_float64(plain), x.double(), labels.double() if soft else labels)
    theirs = run(copy.deepcopy(plain), x, labels)
    ours = run(fused, x, labels)
    layout = torch._prims_common.suggest_memory_format(theirs[0])
    assert ours[0].is_contiguous(memory_format=layout)
    assert_as_accurate(ours, theirs, exact, times=3.0, rounded=x.dtype, floor=floor)


# ---------------------------------------------------------------- the pieces


def test_patterns_of_the_examples_layers():
    down = patterns(Axis(28, 14, kernel=5, stride=2, padding=2, transposed=False))
    assert down[0] == [0, *[1] * 12, 2]
    assert [sum(taps) for taps in down[1]] == [3, 5, 4]
    up = patterns(Axis(7, 14, kernel=5, stride=2, padding=2, transposed=True))
    assert up[0] == [0, 1, *[2, 1] * 5, 3, 4]
    assert [sum(taps) for taps in up[1]] == [2, 2, 3, 2, 1]


@settings(max_examples=60, deadline=None)
@given(
    extent=st.integers(1, 12),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
    extra=st.integers(0, 3),
    transposed=st.booleans(),
)
def test_patterns_count_the_taps_that_meet_the_input(
    extent, kernel, stride, padding, extra, transposed
):
    ones, taps = torch.ones(1, 1, extent), torch.eye(kernel).unsqueeze(1)
    try:
        if transposed:
            extra = min(extra, stride - 1)
            met = F.conv_transpose1d(ones, taps.transpose(0, 1), None, stride, padding, extra)
        else:
            met = F.conv1d(ones, taps, None, stride, padding)
    except RuntimeError:
        assume(False)
    output = met.size(2)
    assume(output > 0)
    of_pixels, found = patterns(Axis(extent, output, kernel, stride, padding, transposed))
    assert torch.equal(torch.tensor(found)[of_pixels].T, met[0].bool())
    assert len(set(found)) == len(found)


def test_one_hot():
    assert torch.equal(
        one_hot(torch.tensor([2, 0]), 3, torch.float64), torch.eye(3).double()[[2, 0]]
    )
    soft = torch.rand(2, 3)
    assert torch.equal(one_hot(soft, 3, torch.float32), soft)


@pytest.mark.parametrize(
    "labels, words",
    [
        (torch.tensor([0, 3]), r"net\(\): 'labels' must be from 0 to 2, got 3"),
        (torch.tensor([-1, 0]), "'labels' must be from 0 to 2, got -1"),
        (torch.tensor([0]), r"'labels' must be int64 \(2,\), or .* got torch.int64 of shape \(1,\)"),
        (torch.tensor([0, 1], dtype=torch.int32), "got torch.int32"),
        (torch.rand(2, 4), r"got shape \(2, 4\)"),
    ],
)  # fmt: skip
def test_wrong_labels_are_named(labels, words):
    with pytest.raises(UserError, match=words):
        check_labels("net()", labels, 2, 3)


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("layer", [LabelLinear, *CONVOLUTIONS])
def test_a_layer_is_the_concatenation(layer):
    torch.manual_seed(0)
    arguments = (5, 3, 7) if layer is LabelLinear else (5, 3, 7, 4, 2, 1)
    with_label = layer(*arguments)
    x = torch.randn(4, 5) if layer is LabelLinear else torch.randn(4, 5, 6, 9)
    labels = some_labels(4, 3)
    hot = F.one_hot(labels, 3).float()
    planes = hot if layer is LabelLinear else hot[..., None, None].expand(-1, -1, 6, 9)
    plain = {
        LabelLinear: lambda: nn.Linear(8, 7),
        LabelConv2d: lambda: nn.Conv2d(8, 7, 4, 2, 1),
        LabelConvTranspose2d: lambda: nn.ConvTranspose2d(8, 7, 4, 2, 1),
    }[layer]()
    plain.load_state_dict(with_label.state_dict())  # one weight of the shape that concatenation has
    expected = plain(torch.cat([x, planes], 1))
    torch.testing.assert_close(with_label(x, labels), expected)
    fused = fuse(LabelSequential(with_label))
    torch.testing.assert_close(fused(x, labels), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    layer=st.sampled_from(CONVOLUTIONS),
    n=st.integers(0, 4),
    channels=st.tuples(st.integers(1, 9), st.integers(2, 6), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    extra=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    last=st.booleans(),
    soft=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_convolutions_agree_on_any_geometry(
    layer, n, channels, size, kernel, stride, padding, extra, last, soft, bias, seed
):
    torch.manual_seed(seed)
    arguments = (*channels, kernel, stride, padding)
    if layer is LabelConvTranspose2d:
        arguments += (tuple(min(e, s - 1) for e, s in zip(extra, stride, strict=True)),)
    plain = LabelSequential(layer(*arguments, bias=bias), nn.Tanh())
    x, labels = torch.randn(n, channels[0], *size), some_labels(n, channels[1], soft)
    if last:
        x, plain = (t.to(memory_format=torch.channels_last) for t in (x, plain))
    try:
        y = as_float64(plain)(x.double(), labels)
    except RuntimeError:  # PyTorch refuses this shape: so must we
        with pytest.raises((RuntimeError, ValueError)):
            fuse(plain)(x, labels)
        return
    assume(
        all(y.shape[2:])
    )  # of no pixels PyTorch makes an empty map if there are no images either
    compare(plain, x, labels, floor=1024)


def beside_no_kink(plain: nn.Module, labels: Tensor, *shape: int) -> Tensor:
    """Maps of which no value comes within 1e-6 of an activation's kink: on which side it falls, rounding would decide,
    and a gradient on the wrong side is off by far more than rounding."""
    exact, nearest = as_float64(plain), []
    for child in exact:
        if isinstance(child, (nn.ReLU, nn.LeakyReLU)):
            child.register_forward_pre_hook(lambda _, given: nearest.append(given[0].abs().min()))
    for _ in range(100):
        x = torch.randn(shape)
        nearest.clear()
        exact(x.double(), labels.double() if labels.is_floating_point() else labels)
        if min(nearest) > 1e-6:
            return x
    raise AssertionError("100 maps, and each has a value beside a kink")


@pytest.mark.parametrize("classes", [4, 40], ids=["few classes", "many classes"])
@pytest.mark.parametrize("soft", [False, True], ids=["integers", "weights"])
@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_layers_of_a_dcgan_agree(layer, soft, classes):
    torch.manual_seed(0)
    extra = (1,) if layer is LabelConvTranspose2d else ()
    plain = LabelSequential(
        layer(32, classes, 48, 5, 2, 2, *extra, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU(True),
        layer(48, classes, 64, 5, 2, 2, *extra),
        nn.LeakyReLU(0.2, True),
    ).to(memory_format=torch.channels_last)
    labels, side = some_labels(6, classes, soft), 7 if layer is LabelConvTranspose2d else 28
    x = beside_no_kink(plain, labels, 6, 32, side, side).to(memory_format=torch.channels_last)
    compare(plain, x, labels, floor=4.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_narrow_layers_agree(layer, dtype):
    torch.manual_seed(0)
    plain = LabelSequential(layer(16, 5, 24, 4, 2, 1), nn.Tanh()).to(dtype)
    x = torch.randn(6, 16, 8, 8).to(dtype)
    compare(plain, x, some_labels(6, 5), floor=4.0)


def test_groups_of_statistics_are_kept_apart():
    torch.manual_seed(0)
    net = LabelSequential(
        LabelConv2d(3, 4, 16, 4, 2, 1, bias=False),
        nn.BatchNorm2d(16, affine=False),
        nn.LeakyReLU(0.2, True),
    )
    fused, x, labels = fuse(net), torch.randn(8, 3, 8, 8), some_labels(8, 4)
    with stat_groups(fused, 2):
        together = fused(x, labels)
    parts = [net(part, of_part) for part, of_part in zip(x.chunk(2), labels.chunk(2), strict=True)]
    torch.testing.assert_close(together, torch.cat(parts), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(fused.named_buffers()), dict(net.named_buffers()))


@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_autocast_lowers_the_convolution_and_not_the_labels(layer):
    torch.manual_seed(0)
    plain = LabelSequential(layer(16, 5, 24, 4, 2, 1, bias=False), nn.Tanh())
    x, labels = torch.randn(6, 16, 8, 8), some_labels(6, 5)
    exact = run(as_float64(plain), x.double(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(fuse(plain), x, labels)
    assert ours[0].dtype == torch.bfloat16 and ours[1].dtype == torch.float32
    for found, expected in zip(ours, exact, strict=True):
        assert (found.double() - expected).norm() < 0.02 * expected.norm()


def test_the_second_derivative():
    torch.manual_seed(0)
    plain = LabelSequential(LabelConv2d(2, 3, 4, 3, 2, 1), nn.Tanh()).double()
    labels, grads = some_labels(4, 3), []
    for net in (plain, fuse(plain)):
        x = torch.linspace(-1, 1, 4 * 2 * 36).double().view(4, 2, 6, 6).requires_grad_()
        (g,) = torch.autograd.grad(net(x, labels).sum(), x, create_graph=True)
        grads.append(torch.autograd.grad(g.square().sum(), list(net.parameters())))
    torch.testing.assert_close(*grads)


# ---------------------------------------------------------------- manners


def a_net() -> LabelSequential:
    torch.manual_seed(0)
    return LabelSequential(
        LabelConv2d(3, 4, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(True),
        nn.Flatten(),
        LabelLinear(128, 4, 5),
    )


def test_no_plane_is_made():
    net, x, labels = fuse(a_net()), torch.randn(2, 3, 8, 8), some_labels(2, 4)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as profile:
        net(x, labels).sum().backward()
    joined = [event.input_shapes for event in profile.events() if event.name == "aten::cat"]
    assert not any(len(shape) == 4 and shape[1:] == [4, 8, 8] for s in joined for shape in s or [])
    sizes = {
        tuple(shape) for event in profile.events() for shape in event.input_shapes or [] if shape
    }
    assert (2, 7, 8, 8) not in sizes and (2, 4, 8, 8) not in sizes


def test_fuse_and_unfuse():
    net = a_net()
    fused = fuse(net)
    assert type(fused) is FusedLabelSequential and type(unfuse(fused)) is LabelSequential
    assert fused.state_dict().keys() == net.state_dict().keys()
    text = explain(fused, torch.randn(2, 3, 8, 8), some_labels(2, 4))
    assert "dcgan_fast.conv_act + plane_bias_act (" in text and "dcgan_fast.bn_act" in text
    assert "itself: a vector with its label" in text
    assert "in a plain Sequential" in explain(net)


def test_a_watched_layer_is_called():
    net, seen = fuse(a_net()), []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    x, labels = torch.randn(2, 3, 8, 8), some_labels(2, 4)
    torch.testing.assert_close(net(x, labels), a_net()(x, labels), rtol=1e-4, atol=1e-5)
    assert seen == [(2, 8, 4, 4)]
    assert "itself: has hooks" in explain(net)


@pytest.mark.parametrize("plan", [FusedLabelSequential, LabelSequential])
def test_export_sees_pytorchs_own_ops(plan):
    net = a_net().eval()
    net.__class__ = plan
    x, labels = torch.randn(2, 3, 8, 8), some_labels(2, 4)
    program = torch.export.export(net, (x, labels))
    assert not any("dcgan_fast" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x, labels), net(x, labels), rtol=1e-4, atol=1e-5)


def test_compile_fullgraph():
    x, labels, results = torch.randn(2, 3, 8, 8), some_labels(2, 4), []
    for compiled in (False, True):
        net = fuse(a_net())
        call = torch.compile(net, fullgraph=True, backend="aot_eager") if compiled else net
        results.append(run(call, x, labels))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_inference_first_and_training_after():
    """What is kept of a layer's geometry between calls must not be an inference tensor."""
    net = fuse(LabelSequential(LabelConv2d(3, 4, 8, 3, 1, 1)))
    x, labels = torch.randn(2, 3, 11, 13), some_labels(2, 4)
    with torch.inference_mode():
        net(x, labels)
    net(x, labels).sum().backward()
