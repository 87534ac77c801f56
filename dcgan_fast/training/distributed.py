"""The processes that train one run together: who is there, what they add up, what they agree on.

One process, or those that ``torchrun`` has started. Each of them has its share of every batch; after the same step all
have the same weights. The first writes, prints and measures, the others wait for it.

Gradients are averaged by one call before each optimiser's step, not by ``DistributedDataParallel``: its hooks average
after every backward pass, of which D's update has two, wait for gradients that a frozen D never gets, and copy the
first process's running statistics at each forward pass. What is lost is that its sums overlap the backward pass:
the 25 MB of the example networks take 0.04 s of gloo on one machine, of a step of a second (a core, batch 64).
Modules wrapped in it by others work as any do.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..devices import pick_device
from ..errors import UserError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # for a process that hangs; one that has ended is missed at once
# While the first works alone: it may have millions of images to prepare.
_PATIENCE = timedelta(days=1)
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class ProcessLost(UserError):
    """Another process of this run has ended, or does not answer."""


class ToldByFirst(UserError):
    """What the first process failed with, in the others: the first has said it."""


class Processes:
    """This process among those of the run.

    Attributes:
        rank: this one's number, from 0.
        count: how many there are; with 1 every method does what one process needs: nothing, or the work itself.
        group: those whose batches are one; None for one process.
    """

    def __init__(
        self,
        rank: int = 0,
        count: int = 1,
        group: dist.ProcessGroup | None = None,
        control: dist.ProcessGroup | None = None,
    ) -> None:
        self.rank, self.count, self.group = rank, count, group
        self._control = control  # gloo, so that agreeing never waits for a GPU

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of that name; each process of a machine has a GPU of its own.

        Raises:
            UserError: it cannot be used, or there are fewer GPUs than processes here.
        """
        device = pick_device(name)
        if self.count == 1 or device.type != "cuda" or device.index is not None:
            return device
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        if local >= torch.cuda.device_count():
            raise UserError(
                f"each process needs a GPU of its own, here are {torch.cuda.device_count()} for process {local} "
                "(from 0) of this machine: lower --nproc-per-node, or train with --device cpu"
            )
        torch.cuda.set_device(local)
        return torch.device("cuda", local)

    # ----------------------------------------------------------------------------------- numbers

    def average_gradients(self, weights: Iterable[Tensor]) -> None:
        """Each gradient becomes the mean of those of all processes: the same bits everywhere.

        All must hold gradients of the same weights.
        """
        grads = [weight.grad for weight in weights if weight.grad is not None]
        if self.count == 1 or not grads:
            return
        for dtype in dict.fromkeys(grad.dtype for grad in grads):
            some = [grad for grad in grads if grad.dtype == dtype]
            flat = torch.cat([grad.reshape(-1) for grad in some])
            dist.all_reduce(flat, group=self.group)
            flat /= self.count
            parts = flat.split([grad.numel() for grad in some])
            torch._foreach_copy_(
                some, [part.view(grad.shape) for part, grad in zip(parts, some, strict=True)]
            )

    def mean(self, values: Tensor) -> Tensor:
        """The mean of ``values`` over the processes, on their device, without waiting for it."""
        if self.count == 1:
            return values
        total = values.clone()
        dist.all_reduce(total, group=self.group)
        return total / self.count

    def share_state(self, *modules: torch.nn.Module) -> None:
        """Every parameter and buffer becomes the first process's."""
        if self.count == 1:
            return
        for module in modules:
            for tensor in module.state_dict().values():
                dense = tensor.contiguous()
                dist.broadcast(dense, 0, group=self.group)
                tensor.copy_(dense)

    # --------------------------------------------------------------------------------- agreement

    def agree(self, *flags: int) -> list[int]:
        """The largest that any process has, of each; on the CPU, about 0.1 ms on one machine."""
        if self.count == 1:
            return list(flags)
        joined = torch.tensor(flags)
        dist.all_reduce(joined, dist.ReduceOp.MAX, group=self._control)
        return joined.tolist()

    def wait(self) -> None:
        """Until all processes are here, however long the first takes."""
        if self.count > 1:
            dist.barrier(self._control)

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make()`` returns in the first process, in all of them; the others wait.

        Raises:
            ToldByFirst: in the others, where it raises a :class:`UserError` in the first.
        """
        if self.count == 1:
            return make()
        told: list[tuple[T | None, str | None]] = [(None, None)]
        error: UserError | None = None
        if self.is_first:
            try:
                told = [(make(), None)]
            except UserError as failed:
                told, error = [(None, str(failed))], failed
        dist.broadcast_object_list(told, 0, group=self._control)
        value, message = told[0]
        if error is not None:
            raise error
        if message is not None:
            raise ToldByFirst(message)
        return value  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """What each process gives, in order of rank; by way of pickles, so for what is small and seldom."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self._control)
        return found

    def after_first(self, make: Callable[[], T]) -> T:
        """``make()`` of each process, of the first before the others: it leaves on disk what those find."""
        first: list[T] = []

        def go_ahead() -> None:
            first.append(make())

        self.from_first(go_ahead)
        return first[0] if first else make()

    @contextmanager
    def missed(self, advice: Callable[[], str]) -> Iterator[None]:
        """Within the context the failure of an exchange says that a process is missing, and ``advice()``.

        Raises:
            ProcessLost: the others ended or did not answer in time.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _is_of_an_exchange(error):
                raise
            reason = str(error).strip().splitlines()[0]
            raise ProcessLost(
                f"another process of this run has ended or does not answer, so process {self.rank} (of "
                f"{self.count}, from 0) ends too: {advice()} ({reason})"
            ) from error


def _is_of_an_exchange(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


_joined: Processes | None = None


def join() -> Processes:
    """The processes of torch.distributed's default group; of the environment that ``torchrun`` sets, where there is no
    group yet; else this one alone.

    Raises:
        UserError: the environment names others that cannot be reached.
    """
    global _joined
    if not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if not all(name in os.environ for name in _ENVIRONMENT) or os.environ["WORLD_SIZE"] == "1":
            return Processes()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            store, rank, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
            # torchrun's store outlives its processes: started again they must not find where the first ones were
            store = dist.PrefixStore(f"dcgan_fast/{restarts()}", store)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT
            )
        except (RuntimeError, ValueError) as error:
            there = ", ".join(f"{name}={os.environ[name]}" for name in _ENVIRONMENT)
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"cannot reach the other processes of this run ({there}): {reason}"
            ) from error
    if dist.get_world_size() == 1:
        return Processes()
    if _joined is None or _joined.group is not dist.group.WORLD:
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        _joined = Processes(dist.get_rank(), dist.get_world_size(), dist.group.WORLD, control)
    return _joined


def leave() -> None:
    """End the group that :func:`join` has made, once all processes are through."""
    global _joined
    if _joined is not None and dist.is_initialized():
        dist.destroy_process_group()
    _joined = None


def rank() -> int:
    """This process's number among those that ``torchrun`` started or the default group has, else 0."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", 0))


# ------------------------------------------------------------------------------------- restarts


def restarts() -> int:
    """How often ``torchrun --max-restarts`` has started the processes of this launch again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def launch() -> str | None:
    """What tells this launch of ``torchrun`` from all others, the same after a restart; None without one."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run is None else f"{run} {socket.gethostname()} {os.getppid()}"


def split_batch(total: int, processes: int) -> int:
    """Each process's part of a batch of ``total`` images.

    Raises:
        UserError: it cannot be divided so.
    """
    if total % processes:
        fitting: Sequence[int] = [n for n in range(1, min(total, 64) + 1) if total % n == 0]
        raise UserError(
            f"the run has {total} images in a batch, which {processes} processes cannot share equally: continue it "
            f"with {', '.join(map(str, fitting[:-1]))}{' or ' if len(fitting) > 1 else ''}{fitting[-1]}"
        )
    return total // processes
