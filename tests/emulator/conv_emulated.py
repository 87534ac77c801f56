"""The convolution launchers, called in the emulator."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from emulator_harness import ACTIVATIONS, DTYPES, SCHEDULES, Emulated, Tensors
from torch import Tensor

PRECISIONS = ["tf32", "tf32x3", "fma"]
FEW_CHANNELS = 8  # as images have


@dataclasses.dataclass(frozen=True)
class ConvCase:
    """A convolution between a fine and a coarse grid, in `conv.h`'s words; all calls of it."""

    batch: int
    fine: tuple[int, int, int]  # channels, height, width
    coarse: int  # channels
    kernel: tuple[int, int] = (4, 4)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (1, 1)
    dtype: torch.dtype = torch.bfloat16
    precision: str = "tf32x3"
    warpgroups: bool = False
    boxes: bool = False
    stat_groups: int = 1
    activation: str = "none"
    activation_below: str = "leaky_relu"  # of the batch norm whose gradient the output is
    parameters: tuple[str, ...] = ()  # of mean, var, bn_weight, bias
    param_dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        """What differs from the defaults."""
        words = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={str(value).removeprefix('torch.')}".replace(" ", ""))
        return " ".join(words)

    @property
    def coarse_size(self) -> tuple[int, int]:
        height, width = (
            (size + 2 * padding - kernel) // stride + 1
            for size, padding, kernel, stride in zip(
                self.fine[1:], self.padding, self.kernel, self.stride, strict=True
            )
        )
        return height, width

    @property
    def output_padding(self) -> tuple[int, int]:
        vertical, horizontal = (
            size - ((coarse - 1) * stride - 2 * padding + kernel)
            for size, coarse, stride, padding, kernel in zip(
                self.fine[1:], self.coarse_size, self.stride, self.padding, self.kernel, strict=True
            )
        )
        return vertical, horizontal

    def inputs(self, seed: int = 0) -> Tensors:
        """fine, coarse (N, C, H, W), weight (coarse, fine, kH, kW) and the parameters of both directions."""
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random)

        channels = {"down": self.coarse, "up": self.fine[0]}
        given = {
            "fine": normal(self.batch, *self.fine).to(self.dtype),
            "coarse": normal(self.batch, self.coarse, *self.coarse_size).to(self.dtype),
            "weight": normal(self.coarse, self.fine[0], *self.kernel).to(self.dtype),
        }
        for direction, c in channels.items():
            values = {
                "mean": normal(c),
                "var": normal(c).abs() + 0.5,
                "bn_weight": normal(c) + 1,
                "bias": normal(c),
            }
            for name, value in values.items():
                given[f"{direction} {name}"] = value.to(self.param_dtype)
        for direction, like in (("down", "coarse"), ("up", "fine")):
            channel, group = (channels[direction],), (self.stat_groups, channels[direction])
            given |= {
                f"{direction} below x": normal(*given[like].shape).to(self.dtype),
                f"{direction} below mean": normal(*group),
                f"{direction} below rstd": normal(*group).abs() + 0.5,
                f"{direction} below weight": (normal(*channel) + 1).to(self.param_dtype),
                f"{direction} below bias": normal(*channel).to(self.param_dtype),
            }
        return given

    def convolve(self, direction: str, maps: Tensor, weight: Tensor) -> Tensor:
        """PyTorch's convolution, in the maps' dtype."""
        if direction == "down":
            return F.conv2d(maps, weight, stride=self.stride, padding=self.padding)
        return F.conv_transpose2d(
            maps,
            weight,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
        )

    def weight_grad(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """PyTorch's weight gradient, in the maps' dtype."""
        size = (self.coarse, self.fine[0], *self.kernel)
        return torch.nn.grad.conv2d_weight(
            fine, size, coarse, stride=self.stride, padding=self.padding
        )


class Moments(NamedTuple):
    """Statistics by tiles: mean and M2 (G, tiles, C), counts (G, tiles)."""

    mean: Tensor
    m2: Tensor
    counts: Tensor


def to_memory(tensor: Tensor) -> bytes:
    """The bytes of an array; of four dimensions, channels last."""
    if tensor.dim() == 4:
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


class EmulatedConv(Emulated):
    """`launch_conv` and `launch_conv_weight_grad`."""

    OP = "conv"

    @staticmethod
    def _numbers(case: ConvCase, schedule: str, seed: int) -> dict[str, float]:
        (fine, height, width), coarse = case.fine, case.coarse_size
        return {
            "batch": case.batch,
            "fine_channels": fine,
            "fine_height": height,
            "fine_width": width,
            "coarse_channels": case.coarse,
            "coarse_height": coarse[0],
            "coarse_width": coarse[1],
            **{
                f"{name}_{axis}": getattr(case, name)[i]
                for name in ("kernel", "stride", "padding")
                for i, axis in enumerate("yx")
            },
            "dtype": DTYPES.index(case.dtype),
            "param_dtype": DTYPES.index(case.param_dtype),
            "precision": PRECISIONS.index(case.precision),
            "warpgroups": case.warpgroups,
            "boxes": case.boxes,
            "stat_groups": case.stat_groups,
            "schedule": SCHEDULES[schedule],
            "seed": seed,
        }

    def _receive_maps(self, case: ConvCase, channels: int, size: tuple[int, int]) -> Tensor:
        return self.receive(case.dtype, (case.batch, *size, channels)).permute(0, 3, 1, 2)

    def forward(
        self,
        case: ConvCase,
        direction: str,
        given: Tensors,
        schedule: str = "in_order",
        seed: int = 1,
        statistics: bool = False,
    ) -> tuple[Tensor, Moments]:
        """The output, and the statistics of its tiles where they are asked for."""
        output, tiles = self._forward(case, direction, given, schedule, seed, statistics=statistics)
        moments = self.receive(torch.float32, (case.stat_groups, tiles, output.shape[1], 2))
        counts = self.receive(torch.float32, (case.stat_groups, tiles))
        return output, Moments(moments[..., 0], moments[..., 1], counts)

    def gradient_sums(
        self,
        case: ConvCase,
        direction: str,
        given: Tensors,
        schedule: str = "in_order",
        seed: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """The output, taken for a gradient, and its sums by tiles (G, tiles, C, 2); no tiles where it has none."""
        output, tiles = self._forward(case, direction, given, schedule, seed, sums=True)
        return output, self.receive(torch.float32, (case.stat_groups, tiles, output.shape[1], 2))

    def _forward(
        self,
        case: ConvCase,
        direction: str,
        given: Tensors,
        schedule: str,
        seed: int,
        statistics: bool = False,
        sums: bool = False,
    ) -> tuple[Tensor, int]:
        """The output, and how many tiles a group has of what was asked for, which is still to be received."""
        up = direction == "up"
        numbers = self._numbers(case, schedule, seed) | {
            "up": up,
            "statistics": statistics,
            "sums": sums,
            "eps": 1e-5,
            "activation": ACTIVATIONS.index(case.activation),
            "activation_below": ACTIVATIONS.index(case.activation_below),
            "negative_slope": 0.2,
        }
        names = ["mean", "var", "bn_weight", "bias"]
        numbers |= {name: name in case.parameters for name in names}
        arrays = [given["coarse" if up else "fine"], given["weight"]]
        arrays += [given[f"{direction} {name}"] for name in names if name in case.parameters]
        if sums:
            below = ["x", "mean", "rstd", "weight", "bias"]
            arrays += [given[f"{direction} below {name}"] for name in below]
        self.call("forward", numbers, map(to_memory, arrays))
        channels = case.fine[0] if up else case.coarse
        output = self._receive_maps(case, channels, case.fine[1:] if up else case.coarse_size)
        return output, int(self.receive(torch.int64, ()))

    def weight_grad(
        self, case: ConvCase, given: Tensors, schedule: str = "in_order", seed: int = 1
    ) -> Tensor:
        """The weight's gradient, of fine and coarse maps."""
        arrays = [given["fine"], given["coarse"]]
        self.call("weight_grad", self._numbers(case, schedule, seed), map(to_memory, arrays))
        shape = (case.coarse, *case.kernel, case.fine[0])
        return self.receive(case.dtype, shape).permute(0, 3, 1, 2)

    def all(
        self, case: ConvCase, given: Tensors, schedule: str = "in_order", seed: int = 1
    ) -> Tensors:
        """Outputs of both directions, with statistics and with a gradient's sums, and the weight gradient; of few
        channels also the outputs alone, which other kernels make."""
        result = {"weight_grad": self.weight_grad(case, given, schedule, seed)}
        for direction in ("down", "up"):
            statistics = not case.parameters and case.activation == "none"
            result[direction], moments = self.forward(
                case, direction, given, schedule, seed, statistics
            )
            result |= {f"{direction} {name}": value for name, value in moments._asdict().items()}
            if statistics:
                gradient, sums = self.gradient_sums(case, direction, given, schedule, seed)
                result |= {f"{direction} gradient": gradient, f"{direction} sums": sums}
            if case.fine[0] <= FEW_CHANNELS:
                alone, _ = self.forward(case, direction, given, schedule, seed)
                result[f"{direction} alone"] = alone
        return result

    def counters(self) -> dict[str, int]:
        """What the emulator counted since the last call."""
        self.call("counters", {"schedule": 0, "seed": 1}, [])
        names = (
            "products shared_loads bank_conflicts copied_bytes copied_sectors blocks boxes".split()
        )
        return dict(zip(names, self.receive(torch.int64, (len(names),)).tolist(), strict=True))
