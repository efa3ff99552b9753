"""Loaded by pytest where nequip-core is installed: gives tests the fixture ``nequip_case``. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from nequip_core.testing.checks import Case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A class that derives from ``ModelConformance`` runs each test once for every model and variation."""
    if "nequip_case" in metafunc.fixturenames and metafunc.cls is not None:
        cases = metafunc.cls.cases()
        metafunc.parametrize("nequip_case", list(cases.values()), ids=list(cases), indirect=True, scope="class")


@pytest.fixture(scope="class")
def nequip_case(request: pytest.FixtureRequest) -> Case:
    """A model with random weights, built once for a class; see `nequip_core.testing.checks.Case`."""
    from nequip_core.testing.checks import make_case

    return make_case(*request.param)
