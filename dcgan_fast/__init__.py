"""DCGANs and conditional GANs at the speed of the hardware.

``fuse(model)`` runs a model of your own on the fused ops, ``models.build()`` gives the published networks,
``training.Trainer`` and the command ``dcgan-fast`` train and study them.
"""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

import torch  # noqa: F401  (its libraries must be loaded before ours)

try:
    from . import _C
except ImportError as error:
    if importlib.util.find_spec("dcgan_fast._C") is None:
        reason = (
            f"{__path__[0]} is a source folder without the compiled half: run `pip install .` there and import "
            "from another folder, or use `pip install -e .`"
        )
    else:
        reason = (
            f"its compiled half does not load beside torch {torch.__version__} ({error}): it works with the torch "
            "minor it was built against, so install it again"
        )
    raise ImportError(f"dcgan_fast cannot be imported: {reason}") from error
from . import backends, dedup, functional, metrics, models, nn, reference
from .errors import UserError
from .nn import FusedSequential, explain, fuse, unfuse

__version__ = "0.1.0"

__all__ = [
    "FusedSequential",
    "UserError",
    "backends",
    "build_info",
    "dedup",
    "explain",
    "functional",
    "fuse",
    "metrics",
    "models",
    "nn",
    "reference",
    "unfuse",
]


def build_info() -> dict[str, Any]:
    """What was built and what runs here.

    Returns:
        Versions of this library, Python and torch; ``cpu_capability``, the variant of the CPU kernels in use
        ("AVX512", "AVX2" or "DEFAULT"); ``convolution_engines``, those that this machine runs beside ATen's
        (:func:`explain` tells which serves a layer); ``cuda_architectures``, those the CUDA kernels were compiled for
        (empty without the CUDA half); ``ops``, for each op what serves it on each device.
    """
    own = "dcgan_fast normalisation and activation"
    engines = f"convolution: the fastest of {', '.join(_C.convolution_engines())}, ATen"
    convolutions = ("conv_bn_act", "conv_transpose_bn_act", "conv_act", "conv_transpose_act")
    architectures = [a for a in _C.cuda_architectures.split(";") if a]
    cpu = {"bn_act": own, **dict.fromkeys(convolutions, engines)}
    cuda = {"bn_act": own, **dict.fromkeys(convolutions, "dcgan_fast on tensor cores")}
    cpu["maxout_linear"] = "dcgan_fast in float32, else ATen's product"
    cuda["maxout_linear"] = "dcgan_fast of 2 to 5 pieces, backward and others ATen's product"
    if not architectures:
        cuda = dict.fromkeys(cpu, "dcgan_fast.reference")
    cpu["plane_bias_act"], cuda["plane_bias_act"] = "dcgan_fast", "PyTorch's own ops"
    if architectures:
        cuda["plane_bias_act"] = "dcgan_fast up to 1,024 columns, wider ones PyTorch's own ops"
    cpu["gather_images"] = "dcgan_fast"
    cuda["gather_images"] = "dcgan_fast" if architectures else "dcgan_fast.reference"
    cpu |= dict.fromkeys(dedup.OPS, "dcgan_fast")
    cuda |= dict.fromkeys(dedup.OPS, "dcgan_fast.dedup.reference")
    if architectures:
        cuda |= dict.fromkeys(dedup.CUDA_OPS, "dcgan_fast")
    cpu |= dict.fromkeys(metrics.OPS, "dcgan_fast")
    cuda |= dict.fromkeys(
        metrics.OPS, "dcgan_fast" if architectures else "dcgan_fast.metrics.reference"
    )
    return {
        "dcgan_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_capability": _C.cpu_capability(),
        "convolution_engines": _C.convolution_engines(),
        "cuda_architectures": architectures,
        "ops": {op: {"cpu": cpu[op], "cuda": cuda[op]} for op in cpu},
    }
