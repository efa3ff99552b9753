"""What holds for the tree as a whole."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_path_of_somebodys_machine():
    # Written so that this file does not match itself.
    personal = re.compile(rb"(?<![\w.])/(home|root|Users|work|opt|mnt|tmp)/[\w.-]+")
    found = {
        f"{path.relative_to(ROOT)}: {match.group().decode()}"
        for path in tracked()
        for match in personal.finditer(path.read_bytes())
        if b"\0" not in path.read_bytes()[:8000]
    }
    assert not found


def test_no_tracked_file_is_large():
    assert [path.name for path in tracked() if path.stat().st_size > 1_000_000] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "packages")))
def test_every_module_and_public_name_has_a_docstring(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    nodes = [node for node in nodes if not node.name.startswith("_")]
    nodes += [inner for node in nodes if isinstance(node, ast.ClassDef) for inner in node.body if named(inner)]
    lacking = [node.name for node in nodes if not ast.get_docstring(node)]
    assert ast.get_docstring(tree) or not path.read_text().strip(), f"{path.name} does not say what it is"
    assert not lacking


def named(node: ast.stmt) -> bool:
    """A public method."""
    return isinstance(node, ast.FunctionDef) and not node.name.startswith("_")


def sessions() -> set[str]:
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    decorators = {"session", "shared"}
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(d).split("(")[0].split(".")[-1] in decorators for d in node.decorator_list)
    }


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_sessions_that_are_named_exist(name: str):
    text = (ROOT / name).read_text()
    used = {word for line in re.findall(r"nox\S* (?:.*)-s ([\w ]+)", text) for word in line.split()}
    assert used, f"{name} names no session"
    assert used <= sessions()


def test_the_readme_does_all_set_up_in_one_line():
    for session in ("demo", "tests"):
        command = f"python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox -s {session}"
        assert command in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/demo/README.md"])
def test_links_between_files_resolve(name: str):
    path = ROOT / name
    targets = re.findall(r"\]\(([^)#]+)", path.read_text())
    assert [t for t in targets if not t.startswith("http") and not (path.parent / t).exists()] == []


def test_generated_pages_are_what_the_code_says():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def project(package: Path) -> str:
    return (package / "pyproject.toml").read_text()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_packages_version_is_in_its_changelog(package: Path):
    (version,) = re.findall(r'^version = "(.*)"', project(package), re.M)
    assert f"## {version}" in (package / "CHANGELOG.md").read_text()


def test_the_citation_names_the_version():
    (version,) = re.findall(r'^version = "(.*)"', project(ROOT / "packages" / "nequip-core"), re.M)
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_all_that_we_require_is_pinned(package: Path):
    requirements = set(re.findall(r'^    "([\w-]+)[><=]', project(package), re.M))
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    assert requirements - {path.name for path in PACKAGES} <= pinned


def test_papers_are_cited():
    for paper in ("2101.03164", "2204.05249", "2504.16068"):
        for name in ("README.md", "CITATION.cff", "docs/index.md"):
            assert paper in (ROOT / name).read_text(), f"{name} does not cite {paper}"
