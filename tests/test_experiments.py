"""The paper's experiments on the command line, with networks of width 4."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import one_thread  # noqa: F401

from dcgan_fast import cli, models
from dcgan_fast.latent import ATTRIBUTES, best_seeds
from dcgan_fast.training import load_networks, save_checkpoint


def save(path: Path, preset: str, **settings: Any) -> Path:
    torch.manual_seed(0)
    networks = models.build(preset, image_size=16, nz=8, ngf=4, ndf=4, **settings)
    for weight in networks[0].parameters():  # so that its images differ
        if weight.dim() == 4:
            weight.data *= 20
    roles = ("generator", "discriminator")
    named = dict(zip(roles, networks, strict=True))
    content = {
        "preset": preset,
        "config": {role: network.config for role, network in named.items()},
        "networks": {role: type(network).__name__ for role, network in named.items()},
        **{role: network.state_dict() for role, network in named.items()},
    }
    save_checkpoint(path, content)
    return path


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCGAN_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        nowhere = "dcgan_fast.experiments.latent_commands.save_mp4"  # as where there is no ffmpeg
        patch.setattr(nowhere, lambda *arguments, **settings: False)
        yield


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("nets") / "colour.pt", "pytorch")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("nets") / "labelled.pt", "cgan-dcgan", classes=3, nc=1)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that fails as user errors do; returns what its one line says."""

    def run_and_read(*argv: object) -> str:
        assert cli.main([str(word) for word in argv]) == 2
        error = capsys.readouterr().err
        assert error.startswith("dcgan-fast: error: ") and error.count("\n") == 1, error
        return error.removeprefix("dcgan-fast: error: ")

    return run_and_read


def run(*argv: object) -> None:
    assert cli.main([str(word) for word in argv]) == 0


def figures(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*.*"))


# ------------------------------------------------------------------------------------------- walk


def test_walk(colour: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("walk", colour)
    assert files() == ["walk.gif", "walk.json", "walk.png"]
    assert capsys.readouterr().out.splitlines() == [
        "walk.png: 73 images of the walk between 9 seeds",
        "walk.gif: the walk as a film",
        "walk.json: the figures",
    ]
    found = figures("walk.json")
    assert (found["seeds"], found["path"], found["images"]) == (list(range(9)), "spherical", 73)
    assert 1 / 9 <= found["smoothness"]["jump"] < 1
    with Image.open("walk.gif") as film:
        assert film.n_frames == 73


def test_walk_settings(colour: Path, labelled: Path) -> None:
    flags = ["--seeds", "5,7-8", "--steps", "2", "--path", "straight", "--closed", "--fps", "20"]
    run("walk", colour, *flags, "--bn", "population", "--out", "made/here")
    assert files() == ["made/here.gif", "made/here.json", "made/here.png"]
    found = figures("made/here.json")
    assert (found["seeds"], found["path"], found["images"]) == ([5, 7, 8], "straight", 7)
    with Image.open("made/here.gif") as film:
        assert (film.n_frames, film.info["duration"]) == (7, 50)
    run("walk", labelled, "--class", "2", "--steps", "1", "--seeds", "0,1")


# ------------------------------------------------------------------------------ arithmetic and turn


def test_arithmetic(colour: Path) -> None:
    run("arithmetic", colour)
    assert files() == ["arithmetic.json", "arithmetic.png", "arithmetic.seeds.png"]
    found = figures("arithmetic.json")
    generator = load_networks(colour)[0]
    assert isinstance(generator, models.Generator)
    most, least, seeds = found["concepts"]
    assert most["seeds"] == best_seeds(generator, ATTRIBUTES["contrast"], 3)
    assert least["seeds"] == best_seeds(generator, ATTRIBUTES["contrast"], 3, lowest=True)
    assert seeds["seeds"] == [0, 1, 2]
    assert [each["sign"] for each in found["concepts"]] == ["+", "-", "+"]
    assert set(found["result"]) == set(found["pixel_control"]) == set(ATTRIBUTES)


def test_terms_are_taken_in_their_order(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_scores.py").write_text("def corner(images):\n    return images[:, 0, 0, 0]\n")
    terms = ["--minus", "3", "--plus", "most:my_scores:corner", "--minus", "5-7", "--plus", "9"]
    run("arithmetic", labelled, *terms, "--class", "1", "--sheet", "0", "--among", "30")
    found = figures("arithmetic.json")
    assert [(c["sign"], len(c["seeds"])) for c in found["concepts"]] == [
        ("-", 1),
        ("+", 3),
        ("-", 3),
        ("+", 1),
    ]
    assert set(found["result"]) == {"brightness", "contrast"}  # grey images
    assert not Path("arithmetic.seeds.png").exists()


def test_turn(colour: Path) -> None:
    run("turn", colour, "--steps", "5", "--subjects", "3-10", "--sheet", "12")
    assert files() == ["turn.json", "turn.png", "turn.seeds.png"]
    found = figures("turn.json")
    generator = load_networks(colour)[0]
    assert isinstance(generator, models.Generator)
    assert found["to"]["seeds"] == best_seeds(generator, ATTRIBUTES["brightness"], 4)
    assert found["positions"] == [-1, -0.5, 0, 0.5, 1]
    brightness = found["mean_scores_along"]["brightness"]
    assert brightness[4] > brightness[2] > brightness[0]


def test_latent_errors(colour: Path, labelled: Path, error_of: Callable[..., str]) -> None:
    assert "at least 2 latent vectors, got 1" in error_of("walk", colour, "--seeds", "4")
    assert "--seeds: numbers look like 1,2,3 or 1-10, got '4-'" in error_of(
        "walk", colour, "--seeds", "4-"
    )
    assert "at most 10,000 numbers" in error_of("walk", colour, "--seeds", "0-10000")
    assert "--fps must be above 0" in error_of("walk", colour, "--fps", "0")
    assert "--class is for networks that were trained with labels" in error_of(
        "walk", colour, "--class", "1"
    )
    assert "--class must be from 0 to 2, got 7" in error_of("turn", labelled, "--class", "7")
    assert "--plus: a score is one of brightness, contrast" in error_of(
        "arithmetic", colour, "--plus", "most:smile"
    )
    assert "--plus: no function no_such:thing can be imported" in error_of(
        "arithmetic", colour, "--plus", "most:no_such:thing"
    )
    assert "images of 1 channels have no colours" in error_of("turn", labelled, "--to", "most:red")
    assert "'steps' must be" in error_of("walk", colour, "--steps", "0")
    Path("folder.png").mkdir()
    assert "folder.png is a folder" in error_of("walk", colour, "--out", "folder.png")
    assert "no such checkpoint" in error_of("walk", "missing.pt")
    assert not [name for name in files() if name != "folder.png"]


# -------------------------------------------------------------------------------- guided-backprop


def test_guided_backprop_of_samples(colour: Path) -> None:
    run("guided-backprop", colour, "--images", "200", "--top", "3")
    assert files() == ["guided-backprop.json", "guided-backprop.png"]
    found = figures("guided-backprop.json")
    assert found["data"] == "4,096 samples" and found["images"] == 200
    assert (found["layer"], found["maps"], found["features"]) == (2, 8, list(range(6)))
    assert -1 <= found["likeness_of_any_images"] <= 1
    for side in ("trained", "random"):
        assert np.shape(found[side]["rows"]) == (6, 3) and "purity" not in found[side]
    assert found["trained"]["responses"] != found["random"]["responses"]


def test_guided_backprop_of_data(colour: Path) -> None:
    flags = ["--data", "fake:50", "--layer", "1", "--features", "2", "--rule", "leaky"]
    run("guided-backprop", colour, *flags, "--out", "a.png")
    found = figures("a.json")
    assert (found["data"], found["images"], found["layer_name"]) == ("fake", 50, "main.0")
    assert all(0 < purity <= 1 for purity in found["trained"]["purity"])


def test_guided_backprop_of_a_conditional_discriminator(labelled: Path) -> None:
    run("guided-backprop", labelled, "--images", "300", "--top", "3")
    found = figures("guided-backprop.json")
    assert (found["data"], found["images"], found["class"]) == ("4,096 samples", 300, None)
    assert np.shape(found["trained"]["rows"]) == (6, 3)
    assert all(1 / 3 <= purity <= 1 for purity in found["trained"]["purity"])
    images = np.random.default_rng(0).integers(0, 256, (90, 16, 16), dtype=np.uint8)
    np.savez("set.npz", images=images, labels=np.arange(90) % 3)
    run("guided-backprop", labelled, "--data", "set.npz", "--class", "1", "--top", "3")
    found = figures("guided-backprop.json")
    assert (found["images"], found["class"]) == (30, 1)  # those of the class alone
    assert found["trained"]["purity"] == [1.0] * 6
    np.save("bare.npy", images)
    run("guided-backprop", labelled, "--data", "bare.npy", "--class", "2", "--top", "3")
    assert figures("guided-backprop.json")["images"] == 90  # all are taken for it


def test_guided_backprop_errors(colour: Path, labelled: Path, error_of: Callable[..., str]) -> None:
    command = ["guided-backprop", colour, "--data", "fake:20"]
    assert "'layer' must be 1 to 2, or -1 to -2 from the end" in error_of(*command, "--layer", "5")
    assert "'features' must be an integer from 1 to 8, got 99" in error_of(
        *command, "--features", "99"
    )
    assert "'top' must be an integer from 1 to 20" in error_of(*command, "--top", "21")
    assert "--class is for networks that were" in error_of(
        "guided-backprop", colour, "--class", "1"
    )
    assert "--class must be from 0 to 2, got 3" in error_of(
        "guided-backprop", labelled, "--class", "3"
    )
    assert "fake has labels up to 9, the discriminator 3 classes" in error_of(
        "guided-backprop", labelled, "--data", "fake:20"
    )
    np.save("bare.npy", np.zeros((30, 16, 16), np.uint8))
    bare = ["guided-backprop", labelled, "--data", "bare.npy"]
    assert "bare has no labels, which the discriminator is told" in error_of(*bare)
    assert "no such file or folder" in error_of("guided-backprop", colour, "--data", "missing")
    assert files() == ["bare.npy"]


# ----------------------------------------------------------------------------------------- forget


def test_forget(colour: Path) -> None:
    run("forget", colour, "--seeds", "0-39", "--layer", "-1")
    assert files() == ["forget.json", "forget.png"]
    found = figures("forget.json")
    assert (found["mark"], found["layer"], found["maps"]) == ("bright", 2, 4)
    assert found["dropped_maps"] == len(found["dropped"]) == np.sum(np.array(found["weights"]) > 0)
    assert found["accuracy_on_other_samples"] > found["chance"]
    assert found["change"]["inside"] > 0


def test_forget_boxes_and_functions(colour: Path) -> None:
    Path("boxes.json").write_text(json.dumps({n: [[0, 0, 8, 9]] for n in range(5, 30)}))
    run("forget", colour, "--boxes", "boxes.json", "--layer", "1", "--out", "a", "--show", "4")
    assert figures("a.json")["seeds"] == list(range(5, 30))
    assert figures("a.json")["positions"] == {"inside": 20 * 4, "outside": 20 * 4}
    Path("my_marks.py").write_text(
        "def left(images):\n    return [[(0, 0, 8, 16)]] * len(images)\n"
    )
    run("forget", colour, "--mark", "my_marks:left", "--seeds", "0-9", "--layer", "1")
    assert figures("forget.json")["positions"] == {"inside": 64, "outside": 64}


def test_forget_of_a_conditional_generator(labelled: Path) -> None:
    Path("my_top.py").write_text("def top(images):\n    return [[(0, 0, 16, 8)]] * len(images)\n")
    flags = ["--mark", "my_top:top"]
    run("forget", labelled, "--seeds", "0-29", *flags)
    found = figures("forget.json")
    assert found["classes"] == [seed % 3 for seed in range(30)]
    run("forget", labelled, "--seeds", "1,4-20", "--class", "2", "--out", "a.png", *flags)
    assert figures("a.json")["classes"] == [2] * 18


def test_forget_errors(colour: Path, labelled: Path, error_of: Callable[..., str]) -> None:
    assert "'layer' must be 1 to 2" in error_of("forget", colour, "--layer", "3")
    assert "--mark must be one of bright" in error_of("forget", colour, "--mark", "window")
    assert "'share' must be above 0" in error_of("forget", colour, "--share", "0")
    assert "cannot read none.json" in error_of("forget", colour, "--boxes", "none.json")
    assert "leave --mark" in error_of("forget", colour, "--boxes", "a", "--mark", "dark")
    assert "--class is for networks that were" in error_of("forget", colour, "--class", "1")
    assert "--class must be from 0 to 2, got 3" in error_of("forget", labelled, "--class", "3")
    Path("boxes.json").write_text('{"1": [], "2": []}')
    assert "nothing is inside" in error_of("forget", colour, "--boxes", "boxes.json")
    assert files() == ["boxes.json"]


# ---------------------------------------------------------------------------------------- nearest

QUICK = ["--sizes", "20,50", "--samples", "60"]


def test_nearest(colour: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("nearest", colour, "--data", "fake:80", *QUICK, "--seeds", "3-9", "-k", "2")
    assert files() == ["nearest.json", "nearest.png"]
    found = figures("nearest.json")
    assert (found["training_images"], found["held_out_images"]) == (80, 0)
    for space in ("pixels", "discriminator"):
        assert np.shape(found["neighbours"][space]["rows"]) == (7, 2)
        assert found["nearness"][space]["held_out"] is None
        assert 0 <= found["nearness"][space]["copies"] <= 1
    assert [each["samples"] for each in found["real_to_samples"]["at"]] == [20, 50]
    assert all(each["accuracy"] is None for each in found["real_to_samples"]["at"])
    pixels = found["distances"]["pixels at 16x16"]
    assert (pixels["features"], pixels["real_images"], pixels["samples"]) == (768, 80, 60)
    assert found["distances"]["discriminator's maps"]["features"] == 12
    out = capsys.readouterr().out
    assert "Fréchet distance" in out and "FID" not in out


def test_nearest_of_a_conditional_generator(labelled: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (90, 16, 16), dtype=np.uint8)
    labels = np.arange(90) % 3
    np.savez(
        "set.npz",
        x_train=images[:60],
        y_train=labels[:60],
        x_test=images[60:],
        y_test=labels[60:],
    )
    run("nearest", labelled, "--data", "set.npz", *QUICK, "--out", "a.png")
    found = figures("a.json")
    assert (found["training_images"], found["held_out_images"]) == (60, 30)
    assert list(found["nearness"]) == ["pixels", "discriminator"]
    assert found["nearness"]["pixels"]["held_out"] > 0
    assert found["distances"]["discriminator's maps"]["features"] == 4 + 8
    assert found["real_to_samples"]["real_images"] == "30 held out"
    assert all(0 <= each["accuracy"] <= 1 for each in found["real_to_samples"]["at"])
    run("nearest", labelled, "--data", "set.npz", "--split", "all", *QUICK, "--class", "1")
    found = figures("nearest.json")  # nothing is held out of all
    assert (found["training_images"], found["held_out_images"]) == (90, 0)


def test_the_data_of_the_training_is_the_default() -> None:
    tiny = "train fake:40 --image-size 16 --channels 1 --ngf 4 --ndf 4 --nz 8 --batch-size 16"
    run(*tiny.split(), "--max-steps", "1", "--grid-images", "4", "--name", "run")
    run("nearest", "runs/run", *QUICK, "--seeds", "1,2")
    assert figures("nearest.json")["data"] == "fake"
    assert figures("nearest.json")["training_images"] == 40
    run("guided-backprop", "runs/run", "--top", "2")
    assert figures("guided-backprop.json")["data"] == "fake"


def test_nearest_with_features_of_ones_own(colour: Path) -> None:
    class Means(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    torch.jit.script(Means()).save("means.pt")
    run("nearest", colour, "--data", "fake:80", *QUICK, "--features", "means.pt")
    assert figures("nearest.json")["distances"]["means.pt"]["features"] == 3


def test_nearest_errors(colour: Path, labelled: Path, error_of: Callable[..., str]) -> None:
    assert "does not say what it was trained on: give --data" in error_of("nearest", colour)
    command = ["nearest", colour, "--data", "fake:20"]
    assert "'k' must be an integer from 1 to 20, got 21" in error_of(*command, "-k", "21")
    assert "'sizes' must ascend" in error_of(*command, "--sizes", "20,10", "--samples", "20")
    assert "'samples' must be an integer of at least 2" in error_of(*command, "--samples", "1")
    assert "--class is for networks that were" in error_of(*command, "--class", "1")
    assert "no such checkpoint" in error_of(*command, "--features", "none.pt2", *QUICK)
    assert "no such file or folder" in error_of("nearest", colour, "--data", "none")
    assert not files()
