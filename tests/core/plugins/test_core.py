from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import pytest

from nequip_core.graph import Graph
from nequip_core.plugins import core
from nequip_core.plugins.manager import KINDS
from nequip_core.plugins.records import Ref


def refs() -> Iterator[Ref]:
    for kind in KINDS:
        for record in getattr(core, kind.hook)():
            if is_dataclass(record):
                values = [getattr(record, field.name) for field in fields(record)]
                yield from (value for value in values if isinstance(value, Ref))


@pytest.mark.parametrize("ref", sorted({ref.path for ref in refs()}))
def test_what_core_names_exists(ref):
    assert callable(Ref(ref).load())


@pytest.mark.parametrize("module", core.nequip_config_modules())
def test_config_modules_exist(module):
    importlib.import_module(module)


def test_inputs_of_targets_are_the_fields_of_graph():
    assert Graph._fields == core.GRAPH
    assert all(entry.inputs == Graph._fields for entry in core.nequip_export_targets())


@pytest.mark.parametrize("entry", list(core.nequip_models()), ids=lambda entry: entry.name)
def test_tiny_values_are_keys_of_the_model(entry):
    config = entry.config.load()(**entry.tiny)
    assert config.message_passing_layers() >= 0
