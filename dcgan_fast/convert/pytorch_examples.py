"""pytorch/examples' DCGAN: bare state dicts, as its ``main.py`` saves and reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import models
from ..errors import UserError
from ..training import checkpoint as checkpoints
from .formats import Checkpoint, StateDict, folder_for, saved_content

_FILE = re.compile(r"net[GD](?:_epoch_(\d+))?\.pth")
_WRITTEN = re.compile(r"net[GD]\.pth")


def is_examples(path: Path) -> bool:
    if path.is_dir():
        return bool(_files(path))
    content = saved_content(path)
    state = content.get("state_dict", content)
    return bool(state) and all(isinstance(value, Tensor) for value in state.values())


def _files(folder: Path) -> list[Path]:
    """``netG.pth`` and ``netD.pth`` (or one), or else the ``net?_epoch_N.pth`` of the last N."""
    epochs: dict[float, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _FILE.fullmatch(path.name):
            epochs.setdefault(float(match[1] or "inf"), []).append(path)
    return epochs[max(epochs)] if epochs else []


def read_examples(path: Path) -> Checkpoint:
    files = _files(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"convert(): {path} holds no netG.pth or netG_epoch_N.pth")
    content: Checkpoint = {"preset": "pytorch", "config": {}, "networks": {}, "bn": "running"}
    for file in files:
        part = checkpoints.load_checkpoint(file)
        content["preset"] = part["preset"]
        content["networks"] |= part.get("networks", {})
        for role, config in part["config"].items():
            if role in content:
                raise UserError(f"convert(): {path} holds two {role}s, the second in {file.name}")
            content["config"][role] = config
            content[role] = part[role]
    return content


def write_examples(content: Checkpoint, out: Path) -> list[Path]:
    """Bare state dicts that load with ``strict=True``; refuses nets that are not of that layout."""
    states = {}
    for role, name in (("generator", "netG.pth"), ("discriminator", "netD.pth")):
        if role in content:
            states[name] = {key: value.contiguous() for key, value in content[role].items()}
            check_examples_net(role, content["config"].get(role) or {}, states[name])
    folder = folder_for(states, out, _WRITTEN)
    for name, state in states.items():
        checkpoints.save_bare_state(folder / name, state)
    return [folder / name for name in states]


def check_examples_net(role: str, config: Mapping[str, Any], state: StateDict) -> None:
    """Raises :class:`UserError` unless the network is one of theirs, key for key and number for number."""
    try:
        _, theirs = models.infer_config(state)
    except UserError as error:
        raise UserError(
            f"convert(): the {role} is no net of pytorch/examples', so it cannot be written as one "
            f"({error})"
        ) from error
    eps = config.get("bn_eps", theirs["bn_eps"])  # the one setting that a state dict does not show
    if eps != theirs["bn_eps"]:
        raise UserError(
            f"convert(): the {role}'s batch norm eps is {eps} where pytorch/examples has "
            f"{theirs['bn_eps']}: written as one of theirs it would compute other numbers"
        )
