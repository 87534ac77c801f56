"""What the bn_act kernels became: registers, accesses, no instruction that should not be there."""

from __future__ import annotations

import re

import pytest
from compiled_harness import KERNELS, Kernel, architectures, compile_kernels

REGISTERS_OF_AN_SM = 65536
THREADS = 256
BLOCKS_PER_SM = 2  # what bn_act.cuh counts on to have enough loads in flight

# Of a wide kernel: its 16-byte loads before the first result is written.
LOADS_IN_FLIGHT = {
    "bn_act_statistics": 4,
    "bn_act_apply": 4,
    "bn_act_backward_sums": 4,
    "bn_act_backward_apply": 4,
}
TEMPLATE = re.compile(
    r"\d+(?P<pass>bn_act_\w+?)I(?P<type>f|6__half|13__nv_bfloat16)Li(?P<width>\d)"
    r"ELb(?P<channels_last>[01])E(?:Lb(?P<smooth>[01])E)?E"
)

Kernels = dict[str, Kernel]


@pytest.fixture(scope="module")
def compiled() -> dict[str, Kernels]:
    """The kernels by architecture; compiling them fails if one spills registers."""
    return {a: compile_kernels(KERNELS / "bn_act.cu", a) for a in architectures()}


def describe(kernel: Kernel) -> dict[str, str]:
    match = TEMPLATE.search(kernel.name)
    return match.groupdict() if match else {}


@pytest.mark.parametrize("architecture", architectures())
def test_every_kernel_is_there(compiled: dict[str, Kernels], architecture: str) -> None:
    types, widths, orders, kinds = 3, 2, 2, 2
    of_a_pass = types * widths * orders
    statistics, others, finalise = of_a_pass, 3 * of_a_pass * kinds, 2
    assert len(compiled[architecture]) == statistics + others + finalise
    described = [describe(kernel) for kernel in compiled[architecture].values()]
    assert sum(bool(d) for d in described) == statistics + others
    assert {d["pass"] for d in described if d} == set(LOADS_IN_FLIGHT)


@pytest.mark.parametrize("architecture", architectures())
def test_resources(compiled: dict[str, Kernels], architecture: str) -> None:
    for name, kernel in compiled[architecture].items():
        assert kernel.stack == 0, name
        assert kernel.registers * THREADS * BLOCKS_PER_SM <= REGISTERS_OF_AN_SM, name
        assert not kernel.having(r"LDL|STL"), name  # local memory


@pytest.mark.parametrize("architecture", architectures())
def test_accesses(compiled: dict[str, Kernels], architecture: str) -> None:
    for name, kernel in compiled[architecture].items():
        traits = describe(kernel)
        wide = traits.get("width", "1") != "1"
        assert bool(kernel.count("LDG.E.128")) == wide, name
        assert bool(kernel.count("STG.E.128")) == (wide and "apply" in traits["pass"]), name
        if wide and traits["smooth"] != "1":
            first_result = kernel.first("STG.E.128" if "apply" in traits["pass"] else "SHFL.DOWN")
            loads = kernel.instructions[:first_result].count("LDG.E.128")
            assert loads >= LOADS_IN_FLIGHT[traits["pass"]], name


@pytest.mark.parametrize("architecture", architectures())
def test_nothing_unwanted(compiled: dict[str, Kernels], architecture: str) -> None:
    for name, kernel in compiled[architecture].items():
        assert not kernel.having(r"ATOM|RED\b"), name  # sums in no order
        if "finalise" not in name:  # slow on many GPUs
            assert not kernel.having(r"DFMA|DADD|DMUL"), name
