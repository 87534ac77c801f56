"""Switches that hold where they should, and memory that is kept, bounded, never shared and given back."""

from __future__ import annotations

import copy
import dataclasses
import io
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from dcgan_fast import _C, backends, fuse
from dcgan_fast.backends import cpu
from dcgan_fast.functional import conv_act, conv_bn_act

SWITCHES = ("winograd", "amx")
MB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    limit = cpu.memory_limit
    cpu.release_memory()
    with cpu.flags():
        yield
    cpu.memory_limit = limit
    cpu.release_memory()


def empty(
    *size: int,
    dtype: torch.dtype = torch.uint8,
    format: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    return torch.ops.dcgan_fast._empty_maps(size, dtype=dtype, memory_format=format)


def some_maps() -> torch.Tensor:
    maps = empty(8, 16, 32, 32, dtype=torch.float32, format=torch.channels_last)
    return maps.copy_(torch.randn(8, 16, 32, 32))


# ---------------------------------------------------------------- switches


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_on_until_turned_off(name):
    assert getattr(cpu, name) is True
    setattr(cpu, name, False)
    assert getattr(cpu, name) is False
    assert [other for other in SWITCHES if getattr(cpu, other)] == [
        s for s in SWITCHES if s != name
    ]


@pytest.mark.parametrize("value", [1, 0, None, "off", torch.tensor(True)])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_takes_nothing_but_a_bool(name, value):
    with pytest.raises(TypeError, match=f"backends.cpu.{name} must be True or False, got"):
        setattr(cpu, name, value)
    assert getattr(cpu, name) is True


def test_a_misspelt_switch_is_an_error():
    with pytest.raises(AttributeError, match="winogard"):
        cpu.winogard = False
    with pytest.raises(AttributeError, match="winogard"):
        _ = cpu.winogard
    with pytest.raises(TypeError, match="winogard"):
        cpu.flags(winogard=False)


def test_flags_hold_within_the_context_only():
    with cpu.flags(winograd=False, amx=True):
        assert (cpu.winograd, cpu.amx) == (False, True)
        with cpu.flags(winograd=True, amx=False):
            assert (cpu.winograd, cpu.amx) == (True, False)
        assert (cpu.winograd, cpu.amx) == (False, True)
    assert cpu.winograd and cpu.amx


def test_flags_end_with_an_exception_and_undo_what_the_body_set():
    with pytest.raises(KeyError), cpu.flags(winograd=False):
        cpu.amx = False
        raise KeyError
    assert cpu.winograd and cpu.amx


def test_flags_change_nothing_where_one_is_wrong():
    with pytest.raises(TypeError, match="backends.cpu.amx must be True or False, got 'no'"):
        with cpu.flags(winograd=False, amx="no"):  # type: ignore[arg-type]
            pytest.fail("the body ran")
    assert cpu.winograd


def test_flags_decorate_a_function():
    @cpu.flags(amx=False)
    def amx_inside() -> bool:
        return cpu.amx

    assert (amx_inside(), cpu.amx, amx_inside()) == (False, True, False)


def test_a_switch_holds_for_every_thread():
    cpu.winograd = False
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: cpu.winograd).result() is False
        pool.submit(setattr, cpu, "amx", False).result()
    assert cpu.amx is False


@pytest.mark.parametrize("name", [*SWITCHES, "adaptive", "memory_limit", "flags", "release_memory"])
def test_everything_is_documented(name):
    assert len(getattr(type(cpu), name).__doc__) > 60


# ---------------------------------------------------------------- memory_limit, memory_held


def test_the_limit_is_a_quarter_of_the_memory_by_default():
    assert cpu.memory_limit == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def test_the_limit_is_what_was_set():
    for limit in (0, 1, 3 * MB, 2**40, 2**80):
        cpu.memory_limit = limit
        assert cpu.memory_limit == min(limit, 2**63 - 1)


@pytest.mark.parametrize(
    "value, error, message",
    [
        (-1, ValueError, "at least 0, got -1"),
        (1.5, TypeError, "whole number of bytes, got 1.5"),
        ("1 GB", TypeError, "whole number of bytes, got '1 GB'"),
        (None, TypeError, "whole number of bytes, got None"),
    ],
)
def test_a_wrong_limit_is_refused(value, error, message):
    before = cpu.memory_limit
    with pytest.raises(error, match=f"backends.cpu.memory_limit must be (a )?{message}"):
        cpu.memory_limit = value
    assert cpu.memory_limit == before


def test_memory_held_adds_up():
    assert backends.MemoryHeld(1, 20, 300).total == 321
    with pytest.raises(dataclasses.FrozenInstanceError):
        cpu.memory_held().free_maps = 0  # type: ignore[misc]


def test_memory_of_maps_is_held_when_they_die_and_released_on_request():
    maps = empty(3 * MB)
    assert cpu.memory_held().free_maps == 0
    del maps
    assert cpu.memory_held().free_maps == cpu.memory_held().total == 3 * MB
    cpu.release_memory()
    assert cpu.memory_held().total == 0


def test_a_lower_limit_frees_at_once_the_oldest_first():
    maps = [empty(n * MB) for n in (3, 5, 4)]
    addresses = [m.data_ptr() for m in maps]
    while maps:
        del maps[0]
    assert cpu.memory_held().free_maps == 12 * MB
    cpu.memory_limit = 9 * MB
    assert cpu.memory_held().free_maps == 9 * MB
    maps = [empty(n * MB) for n in (5, 4)]
    assert [m.data_ptr() for m in maps] == addresses[1:]
    while maps:
        del maps[0]
    assert cpu.memory_held().free_maps == 9 * MB
    cpu.memory_limit = 4 * MB
    assert cpu.memory_held().free_maps == 4 * MB


def test_a_limit_of_0_keeps_nothing():
    kept = empty(2 * MB)
    cpu.memory_limit = 0
    maps = empty(2 * MB).fill_(7)
    del kept
    assert cpu.memory_held().free_maps == 0
    cpu.memory_limit = 8 * MB
    assert maps.eq(7).all()
    del maps  # was never the pool's
    assert cpu.memory_held().free_maps == 0


# ---------------------------------------------------------------- the pool of maps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_a_map_is_laid_out_as_torch_empty_does(dtype, format):
    theirs = torch.empty(4, 32, 16, 18, dtype=dtype, memory_format=format)
    ours = empty(4, 32, 16, 18, dtype=dtype, format=format)
    assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
    assert ours.untyped_storage().nbytes() == theirs.untyped_storage().nbytes()
    assert ours.data_ptr() % 64 == 0
    assert ours.untyped_storage().resizable()


def test_a_map_may_be_empty():
    assert empty(0, 3).shape == (0, 3)


def test_memory_is_used_again():
    for size in (64 << 10, 100_000, MB, 33 * MB):
        addresses = set()
        for _ in range(5):
            maps = empty(size)
            addresses.add(maps.data_ptr())
            del maps
        assert len(addresses) == 1, size


def test_small_tensors_are_left_to_the_c_library():
    maps = empty((64 << 10) - 1)
    del maps
    assert cpu.memory_held().total == 0


def test_small_maps_share_the_memory_of_a_large_one_and_give_it_back():
    large = empty(8 * MB)
    address = large.data_ptr()
    del large
    small = [empty(2 * MB).fill_(i) for i in range(4)]
    assert sorted(m.data_ptr() for m in small) == [address + 2 * MB * i for i in range(4)]
    assert cpu.memory_held().free_maps == 0
    assert all(m.eq(i).all() for i, m in enumerate(small))
    for i in (1, 3, 2, 0):  # every way to join: no neighbour free, one before, one after, both
        small[i] = None
    assert empty(8 * MB).data_ptr() == address


def test_a_small_map_does_not_pin_a_large_segment():
    large = empty(32 * MB)
    del large
    small = empty(MB // 2)
    assert cpu.memory_held().free_maps == 32 * MB
    cpu.release_memory()
    assert cpu.memory_held().free_maps == 0
    assert small.fill_(1).all()


def test_the_rest_of_a_segment_goes_alone():
    large = empty(32 * MB)
    address = large.data_ptr()
    del large
    parts = [empty(8 * MB).fill_(i) for i in range(4)]
    assert [m.data_ptr() - address for m in parts] == [8 * MB * i for i in range(4)]
    parts[1] = None
    cpu.release_memory()
    assert cpu.memory_held().free_maps == 0
    assert all(parts[i].eq(i).all() for i in (0, 2, 3))
    parts[0] = parts[2] = None  # no neighbours any more
    assert cpu.memory_held().free_maps == 16 * MB
    assert {empty(8 * MB).fill_(7).data_ptr() - address for _ in range(3)} <= {0, 16 * MB}
    assert parts[3].eq(3).all()


@pytest.mark.parametrize("releases", [0, 0.01])
def test_no_memory_is_handed_out_twice(releases):
    rng = random.Random(0)
    live: list[torch.Tensor] = []
    tags: list[int] = []
    for tag in range(1500):
        if len(live) < 25 and rng.random() < 0.52:
            live.append(empty(rng.randrange(1, 2 ** rng.randrange(6, 19)), dtype=torch.int64))
            live[-1].fill_(tag)
            tags.append(tag)
        elif live:
            i = rng.randrange(len(live))
            assert live[i].eq(tags[i]).all()
            live[i], tags[i] = live[-1], tags[-1]
            live.pop()
            tags.pop()
        if releases and rng.random() < releases:
            cpu.release_memory()
            assert cpu.memory_held().free_maps == 0
    assert all(m.eq(tag).all() for m, tag in zip(live, tags, strict=True))
    live.clear()
    assert cpu.memory_held().free_maps > MB
    cpu.release_memory()
    assert cpu.memory_held().free_maps == 0


def test_the_pool_adds_little_to_the_most_that_was_in_use():
    rng = random.Random(1)
    live: list[torch.Tensor] = []
    most = 0
    for _ in range(3000):
        if len(live) < 12 and rng.random() < 0.55:
            live.append(empty(4096 * rng.randrange(16, 2048)))
            in_use = sum(m.nbytes for m in live)
            most = max(most, in_use)
            slack = 64 << 10  # of each: too little to split off
            assert in_use + cpu.memory_held().free_maps <= 9 / 8 * (most + 12 * slack)
        elif live:
            live.pop(rng.randrange(len(live)))
    del live
    assert cpu.memory_held().free_maps <= 1.5 * most


def test_what_was_not_used_for_long_goes():
    large = empty(32 * MB)
    del large
    for _ in range(3000):
        maps = empty(128 << 10)
        del maps
    assert cpu.memory_held().free_maps < MB


@linux
def test_a_new_map_costs_no_page_faults():
    import resource

    def faults_of_a_map() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        empty(34 * MB).fill_(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    first = faults_of_a_map()
    assert first >= 17  # one for each huge page at least
    assert min(faults_of_a_map() for _ in range(3)) <= 2


@linux
def test_release_gives_the_memory_back_to_the_system():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    maps = [empty(n * MB).fill_(1) for n in (3, 30, 70)]
    assert resident() - before > 90 * MB
    del maps
    assert resident() - before > 90 * MB
    cpu.release_memory()
    assert resident() - before < 10 * MB


def test_memory_that_is_not_there_is_a_clear_error():
    with pytest.raises(
        torch.OutOfMemoryError, match="not enough memory for a feature map: [0-9]+ bytes"
    ):
        empty(1 << 50)
    assert empty(MB).fill_(1).all()


def test_storages_resize():
    maps = some_maps()
    contents = maps.clone()
    maps.untyped_storage().resize_(5 * maps.nbytes)
    assert torch.equal(maps, contents)
    maps.untyped_storage().resize_(100)  # out of the pool, and in again
    maps.untyped_storage().resize_(2 * contents.nbytes)
    maps.resize_(8, 16, 64, 64).zero_()
    del maps
    cpu.release_memory()
    assert cpu.memory_held().free_maps == 0


def test_maps_move_to_shared_memory():
    maps = some_maps()
    contents = maps.clone()
    assert maps.share_memory_().is_shared()
    assert cpu.memory_held().free_maps == contents.nbytes  # what they had
    some_maps().fill_(1)
    assert torch.equal(maps, contents)


def test_maps_are_saved_and_copied_as_any_tensor():
    maps = some_maps()
    file = io.BytesIO()
    torch.save(maps, file)
    file.seek(0)
    for copied in (
        pickle.loads(pickle.dumps(maps)),
        copy.deepcopy(maps),
        torch.load(file, weights_only=True),
    ):
        assert torch.equal(copied, maps) and copied.stride() == maps.stride()


@pytest.mark.parametrize(
    "view", [lambda m: m[2:], lambda m: m.numpy(), lambda m: m.untyped_storage()]
)
def test_a_view_keeps_the_memory(view):
    maps = some_maps()
    part = view(maps)
    before = pickle.dumps(part)
    del maps
    others = [some_maps() for _ in range(3)]
    assert pickle.dumps(part) == before
    del others


def test_maps_carry_gradients():
    maps = some_maps().requires_grad_()
    maps.square().sum().backward()
    assert torch.equal(maps.grad, 2 * maps.detach())


def test_maps_of_inference_mode_are_inference_tensors():
    with torch.inference_mode():
        assert empty(MB).is_inference()
    assert not empty(MB).is_inference()


def test_threads_share_the_pool():
    wrong: list[int] = []

    def work(tag: int) -> None:
        rng = random.Random(tag)
        for _ in range(150):
            live = [empty(rng.randrange(2**16, 2**19)).fill_(tag) for _ in range(3)]
            wrong.extend(tag for m in live if not m.eq(tag).all())
            if tag == 0:
                cpu.release_memory()

    threads = [threading.Thread(target=work, args=(tag,)) for tag in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    cpu.release_memory()
    assert cpu.memory_held().total == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_goes_on_with_memory_of_its_own():
    maps = some_maps()
    contents = maps.clone()
    many = [empty(64 << 10) for _ in range(2000)]
    many.clear()
    limit = cpu.memory_limit
    stop = threading.Event()

    def hold_the_lock() -> None:
        while not stop.is_set():
            cpu.memory_limit = limit  # looks through all that is free

    thread = threading.Thread(target=hold_the_lock)  # so that forks meet the pool at work
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(30)  # rather killed than hanging
                torch.set_num_threads(1)  # OpenMP does not survive a fork
                maps.add_(1)
                fine = torch.equal(maps, contents + 1) and empty(2 * MB).fill_(3).eq(3).all()
                cpu.release_memory()
                os._exit(0 if fine and cpu.memory_held().total == 0 else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()
    assert torch.equal(maps, contents)


def test_maps_may_outlive_the_interpreter():
    script = (
        "import atexit, torch, dcgan_fast\n"
        "make = lambda: torch.ops.dcgan_fast._empty_maps([1 << 20], dtype=torch.float32,"
        " memory_format=torch.contiguous_format)\n"
        "kept = make()\n"
        "torch.kept = kept\n"  # dies with the module, after ours
        "atexit.register(lambda: make().fill_(1))\n"
        "dcgan_fast.backends.cpu.release_memory()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),  # not the source folder, whose package has no compiled half
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- packed weights

ENGINES = [e for e in _C.convolution_engines() if "BF16" not in e]  # that one takes bfloat16 alone


@pytest.fixture(params=ENGINES)
def channels(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every engine in turn runs all that it can; the channels of an input that it serves."""
    _C._force_engine(request.param)
    yield 3 if request.param.startswith("thin") else 64
    _C._force_engine("")


def maps_of(channels: int, batch: int = 2) -> torch.Tensor:
    maps = torch.randn(batch, channels, 8, 8)
    return maps.to(memory_format=torch.channels_last)


def weight_of(channels: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(128, channels, 4, 4))


def conv(maps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return conv_act(maps, weight, stride=2, padding=1, activation="none")


def assert_right(maps: torch.Tensor, weight: torch.Tensor) -> None:
    """The forward pass and the gradient of the maps, which read the weight in different orders."""
    results = []
    for function, dtype in ((conv, torch.float32), (nn.functional.conv2d, torch.float64)):
        x = maps.detach().to(dtype).requires_grad_()
        args = (x, weight.detach().to(dtype))
        y = function(*args) if function is conv else function(*args, stride=2, padding=1)
        (dx,) = torch.autograd.grad(y.square().sum(), x)
        results.append((y.detach(), dx))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-4 * exact.abs().max())


def _optimiser_step(weight: nn.Parameter, fused: bool) -> None:
    weight.grad = torch.randn_like(weight)
    torch.optim.Adam([weight], lr=0.5, fused=fused).step()


def _in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.add_(1)


def _new_storage(weight: nn.Parameter) -> None:
    weight.data = torch.randn_like(weight)


def _load(weight: nn.Parameter) -> None:
    layer = nn.Module()
    layer.weight = weight
    layer.load_state_dict({"weight": torch.randn_like(weight)})


def _one_past_a_view(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight[5, 1, 2:].view(-1)[3].fill_(100)


WRITERS: dict[str, Callable[[nn.Parameter], object]] = {
    "in place": _in_place,
    "through a view": _one_past_a_view,
    "Adam": lambda w: _optimiser_step(w, fused=False),
    "fused Adam": lambda w: _optimiser_step(w, fused=True),  # leaves the version counter as it is
    "data in place": lambda w: w.data.mul_(2),
    "data clipped": lambda w: w.data.clamp_(-0.5, 0.5),
    "data exchanged": _new_storage,
    "data in another order": lambda w: setattr(
        w, "data", torch.randn_like(w.data).to(memory_format=torch.channels_last)
    ),
    "NumPy": lambda w: w.detach().numpy().__setitem__(slice(None), 0.25),
    "load_state_dict": _load,
    "shared memory": lambda w: w.data.share_memory_().mul_(3),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_change_of_the_weight_is_seen(channels, writer):
    maps, weight = maps_of(channels), weight_of(channels)
    assert_right(maps, weight)
    assert cpu.memory_held().packed_weights > 0  # the engine did run
    before = weight.detach().clone()
    WRITERS[writer](weight)
    assert not torch.equal(before, weight)
    assert_right(maps, weight)


@pytest.mark.parametrize(
    "writer", ["in place", "through a view", "fused Adam", "NumPy", "load_state_dict"]
)
def test_some_channels_of_a_weight_are_packed_once_and_anew_after_a_change(channels, writer):
    """As a layer with labels has them: another view of the weight in each call, with gaps in it."""
    maps, weight = maps_of(channels), weight_of(channels + 7)
    cpu.release_memory()
    with torch.no_grad():
        first = conv(maps, weight.split([channels, 7], 1)[0])
        packed = cpu.memory_held().packed_weights
        assert packed > 0
        assert torch.equal(conv(maps, weight.split([channels, 7], 1)[0]), first)
        assert cpu.memory_held().packed_weights == packed
    WRITERS[writer](weight)
    assert_right(maps, weight.split([channels, 7], 1)[0])


def test_no_write_stays_unseen_after_a_gradient(channels):
    maps, weight = maps_of(channels), weight_of(channels)
    for i in range(8):
        conv(maps, weight).square().mean().backward()
        weight.data.view(-1)[10_007 * (i + 1) % weight.numel()] = 100  # a single one, past autograd
        assert_right(maps, weight)


def test_a_weight_is_packed_once_and_anew_after_release(channels):
    maps, weight = maps_of(channels), weight_of(channels)
    first = conv(maps, weight)
    packed = cpu.memory_held().packed_weights
    unseen = None
    for i in range(
        7
    ):  # a single write that PyTorch does not see: what shows that the packing was used again
        place = weight.data.view(-1)[10_007 * (i + 1) % weight.numel()]
        kept = place.clone()
        place.fill_(100)
        if torch.equal(conv(maps, weight), first):
            unseen = place
            break
        place.copy_(kept)
    assert unseen is not None
    assert torch.equal(conv(maps.repeat(3, 1, 1, 1), weight)[:2], first)  # whatever the batch
    assert cpu.memory_held().packed_weights == packed
    cpu.release_memory()
    assert cpu.memory_held().packed_weights == 0
    assert not torch.allclose(conv(maps, weight), first)
    assert_right(maps, weight)


def test_a_pass_that_trains_a_weight_keeps_no_packing_but_reads_one(channels):
    maps, weight = maps_of(channels), weight_of(channels)
    statistics = [torch.ones(128), torch.zeros(128), torch.zeros(128), torch.ones(128)]

    def layer() -> torch.Tensor:
        return conv_bn_act(maps, weight, *statistics, training=True, stride=2, padding=1)

    first = layer()
    assert first.requires_grad
    assert cpu.memory_held().packed_weights == 0
    with torch.no_grad():
        torch.testing.assert_close(layer(), first)
    held = cpu.memory_held().packed_weights
    assert held > 0
    torch.testing.assert_close(layer(), first, rtol=0, atol=0)
    assert cpu.memory_held().packed_weights == held
    layer().sum().backward()
    assert cpu.memory_held().packed_weights == 0


def test_parts_of_one_weight_are_told_apart(channels):
    whole = weight_of(channels).detach()
    maps = maps_of(channels)
    for weight in (
        whole,
        whole[:64],
        whole[64:],
        whole.flip(2),
        whole[::2],
        whole[:, :, :2, :2],
        whole,
    ) * 2:
        assert_right(maps, weight)
    assert_right(maps, whole.transpose(2, 3))
    twins = torch.cat([whole[:64], whole[:64]])
    twins[64 + 7, 1, 2, 3] = 100
    assert_right(maps, twins[:64])
    assert_right(maps, twins[64:])


def test_engines_do_not_read_each_others_packings():
    maps, weight = maps_of(64), weight_of(64)
    try:
        for engine in ENGINES * 2:
            _C._force_engine(engine)
            assert_right(maps, weight)
    finally:
        _C._force_engine("")


def test_a_packing_goes_with_its_weight(channels):
    maps = maps_of(channels)
    kept = weight_of(channels)
    conv(maps, kept)
    alone = cpu.memory_held().packed_weights
    other = weight_of(channels)
    conv(maps, other)
    assert cpu.memory_held().packed_weights == 2 * alone
    del other
    assert cpu.memory_held().packed_weights == alone
    for _ in range(20):  # often at the same address
        assert_right(maps, weight_of(channels))
    assert cpu.memory_held().packed_weights == alone


def test_an_old_version_is_not_kept(channels):
    maps, weight = maps_of(channels), weight_of(channels)
    assert_right(maps, weight)
    held = cpu.memory_held().packed_weights
    for _ in range(3):
        _in_place(weight)
        conv(maps, weight)
        assert cpu.memory_held().packed_weights < held  # one direction only
        assert_right(maps, weight)
        assert cpu.memory_held().packed_weights == held


def test_packed_weights_are_bounded_the_longest_unused_go_first(channels):
    maps, weights = maps_of(channels), [weight_of(channels) for _ in range(3)]
    conv(maps, weights[0])
    one = cpu.memory_held().packed_weights
    cpu.memory_limit = 2 * one
    for weight in (weights[1], weights[0], weights[2]):
        conv(maps, weight)
    assert cpu.memory_held().packed_weights == 2 * one
    del weights[0]  # was used after weights[1], so it was still there
    assert cpu.memory_held().packed_weights == one
    cpu.memory_limit = one - 1
    assert cpu.memory_held().packed_weights == 0
    assert_right(maps, weights[1])
    assert cpu.memory_held().packed_weights == 0


def test_inference_tensors_are_read_anew(channels):
    with torch.inference_mode():
        maps, weight = maps_of(channels), torch.randn(128, channels, 4, 4)
        first = conv(maps, weight)
        weight.view(-1)[10_007 % weight.numel()] = 100
        assert not torch.allclose(conv(maps, weight), first)
    assert cpu.memory_held().packed_weights == 0


# ---------------------------------------------------------------- workspaces, and all together


def test_workspaces_are_kept_and_released(channels):
    maps, weight = maps_of(channels), weight_of(channels)
    conv(maps, weight)
    held = cpu.memory_held().workspaces
    assert held > 0
    conv(maps, weight)
    assert cpu.memory_held().workspaces == held
    cpu.release_memory()
    assert cpu.memory_held().total == 0
    assert_right(maps, weight)


def test_memory_may_be_released_while_kernels_run(channels):
    maps, weight = maps_of(channels, batch=8), weight_of(channels)
    expected = conv(maps, weight)
    stop = threading.Event()
    releases = 0

    def release() -> None:
        nonlocal releases
        while not stop.is_set():
            cpu.release_memory()
            releases += 1

    thread = threading.Thread(target=release)
    thread.start()
    try:
        while releases < 50:
            assert torch.equal(conv(maps, weight), expected)
    finally:
        stop.set()
        thread.join()


def test_a_release_during_a_kernel_frees_its_workspaces_when_it_is_done():
    maps = torch.randn(32, 64, 32, 32).to(memory_format=torch.channels_last)
    weight = weight_of(64)
    _C._force_engine(ENGINES[0])
    try:
        for _ in range(3):
            with ThreadPoolExecutor(1) as pool:
                result = pool.submit(conv, maps, weight)
                while cpu.memory_held().workspaces == 0:  # the kernel has them, so it runs
                    pass
                cpu.release_memory()
            assert cpu.memory_held().workspaces == 0
            assert torch.equal(result.result(), conv(maps, weight))
            cpu.release_memory()
    finally:
        _C._force_engine("")


def test_memory_is_flat_over_training_steps():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(16, 64, 4, 2, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(64, 16, 4, 2, 1),
        nn.Tanh(),
    )
    net = fuse(net).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(net.parameters())
    maps = torch.randn(8, 16, 32, 32).to(memory_format=torch.channels_last)
    held = []
    for _ in range(40):
        optimiser.zero_grad()
        (net(maps) - maps).square().mean().backward()
        optimiser.step()
        held.append(cpu.memory_held())
    assert held[2].free_maps > 0
    assert len(set(held[2:])) == 1


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_switches_rule_engines_out_from_the_next_call_on(dtype, transposed):
    maps = torch.randn(16, 256, 8, 8, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 4, 4, dtype=dtype)

    def engines() -> set[str]:
        return set(
            torch.ops.dcgan_fast._convolution_engines(
                maps, weight, [2, 2], [1, 1], [0, 0], transposed
            )
        )

    before = engines()
    with cpu.flags(winograd=False):
        assert not any("winograd" in name for name in engines())
    with cpu.flags(amx=False):
        assert not any("AMX" in name for name in engines())
    assert engines() == before


def test_results_are_right_when_switches_change_between_calls():
    maps, weight = maps_of(64), weight_of(64)
    for winograd in (True, False):
        for amx in (True, False):
            with cpu.flags(winograd=winograd, amx=amx):
                assert_right(maps, weight)


def test_an_adaptive_choice_is_right_whatever_it_tries():
    assert cpu.adaptive is False  # two runs are the same bits until it is asked for
    maps, weight = maps_of(64), weight_of(64)
    with cpu.flags(adaptive=True):
        for _ in range(40):  # more than the calls after which another engine has its turn
            assert_right(maps, weight)
        with cpu.flags(amx=False):
            assert_right(maps, weight)
    assert cpu.adaptive is False


NEW_PAGES = 0.2  # seconds that a first write to memory takes; kernels take milliseconds


def test_new_memory_decides_no_race():
    first_two = [[NEW_PAGES, NEW_PAGES]] * 2
    chosen = _C._race(first_two + [[0.004, 0.009]] * 30)
    assert sorted(chosen[:4]) == [0, 0, 1, 1]  # both run twice
    assert set(chosen[4:31]) == {0}


def test_a_race_forgets_a_bad_start_as_soon_as_it_is_run_better():
    chosen = _C._race([[NEW_PAGES, 0.009]] * 31 + [[0.004, 0.009]] * 32)
    assert set(chosen[4:31]) == {1}
    assert set(chosen[31:63]) == {0}  # tried again at the 32nd call, and kept


def test_one_interrupted_run_costs_no_race():
    usual = [0.004, 0.009]
    assert set(_C._race([usual] * 10 + [[NEW_PAGES, 0.009]] + [usual] * 20)[4:]) == {0}


def test_an_engine_that_stays_slower_loses_its_race():
    chosen = _C._race([[0.004, 0.009]] * 10 + [[0.012, 0.009]] * 20)
    assert set(chosen[4:10]) == {0}
    assert set(chosen[14:]) == {1}


def test_the_copy_engine_is_asked_for():
    assert backends.cuda.copy_engine is False  # until hardware has confirmed its kernels
    try:
        backends.cuda.copy_engine = True
        assert backends.cuda.copy_engine is True
        with pytest.raises(TypeError, match="copy_engine must be True or False, got 1"):
            backends.cuda.copy_engine = 1
    finally:
        backends.cuda.copy_engine = False


def test_cuda_switches_say_how_float32_is_multiplied():
    cuda = backends.cuda
    try:
        for follows in (True, False):
            torch.backends.cudnn.allow_tf32 = follows
            assert cuda.allow_tf32 is follows
            for value in (True, False):
                cuda.allow_tf32 = value
                assert cuda.allow_tf32 is value
            cuda.allow_tf32 = None
        assert cuda.strict_float32 == "tf32x3"
        cuda.strict_float32 = "fma"
        assert cuda.strict_float32 == "fma"
        with pytest.raises(TypeError, match="allow_tf32 must be True, False or None, got 1"):
            cuda.allow_tf32 = 1
        with pytest.raises(ValueError, match="must be 'tf32x3' or 'fma', got 'ieee'"):
            cuda.strict_float32 = "ieee"
        with pytest.raises(AttributeError):
            cuda.allow_tf23 = True
    finally:
        cuda.allow_tf32, cuda.strict_float32 = None, "tf32x3"
        torch.backends.cudnn.allow_tf32 = False
