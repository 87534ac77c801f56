"""What the kernel that makes batches of images became: registers and accesses."""

from __future__ import annotations

import re

import pytest
from compiled_harness import KERNELS, architectures, compile_kernels


@pytest.mark.parametrize("architecture", architectures())
def test_gathering(architecture: str) -> None:
    """Nothing spilled, as many threads as an SM takes, one wide store for each four values."""
    kernels = compile_kernels(KERNELS / "gather_images.cu", architecture)
    found = {}
    for name, kernel in kernels.items():
        match = re.search(r"gather_imagesILi(\d)ELb(\d)E", name)
        if match is None:
            continue
        found[match[1], match[2]] = kernel
        assert kernel.stack == 0 and not kernel.having(r"LDL|STL"), name
        assert kernel.registers <= 64, (name, kernel.registers)
        wide = [opcode for opcode in kernel.having(r"STG") if "128" in opcode]
        assert bool(wide) == (match[1] == "4"), kernel.having(r"STG")
    assert set(found) == {(width, last) for width in "14" for last in "01"}
