"""What may listen to a training run; the progress bar is what the command line has listening."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tqdm import tqdm

from .log import Record

if TYPE_CHECKING:
    from .trainer import Trainer


class Callback:
    """Override what you need and pass instances to :meth:`Trainer.fit`.

    A callback may look at everything the trainer has (``generator``, ``step``, ``epoch``,
    ``records`` …); one that draws random numbers should have a generator of its own for them.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step, also of a continued run."""

    def on_step(self, trainer: Trainer) -> None:
        """After every step. What the step computed is still on its way on a GPU: waiting costs."""

    def on_record(self, trainer: Trainer, record: Record) -> None:
        """After every line of ``metrics.jsonl``."""

    def on_epoch(self, trainer: Trainer) -> None:
        """After the last step of an epoch, before its grid and its checkpoint."""

    def on_end(self, trainer: Trainer) -> None:
        """When the run ends, whether complete, stopped or failed."""


class ProgressBar(Callback):
    """Images a second, losses, D(x), D(G(z)) on standard error, if that is a terminal."""

    _bar: tqdm[None]

    def on_start(self, trainer: Trainer) -> None:
        images = trainer.images_per_step
        self._bar = tqdm(
            total=trainer.last_step * images,
            initial=trainer.step * images,
            unit=" images",
            unit_scale=True,
            smoothing=0.1,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def on_step(self, trainer: Trainer) -> None:
        self._bar.update(trainer.images_per_step)

    def on_record(self, trainer: Trainer, record: Record) -> None:
        epoch = min(trainer.epoch + 1, trainer.epochs)
        self._bar.set_description(f"epoch {epoch}/{trainer.epochs}", refresh=False)
        self._bar.set_postfix_str(
            f"loss D {record['loss_d']:.3f} G {record['loss_g']:.3f}, D(x) {record['d_x']:.2f}, "
            f"D(G(z)) {record['d_g_z1']:.2f}/{record['d_g_z2']:.2f}",
            refresh=False,
        )

    def on_end(self, trainer: Trainer) -> None:
        self._bar.close()
