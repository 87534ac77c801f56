"""A user's typed script passes ``mypy --strict``: the package is typed (``py.typed``), and its names are exported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dcgan_fast

SCRIPT = '''\
"""Every package a user reaches for; assert_type() fails where a type is not told, or Any."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import dcgan_fast
from dcgan_fast import backends, dedup, fuse, metrics, models, unfuse
from dcgan_fast.convert import Conversion, convert
from dcgan_fast.data import Batches, Dataset, prepare
from dcgan_fast.features import DiscriminatorFeatures, LinearSVM
from dcgan_fast.functional import conv_bn_act
from dcgan_fast.profiling import StepProfile, profile_steps
from dcgan_fast.training import (
    Callback,
    Profile,
    ProgressBar,
    TensorBoard,
    TrainConfig,
    Trainer,
    read_settings,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.main(input)
        return output


class Watch(Callback):
    def on_record(self, trainer: Trainer, record: dict[str, float]) -> None:
        print(trainer.step, record["loss_d"])


def networks() -> None:
    assert_type(fuse(Net()), Net)
    assert_type(unfuse(Net(), inplace=True), Net)
    assert_type(dcgan_fast.explain(Net(), torch.ones(1, 3, 8, 8)), str)
    generator = models.Generator(image_size=32)
    assert_type(models.generate(generator, generator.sample_latent(4)), Tensor)
    with backends.cpu.flags(winograd=False):
        one = torch.ones(8)
        maps = conv_bn_act(
            torch.ones(1, 3, 8, 8), torch.ones(8, 3, 4, 4), one, one, one, one, training=True
        )
        assert_type(maps, Tensor)


def train() -> Path | None:
    config = TrainConfig(**{**read_settings("run.json"), "seed": 1})
    trainer = Trainer(config)
    callbacks: list[Callback] = [ProgressBar(), TensorBoard(), Profile(steps=3), Watch()]
    folder = trainer.fit(callbacks)
    assert_type(folder, Path | None)
    return folder


def study(images: Tensor) -> None:
    dataset = prepare("digits", image_size=32)
    assert_type(dataset, Dataset)
    for batch in Batches(dataset, 128, seed=0):
        assert_type(batch, Tensor)
    keep, group, counts = dedup.first_occurrence(dedup.pack_codes(images))
    assert_type(keep, Tensor)
    assert_type(metrics.frechet_distance(images, images), float)
    LinearSVM().fit(DiscriminatorFeatures("runs/x").transform(images), images[:, 0])
    found = profile_steps(lambda: None, {"net": Net()})
    assert_type(found, StepProfile)
    assert_type(found.rows[0].seconds, float)
    assert_type(convert("a.pth", "b.pt"), Conversion)


train()
info: dict[str, Any] = dcgan_fast.build_info()
'''


@pytest.mark.slow  # mypy reads all of torch: half a minute without its cache
def test_a_typed_script(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text(SCRIPT)

    def check() -> str:
        # Silent: it is the script that is strict. Where the package is not installed, it is imported from the sources.
        environment = {**os.environ, "MYPYPATH": str(Path(dcgan_fast.__file__).parents[1])}
        if "site-packages" in environment["MYPYPATH"]:
            del environment["MYPYPATH"]
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--follow-imports",
            "silent",
            "script.py",
        ]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.stderr == ""
        return done.stdout

    assert check() == "Success: no issues found in 1 source file\n"
    # And it is the library's types that are checked, not Any
    wrong = SCRIPT.replace("Trainer(config)", "Trainer(config, data='x')") + 'fuse("no module")\n'
    (tmp_path / "script.py").write_text(wrong)
    found = check()
    assert 'Unexpected keyword argument "data" for "Trainer"' in found
    assert 'Value of type variable "M" of "fuse" cannot be "str"' in found
