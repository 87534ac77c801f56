"""Checkpoint files: what they hold, how they are written so that none is ever lost, how they load.

A checkpoint is ``torch.save`` of plain Python types and tensors; ``weights_only=True`` loads it:

====================  ============================================================================
``format``            ``"dcgan_fast"``
``version``           1
``preset``            name of the preset the networks were built from
``config``            ``{"generator": {...}, "discriminator": {...}}``: what rebuilds the networks
``networks``          (optional) of which class of :data:`dcgan_fast.models.NETWORKS` they are, by
                      name and by role; Generator and Discriminator where it is missing
``generator``,        state dicts, with the keys of the plain PyTorch modules
``discriminator``
``generator_ema``     (optional) the same of an average of the generator's weights, which then draws
``bn``                (optional) default statistics for sampling: "running" or "batch"
``optimizer_g``, ``optimizer_d``, ``scalers``, ``rng``, ``data``, ``step``, ``epoch``,
``metrics``, ``watch``, ``train_config``      (optional) what a training run needs to continue bit for bit
``rng_of_others``     (optional) what each process but the first draws dropout from, in order of rank
====================  ============================================================================

A bare state dict, such as pytorch/examples' ``netG_epoch_24.pth``, also with its keys under
``module.`` or ``model.``, loads as a checkpoint with that one network; so does one of a network with labels
(:func:`dcgan_fast.models.infer_network`).
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import UserError
from ..files import write_bytes

FORMAT = "dcgan_fast"
VERSION = 1
FILE_NAME = "checkpoint.pt"
PREVIOUS_NAME = "checkpoint.previous.pt"

StateDict = dict[str, Tensor]


def save_checkpoint(
    path: str | os.PathLike[str], checkpoint: Mapping[str, Any], *, keep: str | None = None
) -> None:
    """Write ``checkpoint`` to ``path`` so that a kill at any moment leaves a whole file.

    ``format`` and ``version`` are added where they are missing. With ``keep``, a file name, what
    ``path`` held before stays under that name in the same folder.

    Raises:
        UserError: the file cannot be written; what ``path`` held before is untouched.
    """
    path = Path(path)
    # Serialised in memory first, at the cost of one copy of the weights: an error of the disk then
    # reaches us as the OSError it is, where torch's zip writer makes it an assertion.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **checkpoint}, buffer)
    if keep is not None:
        _keep_old(path, path.with_name(keep))
    write_bytes(path, buffer.getbuffer())


def _keep_old(path: Path, kept: Path) -> None:
    """Give the file at ``path`` the second name ``kept``; at no moment is ``path`` missing."""
    link = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
        try:
            os.replace(link, kept)
        finally:  # of two names of one file, as a kill leaves them, a rename keeps both
            link.unlink(missing_ok=True)
    except FileNotFoundError:
        pass  # the first checkpoint of a run
    except OSError:
        pass  # no hard links here: only the newest is kept, still written atomically


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint, a run folder that holds one, or a bare state dict, onto the CPU.

    Returns the dict described at the top of this module; that of a bare state dict lacks the other
    network, and its ``preset`` is ``"pytorch"``, of a network with labels ``"cgan-dcgan"``.

    Raises:
        UserError: no such file, not a checkpoint, written by a newer version, or not of a network
            that this package can build.
    """
    path, content = _read(path)
    if content.get("format") == FORMAT:
        return checked(dict(content), path)
    return from_bare_state(content, path)


def load_weights(path: str | os.PathLike[str], role: str) -> dict[str, Tensor]:
    """Read the state dict of one network, ``role`` "generator" or "discriminator", onto the CPU.

    From a checkpoint, a run folder, or a bare state dict of any architecture (which is taken for
    that of ``role``), with its keys as ours.

    Raises:
        UserError: no such file, not a checkpoint, or one without that network.
    """
    path, content = _read(path)
    if content.get("format") != FORMAT:
        return _bare_state(content, path)
    checkpoint = checked(dict(content), path)
    if role not in checkpoint:
        raise UserError(f"{path} holds no {role}")
    return checkpoint[role]


def _read(path: str | os.PathLike[str]) -> tuple[Path, Mapping[str, Any]]:
    """The file that ``path`` means, and the mapping that it holds."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise UserError(f"no such checkpoint: {path}")
    try:
        file = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of files that are none of its own
            _check_sums(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each way a file can be broken
        previous = path.with_name(PREVIOUS_NAME)
        has_previous = path.name == FILE_NAME and previous.is_file()
        offer = f"; the one before it is {previous}" if has_previous else ""
        raise UserError(
            f"{path} is not a checkpoint that can be read: {_first_line(error)}{offer}"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return path, content


def _check_sums(file: BinaryIO) -> None:
    """Raise ValueError where the zip that torch.save writes is damaged: torch compares no checksum, so that a bit that
    the disk has lost would become another weight. A second for 1 to 3 GB.

    A compressed entry, which torch.save never writes, is refused too: it may become a thousand times as long.
    """
    is_zip = zipfile.is_zipfile(file)
    file.seek(0)
    if not is_zip:
        return  # a plain pickle of an old torch has no sums
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed")
        # All 0 where their writer was told to leave them out.
        if any(entry.CRC for entry in entries):
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} is damaged: its checksum is another")
    file.seek(0)


def load_networks(
    path: str | os.PathLike[str],
) -> tuple[nn.Module | None, nn.Module | None, dict[str, Any]]:
    """Build the networks that the file at ``path`` holds and load their weights, on the CPU.

    Returns ``(generator, discriminator, checkpoint)``, None for a network that the file lacks.

    Raises:
        UserError: as :func:`load_checkpoint`, and where weights do not fit their network.
    """
    checkpoint = load_checkpoint(path)
    networks = build_networks(checkpoint, source=path)
    return networks.get("generator"), networks.get("discriminator"), checkpoint


def build_networks(checkpoint: Mapping[str, Any], *, source: object) -> dict[str, nn.Module]:
    """The networks that ``checkpoint`` describes, by role, with their weights, on the CPU: G's averaged ones where the
    run kept an average of them.

    Raises:
        UserError: "SOURCE holds a …": of no class of ours, or with weights that do not fit.
    """
    from .. import models

    networks: dict[str, nn.Module] = {}
    names = {"generator": "Generator", "discriminator": "Discriminator"}
    names |= checkpoint.get("networks", {})
    for role in ("generator", "discriminator"):
        if role not in checkpoint:
            continue
        config = checkpoint["config"].get(role)
        if not config:
            raise UserError(
                f"{source} holds a {role} that is not ours: build it and load checkpoint['{role}']"
            )
        network_class = models.NETWORKS.get(str(names[role]))
        if network_class is None:
            raise UserError(
                f"{source} holds a {role} of the class '{names[role]}', which this dcgan_fast does not have: update it"
            )
        state = checkpoint.get(f"{role}_ema") or checkpoint[role]
        try:
            with torch.device("meta"):  # no memory is taken for what a damaged number says
                described = network_class(**config)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{source} describes a {role} that cannot be built: {error}") from error
        check_state(described, state, source=source)
        network = network_class(**config)
        load_state(network, state, source=source)
        networks[role] = network
    return networks


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, source: object) -> None:
    """``module.load_state_dict`` with an error that names the first key in which the two differ.

    ``num_batches_tracked`` may be missing (files older than PyTorch 0.4.1 have none).

    Raises:
        UserError: as :func:`check_state`.
    """
    check_state(module, state, source=source)
    here = module.state_dict()
    optional = {key: value for key, value in here.items() if _is_optional(key)}
    with reading(source):
        module.load_state_dict({**optional, **state})


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any], *, source: object) -> None:
    """``optimizer.load_state_dict`` of the state of an optimiser of the same kind and weights.

    Torch compares neither the kinds of values nor their shapes, beyond which its fused kernels then read. What is
    switched on and off, such as ``fused``, stays as it is here.

    Raises:
        UserError: "SOURCE is a damaged checkpoint: …".
    """
    settings = [dict(group) for group in optimizer.param_groups]
    with reading(source):
        optimizer.load_state_dict(dict(state))
        for mine, theirs in zip(settings, optimizer.param_groups, strict=True):
            for name, value in mine.items():
                if value is None or isinstance(value, bool):
                    theirs[name] = value
                elif name != "params" and _kind(theirs[name]) != _kind(value):
                    raise ValueError(f"the optimiser's '{name}' is {theirs[name]!r}")
        probe = _stepped(optimizer)
        for weight, values in optimizer.state.items():
            if values.keys() != probe.keys():
                raise ValueError(f"the optimiser keeps {', '.join(map(str, values))}")
            for name, like in probe.items():
                shape = tuple(weight.shape) if tuple(like.shape) == _PROBE else tuple(like.shape)
                found = values[name]
                if _shape(found) != shape or found.dtype != like.dtype or not _is_plain(found):
                    raise ValueError(f"the optimiser's '{name}' is {_shape(found)}, not {shape}")


_PROBE = (2, 3)


def _stepped(optimizer: Optimizer) -> dict[str, Tensor]:
    """What an optimiser of this kind keeps of a float32 weight of shape ``_PROBE``."""
    weight = nn.Parameter(torch.zeros(_PROBE, device=optimizer.param_groups[0]["params"][0].device))
    other = type(optimizer)([weight], **optimizer.defaults)
    weight.grad = torch.zeros_like(weight)
    other.step()
    return dict(other.state[weight])


def _kind(value: object) -> object:
    """Number, or a tuple of so many numbers."""
    if isinstance(value, tuple):
        return tuple(map(_kind, value))
    return float if type(value) in (int, float) else type(value)


@contextmanager
def reading(source: object) -> Iterator[None]:
    """Within, what is wrong with the values of ``source`` becomes the UserError that says so."""
    try:
        yield
    except UserError:
        raise
    except (
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        OverflowError,
    ) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else _first_line(error)
        raise UserError(f"{source} is a damaged checkpoint: {reason}") from error


def check_state(module: nn.Module, state: Mapping[str, Tensor], *, source: object) -> None:
    """That ``state`` is one of ``module``, which may be on the meta device.

    Raises:
        UserError: "SOURCE is of another architecture: KEY is SHAPE in the file, SHAPE in the …".
    """
    if not isinstance(state, Mapping):
        raise UserError(
            f"{source} is damaged: weights must be a mapping, not a {type(state).__name__}"
        )
    here = module.state_dict()
    for key in [*here, *(key for key in state if key not in here)]:
        mine, theirs = _shape(here.get(key)), _shape(state.get(key))
        if mine != theirs and not (_is_optional(key) and key not in state):
            raise UserError(
                f"{source} is of another architecture: '{key}' is {theirs} in the file, "
                f"{mine} in the {type(module).__name__.lower()}"
            )
        if key in state and not _is_plain(state[key]):
            raise UserError(f"{source} is damaged: '{key}' has fewer values than its shape says")


def _is_plain(value: Tensor) -> bool:
    """Whether every value lies in memory by itself; a damaged shape may be laid over a few of them."""
    if value.layout != torch.strided or value.is_quantized:
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _is_optional(key: str) -> bool:
    return str(key).endswith("num_batches_tracked")


def save_bare_state(path: str | os.PathLike[str], state: StateDict) -> None:
    """Write a bare state dict, as pytorch/examples' ``--netG`` and ``--netD`` read it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getbuffer())


def bare_state(module: nn.Module) -> StateDict:
    """The state dict as pytorch/examples saves it: plain contiguous CPU tensors."""
    return {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}


def checked(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """``checkpoint``, read from ``path``; raises :class:`UserError` where it is of a newer version or damaged."""
    version = checkpoint.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise UserError(
            f"{path} is a checkpoint of version {version}, this dcgan_fast reads up to {VERSION}: "
            "update it"
        )
    if not isinstance(checkpoint.get("config"), Mapping):
        raise UserError(f"{path} is a damaged checkpoint: it has no 'config'")
    if not isinstance(checkpoint.get("preset", ""), str):
        raise UserError(f"{path} is a damaged checkpoint: its 'preset' is no name")
    if checkpoint.get("bn", "running") not in ("running", "batch", "population"):
        raise UserError(f"{path} is a damaged checkpoint: 'bn' is {checkpoint['bn']!r}")
    for role in ("generator", "discriminator", "generator_ema"):
        if not isinstance(checkpoint.get(role, {}), Mapping):
            raise UserError(f"{path} is a damaged checkpoint: its '{role}' is no mapping")
    if not isinstance(checkpoint.get("networks", {}), Mapping):
        raise UserError(f"{path} is a damaged checkpoint: its 'networks' are no mapping")
    return checkpoint


def from_bare_state(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The checkpoint of a bare state dict, or of ``{"state_dict": …}``, that was read from ``path``.

    Raises:
        UserError: it is not of a network that this package can build.
    """
    from .. import models

    state = _bare_state(content, path)
    name, config = models.infer_network(state)
    role = (
        "generator" if issubclass(models.NETWORKS[name], models.LatentNetwork) else "discriminator"
    )
    return {
        "format": FORMAT,
        "version": VERSION,
        "preset": "cgan-dcgan" if "classes" in config else "pytorch",
        "config": {role: config},
        "networks": {role: name},
        role: state,
    }


def _bare_state(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    from .. import models

    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path} is not a checkpoint: it holds no tensors")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path} is not a checkpoint: {key!r} is a {type(value).__name__}, not a tensor"
            )
    return models.plain_state_dict(state)


def _shape(value: object) -> tuple[int, ...] | str:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return "missing" if value is None else f"a {type(value).__name__}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
