"""The DCGAN paper's semantic hash of images: the signs of a small autoencoder's code."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn
from torch.nn.functional import mse_loss, relu
from tqdm import tqdm

from ..data.dataset import Dataset
from ..data.pictures import ArrayPictures
from ..devices import pick_device
from ..errors import UserError
from ..files import write_bytes
from ..optional import optional_module
from ..reading import parse_json
from .codes import pixel_codes

__all__ = ["SemanticHasher"]

SIDE, CHANNELS = 32, 3
_PIXELS = CHANNELS * SIDE**2
# Images encoded at once on other devices than the CPU: always as many, so that an image's code is the same wherever it
# stands, which a matrix product does not promise of other numbers of rows.
_CHUNK = 512
_SAMPLE = 4096  # images that the reports look at
_UPDATES = 2400  # by default
_IDLE = 1e-3  # a bit that is the other value for fewer of the images tells nothing
_FORMAT, _VERSION = "dcgan_fast.semantic_hasher", 1
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Record = dict[str, float]
Images = Tensor | np.ndarray | Dataset


class SemanticHasher(TransformerMixin, BaseEstimator):
    """Images to binary codes that near-duplicates share: :func:`first_occurrence` then finds those.

    >>> hasher = SemanticHasher().fit(images)         # uint8 (N, 3, 32, 32), or of another size
    >>> keep, group, counts = first_occurrence(hasher.transform(images))

    A 3072-128-3072 autoencoder with ReLU units learns to restore images from spoiled copies; an image's code has a bit
    for each of the 128 units: is it active? The architecture, denoising, dropout and thresholding are the paper's. It
    says nothing about the rest, which was chosen by experiment on CIFAR-10 with planted near-copies
    (``benchmarks/results/dedup.md``):

    * pixels from 0 to 1 minus the mean image (without that, the units die in the first epoch);
    * Gaussian noise on the pixels; dropout on the code; linear output, weights not tied, mean squared error;
    * Gaussian noise also on the units before the ReLU, as Salakhutdinov and Hinton did in their semantic hashing: only
      activations far from 0 survive it, so codes change less between near-copies. It is what decides how near is near:
      0 finds fewer of the near-copies, and from 4 on different images begin to share codes;
    * Adam at a constant rate, a fixed number of updates: reconstruction goes on improving for long after the codes are
      good, and longer training finds fewer near-copies, so there is nothing to stop early by.

    Encoding is one matrix product: 0.8 MFLOP an image. On the CPU the result does not depend on the batch that an image
    is in; the weights depend on ``random_state``, the data and, in their last bits, on the machine and its threads.

    Args:
        bits: units of the code.
        noise: standard deviation of the noise on pixels of 0 to 1.
        dropout: share of the code's units left out of each update.
        code_noise: standard deviation of the noise on the units before the ReLU.
        threshold: a bit is set where the unit's activation before the ReLU is above; 0 is the paper's "is active".
        epochs: passes over the images; None takes as many as make 2,400 updates.
        batch_size: images of an update.
        lr: Adam's learning rate.
        random_state: seed of weights, order and noise: a non-negative integer.
        dtype: "float32" or "bfloat16", which :meth:`transform` computes in. bfloat16 takes less time where the
            processor multiplies such matrices; codes of one are not comparable with codes of the other.
        device: "cpu", "cuda" ...; "auto" is CUDA where there is one.
        progress: whether to show a progress bar.
        callback: called after each epoch with its record (see ``history_``).

    Attributes:
        encoder_, decoder_: :class:`torch.nn.Linear` on the CPU; ``mean_``: float32 (3072,), the mean image.
        n_iter_: epochs trained. ``n_features_in_``: 3072.
        history_: a record for each epoch, over (up to) 4,096 images as they are: ``epoch``; ``loss``, of training;
            ``mse``, of reconstruction; ``explained``, the share of the variance of pixels that it has; ``active``,
            the mean share of images that set a bit; ``idle``, how many bits are the same for 999 of 1000 images;
            ``entropy``, bits that a code would hold if its bits were independent.

    Warns:
        UserWarning: after training, where a quarter of the bits are idle: different images may share codes.

    Source: Radford, Metz, Chintala 2016, section 4.1; Salakhutdinov & Hinton 2009.
    """

    encoder_: nn.Linear
    decoder_: nn.Linear
    mean_: Tensor
    history_: list[Record]
    n_iter_: int

    def __init__(
        self,
        *,
        bits: int = 128,
        noise: float = 0.1,
        dropout: float = 0.5,
        code_noise: float = 2.0,
        threshold: float = 0.0,
        epochs: int | None = None,
        batch_size: int = 256,
        lr: float = 1e-3,
        random_state: int = 0,
        dtype: str = "float32",
        device: str = "auto",
        progress: bool = False,
        callback: Callable[[Record], object] | None = None,
    ) -> None:
        self.bits = bits
        self.noise = noise
        self.dropout = dropout
        self.code_noise = code_noise
        self.threshold = threshold
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.random_state = random_state
        self.dtype = dtype
        self.device = device
        self.progress = progress
        self.callback = callback

    # ------------------------------------------------------------------------------------ training

    def fit(self, X: Images, y: object = None) -> SemanticHasher:
        """Trains the autoencoder.

        Args:
            X: uint8 images ``(N, C, H, W)``, C from 1 to 4, at least one: a tensor, an array or a :class:`Dataset`.
                What is not 32x32 in colour is made so: the shorter side resized, the centre cropped.
            y: ignored.

        Raises:
            UserError: a setting outside its range; ``X`` of another dtype or shape, or empty.
        """
        self._check_settings()
        device = pick_device(self.device)
        images = _flat("fit", X).to(device)
        if len(images) == 0:
            raise UserError("SemanticHasher.fit(): 'X' must hold at least one image, got none")
        draw = torch.Generator(device).manual_seed(self.random_state)
        self.mean_ = _mean(images)
        self.encoder_ = _linear(_PIXELS, self.bits, draw)
        self.decoder_ = _linear(self.bits, _PIXELS, draw)
        self.history_ = []
        batch = min(self.batch_size, len(images))
        per_epoch = len(images) // batch
        epochs = math.ceil(_UPDATES / per_epoch) if self.epochs is None else self.epochs
        with tqdm(
            total=epochs * per_epoch * batch,
            desc="training the hasher",
            unit=" images",
            unit_scale=True,
            disable=not self.progress,
        ) as bar:
            for epoch, loss in self._train(images, epochs, per_epoch, batch, draw, bar):
                record = {"epoch": epoch, "loss": loss, **self._look_at(images)}
                self.history_.append(record)
                bar.set_postfix_str(
                    f"{record['explained']:.1%} explained, bits {record['active']:.0%} on, "
                    f"{record['idle']} idle",
                    refresh=False,
                )
                if self.callback is not None:
                    self.callback(record)
        self.mean_ = self.mean_.cpu()
        self.encoder_.cpu()
        self.decoder_.cpu()
        self.n_iter_ = epochs
        self._warn_of_idle_bits(len(images))
        return self

    def _train(
        self,
        images: Tensor,
        epochs: int,
        per_epoch: int,
        batch: int,
        draw: torch.Generator,
        bar: Any,
    ) -> Iterator[tuple[int, float]]:
        """After each epoch its number, from 1, and its mean loss."""
        weights = [*self.encoder_.parameters(), *self.decoder_.parameters()]
        optimizer = torch.optim.Adam(
            weights, lr=self.lr, fused=images.device.type in ("cpu", "cuda")
        )
        for epoch in range(1, epochs + 1):
            total = torch.zeros((), device=images.device)
            order = torch.randperm(len(images), generator=draw, device=images.device)
            for step in range(per_epoch):
                clean = self._centred(images[order[step * batch : (step + 1) * batch]])
                loss = mse_loss(self._restored(clean, draw), clean)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
                bar.update(batch)
            yield epoch, float(total) / per_epoch

    def _restored(self, clean: Tensor, draw: torch.Generator) -> Tensor:
        units = self.encoder_(clean + self.noise * _normal_like(clean, draw))
        code = relu(units + self.code_noise * _normal_like(units, draw))
        dropped = torch.empty_like(code).bernoulli_(1 - self.dropout, generator=draw)
        return self.decoder_(code * dropped / (1 - self.dropout))

    def _centred(self, images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(self.mean_)

    @torch.no_grad()
    def _look_at(self, images: Tensor) -> Record:
        rows = torch.linspace(0, len(images) - 1, min(len(images), _SAMPLE)).long()
        clean = self._centred(images[rows.to(images.device)])
        units = self.encoder_(clean)
        mse = float(mse_loss(self.decoder_(relu(units)), clean))
        on = (units > self.threshold).double().mean(0)
        entropy = -(torch.xlogy(on, on) + torch.xlogy(1 - on, 1 - on)).sum() / math.log(2)
        variance = float(clean.square().mean())
        return {
            "mse": mse,
            "explained": 1 - mse / variance if variance else 1.0,
            "active": float(on.mean()),
            "idle": int(((on < _IDLE) | (on > 1 - _IDLE)).sum()),
            "entropy": float(entropy),
        }

    def _warn_of_idle_bits(self, images: int) -> None:
        idle = self.history_[-1]["idle"]
        if images > 1 and idle >= self.bits / 4:
            warnings.warn(
                f"{idle} of the hasher's {self.bits} bits are the same for nearly all images, so different images may "
                "share codes: look at the groups, or train on more images or with a lower learning rate",
                stacklevel=3,
            )

    def _check_settings(self) -> None:
        for name, (rule, holds) in _RULES.items():
            value = getattr(self, name)
            if not (value is None and name == "epochs") and not holds(value):
                raise UserError(f"SemanticHasher(): {name!r} must be {rule}, got {value!r}")

    # ------------------------------------------------------------------------------------ encoding

    @torch.no_grad()
    def transform(self, X: Images) -> Tensor:
        """The images' codes: int64 ``(N, ceil(bits / 64))``, on the CPU, as :func:`pack_codes` packs them.

        Args:
            X: as for :meth:`fit`; may be empty.

        Raises:
            UserError: ``X`` has another dtype or shape.
            sklearn.exceptions.NotFittedError: not trained.
        """
        if not hasattr(self, "encoder_"):
            raise NotFittedError("SemanticHasher.transform(): call fit() first, or load() one")
        images = _flat("transform", X)
        device = pick_device(self.device)
        # Pixels are whole numbers below 256, which bfloat16 holds exactly: scale and mean go into weight and bias.
        weight = (self.encoder_.weight / 255).to(_DTYPES[self.dtype])
        bias = self.encoder_.bias - weight.double().mv(self.mean_.double() * 255).float()
        if device.type == "cpu":
            return pixel_codes(images.cpu(), weight, bias, self.threshold)
        weight, bias = weight.to(device), bias.to(device)
        codes = []
        for chunk in images.split(_CHUNK):
            rows = nn.functional.pad(chunk, (0, 0, 0, _CHUNK - len(chunk))).to(device)
            codes.append(pixel_codes(rows, weight, bias, self.threshold)[: len(chunk)].cpu())
        return torch.cat(codes)

    # --------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights, settings and history to a safetensors file.

        Raises:
            UserError: the package safetensors is missing, or the file cannot be written.
            sklearn.exceptions.NotFittedError: not trained.
        """
        if not hasattr(self, "encoder_"):
            raise NotFittedError("SemanticHasher.save(): call fit() first")
        write_bytes(path, self.to_bytes())

    def settings(self) -> dict[str, Any]:
        """The parameters that codes depend on: all but device, progress and callback."""
        return {k: v for k, v in self.get_params().items() if k not in _NOT_SAVED}

    def to_bytes(self) -> bytes:
        """What :meth:`save` writes."""
        about = {"version": _VERSION, "settings": self.settings(), "history": self.history_}
        metadata = {
            _FORMAT: json.dumps(about)
        }  # one entry: several come in an order of their own each time
        tensors = {name: tensor.detach().contiguous() for name, tensor in self._tensors().items()}
        content: bytes = import_safetensors().save(tensors, metadata)
        return content

    @classmethod
    def load(cls, path: str | os.PathLike[str], **settings: Any) -> SemanticHasher:
        """Reads what :meth:`save` wrote; ``settings`` are those that may differ: device, progress, callback.

        Raises:
            UserError: the package safetensors is missing, the file cannot be read, is no hasher or one of another
                version, or damaged.
        """
        import_safetensors()
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if _FORMAT not in metadata:
                    raise UserError(f"{path} is no semantic hasher")
                about = parse_json(metadata[_FORMAT])
                if about["version"] != _VERSION:
                    raise UserError(
                        f"{path} has version {about['version']}, this library reads version {_VERSION}"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            hasher = cls(**{**about["settings"], **settings})
            hasher._check_settings()
            hasher.history_ = about["history"]
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except UserError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
        hasher._take(tensors, path)
        return hasher

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "encoder.weight": self.encoder_.weight,
            "encoder.bias": self.encoder_.bias,
            "decoder.weight": self.decoder_.weight,
            "decoder.bias": self.decoder_.bias,
            "mean": self.mean_,
        }

    def _take(self, tensors: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
        self.encoder_ = _linear(_PIXELS, self.bits)
        self.decoder_ = _linear(self.bits, _PIXELS)
        self.mean_ = torch.empty(_PIXELS)
        self.n_iter_ = len(self.history_)
        for name, own in self._tensors().items():
            given = tensors.get(name)
            if given is None or given.shape != own.shape or given.dtype != own.dtype:
                came = "none" if given is None else f"{given.dtype} {tuple(given.shape)}"
                raise UserError(
                    f"{path} is damaged: '{name}' must be {own.dtype} {tuple(own.shape)}, got {came}"
                )
            own.data.copy_(given)

    @property
    def n_features_in_(self) -> int:
        return _PIXELS

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "encoder_")


def import_safetensors() -> Any:
    """The package, in which a hasher is kept, or :class:`UserError` with what installs it."""
    return optional_module("safetensors.torch", "a semantic hasher's file", "dedup")


_NOT_SAVED = ("device", "progress", "callback")


def _number(low: float, high: float = math.inf, *, with_low: bool = True) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and (low <= value if with_low else low < value) and value < high

    return holds


def _whole(low: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bits": ("a whole number of at least 1", _whole(1)),
    "noise": ("a number of at least 0", _number(0)),
    "dropout": ("a number from 0 to below 1", _number(0, 1)),
    "code_noise": ("a number of at least 0", _number(0)),
    "threshold": ("a finite number", _number(-math.inf, with_low=False)),
    "epochs": ("a whole number of at least 1, or None", _whole(1)),
    "batch_size": ("a whole number of at least 1", _whole(1)),
    "lr": ("a positive number", _number(0, with_low=False)),
    "random_state": ("a whole number of at least 0", _whole(0)),
    "dtype": (f"one of {', '.join(_DTYPES)}", lambda value: value in tuple(_DTYPES)),
}


def _flat(method: str, images: Images) -> Tensor:
    """uint8 (N, 3072), whatever the images' size and channels."""
    given = images.images if isinstance(images, Dataset) else images
    shape = tuple(given.shape)
    if str(given.dtype).removeprefix("torch.") != "uint8" or len(shape) != 4:
        raise UserError(
            f"SemanticHasher.{method}(): 'X' must be uint8 images (N, C, H, W), got {given.dtype} {shape}"
        )
    if not 1 <= shape[1] <= 4 or 0 in shape[2:]:
        raise UserError(
            f"SemanticHasher.{method}(): 'X' must have 1 to 4 channels and at least a pixel, got {shape}"
        )
    if shape[1:] != (CHANNELS, SIDE, SIDE):
        array = given.cpu().numpy() if isinstance(given, Tensor) else given
        pictures = ArrayPictures(array.transpose(0, 2, 3, 1))
        given = pictures.render(range(len(array)), SIDE, CHANNELS)[0]
    if not isinstance(given, Tensor):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a read-only memory map, which is only read
            given = torch.from_numpy(np.ascontiguousarray(given))
    return given.reshape(-1, _PIXELS)


def _mean(images: Tensor) -> Tensor:
    """Of pixels from 0 to 1, float32 (3072,). In parts: all of them as float64 would take 24 KB an image."""
    total = torch.zeros(_PIXELS, dtype=torch.float64, device=images.device)
    for part in images.split(_SAMPLE):
        total += part.double().sum(0)
    return (total / (255 * len(images))).float()


def _linear(width_in: int, width_out: int, draw: torch.Generator | None = None) -> nn.Linear:
    """With the weights that PyTorch would start from, drawn from ``draw``, or none yet."""
    device = torch.device("cpu") if draw is None else draw.device
    layer = nn.utils.skip_init(nn.Linear, width_in, width_out, device=device)
    if draw is not None:
        bound = width_in**-0.5
        for weight in layer.parameters():
            nn.init.uniform_(weight, -bound, bound, generator=draw)
    assert isinstance(layer, nn.Linear)
    return layer


def _normal_like(tensor: Tensor, draw: torch.Generator) -> Tensor:
    return torch.empty_like(tensor).normal_(generator=draw)
