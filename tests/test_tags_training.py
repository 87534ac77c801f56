from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tags_runs import config, tag_data, word_vectors, write_set
from tiny_runs import assert_same_state, one_thread  # noqa: F401

from dcgan_fast.errors import UserError
from dcgan_fast.tags import TagConfig, Tagger, TagTrainer, WordVectors, load_features
from dcgan_fast.tags.data import TagData, load_tag_data
from dcgan_fast.tags.training import targets_of
from dcgan_fast.training import TrainingDiverged, load_checkpoint


def trainer(out: Path | None = None, **changes: Any) -> TagTrainer:
    return TagTrainer(config(out, **changes), data=tag_data())


# --------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_it_learns_which_words_go_with_an_image(optimizer: str) -> None:
    settings = {"sgd": {"lr": 0.03}, "adam": {"lr": 2e-3}}[optimizer]
    widths = {"noise_units": 32, "g_feature_units": 64, "word_units": 32, "d_feature_units": 32}
    chosen = config(
        updates=600,
        score_every=600,
        batch_size=32,
        d_joint_units=32,
        optimizer=optimizer,
        **settings,
        **widths,
    )
    learned = TagTrainer(chosen, data=tag_data(300, held=100))
    learned.fit()
    data = learned.data
    lists, _ = learned.tagger().predict(
        data.features.values[data.validation.rows], nearest=1, top=2, dropout=True
    )
    right = [len({*own} & {*true}) for own, true in zip(lists, data.validation.words, strict=True)]
    assert np.mean(right) / 2 > 0.6  # by the commonest words it would be 0.42


def test_schedule_of_rate_and_momentum() -> None:
    run = trainer(updates=4, lr=0.1, lr_decay=2.0, lr_min=0.02, momentum=0.5, momentum_final=0.7)
    seen = []
    run.fit([lambda t: seen.append((t.optimizer_g, t.optimizer_d))])
    seen = []
    for step in (0, 1, 2, 3, 8):
        run.step = step
        run._schedule()
        groups = [group for o in (run.optimizer_g, run.optimizer_d) for group in o.param_groups]
        assert len({(group["lr"], group["momentum"]) for group in groups}) == 1
        seen.append((groups[0]["lr"], pytest.approx(groups[0]["momentum"])))
    assert seen == [(0.1, 0.5), (0.05, 0.55), (0.025, 0.6), (0.02, 0.65), (0.02, 0.7)]


def test_an_image_comes_once_for_each_of_its_tags() -> None:
    run = trainer(batch_size=8)
    batches = run._minibatches()
    targets = targets_of(run.data.words)
    seen = []
    for _ in range(run.updates_per_epoch):
        features, vectors = next(batches)
        assert features.shape == (8, 6) and vectors.shape == (8, 5)
        for row, vector in zip(features, vectors, strict=True):
            image = int((run._features == row).all(1).nonzero())
            seen.append((image, int((targets == vector).all(1).nonzero())))
    wanted = [(i, w) for i, own in enumerate(run.data.training.words) for w in own]
    assert sorted(seen) == wanted and len(wanted) == 96
    assert seen != wanted


def test_targets_have_one_length() -> None:
    words = WordVectors(["a", "b"], [[3.0, 4.0], [0.0, 1e-3]])
    torch.testing.assert_close(targets_of(words), torch.tensor([[3.6, 4.8], [0.0, 6.0]]))


def test_fewer_pairs_than_a_batch() -> None:
    run = trainer(batch_size=1000, updates=2)
    assert (run.batch_size, run.updates_per_epoch) == (96, 1)
    run.fit()


# ---------------------------------------------------------------------------------------- outputs


def test_what_a_run_writes(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert run.fit() == tmp_path / "tags"
    assert sorted(path.name for path in (tmp_path / "tags").iterdir()) == [
        "checkpoint.previous.pt",
        "checkpoint.pt",
        "config.json",
        "features.names.txt",
        "features.npy",
        "figures.json",
        "left_out.json",
        "metrics.jsonl",
        "validation.json",
    ]
    read = {
        name: json.loads((tmp_path / "tags" / f"{name}.json").read_text())
        for name in ("config", "figures", "left_out", "validation")
    }
    assert TagConfig.from_dict(read["config"]) == run.config
    assert read["left_out"] == {"images without tags": ["x.png"]}
    figures = read["figures"]
    assert [row["step"] for row in figures["scores"]] == [5, 10, 12]
    assert figures["best_step"] == max(figures["scores"], key=lambda row: row["precision"])["step"]
    assert set(figures["baselines"]) == {"commonest tags", "10 nearest neighbours"}
    assert figures["baselines"]["10 nearest neighbours"]["recall"] > 0.9
    assert (figures["training_images"], figures["validation_images"]) == (48, 12)
    assert figures["left_out"] == {"images without tags": 1}
    assert list(read["validation"]) == run.data.validation.names
    assert all(set(own) <= set(run.data.words.words) for own in read["validation"].values())
    lines = [json.loads(line) for line in (tmp_path / "tags" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert set(lines[0]) >= {"loss_d", "loss_g", "d_x", "d_g_z1", "updates_per_s"}


def test_a_second_run_has_another_folder(tmp_path: Path) -> None:
    assert [trainer(tmp_path, updates=1).fit().name for _ in "ab"] == ["tags", "tags-2"]
    with pytest.raises(UserError, match="holds a run already"):
        trainer(tmp_path, updates=1, name="tags").fit()


def test_the_checkpoint_predicts_what_the_trainer_does(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit()
    values = run.data.features.values
    for best in (True, False):
        loaded = Tagger.load(tmp_path / "tags", best=best)
        wanted = run.tagger(best=best).predict(values, nearest=3)
        assert loaded.predict(values, nearest=3) == wanted
    assert loaded.words.words == run.data.words.words
    assert loaded.about["train_config"]["updates"] == 12


def test_the_best_look_is_kept() -> None:
    run = trainer(updates=40, score_every=4)
    states = {}
    run.fit(
        [
            lambda t: states.update(
                {t.step: {k: v.clone() for k, v in t.generator.state_dict().items()}}
            )
        ]
    )
    best = max(run.scores, key=lambda found: found["precision"])
    assert run.best["step"] == best["step"] and run.best["precision"] == best["precision"]
    assert_same_state(dict(run.best["generator"]), states[best["step"]])
    score, _ = run.validate(run.tagger())
    assert score.precision == best["precision"]


def test_nothing_to_validate(tmp_path: Path) -> None:
    data = tag_data(held=0)
    run = TagTrainer(config(tmp_path, updates=3), data=data)
    folder = run.fit()
    assert run.scores == [] and run.best is None
    assert "scores" not in json.loads((folder / "figures.json").read_text())
    assert not (folder / "validation.json").exists()
    assert len(Tagger.load(folder).predict(data.features.values, nearest=2)[0]) == 60


# --------------------------------------------------------------------------------------- resuming


class Stop(Exception):
    pass


def stop_at(step: int):
    def stop(run: TagTrainer) -> None:
        if run.step == step:
            raise Stop

    return stop


def assert_same_runs(a: Path, b: Path) -> None:
    states = [load_checkpoint(path) for path in (a, b)]
    for state in states:
        for setting in ("out", "name", "updates"):
            state["train_config"].pop(setting)
    assert_same_state(*states)
    lines = [
        [{**json.loads(line), "updates_per_s": 0} for line in (path / "metrics.jsonl").open()]
        for path in (a, b)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [6, 11])
def test_a_broken_run_continues_bit_for_bit(tmp_path: Path, stop: int, optimizer: str) -> None:
    settings = {"optimizer": optimizer, "lr": 0.01}
    whole = trainer(tmp_path / "whole", **settings).fit()
    with pytest.raises(Stop):
        trainer(tmp_path / "broken", **settings).fit([stop_at(stop)])
    torch.manual_seed(99)
    resumed = TagTrainer.resume(tmp_path / "broken", data=tag_data())
    assert resumed.step == stop // 5 * 5
    assert_same_runs(whole, resumed.fit())


def test_a_signal_writes_a_checkpoint(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole").fit()

    def interrupt(run: TagTrainer) -> None:
        if run.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "broken").fit([interrupt])
    resumed = TagTrainer.resume(tmp_path / "broken" / "tags", data=tag_data())
    assert resumed.step == 7
    assert_same_runs(whole, resumed.fit())


def test_more_updates_continue_a_complete_run(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", updates=15, momentum_updates=10).fit()
    trainer(tmp_path / "short", updates=10, momentum_updates=10).fit()
    assert TagTrainer.resume(tmp_path / "short", data=tag_data()).fit() == tmp_path / "short/tags"
    resumed = TagTrainer.resume(tmp_path / "short", data=tag_data(), updates=15)
    assert_same_runs(whole, resumed.fit())


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(tmp_path: Path) -> None:
    folder = trainer(tmp_path).fit()
    (folder / "checkpoint.pt").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="continuing from .*checkpoint.previous.pt"):
        assert TagTrainer.resume(folder, data=tag_data()).step == 10


def test_what_a_continued_run_may_not_have(tmp_path: Path) -> None:
    folder = trainer(tmp_path).fit()
    for changes, message in (
        ({"lr": 0.5}, "cannot change 'lr': it was made with 0.1, got 0.5"),
        ({"updates": 3}, "'updates' can only be raised: the run has 12, got 3"),
    ):
        with pytest.raises(UserError, match=message):
            TagTrainer.resume(folder, data=tag_data(), **changes)
    with pytest.raises(UserError, match="was trained on other data"):
        TagTrainer.resume(folder, data=tag_data(held=11))
    torch.save(
        {"format": "dcgan_fast", "version": 1, "preset": "pytorch", "config": {}},
        tmp_path / "other.pt",
    )
    with pytest.raises(UserError, match="is not a checkpoint of dcgan-fast tags train"):
        TagTrainer.resume(tmp_path / "other.pt")
    with pytest.raises(UserError, match="no checkpoint to continue from"):
        TagTrainer.resume(tmp_path / "none")


def test_divergence_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    def spoil(run: TagTrainer) -> None:
        if run.step == 7:
            run.generator.noise.weight.data.fill_(float("nan"))

    with pytest.raises(TrainingDiverged, match="a lower --lr may help"):
        trainer(tmp_path).fit([spoil])
    assert load_checkpoint(tmp_path / "tags")["step"] == 5


# ------------------------------------------------------------------------------------------- data


def read(root: Path, **changes: Any) -> TagData:
    paths = {"tags": root / "tags.tsv", "images": root / "photos", "words": root / "words.txt"}
    chosen = {**{name: str(path) for name, path in paths.items()}, **changes}
    return load_tag_data(config(**chosen))


def test_data_from_files(tmp_path: Path) -> None:
    with pytest.warns(UserWarning) as warned:
        data = read(write_set(tmp_path), validation=0.25)
    assert [str(warning.message) for warning in warned] == [
        "left out 1 tags without a vector: unknown (1)",
        "left out 1 images of the tags file that are not there: gone.png",
        "left out 1 images without tags: untagged.png",
    ]
    assert (len(data.training), len(data.validation)) == (18, 6)
    assert not {*data.training.names} & {*data.validation.names}
    assert data.words.words == ["red", "green", "blue", "dark", "bright"]
    assert data.features.width == 768
    for part in (data.training, data.validation):
        for row, name, words in zip(part.rows, part.names, part.words, strict=True):
            assert data.features.names[row] == name
            number = int(name[:3])
            assert words == [number % 3, 3 + number // 3 % 2]


@pytest.mark.filterwarnings("ignore:left out")
def test_which_images_are_held_depends_on_the_seed_alone(tmp_path: Path) -> None:
    write_set(tmp_path)
    first, same, other = (read(tmp_path, validation=0.5, seed=s) for s in (1, 1, 2))
    assert first.validation.names == same.validation.names != other.validation.names
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()


@pytest.mark.filterwarnings("ignore:left out")
def test_validation_images_of_a_file_of_their_own(tmp_path: Path) -> None:
    write_set(tmp_path)
    lines = (tmp_path / "tags.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "tags.tsv").write_text("".join(lines[:-6]))
    (tmp_path / "held.tsv").write_text("".join(lines[-6:]))
    data = read(tmp_path, validation_tags=str(tmp_path / "held.tsv"))
    assert data.validation.names == [f"{n:03}.png" for n in range(18, 24)]
    assert data.training.names == [f"{n:03}.png" for n in range(18)]
    assert data.left_out["images without tags"] == ["untagged.png"]
    (tmp_path / "held.tsv").write_text("".join(lines[-7:]))
    with pytest.raises(UserError, match="'017.png' is in both files of tags"):
        read(tmp_path, validation_tags=str(tmp_path / "held.tsv"))


@pytest.mark.filterwarnings("ignore:left out")
def test_words_to_choose_from(tmp_path: Path) -> None:
    write_set(tmp_path)
    assert "unused" not in read(tmp_path).words.words
    assert read(tmp_path, candidates="all").words.words[-1] == "unused"


@pytest.mark.filterwarnings("ignore:left out")
def test_rare_words_are_not_learned_but_count_as_missed(tmp_path: Path) -> None:
    write_set(tmp_path)
    first = read(tmp_path).training.names[0]
    with (tmp_path / "tags.tsv").open("a") as file:
        file.write(f"{first}\tunused\n")
    assert len(read(tmp_path).words) == 6
    data = read(tmp_path, min_count=2)
    assert "unused" not in data.words.words and data.training.names[0] == first
    assert all(row < 5 for own in data.training.words for row in own)
    with pytest.raises(UserError, match="no tag is on 99 training images or more .* is on 1"):
        read(tmp_path, min_count=99)


@pytest.mark.filterwarnings("ignore:left out")
def test_word_vectors_are_centred_unless_told(tmp_path: Path) -> None:
    write_set(tmp_path)
    vectors = read(tmp_path).words.vectors
    torch.testing.assert_close(vectors.mean(0), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors.std(0, unbiased=False), torch.ones(5))
    plain = read(tmp_path, centre_words=False).words
    torch.testing.assert_close(plain.vectors, word_vectors().vectors[:5], atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:left out")
def test_tags_of_validation_images_alone_count_as_missed(tmp_path: Path) -> None:
    write_set(tmp_path)
    held = read(tmp_path, validation=0.25).validation.names[0]
    with (tmp_path / "tags.tsv").open("a") as file:
        file.write(f"{held}\tunused\n")
    data = read(tmp_path, validation=0.25)
    assert "unused" not in data.words.words
    assert len(data.words) in data.validation.words[0]


@pytest.mark.filterwarnings("ignore:left out")
def test_features_of_a_run_are_read_not_made_again(tmp_path: Path) -> None:
    write_set(tmp_path)
    run = TagTrainer(
        config(
            tmp_path / "runs",
            tags=str(tmp_path / "tags.tsv"),
            images=str(tmp_path / "photos"),
            words=str(tmp_path / "words.txt"),
            updates=2,
        )
    )
    folder = run.fit()
    again = read(tmp_path, features=str(folder / "features.npy"), images=None)
    assert again.fingerprint() == run.data.fingerprint()
    assert load_features(folder / "features.npy").names == run.data.features.names
    for path in (tmp_path / "photos").iterdir():
        path.unlink()
    assert TagTrainer.resume(folder, updates=4).fit() == folder


@pytest.mark.filterwarnings("ignore:left out")
def test_words_learned_from_the_tags(tmp_path: Path) -> None:
    pytest.importorskip("gensim")
    data = read(write_set(tmp_path), words=None)
    assert sorted(data.words.words) == ["blue", "bright", "dark", "green", "red"]
    assert data.words.width == 200


@pytest.mark.filterwarnings("ignore:left out")
def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "tags.tsv").write_text("000.png\tunknown\n001.png\tred\ngone.png\tred\n")
    (tmp_path / "words.txt").write_text("red 1 2\n")
    (tmp_path / "photos" / "001.png").unlink()
    with pytest.raises(
        UserError,
        match="no image is left to train on: of 3 that it names 2 are not there; of 24 that are "
        "there 23 have no tags, 1 none with a vector",
    ):
        read(tmp_path)


def test_names_go_with_an_array_of_features(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'feature_names' goes with a .npy of features"):
        read(write_set(tmp_path), feature_names="names.txt")


# ----------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("validation", 1.0, "'validation' must be a number from 0 to below 1, got 1.0"),
        ("updates", 0, "'updates' must be a whole number of at least 1, got 0"),
        ("optimizer", "lbfgs", "'optimizer' must be one of sgd, adam, got 'lbfgs'"),
        ("candidates", "some", "'candidates' must be one of tags, all, got 'some'"),
        ("lr", 0, "'lr' must be a positive number, got 0"),
        ("lr", "fast", "'lr' must be a positive number, got 'fast'"),
        ("lr_decay", 0.9, "'lr_decay' must be a number of at least 1, got 0.9"),
        ("momentum", 1, "'momentum' must be a number from 0 to below 1, got 1"),
        ("feature_scaling", "x", "'feature_scaling' must be one of imagenet, symmetric, unit"),
        ("seed", None, "'seed' must be a whole number of at least 0, got None"),
    ],
)
def test_wrong_settings(setting: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TagConfig(**{setting: value})


def test_each_optimizer_has_a_rate_of_its_own() -> None:
    assert (TagConfig().lr, TagConfig(optimizer="adam").lr) == (0.1, 5e-4)
    assert TagConfig(optimizer="adam", lr=0.1).lr == 0.1


def test_rare_tags_are_left_out_where_vectors_are_learned() -> None:
    assert (TagConfig().min_count, TagConfig(words="w.txt").min_count) == (5, 1)


def test_config_as_a_dictionary() -> None:
    chosen = TagConfig(tags="a.json", lr=0.3)
    assert TagConfig.from_dict(json.loads(chosen.to_json())) == chosen
    with pytest.raises(
        UserError, match="unknown setting 'speed'; the settings are|unknown setting"
    ):
        TagConfig.from_dict({"speed": 1})
