"""The dedup ops in plain PyTorch: what they compute, on any device.

Each function has the name, arguments and result of its namesake in :mod:`dcgan_fast.dedup`, which documents them. The
kernels are tested against these; what no kernel serves runs here.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["first_occurrence", "first_of_each", "near_duplicates", "pack_codes", "pixel_codes"]

_BLOCK = 1024  # rows that are compared with all at once


def check_codes(op: str, codes: Tensor, name: str = "codes") -> None:
    """As the kernels do; raises TypeError and ValueError."""
    if codes.dtype != torch.int64:
        raise TypeError(f"{op}(): {name!r} must be int64, got {codes.dtype}")
    if codes.dim() != 2 or codes.size(1) < 1:
        raise ValueError(
            f"{op}(): {name!r} must be (N, words) with at least one word, got {tuple(codes.shape)}"
        )


def pack_codes(activations: Tensor, threshold: float = 0.0) -> Tensor:
    """See :func:`dcgan_fast.dedup.pack_codes`."""
    if activations.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(
            "pack_codes(): 'activations' must be float32, bfloat16, float16 or float64, "
            f"got {activations.dtype}"
        )
    if activations.dim() != 2 or activations.size(1) < 1:
        raise ValueError(
            "pack_codes(): 'activations' must be (N, bits) with at least one bit, "
            f"got {tuple(activations.shape)}"
        )
    if threshold != threshold:
        raise ValueError("pack_codes(): 'threshold' must be a number, got nan")
    if activations.isnan().any():
        row, column = activations.isnan().nonzero()[0].tolist()
        raise ValueError(
            f"pack_codes(): 'activations' must not hold NaN, got one in row {row}, column {column}"
        )
    bits = activations > threshold
    padded = torch.nn.functional.pad(bits, (0, -bits.size(1) % 64)).long()
    places = torch.arange(64, device=activations.device)
    return (padded.view(len(bits), padded.size(1) // 64, 64) << places).sum(2)


def check_pixels(pixels: Tensor, weight: Tensor, bias: Tensor, threshold: float) -> None:
    """As the kernel of :func:`pixel_codes` does; raises TypeError and ValueError."""
    op = "pixel_codes()"
    if pixels.dtype != torch.uint8:
        raise TypeError(f"{op}: 'pixels' must be uint8, got {pixels.dtype}")
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"{op}: 'weight' must be float32 or bfloat16, got {weight.dtype}")
    if bias.dtype != torch.float32:
        raise TypeError(f"{op}: 'bias' must be float32, got {bias.dtype}")
    if pixels.dim() != 2 or pixels.size(1) < 1:
        raise ValueError(
            f"{op}: 'pixels' must be (N, features) with at least one feature, got {tuple(pixels.shape)}"
        )
    if weight.dim() != 2 or weight.size(0) < 1 or weight.size(1) != pixels.size(1):
        raise ValueError(
            f"{op}: 'weight' must be (bits, features) with at least one bit and {pixels.size(1)} features, "
            f"got {tuple(weight.shape)}"
        )
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{op}: 'bias' must be (bits,) with {weight.size(0)} bits, got {tuple(bias.shape)}"
        )
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError(f"{op}: 'weight' and 'bias' must be finite")
    if threshold != threshold:
        raise ValueError(f"{op}: 'threshold' must be a number, got nan")


def pixel_codes(pixels: Tensor, weight: Tensor, bias: Tensor, threshold: float = 0.0) -> Tensor:
    """See :func:`dcgan_fast.dedup.pixel_codes`."""
    check_pixels(pixels, weight, bias, threshold)
    return pack_codes(torch.addmm(bias, pixels.float(), weight.float().t()), threshold)


def first_occurrence(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`dcgan_fast.dedup.first_occurrence`."""
    check_codes("first_occurrence", codes)
    rows = torch.arange(len(codes), device=codes.device)
    _, kind, counts = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
    first = torch.full_like(counts, len(codes)).scatter_reduce(0, kind, rows, "amin")
    by_appearance = first.argsort()
    group_of_kind = torch.empty_like(by_appearance)
    group_of_kind[by_appearance] = rows[: len(counts)]
    return first[kind] == rows, group_of_kind[kind], counts[by_appearance]


def first_of_each(codes: Tensor) -> Tensor:
    """See :func:`dcgan_fast.dedup.first_of_each`."""
    check_codes("first_of_each", codes)
    return first_occurrence(codes)[0]


def near_duplicates(codes: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """See :func:`dcgan_fast.dedup.near_duplicates`. Compares all rows with all."""
    check_codes("near_duplicates", codes)
    if radius not in (0, 1, 2, 3):
        raise ValueError(f"near_duplicates(): 'radius' must be 0, 1, 2 or 3, got {radius}")
    places = torch.arange(64, device=codes.device)
    signs = (codes[:, :, None] >> places & 1).flatten(1).float() * 2 - 1
    pairs, distances = [codes.new_empty(0, 2)], [codes.new_empty(0)]
    for start in range(0, len(codes), _BLOCK):
        block = signs[start : start + _BLOCK]
        apart = (signs.size(1) - block @ signs[start:].T) / 2  # agreeing bits are 1, others -1
        near = (apart <= radius).triu(1).nonzero()
        pairs.append(near + start)
        distances.append(apart[near[:, 0], near[:, 1]].long())
    return torch.cat(pairs), torch.cat(distances)
