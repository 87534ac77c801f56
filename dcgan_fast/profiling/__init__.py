"""Where the time goes: profiles of training steps, layer by layer, beside what the machine could do at best."""

from __future__ import annotations

from .ceilings import measure_ceilings
from .steps import ProfileRow, StepProfile, profile_steps

__all__ = ["ProfileRow", "StepProfile", "measure_ceilings", "profile_steps"]
