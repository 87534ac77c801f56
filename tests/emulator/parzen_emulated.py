"""The launcher of Parzen windows, called in the emulator."""

from __future__ import annotations

import dataclasses

import torch
from conv_emulated import PRECISIONS
from emulator_harness import SCHEDULES, Emulated
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class ParzenCase:
    """A call of the launcher."""

    count: int
    rows: int
    features: int
    sigmas: tuple[float, ...] = (0.3,)
    precision: str = "tf32x3"

    def __str__(self) -> str:
        return f"{self.count}x{self.rows}x{self.features} {len(self.sigmas)} {self.precision}"

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Samples and rows, of some of them near the samples."""
        random = torch.Generator().manual_seed(seed)
        samples = torch.rand(self.count, self.features, generator=random)
        data = torch.rand(self.rows, self.features, generator=random)
        near = samples[torch.randint(self.count, (self.rows,), generator=random)]
        data[::2] = (near + 0.1 * data)[::2]
        return samples, data

    def exactly(self, samples: Tensor, data: Tensor) -> Tensor:
        """log sum exp(-|x - y|^2 / (2 sigma^2)) less the offset, in float64: of what is multiplied, where that is
        rounded."""
        centre = samples.mean(0)
        y, x = (
            rounded(rows - centre) if self.precision == "tf32" else rows for rows in (samples, data)
        )
        squares = (x.double()[:, None] - y.double()).square().sum(2)
        log_sums = torch.stack([(-squares / (2 * s * s)).logsumexp(1) for s in self.sigmas])
        return log_sums - self.offset()[:, None]

    def offset(self) -> Tensor:
        return torch.arange(len(self.sigmas)).double() - 3


def rounded(values: Tensor) -> Tensor:
    """To tf32's 11 bits, ties away from zero."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class EmulatedParzen(Emulated):
    """`launch_parzen`."""

    OP = "parzen"

    def windows(
        self,
        case: ParzenCase,
        samples: Tensor,
        data: Tensor,
        schedule: str = "in_order",
        seed: int = 1,
    ) -> tuple[Tensor, int]:
        """The logarithms, and the first row that is no number (-1: none)."""
        numbers = {
            "count": case.count,
            "rows": case.rows,
            "features": case.features,
            "sigmas": len(case.sigmas),
            "precision": PRECISIONS.index(case.precision),
            "schedule": SCHEDULES[schedule],
            "seed": seed,
        }
        inverse_variance = torch.tensor(case.sigmas).double().pow(-2).float()
        arrays = [samples, data, samples.mean(0), inverse_variance, case.offset()]
        self.call("windows", numbers, [array.numpy().tobytes() for array in arrays])
        log_sums = self.receive(torch.float64, (len(case.sigmas), case.rows))
        return log_sums, int(self.receive(torch.int64, ()))

    def rules(
        self,
        count: int = 1,
        rows: int = 1,
        features: int = 1,
        sigmas: int = 1,
        bad_row: bool = True,
        inputs: bool = True,
    ) -> None:
        """Refused, for some arrays are null at the latest."""
        numbers = {"count": count, "rows": rows, "features": features, "sigmas": sigmas}
        flags = {"bad_row": bad_row, "inputs": inputs, "schedule": 0, "seed": 1}
        self.call("rules", numbers | flags, [])
