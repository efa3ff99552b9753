"""Recorded steps: the losses and gradients of launched ones, with a recorder that needs no device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nequip_core.data.batch import Batch
from nequip_core.data.ghost import Ghost
from nequip_core.errors import CheckError, InputError
from nequip_core.models.base import EnergyModel
from nequip_core.potential import Potential
from nequip_core.recording import Function, Recording
from nequip_core.tracing import Sizes
from nequip_core.training.compiled import CompiledTraining, Report, Sample, sample_batch, unflatten
from nequip_core.training.graphs import StepGraphs
from nequip_core.training.loss import Loss

GHOST = Ghost(1.7)
SIZES = [Sizes(2, 70, 300), Sizes(3, 80, 500), Sizes(2, 70, 400)]


def record(function: Function, inputs: Sequence[Tensor]) -> Recording:
    """What `Recorder` makes, but the function is called where a graph would be repeated: with its own inputs."""
    static = [tensor.clone() for tensor in inputs]
    return Recording(static, function(static), lambda: function(static) and None)


class Eager:
    """In the place of a compiled loss."""

    def __init__(self, potential: Potential, terms: Loss) -> None:
        self.potential, self.terms = potential, terms
        self.report = Report()
        self.names = [name for name, _ in potential.named_parameters()]

    def __call__(self, tensors: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
        batch = unflatten(tensors)
        weights = [*self.potential.parameters()] if weights is None else weights
        named = dict(zip(self.names, weights, strict=True))
        return self.terms(torch.func.functional_call(self.potential, named, (batch.graph,)), batch)


@pytest.fixture
def make_training(
    make_model: Callable[..., EnergyModel], terms: Loss, tmp_path: Path
) -> Callable[..., CompiledTraining]:
    """``(recorder=...)``: of a tiny model in float64, whose steps are eager where they would be compiled."""

    def make(recorder: Any = lambda device: record, **keys: Any) -> CompiledTraining:
        potential = Potential(make_model(num_layers=1, l_max=1, num_features=4, radial_mlp=[4])).train()
        sample = Sample(SIZES[0], SIZES[0])
        options = {"sample": sample, "ghost": GHOST, "dump": tmp_path / "deviation.safetensors", "say": print}
        training = CompiledTraining(potential, terms, recorder=recorder, **(options | keys))
        training._loss = Eager(potential, terms)  # type: ignore[assignment]
        training.begin_recording(torch.device("cpu"))
        return training

    return make


def batches_of(training: CompiledTraining, sizes: Sequence[Sizes]) -> list[Batch]:
    return [sample_batch(training.potential, each, GHOST, seed) for seed, each in enumerate(sizes)]


def step(training: CompiledTraining, batches: Sequence[Batch]) -> tuple[list[float], list[Tensor | None]]:
    """The losses of micro-batches, and the sum of their gradients."""
    training.potential.zero_grad()
    losses = []
    for batch in batches:
        loss = training.loss(batch)
        training.backward(loss / 1)  # as Lightning does
        losses.append(loss.item())
    return losses, [None if p.grad is None else p.grad.clone() for p in training.potential.parameters()]


def assert_equal(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> None:
    assert any(one is not None for one in ours)
    for one, other in zip(ours, theirs, strict=True):
        assert one is other is None or torch.equal(one, other)


def counts(training: CompiledTraining) -> tuple[int, int, int]:
    found = training.report()["cuda_graphs"]
    return found["recorded"], found["replayed"], found["launched"]


def test_the_steps_that_are_launched(make_training: Callable[..., CompiledTraining]) -> None:
    recorded, launched = make_training(), make_training(recorder=None)
    optimizers = [torch.optim.Adam(each.potential.parameters(), 1e-2, fused=True) for each in (recorded, launched)]
    batches = batches_of(recorded, [SIZES[n] for n in np.random.default_rng(0).integers(0, 3, size=24)])
    for number in range(0, len(batches), 3):
        micro = batches[number : number + 1 + number // 3 % 3]
        (ours, gradients), (theirs, expected) = (step(each, micro) for each in (recorded, launched))
        assert ours == theirs
        assert_equal(gradients, expected)
        for optimizer in optimizers:
            optimizer.step()
    made, repeated, rest = counts(recorded)
    assert made == len(SIZES) == rest
    assert repeated > 3
    assert launched.report()["cuda_graphs"] is None


def test_micro_batches_of_one_shape_and_of_others(make_training: Callable[..., CompiledTraining]) -> None:
    recorded, launched = make_training(), make_training(recorder=None)
    one, two, three, other = batches_of(recorded, [SIZES[0], SIZES[0], SIZES[0], SIZES[1]])
    for micro in ([one], [one, two], [one, two, three], [other, one, two], [one, other], [two]):
        (ours, gradients), (theirs, expected) = (step(each, micro) for each in (recorded, launched))
        assert ours == theirs
        assert_equal(gradients, expected)
    assert counts(recorded) == (2, 10, 2)


def test_a_loss_stays_when_the_next_comes(make_training: Callable[..., CompiledTraining]) -> None:
    training = make_training()
    one, two = batches_of(training, [SIZES[0], SIZES[0]])
    training.loss(one)
    first = training.loss(one)
    before = first.clone()
    assert not first.requires_grad
    assert training.loss(two) != before
    assert torch.equal(first, before)


def test_weights_that_move_are_found(make_training: Callable[..., CompiledTraining]) -> None:
    recorded, launched = make_training(), make_training(recorder=None)
    (batch,) = batches_of(recorded, SIZES[:1])
    for _ in range(2):
        step(recorded, [batch])
    for each in (recorded, launched):
        weight = next(p for p in each.potential.parameters() if p.requires_grad)
        weight.data = 1.5 * weight.data  # elsewhere in memory
    (ours, gradients), (theirs, expected) = (step(each, [batch]) for each in (recorded, launched))
    assert ours == theirs
    assert_equal(gradients, expected)
    assert counts(recorded) == (2, 2, 1)

    for each in (recorded, launched):  # in place
        with torch.no_grad():
            next(p for p in each.potential.parameters() if p.requires_grad).mul_(0.9)
    assert step(recorded, [batch])[0] == step(launched, [batch])[0]
    assert counts(recorded) == (2, 3, 1)


def test_a_frozen_weight_has_no_gradient(make_training: Callable[..., CompiledTraining]) -> None:
    training = make_training()
    (batch,) = batches_of(training, SIZES[:1])
    for _ in range(2):
        step(training, [batch])
    frozen = next(p for p in training.potential.parameters() if p.requires_grad).requires_grad_(False)
    _, gradients = step(training, [batch])
    assert frozen.grad is None
    assert sum(gradient is not None for gradient in gradients) > 0
    assert counts(training) == (2, 2, 1)


def test_hooks_of_autograd_are_called(make_training: Callable[..., CompiledTraining]) -> None:
    training = make_training()
    (batch,) = batches_of(training, SIZES[:1])
    for _ in range(2):
        step(training, [batch])
    calls: list[Tensor] = []
    hook = next(p for p in training.potential.parameters() if p.requires_grad).register_hook(calls.append)
    step(training, [batch])
    assert (len(calls), counts(training)) == (1, (1, 1, 2))
    hook.remove()
    step(training, [batch])
    assert (len(calls), counts(training)) == (1, (1, 2, 2))


def test_there_is_a_limit(make_training: Callable[..., CompiledTraining]) -> None:
    training = make_training()
    assert training.recorded is not None
    training.recorded.limit = 2
    for batch in batches_of(training, SIZES * 3):
        training.loss(batch)
    assert counts(training) == (2, 4, 5)


@pytest.mark.parametrize("check_every", [0, 4])
def test_a_recording_that_is_wrong_stops(make_training: Callable[..., CompiledTraining], check_every: int) -> None:
    broken = check_every == 0  # from the beginning, or later

    def planted(function: Function, inputs: Sequence[Tensor]) -> Recording:
        def repeat() -> None:
            _, *gradients = function(static)
            if broken:
                next(gradient for gradient in gradients if gradient.any()).mul_(1.001)

        static = [tensor.clone() for tensor in inputs]
        return Recording(static, function(static), repeat)

    training = make_training(recorder=lambda device: planted, check_every=check_every)
    (batch,) = batches_of(training, SIZES[:1])
    training.loss(batch)
    if check_every:
        for _ in range(2):
            training.loss(batch)
        broken = True
    than = "eager" if check_every else "launched"
    with pytest.raises(CheckError, match=rf"The recorded step is not the {than} one: .* training.cuda_graphs=false"):
        training.loss(batch)
    assert training.dump.exists()


def test_a_loss_that_is_no_number_is_for_those_who_name_it(make_training: Callable[..., CompiledTraining]) -> None:
    training = make_training()
    (batch,) = batches_of(training, SIZES[:1])
    batch = batch._replace(labels=batch.labels._replace(energy=torch.full_like(batch.labels.energy, torch.nan)))
    for _ in range(3):
        assert training.loss(batch).isnan()
    assert counts(training) == (1, 2, 1)


def test_what_can_not_be_recorded_is_said(make_training: Callable[..., CompiledTraining]) -> None:
    def no_memory(function: Function, inputs: Sequence[Tensor]) -> Recording:
        raise torch.OutOfMemoryError("CUDA out of memory")

    training = make_training(recorder=lambda device: no_memory)
    (batch,) = batches_of(training, SIZES[:1])
    training.loss(batch)
    with pytest.raises(InputError, match=r"atoms=71, .*: CUDA out of memory\n.* training.cuda_graphs=false"):
        training.loss(batch)


def test_a_run_of_lightning(make_run: Callable[..., Any], terms: Loss, tmp_path: Path) -> None:
    """With averaged weights in between, and micro-batches."""

    def train(name: str, recorder: Any, **keys: Any) -> tuple[list[Tensor], Any]:
        run = make_run(name)
        trainer, module, data = run.parts(terms, **keys)
        data.max_edges, data.ghost, data.rounded = 40, GHOST, True
        training = CompiledTraining(
            module.potential,
            terms,
            sample=Sample(SIZES[0], SIZES[0]),
            ghost=GHOST,
            dump=tmp_path / "deviation.safetensors",
            say=print,
            recorder=recorder,
        )
        training._loss = Eager(module.potential, terms)  # type: ignore[assignment]
        training._predict = lambda tensors: module.potential(type(data.train[0].graph)(*tensors))[:4]  # type: ignore
        training.prepare_training = training.begin_recording  # type: ignore[method-assign]
        training.prepare_validation = lambda device: None  # type: ignore[method-assign]
        module.compiled = training
        trainer.fit(module, datamodule=data)
        return [p.detach() for p in module.potential.parameters()], training

    ours, training = train("recorded", lambda device: record)
    theirs, _ = train("launched", None)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
    assert training.recorded.replayed > training.recorded.recorded > 0


def test_graphs_know_nothing_of_training() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    unused = torch.nn.Parameter(torch.ones(3))

    def step(weights: Sequence[Tensor], batch: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        return (weights[0] * batch[0]).sum(), [batch[0], None]

    steps = StepGraphs(step, [weight, unused], lambda: record, lambda *results: None)
    batch = [torch.tensor([3.0, 4.0])]
    assert steps.loss((2,), batch) is None
    assert steps.loss((2,), batch) == 11.0
    steps.add_gradients()
    steps.add_gradients()
    assert weight.grad is not None
    assert weight.grad.tolist() == [6.0, 8.0]
    assert unused.grad is None
