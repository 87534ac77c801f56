"""Random arguments, sound and not, for every op: ``python tests/fuzz/ops.py [OP ...] [--examples 1000] [--seed 0]``.

A call gives what the reference gives, or raises one of the types that the op documents or PyTorch has for it. Each
example has a seed of its own, which is printed before it runs: of a crash it is the last line.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcgan_fast import dedup, functional, metrics, reference
from dcgan_fast.dedup import reference as dedup_reference
from dcgan_fast.metrics import reference as metrics_reference

# MemoryError: of results that do not fit. ZeroDivisionError: PyTorch's, of meta tensors and a stride of 0.
REFUSALS = (
    *(ValueError, TypeError, RuntimeError, IndexError, NotImplementedError, OverflowError),
    *(MemoryError, ZeroDivisionError),
)
SIZES = (0, 1, 1, 2, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33)
ODD = (-1, 0, 4, 7, 1000, 1 << 15, 1 << 31, (1 << 63) - 1, -(1 << 63))
FLOATS = (torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
OTHERS = (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float64)
TOLERANCES = {torch.bfloat16: 0.06, torch.float16: 0.01, torch.float32: 1e-3, torch.float64: 1e-6}
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Draw:
    """Arguments from a seed; ``wild``: whether some of them are wrong."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.source = torch.Generator().manual_seed(seed)
        self.wild = self.random.random() < 0.6
        self.dtype = self.random.choice(FLOATS)
        self.is_finite = True

    def odds(self, chance: float) -> bool:
        return self.wild and self.random.random() < chance

    def size(self) -> int:
        return self.random.choice(SIZES)

    def number(self, *usual: int) -> int:
        return self.random.choice(ODD if self.odds(0.12) else usual)

    def pair(self, *usual: int) -> int | tuple[int, ...]:
        if self.random.random() < 0.7:
            return self.number(*usual)
        return tuple(self.number(*usual) for _ in range(3 if self.odds(0.1) else 2))

    def tensor(
        self, *shape: int, dtype: torch.dtype | None = None, low: int = 0, high: int = 2
    ) -> Any:
        """Of a shape, or nearly; of any layout; with contents that are not finite now and then."""
        sizes = list(shape)
        if self.odds(0.06) and sizes:
            sizes[self.random.randrange(len(sizes))] = self.size()
        if self.odds(0.03):
            sizes = sizes[1:] if self.random.random() < 0.5 else [*sizes, 2]
        kind = dtype or self.dtype
        if self.odds(0.04):
            kind = self.random.choice(OTHERS)
        if self.odds(0.02):
            return torch.empty(sizes, dtype=kind, device="meta")
        if self.odds(0.02) and sizes:
            return torch.zeros((), dtype=kind).expand(
                [size * 4099 for size in sizes[:1]] + sizes[1:]
            )
        if kind.is_floating_point or kind.is_complex:
            values = torch.randn(sizes, generator=self.source).to(kind)
            if self.odds(0.06) and values.numel():
                self.is_finite = False
                place = self.random.randrange(values.numel())
                values.view(-1)[place] = self.random.choice([float("nan"), float("inf"), 3e38])
        else:
            values = torch.randint(low, max(high, low + 1), sizes, generator=self.source).to(kind)
        return self._laid_out(values)

    def _laid_out(self, values: Tensor) -> Tensor:
        way = self.random.randrange(6)
        if way == 0 and values.dim() == 4:
            return values.contiguous(memory_format=torch.channels_last)
        if way == 1 and values.dim() >= 2:
            return values.transpose(0, -1).contiguous().transpose(0, -1)
        if way == 2 and values.dim():
            wide = torch.cat([values, values], -1)
            return wide[..., : values.size(-1)]
        if way == 3 and values.dim():
            return torch.stack([values, values], -1)[..., 0]
        if way == 4 and values.dim() and values.size(0):
            return values[:1].expand(values.shape)
        return values


def _batch_norm(draw: Draw, channels: int) -> list[Any]:
    narrow = torch.float32 if draw.dtype in (torch.bfloat16, torch.float16) else draw.dtype
    tensors = [draw.tensor(channels, dtype=narrow) for _ in range(3)]
    variance = draw.tensor(channels, dtype=narrow)
    if isinstance(variance, Tensor) and variance.is_floating_point():
        variance = variance.abs() + 0.5
    # Written to in place, so dense.
    running = [None if v is None or v.is_meta else v.clone() for v in (tensors[2], variance)]
    return tensors[:2] + ([None, None] if draw.random.random() < 0.1 else running)


def _options(draw: Draw, *, norm: bool) -> dict[str, Any]:
    names = ["relu", "leaky_relu", "tanh", "sigmoid", "none"] + ["gelu"] * draw.odds(0.1)
    options: dict[str, Any] = {
        "activation": draw.random.choice(names),
        "negative_slope": draw.random.choice(
            [0.2, 0.0, 1.0] + [float("nan"), -1.0] * draw.odds(0.1)
        ),
    }
    if norm:
        options["training"] = draw.random.random() < 0.6
        options["stat_groups"] = draw.number(1, 1, 1, 2)
        options["eps"] = draw.random.choice(
            [1e-5, 1e-3] + [0.0, -1.0, float("nan")] * draw.odds(0.1)
        )
        options["momentum"] = draw.random.choice([0.1, 0.0, 1.0])
    return options


def bn_act(draw: Draw) -> Call:
    channels = draw.size()
    images = draw.tensor(draw.size(), channels, draw.size(), draw.size())
    return (images, *_batch_norm(draw, channels)), _options(draw, norm=True)


def _convolution(draw: Draw, *, transposed: bool, norm: bool) -> Call:
    inner, outer, kernel = draw.size(), draw.size(), draw.random.choice([1, 2, 3, 4, 5])
    channels = (inner, outer) if transposed else (outer, inner)
    images = draw.tensor(draw.size(), inner, draw.size(), draw.size())
    weight = draw.tensor(*channels, kernel, kernel if draw.random.random() < 0.8 else 1)
    options = _options(draw, norm=norm)
    options |= {"stride": draw.pair(1, 2, 2, 3), "padding": draw.pair(0, 1, 2)}
    if transposed:
        # Of longer ones the output alone is terabytes, which takes minutes to find out.
        options["stride"] = draw.random.choice([1, 2, 3, (2, 1), 40, 0, -1])
        options["output_padding"] = draw.pair(0, 0, 0, 1)
    # Long strides crash PyTorch's own oneDNN in bfloat16, and take it a quarter of a minute in float16.
    if getattr(images, "dtype", None) in (torch.bfloat16, torch.float16):
        stride = options["stride"]
        if max(map(abs, stride if isinstance(stride, tuple) else (stride,))) > 3:
            options["stride"] = 2
    if norm:
        return (images, weight, *_batch_norm(draw, outer)), options
    bias = draw.tensor(outer) if draw.random.random() < 0.5 else None
    return (images, weight, bias), options


def gather_images(draw: Draw) -> Call:
    count, batch = draw.size(), draw.size()
    images = draw.tensor(count, draw.size(), draw.size(), draw.size(), dtype=torch.uint8, high=256)
    lowest = -3 if draw.odds(0.1) else 0
    rows = draw.tensor(
        batch, dtype=torch.int64, low=lowest, high=max(count, 1) + 2 * draw.odds(0.1)
    )
    flips = draw.tensor(batch, dtype=torch.bool) if draw.random.random() < 0.5 else None
    formats = [torch.contiguous_format, torch.channels_last] + [torch.preserve_format] * draw.odds(
        0.1
    )
    ranges = [(-1.0, 1.0), (0.0, 1.0)] + [(1.0, 1.0), (float("nan"), 0.0)] * draw.odds(0.1)
    options = {
        "value_range": draw.random.choice(ranges),
        "memory_format": draw.random.choice(formats),
    }
    return (images, rows, flips), options


def maxout_linear(draw: Draw) -> Call:
    inner, outer, pieces = draw.size(), draw.size(), draw.number(1, 2, 3, 5) % 300
    bias = draw.tensor(outer, pieces) if draw.random.random() < 0.6 else None
    return (draw.tensor(draw.size(), inner), draw.tensor(outer, pieces, inner), bias), {}


def plane_bias_act(draw: Draw) -> Call:
    n, c, h, w = (draw.size() for _ in range(4))
    r, s = draw.random.choice([1, 2, 3]), draw.random.choice([1, 2, 3])
    beyond = 2 * draw.odds(0.1)
    rows = draw.tensor(h, dtype=torch.int64, low=-beyond, high=r + beyond)
    columns = draw.tensor(w, dtype=torch.int64, low=-beyond, high=s + beyond)
    return (draw.tensor(n, c, h, w), draw.tensor(n, c, r, s), rows, columns), _options(
        draw, norm=False
    )


def pack_codes(draw: Draw) -> Call:
    bits = draw.random.choice([1, 5, 63, 64, 65, 128, 200, 0])
    thresholds = [0.0, 0.5, -1.0] + [float("nan"), float("inf")] * draw.odds(0.2)
    return (draw.tensor(draw.size(), bits), draw.random.choice(thresholds)), {}


def pixel_codes(draw: Draw) -> Call:
    features, bits = draw.size(), draw.random.choice([1, 5, 63, 64, 65, 128])
    pixels = draw.tensor(draw.size(), features, dtype=torch.uint8, high=256)
    weight = draw.tensor(bits, features, dtype=torch.float32)
    return (pixels, weight, draw.tensor(bits, dtype=torch.float32)), {}


def codes(draw: Draw) -> Call:
    high = draw.random.choice([2, 3, 1 << 62])
    return (
        draw.tensor(draw.size() * 3, draw.random.choice([1, 2, 3]), dtype=torch.int64, high=high),
    ), {}


def near_duplicates(draw: Draw) -> Call:
    (found,), _ = codes(draw)
    return (found, draw.number(0, 1, 2, 3)), {}


def parzen_log_likelihood(draw: Draw) -> Call:
    features = draw.size()
    sigmas = [0.2, [0.1, 0.3], [0.5]] + [0.0, -1.0, float("nan"), [], "text"] * draw.odds(0.2)
    samples, data = draw.tensor(draw.size(), features), draw.tensor(draw.size(), features)
    return (samples, data, draw.random.choice(sigmas)), {}


def _parzen(samples: Tensor, data: Tensor, sigma: Any) -> Tensor:
    widths = torch.as_tensor(sigma, dtype=torch.float64)
    rows = [values.reshape(len(values), -1) for values in (samples, data)]
    found = metrics_reference.parzen_log_likelihood(*rows, widths.reshape(-1))
    return found[0] if widths.dim() == 0 else found


def _pixel_units(pixels: Tensor, weight: Tensor, bias: Tensor, threshold: float = 0.0) -> Tensor:
    return dedup_reference.pixel_codes(pixels, weight.double(), bias.double(), threshold)


_conv: dict[str, Callable[[Draw], Call]] = {
    "conv_act": lambda draw: _convolution(draw, transposed=False, norm=False),
    "conv_bn_act": lambda draw: _convolution(draw, transposed=False, norm=True),
    "conv_transpose_act": lambda draw: _convolution(draw, transposed=True, norm=False),
    "conv_transpose_bn_act": lambda draw: _convolution(draw, transposed=True, norm=True),
}
# Of each op its arguments, itself and its reference (None where sums of another order may flip a bit).
OPS: dict[str, tuple[Callable[[Draw], Call], Callable[..., Any], Callable[..., Any] | None]] = {
    "bn_act": (bn_act, functional.bn_act, reference.bn_act),
    **{
        name: (draw, getattr(functional, name), getattr(reference, name))
        for name, draw in _conv.items()
    },
    "gather_images": (gather_images, functional.gather_images, reference.gather_images),
    "maxout_linear": (maxout_linear, functional.maxout_linear, reference.maxout_linear),
    "plane_bias_act": (plane_bias_act, functional.plane_bias_act, reference.plane_bias_act),
    "pack_codes": (pack_codes, dedup.pack_codes, dedup_reference.pack_codes),
    "pixel_codes": (pixel_codes, dedup.pixel_codes, None),
    "first_occurrence": (codes, dedup.first_occurrence, dedup_reference.first_occurrence),
    "first_of_each": (codes, dedup.first_of_each, dedup_reference.first_of_each),
    "near_duplicates": (near_duplicates, dedup.near_duplicates, dedup_reference.near_duplicates),
    "parzen_log_likelihood": (parzen_log_likelihood, metrics.parzen_log_likelihood, _parzen),
}


def _differentiable(value: Any) -> Any:
    fits = isinstance(value, Tensor) and value.is_floating_point() and not value.is_meta
    return value.detach().requires_grad_() if fits else value


def _exact(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().double() if value.is_floating_point() else value.detach().clone()
    return value


def _compare(ours: Any, theirs: Any, dtype: torch.dtype, where: str) -> None:
    if isinstance(ours, tuple):
        for index, (mine, exact) in enumerate(zip(ours, theirs, strict=True)):
            _compare(mine, exact, dtype, f"{where}[{index}]")
        return
    assert ours.shape == theirs.shape, f"{where}: {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    if ours.is_meta or theirs.is_meta or not ours.numel():
        return
    if not ours.is_floating_point():
        assert torch.equal(ours, theirs), where
        return
    exact = theirs.double()
    error = (ours.double() - exact).abs().max().item()
    bound = TOLERANCES[dtype] * (1 + exact.abs().max().item())
    assert error <= bound, f"{where}: an error of {error:.3g}, at most {bound:.3g} allowed"


def example(name: str, seed: int) -> str:
    """Runs one; returns how it went: "refused", "compared", or "ran" where contents were not finite."""
    arguments_of, op, exact_op = OPS[name]
    draw = Draw(seed)
    arguments, options = arguments_of(draw)
    differentiated = name.endswith("_act") and draw.random.random() < 0.5 or name == "maxout_linear"
    if differentiated:
        running = (
            slice(len(arguments) - 2, len(arguments))
            if name.endswith("bn_act") or name == "bn_act"
            else None
        )
        leaves = [_differentiable(v) for v in arguments]
        if running is not None:
            leaves[running] = arguments[running]
    else:
        leaves = list(arguments)
    exact_arguments = [_exact(value) for value in arguments]
    first = next((a for a in arguments if isinstance(a, Tensor)), None)
    try:
        found = op(*leaves, **options)
        if differentiated and not found.is_meta and found.requires_grad:
            found.float().square().sum().backward()
            for leaf in leaves:
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    assert leaf.grad is not None and leaf.grad.shape == leaf.shape
            found = found.detach()
    except REFUSALS as error:
        assert str(error), f"{type(error).__name__} without a message"
        return "refused"
    if exact_op is None or not draw.is_finite or first is None or first.is_meta:
        return "ran"
    if not all(v == v for v in options.values() if isinstance(v, float)):
        return "ran"
    try:
        expected = exact_op(*exact_arguments, **options)
    except REFUSALS:  # PyTorch has rules that the op has not: a positive eps, channels
        return "ran"
    pieces = expected if isinstance(expected, tuple) else (expected,)
    if not all(piece.isfinite().all() for piece in pieces if piece.is_floating_point()):
        return "ran"
    _compare(found, expected, first.dtype if first.dtype in TOLERANCES else torch.float32, name)
    return "compared"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops", nargs="*", default=list(OPS), metavar="OP", help="default: all")
    parser.add_argument("--examples", type=int, default=1000, help="of each op")
    parser.add_argument("--seed", type=int, default=0, help="of the first example")
    options = parser.parse_args()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    statm = Path("/proc/self/statm")
    if statm.exists():  # what asks for more fails, as it would on a full machine
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), hard))
    failures = 0
    for name in options.ops:
        ways = dict.fromkeys(("refused", "ran", "compared"), 0)
        for seed in range(options.seed, options.seed + options.examples):
            print(f"{name} {seed}", end="\r\n" if options.examples == 1 else "\n", flush=True)
            try:
                ways[example(name, seed)] += 1
            except Exception as error:
                failures += 1
                print(
                    f"FAILED {name} --seed {seed}: {type(error).__name__}: {error}"[:600],
                    flush=True,
                )
        print(f"SUMMARY {name}: {ways}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
