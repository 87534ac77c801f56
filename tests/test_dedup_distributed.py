"""Many processes give what one gives for all rows, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dcgan_fast.dedup import first_occurrence


def random_codes(rows: int, words: int, kinds: int) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (kinds, words))[torch.randint(kinds, (rows,))]


CASES: dict[str, Callable[[], Tensor]] = {
    "random": lambda: random_codes(20_000, 2, 7000),
    "all new": lambda: random_codes(20_000, 2, 10**6),
    "all equal": lambda: torch.full((5000, 2), -3),
    "runs": lambda: torch.arange(5000)[:, None].expand(5000, 2) // 50,
    "one word": lambda: torch.randint(100, (3000, 1)),
    "wide": lambda: random_codes(3000, 7, 500),
    "three rows": lambda: torch.tensor([[1, 2], [3, 4], [1, 2]]),
    "no rows": lambda: torch.zeros(0, 2, dtype=torch.int64),
}


def parts_of(codes: Tensor, world: int) -> list[Tensor]:
    """Of unequal length, one of them empty."""
    weights = [1, 0, 3, 2][:world]
    ends = [len(codes) * sum(weights[: i + 1]) // sum(weights) for i in range(world)]
    return list(codes.tensor_split(ends[:-1]))


def _run(rank: int, world: int, store: str, results: mp.Queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    answers = {}
    for name, case in CASES.items():
        torch.manual_seed(0)
        mine = parts_of(case(), world)[rank]
        answer = first_occurrence(mine, process_group=dist.group.WORLD)
        answers[name] = [t.tolist() for t in answer]
    errors = []
    for wrong in (torch.zeros(3), torch.zeros(3, 3, dtype=torch.int64)):
        codes = wrong if rank == world - 1 else torch.zeros(3, 2, dtype=torch.int64)
        try:
            first_occurrence(codes, process_group=dist.group.WORLD)
            errors.append("")
        except (TypeError, ValueError) as error:
            errors.append(f"{type(error).__name__} {error}")
    results.put((rank, answers, errors))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_together_give_what_one_gives(tmp_path, world):
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_run, args=(rank, world, str(tmp_path / "store"), results))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    got = sorted(results.get(timeout=240) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for name, case in CASES.items():
        torch.manual_seed(0)
        codes = case()
        expected = first_occurrence(codes)
        for i, whole in enumerate(expected):
            joined = [value for _, answers, _ in got for value in answers[name][i]]
            assert joined == whole.tolist(), (name, i)
    *others, (_, _, last) = got
    assert "'codes' must be int64, got torch.float32" in last[0]
    if world == 1:
        assert last[1] == ""
    for rank, _, errors in others:
        assert (
            f"got 2 in process {rank} and codes that are wrong in process {world - 1}" in errors[0]
        )
        assert f"got 2 in process {rank} and 3 words in process {world - 1}" in errors[1]
        assert f"got 3 in process {world - 1} and 2 words in process 0" in last[1]
