"""PyTorch's own samples of the ops and modules that ours stand in for.

Those that a signature of ours can express go through the op; all go through :func:`dcgan_fast.fuse`, which fuses them
or runs them as themselves. Both kinds are counted, so that a change which sends all samples one way fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcgan_fast import explain, functional, fuse

pytest.importorskip("expecttest", reason="torch.testing._internal needs it")

from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402
from torch.testing._internal.common_modules import module_db  # noqa: E402

# Importing these forbids the whole process to set flags as users do, which other tests are about.
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCES = {  # of the largest value
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-3,
}


def op_info(name: str) -> Any:
    (found,) = (op for op in op_db if op.name == name and not op.variant_test_name)
    return found


def samples_of(name: str, dtype: torch.dtype) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Positional arguments, those left out as None, and options of each sample."""
    count = {"nn.functional.batch_norm": 5}.get(name, 3)
    for sample in op_info(name).sample_inputs("cpu", dtype, requires_grad=True):
        arguments = [sample.input, *sample.args]
        yield [*arguments, *[None] * (count - len(arguments))], dict(sample.kwargs)


def results(function: Callable[..., Tensor], arguments: list[Any], **options: Any) -> list[Tensor]:
    """What ``function`` returns, the gradients of its arguments, and the others as it leaves them."""
    own = [
        t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t
        for t in arguments
    ]
    tensors = [t for t in own if isinstance(t, Tensor)]
    output = function(*own, **options)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    return [output.detach(), *(t.grad if t.requires_grad else t for t in tensors)]


def assert_same(ours: list[Tensor], theirs: list[Tensor], dtype: torch.dtype) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        scale = max(1.0, other.abs().max().item()) if other.numel() else 1.0
        bound = TOLERANCES[dtype] * scale
        torch.testing.assert_close(mine, other, rtol=0, atol=bound, equal_nan=True)


def module_results(module: nn.Module, input: Tensor) -> list[Tensor]:
    """The output of two passes, the gradients of all, the buffers."""
    x = input.detach().clone().requires_grad_()
    for _ in range(2):
        output = module(x)
        output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    leaves = [x, *module.parameters()]
    return [output.detach(), *(leaf.grad for leaf in leaves), *module.buffers()]


def assert_fused_is_plain(children: list[nn.Module], input: Tensor) -> str:
    """Checks ``fuse`` of a sequence; returns what :func:`explain` says of it."""
    plain = nn.Sequential(*children)
    fused = fuse(plain)
    assert_same(module_results(fused, input), module_results(plain, input), input.dtype)
    return explain(fused)


# ----------------------------------------------------------------------------------------- samples

CONVOLUTIONS = {
    "nn.functional.conv2d": (functional.conv_act, F.conv2d, nn.Conv2d),
    "nn.functional.conv_transpose2d": (
        functional.conv_transpose_act,
        F.conv_transpose2d,
        nn.ConvTranspose2d,
    ),
}


def of_ours(options: dict[str, Any]) -> dict[str, Any] | None:
    """The options as our ops take them, if they do."""
    dilation = options.get("dilation", 1)
    usual = options.get("groups", 1) == 1 and dilation in (1, (1, 1))
    if not usual or isinstance(options.get("padding", 0), str):
        return None
    return {k: v for k, v in options.items() if k not in ("groups", "dilation")}


def convolution(kind: Any, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Any:
    """The module of a sample."""
    channels = (weight.size(1) * options.get("groups", 1), weight.size(0))
    if kind is nn.ConvTranspose2d:
        channels = (weight.size(0), weight.size(1) * options.get("groups", 1))
    module = kind(*channels, tuple(weight.shape[2:]), bias=bias is not None, **options)
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    module.to(weight.dtype).load_state_dict(state)
    return module


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, dtype: torch.dtype) -> None:
    op, theirs, kind = CONVOLUTIONS[name]
    counts: Counter[str] = Counter()
    for arguments, options in samples_of(name, dtype):
        own = of_ours(options)
        if own is not None and arguments[0].dim() == 4:
            found = results(op, arguments, activation="none", **own)
            assert_same(found, results(theirs, arguments, **options), dtype)
            counts["the op's"] += 1
        module = convolution(kind, *arguments[1:], options)
        text = assert_fused_is_plain([module, nn.LeakyReLU(0.3)], arguments[0])
        assert ("itself" in text) == (own is None)
        counts["fused" if own is not None else "itself"] += 1
    # of those fused each has a twin without a batch, which runs its children one by one
    expected = {"nn.functional.conv2d": (3, 6, 24), "nn.functional.conv_transpose2d": (3, 6, 6)}
    assert tuple(counts[kind] for kind in ("the op's", "fused", "itself")) == expected[name]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_one_statistic(name: str) -> None:
    """The same samples with a batch norm after them: one op where the convolution has no bias."""
    counts: Counter[bool] = Counter()
    for (input, weight, _), options in samples_of(name, torch.float64):
        module = convolution(CONVOLUTIONS[name][2], weight, None, options)
        if input.dim() == 3 or module(input).numel() == module.out_channels * len(input):
            continue  # batch norm wants a batch, and more than a value of it
        children = [module, nn.BatchNorm2d(module.out_channels).double(), nn.Tanh()]
        text = assert_fused_is_plain(children, input)
        counts["conv_bn_act" in text or "conv_transpose_bn_act" in text] += 1
    assert counts[True] >= 3 and counts[False] >= 2


def test_error_inputs_of_convolutions() -> None:
    counts: Counter[str] = Counter()
    for case in op_info("nn.functional.conv2d").error_inputs("cpu"):
        sample = case.sample_input
        options = of_ours(sample.kwargs)
        if options is None:
            counts["inexpressible"] += 1
            continue
        with pytest.raises((ValueError, TypeError), match=r"conv_act\(\): '\w+' must be"):
            functional.conv_act(sample.input, *sample.args, **options)
        with pytest.raises(
            ValueError, match=r"conv_act\(\): '\w+' must be"
        ):  # not for integers' sake
            functional.conv_act(*(t.float() for t in (sample.input, *sample.args)), **options)
        counts["refused"] += 1
    assert counts == {"refused": 4, "inexpressible": 6}


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norms(dtype: torch.dtype) -> None:
    counts: Counter[str] = Counter()
    for arguments, options in samples_of("nn.functional.batch_norm", dtype):
        input, mean, var, weight, bias = arguments
        options = {"training": False, "momentum": 0.1, "eps": 1e-5, **options}
        if input.dim() == 1:
            with pytest.raises(ValueError, match=r"'input' must be \(N, C, ...\), got"):
                functional.bn_act(*arguments, **options)
            counts["refused"] += 1
            continue
        if weight is not None:

            def op(input, mean, var, weight, bias, **options):
                return functional.bn_act(
                    input, weight, bias, mean, var, activation="none", **options
                )

            found = results(op, arguments, **options)
            assert_same(found, results(F.batch_norm, arguments, **options), dtype)
            counts["the op's"] += 1
        kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[input.dim()]
        module = kind(
            input.size(1),
            options["eps"],
            options["momentum"],
            affine=weight is not None,
            track_running_stats=mean is not None,
        ).to(dtype)
        given = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
        module.load_state_dict({k: v for k, v in given.items() if v is not None}, strict=False)
        text = assert_fused_is_plain([module.train(options["training"]), nn.ReLU()], input)
        assert "dcgan_fast.bn_act" in text
        counts["fused"] += 1
    assert counts == {"the op's": 9, "fused": 10, "refused": 2}


# ----------------------------------------------------------------------------------------- modules

MODULES = {  # and how many of their inputs PyTorch has, in training and in evaluation
    **dict.fromkeys((nn.BatchNorm1d,), 16),
    **dict.fromkeys((nn.BatchNorm2d, nn.BatchNorm3d), 14),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LazyConv2d), 8),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.LazyConvTranspose2d), 4
    ),
}
FUSED_MODULES = {  # how many of these a fused op serves: not those of padding by name, momentum None, half affine
    nn.BatchNorm1d: 12,
    nn.BatchNorm2d: 10,
    nn.BatchNorm3d: 10,
    nn.Conv2d: 4,
    nn.ConvTranspose2d: 4,
    nn.LazyConv2d: 4,  # from the second pass on
    nn.LazyConvTranspose2d: 4,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", MODULES)
def test_modules(kind: type[nn.Module], dtype: torch.dtype) -> None:
    (info,) = (info for info in module_db if info.module_cls is kind)
    counts: Counter[bool] = Counter()
    for training in (True, False):
        cases = info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=True, training=training
        )
        for case in cases:
            constructor, (input,) = case.constructor_input, case.forward_input.args
            module = kind(*constructor.args, **constructor.kwargs).to(dtype).train(training)
            if kind in (nn.LazyConv2d, nn.LazyConvTranspose2d):
                assert "itself" in explain(fuse(nn.Sequential(module)))
                module(input)  # which settles its shape, and makes it a plain one
            text = assert_fused_is_plain([module, nn.Sigmoid()], input)
            counts["itself" not in text] += 1
    assert counts.total() == MODULES[kind]
    assert counts[True] == FUSED_MODULES.get(kind, 0)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_error_inputs_of_batch_norms(kind: type[nn.Module]) -> None:
    """PyTorch refuses an eps of 0 too, which :func:`functional.bn_act` takes: such a module raises its own error."""
    (info,) = (info for info in module_db if info.module_cls is kind)
    cases = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    )
    assert len(cases) >= 2
    for case in cases:
        parts = case.module_error_input
        module = kind(*parts.constructor_input.args, **parts.constructor_input.kwargs)
        fused = fuse(nn.Sequential(module, nn.ReLU()))
        assert "itself: eps=" in explain(fused)
        with pytest.raises(case.error_type, match=case.error_regex):
            fused(*parts.forward_input.args)
