"""FusedSequential against nn.Sequential: the same numbers, the same state, and never silently different."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import dcgan_fast
from dcgan_fast import _C
from dcgan_fast.nn import (
    FusedSequential,
    batch_norm_mode,
    explain,
    fuse,
    population_statistics,
    stat_groups,
    unfuse,
)


def generator() -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(10, 16, 4, 1, 0, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(True),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(True),
        nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


def discriminator() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(8, 16, 4, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(16, 1, 4, 1, 0),
        nn.Sigmoid(),
    )


NETS = {"generator": (generator, (6, 10, 1, 1)), "discriminator": (discriminator, (6, 3, 16, 16))}


def train_step(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = net(x)
    y.square().sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return {"output": y.detach(), "input": x.grad, **gradients, **dict(net.named_buffers())}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", NETS)
def test_a_fused_net_computes_the_same(name, training):
    make, shape = NETS[name]
    plain = make().train(training)
    fused = fuse(plain)
    x = torch.randn(shape)
    for _ in range(2):
        theirs, ours = train_step(plain, x), train_step(fused, x)
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        scale = value.abs().max().item() if value.is_floating_point() else 0
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5 * scale, msg=key)


@pytest.mark.parametrize("name", NETS)
def test_the_whole_net_runs_fused(name):
    make, _ = NETS[name]
    fused = fuse(make())
    assert "itself" not in explain(fused)
    assert {"generator": 3, "discriminator": 3}[name] == len(explain(fused).splitlines())


def test_fuse_keeps_state_dict_children_and_identity():
    plain = generator()
    fused = fuse(plain)
    assert type(fused) is FusedSequential and type(plain) is nn.Sequential
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in fused] == [type(m) for m in plain]
    assert fuse(plain, inplace=True) is plain and type(plain) is FusedSequential
    plain.load_state_dict(fused.state_dict())
    assert type(unfuse(plain)) is nn.Sequential
    assert unfuse(plain, inplace=True) is plain and type(plain) is nn.Sequential


def test_fuse_reaches_nested_sequences_and_leaves_subclasses():
    class Own(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.ModuleDict(
        {"a": nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.ReLU()), "b": Own(nn.ReLU())}
    )
    fused = fuse(model)
    assert type(fused["a"]) is type(fused["a"][0]) is FusedSequential
    assert type(fused["b"]) is Own


def test_a_fused_net_is_copied_pickled_sliced_and_initialised_by_class_name():
    fused = fuse(generator())
    x = torch.randn(2, 10, 1, 1)
    expected = fused.eval()(x)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    assert type(fused[:3]) is FusedSequential and len(fused[:3]) == 3
    seen = []
    fused.apply(lambda m: seen.append(m.__class__.__name__))
    assert (
        sum("Conv" in name for name in seen) == 3 and sum("BatchNorm" in name for name in seen) == 2
    )


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_child_with_hooks_runs_as_itself(kind):
    fused = fuse(discriminator())
    calls = []
    handle = getattr(fused[2], f"register_{kind}_hook")(lambda *args: calls.append(kind))
    assert "has hooks" in explain(fused)
    fused(torch.randn(2, 3, 16, 16)).sum().backward()
    assert calls == [kind]
    handle.remove()
    assert "has hooks" not in explain(fused)


def test_global_hooks_see_every_child():
    fused = fuse(generator())
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, i, o: seen.append(type(m).__name__)
    )
    try:
        fused(torch.randn(2, 10, 1, 1))
    finally:
        handle.remove()
    assert seen == [type(m).__name__ for m in fused] + ["FusedSequential"]


@pytest.mark.parametrize(
    "children, reason",
    [
        ([nn.Conv2d(4, 4, 3, groups=2), nn.ReLU()], "groups=2"),
        ([nn.Conv2d(4, 4, 3, dilation=2), nn.ReLU()], "dilation=(2, 2)"),
        ([nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()], "padding_mode='reflect'"),
        ([nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU()], "padding='same'"),
        ([nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.ReLU()], "dcgan_fast.conv_bn_act"),
        ([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU()], "momentum=None"),
        ([nn.Conv2d(4, 4, 3), nn.GELU()], "GELU is not part of a fused op"),
        ([nn.Conv2d(4, 4, 3), nn.Dropout(0.0), nn.ReLU()], "an activation after no convolution"),
        ([nn.Conv2d(4, 4, 3, bias=True), nn.BatchNorm2d(4), nn.ReLU()], "dcgan_fast.bn_act"),
        ([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()], "dcgan_fast.bn_act"),
        ([nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.Identity(), nn.BatchNorm2d(4)], "Identity"),
        ([nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), nn.ReLU()], "dcgan_fast.conv_act"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_unusual_children_run_right(children, reason, training):
    plain = nn.Sequential(*children).train(training)
    fused = fuse(plain)
    assert reason in explain(fused)
    for _ in range(2):
        x = torch.randn(3, 4, 9, 9)
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)
    for (key, ours), (_, theirs) in zip(fused.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize(
    "norm, shape",
    [
        (nn.BatchNorm1d(6), (5, 6)),
        (nn.BatchNorm1d(6), (5, 6, 7)),
        (nn.BatchNorm3d(6), (2, 6, 3, 4, 5)),
    ],
)
def test_batch_norms_of_other_ranks(norm, shape):
    plain = nn.Sequential(norm, nn.LeakyReLU(0.1))
    fused = fuse(plain)
    assert "dcgan_fast.bn_act" in explain(fused)
    x = torch.randn(shape)
    torch.testing.assert_close(fused(x), plain(x))
    torch.testing.assert_close(fused[0].running_var, norm.running_var)
    with pytest.raises(ValueError, match="expected"):
        fused(torch.randn(2, 6, 3, 3) if len(shape) < 4 else torch.randn(2, 6))


def test_integer_and_unbatched_input_goes_to_pytorch():
    fused = fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    assert fused(torch.randn(3, 8, 8)).shape == (4, 6, 6)
    with pytest.raises(RuntimeError):
        fused(torch.ones(1, 3, 8, 8).long())


def test_replaced_forward_is_respected():
    fused = fuse(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
    fused[1].forward = lambda x: x * 0 + 7
    assert "its forward is replaced" in explain(fused)
    assert (fused(torch.randn(1, 3, 2, 2)) == 7).all()


@pytest.mark.parametrize(
    "children",
    [
        [nn.Conv2d(3, 4, 3), nn.ELU(inplace=True)],
        [nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1), nn.Dropout2d(0.0, inplace=True)],
        [nn.Conv2d(3, 4, 3, padding=(1,), stride=(2,)), nn.BatchNorm2d(4), nn.ReLU()],
        [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=1.5), nn.SiLU(inplace=True)],
    ],
)
def test_what_pytorch_trains_trains_fused(children):
    plain = nn.Sequential(*children)
    fused = fuse(plain)
    x = torch.randn(4, 3, 9, 9)
    theirs, ours = train_step(plain, x), train_step(fused, x)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-3, msg=key)


def test_transforms_and_tracers_reach_the_plain_children():
    fused = fuse(discriminator()).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = fused(x)
    parameters = dict(fused.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(fused, parameters, (x,)).sum()

    gradients = torch.func.grad(loss)(parameters, x)
    fused(x).sum().backward()
    torch.testing.assert_close(gradients["0.weight"], fused[0].weight.grad, rtol=1e-3, atol=1e-4)
    per_image = torch.func.vmap(lambda image: fused(image[None])[0])(x)
    torch.testing.assert_close(per_image, expected, rtol=1e-4, atol=1e-5)
    _, tangent = torch.func.jvp(fused, (x,), (torch.ones_like(x),))
    assert tangent.shape == expected.shape
    torch.testing.assert_close(torch.fx.symbolic_trace(fused)(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.trace(fused, x)(x), expected, rtol=1e-4, atol=1e-5)


def test_explain_counts_places_not_modules():
    act = nn.LeakyReLU()
    text = explain(fuse(nn.Sequential(nn.Conv2d(3, 3, 1), act, nn.Conv2d(3, 3, 1), act)))
    assert [line.split()[0] for line in text.splitlines()] == ["0-1", "2-3"]


def test_explain_names_what_is_out_of_reach():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())

    text = explain(Net())
    assert "conv" in text and "not a child of an nn.Sequential" in text
    assert "in a plain Sequential" in text
    assert "dcgan_fast.conv_act" in explain(fuse(Net()))
    assert explain(nn.Linear(2, 2)) == ""


@pytest.mark.parametrize("name", NETS)
def test_compile_fullgraph_trains_the_same(name):
    make, shape = NETS[name]
    plain = fuse(make())
    compiled = torch.compile(copy.deepcopy(plain), fullgraph=True, backend="aot_eager")
    x = torch.randn(shape)
    theirs, ours = train_step(plain, x), train_step(compiled, x)
    for key, value in theirs.items():
        other = ours[key if key in ours else f"_orig_mod.{key}"]
        scale = value.abs().max().item() if value.is_floating_point() else 0
        torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-5 * scale, msg=key)


def test_export_holds_pytorch_ops_alone():
    fused = fuse(generator()).eval()
    program = torch.export.export(fused, (torch.randn(2, 10, 1, 1),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets and not any("dcgan_fast" in target for target in targets)
    x = torch.randn(2, 10, 1, 1)
    torch.testing.assert_close(program.module()(x), fused(x), rtol=1e-4, atol=1e-5)


def test_channels_last_in_gives_channels_last_out():
    fused = fuse(discriminator()[:5]).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    assert fused(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_batch_norm_mode_leaves_everything_as_it_was(mode):
    net = fuse(generator())
    net[0].eval()
    x = torch.randn(4, 10, 1, 1)
    net(x)
    before = copy.deepcopy(net.state_dict())
    modes = [m.training for m in net.modules()]
    expected = copy.deepcopy(net).train(mode == "batch")(x)
    with batch_norm_mode(net, mode):
        torch.testing.assert_close(net(x), expected)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert modes == [m.training for m in net.modules()]
    with pytest.raises(ValueError, match="'mode' must be"), batch_norm_mode(net, "population"):
        pass


def grouped_networks():
    fused = fuse(discriminator(), inplace=True)
    watched = fuse(discriminator())
    next(m for m in watched.modules() if isinstance(m, nn.BatchNorm2d)).register_forward_hook(
        lambda *_: None
    )
    replaced = fuse(discriminator())
    bn = next(m for m in replaced.modules() if isinstance(m, nn.BatchNorm2d))
    bn.forward = bn.forward
    return {
        "fused": fused,
        "plain": unfuse(fused),
        "a hook": watched,
        "a replaced forward": replaced,
        "no running statistics": fuse(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))),
        "mixed": nn.Sequential(nn.BatchNorm2d(3), fuse(discriminator())),
        "called one by one": OneByOne(fuse(discriminator())),
    }


class OneByOne(nn.Module):
    """Runs the children of a sequence itself."""

    def __init__(self, main: nn.Sequential) -> None:
        super().__init__()
        self.main = main

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for layer in self.main:
            input = layer(input)
        return input


@pytest.mark.parametrize("kind", grouped_networks())
@pytest.mark.parametrize("training", [True, False])
def test_stat_groups_are_as_many_batches(kind, training):
    net = grouped_networks()[kind].train(training)
    twin = copy.deepcopy(net)
    parts = [torch.randn(4, 3, 16, 16) * s + s for s in (1, 2, 3)]
    before = {name: dict(vars(m)) for name, m in net.named_modules()}
    with stat_groups(net, 3):
        found = net(torch.cat(parts))
    torch.testing.assert_close(found, torch.cat([twin(part) for part in parts]))
    torch.testing.assert_close(net.state_dict(), twin.state_dict())
    for name, module in net.named_modules():
        assert vars(module).keys() - {"_marked_forward"} == before[name].keys()
        assert vars(module).get("forward") == before[name].get("forward")


@pytest.mark.parametrize("kind", grouped_networks())
def test_stat_groups_nest(kind):
    net = grouped_networks()[kind]
    twin = copy.deepcopy(net)
    parts = [torch.randn(2, 3, 16, 16) * s + s for s in (1, 2, 3, 4, 5, 6)]
    with stat_groups(net, 2):
        with stat_groups(net, 3):
            inner = net(torch.cat(parts))
        outer = net(torch.cat(parts))
    torch.testing.assert_close(
        inner, torch.cat([twin(torch.cat(parts[i : i + 2])) for i in (0, 2, 4)])
    )
    torch.testing.assert_close(
        outer, torch.cat([twin(torch.cat(parts[i : i + 3])) for i in (0, 3)])
    )
    torch.testing.assert_close(net(parts[0]), twin(parts[0]))


def test_stat_groups_compile_once():
    counter = torch._dynamo.testing.CompileCounter()
    net = unfuse(fuse(discriminator()))
    compiled = torch.compile(net, backend=counter)
    for _ in range(4):
        with stat_groups(net, 2):
            compiled(torch.randn(4, 3, 16, 16))
    assert counter.frame_count == 1


def test_stat_groups_refuses():
    net = fuse(discriminator())
    with pytest.raises(ValueError, match="'groups' must be at least 1, got 0"), stat_groups(net, 0):
        pass
    scripted = torch.jit.script(unfuse(net))
    with pytest.raises(ValueError, match="ScriptModule"), stat_groups(scripted, 2):
        pass
    for network in (net, unfuse(net)):
        with (
            stat_groups(network, 2),
            pytest.raises(ValueError, match="'stat_groups' must divide the batch of 3, got 2"),
        ):
            network(torch.randn(3, 3, 16, 16))


def test_population_statistics_are_the_average_over_batches():
    net = fuse(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    batches = [torch.randn(4, 3, 5, 5) * s + s for s in (1, 2, 3)]
    population_statistics(net, batches)
    mean = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    var = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(net[0].running_mean, mean)
    torch.testing.assert_close(net[0].running_var, var)
    assert net[0].momentum == 0.1 and net.training
    with pytest.raises(ValueError, match="at least one batch"):
        population_statistics(net, [])


def test_build_info_names_every_op():
    info = dcgan_fast.build_info()
    modules = (dcgan_fast.dedup.OPS, dcgan_fast.metrics.OPS)
    assert set(info["ops"]) == {*dcgan_fast.functional.__all__, *modules[0], *modules[1]}
    assert info["cpu_capability"] in ("AVX512", "AVX2", "DEFAULT")
    assert info["torch"] == torch.__version__


def test_explain_names_the_engines_of_an_input():
    torch.manual_seed(0)
    net = fuse(nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()))
    before = {name: t.clone() for name, t in net.state_dict().items()}
    assert "(" not in explain(net)
    engines = (*_C.convolution_engines(), "ATen")
    assert any(name in explain(net, torch.randn(4, 3, 16, 16)) for name in engines)
    assert "(ATen)" in explain(net.double(), torch.randn(4, 3, 16, 16).double())
    for name, tensor in net.float().state_dict().items():  # only a copy ran
        assert torch.equal(tensor, before[name])


def test_explain_under_autocast():
    net = fuse(nn.Sequential(nn.Conv2d(64, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64)))
    input = torch.randn(4, 64, 16, 16)
    lowered = explain(net.bfloat16(), input.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert explain(net.float(), input) == lowered
