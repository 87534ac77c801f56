"""The dedup ops in plain PyTorch: what they compute, on any device.

Each function has the name, arguments and result of its namesake in :mod:`dcgan_fast.dedup`, which documents them. The
kernels are tested against these; what no kernel serves runs here.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["first_occurrence", "first_of_each", "pack_codes"]


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
