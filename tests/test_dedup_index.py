"""The index of codes seen: the same answer as all at once, and files that survive."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcgan_fast import UserError
from dcgan_fast.dedup import DedupIndex, first_of_each


def random_codes(rows: int, words: int = 2, kinds: int | None = None) -> Tensor:
    kinds = max(rows // 2 if kinds is None else kinds, 1)
    return torch.randint(-(2**63), 2**63 - 1, (kinds, words))[torch.randint(kinds, (rows,))]


@settings(max_examples=50, deadline=None)
@given(
    batches=st.lists(st.integers(0, 3000), max_size=8),
    words=st.sampled_from([1, 2, 3, 5]),
    kinds=st.integers(1, 5000),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_batches_together_are_one_call(batches, words, kinds, threads, seed):
    torch.manual_seed(seed)
    codes = random_codes(sum(batches), words, kinds)
    index, before = DedupIndex(words), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        keep = [index.add(batch) for batch in codes.split(batches)]
    finally:
        torch.set_num_threads(before)
    expected = first_of_each(codes)
    assert torch.equal(torch.cat([*keep, expected[:0]]), expected)
    assert torch.equal(index.codes, codes[expected])
    assert len(index) == expected.sum()


def test_an_index_grows_from_nothing():
    codes = random_codes(300_000, kinds=200_000)
    index = DedupIndex()
    keep = [index.add(batch) for batch in codes.split(20_000)]
    assert torch.equal(torch.cat(keep), first_of_each(codes))
    assert not index.add(codes).any()


@pytest.mark.parametrize(
    "codes", [torch.zeros(50_000, 2).long(), torch.arange(50_000)[:, None] << torch.tensor([40, 0])]
)
def test_codes_may_be_alike(codes):
    index = DedupIndex()
    assert torch.equal(index.add(codes), first_of_each(codes))
    assert not index.add(codes).any()


def test_strided_batches():
    codes = torch.randint(3, (2, 400)).t()
    assert torch.equal(DedupIndex().add(codes), first_of_each(codes))
    assert torch.equal(DedupIndex(1).add(codes[::2, 1:]), first_of_each(codes[::2, 1:]))


def test_merging_is_adding():
    codes = random_codes(9000)
    left, right = DedupIndex(), DedupIndex()
    left.add(codes[:5000])
    right.add(codes[4000:])
    new = left.merge(right)
    assert torch.equal(left.codes, codes[first_of_each(codes)])
    assert len(new) == len(right) and 0 < new.sum() < len(right)
    assert not left.merge(left).any()


def test_copies_and_pickles_go_on_alone():
    codes = random_codes(9000)
    index = DedupIndex()
    index.add(codes[:5000])
    for other in (copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        assert torch.equal(other.add(codes), index_of(codes[:5000]).add(codes))
    assert len(index) == first_of_each(codes[:5000]).sum()


def index_of(codes: Tensor) -> DedupIndex:
    index = DedupIndex(codes.size(1))
    index.add(codes)
    return index


def _add_in_a_process(pickled: bytes, results) -> None:
    index = pickle.loads(pickled)
    results.put(index.add(index.codes.flip(0)).any().item())


def test_a_pickle_works_in_another_process():
    """Where codes hash otherwise."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    pickled = pickle.dumps(index_of(random_codes(3000)))
    process = context.Process(target=_add_in_a_process, args=(pickled, results))
    process.start()
    assert results.get(timeout=120) is False
    process.join()


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("words", [1, 2, 4])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, words):
    codes, path = random_codes(6000, words), tmp_path / "index"
    index = DedupIndex(words)
    for batch in codes.split(1000):
        index.add(batch)
        index.save(path)
        loaded = DedupIndex.load(path)
        assert loaded.words == words and torch.equal(loaded.codes, index.codes)
        index = random.Random(len(index)).choice([index, loaded])  # either goes on
    assert os.listdir(tmp_path) == ["index"]


def test_an_empty_index_is_saved_too(tmp_path: Path):
    DedupIndex(3).save(tmp_path / "index")
    assert len(DedupIndex.load(tmp_path / "index", words=3)) == 0


def test_a_save_writes_what_is_new(tmp_path: Path):
    path, index = tmp_path / "index", index_of(random_codes(4000, kinds=10**5))
    index.save(path)
    inode, size = path.stat().st_ino, path.stat().st_size
    index.save(path)
    assert path.stat().st_size == size
    new = index.add(random_codes(100, kinds=10**5)).sum().item()
    index.save(path)
    assert path.stat().st_ino == inode and path.stat().st_size == size + 40 + 16 * new


def test_a_file_that_somebody_else_wrote_is_replaced(tmp_path: Path):
    mine, theirs, path = index_of(random_codes(50)), index_of(random_codes(50)), tmp_path / "index"
    mine.save(path)
    theirs.save(path)
    mine.add(random_codes(10))
    mine.save(path)
    assert torch.equal(DedupIndex.load(path).codes, mine.codes)
    path.unlink()
    mine.save(path)
    assert torch.equal(DedupIndex.load(path).codes, mine.codes)


def three_saves(path: Path) -> tuple[list[int], list[Tensor]]:
    """Sizes of the file and codes after each."""
    index, sizes, codes = DedupIndex(), [], []
    for _ in range(3):
        index.add(random_codes(100))
        index.save(path)
        sizes.append(path.stat().st_size)
        codes.append(index.codes.clone())
    return sizes, codes


def test_a_truncated_file_offers_its_last_good_state(tmp_path: Path):
    path = tmp_path / "index"
    sizes, codes = three_saves(path)
    whole = path.read_bytes()
    for cut in (sizes[1] + 1, sizes[1] + 39, sizes[1] + 40, sizes[1] + 200, sizes[2] - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(
            UserError,
            match=rf"damaged after its first 2 saves, {len(codes[1])} codes: load\(..., recover=True\)",
        ):
            DedupIndex.load(path)
        assert path.read_bytes() == whole[:cut]
        index = DedupIndex.load(path, recover=True)
        assert torch.equal(index.codes, codes[1])
        index.add(random_codes(10))
        index.save(path)
        assert torch.equal(DedupIndex.load(path).codes, index.codes)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_noticed(tmp_path_factory, data):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("flip") / "index"
    sizes, codes = three_saves(path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(24, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    good = sum(place >= size for size in sizes)
    with pytest.raises(UserError, match=f"damaged after its first {good} saves"):
        DedupIndex.load(path)
    recovered = DedupIndex.load(path, recover=True)
    assert torch.equal(recovered.codes, codes[good - 1] if good else codes[0][:0])


def test_files_of_others_are_refused_untouched(tmp_path: Path):
    path = tmp_path / "index"
    index_of(random_codes(10)).save(path)
    good = path.read_bytes()
    for content, words, message in (
        (b"", None, "is no dedup index"),
        (b"PK" + bytes(100), None, "is no dedup index"),
        (good[:20], None, "is no dedup index"),
        (good[:16] + b"\2" + good[17:], None, "has version 2, this library reads version 1"),
        (good, 4, "has codes of 2 words, expected 4"),
        (good[:20] + bytes(4) + good[24:], None, "has codes of 0 words, expected at least one"),
        (good[:24], None, "damaged after its first 0 saves, 0 codes"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            DedupIndex.load(path, words=words)
        assert path.read_bytes() == content
    with pytest.raises(UserError, match="cannot read .*: No such file"):
        DedupIndex.load(tmp_path / "nothing")


def test_a_full_disk_leaves_the_last_save(tmp_path: Path, monkeypatch):
    path = tmp_path / "index"
    index = index_of(random_codes(100))
    index.save(path)
    before = path.read_bytes()
    index.add(random_codes(100))

    def full(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="cannot write .*: No space left on device"):
            index.save(path)
    assert path.read_bytes() == before
    index.save(path)
    assert torch.equal(DedupIndex.load(path).codes, index.codes)


def test_a_section_that_does_not_fit_is_taken_away(tmp_path: Path):
    path = tmp_path / "index"
    index = index_of(random_codes(100))
    index.save(path)
    before = path.read_bytes()
    index.add(random_codes(100_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20_000, limits[1]))
        with pytest.raises(UserError, match="cannot write .*: File too large"):
            index.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    index.save(path)
    assert torch.equal(DedupIndex.load(path).codes, index.codes)


def _add_and_save_forever(path: str, started) -> None:
    torch.manual_seed(1)
    index = DedupIndex()
    while True:
        index.add(random_codes(500, kinds=10**5))
        index.save(path)
        started.set()


def test_a_killed_process_loses_at_most_its_last_batch(tmp_path: Path):
    path, context = tmp_path / "index", multiprocessing.get_context("fork")
    for delay in (0.0, 0.013, 0.05):
        started = context.Event()
        process = context.Process(target=_add_and_save_forever, args=(str(path), started))
        process.start()
        assert started.wait(60)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kept = DedupIndex.load(path, recover=True).codes
        torch.manual_seed(1)
        index, batches = DedupIndex(), 0
        while len(index) < len(kept):
            index.add(random_codes(500, kinds=10**5))
            batches += 1
        assert torch.equal(index.codes, kept) and batches
        path.unlink()


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("words", [0, -1, 2.0, True, "2"])
def test_wrong_words_are_named(words):
    with pytest.raises(ValueError, match=r"DedupIndex\(\): 'words' must be a positive integer"):
        DedupIndex(words)


def test_wrong_codes_are_named():
    index = DedupIndex(2)
    with pytest.raises(
        TypeError, match=r"DedupIndex.add\(\): 'codes' must be int64, got torch.int32"
    ):
        index.add(torch.zeros(3, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match="'codes' must have 2 words, got 3"):
        index.add(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"'codes' must be \(N, words\)"):
        index.add(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"merge\(\): 'other' must have codes of 2 words, got 1"):
        index.merge(DedupIndex(1))
    with pytest.raises(ValueError, match="at most 2147483647 codes, got 2147483648 rows"):
        index.add(torch.zeros(1, 2, dtype=torch.int64).expand(2**31, 2))
    assert len(index) == 0


def test_the_ops_refuse_a_state_without_room():
    ops = torch.ops.dcgan_fast
    seen, count, codes = torch.zeros(2, 2).long(), torch.zeros(1).long(), random_codes(3)
    with pytest.raises(ValueError, match="no room for 3 codes more"):
        ops._dedup_index_add_(torch.zeros(8).int(), seen, count, codes)
    with pytest.raises(ValueError, match="'table' must be a power of two of int32"):
        ops._dedup_index_add_(torch.zeros(7).int(), seen, count, codes)
    with pytest.raises(ValueError, match="'count' must be at most the codes there is room for"):
        ops._dedup_index_fill_(torch.zeros(8).int(), seen, count + 3)
