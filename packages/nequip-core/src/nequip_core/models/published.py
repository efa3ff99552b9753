"""What all models of the published packages (nequip, nequip-allegro) have in common, as keys of `ModelConfig`.

A plugin's `ModelEntry.from_published(options, weights, versions)` gets the arguments of the published model's builder,
its state dict without the prefix of the wrappers, and the versions it was written with; it returns the keys of its
config that differ from the defaults, and the state dict of our `EnergyModel`. It takes each option from an `Options`,
which refuses, by name, those that nobody took.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nequip_core.errors import ArtifactError, InputError

Tensors = dict[str, Tensor]

IGNORED = ("seed", "compile_mode", "do_derivatives")
"""Options without meaning for the finished model; ours always gives forces and stress."""


class Converted(NamedTuple):
    """What `ModelEntry.from_published` returns.

    Attributes:
        config: keys of the model's config.
        weights: state dict of our `EnergyModel`.
    """

    config: dict[str, Any]
    weights: Tensors


class Options:
    """The arguments of a published model's builder; each is taken once."""

    def __init__(self, options: Mapping[str, Any], where: str = "model") -> None:
        self._left = dict(options)
        self._where = where

    def take(self, name: str, default: Any = None) -> Any:
        """An option's value; where it is absent, what the published package takes."""
        return self._left.pop(name, default)

    def need(self, name: str) -> Any:
        """The value of an option that every published model has.

        Raises:
            InputError: it is absent.
        """
        if self._left.get(name) is None:
            raise InputError(f"The published model has no {self._where}.{name}, which its builder needs.")
        return self.take(name)

    def refuse_unless(self, name: str, *allowed: Any) -> None:
        """Take an option of which we have these values only; the first one is the default.

        Raises:
            InputError: it has another value.
        """
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise InputError(
                f"The published model has {self._where}.{name}: {value!r}, which has no counterpart here (only "
                f"{' | '.join(map(repr, allowed))} has), so it can not be converted."
            )

    def finish(self) -> None:
        """Refuse what is left.

        Raises:
            InputError: options that nobody took.
        """
        for name in IGNORED:
            self._left.pop(name, None)
        if self._left:
            left = ", ".join(f"{self._where}.{name}: {value!r}" for name, value in sorted(self._left.items()))
            raise InputError(f"The published model has {left}, which has no counterpart here: it can not be converted.")


def common(options: Options, weights: Mapping[str, Tensor], versions: Mapping[str, str]) -> Converted:
    """The keys of `ModelConfig`, and the weights outside the architecture.

    Args:
        options: of the builder; the common ones are taken.
        weights: the published state dict. Empty: of a training config, whose words for what the training set decides
            are already ours.
        versions: of the packages that wrote the model.

    Raises:
        InputError: an option has no counterpart.
    """
    types = list(options.need("type_names"))
    cutoff = float(options.need("r_max"))
    # The weights hold the numbers, trained or not; without weights the options do.
    scales, shifts = options.take("per_type_energy_scales"), options.take("per_type_energy_shifts")
    state: Tensors = {}
    if weights:
        state["scale"] = _per_type(weights, "per_type_energy_scale_shift.scales", types, 1.0)
        state["shift"] = _per_type(weights, "per_type_energy_scale_shift.shifts", types, 0.0)
        scales, shifts = (dict(zip(types, state[name].tolist(), strict=True)) for name in ("scale", "shift"))
    if isinstance(shifts, (int, float)):
        shifts = dict.fromkeys(types, float(shifts))
    neighbors = options.take("avg_num_neighbors")
    p = float(options.take("polynomial_cutoff_p", 6))
    if p != int(p):
        raise InputError(f"The published model has model.polynomial_cutoff_p: {p}; here it must be a whole number.")
    config: dict[str, Any] = {
        "cutoff": cutoff,
        "types": types,
        "dtype": str(options.need("model_dtype")),
        "pair_cutoffs": _pair_cutoffs(options.take("per_edge_type_cutoff") or {}, types),
        "atomic_energies": "zero" if shifts is None else shifts,
        "train_atomic_energies": bool(options.take("per_type_energy_shifts_trainable", False)),
        "energy_scale": 1.0 if scales is None else scales,
        "train_energy_scale": bool(options.take("per_type_energy_scales_trainable", False)),
        "avg_num_neighbors": 1.0 if neighbors is None else neighbors,
        "polynomial_cutoff_p": int(p),
    }
    pair = options.take("pair_potential")
    if pair is not None:
        config |= _zbl(pair, types, finished=bool(weights))
        if p != 6 and versions["nequip"].startswith("0.16."):
            raise InputError(
                f"The published ZBL of nequip 0.16 is cut off with model.polynomial_cutoff_p, here {p:g}; ours always "
                "with 6: the model can not be converted."
            )
    return Converted(config, state)


def mlp(weights: Mapping[str, Tensor], prefix: str, nonlinearity: str | None) -> list[Tensor]:
    """The matrices of a published scalar MLP, scaled to ours.

    Args:
        weights: the published state dict.
        prefix: of the MLP, such as ``per_atom_energy_readout.mlp_module.``.
        nonlinearity: as its config has it. The word "None" (of YAML's ``None``) scales layers as if there were one.
    """
    # Linear ones of several layers keep a list; others a sequence of layers and activations.
    for form in ("mlp.weights.{}", "mlp.{}.weight"):
        indices = sorted(int(n) for n in _numbers(weights, f"{prefix}{form}"))
        if indices:
            matrices = [weights[f"{prefix}{form}".format(n)] for n in indices]
            gain = math.sqrt(2) if nonlinearity in ("None", "null") else 1.0
            return [matrix * (gain if n else 1.0) for n, matrix in enumerate(matrices)]
    raise InputError(f"The published model has no weights {prefix}mlp...: its config and weights do not fit together.")


def our_nonlinearity(options: Options, name: str) -> tuple[str, str | None]:
    """A published nonlinearity as our word and as it is written there.

    Raises:
        InputError: we don't have it.
    """
    value = options.take(name, "silu")
    word = "none" if value in (None, "None", "null") else value
    if word not in ("silu", "mish", "gelu", "none"):
        raise InputError(
            f"The published model has model.{name}: {value!r}. Here there are silu, mish, gelu and none: it can not be "
            "converted."
        )
    return word, value


def bessels(options: Options, weights: Mapping[str, Tensor], name: str, state: str, dtype: torch.dtype) -> Converted:
    """The keys of the Bessel basis; its frequencies where they are trained.

    Args:
        options: ``num_bessels`` and ``bessel_trainable`` are taken.
        weights: the published state dict.
        name: of the frequencies in it.
        state: of the frequencies in our state dict.
        dtype: of our parameters.
    """
    num, trained = int(options.take("num_bessels", 8)), bool(options.take("bessel_trainable", False))
    if not weights:
        return Converted({"num_bessels": num, "train_bessels": trained}, {})
    frequencies = weights[name].reshape(-1)
    # A model that was trained further with fixed frequencies may still hold trained ones.
    trained = trained or not torch.equal(frequencies.double(), torch.arange(1, num + 1, dtype=torch.float64))
    return Converted({"num_bessels": num, "train_bessels": trained}, {state: frequencies.to(dtype)} if trained else {})


def _numbers(weights: Mapping[str, Tensor], form: str) -> Iterator[str]:
    start, end = form.split("{}")
    for name in weights:
        if name.startswith(start) and name.endswith(end):
            number = name[len(start) : len(name) - len(end)]
            if number.isdecimal():
                yield number


def _per_type(weights: Mapping[str, Tensor], name: str, types: Sequence[str], absent: float) -> Float[Tensor, "types"]:
    value = weights[name].double().reshape(-1) if name in weights else torch.zeros(0, dtype=torch.float64)
    if value.numel() == 0:
        value = torch.tensor([absent], dtype=torch.float64)
    return value.expand(len(types)).clone() if value.numel() == 1 else value


def _pair_cutoffs(given: Mapping[str, Any], types: Sequence[str]) -> dict[str, dict[str, float]]:
    return {
        centre: {t: float(c) for t, c in row.items()} if isinstance(row, Mapping) else dict.fromkeys(types, float(row))
        for centre, row in given.items()
    }


def _zbl(given: Mapping[str, Any], types: Sequence[str], *, finished: bool) -> dict[str, Any]:
    """Of a finished model in eV, or of a training config, whose data may be in kcal/mol (units: real)."""
    name = str(given["_target_"]).rpartition(".")[2]
    if name != "ZBL":
        raise InputError(
            f"The published model has model.pair_potential {name}; of the pair potentials only ZBL can be converted "
            "(the Lennard-Jones ones of nequip 0.16 to 0.19 give arrays of wrong shapes in their own package)."
        )
    options = Options(given, "model.pair_potential")
    options.take("_target_")
    options.refuse_unless("units", "metal", *(() if finished else ("real",)))
    options.refuse_unless("polynomial_cutoff_p", 6)
    species = list(options.need("chemical_species"))
    options.finish()
    return {"zbl": True, "elements": {t: e for t, e in zip(types, species, strict=True) if t != e}}


def dtype_of(config: Mapping[str, Any]) -> torch.dtype:
    """The dtype that a config names.

    Raises:
        ArtifactError: it is none of a model.
    """
    known = {"float32": torch.float32, "float64": torch.float64}
    if config["dtype"] not in known:
        raise ArtifactError(f"The published model has model_dtype {config['dtype']!r}; expected float32 or float64.")
    return known[config["dtype"]]
