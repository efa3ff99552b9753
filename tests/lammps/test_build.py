"""The plugin: compiled once on first use, refused where it does not fit, one sentence where it can not be had."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from lammps_support import Ended, Lammps, Model, environment, fluid, mpirun, setup, write_data

from nequip_core.cli.main import main
from nequip_lammps import build, check, register
from nequip_lammps.folder import plugin_folder

ROOT = Path(__file__).parents[2]


def test_eight_processes_on_an_empty_cache(first_use: Ended, plugin: Path) -> None:
    """One compiles, the others wait; nothing else is left behind."""
    assert first_use.code == 0, first_use.text
    assert "types 1 = O, 2 = H" in first_use.text
    (made,) = (plugin / "lammps").iterdir()
    assert sorted(path.name for path in made.iterdir()) == [".lock", build.ABOUT, build.CORE, build.SHIM]
    assert made.name == build.key(build.wheel())
    assert json.loads((made / build.ABOUT).read_text())["fit"] == build.fit(build.wheel())


def test_the_start_of_lammps_imports_nothing_heavy() -> None:
    code = (
        "import sys; from nequip_lammps.folder import plugin_folder; print(plugin_folder());"
        "print([name for name in ('torch', 'numpy', 'nequip_core.graph', 'pluggy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.splitlines()[1] == "[]"


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, no_cache: Path, tmp_path: Path) -> None:
    """And LAMMPS starts all the same."""
    ended = mpirun(tmp_path, 2, "units metal\n", NEQUIP_CACHE_DIR=str(no_cache), CXX="no-such-compiler")
    assert ended.code == 0
    lines = [line for line in ended.text.splitlines() if line.startswith("nequip-lammps")]
    assert len(lines) == 1
    assert "there is no C++ compiler (no-such-compiler)" in lines[0]


def test_a_cache_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEQUIP_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(build.BuildError, match="set NEQUIP_CACHE_DIR to a folder that can"):
        build.fitting_plugin(build.wheel())


def test_code_that_does_not_compile(monkeypatch: pytest.MonkeyPatch, no_cache: Path, tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    shutil.copytree(build.wheel().headers, headers)
    (headers / "pair.h").write_text("#error broken\n")
    monkeypatch.setenv("NEQUIP_CACHE_DIR", str(no_cache))
    with pytest.raises(build.BuildError, match=r"can not compile the shim: .*broken"):
        build.fitting_plugin(build.Host("1", headers))
    (made,) = (no_cache / "lammps").iterdir()
    assert [path.name for path in made.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (
            "pair.h",
            "  virtual void init_style();",
            "  virtual void one_more() {}\n  virtual void init_style();",
            "Pair",
        ),
        ("pair.h", "  double cutforce; ", "  double one_more[2];\n  double cutforce; ", "Pair"),
        ("compute.h", "  char *id, *style;", "  double one_more[2];\n  char *id, *style;", "Compute"),
        ("atom.h", "  int nlocal, nghost;", "  double one_more;\n  int nlocal, nghost;", "another nlocal"),
    ],
)
def test_a_lammps_of_other_headers_is_refused(file: str, old: str, new: str, words: str, tmp_path: Path) -> None:
    """As an update of LAMMPS would change them; without the guard it crashes."""
    headers, plugin = tmp_path / "headers", tmp_path / "plugin"
    shutil.copytree(build.wheel().headers, headers)
    text = (headers / file).read_text()
    assert old in text
    (headers / file).write_text(text.replace(old, new, 1))
    build._compile_into(_made(plugin), build.Host("other", headers), (build.SHIM,))
    (tmp_path / "in.lammps").write_text(
        "plugin load plugin/nequipplugin.so\nregion box block 0 1 0 1 0 1\ncreate_box 1 box\npair_style nequip\n"
    )
    binary = Path(build.wheel().headers).parents[1] / "lmp"
    done = subprocess.run(
        ["mpirun", "-np", "2", str(binary), "-in", "in.lammps"],
        cwd=tmp_path,
        env=environment(LD_LIBRARY_PATH=str(Path(sys.prefix) / "lib"), LAMMPS_PLUGIN_PATH=""),  # of LAMMPS here
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    errors = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
    assert done.returncode != 0
    assert len(errors) == 1, done.stdout + done.stderr
    assert "was compiled for LAMMPS other and this is another one" in errors[0]
    assert words in errors[0]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_check_and_path(capsys: pytest.CaptureFixture[str], plugin: Path) -> None:
    assert main(["lammps", "check", "lmp", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["usable"]
    assert about["integers"] == "SMALLBIG"
    assert "MPICH" in about["mpi"]
    assert main(["lammps", "check"]) == 0
    assert "makes pair_style nequip" in capsys.readouterr().out
    assert main(["lammps", "path"]) == 0
    assert Path(capsys.readouterr().out.strip()) == Path(plugin_folder())
    usable, sentence = check.check()
    assert usable
    assert "the plugin is compiled" in sentence


def test_check_says_no(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["lammps", "check", "no-such-lmp"]) == 2
    assert "There is no executable no-such-lmp" in capsys.readouterr().err
    assert main(["lammps", "check", sys.executable]) == 2
    assert "did not answer as LAMMPS does" in capsys.readouterr().err
    plain = tmp_path / "lmp"
    plain.write_text(
        "#!/bin/sh\ncat <<END\nLarge-scale Atomic/Molecular Massively Parallel Simulator - 2 Aug 2023\n\n"
        "MPI v1.0: LAMMPS MPI STUBS\n\n-DLAMMPS_BIGBIG\n\nInstalled packages:\n\nKSPACE MANYBODY\n\n"
        "List of individual style options\nEND\n"
    )
    plain.chmod(0o755)
    assert main(["lammps", "check", str(plain)]) == 3
    captured = capsys.readouterr()
    assert "LAMMPS 2 Aug 2023 has no PLUGIN package" in captured.err
    assert "BIGBIG" in captured.out


def test_build_for_another_lammps(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: Path
) -> None:
    """Of a prefix that has headers and an executable; the core is not compiled again for the test."""
    core = build.cache() / build.key(build.wheel()) / build.CORE
    monkeypatch.setattr(build, "_compile_core", lambda out: shutil.copy(core, out))
    prefix = tmp_path / "prefix"
    (prefix / "include").mkdir(parents=True)
    (prefix / "include" / "lammps").symlink_to(build.wheel().headers)
    out = tmp_path / "plugin"
    assert main(["lammps", "build", "--lammps", str(prefix), "--output", str(out)]) == 2
    assert "There is no executable lmp in" in capsys.readouterr().err
    assert main(["lammps", "build", "--lammps", str(prefix), "--lmp", "lmp", "--output", str(out)]) == 0
    assert f"export LAMMPS_PLUGIN_PATH={out}" in capsys.readouterr().err
    about = json.loads((out / build.ABOUT).read_text())
    assert about["version"] == "22 Jul 2025 - Update 4"
    assert main(["lammps", "build", "--lammps", str(tmp_path)]) == 2
    assert "has no headers of LAMMPS" in capsys.readouterr().err


def test_the_plugin_of_a_binary_wheel_goes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_cache: Path
) -> None:
    """Where it fits; else it is left alone."""
    monkeypatch.setenv("NEQUIP_CACHE_DIR", str(no_cache))
    monkeypatch.setattr(build, "BUNDLED", tmp_path)
    (tmp_path / build.ABOUT).write_text(json.dumps({"fit": build.fit(build.wheel())}))
    assert build.fitting_plugin(build.wheel()) == tmp_path
    assert "the plugin is in the wheel" in check.check()[1]
    assert not no_cache.exists()
    monkeypatch.setattr(build, "_compile_shim", lambda host, out: out.touch())
    (tmp_path / build.ABOUT).write_text(json.dumps({"fit": "another"}))
    assert build.fitting_plugin(build.wheel()) == no_cache / "lammps" / build.key(build.wheel())


def test_cmake_compiles_the_same_sources() -> None:
    text = (build.sources() / "CMakeLists.txt").read_text()
    for part, names in (("shim", build.SHIM_SOURCES), ("core", build.CORE_SOURCES)):
        there = {path.stem for path in (build.sources() / part).glob("*.cpp")}
        assert set(re.findall(rf"{part}/(\w+)\.cpp", text)) == set(names) == there


def test_register_in_a_lammps_that_loads_no_plugins(allegro: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", fluid(8, 6.0))
    with Lammps() as lammps:
        lammps.run("plugin unload pair nequip")
        with pytest.raises(Exception, match="Unrecognized pair style 'nequip'"):
            lammps.run(setup(data, allegro.compiled))
        lammps.run("clear")
    with Lammps() as lammps:
        register(lammps.it)
        lammps.run(setup(data, allegro.compiled) + "run 0")
        assert lammps.thermo("pe") < 0


def test_the_wheel_holds_sources_and_both_licences(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    shutil.copytree(ROOT / "packages" / "nequip-lammps", source, ignore=shutil.ignore_patterns("*.egg-info", "lib"))
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
        metadata = archive.read(next(name for name in inside if name.endswith("METADATA"))).decode()
    assert "License-Expression: MIT AND GPL-2.0-only" in metadata
    for name in ("licenses/LICENSES/MIT.txt", "licenses/LICENSES/GPL-2.0-only.txt"):
        assert any(path.endswith(name) for path in inside)
    ours = {str(path.relative_to(build.sources())) for path in build.sources().rglob("*.[ch]*")}
    assert {f"nequip_lammps/cpp/{name}" for name in ours} <= set(inside)
