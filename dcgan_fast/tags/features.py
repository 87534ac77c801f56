"""Images to feature vectors: by a network in a file or in Python, or read from an array."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass
from tqdm import tqdm

from ..data.find import find_source
from ..data.pictures import quiet_pillow, render_blocks
from ..errors import UserError
from ..files import atomic_write, write_text
from ..models import Discriminator
from ..reading import read_array
from ..training.checkpoint import load_networks

__all__ = ["SCALINGS", "Extractor", "Features", "extract", "load_extractor", "load_features"]

PIXELS = "pixels"
_PIXELS_SIDE = 16
_SIDE, _CHANNELS = 224, 3  # of a network that does not say: ImageNet's
_LISTED = 10

# What a pixel of 0 to 1 becomes: minus the first, by the second.
SCALINGS: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's networks
    "symmetric": ((0.5,), (0.5,)),  # -1 to 1: DCGANs
    "unit": ((0.0,), (1.0,)),
}


# --------------------------------------------------------------------------------------- features


@dataclass(eq=False)
class Features:
    """A feature vector for each image.

    names:  of the images, all different
    values: float32 (N, width), finite, at least one row

    Raises:
        UserError: other shapes, an image that is there twice, NaN or infinity (the image is named).
    """

    names: list[str]
    values: np.ndarray

    def __post_init__(self) -> None:
        shape = self.values.shape
        if len(shape) != 2 or 0 in shape or shape[0] != len(self.names):
            raise UserError(
                f"Features(): 'values' must be (images, width) for {len(self.names)} names, at least "
                f"one of each, got {shape}"
            )
        self.values = np.asarray(self.values, np.float32)
        finite = np.isfinite(self.values).all(1)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            raise UserError(
                f"the features of {len(bad):,} images hold NaN or infinity, the first is "
                f"'{self.names[bad[0]]}'"
            )
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise UserError(f"Features(): 'names' must differ, '{twice[0]}' is there twice")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def width(self) -> int:
        return int(self.values.shape[1])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``path``, a ``.npy``, and the names, a line each, beside it: :func:`load_features`."""
        write_text(_names_beside(Path(path)), "".join(f"{one_line(n)}\n" for n in self.names))
        with atomic_write(path) as file:
            np.save(file, self.values)


def _names_beside(path: Path) -> Path:
    return path.with_suffix(".names.txt")


def one_line(name: str) -> str:
    """A name that breaks no line and no column."""
    for character, shown in (("\n", r"\n"), ("\r", r"\r"), ("\t", r"\t")):
        name = name.replace(character, shown)
    return name.encode(errors="backslashreplace").decode()


def load_features(
    path: str | os.PathLike[str], names: str | os.PathLike[str] | None = None
) -> Features:
    """Read features that were computed before: a ``.npy`` of floats (N, width).

    Args:
        path: the array.
        names: of its images: text, a line each. None: ``photos.names.txt`` beside ``photos.npy``.

    Raises:
        UserError: a file is missing or of another form, or as :class:`Features`.
    """
    path = Path(path)
    listed = _names_beside(path) if names is None else Path(names)
    try:
        values = np.array(read_array(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path}: is not an array of numbers: {error}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.ndim != 2:
        came = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise UserError(f"{path}: features must be floating-point (images, width), got {came}")
    try:
        lines = listed.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the names of {path} cannot be read from {listed}: {error}") from error
    found = [line.removesuffix("\r") for line in lines if line.strip()]
    if len(found) != len(values):
        raise UserError(f"{listed} names {len(found):,} images, {path} has {len(values):,} rows")
    return Features(found, values)


# -------------------------------------------------------------------------------------- extractor


@dataclass(eq=False)
class Extractor:
    """A network and the images that it wants.

    network:    images (N, channels, image_size, image_size), scaled, to (N, width) or to maps
                (N, width, H, W), which are averaged over H and W
    scaling:    a name in :data:`SCALINGS`
    batch_size: images at once; ``fixed_batch`` where the network takes no other number
    """

    network: Callable[[Tensor], Any]
    image_size: int = _SIDE
    channels: int = _CHANNELS
    scaling: str = "imagenet"
    batch_size: int = 64
    fixed_batch: bool = False
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise UserError(
                f"Extractor(): 'scaling' must be one of {', '.join(SCALINGS)}; got {self.scaling!r}"
            )
        if self.scaling == "imagenet" and self.channels != 3:
            raise UserError(
                f"Extractor(): 'scaling' imagenet is for 3 channels, the network takes "
                f"{self.channels}; choose symmetric or unit"
            )
        if self.image_size < 1:
            raise UserError(f"Extractor(): 'image_size' must be at least 1, got {self.image_size}")
        if isinstance(self.network, nn.Module) and not _is_exported(self.network):
            self.network = self.network.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features float32 (N, width) of uint8 images (N, channels, image_size, image_size)."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        mean, deviation = (
            torch.tensor(each, device=self.device)[:, None, None] for each in SCALINGS[self.scaling]
        )
        parts = []
        for some in pixels.split(self.batch_size):
            scaled = some.float().div_(255).sub_(mean).div_(deviation)
            missing = self.batch_size - len(some) if self.fixed_batch else 0
            if missing:
                scaled = torch.cat([scaled, scaled.new_zeros(missing, *scaled.shape[1:])])
            parts.append(self._pooled(self._run(scaled), len(scaled))[: len(some)])
        return torch.cat(parts).float().cpu().numpy()

    def _run(self, images: Tensor) -> Any:
        try:
            return self.network(images)
        except Exception as error:  # the network is not ours: it may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UserError(
                f"the feature network fails on images {tuple(images.shape)} ({reason}); does it "
                "take another size?"
            ) from error

    def _pooled(self, output: Any, images: int) -> Tensor:
        if isinstance(output, (tuple, list)) and len(output) == 1:
            output = output[0]
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if not isinstance(output, Tensor) or output.dim() not in (2, 4) or len(output) != images:
            raise UserError(
                f"the feature network must give ({images}, width) or ({images}, width, H, W), got "
                f"{shape}"
            )
        return output if output.dim() == 2 else output.mean((2, 3))


class _Pixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class _ConvolutionFeatures(nn.Module):
    """The DCGAN paper's: every convolution's activations, max-pooled to 4x4, flattened."""

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        main = discriminator.main
        ends = [i + 1 for i, child in enumerate(main) if isinstance(child, nn.LeakyReLU)]
        self.layers = nn.ModuleList(
            main[start:end] for start, end in zip([0, *ends], ends, strict=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        pooled = []
        for layer in self.layers:
            images = layer(images)
            pooled.append(nn.functional.adaptive_max_pool2d(images, 4).flatten(1))
        return torch.cat(pooled, 1)


def load_extractor(
    source: str | os.PathLike[str] | nn.Module,
    *,
    image_size: int | None = None,
    scaling: str | None = None,
    device: torch.device | str = "cpu",
) -> Extractor:
    """What computes features: a network of one's own, or what a file holds.

    * any ``nn.Module`` of images, such as torchvision's without its last layer;
    * a ``.pt2`` by ``torch.export.save``, with any or a fixed number of images;
    * a TorchScript file;
    * a checkpoint or run folder of ours: its discriminator's convolutions, max-pooled to 4x4 and
      flattened, as the DCGAN paper's classifiers had them;
    * ``"pixels"``: the image itself at 16x16, 768 numbers: no match for a network.

    Args:
        source: which.
        image_size: side of the images; None: what the file says, else 224.
        scaling: of pixels, a name in :data:`SCALINGS`; None: "symmetric" for a checkpoint of ours,
            "unit" for pixels, "imagenet" for the others (which have 3 channels).
        device: where it runs.

    Raises:
        UserError: no such file, none of these, or settings that do not fit it.
    """
    device = torch.device(device)
    chosen: dict[str, Any] = {"device": device}
    if isinstance(source, nn.Module):
        network: nn.Module = source
    elif source == PIXELS:
        network = _Pixels()
        chosen |= {"image_size": _PIXELS_SIDE, "scaling": "unit"}
    else:
        path = Path(source)
        kind = _kind_of_file(path)
        if kind == "export":
            network, wanted = _load_exported(path, device)
            chosen |= wanted
        elif kind == "script":
            network = _load_script(path, device)
        else:
            discriminator = load_networks(path)[1]
            if discriminator is None:
                raise UserError(f"{path} holds no discriminator to take features from")
            if not isinstance(discriminator, Discriminator):
                raise UserError(
                    f"{path} holds a {type(discriminator).__name__}; features are taken from a "
                    "Discriminator, which sees images alone"
                )
            network = _ConvolutionFeatures(discriminator)
            chosen |= {"channels": discriminator.nc, "scaling": "symmetric"}
            chosen |= {"image_size": discriminator.image_size}
            if image_size not in (None, discriminator.image_size):
                raise UserError(
                    f"{path} is of images {discriminator.image_size} wide, it cannot take "
                    f"{image_size}"
                )
    asked = {"image_size": image_size, "scaling": scaling}
    chosen |= {name: value for name, value in asked.items() if value is not None}
    if chosen.get("channels", 3) != 3:
        chosen.setdefault("scaling", "unit")
    return Extractor(network, **chosen)


def _kind_of_file(path: Path) -> str:
    """``export``, ``script`` or ``checkpoint``, by the names inside the zip that all of them are."""
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        inner = {name.partition("/")[2] for name in names} | set(names)
        if "archive_format" in inner or "serialized_exported_program.json" in inner:
            return "export"
        if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
            return "script"
    return "checkpoint"


def _is_exported(network: nn.Module) -> bool:
    return isinstance(network, torch.fx.GraphModule)


def _load_exported(path: Path, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    try:
        program = torch.export.load(path)
        if device.type != "cpu":
            program = move_to_device_pass(program, device)
    except Exception as error:
        raise UserError(f"{path} cannot be loaded as an exported network: {error}") from error
    inputs = set(program.graph_signature.user_inputs)
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in inputs
    ]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise UserError(
            f"{path}: a network of images has one input (N, C, S, S), this one has "
            f"{', '.join(str(tuple(shape)) for shape in shapes) or 'none'}"
        )
    batch, channels, height, width = shapes[0]
    wanted: dict[str, Any] = {}
    if isinstance(channels, int):
        wanted["channels"] = channels
    if isinstance(height, int):
        wanted["image_size"] = height
    if isinstance(height, int) and isinstance(width, int) and height != width:
        raise UserError(f"{path}: takes images of {height}x{width}, only square ones are made here")
    if isinstance(batch, int):
        wanted |= {"batch_size": batch, "fixed_batch": True}
    return program.module(), wanted


def _load_script(path: Path, device: torch.device) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as such
            return torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{path} cannot be loaded as TorchScript: {reason}") from error


def extract(
    images: str | os.PathLike[str],
    extractor: Extractor,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> Features:
    """Features of all images of a source, whatever :func:`dcgan_fast.data.prepare` takes.

    Images that cannot be read are left out, with a warning; those without a name have their number.

    Raises:
        UserError: no such source, none of its images can be read, a feature is not finite, or the
            network does not take such images.
    """
    found = find_source(Path(images) if isinstance(images, os.PathLike) else images, "all")
    kept: list[int] = []
    values: list[np.ndarray] = []
    reasons: list[str] = []
    with found.open() as pictures, quiet_pillow():
        names = pictures.names
        blocks = render_blocks(
            pictures, extractor.image_size, extractor.channels, workers or os.cpu_count() or 1
        )
        with tqdm(
            total=len(pictures), desc="features", unit=" images", disable=not progress
        ) as bar:
            for rows, (block, unreadable) in blocks:
                reasons += unreadable.values()
                readable = [row for row in range(len(rows)) if row not in unreadable]
                if readable:
                    values.append(extractor(block[readable]))
                    kept += [rows[row] for row in readable]
                bar.update(len(rows))
    if not kept:
        first = f"; the first: {reasons[0]}" if reasons else ""
        raise UserError(f"{found.location}: none of its images could be read{first}")
    if reasons:
        more = f" and {len(reasons) - _LISTED:,} more" if len(reasons) > _LISTED else ""
        listed = "; ".join(reasons[:_LISTED])
        warnings.warn(
            f"left out {len(reasons):,} images that cannot be read: {listed}{more}", stacklevel=2
        )
    return Features(
        [str(row) if names is None else names[row] for row in kept], np.concatenate(values)
    )
