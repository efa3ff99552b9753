"""Predictions beside the weights: right ones pass, those of other weights fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nequip_core.errors import ArtifactError, CheckError
from nequip_core.export.package import Members
from nequip_core.export.verify import check_cases, deviations, made_up, verify, with_check
from nequip_core.models.base import ModelInfo
from nequip_core.plugins.manager import load_registry
from nequip_core.structure import Structure

HERE = Path("a.nequip.zip")
Make = Callable[..., Members]


def failures(members: Members) -> list[str]:
    return [one.quantity for one in verify(HERE, members, load_registry()) if not one.passed]


@pytest.mark.parametrize(("name", "dtype"), [("nequip", "float32"), ("allegro", "float32"), ("allegro", "float64")])
def test_one_scaled_weight_matrix_of_any_kind_fails(packaged: Make, forged: Make, name: str, dtype: str) -> None:
    members = packaged(name, dtype=dtype, num_layers=2)
    assert failures(members) == []
    matrices = [key for key, tensor in members.weights.items() if tensor.numel()]
    assert len(matrices) > 10
    unseen = [key for key in matrices if not failures(forged(members, **{key: 1.01 * members.weights[key]}))]
    assert unseen == []


@pytest.mark.parametrize("name", ["nequip", "allegro"])
def test_predictions_see_what_norms_do_not(packaged: Make, forged: Make, name: str) -> None:
    """Each matrix of the read-out's path with its rows in another order, which has the same norm."""
    members = packaged(name, dtype="float32")
    for key, tensor in members.weights.items():
        if (
            tensor.dim() == 2
            and len(tensor) > 1
            and ("readout" in key or "mlp" in key or "linear_out.weights.0e" in key)
        ):
            assert set(failures(forged(members, **{key: tensor.flip(0)}))) >= {"energy", "forces"}, key


def test_rounding_passes(packaged: Make, forged: Make) -> None:
    members = packaged(dtype="float32")
    rounded = {
        name: tensor * (1 + 1e-7 * torch.randn(tensor.shape)) if tensor.dtype == torch.float32 else tensor
        for name, tensor in members.weights.items()
    }
    assert set(failures(forged(members, **rounded))) == {"norm"}


def test_other_predictions_or_structures_fail(packaged: Make) -> None:
    members = packaged()
    for name in ("0.energy", "0.forces", "0.stress", "0.positions", "1.forces"):
        tensor = members.check_tensors[name]
        others = members.check_tensors | {name: tensor + 1e-3 * torch.randn(tensor.shape, dtype=tensor.dtype)}
        assert failures(replace(members, check_tensors=others)), name
    nan = members.check_tensors["1.forces"].clone()
    nan[0, 0] = torch.nan
    assert failures(replace(members, check_tensors=members.check_tensors | {"1.forces": nan})) == ["forces"]
    norms = members.check_tensors | {"norm.architecture.embedding": torch.tensor(1.0).double()}
    assert failures(replace(members, check_tensors=norms)) == ["norm"]
    without = {name: t for name, t in members.check_tensors.items() if name != "0.stress"}
    assert failures(replace(members, check_tensors=without)) == ["stress"]


def test_a_perfect_crystal_whose_forces_cancel_passes(packaged: Make) -> None:
    grid = np.array(list(np.ndindex(2, 2, 2))) * 2.0
    crystal = Structure(positions=grid, numbers=np.full(8, 1), cell=4.0 * np.eye(3), pbc=np.full(3, True), source="sc")
    registry = load_registry()
    members = with_check(HERE, packaged(dtype="float32"), registry, [crystal])
    assert members.check_tensors["0.forces"].abs().max() < 1e-5
    moved = members.check_tensors | {"0.forces": members.check_tensors["0.forces"].flip(0)}
    assert failures(replace(members, check_tensors=moved)) == []


def test_nothing_to_check_is_not_passed(packaged: Make) -> None:
    empty = replace(packaged(), check={"structures": []}, check_tensors={})
    with pytest.raises(CheckError, match=r"holds no check structures.*nequip package build"):
        verify(HERE, empty, load_registry())


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({}, "check structures are not as"),
        ({"structures": [{"source": "a"}]}, "check structures are not as"),
        ({"structures": 3}, "check structures are not as"),
        ({"structures": [{"source": "a", "type_names": ["Xx"] * 8}]}, "none for its model.*Xx"),
    ],
)
def test_damaged_check_structures_are_named(packaged: Make, check: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        verify(HERE, replace(packaged(), check=check), load_registry())


def test_made_up_structures_hold_every_type() -> None:
    types = tuple(f"t{n}" for n in range(30))
    info = ModelInfo(
        cutoff=5.0, types=types, elements=("H",) * 30, pair_cutoffs=((5.0,) * 30,) * 30, message_passing_layers=1
    )
    periodic, molecule = made_up(info)
    assert set(periodic.type_names or ()) == set(molecule.type_names or ()) == set(types)
    assert periodic.pbc.all()
    assert not molecule.pbc.any()
    distances = np.linalg.norm(molecule.positions[:, None] - molecule.positions, axis=2) + 9 * np.eye(len(molecule))
    assert distances.min() > 1.2
    assert np.array_equal(made_up(info)[0].positions, periodic.positions)


def test_what_is_allowed_has_units_of_the_energy_scale(packaged: Make) -> None:
    from nequip_core.export.artifact import model_of

    members = packaged(dtype="float32")
    model, _, _ = model_of(HERE, members, load_registry())
    (case, _) = check_cases(HERE, members)
    allowed = {one.quantity: one.allowed for one in deviations(model, case, case)}
    assert allowed["energy"] == pytest.approx(1e-5 * 1.5 * len(case.structure), rel=1e-3)
    assert 1e-5 * 1.5 <= allowed["forces"] < 1e-3
