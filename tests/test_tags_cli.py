from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tags_runs import config, tag_data, write_set
from test_cli import error_of  # noqa: F401
from tiny_runs import one_thread  # noqa: F401

from dcgan_fast import cli
from dcgan_fast.errors import UserError
from dcgan_fast.tags import TagConfig, TagTrainer, load_features, read_tags
from dcgan_fast.tags.predict_images import predict_images
from dcgan_fast.training import load_checkpoint

pytestmark = pytest.mark.filterwarnings("always:left out")  # as the set is made for

TINY = (
    "--words words.txt --nz 4 --noise-units 8 --g-feature-units 16 --word-units 8 "
    "--d-feature-units 16 --d-joint-units 8 --batch-size 8 --updates 6 --score-every 3 "
    "--validation 0.25 --device cpu"
).split()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set and a finished run in runs/tags; not to be changed."""
    root = write_set(tmp_path_factory.mktemp("made") / "set")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert cli.main(["tags", "train", "tags.tsv", "photos", *TINY]) == 0
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is where the commands run."""
    shutil.copytree(made, tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    return tmp_path / "set"


# ------------------------------------------------------------------------------------------ train


def test_train_says_what_it_does_and_where(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tags", "train", "tags.tsv", "photos", *TINY, "--name", "again"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == (
        "18 images of 768 features to train on, 36 tags; 6 images to score; 5 words of 5; "
        "12,469 + 12,961 weights; 6 updates on cpu"
    )
    assert lines[1].startswith("  update ") and "% of the words right" in lines[1]
    assert lines[2].startswith("  commonest tags ")
    assert lines[3].startswith("  10 nearest neighbours ")
    assert lines[4] == (
        "runs/again: 6 updates; tag images with: dcgan-fast tags predict runs/again IMAGES"
    )
    assert err.splitlines() == [
        "dcgan-fast: warning: left out 1 tags without a vector: unknown (1)",
        "dcgan-fast: warning: left out 1 images of the tags file that are not there: gone.png",
        "dcgan-fast: warning: left out 1 images without tags: untagged.png",
    ]
    left_out = json.loads(Path("runs/again/left_out.json").read_text())
    assert left_out["images of the tags file that are not there"] == ["gone.png"]


def test_images_are_beside_their_tags_unless_told(here: Path) -> None:
    for path in (here / "photos").iterdir():
        path.rename(here / path.name)
    assert cli.main(["tags", "train", *TINY, "--name", "beside"]) == 0
    assert load_features("runs/beside/features.npy").names[0] == "000.png"


def test_every_flag_reaches_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(config: TagConfig) -> None:
        seen.append(config)
        raise UserError("enough")

    monkeypatch.setattr("dcgan_fast.tags.TagTrainer", note)
    flags = (
        "t.json photos --features f.npy --feature-names n.txt --feature-size 3 --feature-scaling unit "
        "--words w.npy --vocabulary v.txt --candidates all --min-count 3 --no-centre-words "
        "--validation 0.2 --validation-tags h.tsv "
        "--nz 4 --noise-units 5 --g-feature-units 6 --g-joint-units 7 --word-units 8 --d-feature-units 9 "
        "--d-joint-units 10 --pieces 11 --dropout 0.1 --updates 12 --batch-size 13 "
        "--optimizer adam --lr 0.3 --lr-decay 1.5 --lr-min 0.01 --momentum 0.2 "
        "--momentum-final 0.4 --momentum-updates 14 --seed 15 --device cpu --threads 16 --out o "
        "--name n --log-every 17 --score-every 18 --save-seconds 19"
    )
    assert cli.main(["tags", "train", *flags.split()]) == 2
    values = {**vars(seen[0])}
    default = vars(TagConfig())
    assert [name for name in default if values[name] == default[name]] == []
    assert seen[0] == TagConfig(
        "t.json", "photos", "f.npy", "n.txt", 3, "unit", "w.npy", "v.txt", "all", 3, False, 0.2, "h.tsv", 4, 5, 6, 7,
        8, 9, 10, 11, 0.1, 12, 13, "adam", 0.3, 1.5, 0.01, 0.2, 0.4, 14, 15, "cpu", 16, "o", "n",
        17, 18, 19.0,
    )  # fmt: skip
    assert cli.main(["tags", "train"]) == 2
    assert seen[1] == TagConfig()


def test_resume(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tags", "train", "--resume"]) == 0
    assert (
        "complete at update 6 already; more --updates would continue it" in capsys.readouterr().out
    )
    assert cli.main(["tags", "train", "--resume", "runs/tags", "--updates", "9"]) == 0
    assert load_checkpoint("runs/tags")["step"] == 9


def test_stopped_by_ctrl_c(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(self: TagTrainer, listeners: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TagTrainer, "fit", stop)
    assert cli.main(["tags", "train", "--resume", "--updates", "9"]) == 130
    assert capsys.readouterr().err.endswith(
        "stopped after update 6; continue with: dcgan-fast tags train --resume runs/tags\n"
    )


# ---------------------------------------------------------------------------------------- predict


def test_predict(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = "tags predict runs/tags photos --device cpu --top 2 --tags tags.tsv --figures f.json"
    assert cli.main(argv.split()) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "words.json: 25 images with their words, commonest first"
    assert out[1].startswith("24 images with tags: ") and "% of the tags found" in out[1]
    words = read_tags("words.json")
    assert len(words) == 25 and all(len(own) == 2 for own in words.values())
    figures = json.loads(Path("f.json").read_text())
    assert figures["score"]["images"] == 24
    assert (figures["samples"], figures["nearest"], figures["top"]) == (100, 20, 2)
    truth = read_tags("tags.tsv")
    right = [len({*words[i]} & {*own}) / 2 for i, own in truth.items() if i in words]
    assert figures["score"]["precision"] == pytest.approx(np.mean(right), abs=1e-4)


def test_predict_as_lines_and_from_an_array(here: Path) -> None:
    argv = "tags predict runs/tags runs/tags/features.npy --device cpu --out words.tsv --last"
    assert cli.main(argv.split()) == 0
    assert cli.main("tags predict runs/tags photos --device cpu --last".split()) == 0
    assert read_tags("words.tsv") == read_tags("words.json")


def test_a_network_that_has_moved_or_changed(here: Path) -> None:
    for name, units in (("net.pt2", 3), ("other.pt2", 3), ("wide.pt2", 4)):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, units))
        torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 8, 8),)), name)
    assert cli.main(["tags", "train", "tags.tsv", "photos", "--features", "net.pt2", *TINY]) == 0
    Path("net.pt2").rename("moved.pt2")
    with pytest.raises(UserError, match="no such checkpoint: net.pt2"):
        predict_images("runs/tags-2", "photos")
    found = predict_images("runs/tags-2", "photos", features="moved.pt2")
    assert found.words == predict_images("runs/tags-2", "runs/tags-2/features.npy").words
    with pytest.warns(UserWarning, match="other.pt2 is not the file that made the features"):
        predict_images("runs/tags-2", "photos", features="other.pt2")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="of 3 numbers, these have 4"):
        predict_images("runs/tags-2", "photos", features="wide.pt2")


def test_tags_that_training_never_saw_count_as_missed(here: Path) -> None:
    Path("truth.tsv").write_text("000.png\tred\n001.png\tnever,Never,seen,red\n")
    found = predict_images("runs/tags", "photos", truth="truth.tsv")
    assert found.score.recall == pytest.approx((1 + 1 / 3) / 2, abs=1e-4)  # of red, never, seen
    Path("truth.tsv").write_text("other.png\tred\n")
    with pytest.raises(UserError, match="no tags for any of the 25"):
        predict_images("runs/tags", "photos", truth="truth.tsv")


def test_a_run_on_an_array_wants_arrays(tmp_path: Path) -> None:
    folder = TagTrainer(config(tmp_path, features="f.npy", updates=1), data=tag_data()).fit()
    with pytest.raises(UserError, match="was trained on features from f.npy: give those of the"):
        predict_images(folder, tmp_path)
    assert len(predict_images(folder, folder / "features.npy").words) == 60


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("tags", "the following arguments are required: COMMAND"),
        ("tags test", "argument COMMAND: invalid choice: 'test'"),
        ("tags train none.tsv", "cannot read none.tsv: No such file or directory"),
        (
            "tags train tags.tsv none --words words.txt",
            "none: no such file or folder, nor one of the names",
        ),
        ("tags train tags.tsv photos --words none.txt", "cannot read none.txt: No such file"),
        (
            "tags train tags.tsv photos --words words.txt --features none.pt2",
            "no such checkpoint: none.pt2",
        ),
        ("tags train --lr -1", "'lr' must be a positive number, got -1.0"),
        ("tags train --optimizer x", "argument --optimizer: invalid choice: 'x'"),
        ("tags train --resume none", "no checkpoint to continue from: none does not exist"),
        ("tags train --resume --lr 0.2", "a continued run cannot change 'lr'"),
        ("tags predict none photos", "no such checkpoint: none"),
        ("tags predict runs/tags none", "none: no such file or folder"),
        ("tags predict runs/tags photos --top 0", "argument --top: a whole number of at least 1"),
        ("tags predict runs/tags photos --out none/x", "cannot write none/x: No such file"),
        ("tags predict runs/tags photos --device x", "the device 'x' cannot be used here"),
        ("tags predict runs/tags photos --tags none", "cannot read none: No such file"),
        ("sample runs/tags", "describes a generator that cannot be built"),
    ],
)
def test_errors_in_one_line(
    here: Path,
    error_of: Callable[..., str],  # noqa: F811
    argv: str,
    message: str,
) -> None:
    assert message in error_of(*argv.split())


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["tags", "train", "--help"])
    text = capsys.readouterr().out
    hidden = {"tags", "images"}  # by position
    for name in vars(TagConfig()):
        assert name in hidden or f"--{name.replace('_', '-')}" in text, name


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    assert "  cgan-multimodal   the CGAN paper's section 4.2" in capsys.readouterr().out
    assert cli.main(["info", "cgan-multimodal"]) == 0
    out = capsys.readouterr().out
    assert "TagGenerator, 8,744,700 weights" in out and "pieces=3" in out
