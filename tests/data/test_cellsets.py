"""Cell sets: pure functions of (seed, epoch, number), never mixed, every cell seen, controls from the right place."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steval.data.splits.assignment import CellSplit, ContextSplit
from steval.data.training.cells import CellsSettings, TrainingCells
from steval.data.training.sets import CellSetSampler, SetBatch
from steval.errors import ConfigError, DataError
from support.cells_on_disk import CONTROL, make_cells, write_as

CONTEXTS = {
    "k562": {"A": 37, "B": 8, "C": 3, CONTROL: 21},
    "rpe1": {"A": 12, "B": 30, "C": 16, CONTROL: 9},
}
SPLIT = ContextSplit(val={"rpe1": ("B",)}, test={"rpe1": ("C",)})


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> TrainingCells:
    path = write_as(make_cells(CONTEXTS), tmp_path_factory.mktemp("sets") / "c.h5ad", "csr")
    return TrainingCells.open(CellsSettings(files=(str(path),), target_sum=100), SPLIT)


def sampler_of(cells: TrainingCells, part: str = "train", **changes: object) -> CellSetSampler:
    options = {"set_size": 8, "sets_per_batch": 3, "seed": 5} | changes
    return CellSetSampler(cells, part, **options)  # type: ignore[arg-type]


def same(first: SetBatch, second: SetBatch) -> bool:
    return all(
        np.array_equal(a, b) if a is not None else b is None
        for a, b in zip(vars(first).values(), vars(second).values(), strict=True)
    )


@pytest.mark.parametrize("mapping", ["cell_type", "batch"])
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_set_never_mixes(cells: TrainingCells, part: str, mapping: str) -> None:
    sampler = sampler_of(cells, part, mapping=mapping)
    allowed = set(cells.controls(part).tolist())
    own = set(cells.part(part).tolist()) | (allowed if part == "train" else set())
    for plan in sampler.plan(0):
        assert set(cells.perturbation_codes[plan.targets]) == {plan.pert_code}
        both = np.concatenate([plan.targets, plan.controls])
        assert set(cells.cell_type_codes[both]) == {plan.cell_type_code}
        assert cells.is_control[plan.controls].all()
        assert set(plan.controls.tolist()) <= allowed
        assert set(plan.targets.tolist()) <= own
        assert len(plan.controls) == len(plan.targets) <= 8
        if mapping == "batch":
            assert len(set(cells.batch_codes[both])) == 1


@pytest.mark.parametrize("epoch", [0, 3])
def test_training_sees_every_cell_and_fills_every_set(cells: TrainingCells, epoch: int) -> None:
    sampler = sampler_of(cells)
    plans = sampler.plan(epoch)
    seen = np.concatenate([plan.targets for plan in plans])
    assert set(seen) == set(cells.part("train")) | set(cells.controls("train"))
    assert {len(plan.targets) for plan in plans} == {8}
    large = [plan.targets for plan in plans if plan.pert_code == cells.perturbations.index("A")]
    assert all(len(set(targets)) == 8 for targets in large)
    batch = sampler.batch(epoch, 0)
    assert batch.padding_BS is None
    assert batch.control_BSG.shape == batch.target_BSG.shape == (3, 8, 12)


def test_controls_are_targets_only_where_wanted_and_in_training(cells: TrainingCells) -> None:
    control = cells.control_code
    assert any(plan.pert_code == control for plan in sampler_of(cells).plan(0))
    assert all(plan.pert_code != control for plan in sampler_of(cells, controls_as_targets=False).plan(0))
    assert all(plan.pert_code != control for plan in sampler_of(cells, "val").plan(0))


def test_validation_is_fixed_and_sees_every_cell_once(cells: TrainingCells) -> None:
    sampler = sampler_of(cells, "val")
    seen = np.concatenate([plan.targets for plan in sampler.plan(0)])
    assert sorted(seen) == cells.part("val").tolist()
    assert len(sampler.plan(0)) == 4
    assert sampler.num_batches() == 2
    for index in range(2):
        assert same(sampler.batch(0, index), sampler.batch(7, index))
    short = next(sampler.batch(0, index) for index in range(2) if sampler.batch(0, index).padding_BS is not None)
    assert short.padding_BS is not None
    assert int(short.padding_BS.sum()) in (2, 2 * len(short.pert_codes_B))
    assert not short.control_BSG[short.padding_BS].any()
    assert not short.target_BSG[short.padding_BS].any()
    assert (short.target_rows_BS[short.padding_BS] == -1).all()
    assert len(sampler_of(cells, "val", max_sets_per_group=1).plan(0)) == 1


def test_a_batch_is_a_function_of_its_place(cells: TrainingCells) -> None:
    sampler = sampler_of(cells)
    forward = [sampler.batch(epoch, index) for epoch in (0, 1) for index in range(sampler.num_batches())]
    fresh = sampler_of(cells)
    backward = [fresh.batch(epoch, index) for epoch in (1, 0) for index in reversed(range(fresh.num_batches()))]
    assert all(same(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    copy = pickle.loads(pickle.dumps(sampler))  # noqa: S301  (our own object)
    assert same(copy.batch(1, 2), sampler.batch(1, 2))
    assert not same(sampler.batch(0, 0), sampler.batch(1, 0))
    assert not same(sampler.batch(0, 0), sampler_of(cells, seed=6).batch(0, 0))


def test_shards_together_are_the_batch(cells: TrainingCells) -> None:
    sampler = sampler_of(cells, sets_per_batch=4)
    whole = sampler.batch(0, 1)
    halves = [sampler.batch(0, 1, shard=(number, 2)) for number in range(2)]
    for number, half in enumerate(halves):
        assert np.array_equal(half.target_BSG, whole.target_BSG[number::2])
        assert np.array_equal(half.control_rows_BS, whole.control_rows_BS[number::2])
    with pytest.raises(ConfigError, match="must be a multiple of the 3 processes"):
        sampler.batch(0, 0, shard=(0, 3))
    with pytest.raises(IndexError):
        sampler.batch(0, sampler.num_batches())


def test_the_values_are_the_lognorm_rows_of_the_planned_cells(cells: TrainingCells) -> None:
    batch = sampler_of(cells).batch(2, 1)
    assert np.array_equal(batch.target_BSG[1], cells.gather(batch.target_rows_BS[1]))
    assert np.array_equal(batch.control_BSG[2], cells.gather(batch.control_rows_BS[2]))
    np.testing.assert_allclose(np.expm1(batch.target_BSG).sum(axis=-1), 100, rtol=1e-4)
    assert np.array_equal(batch.batch_codes_BS, cells.batch_codes[batch.control_rows_BS])
    assert batch.target_genes_BSD is None


def test_uniform_sampling_gives_perturbations_equal_sets(cells: TrainingCells) -> None:
    sampler = sampler_of(cells, set_size=2, sampling="perturbations")
    numbers = np.zeros(len(cells.perturbations))
    for epoch in range(40):
        plans = sampler.plan(epoch)
        assert len(plans) == sampler.num_sets
        for plan in plans:
            numbers[plan.pert_code] += 1
    np.testing.assert_allclose(numbers, numbers.mean(), rtol=0.05)


def test_a_repeated_small_group_is_shuffled_anew_each_turn(cells: TrainingCells) -> None:
    sampler = sampler_of(cells, set_size=2, sampling="perturbations")
    code = cells.perturbations.index("C")
    sets = [tuple(plan.targets.tolist()) for plan in sampler.plan(0) if plan.pert_code == code]
    assert len(set(sets)) > 2


def test_cells_without_controls_are_an_error_that_names_the_place(tmp_path: Path) -> None:
    adata = make_cells({"k562": {"A": 30, "B": 30, CONTROL: 20}, "rpe1": {"A": 30}}, num_batches=1)
    path = write_as(adata, tmp_path / "c.h5ad", "csr")
    lonely = TrainingCells.open(CellsSettings(files=(str(path),), target_sum=100), CellSplit())
    with pytest.raises(DataError, match=r"without control cells(?s:.*)cell type 'rpe1'"):
        sampler_of(lonely)
    adata.obs["batch"] = ["b0" if name == CONTROL else "b1" for name in adata.obs["target_gene"]]
    batches = TrainingCells.open(
        CellsSettings(files=(str(write_as(adata[adata.obs["cell_type"] == "k562"], path, "csr")),), target_sum=100),
        CellSplit(),
    )
    with pytest.raises(DataError, match=r"mapping: cell_type(?s:.*)batch 'b1'"):
        sampler_of(batches, mapping="batch")


@settings(max_examples=60, deadline=None)
@given(
    set_size=st.integers(1, 50), sets_per_batch=st.integers(1, 9), seed=st.integers(0, 2**32), epoch=st.integers(0, 10**6),
    sampling=st.sampled_from(["cells", "perturbations"]), mapping=st.sampled_from(["cell_type", "batch"]),
)  # fmt: skip
def test_any_settings_give_full_unmixed_batches(
    cells: TrainingCells, set_size: int, sets_per_batch: int, seed: int, epoch: int, sampling: str, mapping: str
) -> None:
    sampler = sampler_of(
        cells, set_size=set_size, sets_per_batch=sets_per_batch, seed=seed, sampling=sampling, mapping=mapping
    )
    index = sampler.num_batches() - 1
    batch = sampler.batch(epoch, index)
    assert batch.target_BSG.shape == (sets_per_batch, set_size, 12)
    assert batch.padding_BS is None
    codes = cells.perturbation_codes[batch.target_rows_BS]
    assert (codes == batch.pert_codes_B[:, None]).all()
    assert (cells.cell_type_codes[batch.control_rows_BS] == batch.cell_type_codes_B[:, None]).all()
    assert cells.is_control[batch.control_rows_BS].all()
