"""The training loop on tags: what it keeps, what it writes, and how it continues bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..devices import pick_device
from ..errors import UserError
from ..files import write_text
from ..training.checkpoint import (
    PREVIOUS_NAME,
    load_checkpoint,
    load_optimizer,
    load_state,
    reading,
    save_checkpoint,
)
from ..training.log import MetricsFile, MetricsWindow, Record, TrainingDiverged
from ..training.run import RunFolder, find_checkpoint, new_run
from ..training.setup import derived_seed
from ..training.signals import StopRequest
from ..training.step import METRICS, Step
from .config import TagConfig
from .data import TagData, load_tag_data
from .features import load_features
from .nets import TagGenerator, build
from .prediction import LENGTH, NEAREST, PRESET, TOP, FeatureScaling, Tagger
from .scoring import Score, commonest, neighbours, score
from .words import WordVectors

__all__ = ["TagProgress", "TagTrainer"]

NEIGHBOURS = 10  # of the baseline


# --------------------------------------------------------------------------------------- the loop


class _Beside(nn.Module):
    """A network with the minibatch's features beside its argument, to be trained as any other."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.features = torch.empty(0)

    def forward(self, argument: Tensor) -> Tensor:
        times = len(argument) // max(
            1, len(self.features)
        )  # two, where D sees real and fake at once
        return self.network(argument, self.features.repeat(times, 1))


class TagRun(RunFolder):
    """``runs/<name>/`` of a run on tags."""

    @property
    def features(self) -> Path:
        return self.path / "features.npy"

    @property
    def left_out(self) -> Path:
        return self.path / "left_out.json"

    @property
    def figures(self) -> Path:
        return self.path / "figures.json"

    @property
    def predictions(self) -> Path:
        return self.path / "validation.json"

    def folders(self) -> tuple[Path, ...]:
        return (self.path,)


Listener = Callable[["TagTrainer"], object]


class TagTrainer:
    """Trains a generator of word vectors against a discriminator; ``TagTrainer(TagConfig(...)).fit()``.

    A minibatch is ``batch_size`` pairs of an image and one of its tags, an image coming once for
    each tag in a pass over the set, as the paper had it. Word vectors are trained on at one length,
    features as :class:`~dcgan_fast.tags.prediction.FeatureScaling` says. Every ``score_every``
    updates the validation images are scored; the generator of the best look is kept beside the last.

    Args:
        config: every setting.
        data: in place of what ``config`` names.

    Attributes:
        generator, discriminator, optimizer_g, optimizer_d, data, device: what is trained, where.
        step: updates done. ``records``: what ``metrics.jsonl`` holds.
        scores: of every look, dicts of ``step`` and a :class:`Score`'s fields. ``best``: the best.
        run: the run's folder, None before :meth:`fit` and where ``config.out`` is None.

    Raises:
        UserError: settings or data that do not go together.
    """

    def __init__(self, config: TagConfig, *, data: TagData | None = None) -> None:
        self.device = pick_device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config = dataclasses.replace(
            config, momentum_updates=config.momentum_updates or config.updates
        )
        self.data = data = load_tag_data(config) if data is None else data
        if not data.training:
            raise UserError("TagTrainer(): 'data' must hold at least one training image")
        torch.manual_seed(config.seed)
        self.generator, self.discriminator = build(
            feature_width=data.features.width, word_width=data.words.width, **_widths(config)
        )
        self._g, self._d = (
            _Beside(network.to(self.device)).train()
            for network in (self.generator, self.discriminator)
        )
        self.optimizer_g, self.optimizer_d = (_optimizer(n, config) for n in (self._g, self._d))
        self._update = Step(self._g, self._d, self.optimizer_g, self.optimizer_d, joint_pass=True)

        known = torch.from_numpy(data.features.values)
        chosen = known[data.training.rows]
        self.scaling = FeatureScaling.of(chosen)
        self._features = self.scaling(chosen)
        self._targets = targets_of(data.words)
        self._pairs = torch.tensor(
            [(row, word) for row, words in enumerate(data.training.words) for word in words]
        )
        self.batch_size = min(config.batch_size, len(self._pairs))
        self.updates_per_epoch = len(self._pairs) // self.batch_size

        self.step = 0
        self.run: TagRun | None = None
        self.scores: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self._fingerprint = data.fingerprint()
        self._noise = torch.Generator().manual_seed(derived_seed(config.seed, "noise"))
        self._window = MetricsWindow(METRICS, config.log_every)
        self._metrics = MetricsFile(None)

    @classmethod
    def resume(
        cls, path: str | os.PathLike[str], *, data: TagData | None = None, **changes: Any
    ) -> TagTrainer:
        """A trainer that continues, bit for bit, from a checkpoint or the newest of a run.

        ``changes`` are settings that may differ from the run's: ``updates`` (raised), and what has
        no part in the numbers. Features are those that the run keeps; tags and word vectors are read
        again.

        Raises:
            UserError: no checkpoint of such a run, a setting that may not change, or other data.
        """
        file = find_checkpoint(path)
        checkpoint = _load_newest(file)
        if checkpoint.get("preset") != PRESET or "train_config" not in checkpoint:
            raise UserError(f"{file} is not a checkpoint of dcgan-fast tags train")
        with reading(file):
            config = TagConfig.from_dict(checkpoint["train_config"])
        config = config.changed(changes)
        kept = TagRun(file.parent).features
        if data is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is left out was said when the run began
                data = load_tag_data(config, load_features(kept) if kept.exists() else None)
        trainer = cls(config, data=data)
        with reading(file):
            trainer._restore(checkpoint, file)
        return trainer

    @property
    def records(self) -> Sequence[Record]:
        return self._metrics.records

    def fit(self, listeners: Sequence[Listener] = ()) -> Path | None:
        """Train until the run is complete; returns its folder (None where ``config.out`` is None).

        ``listeners`` are called with the trainer after every update. Ctrl-C and SIGTERM end the run
        after an update, with a checkpoint, and then raise KeyboardInterrupt or SystemExit(143).

        Raises:
            TrainingDiverged: a loss or a weight is NaN or infinite; the last good checkpoint stays.
            UserError: the output cannot be written.
        """
        if self.step >= self.config.updates:
            return self.run.path if self.run else None
        with StopRequest() as stop:
            self._open_run()
            try:
                self._loop(listeners, stop)
            except TrainingDiverged as error:
                raise TrainingDiverged(
                    f"{error}: training diverged; a lower --lr may help"
                ) from None
        return self.run.path if self.run else None

    def _loop(self, listeners: Sequence[Listener], stop: StopRequest) -> None:
        saved_at = recorded_at = time.monotonic()
        recorded_step = self.step
        for features, vectors in self._minibatches():
            self._g.features = self._d.features = features
            self._schedule()
            row = self._update(vectors, self._draw)
            self.step += 1
            complete = self.step == self.config.updates
            record = self._window.add(self.step, row)
            if record is not None:
                now = time.monotonic()
                speed = (self.step - recorded_step) / (now - recorded_at)
                recorded_at, recorded_step = now, self.step
                self._metrics.append(
                    {"step": self.step, **record, "updates_per_s": round(speed, 2)}
                )
            look = complete or self.step % self.config.score_every == 0
            if look:
                self._window.check()
                self._look()
            for listener in listeners:
                listener(self)
            seconds = self.config.save_seconds
            due = seconds is not None and time.monotonic() - saved_at >= seconds
            if look or due or stop.received is not None:
                self.save()
                saved_at = time.monotonic()
                stop.raise_if_received()  # a signal that came since the line above was read waits for the next step
            if complete:
                self._write_results()
                return

    def _minibatches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and target vectors of the pairs, from where the run stands on, for ever."""
        while True:
            epoch, first = divmod(self.step, self.updates_per_epoch)
            seed = derived_seed(self.config.seed, f"order {epoch}")
            order = torch.randperm(len(self._pairs), generator=torch.Generator().manual_seed(seed))
            for place in range(first, self.updates_per_epoch):
                start = place * self.batch_size
                rows, words = self._pairs[order[start : start + self.batch_size]].t()
                yield self._features[rows].to(self.device), self._targets[words].to(self.device)

    def _draw(self) -> Tensor:
        return self.generator.sample_latent(self.batch_size, generator=self._noise)

    def _schedule(self) -> None:
        """The rate falls by a factor an update, momentum grows by equal steps (the paper's)."""
        config = self.config
        assert config.momentum_updates and config.lr  # set where they were left out
        rate = max(config.lr * config.lr_decay**-self.step, config.lr_min)
        grown = min(1.0, self.step / config.momentum_updates)
        momentum = config.momentum + grown * (config.momentum_final - config.momentum)
        for optimizer in (self.optimizer_g, self.optimizer_d):
            for group in optimizer.param_groups:
                group["lr"] = rate
                if "momentum" in group:
                    group["momentum"] = momentum

    # ---------------------------------------------------------------------------------- its scores

    def tagger(self, *, best: bool = True) -> Tagger:
        """What predicts: with the generator of the best look, or with the last one."""
        generator = TagGenerator(**self.generator.config)
        kept = self.best["generator"] if best and self.best else self.generator.state_dict()
        generator.load_state_dict(kept)
        return Tagger(generator.to(self.device), self.data.words, self.scaling)

    def validate(self, tagger: Tagger) -> tuple[Score, list[list[int]]]:
        """The score of a tagger on the validation images, and its words for each."""
        images = self.data.validation
        lists, _ = tagger.predict(
            self.data.features.values[images.rows],
            nearest=min(NEAREST, len(self.data.words)),
            seed=derived_seed(self.config.seed, "validation noise"),
        )
        return score(lists, images.words), lists

    def _look(self) -> None:
        self._check_finite()
        if not self.data.validation:
            return
        found, _ = self.validate(self.tagger(best=False))
        self.scores.append({"step": self.step, **found.to_dict()})
        if self.best is None or found.precision > self.best["precision"]:
            state = {k: v.detach().clone().cpu() for k, v in self.generator.state_dict().items()}
            self.best = {"step": self.step, "precision": found.precision, "generator": state}

    def baselines(self) -> dict[str, Score]:
        """Scores on the validation images without a network: what a run has to be better than."""
        training, images = self.data.training, self.data.validation
        values = torch.from_numpy(self.data.features.values[images.rows])
        k = min(NEIGHBOURS, len(training))
        near = neighbours(self.scaling(values), self._features, training.words, k=k, top=TOP)
        return {
            "commonest tags": score([commonest(training.words, TOP)] * len(images), images.words),
            f"{k} nearest neighbours": score(near, images.words),
        }

    # -------------------------------------------------------------------------------- what it writes

    def _open_run(self) -> None:
        if self.config.out is None:
            return
        if self.run is None:
            run = new_run(self.config.out, self.config.name, "tags", TagRun)
            assert isinstance(run, TagRun)
            self.run = run
            self.data.features.save(run.features)
            write_text(run.left_out, _json(self.data.left_out))
        else:
            self.run.prepare()
        self._metrics.path = self.run.metrics
        self._metrics.rewind(self.step, self.config.log_every)
        self.config = dataclasses.replace(
            self.config, out=str(self.run.path.parent), name=self.run.path.name
        )
        write_text(self.run.config, self.config.to_json())

    def _write_results(self) -> None:
        if self.run is None:
            return
        write_text(self.run.figures, _json(self.figures()))
        if self.data.validation:
            _, lists = self.validate(self.tagger())
            names = self.data.validation.names
            words = self.data.words.words
            write_text(
                self.run.predictions,
                _json({n: [words[w] for w in own] for n, own in zip(names, lists, strict=True)}),
            )

    def figures(self) -> dict[str, Any]:
        """What ``figures.json`` holds: sizes, scores of every look, and the baselines'."""
        data = self.data
        found: dict[str, Any] = {
            "training_images": len(data.training),
            "validation_images": len(data.validation),
            "pairs": data.training.pairs,
            "words": len(data.words),
            "word_width": data.words.width,
            "feature_width": data.features.width,
            "left_out": {kind: len(things) for kind, things in data.left_out.items()},
            "updates": self.step,
        }
        if data.validation:
            found["scores"] = self.scores
            found["best_step"] = self.best["step"] if self.best else None
            found["baselines"] = {name: s.to_dict() for name, s in self.baselines().items()}
        return found

    def save(self) -> None:
        """Write the checkpoint of this moment; that before it stays as ``checkpoint.previous.pt``.

        Raises:
            TrainingDiverged: a weight or a loss is not finite; nothing is written.
        """
        self._window.check()
        self._check_finite()
        if self.run is not None:
            self._metrics.sync()
            save_checkpoint(self.run.checkpoint, self.state(), keep=PREVIOUS_NAME)

    def state(self) -> dict[str, Any]:
        """The contents of a checkpoint: all that predicting and the rest of the run depend on."""
        cuda = self.device.type == "cuda"
        words = self.data.words
        return {
            "preset": PRESET,
            "config": {
                "generator": self.generator.config,
                "discriminator": self.discriminator.config,
            },
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "best": self.best,
            "words": {"words": words.words, "vectors": words.vectors},
            "scaling": {"mean": self.scaling.mean, "deviation": self.scaling.deviation},
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "rng": {
                "noise": self._noise.get_state(),
                "torch": torch.get_rng_state(),  # dropout's
                "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            },
            "data": {"fingerprint": self._fingerprint, "extractor": self.data.extractor},
            "step": self.step,
            "scores": self.scores,
            "metrics": self._window.state(),
            "train_config": self.config.to_dict(),
        }

    def _restore(self, checkpoint: Mapping[str, Any], file: Path) -> None:
        if checkpoint["data"]["fingerprint"] != self._fingerprint:
            raise UserError(f"{file} was trained on other data: tags, features or words changed")
        load_state(self.generator, checkpoint["generator"], source=file)
        load_state(self.discriminator, checkpoint["discriminator"], source=file)
        load_optimizer(self.optimizer_g, checkpoint["optimizer_g"], source=file)
        load_optimizer(self.optimizer_d, checkpoint["optimizer_d"], source=file)
        rng = checkpoint["rng"]
        self._noise.set_state(rng["noise"])
        torch.set_rng_state(rng["torch"])
        if self.device.type == "cuda" and rng["cuda"] is not None:
            torch.cuda.set_rng_state(rng["cuda"], self.device)
        self.data.extractor = checkpoint["data"]["extractor"]  # its file may be gone by now
        self.step = checkpoint["step"]
        self.scores = list(checkpoint["scores"])
        self.best = checkpoint["best"]
        self._window.load(checkpoint["metrics"], self.step, self.device)
        if self.config.out is not None:
            self.run = TagRun(file.parent)

    def _check_finite(self) -> None:
        for role, network in (("generator", self.generator), ("discriminator", self.discriminator)):
            weights = [weight.isfinite().all() for weight in network.parameters()]
            if not torch.stack(weights).all():
                raise TrainingDiverged(
                    f"a weight of the {role} is not finite after update {self.step}"
                )


class TagProgress:
    """A progress bar on standard error, if that is a terminal: a listener of :meth:`TagTrainer.fit`."""

    def __init__(self, trainer: TagTrainer) -> None:
        self._bar = tqdm(
            total=trainer.config.updates,
            initial=trainer.step,
            unit=" updates",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def __call__(self, trainer: TagTrainer) -> None:
        if trainer.records and trainer.step % trainer.config.log_every == 0:
            record = trainer.records[-1]
            text = f"loss D {record['loss_d']:.3f} G {record['loss_g']:.3f}"
            if trainer.scores:
                text += f", precision {trainer.scores[-1]['precision']:.3f}"
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


def targets_of(words: WordVectors) -> Tensor:
    """What the generator learns to make: the vectors at length :data:`LENGTH`."""
    return nn.functional.normalize(words.vectors) * LENGTH


def _widths(config: TagConfig) -> dict[str, Any]:
    names = (
        "nz",
        "noise_units",
        "g_feature_units",
        "g_joint_units",
        "word_units",
        "d_feature_units",
        "d_joint_units",
        "pieces",
        "dropout",
    )
    return {name: getattr(config, name) for name in names}


def _optimizer(network: nn.Module, config: TagConfig) -> torch.optim.Optimizer:
    assert config.lr is not None  # TagConfig has set it
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=config.lr, betas=(0.5, 0.999))
    return torch.optim.SGD(network.parameters(), lr=config.lr, momentum=config.momentum)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


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
