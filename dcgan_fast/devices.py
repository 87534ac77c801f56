"""Which device a name means, and how much it holds."""

from __future__ import annotations

import os

import torch

from .errors import UserError


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one. Raises :class:`UserError`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the device '{name}' cannot be used here: {reason}") from error
    return device


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory that the device has, this machine's for the CPU; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return pages_of("SC_PHYS_PAGES") if device.type == "cpu" else None


def pages_of(name: str) -> int | None:
    """A number of pages, by its name in ``os.sysconf``, in bytes; None where the system has no such figure."""
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
