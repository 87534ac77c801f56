"""Training: :class:`Trainer` and its :class:`TrainConfig`, checkpoints, losses, callbacks."""

from __future__ import annotations

from .callbacks import Callback, ProgressBar
from .checkpoint import load_checkpoint, load_networks, save_checkpoint
from .config import TrainConfig
from .log import TrainingDiverged
from .losses import adversarial_loss
from .trainer import Trainer
from .watch import CollapseWatch

__all__ = [
    "Callback",
    "CollapseWatch",
    "ProgressBar",
    "TrainConfig",
    "Trainer",
    "TrainingDiverged",
    "adversarial_loss",
    "load_checkpoint",
    "load_networks",
    "save_checkpoint",
]
