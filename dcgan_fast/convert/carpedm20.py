"""carpedm20/DCGAN-tensorflow: the variables of its net without labels, by their names, in one ``.npz``.

Such a file is made where TensorFlow is, of what ``tf.train.load_checkpoint(path).get_tensor(name)`` gives for each name
(``docs/convert.md``). Names may lack ``generator/`` and ``discriminator/`` or end in ``:0``; optimisers' variables are
passed over.

TensorFlow's SAME padding of a 5x5 stride-2 convolution is 1 before and 2 after the image, PyTorch's 2 on both sides, of
which the one after goes unused. Two exact ways over, each its own inverse:

``carpedm20``
    Images stay upright: kernels become 6x6 with an empty first row and column, which moves the 5x5 one to where
    TensorFlow has it, for 1.44 times the multiplications. Only kernels with these still empty can be written.
``carpedm20-mirrored``
    Kernels stay 5x5, those of the preset: they and the maps where a linear layer meets them are flipped in H and W, and
    with them **images are turned by 180 degrees**: those that the read generator draws, and those that a discriminator
    was trained on. For nets trained here that TensorFlow is to have, and back.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..errors import UserError
from ..files import write_bytes
from ..training import checkpoint as checkpoints
from .formats import Checkpoint, floats

SUFFIX = ".npz"
_KERNEL, _SCALES, _EPS = 5, 4, 1e-5
_NAME = re.compile(r"(?:(?:generator|discriminator)/)?([gd]_\w+/\w+)(?::0)?")
_SCOPES = {"generator": "generator/", "discriminator": "discriminator/"}
_NORM = {  # ours: theirs
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


class Variable(NamedTuple):
    """One of TensorFlow's variables and what it is here."""

    name: str  # without its scope
    key: str  # in our state dict
    kind: str  # "kernel", "maps" of a linear layer's output, "of maps" of its input, "vector"


def is_carpedm20(path: Path) -> bool:
    return any(name.startswith(("g_h0_lin/", "d_h0_conv/")) for name in _names(path).values())


def _names(path: Path) -> dict[str, str]:
    """The entries of a ``.npz``, and the variables' names that they have; none of another file."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = [name.removesuffix(".npy") for name in file.namelist()]
    except Exception:  # a damaged directory raises nearly anything
        return {}
    return {entry: match[1] for entry in entries if (match := _NAME.fullmatch(entry))}


# ---------------------------------------------------------------------------------------- reading


def read_upright(path: Path) -> Checkpoint:
    return _read(path, mirrored=False)


def read_mirrored(path: Path) -> Checkpoint:
    return _read(path, mirrored=True)


def _read(path: Path, *, mirrored: bool) -> Checkpoint:
    arrays = _load(path)
    if any(name.startswith(("g_h1_lin/", "d_h2_lin/")) for name in arrays):
        raise UserError(f"convert(): {path} holds a net with labels; only the one without is read")
    settings: dict[str, Any] = {"kernel_size": _KERNEL if mirrored else _KERNEL + 1}
    roles = {}
    if any(name.startswith("g_") for name in arrays):
        width, nc = _shape(arrays, "g_h4/w", 4, path)[3], _shape(arrays, "g_h4/w", 4, path)[2]
        nz, units = _shape(arrays, "g_h0_lin/Matrix", 2, path)
        roles["generator"] = settings | {"nz": nz, "nc": nc, "ngf": width}
        roles["generator"]["image_size"] = _image_size(units, width, "g_h0_lin/Matrix", path)
    if any(name.startswith("d_") for name in arrays):
        _, _, nc, width = _shape(arrays, "d_h0_conv/w", 4, path)
        units, _ = _shape(arrays, "d_h4_lin/Matrix", 2, path)
        roles["discriminator"] = settings | {"nc": nc, "ndf": width}
        roles["discriminator"]["image_size"] = _image_size(units, width, "d_h4_lin/Matrix", path)
    content: Checkpoint = {"preset": "carpedm20", "config": {}, "bn": "running"}
    for role, overrides in roles.items():
        network = models.build("carpedm20", **overrides)[role == "discriminator"]
        state = network.state_dict()
        for variable in _variables(network):
            value = _expect(arrays, variable, network, path)
            state[variable.key] = _to_ours(variable.kind, value, network, mirrored)
        network.load_state_dict(state)
        content["config"][role] = network.config
        content[role] = network.state_dict()
    return content


def _load(path: Path) -> dict[str, np.ndarray]:
    names = _names(path)
    if not names:
        raise UserError(f"convert(): {path} is no .npz of carpedm20/DCGAN-tensorflow's variables")
    arrays: dict[str, np.ndarray] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for entry, name in names.items():
                if name in arrays:
                    raise UserError(f"convert(): {path} holds {name} twice")
                arrays[name] = file[entry]
    except UserError:
        raise
    except Exception as error:  # zip, zlib and NumPy each raise types of their own
        raise UserError(f"convert(): cannot read {path}: {error}") from error
    return {name: floats(array, f"{name} in {path}") for name, array in arrays.items()}


def _shape(arrays: Mapping[str, np.ndarray], name: str, rank: int, path: Path) -> tuple[int, ...]:
    if name not in arrays:
        raise UserError(f"convert(): {path} lacks {name}")
    shape = arrays[name].shape
    if len(shape) != rank or 0 in shape:
        raise UserError(
            f"convert(): {name} in {path} must have {rank} dimensions above 0, got {shape}"
        )
    return shape


def _image_size(units: int, width: int, name: str, path: Path) -> int:
    """From the units of the linear layer at the smallest map: ``8 width`` maps of a sixteenth of the side.

    Sides that are no multiple of 16, which TensorFlow's net rounds up, cannot be told from this.
    """
    base = math.isqrt(units // (width << (_SCALES - 1)))
    if base < 1 or base * base * (width << (_SCALES - 1)) != units:
        raise UserError(
            f"convert(): {name} in {path} is of {units} units, which are not {width << (_SCALES - 1)} square maps"
        )
    return base << _SCALES


def _expect(
    arrays: Mapping[str, np.ndarray], variable: Variable, network: nn.Module, path: Path
) -> Tensor:
    shape = tuple(network.state_dict()[variable.key].shape)
    if variable.kind == "kernel":
        shape = (_KERNEL, _KERNEL, shape[1], shape[0])
    elif len(shape) == 2:
        shape = shape[::-1]
    array = arrays.get(variable.name)
    if array is None:
        raise UserError(f"convert(): {path} lacks {variable.name}")
    if array.shape != shape:
        raise UserError(f"convert(): {variable.name} in {path} must be {shape}, got {array.shape}")
    return torch.from_numpy(array)


# ---------------------------------------------------------------------------------------- writing


def write_upright(content: Checkpoint, out: Path) -> list[Path]:
    return _write(content, out, mirrored=False)


def write_mirrored(content: Checkpoint, out: Path) -> list[Path]:
    return _write(content, out, mirrored=True)


def _write(content: Checkpoint, out: Path, *, mirrored: bool) -> list[Path]:
    arrays = {}
    for role, network in checkpoints.build_networks(content, source="the checkpoint").items():
        _check_net(role, network, mirrored)
        state = network.state_dict()
        for variable in _variables(network):
            value = _to_theirs(variable.kind, state[variable.key].float(), network, mirrored)
            arrays[_SCOPES[role] + variable.name] = value.contiguous().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(out, buffer.getbuffer())
    return [out]


def _check_net(role: str, network: Any, mirrored: bool) -> None:
    """Raises :class:`UserError` where their code would compute something else from the variables."""
    theirs: dict[str, Any] = {"scales": _SCALES, "convs_per_scale": 1, "bias": True, "bn_eps": _EPS}
    theirs |= {"projection": "linear"} if role == "generator" else {"head": "linear"}
    theirs["kernel_size"] = _KERNEL if mirrored else _KERNEL + 1
    for name, value in theirs.items():
        mine = network.config.get(name, "missing")
        if mine == value:
            continue
        way = ""
        if name == "kernel_size" and mine in (_KERNEL, _KERNEL + 1):
            way = f": use carpedm20{'' if mirrored else '-mirrored'}, of the other kernels"
        raise UserError(
            f"convert(): the {role} is no net that 'carpedm20{'-mirrored' if mirrored else ''}' can hold ('{name}' is "
            f"{mine!r} where it has {value!r}){way}"
        )
    if not mirrored:
        kernels = [value for value in network.state_dict().values() if value.dim() == 4]
        if any(k[:, :, 0].count_nonzero() or k[..., 0].count_nonzero() for k in kernels):
            raise UserError(
                f"convert(): the {role}'s 6x6 kernels were trained since they came from 5x5 ones: TensorFlow's net has "
                "no place for their first row and column"
            )


# ---------------------------------------------------------------------------------------- weights


def _variables(network: nn.Module) -> Iterator[Variable]:
    """What of their net is what of ours: layers and batch norms are numbered in the order in which they run."""
    generator = isinstance(network, models.Generator)
    letter, layer, norm = ("g", 0, 0) if generator else ("d", 0, 1)
    for index, child in enumerate(network.main):  # type: ignore[arg-type]
        if isinstance(child, nn.Linear):
            name = f"{letter}_h{layer}_lin"
            yield Variable(
                f"{name}/Matrix", f"main.{index}.weight", "maps" if generator else "of maps"
            )
            yield Variable(f"{name}/bias", f"main.{index}.bias", "maps" if generator else "vector")
            layer += 1
        elif isinstance(child, (nn.Conv2d, nn.ConvTranspose2d)):
            name = f"{letter}_h{layer}" if generator else f"{letter}_h{layer}_conv"
            yield Variable(f"{name}/w", f"main.{index}.weight", "kernel")
            yield Variable(f"{name}/biases", f"main.{index}.bias", "vector")
            layer += 1
        elif isinstance(child, nn.BatchNorm2d):
            for ours, theirs in _NORM.items():
                yield Variable(f"{letter}_bn{norm}/{theirs}", f"main.{index}.{ours}", "vector")
            norm += 1


def _to_ours(kind: str, value: Tensor, network: Any, mirrored: bool) -> Tensor:
    """TensorFlow's kernels are (kH, kW, in, out), of transposed convolutions (kH, kW, out, in); maps are (H, W, C)."""
    if kind == "kernel":
        value = value.permute(3, 2, 0, 1)
        return value.flip(2, 3) if mirrored else nn.functional.pad(value, (1, 0, 1, 0))
    if kind == "vector":
        return value
    axis, base = int(kind == "of maps"), network.image_size >> _SCALES
    maps = (value.T if value.dim() == 2 else value).unflatten(axis, (base, base, -1))
    if mirrored:
        maps = maps.flip(axis, axis + 1)
    return maps.movedim(axis + 2, axis).flatten(axis, axis + 2)


def _to_theirs(kind: str, value: Tensor, network: Any, mirrored: bool) -> Tensor:
    """The inverse of :func:`_to_ours`."""
    if kind == "kernel":
        value = value.flip(2, 3) if mirrored else value[:, :, 1:, 1:]
        return value.permute(2, 3, 1, 0)
    if kind == "vector":
        return value
    axis, base = int(kind == "of maps"), network.image_size >> _SCALES
    maps = value.unflatten(axis, (-1, base, base))
    if mirrored:
        maps = maps.flip(axis + 1, axis + 2)
    flat = maps.movedim(axis, axis + 2).flatten(axis, axis + 2)
    return flat.T if flat.dim() == 2 else flat
