"""The benchmarks' own parts: that they count work rightly, and race fairly. Their figures are nobody's test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dcgan_fast import functional, models, unfuse

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def test_work_is_what_torch_counts() -> None:
    """Forward and backward of both networks of each net, by PyTorch's own counter."""
    from layers import FORWARD, INPUT_GRAD, NETS, WEIGHT_GRAD, layers_of

    for net, (preset, overrides, batch) in NETS.items():
        with torch.device("meta"):
            generator, discriminator = models.build(preset, **overrides)
            latent = torch.empty(batch, generator.nz)
            images = torch.empty(batch, discriminator.nc, *[discriminator.image_size] * 2)
        networks, batches = (generator, discriminator), (latent, images)
        for network, data, layers in zip(networks, batches, layers_of(net), strict=True):
            with FlopCounterMode(display=False) as counter:
                output = unfuse(network)(data)
            assert sum(layer.flop(FORWARD) for layer in layers) == counter.get_total_flops()
            with FlopCounterMode(display=False) as counter:
                output.sum().backward()
            backward = sum(layer.flop(INPUT_GRAD, WEIGHT_GRAD) for layer in layers)
            assert backward - layers[0].flop(INPUT_GRAD) == counter.get_total_flops()


def test_every_layer_of_the_example_net_is_there() -> None:
    from layers import layers_of

    generator, discriminator = layers_of("pytorch-64")
    assert [layer.op for layer in generator] == ["conv_transpose_bn_act"] * 4 + [
        "conv_transpose_act"
    ]
    assert [layer.op for layer in discriminator] == ["conv_act", *["conv_bn_act"] * 3, "conv_act"]
    assert [str(layer) for layer in generator[:2]] == [
        "100x1x1 -> 512x4x4 k4 s1 relu",
        "512x4x4 -> 256x8x8 k4 s2 relu",
    ]
    assert [layer.activation for layer in discriminator] == ["leaky_relu"] * 4 + ["none"]
    assert [layer.data_in for layer in generator] == [True] + [False] * 4


def test_a_layer_of_two_nets_is_run_once() -> None:
    from layers import NETS, distinct, layers_of

    layers = distinct(NETS, small=False)
    assert len(set(layers)) == len(layers)
    places = Counter(place for layer in layers for place in layer.places)
    assert set(places.values()) == {1}
    assert len(places) == sum(len(network) for net in NETS for network in layers_of(net))
    assert any(
        {"paper-64", "newmu-64"} <= {p.split(".")[0] for p in layer.places} for layer in layers
    )


def test_bytes_by_hand() -> None:
    from layers import FORWARD, INPUT_GRAD, WEIGHT_GRAD, layers_of

    layer = layers_of("pytorch-64")[0][1]
    x, w, y = 128 * 512 * 16, 512 * 256 * 16, 128 * 256 * 64
    assert layer.bytes(2, FORWARD) == 2 * (x + w + 3 * y)
    assert layer.bytes(4, FORWARD, training=False) == 4 * (x + w + y)
    assert layer.bytes(4, INPUT_GRAD) == 4 * (5 * y + y + w + x)
    assert layer.bytes(4, INPUT_GRAD, WEIGHT_GRAD) == 4 * (5 * y + 2 * (y + w + x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_contenders_compute_the_same(dtype: str) -> None:
    from contenders import DTYPES, operands, ours, plain
    from layers import NETS, distinct

    for layer in distinct(NETS, small=True):
        if layer.op == "linear":
            continue
        given = [
            operands(layer, DTYPES[dtype], f)
            for f in (torch.channels_last, torch.contiguous_format)
        ]
        assert torch.equal(given[0].input, given[1].input)
        results = [function(layer, g) for function, g in zip((ours, plain), given, strict=True)]
        torch.testing.assert_close(*results, atol=0.05, rtol=0.05)
        assert all(leaf.requires_grad for leaf in given[0].leaves(layer))
        assert hasattr(functional, layer.op)


# ------------------------------------------------------------------------------------------ race


class Benchmark:
    """pytest-benchmark's fixture, as far as a race uses it."""

    def pedantic(self, target: Callable, args: tuple, setup: Callable, rounds: int) -> None:
        for _ in range(rounds):
            setup()
            target(*args)


def test_each_contender_runs_once_a_round_in_changing_order() -> None:
    from race import Race

    calls: list[str] = []
    race = Race({name: lambda name=name: calls.append(name) for name in ("ours", "a", "b")})
    race.between = lambda: calls.append("|")
    seconds = race.run(Benchmark(), budget=0.0, least=30, most=50)
    assert set(seconds) == {"ours", "a", "b"}
    assert [len(times) for times in race.seconds.values()] == [30] * 3 and len(race.fma) == 30
    rounds = "".join(calls).replace("ours", "o").split("|")[1:]
    assert all(sorted(order) == ["a", "b", "o"] for order in rounds)
    assert len(set(rounds)) == 6  # all orders occur


def test_rounds_fill_the_budget() -> None:
    from race import Race

    race = Race({"ours": lambda: None})
    race.run(Benchmark(), budget=100.0, least=2, most=7)
    assert len(race.fma) == 7


def test_a_race_is_off_where_results_differ() -> None:
    from race import Race

    def agree(results: dict[str, object]) -> None:
        assert results["a"] == results["ours"]

    race = Race({"ours": lambda: 1, "a": lambda: 2}, agree)
    with pytest.raises(AssertionError):
        race.run(Benchmark(), budget=0.0, least=2, most=2)
    assert not race.seconds


# ------------------------------------------------------------------- how well near-duplicates are found


def test_planted_copies_are_of_their_originals() -> None:
    from dedup_quality import KINDS, plant

    images = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32), np.uint8)
    planted = plant(images)
    assert len(planted.images) == 200 + 2 * len(KINDS)
    for kind, name in enumerate(KINDS):
        copies, originals = planted.couples(kind)
        assert len(copies) == 2 and (planted.kind[originals] == -1).all()
        same = (planted.images[copies] == planted.images[originals]).all()
        assert same == (name == "exact")
        assert np.array_equal(planted.images[originals], images[planted.original[originals]])
    copies, originals = planted.couples(list(KINDS).index("shifted 1"))
    for copy, original in zip(planted.images[copies], planted.images[originals], strict=True):
        inner = copy[:, 1:-1, 1:-1]
        moved = [
            original[:, 1 + y : 31 + y, 1 + x : 31 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)
        ]
        assert sum(np.array_equal(inner, other) for other in moved) == 1


def test_removals_are_judged_by_what_they_match() -> None:
    from dedup_quality import KINDS, Planted, judge

    #                     an original, its copy, one like it, its copy, found by 1 bit
    codes = np.array([[0, 0], [0, 0], [0, 0], [7, 0], [6, 0]])
    planted = Planted(np.zeros((5, 3, 32, 32), np.uint8), np.array([0, 0, 1, 2, 2]), np.full(5, -1))
    planted.kind[[1, 4]] = 0, 1
    removed, wrong, found = judge(planted, codes, 0)
    assert (removed, wrong.tolist(), found[:2]) == (2, [[2, 0]], [1, 0])
    removed, wrong, found = judge(planted, codes, 1)
    assert (removed, wrong[:, 0].tolist(), found[:2]) == (3, [2], [1, 1])
    assert len(found) == len(KINDS)
