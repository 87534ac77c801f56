"""Switches and memory of the kernels, in the manner of ``torch.backends``.

>>> import dcgan_fast
>>> with dcgan_fast.backends.cpu.flags(winograd=False):  # within, convolutions round as PyTorch's do
...     images = generator(latent)
>>> dcgan_fast.backends.cpu.release_memory()  # after the last training step, say
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import _C

__all__ = ["MemoryHeld", "cpu", "cuda"]


class _Switch:
    """A flag of the kernels as an attribute: process-wide, read by each op when it is called."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type | None = None) -> bool:
        if instance is None:  # on the class, where help() looks
            return self  # type: ignore[return-value]
        return bool(getattr(_C.cpu_switches, self.name))

    def __set__(self, instance: object, value: bool) -> None:
        setattr(_C.cpu_switches, self.name, _checked_flag(self.name, value))


def _checked_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"backends.cpu.{name} must be True or False, got {value!r}")
    return value


@dataclass(frozen=True)
class MemoryHeld:
    """Bytes of main memory that the library keeps between calls, see :meth:`_Cpu.memory_held`."""

    free_maps: int
    packed_weights: int
    workspaces: int

    @property
    def total(self) -> int:
        return self.free_maps + self.packed_weights + self.workspaces


class _Cpu:
    """The CPU kernels: which of them may serve, and the memory that they keep. There is one, ``backends.cpu``.

    All settings hold for the whole process, on every thread, and count from the next call of an op.
    """

    __slots__ = ()  # a misspelt name is an AttributeError

    winograd = _Switch(
        """Whether convolutions may run by Winograd's method (default True): about half the multiplications, and up to
        three times PyTorch's rounding error, where the direct kernels stay within twice."""
    )
    amx = _Switch(
        """Whether kernels may use the matrix instructions of the processor (AMX) where it has them (default True)."""
    )

    adaptive = _Switch(
        """Whether a convolution runs on what is fastest now (default False: on what should be, were the machine ours
        alone). Neighbours of a shared machine may take two thirds of the matrix unit for minutes, while other kernels
        are up to twice as fast. Each that may be fastest serves two calls of a shape, then the fastest of them, and
        every 32nd call another. As with ``torch.backends.cudnn.benchmark``, two runs may differ by rounding."""
    )

    @contextmanager
    def flags(
        self,
        *,
        winograd: bool | None = None,
        amx: bool | None = None,
        adaptive: bool | None = None,
    ) -> Iterator[None]:
        """Within the context the given switches are as given; on leaving it all are again as they were before.

        Also a decorator: ``@backends.cpu.flags(winograd=False)``.

        Args:
            winograd: see :attr:`winograd`; None (default) leaves it.
            amx: see :attr:`amx`; None (default) leaves it.
            adaptive: see :attr:`adaptive`; None (default) leaves it.

        Raises:
            TypeError: a switch is neither True nor False nor None; none is changed then.
        """
        given = {"winograd": winograd, "amx": amx, "adaptive": adaptive}
        wanted = {name: _checked_flag(name, on) for name, on in given.items() if on is not None}
        before = {name: getattr(self, name) for name in given}
        try:
            for name, on in wanted.items():
                setattr(self, name, on)
            yield
        finally:
            for name, on in before.items():
                setattr(self, name, on)

    @property
    def memory_limit(self) -> int:
        """Most bytes that unused feature maps may hold, and most that packed weights may hold: this much each.

        By default a quarter of the machine's memory. Memory of maps is kept because fresh pages cost more time than
        writing them; with the maps in use it comes to at most 9/8 of the most that was in use at one time. Weights
        are kept in the kernels' order until they change. A lower limit frees what is beyond it at once, the oldest
        first; 0 turns both off. Workspaces, which kernels cannot do without, do not count.

        Raises:
            TypeError: set to what is no integer.
            ValueError: set to less than 0.
        """
        return _C.memory_limit()

    @memory_limit.setter
    def memory_limit(self, bytes: int) -> None:
        try:
            limit = operator.index(bytes)
        except TypeError:
            raise TypeError(
                f"backends.cpu.memory_limit must be a whole number of bytes, got {bytes!r}"
            ) from None
        if limit < 0:
            raise ValueError(f"backends.cpu.memory_limit must be at least 0, got {limit}")
        _C.set_memory_limit(min(limit, 2**63 - 1))

    def memory_held(self) -> MemoryHeld:
        """The memory that the library keeps between calls.

        Returns:
            Bytes of: ``free_maps``, memory of feature maps that no tensor uses now; ``packed_weights``, weights in the
            kernels' order; ``workspaces``, the threads' scratch memory; and their sum, ``total``. Tensors in use are
            not counted, they are yours.
        """
        return MemoryHeld(_C.free_map_bytes(), _C.packed_weight_bytes(), _C.workspace_bytes())

    def release_memory(self) -> None:
        """Gives all of :meth:`memory_held` back to the system; the next calls allocate anew.

        Safe at any time, from any thread: what a running kernel uses is freed when it is done.

        This also makes the kernels read all weights anew. That is needed after writes that PyTorch does not see
        (``weight.data[...] = ``, NumPy, another process) if they change less than about a thirtieth of a large
        weight; other changes are noticed.
        """
        _C.release_memory()


cpu = _Cpu()


class _Cuda:
    """The CUDA kernels: how they multiply float32, and which may serve. There is one, ``backends.cuda``.

    bfloat16 and float16 have no choice of the first kind: their products are exact in float32, which they are summed
    in. All settings hold for the whole process and count from the next call of an op.
    """

    __slots__ = ()

    @property
    def allow_tf32(self) -> bool:
        """Whether convolutions of float32 may round their operands to tf32 (11 bits), several times faster.

        As ``torch.backends.cudnn.conv.fp32_precision`` says (PyTorch's default: yes) until this is set to True or
        False; set to None, it follows PyTorch again.

        Raises:
            TypeError: set to anything else.
        """
        return _C.tf32_allowed()

    @allow_tf32.setter
    def allow_tf32(self, value: bool | None) -> None:
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"backends.cuda.allow_tf32 must be True, False or None, got {value!r}")
        _C.set_allow_tf32(-1 if value is None else int(value))

    @property
    def strict_float32(self) -> str:
        """How float32 is multiplied where tf32 is not allowed, with float32's accuracy either way.

        "tf32x3" (default): each operand as the sum of two tf32, three products on tensor cores for one; "fma": by
        float32's own multiply-add.

        Raises:
            ValueError: set to anything else.
        """
        return "tf32x3" if _C.strict_on_tensor_cores() else "fma"

    @strict_float32.setter
    def strict_float32(self, value: str) -> None:
        if value not in ("tf32x3", "fma"):
            raise ValueError(
                f"backends.cuda.strict_float32 must be 'tf32x3' or 'fma', got {value!r}"
            )
        _C.set_strict_on_tensor_cores(value == "tf32x3")

    @property
    def copy_engine(self) -> bool:
        """Whether convolutions may have their operands copied by the GPU's copy engine (TMA).

        False by default: these kernels are checked in emulation and by their machine code, and **no hardware has run
        them yet**. They serve GPUs of compute capability 9.0, bfloat16 and float16 whose input channels are a multiple
        of 64, tf32 whose are one of 32, and sides that the stride divides; the weight gradients of 16-bit layers whose
        channels are a multiple of 8. Everything else is computed as without.

        Raises:
            TypeError: set to what is neither True nor False.
        """
        return _C.copy_engine()

    @copy_engine.setter
    def copy_engine(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"backends.cuda.copy_engine must be True or False, got {value!r}")
        _C.set_copy_engine(value)


cuda = _Cuda()
