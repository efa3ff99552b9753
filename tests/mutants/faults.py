"""The planted faults: one substitution each, and the quick tests of which at least one must fail."""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """A small change of the package that makes it wrong.

    Attributes:
        name: what is wrong then.
        file: under src/nequip_core.
        old: text that occurs there exactly once.
        new: in its place.
        tests: under tests/, as pytest takes them.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def law(*names: str, of: str = "TestEveryModel") -> tuple[str, ...]:
    """Tests of the conformance suite."""
    return tuple(f"physics/test_conformance.py::{of}::test_{name}" for name in names)


FAULTS = (
    # Derivatives and their signs
    Fault("force sign", "potential.py", "forces=pulled - pushed", "forces=pushed - pulled", law("forces")),
    Fault(
        "stress sign",
        "potential.py",
        "return -0.5 * (virial + virial.mT)",
        "return 0.5 * (virial + virial.mT)",
        law("virial_and_stress"),
    ),
    Fault(
        "stress not symmetrised",
        "potential.py",
        "-0.5 * (virial + virial.mT)",
        "-virial",
        ("physics/test_conventions.py::test_stress_is_symmetrised",),
    ),
    Fault(
        "volume of another structure",
        "potential.py",
        "/ volume[:, None, None]",
        "/ volume.roll(1)[:, None, None]",
        law("virial_and_stress"),
    ),
    Fault(
        "atomic virials of the centres",
        "potential.py",
        "segment_sum(torch.cat([gradient, products], dim=1), *by_neighbor).split_with_sizes([3, 9], dim=1)",
        "segment_sum(gradient, *by_neighbor), segment_sum(products, centre, graph.row_ptr)",
        law("atomic_virials"),
    ),
    Fault(
        "ghosts' energies are counted",
        "potential.py",
        "counted = graph.local.to(atomic_energy.dtype)",
        "counted = torch.ones_like(atomic_energy)",
        law("single_energies"),
    ),
    Fault(
        "forces can not be trained",
        "potential.py",
        "create_graph=self.training",
        "create_graph=False, retain_graph=self.training",
        law("weight_gradients"),
    ),
    Fault(
        "gather is not differentiated",
        "ops/segment.py",
        "_GATHER(x, index, ptr, order)",
        "_GATHER(x.detach(), index, ptr, order)",
        law("forces"),
    ),
    # Graph and neighbours
    Fault(
        "transposed cell shift",
        "graph.py",
        "edge_shift=torch.from_numpy(shift @ cell)",
        "edge_shift=torch.from_numpy(shift @ cell.T)",
        law("lattice_shifts"),
    ),
    Fault(
        "one edge dropped",
        "graph.py",
        "kept = distance < pair_cutoffs[types[centre], types[neighbor]]",
        "kept = (distance < pair_cutoffs[types[centre], types[neighbor]]) & (np.arange(len(distance)) != 0)",
        law("extensivity"),
    ),
    Fault(
        "pair cut-offs transposed in the graph",
        "graph.py",
        "pair_cutoffs[types[centre], types[neighbor]]",
        "pair_cutoffs[types[neighbor], types[centre]]",
        law("smoothness"),
    ),
    Fault(
        "pair cut-offs transposed in the basis",
        "nn/radial.py",
        "self.reciprocal[centre, neighbor]",
        "self.reciprocal[neighbor, centre]",
        law("smoothness"),
    ),
    Fault(
        "edges not sorted by neighbour",
        "graph.py",
        "np.argsort(neighbor * len(neighbor) + np.arange(len(neighbor)))",
        "np.arange(len(neighbor))",
        ("core/test_graph.py",),
    ),
    Fault(
        "batch index off by one",
        "graph.py",
        "graph.structure_ptr.shape[0] - 1 for",
        "graph.structure_ptr.shape[0] for",
        law("batch"),
    ),
    Fault(
        "pointers of a batch not shifted",
        "graph.py",
        'neighbor_ptr=pointers("neighbor_ptr", edges)',
        'neighbor_ptr=pointers("neighbor_ptr", [0] * len(graphs))',
        ("core/test_graph.py",),
    ),
    Fault(
        "skin list never made anew",
        "neighbors/skin.py",
        "(0.5 * self.skin) ** 2",
        "float('inf')",
        ("core/test_neighbors.py::test_skin_holds_every_pair_on_the_way",),
    ),
    Fault(
        "skin list made anew too late",
        "neighbors/skin.py",
        "(0.5 * self.skin) ** 2",
        "(2.0 * self.skin) ** 2",
        ("core/test_neighbors.py::test_skin_holds_every_pair_on_the_way",),
    ),
    Fault(
        "volume without three periodic directions",
        "structure.py",
        "if self.pbc.all() else None",
        "if self.pbc.any() else None",
        law("virial_and_stress"),
    ),
    # Models
    Fault(
        "E0 in float32",
        "models/base.py",
        "+ of_types(self.shift, graph.types)",
        "+ of_types(self.shift, graph.types).float()",
        law("isolated_atom"),
    ),
    Fault(
        "first layer with self-connection",
        "models/nequip.py",
        "None if first else SelfConnection",
        "SelfConnection",
        law("isolated_atom"),
    ),
    Fault(
        "number of neighbours of the sender",
        "models/nequip.py",
        'self.norm_of_sender = config.avg_num_neighbors_of == "sender"',
        'self.norm_of_sender = config.avg_num_neighbors_of == "receiver"',
        ("core/models/test_nequip.py::test_receiver_counts_its_own_neighbors",),
    ),
    Fault(
        "no exchange between domains",
        "models/nequip.py",
        "identity if first else ops.exchange",
        "identity",
        ("core/models/test_nequip.py::test_two_domains_are_one",),
    ),
    Fault(
        "sum to the neighbours",
        "ops/reference.py",
        "segment_sum(messages, graph.edge_index[0], graph.row_ptr)",
        "segment_sum(messages, graph.edge_index[1], graph.neighbor_ptr, graph.by_neighbor)",
        ("core/ops/test_reference.py::test_the_contract_as_written",),
    ),
    Fault(
        "harmonics of even parity",
        "ops/contracts.py",
        "(-1) ** l_edge if self.parity else 1",
        "1",
        law("inversion", of="TestNequIP"),
    ),
    Fault(
        "silu on odd scalars",
        "nn/gate.py",
        "torch.tanh(x[irrep])",
        "nn.functional.silu(x[irrep])",
        law("inversion", of="TestDeepNequIP"),
    ),
    Fault(
        "envelope that does not vanish smoothly",
        "nn/radial.py",
        "a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2",
        "a, b, c = 0.0, 0.0, 0.0",
        ("core/nn/test_radial.py::test_envelope_vanishes_with_two_derivatives",),
    ),
    Fault("nuclear repulsion twice", "models/zbl.py", "0.5 * COULOMB", "COULOMB", ("physics/test_conventions.py",)),
    # Data
    Fault(
        "wrong unit of stress",
        "units.py",
        '"kbar": 0.1 *',
        '"kbar":',
        ("core/test_units.py::test_factors",),
    ),
    Fault(
        "lattice vectors not converted",
        "data/read.py",
        "np.asarray(atoms.cell.array) * self.length",
        "np.asarray(atoms.cell.array)",
        ("core/data/test_read.py::test_units_and_sign",),
    ),
    Fault(
        "sign of the virial in a file",
        "data/read.py",
        "return -virial / abs(",
        "return virial / abs(",
        ("core/data/test_read.py::test_virial_becomes_stress",),
    ),
    Fault(
        "missing forces are zero forces",
        "data/dataset.py",
        '"forces": frames.column("has_forces")',
        '"forces": np.ones(len(frames), dtype=bool)',
        ("core/data/test_dataset.py::test_labels_and_masks",),
    ),
    Fault(
        "stress of a slab is trained on",
        "data/dataset.py",
        'frames.column("has_stress") & self._periodic',
        'frames.column("has_stress")',
        ("core/data/test_dataset.py",),
    ),
    Fault(
        "neighbours counted by the sender's type",
        "data/dataset.py",
        "np.bincount(centre, minlength=len(one))",
        "np.bincount(neighbor, minlength=len(one))",
        ("core/data/test_statistics.py::test_neighbours_by_receiver_with_lonely_atoms_in_the_middle",),
    ),
    Fault(
        "split by the seed of the run",
        "config/build.py",
        "seed=shares.seed",
        "seed=config.seed",
        ("core/cli/test_train.py::test_another_seed_is_another_run",),
    ),
    Fault(
        "the same order in every epoch",
        "data/loader.py",
        "default_rng([seed, epoch])",
        "default_rng([seed])",
        ("core/data/test_loader.py",),
    ),
    Fault(
        "last structures never validated",
        "data/loader.py",
        "range(0, len(mine), size)",
        "range(0, len(mine) - size + 1, size)",
        ("core/data/test_loader.py::test_validation_has_every_structure_once_in_order",),
    ),
    # Training
    Fault(
        "energy error not per atom",
        "training/loss.py",
        "whole.value / batch.graph.structure_ptr.diff()",
        "whole.value",
        ("core/training/test_loss.py",),
    ),
    Fault(
        "unlabelled structures are counted",
        "training/loss.py",
        "self.mask.sum().double()",
        "torch.tensor(float(len(self.mask)))",
        ("core/training/test_loss.py", "core/training/test_metrics.py"),
    ),
    Fault(
        "micro-batches divided by their own labels",
        "data/dataset.py",
        "denominators or self.denominators(numbers)",
        "self.denominators(numbers)",
        ("core/data/test_dataset.py::test_given_denominators_stay",),
    ),
    Fault(
        "validation without the averaged weights",
        "training/ema.py",
        "parameter.data, self.average[n] = self.average[n], parameter.data",
        "parameter.data = parameter.data",
        ("core/training/test_module.py::test_validation_uses_the_average_and_leaves_the_weights",),
    ),
    Fault(
        "packages without the averaged weights",
        "training/checkpoint.py",
        '{**trained, **ema["average"]}',
        "{**trained}",
        ("core/training/test_module.py::test_validation_uses_the_average_and_leaves_the_weights",),
    ),
    Fault(
        "average of the wrong end",
        "training/ema.py",
        "1 - decay)",
        "decay)",
        ("core/training/test_ema.py::test_it_follows_the_formula",),
    ),
    Fault(
        "checkpoint without optimizer state",
        "training/checkpoint.py",
        'optimizer = rest.pop("optimizer_states")',
        'optimizer = [{**one, "state": {}} for one in rest.pop("optimizer_states")]',
        ("core/training/test_module.py::test_resume_at_epoch_end_is_bitwise",),
    ),
    Fault(
        "another order of batches after a resume",
        "data/datamodule.py",
        'self.steps.seek(state_dict["epoch"], state_dict["step"])',
        "self.steps.seek(0, 0)",
        ("core/training/test_module.py::test_resume_at_epoch_end_is_bitwise",),
    ),
    # Engines
    Fault(
        "forces of the old positions",
        "moving.py",
        "self._wide._replace(positions=torch.tensor(positions, dtype=torch.float64, device=self.device))",
        "self._wide",
        ("core/engines/test_ase.py::test_skin_has_no_effect_on_a_trajectory",),
    ),
    Fault(
        "stress of the wrong sign in ASE",
        "engines/ase.py",
        "voigt(virial[0]) / -volume",
        "voigt(virial[0]) / volume",
        ("core/engines/test_ase.py::test_forces_and_stress_are_derivatives_of_the_energy",),
    ),
    Fault(
        "drift per frame in place of time",
        "engines/dynamics.py",
        '"time_fs": step * timestep',
        '"time_fs": float(step)',
        ("core/engines/test_dynamics.py::test_nve_log_and_trajectory",),
    ),
    # Batches on their way
    Fault(
        "narrow numbers before wide ones in a packed batch",
        "data/packed.py",
        "key=lambda n: -tensors[n].element_size()",
        "key=lambda n: tensors[n].element_size()",
        ("core/data/test_packed.py::test_a_batch_comes_out_as_it_went_in",),
    ),
    Fault(
        "a packed batch whose tensors share memory",
        "data/packed.py",
        "tensors = [torch.empty_like(view) for view in views]",
        "tensors = views",
        ("core/data/test_packed.py::test_each_tensor_has_memory_of_its_own",),
    ),
    Fault(
        "a loader that goes on from where the last epoch ended, whatever is asked for",
        "data/loader.py",
        "self._going is None or self._upcoming != (epoch, self.sampler.begin)",
        "self._going is None",
        ("core/data/test_loader.py::test_each_iteration_is_an_epoch",),
    ),
    Fault(
        "workers that stop at the end of an epoch",
        "data/loader.py",
        "self._upcoming = epoch + 1, 0",
        "self._upcoming = None",
        ("core/data/test_loader.py::test_workers_begin_the_next_epoch_while_one_ends",),
    ),
    Fault(
        "time of steps without the device's",
        "training/pace.py",
        "if trainer.is_last_batch:",
        "if False:",
        ("core/training/test_pace.py::test_steps_say_how_long_they_took_and_waited",),
    ),
    Fault(
        "what ranks told each other in the step before, told again",
        "training/strategy.py",
        "        self.table.zero_()\n",
        "",
        ("distributed/test_exchanges.py",),
    ),
    # Recorded steps
    Fault(
        "a recording that serves after atoms have moved too far",
        "recorded_steps.py",
        "held = held and self._is_within_reach()",
        "pass",
        ("core/test_moving.py::test_after_a_change", "core/test_moving.py::test_a_walk"),
    ),
    Fault(
        "a recording that serves without room for all edges",
        "recorded_steps.py",
        "held = edges <= self._room.edges and not overlaps",
        "held = not overlaps",
        ("core/test_moving.py::test_more_edges_than_there_is_room_for",),
    ),
    Fault(
        "indices beyond a recording's memory",
        "recorded_steps.py",
        "[last, last, last - 1]",
        "[last, last, 2 * last]",
        ("core/test_moving.py::test_more_edges_than_there_is_room_for",),
    ),
    Fault(
        "edges without use on no atom",
        "recorded_steps.py",
        "torch.where(used, index, room.owner)",
        "torch.where(used, index, 0)",
        ("core/test_moving.py::test_a_walk",),
    ),
    Fault(
        "a recording that serves in another box",
        "recorded_steps.py",
        "and not any(changed)",
        "",
        ("core/test_moving.py::test_another_box_is_told_by_the_device",),
    ),
    Fault(
        "a recorded list that serves in another cell",
        "recorded_steps.py",
        "if self._list is not None and not self._list.moves_to(listed):",
        "if False:",
        ("core/test_moving.py::test_lists_in_another_cell",),
    ),
    Fault(
        "a recorded list that serves without room for all edges",
        "recorded_steps.py",
        "and not lacking and",
        "and",
        ("core/test_moving.py::test_a_list_for_which_there_is_no_room_is_launched",),
    ),
    Fault(
        "edges of another cell serve",
        "skin.py",
        "self.listed._replace(cells=cells.copy()), True",
        "self.listed._replace(cells=cells.copy()), False",
        ("core/test_moving.py::test_without_room_in_another_cell",),
    ),
    Fault(
        "a recorded list that looks less far than a cell wants",
        "neighbors/device.py",
        "> self._plan.near)",
        "> 2 * self._plan.near)",
        ("core/neighbors/test_device.py::test_cells_that_want_another_fixed_list",),
    ),
    Fault(
        "steps in cells that change, recorded again and again",
        "recorded_steps.py",
        "_changes(listed, before) and self._since >= STEPS_BETWEEN",
        "_changes(listed, before)",
        ("core/test_moving.py::test_steps_of_a_cell_that_changes_much_are_recorded_now_and_then",),
    ),
    Fault(
        "the box of now is not told to a recording in it",
        "recorded_steps.py",
        "            rest.unchanged.copy_(watched)\n",
        "            pass\n",
        ("openmm/test_torch_operator.py::test_recorded_steps",),
    ),
    Fault(
        "memory that a recorded list reads and nobody keeps",
        "recorded_steps.py",
        "made = _List(listed, edges, ",
        "made = _List(listed, None, ",
        ("core/test_moving.py::test_what_recordings_read_is_kept",),
    ),
    Fault(
        "candidates beyond those that there are",
        "neighbors/device.py",
        " & (number < until[-1:])",
        "",
        ("core/neighbors/test_device.py::test_a_fixed_list_is_the_list_wherever_atoms_go",),
    ),
    Fault(
        "all pairs of types reach as far in a recorded list",
        "skin.py",
        "if self._limits is not None:",
        "if False:",
        ("core/test_skin.py::test_edges_in_tensors_of_fixed_sizes",),
    ),
    Fault(
        "weights of training that moved since they were recorded",
        "training/graphs.py",
        "if places != self._as_recorded:",
        "if False:",
        ("core/training/test_graphs.py::test_weights_that_move_are_found",),
    ),
    Fault(
        "an atom of the ghost with all its edges",
        "data/ghost.py",
        "atoms - (-edges // ROW)",
        "atoms + 1",
        ("core/training/test_compiled.py::test_the_ghost_rounds_sizes_up",),
    ),
)
