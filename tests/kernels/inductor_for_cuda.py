"""The code that Inductor writes for an H100 around our operators, on a machine without a GPU: printed, never run.

    python tests/kernels/inductor_for_cuda.py contraction|convolution|radial|radial_fused|mlp|layers|chain

Tensors are fake, and what Inductor asks of a GPU is answered from a list. A process of its own: torch remembers some of
the answers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

import torch
import torch._inductor.compile_fx
import torch._inductor.fx_passes.fuse_attention
import torch._inductor.fx_passes.misc_patterns
import torch._inductor.fx_passes.pad_mm
import torch._inductor.graph
import triton
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget

from nequip_core.o3 import SCALAR, Irrep, Irreps
from nequip_core.ops.contracts import (
    ChainSpec,
    ContractionSpec,
    ConvolutionSpec,
    RadialConvolutionSpec,
    ScalarMLPSpec,
)
from nequip_kernels.chain import kernels as chain_kernels
from nequip_kernels.chain import operators as chain
from nequip_kernels.contraction import kernels as contraction_kernels
from nequip_kernels.contraction import operators as contraction
from nequip_kernels.convolution import kernels as convolution_kernels
from nequip_kernels.convolution import operators as convolution
from nequip_kernels.mlp import kernels as mlp_kernels
from nequip_kernels.mlp import operators as mlp
from nequip_kernels.radial import fused_kernels
from nequip_kernels.radial import fused_operators as fused
from nequip_kernels.radial import operators as radial

ATOMS, EDGES, CHANNELS = 97, 4001, 64
HARMONICS = (SCALAR, Irrep(1, -1))


def of_contraction() -> tuple[Callable[..., Any], list[tuple[int, ...]]]:
    """Value, first and second derivative, between operators that Inductor writes itself."""
    spec = ContractionSpec(HARMONICS, HARMONICS, 1, CHANNELS, True, False, scalars_apart=True)
    text = contraction_kernels.describe(spec, "sm_90", torch.float32)

    def function(row_ptr: Tensor, _: Tensor, T: Tensor, w: Tensor, Y: Tensor, W: Tensor) -> list[Tensor]:
        T, w = T.sin(), w.sin()
        out, v, scalars = contraction.contract(T, w, Y, W, row_ptr, text)
        g, s = out.cos(), scalars.cos()
        d_T, d_w, d_Y, n = contraction.contract_backward(T, w, Y, W, v, g, s, row_ptr, text)
        of_g, of_s, of_T, of_w, of_Y, z = contraction.contract_double_backward(
            T, w, Y, W, v, g, s, n, d_T, d_w, d_Y, row_ptr, text
        )
        by_W = contraction.contract_double_by_weights(T, w, Y, v, g, s, d_T, d_Y, z, row_ptr, text)
        return [of_g.sin(), of_s.sin(), of_T.sin(), of_w.sin(), of_Y, by_W]

    return function, [(EDGES, 4, CHANNELS), (EDGES, 2, CHANNELS), (EDGES, 4), (4, CHANNELS)]


def of_convolution() -> tuple[Callable[..., Any], list[tuple[int, ...]]]:
    """Likewise."""
    spec = ConvolutionSpec(Irreps([(SCALAR, 64), (Irrep(1, -1), 32)]), 1, True, HARMONICS)
    text = convolution_kernels.describe(spec, "sm_90", torch.float32)

    def function(pointers: Tensor, edge_index: Tensor, h: Tensor, Y: Tensor, R: Tensor) -> list[Tensor]:
        h, R, graph = h.sin(), R.sin(), (edge_index.select(0, 1), pointers, edge_index.select(0, 0), pointers)
        g = convolution.convolve(h, Y, R, *graph, text).cos()
        d_h, d_Y, d_R = convolution.convolve_backward(h, Y, R, g, *graph, text)
        of_g, of_h, of_Y, of_R = convolution.convolve_double_backward(h, Y, R, g, d_h, d_Y, d_R, *graph, text)
        return [of_g.sin(), of_h.sin(), of_Y, of_R.sin()]

    return function, [(ATOMS, spec.irreps_in.dim), (EDGES, 4), (EDGES, spec.num_weights)]


def of_radial() -> tuple[Callable[..., Any], list[tuple[int, ...]]]:
    """Likewise, each a single call."""
    spec = ConvolutionSpec(Irreps([(SCALAR, 64), (Irrep(1, -1), 32)]), 1, True, HARMONICS)
    text = radial.written(convolution_kernels.describe(spec, "sm_90", torch.float32))

    def function(pointers: Tensor, edge_index: Tensor, h: Tensor, Y: Tensor, X: Tensor, M: Tensor) -> list[Tensor]:
        h, X, graph = h.sin(), X.sin(), (edge_index.select(0, 1), pointers, edge_index.select(0, 0), pointers)
        g = radial.radial_convolve(h, Y, X, M, *graph, text).cos()
        d_h, d_Y, d_X, d_M = radial.radial_convolve_backward(h, Y, X, M, g, *graph, True, text)
        of_g, of_h, of_Y, of_X, of_M = radial.radial_convolve_double_backward(
            h, Y, X, M, g, d_h, d_Y, d_X, d_M, *graph, text
        )
        return [of_g.sin(), of_h.sin(), of_Y, of_X.sin(), of_M]

    return function, [(ATOMS, spec.irreps_in.dim), (EDGES, 4), (EDGES, 128), (128, spec.num_weights)]


def of_radial_fused() -> tuple[Callable[..., Any], list[tuple[int, ...]]]:
    """Value and first derivative."""
    spec = ConvolutionSpec(Irreps([(SCALAR, 64), (Irrep(1, -1), 32)]), 1, True, HARMONICS)
    text = fused_kernels.describe(RadialConvolutionSpec(spec, 128), "sm_90", torch.float32)

    def function(pointers: Tensor, edge_index: Tensor, h: Tensor, Y: Tensor, X: Tensor, *M: Tensor) -> list[Tensor]:
        h, X, graph = h.sin(), X.sin(), (edge_index.select(0, 1), pointers, edge_index.select(0, 0), pointers)
        g = fused.radial_fused(h, Y, X, *M, *graph, text).cos()
        d_h, d_Y, d_X = fused.radial_fused_backward(h, Y, X, *M, g, *graph, text)
        return [d_h, d_Y, d_X.sin()]

    matrix = (128, spec.num_weights)
    return function, [(ATOMS, spec.irreps_in.dim), (EDGES, 4), (EDGES, 128), matrix, matrix[::-1]]


def of_mlp() -> tuple[Callable[..., Any], list[tuple[int, ...]]]:
    """Value and first derivative of a network of which parts of the columns go into another, and an input passed on."""
    first, second = (
        ScalarMLPSpec((64, 32), (64,), outputs, "silu", passes) for outputs, passes in (((64, 32), 1), ((96,), 0))
    )
    texts = [mlp_kernels.describe(spec, "sm_90", torch.float32) for spec in (first, second)]

    def function(_: Tensor, __: Tensor, x: Tensor, y: Tensor, *weights: Tensor) -> list[Tensor]:
        x, own, other = x.sin(), list(weights[:2]), list(weights[2:])
        packed = [mlp.mlp_pack(some, text) for some, text in zip((own, other), texts, strict=True)]
        scalars, rest = mlp.mlp([x.narrow(1, 0, 64), y], own, packed[0], texts[0])
        moved = rest * y
        grad = mlp.mlp([scalars, moved], other, packed[1], texts[1])[0].cos()
        by_scalars, by_rest = mlp.mlp_backward([scalars, moved], other, packed[1], [grad], texts[1])
        given = [by_scalars, by_rest * y], [by_scalars.sin()]
        return mlp.mlp_backward_and_add([x.narrow(1, 0, 64), y], own, packed[0], *given, texts[0])

    return function, [(EDGES, 80), (EDGES, 32), *[first.widths[:2], first.widths[1:]] * 2]


def of_layers() -> tuple[Callable[..., Any], list[tuple[int, ...]]]:
    """A single layer: value, derivative by inputs, and by the matrix."""
    spec = ScalarMLPSpec((64, 32), (), (64, 32), "none")
    text = mlp_kernels.describe(spec, "sm_90", torch.float32)

    def function(_: Tensor, __: Tensor, x: Tensor, y: Tensor, weight: Tensor) -> list[Tensor]:
        inputs = [x.sin(), y.sin()]
        packed = mlp.mlp_pack([weight], text)
        grads = [one.cos() for one in mlp.mlp(inputs, [weight], packed, text)]
        by_inputs = mlp.mlp_backward(inputs, [weight], packed, grads, text)
        return [*(one.sin() for one in by_inputs), mlp.mlp_by_matrix(inputs, grads, text)]

    return function, [(EDGES, 64), (EDGES, 32), (96, 96)]


def of_chain() -> tuple[Callable[..., Any], list[tuple[int, ...]]]:
    """A first layer's scalars, then the second layer and its derivative."""
    first = ContractionSpec(HARMONICS, HARMONICS, 1, CHANNELS, True, True)
    second = ContractionSpec(HARMONICS, (SCALAR,), 1, CHANNELS, True, False)
    scalars = ContractionSpec(HARMONICS, (SCALAR,), 1, CHANNELS, True, True)
    specs = ChainSpec((scalars,), passes=True), ChainSpec((first, second))
    one, two = (chain_kernels.describe(spec, "sm_90", torch.float32) for spec in specs)

    def function(row_ptr: Tensor, _: Tensor, f: Tensor, w: Tensor, Y: Tensor, V: Tensor, W: Tensor) -> list[Tensor]:
        f, w = f.sin(), w.sin()
        around = chain.environment(w, Y, row_ptr, one)
        (even,) = chain.chain(f, Y, [around], [V.narrow(0, 0, 2)], row_ptr, one)
        own = chain.environment(w, Y, row_ptr, two)
        environments, paths = [around, own], [V, W]
        (result,) = chain.chain(f, Y, environments, paths, row_ptr, two)
        grads = [result.cos()]
        d_f, d_Y, d_around, d_own = chain.chain_backward(f, Y, environments, paths, grads, row_ptr, two)
        d_w, more_Y = chain.environment_backward(w, Y, d_own, row_ptr, two)
        given = [even.cos(), d_f]
        by_f, *_ = chain.chain_backward(f, Y, [around], [V.narrow(0, 0, 2)], given, row_ptr, one)
        return [by_f.sin(), d_w.sin(), d_Y, more_Y, d_around]

    lengths = [(EDGES, 2, CHANNELS), (EDGES, 2, CHANNELS), (EDGES, 4)]
    return function, [*lengths, (len(first.paths), CHANNELS), (len(second.paths), CHANNELS)]


MADE = {
    "chain": of_chain,
    "layers": of_layers,
    "contraction": of_contraction,
    "convolution": of_convolution,
    "radial": of_radial,
    "radial_fused": of_radial_fused,
    "mlp": of_mlp,
}


class Driver:
    """Triton's, of a GPU that is not here."""

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)


H100 = SimpleNamespace(
    name="H100",
    type="cuda",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 << 30,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20,
    gcnArchName="",
)
ANSWERS: dict[str, Any] = {
    "is_available": lambda: True,
    "is_initialized": lambda: False,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "_exchange_device": lambda device: 0,
    "_maybe_exchange_device": lambda device: 0,
    "current_stream": lambda device=None: SimpleNamespace(cuda_stream=0),
    "synchronize": lambda device=None: None,
    "get_device_name": lambda device=None: "H100",
    "get_device_properties": lambda device=None: H100,
    "get_device_capability": lambda device=None: (9, 0),
    "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": lambda state, device=None: None,
}


class WrittenError(BaseException):
    """The code is there; what would follow needs a GPU."""


def stop(graph: Any, *arguments: Any, **options: Any) -> NoReturn:
    """In place of loading the code."""
    raise WrittenError(graph.codegen()[0].value)


def pretended() -> ExitStack:
    """A GPU is here, for those who ask."""
    stack = ExitStack()
    for name, answer in ANSWERS.items():
        stack.enter_context(mock.patch.object(torch.cuda, name, answer))
    properties = staticmethod(lambda device=None: H100)
    for owner, name, answer in (
        (CudaInterface.Worker, "get_device_properties", properties),
        (CudaInterface, "get_device_properties", properties),
        (CudaInterface, "get_compute_capability", staticmethod(lambda device=None: 90)),
        (torch._inductor.graph.GraphLowering, "compile_to_module", stop),
        # Patterns of attention and products, for which Inductor makes examples on the device.
        (torch._inductor.fx_passes.fuse_attention, "_sfdp_init", lambda *given: None),
        (torch._inductor.fx_passes.pad_mm, "_pad_mm_init", lambda *given: None),
        (torch._inductor.fx_passes.misc_patterns, "_misc_patterns_init", lambda *given: None),
    ):
        stack.enter_context(mock.patch.object(owner, name, answer))
    stack.enter_context(torch._inductor.config.patch(fx_graph_cache=False, compile_threads=1))
    return stack


def main(what: str) -> None:
    """Print the code."""
    triton.runtime.driver.set_active(Driver())
    function, shapes = MADE[what]()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with pretended(), torch.no_grad():
        with mode:
            inputs = [torch.empty(size, dtype=torch.int64, device="cuda") for size in ((ATOMS + 1,), (2, EDGES))]
            inputs += [torch.empty(shape, device="cuda") for shape in shapes]
            graph = make_fx(function)(*inputs)
        try:
            with torch._guards.tracing(torch._guards.TracingContext(mode)):
                torch._inductor.compile_fx.compile_fx(graph, inputs)
        except WrittenError as written:
            print(written)


if __name__ == "__main__":
    main(sys.argv[1])
