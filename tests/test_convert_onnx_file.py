"""ONNX files against PyTorch: ONNX Runtime computes the same to 1e-4, of batches of any size."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcgan_fast import models
from dcgan_fast.convert import convert, onnx_file
from dcgan_fast.errors import UserError
from dcgan_fast.training.checkpoint import load_networks, save_checkpoint


@pytest.fixture
def packages() -> tuple[Any, Any]:
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")


def save(path: Path, preset: str, *, lively: bool = True, bn: str = "running", **settings: Any):
    """A checkpoint whose outputs are of the size of 1, and whose batch norms have been in use."""
    torch.manual_seed(0)
    networks = models.build(preset, **settings)
    with torch.no_grad():
        for network in networks:
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, 0, 1.5 / parameter[0].numel() ** 0.5)
            for module in network.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and lively:
                    module.running_mean.normal_(0, 0.3)
                    module.running_var.uniform_(0.5, 2)
                    module.num_batches_tracked.fill_(3)
                    if module.affine:
                        module.bias.normal_(0, 0.3)
    roles = dict(zip(("generator", "discriminator"), networks, strict=True))
    content: dict[str, Any] = {
        "preset": preset,
        "config": {role: network.config for role, network in roles.items()},
        "networks": {role: type(network).__name__ for role, network in roles.items()},
        "bn": bn,
    }
    states = {role: network.state_dict() for role, network in roles.items()}
    save_checkpoint(path, {**content, **states})
    return path


def run(runtime: Any, path: Path, *inputs: Tensor) -> tuple[Any, Tensor]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    (output,) = session.run(None, feed)
    return session, torch.from_numpy(output)


NARROW = {"image_size": 16, "ngf": 4, "ndf": 4}
LABELLED = {**NARROW, "ngfc": 16, "ndfc": 16}


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("pytorch", NARROW),
        ("cgan-dcgan", LABELLED),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("newmu-imagenet32", {"ngf": 4, "ndf": 4, "output": "sigmoid"}),
                ("carpedm20", NARROW),
                ("cgan-dcgan", {**LABELLED, "conditioning": "projection"}),
                ("cgan-mnist", {"image_size": 8, "joint_units": 20, "x_units": 8, "y_units": 8}),
            )
        ),
    ],
)
def test_onnxruntime_agrees(
    packages: tuple[Any, Any], tmp_path: Path, preset: str, settings: dict[str, Any]
) -> None:
    onnx, runtime = packages
    path = save(tmp_path / "net.pt", preset, **settings)
    drops = preset == "cgan-mnist"
    with pytest.warns(UserWarning, match="draws with all units") if drops else nullcontext():
        done = convert(path, tmp_path / "graphs.onnx")
    assert [file.name for file in done.files] == ["generator.onnx", "discriminator.onnx"]
    for network, file in zip(load_networks(path)[:2], done.files, strict=True):
        assert network is not None
        network.eval()
        for batch in (1, 5):
            inputs = onnx_file._inputs(network, batch)
            session, output = run(runtime, file, *inputs)
            with torch.no_grad():
                expected = network(*inputs)
            assert output.shape == expected.shape and (batch == 1 or expected.abs().max() > 0.05)
            assert (output - expected).abs().max() < 1e-4
        graph = onnx.load(file)
        assert {opset.domain for opset in graph.opset_import} <= {"", "ai.onnx"}
        assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
        if preset == "pytorch":
            kinds = [node.op_type for node in graph.graph.node]
            assert "BatchNormalization" not in kinds and len(kinds) < 12, kinds
        is_generator = isinstance(network, models.LatentNetwork)
        first = "latent" if is_generator else "images"
        labels = ["labels"] if network.classes else []
        assert [each.name for each in session.get_inputs()] == [first, *labels]
        of_d = "probabilities" if settings.get("output") == "sigmoid" else "logits"
        assert session.get_outputs()[0].name == ("images" if is_generator else of_d)
        known = json.loads(session.get_modelmeta().custom_metadata_map["dcgan_fast"])
        assert known["config"] == network.config and known["preset"] == preset


def test_a_discriminator_without_statistics_is_left_out(
    packages: tuple[Any, Any], tmp_path: Path
) -> None:
    """As of the authors' arrays: its batch norms would pass everything on as it is."""
    path = save(tmp_path / "net.pt", "newmu", bn="batch", lively=False, **NARROW)
    generator, discriminator, content = load_networks(path)
    assert generator is not None
    generator.train()(generator.sample_latent(4))
    save_checkpoint(path, {**content, "generator": generator.state_dict()})
    with pytest.warns(UserWarning, match="the discriminator keeps no running stat.*: left out"):
        done = convert(path, tmp_path / "graphs", target_format="onnx")
    assert [file.name for file in done.files] == ["generator.onnx"]
    (tmp_path / "graphs" / "discriminator.onnx").write_bytes(b"of an older model")
    with pytest.raises(UserError, match="graphs holds discriminator.onnx, of another model"):
        convert(path, tmp_path / "graphs", target_format="onnx")
    assert discriminator is not None
    alone = {key: content[key] for key in ("preset", "bn", "discriminator")}
    config = {"discriminator": discriminator.config}
    save_checkpoint(tmp_path / "d.pt", {**alone, "config": config})
    with pytest.raises(UserError, match="the discriminator keeps no running statistics"):
        convert(tmp_path / "d.pt", tmp_path / "d", target_format="onnx")
    both = save(tmp_path / "both.pt", "newmu", bn="batch", lively=False, **NARROW)
    with pytest.raises(UserError, match="the generator keeps no .*; the discriminator keeps no"):
        convert(both, tmp_path / "d", target_format="onnx")
    assert not (tmp_path / "d").exists()


def test_a_graph_that_computes_something_else_is_not_written(
    packages: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx, _ = packages
    export = onnx_file._export

    def wrong(network: nn.Module) -> Any:
        model = export(network)
        kernel = next(each for each in model.graph.initializer if len(each.dims) == 4)
        values = onnx.numpy_helper.to_array(kernel) * np.float32(1.01)
        kernel.CopyFrom(onnx.numpy_helper.from_array(values, kernel.name))
        return model

    monkeypatch.setattr(onnx_file, "_export", wrong)
    path = save(tmp_path / "net.pt", "pytorch", **NARROW)
    with pytest.raises(UserError, match="ONNX Runtime's generator is off by .*; nothing was writ"):
        convert(path, tmp_path / "graphs", target_format="onnx")
    assert not (tmp_path / "graphs").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    if package == "onnxscript":
        pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, package, None)
    path = save(tmp_path / "net.pt", "pytorch", **NARROW)
    message = rf"ONNX export needs {package}: pip install {package}, or 'dcgan-fast\[onnx\]'"
    with pytest.raises(UserError, match=message):
        convert(path, tmp_path / "graphs", target_format="onnx")


def test_graphs_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "generator.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(UserError, match="is of no known format"):
        convert(tmp_path / "generator.onnx", tmp_path / "net.pt")
    with pytest.raises(UserError, match="'onnx' can be written only"):
        convert(tmp_path / "generator.onnx", tmp_path / "net.pt", source_format="onnx")
