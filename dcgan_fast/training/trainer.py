"""The training loop: what it keeps, what it writes, and how it continues bit for bit."""

from __future__ import annotations

import dataclasses
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import models
from ..data import Batches, Dataset
from ..errors import UserError
from ..files import write_text
from ..nn import batch_norm_mode, synchronised_statistics
from ..visualize import image_grid, save_png, training_curves, watch_curves
from . import distributed
from .callbacks import Callback
from .checkpoint import (
    PREVIOUS_NAME,
    bare_state,
    load_checkpoint,
    load_optimizer,
    load_state,
    reading,
    save_bare_state,
    save_checkpoint,
)
from .config import DIGITS_WIDTH, EPOCHS, STEPS_AT_LEAST, TrainConfig
from .graph import GraphedStep, portable_state
from .log import MetricsFile, MetricsWindow, Record, TrainingDiverged
from .run import RunFolder, find_checkpoint, new_run
from .schedule import Schedule
from .setup import (
    build_networks,
    check_networks,
    config_of,
    configure_torch,
    count_classes,
    derived_seed,
    load_data,
    make_optimizer,
    placed,
)
from .signals import StopRequest
from .step import Sample, Step
from .update import ema_of, keep
from .validation import Validation, hold_out
from .watch import LATENTS, CollapseWatch, gradient_norm, pair_distance
from .watch import STEPS as WATCHED_STEPS

_MAX_GRIDS = 50  # a run; more epochs than that get a grid every few
_MAX_ROWS = 32  # of a grid of classes; of more than that some are shown
_FEWEST_COLUMNS = 8  # of such a grid
_WATCHED_CLASSES = 8  # of more than that some are watched
_REAL_IMAGES = 32  # of a class, whose distances are diversity's measure; without classes 256


class _Grid(NamedTuple):
    """What the sample grids are drawn from."""

    input: Sample
    columns: int | None  # None: as image_grid() chooses
    classes: np.ndarray | None  # those that have a row each


class Trainer:
    """Trains a generator against a discriminator; ``Trainer(TrainConfig(epochs=5)).fit()``.

    Under ``torchrun`` (or with a default group of torch.distributed) each process has a trainer of the same settings
    and ``config.batch_size`` images of every batch, and they train as one (:mod:`.distributed`): with
    ``config.sync_bn`` the numbers are those of one process with the joined batch. The first alone writes.

    Args:
        config: every setting; the default trains the default networks on ``digits``.
        generator, discriminator: networks of your own in place of the preset's. The generator maps
            latents (N, nz, 1, 1) to images (N, C, S, S) in [-1, 1], or in its ``output_range``, the
            discriminator images to one number each: logits, or probabilities with
            ``loss_output="sigmoid"``. With ``conditional=True`` both take labels, int64 (N,), as a
            second argument. They are trained in place; :func:`dcgan_fast.fuse` them first for speed.
        dataset: images of your own in place of ``config.data``.

    Attributes:
        generator, discriminator, optimizer_g, optimizer_d, dataset, device: what is trained, where.
        step, last_step: steps done, and steps after which the run is complete.
        epoch, epochs, steps_per_epoch: the same in epochs; only whole ones count as done.
        classes: how many labels the data has where the networks take them, else 0.
        records: what ``metrics.jsonl`` holds, a list of dicts.
        validation, likelihoods: where ``config.patience`` is given: what measures the held-out images, and what
            ``validation.jsonl`` holds. ``best.pt`` is the checkpoint of the best epoch.
        watch: looks for a collapse; None with ``config.watch`` False.
        run: the run's folder, None before :meth:`fit` and where ``config.out`` is None.
        processes: those that train together.

    Raises:
        UserError: settings that do not go together, or data that cannot be read.
    """

    def __init__(
        self,
        config: TrainConfig | None = None,
        *,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        config = config or TrainConfig()
        if (generator is None) != (discriminator is None):
            raise UserError("Trainer(): give both 'generator' and 'discriminator', or neither")
        if dataset is not None and config.dedup:
            raise UserError(
                "Trainer(): 'dedup' is for config.data; give 'dataset' without its near-duplicates "
                "(dcgan_fast.dedup.images.without_near_duplicates)"
            )
        self.processes = distributed.join()
        self.device = self.processes.device(config.device)
        configure_torch(config, self.device)
        if generator is None:
            check_networks(config, self.device)
        elif getattr(generator, "classes", 0):
            config = dataclasses.replace(config, conditional=True)
        if dataset is None:
            dataset_name = None
            dataset = self.processes.after_first(lambda: load_data(config))
        else:
            dataset_name = dataset.name
        self.dataset = dataset
        if config.patience is not None:
            self.dataset, held_out = hold_out(self.dataset)
        self.classes = count_classes(self.dataset) if config.conditional else 0
        self.steps_per_epoch = self._count_steps(config)
        self.config = self._resolve(config, dataset_name)

        torch.manual_seed(config.seed)
        if generator is None or discriminator is None:
            generator, discriminator = build_networks(
                self.config, self.dataset.channels, self.classes
            )
        self._check_classes(generator, discriminator)
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.generator = placed(generator, self.device, self._layout)
        self.discriminator = placed(discriminator, self.device, self._layout)
        self.optimizer_g = make_optimizer(self.generator, self.config)
        self.optimizer_d = make_optimizer(self.discriminator, self.config)
        self.ema = None if config.ema is None else ema_of(self.generator, config.ema)
        self.validation: Validation | None = None
        if config.patience is not None:
            self.validation = Validation(held_out, config.patience, self.drawn_generator)
        self._schedule = Schedule(
            self.config, self.steps_per_epoch, self.optimizer_g, self.optimizer_d
        )

        self.step = 0
        self.run: RunFolder | None = None
        self._latents = torch.Generator().manual_seed(derived_seed(config.seed, "latents"))
        self._value_range = getattr(generator, "output_range", (-1.0, 1.0))
        self._grid = self._choose_grid(
            torch.Generator().manual_seed(derived_seed(config.seed, "grid"))
        )
        self.watch = self._make_watch() if config.watch else None
        self._metrics = MetricsFile(None)
        self._likelihoods = MetricsFile(None)
        self._update = Step(
            self.generator,
            self.discriminator,
            self.optimizer_g,
            self.optimizer_d,
            objective=config.make_objective(),
            penalty=config.make_penalty(),
            g_steps_per_d=config.g_steps_per_d,
            d_steps_per_g=config.d_steps_per_g,
            accumulate=config.accumulate,
            alternate=config.alternate,
            reuse_fake_output=config.reuse_fake_output,
            joint_pass=config.joint_pass,
            autocast=self._autocast,
            clip_grad=config.clip_grad,
            scale_losses=config.amp == "fp16",
            average=self.processes.average_gradients if self.processes.count > 1 else keep,
        )
        self._graphed = GraphedStep(self._update) if self._wants_graph else None
        self._window = MetricsWindow(self._update.metrics, config.log_every)
        self._draw_apart("start")

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        *,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        dataset: Dataset | None = None,
        **changes: Any,
    ) -> Trainer:
        """A trainer that continues, bit for bit, from a checkpoint or from the newest of a run.

        With another number of processes than the run had, each gets another ``batch_size``, so that a step has as many
        images as before; the numbers are then the same to rounding, with ``sync_bn``. The file must be within reach of
        the first process alone.

        ``changes`` are settings of :class:`TrainConfig` that may differ from the run's: ``epochs``
        (raised), and what has no part in the numbers. Give networks and data of your own again.

        Raises:
            UserError: no checkpoint, not one of a training run, a setting that may not change,
                other data, or other networks; a batch that the processes cannot share equally.
        """
        processes = distributed.join()
        file, checkpoint = processes.from_first(lambda: _find_newest(path))
        if "train_config" not in checkpoint:
            raise UserError(
                f"{file} holds networks but no training run to continue; start one from them with "
                "init_generator and init_discriminator (--netG, --netD)"
            )
        with reading(file):
            config = TrainConfig.from_dict(checkpoint["train_config"])
        config = config.changed(changes)
        then = checkpoint.get("processes", 1)
        if type(then) is not int or then < 1:
            raise UserError(f"{file} is a damaged checkpoint: its 'processes' is {then!r}")
        if then != processes.count:
            share = distributed.split_batch(config.batch_size * then, processes.count)
            config = dataclasses.replace(config, batch_size=share)
        # The files that the run started from may be gone, and are not needed any more.
        start = dataclasses.replace(config, init_generator=None, init_discriminator=None)
        trainer = cls(start, generator=generator, discriminator=discriminator, dataset=dataset)
        trainer.config = dataclasses.replace(
            trainer.config,
            init_generator=config.init_generator,
            init_discriminator=config.init_discriminator,
        )
        with reading(file):
            trainer._restore(checkpoint, file)
        return trainer

    # ------------------------------------------------------------------------------ where it stands

    @property
    def epochs(self) -> int:
        assert self.config.epochs is not None  # _resolve() has set it
        return self.config.epochs

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def last_step(self) -> int:
        return min(self._whole_run, self.config.max_steps or self._whole_run)

    @property
    def _whole_run(self) -> int:
        """Steps of all epochs, wherever ``max_steps`` ends this part of them."""
        return self.epochs * self.steps_per_epoch

    @property
    def drawn_generator(self) -> nn.Module:
        """What draws the grids: the average of G's weights where there is one, else G."""
        return self.generator if self.ema is None else self.ema.module

    @property
    def _wants_graph(self) -> bool:
        return self.config.graph and self.device.type == "cuda"

    @property
    def why_not_graphed(self) -> str:
        """Why a step is not one CUDA graph; empty where it is."""
        if self._graphed is not None:
            return self._graphed.reason
        return (
            "'graph' is off"
            if self.device.type == "cuda"
            else "the networks are not on a CUDA device"
        )

    @property
    def images_per_step(self) -> int:
        """Of all processes."""
        return self.config.batch_size * self.config.batches_per_step * self.processes.count

    @property
    def records(self) -> Sequence[Record]:
        return self._metrics.records

    @property
    def likelihoods(self) -> Sequence[Record]:
        return self._likelihoods.records

    # ------------------------------------------------------------------------------------ the loop

    def fit(self, callbacks: Sequence[Callback] = ()) -> Path | None:
        """Train until the run is complete; returns its folder (None where ``config.out`` is None).

        Ctrl-C and SIGTERM end the run at the next step boundary with a checkpoint and then raise
        KeyboardInterrupt or SystemExit(143), in all processes after the same step.

        Raises:
            TrainingDiverged: a loss or a weight is NaN or infinite; the last good checkpoint stays.
            ProcessLost: another process has ended or does not answer; the last checkpoint stays.
            UserError: the output cannot be written.
        """
        if self.step >= self.last_step or self._is_exhausted():
            return self.run.path if self.run else None
        with StopRequest() as stop, self.processes.missed(self._what_stays):
            self._open_run()
            self.processes.share_state(self.generator, self.discriminator)
            for callback in callbacks:
                callback.on_start(self)
            try:
                self._loop(callbacks, stop)
            except TrainingDiverged as error:
                raise TrainingDiverged(f"{error}: {self._advice()}") from None
            finally:
                for callback in callbacks:
                    callback.on_end(self)
        return self.run.path if self.run else None

    def _loop(self, callbacks: Sequence[Callback], stop: StopRequest) -> None:
        self._saved_at = self._recorded_at = time.monotonic()
        self._recorded_step = self.step
        self.generator.train()
        self.discriminator.train()
        for real in self._real_images():
            self._schedule.set(self.step)
            self._update.instance_noise = self._schedule.instance_noise(self.step, self._whole_run)
            with self._joined_statistics():
                row = self.processes.mean((self._graphed or self._update)(real, self._draw))
            self.step += 1
            if self.ema is not None:
                self.ema.update_parameters(self.generator)
            record = self._window.add(self.step, row)
            if record is not None:
                self._record(record, callbacks)
            for callback in callbacks:
                callback.on_step(self)
            complete = self.step == self.last_step
            if self.validation is not None and self.step % self.steps_per_epoch == 0:
                self._validate(self.validation)
                complete = complete or self._is_exhausted()
            if complete and record is None:
                self._record(self._window.mean(), callbacks)
            if self.step % self.steps_per_epoch == 0 or complete:
                self._end_epoch(callbacks, complete)
            asked, due = self.processes.agree(stop.received or 0, self._save_is_due())
            if due or complete or asked:
                self.save()
                self.processes.wait()  # whoever ended before the first has saved would have it ended too
            if asked:  # a signal that came since has its save after the next step
                stop.received = asked
                stop.raise_if_received()
            if complete:
                return

    def _real_images(self) -> Iterator[Tensor | Sample | list[Tensor | Sample]]:
        """What a step takes of real images, with their labels if D takes some, from where the run stands to its end.

        An alternating step takes two batches from the data and passes over the first, which trains G.
        """
        stride = self.config.batches_per_step
        batches = Batches(
            self.dataset,
            self.config.batch_size,
            seed=self.config.seed,
            flip=self.config.flip,
            device=self.device,
            value_range=self._value_range,
            memory_format=self._layout,
            rank=self.processes.rank,
            world_size=self.processes.count,
            start=(self.epoch, self.step % self.steps_per_epoch * stride),
        )
        wanted = 1 if self.config.alternate else stride
        while True:
            drawn: list[Tensor | Sample] = []
            for real in batches.labelled() if self.classes else batches:
                drawn = [*drawn, real][-wanted:]
                if batches.position % stride == 0:
                    yield drawn if wanted > 1 else drawn[0]
                    drawn = []
                if self.step == self.last_step:
                    return

    def _draw(self) -> Tensor | Sample:
        """This process's part of what one would draw for all."""
        share, rank = self.config.batch_size, self.processes.rank
        count, mine = share * self.processes.count, slice(rank * share, (rank + 1) * share)
        latent = self._latents_from(self._latents, count)[mine]
        return (latent, self._labels_from(self._latents, count)[mine]) if self.classes else latent

    @contextmanager
    def _joined_statistics(self) -> Iterator[None]:
        """For the passes of a step alone: grids and looks are the first process's, who would wait for the others."""
        with ExitStack() as stack:
            if self.processes.count > 1 and self.config.sync_bn:
                for network in (self.generator, self.discriminator):
                    stack.enter_context(synchronised_statistics(network, self.processes.group))
            yield

    def _draw_apart(self, since: str) -> None:
        """Give each process but the first random numbers of its own, for dropout."""
        if rank := self.processes.rank:
            torch.manual_seed(derived_seed(self.config.seed, f"process {rank} {since}"))

    def _random_state(self) -> dict[str, Tensor | None]:
        """Of what dropout draws from."""
        cuda = self.device.type == "cuda"
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def _set_random_state(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def _labels_from(self, source: torch.Generator, count: int) -> Tensor:
        """Labels of images drawn from the data: as frequent as they are there."""
        assert self.dataset.labels is not None  # count_classes() has looked
        rows = torch.randint(len(self.dataset), (count,), generator=source)
        return torch.from_numpy(self.dataset.labels[rows.numpy()]).to(self.device)

    def _latents_from(self, source: torch.Generator, count: int) -> Tensor:
        """Latents as (count, nz, 1, 1), the shape that also pytorch/examples' generator takes.

        Drawn on the CPU: the same numbers on every device.
        """
        sample = getattr(self.generator, "sample_latent", None)
        if sample is not None:
            latent = sample(count, generator=source)
        else:
            latent = torch.randn(count, self.config.nz or 100, generator=source)
        return latent.to(self.device).reshape(count, -1, 1, 1)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.config.amp is None:
            return nullcontext()
        half = torch.bfloat16 if self.config.amp == "bf16" else torch.float16
        return torch.autocast(self.device.type, half)

    # ------------------------------------------------------------------------------ what it writes

    def _open_run(self) -> None:
        """Make the run's folder, in the first process; all know it."""
        self.run = self.processes.from_first(self._make_run)
        if self.run is not None:
            self.config = dataclasses.replace(
                self.config, out=str(self.run.path.parent), name=self.run.path.name
            )

    def _make_run(self) -> RunFolder | None:
        if self.config.out is None:
            return None
        if self.run is not None:
            self.run.prepare()
        else:
            default = f"{self.dataset.name}-{self.config.preset}"
            self.run = new_run(self.config.out, self.config.name, default)
        self._metrics.path = self.run.metrics
        self._metrics.rewind(self.step, self.config.log_every)
        if self.validation is not None:
            self._likelihoods.path = self.run.validation
            self._likelihoods.rewind(self.step, every=1)
        save_png(self._draw_real_grid(), self.run.real)
        placed_config = dataclasses.replace(
            self.config, out=str(self.run.path.parent), name=self.run.path.name
        )
        write_text(self.run.config, placed_config.to_json())
        if launch := distributed.launch():
            write_text(self.run.launch, launch)
        return self.run

    @property
    def _written(self) -> RunFolder | None:
        """The run's folder where this process writes to it."""
        return self.run if self.processes.is_first else None

    def _record(self, record: Record, callbacks: Sequence[Callback]) -> None:
        now = time.monotonic()
        speed = (self.step - self._recorded_step) * self.images_per_step / (now - self._recorded_at)
        self._recorded_at, self._recorded_step = now, self.step
        record = {
            "step": self.step,
            "epoch": (self.step - 1) // self.steps_per_epoch + 1,
            **record,
            **(self._watched(self.watch) if self.watch else {}),
            "images_per_s": round(speed, 1),
        }
        self._metrics.append(record)
        for callback in callbacks:
            callback.on_record(self, record)

    def _watched(self, watch: CollapseWatch) -> Record:
        """The norms of the gradients of this step's last updates, and what there is to see where a look is due."""
        norms = [gradient_norm(network) for network in (self.discriminator, self.generator)]
        found = dict(zip(("grad_norm_d", "grad_norm_g"), torch.stack(norms).tolist(), strict=True))
        lines = max(1, round(WATCHED_STEPS / self.config.log_every))
        is_due = self.step % (lines * self.config.log_every) == 0
        if is_due:
            found |= watch.look(self.generator)
        for name, value in found.items():
            if not math.isfinite(value):
                raise TrainingDiverged(f"{name} is {value} at step {self.step}")
        if is_due and (complaint := watch.warning()) and self.processes.is_first:
            warnings.warn(f"step {self.step}: {complaint}; {self._remedy()}", stacklevel=2)
        return found

    def _remedy(self) -> str:
        where = f"{self.run.watch} and {self.run.samples} show" if self.run else "watch.png shows"
        return f"{where} since when; a lower --lr than {self.config.lr:g} may help, or an end before it"

    def _make_watch(self) -> CollapseWatch:
        """Latents, and real images to compare the samples with, that do not depend on any other setting."""
        source = torch.Generator().manual_seed(derived_seed(self.config.seed, "watch"))
        rng = np.random.default_rng(derived_seed(self.config.seed, "watched images"))
        images, labels = self.dataset.images, self.dataset.labels
        if not self.classes or labels is None:
            input: tuple[Tensor, ...] = (self._latents_from(source, LATENTS),)
            count = min(len(images), 8 * _REAL_IMAGES)
            rows = rng.choice(len(images), count, replace=False)
        else:
            shown = _spread(self.classes, min(self.classes, _WATCHED_CLASSES))
            each = LATENTS // len(shown)
            latents = self._latents_from(source, each * len(shown))
            input = (latents, torch.from_numpy(shown).repeat_interleave(each).to(self.device))
            members = [np.flatnonzero(labels == label) for label in shown]
            rows = np.concatenate(
                [rng.choice(m, min(len(m), _REAL_IMAGES), replace=False) for m in members]
            )
        real = torch.from_numpy(np.asarray(images[np.sort(rows)])).float() / 255
        known = (
            None if len(input) == 1 or labels is None else torch.from_numpy(labels[np.sort(rows)])
        )
        return CollapseWatch(input, pair_distance(real, known), self._value_range)

    def _is_exhausted(self) -> bool:
        return self.validation is not None and self.validation.exhausted(self.epoch)

    def _validate(self, validation: Validation) -> None:
        """Measure the networks as they are; the best so far are kept."""
        self._check_finite()
        found, sigma = self.processes.from_first(
            lambda: validation.measure(self.epoch, bn=self.config.bn)
        )
        validation.note(found, self.epoch)
        record = {"step": self.step, "epoch": self.epoch, "log_likelihood": found, "sigma": sigma}
        self._likelihoods.append(record)
        if self._written is not None and validation.is_best(self.epoch):
            save_checkpoint(self._written.best, self.state())

    def _end_epoch(self, callbacks: Sequence[Callback], complete: bool) -> None:
        for callback in callbacks:
            callback.on_epoch(self)
        epoch = (self.step - 1) // self.steps_per_epoch + 1
        every = self.config.grid_every
        assert every is not None  # _resolve() has set it
        if complete or epoch % every == 0:
            self._check_finite()
            if self._written is not None:
                self._write_products(self._written, epoch)
            self.processes.wait()

    def _write_products(self, run: RunFolder, epoch: int) -> None:
        """What people look at: the grid, the curves, the bare weights."""
        save_png(self.draw_grid(), run.grid(epoch))
        save_png(training_curves(self.records), run.curves)
        if self.watch is not None:
            save_png(watch_curves(self.records), run.watch)
        generator, discriminator = bare_state(self.generator), bare_state(self.discriminator)
        save_bare_state(run.generator, generator)
        save_bare_state(run.discriminator, discriminator)
        if self.ema is not None:
            save_bare_state(run.generator_ema, bare_state(self.ema.module))
        if self.config.epoch_weights:
            save_bare_state(run.path / f"netG_epoch_{epoch - 1}.pth", generator)
            save_bare_state(run.path / f"netD_epoch_{epoch - 1}.pth", discriminator)

    def draw_grid(self) -> Image.Image:
        """The images of the run's fixed latents, with batch norm as ``config.bn`` says; of conditional networks a row a
        class, each column of one latent vector."""
        mode, grid = self.config.bn, self._grid
        generator = self.drawn_generator
        if isinstance(generator, models.LatentNetwork):
            images = models.generate(
                generator, *grid.input, bn=mode, batch_size=self.config.batch_size
            )
        else:
            images = _generate_with_other(generator, grid.input, mode)
        return image_grid(images, columns=grid.columns, value_range=self._value_range)

    def _choose_grid(self, source: torch.Generator) -> _Grid:
        count = self.config.grid_images
        if not self.classes:
            return _Grid((self._latents_from(source, count),), None, None)
        shown = _spread(self.classes, min(self.classes, _MAX_ROWS))
        columns = max(_FEWEST_COLUMNS, count // len(shown))
        latents = self._latents_from(source, columns).repeat(len(shown), 1, 1, 1)
        labels = torch.from_numpy(shown).repeat_interleave(columns).to(self.device)
        return _Grid((latents, labels), columns, shown)

    def _draw_real_grid(self) -> Image.Image:
        """Real images from all over the data, which is often sorted by class; where classes count, a row of each."""
        grid, labels = self._grid, self.dataset.labels
        if grid.classes is None or labels is None:
            rows = _spread(len(self.dataset), min(len(self.dataset), self.config.grid_images))
            return image_grid(torch.from_numpy(self.dataset.images[rows]), value_range=(0, 255))
        assert grid.columns is not None
        images = np.zeros(
            (len(grid.classes), grid.columns, *self.dataset.images.shape[1:]), np.uint8
        )
        for row, label in zip(images, grid.classes, strict=True):  # black where a class has fewer
            members = np.flatnonzero(labels == label)
            chosen = members[_spread(len(members), min(len(members), grid.columns))]
            row[: len(chosen)] = self.dataset.images[chosen]
        pixels = torch.from_numpy(images.reshape(-1, *images.shape[2:]))
        return image_grid(pixels, columns=grid.columns, value_range=(0, 255))

    def _save_is_due(self) -> bool:
        steps, seconds = self.config.save_steps, self.config.save_seconds
        return (
            self.step % self.steps_per_epoch == 0
            or (steps is not None and self.step % steps == 0)
            or (seconds is not None and time.monotonic() - self._saved_at >= seconds)
        )

    def save(self) -> None:
        """Write the checkpoint of this moment; that before it stays as ``checkpoint.previous.pt``. In all processes.

        Raises:
            TrainingDiverged: a weight or a loss is not finite; nothing is written.
        """
        self._check_finite()
        _, *of_others = self.processes.gather(self._random_state())
        if self._written is not None:
            self._metrics.sync()
            self._likelihoods.sync()
            state = self.state() | ({"rng_of_others": of_others} if of_others else {})
            save_checkpoint(self._written.checkpoint, state, keep=PREVIOUS_NAME)
        self._saved_at = time.monotonic()

    def state(self) -> dict[str, Any]:
        """The contents of a checkpoint: all that the rest of the run depends on, but for other processes' dropout."""
        return {
            "preset": self.config.preset,
            "config": {
                "generator": config_of(self.generator),
                "discriminator": config_of(self.discriminator),
            },
            "networks": {
                "generator": type(self.generator).__name__,
                "discriminator": type(self.discriminator).__name__,
            },
            "bn": self.config.bn,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            **({"generator_ema": self.ema.module.state_dict()} if self.ema is not None else {}),
            "optimizer_g": portable_state(self.optimizer_g),
            "optimizer_d": portable_state(self.optimizer_d),
            "scalers": [u.state_dict() for u in (self._update.update_g, self._update.update_d)],
            "rng": {"latents": self._latents.get_state(), **self._random_state()},
            "data": {"name": self.dataset.name, "shape": list(self.dataset.images.shape)},
            "processes": self.processes.count,
            "step": self.step,
            "epoch": self.epoch,
            "metrics": self._window.state(),
            "watch": self.watch.state() if self.watch else None,
            "validation": self.validation.state() if self.validation else None,
            "train_config": self.config.to_dict(),
        }

    def _restore(self, checkpoint: Mapping[str, Any], file: Path) -> None:
        if type(checkpoint["step"]) is not int or checkpoint["step"] < 0:
            raise ValueError(f"its 'step' is {checkpoint['step']!r}")
        shape, shape_then = list(self.dataset.images.shape), checkpoint["data"]["shape"]
        if shape != shape_then:
            raise UserError(
                f"{file} was trained on other data: images {tuple(shape_then)} then, "
                f"{tuple(shape)} now"
            )
        load_state(self.generator, checkpoint["generator"], source=file)
        load_state(self.discriminator, checkpoint["discriminator"], source=file)
        load_optimizer(self.optimizer_g, checkpoint["optimizer_g"], source=file)
        load_optimizer(self.optimizer_d, checkpoint["optimizer_d"], source=file)
        rng, rank = checkpoint["rng"], self.processes.rank
        self._latents.set_state(rng["latents"])
        of_others = checkpoint.get("rng_of_others", [])
        has_own = len(of_others) == self.processes.count - 1
        self._set_random_state(of_others[rank - 1] if rank and has_own else rng)
        if self.ema is not None:
            load_state(self.ema.module, checkpoint["generator_ema"], source=file)
            self.ema.n_averaged.fill_(1)  # only whether it is the first counts
        updates = (self._update.update_g, self._update.update_d)
        for update, state in zip(updates, checkpoint.get("scalers", ({}, {})), strict=True):
            update.load_state_dict(state)
        self.step = self._update.number = checkpoint["step"]
        if not has_own:  # of another number of processes
            self._draw_apart(f"from step {self.step}")
        self._window.load(checkpoint["metrics"], self.step, self.device)
        if self.validation is not None:
            self.validation.load(checkpoint["validation"])
        if self.watch is not None and checkpoint.get("watch"):  # of a run that was watched
            self.watch.load(checkpoint["watch"])
        if self.config.out is not None:
            self.run = RunFolder(file.parent)

    # ------------------------------------------------------------------------------------- checks

    def _check_finite(self) -> None:
        """The losses first: they say more, but do not show what the last update did."""
        self._window.check()
        for role, network in (("generator", self.generator), ("discriminator", self.discriminator)):
            weights = [
                value for value in network.state_dict().values() if value.is_floating_point()
            ]
            if not torch.stack([value.isfinite().all() for value in weights]).all():
                raise TrainingDiverged(
                    f"a weight of the {role} is not finite after step {self.step}"
                )

    def _check_classes(self, generator: nn.Module, discriminator: nn.Module) -> None:
        """Networks of one's own must have a class for each label."""
        for role, network in (("generator", generator), ("discriminator", discriminator)):
            has = getattr(network, "classes", None)
            if has is not None and (has < self.classes or (has > 0 and not self.classes)):
                raise UserError(
                    f"Trainer(): '{role}' has {has or 'no'} classes, {self.dataset.name} has "
                    f"{self.classes} to train it on"
                )

    def _advice(self) -> str:
        if self.run is None or not self.run.checkpoint.exists():
            kept = "there is no checkpoint yet"
        else:
            kept = f"the last good checkpoint is {self.run.checkpoint}"
        return f"training diverged; {kept}; a lower --lr may help"

    def _what_stays(self) -> str:
        if self.run is None or not self.run.checkpoint.exists():
            return "there is no checkpoint yet"
        return f"continue from its last checkpoint with --resume {self.run.path}"

    def _count_steps(self, config: TrainConfig) -> int:
        images = config.batch_size * config.batches_per_step * self.processes.count
        steps = len(self.dataset) // images
        if steps == 0:
            raise UserError(
                f"{self.dataset.name} holds {len(self.dataset)} images, fewer than the {images} of one step"
                f"{' of all processes' if self.processes.count > 1 else ''}: lower 'batch_size'"
            )
        return steps

    def _resolve(self, config: TrainConfig, own_data: str | None) -> TrainConfig:
        """Fill in what depends on the data, so that a continued run does not decide it anew."""
        epochs = max(EPOCHS, math.ceil(STEPS_AT_LEAST / self.steps_per_epoch))
        epochs = config.epochs or min(epochs, config.last_epoch or epochs)
        data = own_data or config.data
        sized = models.PRESETS[config.preset].knows("ngf")
        width = DIGITS_WIDTH if data == "digits" and sized else None
        return dataclasses.replace(
            config,
            data=data,
            image_size=self.dataset.image_size,
            ngf=config.ngf or width,
            ndf=config.ndf or width,
            epochs=epochs,
            grid_every=config.grid_every or math.ceil(epochs / _MAX_GRIDS),
        )


def _find_newest(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that ``path`` means, and what it holds."""
    file = find_checkpoint(path)
    return file, _load_newest(file)


def _load_newest(file: Path) -> dict[str, Any]:
    """``file``, or the checkpoint before it where the disk has damaged the newest of a run."""
    previous = file.with_name(PREVIOUS_NAME)
    try:
        return load_checkpoint(file)
    except UserError as error:
        if file == previous or not previous.exists():
            raise
        warnings.warn(f"{error}; continuing from {previous}", stacklevel=3)
        return load_checkpoint(previous)


def _spread(length: int, count: int) -> np.ndarray:
    """``count`` of the numbers below ``length``, evenly, the first and the last among them."""
    return np.linspace(0, length - 1, count).astype(np.int64)


def _generate_with_other(generator: nn.Module, input: Sample, bn: str) -> Tensor:
    """Images of a network that is not ours, which has no promise to keep beyond being a module."""
    if bn == "population":
        raise UserError(
            "bn='population' needs a dcgan_fast.models.Generator; use 'running' or 'batch'"
        )
    modes = [(module, module.training) for module in generator.modules()]
    try:
        mode = batch_norm_mode(generator.eval(), "batch" if bn == "batch" else "running")
        with torch.no_grad(), mode:
            return generator(*input)
    finally:
        for module, training in modes:
            module.training = training
