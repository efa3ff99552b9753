"""What Inductor makes of our operators for a GPU: launches of our kernels, and no copy of what they read or write."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("inductor_for_cuda.py")
LAUNCHES = {
    "contraction": [
        *("contract_forward", "contract_backward", "contract_double_backward", "contract_double_by_weights"),
    ],
    "convolution": [
        *("convolve_forward_0", "convolve_forward_1", "convolve_backward_0", "convolve_backward_1", "convolve_collect"),
        *("convolve_double_backward_0", "convolve_double_backward_1", "convolve_collect"),
    ],
    "radial": [],  # by calls, each of which launches as often as there are parts
    "radial_fused": [
        *("radial_forward_0", "radial_forward_1", "radial_backward_0", "radial_backward_1", "convolve_collect"),
    ],
    "chain": [
        *("environment_forward", "chain_forward", "environment_forward", "chain_forward", "chain_backward"),
        *("environment_backward", "chain_backward"),
    ],
    "layers": ["mlp_pack", "mlp_forward", "mlp_backward", "mlp_by_matrix"],
    "mlp": ["mlp_pack", "mlp_pack", "mlp_forward", "mlp_forward", "mlp_backward", "mlp_backward_and_add"],
}


OURS = ("contract", "convolve", "radial", "mlp", "chain", "environment")


@pytest.mark.parametrize("what", LAUNCHES)
def test_no_copies_for_a_gpu(what: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), what], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = done.stdout[done.stdout.index("def call(") :]
    assert "clone" not in code
    assert "copy_(" not in code
    runs = re.findall(r"(\w+)\.run\((.*)\)", code)
    ours = [re.sub(r"_\d+$", "", name) for name, _ in runs if name.startswith(OURS)]
    assert ours == LAUNCHES[what]
    calls = re.findall(r"= torch\.ops\.nequip_kernels\.(radial\w+)\.default\(", code)
    assert len(calls) == (3 if what == "radial" else 0)
    if what == "radial_fused":  # which has 192 weights for each edge, 160 features and a hidden layer of 128
        made = re.findall(r"empty_strided_cuda\(\((4001, [\d, ]+)\)", code)
        numbers = [math.prod(map(int, shape.split(", "))) // 4001 for shape in made]
        assert max(numbers) == 160
    if what == "mlp":  # whose first network reads columns of another tensor where they are, forward and backward
        assert code.count(", (4001, 64), (80, 1), 0)") == 2
        return
    # sin of each input, cos of the result: computed once each, whichever kernels read them.
    for name, arguments in runs:
        if "poi" in name:
            assert len(re.findall(r"\b(?:buf|arg)\d+", arguments)) <= 2, (name, arguments)
