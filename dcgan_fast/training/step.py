"""One step of adversarial training, in the four dialects of the DCGAN family.

========================  ========================================================================
pytorch/examples          D on real and fake; then G through a fresh pass of the updated D
carpedm20                 the same, then G again with the same latents (``g_steps_per_d=2``)
Newmu                     one minibatch trains G, the next trains D on new fakes (``alternate``)
dcgan.torch               G through D's pass from before D's update (``reuse_fake_output``)
========================  ========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..nn import stat_groups
from .losses import FAKE, REAL, adversarial_loss, mean_probability

METRICS = ("loss_d", "loss_g", "d_x", "d_g_z1", "d_g_z2")
"""What a step reports: both losses, D(x), D(G(z)) as D's update and as G's update saw it."""

Sample = tuple[Tensor, ...]
"""Images or latents, and with them the labels of each where the networks take labels."""
Draw = Callable[[], Tensor | Sample]


def _sample(drawn: Tensor | Sample) -> Sample:
    return (drawn,) if isinstance(drawn, Tensor) else drawn


class AdversarialStep:
    """Updates both networks once: ``step(real, draw) -> Tensor`` of the five :data:`METRICS`.

    Networks with labels get ``real = (images, labels)`` and a ``draw()`` that returns (latents,
    labels): G makes its images for the labels that it is given, and D is shown them with these.

    ``joint_pass``: D sees the real and the fake images, as many of them, in one pass of two groups of
    statistics. The numbers are the same where batch norm is all that couples images; of D's update on
    a CPU it saves 4% at batch 128 and 10 to 20% at batch 32, for the memory that twice the batch takes.

    ``real`` are the images of the minibatch that trains D; ``draw()`` returns a fresh batch of
    latents. The metrics stay on the device, so that a step never waits for it.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        optimizer_g: Optimizer,
        optimizer_d: Optimizer,
        *,
        loss_output: str = "logits",
        g_steps_per_d: int = 1,
        alternate: bool = False,
        reuse_fake_output: bool = False,
        joint_pass: bool = False,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.optimizer_g, self.optimizer_d = optimizer_g, optimizer_d
        self.loss_output = loss_output
        self.g_steps_per_d = g_steps_per_d
        self.alternate, self.reuse_fake_output = alternate, reuse_fake_output
        self.joint_pass = joint_pass
        if joint_pass and reuse_fake_output:
            raise ValueError("'joint_pass' and 'reuse_fake_output' exclude each other")
        self.autocast = autocast
        self._g_weights = [p for p in generator.parameters() if p.requires_grad]
        self._d_weights = [p for p in discriminator.parameters() if p.requires_grad]

    def __call__(self, real: Tensor | Sample, draw: Draw) -> Tensor:
        def drawn() -> Sample:
            return _sample(draw())

        if self.alternate:
            return self._alternating(_sample(real), drawn)
        if self.reuse_fake_output:
            return self._sharing(_sample(real), drawn)
        return self._standard(_sample(real), drawn)

    def _standard(self, real: Sample, draw: Callable[[], Sample]) -> Tensor:
        latents = []

        def generate() -> Sample:
            latents.append(draw())
            return self._generate(latents[0])

        fake, loss_d, d_x, d_g_z1 = self._update_discriminator(real, generate)
        loss_g, d_g_z2 = self._update_generator(fake)
        for _ in range(self.g_steps_per_d - 1):
            loss_g, d_g_z2 = self._update_generator(self._generate(latents[0]))
        return torch.stack([loss_d, loss_g, d_x, d_g_z1, d_g_z2])

    def _alternating(self, real: Sample, draw: Callable[[], Sample]) -> Tensor:
        """G's minibatch has no use for its images (the caller passes over them)."""
        loss_g, d_g_z2 = self._update_generator(self._generate(draw()))
        generate = torch.no_grad()(lambda: self._generate(draw()))
        _, loss_d, d_x, d_g_z1 = self._update_discriminator(real, generate)
        return torch.stack([loss_d, loss_g, d_x, d_g_z1, d_g_z2])

    def _sharing(self, real: Sample, draw: Callable[[], Sample]) -> Tensor:
        """One pass of D over the fakes serves both updates, each by a backward pass of its own.

        dcgan.torch sends G's gradient through D's *updated* weights with the activations of the old
        ones, which autograd rightly refuses; here both gradients are those of the old weights.
        """
        self.optimizer_d.zero_grad(set_to_none=True)
        self.optimizer_g.zero_grad(set_to_none=True)
        loss_real, d_x = self._learn(self._discriminate(real), REAL)
        output = self._discriminate(self._generate(draw()))
        loss_fake, loss_g = self._loss(output, FAKE), self._loss(output, REAL)
        loss_fake.backward(inputs=self._d_weights, retain_graph=True)
        loss_g.backward(inputs=self._g_weights)
        self.optimizer_d.step()
        self.optimizer_g.step()
        d_g_z = mean_probability(output, kind=self.loss_output)
        return torch.stack([loss_real + loss_fake.detach(), loss_g.detach(), d_x, d_g_z, d_g_z])

    def _update_discriminator(
        self, real: Sample, generate: Callable[[], Sample]
    ) -> tuple[Sample, Tensor, Tensor, Tensor]:
        """Returns the images of ``generate()``, the loss, D(x) and D(G(z))."""
        self.optimizer_d.zero_grad(set_to_none=True)
        if self.joint_pass:
            fake = generate()
            loss, d_x, d_g_z = self._learn_both(real, _detached(fake))
        else:
            loss_real, d_x = self._learn(self._discriminate(real), REAL)
            fake = generate()
            loss_fake, d_g_z = self._learn(self._discriminate(_detached(fake)), FAKE)
            loss = loss_real + loss_fake
        self.optimizer_d.step()
        return fake, loss, d_x, d_g_z

    def _learn_both(self, real: Sample, fake: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`_learn` of one after the other, in one pass."""
        counts = len(fake[0]), len(real[0])
        if counts[0] != counts[1]:
            raise ValueError(
                f"a joint pass takes as many fake images as real ones, got {counts[0]} and {counts[1]}"
            )
        both = tuple(torch.cat(pair) for pair in zip(real, fake, strict=True))
        with stat_groups(self.discriminator, 2):
            of_real, of_fake = self._discriminate(both).chunk(2)
        loss = self._loss(of_real, REAL) + self._loss(of_fake, FAKE)
        loss.backward()
        d_x, d_g_z = (mean_probability(o, kind=self.loss_output) for o in (of_real, of_fake))
        return loss.detach(), d_x, d_g_z

    def _update_generator(self, fake: Sample) -> tuple[Tensor, Tensor]:
        self.optimizer_g.zero_grad(set_to_none=True)
        with self._frozen_discriminator():
            result = self._learn(self._discriminate(fake), REAL)
        self.optimizer_g.step()
        return result

    def _learn(self, output: Tensor, label: float) -> tuple[Tensor, Tensor]:
        """Backward pass of the loss of ``output``; returns (loss, mean probability of "real")."""
        loss = self._loss(output, label)
        loss.backward()
        return loss.detach(), mean_probability(output, kind=self.loss_output)

    def _loss(self, output: Tensor, label: float) -> Tensor:
        return adversarial_loss(output, label, kind=self.loss_output)

    # A context for each pass: autocast keeps its casts of the weights until it is left, and between
    # passes the weights change.
    def _generate(self, latent: Sample) -> Sample:
        with self.autocast():
            return self.generator(*latent), *latent[1:]

    def _discriminate(self, images: Sample) -> Tensor:
        with self.autocast():
            return self.discriminator(*images)

    @contextmanager
    def _frozen_discriminator(self) -> Iterator[None]:
        """D's weight gradients would be computed and thrown away: a twelfth of the step saved."""
        for weight in self._d_weights:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in self._d_weights:
                weight.requires_grad_(True)


def _detached(sample: Sample) -> Sample:
    return sample[0].detach(), *sample[1:]
