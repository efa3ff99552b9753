"""Classes by name, and arguments that do not fit them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nequip_core.config.parts import argument_mistake, import_class, maker
from nequip_core.errors import ConfigError
from nequip_core.plugins.manager import load_registry
from nequip_core.training import optimizers


def test_registered_names_and_dotted_classes() -> None:
    registry = load_registry()
    assert maker("optimizer", "adam", registry) is optimizers.adam
    assert maker("scheduler", "plateau", registry) is optimizers.plateau
    assert maker("optimizer", "torch.optim.RAdam", registry) is torch.optim.RAdam


@pytest.mark.parametrize("name", ["adamm", "torch.optim.Nothing", "no_such_package.Class", "os.system", ".", ""])
def test_names_that_are_no_class(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^key: "):
        import_class("key", name)


def function(given: int, first: int, second: int = 0) -> None:
    """Takes two arguments beside the given one."""


def anything(*rest: int, **args: int) -> None:
    """Takes all."""


@pytest.mark.parametrize(
    ("make", "args", "expected"),
    [
        (function, {"first": 1}, None),
        (function, {"first": 1, "second": 2}, None),
        (function, {}, "the argument 'first' is missing. Expected: first, second"),
        (function, {"first": 1, "secnd": 2}, "there is no argument 'secnd'. Did you mean 'second'? Expected: first"),
        (function, {"first": 1, "given": 2}, "there is no argument 'given'"),
        (anything, {"x": 1}, None),
        (torch.nn.Identity, {"x": 1}, None),
    ],
)
def test_argument_mistake(make: Any, args: dict[str, int], expected: str | None) -> None:
    found = argument_mistake(make, ("given",), args)
    assert found is None if expected is None else found is not None and expected in found
