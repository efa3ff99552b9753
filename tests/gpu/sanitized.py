"""Every kernel once, small, for NVIDIA's compute-sanitizer: memory out of bounds, races in shared memory.

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 python tests/gpu/sanitized.py
compute-sanitizer --tool racecheck --error-exitcode 9 python tests/gpu/sanitized.py

Without torch's cache each tensor is memory of its own, so that a number beside it is an error. Sizes are odd, so that
masks matter: rows of no edge, of one, and of many tiles.
"""

from __future__ import annotations

import itertools

import torch

from nequip_allegro.model import AllegroConfig, contraction_specs
from nequip_core.models.nequip import NequIPConfig, layouts
from nequip_core.ops.contracts import ConvolutionSpec, ScalarMLPSpec
from nequip_core.testing.kernels import Spec, check_kernel

LENGTHS = (7, 0, 3, 11, 1, 5)


def specs() -> list[Spec]:
    """Layers of models of l_max 1 and 2, and networks."""
    found: list[Spec] = []
    for l_max, channels in ((1, 24), (2, 64)):
        found += contraction_specs(AllegroConfig(l_max=l_max, num_layers=3, num_tensor_features=channels))
        config = NequIPConfig(l_max=l_max, num_layers=3, num_features=channels)
        for before, after in itertools.pairwise(layouts(config)):
            found.append(ConvolutionSpec(before, l_max, True, tuple(irrep for irrep, _ in after)))
    found.append(ScalarMLPSpec((8,), (64,), (3 * 24, 10), "silu"))
    found.append(ScalarMLPSpec((40, 30), (64,), (128,), "mish"))
    return found


def main() -> None:
    for spec in specs():
        deviations = check_kernel("triton", spec, torch.float32, torch.device("cuda"), lengths=LENGTHS)
        print(f"{type(spec).__name__}: {max(deviations.values()):.1e}", flush=True)


if __name__ == "__main__":
    main()
