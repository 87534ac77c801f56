"""Do the checks of the emulated kernels see anything? Bugs are planted in copies of the kernels, as
edits of the source, and each must be caught by the check that is meant for its kind."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from accuracy import assert_as_accurate
from bn_act_emulated import Case, EmulatedBnAct
from conv_emulated import ConvCase, EmulatedConv
from emulator_harness import KERNELS, Builder, Emulated, Fault, Refused, Tensors
from first_occurrence_emulated import (
    EmulatedFirstOccurrence,
    colliding_codes,
    first_occurrences,
)
from gather_images_emulated import EmulatedGatherImages, GatherCase
from gather_images_emulated import expected as gathered
from maxout_linear_emulated import EmulatedMaxout, MaxoutCase
from pack_codes_emulated import EmulatedPackCodes, PackCase, packed
from parzen_emulated import EmulatedParzen, ParzenCase
from plane_bias_act_emulated import EmulatedPlaneBiasAct, PlaneCase
from test_bn_act_emulated import assert_right
from test_conv_emulated import assert_right as assert_conv_right
from test_conv_emulated import assert_same, round_to_tf32
from test_first_occurrence_emulated import assert_right as assert_firsts_right
from test_first_occurrence_emulated import half_are_one, many_codes, random_codes
from test_maxout_linear_emulated import assert_right as assert_maxout_right
from test_parzen_emulated import assert_right as assert_parzen_right
from test_plane_bias_act_emulated import assert_right as assert_planes_right

pytestmark = pytest.mark.slow

CASES = [
    Case(6, 24, 90, activation="leaky_relu", stat_groups=2),
    Case(6, 5, 64, channels_last=False, misaligned_elements=1),
    Case(20, 3, 98, channels_last=False, stat_groups=2),
    Case(8, 64, 40, activation="none"),
]


CONV_CASES = [
    ConvCase(4, (16, 8, 8), 24, stat_groups=2),
    ConvCase(1, (64, 4, 4), 32),  # the depth is split
    ConvCase(3, (3, 7, 5), 24, kernel=(3, 3), padding=(1, 0)),
    ConvCase(1, (3, 34, 22), 16),  # going up, several patches
    ConvCase(2, (16, 8, 1), 8, kernel=(3, 3)),  # going up, phases without pixels
    ConvCase(8, (16, 17, 12), 72, kernel=(1, 1), stride=(1, 1), padding=(0, 0)),
    ConvCase(2, (9, 8, 9), 24),  # elements one by one
    ConvCase(1, (72, 10, 10), 128, kernel=(3, 3), stride=(1, 1), warpgroups=True),
]

GATHER_CASES = [
    GatherCase((3, 8, 8), channels_last=True),
    GatherCase((3, 5, 7)),
    GatherCase((1, 4, 4), channels_last=True, misaligned_elements=1),
]
PACK_CASES = [
    PackCase(30, 128),
    PackCase(5, 100),
    PackCase(9, 33),
    PackCase(9, 64, misaligned_elements=1),
    PackCase(140, 100),
]

CODES = [
    half_are_one(700, 2),
    random_codes(300, 1, 30),
    half_are_one(260, 3),
    random_codes(5000, 2, 4000),
    colliding_codes(40, 2, 0.9999, same_tag=False),
    colliding_codes(40, 2, 0.3, same_tag=True),
]

PARZEN_CASES = [
    ParzenCase(31, 3, 5),
    ParzenCase(200, 130, 18, (0.05, 0.5)),
    ParzenCase(65, 40, 20, precision="tf32"),
]

MAXOUT_CASES = [
    MaxoutCase(65, 20, 33, 3),
    MaxoutCase(5, 10, 50, 5),  # elements one by one
    MaxoutCase(70, 40, 20, 2, torch.bfloat16),
]

PLANE_CASES = [
    PlaneCase((1, 72, 16, 20)),  # the last part of a pixel is half as large
    PlaneCase((2, 6, 50, 35), (4, 4)),  # across pixels, in parts
    PlaneCase((6, 4, 6, 5), (3, 2), activation="none"),  # several images a tile
    PlaneCase((2, 8, 6, 7), misaligned_elements=1),
]

# Of the kernels that read images: several runs of pixels a block and an image, rows of chunks and of elements, padding.
IMAGE_CASES = [
    ConvCase(10, (1, 4, 3), 8, kernel=(3, 3)),
    ConvCase(1, (3, 32, 32), 64),
    ConvCase(2, (3, 13, 10), 72, kernel=(5, 5), padding=(2, 2)),
]


# Of tiles that the copy engine fills: two boxes an image, images of a box, tiles of columns, and the widest of them.
BOX_CASES = [
    ConvCase(1, (64, 16, 16), 64, (3, 3), (1, 1), warpgroups=True, boxes=True),
    ConvCase(3, (64, 8, 8), 320, warpgroups=True, boxes=True),
    ConvCase(3, (128, 8, 8), 64, (3, 3), (1, 1), warpgroups=True, boxes=True),
    ConvCase(4, (64, 16, 16), 136, (1, 1), (1, 1), (0, 0), warpgroups=True, boxes=True),
]
TF32_BOX_CASE = ConvCase(2, (40, 8, 8), 64, dtype=torch.float32, precision="tf32", boxes=True)


class EmulatedBoxConv(EmulatedConv):
    """The same launchers, for bugs that those cases show."""


class EmulatedImageConv(EmulatedConv):
    """The same launchers, for bugs that those cases show."""


def run_all(
    emulated: Emulated, schedule: str = "in_order", seed: int = 1
) -> Iterator[tuple[Callable[[], None], Tensors]]:
    """The results of each case, and what checks their values."""
    if isinstance(emulated, EmulatedBnAct):
        for case in CASES:
            inputs = case.inputs()
            results = emulated.both(case, inputs, schedule, seed)
            yield functools.partial(assert_right, case, inputs, results), results
    elif isinstance(emulated, EmulatedImageConv):
        for image in IMAGE_CASES:
            yield check_images(emulated, image, schedule, seed)
    elif isinstance(emulated, EmulatedConv):
        for conv in BOX_CASES if isinstance(emulated, EmulatedBoxConv) else CONV_CASES:
            inputs = conv.inputs()
            results = emulated.all(conv, inputs, schedule, seed)
            yield functools.partial(assert_conv_right, conv, inputs, results), results
        if isinstance(emulated, EmulatedBoxConv):
            yield check_tf32_boxes(emulated, schedule, seed)
    elif isinstance(emulated, EmulatedGatherImages):
        for gather in GATHER_CASES:
            images, rows, flips = gather.tensors()
            right = gathered(gather, images, rows, flips)
            rows[0], right[0] = gather.count, -7.0  # not there: NaN
            output = emulated.gather(gather, images, rows, flips, schedule, seed)
            results = {"output": output.nan_to_num(-7.0)}
            yield functools.partial(assert_same, {"output": right}, results), results
    elif isinstance(emulated, EmulatedPackCodes):
        for pack in PACK_CASES:
            activations = pack.activations()
            activations[pack.rows // 2 :, 3::7] = float("nan")
            codes, place = emulated.pack(pack, activations, schedule, seed)
            results = {"codes": codes, "first_nan": torch.tensor(place)}
            first = torch.tensor(pack.rows // 2 * pack.bits + 3)
            expected = {"codes": packed(pack, activations), "first_nan": first}
            yield functools.partial(assert_same, expected, results), results
    elif isinstance(emulated, EmulatedFirstOccurrence):
        for codes in CODES:
            results = emulated.find(codes, schedule, seed)
            expected = first_occurrences(codes)
            yield functools.partial(assert_firsts_right, expected, results), results
    elif isinstance(emulated, EmulatedParzen):
        for case in PARZEN_CASES:
            yield check_windows(emulated, case, schedule, seed)
    elif isinstance(emulated, EmulatedMaxout):
        for units in MAXOUT_CASES:
            tensors = units.tensors()
            results = emulated.units(units, tensors, schedule, seed)
            yield functools.partial(assert_maxout_right, units, tensors, results), results
    elif isinstance(emulated, EmulatedPlaneBiasAct):
        for planes in PLANE_CASES:
            tensors = planes.tensors()
            results = emulated.both(planes, tensors, schedule, seed)
            yield functools.partial(assert_planes_right, planes, tensors, results), results


def check_windows(
    emulated: EmulatedParzen, case: ParzenCase, schedule: str, seed: int
) -> tuple[Callable[[], None], Tensors]:
    """Log-sums of numbers; and the first row that is none, among others."""
    samples, data = case.inputs()
    log_sums, bad_row = emulated.windows(case, samples, data, schedule, seed)
    spoilt = data.clone()
    spoilt[1:, 0] = float("nan")
    _, first = emulated.windows(case, samples, spoilt, schedule, seed)

    def check() -> None:
        assert_parzen_right(case, samples, data, (log_sums, bad_row))
        assert first == case.count + 1

    return check, {"log_sums": log_sums, "bad_rows": torch.tensor([bad_row, first])}


def check_tf32_boxes(
    emulated: EmulatedConv, schedule: str, seed: int
) -> tuple[Callable[[], None], Tensors]:
    """Going up, by a weight that is packed."""
    case = TF32_BOX_CASE
    inputs = case.inputs()
    output, _ = emulated.forward(case, "up", inputs, schedule, seed)

    def check() -> None:
        exact, theirs = (
            case.convolve("up", change(inputs["coarse"]), change(inputs["weight"]))
            for change in (torch.Tensor.double, round_to_tf32)
        )
        assert_as_accurate([output], [theirs], [exact], floor=2.0)

    return check, {"up": output}


def check_images(
    emulated: EmulatedConv, case: ConvCase, schedule: str, seed: int
) -> tuple[Callable[[], None], Tensors]:
    """Going down by either way out, and the weight gradient."""
    inputs = case.inputs()
    results = {"weight_grad": emulated.weight_grad(case, inputs, schedule, seed)}
    results["down alone"], _ = emulated.forward(case, "down", inputs, schedule, seed)
    results["down"], moments = emulated.forward(case, "down", inputs, schedule, seed, True)
    results |= {f"down {name}": value for name, value in moments._asdict().items()}
    results["down gradient"], results["down sums"] = emulated.gradient_sums(
        case, "down", inputs, schedule, seed
    )
    results["down wild"], _ = emulated.forward(case, "down", wild(inputs), schedule, seed)

    def check() -> None:
        assert_conv_right(case, inputs, results)
        exact = case.convolve("down", wild(inputs)["fine"].double(), inputs["weight"].double())
        assert torch.equal(results["down wild"].isfinite(), exact.isfinite())

    return check, results


def wild(inputs: Tensors) -> Tensors:
    """With an infinity beside what some pixels meet: times a weight that fills up a fragment it would be NaN."""
    fine = inputs["fine"].clone()
    fine[0, 0, 2, 2] = float("inf")
    return inputs | {"fine": fine}


def check_values(emulated: Emulated) -> None:
    for check, _ in run_all(emulated):
        check()


def check_order(emulated: Emulated) -> None:
    check_values(emulated)  # else there would be no need to look further
    first = [results for _, results in run_all(emulated)]
    for seed in range(1, 4):
        for one, (_, other) in zip(first, run_all(emulated, "random_warps", seed), strict=True):
            assert_same(one, other)


def check_sanitizer(emulated: Emulated) -> None:
    for _ in run_all(emulated, "random_warps"):
        pass
    emulated.close()


def check_many(emulated: Emulated) -> None:
    """What only many rows show."""
    if isinstance(emulated, EmulatedFirstOccurrence):
        codes, expected = many_codes()
        assert_firsts_right(expected, emulated.find(codes, "random_warps", 1))


@dataclasses.dataclass(frozen=True)
class Bug:
    """`old` becomes `new`, in all `places` where `file` has it; `caught_by` a build and a check."""

    name: str
    file: str
    old: str
    new: str
    caught_by: str
    places: int = 1

    @property
    def compiled(self) -> tuple[str, ...]:
        """Sources of the convolutions that show it."""
        of_file = {
            "conv_boxes.cuh": "conv_boxes_sm90a.cu",
            "conv_boxes_weight_grad.cuh": "conv_boxes_weight_grad_sm90a.cu",
            "conv_pack_weights.cuh": "conv_boxes_tf32_sm90a.cu",
        }
        of_warpgroups = "wgmma" in self.old or "warpgroup" in self.name
        shown_by = "conv_sm90a.cu" if of_warpgroups else "conv_bf16.cu"
        return ("conv.cu", self.file, of_file.get(self.file, shown_by))

    @property
    def kind(self) -> type[Emulated]:
        return next((op for op, files in FILES.items() if self.file in files), EmulatedConv)


FILES: dict[type[Emulated], tuple[str, ...]] = {
    EmulatedBnAct: ("bn_act.cu", "bn_act.cuh", "reduce.cuh", "activation.cuh"),
    EmulatedImageConv: ("image_patch.cuh", "conv_image.cuh", "conv_image_weight_grad.cuh"),
    EmulatedBoxConv: (
        "conv_boxes.cuh",
        "conv_box_map.cu",
        "conv_pack_weights.cuh",
        "conv_boxes_weight_grad.cuh",
    ),
    EmulatedGatherImages: ("gather_images.cu", "gather_images.cuh"),
    EmulatedPackCodes: ("pack_codes.cu", "pack_codes.cuh"),
    EmulatedFirstOccurrence: ("first_occurrence.cu", "first_occurrence.cuh"),
    EmulatedParzen: ("parzen.cu", "parzen.cuh"),
    EmulatedMaxout: ("maxout_linear.cu", "maxout_linear.cuh"),
    EmulatedPlaneBiasAct: ("plane_bias_act.cu", "plane_bias_act.cuh"),
}

UNORDERED = """
  Pair total;
  if (thread < columns) scratch[thread] = Pair();
  __syncthreads();
  for (int k = 0; k < K; k++) {
    atomicAdd(&scratch[walk.lane * K + k].at[0][0], sums.at[k][0]);
    atomicAdd(&scratch[walk.lane * K + k].at[0][1], sums.at[k][1]);
  }
  __syncthreads();
  if (thread < columns) total = scratch[thread];
"""

BUGS = [
    Bug(
        "no barrier before the warps are merged",
        "reduce.cuh",
        "  __syncthreads();\n",
        "",
        "tsan",
    ),
    Bug(
        "no barrier before channels are read",
        "bn_act.cuh",
        "  __syncthreads();\n  const Affine<K> affine",
        "  const Affine<K> affine",
        "tsan",
        places=3,
    ),
    Bug(
        "no barrier before the mean is read",
        "bn_act.cuh",
        "    __syncthreads();\n\n    const double relative_mean",
        "    const double relative_mean",
        "tsan",
    ),
    Bug(
        "no barrier before the next group",
        "bn_act.cuh",
        "    __syncthreads();  // the next group writes `scratch` and `means` again\n",
        "",
        "tsan",
    ),
    Bug(
        "no barrier before the next group, backward",
        "bn_act.cuh",
        "    __syncthreads();  // the next group writes `scratch` again\n",
        "",
        "tsan",
    ),
    Bug(
        "atomic sums, in no order",
        "bn_act.cuh",
        "  const Pair total = reduce_rows(sums, tiling.lanes, scratch);\n",
        UNORDERED,
        "order",
    ),
    Bug(
        "one item too many",
        "bn_act.cuh",
        "return item >= end;",
        "return item > end;",
        "asan",
    ),
    Bug(
        "one channel too many",
        "bn_act.cuh",
        "channel >= shape.channels || item >= end",
        "channel > shape.channels || item >= end",
        "asan",
    ),
    Bug(
        "alignment not asked for",
        "bn_act.cu",
        "% kAccessBytes == 0;",
        "% sizeof(float) == 0;",
        "asan",
    ),
    Bug(
        "scratch too small",
        "bn_act.cu",
        "return value_bytes * kWarps * columns;",
        "return value_bytes * (kWarps - 1) * columns;",
        "asan",
    ),
    Bug(
        "planes do not skip the other channels",
        "bn_act.cuh",
        "offset += (shape.channels - 1) * shape.spatial;",
        "",
        "values",
    ),
    Bug(
        "tiles weigh the same",
        "bn_act.cuh",
        "min(rest, tiling.tile_items)",
        "tiling.tile_items",
        "values",
    ),
    Bug(
        "running variance is biased",
        "bn_act.cuh",
        "(count - 1.)",
        "count",
        "values",
    ),
    Bug(
        "the mask of the gradient is inverted at the edge",
        "activation.cuh",
        "return passes ? dy : below;",
        "return z >= -0.05f ? dy : below;",
        "values",
    ),
    Bug(
        "no wait for the copies of a stage",
        "matrix.cuh",
        "    ptx::cp_async_wait<kStages - 2>();\n",
        "",
        "values",
    ),
    Bug(
        "a wait for one stage too few",
        "matrix.cuh",
        "ptx::cp_async_wait<kStages - 2>();",
        "ptx::cp_async_wait<kStages - 1>();",
        "values",
    ),
    Bug(
        "no barrier before a stage is multiplied",
        "matrix.cuh",
        "      __syncthreads();\n      start(step + kStages - 1);",
        "      start(step + kStages - 1);",
        "tsan",
    ),
    Bug(
        "a stage is filled while it is multiplied",
        "matrix.cuh",
        "      start(step + kStages - 1);\n      multiply_stage<Step>(sums, a, b);",
        "      multiply_stage<Step>(sums, a, b);\n      start(step + kStages);",
        "values",
    ),
    Bug(
        "sums are staged where warps still multiply",
        "matrix.cuh",
        "  __syncthreads();  // shared memory is free\n",
        "",
        "tsan",
    ),
    Bug(
        "registers of a fragment are swapped",
        "matrix.cuh",
        "    left[0] = both[0], left[1] = both[1];",
        "    left[0] = both[1], left[1] = both[0];",
        "values",
    ),
    Bug(
        "rows of a transposed fragment are swapped",
        "matrix.cuh",
        "tile.chunk(k + lane / 16 * 8 + lane % 8, row / Tile::kChunk + lane / 8 % 2)",
        "tile.chunk(k + lane / 8 % 2 * 8 + lane % 8, row / Tile::kChunk + lane / 16)",
        "values",
    ),
    Bug(
        "one row of pixels too many",
        "conv.cuh",
        "if (row >= tile.rows)",
        "if (row > tile.rows)",
        "asan",
    ),
    Bug(
        "the map has a row more",
        "conv.cuh",
        "static_cast<unsigned>(y + tap_y) < static_cast<unsigned>(launch.y.input)",
        "static_cast<unsigned>(y + tap_y) <= static_cast<unsigned>(launch.y.input)",
        "values",
    ),
    Bug(
        "a tap too many reaches the map",
        "conv.cuh",
        "input_per_tap > 0 ? size - first : first + 1",
        "input_per_tap > 0 ? size - first + 1 : first + 1",
        "values",
    ),
    Bug(
        "products are not waited for",
        "matrix.cuh",
        "      ptx::wgmma_wait<0>();\n      __syncthreads();",
        "      __syncthreads();",
        "values",
    ),
    Bug(
        "accumulators are read while products go on",
        "matrix.cuh",
        "  if constexpr (Step::kOfWarpgroups) ptx::wgmma_wait<0>();\n",
        "",
        "values",
    ),
    Bug(
        "copies are not fenced from products",
        "matrix.cuh",
        "      ptx::fence_shared_for_wgmma();\n",
        "",
        "fault",
    ),
    Bug(
        "no barrier before a warpgroup multiplies",
        "matrix.cuh",
        "      __syncthreads();\n      start_multiplying",
        "      start_multiplying",
        "tsan",
    ),
    Bug(
        "chunks of a warpgroup's lines are permuted otherwise",
        "matrix.cuh",
        "chunk % kChunksOfLine ^ line % 8",
        "chunk % kChunksOfLine ^ line / 2 % 8",
        "values",
    ),
    Bug(
        "both warpgroups have the first rows",
        "matrix.cuh",
        "a.matrix(threadIdx.x / kWarpgroupSize * 64)",
        "a.matrix(0)",
        "values",
    ),
    Bug(
        "a pixel of the depth too many",
        "conv_weight_grad.cuh",
        "at.inside(launch) && line < left",
        "at.inside(launch) && line <= left",
        "asan",
    ),
    Bug(
        "channels that do not exist are stored",
        "conv_finish.cuh",
        "if (channels > 0) store",
        "store",
        "asan",
    ),
    Bug(
        "a part of the depth is left out",
        "conv_finish.cuh",
        "for (int part = 0; part < count; part += kTogether)",
        "for (int part = 1; part < count; part += kTogether)",
        "values",
    ),
    Bug(
        "no barrier before the sums are read",
        "conv_finish.cuh",
        "  __syncthreads();\n\n  const int lane = threadIdx.x % kLanes, first_row",
        "  const int lane = threadIdx.x % kLanes, first_row",
        "tsan",
    ),
    Bug(
        "scratch takes the place of sums in use",
        "conv_finish.cuh",
        "  __syncthreads();  // the scratch lies where the sums are\n",
        "",
        "tsan",
    ),
    Bug(
        "statistics of rows that do not exist",
        "conv_finish.cuh",
        "  if (threadIdx.x == 0 && first_column == 0) to.counts[at] = all.n;",
        "  if (threadIdx.x == 0 && first_column == 0) to.counts[at] = Shape::kRows;",
        "values",
    ),
    Bug(
        "no barrier before a batch norm's numbers are read",
        "conv_finish.cuh",
        "  __syncthreads();\n\n  const int lane = threadIdx.x % kLanes, column = lane * kChunk;",
        "  const int lane = threadIdx.x % kLanes, column = lane * kChunk;",
        "tsan",
    ),
    Bug(
        "scratch takes the place of a gradient in use",
        "conv_finish.cuh",
        "  __syncthreads();  // the scratch lies where the gradient is\n",
        "",
        "tsan",
    ),
    Bug(
        "sums of a gradient before it was rounded",
        "conv_finish.cuh",
        "to_float(from_float<T>(grads.at[i])));",
        "grads.at[i]);",
        "values",
    ),
    Bug(
        "channels of a batch norm that do not exist",
        "conv_finish.cuh",
        "if (channels > 0) inputs[r] = load",
        "inputs[r] = load",
        "asan",
    ),
    Bug(
        "no sums of a tile without rows",
        "conv_finish.cuh",
        "  if (!pairs) return;",
        "  if (!to.moments) return;",
        "values",
    ),
    Bug(
        "phases begin one tap late",
        "conv.cuh",
        "p.first_tap = phase, p.tap_step = axis.stride",
        "p.first_tap = (phase + 1) % axis.stride, p.tap_step = axis.stride",
        "values",
    ),
    Bug(
        "a patch begins one pixel late",
        "conv_thin.cuh",
        "const int reach = output + axis.conv.padding - axis.conv.kernel + 1;",
        "const int reach = output + axis.conv.padding - axis.conv.kernel + 3;",
        "values",
    ),
    Bug(
        "no barrier before taps are added up",
        "conv_thin.cuh",
        "  __syncthreads();\n",
        "",
        "tsan",
    ),
    Bug(
        "the last output pixels are another block's too",
        "conv_thin.cuh",
        "min(launch.y.outputs, y_axis.output - y.output)",
        "launch.y.outputs",
        "asan",
    ),
    Bug(
        "the padding of a patch is not cleared",
        "image_patch.cuh",
        "at < bytes;",
        "at < bytes - 4096;",
        "values",
    ),
    Bug(
        "the image has a row more",
        "image_patch.cuh",
        "static_cast<unsigned>(first_row + row) < static_cast<unsigned>(patch.y.input)",
        "static_cast<unsigned>(first_row + row) <= static_cast<unsigned>(patch.y.input)",
        "values",
    ),
    Bug(
        "the last row of a patch is left out",
        "image_patch.cuh",
        "for (int row = warp; row < rows;",
        "for (int row = warp; row < rows - 1;",
        "values",
    ),
    Bug(
        "both elements of a word are kept",
        "image_patch.cuh",
        "count == 1 ? 0x3210 : 0x3232",
        "0x5410",
        "values",
    ),
    Bug(
        "a run has a pixel more",
        "image_patch.cuh",
        "pixels = min(patch.run, patch.y.output * patch.x.output - first);",
        "pixels = min(patch.run, patch.y.output * patch.x.output - first + 1);",
        "asan",
    ),
    Bug(
        "no wait for the copies of a patch",
        "conv_image.cuh",
        "    ptx::cp_async_wait<0>();\n",
        "",
        "values",
    ),
    Bug(
        "no barrier before a patch is multiplied",
        "conv_image.cuh",
        "    __syncthreads();  // all have this run",
        "    // all have this run",
        "tsan",
    ),
    Bug(
        "no barrier after patches are cleared",
        "conv_image.cuh",
        "  __syncthreads();\n  start(first_run);",
        "  start(first_run);",
        "tsan",
    ),
    Bug(
        "the next patch takes the place of this one",
        "conv_image.cuh",
        "    start(number + 1);",
        "    start(number + 2);",
        "values",
    ),
    Bug(
        "halves of a fragment are swapped",
        "conv_image.cuh",
        "a[2 * half + i] = load_word",
        "a[2 * i + half] = load_word",
        "values",
    ),
    Bug(
        "channels of a lane are another's",
        "conv_image.cuh",
        "lane * kChunk + fragment % kFragments * 2",
        "fragment % kFragments * kChunk + lane * 2",
        "values",
    ),
    Bug(
        "rows that do not exist are stored",
        "conv_image.cuh",
        "row + 8 * r < rows && first_column",
        "first_column",
        "asan",
    ),
    Bug(
        "statistics of one run lie in the place of another",
        "conv_image.cuh",
        "number - group * launch.group_images * patch.runs",
        "number / 2 - group * launch.group_images * patch.runs",
        "values",
    ),
    Bug(
        "no wait for the copies of a run",
        "conv_image_weight_grad.cuh",
        "    ptx::cp_async_wait<kImageGradStages - 2>();\n",
        "",
        "values",
    ),
    Bug(
        "no barrier before a run is multiplied",
        "conv_image_weight_grad.cuh",
        "    __syncthreads();  // all have this run",
        "    // all have this run",
        "tsan",
    ),
    Bug(
        "a run takes the place of one in use",
        "conv_image_weight_grad.cuh",
        "    start(number + kImageGradStages - 1);",
        "    start(number + kImageGradStages);",
        "values",
    ),
    Bug(
        "no barrier between halves of the warps",
        "conv_image_weight_grad.cuh",
        "    __syncthreads();\n    if (warp < half)",
        "    if (warp < half)",
        "tsan",
    ),
    Bug(
        "sums are put where warps still multiply",
        "conv_image_weight_grad.cuh",
        "  __syncthreads();  // shared memory is free\n",
        "",
        "tsan",
    ),
    Bug(
        "a part of the gradient is left out",
        "conv_image_weight_grad.cuh",
        "const int end = (warp + 1) * launch.parts / kImageSumWarps;",
        "const int end = ((warp + 1) * launch.parts - 1) / kImageSumWarps;",
        "values",
    ),
    Bug(
        "pixels of a register are swapped",
        "conv_image_weight_grad.cuh",
        "load_word<T>(first + own_left, second + own_left, keep)",
        "load_word<T>(second + own_left, first + own_left, keep)",
        "values",
    ),
    Bug(
        "a coarse pixel of the next image",
        "conv_image_weight_grad.cuh",
        "+ line < run.pixels && channel",
        "+ line <= run.pixels && channel",
        "asan",
    ),
    Bug(
        "columns that do not exist are stored",
        "conv_image_weight_grad.cuh",
        "row < launch.coarse_channels && column < launch.columns()",
        "row < launch.coarse_channels",
        "asan",
    ),
    Bug(
        "a box takes the place of one in use",
        "conv_boxes.cuh",
        "      ptx::mbarrier_wait(stages.empty(turn.stage), turn.parity ^ 1);\n",
        "",
        "fault",
    ),
    Bug(
        "a box is multiplied before it has come",
        "conv_boxes.cuh",
        "    ptx::mbarrier_wait(stages.full(turn.stage), turn.parity);\n",
        "",
        "values",
    ),
    Bug(
        "a stage is given back while it is multiplied",
        "conv_boxes.cuh",
        "    ptx::wgmma_wait<1>();\n",
        "",
        "values",
    ),
    Bug(
        "the stage that is multiplied is given back",
        "conv_boxes.cuh",
        "ptx::mbarrier_arrive(stages.empty(multiplied));",
        "ptx::mbarrier_arrive(stages.empty(turn.stage));",
        "values",
    ),
    Bug(
        "bytes of rows that no box has are expected",
        "conv_boxes.cuh",
        "launch.images * tile.points * Tiles::Pixels::kLineBytes +",
        "Tiles::Pixels::kBytes +",
        "fault",
    ),
    Bug(
        "the copy engine may not see the barriers",
        "conv_boxes.cuh",
        "    ptx::fence_mbarrier_init();\n",
        "",
        "fault",
    ),
    Bug(
        "no barrier after the barriers are made",
        "conv_boxes.cuh",
        "    ptx::fence_mbarrier_init();\n  }\n  __syncthreads();\n",
        "    ptx::fence_mbarrier_init();\n  }\n",
        "fault",
    ),
    Bug(
        "sums are put where boxes are still multiplied",
        "conv_boxes.cuh",
        "  __syncthreads();  // all have multiplied\n",
        "",
        "values",
    ),
    Bug(
        "a place before the map is rounded to zero",
        "conv_boxes.cuh",
        "place >= 0 ? place / step : -((step - 1 - place) / step)",
        "place / step",
        "values",
    ),
    Bug(
        "a tap meets the first part of a stride",
        "conv_boxes.cuh",
        "x.part * in_channels + channel, ",
        "channel, ",
        "values",
    ),
    Bug(
        "every box begins in its image's first line",
        "conv_boxes.cuh",
        "tile.first_y + y.on",
        "y.on",
        "values",
    ),
    Bug(
        "a box has all its images",
        "conv_boxes.cuh",
        "min(conv.group_images - image * launch.images, launch.images) * points",
        "launch.images * points",
        "values",
    ),
    Bug(
        "all boxes of weights are those of the first columns",
        "conv_boxes.cuh",
        "const int column = tile.first_column + box * kDepth;",
        "const int column = box * kDepth;",
        "values",
    ),
    Bug(
        "boxes of weights lie in one place",
        "conv_boxes.cuh",
        "weights + box * kDepth * Tiles::Weights::kLineBytes",
        "weights",
        "values",
    ),
    Bug(
        "a parity stays when the stages begin anew",
        "conv_boxes.cuh",
        "stage = 0, parity ^= 1;",
        "stage = 0;",
        "values",
    ),
    Bug(
        "weights of a neighbouring tap",
        "conv_boxes.cuh",
        "tap_x * tile.x.tap_step;",
        "tap_x;",
        "values",
    ),
    Bug(
        "a tensor map is made without a context",
        "conv_box_map.cu",
        " || cudaSetDevice(device) != cudaSuccess",
        "",
        "values",
    ),
    Bug(
        "a weight is packed before it was read",
        "conv_pack_weights.cuh",
        "  __syncthreads();\n",
        "",
        "values",
    ),
    Bug(
        "taps of a packed weight lie where others do",
        "conv_pack_weights.cuh",
        "+ tap) * launch.coarse",
        "+ tap / 2) * launch.coarse",
        "values",
    ),
    Bug(
        "tf32 is cut and not rounded",
        "conv_box_map.cu",
        "return CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;",
        "return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;",
        "values",
    ),
    Bug(
        "both halves of a gradient's rows are the first channels",
        "conv_boxes_weight_grad.cuh",
        "tile.first_row + i * kChannels, first_x",
        "tile.first_row, first_x",
        "values",
    ),
    Bug(
        "a gradient's tap meets the first part of a stride",
        "conv_boxes_weight_grad.cuh",
        "x.part * grad.fine_channels + ",
        "",
        "values",
    ),
    Bug(
        "a gradient's boxes are those of one image",
        "conv_boxes_weight_grad.cuh",
        "box_y = 0, image++;",
        "box_y = 0;",
        "values",
    ),
    Bug(
        "a part of the gradient begins where the first does",
        "conv_boxes_weight_grad.cuh",
        "const int first_box = split * launch.split_boxes;",
        "const int first_box = 0 * split;",
        "values",
    ),
    Bug(
        "a gradient's tap is the one to its left",
        "conv_boxes_weight_grad.cuh",
        "x(PhaseAxis::of<false>(grad.x, 0), tile.tap % grad.x.kernel)",
        "x(PhaseAxis::of<false>(grad.x, 0), max(tile.tap % grad.x.kernel - 1, 0))",
        "values",
    ),
    Bug(
        "an image is mirrored a pixel too far",
        "gather_images.cuh",
        "(width - 1 - x)",
        "(width - x)",
        "values",
    ),
    Bug(
        "the last values of an image go on into the next",
        "gather_images.cuh",
        "if (first >= values) return;",
        "if (first > values) return;",
        "asan",
    ),
    Bug(
        "the image after the last is read",
        "gather_images.cuh",
        "row < args.count",
        "row <= args.count",
        "asan",
    ),
    Bug(
        "16 bytes are written to anywhere",
        "gather_images.cu",
        "args.output) % kAccessBytes == 0",
        "args.output) % sizeof(float) == 0",
        "asan",
    ),
    Bug(
        "the threshold is above itself",
        "pack_codes.cuh",
        "value > args.threshold",
        "value >= args.threshold",
        "values",
    ),
    Bug(
        "bits of the next row",
        "pack_codes.cuh",
        " && bit < bits",
        "",
        "values",
    ),
    Bug(
        "half a word too many",
        "pack_codes.cuh",
        "half + u * kAtOnce < halves && bit",
        "half + u * kAtOnce <= halves && bit",
        "asan",
    ),
    Bug(
        "words that do not exist are stored",
        "pack_codes.cuh",
        "lane == 0 && half + u * kAtOnce < halves",
        "lane == 0",
        "asan",
    ),
    Bug(
        "16 bytes are read from anywhere",
        "pack_codes.cu",
        "% kAccessBytes == 0;",
        "% sizeof(float) == 0;",
        "asan",
    ),
    Bug(
        "bits are joined twice as far",
        "pack_codes.cuh",
        "distance = kLanes / 2",
        "distance = kLanes",
        "values",
    ),
    Bug(
        "a NaN is one of its neighbours",
        "pack_codes.cuh",
        "  while (to_float(from[nan_at]) == to_float(from[nan_at])) nan_at++;\n",
        "",
        "values",
    ),
    Bug(
        "NaNs are told without atomics",
        "pack_codes.cuh",
        "atomicMin(reinterpret_cast<Place*>(args.first_nan), static_cast<Place>(origin + nan_at));",
        "*args.first_nan = min(*args.first_nan, static_cast<uint64_t>(origin + nan_at));",
        "tsan",
    ),
    Bug(
        "codes are equal if their tags are",
        "first_occurrence.cuh",
        "    if (!equal(code, Code<W>(args, static_cast<uint32_t>(seen)))) continue;\n",
        "",
        "values",
    ),
    Bug(
        "the first to come is kept",
        "first_occurrence.cuh",
        "    if (seen > mine) seen = atomicMin(table + at, mine);\n",
        "",
        "order",
    ),
    Bug(
        "the row that was pushed out is not told",
        "first_occurrence.cuh",
        "link<kGroups>(args, max(row, other), min(row, other));",
        "if (other < row) link<kGroups>(args, row, other);",
        "order",
    ),
    Bug(
        "a slot that seemed empty is taken for empty",
        "first_occurrence.cuh",
        "seen = atomicCAS(table + at, kEmpty, mine);",
        "atomicCAS(table + at, kEmpty, mine);",
        "order",
    ),
    Bug(
        "slots are taken without atomics",
        "first_occurrence.cuh",
        "seen = atomicCAS(table + at, kEmpty, mine);",
        "table[at] = mine;",
        "tsan",
    ),
    Bug(
        "slots are read past the atomics",
        "first_occurrence.cuh",
        "ptx::load_relaxed(table + at)",
        "table[at]",
        "tsan",
    ),
    Bug(
        "the table has no end",
        "first_occurrence.cuh",
        "at + 1 == slots ? 0 : at + 1",
        "at + 1",
        "asan",
    ),
    Bug(
        "one row of codes too many",
        "first_occurrence.cuh",
        "if (own >= args.rows) return;",
        "if (own > args.rows) return;",
        "asan",
    ),
    Bug(
        "rows beyond the last are kept",
        "first_occurrence.cuh",
        "    if (row < rows) keep[row] =",
        "    keep[row] =",
        "asan",
    ),
    Bug(
        "no barrier before the warps are added up",
        "first_occurrence.cuh",
        "  __syncthreads();\n  uint32_t before",
        "  uint32_t before",
        "tsan",
    ),
    Bug(
        "no barrier before the next pass of the scan",
        "first_occurrence.cuh",
        "    __syncthreads();  // the next pass writes `scratch` again\n",
        "",
        "many",
    ),
    Bug(
        "tiles of earlier passes do not count",
        "first_occurrence.cuh",
        "done + before + up_to - own",
        "before + up_to - own",
        "many",
    ),
    Bug(
        "rows of earlier warps do not count",
        "first_occurrence.cuh",
        "    if (w == warp) before = total;\n",
        "",
        "values",
    ),
    Bug(
        "links are followed one step",
        "first_occurrence.cuh",
        "while (!(at & kNumbered)) at = links[at];",
        "if (!(at & kNumbered)) at = links[at];",
        "asan",
    ),
    Bug(
        "every lane adds for all of its group",
        "first_occurrence.cuh",
        " && lane == __ffs(equals) - 1u",
        "",
        "values",
    ),
    Bug(
        "counts are added without atomics",
        "first_occurrence.cuh",
        "atomicAdd(reinterpret_cast<Count*>(counts + added), static_cast<Count>(__popc(equals)));",
        "counts[added] += __popc(equals);",
        "tsan",
    ),
    Bug(
        "samples that do not exist count",
        "parzen.cuh",
        "launch.half_squares_of_samples[number] = kInfinity;",
        "launch.half_squares_of_samples[number] = 0.f;",
        "values",
    ),
    Bug(
        "windows of rows that do not exist are stored",
        "parzen.cuh",
        "    if (row >= rows_left) break;\n",
        "",
        "asan",
    ),
    Bug(
        "features of the next sample",
        "parzen.cuh",
        "there && column_lines.line(i) < samples_left",
        "column_lines.line(i) < samples_left",
        "values",
    ),
    Bug(
        "features of the next row",
        "parzen.cuh",
        "f < args.features ? from[f] - args.centre[f] : 0.f",
        "from[f] - args.centre[f]",
        "asan",
    ),
    Bug(
        "a lane overwrites what its row's others still read",
        "parzen.cuh",
        "    __syncwarp();  // all four lanes have read `before`\n",
        "",
        "tsan",
    ),
    Bug(
        "two lanes of a row have exponents of their own",
        "parzen.cuh",
        "    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));\n",
        "",
        "values",
    ),
    Bug(
        "sums keep their scale when a larger exponent comes",
        "parzen.cuh",
        "fmaf(row[1 + s], expf((before - origin) * inverse_variance[s]), sum)",
        "row[1 + s] + sum",
        "values",
    ),
    Bug(
        "what warps know of their rows is read before it is written",
        "parzen.cuh",
        "    known.at[i] = i % (1 + sigmas) == 0 ? -kInfinity : 0.f;\n  }\n  __syncwarp();\n",
        "  }\n",
        "values",
    ),
    Bug(
        "the parts of a row keep their scales",
        "parzen.cuh",
        " * expf((parts[part * stride] - highest) * factor)",
        "",
        "values",
    ),
    Bug(
        "any bad row will do",
        "parzen.cuh",
        "atomicMin(reinterpret_cast<Place*>(args.bad_row), static_cast<Place>(is_sample ? number : args.count + row));",
        "*reinterpret_cast<Place*>(args.bad_row) = static_cast<Place>(is_sample ? number : args.count + row);",
        "tsan",
    ),
    Bug(
        "a tile of samples is met by two blocks",
        "parzen.cuh",
        "end = launch.tiles * (split + 1) / launch.splits;",
        "end = min(launch.tiles * (split + 1) / launch.splits + 1, launch.tiles);",
        "values",
    ),
    Bug(
        "the last of equal pieces wins",
        "maxout_linear.cuh",
        "value > best ||",
        "value >= best ||",
        "values",
    ),
    Bug(
        "units that do not exist are stored",
        "maxout_linear.cuh",
        "      if (unit >= units_left) continue;\n",
        "",
        "asan",
    ),
    Bug(
        "rows beyond the last are stored",
        "maxout_linear.cuh",
        "        if (row >= rows_left) continue;\n",
        "",
        "asan",
    ),
    Bug(
        "pieces of another unit",
        "maxout_linear.cuh",
        "column.unit * kPieces + column.piece",
        "column.unit + column.piece",
        "values",
    ),
    Bug(
        "inputs of the next row one by one",
        "maxout_linear.cuh",
        "valid && place + e < args.in",
        "valid",
        "asan",
    ),
    Bug(
        "inputs of the next row in chunks",
        "maxout_linear.cuh",
        "valid && place < args.in",
        "valid",
        "asan",
    ),
    Bug(
        "all units of a warp have the pieces of the first eight",
        "maxout_linear.cuh",
        "[group * kPieces + p]",
        "[p]",
        "values",
    ),
    Bug(
        "biases are added before the patterns are there",
        "plane_bias_act.cuh",
        "  __syncthreads();\n\n  const T* const input",
        "  const T* const input",
        "tsan",
    ),
    Bug(
        "patterns are sorted before they are there",
        "plane_bias_act.cuh",
        "  __syncthreads();  // patterns and gradients are there\n",
        "",
        "tsan",
    ),
    Bug(
        "rows are added up before their patterns are sorted",
        "plane_bias_act.cuh",
        "  __syncthreads();  // patterns are sorted\n",
        "",
        "tsan",
    ),
    Bug(
        "columns are added up before their rows are",
        "plane_bias_act.cuh",
        "  __syncthreads();  // rows are added up\n",
        "",
        "tsan",
    ),
    Bug(
        "channels of the next pixel are in this part",
        "plane_bias_act.cuh",
        "return channel < channels ? static_cast<int64_t>(pixel) * tiling.inner + channel : -1;",
        "return static_cast<int64_t>(pixel) * tiling.inner + channel;",
        "asan",
    ),
    Bug(
        "one element beyond a tile",
        "plane_bias_act.cuh",
        "if (element >= elements) return -1;",
        "if (element > elements) return -1;",
        "asan",
    ),
    Bug(
        "maps are read 16 bytes at once from anywhere",
        "plane_bias_act.cu",
        "% kAccessBytes == 0;",
        "% sizeof(float) == 0;",
        "asan",
    ),
    Bug(
        "parts of an image take the place of its first",
        "plane_bias_act.cuh",
        " + tile.row_tile) * biases",
        ") * biases",
        "values",
    ),
    Bug(
        "the last part of an image is left out",
        "plane_bias_act.cuh",
        "tile < row_tiles;",
        "tile < row_tiles - 1;",
        "values",
    ),
    Bug(
        "sums of rows lie where others are still to be read",
        "plane_bias_act.cuh",
        "own[rows.first(r) * line] =",
        "own[r * line] =",
        "values",
    ),
    Bug(
        "a row of pixels does not begin again",
        "plane_bias_act.cuh",
        "    at.column = 0;\n",
        "",
        "values",
    ),
    Bug(
        "pixels of one pattern take the same place",
        "plane_bias_act.cuh",
        " && j < i",
        "",
        "values",
    ),
    Bug(
        "all images of a tile have the sums of the first",
        "plane_bias_act.cuh",
        "(image * tile.rows + rows.first(r)) * line",
        "rows.first(r) * line",
        "values",
    ),
    Bug(
        "a pattern of rows has the biases of its number of columns",
        "plane_bias_act.cuh",
        "row * column_patterns + column",
        "row + column * column_patterns",
        "values",
    ),
]

OPS = (
    EmulatedBnAct,
    EmulatedConv,
    EmulatedImageConv,
    EmulatedBoxConv,
    EmulatedGatherImages,
    EmulatedPackCodes,
    EmulatedFirstOccurrence,
    EmulatedParzen,
    EmulatedMaxout,
    EmulatedPlaneBiasAct,
)

Failures = type[Exception] | tuple[type[Exception], ...]
CHECKS: dict[str, tuple[str, Callable[[Emulated], None], Failures]] = {
    "values": (
        "quick",
        check_values,
        (AssertionError, Fault, Refused),
    ),  # a wild address may also crash
    "fault": ("quick", check_values, Fault),  # the emulator refuses
    "order": ("quick", check_order, AssertionError),
    "tsan": ("tsan", check_sanitizer, Fault),
    "asan": ("asan", check_sanitizer, Fault),
    "many": ("quick", check_many, (AssertionError, Fault)),  # wrong numbers may be written anywhere
}


def plant(bug: Bug, folder: Path, clean: Path | None = None) -> Path:
    """A copy of the kernels with the bug; a part of them, to compile it sooner: float32 alone and no
    smooth activation of bn_act and plane_bias_act, bfloat16 alone of the convolutions, of which those that do not show
    it are the ones in `clean`. Images and samples are shared by two blocks."""
    kernels = folder / bug.name.replace(" ", "_").replace(",", "") / "cuda"
    shutil.copytree(KERNELS, kernels)
    for shared in KERNELS.parent.glob("*.h"):
        shutil.copy(shared, kernels.parent)
    target = kernels / bug.file
    source = target.read_text()
    assert source.count(bug.old) == bug.places, f"{bug.file} no longer has: {bug.old}"
    target.write_text(source.replace(bug.old, bug.new))
    for name, whole, part in (
        ("bn_act.cu", "run(__nv_bfloat16())", "run(float())"),
        ("bn_act.cu", "run(__half())", "run(float())"),
        (
            "bn_act.cu",
            "run(vector, last, std::true_type())",
            "run(vector, last, std::false_type())",
        ),
        ("conv.cu", "run(HalfStep<__half>())", "nullptr"),
        ("conv.cu", "run(__half())", "nullptr"),
        ("conv_sm90a.cu", "template struct dcgan_fast::cuda::WarpgroupKernels<__half>;", ""),
        ("conv_boxes_sm90a.cu", "template struct dcgan_fast::cuda::BoxKernels<__half>;", ""),
        (
            "conv_boxes_weight_grad_sm90a.cu",
            "template struct dcgan_fast::cuda::BoxGradKernels<__half>;",
            "",
        ),
        ("conv.cu", "run(Tf32Step())", "nullptr"),
        ("conv.cu", "run(Tf32x3Step())", "nullptr"),
        ("conv.cu", "run(FmaStep())", "nullptr"),
        # two blocks: then a few images are several runs for each
        ("conv.cu", "kImageBlocks = 396;", "kImageBlocks = 2;"),
        ("conv.cu", "kTargetBlocks / call.tiles()))", "2 / call.tiles()))"),
        ("conv.cu", "kBlocksForWidest = 116;", "kBlocksForWidest = 1;"),
        ("parzen.cu", "kWantedBlocks = 264;", "kWantedBlocks = 2;"),
        ("plane_bias_act.cu", "run(__nv_bfloat16())", "run(float())"),
        ("plane_bias_act.cu", "run(__half())", "run(float())"),
        ("plane_bias_act.cu", "across, std::true_type())", "across, std::false_type())"),
        ("plane_bias_act.cu", "run(items, std::true_type())", "run(items, std::false_type())"),
        ("plane_bias_act.cu", "kTargetBlocks = 512;", "kTargetBlocks = 2;"),
    ):
        source = (kernels / name).read_text()
        assert whole in source
        (kernels / name).write_text(source.replace(whole, part))
    for other in ("fp16", "tf32", "tf32x3", "fma"):
        (kernels / f"conv_{other}.cu").unlink()
    for source in sorted(kernels.glob("conv*.cu")) if clean else ():
        if source.name not in bug.compiled:
            source.unlink()
            # compiled once for all bugs; after the others by name, as the linker takes the first of two functions
            (kernels / f"conv_without_it_{source.name}").write_text(
                f'#include "{clean / source.name}"\n'
            )
    return kernels


@pytest.fixture(scope="module")
def planted(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The kernels' folder of each bug; those without one under "nothing"."""
    folder = tmp_path_factory.mktemp("planted")
    none = Bug("nothing", "bn_act.cuh", "#pragma once\n", "#pragma once\n", "")
    clean = plant(none, folder)
    folders = {bug.name: plant(bug, folder, clean) for bug in BUGS} | {none.name: clean}
    wanted = {(bug.kind.OP, CHECKS[bug.caught_by][0], folders[bug.name]) for bug in BUGS}
    wanted |= {(op.OP, build, folders["nothing"]) for build, _, _ in CHECKS.values() for op in OPS}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda arguments: builder.driver(*arguments), wanted))
    return folders


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug_is_caught(bug: Bug, planted: dict[str, Path], start: Callable[..., Emulated]) -> None:
    build, check, failure = CHECKS[bug.caught_by]
    with pytest.raises(failure):
        check(start(bug.kind, build, planted[bug.name]))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", CHECKS)
def test_kernels_without_a_bug_pass(
    kind: str, op: type[Emulated], planted: dict[str, Path], start: Callable[..., Emulated]
) -> None:
    build, check, _ = CHECKS[kind]
    check(start(op, build, planted["nothing"]))
