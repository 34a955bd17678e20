"""The audit finds a cell that is in two parts, under its own name or another, in memory and on disk."""

from pathlib import Path

import anndata as ad
import pytest

from steval.data.splits.assignment import CellSplit, ContextSplit
from steval.data.training.cells import CellsSettings, TrainingCells
from steval.errors import DataError
from support.cells_on_disk import CONTROL, make_cells, write_as

GROUPS = {"k562": {"A": 30, "B": 30, CONTROL: 20}, "rpe1": {"A": 30, "B": 30, CONTROL: 20}}
SPLIT = ContextSplit(val={"rpe1": ("A",)})


def open_with(
    adata: ad.AnnData, path: Path, split: CellSplit | ContextSplit = SPLIT, memory_gb: float = 1.0
) -> TrainingCells:
    settings = CellsSettings(files=(str(write_as(adata, path, "csr")),), target_sum=1e4, memory_gb=memory_gb)
    return TrainingCells.open(settings, split)


def with_copies(adata: ad.AnnData, rename: bool, context: str) -> ad.AnnData:
    """Three validation cells once more, in another context."""
    held = adata[(adata.obs["cell_type"] == "rpe1") & (adata.obs["target_gene"] == "A")][:3].copy()
    held.obs["cell_type"] = context
    if rename:
        held.obs_names = [f"copy{number}" for number in range(3)]
    both = ad.concat([adata, held])
    both.var = adata.var
    return both


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "disk"])
def test_clean_data_passes_and_says_what_was_compared(tmp_path: Path, memory_gb: float) -> None:
    cells = open_with(make_cells(GROUPS, num_genes=60), tmp_path / "c.h5ad", memory_gb=memory_gb)
    assert cells.audit.num_cells == 120
    assert cells.audit.content_checked == (memory_gb > 0)
    assert ("on disk" in cells.audit.describe()) == (memory_gb == 0)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "disk"])
def test_the_same_cells_in_a_second_file_are_found_by_name(tmp_path: Path, memory_gb: float) -> None:
    adata = make_cells(GROUPS, num_genes=60)
    first = write_as(adata, tmp_path / "first.h5ad", "csr")
    second = write_as(adata[40:160].copy(), tmp_path / "second.h5ad", "csr")
    settings = CellsSettings(files=(str(first), str(second)), target_sum=1e4, memory_gb=memory_gb)
    with pytest.raises(DataError, match=r"in more than one of train, val and test(?s:.*)first.h5ad, row \d+: in "):
        TrainingCells.open(settings, CellSplit())


def test_a_copy_under_another_name_and_context_is_found_by_its_profile(tmp_path: Path) -> None:
    adata = with_copies(make_cells(GROUPS, num_genes=60), rename=True, context="k562")
    with pytest.raises(DataError, match="6 perturbed cells whose measured profile"):
        open_with(adata, tmp_path / "c.h5ad")


def test_a_copy_within_one_part_is_no_leak(tmp_path: Path) -> None:
    open_with(with_copies(make_cells(GROUPS, num_genes=60), rename=True, context="rpe1"), tmp_path / "c.h5ad")


def test_profiles_of_few_genes_are_no_proof(tmp_path: Path) -> None:
    adata = with_copies(make_cells(GROUPS, num_genes=20), rename=True, context="k562")
    assert open_with(adata, tmp_path / "c.h5ad").audit.content_checked


def test_equal_names_of_different_cells_are_counted_not_refused(tmp_path: Path) -> None:
    first, second = (make_cells(GROUPS, num_genes=60, seed=seed) for seed in (1, 2))
    second.obs = first.obs.copy()
    paths = [write_as(first, tmp_path / "0.h5ad", "csr"), write_as(second[::-1].copy(), tmp_path / "1.h5ad", "csr")]
    cells = TrainingCells.open(CellsSettings(files=tuple(map(str, paths)), target_sum=1e4), CellSplit())
    assert cells.audit.num_cells == 240
    assert cells.audit.repeated_names > 0
