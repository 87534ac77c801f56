"""Newmu/dcgan_code, the DCGAN paper's code: its weights as it keeps them, one ``.npy`` a Theano array.

Three layouts, told apart by their shapes: ``faces/`` (5x5 kernels, any size but 32x32), ``svhn/`` (the same at 32x32)
and ``imagenet/`` (two 3x3 convolutions a scale). What arrays do not show, the distribution of z above all, is taken to
be the preset's.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..errors import UserError
from ..files import write_bytes
from ..nn import population_statistics
from ..reading import read_array
from ..training import checkpoint as checkpoints
from .formats import Checkpoint, floats, folder_for

_ARRAY_FILE = re.compile(r"(?:(.+)_)?(gen|discrim)(?:_params\.jl)?_(\d+)\.npy")
_STEMS = {"generator": "gen", "discriminator": "discrim"}
_POPULATION_BATCHES, _POPULATION_BATCH_SIZE = 50, 128

Arrays = dict[Path, np.ndarray]


def is_newmu(path: Path) -> bool:
    return path.is_dir() and any(_ARRAY_FILE.fullmatch(entry.name) for entry in path.iterdir())


def read_newmu(folder: Path) -> Checkpoint:
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
        path, kernel = next(iter(discriminator_arrays.items()))
        if kernel.ndim != 4:
            raise UserError(f"convert(): {path} must have 4 dimensions, got {kernel.shape}")
        settings["ndf"] = kernel.shape[0]
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
        array = np.array(read_array(path))
    except (OSError, ValueError) as error:
        raise UserError(f"convert(): cannot read {path}: {error}") from error
    return floats(array, str(path))


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
    """Copy Theano's arrays into ``network``."""
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
        with torch.no_grad():
            parameter.copy_(_other_way(torch.from_numpy(array)))


def _other_way(value: Tensor) -> Tensor:
    """A weight of Theano's as PyTorch has it, or the reverse: the same operation.

    Theano multiplies by a matrix from the right: matrices are transposed. Its convolutions flip the
    kernel: kernels are flipped in H and W, those of transposed convolutions too. The last matrix of
    a discriminator works on maps flattened in (C, H, W) order, as ``nn.Flatten`` does.
    """
    if value.dim() == 2:
        return value.T
    return value.flip(2, 3) if value.dim() == 4 else value


def write_newmu(content: Checkpoint, out: Path) -> list[Path]:
    """``gen_01.npy`` and so on, as :func:`read_newmu` reads them; running statistics go, as the code has none."""
    networks = checkpoints.build_networks(content, source="the checkpoint")
    if "generator" not in networks:
        raise UserError("convert(): newmu-arrays need a generator, the checkpoint holds none")
    files = {}
    for role, network in networks.items():
        _check_net(role, network.config)  # type: ignore[arg-type]
        for number, parameter in enumerate(network.parameters(), 1):
            array = _other_way(parameter.detach()).float().contiguous().numpy()
            files[f"{_STEMS[role]}_{number:02d}.npy"] = array
    folder = folder_for(files, out, _ARRAY_FILE)
    for name, array in files.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        write_bytes(folder / name, buffer.getbuffer())
    return [folder / name for name in files]


def _check_net(role: str, config: dict[str, Any]) -> None:
    """Raises :class:`UserError` where their code would compute something else from the arrays."""
    kernel = config.get("kernel_size")
    theirs: dict[str, Any] = {"convs_per_scale": 2 if kernel == 3 else 1, "bias": False}
    theirs |= {"kernel_size": kernel if kernel == 3 else 5, "bn_eps": 1e-8, "scales": None}
    theirs |= {"projection": "linear-bn1d"} if role == "generator" else {"head": "linear"}
    for name, value in theirs.items():
        mine = config.get(name, "missing")
        if name == "scales" and mine is not None and "image_size" in config:
            value = (config["image_size"] // 4).bit_length() - 1  # down to 4x4
        if mine != value:
            raise UserError(
                f"convert(): the {role} is no net of Newmu/dcgan_code's, so it cannot be written as one ('{name}' is "
                f"{mine!r} where theirs has {value!r})"
            )
