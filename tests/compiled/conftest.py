"""Checks of compiled kernels. They need nvcc, cuobjdump and nvdisasm (the last two also come as
`pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`) and no GPU; without, none is collected."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for pytest's --import-mode=importlib

from compiled_harness import MISSING  # noqa: E402

collect_ignore_glob: list[str] = []
if MISSING:
    collect_ignore_glob.append("test_*.py")
    print(f"tests/compiled: not run, for there is no {', '.join(MISSING)}", file=sys.stderr)
