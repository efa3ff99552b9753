"""What ptxas makes of the kernels for an H100, on a machine without a GPU: registers, spills, shared memory.

python tests/kernels/resources.py [--l-max 1 2 3] [--parity] [--dtype float32] [--channels 64] [--op contraction]
python tests/kernels/resources.py --op mlp [--channels 64]
python tests/kernels/resources.py --op radial [--width 128]
python tests/kernels/resources.py --op tabulated
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nequip_allegro.model import AllegroConfig, contraction_specs
from nequip_core.models.nequip import NequIPConfig, layouts
from nequip_core.ops.contracts import (
    ALLEGRO_CONTRACT,
    NEQUIP_CONVOLUTION,
    NEQUIP_TABULATED_CONVOLUTION,
    SCALAR_MLP,
    ContractionSpec,
    ConvolutionSpec,
    RadialConvolutionSpec,
    ScalarMLPSpec,
)
from nequip_kernels import sources
from nequip_kernels.benchmark import networks
from nequip_kernels.blocks import Block, choose
from nequip_kernels.contraction.generate import source
from nequip_kernels.contraction.kernels import NAMES, in_table
from nequip_kernels.contraction.table import Table
from nequip_kernels.convolution import generate as convolution
from nequip_kernels.convolution.table import Table as ConvolutionTable
from nequip_kernels.mlp import generate as mlp
from nequip_kernels.mlp.kernels import ANY_CHANNELS, in_registers
from nequip_kernels.mlp.kernels import NAMES as MLP_NAMES
from nequip_kernels.mlp.packed import INNER
from nequip_kernels.radial import fused_generate
from nequip_kernels.radial.fused_kernels import block_of
from nequip_kernels.tabulated import generate as tabulated

TARGET = GPUTarget("cuda", 90, 32)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTER = {torch.float32: "*fp32", torch.float64: "*fp64"}


class Resources(NamedTuple):
    """Of one compiled kernel.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread in local memory: spilled registers.
        shared: bytes of a program in shared memory.
        instructions: of the whole function.
        atomics: among them.
        barriers: among them; each sum over channels that two warps share needs two.
        seconds: that compiling took.
    """

    registers: int
    stack: int
    shared: int
    instructions: int
    atomics: int
    barriers: int
    seconds: float


def compiled(function: Any, dtype: torch.dtype, constants: dict[str, int], block: Block) -> Resources:
    """Compile a generated function for an H100."""
    signature = {
        name: "constexpr" if name in constants else WHOLE[name] if name in WHOLE else POINTER[dtype]
        for name in function.arg_names
    }
    aligned = {
        (n,): [["tt.divisibility", 16]]
        for n, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in STRIDES
    }
    start = time.perf_counter()
    result = triton.compile(
        ASTSource(function, signature, constants, aligned),
        target=TARGET,
        options={"num_warps": block.warps, "num_stages": block.stages},
    )
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(result.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", path)
        code = _tool("nvdisasm", "-c", path)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    assert found is not None, usage
    registers, stack, shared = map(int, found.groups())
    instructions = len(re.findall(r"/\*[0-9a-f]{4,}\*/", code))
    atomics, barriers = (len(re.findall(rf"\b(?:{names})\b", code)) for names in ("ATOM|ATOMG|RED", "BAR"))
    return Resources(registers, stack, shared, instructions, atomics, barriers, seconds)


STRIDES = {f"{name}{number}": "i32" for name in "stu" for number in range(9)}
WHOLE = STRIDES | {
    "rows": "i32",
    "row_ptr": "*i64",
    "by_neighbor": "*i64",
    "neighbor": "*i64",
    "neighbor_ptr": "*i64",
    "place": "*i32",
    "atoms": "i32",
}


def _tool(name: str, *arguments: object) -> str:
    command = [str(TOOLS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def of_contraction(spec: ContractionSpec, dtype: torch.dtype, name: str, block: Block | None = None) -> Resources:
    """One kernel of a contraction."""
    table = Table(spec, spec.l_max + 1)
    known = in_table(name, spec)
    block = block or choose("sm_90", ALLEGRO_CONTRACT, known, dtype, len(table.terms), spec.channels)
    function = getattr(sources.load(source(table)), f"contract_{name}")
    constants = block.constants(spec.channels)
    return compiled(function, dtype, constants, block)


def contractions(l_max: int, parity: bool, num_layers: int, channels: int) -> list[ContractionSpec]:
    """Of the layers of a model."""
    return contraction_specs(
        AllegroConfig(l_max=l_max, parity=parity, num_layers=num_layers, num_tensor_features=channels)
    )


def of_convolution(spec: ConvolutionSpec, dtype: torch.dtype, name: str, group: int, block: Block) -> Resources:
    """One kernel of a convolution; ``group`` counts the irreps of the features."""
    table = ConvolutionTable(spec)
    function = getattr(sources.load(convolution.source(table)), f"convolve_{name}_{group}")
    constants = block.constants(table.groups[group].channels)
    if name != "forward":
        constants |= {"SLOT": 0, "SLOTS": len(table.groups)}
    return compiled(function, dtype, constants, block)


def convolutions(l_max: int, parity: bool, num_layers: int, channels: int) -> Iterator[ConvolutionSpec]:
    """Of the layers of a model."""
    config = NequIPConfig(l_max=l_max, parity=parity, num_layers=num_layers, num_features=channels)
    for before, after in itertools.pairwise(layouts(config)):
        yield ConvolutionSpec(before, l_max, True, tuple(irrep for irrep, _ in after))


Job = tuple[str, int, str, Block, Callable[[], Resources]]
"""Layer, terms, kernel, block, and what compiles it."""


def contraction_jobs(options: argparse.Namespace, l_max: int, dtype: torch.dtype) -> Iterator[Job]:
    """Every kernel of a model of Allegro."""
    for layer, spec in enumerate(contractions(l_max, options.parity, options.layers, options.channels)):
        terms = len(Table(spec, 1).terms)
        for name in options.kernel or NAMES:
            known = in_table(name, spec)
            block = options.block or choose("sm_90", ALLEGRO_CONTRACT, known, dtype, terms, spec.channels)
            yield str(layer), terms, name, block, functools.partial(of_contraction, spec, dtype, name, block)


def convolution_jobs(options: argparse.Namespace, l_max: int, dtype: torch.dtype) -> Iterator[Job]:
    """Every kernel of a model of NequIP."""
    for layer, spec in enumerate(convolutions(l_max, options.parity, options.layers, options.channels)):
        for n, group in enumerate(ConvolutionTable(spec).groups):
            for name in options.kernel or convolution.SWEEPS:
                block = options.block or choose("sm_90", NEQUIP_CONVOLUTION, name, dtype, group.terms, group.channels)
                make = functools.partial(of_convolution, spec, dtype, name, n, block)
                yield f"{layer}.{n}", group.terms, name, block, make


def of_radial(spec: RadialConvolutionSpec, dtype: torch.dtype, name: str, n: int, block: Block) -> Resources:
    """One kernel of a convolution that stores no weights."""
    groups = ConvolutionTable(spec.convolution).groups
    function = getattr(sources.load(fused_generate.source(spec, dtype)), f"radial_{name}_{n}")
    constants = block.constants(groups[n].channels)
    if name == "backward":
        constants |= {"SLOT": n, "SLOTS": len(groups), "ADD": int(n > 0)}
    return compiled(function, dtype, constants, block)


def radial_jobs(options: argparse.Namespace, l_max: int, dtype: torch.dtype) -> Iterator[Job]:
    """Every kernel of a model of NequIP that stores no weights."""
    for layer, convolution_spec in enumerate(convolutions(l_max, options.parity, options.layers, options.channels)):
        spec = RadialConvolutionSpec(convolution_spec, options.width)
        for n, group in enumerate(ConvolutionTable(convolution_spec).groups):
            for name in options.kernel or fused_generate.SWEEPS:
                block = options.block or block_of(name, group, dtype)
                make = functools.partial(of_radial, spec, dtype, name, n, block)
                yield f"{layer}.{n}", group.terms, name, block, make


def of_mlp(spec: ScalarMLPSpec, dtype: torch.dtype, name: str, block: Block) -> Resources:
    """One kernel of a network of scalars."""
    kind = "backward_and_add" if name == "backward" and spec.passes else name
    function = getattr(sources.load(mlp.source(spec, dtype, block.channels)), f"mlp_{kind}")
    return compiled(function, dtype, {"BE": block.edges, "BN": block.channels, "BK": INNER}, block)


def of_tabulated(spec: ConvolutionSpec, dtype: torch.dtype, name: str, n: int, block: Block) -> Resources:
    """One kernel of a convolution with weights from a table."""
    groups = ConvolutionTable(spec).groups
    function = getattr(sources.load(tabulated.source(ConvolutionTable(spec))), f"tabulated_{name}_{n}")
    constants = block.constants(groups[n].channels)
    if name == "backward":
        constants |= {"SLOT": n, "SLOTS": len(groups)}
    return compiled(function, dtype, constants, block)


def tabulated_jobs(options: argparse.Namespace, l_max: int, dtype: torch.dtype) -> Iterator[Job]:
    """Every kernel of a model of NequIP with weights from tables."""
    for layer, spec in enumerate(convolutions(l_max, options.parity, options.layers, options.channels)):
        for n, group in enumerate(ConvolutionTable(spec).groups):
            for name in options.kernel or tabulated.SWEEPS:
                given = "sm_90", NEQUIP_TABULATED_CONVOLUTION, name, dtype, group.terms, group.channels
                block = options.block or choose(*given)
                make = functools.partial(of_tabulated, spec, dtype, name, n, block)
                yield f"{layer}.{n}", group.terms, name, block, make


def mlp_jobs(options: argparse.Namespace, l_max: int, dtype: torch.dtype) -> Iterator[Job]:
    """Every kernel of the benchmark's networks."""
    for network, spec in networks(options.channels).items():
        size = in_registers(spec)
        for name in options.kernel or MLP_NAMES:
            block = options.block or choose("sm_90", SCALAR_MLP, name, dtype, size, ANY_CHANNELS)
            yield network, size, name, block, functools.partial(of_mlp, spec, dtype, name, block)


JOBS = {
    "contraction": contraction_jobs,
    "convolution": convolution_jobs,
    "radial": radial_jobs,
    "tabulated": tabulated_jobs,
    "mlp": mlp_jobs,
}


def main() -> None:
    """Print a line for each kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=list(JOBS), default="contraction")
    parser.add_argument("--l-max", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--width", type=int, default=128, help="of the radial network's last hidden layer")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--kernel", nargs="+", metavar="NAME", help="some kernels only: forward, ...")
    parser.add_argument("--block", type=int, nargs=3, metavar=("CHANNELS", "EDGES", "WARPS"))
    options = parser.parse_args()
    options.block = Block(*options.block) if options.block else None
    jobs = JOBS[options.op]
    print("op,l_max,parity,layer,terms,kernel,block,registers,stack,shared,instructions,atomics,barriers,seconds")
    for l_max in [0] if options.op == "mlp" else options.l_max:
        for layer, terms, name, block, make in jobs(options, l_max, getattr(torch, options.dtype)):
            found, sizes = make(), "x".join(map(str, block))
            numbers = ",".join(map(str, found[:-1]))
            about = f"{options.op},{l_max},{options.parity},{layer},{terms},{name},{sizes}"
            print(f"{about},{numbers},{found.seconds:.1f}", flush=True)


if __name__ == "__main__":
    main()
