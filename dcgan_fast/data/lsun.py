"""LSUN's lmdb data bases: keys to encoded images. Needs the extra ``lmdb``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import UserError
from ..optional import optional_module
from .pictures import EncodedPictures, Pictures
from .source import Source, fingerprint, no_split

_DATA = "data.mdb"


def lmdb_folders(files: Sequence[str]) -> list[str]:
    """The folders that are lmdb data bases, of files as paths with slashes."""
    return [path.rpartition("/")[0] for path in files if path.rpartition("/")[2] == _DATA]


def lmdb_source(root: Path, folders: Sequence[Path], split: str) -> Source:
    """One data base, or LSUN's folder of them: ``<class>_train_lmdb`` and ``<class>_val_lmdb``.

    A single data base is taken whole whatever the split. Of several, each class is one label.
    """
    wanted = {"train": ("_train",), "test": ("_val", "_test"), "all": ("",)}[split]
    whole = list(folders) == [root]
    chosen = [f for f in folders if whole or f.name.removesuffix("_lmdb").endswith(wanted)]
    if not chosen:
        raise no_split(root, split, (folder.name for folder in folders))

    @contextmanager
    def open_lmdb() -> Iterator[Pictures]:
        lmdb = optional_module("lmdb", f"{root}: an lmdb data base", "lmdb")
        with ExitStack() as stack:
            bases = [stack.enter_context(_open(lmdb, folder)) for folder in chosen]
            keys = [_keys(lmdb, base) for base in bases]
            items = [(number, key) for number, of_base in enumerate(keys) for key in of_base]
            if not items:
                raise UserError(f"{root}: the lmdb data base is empty")

            def open_value(index: int) -> IO[bytes]:
                number, key = items[index]
                with bases[number].begin() as transaction:
                    return BytesIO(transaction.get(key))

            names = [key.decode("latin1") for _, key in items]
            classes = sorted({_class_name(folder) for folder in chosen})
            if len(classes) < 2:
                yield EncodedPictures(names, open_value)
                return
            of_folder = [classes.index(_class_name(folder)) for folder in chosen]
            labels = np.repeat(np.array(of_folder, np.int64), [len(of_base) for of_base in keys])
            yield EncodedPictures(names, open_value, labels, classes)

    files = [folder.relative_to(root) / _DATA for folder in chosen]
    return Source(root.name, str(root), fingerprint(root, files), open_lmdb)


def _class_name(folder: Path) -> str:
    name = folder.name.removesuffix("_lmdb")
    return re.sub(r"_(train|val|test)$", "", name)


def _open(lmdb: Any, folder: Path) -> Any:
    try:
        # No lock file: the data may lie on a read-only disk, and nobody writes it.
        base = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
    except (
        Exception
    ) as error:  # of what its first pages say some come as ValueError, OverflowError …
        raise UserError(f"{folder}: cannot be read as an lmdb data base: {error}") from error
    # Pages are looked up in a map of the file: beyond its end the process would be killed.
    expected = (base.info()["last_pgno"] + 1) * base.stat()["psize"]
    found = (folder / _DATA).stat().st_size
    if found < expected:
        base.close()
        raise UserError(
            f"{folder}: cannot be read as an lmdb data base: {expected} bytes expected, {found} found; "
            f"{_DATA} is cut short"
        )
    return base


def _keys(lmdb: Any, base: Any) -> list[bytes]:
    try:
        with base.begin() as transaction:
            return list(transaction.cursor().iternext(keys=True, values=False))
    except lmdb.Error as error:
        raise UserError(f"{base.path()}: cannot be read as an lmdb data base: {error}") from error
