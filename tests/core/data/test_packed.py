"""What travels in one piece is what was packed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from tests.core.data.test_datamodule import make

from nequip_core.data.batch import Batch
from nequip_core.data.datamodule import DataModule
from nequip_core.data.ghost import Ghost
from nequip_core.data.packed import Packed
from nequip_core.graph import longest_row


def assert_equal(ours: Batch, theirs: Batch) -> None:
    for one, other in zip(ours.tensors(), theirs.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("ghost", [None, Ghost(1.0)])
def test_a_batch_comes_out_as_it_went_in(ghost: Ghost | None) -> None:
    whole = make([5, 9, 1]).batch([2, 0])
    batch = whole if ghost is None else ghost(whole)
    assert_equal(Batch.of_tensors(batch.tensors()), batch)
    packed = pickle.loads(pickle.dumps(Packed.of(batch)))  # as a worker's results come
    assert packed.memory.nbytes == sum(tensor.nbytes for tensor in batch.tensors())
    unpacked = packed.unpack("cpu")
    assert_equal(unpacked, batch)
    assert longest_row(unpacked.graph) == packed.longest_row == int(batch.graph.row_ptr.diff().max())


def test_each_tensor_has_memory_of_its_own() -> None:
    """Compiled code is for tensors that begin where their memory does."""
    tensors = Packed.of(make([5, 9]).batch([0, 1])).unpack("cpu").tensors()
    filled = [tensor for tensor in tensors if tensor.numel()]
    assert all(tensor.storage_offset() == 0 and tensor.is_contiguous() for tensor in filled)
    assert len({tensor.untyped_storage().data_ptr() for tensor in filled}) == len(filled)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_makes_is_packed(workers: int) -> None:
    data = make(4)
    module = DataModule(data, data, size=2, eval_size=2, workers=workers)
    expected = Packed if workers else Batch
    steps = [piece for pieces in module.train_dataloader() for piece in pieces]
    batches = [*steps, *module.val_dataloader()]
    assert {type(batch) for batch in batches} == {expected}
    arrived = [module.transfer_batch_to_device(batch, torch.device("cpu"), 0) for batch in batches]
    assert_equal(arrived[-1], data.batch([2, 3]))
    assert np.unique([n for batch in arrived[:2] for n in batch.ids.tolist()]).tolist() == [0, 1, 2, 3]
