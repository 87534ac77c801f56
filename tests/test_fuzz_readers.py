"""Changed files of every kind: the data or a UserError, in bounded time and memory, and nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

from readers import READERS, Reader  # noqa: E402

MORE_MEMORY = 3 << 30  # bytes of addresses that a reader may take, threads' stacks among them
INTERESTING = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\xff" * 8, b"9" * 12)

changes = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "put", "cut", "repeat", "remove"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, steps: list[tuple[str, float, int]]) -> bytes:
    """``content`` after some changes, each a kind, a place as a part of the length, and a value."""
    data = bytearray(content)
    for kind, part, value in steps:
        place = int(part * len(data))
        if kind == "cut":
            del data[place:]
        elif kind == "repeat":
            data[place:place] = data[place : place + value]
        elif kind == "remove":
            del data[place : place + value]
        elif kind == "put":
            put = INTERESTING[value % len(INTERESTING)]
            data[place : place + len(put)] = put
        elif data:
            data[place] = data[place] ^ 1 << value % 8 if kind == "flip" else value
    return bytes(data)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """What would take gigabytes for a number in a header fails instead."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(reader: Reader, examples: int) -> None:
    if reader.needs is not None:
        pytest.importorskip(reader.needs)
    seeds = reader.seeds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reader.beside(folder)
        for seed in seeds:
            assert reader(folder, seed) or reader is READERS["prepared"]  # whose time is another

        @settings(
            max_examples=examples,
            deadline=20_000,  # milliseconds
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.sampled_from(seeds), changes)
        def one(seed: bytes, steps: list[tuple[str, float, int]]) -> None:
            reader(folder, changed(seed, steps))

        with bounded_memory():
            one()


# An lmdb is mapped by a library in C that trusts it: see test_a_damaged_lmdb_...
IN_PROCESS = [name for name in READERS if name != "lsun"]


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_changed_file_is_read_or_refused(name: str) -> None:
    fuzz(READERS[name], 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_PROCESS)
def test_many_changed_files_are_read_or_refused(name: str) -> None:
    fuzz(READERS[name], 600)


class MakesAFolder:
    """A pickle of it does so wherever it is loaded with trust."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def malicious_files(harm: MakesAFolder) -> list[bytes]:
    def saved(save: Callable[..., None], *content: object, **named: object) -> bytes:
        file = io.BytesIO()
        save(file, *content, **named)
        return file.getvalue()

    array = np.array([harm], dtype=object)
    return [
        *(pickle.dumps(harm, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        pickle.dumps({b"data": harm, b"labels": [0]}),
        saved(lambda file: torch.save({"generator": {"main.0.weight": harm}}, file)),
        saved(
            lambda file: torch.save([harm], file, _use_new_zipfile_serialization=False),
        ),
        saved(np.save, array, allow_pickle=True),
        saved(np.savez, images=array, arr_0=array, generator=array, mean=array, allow_pickle=True),
    ]


@pytest.mark.parametrize("name", READERS)
def test_no_reader_runs_what_a_pickle_says(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    if reader.needs is not None:
        pytest.importorskip(reader.needs)
    folder, harmed = tmp_path / "files", tmp_path / "harmed"
    folder.mkdir()
    reader.beside(folder)
    for content in malicious_files(MakesAFolder(harmed)):
        reader(folder, content)  # an error but UserError passes
        assert not harmed.exists()


def test_these_pickles_are_harmful(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(MakesAFolder(tmp_path / "harmed")))
    assert (tmp_path / "harmed").exists()
