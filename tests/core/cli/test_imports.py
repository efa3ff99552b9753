"""What a start costs before the first step, in modules and searches for garbage; seconds differ between machines."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

from nequip_core.cli.imports import imports

START = """\
import gc, json, sys
searches = []
gc.callbacks.append(lambda phase, info: searches.append(phase))
from nequip_core.cli.main import main
before = len(searches)
code = main(["train", "missing.yaml"])
found = {
    "code": code, "searches": len(searches) - before, "enabled": gc.isenabled(), "frozen": gc.get_freeze_count(),
    "modules": sorted({"nequip_core.cli.running", *sys.argv} & set(sys.modules))
}
print(json.dumps(found))
"""
NOT_NEEDED = ("tensorboard", "wandb", "e3nn", "nequip_allegro.model", "pandas", "sklearn", "tblite")
"""Imported by nothing of ours before a config asks for it."""


def test_the_start_of_a_training_imports_what_it_needs_and_searches_no_garbage(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START, *NOT_NEEDED], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    found = json.loads(done.stdout)
    assert found["code"] == 2
    assert found["modules"] == ["nequip_core.cli.running"]
    assert found["enabled"]
    assert found["frozen"] > 100_000
    # Without the pause it is more than a thousand; a few come before it and after it.
    assert found["searches"] < 200


def test_the_search_goes_on_as_it_was() -> None:
    assert gc.isenabled()
    with imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
