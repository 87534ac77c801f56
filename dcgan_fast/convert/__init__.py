"""Trained DCGANs of other codes as checkpoints of this one, and back.

==================  ==================================================  =====  =====
format              what it is                                          read   write
==================  ==================================================  =====  =====
dcgan-fast          a checkpoint of this package                        yes    yes
pytorch-examples    bare state dicts of pytorch/examples' DCGAN         yes    yes
newmu-arrays        the paper's code's arrays, one ``.npy`` a weight    yes    yes
carpedm20           DCGAN-tensorflow's variables, one ``.npz``          yes    yes
carpedm20-mirrored  the same, images turned: see the module             yes    yes
huggan              a generator of the Hugging Face hub's huggan        yes    yes
safetensors         one file, what rebuilds the networks as metadata    yes    yes
onnx                graphs of standard operators, any batch             no     yes
==================  ==================================================  =====  =====

Bare state dicts of networks with labels (:func:`dcgan_fast.models.infer_network`) are read as pytorch/examples' are.
Whatever is read becomes the dict that :mod:`dcgan_fast.training.checkpoint` describes, and whatever
is written is made from one: a further format is a module with one more :class:`Format` in :data:`FORMATS`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..training import checkpoint as checkpoints
from . import carpedm20, onnx_file
from .formats import Checkpoint, Format, saved_content
from .huggan import is_huggan, read_huggan, write_huggan
from .newmu import is_newmu, read_newmu, write_newmu
from .pytorch_examples import is_examples, read_examples, write_examples
from .safetensors_file import SUFFIX, is_safetensors, read_safetensors, write_safetensors

__all__ = ["FORMATS", "Conversion", "Format", "convert"]


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
        out: the file, or for formats of several files the folder, to write; not ``source`` itself. An existing file is
            replaced as a whole, but in a folder that holds a file of another model nothing is written.
        source_format: a name in :data:`FORMATS`; None: recognised from ``source``.
        target_format: None: by the suffix of ``out`` where that tells, else ``dcgan-fast``, or
            ``pytorch-examples`` for a ``source`` that is a checkpoint already.

    Raises:
        UserError: ``source`` is missing, damaged or of no known format, its arrays do not make a
            network, the target format cannot hold it, a package that a format needs is not
            installed, or ``out`` cannot be written, is ``source``, or holds another model.
    """
    source, out = Path(source), Path(out)
    if not source.exists():
        raise UserError(f"convert(): no such file or folder: {source}")
    reader = _format("source_format", source_format) if source_format else _recognise(source)
    if reader.read is None:
        raise UserError(f"convert(): '{reader.name}' can be written only")
    writer = (
        _format("target_format", target_format) if target_format else _target(reader, out.suffix)
    )
    if writer.write is None:
        raise UserError(f"convert(): '{writer.name}' can be read only")
    if out.is_file() and source.is_file() and out.samefile(source):
        raise UserError(f"convert(): 'out' must be another file than the source, {source}")
    content = reader.read(source)
    if not {"generator", "discriminator"} & content.keys():
        raise UserError(f"convert(): {source} holds no network")
    if "preset" not in content:
        raise UserError(f"convert(): {source} does not say of which preset its networks are")
    files = writer.write(content, out)
    return Conversion(reader.name, writer.name, content["preset"], tuple(files))


def _target(reader: Format, suffix: str) -> Format:
    for candidate in FORMATS.values():
        if candidate.suffix == suffix:
            return candidate
    return FORMATS["pytorch-examples" if reader.name == "dcgan-fast" else "dcgan-fast"]


def _format(argument: str, name: str) -> Format:
    if name not in FORMATS:
        raise UserError(
            f"convert(): '{argument}' must be one of {', '.join(FORMATS)}; got '{name}'"
        )
    return FORMATS[name]


def _recognise(source: Path) -> Format:
    for candidate in FORMATS.values():
        if candidate.recognises is not None and candidate.recognises(source):
            return candidate
    known = "; ".join(f"{entry.name}: {entry.summary}" for entry in FORMATS.values() if entry.read)
    raise UserError(f"convert(): {source} is of no known format ({known})")


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        path = path / checkpoints.FILE_NAME
    return path.is_file() and saved_content(path).get("format") == checkpoints.FORMAT


def _write_checkpoint(content: Checkpoint, out: Path) -> list[Path]:
    checkpoints.save_checkpoint(out, content)
    return [out]


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
            is_examples,
            read_examples,
            write_examples,
        ),
        Format(
            "newmu-arrays",
            "a folder of gen_NN.npy and discrim_NN.npy, the weights of Newmu/dcgan_code",
            is_newmu,
            read_newmu,
            write_newmu,
        ),
        Format(
            "carpedm20",
            "a .npz of carpedm20/DCGAN-tensorflow's variables; 5x5 kernels become 6x6 ones",
            carpedm20.is_carpedm20,
            carpedm20.read_upright,
            carpedm20.write_upright,
            carpedm20.SUFFIX,
        ),
        Format(
            "carpedm20-mirrored",
            "the same with 5x5 kernels, of images turned by 180 degrees (see the docs)",
            carpedm20.is_carpedm20,
            carpedm20.read_mirrored,
            carpedm20.write_mirrored,
        ),
        Format(
            "huggan",
            "a folder of the Hugging Face hub: config.json beside model.safetensors or "
            "pytorch_model.bin",
            is_huggan,
            read_huggan,
            write_huggan,
        ),
        Format(
            "safetensors",
            "a .safetensors file of dcgan_fast's networks, or of a bare state dict",
            is_safetensors,
            read_safetensors,
            write_safetensors,
            SUFFIX,
        ),
        Format(
            "onnx",
            "written only: a folder of generator.onnx and discriminator.onnx",
            write=onnx_file.write_onnx,
            suffix=onnx_file.SUFFIX,
        ),
    )
}
