"""Networks in a safetensors file: weights as ``generator.main.0.weight``, what rebuilds the networks as metadata.

The metadata's ``dcgan_fast`` is JSON: ``version``, ``preset``, ``config``, ``networks`` and ``bn`` of
:mod:`dcgan_fast.training.checkpoint`. Files without it are read as bare state dicts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError
from ..files import write_bytes
from ..optional import optional_module
from ..reading import parse_json
from ..training import checkpoint as checkpoints
from .formats import Checkpoint, StateDict

SUFFIX = ".safetensors"
_KEY = "dcgan_fast"
_ROLES = ("generator", "discriminator")
_DESCRIPTION = ("version", "preset", "config", "networks", "bn")


def is_safetensors(path: Path) -> bool:
    return path.is_file() and path.suffix == SUFFIX


def load_tensors(path: Path) -> tuple[StateDict, Mapping[str, str]]:
    """The tensors and the metadata of a safetensors file; raises :class:`UserError`.

    The tensors are in the order of their layers: the file keeps them in that of the alphabet, 12 before 3.
    """
    safetensors = optional_module("safetensors", f"convert(): reading {path.name}", "safetensors")
    try:
        with safetensors.safe_open(path, "pt") as file:
            keys = sorted(file.keys(), key=_place)
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except Exception as error:  # of a header that lies it raises several types
        raise UserError(f"convert(): cannot read {path}: {error}") from error


def _place(key: str) -> list[tuple[int, str]]:
    """Parts that are numbers, of at most nine digits, before the others."""
    parts = key.split(".")
    return [(int(p), "") if p.isdecimal() and len(p) < 10 else (-1, p) for p in parts]


def read_safetensors(path: Path) -> Checkpoint:
    if not path.is_file():
        raise UserError(f"convert(): {path} is not a safetensors file")
    tensors, metadata = load_tensors(path)
    if _KEY not in metadata:
        return checkpoints.from_bare_state(tensors, path)
    try:
        description = dict(parse_json(metadata[_KEY]))
    except (TypeError, ValueError) as error:
        raise UserError(f"convert(): the metadata of {path} is damaged: {error}") from error
    content: Checkpoint = {"format": checkpoints.FORMAT, "preset": "pytorch"}
    content |= {key: description[key] for key in _DESCRIPTION if key in description}
    for key, value in tensors.items():
        role, _, name = key.partition(".")
        if role not in _ROLES:
            raise UserError(f"convert(): {path} holds '{key}', which is of neither network")
        content.setdefault(role, {})[name] = value
    checkpoints.build_networks(checkpoints.checked(content, path), source=path)  # it can be done
    return content


def write_safetensors(content: Checkpoint, out: Path) -> list[Path]:
    save = optional_module(
        "safetensors.torch", f"convert(): writing {out.name}", "safetensors"
    ).save
    roles = [role for role in _ROLES if role in content]
    tensors = {
        f"{role}.{key}": value.contiguous()
        for role in roles
        for key, value in content[role].items()
    }
    description = {key: content[key] for key in _DESCRIPTION if key in content}
    description.setdefault("version", checkpoints.VERSION)
    metadata = {"format": "pt", _KEY: json.dumps(description, sort_keys=True)}
    write_bytes(out, save(tensors, metadata))
    return [out]
