"""Each op against PyTorch's own on every layer of the published networks, and the convolutions by themselves.

Training: inputs and weights want gradients, batch norm uses the statistics of the batch, and the weights
are new in each round, so that whatever is packed or transformed once per version of the weight is paid for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from contenders import DTYPES, Operands, operands, ours, plain
from layers import FORWARD, INPUT_GRAD, NETS, WEIGHT_GRAD, Layer, distinct

from dcgan_fast import functional, reference
from dcgan_fast.bench import Row

PASSES = ("forward", "forward+backward")
DIRECTIONS = (FORWARD, INPUT_GRAD, WEIGHT_GRAD)
EXAMPLE = {"pytorch-64": NETS["pytorch-64"]}
# Of the norm: is it the same function? A value within a rounding of an activation's kink takes the
# other side's gradient in one of two contenders, which one in millions of values does.
_CLOSE = {torch.float32: 0.01, torch.bfloat16: 0.05}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "layer" in metafunc.fixturenames:
        layers = LAYERS_OF[metafunc.function.__name__](metafunc.config.getoption("--small"))
        metafunc.parametrize("layer", layers, ids=[layer.id for layer in layers])


def fused_layers(small: bool) -> list[Layer]:
    return [layer for layer in distinct(NETS, small) if layer.op != "linear"]


def maps_with_norm(small: bool) -> list[Layer]:
    """Batch norm and activation of the example networks, as if the convolution were somebody else's."""
    maps: dict[Layer, tuple[str, ...]] = {}
    for layer in (layer for layer in distinct(EXAMPLE, small) if layer.normalised):
        alone = replace(
            layer, op="bn_act", input=layer.output, weight=(), bias=False, data_in=False
        )
        maps[alone] = layer.places
    return list(maps)


def strided_layers(small: bool) -> list[Layer]:
    """The 4x4 convolutions of stride 2 of the example networks."""
    return [layer for layer in distinct(EXAMPLE, small) if layer.stride == (2, 2)]


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_op(layer: Layer, dtype: str, passes: str, small: bool, compare) -> None:
    _compare_training(layer, dtype, passes, small, compare, table="ops")


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bn_act(layer: Layer, dtype: str, passes: str, small: bool, compare) -> None:
    _compare_training(layer, dtype, passes, small, compare, table="bn_act")


def _compare_training(
    layer: Layer, dtype: str, passes: str, small: bool, compare, table: str
) -> None:
    contiguous = operands(layer, DTYPES[dtype], torch.contiguous_format)
    channels_last = operands(layer, DTYPES[dtype], torch.channels_last)
    functions = {
        "ours": (ours, channels_last),
        "eager": (plain, contiguous),
        "channels_last": (plain, channels_last),
    }
    if not small:
        torch._dynamo.reset()  # or it gives up compiling after eight shapes
        functions["compile"] = (torch.compile(plain, dynamic=False), channels_last)
    run = forward if passes == "forward" else forward_and_backward
    contenders = {
        name: partial(run, layer, function, given) for name, (function, given) in functions.items()
    }
    counted = [FORWARD] if passes == "forward" else [FORWARD, WEIGHT_GRAD]
    if passes != "forward" and not layer.data_in:
        counted.append(INPUT_GRAD)
    compare(
        contenders,
        Row(
            table=table,
            case=_case(layer, dtype, passes, op=layer.op),
            dtype=dtype,
            seconds={},
            skipped={"compile": "left out of --small"} if small else {},
            gflop=layer.flop(*counted) / 1e9,
            gigabytes=layer.bytes(DTYPES[dtype].itemsize, *counted) / 1e9,
        ),
        agree=partial(_check_agreement, DTYPES[dtype]),
        between=_new_versions(contiguous, channels_last),
    )


def forward(layer: Layer, function: Callable[..., torch.Tensor], given: Operands) -> torch.Tensor:
    return function(layer, given)


def forward_and_backward(
    layer: Layer, function: Callable[..., torch.Tensor], given: Operands
) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(function(layer, given), given.leaves(layer), given.grad)


# The maps to which labels are added, and how many patterns of rows and columns: D's first layer and G's last two of
# cgan-dcgan, and a layer of 256x256 images.
PLANES = [
    ((128, 64, 14, 14), 3, "leaky_relu"),
    ((128, 64, 14, 14), 5, "none"),
    ((128, 1, 28, 28), 5, "sigmoid"),
    ((16, 64, 128, 128), 3, "leaky_relu"),
]


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, patterns, activation", PLANES)
def test_plane_bias_act(
    shape: tuple[int, ...],
    patterns: int,
    activation: str,
    dtype: str,
    passes: str,
    small: bool,
    compare,
) -> None:
    """In place, as the layers call it. PyTorch's: the biases spread over a map, an addition, the activation."""
    n, c, h, w = (2, 4, 6, 6) if small else shape
    stream = torch.Generator().manual_seed(0)
    maps, grad = (
        torch.randn(n, c, h, w, generator=stream)
        .to(DTYPES[dtype])
        .to(memory_format=torch.channels_last)
        for _ in range(2)
    )
    bias = torch.randn(n, c, patterns, patterns, generator=stream).to(DTYPES[dtype])
    of_pixels = torch.arange(h) % patterns, torch.arange(w) % patterns
    backward = passes != "forward"

    def contender(module) -> Callable[[], tuple[torch.Tensor, ...]]:
        given, of_patterns = maps.clone().requires_grad_(backward), bias.clone().requires_grad_()

        def run() -> tuple[torch.Tensor, ...]:
            with torch.set_grad_enabled(backward):
                # a copy in place of the convolution that makes the map, for all contenders
                output = module.plane_bias_act(
                    given.clone(), of_patterns, *of_pixels, activation=activation, inplace=True
                )
            if not backward:
                return (output,)
            return torch.autograd.grad(output, [given, of_patterns], grad)

        return run

    moved = 2 if not backward else 3 if activation == "none" else 5
    compare(
        {"ours": contender(functional), "eager": contender(reference)},
        Row(
            table="plane_bias_act",
            case={
                "maps": "x".join(map(str, (n, c, h, w))),
                "patterns": f"{patterns}x{patterns}",
                "activation": activation,
                "dtype": dtype,
                "passes": passes,
            },
            dtype=dtype,
            seconds={},
            gflop=0.0,
            gigabytes=(moved + 2) * maps.nbytes / 1e9,
        ),
        agree=partial(_check_agreement, DTYPES[dtype]),
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_convolution(layer: Layer, dtype: str, direction: str, small: bool, compare) -> None:
    """One direction at a time, without normalisation and activation."""
    op = layer.op.removesuffix("_bn_act").removesuffix("_act")
    alone = replace(layer, op=f"{op}_act", activation="none", bias=False, data_in=False)
    contiguous = operands(alone, DTYPES[dtype], torch.contiguous_format)
    channels_last = operands(alone, DTYPES[dtype], torch.channels_last)
    contenders = {
        "ours": OneDirection(alone, ours, channels_last, direction),
        "eager": OneDirection(alone, plain, contiguous, direction),
        "channels_last": OneDirection(alone, plain, channels_last, direction),
    }

    def between() -> None:
        for contender in contenders.values():
            contender.prepare()

    compare(
        contenders,
        Row(
            table="convolution",
            case=_case(alone, dtype, direction, op=op),
            dtype=dtype,
            seconds={},
            gflop=alone.flop(direction) / 1e9,
            gigabytes=alone.bytes(DTYPES[dtype].itemsize, direction) / 1e9,
        ),
        agree=partial(_check_agreement, DTYPES[dtype]),
        between=between,
    )


class OneDirection:
    """A backward direction is timed without its forward, which :meth:`prepare` runs."""

    def __init__(
        self,
        layer: Layer,
        function: Callable[..., torch.Tensor],
        given: Operands,
        direction: str,
    ) -> None:
        self._layer, self._function = layer, function
        self._given = replace(
            given,
            input=given.input.detach().requires_grad_(direction == INPUT_GRAD),
            weight=given.weight.detach().clone().requires_grad_(direction == WEIGHT_GRAD),
        )
        self._wanted = {
            INPUT_GRAD: self._given.input,
            WEIGHT_GRAD: self._given.weight,
        }.get(direction)
        self.prepare()

    def prepare(self) -> None:
        self._given.new_version()
        if self._wanted is not None:
            self._output = self._function(self._layer, self._given)

    def __call__(self) -> torch.Tensor:
        if self._wanted is None:
            with torch.no_grad():
                return self._function(self._layer, self._given)
        given = self._given.grad
        (found,) = torch.autograd.grad(self._output, self._wanted, given, retain_graph=True)
        return found


def _case(layer: Layer, dtype: str, passes: str, op: str) -> dict[str, str]:
    return {
        "op": op,
        "layer": str(layer),
        "where": ", ".join(layer.places),
        "batch": str(layer.batch),
        "dtype": dtype,
        "passes": passes,
    }


def _new_versions(*sets: Operands) -> Callable[[], None]:
    def run() -> None:
        for given in sets:
            given.new_version()

    return run


def _check_agreement(dtype: torch.dtype, results: dict[str, Any]) -> None:
    """All of them compute the same thing; how accurately is for the tests to say."""
    for name, result in results.items():
        for got, want in zip(_several(result), _several(results["eager"]), strict=True):
            error = (got.detach().float() - want.detach().float()).norm()
            assert error <= _CLOSE[dtype] * want.detach().float().norm(), name


def _several(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


LAYERS_OF = {
    "test_op": fused_layers,
    "test_bn_act": maps_with_norm,
    "test_convolution": strided_layers,
}
