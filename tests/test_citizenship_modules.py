"""Fused networks under what PyTorch does to modules: copies, casts, hooks, parametrizations, wrappers, modes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from dcgan_fast import explain, fuse, models, unfuse
from dcgan_fast.nn import FusedSequential, stat_groups

SHAPE = (6, 3, 16, 16)


def discriminator(**options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1, bias=False, **options),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(8, 16, 4, 2, 1, bias=False, **options),
        nn.BatchNorm2d(16, **options),
        nn.LeakyReLU(0.2, inplace=True),
        nn.ConvTranspose2d(16, 4, 4, 2, 1, bias=False, **options),
        nn.BatchNorm2d(4, **options),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 1, 3, 1, 0, **options),
        nn.Sigmoid(),
    )


torch.manual_seed(0)
STATE = discriminator().state_dict()  # to begin again with


def results(model: nn.Module, passes: int = 2, shape: tuple[int, ...] = SHAPE) -> dict[str, Tensor]:
    """Output, gradients of input and parameters, and buffers, after so many passes in training."""
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    for _ in range(passes):
        x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        model.zero_grad()
        output = model(x)
        output.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "input": x.grad, **gradients, **dict(model.named_buffers())}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        scale = max(1.0, value.abs().max().item()) if value.is_floating_point() else 0
        torch.testing.assert_close(found[key], value, rtol=bound, atol=bound * scale, msg=key)


def assert_trains_as_plain(fused: nn.Module, plain: nn.Module, bound: float = 1e-4) -> None:
    assert_same(results(fused), results(plain), bound)


# ----------------------------------------------------------------------------- copies, files, casts


def through_file(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def through_state_dict(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = fuse(discriminator())
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": through_file,
    "state dict": through_state_dict,
    "assigned": lambda m: _assigned(m),
    "meta": lambda m: _from_meta(m),
}


def _assigned(model: nn.Module) -> nn.Module:
    with torch.device("meta"):
        other = fuse(discriminator())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    other.load_state_dict(state, assign=True)
    return other


def _from_meta(model: nn.Module) -> nn.Module:
    with torch.device("meta"):
        other = fuse(discriminator())
    other.to_empty(device="cpu").load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("used_in_groups", [False, True])
@pytest.mark.parametrize("how", COPIES)
def test_copies_are_of_their_own(how: str, used_in_groups: bool) -> None:
    """The same numbers, fused, and nothing shared: also of a network that has been through stat_groups()."""
    original = fuse(discriminator())
    results(original)
    if used_in_groups:
        with stat_groups(original, 2):
            results(original)
    twin = COPIES[how](original)
    assert type(twin) is FusedSequential and explain(twin) == explain(original)
    before = {k: v.clone() for k, v in original.state_dict().items()}
    expected = results(copy.deepcopy(original))
    assert_same(results(twin), expected, 0.0)
    with stat_groups(twin, 2):
        results(twin)
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("preset", models.PRESETS)
def test_networks_are_copied(preset: str) -> None:
    G, _ = models.build(preset, **({"ngf": 4, "ndf": 4} if preset != "cgan-mnist" else {}))
    labels = (torch.arange(4),) if G.classes else ()
    latent = G.sample_latent(4)
    expected = G.eval()(latent, *labels)
    for how in ("deepcopy", "pickle", "torch.save"):
        twin = COPIES[how](G)
        assert twin.config == G.config
        assert torch.equal(twin(latent, *labels), expected)


CASTS: dict[str, tuple[Callable[[nn.Module], nn.Module], float]] = {
    "double": (lambda m: m.double(), 1e-7),
    "half": (lambda m: m.half(), 2e-2),
    "bfloat16": (lambda m: m.bfloat16(), 1e-1),
    "there and back": (lambda m: m.double().float(), 1e-4),
    "to dtype": (lambda m: m.to(torch.float64), 1e-7),
    "channels_last": (lambda m: m.to(memory_format=torch.channels_last), 1e-4),
    "shared memory": (lambda m: m.share_memory(), 1e-4),
    "half but for batch norm": (
        lambda m: m.half().apply(lambda c: isinstance(c, nn.BatchNorm2d) and c.float()),
        2e-2,
    ),
}


@pytest.mark.parametrize("cast", CASTS)
def test_casts(cast: str) -> None:
    plain = discriminator()
    how, bound = CASTS[cast]
    fused = how(fuse(plain))
    assert_trains_as_plain(fused, how(plain), bound)


def test_default_dtype_and_device() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        plain = discriminator()
        assert_trains_as_plain(fuse(plain), plain, 1e-7)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        fused = fuse(discriminator())
        assert fused(torch.empty(SHAPE)).device.type == "meta"


def test_frozen_parts_have_no_gradients() -> None:
    plain = discriminator()
    plain[2].requires_grad_(False)
    plain[6].weight.requires_grad_(False)
    assert_trains_as_plain(fuse(plain), plain)
    frozen = fuse(plain).requires_grad_(False)
    assert not frozen(torch.randn(SHAPE)).requires_grad


def test_parameters_as_a_vector() -> None:
    fused = fuse(discriminator())
    vector = nn.utils.parameters_to_vector(fused.parameters())
    twin = fuse(discriminator())
    nn.utils.vector_to_parameters(vector.detach().clone(), twin.parameters())
    assert_same(results(twin), results(fused), 0.0)
    nn.utils.clip_grad_norm_(fused.parameters(), 0.1)
    norms = torch.stack([p.grad.norm() for p in fused.parameters()])
    torch.testing.assert_close(norms.norm(), torch.tensor(0.1), rtol=1e-4, atol=0)


def test_averaged_models() -> None:
    averaged = []
    for network in (fuse(discriminator()), unfuse(fuse(discriminator()))):
        network.load_state_dict(STATE)
        mean = torch.optim.swa_utils.AveragedModel(network, use_buffers=False)
        optimizer = torch.optim.SGD(network.parameters(), 0.05)
        for seed in range(3):
            torch.manual_seed(seed)
            network.zero_grad()
            network(torch.randn(SHAPE)).square().sum().backward()
            optimizer.step()
            mean.update_parameters(network)
        torch.manual_seed(9)
        batches = [torch.randn(SHAPE) for _ in range(2)]
        torch.optim.swa_utils.update_bn(batches, mean)
        averaged.append({**mean.state_dict(), "output": mean.eval()(batches[0]).detach()})
    assert_same(*averaged)


# ----------------------------------------------------------------------------------- hooks

HOOKS: dict[str, Callable[[nn.Module, Callable[..., None]], Any]] = {
    "forward": lambda m, f: m.register_forward_hook(lambda _, i, o: f(*i, o)),
    "forward that changes": lambda m, f: m.register_forward_hook(lambda _, i, o: 2 * o),
    "forward pre": lambda m, f: m.register_forward_pre_hook(lambda _, i: f(*i)),
    "forward pre that changes": lambda m, f: m.register_forward_pre_hook(lambda _, i: (i[0] + 1,)),
    "forward with names": lambda m, f: m.register_forward_hook(
        lambda _, i, k, o: f(*i, o), with_kwargs=True
    ),
    "full backward": lambda m, f: m.register_full_backward_hook(lambda _, i, o: f(*i, *o)),
    "full backward that changes": lambda m, f: m.register_full_backward_hook(
        lambda _, i, o: tuple(None if g is None else 3 * g for g in i)
    ),
    "full backward pre": lambda m, f: m.register_full_backward_pre_hook(lambda _, o: f(*o)),
}


@pytest.mark.parametrize("child", [None, 0, 2, 3, 5, 6, 8, 9])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_see_and_change_what_they_would(kind: str, child: int | None) -> None:
    found = []
    plain = discriminator()
    for module in plain:  # PyTorch forbids in-place work on what a backward hook watches
        if hasattr(module, "inplace"):
            module.inplace = False
    for network in (fuse(plain), plain):
        seen: list[Tensor | None] = []
        hooked = network if child is None else network[child]
        handle = HOOKS[kind](hooked, lambda *t, seen=seen: seen.extend(t))
        values = results(network, passes=1)
        handle.remove()
        seen = [t.detach() for t in seen if t is not None]
        assert ("changes" in kind) != bool(seen)
        found.append({**values, **{f"seen {i}": t for i, t in enumerate(seen)}})
        network.load_state_dict(STATE)
    assert_same(*found)


def test_hooks_of_tensors() -> None:
    plain = discriminator()
    found = []
    for network in (fuse(plain), plain):
        seen: dict[str, Tensor] = {}
        for name, parameter in network.named_parameters():
            parameter.register_hook(lambda g, n=name, s=seen: s.update({f"hook {n}": g.clone()}))
            parameter.register_post_accumulate_grad_hook(
                lambda p, n=name, s=seen: s.update({f"after {n}": p.grad.clone()})
            )
        found.append({**results(network, passes=1), **seen})
        assert len(seen) == 2 * len(list(network.parameters()))
    assert_same(*found)


# ---------------------------------------------------------------------------- parametrizations


def spectral(module: nn.Module) -> nn.Module:
    torch.manual_seed(5)  # its power iteration starts at random
    return parametrizations.spectral_norm(module)


REWEIGHTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "spectral norm": spectral,
    "weight norm": parametrizations.weight_norm,
    "both": lambda m: spectral(parametrizations.weight_norm(m)),
    "spectral norm by hooks": lambda m: (torch.manual_seed(5), nn.utils.spectral_norm(m))[1],
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.3),
    "pruned filters": lambda m: prune.ln_structured(m, "weight", 0.3, n=2, dim=0),
    "pruned for good": lambda m: prune.remove(prune.l1_unstructured(m, "weight", 0.3), "weight"),
}


@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("how", REWEIGHTED)
def test_reweighted_convolutions(how: str) -> None:
    plain, fused = discriminator(), fuse(discriminator())
    for network in (plain, fused):
        network.load_state_dict(STATE)
        for i in (0, 2, 5, 8):
            REWEIGHTED[how](network[i])
    assert_trains_as_plain(fused, plain)
    assert_same(results(fused.eval()), results(plain.eval()))
    hooked = how in ("spectral norm by hooks", "pruned", "pruned filters")
    assert ("has hooks" in explain(fused)) == hooked
    assert hooked or "itself" not in explain(fused)


def test_a_power_iteration_a_pass() -> None:
    """A parametrized weight is worked out once in a pass: in training each look at it iterates."""
    plain, fused = spectral(nn.Conv2d(3, 4, 3)), fuse(nn.Sequential(spectral(nn.Conv2d(3, 4, 3))))
    fused[0].load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 8, 8)
    for _ in range(3):
        plain(x), fused(x)
    explain(fused, x)
    for (name, value), (_, other) in zip(
        plain.named_buffers(), fused[0].named_buffers(), strict=True
    ):
        assert torch.equal(value, other), name


def test_other_parametrizations_run_right() -> None:
    """Of a bias, of a batch norm's gain; a cached weight."""

    class Doubled(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return 2 * value

    plain, fused = discriminator(), fuse(discriminator())
    for network in (plain, fused):
        network.load_state_dict(STATE)
        parametrize.register_parametrization(network[8], "bias", Doubled())
        parametrize.register_parametrization(network[3], "weight", Doubled())
        parametrize.register_parametrization(network[2], "weight", Doubled())
    assert "parametrized bias" in explain(fused) and "parametrized weight" in explain(fused)
    assert_trains_as_plain(fused, plain)
    found = []
    for network in (fused, plain):
        with parametrize.cached():  # for one graph
            found.append(results(network, passes=1))
    assert_same(*found)
    for network in (plain, fused):
        parametrize.remove_parametrizations(network[2], "weight")
        parametrize.remove_parametrizations(network[3], "weight")
        parametrize.remove_parametrizations(network[8], "bias")
    assert "itself" not in explain(fused)
    assert_trains_as_plain(fused, plain)


def test_spectral_norm_of_layers_with_labels() -> None:
    """Whose forward asks for the weight twice, outputs and planes."""
    found = []
    for how in (lambda n: n, unfuse):
        torch.manual_seed(0)
        _, D = models.build("cgan-dcgan", image_size=16, ndf=4, ngf=4, ndfc=8)
        for module in list(D.main):
            if isinstance(module, nn.Conv2d | nn.Linear):
                spectral(module)
        D = how(D)
        torch.manual_seed(1)
        images = torch.rand(6, 1, 16, 16)
        for _ in range(2):
            D.zero_grad()
            output = D(images, torch.arange(6))
            output.square().sum().backward()
        gradients = {name: p.grad for name, p in D.named_parameters()}
        found.append({"output": output.detach(), **gradients, **dict(D.named_buffers())})
    assert_same(*found)


def test_synchronised_batch_norms_of_one_process() -> None:
    plain = discriminator()
    fused = nn.SyncBatchNorm.convert_sync_batchnorm(fuse(plain))
    assert type(fused) is FusedSequential
    assert [type(m) for m in fused].count(nn.SyncBatchNorm) == 2
    assert_trains_as_plain(fused, plain)
    fused.eval(), plain.eval()
    x = torch.randn(SHAPE)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------- wrappers, modes


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("error:Grad strides do not match bucket view strides")
def test_ddp(one_process: None) -> None:
    plain = discriminator()
    wrapped = nn.parallel.DistributedDataParallel(fuse(plain))
    found = results(wrapped)
    bare = {name.removeprefix("module."): value for name, value in found.items()}
    assert_same(bare, results(plain))


@pytest.mark.parametrize("parts", ["whole", "convolutions"])
def test_fsdp(one_process: None, parts: str) -> None:
    """A child that is sharded by itself is of a class of its own, with hooks, and runs as itself."""
    from torch.distributed.fsdp import fully_shard

    plain = discriminator()
    sharded = fuse(plain)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    if parts == "convolutions":
        for child in (sharded[2], sharded[5]):
            fully_shard(child, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    found = results(sharded)
    local = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in found.items()}
    assert_same(local, results(plain))
    assert ("FSDPConv2d is not part of" in explain(sharded)) == (parts == "convolutions")
    assert "dcgan_fast.conv_transpose_act" in explain(sharded)


class Wrapped(nn.Module):
    """Calls a network by way of ``call``; its parameters and buffers are the network's."""

    def __init__(self, network: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.network, x)


def within(context: Callable[[], Any]) -> Callable[[nn.Module, Tensor], Tensor]:
    def call(network: nn.Module, x: Tensor) -> Tensor:
        with context():
            return network(x)

    return call


CALLS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "checkpoint": lambda n, x: torch.utils.checkpoint.checkpoint(n, x, use_reentrant=False),
    "reentrant": lambda n, x: torch.utils.checkpoint.checkpoint(n, x, use_reentrant=True),
    "checkpoint_sequential": lambda n, x: torch.utils.checkpoint.checkpoint_sequential(
        n, 2, x, use_reentrant=False
    ),
    "saved on CPU": within(torch.autograd.graph.save_on_cpu),
    "saved by hooks": within(
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t)
    ),
    "anomaly mode": within(torch.autograd.detect_anomaly),
    "a profiler": within(torch.profiler.profile),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("call", CALLS)
def test_calls(call: str) -> None:
    plain = discriminator()
    twin = fuse(plain)
    assert_trains_as_plain(Wrapped(twin, CALLS[call]), Wrapped(plain, CALLS[call]))


def test_deterministic_mode_finds_nothing_uninitialised() -> None:
    """In it PyTorch fills new memory with NaN."""
    plain = discriminator()
    expected = results(plain)
    twin = fuse(discriminator())
    twin.load_state_dict(STATE)
    plain.load_state_dict(STATE)
    expected = results(plain)
    torch.use_deterministic_algorithms(True)
    try:
        first = results(twin)
        twin.load_state_dict(STATE)
        again = results(twin)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(first, expected)
    assert_same(again, first, 0.0)


def test_inference_mode() -> None:
    plain = discriminator()
    fused = fuse(plain).eval()
    plain.eval()
    x = torch.randn(SHAPE)
    with torch.inference_mode():
        found = fused(x)
        assert found.is_inference()
        torch.testing.assert_close(found, plain(x), rtol=1e-4, atol=1e-5)
        fused.train(), plain.train()  # statistics of a module that is to be trained later
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)
    assert_trains_as_plain(fused, plain)
    with torch.inference_mode():  # and of one that was made within
        made = fuse(discriminator()).eval()
        first = made(x)
        made[2].weight.mul_(2)
        assert not torch.equal(made(x), first)
        torch.testing.assert_close(made(x), unfuse(made)(x), rtol=1e-4, atol=1e-5)


def test_regions_of_autocast() -> None:
    """Nested, switched off within, and entered again, forward and backward."""

    def call(network: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = network[:2](x)
            assert y.dtype == torch.bfloat16
            with torch.autocast("cpu", enabled=False):
                y = network[2:5](y.float())
                assert y.dtype == torch.float32
                with torch.autocast("cpu", torch.float16):
                    y = network[5:8](y)
                    assert y.dtype == torch.float16
            y = network[8:](y.float())
            assert y.dtype == torch.bfloat16
        return y.float()

    plain = discriminator()
    assert_trains_as_plain(Wrapped(fuse(plain), call), Wrapped(plain, call), 5e-2)
