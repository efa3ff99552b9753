"""torch-sim: a batch is its systems, and a relaxation ends where ASE's does."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
import torch_sim
from ase import Atoms
from ase.build import molecule
from ase.optimize import FIRE
from torch_sim.autobatching import InFlightAutoBatcher

from nequip_core.engines import optional
from nequip_core.engines.ase import NequIPCalculator
from nequip_core.engines.torchsim import NequIPModel
from nequip_core.errors import InputError
from nequip_core.plugins.manager import load_registry
from nequip_core.structure import TypeMap
from nequip_core.testing.checks import Case, make_case

TYPES = {"O": "O"}


class Loaded:
    """What the engines read of a loaded model."""

    def __init__(self, case: Case) -> None:
        self.potential, self.info, self.device = case.potential, case.info, torch.device("cpu")
        self.type_map = TypeMap(case.info.types, case.info.elements)
        self.narrow = None


def load(name: str) -> Any:
    return Loaded(make_case(load_registry().models[name], {"zbl": True, "energy_scale": 0.05}))


@pytest.fixture(scope="module", params=["nequip", "allegro"])
def loaded(request: pytest.FixtureRequest) -> Any:
    return load(request.param)


def crystals(number: int) -> list[Atoms]:
    """Two O and two H in cells about as long as the cut-off, away from where they rest."""
    rng = np.random.default_rng(0)
    sites = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    frames = []
    for _ in range(number):
        cell = np.diag([3.4, 3.2, 3.6]) * (1 + 0.02 * rng.normal())
        atoms = Atoms("OHOH", scaled_positions=sites, cell=cell, pbc=True)
        atoms.positions += rng.normal(scale=0.05, size=(4, 3))
        frames.append(atoms)
    return frames


def state(frames: list[Atoms]) -> Any:
    return torch_sim.initialize_state(frames, torch.device("cpu"), torch.float64)


def test_a_batch_is_its_systems_and_ases(loaded: Any) -> None:
    frames = [*crystals(3), crystals(1)[0] * (2, 1, 1)]
    model = NequIPModel(loaded, types=TYPES)
    together = model(state(frames))
    assert {name: tensor.dtype for name, tensor in together.items()} == dict.fromkeys(
        ("energy", "forces", "stress"), torch.float64
    )
    start = 0
    for number, atoms in enumerate(frames):
        alone = model(state([atoms]))
        end = start + len(atoms)
        atoms.calc = NequIPCalculator(loaded, types=TYPES)
        of_ase = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)
        for name, rows, expected in zip(
            together, (slice(number, number + 1), slice(start, end), slice(number, number + 1)), of_ase, strict=True
        ):
            torch.testing.assert_close(together[name][rows], alone[name], rtol=0, atol=1e-10)
            np.testing.assert_allclose(together[name][rows].numpy().reshape(np.shape(expected)), expected, atol=1e-10)
        start = end


def test_what_changes_between_two_calls_is_seen(loaded: Any) -> None:
    frames = crystals(3)
    model = NequIPModel(loaded, types=TYPES)
    model(state(frames))
    cell = [one.copy() for one in frames]
    cell[1].set_cell(cell[1].cell * 1.01, scale_atoms=True)
    elements = [one.copy() for one in frames]
    elements[2].symbols[:2] = "HO"
    for changed in (frames[:2], frames[::-1], cell, elements, [frames[0], frames[1] * (1, 2, 1)]):
        received, expected = model(state(changed)), NequIPModel(loaded, types=TYPES, skin=0.0)(state(changed))
        for name in expected:
            torch.testing.assert_close(received[name], expected[name], rtol=0, atol=1e-10)


def test_molecules_have_no_stress(loaded: Any) -> None:
    frames = [molecule("H2O"), molecule("H2")]
    outputs = NequIPModel(loaded, types=TYPES)(state(frames))
    frames[1].calc = NequIPCalculator(loaded, types=TYPES)
    np.testing.assert_allclose(outputs["forces"][3:].numpy(), frames[1].get_forces(), atol=1e-10)
    assert outputs["stress"].isnan().all()
    assert set(NequIPModel(loaded, types=TYPES, compute_stress=False)(state(frames))) == {"energy", "forces"}


SLOW = pytest.mark.slow
RELAXED = 1e-6
"""eV/Å: where the softest of these crystals has 0.1 eV/Å², 1e-5 would leave 1e-4 Å."""


@pytest.mark.parametrize(
    ("name", "number"), [("nequip", 3), pytest.param("nequip", 20, marks=SLOW), pytest.param("allegro", 20, marks=SLOW)]
)
@pytest.mark.no_cover
def test_fire_ends_where_that_of_ase_does(name: str, number: int) -> None:
    """Batches that torch-sim makes, systems that leave them when they are done."""
    loaded, frames = load(name), crystals(number)
    model = NequIPModel(loaded, types=TYPES)
    final = torch_sim.optimize(
        system=[one.copy() for one in frames],
        model=model,
        optimizer=torch_sim.optimizers.fire,
        convergence_fn=torch_sim.generate_force_convergence_fn(RELAXED, include_cell_forces=False),
        autobatcher=InFlightAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=4 * max(2, number // 3)),
        max_steps=2000,
        steps_between_swaps=1,
    )
    moved = 0.0
    for atoms, relaxed in zip(frames, final.to_atoms(), strict=True):
        before = atoms.positions.copy()
        atoms.calc = NequIPCalculator(loaded, types=TYPES)
        assert FIRE(atoms, logfile=None).run(fmax=RELAXED, steps=2000)
        np.testing.assert_allclose(relaxed.positions, atoms.positions, rtol=0, atol=1e-4)
        moved = max(moved, np.abs(atoms.positions - before).max())
    assert moved > 0.02


def test_bad_input(loaded: Any) -> None:
    frames = crystals(1)
    with pytest.raises(InputError, match="several types of O"):
        NequIPModel(loaded)(state(frames))
    frames[0].symbols[0] = "Cu"
    with pytest.raises(InputError, match="atom of Cu"):
        NequIPModel(loaded, types=TYPES)(state(frames))


def test_check(monkeypatch: pytest.MonkeyPatch) -> None:
    check = load_registry().engines["torch-sim"].check.load()
    assert check is optional.check_torch_sim
    assert check() == (
        True,
        f"torch-sim-atomistic {version('torch-sim-atomistic')} is installed; NequIPModel runs in it",
    )

    def none(_: str) -> str:
        raise optional.PackageNotFoundError

    monkeypatch.setattr(optional, "version", none)
    usable, sentence = check()
    assert not usable
    assert "pip install 'nequip-core[torch-sim]'" in sentence
