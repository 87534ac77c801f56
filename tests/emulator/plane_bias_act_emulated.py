"""The launchers of biases of patterns, called in the emulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from emulator_harness import ACTIVATIONS, DTYPES, SCHEDULES, Emulated, Tensors
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class PlaneCase:
    """A call of the launchers, forward and backward."""

    shape: tuple[int, int, int, int]  # batch, channels, height, width
    patterns: tuple[int, int] = (3, 3)  # of rows and of columns
    dtype: torch.dtype = torch.float32
    activation: str = "leaky_relu"
    channels_last: bool = True
    negative_slope: float = 0.2
    misaligned_elements: int = 0  # off the 16-byte alignment of an allocation
    in_place: bool = False

    def __str__(self) -> str:
        """The shape, and what differs from the defaults."""
        words = ["x".join(map(str, self.shape))]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={str(value).removeprefix('torch.')}")
        return " ".join(words)

    def tensors(self, seed: int = 0) -> Tensors:
        """Maps (N, C, H, W), biases (N, C, R, S) and the patterns of rows and columns, those of edges and of phases."""
        random = torch.Generator().manual_seed(seed)
        n, c, *sides = self.shape

        def patterns(pixels: int, count: int) -> Tensor:
            of_pixels = torch.arange(pixels) % max(count - 2, 1) + min(count - 1, 1)
            if pixels:
                of_pixels[0], of_pixels[-1] = 0, count - 1
            return of_pixels

        return {
            "rows": patterns(sides[0], self.patterns[0]),
            "columns": patterns(sides[1], self.patterns[1]),
            "input": torch.randn(self.shape, generator=random).to(self.dtype),
            "bias": torch.randn((n, c, *self.patterns), generator=random),
            "grad": torch.randn(self.shape, generator=random).to(self.dtype),
        }


class EmulatedPlaneBiasAct(Emulated):
    """`launch_plane_bias_act_forward` and `launch_plane_bias_act_backward`."""

    OP = "plane_bias_act"

    @staticmethod
    def _numbers(case: PlaneCase, schedule: str, seed: int) -> dict[str, float]:
        names = ("batch", "channels", "height", "width")
        return {
            **dict(zip(names, case.shape, strict=True)),
            "row_patterns": case.patterns[0],
            "column_patterns": case.patterns[1],
            "channels_last": case.channels_last,
            "dtype": DTYPES.index(case.dtype),
            "activation": ACTIVATIONS.index(case.activation),
            "negative_slope": case.negative_slope,
            "misaligned_elements": case.misaligned_elements,
            "in_place": case.in_place,
            "schedule": SCHEDULES[schedule],
            "seed": seed,
        }

    @staticmethod
    def _to_memory(case: PlaneCase, tensor: Tensor) -> bytes:
        if tensor.dim() == 4 and case.channels_last:
            tensor = tensor.permute(0, 2, 3, 1)
        return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()

    def _receive(self, case: PlaneCase, dtype: torch.dtype, sides: tuple[int, int]) -> Tensor:
        n, c = case.shape[:2]
        if case.channels_last:
            return self.receive(dtype, (n, *sides, c)).permute(0, 3, 1, 2)
        return self.receive(dtype, (n, c, *sides))

    def forward(
        self, case: PlaneCase, given: Tensors, schedule: str = "in_order", seed: int = 1
    ) -> Tensors:
        arrays = [self._to_memory(case, given[n]) for n in ("rows", "columns", "input", "bias")]
        self.call("forward", self._numbers(case, schedule, seed), arrays)
        return {"output": self._receive(case, case.dtype, case.shape[2:])}

    def backward(
        self,
        case: PlaneCase,
        given: Tensors,
        schedule: str = "in_order",
        seed: int = 1,
        wanted: Iterable[str] = ("grad_input", "grad_bias"),
    ) -> Tensors:
        """Gradients of input and bias, `given` the output too; those that are not wanted as they were, of NaNs."""
        numbers = self._numbers(case, schedule, seed)
        numbers |= {name: name in wanted for name in ("grad_input", "grad_bias")}
        arrays = [self._to_memory(case, given[n]) for n in ("rows", "columns", "grad", "output")]
        self.call("backward", numbers, arrays)
        return {
            "grad_input": self._receive(case, case.dtype, case.shape[2:]),
            "grad_bias": self._receive(case, torch.float32, case.patterns),
        }

    def both(
        self,
        case: PlaneCase,
        given: Tensors | None = None,
        schedule: str = "in_order",
        seed: int = 1,
    ) -> Tensors:
        """Everything that forward() and backward() return."""
        given = case.tensors() if given is None else given
        forward = self.forward(case, given, schedule, seed)
        return forward | self.backward(case, given | forward, schedule, seed)

    def rules(self, case: PlaneCase, patterns: bool = False) -> None:
        """Refused, for the arrays are null at the latest."""
        self.call("rules", self._numbers(case, "in_order", 1) | {"patterns": patterns}, [])
