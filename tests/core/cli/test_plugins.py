from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

from nequip_core.cli import plugins
from nequip_core.plugins.manager import KINDS, load_registry

TOY = {"toy": SimpleNamespace(NEQUIP_PLUGIN_API=1)}


def test_json_lists_everything_and_imports_no_torch():
    code = (
        "import sys; from nequip_core.cli.main import main; code = main(['plugins', '--json'])\n"
        "sys.exit('imported torch' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["schema"], found["api"]) == (1, 1)
    (core,) = [plugin for plugin in found["plugins"] if plugin["name"] == "core"]
    assert core["distribution"] == "nequip-core"
    assert core["records"]["models"] == ["nequip"]
    assert core["records"]["training"][0] == "strategy/single"
    assert list(core["records"]) == [kind.attribute for kind in KINDS]


def test_text_names_distributions_versions_and_records():
    text = plugins.as_text(load_registry(extra=TOY), ["nequip-allegro 0.8 is the published package"])
    assert "nequip-core 0." in text
    assert "matscipy, vesin" in text
    assert "plugin toy, API 1" in text
    assert "Note: nequip-allegro 0.8" in text


def test_disabled_plugins_are_listed(monkeypatch):
    monkeypatch.setenv("NEQUIP_DISABLE_PLUGINS", "toy")
    registry = load_registry(extra=TOY)
    assert "toy: left out by NEQUIP_DISABLE_PLUGINS" in plugins.as_text(registry, [])
    assert plugins.as_json(registry, [])["disabled"] == ["toy"]


def test_prints_text(capsys):
    assert plugins.run([]) == 0
    assert "nequip-core" in capsys.readouterr().out
