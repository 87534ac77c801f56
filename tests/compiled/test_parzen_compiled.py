"""What the kernels of Parzen windows became: registers, copies in the background, products of tensor cores."""

from __future__ import annotations

import pytest
from compiled_harness import KERNELS, Kernel, architectures, compile_kernels

REGISTERS_OF_AN_SM = 65536
THREADS = 128

Kernels = dict[str, Kernel]


@pytest.fixture(scope="module")
def compiled() -> dict[str, Kernels]:
    """The kernels by architecture; compiling them fails if one spills registers."""
    return {a: compile_kernels(KERNELS / "parzen.cu", a) for a in architectures()}


each = pytest.mark.parametrize("architecture", architectures())


@each
def test_no_local_memory(compiled: dict[str, Kernels], architecture: str) -> None:
    for name, kernel in compiled[architecture].items():
        assert kernel.stack == 0 and not kernel.having(r"LDL|STL"), name


@each
def test_products(compiled: dict[str, Kernels], architecture: str) -> None:
    """Two blocks on an SM; stages in flight by 16-byte copies; three products of tf32 for one where they are strict."""
    kernels = {name: k for name, k in compiled[architecture].items() if "parzen_products" in name}
    strict, fast = (
        next(kernel for name, kernel in kernels.items() if step in name)
        for step in ("Tf32x3Step", "8Tf32Step")
    )
    assert len(kernels) == 3
    for kernel in (strict, fast):
        assert REGISTERS_OF_AN_SM // (-(-kernel.registers // 8) * 8 * THREADS) >= 2
        assert kernel.having(r"LDGSTS\.E\.BYPASS.*128"), kernel.having("LDGSTS")
        assert kernel.having(r"LDSM") and kernel.having(r"HMMA.*TF32"), kernel.having("HMMA")
        assert kernel.having("MUFU.EX2") and kernel.having(r"SHFL\.BFLY")
    products = [sum(opcode.startswith("HMMA") for opcode in k.instructions) for k in (strict, fast)]
    assert products[0] == 3 * products[1], products


@each
def test_one_atomic_alone(compiled: dict[str, Kernels], architecture: str) -> None:
    """Where the first bad row is; no order of additions is left to chance."""
    for name, kernel in compiled[architecture].items():
        atomics = kernel.having(r"ATOM|RED")
        assert len(atomics) == ("parzen_centre" in name), (name, atomics)
