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
    r"\d+(?P<kernel>conv(?:_thin|_weight_grad|_finish)?(?:_splits|_sum)?)I.*?BlockShapeILi128ELi(?P<columns>\d+)E"
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
        return not self.kernel.endswith(("_splits", "_sum"))

    @property
    def by_chunks(self) -> bool:
        """Reads at least one operand by chunks."""
        return "Lb1E" in self.flags if "grad" in self.kernel else "AccessE3" not in self.flags

    @property
    def by_elements(self) -> bool:
        """Reads an operand of a convolution one by one."""
        return self.kernel == "conv" and "AccessE0" not in self.flags


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
def compiled() -> dict[tuple[str, str], Kernels]:
    """The kernels by step and architecture; compiling them fails if one spills registers."""

    def kernels(what: tuple[str, str]) -> Kernels:
        step, architecture = what
        return compile_kernels(KERNELS / f"conv_{step}.cu", architecture)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(COMPILED, pool.map(kernels, COMPILED), strict=True))


each = pytest.mark.parametrize(("step", "architecture"), COMPILED)


@each
def test_every_kernel_is_there(
    compiled: dict[tuple[str, str], Kernels], step: str, architecture: str
) -> None:
    found = [traits_of(kernel) for kernel in general_kernels(compiled[step, architecture])]
    blocks = 1 if step in STRICT else 2
    # Both directions by chunks, all by elements, and going up the weight or the pixels alone; adding parts in either
    # direction. The weight gradient by chunks, with either map by elements, and with both.
    counts = {"conv": 2 * blocks + 2 + 2, "conv_thin": 1, "conv_weight_grad": blocks + 3}
    counts |= {"conv_finish_splits": 2 * blocks, "conv_weight_grad_sum": blocks}
    assert {name: sum(t.kernel == name for t in found) for name in counts} == counts
    assert len(found) == sum(counts.values())
    names = ["conv_image", "conv_image direct", "conv_image_weight_grad"]
    images = image_kernels(compiled[step, architecture])
    assert sorted(images) == [*names, "conv_image_weight_grad_sum"]
    assert len(found) + len(images) == len(compiled[step, architecture])


@each
def test_resources(compiled: dict[tuple[str, str], Kernels], step: str, architecture: str) -> None:
    """No local memory; blocks on an SM: two wide ones (one where shared memory is small), three narrow, but two of
    those that read elements."""
    for kernel in general_kernels(compiled[step, architecture]):
        assert kernel.stack == 0 and not kernel.having(r"LDL|STL"), kernel.name
        columns = traits_of(kernel).columns
        if not traits_of(kernel).multiplies:
            continue
        by_registers = REGISTERS_OF_AN_SM // (-(-kernel.registers // 8) * 8 * THREADS[columns])
        by_shared = SHARED_KB_OF_AN_SM[architecture] // (SHARED_BYTES[columns] // 1024 + 1)
        few = columns == 128 or step in STRICT or traits_of(kernel).by_elements
        wanted = 2 if few else 3
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


@pytest.fixture(scope="module")
def warpgroups() -> Kernels:
    """Those whose products are warpgroups', of either 16-bit type."""
    if "90a" not in architectures():
        pytest.skip("this nvcc does not know sm_90a")
    return compile_kernels(KERNELS / "conv_sm90a.cu", "90a")


# Instructions of the loop over stages, copies among them. The products of two blocks' wide stages take 1024 cycles, in
# which a scheduler can issue as many for its four warps: 256 each, or the copies decide and not the products.
WARPGROUP_LOOPS = {("conv", 128): 180, ("conv", 64): 160}
WARPGROUP_LOOPS |= {("conv_weight_grad", 128): 230, ("conv_weight_grad", 64): 200}


def test_kernels_of_warpgroups(warpgroups: Kernels) -> None:
    """Four products a stage in a row, none waited for one by one; copies in the background; blocks on an SM."""
    found = [traits_of(kernel).kernel for kernel in warpgroups.values()]
    counts = {"conv": 8, "conv_finish_splits": 8, "conv_weight_grad": 4, "conv_weight_grad_sum": 4}
    assert {name: found.count(name) for name in counts} == counts and len(found) == 24
    for kernel in warpgroups.values():
        traits = traits_of(kernel)
        assert kernel.stack == 0 and not kernel.having(r"LDL|STL|HMMA|ATOM|RED\b"), kernel.name
        if not traits.multiplies:
            assert not kernel.having("HGMMA"), kernel.name
            continue
        threads, blocks = 256, 2 if traits.columns == 128 else 3
        assert REGISTERS_OF_AN_SM // (-(-kernel.registers // 8) * 8 * threads) >= blocks, (
            kernel.name
        )
        (product,) = kernel.having("HGMMA")
        assert product.startswith(f"HGMMA.64x{traits.columns}x16.F32"), product
        assert kernel.count(product) == 4 and kernel.having("LDGSTS.*128") == kernel.having(
            "LDGSTS"
        )
        loop = kernel.loop(product)
        assert loop.count(product) == 4 and not kernel.having("LDSM"), kernel.name
        assert sum(opcode.startswith("WARPGROUP.DEPBAR") for opcode in loop) == 1, loop
        assert len(loop) <= WARPGROUP_LOOPS[traits.kernel, traits.columns], (kernel.name, len(loop))
        assert not any(re.match(r"MUFU|LDG\b|STG", opcode) for opcode in loop), loop


BOX_NAME = re.compile(
    r"\d+conv_boxes(?P<splits>_finish_splits)?I.*?BlockShapeILi128ELi(?P<columns>\d+)E.*Lb(?P<up>\d)EEEv"
)
BOX_LOOP = 85  # instructions of the loop over stages, the wait for one among them


@pytest.mark.parametrize("source", ["conv_boxes", "conv_boxes_tf32"])
def test_kernels_that_the_copy_engine_feeds(source: str) -> None:
    """Four products a stage, those of the last one still going on; no copy by a thread; blocks on an SM."""
    if "90a" not in architectures():
        pytest.skip("this nvcc does not know sm_90a")
    kernels = compile_kernels(KERNELS / f"{source}_sm90a.cu", "90a")
    tf32, found = source.endswith("tf32"), []
    for kernel in kernels.values():
        if tf32 and "conv_pack_weights" in kernel.name:
            assert kernel.stack == 0 and kernel.registers <= 32, kernel.registers
            continue
        match = BOX_NAME.search(kernel.name)
        assert match, kernel.name
        columns, up = int(match["columns"]), int(match["up"])
        found.append((bool(match["splits"]), columns, up))
        assert kernel.stack == 0 and not kernel.having(r"LDL|STL|HMMA|LDGSTS|ATOM|RED\b"), (
            kernel.name
        )
        if match["splits"]:
            assert not kernel.having("HGMMA|UTMA"), kernel.name
            continue
        blocks = 1 if columns == 256 else 2
        assert REGISTERS_OF_AN_SM // (-(-kernel.registers // 8) * 8 * 288) >= blocks, (
            kernel.registers
        )
        assert kernel.count("UTMALDG.5D") == 1, kernel.name
        assert kernel.count("UTMALDG.3D") == (columns // 64 if up and not tf32 else 1)
        assert not kernel.having("VIMNMX3"), "which ptxas 13.0 has made of the wrong numbers"
        (product,) = kernel.having("HGMMA")
        shape = f"64x{columns}x8.F32.TF32" if tf32 else f"64x{columns}x16.F32"
        assert product.startswith(f"HGMMA.{shape}"), product
        loop = kernel.loop(product)
        assert loop.count(product) == 4 and len(loop) <= BOX_LOOP, (kernel.name, len(loop))
        assert sum(opcode.startswith("WARPGROUP.DEPBAR") for opcode in loop) == 1, loop
        assert not any(re.match(r"MUFU|LDG\b|STG|BAR|LDS|STS", opcode) for opcode in loop), loop
    widths = (64, 128) if tf32 else (64, 128, 256)
    shapes = [(False, columns, up) for columns in widths for up in (0, 1)]
    shapes += [(True, columns, up) for columns in (64, 128) for up in (0, 1)]
    assert sorted(found) == sorted((1 if tf32 else 2) * shapes)  # bfloat16 and float16
    assert len(kernels) == len(found) + tf32


def test_gradients_that_the_copy_engine_feeds() -> None:
    """As above; boxes of 64 channels, two of the coarse map and one or two of the fine one."""
    if "90a" not in architectures():
        pytest.skip("this nvcc does not know sm_90a")
    source = KERNELS / "conv_boxes_weight_grad_sm90a.cu"
    kernels = list(compile_kernels(source, "90a").values())
    kernels = [kernel for kernel in kernels if "conv_weight_grad_sum" not in kernel.name]
    assert len(kernels) == 4 and all("conv_boxes_weight_grad" in kernel.name for kernel in kernels)
    for kernel in kernels:
        columns = 128 if "ILi128ELi128E" in kernel.name else 64
        assert kernel.stack == 0 and not kernel.having(r"LDL|STL|HMMA|LDGSTS|ATOM|RED\b"), (
            kernel.name
        )
        assert REGISTERS_OF_AN_SM // (-(-kernel.registers // 8) * 8 * 288) >= 2, kernel.registers
        assert kernel.count("UTMALDG.5D") == 2 + columns // 64, kernel.name
        (product,) = kernel.having("HGMMA")
        assert product.startswith(f"HGMMA.64x{columns}x16.F32"), product
        loop = kernel.loop(product)
        assert loop.count(product) == 4 and len(loop) <= BOX_LOOP, (kernel.name, len(loop))
        assert sum(opcode.startswith("WARPGROUP.DEPBAR") for opcode in loop) == 1, loop


@each
def test_resources_of_images(
    compiled: dict[tuple[str, str], Kernels], step: str, architecture: str
) -> None:
    """No local memory; blocks of 4 warps on an SM: three, of strict steps, the gradient and smooth activations two."""
    for name, kernel in image_kernels(compiled[step, architecture]).items():
        assert kernel.stack == 0 and not kernel.having(r"LDL|STL"), kernel.name
        threads = 512 if name.endswith("sum") else 128
        blocks = REGISTERS_OF_AN_SM // (-(-kernel.registers // 8) * 8 * threads)
        wanted = 3 if name == "conv_image direct" and step not in STRICT else 2
        assert blocks >= wanted, (name, kernel.registers)


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
