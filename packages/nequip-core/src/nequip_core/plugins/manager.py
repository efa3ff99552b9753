"""From entry points to a frozen registry: discover, validate, refuse.

Loaded once per process, in the order of the plugins' names. Whatever is wrong with a plugin stops with a `PluginError`
that names the distributions, the cause and the way out; nothing is skipped silently, since a missing kernel changes
speed and a missing model changes results.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import pluggy

from nequip_core.errors import PluginError
from nequip_core.plugins import hookspecs
from nequip_core.plugins.records import (
    API,
    CommandEntry,
    EngineEntry,
    KernelEntry,
    ModelEntry,
    NeighborListEntry,
    ReaderEntry,
    TargetEntry,
    TrainingEntry,
    mistakes,
)

GROUP = "nequip.plugins"
"""The entry-point group that plugins use."""

DISABLE = "NEQUIP_DISABLE_PLUGINS"
"""Environment variable: names of plugins to leave out, separated by commas."""

CORE = "core"
CORE_DISTRIBUTION = "nequip-core"

OURS = ("nequip-allegro",)
"""Distributions of ours whose name a published package has too; pip keeps one of the two."""

T = TypeVar("T")


class Kind(NamedTuple):
    """One hook: where its records go, of what class they are, and what names them."""

    hook: str
    attribute: str
    record: type
    key: Callable[[Any], Any]


KINDS = (
    Kind("nequip_models", "models", ModelEntry, attrgetter("name")),
    Kind("nequip_kernels", "kernels", KernelEntry, lambda entry: f"{entry.op}/{entry.name}"),
    Kind("nequip_neighbor_lists", "neighbor_lists", NeighborListEntry, attrgetter("name")),
    Kind("nequip_export_targets", "targets", TargetEntry, attrgetter("name")),
    Kind("nequip_data_readers", "readers", ReaderEntry, attrgetter("name")),
    Kind("nequip_training", "training", TrainingEntry, attrgetter("kind", "name")),
    Kind("nequip_engines", "engines", EngineEntry, attrgetter("name")),
    Kind("nequip_config_modules", "config_modules", str, str),
    Kind("nequip_commands", "commands", CommandEntry, attrgetter("name")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A plugin that was found and not yet imported.

    Attributes:
        name: of the entry point.
        distribution: name of the distribution that offers it, and its version.
        version: see ``distribution``.
        module: the entry point's value.
        requires: the distribution's requirements, as its metadata writes them.
        load: imports the plugin.
    """

    name: str
    distribution: str
    version: str
    module: str
    requires: tuple[str, ...]
    load: Callable[[], Any]

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} {self.version} ({self.module})"


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """A loaded plugin: what `nequip plugins` lists and what checkpoints record.

    ``records``: for each attribute of `Registry`, the names that the plugin offers ("op/name" for kernels and
    "kind/name" for training). ``requires``: its range of nequip-core, empty where it states none.
    """

    name: str
    distribution: str
    version: str
    module: str
    api: int
    requires: str
    records: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """What all plugins offer, by name. Only the composition root and the command line read it.

    ``kernels`` is keyed "op/name", ``training`` (kind, name). ``disabled``: plugins left out by request.
    """

    plugins: tuple[PluginInfo, ...]
    disabled: tuple[str, ...]
    models: Mapping[str, ModelEntry]
    kernels: Mapping[str, KernelEntry]
    neighbor_lists: Mapping[str, NeighborListEntry]
    targets: Mapping[str, TargetEntry]
    readers: Mapping[str, ReaderEntry]
    training: Mapping[tuple[str, str], TrainingEntry]
    engines: Mapping[str, EngineEntry]
    config_modules: tuple[str, ...]
    commands: Mapping[str, CommandEntry]

    def versions(self) -> dict[str, str]:
        """Version of each distribution that takes part, for run manifests and files."""
        return {plugin.distribution: plugin.version for plugin in self.plugins}


def load_registry(extra: Mapping[str, object] | None = None) -> Registry:
    """The registry of the installed plugins, loaded once per process.

    Args:
        extra: for tests: further plugins (modules or objects with hook implementations) by name; then the registry is
            built anew.

    Raises:
        PluginError: anything is wrong with a plugin, or NEQUIP_DISABLE_PLUGINS names an unknown one.
    """
    if extra is None:
        return _installed()
    given = [
        Source(
            name=name,
            distribution=name,
            version="given in code",
            module=repr(plugin),
            requires=(),
            load=functools.partial(_identity, plugin),
        )
        for name, plugin in extra.items()
    ]
    return build_registry([*discover(), *given], disabled=disabled_by_environment())


@functools.cache
def _installed() -> Registry:
    return build_registry(discover(), disabled=disabled_by_environment())


def _identity(plugin: object) -> object:
    return plugin


def discover() -> list[Source]:
    """The plugins that installed distributions offer, not imported yet."""
    return [
        Source(
            name=point.name,
            distribution=point.dist.name if point.dist else "?",
            version=point.dist.version if point.dist else "?",
            module=point.value,
            requires=tuple(point.dist.requires or ()) if point.dist else (),
            load=point.load,
        )
        for point in importlib.metadata.entry_points(group=GROUP)
    ]


def disabled_by_environment() -> tuple[str, ...]:
    """The names in NEQUIP_DISABLE_PLUGINS."""
    return tuple(name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip())


def build_registry(sources: Iterable[Source], *, disabled: Sequence[str] = ()) -> Registry:
    """Import, validate and collect plugins. See `load_registry`."""
    sources = sorted(sources, key=attrgetter("name", "distribution"))
    _check_names(sources, disabled)
    kept = [source for source in sources if source.name not in disabled]
    core = next(source for source in kept if source.name == CORE)

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for source in kept:
        _check_requirement(source, core)
        try:
            plugin = source.load()
        except Exception as error:
            raise _refusal(
                source,
                f"it can not be imported: {error!r}. `python -c 'import {source.module}'` shows where",
            ) from error
        _check_api(source, plugin, core)
        _check_hooks(manager, source, plugin)
        try:
            manager.register(plugin, name=source.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise _refusal(source, f"pluggy refuses it (hooks take no argument): {error}") from error

    found = {kind.attribute: _collect(manager, kind, kept) for kind in KINDS}
    plugins = tuple(
        PluginInfo(
            name=source.name,
            distribution=source.distribution,
            version=source.version,
            module=source.module,
            api=API,
            requires=", ".join(str(requirement.specifier) for requirement in _core_requirements(source)),
            records=MappingProxyType(
                {
                    attribute: tuple(_text(key) for key, (_, giver) in records.items() if giver is source)
                    for attribute, records in found.items()
                }
            ),
        )
        for source in kept
    )
    frozen: dict[str, Any] = {
        attribute: MappingProxyType({key: record for key, (record, _) in records.items()})
        for attribute, records in found.items()
    }
    frozen["config_modules"] = tuple(frozen["config_modules"])
    return Registry(plugins=plugins, disabled=tuple(disabled), **frozen)


def find(entries: Mapping[str, T], name: str, what: str) -> T:
    """The entry called ``name``.

    Raises:
        PluginError: there is none; names the nearest and all that there are. ``what``: a noun for the message.
    """
    try:
        return entries[name]
    except KeyError:
        raise PluginError(
            f"There is no {what} {name!r}.{nearest(name, entries)} Known: {', '.join(entries) or 'none'}. "
            f"`nequip plugins` lists what each installed plugin offers."
        ) from None


def nearest(name: str, names: Iterable[str]) -> str:
    """`` Did you mean ...?`` for a misspelt name, or nothing where none is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def replaced_distributions() -> tuple[str, ...]:
    """A sentence for each distribution of ours in whose place the published package of that name is installed."""
    sentences = []
    for name in OURS:
        # The first found is the one that Python imports.
        for dist in itertools.islice(importlib.metadata.distributions(name=name), 1):
            if not dist.entry_points.select(group=GROUP):
                sentences.append(
                    f"{name} {dist.version} is the published package, not ours: it has no entry point {GROUP!r} and "
                    f"offers nothing here. pip keeps one of the two. Reinstall ours (1.0.0 or later) with "
                    f"`pip install --force-reinstall --no-deps --find-links dist {name}`, and keep the published one "
                    f"in an environment of its own."
                )
    return tuple(sentences)


def _refusal(source: Source, cause: str, hint: str = "") -> PluginError:
    skip = (
        f"Reinstall {CORE_DISTRIBUTION}."
        if source.name == CORE
        else f"Repair or uninstall {source.distribution}, or go on without it: {DISABLE}={source.name}."
    )
    return PluginError(f"The {source} can not be used: {cause}.{hint}\n{skip}")


def _check_names(sources: Sequence[Source], disabled: Sequence[str]) -> None:
    seen: dict[str, Source] = {}
    for source in sources:
        if source.name in seen:
            raise PluginError(
                f"Two distributions offer a plugin {source.name!r}: {seen[source.name].distribution} "
                f"{seen[source.name].version} and {source.distribution} {source.version}.\n"
                "Uninstall one of the two"
                + ("." if source.name == CORE else f", or go on without both: {DISABLE}={source.name}.")
            )
        if source.name not in disabled:
            seen[source.name] = source
    names = [source.name for source in sources]
    if CORE not in names:
        raise PluginError(
            f"No installed distribution offers the plugin {CORE!r}, which holds {CORE_DISTRIBUTION}'s own models and "
            f"commands.\nReinstall {CORE_DISTRIBUTION}: its metadata is missing or out of date."
        )
    if CORE in disabled:
        raise PluginError(f"{DISABLE} names {CORE!r}, which can not be left out. Take it out of the variable.")
    for name in disabled:
        if name not in names:
            raise PluginError(
                f"{DISABLE} names {name!r}, which is no installed plugin.{nearest(name, names)} "
                f"Installed: {', '.join(names)}."
            )


def _core_requirements(source: Source) -> list[Any]:
    # packaging takes a few milliseconds and core states no requirement on itself: imported where it is needed.
    if source.name == CORE or not source.requires:
        return []
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    requirements = [Requirement(text) for text in source.requires]
    return [
        requirement
        for requirement in requirements
        if canonicalize_name(requirement.name) == CORE_DISTRIBUTION
        and (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
    ]


def _check_requirement(source: Source, core: Source) -> None:
    for requirement in _core_requirements(source):
        if not requirement.specifier.contains(core.version, prereleases=True):
            raise _refusal(
                source,
                f"it requires {CORE_DISTRIBUTION}{requirement.specifier}, and {CORE_DISTRIBUTION} {core.version} is "
                "installed",
                _matching_versions(source),
            )


def _check_api(source: Source, plugin: Any, core: Source) -> None:
    stated = getattr(plugin, "NEQUIP_PLUGIN_API", None)
    if stated is None:
        raise _refusal(
            source, f"it does not state the plugin interface that it was written for (NEQUIP_PLUGIN_API = {API})"
        )
    if stated != API:
        raise _refusal(
            source,
            f"it was written for plugin interface {stated!r}, and {CORE_DISTRIBUTION} {core.version} has {API}",
            _matching_versions(source),
        )


def _matching_versions(source: Source) -> str:
    install = f"pip install --upgrade --find-links dist {CORE_DISTRIBUTION} {source.distribution}"
    return f" Install versions that go together: `{install}`."


def _check_hooks(manager: pluggy.PluginManager, source: Source, plugin: Any) -> None:
    hooks = [kind.hook for kind in KINDS]
    for name in dir(plugin):
        marked = manager.parse_hookimpl_opts(plugin, name) is not None
        if marked and name not in hooks:
            raise _refusal(source, f"{name!r} is no hook; hooks are {', '.join(hooks)}", nearest(name, hooks))
        if not marked and name.startswith("nequip_") and inspect.isroutine(getattr(plugin, name)):
            raise _refusal(source, f"{name!r} looks like a hook but is not marked with @hookimpl", nearest(name, hooks))


def _collect(manager: pluggy.PluginManager, kind: Kind, sources: Sequence[Source]) -> dict[Any, tuple[Any, Source]]:
    """The records of one hook by key, each with the plugin that gave it."""
    implementations = {impl.plugin_name: impl.function for impl in getattr(manager.hook, kind.hook).get_hookimpls()}
    found: dict[Any, tuple[Any, Source]] = {}
    for source in sources:
        if source.name not in implementations:
            continue
        try:
            result = implementations[source.name]()
            records = list(result)
        except Exception as error:
            raise _refusal(
                source, f"{kind.hook} must return or yield {kind.record.__name__} records; it raised {error!r}"
            ) from error
        if isinstance(result, str):
            raise _refusal(source, f"{kind.hook} returned the string {result!r}, expected a tuple of them")
        for record in records:
            if not isinstance(record, kind.record):
                raise _refusal(source, f"{kind.hook} gave {record!r}, expected {kind.record.__name__}")
            if wrong := mistakes(record):
                raise _refusal(source, f"{kind.hook} gave {record!r}: {'; '.join(wrong)}")
            key = kind.key(record)
            if key in found:
                raise _duplicate(kind, key, found[key][1], source)
            found[key] = (record, source)
    return found


def _duplicate(kind: Kind, key: Any, first: Source, second: Source) -> PluginError:
    if first is second:
        return _refusal(first, f"{kind.hook} gave {_text(key)!r} twice")
    other = first if second.name == CORE else second
    return PluginError(
        f"{kind.hook}: {_text(key)!r} is offered twice, by {first} and by {second}.\n"
        f"Uninstall one of the two distributions, or go on without one: {DISABLE}={other.name}."
    )


def _text(key: str | tuple[str, str]) -> str:
    return key if isinstance(key, str) else "/".join(key)
