"""The library that tells which kernels a program launches, with a driver and a package that stand in for CUDA's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.programs.launched import Launched, watch

DRIVER = """
static char handles[8];
static int given, launches;
int cuModuleGetFunction(void **handle, void *module, const char *name) {
  if (!*name) return 500;
  *handle = handles + given++;
  return 0;
}
int cuLaunchKernel(void *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **arguments, void **extra) {
  return x == 2 && shared == 9 && arguments && !extra ? ++launches : -1;
}
"""
PACKAGE = """
int cuModuleGetFunction(void **, void *, const char *);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                   void **);
static void *f[3];
int load(void) {
  return cuModuleGetFunction(f, 0, "first") || cuModuleGetFunction(f + 1, 0, "second") ||
         cuModuleGetFunction(f + 2, 0, "third") || cuModuleGetFunction(f, 0, "") != 500;
}
static int launch(int k) { return cuLaunchKernel(f[k], 2, 3, 4, 5, 6, 7, 9, 0, f, 0); }
int launches(void) { return launch(2), launch(0), launch(2); }
"""
PROGRAM = """
import ctypes, sys
package = ctypes.CDLL(sys.argv[1])
assert package.load() == 0
if sys.argv[2] == "launches":
    assert package.launches() == 3
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A library that is linked to the driver, as those of AOTInductor's packages are."""
    driver, made = tmp_path / "libcuda.so.1", tmp_path / "package.so"
    for text, out, options in (
        (DRIVER, driver, ["-Wl,-soname,libcuda.so.1"]),
        (PACKAGE, made, [str(driver), "-Wl,-rpath,$ORIGIN"]),
    ):
        source = out.with_suffix(".c")
        source.write_text(text)
        subprocess.run(["cc", "-shared", "-fPIC", str(source), *options, "-o", str(out)], check=True)
    return made


@pytest.fixture
def launched(tmp_path: Path) -> Launched:
    return watch(tmp_path)


def run(launched: Launched, *command: str) -> None:
    done = subprocess.run(command, env=os.environ | launched.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_each_kernel_that_is_launched_is_a_line(launched: Launched, package: Path) -> None:
    run(launched, sys.executable, "-c", PROGRAM, str(package), "launches")
    assert launched.names == ["third", "first"]


def test_who_launches_nothing_writes_nothing(launched: Launched, package: Path) -> None:
    run(launched, sys.executable, "-c", PROGRAM, str(package), "loads")
    run(launched, "sh", "-c", "true")
    assert not launched.file.exists()
