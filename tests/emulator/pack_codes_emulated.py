"""The pack_codes launcher, called in the emulator."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from emulator_harness import DTYPES, SCHEDULES, Emulated
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class PackCase:
    """A call of the launcher."""

    rows: int
    bits: int
    dtype: torch.dtype = torch.float32
    threshold: float = 0.0
    misaligned_elements: int = 0  # off the 16-byte alignment of an allocation

    def __str__(self) -> str:
        """What differs from the defaults."""
        words = [f"{self.rows}x{self.bits}"]
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={str(value).removeprefix('torch.')}")
        return " ".join(words)

    def activations(self, seed: int = 0) -> Tensor:
        """Multiples of a quarter: some are the threshold itself."""
        random = torch.Generator().manual_seed(seed)
        return (
            torch.randn(self.rows, self.bits, generator=random).mul(4).round().div(4).to(self.dtype)
        )


def packed(case: PackCase, activations: Tensor) -> Tensor:
    """The codes, by NumPy."""
    above = np.packbits((activations > case.threshold).numpy(), axis=1, bitorder="little")
    padded = np.zeros((case.rows, (case.bits + 63) // 64 * 8), np.uint8)
    padded[:, : above.shape[1]] = above
    return torch.from_numpy(padded.view(np.int64))


class EmulatedPackCodes(Emulated):
    """`launch_pack_codes`."""

    OP = "pack_codes"

    def pack(
        self, case: PackCase, activations: Tensor, schedule: str = "in_order", seed: int = 1
    ) -> tuple[Tensor, int]:
        """The codes, and the place of the first NaN (-1: none)."""
        numbers = {
            "rows": case.rows,
            "bits": case.bits,
            "dtype": DTYPES.index(case.dtype),
            "threshold": case.threshold,
            "misaligned_elements": case.misaligned_elements,
            "schedule": SCHEDULES[schedule],
            "seed": seed,
        }
        self.call("pack", numbers, [activations.flatten().view(torch.uint8).numpy().tobytes()])
        codes = self.receive(torch.int64, (case.rows, (case.bits + 63) // 64))
        return codes, int(self.receive(torch.int64, ()))

    def far_end(self, case: PackCase, tail: Tensor) -> tuple[Tensor, int]:
        """The last codes and the place of the first NaN, of rows of zeros that end in `tail` and are too many to
        process: only the last block runs."""
        numbers = {
            "rows": case.rows,
            "bits": case.bits,
            "dtype": DTYPES.index(case.dtype),
            "tail": len(tail),
            "schedule": 0,
            "seed": 1,
        }
        self.call("far_end", numbers, [tail.flatten().view(torch.uint8).numpy().tobytes()])
        codes = self.receive(torch.int64, (len(tail), (case.bits + 63) // 64))
        return codes, int(self.receive(torch.int64, ()))

    def rules(
        self, rows: int = 1, bits: int = 1, threshold: float = 0.0, first_nan: bool = True
    ) -> None:
        """Refused, for the arrays are null at the latest."""
        numbers = {"rows": rows, "bits": bits, "threshold": threshold, "first_nan": first_nan}
        self.call("rules", numbers | {"schedule": 0, "seed": 1}, [])
