"""How the learning rate falls and the momentum grows with the steps of a run."""

from __future__ import annotations

from torch import Tensor
from torch.optim import SGD, Optimizer

from ..errors import UserError
from .config import TrainConfig


class Schedule:
    """Sets both optimisers' rates before each step; what a step gets depends on its number alone.

    The rate falls by a factor at each step, down to ``config.min_lr``: pylearn2's ``ExponentialDecay``, of
    goodfeli/adversarial. With ``config.constant_epochs`` it also falls by an equal part of the first rate at the end of
    each of the ``config.falling_epochs`` after so many; the first of these still has all of it, the end of the last one
    none: Newmu/dcgan_code, ``mnist/train_cond_dcgan.py``. The momentum of SGD grows from one end of an epoch to the
    next, in equal steps, until it is ``config.final_momentum`` after ``config.momentum_epochs``: pylearn2's
    ``MomentumAdjustor``.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int, *optimizers: Optimizer) -> None:
        last = config.last_epoch
        if last is not None and config.epochs is not None and config.epochs > last:
            raise UserError(
                f"'epochs' must be at most {last}, after which the rate is 0 (constant_epochs + "
                f"falling_epochs; else set min_lr), got {config.epochs}"
            )
        self._config, self._steps_per_epoch = config, steps_per_epoch
        self._optimizers = optimizers

    def lr(self, step: int) -> float:
        """The learning rate of step number ``step``, from 0."""
        config = self._config
        if config.lr_decay == 1 and config.constant_epochs is None:
            return config.lr
        falling: float = config.lr / config.lr_decay**step
        if config.constant_epochs is not None:
            fallen = step // self._steps_per_epoch - config.constant_epochs
            falling *= 1 - min(max(fallen, 0) / config.falling_epochs, 1)
        return max(falling, min(config.min_lr, config.lr))

    def momentum(self, step: int) -> float:
        """The momentum of step number ``step``, from 0."""
        config = self._config
        if config.final_momentum is None:
            return config.momentum
        part = min(step // self._steps_per_epoch / config.momentum_epochs, 1.0)
        return config.momentum + part * (config.final_momentum - config.momentum)

    def instance_noise(self, step: int, last_step: int) -> float:
        """The standard deviation of the noise on D's images in step number ``step``, from 0: it falls by equal parts
        from ``config.instance_noise`` to none after ``last_step`` steps (Sønderby et al. 2016, section 3)."""
        return self._config.instance_noise * max(0.0, 1 - step / last_step)

    def set(self, step: int) -> None:
        """Make the optimisers ready for step number ``step``, from 0."""
        lr, momentum = self.lr(step), self.momentum(step)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):  # where a CUDA graph reads it
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr
                if isinstance(optimizer, SGD):
                    group["momentum"] = momentum
