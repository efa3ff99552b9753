"""The loss against loops over structures, its masks, its denominators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nequip_core.data.batch import Batch, Denominators
from nequip_core.potential import Prediction
from nequip_core.training.loss import DIFFERENCES, Loss, Term, huber, mae, mse

PER_FRAME = {"energy": 1, "stress": 9}


@pytest.fixture
def batch(make_run: Callable[..., Any]) -> Batch:
    """Eight structures; the second has no energy, the third no forces; NaN where there is no label."""
    batch: Batch = make_run().train.batch(range(8))
    labels, third = batch.labels, batch.graph.structure == 2
    labels.energy[1], labels.forces[third] = torch.nan, torch.nan
    labels.has_energy[1], labels.has_forces[third] = False, False
    numbers = (labels.has_energy.sum(), 3 * labels.has_forces.sum(), 9 * labels.has_stress.sum())
    return batch._replace(denominators=Denominators(*(number.double() for number in numbers)))


@pytest.fixture
def prediction(batch: Batch) -> Prediction:
    atoms, structures = len(batch.graph.types), len(batch.ids)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64).requires_grad_()

    return Prediction(made(structures), made(atoms), made(atoms, 3), made(structures, 3, 3))


def by_hand(prediction: Prediction, batch: Batch, quantity: str) -> list[tuple[float, torch.Tensor]]:
    """(weight, difference) of each labelled structure."""
    found = []
    for b in range(len(batch.ids)):
        begin, end = batch.graph.structure_ptr[b : b + 2].tolist()
        labels, weight = batch.labels, batch.labels.weight[b].item()
        if quantity.startswith("energy") and labels.has_energy[b]:
            difference = prediction.energy[b] - labels.energy[b]
            found.append((weight, difference / (end - begin if quantity == "energy_per_atom" else 1)))
        elif quantity == "forces" and labels.has_forces[begin]:
            found.append((weight, prediction.forces[begin:end] - labels.forces[begin:end]))
        elif quantity == "stress" and labels.has_stress[b]:
            virial = prediction.virial[b]
            found.append((weight, -(virial + virial.T) / 2 / batch.volume[b] - labels.stress[b]))
    return found


@pytest.mark.parametrize("quantity", DIFFERENCES)
@pytest.mark.parametrize("make", [mse, mae, huber])
def test_a_term_is_the_weighted_mean_over_labelled_numbers(
    batch: Batch, prediction: Prediction, quantity: str, make: Any
) -> None:
    function = make(0.5)
    rows = by_hand(prediction, batch, quantity)
    assert 0 < len(rows) < len(batch.ids)
    number = sum(difference.numel() for _, difference in rows)
    expected = 1.7 * sum(weight * function(difference).sum() for weight, difference in rows) / number
    loss = Loss((Term(quantity, 1.7, function),))
    value = loss(prediction, batch)
    assert value.item() == pytest.approx(expected.item(), rel=1e-14)
    of_sums = loss.of_sums(loss.sums(prediction, batch))
    assert of_sums.item() == pytest.approx(expected.item(), rel=1e-14)
    value.backward()
    leaves = [leaf for leaf in prediction if leaf is not None and leaf.grad is not None]
    assert leaves
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_without_labels_it_is_zero_and_its_gradient_too(batch: Batch, prediction: Prediction) -> None:
    labels = batch.labels
    empty = batch._replace(
        labels=labels._replace(
            energy=labels.energy * torch.nan,
            has_energy=torch.zeros_like(labels.has_energy),
            forces=labels.forces * torch.nan,
            has_forces=torch.zeros_like(labels.has_forces),
            has_stress=torch.zeros_like(labels.has_stress),
        ),
        denominators=Denominators(*[torch.zeros((), dtype=torch.float64)] * 3),
    )
    loss = Loss(tuple(Term(quantity, 1.0, mse(0.0)) for quantity in DIFFERENCES))
    value = loss(prediction, empty)
    value.backward()
    assert value.item() == 0.0
    assert all((leaf.grad == 0).all() for leaf in prediction if leaf is not None and leaf.grad is not None)


def test_micro_batches_add_up_to_the_step(make_run: Callable[..., Any], terms: Loss) -> None:
    run = make_run()
    whole = run.train.batch(range(len(run.train)))
    parts = [run.train.batch(range(begin, end), whole.denominators) for begin, end in ((0, 3), (3, 4), (4, 8))]
    model = run.model
    from nequip_core.potential import Potential

    potential = Potential(model).eval()
    total = sum(terms(potential(part.graph), part).item() for part in parts)
    assert total == pytest.approx(terms(potential(whole.graph), whole).item(), rel=1e-13)


def test_terms_of_weight_zero_are_not_computed() -> None:
    loss = Loss((Term("energy", 0.0, mse(0.0)), Term("forces", 1.0, mse(0.0))))
    assert [term.quantity for term in loss.terms] == ["forces"]


def test_huber_is_torchs() -> None:
    difference = torch.linspace(-2, 2, 41, dtype=torch.float64)
    expected = torch.nn.functional.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=0.3)
    assert torch.allclose(huber(0.3)(difference), expected, rtol=1e-14)
