"""Plants each fault of faults.py in a copy of the package and requires that a test fails; `nox -s mutants` calls it.

python tests/mutants/run.py [WORD ...]    only faults whose names hold one of the words
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults import FAULTS, Fault

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "packages" / "nequip-core" / "src" / "nequip_core"
PROCESSES = 2
TIMEOUT = 900.0  # seconds, for the tests of one fault on a busy machine


def main(words: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    start = time.perf_counter()
    tests = sorted({test for fault in chosen for test in fault.tests})
    with ThreadPoolExecutor(PROCESSES) as pool:
        sound = pool.submit(run, None, tests)
        problems = [problem for problem in pool.map(try_fault, chosen) if problem]
        code, output = sound.result()
        if code != 0:
            problems.append(f"The tests do not pass without any fault:\n{output}")
    print(f"{len(chosen)} faults, {len(problems)} problems, {time.perf_counter() - start:.0f} s")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems or not chosen else 0


def try_fault(fault: Fault) -> str | None:
    """What is wrong with a fault or its tests; None when a test failed, as it must."""
    start = time.perf_counter()
    text = (PACKAGE / fault.file).read_text()
    if text.count(fault.old) != 1:
        return f"{fault.name}: {fault.file} holds its text {text.count(fault.old)} times, expected once: {fault.old}"
    code, output = run(fault, fault.tests)
    seen = code == 1  # pytest's "some tests failed"; not an error of collection or of usage
    print(f"{'seen' if seen else 'NOT SEEN':8} {time.perf_counter() - start:4.0f} s  {fault.name}", flush=True)
    return None if seen else f"{fault.name}: pytest ended with {code} on {' '.join(fault.tests)}\n{output}"


def run(fault: Fault | None, tests: Iterable[str]) -> tuple[int, str]:
    """Exit code and last lines of pytest on a copy of the package with a fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PACKAGE.name
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
        if fault is not None:
            file = copy / fault.file
            file.write_text(file.read_text().replace(fault.old, fault.new))
        # Before the installed package on the path; commands that tests start inherit it.
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        found = subprocess.run(
            [sys.executable, "-P", "-c", "import nequip_core; print(nequip_core.__path__[0])"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        if Path(found) != copy:
            raise SystemExit(f"Python imports nequip_core from {found}, expected the copy in {folder}.")
        command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
        try:
            done = subprocess.run(
                [*command, *(str(TESTS / test) for test in tests)],
                env=environment,
                cwd=TESTS.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=TIMEOUT if fault else None,
            )
        except subprocess.TimeoutExpired:
            return -1, f"took longer than {TIMEOUT:g} s, so no test has failed"
        return done.returncode, "\n".join(done.stdout.splitlines()[-15:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
