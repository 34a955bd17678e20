import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.reference import DataReference, FileReference
from steval.data.splits.assignment import CellSplit, ContextSplit
from steval.data.splits.selection import open_reference
from steval.errors import DataError, MissingReferenceError

COLUMNS = Columns(batch=None)


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    labels = ["non-targeting", "A", "B"] * 20
    obs = pd.DataFrame(
        {"target_gene": labels, "cell_type": ["x"] * 30 + ["y"] * 30}, index=[f"c{i}" for i in range(60)]
    )
    counts = rng.poisson(2.0, (60, 6)).astype(np.float32) + 1
    cells = ad.AnnData(X=sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list("abcdef")))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def reference(path, **changes) -> DataReference:
    values = {"columns": COLUMNS, "scale": "counts", "files": (FileReference.of(path),)}
    return DataReference(**{**values, **changes})


def test_a_part_of_a_split_by_contexts_has_the_controls_of_its_context_alone(path):
    split = ContextSplit(val={"x": ("A",)}, test={"y": ("B",)}).as_dict()
    with open_reference(reference(path, part="test", split=split)) as cells:
        assert set(zip(cells.obs["target_gene"], cells.obs["cell_type"], strict=True)) == {
            ("B", "y"),
            ("non-targeting", "y"),
        }
    with open_reference(reference(path, part="train", split=split)) as cells:
        assert set(cells.obs["cell_type"]) == {"x", "y"}
        pairs = set(zip(cells.obs["target_gene"], cells.obs["cell_type"], strict=True))
        assert ("A", "x") not in pairs and ("B", "y") not in pairs


def test_parts_by_cells_do_not_overlap_and_cover_the_perturbed_cells(path):
    split = CellSplit(val=0.2, test=0.3).as_dict()
    names = []
    for part in ("train", "val", "test"):
        with open_reference(reference(path, part=part, split=split)) as cells:
            names += list(cells.obs.index[cells.obs["target_gene"] != "non-targeting"])
    assert len(names) == len(set(names)) == 40


def test_counts_are_read_as_the_recorded_lognorm_and_aligned(path):
    raw = ad.read_h5ad(path)
    recorded = reference(path, scale="lognorm", target_sum=100.0, perturbations=("A",))
    with open_reference(recorded, genes=list("fa")) as cells:
        kept = raw[raw.obs["target_gene"].isin(["A", "non-targeting"]).to_numpy()]
        expected = lognorm(kept.X, 100.0).toarray()[:, [5, 0]]
        np.testing.assert_allclose(cells.rows(np.arange(cells.num_cells)).toarray(), expected, rtol=1e-6)


def test_missing_moved_and_changed_files(path, tmp_path):
    recorded = reference(path)
    moved = tmp_path / "deep" / "er"
    moved.mkdir(parents=True)
    path.rename(moved / "cells.h5ad")
    with pytest.raises(MissingReferenceError, match="--data-dir"):
        open_reference(recorded)
    with open_reference(recorded, [tmp_path / "deep"]) as cells:
        assert cells.num_cells == 60
    (moved / "cells.h5ad").write_bytes(b"other")
    with pytest.raises(DataError, match="content has changed"):
        open_reference(recorded, [tmp_path / "deep"])
