from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nequip_core.errors import PluginError
from nequip_core.plugins import core, manager
from nequip_core.plugins.hookspecs import hookimpl
from nequip_core.plugins.manager import Source, build_registry, discover, find, load_registry
from nequip_core.plugins.records import CommandEntry, ModelEntry, Ref

MODEL = ModelEntry(name="toy", config=Ref("toy:Config"), build=Ref("toy:build"))
Installer = Callable[..., Path]


def plugin(api: Any = 1, **hooks: Callable[[], Any]) -> SimpleNamespace:
    """A plugin in code: hooks by name, marked as implementations."""
    for function in hooks.values():
        hookimpl(function)
    return SimpleNamespace(NEQUIP_PLUGIN_API=api, **hooks)


def source(name: str, given: Any, *, requires: tuple[str, ...] = (), distribution: str = "") -> Source:
    return Source(
        name=name,
        distribution=distribution or f"nequip-{name}",
        version="2.5",
        module=f"nequip_{name}.plugin",
        requires=requires,
        load=lambda: given,
    )


CORE = Source(
    name="core",
    distribution="nequip-core",
    version="0.1.0",
    module="nequip_core.plugins.core",
    requires=(),
    load=lambda: core,
)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    """Puts a distribution with metadata and one module onto sys.path."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(distribution: str, code: str, *, plugin: str | None, requires: str = "") -> Path:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{module}-2.5.dist-info"
        info.mkdir()
        requirement = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.5\n{requirement}")
        entry = f"[nequip.plugins]\n{plugin} = {module}\n" if plugin else "[nequip.extension]\nx = y\n"
        (info / "entry_points.txt").write_text(entry)
        return tmp_path

    return write


def refusal(given: Any, **options: Any) -> str:
    with pytest.raises(PluginError) as caught:
        build_registry([CORE, source("toy", given, **options)])
    return str(caught.value)


def test_core_comes_through_its_own_hooks():
    registry = load_registry()
    assert "nequip" in registry.models
    assert {"matscipy", "vesin"} <= set(registry.neighbor_lists)
    assert "nequip.convolution/1/reference" in registry.kernels
    assert registry.training["loss", "huber"].make == Ref("nequip_core.training.loss:huber")
    assert "nequip_core.config.groups" in registry.config_modules
    assert registry.versions()["nequip-core"]


def test_is_loaded_once_and_frozen():
    registry = load_registry()
    assert load_registry() is registry
    with pytest.raises(TypeError):
        registry.models["x"] = MODEL  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        registry.models = {}  # type: ignore[misc]
    assert load_registry(extra={"toy": plugin(nequip_models=lambda: [MODEL])}).models["toy"] is MODEL
    assert "toy" not in load_registry().models


def test_an_installed_distribution_is_found(install: Installer):
    install(
        "nequip-toy",
        """
        from nequip_core.plugins.hookspecs import hookimpl
        NEQUIP_PLUGIN_API = 1

        @hookimpl
        def nequip_config_modules():
            return ("nequip_toy.groups",)
        """,
        plugin="toy",
        requires="nequip-core<1,>=0.1",
    )
    registry = build_registry(discover())
    (toy,) = [info for info in registry.plugins if info.name == "toy"]
    assert (toy.distribution, toy.version, toy.module, toy.requires) == ("nequip-toy", "2.5", "nequip_toy", "<1,>=0.1")
    assert toy.records["config_modules"] == ("nequip_toy.groups",)
    assert not toy.records["models"]
    assert [info.name for info in registry.plugins] == sorted(info.name for info in registry.plugins)


def test_an_import_that_fails_is_named(install: Installer):
    install("nequip-broken", "import does_not_exist", plugin="broken")
    with pytest.raises(
        PluginError, match=r"(?s)'broken' of nequip-broken 2\.5.*does_not_exist.*NEQUIP_DISABLE_PLUGINS=b"
    ):
        build_registry(discover())
    registry = build_registry(discover(), disabled=["broken"])
    assert registry.disabled == ("broken",)
    assert "broken" not in [info.name for info in registry.plugins]


def test_a_published_package_in_our_place_is_named(install: Installer):
    assert not manager.replaced_distributions()
    install("nequip-allegro", "", plugin=None)
    (note,) = manager.replaced_distributions()
    assert "nequip-allegro 2.5 is the published package" in note
    assert "pip install" in note


def test_ours_in_its_place_is_not(install: Installer):
    install("nequip-allegro", "NEQUIP_PLUGIN_API = 1", plugin="allegro")
    assert not manager.replaced_distributions()


def test_two_plugins_with_one_model_are_both_named():
    one, two = (plugin(nequip_models=lambda: [MODEL]) for _ in range(2))
    with pytest.raises(PluginError) as caught:
        build_registry([CORE, source("one", one), source("two", two)])
    for part in ("'toy'", "nequip-one 2.5", "nequip-two 2.5", "NEQUIP_DISABLE_PLUGINS=two"):
        assert part in str(caught.value)


def test_a_duplicate_of_core_suggests_to_leave_out_the_other():
    given = plugin(nequip_models=lambda: [dataclasses.replace(MODEL, name="nequip")])
    with pytest.raises(PluginError, match="NEQUIP_DISABLE_PLUGINS=zoo"):
        build_registry([CORE, source("zoo", given)])
    with pytest.raises(PluginError, match="NEQUIP_DISABLE_PLUGINS=allegro"):
        build_registry([CORE, source("allegro", given)])


def test_two_distributions_with_one_plugin_name_are_both_named():
    sources = [CORE, source("toy", plugin(), distribution="a"), source("toy", plugin(), distribution="b")]
    with pytest.raises(PluginError, match=r"'toy': a 2\.5 and b 2\.5"):
        build_registry(sources)
    assert build_registry(sources, disabled=["toy"]).disabled == ("toy",)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (plugin(nequip_model=lambda: ()), ["'nequip_model' is no hook", "Did you mean 'nequip_models'?"]),
        (SimpleNamespace(NEQUIP_PLUGIN_API=1, nequip_models=lambda: ()), ["not marked with @hookimpl"]),
        (SimpleNamespace(), ["does not state", "NEQUIP_PLUGIN_API = 1"]),
        (plugin(api=2), ["written for plugin interface 2", "nequip-core 0.1.0 has 1", "pip install"]),
        (plugin(nequip_models=lambda: [{"name": "x"}]), ["nequip_models gave {'name': 'x'}", "expected ModelEntry"]),
        (plugin(nequip_models=lambda: None), ["nequip_models must return or yield ModelEntry", "NoneType"]),
        (plugin(nequip_models=lambda: 1 / 0), ["ZeroDivisionError"]),
        (plugin(nequip_models=lambda: [MODEL, MODEL]), ["'toy' twice"]),
        (plugin(nequip_models=lambda config: [MODEL]), ["hooks take no argument"]),
        (plugin(nequip_config_modules=lambda: "toy.groups"), ["returned the string 'toy.groups'"]),
        (
            plugin(nequip_commands=lambda: [CommandEntry(name="x", summary="y", run="a:b")]),  # type: ignore[arg-type]
            ["run is 'a:b'", "Ref"],
        ),
        (plugin(nequip_models=lambda: [ModelEntry(name="x", config=Ref("a"), build=Ref("a:b"))]), ["names no object"]),
    ],
)
def test_what_is_wrong_stops_with_cause_and_way_out(given: Any, expected: list[str]):
    message = refusal(given)
    for part in ("plugin 'toy' of nequip-toy 2.5", "NEQUIP_DISABLE_PLUGINS=toy", *expected):
        assert part in message


@pytest.mark.parametrize("text", ["nequip-core>=0.2,<1", "Nequip_Core<0.1"])
def test_another_version_of_core_is_refused(text: str):
    message = refusal(plugin(), requires=("numpy", text))
    assert "nequip-core 0.1.0 is installed" in message
    assert "pip install" in message


@pytest.mark.parametrize("text", ["nequip-core>=0.1,<1", "nequip-core", 'nequip-core>=9; extra == "test"', "numpy>99"])
def test_a_range_that_holds_core_is_accepted(text: str):
    assert build_registry([CORE, source("toy", plugin(), requires=(text,))]).plugins[1].name == "toy"


def test_a_development_version_of_core_lies_in_the_range():
    development = dataclasses.replace(CORE, version="0.2.0.dev3")
    assert build_registry([development, source("toy", plugin(), requires=("nequip-core>=0.1,<1",))])


@pytest.mark.parametrize(
    ("names", "expected"), [("toyy", "Did you mean 'toy'"), ("core", "can not be left out"), ("toy,zoo", "'zoo'")]
)
def test_disabled_names_must_exist(names: str, expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEQUIP_DISABLE_PLUGINS", names)
    with pytest.raises(PluginError, match=expected):
        load_registry(extra={"toy": plugin()})


def test_disabled_plugins_are_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEQUIP_DISABLE_PLUGINS", " toy ,")
    registry = load_registry(extra={"toy": plugin(nequip_models=lambda: [MODEL])})
    assert "toy" not in registry.models
    assert registry.disabled == ("toy",)


def test_without_core_the_installation_is_broken():
    with pytest.raises(PluginError, match="Reinstall nequip-core"):
        build_registry([source("toy", plugin())])


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(PluginError, match=r"There is no model 'nequp'.* Did you mean 'nequip'"):
        find(load_registry().models, "nequp", "model")
