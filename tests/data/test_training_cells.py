"""Training data opened: one or many files, columns, scale, genes, vocabulary, references; what does not fit is an error."""

import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from steval.data.cells.scale import lognorm
from steval.data.columns import ColumnOptions
from steval.data.splits.assignment import CellSplit, ContextSplit
from steval.data.splits.selection import open_reference
from steval.data.training.cells import CellsSettings, NameOrder, TrainingCells
from steval.errors import ConfigError, DataError
from support.cells_on_disk import CONTROL, make_cells, write_as

GROUPS = {"A": 20, "B": 20, CONTROL: 20}


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[list[Path], list[ad.AnnData]]:
    """k562 and rpe1; the second has its genes reversed and one more perturbation."""
    first = make_cells({"k562": GROUPS}, seed=1, prefix="k")
    second = make_cells({"rpe1": GROUPS | {"Z": 20}}, seed=2, prefix="r")[:, ::-1].copy()
    return [write_as(a, tmp_path / f"{n}.h5ad", "csr") for n, a in enumerate([first, second])], [first, second]


def open_files(*paths: Path, split: CellSplit | ContextSplit | None = None, **changes: object) -> TrainingCells:
    values = {"files": [str(path) for path in paths], "target_sum": 1e4} | changes
    return TrainingCells.open(CellsSettings.parse(values), split or CellSplit())


def test_the_packaged_cells_open_by_default(counts_path: Path) -> None:
    cells = open_files(counts_path)
    assert (cells.num_cells, len(cells.genes), cells.pert_dim, cells.input_dim) == (600, 1000, 6, 1000)
    assert cells.perturbations == ("MED12", "SRC", "STAT1", "TET1", "TMSB4X", "non-targeting")
    assert np.array_equal(cells.features, np.eye(6, dtype=np.float32))
    assert {name: len(cells.part(name)) for name in ("train", "val", "test")} == {"train": 400, "val": 50, "test": 50}
    assert len(cells.controls("val")) == 100
    np.testing.assert_allclose(np.expm1(cells.gather(np.arange(600))).sum(axis=1), 1e4, rtol=1e-4)
    assert "no perturbed cell is in two parts" in cells.summary()["audit"]


def test_counts_and_prepared_lognorm_give_the_same_cells(counts_path: Path, lognorm_path: Path) -> None:
    everything = np.arange(600)
    prepared = open_files(lognorm_path, target_sum=None)
    assert prepared.target_sum == 1e4
    np.testing.assert_allclose(prepared.gather(everything), open_files(counts_path).gather(everything), rtol=1e-5)


def test_many_files_are_one_data_set_aligned_by_name(
    two_files: tuple[list[Path], list[ad.AnnData]], tmp_path: Path
) -> None:
    paths, (first, second) = two_files
    cells = open_files(tmp_path / "*.h5ad")
    assert cells.paths == tuple(paths)
    assert cells.perturbations == ("A", "B", "Z", CONTROL)
    assert cells.cell_types == ("k562", "rpe1")
    assert cells.genes == tuple(first.var_names)
    expected = lognorm(second[:, list(first.var_names)].X, 1e4).toarray()
    np.testing.assert_allclose(cells.gather(np.arange(60, 140)), expected, rtol=1e-6)
    names = [cells.perturbations[code] for code in cells.perturbation_codes]
    assert names == [*first.obs["target_gene"], *second.obs["target_gene"]]
    assert any("reordered by name" in note for note in cells.notes)
    assert open_files(paths[0], paths[0], paths[1]).num_cells == 140


def test_memory_and_disk_give_the_same_cells(two_files: tuple[list[Path], list[ad.AnnData]]) -> None:
    paths, _ = two_files
    memory, disk = (open_files(*paths, memory_gb=size) for size in (1.0, 0.0))
    assert (memory.store.place, disk.store.place) == ("dense memory", "disk")
    said = [cells.summary()["cells are read from"] for cells in (memory, disk)]
    assert said == ["memory", "disk, set by set (data.memory_gb 0.1 would hold them in the memory of each process)"]
    assert open_files(*paths, memory_gb=0.1).store.place == "dense memory"
    order = np.random.default_rng(0).permutation(140)
    assert np.array_equal(memory.gather(order), disk.gather(order))
    assert np.array_equal(memory.part_codes, disk.part_codes)
    copy = pickle.loads(pickle.dumps(disk))  # noqa: S301  (our own object)
    assert np.array_equal(copy.gather(order), disk.gather(order))


def test_a_vocabulary_keeps_its_order_and_takes_new_names_at_the_end(
    two_files: tuple[list[Path], list[ad.AnnData]],
) -> None:
    paths, _ = two_files
    settings = CellsSettings(files=tuple(map(str, paths)), target_sum=1e4)
    order = NameOrder(perturbations=(CONTROL, "Z", "Y", "A"), cell_types=("rpe1",))
    cells = TrainingCells.open(settings, CellSplit(), vocabulary=order)
    assert cells.perturbations == (CONTROL, "Z", "Y", "A", "B")
    assert cells.cell_types == ("rpe1", "k562")
    assert cells.control_code == 0
    assert cells.pert_dim == 5


def test_features_come_by_name_and_a_missing_control_is_zero(
    two_files: tuple[list[Path], list[ad.AnnData]],
) -> None:
    paths, _ = two_files
    settings = CellsSettings(files=tuple(map(str, paths)), target_sum=1e4)
    vectors = dict(zip(["Z", "B", "Q", "A"], np.arange(12).reshape(4, 3), strict=True))
    cells = TrainingCells.open(settings, CellSplit(), perturbation_features=vectors)
    assert cells.features.tolist() == [[9, 10, 11], [3, 4, 5], [0, 1, 2], [0, 0, 0]]
    with pytest.raises(DataError, match=r"f\.csv does not fit(?s:.*)'Z' has no vector"):
        TrainingCells.open(
            settings, CellSplit(), perturbation_features={"A": [1.0], "B": [2.0]}, features_source="f.csv"
        )


def test_an_embedding_is_the_input_and_genes_a_target_of_their_own(tmp_path: Path) -> None:
    adata = make_cells({"k562": GROUPS})
    adata.obsm["X_state"] = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    cells = open_files(write_as(adata, tmp_path / "c.h5ad", "csr"), input_key="X_state")
    assert (cells.input_dim, cells.input_genes, cells.input_is_target) == (5, None, False)
    assert np.array_equal(cells.gather_input(np.array([7, 2])), adata.obsm["X_state"][[7, 2]])
    with pytest.raises(DataError, match="no obsm matrix 'X_pca'"):
        open_files(tmp_path / "c.h5ad", input_key="X_pca")


def test_an_x_hvg_input_is_built_from_x_by_names(tmp_path: Path) -> None:
    adata = make_cells({"k562": GROUPS})
    adata.obsm["X_hvg"] = np.full((60, 2), 99.0)
    settings = CellsSettings(
        files=(str(write_as(adata, tmp_path / "c.h5ad", "csr")),), target_sum=1e4, input_key="X_hvg"
    )
    cells = TrainingCells.open(settings, CellSplit(), input_genes=["gene3", "gene1"])
    assert np.array_equal(cells.gather_input(np.arange(60)), cells.gather(np.arange(60))[:, [3, 1]])
    with pytest.raises(ConfigError, match="needs the names of its genes"):
        TrainingCells.open(settings, CellSplit())


def test_a_gene_contract_is_kept_and_missing_genes_are_an_error(tmp_path: Path) -> None:
    path = write_as(make_cells({"k562": GROUPS}), tmp_path / "c.h5ad", "csr")
    settings = CellsSettings(files=(str(path),), target_sum=1e4)
    whole = TrainingCells.open(settings, CellSplit()).gather(np.arange(60))
    cells = TrainingCells.open(settings, CellSplit(), genes=["gene9", "gene4"])
    assert np.array_equal(cells.gather(np.arange(60)), whole[:, [9, 4]])
    with pytest.raises(DataError, match="lacks 1 of the 2 genes"):
        TrainingCells.open(settings, CellSplit(), genes=["gene9", "TP53"])
    zero = settings.model_copy(update={"fill_missing": "zero"})
    assert not TrainingCells.open(zero, CellSplit(), genes=["gene9", "TP53"]).gather(np.arange(60))[:, 1].any()


def test_scales_that_do_not_fit_are_reported_together(tmp_path: Path) -> None:
    adata = make_cells({"k562": GROUPS})
    counts = write_as(adata, tmp_path / "counts.h5ad", "csr")
    paths = []
    for total in (1000.0, 2000.0):
        other = adata.copy()
        other.X = lognorm(adata.X, total)
        paths.append(write_as(other, tmp_path / f"lognorm{total:g}.h5ad", "csr"))
    with pytest.raises(
        DataError, match=r"counts.h5ad holds counts: give target_sum(?s:.*)different target_sum: 1000, 2000"
    ):
        open_files(counts, *paths, target_sum=None)
    with pytest.raises(DataError, match="different target_sum: 1000, 10000"):
        open_files(paths[0])


def test_columns_are_resolved_or_refused(tmp_path: Path) -> None:
    adata = make_cells({"k562": GROUPS})
    adata.obs = adata.obs.rename(columns={"target_gene": "gene"}).astype({"gene": str})
    path = write_as(adata, tmp_path / "c.h5ad", "csr")
    with pytest.raises(DataError, match=r"no obs column 'target_gene'; its columns are: gene, cell_type, batch"):
        open_files(path)
    assert open_files(path, columns=ColumnOptions(perturbation="gene").as_dict()).perturbations == ("A", "B", CONTROL)
    with pytest.raises(DataError, match=r"no file holds control cells \('ctrl' in column 'gene'\)"):
        open_files(path, columns={"perturbation": "gene", "control": "ctrl"})
    second = write_as(make_cells({"k562": GROUPS}), tmp_path / "d.h5ad", "csr")
    adata.obs["target_gene"] = adata.obs["gene"]
    third = write_as(adata[:, :], tmp_path / "e.h5ad", "csr")
    assert open_files(second, third).num_cells == 120
    del adata.obs["target_gene"], adata.obs["batch"]
    adata.obs = adata.obs.rename(columns={"gene": "target_gene"})
    with pytest.raises(DataError, match=r"different obs columns(?s:.*)f.h5ad: .*'batch': None"):
        open_files(second, write_as(adata, tmp_path / "f.h5ad", "csr"))
    adata.obs = adata.obs.rename(columns={"target_gene": "gene"})
    adata.obs["gene"] = pd.Categorical([None, *adata.obs["gene"][1:]])
    with pytest.raises(DataError, match="1 of 60 cells have no value in obs column 'gene'"):
        open_files(write_as(adata, path, "csr"), columns={"perturbation": "gene"})


def test_missing_and_damaged_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file matches .*none\*.h5ad"):
        open_files(tmp_path / "none*.h5ad")
    with pytest.raises(ConfigError, match="no training data"):
        TrainingCells.open(CellsSettings(), CellSplit())
    (tmp_path / "text.h5ad").write_text("no HDF5")
    with pytest.raises(DataError, match="not a readable h5ad file"):
        open_files(tmp_path / "text.h5ad")


@pytest.mark.parametrize(
    "split", [CellSplit(controls="split"), ContextSplit(val={"rpe1": ("A",)}, test={"rpe1": ("Z",)})]
)
def test_a_reference_selects_the_cells_of_its_part(
    two_files: tuple[list[Path], list[ad.AnnData]], split: CellSplit | ContextSplit
) -> None:
    paths, (first, second) = two_files
    for path, adata in zip(paths, (first, second[:, list(first.var_names)]), strict=True):
        write_as(adata, path, "csr")
    cells = open_files(*paths, split=split)
    names = np.array([*first.obs_names, *second.obs_names])
    for part in ("val", "test"):
        with open_reference(cells.reference(part)) as selected:
            perturbed = selected.obs.index[(selected.obs["target_gene"] != CONTROL).to_numpy()]
            assert sorted(perturbed) == sorted(names[cells.part(part)])
