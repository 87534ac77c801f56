"""torch.export and ONNX of every published network in evaluation: PyTorch's own ops, a batch of any size."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcgan_fast import models
from dcgan_fast.convert import onnx_file

NARROW: dict[str, Any] = {"ngf": 4, "ndf": 4, "nz": 6}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"image_size": 16, **NARROW}) for name in ("pytorch", "paper", "newmu")},
    "carpedm20": ("carpedm20", {"image_size": 32, **NARROW}),
    "newmu-svhn": ("newmu-svhn", NARROW),
    "newmu-imagenet32": ("newmu-imagenet32", NARROW),
    "cgan-dcgan": ("cgan-dcgan", {"image_size": 16, **NARROW, "ngfc": 8, "ndfc": 8}),
    "cgan-dcgan of no units": ("cgan-dcgan", {"image_size": 16, **NARROW, "ngfc": 0, "ndfc": 0}),
    "cgan-dcgan by projection": (
        "cgan-dcgan",
        {"image_size": 16, **NARROW, "ngfc": 8, "ndfc": 8, "conditioning": "projection"},
    ),
    "cgan-mnist": (
        "cgan-mnist",
        {"image_size": 8, "nz": 6, "joint_units": 9, "x_units": 8, "y_units": 7},
    ),
    "sigmoid": ("pytorch", {"image_size": 16, **NARROW, "output": "sigmoid"}),
    "sizes of one": ("cgan-dcgan", {"image_size": 28, "nc": 1, "ngf": 1, "ndf": 1, "nz": 1}),
}


def networks(case: str) -> tuple[Any, Any]:
    """G and D in evaluation, with batch norms that have been in use and outputs of the size of 1."""
    torch.manual_seed(0)
    preset, settings = PRESETS[case]
    nets = models.build(preset, **settings)
    with torch.no_grad():
        for net in nets:
            net.eval()
            for parameter in net.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, 0, 1.5 / parameter[0].numel() ** 0.5)
            for module in net.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.3)
                    module.running_var.uniform_(0.5, 2)
    return nets


def test_every_preset_is_here() -> None:
    assert set(models.PRESETS) <= {preset for preset, _ in PRESETS.values()}


QUICK = (("cgan-dcgan", True), ("cgan-mnist", False))  # test_models.py has others


@pytest.mark.parametrize(
    "case, strict",
    [
        each if each in QUICK else pytest.param(*each, marks=pytest.mark.slow)
        for each in itertools.product(PRESETS, (False, True))
    ],
)
def test_export(case: str, strict: bool) -> None:
    batch = torch.export.Dim("batch")
    for net in networks(case):
        inputs = onnx_file._inputs(net, 2)
        program = torch.export.export(
            net, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=strict
        )
        assert "dcgan_fast" not in program.graph_module.code
        for n in (1, 5):
            inputs = onnx_file._inputs(net, n)
            torch.testing.assert_close(
                program.module()(*inputs), net(*inputs), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("case", ["pytorch", "cgan-dcgan"])
def test_export_for_training_goes_on_as_the_network(case: str) -> None:
    """The graph of a network in training: batch statistics, the running ones updated, gradients of its weights."""
    for net in networks(case):
        net.train()
        inputs = onnx_file._inputs(net, 4)
        program = torch.export.export(net, inputs)
        module = program.module()
        expected, found = net(*inputs), module(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        expected.square().sum().backward()
        found.square().sum().backward()
        theirs = dict(net.named_parameters())
        for name, parameter in module.named_parameters():
            scale = theirs[name].grad.abs().max().item()
            torch.testing.assert_close(
                parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-3 * scale, msg=name
            )
        buffers = dict(net.named_buffers())
        for name, buffer in module.named_buffers():
            torch.testing.assert_close(buffer, buffers[name], rtol=1e-4, atol=1e-5, msg=name)


def test_exported_programs_are_saved_and_loaded(tmp_path: Any) -> None:
    G, _ = networks("pytorch")
    inputs = onnx_file._inputs(G, 3)
    torch.export.save(torch.export.export(G, inputs), tmp_path / "g.pt2")
    module = torch.export.load(tmp_path / "g.pt2").module()
    torch.testing.assert_close(module(*inputs), G(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",  # the others are in test_convert_onnx_file.py
    ["paper", "newmu", "newmu-svhn", "cgan-dcgan of no units", "sigmoid", "sizes of one"],
)
def test_onnx(case: str) -> None:
    pytest.importorskip("onnxscript")
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    for net in networks(case):
        model = onnx_file._export(net)
        onnx.checker.check_model(model)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        session = runtime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        names = [each.name for each in session.get_inputs()]
        for n in (1, 5):
            inputs: tuple[Tensor, ...] = onnx_file._inputs(net, n)
            feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
            (found,) = session.run(None, feed)
            with torch.no_grad():
                expected = net(*inputs)
            scale = expected.abs().max().clamp_min(1).item()
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4 * scale)
