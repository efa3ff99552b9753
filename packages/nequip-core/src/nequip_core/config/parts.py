"""Optimizers, schedulers and callbacks by name: a registered one, or the class of a dotted name.

Only a training run imports what its config names; loading a file never does.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from nequip_core.errors import ConfigError
from nequip_core.plugins.manager import Registry, nearest


def maker(kind: Literal["optimizer", "scheduler"], name: str, registry: Registry) -> Callable[..., Any]:
    """What makes the optimizer or scheduler ``name``.

    Raises:
        ConfigError: it is neither registered nor a class that can be imported.
    """
    entry = registry.training.get((kind, name))
    if entry is None:
        return import_class(f"training.{kind}.name", name)
    made: Callable[..., Any] = entry.make.load()
    return made


def import_class(key: str, dotted: str) -> type:
    """The class of a dotted name.

    Raises:
        ConfigError: it can not be imported, or is no class.
    """
    module, _, attribute = dotted.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}: {dotted!r} can not be imported: {error}.") from error
    if not inspect.isclass(found):
        raise ConfigError(f"{key}: {dotted!r} is no class. Expected a dotted class name.")
    return found


def argument_mistake(make: Callable[..., Any], given: Sequence[str], args: Mapping[str, Any]) -> str | None:
    """Why ``make`` does not take ``args``, or None when it does.

    Args:
        make: a function or class.
        given: names of the arguments that we pass ourselves.
        args: the user's.
    """
    parameters = inspect.signature(make).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    takes = {p.name: p for p in parameters if p.kind is not p.VAR_POSITIONAL and p.name not in given}
    expected = f"Expected: {', '.join(takes) or 'none'}"
    for name in args:
        if name not in takes:
            return f"there is no argument {name!r}.{nearest(name, takes)} {expected}"
    for name, parameter in takes.items():
        if parameter.default is parameter.empty and name not in args:
            return f"the argument {name!r} is missing. {expected}"
    return None
