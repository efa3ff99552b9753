from __future__ import annotations

import textwrap
from types import ModuleType

import pytest

from nequip_core.plugins import hookspecs
from nequip_core.plugins.manager import KINDS, load_registry


@pytest.mark.parametrize("kind", KINDS, ids=[kind.hook for kind in KINDS])
def test_the_example_in_the_docstring_is_a_working_plugin(kind):
    _, _, example = getattr(hookspecs, kind.hook).__doc__.partition("::\n")
    module = ModuleType("nequip_mine.plugin")
    exec(textwrap.dedent(example), vars(module))
    (mine,) = [info for info in load_registry(extra={"mine": module}).plugins if info.name == "mine"]
    assert mine.records[kind.attribute]
    assert not any(names for attribute, names in mine.records.items() if attribute != kind.attribute)


def test_every_hook_is_collected():
    hooks = [name for name, value in vars(hookspecs).items() if name.startswith("nequip_") and callable(value)]
    assert sorted(hooks) == sorted(kind.hook for kind in KINDS)
