from __future__ import annotations

import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from nequip_core.cli import doctor
from nequip_core.plugins import manager
from nequip_core.plugins.hookspecs import hookimpl
from nequip_core.plugins.records import EngineEntry, Ref


@pytest.fixture
def report(monkeypatch):
    """Of a registry whose only engine says no."""
    monkeypatch.setitem(sys.modules, "engine", SimpleNamespace(check=lambda: (False, "its library is missing")))
    entry = EngineEntry(name="toy", target="ase", check=Ref("engine:check"), example="...")
    plugin = SimpleNamespace(NEQUIP_PLUGIN_API=1, nequip_engines=hookimpl(lambda: [entry]))
    registry = manager.load_registry(extra={"toy": plugin})
    only = dataclasses.replace(registry, engines={"toy": entry})
    return doctor.examine(only)


def test_report(report):
    assert report["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert report["devices"][0]["name"] == "cpu"
    assert len(report["devices"]) == 1 + torch.cuda.device_count()
    assert report["engines"] == [{"name": "toy", "target": "ase", "usable": False, "verdict": "its library is missing"}]
    assert {"core", "toy"} <= {plugin["name"] for plugin in report["plugins"]}
    assert json.loads(json.dumps(report)) == report


def test_an_engine_whose_library_is_missing(report):
    entry = EngineEntry(name="toy", target="ase", check=Ref("no_such_module.check:check"), example="...")
    registry = dataclasses.replace(manager.load_registry(), engines={"toy": entry})
    (engine,) = doctor.examine(registry)["engines"]
    assert not engine["usable"]
    assert "no_such_module" in engine["verdict"]


def test_text(report):
    report["versions"]["triton"] = None
    report["compilers"]["nvcc"] = None
    text = doctor.as_text(report)
    for line in ("  triton           not found", "  nvcc             not found"):
        assert line in text.splitlines()
    assert "not usable: its library is missing" in text


def test_compilers_are_found_or_not(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._compiler("nvcc") is None
    script = tmp_path / "nvcc"
    script.write_text("#!/bin/sh\necho 'nvcc: NVIDIA'\necho 'Cuda compilation tools, release 13.0'\n")
    script.chmod(0o755)
    assert doctor._compiler("nvcc") == {"path": str(script), "version": "Cuda compilation tools, release 13.0"}
