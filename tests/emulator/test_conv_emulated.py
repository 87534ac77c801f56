"""The CUDA kernels of the convolutions, run on the CPU: values against float64, order, races, bounds.

What is allowed is PyTorch's own error in the same type against float64, twice. In 16 bits that is the
rounding of the result: products and sums are float on both sides, so PyTorch's float32 convolution,
rounded, stands for it; in tf32, its convolution of operands rounded to tf32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate
from conv_emulated import PRECISIONS, ConvCase, EmulatedConv, Moments
from emulator_harness import DTYPES, SCHEDULES, Emulated, Refused, Tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

f32, bf16, f16 = DTYPES
KINDS = [(bf16, "tf32x3"), (f16, "tf32x3"), *((f32, precision) for precision in PRECISIONS)]

# Small relatives of a DCGAN's layers, and what only others have.
CASES = [
    ConvCase(2, (32, 8, 8), 48),  # tiles with rows to spare
    ConvCase(4, (64, 16, 16), 136, stat_groups=2),  # more than one tile each way
    ConvCase(3, (3, 14, 10), 64),  # a discriminator begins
    ConvCase(2, (3, 32, 32), 64),  # by chunks, and several runs of pixels an image
    ConvCase(2, (1, 12, 12), 24, kernel=(5, 5), padding=(2, 2)),
    ConvCase(2, (2, 11, 13), 72, kernel=(3, 3), stride=(1, 1)),
    ConvCase(4, (4, 9, 24), 64, kernel=(5, 5), padding=(2, 2), stat_groups=2),
    ConvCase(2, (8, 10, 9), 17, kernel=(3, 3), stride=(3, 3), padding=(0, 1)),
    ConvCase(1, (5, 14, 40), 24, kernel=(5, 5), padding=(2, 2)),  # the gradient's columns: tiles
    ConvCase(2, (1, 3, 300), 8, kernel=(2, 3), stride=(1, 1), padding=(0, 1)),  # runs within a row
    ConvCase(420, (1, 4, 3), 8, kernel=(3, 3)),  # several runs a block
    ConvCase(2, (9, 7, 9), 24),  # elements one by one
    ConvCase(8, (64, 4, 4), 100, stride=(1, 1), padding=(0, 0)),  # a generator begins
    ConvCase(8, (128, 4, 4), 1, stride=(1, 1), padding=(0, 0)),  # a discriminator ends
    ConvCase(
        1, (16, 20, 5), 16, kernel=(17, 3), stride=(1, 1), padding=(8, 1)
    ),  # too many taps for chunks
    ConvCase(2, (3, 34, 22), 40),  # going up, its output is several patches
    ConvCase(1, (1, 9, 30), 16, kernel=(5, 3), stride=(3, 1), padding=(0, 2)),
    ConvCase(2, (24, 9, 11), 16, kernel=(5, 3), stride=(2, 1), padding=(2, 0)),
    ConvCase(
        2, (16, 7, 7), 16, kernel=(2, 2), stride=(3, 3), padding=(0, 0)
    ),  # pixels no tap meets
    ConvCase(2, (40, 6, 5), 8, kernel=(3, 3), stride=(1, 1)),
    ConvCase(1, (16, 6, 6), 17, kernel=(6, 6), stride=(3, 3), padding=(3, 3)),
    ConvCase(2, (130, 5, 5), 72, kernel=(1, 1), stride=(1, 1), padding=(0, 0)),
    ConvCase(1, (64, 4, 4), 32),  # few tiles: the depth is split
    ConvCase(8, (16, 16, 16), 8),  # that of the weight gradient
    ConvCase(8, (3, 16, 16), 8),
]
# Warpgroups multiply: both directions and the weight gradient, or one of them.
WARPGROUP_CASES = [
    ConvCase(4, (64, 16, 16), 136, stat_groups=2, warpgroups=True),  # down
    ConvCase(3, (128, 6, 5), 64, kernel=(3, 3), stride=(1, 1), warpgroups=True),
    ConvCase(
        2, (24, 9, 12), 64, kernel=(5, 3), stride=(3, 2), padding=(2, 0), warpgroups=True
    ),  # up
    ConvCase(1, (64, 4, 4), 192, warpgroups=True),  # few tiles: the depth is split
    ConvCase(8, (72, 8, 8), 8, warpgroups=True),  # that of the weight gradient
]
# Their tiles are filled by the copy engine: both directions, or one of them.
BOX_CASES = [
    ConvCase(4, (64, 16, 16), 128, stat_groups=2, warpgroups=True, boxes=True),
    ConvCase(3, (128, 14, 14), 64, warpgroups=True, boxes=True),  # images of a box, rows to spare
    ConvCase(
        2, (64, 6, 12), 192, (5, 3), (3, 2), (2, 0), warpgroups=True, boxes=True
    ),  # few tiles: the depth is split
    ConvCase(
        1, (64, 2, 256), 64, (3, 3), (1, 1), warpgroups=True, boxes=True
    ),  # lines longer than a box
    ConvCase(
        2, (72, 8, 8), 64, (2, 2), (4, 4), (0, 0), warpgroups=True, boxes=True
    ),  # up; pixels no tap meets
    ConvCase(8, (64, 4, 4), 8, stride=(1, 1), padding=(0, 0), warpgroups=True, boxes=True),  # down
    ConvCase(
        4, (64, 16, 16), 8, (1, 1), (1, 1), (0, 0), warpgroups=True, boxes=True
    ),  # the weight gradient's pixels are split
]
TF32_BOX_CASES = [
    ConvCase(
        3, (96, 8, 4), 32, dtype=f32, precision="tf32", warpgroups=True, boxes=True
    ),  # half of a 16-bit stage
    ConvCase(
        *(2, (40, 6, 6), 160, (3, 3), (1, 1)),
        dtype=f32,
        precision="tf32",
        warpgroups=True,
        boxes=True,
    ),  # up
]
SMALL_CASES = [case for case in CASES if case.batch * case.fine[0] <= 200]


@pytest.fixture(scope="module")
def emulated(start: Callable[..., Emulated]) -> EmulatedConv:
    """The kernels without a sanitizer."""
    return start(EmulatedConv)


def round_to_tf32(x: Tensor) -> Tensor:
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def assert_right(case: ConvCase, inputs: Tensors, results: Tensors, floor: float = 2.0) -> None:
    def check(name: str, compute: Callable[[Tensor, Tensor], Tensor], *operands: Tensor) -> None:
        exact = compute(*(operand.double() for operand in operands))
        if case.dtype == f32 and case.precision == "tf32":
            operands = tuple(map(round_to_tf32, operands))
        theirs = compute(*(operand.float() for operand in operands)).to(case.dtype)
        assert_as_accurate([results[name]], [theirs], [exact], floor=floor)

    check("weight_grad", case.weight_grad, inputs["fine"], inputs["coarse"])
    for name in ("down", "down alone", "up", "up alone"):
        if name not in results:
            continue
        maps = "fine" if name.startswith("down") else "coarse"
        direction = name.partition(" ")[0]
        check(
            name,
            lambda maps, weight, direction=direction: finish(
                case, direction, inputs, case.convolve(direction, maps, weight)
            ),
            inputs[maps],
            inputs["weight"],
        )
        if name == direction and results[f"{direction} counts"].numel():
            moments = Moments(*(results[f"{direction} {name}"] for name in Moments._fields))
            assert_moments(case, results[direction], moments)
            assert torch.equal(results[f"{direction} gradient"], results[direction])
            assert_sums(case, direction, inputs, results[direction], results[f"{direction} sums"])


def finish(case: ConvCase, direction: str, inputs: Tensors, maps: Tensor) -> Tensor:
    """What the launcher does to a convolution's output, in the maps' dtype."""

    def parameter(name: str, default: float) -> Tensor:
        if name not in case.parameters:
            return torch.tensor(default, dtype=maps.dtype)
        return inputs[f"{direction} {name}"].to(maps.dtype)[:, None, None]

    scale = parameter("bn_weight", 1)
    if "var" in case.parameters:
        scale = scale / (parameter("var", 1) + 1e-5).sqrt()
    z = (maps - parameter("mean", 0)) * scale + parameter("bias", 0)
    if case.activation == "leaky_relu":
        return F.leaky_relu(z, 0.2)
    return z if case.activation == "none" else getattr(torch, case.activation)(z)


def assert_moments(case: ConvCase, maps: Tensor, moments: Moments) -> None:
    """The tiles' statistics, merged, are those of the stored maps."""
    values = maps.double().unflatten(0, (case.stat_groups, -1)).transpose(1, 2).flatten(2)
    counts = moments.counts.double()
    assert torch.equal(counts.sum(1), torch.full((case.stat_groups,), values.shape[2]).double())
    mean = (counts[..., None] * moments.mean).sum(1) / values.shape[2]
    m2 = (moments.m2 + counts[..., None] * (moments.mean - mean[:, None]) ** 2).sum(1)
    torch.testing.assert_close(mean, values.mean(2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        m2 / values.shape[2], values.var(2, unbiased=False), rtol=1e-4, atol=1e-6
    )


def assert_sums(
    case: ConvCase, direction: str, inputs: Tensors, gradient: Tensor, tile_sums: Tensor
) -> None:
    """Those of the tiles, added up, are those of the stored gradient of act(batch_norm(x)), dz and dz (x - mean)."""

    def below(name: str) -> Tensor:
        return inputs[f"{direction} below {name}"].double()

    def by_groups(maps: Tensor) -> Tensor:  # (G, C, values of a channel)
        return maps.double().unflatten(0, (case.stat_groups, -1)).transpose(1, 2).flatten(2)

    centred = by_groups(below("x")) - below("mean")[..., None]
    scale = (below("rstd") * below("weight"))[..., None]
    z = (centred * scale + below("bias")[:, None]).requires_grad_()
    y = {"none": lambda z: z, "relu": F.relu, "leaky_relu": lambda z: F.leaky_relu(z, 0.2)}[
        case.activation_below
    ](z)
    (dz,) = torch.autograd.grad(y, z, by_groups(gradient))
    for i, terms in enumerate((dz, dz * centred)):
        error = (tile_sums[..., i].double().sum(1) - terms.sum(2)).abs()
        # float32 sums by rows, threads, warps and tiles: some 16 roundings, of at most the sum of magnitudes
        assert (error <= 16 * torch.finfo(f32).eps * terms.abs().sum(2)).all(), (i, error.max())


def assert_same(first: Tensors, other: Tensors) -> None:
    assert first.keys() == other.keys()
    for name in first:
        assert torch.equal(first[name], other[name]), name


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(emulated: EmulatedConv, case: ConvCase, dtype: torch.dtype, precision: str) -> None:
    case = dataclasses.replace(case, dtype=dtype, precision=precision)
    inputs = case.inputs()
    assert_right(case, inputs, emulated.all(case, inputs))


@pytest.mark.parametrize("dtype", [bf16, f16])
@pytest.mark.parametrize("case", WARPGROUP_CASES, ids=str)
def test_values_of_warpgroups(emulated: EmulatedConv, case: ConvCase, dtype: torch.dtype) -> None:
    case = dataclasses.replace(case, dtype=dtype)
    inputs = case.inputs()
    assert_right(case, inputs, emulated.all(case, inputs))


@pytest.mark.parametrize("dtype", [bf16, f16, f32])
@pytest.mark.parametrize("case", [*BOX_CASES, *TF32_BOX_CASES], ids=str)
def test_values_of_boxes(emulated: EmulatedConv, case: ConvCase, dtype: torch.dtype) -> None:
    case = dataclasses.replace(case, dtype=dtype, precision="tf32")
    inputs = case.inputs()
    assert_right(case, inputs, emulated.all(case, inputs))


def test_the_copy_engine_serves(emulated: EmulatedConv) -> None:
    """Where channels are whole stages, all is of one size and boxes fill most of a tile's rows; in whole sectors."""

    def boxes(direction: str, *args: object, **options: object) -> int:
        case = ConvCase(*args, warpgroups=True, boxes=True, **options)  # type: ignore[arg-type]
        inputs = case.inputs()
        emulated.counters()
        if direction == "gradient":
            emulated.weight_grad(case, inputs)
        else:
            emulated.forward(case, direction, inputs)
        counted = emulated.counters()
        if counted["boxes"] and case.fine[0] % 16 == 0:
            assert counted["copied_bytes"] == 32 * counted["copied_sectors"] > 0, counted
        return counted["boxes"]

    for direction in ("down", "up"):
        for layer in ((2, (64, 8, 8), 64), (2, (128, 6, 6), 64, (3, 3), (1, 1))):
            assert boxes(direction, *layer) > 0
        assert boxes(direction, 2, (72, 8, 8), 72) == 0
        assert boxes(direction, 2, (64, 9, 8), 64, (3, 3), padding=(1, 1)) == 0  # unequal phases
        assert boxes(direction, 1, (64, 1, 67), 64, (1, 1), (1, 1), (0, 0)) > 0
        assert boxes(direction, 5, (64, 1, 67), 64, (1, 1), (1, 1), (0, 0)) == 0  # half of the rows
        for precision, served in (("tf32", True), ("tf32x3", False), ("fma", False)):
            layer = (2, (32, 8, 8), 32)
            assert (boxes(direction, *layer, dtype=f32, precision=precision) > 0) == served
    for layer in ((2, (64, 8, 8), 64), (1, (40, 16, 32), 8), (60, (64, 7, 7), 64, (3, 3), (1, 1))):
        assert boxes("gradient", *layer) > 0
    assert boxes("gradient", 2, (64, 8, 8), 64, dtype=f32, precision="tf32") == 0
    assert boxes("gradient", 30, (64, 7, 7), 64, (3, 3), (1, 1)) == 0  # half of the pixels
    assert boxes("up", 2, (72, 8, 8), 64) > 0 == boxes("down", 2, (72, 8, 8), 64)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_the_widest_boxes(emulated: EmulatedConv, direction: str) -> None:
    """Tiles of 256 columns, where there are enough of them."""
    case = (
        ConvCase(58, (64, 16, 16), 256, (1, 1), (1, 1), (0, 0), warpgroups=True, boxes=True)
        if direction == "down"
        else ConvCase(58, (256, 16, 16), 64, (2, 2), (2, 2), (0, 0), warpgroups=True, boxes=True)
    )
    inputs = case.inputs()
    emulated.counters()
    output, moments = emulated.forward(case, direction, inputs, statistics=True)
    counted = emulated.counters()
    assert counted["blocks"] == moments.counts.numel() == 116, counted
    assert counted["boxes"] > 0, counted
    maps = inputs["fine" if direction == "down" else "coarse"]
    exact = case.convolve(direction, maps.double(), inputs["weight"].double())
    theirs = case.convolve(direction, maps.float(), inputs["weight"].float()).to(case.dtype)
    assert_as_accurate([output], [theirs], [exact], floor=2.0)
    assert_moments(case, output, moments)
    gradient, sums = emulated.gradient_sums(case, direction, inputs)
    assert torch.equal(gradient, output)
    assert_sums(case, direction, inputs, gradient, sums)


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("param_dtype", [f32, bf16])
@pytest.mark.parametrize("parameters", [("bias",), ("mean", "var", "bn_weight", "bias"), ()])
def test_affine_and_activation(
    emulated: EmulatedConv, parameters: tuple[str, ...], param_dtype: torch.dtype, activation: str
) -> None:
    """Also of a layer whose pixels are columns: parameters repeat along a line."""
    for case in (
        ConvCase(2, (40, 6, 6), 24, activation=activation, parameters=parameters),
        ConvCase(3, (24, 4, 4), 20, stride=(1, 1), padding=(0, 0), parameters=parameters),
        ConvCase(2, (3, 16, 18), 72, precision="fma", activation=activation, parameters=parameters),
        ConvCase(2, (3, 8, 8), 27, precision="fma", activation=activation, parameters=parameters),
        ConvCase(
            *(2, (64, 8, 8), 64, (3, 3)),
            warpgroups=True,
            boxes=True,
            activation=activation,
            parameters=parameters,
        ),
    ):
        case = dataclasses.replace(
            case, param_dtype=param_dtype, dtype=bf16 if param_dtype == bf16 else f32
        )
        inputs = case.inputs()
        assert_right(case, inputs, emulated.all(case, inputs))


@pytest.mark.parametrize("param_dtype", [f32, bf16])
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
def test_sums_of_a_gradient(
    emulated: EmulatedConv, activation: str, param_dtype: torch.dtype
) -> None:
    dtype = bf16 if param_dtype == bf16 else f32
    for case in (
        ConvCase(4, (24, 9, 7), 70, stat_groups=2, activation_below=activation),
        ConvCase(1, (17, 6, 6), 24, activation_below=activation),
    ):
        case = dataclasses.replace(case, dtype=dtype, param_dtype=param_dtype)
        inputs = case.inputs()
        for direction in ("down", "up"):
            assert_sums(case, direction, inputs, *emulated.gradient_sums(case, direction, inputs))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_values_of_any_shape(emulated: EmulatedConv, data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    dtype, precision = data.draw(st.sampled_from(KINDS))
    groups = draw(1, 2)
    kernel, stride, padding = (
        (draw(low, high), draw(low, high)) for low, high in ((1, 5), (1, 3), (0, 3))
    )
    least = [max(k - 2 * p, 1) for k, p in zip(kernel, padding, strict=True)]
    case = ConvCase(
        groups * draw(1, 3),
        (draw(1, 70), draw(least[0], 9), draw(least[1], 9)),
        draw(1, 70),
        kernel,
        stride,
        padding,
        dtype,
        precision,
        groups,
    )
    if any(extra >= s for extra, s in zip(case.output_padding, stride, strict=True)):
        return  # no such transposed convolution in PyTorch
    inputs = case.inputs(draw(0, 1000))
    assert_right(case, inputs, emulated.all(case, inputs), floor=16)


def test_large_mean(emulated: EmulatedConv) -> None:
    """Statistics of values 1e4 times their deviation are those of the values as they are stored."""
    case = ConvCase(2, (16, 8, 8), 16, kernel=(1, 1), stride=(1, 1), padding=(0, 0), dtype=f32)
    inputs = case.inputs()
    inputs["fine"] += 1e4
    inputs["weight"] = torch.eye(16)[..., None, None]
    output, moments = emulated.forward(case, "down", inputs, statistics=True)
    torch.testing.assert_close(output, inputs["fine"])
    values = output.double().transpose(0, 1).flatten(1)
    counts = moments.counts[0].double()[:, None]
    mean = (counts * moments.mean[0]).sum(0) / values.shape[1]
    m2 = (moments.m2[0] + counts * (moments.mean[0] - mean) ** 2).sum(0)
    torch.testing.assert_close(
        m2 / values.shape[1], values.var(1, unbiased=False), rtol=0.02, atol=0
    )


def test_what_is_not_finite_stays_in_its_image(emulated: EmulatedConv) -> None:
    for dtype, precision in KINDS:
        case = ConvCase(3, (16, 6, 6), 24, dtype=dtype, precision=precision)
        inputs = case.inputs()
        whole = emulated.forward(case, "down", inputs)[0]
        inputs["fine"][0, 3, 2, 2], inputs["fine"][1, 3, 2, 2] = float("inf"), float("nan")
        output = emulated.forward(case, "down", inputs)[0]
        assert not output[0].isfinite().all() and not output[1].isfinite().all()
        assert torch.equal(output[2], whole[2])


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_what_is_not_finite_stays_where_images_are_met(
    emulated: EmulatedConv, dtype: torch.dtype, precision: str
) -> None:
    """Taps and pixels that fill up a fragment have zeros on both sides: times infinity they would be NaNs."""
    for case in (
        ConvCase(2, (3, 14, 10), 24),
        ConvCase(2, (3, 13, 16), 8, kernel=(5, 5), padding=(2, 2)),
        ConvCase(2, (1, 9, 7), 8, kernel=(3, 3), stride=(1, 1), padding=(0, 0)),
    ):
        case = dataclasses.replace(case, dtype=dtype, precision=precision)
        inputs = case.inputs()
        for y, x in ((0, 0), (4, 5), (8, 6)):
            fine = inputs["fine"].clone()
            fine[0, 0, y, x] = float("inf")
            given = inputs | {"fine": fine}
            output = emulated.forward(case, "down", given)[0]
            exact = case.convolve("down", fine.double(), inputs["weight"].double())
            assert torch.equal(output.isfinite(), exact.isfinite())
            grad = emulated.weight_grad(case, given)
            exact = case.weight_grad(fine.double(), inputs["coarse"].double())
            assert torch.equal(grad.isfinite(), exact.isfinite())


def test_an_empty_batch(emulated: EmulatedConv) -> None:
    for case in (ConvCase(0, (16, 6, 6), 24), ConvCase(0, (3, 6, 6), 24)):
        results = emulated.all(case, case.inputs())
        assert results["down"].shape == (0, 24, 3, 3)
        assert not results["weight_grad"].any()


def test_rules(emulated: EmulatedConv) -> None:
    case = ConvCase(2, (16, 6, 6), 24, activation="relu")
    with pytest.raises(Refused, match="statistics and sums are of what has no affine map"):
        emulated.forward(case, "down", case.inputs(), statistics=True)
    with pytest.raises(Refused, match="statistics and sums are of what has no affine map"):
        emulated.gradient_sums(case, "down", case.inputs())
    with pytest.raises(Refused, match="sums are of none, relu or leaky_relu"):
        smooth = dataclasses.replace(case, activation="none", activation_below="tanh")
        emulated.gradient_sums(smooth, "down", smooth.inputs())
    with pytest.raises(Refused, match="'stat_groups' must divide the batch"):
        emulated.forward(dataclasses.replace(case, stat_groups=3), "down", case.inputs())


@pytest.mark.parametrize("case", [*CASES, *WARPGROUP_CASES, *BOX_CASES, *TF32_BOX_CASES], ids=str)
def test_same_bits_under_every_schedule(emulated: EmulatedConv, case: ConvCase) -> None:
    inputs = case.inputs()
    first = emulated.all(case, inputs)
    for schedule in list(SCHEDULES)[1:]:
        for seed in (1, 2):
            assert_same(first, emulated.all(case, inputs, schedule, seed))


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["tsan", "asan"])
def test_sanitizers_are_silent(
    emulated: EmulatedConv, start: Callable[..., Emulated], sanitizer: str
) -> None:
    """No race and no access out of bounds or out of line, and the same bits as without."""
    watched = start(EmulatedConv, sanitizer)
    for dtype, precision in KINDS:
        for case in SMALL_CASES if dtype == bf16 else SMALL_CASES[:2]:
            case = dataclasses.replace(case, dtype=dtype, precision=precision)
            inputs = case.inputs()
            assert_same(emulated.all(case, inputs), watched.all(case, inputs, "random_warps", 5))
    for case in [*WARPGROUP_CASES[2:], *BOX_CASES[1:], *TF32_BOX_CASES]:
        inputs = case.inputs()
        assert_same(emulated.all(case, inputs), watched.all(case, inputs, "random_warps", 5))
    watched.close()


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_inner_loops_waste_no_pass_and_no_sector(
    emulated: EmulatedConv, dtype: torch.dtype, precision: str
) -> None:
    """No bank conflict in a fragment's load, and whole sectors of global memory."""
    wide = ConvCase(2, (128, 8, 8), 128, dtype=dtype, precision=precision)
    thin = ConvCase(1, (3, 16, 16), 64, dtype=dtype, precision=precision)
    inputs = {case: case.inputs() for case in (wide, thin)}
    emulated.counters()
    for run in (
        lambda: emulated.forward(wide, "down", inputs[wide]),
        lambda: emulated.forward(wide, "up", inputs[wide]),
        lambda: emulated.weight_grad(wide, inputs[wide]),
        lambda: emulated.forward(thin, "up", inputs[thin]),
    ):
        run()
        counted = emulated.counters()
        assert counted["shared_loads"] > 0 and counted["bank_conflicts"] == 0, counted
        assert counted["copied_bytes"] == 32 * counted["copied_sectors"] > 0, counted
        assert (counted["products"] > 0) == (precision != "fma" or dtype != f32), counted


def test_copies_of_warpgroups_waste_no_sector(emulated: EmulatedConv) -> None:
    """Their products read shared memory without fragments."""
    case = ConvCase(2, (128, 8, 8), 128, warpgroups=True)
    inputs = case.inputs()
    emulated.counters()
    for run in (
        lambda: emulated.forward(case, "down", inputs),
        lambda: emulated.forward(case, "up", inputs),
        lambda: emulated.weight_grad(case, inputs),
    ):
        run()
        counted = emulated.counters()
        assert counted["copied_bytes"] == 32 * counted["copied_sectors"] > 0, counted
        assert counted["products"] > 0 == counted["shared_loads"], counted


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_images_are_read_about_once(
    emulated: EmulatedConv, dtype: torch.dtype, precision: str
) -> None:
    """In whole sectors, rows that two runs of pixels meet twice; words of a fragment that lie in two kernel rows, or
    pixels of 32-bit elements, take a pass more, but every other time at most."""
    case = ConvCase(1, (3, 64, 64), 64, dtype=dtype, precision=precision)
    inputs = case.inputs()
    image, coarse = (inputs[name].numel() * dtype.itemsize for name in ("fine", "coarse"))
    emulated.counters()
    for run, bytes_read in (
        (lambda: emulated.forward(case, "down", inputs), 1.25 * image),
        (lambda: emulated.weight_grad(case, inputs), 1.5 * image + coarse),
    ):
        run()
        counted = emulated.counters()
        assert counted["copied_bytes"] == 32 * counted["copied_sectors"] <= bytes_read, counted
        assert counted["shared_loads"] > 0, counted
        assert 2 * counted["bank_conflicts"] <= counted["shared_loads"], counted
