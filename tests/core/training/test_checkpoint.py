"""What torch would pickle, as JSON and safetensors; and no other code."""

from __future__ import annotations

import math
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from nequip_core.errors import ArtifactError
from nequip_core.export.artifact import load_model
from nequip_core.export.package import read_package
from nequip_core.potential import stress
from nequip_core.training.checkpoint import PackageIO, decode, encode
from nequip_core.training.loss import Loss

VALUES = [
    None,
    True,
    3,
    0.1 + 0.2,
    math.inf,
    -math.inf,
    "text",
    [1, [2.5, "x"]],
    (1, (2, None)),
    {"a": {"b": 1}},
    {0: "int keys", (1, 2): "tuples", "1": "text"},
    {"$tensor": "a user's own dollar"},
    {},
    OrderedDict([("z", 1), ("a", 2)]),
    Counter({30: 1, 60: 2}),
    {1, 2},
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_values_keep_their_types(value: Any) -> None:
    import json

    tensors: dict[str, torch.Tensor] = {}
    found = decode(json.loads(json.dumps(encode(value, tensors, "x"), allow_nan=False)), tensors)
    assert found == value
    assert type(found) is type(value)
    assert not tensors


def test_nan_stays_nan() -> None:
    assert math.isnan(decode(encode(math.nan, {}, "x"), {}))


def test_tensors_go_to_the_tensors() -> None:
    tensors: dict[str, torch.Tensor] = {}
    value = {"state": {0: {"step": torch.tensor(3.0)}}}
    encoded = encode(value, tensors, "optimizer")
    assert list(tensors) == ["optimizer/state/0/step"]
    assert decode(encoded, tensors)["state"][0]["step"] == 3.0


@pytest.mark.parametrize("value", [timedelta(1), torch.float32, Path("x"), object, b"bytes"])
def test_an_unknown_type_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ArtifactError, match=rf"callbacks/Mine/x, a .*{type(value).__name__}"):
        encode({"callbacks": {"Mine": {"x": value}}}, {}, "state")


def test_a_callback_with_an_unknown_state_stops_the_save(make_run: Callable[..., Any], terms: Loss) -> None:
    class Mine(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"since": timedelta(1)}

    run = make_run()
    with pytest.raises(ArtifactError, match=r"Mine.*since, a datetime\.timedelta"):
        run.fit(terms, more=[Mine()])
    assert list((run.folder / "checkpoints").iterdir()) == []


def test_a_callbacks_tensors_come_back(make_run: Callable[..., Any], terms: Loss) -> None:
    class Mine(Callback):
        state: Any = None

        def state_dict(self) -> dict[str, Any]:
            return {"values": torch.arange(3)}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            Mine.state = state_dict

    run = make_run()
    run.fit(terms, max_epochs=1, more=[Mine()])
    run.fit(terms, max_epochs=2, more=[Mine()], resume=True)
    assert torch.equal(Mine.state["values"], torch.arange(3))


def test_check_structures_are_what_the_packages_weights_predict(make_run: Callable[..., Any], terms: Loss) -> None:
    from nequip_core.export.package import unpack_check
    from nequip_core.graph import from_structure
    from nequip_core.neighbors import make_matscipy

    run = make_run()
    run.fit(terms, max_epochs=1)
    path = run.folder / "checkpoints" / "last.ckpt"
    loaded = load_model(path)
    cases = unpack_check(read_package(path))
    assert [case.stress is None for case in cases] == [True, False]
    for case in cases:
        graph = from_structure(
            case.structure, loaded.type_map, np.array(loaded.info.pair_cutoffs), make_matscipy(loaded.info.cutoff)
        )
        prediction = loaded.potential(graph)
        assert torch.allclose(prediction.energy[0], case.energy, rtol=1e-13)
        assert torch.allclose(prediction.forces, case.forces, rtol=1e-11)
        if case.stress is not None:
            volume = torch.tensor([case.structure.volume], dtype=torch.float64)
            assert torch.allclose(stress(prediction.virial, volume)[0], case.stress, rtol=1e-11)


def test_names_in_the_config_are_never_imported(
    make_run: Callable[..., Any], terms: Loss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    (tmp_path / "booby_trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("os.system was called"))
    run = make_run()
    run.provenance.config["training"] = {
        "optimizer": {"name": "os.system", "args": {"command": "true"}},
        "scheduler": {"name": "booby_trap.Scheduler"},
        "callbacks": [{"name": "os.system", "args": {"command": "true"}}, {"name": "booby_trap.Callback"}],
    }
    run.fit(terms, max_epochs=1)
    loaded = load_model(run.folder)
    loaded.potential(run.val[0].graph)
    run.fit(terms, max_epochs=2, resume=True)
    saved = read_package(run.folder / "checkpoints" / "last.ckpt", training=True).training
    assert saved is not None
    assert saved.config["training"]["optimizer"]["name"] == "os.system"
    assert "booby_trap" not in sys.modules


def test_resuming_from_a_package_is_refused(write_model: Callable[..., Path], tmp_path: Path, make_run: Any) -> None:
    path = write_model(tmp_path / "a.nequip.zip")
    with pytest.raises(ArtifactError, match="no training state"):
        PackageIO(make_run().provenance).load_checkpoint(path)


def test_remove(tmp_path: Path, make_run: Any) -> None:
    path = tmp_path / "x.ckpt"
    path.write_text("")
    io = PackageIO(make_run().provenance)
    io.remove_checkpoint(path)
    io.remove_checkpoint(path)
    assert not path.exists()
