"""What the convolution kernels became: registers, occupancy, the instructions that were meant."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from compiled_harness import KERNELS, Kernel, architectures, compile_kernels

STEPS = ["bf16", "fp16", "tf32", "tf32x3", "fma"]
STRICT = ("tf32x3", "fma")
REGISTERS_OF_AN_SM = 65536
SHARED_KB_OF_AN_SM = {"80": 164, "90a": 228, "120": 100}
THREADS = {128: 256, 64: 128}  # of a block, by its columns
SHARED_BYTES = {
    128: 4 * 128 * (128 + 3),
    64: 4 * 64 * (128 + 64),
}  # sums of a wide one, or four stages

# The product of one step of the depth, and how many of them a stage is unrolled to.
PRODUCT = {
    "bf16": "HMMA.16816.F32.BF16",
    "fp16": "HMMA.16816.F32",
    "tf32": "HMMA.1688.F32.TF32",
    "tf32x3": "HMMA.1688.F32.TF32",
    "fma": "FFMA",
}
FRAGMENTS_OF_A_WARP = 16
PRODUCTS = {"bf16": 2, "fp16": 2, "tf32": 1, "tf32x3": 3}

# The build compiles every step for every architecture, and fails if one spills; here one step stands for the others on
# all but the architecture that matters most.
COMPILED = [
    (step, architecture)
    for step in STEPS
    for architecture in architectures()
    if step == "bf16" or architecture == "90a"
]

NAME = re.compile(
    r"\d+(?P<kernel>conv(?:_thin|_weight_grad|_finish)?(?:_splits)?)I.*?BlockShapeILi128ELi(?P<columns>\d+)E"
)
IMAGE_NAME = re.compile(r"\d+(?P<kernel>conv_image(?:_weight_grad(?:_sum)?)?)I")

Kernels = dict[str, Kernel]


class Traits(NamedTuple):
    """A kernel's template arguments."""

    kernel: str
    columns: int
    flags: str  # the rest of the mangled name

    @property
    def multiplies(self) -> bool:
        return not self.kernel.endswith("_splits")

    @property
    def by_chunks(self) -> bool:
        """Reads at least one operand by chunks."""
        return "ELb1E" in self.flags if "grad" in self.kernel else "AccessE2" not in self.flags


def image_kernels(kernels: Kernels) -> dict[str, Kernel]:
    """The kernels of maps of a few channels, by name; conv_image twice, "direct" where sums leave from registers."""
    found = {}
    for kernel in kernels.values():
        if match := IMAGE_NAME.search(kernel.name):
            found[match["kernel"] + (" direct" if "ELb1EE" in kernel.name else "")] = kernel
    return found


def general_kernels(kernels: Kernels) -> list[Kernel]:
    return [kernel for kernel in kernels.values() if not IMAGE_NAME.search(kernel.name)]


def traits_of(kernel: Kernel) -> Traits:
    match = NAME.search(kernel.name)
    assert match, kernel.name
    flags = kernel.name[match.end() :].rpartition("EvNS0_")[0]
    return Traits(match["kernel"], int(match["columns"]), flags)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Kernels]:
    """The kernels by step and architecture; compiling them fails if one spills registers."""
    folder = tmp_path_factory.mktemp("cubin")

    def kernels(what: tuple[str, str]) -> Kernels:
        step, architecture = what
        return compile_kernels(KERNELS / f"conv_{step}.cu", architecture, folder / "-".join(what))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(COMPILED, pool.map(kernels, COMPILED), strict=True))


each = pytest.mark.parametrize(("step", "architecture"), COMPILED)


@each
def test_every_kernel_is_there(
    compiled: dict[tuple[str, str], Kernels], step: str, architecture: str
) -> None:
    found = [traits_of(kernel) for kernel in general_kernels(compiled[step, architecture])]
    blocks = 1 if step in STRICT else 2
    # Both directions by chunks, all by elements, and going up the weight alone; adding parts in either direction.
    # The weight gradient by chunks, with the fine map by elements, and with both.
    counts = {"conv": 2 * blocks + 2 + 1, "conv_thin": 1, "conv_weight_grad": blocks + 2}
    counts |= {"conv_finish_splits": 2 * blocks, "conv_weight_grad_splits": blocks}
    assert {name: sum(t.kernel == name for t in found) for name in counts} == counts
    assert len(found) == sum(counts.values())
    names = ["conv_image", "conv_image direct", "conv_image_weight_grad"]
    images = image_kernels(compiled[step, architecture])
    assert sorted(images) == [*names, "conv_image_weight_grad_sum"]
    assert len(found) + len(images) == len(compiled[step, architecture])


@each
def test_resources(compiled: dict[tuple[str, str], Kernels], step: str, architecture: str) -> None:
    """No local memory; blocks on an SM: two wide ones (one where shared memory is small), three narrow."""
    for kernel in general_kernels(compiled[step, architecture]):
        assert kernel.stack == 0 and not kernel.having(r"LDL|STL"), kernel.name
        columns = traits_of(kernel).columns
        if not traits_of(kernel).multiplies:
            continue
        by_registers = REGISTERS_OF_AN_SM // (-(-kernel.registers // 8) * 8 * THREADS[columns])
        by_shared = SHARED_KB_OF_AN_SM[architecture] // (SHARED_BYTES[columns] // 1024 + 1)
        wanted = 2 if columns == 128 or step in STRICT else 3
        assert by_registers >= wanted, (kernel.name, kernel.registers)
        if architecture != "120":
            assert by_shared >= wanted, kernel.name
        else:
            assert by_shared == (1 if columns == 128 else 2), kernel.name


@each
def test_instructions(
    compiled: dict[tuple[str, str], Kernels], step: str, architecture: str
) -> None:
    """Products of the right kind, unrolled as meant; fragments by LDSM; copies in the background."""
    for kernel in general_kernels(compiled[step, architecture]):
        traits = traits_of(kernel)
        assert not kernel.having(r"ATOM|RED\b|DFMA|DADD|DMUL"), kernel.name
        if not traits.multiplies:
            assert not kernel.having("HMMA"), kernel.name
            continue
        if step == "fma":
            assert not kernel.having("HMMA"), kernel.name
            assert kernel.count("FFMA") >= FRAGMENTS_OF_A_WARP * 16, kernel.name
        else:
            wanted = FRAGMENTS_OF_A_WARP * PRODUCTS[step]
            assert kernel.count(PRODUCT[step]) == wanted, (kernel.name, kernel.having("HMMA"))
        transposed = "grad" in traits.kernel
        if step in ("bf16", "fp16") or (step != "fma" and not transposed):
            assert kernel.having(r"LDSM"), kernel.name
        copies = kernel.having(r"LDGSTS")
        assert bool(copies) == traits.by_chunks, (kernel.name, copies)
        assert all("128" in copy for copy in copies), copies


@each
def test_resources_of_images(
    compiled: dict[tuple[str, str], Kernels], step: str, architecture: str
) -> None:
    """No local memory; blocks of 4 warps on an SM: three, of the strict steps and the gradient two."""
    for name, kernel in image_kernels(compiled[step, architecture]).items():
        assert kernel.stack == 0 and not kernel.having(r"LDL|STL"), kernel.name
        threads = 512 if name.endswith("sum") else 128
        blocks = REGISTERS_OF_AN_SM // (-(-kernel.registers // 8) * 8 * threads)
        assert blocks >= (2 if step in STRICT or "grad" in name else 3), (name, kernel.registers)


# Of the loop that multiplies: products of one step of the depth, and all instructions at most, as the kernels' headers
# count them and a few more: of bfloat16, 16 loads for 8 words of A; the gradient's are of 16 pixels.
IMAGE_LOOPS = {
    "conv_image direct": (
        {"bf16": 16, "fp16": 16, "tf32": 16, "tf32x3": 48},
        {"bf16": 85, "tf32": 120},
    ),
    "conv_image_weight_grad": (
        {"bf16": 24, "fp16": 24, "tf32": 24, "tf32x3": 72},
        {"bf16": 150, "tf32": 240},
    ),
}


@each
def test_instructions_of_images(
    compiled: dict[tuple[str, str], Kernels], step: str, architecture: str
) -> None:
    """Copies of 16 bytes in the background, products of the right kind, no division in a loop of few instructions."""
    images = image_kernels(compiled[step, architecture])
    for name, kernel in images.items():
        assert not kernel.having(r"ATOM|RED\b|DFMA|DADD|DMUL"), name
        if name.endswith("sum"):
            assert kernel.count("LDG.E.128") >= 8, "parts that are on their way at once"
            continue
        assert kernel.having("LDGSTS.*128") == kernel.having("LDGSTS"), name
        products, most = IMAGE_LOOPS.get(name, IMAGE_LOOPS["conv_image direct"])
        if step == "fma":
            assert not kernel.having("HMMA"), name
            continue
        assert kernel.count(PRODUCT[step]) == products[step], name
        if name in IMAGE_LOOPS and step in most:
            loop = kernel.loop(PRODUCT[step])
            assert len(loop) <= most[step], (name, len(loop))
            assert not any(re.match("MUFU|IMAD.HI|BAR|LDG|STS", opcode) for opcode in loop), loop
    assert images["conv_image direct"].having("STG") == {"STG.E.128"}
