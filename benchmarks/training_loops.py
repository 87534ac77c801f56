"""Training steps as people write them in PyTorch: the baselines of ``bench_train.py``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

Autocast = Callable[[], AbstractContextManager[object]]

LEARNING_RATE, BETAS = 2e-4, (0.5, 0.999)


class ExampleLoop:
    """pytorch/examples ``dcgan/main.py``, its inner loop as it stands; ``netD`` ends in a sigmoid.

    Contiguous maps, D's weight gradients computed in G's step and thrown away, ``.item()`` for the log.
    Its losses have no bfloat16, so under autocast they are outside it.
    """

    def __init__(
        self, netG: nn.Module, netD: nn.Module, real: Tensor, nz: int, autocast: Autocast
    ) -> None:
        self.netG, self.netD, self.real, self.nz, self.autocast = netG, netD, real, nz, autocast
        self.criterion = nn.BCELoss()
        self.optimizerD = Adam(netD.parameters(), lr=LEARNING_RATE, betas=BETAS)
        self.optimizerG = Adam(netG.parameters(), lr=LEARNING_RATE, betas=BETAS)

    def _discriminate(self, images: Tensor) -> Tensor:
        with self.autocast():
            return self.netD(images).float()

    def __call__(self) -> tuple[float, ...]:
        self.netD.zero_grad()
        batch_size = self.real.size(0)
        label = torch.full((batch_size,), 1.0)
        output = self._discriminate(self.real)
        errD_real = self.criterion(output, label)
        errD_real.backward()
        D_x = output.mean().item()

        noise = torch.randn(batch_size, self.nz, 1, 1)
        with self.autocast():
            fake = self.netG(noise)
        label.fill_(0.0)
        output = self._discriminate(fake.detach())
        errD_fake = self.criterion(output, label)
        errD_fake.backward()
        D_G_z1 = output.mean().item()
        errD = errD_real + errD_fake
        self.optimizerD.step()

        self.netG.zero_grad()
        label.fill_(1.0)
        output = self._discriminate(fake)
        errG = self.criterion(output, label)
        errG.backward()
        D_G_z2 = output.mean().item()
        self.optimizerG.step()
        return errD.item(), errG.item(), D_x, D_G_z1, D_G_z2


class TunedLoop:
    """What PyTorch alone can make of it: nothing computed twice or in vain, fused Adam, no waiting for a log.

    The caller chooses the memory format (channels_last) and whether the networks are compiled. With
    ``labels``, one for each real image, the networks are called with labels too; those of the fakes are drawn.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        real: Tensor,
        nz: int,
        autocast: Autocast,
        labels: Tensor | None = None,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.real, self.nz, self.autocast = real, nz, autocast
        self.labels = () if labels is None else (labels,)
        self.d_weights = list(discriminator.parameters())
        self.adam_d = Adam(self.d_weights, lr=LEARNING_RATE, betas=BETAS, fused=True)
        self.adam_g = Adam(generator.parameters(), lr=LEARNING_RATE, betas=BETAS, fused=True)

    def _learn(self, images: Tensor, labels: tuple[Tensor, ...], target: float) -> Tensor:
        with self.autocast():
            logits = self.discriminator(images, *labels)
        logits = logits.float()
        loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
        loss.backward()
        return loss.detach()

    def __call__(self) -> tuple[Tensor, Tensor]:
        self.adam_d.zero_grad(set_to_none=True)
        loss_d = self._learn(self.real, self.labels, 1.0)
        drawn = tuple(labels[torch.randperm(len(labels))] for labels in self.labels)
        with self.autocast():
            fake = self.generator(torch.randn(len(self.real), self.nz), *drawn)
        loss_d = loss_d + self._learn(fake.detach(), drawn, 0.0)
        self.adam_d.step()

        self.adam_g.zero_grad(set_to_none=True)
        for weight in self.d_weights:
            weight.requires_grad_(False)
        loss_g = self._learn(fake, drawn, 1.0)
        for weight in self.d_weights:
            weight.requires_grad_(True)
        self.adam_g.step()
        return loss_d, loss_g
