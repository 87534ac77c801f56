"""Each dialect against a plain loop, written down here as its source writes it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from tiny_runs import one_thread  # noqa: F401
from torch import Tensor, nn
from torch.nn import functional as F

from dcgan_fast import models, unfuse
from dcgan_fast.training.losses import FAKE, REAL, adversarial_loss, mean_probability
from dcgan_fast.training.step import AdversarialStep

STEPS, BATCH, NZ = 20, 16, 8


def networks(loss_output: str = "logits") -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    pair = models.build("pytorch", image_size=16, nc=1, nz=NZ, ngf=8, ndf=8, output=loss_output)
    return pair


def adam(network: nn.Module, **settings: float) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), **settings)


def stream() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Real images and latents, the same in every call."""
    source = torch.Generator().manual_seed(1)
    noise = torch.Generator().manual_seed(2)
    return (
        lambda: torch.rand(BATCH, 1, 16, 16, generator=source) * 2 - 1,
        lambda: torch.randn(BATCH, NZ, 1, 1, generator=noise),
    )


def plain(
    loop: Callable[..., list[float]], loss_output: str = "logits", **settings: float
) -> Tensor:
    """The metrics of ``loop`` over plain torch.nn networks: no op of the package is in it."""
    G, D = (unfuse(network) for network in networks(loss_output))
    real, z = stream()
    criterion = nn.BCELoss() if loss_output == "sigmoid" else nn.BCEWithLogitsLoss()
    prob = (
        (lambda o: o.mean().item())
        if loss_output == "sigmoid"
        else lambda o: o.sigmoid().mean().item()
    )
    step = partial(loop, G, D, adam(G, **settings), adam(D, **settings), criterion, prob, real, z)
    return torch.tensor([step() for _ in range(STEPS)])


def ours(
    loss_output: str = "logits",
    minibatches: int = 1,
    weight_decay: float = 0.0,
    fused: bool = True,
    **dialect,
) -> Tensor:
    G, D = (network if fused else unfuse(network) for network in networks(loss_output))
    for network in (G, D):
        network.to(memory_format=torch.channels_last)
    optimizers = [adam(network, weight_decay=weight_decay, fused=True) for network in (G, D)]
    step = AdversarialStep(G, D, *optimizers, loss_output=loss_output, **dialect)
    real, z = stream()
    rows = []
    for _ in range(STEPS):
        for _ in range(minibatches - 1):
            real()
        rows.append(step(real().contiguous(memory_format=torch.channels_last), z))
    return torch.stack(rows)


def examples_loop(G, D, opt_g, opt_d, criterion, prob, real, z, g_steps=1) -> list[float]:
    """pytorch/examples: D's gradients of the G step are computed and thrown away."""
    ones, zeros = torch.ones(BATCH), torch.zeros(BATCH)
    D.zero_grad()
    out = D(real())
    err_real = criterion(out, ones)
    err_real.backward()
    d_x = prob(out)
    noise = z()
    fake = G(noise)
    out = D(fake.detach())
    err_fake = criterion(out, zeros)
    err_fake.backward()
    before = prob(out)
    opt_d.step()
    for number in range(g_steps):
        G.zero_grad()
        out = D(fake if number == 0 else G(noise))
        err_g = criterion(out, ones)
        err_g.backward()
        opt_g.step()
    return [(err_real + err_fake).item(), err_g.item(), d_x, before, prob(out)]


def newmu_loop(G, D, opt_g, opt_d, criterion, prob, real, z) -> list[float]:
    """Newmu: the even minibatches train G, the odd ones D, each with latents of its own."""
    ones, zeros = torch.ones(BATCH), torch.zeros(BATCH)
    real()
    G.zero_grad()
    out = D(G(z()))
    err_g = criterion(out, ones)
    err_g.backward()
    after = prob(out)
    opt_g.step()
    D.zero_grad()
    out_real = D(real())
    out_fake = D(G(z()).detach())
    err_d = criterion(out_real, ones) + criterion(out_fake, zeros)
    err_d.backward()
    opt_d.step()
    return [err_d.item(), err_g.item(), prob(out_real), prob(out_fake), after]


def torch_loop(G, D, opt_g, opt_d, criterion, prob, real, z) -> list[float]:
    """dcgan.torch: one pass of D over the fakes, both gradients from the weights of that pass."""
    ones, zeros = torch.ones(BATCH), torch.zeros(BATCH)
    d_weights, g_weights = list(D.parameters()), list(G.parameters())
    out_real = D(real())
    out_fake = D(G(z()))
    err_d = criterion(out_real, ones) + criterion(out_fake, zeros)
    err_g = criterion(out_fake, ones)
    d_grads = torch.autograd.grad(err_d, d_weights, retain_graph=True)
    g_grads = torch.autograd.grad(err_g, g_weights)
    for weight, grad in zip(d_weights + g_weights, d_grads + g_grads, strict=True):
        weight.grad = grad
    opt_d.step()
    opt_g.step()
    return [err_d.item(), err_g.item(), prob(out_real), prob(out_fake), prob(out_fake)]


@pytest.mark.parametrize("loss_output", ["logits", "sigmoid"])
def test_same_numbers_as_pytorch_examples(loss_output: str) -> None:
    torch.testing.assert_close(
        ours(loss_output), plain(examples_loop, loss_output), rtol=1e-4, atol=1e-5
    )


def test_same_numbers_as_carpedm20() -> None:
    expected = plain(partial(examples_loop, g_steps=2))
    torch.testing.assert_close(ours(g_steps_per_d=2), expected, rtol=1e-4, atol=1e-5)


def test_same_numbers_as_newmu() -> None:
    expected = plain(newmu_loop, weight_decay=1e-2)
    actual = ours(minibatches=2, weight_decay=1e-2, alternate=True)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_same_numbers_as_a_shared_pass() -> None:
    torch.testing.assert_close(
        ours(reuse_fake_output=True), plain(torch_loop), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("loop", "dialect"),
    [
        (examples_loop, {}),
        (partial(examples_loop, g_steps=2), {"g_steps_per_d": 2}),
        (newmu_loop, {"alternate": True, "minibatches": 2}),
    ],
)
def test_same_numbers_in_a_joint_pass(loop, dialect, fused: bool) -> None:
    actual = ours(joint_pass=True, fused=fused, **dialect)
    torch.testing.assert_close(actual, plain(loop), rtol=1e-4, atol=1e-5)


def test_a_joint_pass_is_one_pass_with_the_running_statistics_of_two() -> None:
    real, z = stream()
    found = []
    for joint in (False, True):
        G, D = networks()
        calls: list[int] = []
        D.register_forward_hook(lambda _, images, output, calls=calls: calls.append(len(images[0])))
        AdversarialStep(G, D, adam(G), adam(D), joint_pass=joint)(real(), z)
        found.append((D.state_dict(), calls))
        real, z = stream()
    (apart, of_two), (jointly, of_one) = found
    assert (of_two, of_one) == ([BATCH] * 3, [2 * BATCH, BATCH])
    torch.testing.assert_close(jointly, apart, rtol=1e-4, atol=1e-6)


def test_a_joint_pass_takes_as_many_fakes_as_real_images() -> None:
    G, D = networks()
    real, z = stream()
    with pytest.raises(ValueError, match=f"as many fake images as real ones, got {BATCH} and 6"):
        AdversarialStep(G, D, adam(G), adam(D), joint_pass=True)(real()[:6], z)


def test_a_joint_pass_and_a_shared_one_exclude_each_other() -> None:
    G, D = networks()
    with pytest.raises(ValueError, match="exclude each other"):
        AdversarialStep(G, D, adam(G), adam(D), joint_pass=True, reuse_fake_output=True)


def test_the_dialects_differ() -> None:
    runs = [
        ours(),
        ours(g_steps_per_d=2),
        ours(minibatches=2, alternate=True),
        ours(reuse_fake_output=True),
    ]
    for first in range(4):
        for second in range(first):
            assert not torch.allclose(runs[first][-1], runs[second][-1], rtol=1e-3)


def test_the_generator_step_computes_no_weight_gradients_of_d() -> None:
    G, D = networks()
    seen = []
    D.main[0].weight.register_hook(lambda grad: seen.append(grad.shape))
    frozen = D.main[-1].weight.requires_grad_(False)
    real, z = stream()
    AdversarialStep(G, D, adam(G), adam(D))(real(), z)
    assert len(seen) == 2  # real and fake, not the generator's pass
    assert D.main[0].weight.requires_grad
    assert not frozen.requires_grad  # what the user froze stays frozen


def test_autocast_is_left_between_passes() -> None:
    """Its cache of cast weights would otherwise outlive an update of D."""
    G, D = networks()
    passes = []

    def autocast():
        passes.append(torch.is_autocast_enabled("cpu"))
        return torch.autocast("cpu", torch.bfloat16)

    real, z = stream()
    row = AdversarialStep(G, D, adam(G), adam(D), autocast=autocast)(real(), z)
    assert passes == [False] * 4  # D on real, G, D on fake, D for G
    assert row.dtype == torch.float32 and row.isfinite().all()


def test_bf16_follows_fp32() -> None:
    G, D = networks()
    real, z = stream()
    step = AdversarialStep(
        G, D, adam(G), adam(D), autocast=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    rows = torch.stack([step(real(), z) for _ in range(STEPS)])
    torch.testing.assert_close(rows, ours(), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("kind", ["logits", "sigmoid"])
@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 1, 1, 1)])
def test_loss_of_any_shape(kind: str, shape: tuple[int, ...]) -> None:
    logits = torch.linspace(-3, 3, 6, dtype=torch.float64)
    output = (logits.sigmoid() if kind == "sigmoid" else logits).reshape(shape)
    for label, expected in ((REAL, F.softplus(-logits)), (FAKE, F.softplus(logits))):
        loss = adversarial_loss(output, label, kind=kind)
        torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-5, atol=0)
    probability = mean_probability(output, kind=kind)
    torch.testing.assert_close(probability.double(), torch.tensor(0.5, dtype=torch.float64))


def test_loss_is_finite_whatever_d_says() -> None:
    certain = torch.tensor([1e4, -1e4], requires_grad=True)
    adversarial_loss(certain, REAL).backward()
    assert certain.grad is not None and certain.grad.isfinite().all()
    assert adversarial_loss(torch.zeros(1), REAL, kind="sigmoid").item() == 100


def test_loss_of_half_precision_is_taken_in_float32() -> None:
    output = torch.tensor([8.0], dtype=torch.bfloat16)
    assert adversarial_loss(output, FAKE).dtype == torch.float32
    assert mean_probability(output).item() < 1  # in bfloat16 it would be 1


def test_default_context_is_none() -> None:
    G, D = networks()
    assert AdversarialStep(G, D, adam(G), adam(D)).autocast is nullcontext
