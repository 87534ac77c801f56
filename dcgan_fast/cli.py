"""The command line: ``dcgan-fast train | sample | parzen | features | dedup | tags | convert | info | bench``, and
the paper's other experiments (:mod:`.experiments`).

Each command turns its arguments into one call of the Python API. What the person at the keyboard
can mend (:class:`~dcgan_fast.errors.UserError`, a file that cannot be opened, memory that ran out)
ends in one line and exit status 2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch
from torch import nn
from tqdm import tqdm

from . import __version__, models
from .bench import load_run, report_markdown, write_report
from .conditional import CONDITIONINGS
from .convert import FORMATS, convert
from .data import Dataset
from .data.find import NAMES
from .data.source import SPLITS
from .devices import pick_device
from .errors import UserError
from .experiments import add_commands
from .files import make_folder, write_text
from .inspection import inspect
from .latent import latents_of
from .training import (
    Callback,
    Profile,
    ProgressBar,
    TensorBoard,
    TrainConfig,
    Trainer,
    distributed,
    load_networks,
    read_settings,
)
from .training.config import DIGITS_WIDTH, EPOCHS, LOSS_OUTPUTS, OPTIMIZERS, STEPS_AT_LEAST
from .training.losses import OBJECTIVES
from .training.penalties import PENALTIES
from .training.run import find_launched
from .training.step_profile import STEPS as PROFILED_STEPS
from .training.tensorboard import log_folder
from .visualize import image_grid, save_png, to_image

_FIGURES = Path("benchmarks/results")  # where `make bench` puts them
_IMAGES, _IMAGES_OF_A_CLASS = 64, 10  # that `sample` draws where nobody says how many
_MOST_IMAGES = 1_000_000  # of one call of `sample`: their latents are held in memory at once


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (the process's own by default); returns the exit status."""
    debug = False
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        try:
            try:
                arguments = vars(_parser().parse_args(argv))
                command: Callable[..., int] = arguments.pop("command")
                debug = arguments.pop("debug", False)
                return command(**arguments)
            finally:
                sys.stdout.flush()  # here, where it may fail, and not as Python ends
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:  # whoever reads us, `head` say, has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141  # as a shell reports SIGPIPE
        except Exception as error:
            message = _user_message(error)
            if debug or message is None:
                raise
            if not isinstance(error, distributed.ToldByFirst):
                print(f"dcgan-fast: error: {message}", file=sys.stderr)
            return 2


def _user_message(error: Exception) -> str | None:
    """One line for an error that the user can mend, None for one that is ours."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "out of memory: lower --batch-size, --image-size or the networks' widths"
    return None


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """On a line of its own, also where a progress bar is drawn; of several processes the first speaks."""
    if distributed.rank():
        return
    tqdm.write(f"dcgan-fast: warning: {' '.join(str(message).split())}", file=sys.stderr)


# -------------------------------------------------------------------------------------- commands


def _train(
    resume: str | None = None,
    config: str | None = None,
    print_config: bool = False,
    tensorboard: bool | None = None,
    profile: int | None = None,
    **settings: Any,
) -> int:
    _translate_examples_flags(settings)
    log = TensorBoard() if tensorboard else None  # which says what is missing before data are read
    if config is not None:
        if resume is not None:
            raise UserError("--config is for a new run, and --resume continues one with its own")
        settings = read_settings(config) | settings
    processes = distributed.join()
    begun = processes.from_first(lambda: _begun(settings)) if distributed.restarts() else None
    if begun is not None and resume is None:
        path, has_checkpoint = begun
        if has_checkpoint:
            resume, settings = str(path), {}
        else:
            settings["name"] = path.name
    if resume is None:
        if settings.get("conditional"):
            settings.setdefault("preset", "cgan-dcgan")
        trainer = Trainer(TrainConfig(**settings))
    else:
        # Without a path, --out and --name say where the run is; they cannot change it.
        file = resume or Path(settings.pop("out", "runs"), settings.pop("name", None) or "")
        trainer = Trainer.resume(file, **settings)

    def say(text: str, file: TextIO | None = None) -> None:
        if processes.is_first:
            print(text, file=file)

    if print_config:
        say(trainer.config.to_json().rstrip())
        return 0
    if tensorboard is None and trainer.run is not None and log_folder(trainer).exists():
        log = TensorBoard()  # the run had one
    watched = None if profile is None else Profile(profile)
    callbacks: list[Callback] = [each for each in (ProgressBar(), log, watched) if each is not None]
    say(_summary(trainer))
    if trainer.step >= trainer.last_step:
        say(f"complete at step {trainer.step} already; more --epochs would continue it")
        return 0
    try:
        folder = trainer.fit(callbacks if processes.is_first else [])
    except (KeyboardInterrupt, SystemExit) as stop:
        folder = trainer.run.path if trainer.run else None
        say(
            f"stopped after step {trainer.step}; continue with: dcgan-fast train --resume {folder}",
            sys.stderr,
        )
        return 130 if isinstance(stop, KeyboardInterrupt) else 128 + signal.SIGTERM
    if watched is not None and watched.result is not None:
        say(f"{watched.table}: where the time of a step goes")
    say(f"{folder}: {trainer.step} steps; sample it with: dcgan-fast sample {folder}")
    distributed.leave()
    return 0


def _begun(settings: Mapping[str, Any]) -> tuple[Path, bool] | None:
    """The folder of this command's run, if ``torchrun`` has started it before, and whether it has a checkpoint."""
    out, launch = settings.get("out", TrainConfig.out), distributed.launch()
    run = None if out is None or launch is None else find_launched(out, launch)
    return None if run is None else (run.path, run.checkpoint.exists())


def _summary(trainer: Trainer) -> str:
    count, *shape = trainer.dataset.images.shape
    removed = (
        f" ({trainer.dataset.removed:,} near-duplicates removed)" if trainer.config.dedup else ""
    )
    classes = f" of {trainer.classes} classes" if trainer.classes else ""
    count_of = trainer.processes.count
    where = str(trainer.device)
    if count_of > 1:
        where = f"{trainer.device.type}, {count_of} processes of {trainer.config.batch_size} images"
    return (
        f"{trainer.dataset.name}: {count:,} images of {'x'.join(map(str, shape))}{removed}{classes}; "
        f"{trainer.config.preset}: {_weights(trainer.generator):,} + "
        f"{_weights(trainer.discriminator):,} weights; "
        f"{trainer.epochs} epochs of {trainer.steps_per_epoch} steps on {where}"
    )


# pytorch/examples' --dataset: those that are a name here too, and those that are their --dataroot.
_EXAMPLES_FOLDERS = ("folder", "imagenet", "lfw", "lsun")


def _translate_examples_flags(settings: dict[str, Any]) -> None:
    """Put what pytorch/examples' flags mean in the place of those that have no twin here."""
    dataset, root = settings.pop("dataset", None), settings.pop("dataroot", None)
    if dataset is not None or root is not None:
        if "data" in settings:
            raise UserError("give the data either as DATA or with --dataset and --dataroot")
        if dataset is not None and dataset not in (*NAMES, *_EXAMPLES_FOLDERS):
            known = ", ".join((*NAMES, *_EXAMPLES_FOLDERS))
            raise UserError(f"--dataset must be one of {known}, got '{dataset}'")
        if dataset in _EXAMPLES_FOLDERS and root is None:
            raise UserError(f"--dataset {dataset} needs --dataroot PATH")
        settings["data"] = dataset if dataset in ("fake", "digits") or root is None else root
    if "outf" in settings:
        folder = Path(settings.pop("outf")).absolute()
        settings |= {"out": str(folder.parent), "name": folder.name, "epoch_weights": True}
    if settings.pop("dry_run", False):
        settings["max_steps"] = 1
    settings |= settings.pop("save_every", {})
    settings.pop("workers", None)


def _sample(
    checkpoint: str,
    n: int | None,
    seeds: list[int] | None,
    labels: list[int] | None,
    images: bool,
    bn: str | None,
    dropout: bool | None,
    out: str | None,
    columns: int | None,
    scale: int | None,
    device: str,
) -> int:
    generator, _, content = load_networks(checkpoint)
    if generator is None:
        raise UserError(f"{checkpoint} holds no generator")
    assert isinstance(generator, models.LatentNetwork)
    generator.to(pick_device(device))
    classes = _choose_classes(generator, labels)
    chosen = _choose_seeds(n, seeds, _IMAGES_OF_A_CLASS if len(classes) > 1 else _IMAGES)
    if len(chosen) * max(len(classes), 1) > _MOST_IMAGES:
        raise UserError(
            f"at most {_MOST_IMAGES:,} images, got {len(chosen)} of {len(classes)} classes"
        )
    latents = latents_of(generator, chosen)
    names = [f"seed_{seed:06d}" for seed in chosen]
    of_class = None
    if classes:
        names = [f"class_{label:03d}_{name}" for label in classes for name in names]
        latents = latents.repeat(len(classes), 1)
        of_class = torch.tensor(classes).repeat_interleave(len(chosen))
    if len(classes) > 1:
        columns = columns or len(chosen)  # a row a class
    mode = bn or content.get("bn", "running")
    pictures = models.generate(generator, latents, of_class, bn=mode, dropout=dropout)
    value_range = generator.output_range
    if images:
        folder = make_folder(out or "samples")
        for name, picture in zip(names, pictures, strict=True):
            save_png(to_image(picture, value_range=value_range), folder / f"{name}.png")
        print(f"{folder}: {len(names)} images")
    else:
        path = Path(out or "samples.png")
        grid = image_grid(pictures, columns=columns, scale=scale, value_range=value_range)
        save_png(grid, path)
        print(f"{path}: a grid of {len(names)} images")
    return 0


def _choose_classes(generator: models.LatentNetwork, labels: list[int] | None) -> list[int]:
    """The classes to draw: the given ones, all that a conditional generator has, none of another."""
    if labels is None:
        return list(range(generator.classes))
    if not generator.classes:
        raise UserError(
            "--class is for a generator that was trained with labels (train --conditional)"
        )
    wrong = [label for label in labels if label >= generator.classes]
    if wrong:
        raise UserError(
            f"--class must be from 0 to {generator.classes - 1}, the classes of the generator, got {wrong[0]}"
        )
    return labels


def _choose_seeds(n: int | None, seeds: list[int] | None, default: int) -> list[int]:
    """``n`` seeds: the given ones first, then those that follow the last."""
    chosen = seeds or list(range(default if n is None else n))
    if n is None:
        return chosen
    return (chosen + [chosen[-1] + step for step in range(1, n - len(chosen) + 1)])[:n]


def _parzen(
    checkpoint: str,
    data: str,
    split: str,
    sigma: float | None,
    samples: int,
    bn: str | None,
    dropout: bool | None,
    seed: int,
    device: str,
) -> int:
    from .data import prepare
    from .metrics.likelihood import generator_log_likelihood, held_out, pixels

    generator, _, content = load_networks(checkpoint)
    if generator is None:
        raise UserError(f"{checkpoint} holds no generator")
    assert isinstance(generator, models.LatentNetwork)
    generator.to(pick_device(device))
    bars = sys.stderr.isatty()

    def images_of(part: str) -> Dataset:
        size, channels = generator.config["image_size"], generator.config["nc"]
        return prepare(data, image_size=size, channels=channels, split=part, progress=bars)

    dataset = images_of(split)
    tested, validation, count = dataset.images, None, 0
    if sigma is None:
        training = dataset if split == "train" else images_of("train")
        count = held_out(training)
        validation = pixels(training.images[-count:])
        if split != "test":  # then they are the last of these too
            tested = tested[:-count]
    found = generator_log_likelihood(
        generator,
        pixels(tested),
        validation=validation,
        sigma=sigma,
        samples=samples,
        bn=bn or content.get("bn", "running"),
        seed=seed,
        dropout=dropout,
        progress=bars,
    )
    for tried, mean in found.searched.items():
        print(f"sigma {tried:.3f}: {mean:.2f} nats, of {count:,} validation images")
    mean, error, sigma = found.estimate
    print(
        f"log-likelihood {mean:.2f} ± {error:.2f} nats: {found.images:,} images of {dataset.name} "
        f"({split}) under {found.samples:,} samples of {checkpoint}, sigma {sigma:.3f}"
    )
    return 0


def _features(
    checkpoint: str,
    data: str,
    classify: bool,
    out: str,
    dtype: str,
    layers: list[int] | None,
    device: str,
    baselines: list[str],
    labels: int | None,
    resamples: int,
    train_images: int,
    test_images: int,
    seed: int,
) -> int:
    from .features.command import classify_images, write_features

    bars = sys.stderr.isatty()
    chosen = None if layers is None else tuple(layers)
    if not classify:
        features, path = write_features(
            checkpoint, data, out, layers=chosen, dtype=dtype, device=device, progress=bars
        )
        print(f"{path}: {features.shape[0]:,} images of {features.shape[1]:,} features, {dtype}")
        return 0
    found, files = classify_images(
        checkpoint,
        data,
        out,
        layers=chosen,
        dtype=dtype,
        baselines=baselines,
        labels=labels,
        resamples=resamples,
        train_images=train_images,
        test_images=test_images,
        seed=seed,
        progress=bars,
    )
    print(
        f"{found.classes} classes, {found.labels:,} labelled images"
        f"{f' ({found.resamples // 2} draws)' if labels else ''}, {found.test_images:,} to test on"
    )
    _print_table(
        {
            row.name: f"{row.accuracy:.2%} ± {row.interval:.2%}"
            f"{f', {row.features:,} features, C {row.C:g}' if row.C else ''}"
            f"{f' (not converged: within {row.gap:.1%})' if row.gap > 2e-3 else ''}"
            for row in found.rows
        }
    )
    print("\n".join(map(str, files)))
    return 0


def _dedup(
    images: str,
    out: str,
    hasher: str | None,
    split: str,
    train_images: int | None,
    device: str,
    **settings: Any,
) -> int:
    from .dedup.hasher import SemanticHasher  # scikit-learn takes most of a second to import
    from .dedup.images import TRAIN_IMAGES, deduplicate

    bars = sys.stderr.isatty()
    pick_device(device)
    if hasher is None:
        chosen = SemanticHasher(device=device, progress=bars, **settings)
    else:
        flags = {"code_noise": "--code-noise", "epochs": "--epochs", "random_state": "--seed"}
        asked = [flags[name] for name in settings]
        asked += ["--train-images"] if train_images is not None else []
        if asked:
            raise UserError(f"{asked[0]} is for training, and --hasher {hasher} is trained already")
        chosen = SemanticHasher.load(hasher, device=device)
    try:
        found = deduplicate(
            images,
            out,
            hasher=chosen,
            trained=hasher is not None,
            split=split,
            train_images=TRAIN_IMAGES if train_images is None else train_images,
            progress=bars,
        )
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was", file=sys.stderr)
        return 130
    print(
        f"{found.images:,} images: {found.removed:,} near-duplicates removed "
        f"({found.removed / found.images:.1%}), in {found.groups:,} groups; "
        f"{found.hashed / max(found.seconds, 1e-9):,.0f} images/s"
    )
    for path, what in (
        (found.kept_file, f"{found.images - found.removed:,} images to keep: name, group"),
        (found.removed_file, "those removed: name, group, name of the one that is kept"),
        (found.unreadable_file, f"{len(found.unreadable):,} that could not be read"),
        (found.sheet, "the largest groups: look whether they are near-duplicates"),
        (found.hasher_file, "the hasher, for --hasher"),
    ):
        if path is not None:
            print(f"{os.path.relpath(path)}: {what}")
    return 0


def _tags_train(resume: str | None = None, **settings: Any) -> int:
    from .tags import TagConfig, TagTrainer
    from .tags.training import TagProgress

    if resume is None:
        trainer = TagTrainer(TagConfig(**settings))
    else:
        path = resume or Path(settings.pop("out", "runs"), settings.pop("name", None) or "")
        trainer = TagTrainer.resume(path, **settings)
    data, last = trainer.data, trainer.config.updates
    print(
        f"{len(data.training):,} images of {data.features.width} features to train on, "
        f"{data.training.pairs:,} tags; {len(data.validation):,} images to score; "
        f"{len(data.words):,} words of {data.words.width}; {_weights(trainer.generator):,} + "
        f"{_weights(trainer.discriminator):,} weights; {last} updates on {trainer.device}"
    )
    if trainer.step >= last:
        print(f"complete at update {trainer.step} already; more --updates would continue it")
        return 0
    bar = TagProgress(trainer)
    try:
        folder = trainer.fit([bar])
    except (KeyboardInterrupt, SystemExit) as stop:
        print(
            f"stopped after update {trainer.step}; continue with: dcgan-fast tags train --resume "
            f"{trainer.run.path if trainer.run else None}",
            file=sys.stderr,
        )
        return 130 if isinstance(stop, KeyboardInterrupt) else 128 + signal.SIGTERM
    finally:
        bar.close()
    if data.validation:
        best = max(trainer.scores, key=lambda found: found["precision"])
        rows = {f"update {best['step']}, the best look": best}
        rows |= {name: found.to_dict() for name, found in trainer.baselines().items()}
        _print_table({name: _score_in_words(found) for name, found in rows.items()})
    print(
        f"{folder}: {trainer.step} updates; tag images with: dcgan-fast tags predict {folder} IMAGES"
    )
    return 0


def _score_in_words(found: Mapping[str, float]) -> str:
    return (
        f"{found['precision']:.1%} of the words right, {found['recall']:.1%} of the tags found, "
        f"{found['hit_rate']:.1%} of images with a right word"
    )


def _tags_predict(
    checkpoint: str,
    images: str,
    features: str | None,
    feature_names: str | None,
    truth: str | None,
    out: str,
    figures: str | None,
    last: bool,
    device: str,
    **settings: Any,
) -> int:
    from .tags.predict_images import predict_images

    chosen = pick_device(device)
    found = predict_images(
        checkpoint,
        images,
        features=features,
        feature_names=feature_names,
        truth=truth,
        best=not last,
        device=chosen,
        progress=sys.stderr.isatty(),
        **settings,
    )
    write_text(out, found.to_tsv() if out.lower().endswith(".tsv") else found.to_json())
    if figures is not None:
        write_text(figures, json.dumps(found.figures(), indent=2) + "\n")
    print(f"{out}: {len(found.words):,} images with their words, commonest first")
    if found.score is not None:
        print(f"{found.score.images:,} images with tags: {_score_in_words(found.score.to_dict())}")
    return 0


def _convert(source: str, out: str, source_format: str | None, target_format: str | None) -> int:
    done = convert(source, out, source_format=source_format, target_format=target_format)
    print(f"{done.source_format} -> {done.target_format}: {', '.join(map(str, done.files))}")
    return 0


def _info(
    preset: str | None,
    preset_flag: str | None,
    image_size: int | None,
    batch_size: int | None,
    channels: int | None,
    amp: str | None,
    threads: int | None,
    seconds: float,
    as_json: bool,
) -> int:
    if preset is not None and preset_flag is not None:
        raise UserError("give the preset either as PRESET or with --preset")
    preset = preset_flag if preset is None else preset
    given = {"image_size": image_size, "batch_size": batch_size, "channels": channels, "amp": amp}
    asked = {name: value for name, value in given.items() if value is not None}
    if asked and (preset is None or preset in models.WORD_PRESETS):
        flag = "--" + next(iter(asked)).replace("_", "-")
        what = "the networks of a PRESET" if preset is None else "networks that make images"
        raise UserError(f"{flag} is for {what}")
    asked.pop("channels", None)
    if threads is not None:
        asked["threads"] = threads
    if preset in models.WORD_PRESETS:
        for network in models.build(preset):
            print(f"{type(network).__name__}, {_weights(network):,} weights\n{network}\n")
        return 0
    found = inspect(preset, asked, channels=channels, seconds=seconds)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return 0
    hidden = () if preset is None else ("ops",)  # the layers' own lines say more
    _print_table({name: value for name, value in found.build.items() if name not in hidden})
    _print_table({"machine": found.machine})
    if found.ceilings:
        units = {name: "GB/s" if name == "copy" else "GFLOP/s" for name in found.ceilings}
        rates = {name: f"{rate:,.1f} {units[name]}" for name, rate in found.ceilings.items()}
        _print_table({"ceilings, measured now": rates})
    if found.forecast is None or preset is None:
        print("\npresets (dcgan-fast info PRESET says how its networks run):")
        _print_table(
            {name: preset.summary for name, preset in models.PRESETS.items()} | models.WORD_PRESETS
        )
        return 0
    print()
    for name, count in found.weights.items():
        print(f"{name}, {count:,} weights")
    print(found.forecast.to_text())
    _print_table(models.training_defaults(preset))
    return 0


def _bench(files: list[str], report: str | None) -> int:
    runs = [load_run(path) for path in files or sorted(map(str, _FIGURES.glob("*.json")))]
    if not runs:
        raise UserError(f"no figures in {_FIGURES}/ (`make bench` makes some)")
    if report is None:
        print(report_markdown(runs), end="")
    else:
        for path in write_report(runs, report):
            print(path)
    return 0


def _weights(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def _print_table(rows: dict[str, Any], indent: str = "  ") -> None:
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _print_table(value, indent + "  ")
        else:
            print(f"{indent}{name:<{width}}  {value}")


# ------------------------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    """Errors in one line, no abbreviated flags, help with paragraphs as they are written."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"dcgan-fast: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dcgan-fast",
        description="Trains and samples networks of the DCGAN family.",
        epilog="example:\n  dcgan-fast train && dcgan-fast sample runs/digits-pytorch",
    )
    parser.add_argument("--version", action="version", version=f"dcgan-fast {__version__}")
    common = _Parser(add_help=False)
    for each in (parser, common):
        each.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the tracebacks of errors",
        )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str,
        run: Callable[..., int] | None,
        summary: str,
        text: str,
        example: str,
        among: Any = commands,
    ) -> _Parser:
        added = among.add_parser(
            name,
            parents=[common],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.\n\n{text}".rstrip(),
            epilog=f"example:\n  {example}",
        )
        if run is not None:
            added.set_defaults(command=run)
        return added

    _train_arguments(
        add(
            "train",
            _train,
            "train a generator on images",
            "Writes runs/NAME/: a grid of samples an epoch, the curves of the losses, watch.png,\n"
            "metrics.jsonl, config.json, a checkpoint that training continues from bit for bit,\n"
            "and the weights alone (generator.pth, discriminator.pth) as pytorch/examples keeps\n"
            "them.\n"
            "Ctrl-C writes a checkpoint and ends; a second one ends at once.\n\n"
            "Several processes, one a GPU or a few cores, train one run together:\n"
            "  torchrun --nproc-per-node 2 --max-restarts 3 -m dcgan_fast train photos/\n"
            "Each takes --batch-size images a step. The first writes; if one ends, all end, and\n"
            "torchrun starts them again from the last checkpoint. --resume may have another\n"
            "number of processes, which then share the images of a step anew.",
            "dcgan-fast train photos/ --image-size 64 --flip --name photos",
        )
    )
    _sample_arguments(
        add(
            "sample",
            _sample,
            "draw images from a trained generator",
            "Each seed stands for one image, whatever is drawn beside it (but for --bn batch).",
            "dcgan-fast sample runs/digits-pytorch --seeds 1-16 --out digits.png",
        )
    )
    _parzen_arguments(
        add(
            "parzen",
            _parzen,
            "the log-likelihood of a data set under a trained generator",
            "A Gaussian window on each of many samples, as the papers of adversarial nets report it: the\n"
            "mean log-likelihood of the test images and its standard error, in nats, of pixels in [0, 1].\n"
            "The window's width is the best of ten from 0.1 to 1, on images held out from the training\n"
            "set (its last sixth, at most 10,000). Figures of different image sizes do not compare.",
            "dcgan-fast parzen runs/mnist-pytorch --data mnist",
        )
    )
    _features_arguments(
        add(
            "features",
            _features,
            "features of images by a trained discriminator, and linear classifiers on them",
            "All convolutions' activations, max-pooled to 4x4 and flattened, as the DCGAN paper has them.\n"
            "Writes OUT/features.npy (and labels.npy) of the training images; broken off, the same\n"
            "command continues. With --classify: accuracies of linear L2-SVMs on them and on baselines,\n"
            "C chosen on held-out images, as OUT/accuracy.json and accuracy.png.",
            "dcgan-fast features runs/mnist-pytorch --data mnist --classify --labels 1000",
        )
    )
    _dedup_arguments(
        add(
            "dedup",
            _dedup,
            "list which images to keep, without near-duplicates",
            "Trains a small autoencoder on some of the images, hashes each image to its 128 bits (the\n"
            "DCGAN paper's way), and keeps the first image of each code. Beside kept.txt it writes\n"
            "kept.removed.txt, kept.groups.png (the largest groups, to be looked at) and\n"
            "kept.hasher.safetensors. Nothing of yours is changed.\n"
            "Lines are NAME, a tab, the group's number; of removed images also a tab and the name of\n"
            "the image that is kept. Images without a name have their number from 0.\n"
            "Broken off, the same command continues where it was.",
            "dcgan-fast dedup photos/ --out kept.txt && cut -f1 kept.txt",
        )
    )
    add_commands(add)
    tags = add(
        "tags",
        None,
        "learn to name words for images",
        "The CGAN paper's multimodal experiment: a generator that makes word vectors of an image's\n"
        "features and noise; an image's words are the commonest neighbours of many such vectors.",
        "dcgan-fast tags train tags.tsv photos/ --features resnet.pt2 --words glove.txt --name photos\n"
        "  dcgan-fast tags predict runs/photos more-photos/",
    ).add_subparsers(title="commands", metavar="COMMAND", required=True)
    _tags_train_arguments(
        add(
            "train",
            _tags_train,
            "train on images with tags",
            "Tags are a line an image (name, tab, tags with tabs or commas between) or a .json object of\n"
            "images to lists. Tags without a word vector and images without tags are left out, and\n"
            "listed. Writes runs/NAME/: figures.json, the scores on images not trained on beside two\n"
            "baselines'; validation.json, the words for them; left_out.json; metrics.jsonl;\n"
            "config.json; features.npy; and a checkpoint that training continues from bit for bit.\n"
            "Ctrl-C writes a checkpoint and ends; a second one ends at once.",
            "dcgan-fast tags train tags.tsv photos/ --features resnet.pt2 --words glove.txt",
            tags,
        )
    )
    _tags_predict_arguments(
        add(
            "predict",
            _tags_predict,
            "name words for images",
            "Makes 100 word vectors for an image, takes the 20 nearest words of each, and of those the\n"
            "10 commonest. An image's words do not depend on what other images there are.",
            "dcgan-fast tags predict runs/tags photos/ --out words.tsv",
            tags,
        )
    )
    _convert_arguments(
        add(
            "convert",
            _convert,
            "convert trained networks from and to other codes",
            "\n".join(f"{name + ':':20}{entry.summary}" for name, entry in FORMATS.items()),
            "dcgan-fast convert netG_epoch_24.pth --out faces.pt",
        )
    )
    _info_arguments(
        add(
            "info",
            _info,
            "say what is installed, what serves a preset's networks, and how fast they will train",
            "Of a preset: each layer, what runs it, the work that a training step has for it, the time\n"
            "that it takes by itself beside its floor at the machine's ceilings, and what follows for a\n"
            "step, in images/s. All is measured on the CPU, now: on a shared machine it says what the\n"
            "neighbours left.",
            "dcgan-fast info pytorch --batch-size 64",
        )
    )
    bench = add(
        "bench",
        _bench,
        "make a report of benchmark figures",
        "The figures are those of `make bench` (or `pytest benchmarks/ --benchmark-only\n"
        "--benchmark-json=FILE`) in a checkout of the sources. Prints the tables as Markdown;\n"
        "with --report writes them to DIR/report.md, and each run's roofline beside it.",
        "dcgan-fast bench benchmarks/results/train.json --report report",
    )
    bench.add_argument("files", nargs="*", metavar="JSON", help=f"(default: all in {_FIGURES}/)")
    bench.add_argument(
        "--report", metavar="DIR", help="a folder, made if it is missing; needs matplotlib"
    )
    return parser


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "dcgan-fast train [DATA] [flags]"
    default = TrainConfig()
    add = _adder(parser.add_argument_group("data"))
    add(
        "data",
        nargs="?",
        metavar="DATA",
        help=f"{', '.join(NAMES)}, or a path: a folder or zip of images, idx files, CIFAR pickles, "
        f"an LSUN lmdb, a .npy or .npz (default: {default.data})",
    )
    add(
        "--image-size",
        alias="--imageSize",
        type=int,
        metavar="S",
        help="side of the images (default: 32 for the named sets; for others the preset's, mostly "
        "64)",
    )
    add("--channels", type=int, metavar="C", help="1 to 4 (default: as the data has)")
    add("--split", metavar="PART", help=f"train, test or all (default: {default.split})")
    add("--flip", action="store_true", help="mirror images at random")
    add("--dedup", action="store_true", help="leave near-duplicates out (see dcgan-fast dedup)")

    add = _adder(parser.add_argument_group("networks"))
    add(
        "--preset",
        metavar="NAME",
        help=f"networks and training loop: {', '.join(models.PRESETS)} (default: {default.preset})",
    )
    add(
        "--conditional",
        action="store_true",
        help="networks that take the labels of the data, with which one asks for a class (default preset then: "
        "cgan-dcgan)",
    )
    add(
        "--conditioning",
        choices=CONDITIONINGS,
        help="the label beside every layer's input, or as a learnt vector: embedding and projection (default: the "
        "preset's, concat)",
    )
    add(
        "--nz",
        type=int,
        metavar="N",
        help="length of the latent vector (default: the preset's, 100)",
    )
    width = f"(default: the preset's, 64; on digits {DIGITS_WIDTH})"
    add("--ngf", type=int, metavar="N", help=f"width of the generator {width}")
    add("--ndf", type=int, metavar="N", help=f"width of the discriminator {width}")
    add(
        "--loss-output",
        choices=LOSS_OUTPUTS,
        help=f"what the discriminator ends in (default: {default.loss_output})",
    )
    add("--netG", dest="init_generator", metavar="FILE", help="start from this generator")
    add("--netD", dest="init_discriminator", metavar="FILE", help="start from this discriminator")

    add = _adder(parser.add_argument_group("objective"))
    add(
        "--objective",
        choices=OBJECTIVES,
        help=f"what both networks minimise (default: {default.objective})",
    )
    add(
        "--real-label",
        type=float,
        metavar="X",
        help="what the discriminator is told of real images; 0.9: one-sided label smoothing (default: 1)",
    )
    add(
        "--penalty",
        choices=PENALTIES,
        help="on the discriminator's gradient by its images (default: wgan-gp for wasserstein, else none)",
    )
    add(
        "--penalty-weight",
        type=float,
        metavar="X",
        help=f"its gamma or lambda (default: {default.penalty_weight:g})",
    )
    add(
        "--penalty-every",
        type=int,
        metavar="N",
        help="charge it at every N-th step, N times as heavily (default: 1)",
    )
    add(
        "--instance-noise",
        type=float,
        metavar="X",
        help="standard deviation of noise on the discriminator's images, falling to 0 (default: 0)",
    )

    add = _adder(parser.add_argument_group("optimisation (defaults: the preset's)"))
    add(
        "--epochs",
        alias="--niter",
        type=int,
        metavar="N",
        help=f"(default: {EPOCHS}, or as many as make {STEPS_AT_LEAST} steps)",
    )
    add(
        "--patience",
        type=int,
        metavar="N",
        help="hold a sixth of the images out, keep the epoch under which they are likeliest as best.pt, and end "
        "after N epochs without a better one (default: no)",
    )
    add("--max-steps", type=int, metavar="N", help="end after so many steps, wherever in an epoch")
    add(
        "--batch-size",
        alias="--batchSize",
        type=int,
        metavar="N",
        help=f"images of a minibatch, of each process under torchrun (pytorch: {default.batch_size})",
    )
    add("--optimizer", choices=OPTIMIZERS, help="(pytorch: adam; cgan-mnist: sgd)")
    add("--lr", type=float, metavar="X", help=f"learning rate (pytorch: {default.lr:g})")
    add(
        "--lr-decay",
        type=float,
        metavar="X",
        help="divide the learning rate by this at each step (pytorch: 1; cgan-mnist: 1.00004)",
    )
    add(
        "--constant-epochs",
        type=int,
        metavar="N",
        help="after so many epochs the learning rate falls by equal parts (default: never; cgan-dcgan: 100)",
    )
    add(
        "--falling-epochs",
        type=int,
        metavar="N",
        help="to zero over so many epochs (cgan-dcgan: 100)",
    )
    add("--min-lr", type=float, metavar="X", help="where it stops falling (cgan-mnist: 1e-6)")
    add(
        "--beta1",
        type=float,
        metavar="X",
        help=f"Adam's first momentum (pytorch: {default.beta1:g})",
    )
    add("--beta2", type=float, metavar="X", help=f"its second (default: {default.beta2:g})")
    add("--momentum", type=float, metavar="X", help="of SGD, at the start (cgan-mnist: 0.5)")
    add(
        "--final-momentum",
        type=float,
        metavar="X",
        help="to which it grows (default: it stays; cgan-mnist: 0.7)",
    )
    add("--momentum-epochs", type=int, metavar="N", help="over so many epochs (cgan-mnist: 250)")
    add("--weight-decay", type=float, metavar="X", help="coupled L2 (pytorch: 0)")
    add(
        "--g-steps",
        dest="g_steps_per_d",
        type=int,
        metavar="N",
        help="generator updates a step (pytorch: 1; carpedm20: 2)",
    )
    add(
        "--d-steps",
        dest="d_steps_per_g",
        type=int,
        metavar="N",
        help="discriminator updates a step, each with images of its own (default: 1)",
    )
    add(
        "--accumulate",
        type=int,
        metavar="N",
        help="take the mean gradient of N minibatches for each update (default: 1)",
    )
    add(
        "--alternate",
        action=argparse.BooleanOptionalAction,
        help="each minibatch trains one network (pytorch: no; newmu: yes)",
    )
    add(
        "--reuse-fake-output",
        action=argparse.BooleanOptionalAction,
        help="the generator learns from the discriminator as it was before its update (pytorch: "
        "no; dcgan.torch: yes)",
    )
    add(
        "--joint-pass",
        action=argparse.BooleanOptionalAction,
        help="the discriminator sees real and fake images in one pass: less time, most where batches "
        "are small, and more memory (default: no)",
    )
    add(
        "--clip-grad",
        type=float,
        metavar="X",
        help="shorten a network's gradient to this norm where it is longer (default: no)",
    )
    add(
        "--ema",
        type=float,
        metavar="X",
        help="keep an average of the generator's weights that decays so, 0.999 say; it then draws (default: no)",
    )
    add(
        "--seed",
        alias="--manualSeed",
        type=int,
        metavar="N",
        help=f"of weights, latents and order (default: {default.seed})",
    )

    add = _adder(parser.add_argument_group("machine"))
    add("--device", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)")
    add("--threads", type=int, metavar="N", help="of the CPU (default: PyTorch's choice)")
    add(
        "--amp",
        choices=("bf16", "fp16"),
        help="compute in bfloat16 or float16 (with scaled losses), keep weights in float32",
    )
    for name, what in (
        ("channels-last", "keep images and maps as NHWC"),
        ("fuse", "run the fused ops; --no-fuse runs plain torch.nn"),
        ("graph", "CUDA: launch a whole step at once, where it can be captured"),
        ("deterministic", "CUDA: only algorithms that repeat bit for bit"),
        (
            "sync-bn",
            "under torchrun: batch norm by the statistics of all processes' images, so that the numbers do not depend "
            "on how many there are",
        ),
    ):
        add(f"--{name}", action=argparse.BooleanOptionalAction, help=f"{what} (default: yes)")

    add = _adder(parser.add_argument_group("output"))
    add("--out", metavar="DIR", help=f"where runs are kept (default: {default.out})")
    add("--name", help="of the run (default: from the data and the preset)")
    add(
        "--bn",
        choices=models.BN_MODES,
        help="batch norm statistics of the grids (default: the preset's, running)",
    )
    add("--grid-images", type=int, metavar="N", help=f"in a grid (default: {default.grid_images})")
    add("--grid-every", type=int, metavar="EPOCHS", help="(default: 1, more where epochs are many)")
    add(
        "--log-every",
        type=int,
        metavar="STEPS",
        help=f"averaged into a line of metrics.jsonl (default: {default.log_every})",
    )
    add(
        "--watch",
        action=argparse.BooleanOptionalAction,
        help="log the gradients' norms and, every 100 steps, how G's filters and samples vary; draw them as "
        "watch.png; warn once when they collapse (default: yes)",
    )
    add(
        "--save-every",
        type=_save_every,
        metavar="N|Ts",
        help="a checkpoint every N steps or T seconds, besides the ends of epochs "
        f"(default: {default.save_seconds:g}s)",
    )

    add(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        help="a log for TensorBoard too, in the run's folder (default: no; of a continued run, if it has one); needs "
        "the extra tensorboard",
    )
    add(
        "--profile",
        nargs="?",
        const=PROFILED_STEPS,
        type=_positive,
        metavar="N",
        help=f"watch N steps (default: {PROFILED_STEPS}) once they are warm: profile.txt says where their time goes, "
        "trace.json is for chrome://tracing; the run goes on (or give --max-steps)",
    )

    add = _adder(parser.add_argument_group("configuration"))
    add(
        "--config",
        metavar="FILE",
        help="settings from a .json or .yaml, named as in a run's config.json, which is such a file; flags given "
        "beside it win (YAML needs the extra yaml)",
    )
    add(
        "--print-config",
        action="store_true",
        help="print all settings as the run's config.json would hold them, and stop (the data are looked at)",
    )

    add = _adder(parser.add_argument_group("continuing"))
    add(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="continue a run, bit for bit: a run folder, a checkpoint, or else the newest run in "
        "--out; only --epochs (upwards), --max-steps, --grid-every, --save-every, --watch, --device "
        "and --threads may differ from the run's",
    )

    group = parser.add_argument_group(
        "flags of pytorch/examples' dcgan",
        "--imageSize, --batchSize, --niter and --manualSeed are the flags above by other names;\n"
        "what is left out has the defaults above.",
    )
    add = _adder(group)
    add("--dataset", metavar="NAME", help="folder, lsun, imagenet, lfw, cifar10, mnist, fake")
    add("--dataroot", metavar="PATH", help="where that data is")
    add(
        "--outf",
        metavar="DIR",
        help="the run's folder; also writes netG_epoch_N.pth, netD_epoch_N.pth",
    )
    add("--dry-run", action="store_true", help="one step, then all that ends a run")
    add("--workers", type=int, metavar="N", help="ignored: no worker processes are needed")
    for flag, device in (("--accel", "auto"), ("--cuda", "cuda")):
        add(flag, dest="device", action="store_const", const=device, help=f"--device {device}")


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a checkpoint, a run folder, or a bare generator"
    )
    parser.add_argument(
        "-n",
        type=_image_count,
        metavar="N",
        help="how many images, of each class where there are several (default: 64; of several classes 10 each)",
    )
    parser.add_argument(
        "--class",
        dest="labels",
        type=_classes,
        metavar="LIST",
        help="3, 0,2,5 or 0-9: these classes, a row of the grid each (default: all of a conditional generator)",
    )
    parser.add_argument(
        "--seeds",
        type=_seeds,
        metavar="LIST",
        help="1,2,3 or 1-10 (default: from 0 up); with a larger -n, those after the last follow",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--grid", dest="images", action="store_false", help="one picture (the default)"
    )
    form.add_argument("--images", action="store_true", help="a file an image, seed_000001.png ...")
    parser.set_defaults(images=False)
    parser.add_argument(
        "--bn",
        choices=models.BN_MODES,
        help="batch norm statistics: kept in training, of the batch that is drawn, or averaged "
        "over many batches (default: the checkpoint's)",
    )
    parser.add_argument(
        "--dropout",
        action=argparse.BooleanOptionalAction,
        help="of a generator that has dropout: leave units out of samples as in training "
        "(default: as it was built; cgan-mnist: yes)",
    )
    parser.add_argument(
        "--out", metavar="PATH", help="(default: samples.png, or the folder samples)"
    )
    parser.add_argument("--columns", type=_positive, metavar="N", help="of the grid")
    parser.add_argument(
        "--scale",
        type=_positive,
        metavar="N",
        help="enlarge the grid's pixels (default: to 64 an image)",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)"
    )


def _parzen_arguments(parser: argparse.ArgumentParser) -> None:
    from .metrics.likelihood import SAMPLES

    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a checkpoint, a run folder, or a bare generator"
    )
    parser.add_argument(
        "--data", required=True, metavar="DATA", help="the images: whatever train takes"
    )
    parser.add_argument(
        "--split", default="test", choices=SPLITS, help="the part of them (default: test)"
    )
    parser.add_argument(
        "--sigma", type=_above_zero, metavar="X", help="the windows' width (default: searched)"
    )
    parser.add_argument(
        "--samples", type=_image_count, default=SAMPLES, metavar="N", help=f"(default: {SAMPLES})"
    )
    parser.add_argument(
        "--bn", choices=models.BN_MODES, help="as of sample (default: the checkpoint's)"
    )
    parser.add_argument(
        "--dropout",
        action=argparse.BooleanOptionalAction,
        help="as of sample (default: as the generator was built)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the samples (default: 0)"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)"
    )


def _features_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a checkpoint, a run folder, or a bare discriminator",
    )
    parser.add_argument(
        "--data", required=True, metavar="DATA", help="the images: whatever train takes"
    )
    parser.add_argument(
        "--out", default="features", metavar="DIR", help="made if missing (default: features)"
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float32")
    parser.add_argument(
        "--layers", type=_layers, metavar="LIST", help="convolutions, 0-2 or 1,3 (default: all)"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)"
    )
    group = parser.add_argument_group("classification")
    group.add_argument("--classify", action="store_true", help="needs labelled images")
    group.add_argument(
        "--labels",
        type=_positive,
        metavar="N",
        help="see so few labels, drawn again and again (default: all)",
    )
    group.add_argument(
        "--resamples",
        type=_positive,
        default=10,
        metavar="N",
        help="draws that choose C, and as many that are scored (default: 10)",
    )
    group.add_argument(
        "--baselines",
        type=lambda text: text.split(","),
        default=["pixels", "random"],
        metavar="LIST",
        help="of pixels, random (a network of random weights), kmeans, cnn (supervised, of the same shape) "
        "(default: pixels,random)",
    )
    for name, value in (("train", 5000), ("test", 2000)):
        group.add_argument(
            f"--{name}-images",
            type=_positive,
            default=value,
            metavar="N",
            help=f"drawn at random, where there are more (default: {value})",
        )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of all draws (default: 0)")


def _dedup_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        metavar="IMAGES",
        help="a folder or zip of images, an LSUN lmdb, a prepared data set, or whatever train takes",
    )
    parser.add_argument(
        "--out", default="kept.txt", metavar="FILE", help="the list (default: kept.txt)"
    )
    parser.add_argument("--hasher", metavar="FILE", help="use this one; nothing is trained")
    parser.add_argument(
        "--split", default="all", metavar="PART", help="train, test or all (default)"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)"
    )
    group = parser.add_argument_group("training the hasher")
    add = _adder(group)
    add(
        "--code-noise",
        type=float,
        metavar="X",
        help="how near is near: with more, images that differ more share codes (default: 2; from 4 on different "
        "images begin to)",
    )
    add("--epochs", type=int, metavar="N", help="(default: as many as make 2,400 updates)")
    add(
        "--seed",
        dest="random_state",
        type=int,
        metavar="N",
        help="of weights, order and noise (default: 0)",
    )
    group.add_argument(
        "--train-images",
        type=_positive,
        metavar="N",
        help="drawn at random to train on (default: 20000, or all)",
    )


def _tags_train_arguments(parser: argparse.ArgumentParser) -> None:
    from .tags.config import CANDIDATES, LEARNING_RATES, OPTIMIZERS, TagConfig
    from .tags.features import SCALINGS

    parser.usage = "dcgan-fast tags train [TAGS] [IMAGES] [flags]"
    default = TagConfig()
    add = _adder(parser.add_argument_group("data"))
    add("tags", nargs="?", metavar="TAGS", help=f"a .tsv or .json (default: {default.tags})")
    add(
        "images",
        nargs="?",
        metavar="IMAGES",
        help="a folder or zip of images, or whatever dcgan-fast train takes (default: the folder of TAGS)",
    )
    add(
        "--features",
        metavar="WHAT",
        help="what makes image features: a network exported by torch.export (.pt2) or TorchScript, a "
        "checkpoint or run folder of ours (its discriminator), or a .npy of features; pixels: the "
        f"images themselves, at 16x16, a poor stand-in (default: {default.features})",
    )
    add(
        "--feature-names",
        metavar="FILE",
        help="names of the images in a .npy, a line each (default: NAME.names.txt beside NAME.npy)",
    )
    add(
        "--feature-size",
        type=int,
        metavar="S",
        help="side of the images (default: the network's, 224)",
    )
    add(
        "--feature-scaling",
        choices=tuple(SCALINGS),
        help="of pixels: ImageNet's mean and deviation, -1 to 1, or 0 to 1 (default: imagenet; of "
        "ours symmetric)",
    )
    add(
        "--words",
        metavar="FILE",
        help="word vectors: word2vec's or GloVe's text, or a .npy (default: learned from the tags, by "
        "gensim)",
    )
    add(
        "--vocabulary",
        metavar="FILE",
        help="words of a .npy, a line each (default: NAME.txt beside NAME.npy)",
    )
    add(
        "--candidates",
        choices=CANDIDATES,
        help="words to choose from: the tags of the training images, or all that have vectors "
        f"(default: {default.candidates})",
    )
    add(
        "--min-count",
        type=int,
        metavar="N",
        help="of those tags the ones that so many training images have (default: 1; where vectors are "
        f"learned from the tags {default.min_count})",
    )
    add(
        "--centre-words",
        action=argparse.BooleanOptionalAction,
        help="bring each number of the vectors to mean 0 and deviation 1 (default: yes)",
    )
    add(
        "--validation",
        type=float,
        metavar="X",
        help=f"share of the images that is scored, not trained on (default: {default.validation})",
    )

    add(
        "--validation-tags",
        metavar="FILE",
        help="in its place a second file of tags, of images to score: for sets whose images come in "
        "groups that a choice at random would tear apart",
    )

    add = _adder(parser.add_argument_group("networks (defaults: the paper's)"))
    for name, what in (
        ("nz", "numbers of noise"),
        ("noise-units", "of the generator, over the noise"),
        ("g-feature-units", "of the generator, over the features"),
        ("g-joint-units", "of the generator, over both; 0: none"),
        ("word-units", "of the discriminator, over the word vector"),
        ("d-feature-units", "of the discriminator, over the features"),
        ("d-joint-units", "of the discriminator, maxout units over both"),
        ("pieces", "linear pieces of a maxout unit"),
    ):
        value = getattr(default, name.replace("-", "_"))
        add(f"--{name}", type=int, metavar="N", help=f"{what} (default: {value})")
    add(
        "--dropout",
        type=float,
        metavar="X",
        help=f"share of hidden units left out in training (default: {default.dropout})",
    )

    add = _adder(parser.add_argument_group("optimisation"))
    add("--updates", type=int, metavar="N", help=f"of both networks (default: {default.updates})")
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"pairs of an image and a tag (default: {default.batch_size})",
    )
    add(
        "--optimizer",
        choices=OPTIMIZERS,
        help=f"(default: {default.optimizer}, the paper's; adam was steadier and better on emoji)",
    )
    rates = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())
    add("--lr", type=float, metavar="X", help=f"learning rate at first (default: {rates})")
    add(
        "--lr-decay",
        type=float,
        metavar="X",
        help=f"divides it after each update (default: {default.lr_decay})",
    )
    add(
        "--lr-min", type=float, metavar="X", help=f"the least it gets (default: {default.lr_min:g})"
    )
    add(
        "--momentum",
        type=float,
        metavar="X",
        help=f"of SGD at first (default: {default.momentum:g})",
    )
    add(
        "--momentum-final",
        type=float,
        metavar="X",
        help=f"to which it grows (default: {default.momentum_final:g})",
    )
    add(
        "--momentum-updates",
        type=int,
        metavar="N",
        help="in which it does (default: all of the run)",
    )
    add(
        "--seed",
        type=int,
        metavar="N",
        help=f"of weights, noise, order and the choice of validation images (default: {default.seed})",
    )

    add = _adder(parser.add_argument_group("machine"))
    add("--device", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)")
    add("--threads", type=int, metavar="N", help="of the CPU (default: PyTorch's choice)")

    add = _adder(parser.add_argument_group("output"))
    add("--out", metavar="DIR", help=f"where runs are kept (default: {default.out})")
    add("--name", help="of the run (default: tags)")
    add(
        "--log-every",
        type=int,
        metavar="N",
        help=f"updates averaged into a line of metrics.jsonl (default: {default.log_every})",
    )
    add(
        "--score-every",
        type=int,
        metavar="N",
        help=f"updates between looks at the validation images (default: {default.score_every})",
    )
    add(
        "--save-seconds",
        type=float,
        metavar="T",
        help=f"between checkpoints, besides the looks (default: {default.save_seconds:g})",
    )

    add = _adder(parser.add_argument_group("continuing"))
    add(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="continue a run, bit for bit: a run folder, a checkpoint, or else the newest run in "
        "--out; only --updates (upwards), --save-seconds, --device and --threads may differ",
    )


def _tags_predict_arguments(parser: argparse.ArgumentParser) -> None:
    from .tags.prediction import NEAREST, SAMPLES, TOP

    parser.add_argument("checkpoint", metavar="RUN", help="a run folder or a checkpoint")
    parser.add_argument(
        "images", metavar="IMAGES", help="as for tags train, or a .npy of their features"
    )
    parser.add_argument(
        "--features", metavar="WHAT", help="what makes their features, where it has moved since"
    )
    parser.add_argument("--feature-names", metavar="FILE", help="as for tags train")
    parser.add_argument(
        "--tags", dest="truth", metavar="FILE", help="their true tags, to be scored against"
    )
    parser.add_argument(
        "--out",
        default="words.json",
        metavar="FILE",
        help=".tsv, or else JSON: images and their words (default: words.json)",
    )
    parser.add_argument("--figures", metavar="FILE", help="write the score as JSON")
    for name, value, what in (
        ("samples", SAMPLES, "word vectors made for an image"),
        ("nearest", NEAREST, "words near a vector that are counted"),
        ("top", TOP, "commonest words that are named"),
    ):
        parser.add_argument(
            f"--{name}",
            type=_positive,
            default=value,
            metavar="N",
            help=f"{what} (default: {value})",
        )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)"
    )
    parser.add_argument(
        "--dropout",
        action="store_true",
        help="leave units out as in training: vectors that differ more",
    )
    parser.add_argument(
        "--last",
        action="store_true",
        help="the generator of the last update, not of the best look at the validation images",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)"
    )


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a file or a folder")
    parser.add_argument("--out", required=True, metavar="PATH", help="a file or a folder")
    parser.add_argument(
        "--from",
        dest="source_format",
        choices=[name for name, entry in FORMATS.items() if entry.read],
        help="(default: recognised)",
    )
    parser.add_argument(
        "--to",
        dest="target_format",
        choices=[name for name, entry in FORMATS.items() if entry.write],
        help="(default: by PATH's suffix, or dcgan-fast; of a dcgan-fast checkpoint pytorch-examples)",
    )


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", nargs="?", metavar="PRESET", help="one of the presets")
    parser.add_argument("--preset", dest="preset_flag", metavar="PRESET", help="the same")
    for name, metavar in (("--image-size", "S"), ("--batch-size", "N"), ("--channels", "C")):
        parser.add_argument(name, type=_positive, metavar=metavar, help="(default: the preset's)")
    parser.add_argument("--amp", choices=("bf16",), help="compute in bfloat16")
    parser.add_argument(
        "--threads", type=_positive, metavar="N", help="of the CPU (default: PyTorch's choice)"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=10.0,
        metavar="T",
        help="for measurements; 0: none, and no ceilings, floors and rates (default: 10)",
    )
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON")


def _adder(group: argparse._ArgumentGroup) -> Callable[..., None]:
    """``add_argument`` that leaves out what is not given, and takes a second, unlisted name."""

    def add(flag: str, *, alias: str | None = None, **settings: Any) -> None:
        added = group.add_argument(flag, default=argparse.SUPPRESS, **settings)
        added.help = settings.get("help")  # Python 3.10 adds "(default: ==SUPPRESS==)" to some
        if alias is not None:
            settings |= {"dest": added.dest, "help": argparse.SUPPRESS}
            group.add_argument(alias, default=argparse.SUPPRESS, **settings)

    return add


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is needed, got '{text}'")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"a number above 0 is needed, got '{text}'")
    return number


def _seconds(text: str) -> float:
    return 0.0 if text in ("0", "0.0") else _above_zero(text)


def _image_count(text: str) -> int:
    count = _positive(text)
    if count > _MOST_IMAGES:
        raise argparse.ArgumentTypeError(f"at most {_MOST_IMAGES:,} images, got {count}")
    return count


def _seeds(text: str) -> list[int]:
    return _numbers(text, "seeds")


def _classes(text: str) -> list[int]:
    return _numbers(text, "classes")


def _layers(text: str) -> list[int]:
    return _numbers(text, "layers")


def _numbers(text: str, what: str) -> list[int]:
    """``1,2,3`` and ``1-10`` and mixtures of the two."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= 2**63:
            raise argparse.ArgumentTypeError(f"{what} look like 1,2,3 or 1-10, got '{text}'")
        if last - first >= _MOST_IMAGES - len(numbers):
            raise argparse.ArgumentTypeError(f"at most {_MOST_IMAGES:,} {what}, got '{text}'")
        numbers += range(first, last + 1)
    return numbers


def _save_every(text: str) -> dict[str, float]:
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d*)?)s", text)
    if not match:
        raise argparse.ArgumentTypeError(f"a number of steps (500) or seconds (30s), got '{text}'")
    return {"save_steps": int(match[1])} if match[1] else {"save_seconds": float(match[2])}
