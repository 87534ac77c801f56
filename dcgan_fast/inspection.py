"""What ``dcgan-fast info`` tells: the build, the machine, its ceilings, and what they mean for a preset."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import build_info, models
from .bench.rows import Ceilings
from .devices import pages_of
from .profiling.ceilings import measure_ceilings
from .training.config import TrainConfig
from .training.forecast import Forecast, forecast

__all__ = ["Inspection", "inspect", "machine"]

_KINDS_OF_CEILINGS = 5


@dataclass(frozen=True)
class Inspection:
    """Attributes:
    build: :func:`dcgan_fast.build_info`.
    machine: processor, cores that this process may use, threads, memory, GPUs.
    ceilings: empty where nothing was measured.
    weights: of the preset's networks, by their class names.
    forecast: of the preset; None without one.
    """

    build: dict[str, Any]
    machine: dict[str, Any]
    ceilings: Ceilings = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    forecast: Forecast | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; the ceilings once, beside the forecast."""
        told = None if self.forecast is None else self.forecast.to_dict()
        if told is not None:
            del told["ceilings"]
        return {
            "build": self.build,
            "machine": self.machine,
            "ceilings": self.ceilings,
            "weights": self.weights,
            "forecast": told,
        }


def inspect(
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    channels: int | None = None,
    seconds: float = 10.0,
) -> Inspection:
    """Look at the build and the machine, and at a preset's networks where one is named.

    Args:
        preset: one of :data:`dcgan_fast.models.PRESETS`.
        settings: of :class:`~dcgan_fast.training.TrainConfig`, beside it; ``threads`` holds for the process.
        channels: of the images; None: the preset's.
        seconds: for all measurements, half of them for the ceilings; 0: none.

    Raises:
        UserError: an unknown preset, or settings that its networks cannot have.
    """
    asked = dict(settings or {})
    config: TrainConfig | None = None
    if preset is not None:
        models.training_defaults(preset)  # which says what presets there are
        asked.setdefault("image_size", models.PRESETS[preset].setting("image_size"))
        config = TrainConfig(preset=preset, **asked)
        with torch.device(
            "meta"
        ):  # what the networks cannot have is told before anything is measured
            nc = channels or models.PRESETS[preset].setting("nc")
            networks = models.build(preset, image_size=config.image_size, nc=nc)
    if asked.get("threads") is not None:
        torch.set_num_threads(asked["threads"])
    ceilings = measure_ceilings(seconds / 2 / _KINDS_OF_CEILINGS) if seconds else {}
    if config is None:
        return Inspection(build_info(), machine(), ceilings)
    return Inspection(
        build_info(),
        machine(),
        ceilings,
        {type(n).__name__: sum(weight.numel() for weight in n.parameters()) for n in networks},
        forecast(config, ceilings, channels=channels, seconds=seconds / 2),
    )


def machine() -> dict[str, Any]:
    """The machine that this process runs on."""
    memory = {"bytes": pages_of("SC_PHYS_PAGES"), "available bytes": pages_of("SC_AVPHYS_PAGES")}
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": {name: value for name, value in memory.items() if value is not None},
        "cuda": [
            torch.cuda.get_device_properties(index).name
            for index in range(torch.cuda.device_count())
        ],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
