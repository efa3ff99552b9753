"""A process has Triton's interpreter or its compiler, not both.

With TRITON_INTERPRET=1 the tests of the folder ``interpreted`` are collected and nothing else; without, everything
else, of which test_interpreted.py runs that folder in a process of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    collect_ignore = [path.name for path in HERE.glob("test_*.py")]
else:
    collect_ignore = ["interpreted"]
