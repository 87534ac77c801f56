"""Coverage-guided fuzzing of one reader, with atheris: ``python tests/fuzz/fuzz_readers.py idx -max_total_time=60``.

What follows the reader's name is libFuzzer's. ``pip install atheris``; without it tests/test_fuzz_readers.py changes
the same files at random. A reader that does not come back with the data or a UserError ends the run, and the file that
did it is kept as crash-….
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dcgan_fast", "readers", "PIL", "zipfile", "yaml"]):
    from readers import READERS


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"{__doc__}\nReaders: {', '.join(READERS)}")
    reader = READERS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as seeds:
        folder = Path(work)
        reader.beside(folder)
        for number, seed in enumerate(reader.seeds()):
            Path(seeds, str(number)).write_bytes(seed)
        options = [
            sys.argv[0],
            "-timeout=20",
            "-rss_limit_mb=6000",
            "-max_len=20000",
            *sys.argv[1:],
        ]
        atheris.Setup([*options, seeds], lambda content: reader(folder, content))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
