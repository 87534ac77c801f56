"""Every setting of a training run, in one plain dataclass that goes to ``config.json`` and back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..conditional import CONDITIONINGS
from ..data.find import NAMES
from ..errors import UserError
from ..models import BN_MODES, PRESETS, training_defaults
from ..reading import parse_json
from .losses import OBJECTIVES, Objective
from .penalties import PENALTIES, GradientPenalty

LOSS_OUTPUTS = ("logits", "sigmoid")
OPTIMIZERS = ("adam", "sgd")

# What a continued run may change: none of these has a part in the numbers but by rounding.
CHANGEABLE = frozenset(
    {
        "epochs",
        "max_steps",
        "save_steps",
        "save_seconds",
        "grid_every",
        "watch",
        "device",
        "threads",
        "graph",
    }
)

STEPS_AT_LEAST = 1400  # what a run on a small set gets, where 25 epochs are fewer
DIGITS_WIDTH = 32  # of networks on digits: such a run takes 2 minutes on 2 cores, at 64 thrice that
EPOCHS = 25  # else, as pytorch/examples and the paper's faces


def _from_preset() -> Any:
    """A field whose default is the preset's own."""
    return field(default=None, metadata={"from_preset": True})


@dataclass
class TrainConfig:
    """The settings of one training run; ``Trainer(TrainConfig(...)).fit()``.

    A field that is left out and says ``_from_preset()`` below takes its value from the preset's
    *dialect* (:func:`dcgan_fast.models.training_defaults`); an instance holds what will be used.

    Raises:
        UserError: a value outside its range, naming the field, the rule and what came.
    """

    # Data
    data: str = "digits"  # "digits", "fake", "mnist", "fashion-mnist", or a path
    image_size: int = _from_preset()
    split: str = "train"  # "train", "test" or "all"
    channels: int | None = None  # None: as many as the data has
    flip: bool = False  # mirror each image with probability 1/2
    dedup: bool = (
        False  # leave near-duplicates out: dcgan_fast.dedup.images.without_near_duplicates
    )

    # Networks
    preset: str = "pytorch"
    conditional: bool = False  # networks with labels, those of the data; so with such a preset
    conditioning: str | None = None  # None: the preset's; "concat" or "projection"
    nz: int | None = None  # None: the preset's
    ngf: int | None = None  # None: the preset's, on digits DIGITS_WIDTH
    ndf: int | None = None
    loss_output: str = "logits"  # "logits": BCEWithLogits; "sigmoid": the network ends in one, BCE
    init_generator: str | None = None  # a checkpoint or state dict to start from
    init_discriminator: str | None = None

    # Objective
    objective: str = "non-saturating"  # one of losses.OBJECTIVES
    real_label: float = 1.0  # what D is told of real images; below 1: one-sided label smoothing
    # On D's gradient, one of penalties.PENALTIES; None: "wgan-gp" for "wasserstein", else none.
    penalty: str | None = None
    penalty_weight: float = 10.0
    penalty_every: int = 1  # steps; charged so many times as heavily
    instance_noise: float = (
        0.0  # standard deviation of noise on D's images; falls to 0 by the last step
    )

    # Optimisation
    epochs: int | None = None  # None: 25, or as many as make STEPS_AT_LEAST steps on a small set
    patience: int | None = None  # end after so many epochs without a better validation likelihood
    max_steps: int | None = None  # stop after so many steps, wherever in an epoch
    batch_size: int = _from_preset()  # of each process
    optimizer: str = _from_preset()  # "adam" or "sgd"
    lr: float = _from_preset()
    lr_decay: float = _from_preset()  # the rate is divided by this at each step
    constant_epochs: int | None = _from_preset()  # then it falls by equal parts; None: it does not
    falling_epochs: int = _from_preset()  # to zero over so many epochs
    min_lr: float = _from_preset()  # where it stops falling
    beta1: float = _from_preset()  # of Adam
    beta2: float = 0.999
    adam_eps: float = _from_preset()
    momentum: float = _from_preset()  # of SGD
    final_momentum: float | None = _from_preset()  # to which it grows; None: it stays
    momentum_epochs: int = _from_preset()  # over so many epochs
    weight_decay: float = _from_preset()  # coupled L2: added to the gradient
    g_steps_per_d: int = _from_preset()  # generator updates a step, all with the same latents
    alternate: bool = _from_preset()  # each minibatch trains G or D
    reuse_fake_output: bool = _from_preset()  # G learns from D's output before D's update
    d_steps_per_g: int = 1  # discriminator updates a step, each with images of its own
    accumulate: int = 1  # minibatches of which each update takes the mean gradient
    joint_pass: bool = False  # D sees real and fake images in one pass: less time, more memory
    clip_grad: float | None = None  # the most that the norm of a network's gradient may be
    ema: float | None = None  # decay of an average of G's weights, which then draws the grids
    seed: int = 0

    # Machine
    device: str = "auto"  # "auto": CUDA where there is one, else the CPU
    threads: int | None = None  # None: PyTorch's choice
    amp: str | None = None  # "bf16": autocast to bfloat16; "fp16": to float16, with scaled losses
    channels_last: bool = True
    fuse: bool = True
    graph: bool = True  # CUDA: launch a whole step at once, where it can be captured
    deterministic: bool = True  # CUDA: only cuDNN algorithms that repeat bit for bit
    sync_bn: bool = True  # several processes: batch norm by the statistics of all their batches

    # Output
    out: str | None = "runs"  # None: nothing is written
    name: str | None = None  # None: made from the data and the preset
    bn: str = _from_preset()  # statistics the grids are drawn with
    grid_images: int = 64
    grid_every: int | None = None  # epochs; None: at most about 50 grids a run
    log_every: int = 10  # steps averaged into one line of metrics.jsonl
    watch: bool = True  # measure gradients, filters and variety, warn of a collapse: watch.py
    save_steps: int | None = None  # a checkpoint every so many steps, besides the ends of epochs
    save_seconds: float | None = 60.0  # and every so many seconds
    epoch_weights: bool = False  # also netG_epoch_N.pth and netD_epoch_N.pth, as pytorch/examples

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise UserError(f"unknown preset '{self.preset}': the presets are {known}")
        self.conditional = self.conditional or PRESETS[self.preset].conditional
        defaults = {"image_size": self._own_image_size(), **training_defaults(self.preset)}
        for item in dataclasses.fields(self):
            if "from_preset" in item.metadata and getattr(self, item.name) is None:
                setattr(self, item.name, defaults[item.name])
            if item.type == "bool" and not isinstance(getattr(self, item.name), bool):
                raise UserError(
                    f"'{item.name}' must be true or false, got {getattr(self, item.name)!r}"
                )
        for name, (rule, holds) in _RULES.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL or _satisfies(value, holds)):
                raise UserError(f"'{name}' must be {rule}, got {value!r}")
        if self.objective == "wasserstein" and self.penalty is None:
            self.penalty = "wgan-gp"
        try:
            self.make_objective()
        except ValueError as error:
            raise UserError(str(error)) from error
        for dialect in ("alternate", "reuse_fake_output"):
            for number in ("g_steps_per_d", "d_steps_per_g", "accumulate"):
                if getattr(self, dialect) and getattr(self, number) > 1:
                    raise UserError(f"{number!r} above 1 and {dialect!r} exclude each other")
        if self.reuse_fake_output:
            for name in ("alternate", "joint_pass", "penalty"):
                if getattr(self, name):
                    raise UserError(f"{name!r} and 'reuse_fake_output' exclude each other")
            if self.amp == "fp16":
                raise UserError("'amp' fp16 and 'reuse_fake_output' exclude each other")

    def make_objective(self) -> Objective:
        """What both networks minimise."""
        return Objective(self.objective, self.loss_output, self.real_label)

    def make_penalty(self) -> GradientPenalty | None:
        """The penalty on D's gradient, if there is one."""
        if self.penalty is None:
            return None
        return GradientPenalty(self.penalty, self.penalty_weight, self.penalty_every)

    def _own_image_size(self) -> int:
        """The preset's own size; for the small sets that have a name at most 32."""
        own: int = PRESETS[self.preset].setting("image_size")
        return min(32, own) if self.data in NAMES else own

    @property
    def last_epoch(self) -> int | None:
        """How many epochs have a learning rate above 0; None: all of them."""
        if self.constant_epochs is None or self.min_lr > 0:
            return None
        return self.constant_epochs + self.falling_epochs

    @property
    def batches_per_step(self) -> int:
        """Minibatches of real images that one step takes from the data."""
        return 2 if self.alternate else self.d_steps_per_g * self.accumulate

    def network_overrides(self) -> dict[str, Any]:
        """The keyword arguments of :func:`dcgan_fast.models.build` that this run asks for."""
        asked = {
            "nz": self.nz,
            "ngf": self.ngf,
            "ndf": self.ndf,
            "conditioning": self.conditioning,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        known = {item.name for item in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise UserError(
                    f"unknown setting '{name}': the settings are {', '.join(sorted(known))}"
                )
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        try:
            values = parse_json(text)
        except ValueError as error:
            raise UserError(f"the configuration is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise UserError(f"the configuration must be a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)

    def changed(self, changes: Mapping[str, Any]) -> TrainConfig:
        """This configuration with the changes that a continued run may have.

        Raises:
            UserError: naming the first setting that may not change, or ``epochs`` if it would fall.
        """
        new = dataclasses.replace(self, **changes)
        for name in changes:
            before, after = getattr(self, name), getattr(new, name)
            if before == after:
                continue
            if name not in CHANGEABLE:
                raise UserError(
                    f"a continued run cannot change '{name}': it was made with {before!r}, "
                    f"got {after!r}"
                )
            if name == "epochs" and before is not None and (after is None or after < before):
                raise UserError(f"'epochs' can only be raised: the run has {before}, got {after}")
        return new


_Rule = tuple[str, Callable[[Any], bool]]
_LARGEST = (1 << 63) - 1  # that a tensor or a generator of random numbers takes


def _whole(low: int, high: int | None = None) -> _Rule:
    def holds(value: Any) -> bool:
        last = _LARGEST if high is None else high
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= last

    if high is None:
        return f"a whole number of at least {low}", holds
    return f"a whole number from {low} to {high}", holds


def _one_of(*choices: str) -> _Rule:
    return "one of " + ", ".join(choices), lambda value: value in choices


_POSITIVE: _Rule = ("a positive number", lambda value: 0 < value < math.inf)
_NOT_NEGATIVE: _Rule = ("a number of at least 0", lambda value: 0 <= value < math.inf)
_BELOW_ONE: _Rule = ("a number from 0 to below 1", lambda value: 0 <= value < 1)

_RULES: dict[str, _Rule] = {
    "image_size": _whole(1),
    "channels": _whole(1),
    "nz": _whole(1),
    "ngf": _whole(1),
    "ndf": _whole(1),
    "conditioning": _one_of(*CONDITIONINGS),
    "loss_output": _one_of(*LOSS_OUTPUTS),
    "objective": _one_of(*OBJECTIVES),
    "real_label": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "penalty": _one_of(*PENALTIES),
    "penalty_weight": _POSITIVE,
    "penalty_every": _whole(1),
    "instance_noise": _NOT_NEGATIVE,
    "epochs": _whole(1),
    "patience": _whole(1),
    "max_steps": _whole(1),
    "batch_size": _whole(1),
    "optimizer": _one_of(*OPTIMIZERS),
    "lr": _POSITIVE,
    "lr_decay": ("a number of at least 1", lambda value: 1 <= value < math.inf),
    "constant_epochs": _whole(0),
    "falling_epochs": _whole(1),
    "min_lr": _NOT_NEGATIVE,
    "beta1": _BELOW_ONE,
    "beta2": _BELOW_ONE,
    "momentum": _BELOW_ONE,
    "final_momentum": _BELOW_ONE,
    "momentum_epochs": _whole(1),
    "adam_eps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "g_steps_per_d": _whole(1),
    "d_steps_per_g": _whole(1),
    "accumulate": _whole(1),
    "clip_grad": _POSITIVE,
    "ema": _BELOW_ONE,
    "seed": _whole(0),
    "threads": _whole(1, 1024),  # OpenMP ends the process where it cannot have as many
    "device": ("a device's name", lambda value: isinstance(value, str)),
    "amp": _one_of("bf16", "fp16"),
    "bn": _one_of(*BN_MODES),
    "grid_images": _whole(1, 10_000),
    "grid_every": _whole(1),
    "log_every": _whole(1),
    "save_steps": _whole(1),
    "save_seconds": _POSITIVE,
}
_OPTIONAL = {
    item.name
    for item in dataclasses.fields(TrainConfig)
    if item.default is None and "from_preset" not in item.metadata
} | {"save_seconds", "final_momentum", "constant_epochs"}


def _satisfies(value: Any, holds: Callable[[Any], bool]) -> bool:
    try:
        return bool(holds(value))
    except TypeError:
        return False
