"""The first_occurrence launchers, called in the emulator."""

from __future__ import annotations

import torch
from emulator_harness import SCHEDULES, Emulated, Tensors
from torch import Tensor

MASK = (1 << 64) - 1


class EmulatedFirstOccurrence(Emulated):
    """`launch_first_occurrence` and `launch_group_numbers`."""

    OP = "first_occurrence"

    def find(
        self,
        codes: Tensor,
        schedule: str = "in_order",
        seed: int = 1,
        *,
        groups: bool = True,
        misaligned: bool = False,
        hash_seed: tuple[int, int] = (0, 0),
    ) -> Tensors:
        """keep, and with `groups` group and counts; `misaligned` by a word from 16 bytes."""
        rows, words = codes.shape
        numbers = {
            "rows": rows,
            "words": words,
            "groups": groups,
            "misaligned_words": misaligned,
            "seed_first": hash_seed[0],
            "seed_rest": hash_seed[1],
            "schedule": SCHEDULES[schedule],
            "seed": seed,
        }
        self.call("find", numbers, [codes.contiguous().numpy().tobytes()])
        result = {"keep": self.receive(torch.bool, (rows,))}
        found = int(self.receive(torch.int64, ()))
        if groups:
            result["group"] = self.receive(torch.int64, (rows,))
            result["counts"] = self.receive(torch.int64, (found,))
        return result

    def rules(self, rows: int = 1, words: int = 1, groups: bool = False) -> None:
        """Refused, for the arrays are null at the latest."""
        numbers = {"rows": rows, "words": words, "groups": groups}
        self.call("rules", numbers | {"schedule": 0, "seed": 1}, [])


def first_occurrences(codes: Tensor) -> Tensors:
    """keep, group and counts, by a dictionary."""
    groups: dict[tuple[int, ...], int] = {}
    keep, group = [], []
    for row in map(tuple, codes.tolist()):
        keep.append(row not in groups)
        group.append(groups.setdefault(row, len(groups)))
    of_rows = torch.tensor(group, dtype=torch.int64)
    return {
        "keep": torch.tensor(keep, dtype=torch.bool),
        "group": of_rows,
        "counts": of_rows.bincount(),
    }


def code_of_hash(value: int) -> int:
    """The code of one word that the kernels hash to `value` with a seed of 0: their mixing, undone."""

    def undo_shift(x: int, bits: int) -> int:
        y = x
        for _ in range(64 // bits):
            y = x ^ y >> bits
        return y

    x = undo_shift(value, 32) * pow(0xC4CEB9FE1A85EC53, -1, 1 << 64) & MASK
    x = undo_shift(x, 29) * pow(0xFF51AFD7ED558CCD, -1, 1 << 64) & MASK
    x = undo_shift(x, 32)
    return x - (1 << 64) if x >> 63 else x


def colliding_codes(kinds: int, copies: int, slot: float, same_tag: bool) -> Tensor:
    """Codes of one word whose search begins at the same place of the table (0 to 1 of it); with `same_tag`
    they cannot be told apart by what a slot has of the hash."""
    high = int(slot * (1 << 24)) << 40
    hashes = [high | (kind << 32 | 7 if same_tag else kind) for kind in range(kinds)]
    assert kinds <= 256
    codes = torch.tensor([[code_of_hash(value)] for value in hashes])
    return codes.repeat(copies, 1)[
        torch.randperm(kinds * copies, generator=torch.Generator().manual_seed(1))
    ]
