"""Steps as one graph: on a CPU, where a replay runs the step again, all but the capture itself; on a GPU that too."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import tiny_runs
import torch
from tiny_runs import one_thread  # noqa: F401
from torch import Tensor, nn

from dcgan_fast import models
from dcgan_fast.training import GradientPenalty, Objective, Step, Trainer
from dcgan_fast.training.graph import GraphedStep, portable_state, why_not

STEPS, BATCH, NZ = 6, 8, 8
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return models.build("pytorch", image_size=16, nc=1, nz=NZ, ngf=8, ndf=8)


def make_step(device: str = "cpu", **settings: object) -> Step:
    pair = [network.to(device) for network in networks()]
    adams = [
        torch.optim.Adam(n.parameters(), lr=2e-3, betas=(0.5, 0.999), fused=True) for n in pair
    ]
    return Step(*pair, *adams, **settings)


def stream(
    device: str = "cpu", parts: int = 1
) -> tuple[Callable[[], object], Callable[[], Tensor]]:
    source = torch.Generator().manual_seed(1)
    noise = torch.Generator().manual_seed(2)

    def images() -> Tensor:
        return (torch.rand(BATCH, 1, 16, 16, generator=source) * 2 - 1).to(device)

    def real() -> object:
        return images() if parts == 1 else [images() for _ in range(parts)]

    return real, lambda: torch.randn(BATCH, NZ, 1, 1, generator=noise).to(device)


def run_again(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What a capture does to whoever calls it: nothing runs now, all of it at each replay."""
    return run


def trained(step: Callable[..., Tensor], of: Step, device: str = "cpu") -> tuple[Tensor, dict]:
    real, draw = stream(device, of.d_steps_per_g * of.accumulate)
    torch.manual_seed(5)  # of penalties' points
    rows = torch.stack([step(real(), draw) for _ in range(STEPS)])
    return rows.cpu(), {"g": of.generator.state_dict(), "d": of.discriminator.state_dict()}


SETTINGS = [
    {},
    {"joint_pass": True, "clip_grad": 0.5},
    {
        "objective": Objective("wasserstein"),
        "penalty": GradientPenalty("wgan-gp"),
        "d_steps_per_g": 2,
    },
    {"penalty": GradientPenalty("r1"), "accumulate": 2},
    {"alternate": True},
    {"reuse_fake_output": True},
    {"g_steps_per_d": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "plain")
def test_the_same_numbers_as_the_step_itself(settings) -> None:
    plain, captured = make_step(**settings), make_step(**settings)
    graphed = GraphedStep(captured, capture=run_again)
    assert graphed.reason == ""
    expected, found = trained(plain, plain), trained(graphed, captured)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # a float32 learning rate
    assert captured.number == STEPS


@needs_a_gpu
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "plain")
def test_the_same_numbers_by_a_cuda_graph(settings) -> None:
    plain, captured = make_step("cuda", **settings), make_step("cuda", **settings)
    graphed = GraphedStep(captured)
    expected = trained(plain, plain, "cuda")
    found = trained(graphed, captured, "cuda")
    assert graphed.reason == ""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_labels_and_latents_are_copied_to_where_the_graph_reads_them() -> None:
    torch.manual_seed(0)
    pair = models.build(
        "cgan-dcgan", image_size=16, nc=1, nz=NZ, ngf=8, ndf=8, ngfc=8, ndfc=8, classes=3
    )
    rows = []
    for capture in (None, run_again):
        nets = copy.deepcopy(pair)
        step = Step(*nets, *(torch.optim.Adam(n.parameters(), fused=True) for n in nets))
        call = step if capture is None else GraphedStep(step, capture)
        source = torch.Generator().manual_seed(3)

        def sample(source=source) -> tuple[Tensor, Tensor]:
            images = torch.rand(BATCH, 1, 16, 16, generator=source)
            return images, torch.randint(3, (BATCH,), generator=source)

        def draw(source=source, nets=nets) -> tuple[Tensor, Tensor]:
            return nets[0].sample_latent(BATCH, generator=source), torch.randint(
                3, (BATCH,), generator=source
            )

        rows.append(torch.stack([call(sample(), draw) for _ in range(4)]))
    torch.testing.assert_close(*rows, rtol=1e-5, atol=1e-6)  # a float32 learning rate


def test_a_new_learning_rate_holds_without_a_new_capture() -> None:
    captures = []

    def count(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        captures.append(run)
        return run

    step = make_step()
    graphed = GraphedStep(step, count)
    real, draw = stream()
    graphed(real(), draw)
    for update in (step.update_g, step.update_d):
        for group in update.optimizer.param_groups:
            group["lr"].fill_(0.0)
    before = [p.clone() for p in step.generator.parameters()]
    graphed(real(), draw)
    assert all(torch.equal(a, b) for a, b in zip(before, step.generator.parameters(), strict=True))
    assert len(captures) == 1


def test_what_is_saved_is_as_without_a_graph() -> None:
    step = make_step()
    GraphedStep(step, run_again)(*(lambda real, draw: (real(), draw))(*stream()))
    state = portable_state(step.update_g.optimizer)
    for group in state["param_groups"]:
        assert type(group["lr"]) is float and group["capturable"] is False
    other = make_step().update_g.optimizer
    other.load_state_dict(state)
    assert portable_state(other)["param_groups"] == state["param_groups"]


def test_another_shape_is_refused() -> None:
    graphed = GraphedStep(make_step(), run_again)
    real, draw = stream()
    graphed(real(), draw)
    with pytest.raises(ValueError, match="a captured step takes real images of the shapes"):
        graphed(real()[:4], draw)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"scale_losses": True}, "scaled losses"),
        ({"penalty": GradientPenalty("r1", every=4)}, "a penalty that is due at some steps"),
        ({"average": lambda weights: None}, "several processes"),
    ],
)
def test_what_cannot_be_captured_runs_as_itself(settings, reason: str) -> None:
    step, plain = make_step(**settings), make_step(**settings)
    graphed = GraphedStep(step, run_again)
    assert reason in graphed.reason
    torch.testing.assert_close(trained(graphed, step), trained(plain, plain), rtol=0, atol=0)


def test_settings_that_come_later_count_too() -> None:
    step = make_step()
    graphed = GraphedStep(step, run_again)
    step.instance_noise = 0.1
    real, draw = stream()
    graphed(real(), draw)
    assert "instance noise" in graphed.reason


def test_sgd_takes_its_settings_from_the_host() -> None:
    pair = networks()
    step = Step(*pair, *(torch.optim.SGD(n.parameters(), lr=0.1) for n in pair))
    assert "SGD" in GraphedStep(step, run_again).reason
    assert "not on a CUDA device" in why_not(step)


def test_a_capture_that_fails_leaves_the_step_as_it_was() -> None:
    def fail(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    step, plain = make_step(), make_step()
    graphed = GraphedStep(step, fail)
    with pytest.warns(
        UserWarning, match="one op at a time: it could not be captured: operation not"
    ):
        found = trained(graphed, step)
    torch.testing.assert_close(found, trained(plain, plain), rtol=1e-5, atol=1e-6)


def test_a_run_on_a_cpu_says_why_it_has_no_graph() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = tiny_runs.trainer(epochs=1)
        trainer.fit()
    assert trainer.why_not_graphed == "the networks are not on a CUDA device"


@needs_a_gpu
def test_a_run_is_the_same_with_a_graph_and_without_and_continues() -> None:
    found = []
    for graph in (True, False):
        trainer: Trainer = tiny_runs.trainer(device="cuda", graph=graph)
        trainer.fit()
        assert bool(trainer.why_not_graphed) != graph
        found.append(trainer.records[-1]["loss_d"])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
