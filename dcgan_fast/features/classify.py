"""The DCGAN paper's experiment: linear SVMs on a discriminator's features, beside what else there is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from tqdm import tqdm

from ..data.dataset import Dataset
from ..errors import UserError
from ..layers import with_population_statistics
from ..models import Discriminator
from .baselines import KMeansFeatures, pixels, random_discriminator, supervised_accuracy
from .discriminator import DiscriminatorFeatures
from .svm import LinearSVM

__all__ = ["BASELINES", "GRID", "Accuracy", "Classification", "classify", "draw_bars"]

GRID = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
"""The values of C that the paper's SVHN script tries."""
BASELINES = ("pixels", "random", "kmeans", "cnn")
_VALIDATION = 10_000  # images at most, and a sixth of the training set
_NAMES = {
    "ours": "the discriminator",
    "pixels": "raw pixels",
    "random": "a discriminator of random weights",
    "kmeans": "single-layer K-means",
    "cnn": "a supervised CNN of its shape",
}


@dataclass(frozen=True)
class Accuracy:
    """A row of the table.

    name: of what was classified
    accuracy, interval: on the test images, and the half width of its 95% interval
    features: numbers an image; C: the chosen one; validation: the accuracy of each C. Of a CNN 0, None and none
    gap: by how much at most an SVM's objective was above its least value, as a share of it: the largest of all fits
    """

    name: str
    accuracy: float
    interval: float
    features: int
    C: float | None
    validation: dict[str, float]
    gap: float = 0.0


@dataclass(frozen=True)
class Classification:
    """What was found, and on how many images."""

    rows: list[Accuracy]
    classes: int
    labels: int
    resamples: int
    validation_images: int
    test_images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def classify(
    network: Discriminator,
    training: Dataset,
    test: Dataset,
    *,
    labels: int | None = None,
    resamples: int = 10,
    grid: Sequence[float] = GRID,
    baselines: Sequence[str] = ("pixels", "random"),
    layers: tuple[int, ...] | None = None,
    dtype: str = "float32",
    seed: int = 0,
    progress: bool = False,
) -> Classification:
    """Accuracies of linear SVMs on the features of ``network`` and of ``baselines``.

    A sixth of the training images, at most 10,000, is held out to choose C. With ``labels`` the classifiers see only so
    many of the others, as many of each class: ``resamples`` draws choose C, as many others are scored on the test
    images, and the interval is that of their mean. Without, they see all, and it is that of the test images.

    Args:
        network: a trained one.
        training, test: labelled images of its size and channels.
        labels: how many, at least one of each class; None: all.
        resamples: draws, at least 2; of a CNN at most 3.
        grid: values of C.
        baselines: of :data:`BASELINES`.
        layers, dtype: as :class:`DiscriminatorFeatures`.
        seed: of draws and baselines.
        progress: whether to show bars.

    Raises:
        UserError: no labels, a single class, sets that do not match, too many or too few ``labels``, or an unknown
            baseline.

    Source: Radford, Metz, Chintala 2016, sections 5.1 and 5.2, and ``svhn_semisup_analysis.py`` of its code.
    """
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise UserError(
            f"classify(): 'baselines' must be of {', '.join(BASELINES)}, got {unknown[0]!r}"
        )
    if resamples < 2:
        raise UserError(f"classify(): 'resamples' must be at least 2, got {resamples}")
    plan = _Plan(training, test, labels, resamples, seed)
    kinds: dict[str, Callable[[], tuple[NDArray[Any], NDArray[Any]]]] = {
        "ours": lambda: _by_network(network),
        "pixels": lambda: (pixels(training.images), pixels(test.images)),
        "random": lambda: _by_network(
            with_population_statistics(random_discriminator(network, seed), training.images)
        ),
        "kmeans": lambda: _by_kmeans(),
    }

    def _by_network(net: Discriminator) -> tuple[NDArray[Any], NDArray[Any]]:
        features = DiscriminatorFeatures(
            net, layers=layers, dtype=dtype, device="cpu", progress=progress
        )
        return features.transform(training), features.transform(test)

    def _by_kmeans() -> tuple[NDArray[Any], NDArray[Any]]:
        features = KMeansFeatures().fit(training.images, seed)
        return features.transform(training.images), features.transform(test.images)

    rows = []
    for name in ("ours", *baselines):
        if name == "cnn":
            rows.append(_cnn(network, training, test, plan, progress))
        else:
            rows.append(_svm(_NAMES[name], *kinds[name](), plan, grid, progress))
    return Classification(
        rows,
        len(plan.names),
        len(plan.draws[0]),
        len(plan.draws),
        len(plan.validation),
        len(test),
    )


class _Plan:
    """Which images are drawn, held out and scored."""

    def __init__(
        self, training: Dataset, test: Dataset, labels: int | None, resamples: int, seed: int
    ) -> None:
        for part, what in ((training, "training"), (test, "test")):
            if part.labels is None:
                raise UserError(
                    f"{part.name}: the {what} images have no labels to learn or to be scored by"
                )
        assert training.labels is not None and test.labels is not None
        self.names = np.unique(training.labels)
        if len(self.names) < 2:
            raise UserError(
                f"{training.name}: images of two classes at least are needed, got one class"
            )
        strange = np.setdiff1d(test.labels, self.names)
        if len(strange):
            raise UserError(
                f"{test.name}: the test images have class {strange[0]}, which no training image has"
            )
        self.y = np.searchsorted(self.names, training.labels)
        self.y_test = np.searchsorted(self.names, test.labels)
        random = check_random_state(seed)
        order = random.permutation(len(training))
        held_out = min(_VALIDATION, max(1, len(training) // 6))
        self.validation, rest = np.sort(order[:held_out]), order[held_out:]
        self.few = labels is not None
        if labels is None:
            self.draws = [np.sort(rest)]
            if len(np.unique(self.y[rest])) < 2:
                raise UserError(
                    f"{training.name}: too few images: those to train on are of one class"
                )
            return
        each, more = divmod(labels, len(self.names))
        of_class = [rest[self.y[rest] == c] for c in range(len(self.names))]
        fewest = min(map(len, of_class))
        if each < 1 or each + (more > 0) > fewest:
            raise UserError(
                f"classify(): 'labels' must be from {len(self.names)}, one of each class, to "
                f"{fewest * len(self.names)}, as many as there are, got {labels}"
            )
        self.draws = [
            np.concatenate(
                [
                    random.choice(rows, each + (c < more), replace=False)
                    for c, rows in enumerate(of_class)
                ]
            )
            for _ in range(2 * resamples)
        ]

    def to_choose_by(self) -> list[NDArray[Any]]:
        return self.draws[: len(self.draws) // 2] if self.few else self.draws

    def to_score(self) -> list[NDArray[Any]]:
        return self.draws[len(self.draws) // 2 :] if self.few else self.draws

    def interval(self, accuracies: Sequence[float]) -> float:
        """Half the width of 95%: of the mean over draws, or of one accuracy over the test images."""
        if len(accuracies) > 1:
            return 1.96 * float(np.std(accuracies, ddof=1)) / math.sqrt(len(accuracies))
        p = accuracies[0]
        return 1.96 * math.sqrt(p * (1 - p) / len(self.y_test))


def _svm(
    name: str,
    train: NDArray[Any],
    test: NDArray[Any],
    plan: _Plan,
    grid: Sequence[float],
    progress: bool,
) -> Accuracy:
    tried: dict[float, list[float]] = {C: [] for C in sorted(grid)}
    held_out, held_out_y = train[plan.validation], plan.y[plan.validation]
    gap = 0.0

    def fitted(svm: LinearSVM, rows: NDArray[Any], y: NDArray[Any]) -> LinearSVM:
        nonlocal gap
        svm.fit(rows, y)
        gap = max(gap, float((svm.dual_gap_ / svm.objective_).max()))
        return svm

    total = len(grid) * len(plan.to_choose_by()) + len(plan.to_score())
    with (
        warnings.catch_warnings(),
        tqdm(total=total, desc=name, unit=" SVMs", disable=not progress) as bar,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)  # `gap` says it once, for all fits
        for draw in plan.to_choose_by():
            rows, path = train[draw], LinearSVM(warm_start=True)
            for C in tried:
                fitted(path.set_params(C=C), rows, plan.y[draw])
                tried[C].append(path.score(held_out, held_out_y))
                bar.update()
        means = {C: float(np.mean(found)) for C, found in tried.items()}
        best = max(means, key=lambda C: means[C])
        found = []
        for draw in plan.to_score():
            svm = fitted(LinearSVM(best), train[draw], plan.y[draw])
            found.append(svm.score(test, plan.y_test))
            bar.update()
    validation = {f"{C:g}": mean for C, mean in means.items()}
    mean = float(np.mean(found))
    return Accuracy(name, mean, plan.interval(found), train.shape[1], best, validation, gap)


def _cnn(
    network: Discriminator, training: Dataset, test: Dataset, plan: _Plan, progress: bool
) -> Accuracy:
    held_out = training.images[plan.validation], plan.y[plan.validation]
    scored = test.images, plan.y_test
    found = [
        float(
            supervised_accuracy(
                network,
                (training.images[draw], plan.y[draw]),
                held_out,
                scored,
                seed=seed,
                progress=progress,
            ).mean()
        )
        for seed, draw in enumerate(plan.to_score()[:3])
    ]
    return Accuracy(_NAMES["cnn"], float(np.mean(found)), plan.interval(found), 0, None, {})


_BAR, _WIDE, _TEXT = 28, 900, 260


def draw_bars(found: Classification) -> Image.Image:
    """The accuracies as bars with their intervals."""
    picture = Image.new("RGB", (_WIDE, 50 + (_BAR + 14) * len(found.rows)), "white")
    draw = ImageDraw.Draw(picture)
    draw.text(
        (12, 12),
        f"accuracy on {found.test_images:,} test images of {found.classes} classes, linear SVMs on "
        f"{found.labels:,} labelled images; lines: 95%",
        fill="black",
    )
    scale = _WIDE - _TEXT - 110
    for i, row in enumerate(found.rows):
        top = 40 + i * (_BAR + 14)
        middle = top + _BAR // 2
        draw.text((12, middle - 6), row.name, fill="black")
        end = _TEXT + scale * row.accuracy
        draw.rectangle(
            (_TEXT, top, end, top + _BAR), fill=(33, 102, 172) if i == 0 else (160, 174, 192)
        )
        low, high = (
            _TEXT + scale * min(1, max(0, row.accuracy + side * row.interval)) for side in (-1, 1)
        )
        draw.line((low, middle, high, middle), fill="black", width=2)
        text = f"{row.accuracy:.1%} ± {row.interval:.1%}"
        draw.text((max(end, high) + 8, middle - 6), text, fill="black")
    return picture
