"""Every registered model obeys the laws; NequIP with all its options."""

from __future__ import annotations

from typing import ClassVar

import pytest

from nequip_core.nn import gate
from nequip_core.plugins.manager import load_registry
from nequip_core.testing import checks, systems
from nequip_core.testing.conformance import ASYMMETRIC_CUTOFFS, ModelConformance

pytestmark = pytest.mark.no_cover
ODD_SCALARS = {"num_layers": 6, "avg_num_neighbors": 0.5}
"""Odd scalars, and so tanh, first occur after layer 3 and reach even ones after three more, by large messages only."""


class TestEveryModel(ModelConformance):
    pass


class TestNequIP(ModelConformance):
    model = "nequip"
    variations: ClassVar = {
        "all options": {
            "num_layers": 3,
            "l_max": 2,
            "num_features": [5, 3, 2],
            "type_embedding_dim": 2,
            "train_bessels": True,
            "nonlinearity": "mish",
            "readout_mlp": [6],
            "polynomial_cutoff_p": 4,
            "pair_cutoffs": ASYMMETRIC_CUTOFFS,
            "zbl": True,
        },
        "one layer": {"num_layers": 1},
        "without parity": {"parity": False, "num_layers": 3},
        "norm of the sender": {
            "avg_num_neighbors": {"H": 3.0, "O": 8.0, "Ow": 5.0},
            "avg_num_neighbors_of": "sender",
            "readout_mlp": [6],
            "readout_nonlinearity": "gelu",
        },
    }


class TestDeepNequIP(ModelConformance):
    model = "nequip"
    variations: ClassVar = {"odd scalars": ODD_SCALARS}

    @pytest.mark.slow
    def test_one_graph(self, nequip_case: checks.Case) -> None:
        """Layers like those above, and more of them."""
        super().test_one_graph(nequip_case)


def test_odd_scalars_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    case = checks.make_case(load_registry().models["nequip"], ODD_SCALARS)
    energy = case.predict(systems.molecule()).energy
    monkeypatch.setattr(gate, "TANH_GAIN", 0.0)
    assert (case.predict(systems.molecule()).energy - energy).abs() > 1e-7
