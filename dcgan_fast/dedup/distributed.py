"""First occurrences over the rows of all processes of a group.

Each process drops its own repetitions and sends what is left to the owners of the codes, which a hash names; owners
tell which of the equal codes came first, and pass the numbers on that those are given. 8 bytes of each word and 32 more
travel for each code that is new to its process, and none for its repetitions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from .reference import check_codes

Result = tuple[Tensor, Tensor, Tensor]


def joined_first_occurrence(
    codes: Tensor, group: dist.ProcessGroup, local: Callable[[Tensor], Result]
) -> Result:
    """This process's part of :func:`dcgan_fast.dedup.first_occurrence`; ``local`` is that of one process."""
    _check_everywhere(codes, group)
    if dist.get_world_size(group) == 1:
        return local(codes)
    keep, kind, counts = local(codes)
    unique = codes[keep]
    exchange = _Exchange(_owners(unique, dist.get_world_size(group)), group)

    # An owner gets codes process after process, each process's in order: the first of a kind here is the first of all.
    owned = exchange.to_owners(torch.cat([unique, counts[:, None]], 1))
    first, kind_owned, _ = local(owned[:, :-1])
    rows = owned.new_zeros(int(first.sum())).index_add_(0, kind_owned, owned[:, -1])
    rows_if_first = exchange.to_senders(torch.where(first, rows[kind_owned], 0))
    is_first = rows_if_first > 0

    number = is_first.cumsum(0) - 1 + _firsts_before(is_first, group)
    number_owned = exchange.to_owners(number)
    group_of_unique = exchange.to_senders(number_owned[first][kind_owned])
    keep = keep.masked_scatter(keep, is_first)
    return keep, group_of_unique[kind], rows_if_first[is_first]


class _Exchange:
    """Rows to the owners of their codes, and rows of answers back to where they came from."""

    def __init__(self, owner: Tensor, group: dist.ProcessGroup) -> None:
        self._group = group
        self._order = owner.argsort(stable=True)
        sent = owner.bincount(minlength=dist.get_world_size(group))
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        self._sent, self._received = sent.tolist(), received.tolist()

    def to_owners(self, rows: Tensor) -> Tensor:
        return self._send(rows[self._order], self._sent, self._received)

    def to_senders(self, rows: Tensor) -> Tensor:
        back = self._send(rows, self._received, self._sent)
        return torch.empty_like(back).index_copy_(0, self._order, back)

    def _send(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        got = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(got, rows.contiguous(), received, sent, group=self._group)
        return got


def _owners(codes: Tensor, processes: int) -> Tensor:
    """Which process answers for each code: by a hash that is the same everywhere, unlike that of the kernels."""
    hashed = torch.zeros_like(codes[:, 0])
    for word in codes.unbind(1):
        hashed = (hashed ^ word) * -7046029254386353131  # 2^64 over the golden ratio; products wrap
        hashed = hashed ^ (hashed >> 32)
    return (hashed & (2**31 - 1)) % processes


def _firsts_before(is_first: Tensor, group: dist.ProcessGroup) -> Tensor:
    """How many codes appeared first in the processes of lower rank."""
    firsts = is_first.sum().view(1)
    of_all = firsts.new_empty(dist.get_world_size(group))
    dist.all_gather_into_tensor(of_all, firsts, group=group)
    return of_all[: dist.get_rank(group)].sum()


def _check_everywhere(codes: Tensor, group: dist.ProcessGroup) -> None:
    """Raises in all processes where codes are wrong in one: the others would wait for it for ever."""
    try:
        check_codes("first_occurrence", codes)
        words, wrong = codes.size(1), None
    except (TypeError, ValueError) as error:
        words, wrong = 0, error
    mine = torch.tensor([words], device=codes.device)
    of_all = mine.new_empty(dist.get_world_size(group))
    dist.all_gather_into_tensor(of_all, mine, group=group)
    if wrong is not None:
        raise wrong
    different = (of_all != words).nonzero().flatten().tolist()
    if different:
        theirs = int(of_all[different[0]])
        came = f"{theirs} words" if theirs else "codes that are wrong"
        raise ValueError(
            f"first_occurrence(): 'codes' must have as many words in all processes, got {words} in process "
            f"{dist.get_rank(group)} and {came} in process {different[0]}"
        )
