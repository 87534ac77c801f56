"""Generators drawing images, in evaluation mode: against PyTorch and the inference engines that are installed."""

from __future__ import annotations

import copy
import functools
from functools import partial
from typing import Any

import engines
import numpy as np
import pytest
import torch
from contenders import DTYPES
from layers import FORWARD, NETS, SMALL, layers_of
from race import Contender
from torch import nn

from dcgan_fast import models, unfuse
from dcgan_fast.bench import Row

BATCHES = {"pytorch-64": (1, 16, 64, 256), "newmu-64": (1, 64)}
SMALL_BATCHES = (1, 4)
MOST_ROUNDS, FEWEST_ROUNDS = 51, 5
# Other engines have threads of their own, and everybody's spin for some time after their work.
SETTLE = 0.003
_CLOSE = {
    "float32": 1e-3,
    "bfloat16": 0.1,
}  # images are in (-1, 1); 0.1: tanh of what bfloat16 rounds


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    small = metafunc.config.getoption("--small")
    cases = [
        (n, b) for n, batches in BATCHES.items() for b in (SMALL_BATCHES if small else batches)
    ]
    metafunc.parametrize("net, batch", cases, ids=[f"{net}-batch-{batch}" for net, batch in cases])


@pytest.mark.parametrize("dtype", DTYPES)
def test_generator(net: str, batch: int, dtype: str, small: bool, compare) -> None:
    """bfloat16: the network converted as a whole, so that no weight is cast at each call."""
    torch.manual_seed(0)
    preset, overrides, _ = NETS[net]
    generator, _ = models.build(preset, **overrides, **(SMALL if small else {}))
    _make_statistics_uneven(generator)
    generator.eval().to(DTYPES[dtype])
    latent = generator.sample_latent(batch)

    def plain(memory_format: torch.memory_format = torch.channels_last) -> nn.Module:
        return unfuse(generator).to(memory_format=memory_format)

    fused = copy.deepcopy(generator).to(memory_format=torch.channels_last)
    onnx = functools.cache(lambda: engines.to_onnx(plain(), latent))
    torch._dynamo.reset()  # or it gives up compiling after eight cases
    makers = {
        "ours": lambda: engines.eager(fused, latent),
        "eager": lambda: engines.eager(plain(torch.contiguous_format), latent),
        "channels_last": lambda: engines.eager(plain(), latent),
        "folded": lambda: engines.folded(plain(), latent),
        "compile": lambda: engines.compiled(plain(), latent),
        "openvino": lambda: engines.openvino(onnx, latent),
        "onnxruntime": lambda: engines.onnxruntime(onnx, latent),
        "zentorch": lambda: engines.zentorch(plain(), latent),
    }
    contenders: dict[str, Contender] = {}
    skipped = {name: "left out of --small" for name in ("compile", "zentorch") if small}
    for name, make in makers.items():
        if name not in skipped:
            try:
                contenders[name] = make()
            except engines.Unavailable as reason:
                skipped[name] = str(reason)
    itemsize = DTYPES[dtype].itemsize
    layers, _ = layers_of(net, small, batch)
    compare(
        contenders,
        Row(
            table="infer",
            case={"net": net, "batch": str(batch), "dtype": dtype},
            dtype=dtype,
            seconds={},
            skipped=skipped,
            images=batch,
            gflop=sum(layer.flop(FORWARD) for layer in layers) / 1e9,
            gigabytes=sum(layer.bytes(itemsize, FORWARD, training=False) for layer in layers) / 1e9,
        ),
        agree=partial(_check_agreement, _CLOSE[dtype]),
        settle=SETTLE,
        least=FEWEST_ROUNDS,
        most=MOST_ROUNDS,
    )


@torch.no_grad()
def _make_statistics_uneven(generator: nn.Module) -> None:
    """A batch norm with mean 0 and variance 1, as built, could be left out without anybody noticing."""
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


def _check_agreement(close: float, results: dict[str, Any]) -> None:
    expected = _numbers(results["eager"])
    for name, result in results.items():
        assert np.abs(_numbers(result) - expected).max() <= close, name


def _numbers(result: object) -> np.ndarray:
    return result.float().numpy() if isinstance(result, torch.Tensor) else np.asarray(result)
