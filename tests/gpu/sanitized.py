"""Every kernel once, small, for NVIDIA's compute-sanitizer: memory out of bounds, races in shared memory.

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 python -m tests.gpu.sanitized
compute-sanitizer --tool racecheck --error-exitcode 9 python -m tests.gpu.sanitized [tables]

Without torch's cache each tensor is memory of its own, so that a number beside it is an error. Sizes are odd, so that
masks matter: rows of no edge, of one, and of many tiles. `tables`: only the convolutions by a table.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import torch
from tests.gpu.test_radial_fused import results, spec_of
from tests.kernels.chains import chains
from tests.kernels.chains import deviations as of_chain
from tests.kernels.tables import check as of_table
from tests.kernels.tables import spec_of as table_spec

from nequip_allegro.model import AllegroConfig, contraction_specs
from nequip_core.graph import to
from nequip_core.models.nequip import NequIPConfig, layouts
from nequip_core.ops.contracts import ConvolutionSpec, RadialConvolutionSpec, ScalarMLPSpec
from nequip_core.testing.kernels import Spec, check_kernel, random_graph

LENGTHS = (7, 0, 3, 11, 1, 5)


def kernels() -> Iterator[tuple[str, Spec]]:
    """Kernels and layers: those of models of l_max 1 and 2, and networks."""
    for l_max, channels in ((1, 24), (2, 64)):
        for contraction in contraction_specs(AllegroConfig(l_max=l_max, num_layers=3, num_tensor_features=channels)):
            yield "triton", contraction
        config = NequIPConfig(l_max=l_max, num_layers=3, num_features=channels)
        for before, after in itertools.pairwise(layouts(config)):
            convolution = ConvolutionSpec(before, l_max, True, tuple(irrep for irrep, _ in after))
            yield "triton", convolution
            yield "triton", RadialConvolutionSpec(convolution, 64)
    for network in (ScalarMLPSpec((8,), (64,), (3 * 24, 10), "silu"), ScalarMLPSpec((40, 30), (64,), (128,), "mish")):
        yield "triton", network
        yield "triton_layers", network
    yield "triton", ScalarMLPSpec((40, 30), (64,), (128,), "mish", passes=1)


def main(only_tables: bool) -> None:
    device = torch.device("cuda")
    if not only_tables:
        kernels_and_chains(device)
    for l_max, channels in ((1, 24), (2, 64)):
        deviations = of_table(table_spec(l_max, channels), torch.float32, device, lengths=LENGTHS)
        print(f"Convolution by a table: {max(deviations.values()):.1e}", flush=True)


def kernels_and_chains(device: torch.device) -> None:
    for name, spec in kernels():
        deviations = check_kernel(name, spec, torch.float32, device, lengths=LENGTHS)
        print(f"{type(spec).__name__}, {name}: {max(deviations.values()):.1e}", flush=True)
    for chain in (*chains(1, channels=24), *chains(2, channels=64)):
        deviations = of_chain(chain, torch.float32, device, lengths=LENGTHS)
        print(f"{type(chain).__name__}: {max(deviations.values()):.1e}", flush=True)
    for l_max, channels in ((1, 24), (2, 64)):
        graph = to(random_graph(6, LENGTHS), device)
        found, expected = (
            results(spec_of(l_max, channels, 64), graph, torch.float32, kind, fused=kind == torch.float32)
            for kind in (torch.float32, torch.float64)
        )
        largest = max(float((found[name] - x).abs().max() / x.abs().max()) for name, x in expected.items())
        print(f"Convolution that stores no weights: {largest:.1e}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", choices=["tables"])
    main(only_tables=parser.parse_args().only is not None)
