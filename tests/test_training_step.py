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
from dcgan_fast.training.losses import FAKE, REAL, Objective, adversarial_loss
from dcgan_fast.training.penalties import GradientPenalty
from dcgan_fast.training.step import Step

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
    objective: Objective | None = None,
    **dialect,
) -> Tensor:
    G, D = (network if fused else unfuse(network) for network in networks(loss_output))
    for network in (G, D):
        network.to(memory_format=torch.channels_last)
    optimizers = [adam(network, weight_decay=weight_decay, fused=True) for network in (G, D)]
    step = Step(G, D, *optimizers, objective=objective or Objective(output=loss_output), **dialect)
    real, z = stream()
    rows = []
    for _ in range(STEPS):
        images = [real().contiguous(memory_format=torch.channels_last) for _ in range(minibatches)]
        rows.append(step(images if step.d_steps_per_g > 1 else images[-1], z))
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
        Step(G, D, adam(G), adam(D), joint_pass=joint)(real(), z)
        found.append((D.state_dict(), calls))
        real, z = stream()
    (apart, of_two), (jointly, of_one) = found
    assert (of_two, of_one) == ([BATCH] * 3, [2 * BATCH, BATCH])
    torch.testing.assert_close(jointly, apart, rtol=1e-4, atol=1e-6)


def test_a_joint_pass_takes_as_many_fakes_as_real_images() -> None:
    G, D = networks()
    real, z = stream()
    with pytest.raises(ValueError, match=f"as many fake images as real ones, got {BATCH} and 6"):
        Step(G, D, adam(G), adam(D), joint_pass=True)(real()[:6], z)


def test_a_joint_pass_and_a_shared_one_exclude_each_other() -> None:
    G, D = networks()
    with pytest.raises(ValueError, match="exclude each other"):
        Step(G, D, adam(G), adam(D), joint_pass=True, reuse_fake_output=True)


def gradient_norm_squares(output: Tensor, images: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(output.sum(), images, create_graph=True)
    return slope.square().sum((1, 2, 3))


LOSSES = {  # of D's outputs on real and on made images: D's loss, G's
    "minimax": (
        lambda r, f: -(F.logsigmoid(r).mean() + (1 - f.sigmoid()).log().mean()),
        lambda f: (1 - f.sigmoid()).log().mean(),
    ),
    "least-squares": (
        lambda r, f: ((r - 1) ** 2).mean() / 2 + (f**2).mean() / 2,
        lambda f: ((f - 1) ** 2).mean() / 2,
    ),
    "hinge": (lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean(), lambda f: -f.mean()),
    "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda f: -f.mean()),
}


def objective_loop(name: str, penalty: GradientPenalty | None, d_steps: int = 1):
    """The same step in plain PyTorch, penalties written out."""
    of_d, of_g = LOSSES[name]

    def loop(G, D, opt_g, opt_d, criterion, prob, real, z) -> list[float]:
        for _ in range(d_steps):
            images = real()
            noise = z()
            fake = G(noise)
            D.zero_grad()
            images.requires_grad_(penalty is not None and penalty.kind == "r1")
            out_real = D(images)
            out_fake = D(fake.detach())
            loss_d = of_d(out_real, out_fake)
            if images.requires_grad:
                charged = penalty.weight / 2 * gradient_norm_squares(out_real, images).mean()
            elif penalty is not None:
                share = torch.rand(BATCH, 1, 1, 1)
                between = fake.detach() + share * (images - fake.detach())
                between.requires_grad_()
                norms = gradient_norm_squares(D(between), between).sqrt()
                charged = penalty.weight * ((norms - 1) ** 2).mean()
            (loss_d + (charged if penalty else 0)).backward()
            opt_d.step()
        G.zero_grad()
        out = D(fake)
        loss_g = of_g(out)
        loss_g.backward()
        opt_g.step()
        score = prob if name == "minimax" else lambda o: o.mean().item()
        row = [loss_d.item(), loss_g.item(), score(out_real), score(out_fake), score(out)]
        return row + ([charged.item()] if penalty else [])

    return loop


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_same_numbers_as_each_objective_written_out(name: str, joint: bool) -> None:
    actual = ours(objective=Objective(name), joint_pass=joint)
    expected = plain(objective_loop(name, None))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "penalty", "d_steps"),
    [
        ("minimax", GradientPenalty("r1", 2.0), 1),
        ("wasserstein", GradientPenalty("wgan-gp", 10.0), 1),
        ("wasserstein", GradientPenalty("wgan-gp", 10.0), 3),
    ],
)
def test_same_numbers_as_each_penalty_written_out(name, penalty, d_steps) -> None:
    torch.manual_seed(3)
    expected = plain(objective_loop(name, penalty, d_steps))
    torch.manual_seed(3)
    actual = ours(
        objective=Objective(name), penalty=penalty, d_steps_per_g=d_steps, minibatches=d_steps
    )
    # the first networks are drawn from the same seed in both, and so are the points between
    torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-4)


def test_a_lazy_penalty_is_charged_when_it_is_due_and_as_much_in_the_mean() -> None:
    rows = ours(penalty=GradientPenalty("r1", 1.0, every=4), joint_pass=True)
    charged = rows[:, 5]
    assert (charged[::4] > 0).all() and charged.count_nonzero() == STEPS // 4
    every = ours(penalty=GradientPenalty("r1", 1.0))[:, 5]
    assert charged[0] == pytest.approx(4 * every[0].item(), rel=1e-4)


def test_an_accumulated_update_is_that_of_the_mean_gradient() -> None:
    """Without batch norm's coupling: networks in eval mode."""
    found = []
    for accumulate in (1, 2):
        G, D = (n.eval() for n in networks())
        adams = [torch.optim.SGD(n.parameters(), lr=0.1) for n in (G, D)]
        real, z = stream()
        images, latents = torch.cat([real(), real()]), torch.cat([z(), z()])
        parts = iter(latents.chunk(accumulate))
        step = Step(G, D, *adams, accumulate=accumulate)
        given = images if accumulate == 1 else list(images.chunk(2))
        row = step(given, lambda parts=parts: next(parts))
        found.append((row, G.state_dict(), D.state_dict()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_long_gradient_is_shortened() -> None:
    G, D = networks()
    sgd = [torch.optim.SGD(n.parameters(), lr=1.0) for n in (G, D)]
    before = torch.nn.utils.parameters_to_vector(D.parameters()).clone()
    real, z = stream()
    Step(G, D, *sgd, clip_grad=1e-3)(real(), z)
    moved = torch.nn.utils.parameters_to_vector(D.parameters()) - before
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_fp16_follows_fp32_by_scaled_losses() -> None:
    G, D = networks()
    real, z = stream()
    step = Step(
        G,
        D,
        adam(G),
        adam(D),
        autocast=lambda: torch.autocast("cpu", torch.float16),
        scale_losses=True,
    )
    rows = torch.stack([step(real(), z) for _ in range(STEPS)])
    torch.testing.assert_close(rows, ours(), rtol=0.1, atol=0.05)
    assert step.update_d.scale >= 1024


def test_an_update_that_overflows_is_left_out() -> None:
    G, D = networks()
    real, z = stream()
    step = Step(G, D, adam(G), adam(D), scale_losses=True)
    before = {name: value.clone() for name, value in D.named_parameters()}
    D.main[0].weight.register_hook(lambda grad: torch.full_like(grad, torch.inf))
    scale = step.update_d.scale
    step(real(), z)
    assert all(torch.equal(before[name], value) for name, value in D.named_parameters())
    assert step.update_d.scale == scale / 2
    other = Step(G, D, adam(G), adam(D), scale_losses=True)
    other.update_d.load_state_dict(step.update_d.state_dict())
    assert other.update_d.scale == scale / 2


def test_instance_noise_reaches_both_kinds_of_images() -> None:
    G, D = networks()
    seen: list[Tensor] = []
    D.register_forward_pre_hook(lambda _, images: seen.append(images[0].detach()))
    step = Step(G, D, adam(G), adam(D))
    step.instance_noise = 0.5
    images = torch.zeros(BATCH, 1, 16, 16)
    step(images, stream()[1])
    assert len(seen) == 3 and seen[0].std().item() == pytest.approx(0.5, rel=0.1)
    assert seen[1].abs().max() > 1  # G's images alone end at 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alternate": True, "accumulate": 2}, "one update of each network"),
        ({"reuse_fake_output": True, "penalty": GradientPenalty()}, "neither 'penalty'"),
        ({"accumulate": 3}, "takes 3 minibatches of real images, got 1"),
    ],
)
def test_steps_that_cannot_be(settings, message: str) -> None:
    G, D = networks()
    real, z = stream()
    with pytest.raises(ValueError, match=message):
        Step(G, D, adam(G), adam(D), **settings)(real(), z)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "other"}, "must be one of non-saturating, minimax"),
        ({"name": "hinge", "output": "sigmoid"}, "without a sigmoid"),
        ({"real_label": 0.0}, "above 0 and at most 1"),
        ({"name": "wasserstein", "real_label": 0.9}, "no labels"),
        ({"output": "tanh"}, "'logits' or 'sigmoid'"),
    ],
)
def test_objectives_that_cannot_be(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "r2"}, "one of r1, wgan-gp"),
        ({"weight": 0}, "positive"),
        ({"every": 0}, "at least 1"),
    ],
)
def test_penalties_that_cannot_be(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientPenalty(**settings)


def test_one_sided_smoothing_leaves_the_others_alone() -> None:
    output = torch.tensor([0.3, -1.0])
    smooth, hard = Objective(real_label=0.9), Objective()
    target = torch.full_like(output, 0.9)
    expected = F.binary_cross_entropy_with_logits(output, target)
    torch.testing.assert_close(smooth.of_real(output), expected)
    assert smooth.of_fake(output) == hard.of_fake(output)
    assert smooth.of_generator(output) == hard.of_generator(output)


def test_an_image_that_d_does_not_see_has_a_penalty_with_a_gradient() -> None:
    images = torch.zeros(2, 1, 2, 2, requires_grad=True)
    weight = torch.tensor(0.0, requires_grad=True)
    output = (images * weight).sum((1, 2, 3))
    GradientPenalty("wgan-gp").at(images, output).backward()
    assert weight.grad is not None and weight.grad.isfinite()


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
    Step(G, D, adam(G), adam(D))(real(), z)
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
    row = Step(G, D, adam(G), adam(D), autocast=autocast)(real(), z)
    assert passes == [False] * 4  # D on real, G, D on fake, D for G
    assert row.dtype == torch.float32 and row.isfinite().all()


def test_bf16_follows_fp32() -> None:
    G, D = networks()
    real, z = stream()
    step = Step(G, D, adam(G), adam(D), autocast=lambda: torch.autocast("cpu", torch.bfloat16))
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
    probability = Objective(output=kind).score(output)
    torch.testing.assert_close(probability.double(), torch.tensor(0.5, dtype=torch.float64))


def test_loss_is_finite_whatever_d_says() -> None:
    certain = torch.tensor([1e4, -1e4], requires_grad=True)
    adversarial_loss(certain, REAL).backward()
    assert certain.grad is not None and certain.grad.isfinite().all()
    assert adversarial_loss(torch.zeros(1), REAL, kind="sigmoid").item() == 100


def test_loss_of_half_precision_is_taken_in_float32() -> None:
    output = torch.tensor([8.0], dtype=torch.bfloat16)
    assert adversarial_loss(output, FAKE).dtype == torch.float32
    assert Objective().score(output).item() < 1  # in bfloat16 it would be 1


def test_default_context_is_none() -> None:
    G, D = networks()
    assert Step(G, D, adam(G), adam(D)).autocast is nullcontext
