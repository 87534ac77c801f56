"""Do the checks of test_bn_act_emulated.py see anything? Bugs are planted in copies of the kernels,
as edits of the source, and each must be caught by the check that is meant for its kind."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bn_act_emulated import Case, EmulatedBnAct
from emulator_harness import KERNELS, Builder, Emulated, Fault
from test_bn_act_emulated import assert_right, assert_same

CASES = [
    Case(6, 24, 90, activation="leaky_relu", stat_groups=2),
    Case(6, 5, 64, channels_last=False, misaligned_elements=1),
    Case(20, 3, 98, channels_last=False, stat_groups=2),
    Case(8, 64, 40, activation="none"),
]


def check_values(emulated: EmulatedBnAct) -> None:
    for case in CASES:
        inputs = case.inputs()
        assert_right(case, inputs, emulated.both(case, inputs))


def check_order(emulated: EmulatedBnAct) -> None:
    check_values(emulated)  # else there would be no need to look further
    for case in CASES:
        first = emulated.both(case)
        for seed in range(1, 4):
            assert_same(first, emulated.both(case, None, "random_warps", seed))


def check_sanitizer(emulated: EmulatedBnAct) -> None:
    for case in CASES:
        emulated.both(case, None, "random_warps")
    emulated.close()


@dataclasses.dataclass(frozen=True)
class Bug:
    """`old` becomes `new`, in all `places` where `file` has it; `caught_by` a build and a check."""

    name: str
    file: str
    old: str
    new: str
    caught_by: str
    places: int = 1


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
]

CHECKS: dict[str, tuple[str, Callable[[Emulated], None], type[Exception]]] = {
    "values": ("plain", check_values, AssertionError),
    "order": ("plain", check_order, AssertionError),
    "tsan": ("tsan", check_sanitizer, Fault),
    "asan": ("asan", check_sanitizer, Fault),
}


def plant(bug: Bug, folder: Path) -> Path:
    """A copy of the kernels with the bug; a sixth of them, to compile it sooner: float32 alone, and
    no smooth activation."""
    kernels = folder / bug.name.replace(" ", "_").replace(",", "") / "cuda"
    shutil.copytree(KERNELS, kernels)
    for shared in KERNELS.parent.glob("*.h"):
        shutil.copy(shared, kernels.parent)
    target = kernels / bug.file
    source = target.read_text()
    assert source.count(bug.old) == bug.places, f"{bug.file} no longer has: {bug.old}"
    target.write_text(source.replace(bug.old, bug.new))
    launchers = kernels / "bn_act.cu"
    source = launchers.read_text()
    for whole, part in (
        ("run(__nv_bfloat16())", "run(float())"),
        ("run(__half())", "run(float())"),
        ("run(vector, last, std::true_type())", "run(vector, last, std::false_type())"),
    ):
        assert whole in source
        source = source.replace(whole, part)
    launchers.write_text(source)
    return kernels


@pytest.fixture(scope="module")
def planted(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The kernels' folder of each bug; those without one under "nothing"."""
    folder = tmp_path_factory.mktemp("planted")
    none = Bug("nothing", "bn_act.cuh", "#pragma once\n", "#pragma once\n", "")
    folders = {bug.name: plant(bug, folder) for bug in [*BUGS, none]}
    wanted = {(CHECKS[bug.caught_by][0], folders[bug.name]) for bug in BUGS}
    wanted |= {(build, folders["nothing"]) for build, _, _ in CHECKS.values()}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda arguments: builder.driver("bn_act", *arguments), wanted))
    return folders


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug_is_caught(bug: Bug, planted: dict[str, Path], start: Callable[..., Emulated]) -> None:
    build, check, failure = CHECKS[bug.caught_by]
    with pytest.raises(failure):
        check(start(EmulatedBnAct, build, planted[bug.name]))


@pytest.mark.parametrize("kind", CHECKS)
def test_kernels_without_a_bug_pass(
    kind: str, planted: dict[str, Path], start: Callable[..., Emulated]
) -> None:
    build, check, _ = CHECKS[kind]
    check(start(EmulatedBnAct, build, planted["nothing"]))
