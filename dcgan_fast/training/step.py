"""One step of adversarial training, in the four dialects of the DCGAN family.

========================  ========================================================================
pytorch/examples          D on real and fake; then G through a fresh pass of the updated D
carpedm20                 the same, then G again with the same latents (``g_steps_per_d=2``)
Newmu                     one minibatch trains G, the next trains D on new fakes (``alternate``)
dcgan.torch               G through D's pass from before D's update (``reuse_fake_output``)
========================  ========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..nn import stat_groups
from .losses import Objective
from .penalties import GradientPenalty
from .update import Average, Update, keep

METRICS = ("loss_d", "loss_g", "d_x", "d_g_z1", "d_g_z2")
"""What a step reports: both losses, D(x), D(G(z)) as D's update and as G's update saw it; with a penalty also that."""

Sample = tuple[Tensor, ...]
"""Images or latents, and with them the labels of each where the networks take labels."""
Draw = Callable[[], Tensor | Sample]
Loss = Callable[[Tensor], Tensor]


def as_sample(drawn: Tensor | Sample) -> Sample:
    """Always a tuple: of networks without labels one of one tensor."""
    return (drawn,) if isinstance(drawn, Tensor) else drawn


class Step:
    """Updates both networks once: ``step(real, draw) -> Tensor`` of the :attr:`metrics`, float32.

    ``real`` are the images of the minibatch that trains D, or a list of as many minibatches as D's updates take
    (``d_steps_per_g * accumulate``); ``draw()`` returns a fresh batch of latents. The metrics stay on the device, so
    that a step never waits for it.

    Networks with labels get ``real = (images, labels)`` and a ``draw()`` that returns (latents,
    labels): G makes its images for the labels that it is given, and D is shown them with these.

    Args:
        generator, discriminator, optimizer_g, optimizer_d: what is trained, by what.
        objective: what both minimise.
        penalty: on D's gradient, charged to its loss.
        g_steps_per_d: updates of G after those of D, all with the same latents.
        d_steps_per_g: updates of D, each with images and latents of its own, before G's.
        accumulate: each update takes the mean gradient of so many minibatches, for the memory of one. G's images are
            then made twice, for D without a graph.
        alternate, reuse_fake_output: the dialects above; with one update of each network.
        joint_pass: D sees the real and the fake images, as many of them, in one pass of two groups of
            statistics. The numbers are the same where batch norm is all that couples images; of D's update on
            a CPU it saves 4% at batch 128 and 10 to 20% at batch 32, for the memory that twice the batch takes.
        autocast: a context for each pass forward.
        clip_grad: the most that the norm of a network's gradient may be; what is longer is shortened to it.
        scale_losses: against the underflow of float16: each network's loss is scaled as ``torch.amp.GradScaler`` does,
            and an update whose gradients overflow is left out.
        average: as :class:`Update` takes it.

    Attributes:
        number: of the step to come, from 0; decides when a lazy penalty is due.
        instance_noise: the standard deviation of the noise that D's images get, real and made (Sønderby et al. 2016).
        update_g, update_d: what turns gradients into new weights.

    Raises:
        ValueError: settings that exclude each other; a batch of other sizes than a joint pass takes.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        optimizer_g: Optimizer,
        optimizer_d: Optimizer,
        *,
        objective: Objective | None = None,
        penalty: GradientPenalty | None = None,
        g_steps_per_d: int = 1,
        d_steps_per_g: int = 1,
        accumulate: int = 1,
        alternate: bool = False,
        reuse_fake_output: bool = False,
        joint_pass: bool = False,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        clip_grad: float | None = None,
        scale_losses: bool = False,
        average: Average = keep,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.update_g = Update(generator, optimizer_g, clip_grad, scale_losses, average)
        self.update_d = Update(discriminator, optimizer_d, clip_grad, scale_losses, average)
        self.objective, self.penalty = objective or Objective(), penalty
        self.g_steps_per_d, self.d_steps_per_g = g_steps_per_d, d_steps_per_g
        self.accumulate = accumulate
        self.alternate, self.reuse_fake_output = alternate, reuse_fake_output
        self.joint_pass = joint_pass
        if joint_pass and reuse_fake_output:
            raise ValueError("'joint_pass' and 'reuse_fake_output' exclude each other")
        if (alternate or reuse_fake_output) and max(g_steps_per_d, d_steps_per_g, accumulate) > 1:
            dialect = "alternate" if alternate else "reuse_fake_output"
            raise ValueError(f"{dialect!r} makes one update of each network, of one minibatch each")
        if reuse_fake_output and (penalty or scale_losses):
            raise ValueError("'reuse_fake_output' goes with neither 'penalty' nor 'scale_losses'")
        self.autocast = autocast
        self.number = 0
        self.instance_noise = 0.0

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what a step returns."""
        return METRICS if self.penalty is None else (*METRICS, "penalty")

    def __call__(self, real: Tensor | Sample | list[Tensor | Sample], draw: Draw) -> Tensor:
        batches = (
            [as_sample(batch) for batch in real] if isinstance(real, list) else [as_sample(real)]
        )
        wanted = self.d_steps_per_g * self.accumulate
        if len(batches) != wanted:
            raise ValueError(
                f"a step takes {wanted} minibatches of real images, got {len(batches)}"
            )

        def drawn() -> Sample:
            return as_sample(draw())

        if self.alternate:
            row = self._alternating(batches, drawn)
        elif self.reuse_fake_output:
            row = self._sharing(batches[0], drawn)
        else:
            row = self._standard(batches, drawn)
        self.number += 1
        return row

    def _standard(self, real: Sequence[Sample], draw: Callable[[], Sample]) -> Tensor:
        latents: list[Sample] = []
        shares = self.accumulate == 1  # G's update goes on with the images that D's last one made

        def generate() -> Sample:
            latents.append(draw())
            return self._generate(latents[-1])

        for number in range(self.d_steps_per_g):
            latents.clear()
            last = number == self.d_steps_per_g - 1
            part = real[number * self.accumulate : (number + 1) * self.accumulate]
            make = generate if last and shares else torch.no_grad()(generate)
            fake, of_d = self._update_discriminator(part, make)
        of_g = self._update_generator([fake] if shares else latents, made=shares)
        for _ in range(self.g_steps_per_d - 1):
            of_g = self._update_generator(latents)
        return _row(of_d, of_g)

    def _alternating(self, real: Sequence[Sample], draw: Callable[[], Sample]) -> Tensor:
        """G's minibatch has no use for its images (the caller passes over them)."""
        of_g = self._update_generator([draw()])
        _, of_d = self._update_discriminator(real, torch.no_grad()(lambda: self._generate(draw())))
        return _row(of_d, of_g)

    def _sharing(self, real: Sample, draw: Callable[[], Sample]) -> Tensor:
        """One pass of D over the fakes serves both updates, each by a backward pass of its own.

        dcgan.torch sends G's gradient through D's *updated* weights with the activations of the old
        ones, which autograd rightly refuses; here both gradients are those of the old weights.
        """
        self.update_d.begin()
        self.update_g.begin()
        output = self._discriminate(self._noisy(real))
        loss_real = self.update_d.backward(self.objective.of_real(output))
        d_x = self.objective.score(output)
        output = self._discriminate(self._noisy(self._generate(draw())))
        loss_fake = self.objective.of_fake(output)
        loss_g = self.objective.of_generator(output)
        self.update_d.backward(loss_fake, inputs=self.update_d.weights, retain_graph=True)
        self.update_g.backward(loss_g, inputs=self.update_g.weights)
        self.update_d.finish()
        self.update_g.finish()
        d_g_z = self.objective.score(output)
        return torch.stack([loss_real + loss_fake.detach(), loss_g.detach(), d_x, d_g_z, d_g_z])

    def _update_discriminator(
        self, real: Sequence[Sample], generate: Callable[[], Sample]
    ) -> tuple[Sample, Tensor]:
        """Returns the last images of ``generate()``, and the loss, D(x), D(G(z)) and the penalty if there is one."""
        self.update_d.begin()
        rows = []
        due = self.penalty is not None and self.penalty.is_due(self.number)
        for batch in real:
            if self.joint_pass and not due:
                fake = generate()
                row = self._learn_both(batch, _detached(fake))
            else:
                fake, row = self._learn_apart(batch, generate, self.penalty if due else None)
            rows.append(row)
        self.update_d.finish()
        return fake, _mean(rows)

    def _learn_apart(
        self, real: Sample, generate: Callable[[], Sample], penalty: GradientPenalty | None
    ) -> tuple[Sample, Tensor]:
        scale = self.update_d.scale if penalty else 1.0
        seen = self._noisy(real)
        at_data = penalty is not None and penalty.kind == "r1"
        if at_data:
            seen = (seen[0].detach().requires_grad_(), *seen[1:])
        output = self._discriminate(seen)
        loss, d_x = self.objective.of_real(output), self.objective.score(output)
        charged = penalty.at(seen[0], output, scale) if penalty and at_data else None
        self._backward_d(loss if charged is None else loss + charged)
        fake = generate()
        seen_fake = self._noisy(_detached(fake))
        output = self._discriminate(seen_fake)
        loss_fake, d_g_z = self.objective.of_fake(output), self.objective.score(output)
        self._backward_d(loss_fake)
        if penalty and not at_data:
            charged = penalty.between(
                seen[0],
                seen_fake[0],
                lambda images: self._discriminate((images, *seen[1:])),
                scale,
            )
            self._backward_d(charged)
        row = [loss.detach() + loss_fake.detach(), d_x, d_g_z]
        return fake, torch.stack(row + self._penalty_column(charged, row[0]))

    def _learn_both(self, real: Sample, fake: Sample) -> Tensor:
        """As :meth:`_learn_apart`, in one pass."""
        counts = len(fake[0]), len(real[0])
        if counts[0] != counts[1]:
            raise ValueError(
                f"a joint pass takes as many fake images as real ones, got {counts[0]} and {counts[1]}"
            )
        both = tuple(torch.cat(pair) for pair in zip(real, fake, strict=True))
        with stat_groups(self.discriminator, 2):
            of_real, of_fake = self._discriminate(self._noisy(both)).chunk(2)
        loss = self.objective.of_real(of_real) + self.objective.of_fake(of_fake)
        self._backward_d(loss)
        row = [loss.detach(), self.objective.score(of_real), self.objective.score(of_fake)]
        return torch.stack(row + self._penalty_column(None, row[0]))

    def _update_generator(self, samples: Sequence[Sample], *, made: bool = False) -> Tensor:
        """By latents, or by the images ``made`` of them already; returns the loss and D(G(z))."""
        self.update_g.begin()
        rows = []
        with self._frozen_discriminator():
            for sample in samples:
                fake = sample if made else self._generate(sample)
                output = self._discriminate(self._noisy(fake))
                loss = self.objective.of_generator(output)
                self.update_g.backward(loss / self.accumulate if self.accumulate > 1 else loss)
                rows.append(torch.stack([loss.detach(), self.objective.score(output)]))
        self.update_g.finish()
        return _mean(rows)

    def _backward_d(self, loss: Tensor) -> None:
        self.update_d.backward(loss / self.accumulate if self.accumulate > 1 else loss)

    def _penalty_column(self, charged: Tensor | None, like: Tensor) -> list[Tensor]:
        """As charged in this step: 0 where a lazy one is not due, so that means over steps are right."""
        if self.penalty is None:
            return []
        return [torch.zeros_like(like) if charged is None else charged.detach()]

    def _noisy(self, sample: Sample) -> Sample:
        if self.instance_noise == 0:
            return sample
        return sample[0] + self.instance_noise * torch.randn_like(sample[0]), *sample[1:]

    # A context for each pass: autocast keeps its casts of the weights until it is left, and between
    # passes the weights change.
    def _generate(self, sample: Sample) -> Sample:
        """The images, and the labels that they were made for."""
        with self.autocast():
            return self.generator(*sample), *sample[1:]

    def _discriminate(self, sample: Sample) -> Tensor:
        with self.autocast():
            output: Tensor = self.discriminator(*sample)
        return output

    @contextmanager
    def _frozen_discriminator(self) -> Iterator[None]:
        """D's weight gradients would be computed and thrown away: a twelfth of the step saved."""
        for weight in self.update_d.weights:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in self.update_d.weights:
                weight.requires_grad_(True)


def _detached(sample: Sample) -> Sample:
    return sample[0].detach(), *sample[1:]


def _mean(rows: Sequence[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.stack(list(rows)).mean(0)


def _row(of_d: Tensor, of_g: Tensor) -> Tensor:
    """As :attr:`Step.metrics` has it: loss_d, loss_g, D(x), D(G(z)) for D and for G, the penalty."""
    return torch.stack([of_d[0], of_g[0], of_d[1], of_d[2], of_g[1], *of_d[3:]])
