"""The launcher of maxout units, called in the emulator."""

from __future__ import annotations

import dataclasses

import torch
from conv_emulated import PRECISIONS
from emulator_harness import DTYPES, SCHEDULES, Emulated, Tensors
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class MaxoutCase:
    """A call of the launcher."""

    rows: int
    inputs: int
    outputs: int
    pieces: int
    dtype: torch.dtype = torch.float32
    precision: str = "tf32x3"
    bias: bool = True
    misaligned_elements: int = 0  # off the 16-byte alignment of an allocation

    def __str__(self) -> str:
        """The shape, and what differs from the defaults."""
        words = [f"{self.rows}x{self.inputs}x{self.outputs}x{self.pieces}"]
        for field in dataclasses.fields(self)[4:]:
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={str(value).removeprefix('torch.')}")
        return " ".join(words)

    def tensors(self, seed: int = 0) -> Tensors:
        """Eighths, so that no product is rounded whatever multiplies it, and pieces are often equal."""
        random = torch.Generator().manual_seed(seed)

        def eighths(*shape: int) -> Tensor:
            return torch.randint(-4, 5, shape, generator=random).div(8).to(self.dtype)

        return {
            "input": eighths(self.rows, self.inputs),
            "weight": eighths(self.outputs, self.pieces, self.inputs),
            "bias": eighths(self.outputs, self.pieces),
        }

    def exactly(self, tensors: Tensors) -> Tensors:
        pieces = torch.einsum("ni,opi->nop", tensors["input"].double(), tensors["weight"].double())
        best = (pieces + tensors["bias"].double() * self.bias).max(2)
        return {"output": best.values.to(self.dtype), "winner": best.indices.to(torch.uint8)}


class EmulatedMaxout(Emulated):
    """`launch_maxout_linear`."""

    OP = "maxout_linear"

    def units(
        self,
        case: MaxoutCase,
        tensors: Tensors,
        schedule: str = "in_order",
        seed: int = 1,
        winner: bool = True,
    ) -> Tensors:
        numbers = {
            "rows": case.rows,
            "in": case.inputs,
            "out": case.outputs,
            "pieces": case.pieces,
            "dtype": DTYPES.index(case.dtype),
            "precision": PRECISIONS.index(case.precision),
            "bias": case.bias,
            "winner": winner,
            "misaligned_elements": case.misaligned_elements,
            "schedule": SCHEDULES[schedule],
            "seed": seed,
        }
        arrays = [tensors[name].flatten().view(torch.uint8) for name in ("input", "weight", "bias")]
        self.call("units", numbers, [array.numpy().tobytes() for array in arrays])
        shape = (case.rows, case.outputs)
        return {
            "output": self.receive(case.dtype, shape),
            "winner": self.receive(torch.uint8, shape),
        }

    def rules(self, rows: int = 1, inputs: int = 1, outputs: int = 1, pieces: int = 2) -> None:
        """Refused, for the arrays are null at the latest."""
        numbers = {"rows": rows, "in": inputs, "out": outputs, "pieces": pieces}
        self.call("rules", numbers | {"schedule": 0, "seed": 1}, [])
