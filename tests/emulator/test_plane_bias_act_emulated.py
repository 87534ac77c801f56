"""The CUDA kernels of biases of patterns, run on the CPU: values, order, races, bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from accuracy import assert_as_accurate
from emulator_harness import ACTIVATIONS, DTYPES, SCHEDULES, Emulated, Refused, Tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plane_bias_act_emulated import EmulatedPlaneBiasAct, PlaneCase

from dcgan_fast import reference

f32, bf16, f16 = DTYPES

# Several channel parts, several tiles of an image, several images of a tile; items in the channels of a pixel, across
# pixels, of single elements; a ragged end of each.
CASES = [
    PlaneCase((2, 64, 14, 14)),
    PlaneCase((3, 64, 14, 14), (5, 5), bf16, "none"),
    PlaneCase((2, 64, 28, 28), (3, 5), f16),  # in parts
    PlaneCase(
        (1, 72, 16, 20), (2, 3), bf16, "tanh"
    ),  # the last part of a pixel is a quarter of the others
    PlaneCase((2, 6, 50, 35), (1, 4), activation="sigmoid"),  # across pixels, in parts
    PlaneCase((2, 12, 26, 30), (3, 3), bf16, "relu"),
    PlaneCase((1, 40, 3, 250), (3, 3)),
    PlaneCase((5, 1, 28, 28), (5, 5), activation="sigmoid"),
    PlaneCase((5, 1, 28, 28), (5, 5), bf16, "tanh", channels_last=False),
    PlaneCase((3, 5, 6, 7), (2, 3), f16),
    PlaneCase((2, 40, 14, 15), (3, 3), misaligned_elements=1),
    PlaneCase(
        (1, 33, 9, 270), (3, 3), bf16, "relu"
    ),  # single elements, in parts of pixels and of the image
    PlaneCase((520, 2, 3, 4), (2, 2), channels_last=False),  # several images a tile
    PlaneCase((1100, 8, 2, 2), (2, 2), bf16, "none"),
    PlaneCase((2, 3, 300, 3), (6, 2)),  # more rows than are sorted at once
    PlaneCase((4, 16, 4, 4), (4, 4), in_place=True),
    PlaneCase((2, 8, 1, 1), (1, 1)),
]
NARROW = [case for case in CASES if case.shape[0] < 100]  # few blocks


@pytest.fixture(scope="module")
def emulated(start: Callable[..., Emulated]) -> EmulatedPlaneBiasAct:
    """The kernels without a sanitizer."""
    return start(EmulatedPlaneBiasAct)


def pytorch(case: PlaneCase, tensors: Tensors, result: Tensors, dtype: torch.dtype) -> Tensors:
    """What `reference` computes in `dtype`. Backward from the kernel's own output, so that no rounding of that decides
    on which side of a kink a value is."""
    rows, columns = tensors["rows"], tensors["columns"]
    options = {"activation": case.activation, "negative_slope": case.negative_slope}
    maps, bias = tensors["input"].to(dtype), tensors["bias"].to(dtype)
    output = reference.plane_bias_act(maps, bias, rows, columns, **options)
    y, grad = result["output"].to(dtype), tensors["grad"].to(dtype)
    slopes = {
        "none": lambda: torch.ones_like(y),
        "relu": lambda: (y > 0).to(dtype),
        "leaky_relu": lambda: torch.where(y > 0, 1.0, case.negative_slope).to(dtype),
        "tanh": lambda: 1 - y * y,
        "sigmoid": lambda: y * (1 - y),
    }
    of_input = grad * slopes[case.activation]()
    of_rows = torch.zeros(*case.shape[:2], case.patterns[0], case.shape[3], dtype=dtype)
    of_rows.index_add_(2, rows, of_input)
    of_bias = torch.zeros_like(bias).index_add_(3, columns, of_rows)
    return {"output": output, "grad_input": of_input, "grad_bias": of_bias}


def assert_right(case: PlaneCase, tensors: Tensors, result: Tensors, floor: float = 2.0) -> None:
    exact = pytorch(case, tensors, result, torch.float64)
    theirs = pytorch(case, tensors, result, case.dtype)
    for name, ours in result.items():
        assert_as_accurate(
            [ours],
            [theirs[name].to(ours.dtype)],
            [exact[name]],
            rounded=None if name == "grad_bias" else case.dtype,
            floor=floor,
        )


def assert_same(one: Tensors, other: Tensors) -> None:
    """Bit for bit, NaNs included."""
    for name, tensor in one.items():
        bits = [t.contiguous().flatten().view(torch.uint8) for t in (tensor, other[name])]
        assert torch.equal(*bits), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(emulated: EmulatedPlaneBiasAct, case: PlaneCase) -> None:
    tensors = case.tensors()
    assert_right(case, tensors, emulated.both(case, tensors))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_of_every_activation(
    emulated: EmulatedPlaneBiasAct, activation: str, dtype: torch.dtype, channels_last: bool
) -> None:
    for slope in (0.2, 0.0, 1.5):
        case = PlaneCase((3, 8, 6, 8), (3, 4), dtype, activation, channels_last, slope)
        tensors = case.tensors(1)
        assert_right(case, tensors, emulated.both(case, tensors))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 40), st.integers(0, 20), st.integers(1, 40)),
    patterns=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(ACTIVATIONS),
    channels_last=st.booleans(),
    in_place=st.booleans(),
    shift=st.sampled_from([0, 0, 1]),
    schedule=st.sampled_from(list(SCHEDULES)),
    seed=st.integers(0, 2**16),
)
def test_values_of_any_shape(
    emulated: EmulatedPlaneBiasAct,
    shape: tuple[int, int, int, int],
    patterns: tuple[int, int],
    dtype: torch.dtype,
    activation: str,
    channels_last: bool,
    in_place: bool,
    shift: int,
    schedule: str,
    seed: int,
) -> None:
    case = PlaneCase(
        shape,
        patterns,
        dtype,
        activation,
        channels_last,
        misaligned_elements=shift,
        in_place=in_place,
    )
    tensors = case.tensors(seed)
    random = torch.Generator().manual_seed(seed)
    for axis, name in enumerate(("rows", "columns")):
        size = (shape[2 + axis],)
        tensors[name] = torch.randint(patterns[axis], size, generator=random)
    assert_right(case, tensors, emulated.both(case, tensors, schedule, seed), floor=64)


def test_only_wanted_gradients(emulated: EmulatedPlaneBiasAct) -> None:
    for case in (PlaneCase((2, 64, 14, 14)), PlaneCase((2, 64, 28, 28), dtype=bf16)):
        tensors = case.tensors()
        everything = emulated.both(case, tensors)
        for name in ("grad_input", "grad_bias"):
            some = emulated.backward(case, tensors | everything, wanted=[name])
            assert_same({name: some[name]}, everything)
            other = some["grad_bias" if name == "grad_input" else "grad_input"]
            assert other.isnan().all()  # as it was
    emulated.backward(case, tensors | everything, wanted=[])


def test_empty_maps_have_no_gradient_of_biases(emulated: EmulatedPlaneBiasAct) -> None:
    for shape in ((3, 5, 0, 4), (3, 5, 4, 0)):
        found = emulated.both(PlaneCase(shape))
        assert torch.equal(found["grad_bias"], torch.zeros(3, 5, 3, 3))
    emulated.both(PlaneCase((0, 5, 3, 4)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays_in_its_pixel_and_pattern(
    emulated: EmulatedPlaneBiasAct, activation: str
) -> None:
    case = PlaneCase((2, 8, 6, 6), activation=activation)
    tensors = case.tensors()
    tensors["input"][1, 3, 2, 0] = float("nan")
    tensors["grad"][0, 2, 5, 5] = float("inf")
    found = emulated.both(case, tensors)
    x, bias = (tensors[name].clone().requires_grad_() for name in ("input", "bias"))
    y = reference.plane_bias_act(
        x, bias, tensors["rows"], tensors["columns"], activation=activation, negative_slope=0.2
    )
    y.backward(tensors["grad"])
    theirs = {"output": y, "grad_input": x.grad, "grad_bias": bias.grad}
    for name, expected in theirs.items():
        torch.testing.assert_close(found[name], expected.detach(), equal_nan=True)
        assert name == "output" or not found[name].isfinite().all()


def test_patterns_that_do_not_exist(emulated: EmulatedPlaneBiasAct) -> None:
    """Their pixels are NaN and count for no bias; nothing else is touched."""
    case = PlaneCase((2, 8, 6, 7), (3, 2), activation="none")
    tensors = case.tensors()
    right = emulated.both(case, tensors)
    wrong = {**tensors, "rows": tensors["rows"].clone(), "columns": tensors["columns"].clone()}
    wrong["rows"][2], wrong["columns"][6] = 3, -(2**40)
    found = emulated.both(case, wrong)
    lost = torch.zeros(6, 7, dtype=torch.bool)
    lost[2], lost[:, 6] = True, True
    assert torch.equal(found["output"].isnan(), lost.expand_as(found["output"]))
    assert torch.equal(found["output"][..., ~lost], right["output"][..., ~lost])
    tensors["grad"] = tensors["grad"].masked_fill(lost, 0)
    assert torch.equal(found["grad_bias"], emulated.both(case, tensors)["grad_bias"])


@pytest.mark.parametrize("case", NARROW, ids=str)
def test_same_bits_under_every_schedule(emulated: EmulatedPlaneBiasAct, case: PlaneCase) -> None:
    tensors = case.tensors()
    first = emulated.both(case, tensors)
    for schedule in list(SCHEDULES)[1:]:
        assert_same(first, emulated.both(case, tensors, schedule, 2))


def test_an_image_does_not_depend_on_its_batch(emulated: EmulatedPlaneBiasAct) -> None:
    case = PlaneCase((520, 2, 3, 4), (2, 2), channels_last=False)
    tensors = case.tensors()
    whole = emulated.both(case, tensors)
    for name in ("input", "bias", "grad"):
        tensors[name] = tensors[name][7:8]
    alone = emulated.both(dataclasses.replace(case, shape=(1, 2, 3, 4)), tensors)
    assert_same(alone, {name: tensor[7:8] for name, tensor in whole.items()})


@pytest.mark.parametrize("sanitizer", ["tsan", "asan"])
def test_sanitizers_are_silent(
    emulated: EmulatedPlaneBiasAct, start: Callable[..., Emulated], sanitizer: str
) -> None:
    watched = start(EmulatedPlaneBiasAct, sanitizer)
    for case in NARROW:
        tensors = case.tensors()
        ours, theirs = (e.both(case, tensors, "random_warps", 5) for e in (emulated, watched))
        assert_same(ours, theirs)
    watched.close()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (PlaneCase((-1, 8, 4, 4)), "negative"),
        (PlaneCase((1, 8, 4, 1025)), "at most 1024 columns"),
        (PlaneCase((1, 8, 4, 4), (0, 3)), "1 to 64 patterns"),
        (PlaneCase((1, 8, 4, 4), (3, 65)), "1 to 64 patterns"),
        (PlaneCase((1, 8, 4, 4)), "'rows' or 'columns' is null"),
    ],
)
def test_rules(emulated: EmulatedPlaneBiasAct, case: PlaneCase, words: str) -> None:
    with pytest.raises(Refused, match=words):
        emulated.rules(case)
    with pytest.raises(Refused, match="'input', 'output' or 'bias' is null"):
        emulated.rules(PlaneCase((1, 8, 1, 1)), patterns=True)
