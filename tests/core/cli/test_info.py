"""nequip info."""

from __future__ import annotations

import json

import pytest


def test_json(nequip, run_folder):
    code, out, err = nequip("info", run_folder, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["name"] == "nequip"
    assert report["kind"] == "package"  # the fixture's file has no training state
    assert report["types"] == report["elements"] == ["H", "O"]
    assert report["cutoff_A"] == 3.5
    assert report["pair_cutoffs_A"] == {"H": {"H": 3.5, "O": 3.5}, "O": {"H": 3.5, "O": 3.5}}
    assert report["message_passing_layers"] == 3
    assert report["strictly_local"] is False
    assert report["ghost_distance_A"] == 10.5
    assert report["dtype"] == "float64"
    assert report["n_parameters"] > 100
    assert report["atomic_energies_eV"] == {"H": -13.6, "O": -430.0}
    assert report["units"]["energy"] == "eV"
    assert report["training_data"] == {"sha256": "0" * 64}
    assert report["metrics"] == {"val_loss": 0.5}
    assert report["versions"] == {"nequip-core": "0"}
    assert len(report["hash"]) == 64
    assert "best.ckpt (checkpoint best, raw weights) on cpu" in err


def test_last_checkpoint_is_another_model(nequip, run_folder):
    hashes = {
        name: json.loads(nequip("info", run_folder, "--json", "--checkpoint", name).out)["hash"]
        for name in ("best", "last")
    }
    assert hashes["best"] != hashes["last"]


def test_text(nequip, tmp_path, write_model):
    path = write_model(
        tmp_path / "a.nequip.zip",
        types=["H", "Ow"],
        elements={"Ow": "O"},
        atomic_energies={"H": -13.6, "Ow": -430.0},
        energy_scale=1.0,
        pair_cutoffs={"H": {"H": 2.5}},
    )
    code, out, _ = nequip("info", path)
    assert code == 0
    for piece in ("Ow (O)", "3.5 Å (by pair 2.5, 3.5 Å)", "3 of message passing", "Ow -430 eV", "licence"):
        assert piece in out


def test_atomic_energies_that_compositions_do_not_determine(nequip, tmp_path, write_model):
    energies = {"method": "least_squares", "fit": "rank 1 of 2", "undetermined": ["H", "O"]}
    path = write_model(tmp_path / "a.nequip.zip", data={"statistics": {"atomic_energies": energies}})
    assert "least_squares, rank 1 of 2; not determined: H, O" in nequip("info", path).out
    assert "rank" not in nequip("info", write_model(tmp_path / "b.nequip.zip")).out


def test_bad_model(nequip, bad_model):
    path, words = bad_model
    code, out, err = nequip("info", path)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert out == ""


def test_no_such_checkpoint_word(nequip, run_folder):
    assert nequip("info", run_folder, "--checkpoint", "middle").code == 2


@pytest.mark.parametrize("argument", ["--help"])
def test_help(nequip, argument):
    code, out, _ = nequip("info", argument)
    assert code == 0
    assert "MODEL" in out
