"""Trained DCGANs of other codes as checkpoints of this one, and back.

================  ==================================================  =====  =====
format            what it is                                          read   write
================  ==================================================  =====  =====
dcgan-fast        a checkpoint of this package                        yes    yes
pytorch-examples  bare state dicts of pytorch/examples' DCGAN         yes    yes
newmu-arrays      the paper's code's arrays, one ``.npy`` a weight    yes
================  ==================================================  =====  =====

Bare state dicts of networks with labels (:func:`dcgan_fast.models.infer_network`) are read as pytorch/examples' are.
Whatever is read becomes the dict that :mod:`dcgan_fast.training.checkpoint` describes, and whatever
is written is made from one: a further format is one more :class:`Format` in :data:`FORMATS`.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import models
from .errors import UserError
from .files import make_folder, write_bytes
from .nn import population_statistics
from .training import checkpoint as checkpoints

__all__ = ["FORMATS", "Conversion", "Format", "convert"]

Checkpoint = dict[str, Any]
StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Format:
    """A way in which trained networks are kept.

    ``recognises(path)`` looks without raising; ``read(path)`` returns a checkpoint; ``write``, if
    there is one, takes a checkpoint and a path and returns the files it wrote.
    """

    name: str
    summary: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Checkpoint]
    write: Callable[[Checkpoint, Path], list[Path]] | None = None


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did: from which format to which, the preset, and the files written."""

    source_format: str
    target_format: str
    preset: str
    files: tuple[Path, ...]


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    source_format: str | None = None,
    target_format: str | None = None,
) -> Conversion:
    """Read the networks at ``source`` and write them to ``out``.

    Args:
        source: a file or a folder.
        out: the checkpoint to write, or, for ``pytorch-examples``, the folder to write ``netG.pth``
            and ``netD.pth`` into. An existing file is replaced as a whole.
        source_format: a name in :data:`FORMATS`; None: recognised from ``source``.
        target_format: None: ``dcgan-fast``, or ``pytorch-examples`` for a ``source`` that is a
            checkpoint already.

    Raises:
        UserError: ``source`` is missing, damaged or of no known format, its arrays do not make a
            network, the target format cannot hold it, or ``out`` cannot be written.
    """
    source, out = Path(source), Path(out)
    if not source.exists():
        raise UserError(f"convert(): no such file or folder: {source}")
    reader = _format("source_format", source_format) if source_format else _recognise(source)
    if target_format is None:
        target_format = "pytorch-examples" if reader.name == "dcgan-fast" else "dcgan-fast"
    writer = _format("target_format", target_format)
    if writer.write is None:
        raise UserError(f"convert(): '{writer.name}' can be read only")
    content = reader.read(source)
    files = writer.write(content, out)
    return Conversion(reader.name, writer.name, content["preset"], tuple(files))


def _format(argument: str, name: str) -> Format:
    if name not in FORMATS:
        raise UserError(
            f"convert(): '{argument}' must be one of {', '.join(FORMATS)}; got '{name}'"
        )
    return FORMATS[name]


def _recognise(source: Path) -> Format:
    for candidate in FORMATS.values():
        if candidate.recognises(source):
            return candidate
    known = "; ".join(f"{entry.name}: {entry.summary}" for entry in FORMATS.values())
    raise UserError(f"convert(): {source} is of no known format ({known})")


# --------------------------------------------------------------------------- files of torch.save


def _content(path: Path) -> Mapping[str, Any]:
    """What a file of torch.save holds, or nothing if it is not one that can be read safely."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises a different type for each way a file can be something else
        return {}
    return content if isinstance(content, Mapping) else {}


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        path = path / checkpoints.FILE_NAME
    return path.is_file() and _content(path).get("format") == checkpoints.FORMAT


def _write_checkpoint(content: Checkpoint, out: Path) -> list[Path]:
    checkpoints.save_checkpoint(out, content)
    return [out]


# ------------------------------------------------------------------------------ pytorch/examples

_EXAMPLES_FILE = re.compile(r"net[GD](?:_epoch_(\d+))?\.pth")


def _is_examples(path: Path) -> bool:
    if path.is_dir():
        return bool(_examples_files(path))
    content = _content(path)
    state = content.get("state_dict", content)
    return bool(state) and all(isinstance(value, Tensor) for value in state.values())


def _examples_files(folder: Path) -> list[Path]:
    """``netG.pth`` and ``netD.pth`` (or one), or else the ``net?_epoch_N.pth`` of the last N."""
    epochs: dict[float, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _EXAMPLES_FILE.fullmatch(path.name):
            epochs.setdefault(float(match[1] or "inf"), []).append(path)
    return epochs[max(epochs)] if epochs else []


def _read_examples(path: Path) -> Checkpoint:
    files = _examples_files(path) if path.is_dir() else [path]
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


def _write_examples(content: Checkpoint, out: Path) -> list[Path]:
    """Bare state dicts that load with ``strict=True``; refuses nets that are not of that layout."""
    states = {}
    for role, name in (("generator", "netG.pth"), ("discriminator", "netD.pth")):
        if role in content:
            states[name] = {key: value.contiguous() for key, value in content[role].items()}
            _check_examples_net(role, content["config"].get(role) or {}, states[name])
    folder = make_folder(out)
    for name, state in states.items():
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(folder / name, buffer.getbuffer())
    return [folder / name for name in states]


def _check_examples_net(role: str, config: Mapping[str, Any], state: StateDict) -> None:
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


# ------------------------------------------------------------------------------ Newmu/dcgan_code

_ARRAY_FILE = re.compile(r"(?:(.+)_)?(gen|discrim)(?:_params\.jl)?_(\d+)\.npy")
_POPULATION_BATCHES, _POPULATION_BATCH_SIZE = 50, 128

Arrays = dict[Path, np.ndarray]


def _is_newmu(path: Path) -> bool:
    return path.is_dir() and any(_ARRAY_FILE.fullmatch(entry.name) for entry in path.iterdir())


def _read_newmu(folder: Path) -> Checkpoint:
    """The networks whose parameters, in order, are the arrays in the order of their numbers.

    The code kept no running statistics: it always used the batch's, and so does sampling from this
    checkpoint unless told otherwise. So that ``running`` works too, the generator's are set to the
    population's; the discriminator's would need real images and stay at mean 0 and variance 1.
    """
    generator_arrays = _load_arrays(folder, "gen")
    discriminator_arrays = _load_arrays(folder, "discrim")
    if not generator_arrays:
        raise UserError(f"convert(): {folder} holds no generator (gen_01.npy and so on)")
    preset, settings = _newmu_settings(folder, list(generator_arrays.values()))
    if discriminator_arrays:
        settings["ndf"] = next(iter(discriminator_arrays.values())).shape[0]
    generator, discriminator = models.build(preset, **settings)
    _fill(generator, generator_arrays, folder)
    stream = torch.Generator().manual_seed(0)
    population_statistics(
        generator,
        (
            generator.sample_latent(_POPULATION_BATCH_SIZE, generator=stream)
            for _ in range(_POPULATION_BATCHES)
        ),
    )
    networks: dict[str, models.Generator | models.Discriminator] = {"generator": generator}
    if discriminator_arrays:
        _fill(discriminator, discriminator_arrays, folder)
        networks["discriminator"] = discriminator
    return {
        "preset": preset,
        "config": {role: network.config for role, network in networks.items()},
        "bn": "batch",
        **{role: network.state_dict() for role, network in networks.items()},
    }


def _load_arrays(folder: Path, network: str) -> Arrays:
    """The arrays of ``gen`` or ``discrim`` in order; none where the folder has none.

    Their files are called ``gen_01.npy`` or, as joblib names them, ``200_gen_params.jl_01.npy``.
    """
    files: dict[int, Path] = {}
    for path in sorted(folder.iterdir() if folder.is_dir() else []):
        match = _ARRAY_FILE.fullmatch(path.name)
        if match and match[2] == network:
            number = int(match[3])
            if number in files:
                raise UserError(
                    f"convert(): {folder} holds two models: {files[number].name} and {path.name}"
                )
            files[number] = path
    for number in range(1, max(files, default=0) + 1):
        if number not in files:
            raise UserError(f"convert(): {folder} lacks the array {number:02d} of '{network}'")
    return {files[number]: _load_array(files[number]) for number in sorted(files)}


def _load_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"convert(): cannot read {path}: {error}") from error
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"convert(): {path} must hold floating-point numbers, got {array.dtype}")
    return array


def _newmu_settings(folder: Path, arrays: list[np.ndarray]) -> tuple[str, dict[str, Any]]:
    """Which preset, and what of it to override, from the shapes of a generator's arrays.

    They are one matrix with the gains and shifts of its batch norm, the same of each transposed
    convolution, and the last convolution's kernel. The authors used 5x5 kernels at one convolution
    a scale and 3x3 kernels at two.
    """
    first, last = arrays[0], arrays[-1]
    if len(arrays) % 3 != 1 or first.ndim != 2 or last.ndim != 4:
        raise UserError(
            f"convert(): the arrays of 'gen' in {folder} are not a DCGAN generator's; their shapes "
            f"are {[array.shape for array in arrays]}"
        )
    convolutions, kernel_size = len(arrays) // 3, last.shape[2]
    image_size = 4 << (convolutions // 2 if kernel_size == 3 else convolutions)
    if kernel_size == 3:
        preset = "newmu-imagenet32"
    else:
        preset = "newmu-svhn" if image_size == 32 else "newmu"
    settings = {
        "image_size": image_size,
        "nc": last.shape[1],
        "nz": first.shape[0],
        "ngf": last.shape[0],
        "kernel_size": kernel_size,
    }
    return preset, settings


def _fill(network: nn.Module, arrays: Arrays, folder: Path) -> None:
    """Copy Theano's arrays into ``network``.

    Theano multiplies by a matrix from the right: matrices are transposed. Its convolutions flip the
    kernel: kernels are flipped in H and W, those of transposed convolutions too. The last matrix of
    a discriminator works on maps flattened in (C, H, W) order, as ``nn.Flatten`` does.
    """
    name = type(network).__name__.lower()
    parameters = dict(network.named_parameters())
    if len(arrays) != len(parameters):
        raise UserError(
            f"convert(): a {name} of this shape has {len(parameters)} arrays, got {len(arrays)} in "
            f"{folder}"
        )
    for (path, array), (key, parameter) in zip(arrays.items(), parameters.items(), strict=True):
        shape = tuple(parameter.shape)
        expected = shape[::-1] if len(shape) == 2 else shape
        if array.shape != expected:
            raise UserError(
                f"convert(): {path} must be {expected}, as the {name}'s '{key}', got {array.shape}"
            )
        value = torch.from_numpy(array)
        if value.dim() == 2:
            value = value.T
        elif value.dim() == 4:
            value = value.flip(2, 3)
        with torch.no_grad():
            parameter.copy_(value)


FORMATS = {
    entry.name: entry
    for entry in (
        Format(
            "dcgan-fast",
            "a checkpoint of dcgan_fast, or the folder of a run",
            _is_checkpoint,
            checkpoints.load_checkpoint,
            _write_checkpoint,
        ),
        Format(
            "pytorch-examples",
            "a state dict of pytorch/examples' DCGAN, or a folder of netG and netD .pth files",
            _is_examples,
            _read_examples,
            _write_examples,
        ),
        Format(
            "newmu-arrays",
            "a folder of gen_NN.npy and discrim_NN.npy, the weights of Newmu/dcgan_code",
            _is_newmu,
            _read_newmu,
        ),
    )
}
