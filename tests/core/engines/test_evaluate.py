"""Predictions in batches and their errors, against sums written out by hand."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

import nequip_core
from nequip_core.engines.ase import NequIPCalculator
from nequip_core.engines.batches import batch_graphs
from nequip_core.engines.evaluate import Errors, Limits, Predictor, evaluate
from nequip_core.errors import CheckError, InputError
from nequip_core.neighbors import DEFAULT, DEVICE
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import stress
from nequip_core.structure import Structure


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    return write_model(tmp_path / "model" / "tiny.nequip.zip")


@pytest.fixture
def predictor(model: Path) -> Predictor:
    return nequip_core.load(model, device="cpu")


@pytest.fixture
def structures(random_structure, rng) -> list[Structure]:
    """Labelled: random labels; periodic and open, one without forces, one without energy, one without stress."""
    result = []
    for n, periodic in enumerate((True, False, True, True, True)):
        bare = random_structure(rng, 3 + n, periodic=periodic)
        tensor = rng.normal(size=(3, 3))
        labels = {
            "energy": float(rng.normal() - 1000) if n != 3 else None,
            "forces": rng.normal(size=(3 + n, 3)) if n != 2 else None,
            "stress": 0.01 * (tensor + tensor.T) if n != 4 else None,
            "config_type": "warm" if n < 2 else "hot",
        }
        result.append(dataclasses.replace(bare, **labels))
    return result


def expected_errors(differences: list[np.ndarray]) -> dict[str, float]:
    every = np.concatenate([np.ravel(d) for d in differences])
    return {
        "mae": np.abs(every).mean(),
        "rmse": np.sqrt((every**2).mean()),
        "max": np.abs(every).max(),
        "n": every.size,
    }


def singles(predictor: Predictor, structures: list[Structure]) -> list:
    return [predictor(structure) for structure in structures]


def test_predictor_on_a_list_is_predictor_on_each(predictor, structures):
    together = predictor(structures, atomic_virial=True)
    each = singles(predictor, structures)
    torch.testing.assert_close(together.energy, torch.cat([p.energy for p in each]))
    torch.testing.assert_close(together.forces, torch.cat([p.forces for p in each]))
    torch.testing.assert_close(together.virial, torch.cat([p.virial for p in each]))
    assert together.energy.dtype == torch.float64
    assert together.atomic_virial.shape == (25, 3, 3)
    assert not together.forces.requires_grad
    assert each[0].atomic_virial is None


def test_predictor_on_atoms_is_the_calculator(predictor, model, structures):
    atoms = structures[0].to_ase()
    prediction = predictor([atoms])
    atoms.calc = NequIPCalculator.from_file(model, device="cpu")
    assert prediction.energy.item() == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
    np.testing.assert_allclose(prediction.forces, atoms.get_forces(), atol=1e-10)
    tensor = stress(prediction.virial, torch.tensor([atoms.get_volume()]))[0]
    np.testing.assert_allclose(tensor, atoms.get_stress(voigt=False), atol=1e-12)


@pytest.mark.parametrize("batches", [{"edges": 40}, {"structures": 2}, {"atoms": 9}, {}])
def test_neighbors_listed_together_are_those_of_the_library(predictor, structures, batches):
    """On CUDA they are; here the list of tensors runs on the CPU."""
    entry = load_registry().neighbor_lists[DEVICE]
    together = Predictor(predictor.loaded, entry)
    together.limits = Limits(**batches)
    found, expected = together(structures, atomic_virial=True), predictor(structures, atomic_virial=True)
    for name, one, other in zip(found._fields, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=lambda text, of=name: f"{of}: {text}")


def test_lists_of_both_kinds_divide_and_refuse_the_same(predictor, structures):
    info = predictor.loaded.info
    types = [predictor.loaded.type_map.indices(one) for one in structures]
    kinds = [
        batch_graphs(load_registry().neighbor_lists[name], np.array(info.pair_cutoffs), predictor.device)
        for name in (DEFAULT, DEVICE)
    ]
    for most in (None, 40, 10**6):
        host, device = (list(kind(structures, types, most)) for kind in kinds)
        assert len(host) == len(device) == (3 if most == 40 else 1)
        for one, other in zip(host, device, strict=True):
            for here, there in zip(one, other, strict=True):
                torch.testing.assert_close(there, here, rtol=0, atol=1e-12)
    positions = structures[2].positions.copy()
    positions[1] = positions[4]
    doubled = dataclasses.replace(structures[2], positions=positions, source="frame 2 of a.xyz")
    for kind in kinds:
        with pytest.raises(InputError, match=r"frame 2 of a.xyz: atoms 1 and 4 are 0\.000"):
            list(kind([structures[0], doubled], [types[0], types[2]], None))


def test_predictor_needs_structures(predictor):
    with pytest.raises(InputError, match="no structures"):
        predictor([])
    with pytest.raises(InputError, match="at least one atom"):
        Predictor(predictor.loaded, predictor.neighbor_list, batch_atoms=0)


def test_errors_are_those_of_the_definition(predictor, structures):
    results = evaluate(predictor, structures, data={"path": "a.xyz", "sha256": "b"})
    predicted = singles(predictor, structures)
    energies, per_atom, forces, stresses = [], [], [], []
    by_element: dict[int, list[np.ndarray]] = {1: [], 8: []}
    warm: list[np.ndarray] = []
    for structure, p in zip(structures, predicted, strict=True):
        if structure.energy is not None:
            energies.append(p.energy.numpy() - structure.energy)
            per_atom.append(energies[-1] / len(structure))
        if structure.forces is not None:
            difference = p.forces.numpy() - structure.forces
            forces.append(difference)
            for number, rows in by_element.items():
                rows.append(difference[structure.numbers == number])
            if structure.config_type == "warm":
                warm.append(difference)
        if structure.stress is not None and structure.pbc.all():
            w = p.virial[0].numpy()
            stresses.append(-(w + w.T) / 2 / structure.volume - structure.stress)
    assert len(stresses) == 3
    for name, differences in {
        "energy": energies,
        "energy_per_atom": per_atom,
        "forces": forces,
        "stress": stresses,
    }.items():
        assert results[name] == pytest.approx(expected_errors(differences), rel=1e-9), name
    assert results["stress"]["n"] == 27
    assert results["n_structures"] == 5
    assert results["n_atoms"] == 25
    for number, symbol in ((1, "H"), (8, "O")):
        row = results["per_element"][symbol]
        assert row["forces"] == pytest.approx(expected_errors(by_element[number]), rel=1e-9)
        assert row["n_atoms"] == sum(int((s.numbers == number).sum()) for s in structures)
    assert set(results["per_config_type"]) == {"warm", "hot"}
    assert results["per_config_type"]["warm"]["forces"] == pytest.approx(expected_errors(warm), rel=1e-9)
    assert results["per_config_type"]["hot"]["n_structures"] == 3


def test_results_hold_what_interfaces_name(predictor, model, structures):
    results = evaluate(predictor, structures, data={"path": "a.xyz", "sha256": "b"})
    assert set(results) == {
        "schema", "model", "data", "n_structures", "n_atoms", "units", "energy", "energy_per_atom", "forces", "stress",
        "per_element", "per_config_type", "device", "dtype", "time_s",
    }  # fmt: skip
    assert set(results["model"]) == {"path", "kind", "checkpoint", "weights", "hash"}
    assert results["model"]["path"] == str(model)
    assert results["model"]["weights"] == "raw"
    assert results["data"] == {"path": "a.xyz", "sha256": "b"}
    assert results["device"] == "cpu"
    assert results["dtype"] == "float64"
    json.dumps(results, allow_nan=False)


def test_batches_have_no_effect(model, structures):
    results = []
    for batch_atoms in (1, 10, 1000):
        results.append(evaluate(nequip_core.load(model, device="cpu", batch_atoms=batch_atoms), structures))
    for other in results[1:]:
        for name in ("energy", "energy_per_atom", "forces", "stress"):
            assert other[name] == pytest.approx(results[0][name], rel=1e-12)
    streams = [
        [prediction.energy for _, prediction in nequip_core.load(model, "cpu", batch_atoms=n).stream(structures)]
        for n in (1, 7)
    ]
    np.testing.assert_allclose(streams[0], streams[1], rtol=1e-13)


def test_batches_are_those_of_the_validation_unless_said_otherwise(write_model, structures, tmp_path):
    limits = {"structures": 3, "atoms": 20, "edges": 30}
    model = write_model(tmp_path / "run.nequip.zip", data={"validation_batches": limits})
    of_file, of_atoms = nequip_core.load(model, "cpu"), nequip_core.load(model, "cpu", batch_atoms=7)
    assert of_file.limits._asdict() == limits
    assert of_atoms.limits == (None, 7, None)
    sizes = []
    predict = of_file._predict_graph
    of_file._predict_graph = lambda graph, virial: (sizes.append(graph.edge_index.shape[1]), predict(graph, virial))[1]
    results = [evaluate(one, structures) for one in (of_file, of_atoms)]
    assert len(sizes) > len(structures) / 3
    for name in ("energy", "energy_per_atom", "forces", "stress"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-12)


def test_missing_labels_are_null(predictor, structures):
    bare = [dataclasses.replace(s, energy=None, forces=None, stress=None, config_type=None) for s in structures]
    told: list[str] = []
    results = evaluate(predictor, bare, warn=told.append)
    assert results["energy"] is results["forces"] is results["stress"] is results["energy_per_atom"] is None
    assert results["per_element"]["H"]["forces"] is None
    assert results["per_config_type"] == {}
    assert len(told) == 1
    assert "--keys" in told[0]


def test_stress_of_the_other_sign_is_noticed(predictor, structures):
    labelled = []
    for structure, prediction in predictor.stream(structures):
        if prediction.stress is not None:
            labelled.append(dataclasses.replace(structure, stress=prediction.stress))
    told: list[str] = []
    evaluate(predictor, labelled, warn=told.append)
    assert told == []
    opposite = [dataclasses.replace(structure, stress=-structure.stress) for structure in labelled]
    with pytest.warns(UserWarning, match=r"opposite directions.*stress_sign"):
        evaluate(predictor, opposite)


def test_written_frames(predictor, structures, tmp_path):
    out = tmp_path / "out.extxyz"
    evaluate(predictor, structures, write=out)
    frames = ase.io.read(out, ":")
    assert len(frames) == 5
    for frame, (structure, prediction) in zip(frames, predictor.stream(structures), strict=True):
        assert frame.get_potential_energy() == pytest.approx(prediction.energy, rel=1e-12)
        np.testing.assert_allclose(frame.get_forces(), prediction.forces, atol=1e-7)
        np.testing.assert_allclose(frame.arrays["nequip_energies"], prediction.atomic_energies, atol=1e-7)
        assert frame.info["config_type"] == structure.config_type
        assert frame.info.get("ref_energy") == structure.energy
        if structure.forces is not None:
            np.testing.assert_allclose(frame.arrays["ref_forces"], structure.forces, atol=1e-7)
        else:
            assert "ref_forces" not in frame.arrays
        if structure.stress is not None:
            np.testing.assert_allclose(frame.info["ref_stress"], structure.stress, atol=1e-12)
        if structure.pbc.all():
            np.testing.assert_allclose(frame.get_stress(voigt=False), prediction.stress, atol=1e-12)
        else:
            assert "stress" not in frame.calc.results


def test_nothing_is_written_when_a_structure_is_unknown(predictor, structures, tmp_path):
    foreign = dataclasses.replace(structures[0], numbers=np.full(3, 6), source="a.xyz frame 7")
    with pytest.raises(InputError, match=r"a\.xyz frame 7.*C"):
        evaluate(predictor, [*structures, foreign], write=tmp_path / "out.extxyz")
    with pytest.raises(InputError, match="no structures"):
        evaluate(predictor, [], write=tmp_path / "out.extxyz")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_parity_plots(predictor, structures, tmp_path):
    evaluate(predictor, structures, plots=tmp_path / "plots")
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["energy.png", "energy_per_atom.png", "forces.png", "stress.png"]
    for name in names:
        assert (tmp_path / "plots" / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Can not make the folder"):
        evaluate(predictor, structures, plots=tmp_path / "file")


def test_a_difference_that_is_not_a_number_shows():
    errors = Errors()
    errors.add(np.array([1.0, np.nan]))
    assert np.isnan(list(errors.summary().values())[:3]).all()


def test_prediction_that_is_not_finite(predictor, structures, tmp_path):
    with torch.no_grad():
        predictor.loaded.potential.model.shift.fill_(torch.nan)
    with pytest.raises(CheckError, match=r"random:0.*not finite"):
        evaluate(predictor, structures, write=tmp_path / "out.extxyz")
    assert not (tmp_path / "out.extxyz").exists()


def test_out_of_memory_is_said(predictor, structures, monkeypatch):
    def too_large(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predictor.loaded.potential, "forward", too_large)
    with pytest.raises(InputError, match="--batch-atoms"):
        predictor(structures)


def test_import_needs_no_torch():
    code = "import sys, nequip_core; assert 'torch' not in sys.modules; nequip_core.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError):
        nequip_core.lode  # noqa: B018
