"""The gather_images launcher, called in the emulator."""

from __future__ import annotations

import dataclasses

import torch
from emulator_harness import SCHEDULES, Emulated
from torch import Tensor

from dcgan_fast import reference


@dataclasses.dataclass(frozen=True)
class GatherCase:
    """A call of the launcher."""

    shape: tuple[int, int, int]  # channels, height, width
    batch: int = 5
    count: int = 7
    channels_last: bool = False
    flips: bool = True
    value_range: tuple[float, float] = (-1.0, 1.0)
    misaligned_elements: int = 0  # of the output, off the 16-byte alignment of an allocation

    def __str__(self) -> str:
        """The shape, and what differs from the defaults."""
        words = ["x".join(map(str, self.shape))]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={value}")
        return " ".join(words)

    def tensors(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        random = torch.Generator().manual_seed(seed)
        images = torch.randint(256, (self.count, *self.shape), generator=random).to(torch.uint8)
        rows = torch.randint(max(self.count, 1), (self.batch,), generator=random)
        flips = torch.rand(self.batch, generator=random) < 0.5
        return images, rows, flips if self.flips else None

    def numbers(self) -> dict[str, float]:
        low, high = self.value_range
        channels, height, width = self.shape
        return {
            "count": self.count,
            "batch": self.batch,
            "channels": channels,
            "height": height,
            "width": width,
            "channels_last": self.channels_last,
            "divisor": 255 / (high - low),
            "low": low,
        }


def expected(case: GatherCase, images: Tensor, rows: Tensor, flips: Tensor | None) -> Tensor:
    """In the output's order of memory."""
    result = reference.gather_images(images, rows, flips, value_range=case.value_range)
    return result.permute(0, 2, 3, 1).contiguous() if case.channels_last else result


class EmulatedGatherImages(Emulated):
    """`launch_gather_images`."""

    OP = "gather_images"

    def gather(
        self,
        case: GatherCase,
        images: Tensor,
        rows: Tensor,
        flips: Tensor | None,
        schedule: str = "in_order",
        seed: int = 1,
    ) -> Tensor:
        numbers = {
            **case.numbers(),
            "flips": flips is not None,
            "misaligned_elements": case.misaligned_elements,
            "schedule": SCHEDULES[schedule],
            "seed": seed,
        }
        arrays = [images, rows, *([] if flips is None else [flips])]
        self.call("gather", numbers, [array.numpy().tobytes() for array in arrays])
        channels, height, width = case.shape
        shape = (height, width, channels) if case.channels_last else case.shape
        return self.receive(torch.float32, (case.batch, *shape))

    def rules(self, **changes: float) -> None:
        """Refused, for the arrays are null at the latest."""
        numbers = {**GatherCase((1, 1, 1)).numbers(), **changes}
        self.call("rules", {**numbers, "schedule": 0, "seed": 1}, [])
