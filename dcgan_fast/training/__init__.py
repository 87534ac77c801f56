"""Training: :class:`Trainer`, its :class:`TrainConfig` and :class:`Step`, objectives, checkpoints, callbacks."""

from __future__ import annotations

from .callbacks import Callback, ProgressBar
from .checkpoint import load_checkpoint, load_networks, save_checkpoint
from .config import TrainConfig
from .config_file import read_settings
from .graph import GraphedStep
from .log import TrainingDiverged
from .losses import Objective, adversarial_loss
from .penalties import GradientPenalty
from .step import Step
from .step_profile import Profile
from .tensorboard import TensorBoard
from .trainer import Trainer
from .watch import CollapseWatch

__all__ = [
    "Callback",
    "CollapseWatch",
    "GradientPenalty",
    "GraphedStep",
    "Objective",
    "Profile",
    "ProgressBar",
    "Step",
    "TensorBoard",
    "TrainConfig",
    "Trainer",
    "TrainingDiverged",
    "adversarial_loss",
    "load_checkpoint",
    "load_networks",
    "read_settings",
    "save_checkpoint",
]
