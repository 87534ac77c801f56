"""The dedup ops: activations to codes, which codes are the first of their kind, and which are nearly the same."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _C
from . import reference
from .distributed import joined_first_occurrence

__all__ = ["first_occurrence", "first_of_each", "near_duplicates", "pack_codes", "pixel_codes"]

_ops = torch.ops.dcgan_fast
_SERVED_DEVICES = ("cpu",)
_SERVED_WITH_CUDA = ("cpu", "cuda") if _C.cuda_architectures else ("cpu",)


def served(tensor: Tensor, *, cuda: bool = False) -> bool:
    """Whether kernels of this library run on ``tensor``'s device; ``cuda``: the op has some for CUDA, where built."""
    return tensor.device.type in (_SERVED_WITH_CUDA if cuda else _SERVED_DEVICES)


def pack_codes(activations: Tensor, threshold: float = 0.0) -> Tensor:
    """Binary codes of activations: a bit for each, set where ``activation > threshold``.

    Bit ``j % 64`` (counted from the least significant) of word ``j // 64`` is activation ``j``; the bits after the last
    activation are 0. So the sign of a word is its bit 63, and ``words >> k & 1`` reads bit ``k``.

    Reads the activations once, at the speed of memory. On CUDA it waits for the device, to learn whether there was a
    NaN; while a CUDA graph is captured it does not, and NaNs pass: their bits are 0.

    Args:
        activations: ``(N, bits)``, float32, bfloat16, float16 or float64; any number of bits (128 in the DCGAN paper).
        threshold: in the units of the activations; rounded to their dtype first, as where a tensor is compared with a
            number in PyTorch. May be infinite.

    Returns:
        int64 ``(N, words)`` with ``words = ceil(bits / 64)``.

    Raises:
        ValueError: not two dimensions, no bits, a NaN among the activations (its row and column are named) or as
            threshold.
        TypeError: a dtype is wrong.

    Source: Radford, Metz, Chintala 2016, section 4.1 (deduplication); Salakhutdinov & Hinton 2009.
    """
    if not served(activations, cuda=activations.dtype != torch.float64):
        return reference.pack_codes(activations, threshold)
    return _ops.pack_codes(activations, threshold)


def pixel_codes(pixels: Tensor, weight: Tensor, bias: Tensor, threshold: float = 0.0) -> Tensor:
    """Binary codes of images: ``pack_codes`` of a linear layer, ``linear(pixels, weight, bias)``.

    On the CPU pixels become floats in the caches, and activations never leave them: it takes the time of the matrix
    product, ``2 * features * bits`` FLOPs an image. A row's code is the same whatever rows stand beside it, and on any
    number of threads. Sums are float32 in any case; bfloat16 holds bytes exactly, so ``weight`` alone is rounded.
    Elsewhere PyTorch's own product, in the dtype of ``weight``.

    Args:
        pixels: uint8 ``(N, features)``, from 0 to 255 as they are: scales and means belong into weight and bias.
        weight: float32 or bfloat16 ``(bits, features)``, finite.
        bias: float32 ``(bits,)``, finite.
        threshold: of the activations, see :func:`pack_codes`.

    Returns:
        int64 ``(N, words)`` with ``words = ceil(bits / 64)``, as :func:`pack_codes` packs them.

    Raises:
        ValueError: shapes that do not go together, no features, no bits; weights, biases or a threshold that are no
            numbers.
        TypeError: a dtype is wrong.

    Source: Radford, Metz, Chintala 2016, section 4.1: the codes of images whose near-duplicates are removed.
    """
    if not served(pixels):
        reference.check_pixels(pixels, weight, bias, threshold)
        units = torch.addmm(bias.to(weight.dtype), pixels.to(weight.dtype), weight.t())
        return pack_codes(units, threshold)
    return _ops.pixel_codes(pixels, weight, bias, threshold)


def first_occurrence(
    codes: Tensor, *, process_group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows are the first of their kind, and which kind each is of.

    Whole codes are compared, never only their hashes. The result does not depend on the number of threads. Takes linear
    time whatever the codes are: all equal, sorted, agreeing in any of their bits.

    On CUDA it takes 20 bytes a row of memory beside codes and results, and waits for the device to learn the number of
    groups; so no CUDA graph can capture it (it can :func:`first_of_each`).

    Args:
        codes: int64 ``(N, words)``, at least one word, at most 2^32 - 2^20 rows (2^31 on CUDA); compared as bits.
        process_group: look at the rows of all processes of the group, in order of their ranks, as one. All must call,
            each with its own rows (as many as it has, none too), and get their parts: ``keep`` and ``group`` of one's
            rows, and ``counts`` of those groups whose first row one has. Put together in order of ranks they are, bit
            for bit, what one process gets for all rows. gloo for CPU tensors, NCCL for those of GPUs.

    Returns:
        ``keep``, bool ``(N,)``: True where no earlier row is equal; ``group``, int64 ``(N,)``: the row's kind, numbered
        by first appearance from 0; ``counts``, int64 ``(groups,)``: rows of each kind. So ``codes[keep][group]`` are
        the codes again, and ``keep.nonzero()`` the first rows of the groups in order.

    Raises:
        ValueError: not two dimensions, no words, too many rows; in all processes where it is so in one, or where codes
            differ in width.
        TypeError: the dtype is wrong.
    """
    if process_group is not None:
        return joined_first_occurrence(codes, process_group, first_occurrence)
    if not served(codes, cuda=True):
        return reference.first_occurrence(codes)
    return _ops.first_occurrence(codes)


def first_of_each(codes: Tensor) -> Tensor:
    """``keep`` of :func:`first_occurrence` alone, in about two thirds of the time.

    Args:
        codes: as there.

    Returns:
        bool ``(N,)``: True where no earlier row is equal.

    Raises:
        ValueError: not two dimensions, no words, too many rows.
        TypeError: the dtype is wrong.
    """
    if not served(codes, cuda=True):
        return reference.first_of_each(codes)
    return _ops.first_of_each(codes)


def near_duplicates(codes: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """All pairs of rows whose codes differ in at most ``radius`` bits. Exact.

    By multi-index hashing: bits are shared out to ``radius + 1`` parts, in one of which two such codes must agree.
    Time goes with the number of rows and with that of pairs that agree in a part: for codes of 128 bits that vary
    freely, few more than are found; for codes of which only some bits vary, up to all pairs. On devices other than the
    CPU all rows are compared with all.

    Args:
        codes: int64 ``(N, words)``, as for :func:`first_occurrence`.
        radius: 0 to 3 bits.

    Returns:
        ``pairs``, int64 ``(P, 2)``: rows ``i < j``, in order of i, then j; ``distances``, int64 ``(P,)``: bits that
        differ. Equal rows are pairs too, of distance 0: n of a kind make n (n - 1) / 2. Leave them out first
        (:func:`first_of_each`) where many are expected.

    Raises:
        ValueError: a shape or value is wrong, or there are more than 10^9 pairs.
        MemoryError: of fewer, 32 bytes each do not fit.
        TypeError: the dtype is wrong.

    Source: Norouzi, Punjani, Fleet 2012, "Fast search in Hamming space with multi-index hashing".
    """
    if not served(codes):
        return reference.near_duplicates(codes, radius)
    return _ops.near_duplicates(codes, radius)


# ---------------------------------------------------------------- shapes without data


@torch.library.register_fake("dcgan_fast::pack_codes")
def _(activations, threshold=0.0):  # type: ignore[no-untyped-def]
    words = (activations.size(1) + 63) // 64
    return activations.new_empty((activations.size(0), words), dtype=torch.int64)


@torch.library.register_fake("dcgan_fast::pixel_codes")
def _(pixels, weight, bias, threshold=0.0):  # type: ignore[no-untyped-def]
    words = (weight.size(0) + 63) // 64
    return pixels.new_empty((pixels.size(0), words), dtype=torch.int64)


@torch.library.register_fake("dcgan_fast::first_occurrence")
def _(codes):  # type: ignore[no-untyped-def]
    groups = torch.library.get_ctx().new_dynamic_size()
    rows = codes.size(0)
    return codes.new_empty(rows, dtype=torch.bool), codes.new_empty(rows), codes.new_empty(groups)


@torch.library.register_fake("dcgan_fast::first_of_each")
def _(codes):  # type: ignore[no-untyped-def]
    return codes.new_empty(codes.size(0), dtype=torch.bool)


@torch.library.register_fake("dcgan_fast::near_duplicates")
def _(codes, radius):  # type: ignore[no-untyped-def]
    pairs = torch.library.get_ctx().new_dynamic_size()
    return codes.new_empty(pairs, 2), codes.new_empty(pairs)
