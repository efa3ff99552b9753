"""The kernels as Triton's compiler and torch's tracers see them, for an H100, without one."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor, fx
from torch._higher_order_ops.triton_kernel_wrap import identify_accessed_tensors, kernel_side_table

from nequip_core.o3 import SCALAR, Irrep, Irreps
from nequip_core.ops.contracts import ALLEGRO_CONTRACT, SCALAR_MLP, ContractionSpec, ConvolutionSpec, ScalarMLPSpec
from nequip_core.tracing import Sizes, trace
from nequip_kernels import blocks, contraction, convolution, sources
from nequip_kernels.blocks import Block, choose
from nequip_kernels.contraction import kernels as contraction_kernels
from nequip_kernels.contraction.kernels import in_table
from nequip_kernels.contraction.table import Table
from nequip_kernels.convolution import kernels as convolution_kernels
from nequip_kernels.mlp.kernels import ANY_CHANNELS, in_registers

CHANNELS = 64
HARMONICS = (SCALAR, Irrep(1, -1))
CONTRACTION = ContractionSpec(HARMONICS, HARMONICS, 1, CHANNELS, True, False, scalars_apart=True)
CONVOLUTION = ConvolutionSpec(Irreps([(SCALAR, 64), (Irrep(1, -1), 32)]), 1, True, HARMONICS)
EXAMPLE, LEAST = Sizes(3, 23, 101), Sizes(1, 1, 1)
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def resources() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resources", Path(__file__).with_name("resources.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["backward"])
def test_a_kernel_fits_an_h100(name: str, resources: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    """Compiled here, not taken from Triton's cache: no spilled registers, no atomics."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = resources.of_contraction(CONTRACTION, torch.float32, name)
    assert found.registers <= 128  # so that 16 warps fit a multiprocessor
    assert (found.stack, found.atomics) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_network_with_several_hidden_layers_compiles(
    dtype: torch.dtype, resources: ModuleType, tmp_path: Path, monkeypatch: Any
) -> None:
    """The interpreter does not see that a name changes its shape within a loop; the compiler does."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    spec = ScalarMLPSpec((8,), (16, 16), (9,), "silu")
    for name in ("forward", "backward"):
        block = choose("sm_90", SCALAR_MLP, name, dtype, in_registers(spec), ANY_CHANNELS)
        assert resources.of_mlp(spec, dtype, name, block).atomics == 0


@pytest.mark.slow
@pytest.mark.parametrize("l_max", [1, 2])
@pytest.mark.parametrize("parity", [True, False], ids=["parity", "no parity"])
def test_registers_of_usual_models(l_max: int, parity: bool, resources: ModuleType) -> None:
    for spec in resources.contractions(l_max, parity, 3, CHANNELS):
        for name in contraction_kernels.NAMES:
            terms = len(Table(spec, spec.l_max + 1).terms)
            of_any = choose("any", ALLEGRO_CONTRACT, in_table(name, spec), torch.float32, terms, CHANNELS)
            # Tuned blocks are those that were fastest, a few bytes of local memory or not.
            for block, most in ((of_any, 16), (None, 64)):
                found = resources.of_contraction(spec, torch.float32, name, block)
                assert found.stack <= most, (spec, name, found)
                assert found.atomics == 0


class Driver:
    """Of a GPU that is not here: says which one it is, and nothing else."""

    def get_current_target(self) -> Any:
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)


@pytest.fixture
def absent_gpu() -> Iterator[None]:
    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(Driver())
    yield
    triton.runtime.driver._active = before


def launches(function: Any, shapes: list[tuple[str | int, ...]], *of_indices: tuple[str | int, ...]) -> fx.GraphModule:
    """The graph of a function of CUDA tensors, of which only shapes and types exist: float32 ones, then indices."""
    kinds = [torch.float32] * len(shapes) + [torch.int64] * len(of_indices)
    examples: list[Any] = [SimpleNamespace(dtype=kind, device=CUDA) for kind in kinds]
    return trace(function, [], examples, [*shapes, *of_indices], EXAMPLE, LEAST)


def accessed(graph: fx.GraphModule) -> dict[str, set[str]]:
    """Each launch with the arguments that its kernel writes to, as torch finds them in the kernel's code."""
    found = {}
    for node in graph.graph.nodes:
        if node.target is torch.ops.higher_order.triton_kernel_wrapper_mutation:
            kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
            given = {
                name: one.meta["val"] if isinstance(one, fx.Node) else one
                for name, one in node.kwargs["kwargs"].items()
            }
            given |= kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"])
            writes = identify_accessed_tensors(kernel, given, {}).read_writes.writes
            found[kernel.fn.__name__] = {one.name for one in writes}
    return found


def test_launches_of_the_contraction_are_traced_and_write_their_results_only(absent_gpu: None) -> None:
    """What a kernel is thought to write to, torch.compile copies first: so this is that nothing is copied."""
    text = contraction_kernels.describe(CONTRACTION, "sm_90", torch.float32)
    kernels = contraction_kernels.kernels_of(text, 2)

    def all_kernels(
        T: Tensor, w: Tensor, Y: Tensor, W: Tensor, g: Tensor, s: Tensor, v: Tensor, row_ptr: Tensor
    ) -> list[Tensor]:
        return [
            *kernels.forward(T, w, Y, W, row_ptr),
            *kernels.backward(T, w, Y, W, v, g, s, row_ptr),
            *kernels.double_backward(T, w, Y, W, v, g, s, v, T, w, Y, row_ptr),
            kernels.by_weights(T, Y, v, g, s, row_ptr),
            kernels.double_by_weights(T, Y, v, g, s, T, Y, v, row_ptr),
        ]

    rows: list[tuple[str | int, ...]] = [("edges", 4, CHANNELS), ("edges", 2, CHANNELS), ("edges", 4), (4, CHANNELS)]
    shapes = [*rows, ("edges", 4, CHANNELS), ("edges", CHANNELS), ("atoms", 4, CHANNELS)]
    graph = launches(all_kernels, shapes, ("atoms_and_one",))
    assert not [node for node in graph.graph.nodes if "clone" in str(node.target)]
    assert accessed(graph) == {
        "contract_forward": {"out", "environment", "scalars"},
        "contract_backward": {"d_features", "d_env_weights", "d_harmonics", "d_environment"},
        "contract_double_backward": {
            *("of_grad", "of_scalar_grad", "of_features", "of_env_weights", "of_harmonics", "to_environment"),
        },
        "contract_by_weights": {"sums"},
        "contract_double_by_weights": {"sums"},
    }


def test_launches_of_the_convolution_are_traced_and_write_their_results_only(absent_gpu: None) -> None:
    text = convolution_kernels.describe(CONVOLUTION, "sm_90", torch.float32)
    kernels = convolution_kernels.kernels_of(text)

    def all_kernels(h: Tensor, Y: Tensor, R: Tensor, g: Tensor, neighbor: Tensor, pointers: Tensor) -> list[Tensor]:
        return [
            kernels.forward(h, Y, R, neighbor, pointers),
            *kernels.backward(h, Y, R, g, neighbor, pointers, neighbor, pointers),
            *kernels.double_backward(h, Y, R, g, h, Y, R, neighbor, pointers, neighbor, pointers),
        ]

    dims = CONVOLUTION.irreps_in.dim, CONVOLUTION.num_weights, CONVOLUTION.irreps_out.dim
    shapes: list[tuple[str | int, ...]] = [("atoms", dims[0]), ("edges", 4), ("edges", dims[1]), ("atoms", dims[2])]
    found = accessed(launches(all_kernels, shapes, ("edges",), ("atoms_and_one",)))
    assert found["convolve_collect"] == {"out"}
    for n in range(2):
        assert found[f"convolve_forward_{n}"] == {"out"}
        assert found[f"convolve_backward_{n}"] == {"messages", "d_harmonics", "d_weights"}
        assert found[f"convolve_double_backward_{n}"] == {"of_grad", "messages", "of_harmonics", "of_weights"}


def test_source_is_the_same_in_every_process_and_its_hash_part_of_the_operator() -> None:
    for spec, describe in (
        (CONTRACTION, contraction_kernels.describe),
        (CONVOLUTION, convolution_kernels.describe),
    ):
        text = describe(spec, "sm_90", torch.float32)  # type: ignore[arg-type]
        assert text == describe(spec, "sm_90", torch.float32)  # type: ignore[arg-type]
        assert len(json.loads(text)["code"]) == 16
        assert json.loads(text)["spec"]
    assert contraction.table.read_spec(contraction_kernels.describe(CONTRACTION, "any", torch.float32)) == CONTRACTION
    assert convolution.table.read_spec(convolution_kernels.describe(CONVOLUTION, "any", torch.float32)) == CONVOLUTION


def test_a_source_that_somebody_changed_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEQUIP_CACHE_DIR", str(tmp_path))
    text = "value = 1\n"
    path = tmp_path / "kernels" / f"nequip_kernels_{sources.fingerprint(text)}.py"
    path.parent.mkdir()
    path.write_text("raise RuntimeError\n")
    assert sources.load(text).value == 1
    assert path.read_text() == text


def test_blocks_are_those_of_the_architecture_and_tuned_ones_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEQUIP_CACHE_DIR", str(tmp_path))
    about = ("allegro.contract/1", "forward", torch.float32)
    blocks.rows.cache_clear()
    packaged = blocks.choose("sm_12345", *about, 100, 64)
    assert packaged != blocks.choose("sm_90", *about, 83, 64)  # which was measured
    # Fewer channels than the table's: more edges in their place.
    small = blocks.choose("sm_12345", *about, 100, 20)
    assert (small.channels, small.channels * small.edges) == (32, packaged.channels * packaged.edges)
    rows = [
        {"architecture": "sm_90", "op": about[0], "kernel": "forward", "dtype": "float32", "terms": terms, "block": b}
        for terms, b in ((83, [64, 1, 1]), (137, [64, 8, 4]))  # as in the package
    ]
    blocks.tuned_file().parent.mkdir()
    blocks.tuned_file().write_text(json.dumps({"schema": 1, "rows": rows}))
    blocks.rows.cache_clear()
    try:
        assert blocks.choose("sm_90", *about, 83, 64) == Block(64, 1, 1)
        assert blocks.choose("sm_90", *about, 84, 64) == Block(64, 8, 4)
        assert blocks.choose("sm_90", *about, 612, 64) == packaged
        assert blocks.choose("sm_80", *about, 83, 64) == packaged
    finally:
        blocks.rows.cache_clear()
