"""A class of tests that a model must pass. In a plugin's tests, this is all::

    from nequip_core.testing.conformance import ModelConformance


    class TestMyModel(ModelConformance):
        model = "my_model"
        variations = ModelConformance.variations | {"deep": {"num_layers": 4}}

Without ``model`` every registered model is tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from nequip_core.plugins.manager import find, load_registry
from nequip_core.plugins.records import ModelEntry
from nequip_core.testing import checks
from nequip_core.testing.checks import Case

ASYMMETRIC_CUTOFFS = {"H": {"H": 2.4, "O": 2.8}, "O": {"H": 2.5, "Ow": 2.6}, "Ow": {"H": 2.7}}
"""Every pair of different types has two cut-offs; at most `systems.CUTOFF`."""


class ModelConformance:
    """One test for each law of `nequip_core.testing.checks`, for each model and variation.

    Attributes:
        model: a registered model; empty: all of them.
        variations: by name, keys of the model's config on top of its ``tiny`` ones and `checks.COMMON_KEYS`.

    A model whose energy may differ between mirror images (SO(3) instead of O(3)) says so by overriding one test::

        def test_inversion(self, nequip_case):
            checks.no_inversion(nequip_case)
    """

    model: ClassVar[str] = ""
    variations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {},
        "pair cut-offs": {"pair_cutoffs": ASYMMETRIC_CUTOFFS, "avg_num_neighbors": {"H": 4.0, "O": 9.0, "Ow": 6.0}},
        "zbl, trained scales": {"zbl": True, "train_energy_scale": True, "train_atomic_energies": True},
    }

    @classmethod
    def cases(cls) -> dict[str, tuple[ModelEntry, Mapping[str, Any]]]:
        """What the tests run on, by name: arguments of `checks.make_case`."""
        models = load_registry().models
        chosen = [find(models, cls.model, "model")] if cls.model else models.values()
        return {f"{entry.name}, {name}": (entry, keys) for entry in chosen for name, keys in cls.variations.items()}

    def test_rotation(self, nequip_case: Case) -> None:
        """Energies stay, vectors and tensors turn with the structure."""
        checks.rotation(nequip_case)

    def test_inversion(self, nequip_case: Case) -> None:
        """The same for reflections."""
        checks.inversion(nequip_case)

    def test_translation(self, nequip_case: Case) -> None:
        """Nothing changes when all atoms move together."""
        checks.translation(nequip_case)

    def test_lattice_shifts(self, nequip_case: Case) -> None:
        """Nothing changes when an atom moves by lattice vectors."""
        checks.lattice_shifts(nequip_case)

    def test_permutation(self, nequip_case: Case) -> None:
        """Outputs follow the order of the atoms."""
        checks.permutation(nequip_case)

    def test_extensivity(self, nequip_case: Case) -> None:
        """A supercell is so many cells."""
        checks.extensivity(nequip_case)

    def test_batch(self, nequip_case: Case) -> None:
        """A structure in a batch gives what it gives alone."""
        checks.batch(nequip_case)

    def test_isolated_atom(self, nequip_case: Case) -> None:
        """An atom without neighbours has exactly its E0."""
        checks.isolated_atom(nequip_case)

    def test_inputs_not_mutated(self, nequip_case: Case) -> None:
        """Inputs stay as they are."""
        checks.inputs_not_mutated(nequip_case)

    def test_forces(self, nequip_case: Case) -> None:
        """Forces are -dE/dx."""
        checks.forces(nequip_case)

    def test_virial_and_stress(self, nequip_case: Case) -> None:
        """The virial is -dE/dstrain, stress dE/dstrain / V."""
        checks.virial_and_stress(nequip_case)

    def test_atomic_virials(self, nequip_case: Case) -> None:
        """Atomic virials are those of the edges to each neighbour."""
        checks.atomic_virials(nequip_case)

    def test_single_energies(self, nequip_case: Case) -> None:
        """Forces and virial of a single atom's energy."""
        checks.single_energies(nequip_case)

    def test_weight_gradients(self, nequip_case: Case) -> None:
        """Gradients by the weights of losses of energies, forces and virials."""
        checks.weight_gradients(nequip_case)

    def test_one_graph(self, nequip_case: Case) -> None:
        """The traced graph serves all sizes and has the weight gradients of eager."""
        checks.one_graph(nequip_case)

    def test_smoothness(self, nequip_case: Case) -> None:
        """Energies and forces are continuous at each cut-off."""
        checks.smoothness(nequip_case)

    def test_locality(self, nequip_case: Case) -> None:
        """message_passing_layers is what the model does."""
        checks.locality(nequip_case)

    def test_float32(self, nequip_case: Case) -> None:
        """A float32 model agrees with float64."""
        checks.float32(nequip_case)
