"""What the kernels of biases of patterns became: registers, accesses, no instruction that should not be there."""

from __future__ import annotations

import re

import pytest
from compiled_harness import KERNELS, Kernel, architectures, compile_kernels

REGISTERS_OF_AN_SM = 65536
THREADS = 256
BLOCKS_PER_SM = 4  # what plane_bias_act.cuh counts on to have enough loads in flight
TEMPLATE = re.compile(
    r"\d+plane_bias_act_(?P<pass>forward|backward)I(?P<type>f|6__half|13__nv_bfloat16)Li(?P<width>\d)"
    r"E(?P<flags>(?:Lb[01]E)+)E"
)

Kernels = dict[str, Kernel]


@pytest.fixture(scope="module")
def compiled() -> dict[str, Kernels]:
    """The kernels by architecture; compiling them fails if one spills registers."""
    return {a: compile_kernels(KERNELS / "plane_bias_act.cu", a) for a in architectures()}


def described(kernels: Kernels) -> list[tuple[dict[str, str], Kernel]]:
    matches = ((TEMPLATE.search(name), kernel) for name, kernel in kernels.items())
    return [(match.groupdict(), kernel) for match, kernel in matches if match]


each = pytest.mark.parametrize("architecture", architectures())


@each
def test_every_kernel_is_there(compiled: dict[str, Kernels], architecture: str) -> None:
    types, kinds, ways, widths = (
        3,
        2,
        3,
        2,
    )  # ways forward: items in a pixel, across pixels, of one element
    found = described(compiled[architecture])
    assert len(found) == types * kinds * (ways + widths)
    assert len(compiled[architecture]) == len(found) + 1  # finalise


@each
def test_resources(compiled: dict[str, Kernels], architecture: str) -> None:
    for name, kernel in compiled[architecture].items():
        assert kernel.stack == 0 and not kernel.having(r"LDL|STL"), name
        blocks = REGISTERS_OF_AN_SM // (-(-kernel.registers // 8) * 8 * THREADS)
        assert blocks >= BLOCKS_PER_SM, (name, kernel.registers)


@each
def test_accesses(compiled: dict[str, Kernels], architecture: str) -> None:
    """Wide ones, both items of a thread on their way before the first result is written."""
    for traits, kernel in described(compiled[architecture]):
        wide = traits["width"] != "1"
        assert bool(kernel.count("LDG.E.128")) == bool(kernel.count("STG.E.128")) == wide, traits
        if not wide:
            continue
        before = kernel.instructions[: kernel.first("STG.E.128")].count("LDG.E.128")
        if traits["pass"] == "backward":
            assert before >= 4 and kernel.count("STS.128"), (traits, before)
        elif traits["flags"] == "Lb0ELb0E":  # and the first item's biases
            assert before >= (3 if traits["type"] == "f" else 4), traits


@each
def test_sums_are_in_order(compiled: dict[str, Kernels], architecture: str) -> None:
    for name, kernel in compiled[architecture].items():
        assert not kernel.having(r"ATOM|RED\b"), name
        assert not kernel.having(r"DFMA|DADD|DMUL"), name  # slow on many GPUs
