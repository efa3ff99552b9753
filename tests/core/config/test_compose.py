"""Files and overrides to a config, and every error in them: with its place, what was expected, and the nearest key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from nequip_core.config.compose import compose, keys_of, to_yaml
from nequip_core.config.schema import Config
from nequip_core.errors import ConfigError
from nequip_core.models.base import ModelConfig, key
from nequip_core.models.nequip import NequIPConfig
from nequip_core.plugins.hookspecs import hookimpl
from nequip_core.plugins.manager import Registry, load_registry
from nequip_core.plugins.records import ModelEntry, Ref

DEFAULTS = "defaults: [base, {model: nequip}, _self_]\n"
MINIMAL = DEFAULTS + "data: {path: FILE}\nmodel: {cutoff: 5.0}\n"


@dataclass
class PairConfig(ModelConfig):
    """A model with common keys and one of its own."""

    name: str = key("pair", "name")
    depth: float = key(1.0, "of the well", "eV")

    def message_passing_layers(self) -> int:
        return 0


class PairPlugin:
    NEQUIP_PLUGIN_API = 1

    @hookimpl
    def nequip_models(self) -> list[ModelEntry]:
        return [ModelEntry(name="pair", config=Ref(f"{__name__}:PairConfig"), build=Ref(f"{__name__}:PairConfig"))]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


def written(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def errors(path: Path, *overrides: str, registry: Registry) -> list[str]:
    """The lines of the message that a config is refused with; none of Hydra's words may be in it."""
    with pytest.raises(ConfigError) as caught:
        compose(path, overrides, registry)
    text = str(caught.value)
    for word in ("append", "Hydra", "OmegaConf", "full_key", "object_type", "struct"):
        assert word not in text, text
    lines = [line.strip() for line in text.splitlines()]
    return lines[1:] if lines[0].endswith("errors in the config:") else lines


def test_minimal_file(tmp_path: Path, registry: Registry) -> None:
    config = compose(written(tmp_path, MINIMAL), [], registry)
    assert isinstance(config, Config)
    assert isinstance(config.model, NequIPConfig)
    assert (config.model.cutoff, config.data.path, config.run.name, config.run.dir) == (5.0, "FILE", "run", "runs/run")
    assert config.training.loss.stress.weight == 0.0


def test_resolved_config_repeats_itself(tmp_path: Path, registry: Registry) -> None:
    words = [
        "model.types=[H,No,Ow]",
        "model.elements={Ow: O}",
        "model.atomic_energies={H: -1, No: 2.5e-7, Ow: 0}",
        "data.path=[a b.xyz,'c=d.xyz']",
        "training.callbacks=[{name: a.B, args: {x: [1, 2.0, null]}}]",
        "trainer.max_time=00:08:00:00",
        "run.name=1e5",
        "seed=7",
    ]
    config = compose(written(tmp_path, MINIMAL), words, registry)
    again = compose(written(tmp_path, to_yaml(config, "a comment"), "config.yaml"), [], registry)
    assert again == config
    assert config.data.path == ["a b.xyz", "c=d.xyz"]
    assert config.run.name == "1e5"


def test_keys_of(tmp_path: Path, registry: Registry) -> None:
    keys = dict(keys_of(compose(written(tmp_path, MINIMAL), [], registry)))
    assert keys["training.loss.forces.weight"] == 1.0
    assert keys["training.optimizer.args"] == {}
    assert "training.loss" not in keys


# YAML


def test_nobelium_is_no_boolean(tmp_path: Path, registry: Registry) -> None:
    text = DEFAULTS + "data: {path: No}\nmodel: {cutoff: 5, types: [No, Y], atomic_energies: {No: -1.0, Y: 1e-3}}\n"
    config = compose(written(tmp_path, text), [], registry)
    assert config.model.types == ["No", "Y"]
    assert config.model.atomic_energies == {"No": -1.0, "Y": 1e-3}
    assert config.data.path == "No"


def test_file_with_any_name(tmp_path: Path, registry: Registry) -> None:
    config = compose(written(tmp_path, MINIMAL, "a=b, (é).yml"), [], registry)
    assert config.run.name == "a=b, (é)"


def test_a_file_may_be_called_base(tmp_path: Path, registry: Registry) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(MINIMAL, encoding="utf-8")
    assert compose(base, [], registry).run.name == "base"
    assert compose(written(tmp_path, MINIMAL), [], registry).run.name == "run"  # beside it


def test_files_that_build_on_each_other(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [mine]\n", encoding="utf-8")
    (line,) = errors(written(tmp_path, MINIMAL.replace("base", "base, mine")), registry=registry)
    assert line.endswith("defaults: the files that they name build on each other in a circle.")


def test_missing_file(tmp_path: Path, registry: Registry) -> None:
    (line,) = errors(tmp_path / "no.yaml", registry=registry)
    assert "no.yaml" in line
    assert "No such file" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["the file is empty", "- base"]),
        ("- a\n- b\n", ["expected keys and values", "received a list"]),
        ("seed: 1\n", ["no `defaults:` list", "- base", "- model: nequip"]),
        ("defaults: [base]\n", ["names no base, or not one model", "- model: nequip"]),
        ("defaults: [{model: nequip}]\n", ["names no base"]),
        ("defaults: base\n", ["run.yaml:1", "not a list"]),
        ("a: [1\n", ["run.yaml:2", "not YAML"]),
        ("defaults: [_self_, base, {model: nequip}]\n", ["_self_ is not the last"]),
        ("defaults: [base, {model: neqip}]\n", ["no 'neqip'", "The nearest is nequip"]),
        ("defaults: [base, {model: nequip}, {data: mine}]\n", ["data", "no 'mine'"]),
    ],
)
def test_broken_files(tmp_path: Path, registry: Registry, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(written(tmp_path, text), [], registry)
    assert [word for word in words if word not in str(caught.value)] == []


def test_key_written_twice(tmp_path: Path, registry: Registry) -> None:
    (line,) = errors(written(tmp_path, MINIMAL + "seed: 1\nseed: 2\n"), registry=registry)
    assert line == f"{tmp_path}/run.yaml:5: seed is written twice, first in line 4."


# Keys and types


def test_all_errors_at_once_in_order(tmp_path: Path, registry: Registry) -> None:
    text = """\
defaults:
  - base
  - model: nequip
  - _self_
seed: 1.5
data:
  batch: 3
model:
  lmax: 3
  parity: 3
  readout_mlp: 32
training:
  loss: {forces: {function: mea}}
  callbacks: [{nam: x}]
trainer:
  precision: 64
"""
    lines = errors(written(tmp_path, text), "training.ema_decay=2", "lr=0.1", registry=registry)
    place = f"{tmp_path}/run.yaml"
    expected = [
        (f"{place}:5: seed: expected a whole number", "received 1.5"),
        (f"{place}:7: data.batch: expected the keys below it", "received 3"),
        (f"{place}:9: model.lmax is no key", "The nearest is model.l_max"),
        (f"{place}:10: model.parity: expected true or false", "received 3"),
        (f"{place}:11: model.readout_mlp: expected a list of whole numbers", "received 32"),
        (f"{place}:13: training.loss.forces.function: expected", "received 'mea'. The nearest is mse"),
        (f"{place}:14: training.callbacks: expected a list of {{name: ..., args: ...}}", "'nam'"),
        (f"{place}:16: trainer.precision is no key here", "model.dtype"),
        ("command line, lr=0.1: lr is no key", "The nearest is training.optimizer.lr"),
        (f"{place}: data.path is missing", "file or list of files"),
        (f"{place}: model.cutoff is missing", "Å. Give model.cutoff=VALUE."),
        ("command line, training.ema_decay=2: training.ema_decay: expected a number between 0 and 1", "received 2.0"),
    ]
    assert len(lines) == len(expected)
    for line, words in zip(sorted(lines), sorted(expected), strict=True):
        assert line.startswith(words[0]), line
        assert words[1] in line, line
    numbered = [
        int(line.split(":")[1]) for line in lines if line.startswith(f"{place}:") and line.split(":")[1].isdigit()
    ]
    assert numbered == sorted(numbered)


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("model.l_mx=2", "model.l_max"),
        ("model.lmax=2", "model.l_max"),
        ("trainer.max_epoch=2", "trainer.max_epochs"),
        ("data.batch_size=2", "data.batch.size"),
        ("training.optimiser.lr=2", "training.optimizer.lr"),
        ("lr=2", "training.optimizer.lr"),
        ("+model.lmax=2", "model.l_max"),
        ("data.keys.energi=E", "data.keys.energy"),
    ],
)
def test_nearest_key(tmp_path: Path, registry: Registry, word: str, nearest: str) -> None:
    (line,) = errors(written(tmp_path, MINIMAL), word, registry=registry)
    assert line.startswith(f"command line, {word}: ")
    assert f"The nearest is {nearest}:" in line


def test_misspelt_required_key_is_one_error(tmp_path: Path, registry: Registry) -> None:
    text = DEFAULTS + "data: {path: FILE}\nmodel:\n  cutof: 5.0\n"
    (line,) = errors(written(tmp_path, text), registry=registry)
    assert line.startswith(f"{tmp_path}/run.yaml:4: model.cutof is no key. The nearest is model.cutoff")


@pytest.mark.parametrize("name", ["precision", "accumulate_grad_batches", "gradient_clip_val", "callbacks", "logger"])
def test_lightning_names_point_at_ours(tmp_path: Path, registry: Registry, name: str) -> None:
    (line,) = errors(written(tmp_path, MINIMAL), f"trainer.{name}=1", registry=registry)
    assert f"trainer.{name} is no key here" in line


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("model.l_max=2.5", "a whole number"),
        ("model.l_max=true", "a whole number"),
        ("model.l_max=[1]", "a whole number"),
        ("model.cutoff=far", "a number"),
        ("model.cutoff=-1", "a number above 0"),
        ("model.cutoff=null", "a number"),
        ("model.parity=maybe", "true or false"),
        ("model.radial_mlp=[a]", "a list of whole numbers"),
        ("model.elements=3", "a dictionary"),
        ("model.types.x=3", "a dictionary"),
        ("loggers=[mlflow]", "csv, tensorboard and wandb"),
        ("loggers=csv", "a list of names"),
        ("data=3", "the keys below it"),
        ("data.path={a: 1}", "a file name or a list of file names"),
        ("data.units.energy=kcal", "kcal/mol"),
        ("training.optimizer.args=3", "a dictionary"),
        ("training.optimizer.name=admw", "adamw"),
        ("data.neighbor_list=matscpy", "matscipy"),
        ("training.early_stopping_patience=0", "at least 1"),
        ("run.dir=runs/${now:%H}", "without ${now:}"),
        ("run.dir=runs/${run.nme}", "run.dir"),
        ("run.if_exists=overwrite", "resume | new | error"),
        ("model.name=allegro", "model=NAME"),
    ],
)
def test_types_and_words(tmp_path: Path, registry: Registry, word: str, expected: str) -> None:
    (line,) = errors(written(tmp_path, MINIMAL), word, registry=registry)
    assert line.startswith("command line, ")
    assert expected in line


# Overrides


def value(tmp_path: Path, registry: Registry, key: str, *words: str) -> object:
    return dict(keys_of(compose(written(tmp_path, MINIMAL), words, registry)))[key]


def test_lists_replace_and_dictionaries_merge(tmp_path: Path, registry: Registry) -> None:
    words = ["model.radial_mlp=[8]", "model.pair_cutoffs={H: {O: 3.0}}", "model.pair_cutoffs={O: {H: 2.0}}"]
    assert value(tmp_path, registry, "model.radial_mlp", *words) == [8]
    assert value(tmp_path, registry, "model.pair_cutoffs", *words) == {"H": {"O": 3.0}, "O": {"H": 2.0}}


@pytest.mark.parametrize("plus", ["", "+"])
def test_free_dictionaries_take_new_names(tmp_path: Path, registry: Registry, plus: str) -> None:
    words = [f"{plus}training.optimizer.args.amsgrad=true", f"{plus}training.optimizer.args.betas=[0.9,0.99]"]
    expected = {"amsgrad": True, "betas": [0.9, 0.99]}
    assert value(tmp_path, registry, "training.optimizer.args", *words) == expected


def test_plus_elsewhere_is_refused(tmp_path: Path, registry: Registry) -> None:
    (line,) = errors(written(tmp_path, MINIMAL), "+seed=3", registry=registry)
    assert "+ adds entries to free dictionaries" in line
    assert "training.optimizer.args" in line


def test_later_words_win(tmp_path: Path, registry: Registry) -> None:
    assert value(tmp_path, registry, "seed", "seed=2", "seed=3") == 3


@pytest.mark.parametrize(
    "name", ["a=b.xyz", "a,b.xyz", "(a).xyz", "~a.xyz", "été.xyz", "it's [a].xyz", "a b.xyz", "12"]
)
@pytest.mark.parametrize("exists", [True, False])
def test_paths_are_quoted(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, name: str, exists: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if exists:
        (tmp_path / name).touch()
    if (name, exists) in {("a,b.xyz", False)}:
        (line,) = errors(written(tmp_path, MINIMAL), f"run.dir={name}", registry=registry)
        assert "one value, and no file of that name exists" in line
    else:
        assert value(tmp_path, registry, "run.dir", f"run.dir={name}") == name


def test_number_that_is_also_a_folder(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "60").mkdir()
    assert value(tmp_path, registry, "data.split.train", "data.split.train=60") == 60


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("seed", "Expected key=value"),
        ("~seed", "Expected key=value"),
        ("~seed=0", "can not be removed"),
        ("seed=1,2", "one value"),
        ("=3", "is no key"),
        ("model.types=[H,O", "no list or dictionary"),
        ("other.yaml", "Only one config file"),
        ("hydra.run.dir=x", "run.dir"),
        ("a@b=x", "is no key"),
    ],
)
def test_grammar(tmp_path: Path, registry: Registry, word: str, expected: str) -> None:
    (line,) = errors(written(tmp_path, MINIMAL), word, registry=registry)
    assert expected in line


# Groups


@pytest.mark.parametrize(
    ("name", "layers", "l_max", "features"),
    [
        ("small", 2, 1, [128, 64]),
        ("medium", 4, 2, [128, 64, 32]),
        ("large", 6, 3, [128, 64, 32, 32]),
        ("extra_large", 6, 4, [320, 96, 64, 32, 32]),
    ],
)
def test_presets(tmp_path: Path, registry: Registry, name: str, layers: int, l_max: int, features: list[int]) -> None:
    config = compose(written(tmp_path, MINIMAL), [f"model=nequip_{name}"], registry)
    model = config.model
    assert isinstance(model, NequIPConfig)
    assert (model.num_layers, model.l_max, model.num_features, model.parity) == (layers, l_max, features, False)
    assert (model.type_embedding_dim, model.radial_mlp, model.cutoff) == (32, [128], 5.0)


def test_unknown_preset_with_another_error(tmp_path: Path, registry: Registry) -> None:
    lines = errors(written(tmp_path, MINIMAL), "model=nequip_smal", "seed=x", registry=registry)
    assert len(lines) == 2
    assert "The nearest is nequip_small" in lines[0]


def test_model_of_a_plugin_on_a_file_with_common_keys(tmp_path: Path) -> None:
    registry = load_registry(extra={"pair": PairPlugin()})
    config = compose(written(tmp_path, MINIMAL), ["model=pair", "model.depth=2"], registry)
    assert isinstance(config.model, PairConfig)
    assert (config.model.depth, config.model.cutoff) == (2.0, 5.0)


def test_model_that_lacks_the_files_keys(tmp_path: Path) -> None:
    registry = load_registry(extra={"pair": PairPlugin()})
    text = DEFAULTS + "data: {path: FILE}\nmodel:\n  cutoff: 5.0\n  l_max: 2\n  parity: true\n"
    (line,) = errors(written(tmp_path, text), "model=pair", registry=registry)
    place = f"{tmp_path}/run.yaml"
    assert f"model=pair: the model 'pair' has no model.l_max ({place}:5), model.parity ({place}:6)." in line


# Checks of the caller


def test_checks_run_beside_other_errors_and_get_places(tmp_path: Path, registry: Registry) -> None:
    path = written(tmp_path, MINIMAL + "seed: 4\nkernels: 3\n")

    def check(config: Config, _: Registry) -> list[tuple[str, str]]:
        return [
            ("seed", f"seed: {config.seed} is unlucky."),
            ("kernels", "not said twice"),
            ("run.dir", "run.dir: lies nowhere."),
        ]

    with pytest.raises(ConfigError) as caught:
        compose(path, [], registry, [check])
    text = str(caught.value)
    assert f"{path}:4: seed: 4 is unlucky." in text
    assert f"{path}: run.dir: lies nowhere." in text
    assert f"{path}:5: kernels: expected" in text
    assert "not said twice" not in text
