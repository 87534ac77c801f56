"""How a network's gradients become new weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

Average = Callable[[Iterable[Tensor]], None]


def keep(weights: Iterable[Tensor]) -> None:
    """The gradients of one process are the average."""


class Update:
    """``begin()``, ``backward(loss)`` as often as there are losses, ``finish()``.

    Args:
        network: what is trained; what is frozen in it now stays so.
        optimizer: of its weights.
        clip: the most that the norm of the gradient may be (of all weights, joined); None: any.
        scale_losses: scale losses against the underflow of float16, and leave out an update whose gradients overflow:
            :class:`torch.amp.GradScaler`, one for each network.
        average: makes the gradients of the weights it is given those of all processes, before they are clipped.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        clip: float | None,
        scale_losses: bool,
        average: Average = keep,
    ) -> None:
        self.weights = [p for p in network.parameters() if p.requires_grad]
        self.optimizer, self.clip, self.average = optimizer, clip, average
        device = self.weights[0].device.type if self.weights else "cpu"
        self.scaler = GradScaler(device, enabled=scale_losses)

    @property
    def scale(self) -> float:
        """What a loss is multiplied by now; asking waits for the device where losses are scaled."""
        return self.scaler.get_scale()

    def begin(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, **options: Any) -> Tensor:
        """Adds the gradients of ``loss``; returns it without its graph. ``options`` as of ``Tensor.backward``."""
        self.scaler.scale(loss).backward(**options)
        return loss.detach()

    def finish(self) -> None:
        """Makes the step that the gradients call for."""
        self.average(self.weights)
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The state of the loss's scale; empty without one. Loads with ``weights_only=True``."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.scaler.load_state_dict(state)


def ema_of(network: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel:
    """A copy of ``network`` whose weights and buffers follow it as exponential moving averages of ``decay``: after its
    ``update_parameters(network)``, ``average = decay * average + (1 - decay) * value``; the first takes the values."""
    averages = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    return torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=averages, use_buffers=True)
