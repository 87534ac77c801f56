"""Inference engines that a generator can be handed to; each returns a function of no argument.

An engine that is not installed or does not run raises :class:`Unavailable`, whose text says why.
"""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from race import Contender
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Unavailable(Exception):
    """Why an engine does not take part."""


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed") from error
    except Exception as error:  # one that was made for another processor, or another torch
        raise Unavailable(f"does not load here ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def eager(model: nn.Module, latent: Tensor) -> Contender:
    def run() -> Tensor:
        with torch.inference_mode():
            return model(latent)

    return run


def folded(model: nn.Module, latent: Tensor) -> Contender:
    """Batch norm folded into the convolution before it, once, by PyTorch's own function."""
    children: list[nn.Module] = []
    for child in model.main:
        if isinstance(child, nn.BatchNorm2d) and isinstance(
            children[-1], nn.Conv2d | nn.ConvTranspose2d
        ):
            transposed = isinstance(children[-1], nn.ConvTranspose2d)
            children[-1] = fuse_conv_bn_eval(children[-1], child, transpose=transposed)
        else:
            children.append(child)
    model.main = nn.Sequential(*children).to(memory_format=torch.channels_last)
    return eager(model, latent)


def compiled(model: nn.Module, latent: Tensor) -> Contender:
    """torch.compile, with weights frozen: inductor then folds and packs what it can."""
    return eager(torch.compile(model, dynamic=False, options={"freezing": True}), latent)


def zentorch(model: nn.Module, latent: Tensor) -> Contender:
    _module("zentorch")
    run = eager(torch.compile(model, dynamic=False, backend="zentorch"), latent)
    try:
        run()
    except Exception as error:
        raise Unavailable(f"does not run this ({_first_line(error)})") from error
    return run


def openvino(onnx: Callable[[], bytes], latent: Tensor) -> Contender:
    """Latency hint, as many threads as torch has, in latent's dtype; ``onnx`` returns :func:`to_onnx`'s."""
    core = _module("openvino").Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16"}[latent.dtype],
    }
    network = core.compile_model(core.read_model(io.BytesIO(onnx())), "CPU", settings)
    request, data = network.create_infer_request(), [latent.float().numpy()]
    return lambda: request.infer(data, share_inputs=True, share_outputs=True)[0]


def onnxruntime(onnx: Callable[[], bytes], latent: Tensor) -> Contender:
    """As many threads as torch has; ``onnx`` returns :func:`to_onnx`'s."""
    runtime = _module("onnxruntime")
    if latent.dtype != torch.float32:
        raise Unavailable(f"its CPU kernels of convolution have no {str(latent.dtype)[6:]}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(onnx(), options, providers=["CPUExecutionProvider"])
    data = {session.get_inputs()[0].name: latent.numpy()}
    return lambda: session.run(None, data)[0]


def to_onnx(model: nn.Module, latent: Tensor) -> bytes:
    """The network in ONNX, in float32, for batches as large as ``latent``."""
    for name in ("onnx", "onnxscript"):
        _module(name)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model.float(), (latent.float(),), dynamo=True, verbose=False)
        program.save(file)
    return file.getvalue()
