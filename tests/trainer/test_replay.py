"""Steps into one batch's memory, as a GPU replays them: here without recording, bit for bit the steps one by one."""

import logging
from pathlib import Path

import pytest
import torch

from steval.trainer import session
from steval.trainer.fit.batches import Batch, PackedBatch, PackedRows
from steval.trainer.fit.replay import Direct, ReplayedStep, open_recorder
from support.tiny_runs import assert_same_run, rows, run, stop_at, tiny_config

CHANGES = ("network.dropout=0.1", "phases.1.warmup_fraction=0.2", "optimiser.clip=0.05")


@pytest.fixture
def _replaying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "open_recorder", lambda *_: Direct())


@pytest.fixture(scope="module")
def one_by_one(screen_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without replays."""
    path = tmp_path_factory.mktemp("one_by_one") / "run"
    run(tiny_config(screen_path, *CHANGES, average_weights=0.9), path)
    return path


@pytest.mark.usefixtures("_replaying")
def test_replayed_steps_are_the_steps(screen_path: Path, one_by_one: Path, tmp_path: Path) -> None:
    run(tiny_config(screen_path, *CHANGES, average_weights=0.9), tmp_path / "run")
    assert_same_run(tmp_path / "run", one_by_one)


@pytest.mark.usefixtures("_replaying")
@pytest.mark.parametrize("step", [1, 9])
def test_a_replayed_run_is_resumed_one_by_one_and_back(
    screen_path: Path, one_by_one: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(screen_path, *CHANGES, average_weights=0.9)
    assert not run(config, tmp_path / "run", on_step=stop_at(step)).finished
    with monkeypatch.context() as patch:
        patch.setattr(session, "open_recorder", open_recorder)
        assert not run(None, tmp_path / "run", resume=True, on_step=stop_at(step + 3)).finished
    assert run(None, tmp_path / "run", resume=True).finished
    assert_same_run(tmp_path / "run", one_by_one)


def test_a_batch_of_other_shapes_is_computed_apart(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[int, ...]] = []

    def compute(batch: Batch) -> torch.Tensor:
        seen.append(tuple(batch.control_BSG.shape))
        return torch.stack([batch.control_BSG.sum(), batch.target_BSG.sum(), batch.pert_BP.sum()])

    step = ReplayedStep(compute, torch.device("cpu"), Direct())
    with caplog.at_level(logging.WARNING):
        found = [step(_batch(sets, start)) for sets, start in ((2, 0), (2, 5), (1, 7), (2, 9), (1, 0))]
    assert seen == [(2, 3, 4), (2, 3, 4), (1, 3, 4), (2, 3, 4), (1, 3, 4)]
    assert caplog.text.count("other shapes than the recorded step") == 1
    for row, (sets, start) in zip(found, ((2, 0), (2, 5), (1, 7), (2, 9), (1, 0)), strict=True):
        batch = _batch(sets, start).to(torch.device("cpu"))
        assert row.tolist() == [batch.control_BSG.sum(), batch.target_BSG.sum(), batch.pert_BP.sum()]


def test_a_row_outlives_the_next_step() -> None:
    step = ReplayedStep(lambda batch: batch.pert_BP.sum()[None], torch.device("cpu"), Direct())
    found = [step(_batch(2, start)) for start in (0, 1, 2, 3)]
    assert [float(row) for row in found] == [float(_batch(2, start).pert_BP.sum()) for start in (0, 1, 2, 3)]


def test_where_there_is_no_gpu_steps_run_as_without(
    screen_path: Path, one_by_one: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(tiny_config(screen_path, *CHANGES, "compute.cuda_graph=true", average_weights=0.9), tmp_path / "run")
    assert rows(tmp_path / "run") == rows(one_by_one)
    assert "compute.cuda_graph: steps are not recorded, for there is no GPU in use" in caplog.text


def _batch(sets: int, start: int) -> PackedBatch:
    """`sets` × 3 cells × 4 genes, one packed value in each cell, from `start` on."""
    cells = PackedRows(
        torch.arange(start, start + 3 * sets).float(),
        torch.arange(3 * sets) % 4,
        torch.ones(sets, 3, dtype=torch.int32),
        4,
    )
    return PackedBatch(
        cells, torch.full((sets, 3, 4), float(start)), torch.full((sets, 2), start / 2), None, None, None
    )
