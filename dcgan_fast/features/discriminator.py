"""A trained discriminator's convolutions as features: a scikit-learn transformer that streams."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor, nn
from tqdm import tqdm

from .. import backends, functional
from ..data.dataset import Dataset
from ..devices import pick_device
from ..errors import UserError
from ..files import remove_if_there, write_text
from ..networks import Discriminator
from ..nn import FusedSequential, Run, activation_options, plain_is_wanted
from ..reading import parse_json, read_array
from ..training.checkpoint import load_networks

__all__ = ["DiscriminatorFeatures"]

_DTYPES = {"float16": torch.float16, "float32": torch.float32}
_SAVED_EVERY = 20  # batches between notes of how far a file is

Images = Tensor | NDArray[np.uint8] | Dataset


class DiscriminatorFeatures(TransformerMixin, BaseEstimator):
    """Images to the activations of a discriminator's convolutions, max-pooled to 4x4, flattened, one after another.

    >>> features = DiscriminatorFeatures("runs/cifar10-pytorch").transform(images)  # uint8 (N, C, S, S)

    Convolutions pool each image's maps into its row of features when these are made and still in the cache; then only
    the next layer needs them: two maps live at most. Nothing is fitted. Convolutions run on whatever of the CPU is
    fastest meanwhile (``backends.cpu.adaptive``), so that features may differ between runs by rounding.

    Args:
        network: a checkpoint, a run folder, a bare state dict, or a :class:`~dcgan_fast.models.Discriminator`.
        layers: numbers of the convolutions to take, from 0; None takes all.
        size: side of what maps are pooled to.
        batch_size: images at once.
        dtype: "float32" or "float16", of the features.
        bn: statistics of batch norm: "running", or "batch", of the images of a batch, as the SVHN script trained.
        device: "cpu", "cuda" ...; "auto" is CUDA where there is one.
        progress: whether to show a progress bar.

    Source: Radford, Metz, Chintala 2016, section 5.1.
    """

    def __init__(
        self,
        network: str | os.PathLike[str] | Discriminator,
        *,
        layers: tuple[int, ...] | None = None,
        size: int = 4,
        batch_size: int = 100,
        dtype: str = "float32",
        bn: str = "running",
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        self.network = network
        self.layers = layers
        self.size = size
        self.batch_size = batch_size
        self.dtype = dtype
        self.bn = bn
        self.device = device
        self.progress = progress

    def fit(self, X: Any = None, y: Any = None) -> DiscriminatorFeatures:
        """Loads the network; ``X`` and ``y`` are ignored.

        Raises:
            UserError: a setting breaks its rule, no such checkpoint or layer, or one without a plain discriminator.
        """

        def whole(value: Any) -> bool:
            return isinstance(value, int) and value >= 1

        rules = {
            "size": (self.size, whole, "a whole number of at least 1"),
            "batch_size": (self.batch_size, whole, "a whole number of at least 1"),
            "dtype": (self.dtype, lambda value: value in _DTYPES, "float16 or float32"),
            "bn": (self.bn, lambda value: value in ("running", "batch"), "running or batch"),
        }
        for name, (value, holds, rule) in rules.items():
            if not holds(value):
                raise UserError(f"DiscriminatorFeatures(): '{name}' must be {rule}, got {value!r}")
        given = self.network
        network = given if isinstance(given, nn.Module) else _load(given)
        if not isinstance(network, Discriminator):
            raise UserError(
                "DiscriminatorFeatures(): 'network' must be a Discriminator, which sees images alone, got a "
                f"{type(network).__name__}"
            )
        self.network_ = network.to(pick_device(self.device))
        main = cast(nn.Sequential, network.main)
        ends = [i + 1 for i, child in enumerate(main) if isinstance(child, nn.LeakyReLU)]
        starts = [0, *ends[:-1]]
        chosen = tuple(range(len(ends)) if self.layers is None else self.layers)
        missing = [layer for layer in chosen if layer not in range(len(ends))]
        if missing or not chosen or len(set(chosen)) < len(chosen):
            raise UserError(
                f"DiscriminatorFeatures(): 'layers' must be different numbers from 0 to {len(ends) - 1}, the network's "
                f"convolutions, got {list(chosen)}"
            )
        self.layers_ = [
            cast(nn.Sequential, main[start:end]) for start, end in zip(starts, ends, strict=True)
        ]
        widths = [
            next(child.out_channels for child in layer if isinstance(child, nn.Conv2d))
            for layer in self.layers_
        ]
        self.columns_: dict[int, int] = {}  # of the first feature of each layer that is taken
        self.n_features_out_ = 0
        for layer in sorted(chosen):
            self.columns_[layer] = self.n_features_out_
            self.n_features_out_ += widths[layer] * self.size**2
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def transform(self, X: Images, out: str | os.PathLike[str] | None = None) -> NDArray[Any]:
        """Features ``(N, n_features_out_)`` of uint8 images ``(N, nc, S, S)``, or of a :class:`Dataset` of them.

        Args:
            X: the images, of the network's own size and channels.
            out: a ``.npy`` to write, mapped into memory: features may be larger than that. It is ``OUT.part`` until it
                is whole, and the same call continues a broken one.

        Returns:
            float16 or float32; of ``out`` a read-only map.

        Raises:
            UserError: images of another shape or dtype, features that are no numbers, or a file that cannot be written.
        """
        if not hasattr(self, "network_"):
            self.fit()
        images = X.images if isinstance(X, Dataset) else X
        net = self.network_
        shape = (net.nc, net.image_size, net.image_size)
        if str(images.dtype).removeprefix("torch.") != "uint8" or tuple(images.shape[1:]) != shape:
            raise UserError(
                "DiscriminatorFeatures.transform(): 'X' must be uint8 images "
                f"{('N', *shape)}, got {images.dtype} {tuple(images.shape)}"
            )
        table = (len(images), self.n_features_out_)
        if out is None:
            found = np.empty(table, self.dtype)
            self._run(images, found, 0, None)
            return found
        file = _Partial(Path(out), table, self.dtype, self._fingerprint(images))
        self._run(images, file.array, file.done, file)
        return file.finish()

    def _fingerprint(self, images: Any) -> str:
        """Of all that the features depend on, so that no file is continued with those of another network."""
        digest = hashlib.sha256(
            repr((tuple(self.columns_.items()), self.size, self.bn, tuple(images.shape))).encode()
        )
        if self.bn == "batch":
            digest.update(str(self.batch_size).encode())
        for name, value in self.network_.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        for row in {0, len(images) // 2, len(images) - 1} if len(images) else ():
            digest.update(np.ascontiguousarray(images[row]).tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def _run(self, images: Any, table: NDArray[Any], first: int, file: _Partial | None) -> None:
        device = next(self.network_.parameters()).device
        was_training = self.network_.training
        self.network_.train(self.bn == "batch")
        kept = {name: value.clone() for name, value in self.network_.named_buffers()}
        try:
            with (
                backends.cpu.flags(adaptive=True),
                tqdm(
                    total=len(images),
                    initial=first,
                    desc="features",
                    unit=" images",
                    disable=not self.progress,
                ) as bar,
            ):
                for batch, start in enumerate(range(first, len(images), self.batch_size)):
                    rows = table[start : start + self.batch_size]
                    self._take(_on(images[start : start + self.batch_size], device), rows)
                    if not _finite(rows):
                        raise UserError(
                            f"the features of images {start} to {start + len(rows) - 1} are no {self.dtype} "
                            "numbers: the network has diverged, or float16 is too small for it"
                        )
                    if file is not None and batch % _SAVED_EVERY == _SAVED_EVERY - 1:
                        file.note(start + len(rows))
                    bar.update(len(rows))
        finally:
            for name, value in self.network_.named_buffers():
                value.copy_(kept[name])  # statistics that "batch" has moved
            self.network_.train(was_training)

    def _take(self, maps: Tensor, rows: NDArray[Any]) -> None:
        """One batch's maps, pooled layer by layer into its rows."""
        features, last = torch.from_numpy(rows), max(self.columns_)
        for number, layer in enumerate(self.layers_[: last + 1]):
            column = self.columns_.get(number)
            maps = (
                layer(maps) if column is None else _pooled(layer, maps, self.size, features, column)
            )


def _pooled(layer: nn.Sequential, maps: Tensor, size: int, features: Tensor, column: int) -> Tensor:
    """What ``layer`` makes of ``maps``, which is pooled as :func:`pool_features` does: by its convolution itself, image
    by image, where that is a fused one on the CPU."""
    run = _convolution_that_pools(layer, maps)
    if run is None:
        maps = layer(maps)
        pool_features(maps, size, features, column)
        return maps
    conv, bn = cast(nn.Conv2d, run.convolution), run.normalisation
    found: Tensor = torch.ops.dcgan_fast._conv_pool_features_(
        maps,
        conv.weight,
        conv.bias,
        [] if bn is None else [bn.weight, bn.bias, bn.running_mean, bn.running_var],
        conv.stride,
        conv.padding,
        eps=0.0 if bn is None else bn.eps,
        size=size,
        features=features,
        column=column,
        **activation_options(run.activation),
    )
    return found


def _convolution_that_pools(layer: nn.Sequential, maps: Tensor) -> Run | None:
    """The one run that is all of ``layer``, if it is a convolution whose op can pool what it makes of ``maps``."""
    if not isinstance(layer, FusedSequential) or plain_is_wanted(maps):
        return None
    run, *others = layer.runs()
    bn = run.normalisation
    by_op = (
        not others
        and type(run.convolution) is nn.Conv2d
        and maps.device.type == "cpu"
        and maps.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not torch.is_autocast_enabled("cpu")
    )
    by_running_statistics = bn is None or not (
        bn.training or bn.running_mean is None or bn.weight is None or bn.bias is None
    )
    return run if by_op and by_running_statistics else None


def pool_features(maps: Tensor, size: int, features: Tensor, column: int) -> None:
    """Maps (N, C, H, W), max-pooled to ``size`` x ``size`` and flattened, into the C * size^2 columns of ``features``,
    on the CPU, from ``column`` on."""
    if maps.device.type == "cpu" and functional.served(maps):
        torch.ops.dcgan_fast._pool_features_(maps, size, features, column)
    else:
        pooled = nn.functional.adaptive_max_pool2d(maps, size).flatten(1)
        features[:, column : column + pooled.size(1)] = pooled.to(features.dtype).cpu()


def _load(path: str | os.PathLike[str]) -> nn.Module:
    discriminator = load_networks(path)[1]
    if discriminator is None:
        raise UserError(f"{path} holds no discriminator to take features from")
    return discriminator


def _on(images: Any, device: torch.device) -> Tensor:
    """uint8 images as the network wants them: floats from -1 to 1, channels last."""
    given = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    given = given.to(device).contiguous()
    rows = torch.arange(len(given), device=device)
    return functional.gather_images(given, rows, memory_format=torch.channels_last)


def _finite(rows: NDArray[Any]) -> bool:
    """Whether all are numbers, by the least and the largest, which NaN is where there is one."""
    return all(torch.isfinite(bound) for bound in torch.aminmax(torch.from_numpy(rows)))


class _Partial:
    """A ``.npy`` under a temporary name, and a note of how many of its rows are written."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: str, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.rows_file, self.note_file = (
            path.with_name(path.name + end) for end in (".part", ".part.json")
        )
        self.done = self._rows_done(shape, dtype)
        mode: Any = "r+" if self.done else "w+"
        try:
            self.array = np.lib.format.open_memmap(self.rows_file, mode, np.dtype(dtype), shape)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot write {self.rows_file}: {error}") from error

    def _rows_done(self, shape: tuple[int, int], dtype: str) -> int:
        try:
            note = parse_json(self.note_file.read_text("utf-8"))
            array = read_array(self.rows_file)
            same = note["fingerprint"] == self.fingerprint
            fits = array.shape == shape and array.dtype == dtype and 0 <= note["rows"] <= shape[0]
            return int(note["rows"]) if same and fits else 0
        except (OSError, ValueError, LookupError, TypeError):
            return 0

    def note(self, rows: int) -> None:
        """After the rows are on disk, or the note might outrun them."""
        self.array.flush()
        write_text(self.note_file, json.dumps({"fingerprint": self.fingerprint, "rows": rows}))

    def finish(self) -> NDArray[Any]:
        self.array.flush()
        os.replace(self.rows_file, self.path)
        remove_if_there(self.note_file)
        found: NDArray[Any] = np.load(self.path, mmap_mode="r")
        return found
