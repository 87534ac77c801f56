"""Whether a generator collapses while it trains: what its filters and its samples do on latents that stay the same.

The DCGAN paper names one failure of its own nets: trained long, "they sometimes collapse a subset of filters to a
single oscillating mode" (section 6). That may mean a mode in space or one in time; both are measured. At a look G draws
64 fixed latents, batch norm using their statistics as in training. A filter's map, (samples, height, width), is what
the next convolution gets of it, after its activation.

=============  ====================================================================================================
deviation      standard deviation of the map over samples and positions
sameness       share of that variance which is the samples' mean picture's: 1 where the filter draws one picture
               whatever the latent, near 0 where the samples have nothing in common
wave           share of the variance within samples that lies in each sample's strongest Fourier component, the mean
               weighted by variance: 1 of a pure wave, 0.84 of one that a ReLU has halved
swing          how far the map goes to and fro between looks: with d_i the change of the map from a look to the next,
               over the last eight looks, and v its variance on average, the root of the mean of -<d_i, d_i+1> / v; 0
               where that is negative. 0 at rest and in steady drift; 1 where every look shows an unrelated picture; 2
               where the map changes its sign at each look
diversity      of the samples: the mean distance between two of them (of one class, where there are classes), over that
               between two real images; Euclidean, of pixels
=============  ====================================================================================================

A filter has collapsed where its deviation is at most a hundredth of its layer's largest, its sameness at least 0.99, or
its wave at least 0.95 on maps of 8x8 or more. It oscillates where its swing is at least 1. The samples have collapsed
where their diversity is at most 0.15. Whether these bounds hold is measured in ``docs/watch.md``.

Waves and swings are of the first 16 latents; swings of 16 random projections of their maps, whose mean products are
those of the maps within a quarter or so: a checkpoint keeps these and no maps. A look, every hundred steps, and the
gradients' norms at each line of the log take 0.4% of the time of training on digits, 0.14% at 64x64 (measured there).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import batch_norm_mode
from .log import Record

__all__ = ["CollapseWatch", "FilterLook", "filter_looks", "gradient_norm", "pair_distance"]

LATENTS = 64  # that are looked at
STEPS = 100  # between looks
DEAD, SAME, WAVE, SWING, ALIKE = 0.01, 0.99, 0.95, 1.0, 0.15  # the bounds, see above
SHARE, FEWEST = 0.05, 2  # of a layer's filters that must have collapsed for a warning
IN_A_ROW = 3  # looks at which that must be so
EARLY = 5  # looks at which variety does not count: a young generator has little
_FEW = 16  # samples of which waves and swings are: enough for a mean, and a quarter of the cost
_WAVE_SIDE = 8  # of the smallest maps that show waves: on 4x4 two components are a quarter of all
_PROJECTIONS = 16
_KEPT, _FEWEST_KEPT = 8, 4  # looks that a swing is of
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class FilterLook:
    """A layer's filters at one look; float32 (filters,) on the CPU, each as the top of this module says.

    layer:      name of the convolution or linear layer whose filters they are, ``main.3``
    shape:      of a sample's maps, (filters, height, width)
    projection: float32 (filters, 16): the maps by vectors of random signs, over the root of the maps' length
    """

    layer: str
    shape: tuple[int, int, int]
    deviation: Tensor
    sameness: Tensor
    wave: Tensor
    projection: Tensor

    @property
    def dead(self) -> Tensor:
        """bool (filters,); so are the next two."""
        return self.deviation <= DEAD * self.deviation.max()

    @property
    def same(self) -> Tensor:
        """Alive, and of one picture whatever the latent."""
        return (self.sameness >= SAME) & ~self.dead

    @property
    def waves(self) -> Tensor:
        """Alive, of pictures that differ, each of which is a single wave."""
        large = min(self.shape[1:]) >= _WAVE_SIDE
        return (self.wave >= WAVE) & ~(self.dead | self.same) & large

    @property
    def collapsed(self) -> Tensor:
        return self.dead | self.same | self.waves


def _measure(layer: str, maps: Tensor) -> FilterLook:
    maps = maps.detach().float()
    _, filters, height, width = maps.shape
    variance = maps.var((0, 2, 3), correction=0)
    of_mean = maps.mean(0).flatten(1).var(1, correction=0)
    sameness = torch.where(variance > 0, of_mean / variance, 1.0)
    few = maps[:_FEW]
    power = _of_waves(few).flatten(2)
    total = power.sum((0, 2))
    wave = torch.where(total > 0, power.amax(2).sum(0) / total, 1.0)
    length = len(few) * height * width
    stream = torch.Generator().manual_seed(length)
    signs = torch.randint(0, 2, (length, _PROJECTIONS), generator=stream, dtype=torch.int8) * 2 - 1
    rows = few.transpose(0, 1).reshape(filters, length)
    projection = rows @ signs.to(rows) / math.sqrt(length)
    columns = [variance.sqrt()[:, None], sameness[:, None], wave[:, None], projection]
    deviation, sameness, wave, projection = (
        torch.cat(columns, 1).cpu().split([1, 1, 1, _PROJECTIONS], 1)
    )
    flat = deviation.flatten(), sameness.flatten(), wave.flatten()
    return FilterLook(layer, (filters, height, width), *flat, projection)


def _of_waves(maps: Tensor) -> Tensor:
    """(..., height, width // 2 + 1): the power of each wave in real maps, of the mean none.

    A wave is two components of the transform, at a frequency and at its negative, of equal power. Of most of these
    pairs ``rfft2`` leaves one out; of those in the first column, and in the last of an even width, it does not.
    """
    height, width = maps.shape[-2:]
    power = torch.fft.rfft2(maps).abs().square()
    power[..., 1 : (width + 1) // 2] *= 2
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        power[..., 1 : (height + 1) // 2, column] *= 2
        power[..., height // 2 + 1 :, column] = 0
    power[..., 0, 0] = 0
    return power


def filter_looks(generator: nn.Module, *input: Tensor) -> tuple[list[FilterLook], Tensor]:
    """Every filter that feeds a convolution, layer by layer as they run, and the images (N, C, S, S).

    Args:
        generator: any module; of what is no ``nn.Conv2d`` or ``nn.ConvTranspose2d`` nothing is seen. Batch norm uses
            the statistics of this batch, dropout is off; the module comes back as it was.
        input: what it is called with: latents, at least two, and labels where it takes some.
    """
    found: list[FilterLook] = []
    last = ""

    def watcher(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def see(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            nonlocal last
            maps = arguments[0]
            if isinstance(module, _CONVOLUTIONS) and last and maps.shape[2:].numel() > 1:
                found.append(_measure(last, maps))
            last = name

        return see

    with torch.no_grad(), _still(generator):
        handles = [
            module.register_forward_pre_hook(watcher(name))
            for name, module in generator.named_modules()
            if isinstance(module, (*_CONVOLUTIONS, nn.Linear))
        ]
        try:
            return found, generator(*input)
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _still(generator: nn.Module) -> Iterator[None]:
    """In evaluation mode but for batch norm; afterwards as it was."""
    modes = [(module, module.training) for module in generator.modules()]
    try:
        with batch_norm_mode(generator.eval(), "batch"):
            yield
    finally:
        for module, training in modes:
            module.training = training


def pair_distance(images: Tensor, labels: Tensor | None = None) -> float:
    """The mean Euclidean distance between two images (N, ...), with ``labels`` (N,) between two of one class.

    NaN where there are no two.
    """
    rows = images.detach().float().flatten(1)
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = torch.ones_like(distances, dtype=torch.bool)
    if labels is not None:
        pairs = labels[:, None] == labels
    return float(distances[pairs.triu(1)].mean())


def gradient_norm(network: nn.Module) -> Tensor:
    """The Euclidean norm of all gradients that ``network`` holds, a scalar on their device."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


class CollapseWatch:
    """Looks at a generator from time to time, and says once when it collapses.

    Args:
        input: the fixed latents (N, ...), N >= 2, and their labels where the generator takes some.
        real_distance: :func:`pair_distance` of real images in [0, 1], with their labels where there are some. Where it
            is not above 0, diversity is not measured.
        value_range: of the generator's images.

    Attributes:
        layers: the :class:`FilterLook` of each layer at the last look; empty before the first, and of a generator
            without convolutions.
        swings: float32 (filters,) of each of these, empty before there are four looks.
        looks: how many there were.
    """

    def __init__(
        self,
        input: Sequence[Tensor],
        real_distance: float = math.nan,
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        self._input = tuple(input)
        self._real_distance, self._value_range = real_distance, value_range
        self.layers: list[FilterLook] = []
        self.looks = 0
        self._kept: list[Tensor] = []  # of each layer (looks, filters, deviation and projection)
        self._streaks = {"filters": 0, "oscillation": 0, "samples": 0}
        self._has_warned = False

    @property
    def swings(self) -> list[Tensor]:
        return [_swing(kept) for kept in self._kept if len(kept) >= _FEWEST_KEPT]

    def look(self, generator: nn.Module) -> Record:
        """Measure ``generator`` as it is: a few numbers for a line of the log.

        ``diversity``; of all filters the share that has ``collapsed`` and that is ``oscillating``, and the mean
        ``sameness``, ``wave`` and ``swing``. What cannot be measured (yet) is left out. No random state of PyTorch is
        touched.
        """
        self.layers, images = filter_looks(generator, *self._input)
        self.looks += 1
        self._keep()
        found: Record = {}
        if self._real_distance > 0:
            low, high = self._value_range
            labels = self._input[1] if len(self._input) > 1 else None
            found["diversity"] = pair_distance((images - low) / (high - low), labels)
            found["diversity"] /= self._real_distance
        if self.layers:
            found["sameness"] = _mean([each.sameness for each in self.layers])
            found["wave"] = _mean([each.wave for each in self.layers])
            found["collapsed"] = _mean([each.collapsed for each in self.layers])
        if swings := self.swings:
            found["swing"] = _mean(swings)
            found["oscillating"] = _mean([each >= SWING for each in swings])
        self._count(found)
        return found

    def _keep(self) -> None:
        """Add this look to those before it, or begin anew where the layers are others."""
        new = [torch.cat([each.deviation[:, None], each.projection], 1) for each in self.layers]
        old = self._kept
        if [each.shape[1:] for each in old] != [each.shape for each in new]:
            old = [each.new_empty(0, *each.shape) for each in new]
        self._kept = [
            torch.cat([a, b[None]])[-_KEPT:].clone() for a, b in zip(old, new, strict=True)
        ]

    def _count(self, found: Record) -> None:
        """For how many looks in a row each kind of collapse has been there."""
        early = self.looks <= EARLY
        there = {
            "filters": any(
                _many(each.dead | each.waves if early else each.collapsed) for each in self.layers
            ),
            "oscillation": any(_many(each >= SWING) for each in self.swings),
            "samples": found.get("diversity", 1.0) <= ALIKE and not early,
        }
        for kind, is_there in there.items():
            self._streaks[kind] = self._streaks[kind] + 1 if is_there else 0

    def warning(self) -> str | None:
        """What has collapsed for three looks in a row, in a sentence; None where nothing has, or it was said before."""
        kinds = [kind for kind, streak in self._streaks.items() if streak >= IN_A_ROW]
        if self._has_warned or not kinds:
            return None
        self._has_warned = True
        parts = []
        if "filters" in kinds:
            parts += [
                f"{int(which.sum())} of the {len(which)} filters of {each.layer} {what}"
                for each in self.layers
                if _many(each.collapsed)
                for which, what in (
                    (each.dead, "draw nothing"),
                    (each.same, "draw one picture whatever the latent"),
                    (each.waves, "draw a single wave"),
                )
                if which.any()
            ]
        if "oscillation" in kinds:
            parts += [
                f"{int((swing >= SWING).sum())} of the {len(swing)} filters of {each.layer} draw another picture at "
                "each look"
                for each, swing in zip(self.layers, self.swings, strict=True)
                if _many(swing >= SWING)
            ]
        if "samples" in kinds:
            parts.append("its samples are nearly alike")
        return f"the generator collapses: {', '.join(parts)}"

    def state(self) -> dict[str, Any]:
        """What the next looks depend on, for a checkpoint."""
        return {
            "looks": self.looks,
            "kept": list(self._kept),
            "streaks": dict(self._streaks),
            "has_warned": self._has_warned,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError, TypeError or LookupError where ``state`` is not one that :meth:`state` gave."""
        kept, streaks = (
            list(state["kept"]),
            {kind: state["streaks"][kind] for kind in self._streaks},
        )
        numbers = (state["looks"], *streaks.values())
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"the watch has counted {numbers}")
        if not all(isinstance(layer, Tensor) and layer.dim() == 3 for layer in kept):
            raise ValueError("the watch has kept other values than (looks, filters, 2)")
        self.looks, self._has_warned = state["looks"], bool(state["has_warned"])
        self._kept, self._streaks = kept, streaks


def _swing(kept: Tensor) -> Tensor:
    """float32 (filters,) of (looks, filters, deviation and projection)."""
    changes = kept[..., 1:].diff(dim=0)
    reversals = -(changes[1:] * changes[:-1]).mean((0, 2))
    variance = kept[..., 0].square().mean(0)
    return torch.where(variance > 0, reversals.clamp_min(0) / variance, 0.0).sqrt()


def _mean(of_layers: Sequence[Tensor]) -> float:
    return float(torch.cat(list(of_layers)).float().mean())


def _many(which: Tensor) -> bool:
    """Enough of a layer's filters for a warning."""
    return int(which.sum()) >= max(FEWEST, SHARE * len(which))
