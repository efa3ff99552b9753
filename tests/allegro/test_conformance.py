"""Allegro obeys the laws with all its options; with the default ones it does in tests/physics."""

from __future__ import annotations

from typing import ClassVar

import pytest

from nequip_core.testing.checks import Case
from nequip_core.testing.conformance import ASYMMETRIC_CUTOFFS, ModelConformance

pytestmark = pytest.mark.no_cover


class TestAllegro(ModelConformance):
    model = "allegro"
    variations: ClassVar = {
        "one layer, l_max 3": {"num_layers": 1, "l_max": 3},
        "four layers, one environment weight": {"num_layers": 4, "weight_individual_irreps": False},
        "splines, linear networks": {
            "two_body": "spline",
            "num_splines": 6,
            "spline_span": 4,
            "two_body_mlp": [],
            "latent_mlp": [],
            "readout_mlp": [],
            "tp_path_channel_coupling": False,
            "weight_individual_irreps": False,
        },
        "all options": {
            "l_max": 2,
            "train_bessels": True,
            "polynomial_cutoff_p": 4,
            "nonlinearity": "mish",
            "two_body_nonlinearity": "silu",
            "readout_nonlinearity": "gelu",
            "pair_cutoffs": ASYMMETRIC_CUTOFFS,
            "avg_num_neighbors": {"H": 3.0, "O": 8.0, "Ow": 5.0},
            "zbl": True,
        },
    }


class TestLargeAllegro(ModelConformance):
    model = "allegro"
    variations: ClassVar = {
        "two layers, l_max 3, without parity": {"l_max": 3, "parity": False, "num_tensor_features": 2},
        "three layers, l_max 2, uncoupled": {
            "num_layers": 3,
            "l_max": 2,
            "num_tensor_features": 2,
            "tp_path_channel_coupling": False,
        },
    }

    @pytest.mark.slow
    def test_one_graph(self, nequip_case: Case) -> None:
        """Graphs of thousands of nodes, of the same kinds as those above."""
        super().test_one_graph(nequip_case)
