"""Networks as ONNX, to run where there is no PyTorch: ``generator.onnx`` and ``discriminator.onnx``.

Written only: such a graph, its batch norms folded, has lost what it was built from.

The graphs are of the plain children, which export sees in place of the fused ops: standard operators of opset 18, batch
norms in evaluation, folded into the layer before where they follow it, a batch of any size. Inputs are ``latent``
(N, nz), or ``images`` (N, nc, S, S), in float32, and of networks with labels ``labels`` (N,) in int64; outputs are
``images``, or ``logits`` (``probabilities`` of a D that ends in a sigmoid) (N,). The metadata's ``dcgan_fast`` is JSON:
the preset, the network's class, its config, and the range of its images.

By torch.export (``dynamo=True``), which PyTorch keeps up. Its older exporter by tracing is deprecated, leaves batch
norms of matrices in the graph, and writes the batch of the trace into one-hot labels.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import models
from ..errors import UserError
from ..files import write_bytes
from ..optional import installed_module, optional_module
from ..training import checkpoint as checkpoints
from .formats import Checkpoint, folder_for

SUFFIX = ".onnx"
_FILE = re.compile(r"(?:generator|discriminator)\.onnx")
_OPSET = 18
_TOLERANCE = 1e-4  # of the largest output, at least 1


def write_onnx(content: Checkpoint, out: Path) -> list[Path]:
    """Export the networks, compare what ONNX Runtime computes of each where it is installed, and write them."""
    onnx = optional_module("onnx", "convert(): ONNX export", "onnx")
    optional_module("onnxscript", "convert(): ONNX export", "onnx")
    networks = checkpoints.build_networks(content, source="the checkpoint")
    files: dict[str, bytes] = {}
    lacking, remarks = [], []
    for role, network in networks.items():
        network.float().eval()
        if content.get("bn") == "batch" and _never_averaged(network):
            lacking.append(
                f"the {role} keeps no running statistics, without which it cannot be exported"
            )
            continue
        model = _export(network)
        description = {
            "preset": content["preset"],
            "network": type(network).__name__,
            "config": network.config,
            "output_range": getattr(network, "output_range", None),
        }
        onnx.helper.set_model_props(model, {"dcgan_fast": json.dumps(description)})
        onnx.checker.check_model(model)
        if getattr(network, "sampling_dropout", False):
            remarks.append(f"the {role}'s graph draws with all units, as sample --no-dropout does")
        files[f"{role}{SUFFIX}"] = model.SerializeToString()
        _compare(role, network, files[f"{role}{SUFFIX}"])
    if not files:
        raise UserError(f"convert(): {'; '.join(lacking)}")
    folder = folder_for(files, out, _FILE)
    for message in [*(f"{each}: left out" for each in lacking), *remarks]:
        warnings.warn(message, stacklevel=2)
    for name, serialised in files.items():
        write_bytes(folder / name, serialised)
    return [folder / name for name in files]


def _never_averaged(network: nn.Module) -> bool:
    """Whether batch norms were never trained, nor given a population's statistics: those of Newmu's discriminators."""
    counts = [m.num_batches_tracked for m in network.modules() if isinstance(m, _BatchNorm)]
    return bool(counts) and all(count is None or int(count) == 0 for count in counts)


def _inputs(network: Any, batch: int) -> tuple[Tensor, ...]:
    stream = torch.Generator().manual_seed(batch)
    if isinstance(network, models.LatentNetwork):
        first = network.sample_latent(batch, generator=stream)
    else:
        shape = (batch, network.nc, network.image_size, network.image_size)
        first = torch.rand(shape, generator=stream)
    if not network.classes:
        return (first,)
    return first, torch.randint(network.classes, (batch,), generator=stream)


def _export(network: Any) -> Any:
    """The network's ModelProto."""
    if isinstance(network, models.LatentNetwork):
        output = "images"
    else:
        output = "logits" if network.output == "logits" else "probabilities"
    inputs = _inputs(network, 2)
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            network,
            inputs,
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            output_names=[output],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
        )
    assert program is not None
    return program.model_proto


def _compare(role: str, network: nn.Module, serialised: bytes) -> None:
    """Raises :class:`UserError` where ONNX Runtime is installed and computes something else."""
    runtime = installed_module("onnxruntime")
    if runtime is None:
        return
    session = runtime.InferenceSession(serialised, providers=["CPUExecutionProvider"])
    inputs = _inputs(network, 3)
    names = [each.name for each in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    (found,) = session.run(None, feed)
    with torch.no_grad():
        expected = network(*inputs)
    error = float((torch.from_numpy(found) - expected).abs().max())
    if not error <= _TOLERANCE * max(1.0, float(expected.abs().max())):  # nor NaN
        raise UserError(
            f"convert(): ONNX Runtime's {role} is off by {error:.2g}; nothing was written"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks: a failure is an exception."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
