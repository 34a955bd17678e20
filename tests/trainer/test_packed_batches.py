"""Packed batches hold to the bit what dense ones do, whatever the store and the padding; feeds keep order and pass errors on."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from steval.data.splits.assignment import CellSplit
from steval.data.training.cells import CellsSettings, TrainingCells
from steval.data.training.sets import CellSetSampler
from steval.trainer.fit.batches import Batch, PackedBatch, PackedRows
from steval.trainer.fit.feeding import AHEAD, BatchMaker, ThreadFeed, open_feed
from steval.trainer.fit.staging import MovedFeed, Ring
from support.cells_on_disk import CONTROL, make_cells, write_as

CPU = torch.device("cpu")


@pytest.fixture(params=["sparse memory", "disk"])
def cells(request: pytest.FixtureRequest, tmp_path: Path) -> TrainingCells:
    path = write_as(make_cells({"x": {"A": 21, "B": 13, CONTROL: 17}}, num_genes=15), tmp_path / "c.h5ad", "csr")
    settings = CellsSettings(files=(str(path),), target_sum=100, memory_gb=0.0 if request.param == "disk" else 1.0)
    cells = TrainingCells.open(settings, CellSplit(val=0.3, test=0.2))
    cells.store.place = request.param  # so few cells would be held dense
    return cells


def makers(cells: TrainingCells, part: str) -> tuple[BatchMaker, BatchMaker]:
    sampler = CellSetSampler(cells, part, set_size=5, sets_per_batch=3, seed=1)  # type: ignore[arg-type]
    features = torch.from_numpy(cells.features)
    return BatchMaker(sampler, features), BatchMaker(sampler, features, packed=True)


def assert_equal(one: Batch, other: Batch) -> None:
    for first, second in zip(one, other, strict=True):
        assert (first is None and second is None) or torch.equal(first, second)


@pytest.mark.parametrize("part", ["train", "val"])
def test_packed_batches_are_the_dense_ones_to_the_bit(cells: TrainingCells, part: str) -> None:
    dense, packed = makers(cells, part)
    padded = 0
    for position in range(dense.sampler.num_batches()):
        batch = packed(position)
        assert isinstance(batch.control, PackedRows)
        assert batch.control.columns_N.dtype == torch.int16
        assert_equal(dense(position).to(CPU), batch.to(CPU))
        padded += batch.padding_BS is not None
    assert padded or part == "train"


def test_an_embedding_stays_dense_and_the_genes_beside_it_are_packed(cells: TrainingCells) -> None:
    dense, packed = makers(cells, "train")
    cells.input_store = _Embedding()  # type: ignore[assignment]
    batch = packed(0)
    assert isinstance(batch.control, torch.Tensor)
    assert isinstance(batch.genes, PackedRows)
    assert_equal(dense(0).to(CPU), batch.to(CPU))


def test_values_at_one_place_are_added_up_as_on_the_host() -> None:
    rows = PackedRows(
        torch.tensor([1.5, 2.0, 0.25, 4.0]), torch.tensor([3, 3, 0, 69_999], dtype=torch.int32),
        torch.tensor([[2, 0], [0, 2]], dtype=torch.int32), 70_000,
    )  # fmt: skip
    dense = rows.dense()
    assert dense.shape == (2, 2, 70_000)
    assert dense.count_nonzero() == 3
    assert dense[0, 0, 3] == 3.5 and dense[1, 1, 0] == 0.25 and dense[1, 1, -1] == 4.0


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_keep_the_order_and_hand_an_error_to_whom_it_concerns(cells: TrainingCells, threads: int) -> None:
    _, packed = makers(cells, "train")
    positions = range(3, 23)
    for position, batch in zip(positions, ThreadFeed(packed, positions, threads), strict=True):
        assert_equal(batch.to(CPU), packed(position).to(CPU))

    def broken(position: int) -> object:
        if position == 5:
            raise OSError("the disk is gone")
        return packed(position)

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(ThreadFeed(broken, positions, threads))
    assert len(seen) <= 2


@pytest.mark.gpu
def test_a_gpu_makes_the_same_bits_and_the_host_does_not_wait_for_it(cells: TrainingCells) -> None:
    dense, packed = makers(cells, "train")
    device = torch.device("cuda", torch.cuda.current_device())
    for _ in range(2):  # the first allocates
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            moved = packed(0).pin().to(device)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert_equal(moved.to(CPU), dense(0).to(CPU))
    for position, batch in enumerate(open_feed(packed, range(7), 0, device)):
        assert_equal(batch.to(device).to(CPU), dense(position).to(CPU))


class _Embedding:
    """Two columns: a cell's number, and one."""

    def gather(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([indices, np.ones_like(indices)], axis=1).astype(np.float32)


class _LateArrival:
    """A copy that reads its source as late as it may: when somebody waits for it."""

    def __init__(self, batch: PackedBatch):
        self._batch: PackedBatch | None = batch
        self.copy: PackedBatch | None = None

    def synchronize(self) -> None:
        if self.copy is None and self._batch is not None:
            self.copy, self._batch = self._batch.each(torch.clone), None


class _LateCarrier:
    def send(self, batch: PackedBatch) -> tuple[PackedBatch, _LateArrival]:
        return batch, _LateArrival(batch)

    def receive(self, batch: PackedBatch, arrival: _LateArrival) -> PackedBatch:
        arrival.synchronize()
        assert arrival.copy is not None
        return arrival.copy


@pytest.mark.parametrize("cells", ["sparse memory", "dense memory", "disk"], indirect=True)
@pytest.mark.parametrize("threads", [1, 2, 6])
def test_batches_in_reused_memory_are_the_same_bits_whatever_the_number_of_threads(
    cells: TrainingCells, threads: int
) -> None:
    dense, packed = makers(cells, "train")
    positions = range(2, 47)
    ring = Ring(packed, AHEAD + threads, pin=False)
    feed = MovedFeed(ThreadFeed(ring, positions, threads), _LateCarrier())
    assert len(feed) == len(positions)
    for position, batch in zip(positions, feed, strict=True):
        assert_equal(batch.to(CPU), dense(position).to(CPU))


def test_memory_is_written_anew_only_after_a_copy_has_read_it_even_one_that_reads_at_the_last_moment(
    cells: TrainingCells,
) -> None:
    dense, packed = makers(cells, "train")
    ring = Ring(packed, 0, pin=False)
    arrivals = []
    for position in range(12):
        batch, slot = ring(position)
        arrivals.append(_LateArrival(batch))
        slot.release(arrivals[-1].synchronize)
    read = [arrival.copy for arrival in arrivals]
    assert all(copy is not None for copy in read[:-2]) and read[-2:] == [None, None]
    for position, copy in enumerate(read[:-2]):
        assert copy is not None
        assert_equal(copy.to(CPU), dense(position).to(CPU))


def test_a_slot_is_filled_in_its_own_memory_once_it_knows_the_size(cells: TrainingCells) -> None:
    _, packed = makers(cells, "train")
    ring = Ring(packed, 0, pin=False)
    places = []
    for position in range(12):
        batch, slot = ring(position % 2)
        assert isinstance(batch.control, PackedRows)
        places.append(batch.control.values_N.data_ptr())
        slot.release(lambda: None)
    assert len(set(places[4:])) <= 2, "two slots, each in one place"


def test_a_caller_that_leaves_early_keeps_no_thread_waiting(cells: TrainingCells) -> None:
    _, packed = makers(cells, "train")
    batches = iter(ThreadFeed(Ring(packed, AHEAD + 2, pin=False), range(40), 2))
    for _ in range(4):
        next(batches).slot.release(lambda: None)
    batches.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())
