"""What the kernels of the dedup ops became: registers, accesses, atomics."""

from __future__ import annotations

import re

import pytest
from compiled_harness import KERNELS, Kernel, architectures, compile_kernels

REGISTERS_OF_AN_SM = 65536
THREADS = 256
UNROLLED = 4  # loads of pack_codes in flight

Kernels = dict[str, Kernel]


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], Kernels]:
    """The kernels by op and architecture; compiling them fails if one spills registers."""
    wanted = [(op, a) for op in ("pack_codes", "first_occurrence") for a in architectures()]
    return {(op, a): compile_kernels(KERNELS / f"{op}.cu", a) for op, a in wanted}


def named(kernels: Kernels, pattern: str) -> dict[str, Kernel]:
    """Those whose names have the pattern, by its first group."""
    matches = ((re.search(pattern, name), kernel) for name, kernel in kernels.items())
    return {match[1]: kernel for match, kernel in matches if match}


each = pytest.mark.parametrize("architecture", architectures())


@each
@pytest.mark.parametrize("op", ["pack_codes", "first_occurrence"])
def test_no_local_memory(
    compiled: dict[tuple[str, str], Kernels], op: str, architecture: str
) -> None:
    for name, kernel in compiled[op, architecture].items():
        assert kernel.stack == 0 and not kernel.having(r"LDL|STL"), name


@each
def test_packing(compiled: dict[tuple[str, str], Kernels], architecture: str) -> None:
    """Wide loads, all before the first result; bits joined by shuffles, of single elements by ballots."""
    kernels = named(compiled["pack_codes", architecture], r"pack_codesI(\w+Li\d)E")
    assert set(kernels) == {
        *("fLi1", "fLi4"),
        *(f"{t}Li{width}" for t in ("6__half", "13__nv_bfloat16") for width in (1, 8)),
    }
    for name, kernel in kernels.items():
        wide = not name.endswith("1")
        blocks = REGISTERS_OF_AN_SM // (-(-kernel.registers // 8) * 8 * THREADS)
        assert blocks >= (4 if wide else 6), (name, kernel.registers)
        before = kernel.instructions[: kernel.first("STG.E")]
        loads = [opcode for opcode in before if opcode.startswith("LDG")]
        assert len(loads) == UNROLLED and all(("128" in load) == wide for load in loads), loads
        assert bool(kernel.having(r"SHFL\.BFLY")) == wide, name
        assert bool(kernel.having(r"VOTE\.ANY")) or wide, name
        atomics = kernel.having(r"ATOM|RED")
        assert len(atomics) == 1 and "MIN.64" in min(atomics), atomics  # where the first NaN is


@each
def test_inserting(compiled: dict[tuple[str, str], Kernels], architecture: str) -> None:
    """As many threads as an SM takes, for each waits for memory; one access for a code of two words."""
    kernels = named(compiled["first_occurrence", architecture], r"insertI(Li\dELb\d)E")
    assert set(kernels) == {f"Li{words}ELb{groups}" for words in (0, 1, 2) for groups in (0, 1)}
    for name, kernel in kernels.items():
        most = 48 if name.startswith("Li0") else 32
        assert kernel.registers <= most, (name, kernel.registers)
        found = {opcode.split(".")[2] for opcode in kernel.having(r"ATOM|RED")}
        assert found == {"CAS", "MIN"}, kernel.having(r"ATOM|RED")
        assert any("STRONG" in opcode for opcode in kernel.having(r"LDG\.E\.64")), name
        codes = kernel.count("LDG.E.128")  # the row's own, and that of the row in a slot
        assert codes == (2 if name.startswith("Li2") else 0), name


@each
def test_numbering(compiled: dict[tuple[str, str], Kernels], architecture: str) -> None:
    """No atomics but where duplicates are counted; those of a warp found by one instruction."""
    pattern = r"first_occurrence_(count|scan|number|group)"
    kernels = named(compiled["first_occurrence", architecture], pattern)
    assert set(kernels) == {"count", "scan", "number", "group"}
    for name, kernel in kernels.items():
        assert kernel.registers <= 64, (name, kernel.registers)
        added = kernel.having(r"ATOM|RED")
        assert bool(added) == (name == "group") == bool(kernel.having("MATCH")), (name, added)
        assert all("ADD.64" in opcode for opcode in added), added
