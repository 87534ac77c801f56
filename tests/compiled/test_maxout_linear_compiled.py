"""What the kernels of maxout units became: registers, copies in the background, products of tensor cores."""

from __future__ import annotations

import re

import pytest
from compiled_harness import KERNELS, Kernel, architectures, compile_kernels

REGISTERS_OF_AN_SM = 65536
THREADS = 128
# Each of two fragments of rows is multiplied with so many of columns for each piece, at so many depths of a stage.
MULTIPLIED = {
    "HalfStepI13__nv_bfloat16": 1,
    "HalfStepI6__half": 1,
    "8Tf32Step": 1,
    "10Tf32x3Step": 3,
}

ARCHITECTURES = architectures()[:1]  # 32 kernels: half a minute each

Kernels = dict[tuple[str, int, bool], Kernel]


@pytest.fixture(scope="module")
def compiled() -> dict[str, Kernels]:
    """The kernels by architecture, step, pieces and whether they read chunks; compiling them fails if one spills
    registers."""
    result: dict[str, Kernels] = {}
    for architecture in ARCHITECTURES:
        found = result[architecture] = {}
        for name, kernel in compile_kernels(KERNELS / "maxout_linear.cu", architecture).items():
            step = next(step for step in MULTIPLIED if step in name)
            pieces, chunks = re.search(r"Li(\d)ELb(\d)E", name).groups()
            found[step, int(pieces), chunks == "1"] = kernel
    return result


each = pytest.mark.parametrize("architecture", ARCHITECTURES)


@each
def test_every_kernel_is_there_and_keeps_its_numbers(
    compiled: dict[str, Kernels], architecture: str
) -> None:
    kernels = compiled[architecture]
    assert len(kernels) == len(MULTIPLIED) * 4 * 2
    for what, kernel in kernels.items():
        assert kernel.stack == 0 and not kernel.having(r"LDL|STL"), what
        blocks = REGISTERS_OF_AN_SM // (-(-kernel.registers // 8) * 8 * THREADS)
        assert blocks >= 2, (what, kernel.registers)


@each
def test_products(compiled: dict[str, Kernels], architecture: str) -> None:
    for (step, pieces, chunks), kernel in compiled[architecture].items():
        products = sum(opcode.startswith("HMMA") for opcode in kernel.instructions)
        times = MULTIPLIED[step]
        assert products and products % (2 * 2 * pieces * times) == 0
        assert bool(kernel.having(r"LDGSTS\.E\.BYPASS.*128")) == chunks, (step, pieces, chunks)
        assert not kernel.having(r"ATOM|RED")
