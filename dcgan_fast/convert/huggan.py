"""DCGANs of the Hugging Face hub: a folder with ``config.json`` and the weights of one network.

Those of the huggan project (huggingface/community-events, ``huggan/pytorch/dcgan``) are pytorch/examples' 64x64 nets
with keys ``model.0.weight`` and so on; ``config.json``, which early ones lack, has ``num_channels``, ``latent_dim`` and
``hidden_size``. What :meth:`dcgan_fast.models.Generator.save_pretrained` writes is read too: its ``config.json`` is the
network's own config and its class, ``network``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import models
from ..errors import UserError
from ..files import write_bytes, write_text
from ..optional import installed_module
from ..reading import parse_json
from ..training import checkpoint as checkpoints
from .formats import Checkpoint, StateDict, folder_for
from .pytorch_examples import check_examples_net
from .safetensors_file import SUFFIX, load_tensors

CONFIG, SAFETENSORS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
_FILE = re.compile("|".join(map(re.escape, (CONFIG, SAFETENSORS, PICKLE))))
_IMAGE_SIZE = 64  # the only one that their class draws
_SETTINGS = {  # theirs: ours, of a generator and of a discriminator
    "num_channels": ("nc", "nc"),
    "latent_dim": ("nz", ""),
    "hidden_size": ("ngf", "ndf"),
    "image_size": ("image_size", "image_size"),
}


def is_huggan(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in (SAFETENSORS, PICKLE))


def read_huggan(folder: Path) -> Checkpoint:
    return read_network(weights_file("convert()", folder), read_config(folder / CONFIG))


def weights_file(owner: str, folder: Path) -> Path:
    """The weights in ``folder``: those in safetensors first, if the package is there to read them."""
    found = [folder / name for name in (SAFETENSORS, PICKLE) if (folder / name).is_file()]
    if not found:
        raise UserError(f"{owner}: {folder} holds neither {SAFETENSORS} nor {PICKLE}")
    return found[0 if installed_module("safetensors.torch") else -1]


def read_config(path: Path) -> dict[str, Any]:
    """What ``config.json`` holds, nothing where there is none; raises :class:`UserError`."""
    try:
        config = parse_json(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"convert(): cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"convert(): {path} must hold an object, got a {type(config).__name__}")
    return config


def read_network(path: Path, config: Mapping[str, Any]) -> Checkpoint:
    """The network whose weights are at ``path``, safetensors or torch.save's, beside its ``config.json``."""
    if "network" in config:  # one of ours
        return _own_network(path, dict(config))
    if path.suffix == SUFFIX:
        content = checkpoints.from_bare_state(load_tensors(path)[0], path)
    else:
        content = checkpoints.load_checkpoint(path)
    for role, settings in content["config"].items():
        for theirs, ours in _SETTINGS.items():
            mine = settings.get(ours[role == "discriminator"])
            if theirs in config and mine not in (None, config[theirs]):
                raise UserError(
                    f"convert(): '{theirs}' is {config[theirs]!r} in {CONFIG}, the weights in {path} are of {mine}"
                )
    return content


def _own_network(path: Path, settings: dict[str, Any]) -> Checkpoint:
    name = settings.pop("network")
    if not isinstance(name, str) or name not in models.NETWORKS:
        known = ", ".join(models.NETWORKS)
        raise UserError(
            f"convert(): {CONFIG} beside {path} is of a '{name}'; the networks are {known}"
        )
    latent = issubclass(models.NETWORKS[name], models.LatentNetwork)
    role = "generator" if latent else "discriminator"
    weights = (
        load_tensors(path)[0] if path.suffix == SUFFIX else checkpoints.load_weights(path, role)
    )
    content: Checkpoint = {
        "format": checkpoints.FORMAT,
        "version": checkpoints.VERSION,
        "preset": models.preset_of(name, settings),
        "config": {role: settings},
        "networks": {role: name},
        role: weights,
    }
    checkpoints.build_networks(content, source=path)  # it can be done
    return content


def write_huggan(content: Checkpoint, out: Path) -> list[Path]:
    """The generator alone, for old and new versions of the hub's library: both kinds of weights, and the config.

    ``model.safetensors`` is left out where safetensors is not installed.
    """
    if "generator" not in content:
        raise UserError("convert(): huggan's models are generators, the checkpoint holds none")
    ours: StateDict = {key: value.contiguous() for key, value in content["generator"].items()}
    check_examples_net("generator", content["config"].get("generator") or {}, ours)
    _, settings = models.infer_config(ours)
    if settings["image_size"] != _IMAGE_SIZE:
        raise UserError(
            f"convert(): huggan's generators draw images of {_IMAGE_SIZE}x{_IMAGE_SIZE}, this one of "
            f"{settings['image_size']}x{settings['image_size']}"
        )
    state = {f"model.{key.removeprefix('main.')}": value for key, value in ours.items()}
    config = {name: settings[mine[0]] for name, mine in _SETTINGS.items() if name != "image_size"}
    safetensors = installed_module("safetensors.torch")
    names = [PICKLE, SAFETENSORS, CONFIG] if safetensors else [PICKLE, CONFIG]
    folder = folder_for(names, out, _FILE)
    checkpoints.save_bare_state(folder / PICKLE, state)
    if safetensors:
        write_bytes(folder / SAFETENSORS, safetensors.save(state, {"format": "pt"}))
    write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return [folder / name for name in names]
