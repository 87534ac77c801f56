from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcgan_fast.dedup.codes_log import CodesLog
from dcgan_fast.errors import UserError

KEY, OTHER = b"k" * 32, b"o" * 32


def codes(rows: int, words: int = 2) -> torch.Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (rows, words))


def test_what_was_appended_is_read_again(tmp_path: Path) -> None:
    path, batches = tmp_path / "log", [codes(3), codes(0), codes(70), codes(1)]
    log = CodesLog(path, KEY, 2)
    assert len(log) == 0 and log.codes.shape == (0, 2)
    for number, batch in enumerate(batches):
        log.append(batch, {0: f"ünreadable {number}"} if len(batch) else {})
    log.close()
    for again in (log, CodesLog(path, KEY, 2)):
        assert len(again) == 74
        assert torch.equal(again.codes, torch.cat(batches))
        assert again.notes == {0: "ünreadable 0", 3: "ünreadable 2", 73: "ünreadable 3"}
    assert torch.equal(again.codes, torch.cat(batches))  # asked for twice
    assert CodesLog.is_of(path, KEY) and not CodesLog.is_of(path, OTHER)
    assert not CodesLog.is_of(tmp_path / "none", KEY)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 5), max_size=5), words=st.integers(1, 3), data=st.data())
def test_a_log_cut_anywhere_keeps_its_whole_batches(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], words: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    log, ends = CodesLog(path, KEY, words), [path.stat().st_size]
    batches = [codes(size, words) for size in sizes]
    for batch in batches:
        log.append(batch, {len(batch): "note"})
        ends.append(path.stat().st_size)
    log.close()
    cut = data.draw(st.integers(ends[0], ends[-1]))
    with open(path, "r+b") as file:
        file.truncate(cut)
    whole = sum(end <= cut for end in ends) - 1
    again = CodesLog(path, KEY, words)
    assert torch.equal(again.codes, torch.cat([codes(0, words), *batches[:whole]]))
    for batch in batches[whole:]:  # and goes on
        again.append(batch, {})
    again.close()
    assert torch.equal(CodesLog(path, KEY, words).codes, log.codes)


def test_a_damaged_batch_ends_the_log(tmp_path: Path) -> None:
    path, first = tmp_path / "log", codes(4)
    log = CodesLog(path, KEY, 2)
    log.append(first, {})
    log.append(codes(4), {})
    log.append(codes(4), {})
    log.close()
    content = bytearray(path.read_bytes())
    content[-100] ^= 1  # in the second
    path.write_bytes(content)
    assert torch.equal(CodesLog(path, KEY, 2).codes, first)


@pytest.mark.parametrize(("key", "words"), [(OTHER, 2), (KEY, 1)])
def test_a_log_of_something_else_is_begun_anew(tmp_path: Path, key: bytes, words: int) -> None:
    log = CodesLog(tmp_path / "log", KEY, 2)
    log.append(codes(4), {})
    log.close()
    assert len(CodesLog(tmp_path / "log", key, words)) == 0
    assert len(CodesLog(tmp_path / "log", KEY, 2)) == 0


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for content in (b"a letter", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is there already and is no log of codes"):
            CodesLog(path, KEY, 2)
        assert path.read_bytes() == content


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        CodesLog(tmp_path / "none" / "log", KEY, 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    log = CodesLog(tmp_path / "log", KEY, 2)
    log.close()
    with open("/dev/full", "wb", buffering=0) as log._file, pytest.raises(UserError, match="space"):
        log.append(codes(1), {})
    assert len(log) == 0


def test_words_are_little_endian(tmp_path: Path) -> None:
    log = CodesLog(tmp_path / "log", KEY, 1)
    log.append(torch.tensor([[1]]), {})
    assert (tmp_path / "log").read_bytes().endswith(np.array([1], "<i8").tobytes())
