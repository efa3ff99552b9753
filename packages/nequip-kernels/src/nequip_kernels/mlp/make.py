"""scalar_mlp/1 by Triton kernels: whether they serve here, and the module that a model calls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.ops.contracts import ScalarMLPSpec
from nequip_core.ops.kept import Kept
from nequip_core.ops.mlp import NONLINEARITIES
from nequip_kernels import requirements
from nequip_kernels.blocks import architecture_of
from nequip_kernels.mlp import accuracy

WIDEST = 256
"""Largest sum of the widths of one kernel's hidden layers: a program keeps them all in registers."""


def refuses(spec: ScalarMLPSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels can not serve; None: they can."""
    reason = requirements.missing(device)
    # Without the GPU there is nothing to measure: an export for another machine trusts the tests of this package.
    if reason is None and dtype == torch.float32 and torch.cuda.is_available():
        reason = next(filter(None, (accuracy.reason(part, device) for part in parts(spec))), None)
    return reason


def parts(spec: ScalarMLPSpec) -> list[ScalarMLPSpec]:
    """The networks of one kernel each that follow one another, with the nonlinearity between them.

    Nearly always there is one. Where hidden layers do not fit a program together, the first that does not is stored.
    """
    inputs: tuple[int, ...] = spec.inputs
    kept: tuple[int, ...] = ()
    found, passes = [], spec.passes
    for width in spec.hidden:
        if sum(kept) + width > WIDEST:
            found.append(ScalarMLPSpec(inputs, kept, (width,), spec.nonlinearity, passes))
            inputs, kept, passes = (width,), (), 0
        else:
            kept = (*kept, width)
    return [*found, ScalarMLPSpec(inputs, kept, spec.outputs, spec.nonlinearity, passes)]


def make_mlp(spec: ScalarMLPSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The callable of the contract."""
    return KernelMLP(spec, dtype, device)


def make_layers(spec: ScalarMLPSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The callable of the contract, for training."""
    return KernelLayers(spec, dtype, device)


def layers(spec: ScalarMLPSpec) -> list[ScalarMLPSpec]:
    """A network of each layer alone."""
    hidden = [(width,) for width in spec.hidden]
    pairs = itertools.pairwise([spec.inputs, *hidden, spec.outputs])
    return [ScalarMLPSpec(inputs, (), outputs, "none") for inputs, outputs in pairs]


def refuses_layers(spec: ScalarMLPSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels can not serve layer by layer; None: they can."""
    return next(filter(None, (refuses(layer, dtype, device) for layer in layers(spec))), None)


class KernelLayers(nn.Module):
    """scalar_mlp/1 with a kernel for each layer's products, and hidden layers in memory, as training reads them again.

    Attributes:
        trains: a model in training may take it.
    """

    trains = True

    def __init__(self, spec: ScalarMLPSpec, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(KernelMLP(layer, dtype, device) for layer in layers(spec))
        self.nonlinearity = NONLINEARITIES[spec.nonlinearity]
        self.gain = gain(spec)

    def forward(
        self, inputs: Sequence[Float[Tensor, "rows inputs"]], weights: Sequence[Float[Tensor, "fan_in fan_out"]]
    ) -> Sequence[Float[Tensor, "rows outputs"]]:
        """See nequip_core.ops.contracts.

        Raises:
            ValueError: a tensor has another shape than the specification says.
        """
        x = inputs
        for n, (layer, weight) in enumerate(zip(self.layers, weights, strict=True)):
            x = layer([self.gain * self.nonlinearity(x[0])] if n else x, [weight])
        return [*x, *inputs[: self.spec.passes]]


def gain(spec: ScalarMLPSpec) -> float:
    """Of a layer after a nonlinearity, over that of a first one."""
    return 1.0 if spec.nonlinearity == "none" else math.sqrt(2)


class KernelMLP(nn.Module):
    """scalar_mlp/1 by Triton kernels; holds nothing but the texts that name them."""

    def __init__(self, spec: ScalarMLPSpec, dtype: torch.dtype, device: torch.device) -> None:
        from nequip_kernels.mlp.kernels import describe

        super().__init__()
        self.spec = spec
        self.parts = parts(spec)
        self.texts = [describe(part, architecture_of(device), dtype) for part in self.parts]
        self.packed = [Kept() for _ in self.parts]
        # The first layer of a network that follows another has the gain of a hidden layer.
        self.gain = gain(spec)

    def forward(
        self, inputs: Sequence[Float[Tensor, "rows inputs"]], weights: Sequence[Float[Tensor, "fan_in fan_out"]]
    ) -> Sequence[Float[Tensor, "rows outputs"]]:
        """See nequip_core.ops.contracts.

        Raises:
            ValueError: a tensor has another shape than the specification says.
        """
        from nequip_kernels.mlp.operators import mlp, mlp_pack
        from nequip_kernels.mlp.passing import passing

        self._check(inputs, weights)
        x, layers = list(inputs), list(weights)
        passed: list[Tensor] = []
        for n, (part, text) in enumerate(zip(self.parts, self.texts, strict=True)):
            if n:
                x = [self.gain * NONLINEARITIES[self.spec.nonlinearity](x[0])]
            own, layers = layers[: part.layers], layers[part.layers :]
            packed = self.packed[n](lambda *own, text=text: (list(own), mlp_pack(list(own), text)), *own)
            if part.passes:  # the first part
                x, passed = passing(x, *packed, text)
            else:
                x = mlp(x, *packed, text)
        return [*x, *passed]

    def _check(self, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """A kernel reads what it was made for, whatever is there."""
        spec = self.spec
        expected: list[tuple[str, int, tuple[int, ...]]] = [
            ("inputs", n, (inputs[0].shape[0], width)) for n, width in enumerate(spec.inputs)
        ]
        expected += [("weights", n, spec.widths[n : n + 2]) for n in range(spec.layers)]
        tensors = [*inputs, *weights]
        if len(inputs) != len(spec.inputs) or len(weights) != spec.layers:
            raise ValueError(
                f"{len(inputs)} inputs and {len(weights)} weights; expected {len(spec.inputs)} and {spec.layers}."
            )
        for (name, n, shape), tensor in zip(expected, tensors, strict=True):
            if tuple(tensor.shape) != tuple(shape) or tensor.dtype != inputs[0].dtype:
                raise ValueError(
                    f"{name}[{n}] has the shape {tuple(tensor.shape)} and {tensor.dtype}; expected {tuple(shape)} and "
                    f"{inputs[0].dtype}."
                )
