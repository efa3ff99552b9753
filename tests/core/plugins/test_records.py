from __future__ import annotations

import math

import pytest

from nequip_core.errors import PluginError
from nequip_core.plugins.records import KernelEntry, ModelEntry, Ref, mistakes


def test_ref_loads_on_first_use():
    assert Ref("math:pi").load() == math.pi


@pytest.mark.parametrize("path", ["math", "math:", ":pi", ""])
def test_ref_must_name_an_object(path):
    with pytest.raises(PluginError, match="names no object"):
        Ref(path)


@pytest.mark.parametrize("path", ["math:tau_", "no_such_module:x"])
def test_ref_that_does_not_exist(path):
    with pytest.raises(PluginError, match=path):
        Ref(path).load()


def kernel(**changes):
    values = {
        "name": "x",
        "op": "y/1",
        "make": Ref("a:b"),
        "refuses": Ref("a:b"),
        "devices": frozenset({"cpu"}),
        "dtypes": frozenset({"float32"}),
        "derivatives": 2,
        "exportable": True,
    }
    return KernelEntry(**(values | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"devices": {"cpu"}},
        {"devices": frozenset({1})},
        {"derivatives": 3},
        {"make": "a:b"},
        {"libraries": "triton"},
        {"name": None},
    ],
)
def test_a_field_of_a_wrong_type_is_a_mistake(changes):
    (mistake,) = mistakes(kernel(**changes))
    assert mistake.startswith(next(iter(changes)))


def test_right_records_have_no_mistakes():
    assert not mistakes(kernel())
    assert not mistakes(kernel(libraries=("triton", "torch")))
    assert not mistakes(ModelEntry(name="x", config=Ref("a:b"), build=Ref("a:b"), from_published=Ref("a:b")))
    assert mistakes(ModelEntry(name="x", config=Ref("a:b"), build=Ref("a:b"), tiny=[("l_max", 1)]))
