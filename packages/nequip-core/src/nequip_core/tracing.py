"""From a function of weights and a graph's tensors to one graph of primitive operators, for any number of atoms.

torch.fx writes down what the function does, derivatives included, with sizes that are symbols: structures, atoms and
edges. What else would be decided by the numbers of one batch (a branch on a size, a value that is read) is refused with
its place in the code: such a graph would be wrong for other batches.

The detach nodes that torch puts around saved tensors are taken apart: left in, they would cut the weights' gradients of
a loss of forces, while all outputs stay right.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from nequip_core.errors import NequipError
from nequip_core.graph import Graph
from nequip_core.models.base import ModelInfo


class Sizes(NamedTuple):
    """How many of each a batch has."""

    structures: int
    atoms: int
    edges: int


AXES = (*Sizes._fields, "structures_and_one", "atoms_and_one")
"""Names of the axes whose length is a symbol; all others have a fixed one."""


class TraceError(NequipError):
    """A function that can not be one graph for all batches."""


def axes(kind: type) -> list[tuple[str | int, ...]]:
    """For each tensor of a NamedTuple, its axes: a name of `AXES`, or a length; from its annotations."""
    hints = get_type_hints(kind)
    return [
        tuple(word if word in AXES else int(word) for word in hints[name].dim_str.split())
        for name in kind._fields  # type: ignore[attr-defined]  # a NamedTuple
    ]


def trace(
    function: Callable[..., Any],
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
    inputs_axes: Sequence[tuple[str | int, ...]],
    sizes: Sizes,
    smallest: Sizes,
    operators: Mapping[Any, Callable[..., Any]] | None = None,
) -> fx.GraphModule:
    """The graph of ``function(*parameters, *inputs)``, with as many structures, atoms and edges as there may be.

    Args:
        function: of tensors only, one after the other.
        parameters: of fixed shapes, inputs of the graph.
        inputs: an example, of which dtypes and device count.
        inputs_axes: of each input, see `axes`.
        sizes: of the example; torch reasons with them where it needs some number.
        smallest: below which the graph is not to be used.
        operators: that are written out, each as what this function does in its place.

    Raises:
        TraceError: what the function does depends on values or sizes; the message names the operator and the line.
    """
    environment = _OpenSizes(duck_shape=False, allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    lengths = _symbols(environment, sizes, smallest)
    with mode:
        fakes: list[Tensor] = [mode.from_tensor(parameter, static_shapes=True) for parameter in parameters]
        for tensor, names in zip(inputs, inputs_axes, strict=True):
            shape = [lengths[name] if isinstance(name, str) else name for name in names]
            fakes.append(torch.empty(shape, dtype=tensor.dtype, device=tensor.device))
    # In one thread, since another thread of autograd would not see the table of decompositions (torch 2.12).
    with mode, torch.autograd.set_multithreading_enabled(False), environment.kept_open(), _located(lengths):
        table = {**core_aten_decompositions(), **(operators or {})}
        traced = make_fx(function, table, tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)
    for node in traced.graph.nodes:
        if node.target is torch.ops.aten.detach.default:
            raise TraceError(
                f"The traced graph holds a detach node ({node}), with which the weights' gradients would be wrong. "
                "This is our fault: please report it, with the torch version, and train with training.compile=false."
            )
    return traced


def _symbols(environment: ShapeEnv, sizes: Sizes, smallest: Sizes) -> dict[str, Any]:
    """A symbolic length for each name of `AXES`."""
    lengths: dict[str, Any] = {}
    for name, size, least in zip(Sizes._fields, sizes, smallest, strict=True):
        source = ConstantSource(name)
        symbol = environment.create_symbol(size, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
        lengths[name] = environment.create_symintnode(symbol, hint=size, source=source)
        torch._check(lengths[name] >= least)
    lengths["structures_and_one"] = lengths["structures"] + 1
    lengths["atoms_and_one"] = lengths["atoms"] + 1
    return lengths


class _DecidedError(Exception):
    """A condition on sizes that some code asked for."""

    def __init__(self, condition: Any) -> None:
        self.condition = condition


class _OpenSizes(ShapeEnv):
    """Sizes of which nothing may be asked but what is true of all; torch itself would take note of the answer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.stops = False

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Stop at the first question in this block, where it is asked."""
        self.stops = True
        try:
            yield
        finally:
            self.stops = False

    def evaluate_expr(self, *arguments: Any, **options: Any) -> Any:
        """Torch's."""
        known = len(self.guards)
        answer = super().evaluate_expr(*arguments, **options)
        if self.stops and len(self.guards) > known:
            raise _DecidedError(self.guards[-1].expr)
        return answer


@contextmanager
def _located(lengths: dict[str, Any]) -> Iterator[None]:
    """Whatever stops the tracer becomes a sentence that names the line of the model."""
    try:
        yield
    except Exception as error:
        frames = [
            f"{frame.filename}:{frame.lineno}, in {frame.name}: {frame.line}"
            for frame in traceback.extract_tb(error.__traceback__)
            if not _is_ours_or_torchs(frame.filename)
        ]
        where = frames[-1] if frames else "in a derivative"
        if isinstance(error, _DecidedError):
            symbols = {lengths[name].node.expr: name for name in Sizes._fields}
            what = f"A size of the batch decides what is computed: {error.condition.subs(symbols)}"
        else:
            what = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise TraceError(
            f"The model can not be traced into one graph for all batches: {where}\n{what}\nA value that is read from a "
            "tensor (.item(), int(), if, .tolist(), nonzero) and a branch on a size can not be part of the graph: "
            "compute with tensors instead (torch.where, sums, masks), or train with training.compile=false."
        ) from error


_TORCH = Path(torch.__file__).parent


def _is_ours_or_torchs(file: str) -> bool:
    return Path(file).is_relative_to(_TORCH) or file == __file__ or file.startswith("<")


# Examples


def sample_graph(info: ModelInfo, sizes: Sizes, seed: int = 0) -> Graph:
    """A random graph of given sizes, the same at every call, with edges inside every cut-off; no structure is meant.

    Args:
        info: types and cut-offs.
        sizes: at least one atom in each structure.
        seed: another graph of the same sizes.
    """
    structures, atoms, edges = sizes
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    structure = torch.arange(atoms) * structures // atoms
    structure_ptr = torch.searchsorted(structure, torch.arange(structures + 1))
    centre = torch.arange(edges) * atoms // max(edges, 1)
    first = structure_ptr[structure[centre]]
    neighbor = first + (uniform(edges) * (structure_ptr[structure[centre] + 1] - first)).long()
    order = torch.argsort(centre * atoms + neighbor)
    centre, neighbor = centre[order], neighbor[order]
    positions = 3 * uniform(atoms, 3)
    direction = torch.nn.functional.normalize(uniform(edges, 3) - 0.5, dim=1)
    length = (0.35 + 0.6 * uniform(edges, 1)) * torch.tensor(info.pair_cutoffs).min()

    def pointers(index: Tensor) -> Tensor:
        return torch.nn.functional.pad(torch.bincount(index, minlength=atoms).cumsum(0), (1, 0))

    return Graph(
        positions=positions,
        types=torch.randint(len(info.types), (atoms,), generator=generator),
        edge_index=torch.stack([centre, neighbor]),
        edge_shift=direction * length - (positions[neighbor] - positions[centre]),
        structure=structure,
        structure_ptr=structure_ptr,
        row_ptr=pointers(centre),
        by_neighbor=torch.argsort(neighbor, stable=True),
        neighbor_ptr=pointers(neighbor),
        local=torch.ones(atoms, dtype=torch.bool),
    )


def next_prime(number: float) -> int:
    """The smallest prime of at least ``number``: sizes without a common factor are not taken for each other's."""
    candidate = max(2, math.ceil(number))
    while any(candidate % divisor == 0 for divisor in range(2, math.isqrt(candidate) + 1)):
        candidate += 1
    return candidate
