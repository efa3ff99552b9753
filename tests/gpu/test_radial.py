"""Weights of edges that training makes again, on a CUDA device: the numbers, the memory, and that nobody waits."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from nequip_core.data.batch import Batch
from nequip_core.data.ghost import Ghost
from nequip_core.models.build import build_model
from nequip_core.o3 import Irrep, Irreps
from nequip_core.ops.contracts import LARGEST_WEIGHTS, NEQUIP_RADIAL_CONVOLUTION, ConvolutionSpec, RadialConvolutionSpec
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.testing.checks import make_case
from nequip_core.testing.kernels import check_kernel
from nequip_core.tracing import Sizes
from nequip_core.training.compiled import TOLERANCE, CompiledTraining, Sample, deviations, sample_batch
from nequip_core.training.loss import Loss, Term, mse
from nequip_kernels.radial import parts

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
LENGTHS = (86, 0, 71, 130, 99, 1, 64)
LOSS = Loss((Term("energy_per_atom", 1.0, mse(0.0)), Term("forces", 1.0, mse(0.0))))
KEYS = {"l_max": 2, "parity": False, "num_layers": 3, "num_features": 64, "radial_mlp": [128]}
"""A usual model: 704 weights for each edge in the middle layer."""


@pytest.mark.parametrize(
    ("l_max", "edges", "dtype"),
    [(1, 1, torch.float64), (1, 100, torch.float32), (2, 640, torch.float64), (2, 1_000_000, torch.float32)],
)
def test_numbers(l_max: int, edges: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one edge, of some that begin anywhere, of some that begin at multiples of 64, of all."""
    irreps = tuple(Irrep(degree, (-1) ** degree) for degree in range(l_max + 1))
    spec = RadialConvolutionSpec(ConvolutionSpec(Irreps((irrep, 64) for irrep in irreps), l_max, True, irreps), 128)
    monkeypatch.setattr(parts, "LARGEST_WEIGHTS", edges * spec.convolution.num_weights * dtype.itemsize)
    check_kernel("triton", spec, dtype, CUDA, atoms=8 if edges == 1 else 120, lengths=LENGTHS)


def potentials() -> Iterator[Potential]:
    """A model that stores its weights, and the same that does not."""
    registry = load_registry()
    case = make_case(registry.models["nequip"], KEYS).as_dtype("float32")
    for edges in (0.0, math.inf):
        ops = Ops(registry.kernels, device=CUDA, edges=edges)
        model = build_model(case.entry, case.config, ops)
        assert (NEQUIP_RADIAL_CONVOLUTION in ops.report) is (edges > 0)
        model.load_state_dict(case.potential.model.state_dict())
        yield Potential(model).to(CUDA).train()


def step(potential: Potential, batch: Batch) -> None:
    """As in training."""
    potential.zero_grad(set_to_none=True)
    LOSS(potential(batch.graph), batch).backward()


@contextmanager
def nobody_waits() -> Iterator[None]:
    """For the device, in this block."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.xdist_group("memory")
def test_memory_of_a_step() -> None:
    """400,000 edges: a step needs less by all weights and their gradients; figures are printed (pytest -s)."""
    edges, gradients, peaks, seconds = 400_000, [], [], []
    for potential in potentials():
        batch = sample_batch(potential, Sizes(32, 6000, edges), lambda one: one).to(CUDA)
        weights = sum(layer.radial.spec.widths[-1] * 4 * edges for layer in potential.model.architecture.layers)
        step(potential, batch)  # compiles
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        with nobody_waits():
            step(potential, batch)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        gradients.append({name: weight.grad for name, weight in potential.named_parameters()})
        del batch, potential
        torch.cuda.empty_cache()
    print(
        f"\nA step of {edges} edges takes {peaks[1] / 1e9:.2f} GB and {seconds[1] * 1e3:.1f} ms, with stored weights "
        f"{peaks[0] / 1e9:.2f} GB and {seconds[0] * 1e3:.1f} ms; all weights are {weights / 1e9:.2f} GB."
    )
    stored, again = ({name: g for name, g in one.items() if g is not None} for one in gradients)
    assert max(deviations(again, stored).values()) < TOLERANCE["float32"]
    assert weights > 3 * LARGEST_WEIGHTS
    assert peaks[1] < peaks[0] - 2 * weights + LARGEST_WEIGHTS


def test_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LARGEST_WEIGHTS", 200 * 704 * 4)
    _, potential = potentials()
    training = CompiledTraining(
        potential,
        LOSS,
        sample=Sample(Sizes(5, 127, 1511), Sizes(5, 127, 1511)),
        ghost=Ghost(1.2),
        check_every=1,
        dump=tmp_path / "deviation.safetensors",
        say=print,
    )
    training.prepare_training(CUDA)
    for seed, sizes in enumerate((Sizes(3, 100, 900), Sizes(16, 500, 9000), Sizes(2, 30, 0))):
        batch = sample_batch(potential, sizes, training.ghost, seed).to(CUDA)
        training.loss(batch)  # compares with eager
    report = training.report()
    assert (report["graphs"], report["breaks"], report["recompiles"]) == (1, 0, 0)
