from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from dcgan_fast.errors import UserError
from dcgan_fast.models import PRESETS
from dcgan_fast.training import TrainConfig, read_settings

YAML = """\
# a comment
data: photos
batch-size: 32    # as the flag is called
lr: 2e-4          # a text in YAML 1.1
beta1: 0
flip: true
save_seconds: null
channels: ~
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_yaml(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    settings = read_settings(write(tmp_path, "run.yaml", YAML))
    assert settings == {
        "data": "photos",
        "batch_size": 32,
        "lr": 2e-4,
        "beta1": 0.0,
        "flip": True,
        "save_seconds": None,
        "channels": None,
    }
    assert type(settings["beta1"]) is float
    assert TrainConfig(**settings).batch_size == 32
    assert read_settings(write(tmp_path, "empty.yml", "# nothing yet\n")) == {}


@pytest.mark.parametrize("number", ["2e-4", "2.e-4", ".2e-3", "+2E-04", "0.0002"])
def test_numbers_of_yaml(number: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    assert read_settings(write(tmp_path, "run.yaml", f"lr: {number}")) == {"lr": 2e-4}


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_run_writes_is_read(preset: str, tmp_path: Path) -> None:
    config = TrainConfig(preset=preset, name="exp", amp="bf16", out=None)
    path = write(tmp_path, "config.json", config.to_json())
    assert TrainConfig(**read_settings(path)) == config


def test_a_runs_own_configuration_leaves_its_name_out(tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    path = write(tmp_path / "exp", "config.json", TrainConfig(name="exp").to_json())
    assert TrainConfig(**read_settings(path)) == TrainConfig()
    copied = write(tmp_path, "config.json", path.read_text())
    assert TrainConfig(**read_settings(copied)) == TrainConfig(name="exp")


def test_null_stands_for_the_default(tmp_path: Path) -> None:
    every = ", ".join(f'"{item.name}": null' for item in dataclasses.fields(TrainConfig))
    settings = read_settings(write(tmp_path, "run.json", "{" + every + "}"))
    expected = dataclasses.replace(TrainConfig(), out=None, save_seconds=None)  # they may be None
    assert TrainConfig(**settings) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"learning_rate": 1}', "unknown setting 'learning_rate': the settings are "),
        ('{"batchsize": 1}', "unknown setting 'batchsize': did you mean batch_size?"),
        ('{"falling-epoch": 1}', "unknown setting 'falling-epoch': did you mean falling_epochs"),
        ('{"lr": "fast"}', "'lr' must be a number, got \"fast\""),
        ('{"batch_size": 2.5}', "'batch_size' must be a whole number, got 2.5"),
        ('{"batch_size": true}', "'batch_size' must be a whole number, got true"),
        ('{"save_seconds": true}', "'save_seconds' must be a number or null, got true"),
        ('{"flip": 1}', "'flip' must be true or false, got 1"),
        ('{"data": ["a", "b"]}', "'data' must be a text, got ["),
        ('{"name": 3}', "'name' must be a text or null, got 3"),
        ('{"lr": 1, "lr": 2}', "'lr' is given twice"),
        ('{"batch_size": 1, "batch-size": 2}', "'batch_size' is given twice"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "yaml"])  # JSON is YAML
def test_wrong_settings(text: str, message: str, suffix: str, tmp_path: Path) -> None:
    if suffix == "yaml":
        pytest.importorskip("yaml")
    path = write(tmp_path, f"run.{suffix}", text)
    with pytest.raises(UserError) as error:
        read_settings(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.json", "{", "run.json is not JSON: "),
        ("run.json", "[1]", "must hold one object of names and values, got list"),
        ("run.yaml", "a: [", "run.yaml is not YAML: "),
        ("run.yaml", "- lr", "must hold one object of names and values, got list"),
        ("run.yaml", "? [lr, 1]\n: 2", "names of settings must be texts"),
        ("run.yaml", "!!python/object:os.system {}", "run.yaml is not YAML: "),
        ("run.toml", "", "must be a .json, .yaml or .yml, got "),
    ],
)
def test_wrong_files(name: str, text: str, message: str, tmp_path: Path) -> None:
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    with pytest.raises(UserError) as error:
        read_settings(write(tmp_path, name, text))
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*no.json: No such file"):
        read_settings(tmp_path / "no.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not text in UTF-8"):
        read_settings(tmp_path / "binary.json")


def test_yaml_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = write(tmp_path, "run.yaml", YAML)
    with pytest.raises(UserError, match=r"in YAML needs pyyaml: pip install pyyaml, or .*\[yaml\]"):
        read_settings(path)
