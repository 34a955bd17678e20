"""A control bundle of the challenge of 2026 in small, predictions for it, and what can be wrong with them."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from steval.data.synthetic import generate

CONTEXTS = ("A", "B", "C")
PERTURBATIONS = tuple(f"GENE{number}" for number in range(8))
NUM_CELLS = 20
GENES = (*PERTURBATIONS, *(f"G{number:02}" for number in range(32)))


def write_lists(directory: Path) -> Path:
    """Gene list, perturbation list and manifest of the bundle."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "gene_names.csv").write_text("gene_name\n" + "\n".join(GENES) + "\n")
    lines = [f"{name},{NUM_CELLS}" for name in PERTURBATIONS]
    (directory / "pert_counts.csv").write_text("target_gene,n_cells\n" + "\n".join(lines) + "\n")
    (directory / "manifest.json").write_text(json.dumps({"contexts": list(CONTEXTS), "panel_id": "small"}))
    return directory


def predictions(seed: int = 0) -> ad.AnnData:
    """Counts as a submission holds them: 3 contexts × 8 perturbations × 20 cells, no controls."""
    rng = np.random.default_rng(seed)
    labels = [(context, name) for context in CONTEXTS for name in PERTURBATIONS for _ in range(NUM_CELLS)]
    counts = rng.poisson(rng.gamma(0.5, 2.0, len(GENES)), (len(labels), len(GENES))).astype(np.float32)
    counts[:, 0] += 1  # no cell is empty
    obs = pd.DataFrame({"target_gene": [name for _, name in labels], "context": [context for context, _ in labels]})
    obs.index = pd.Index([f"cell{number}" for number in range(len(obs))])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list(GENES)))


@dataclass(frozen=True)
class Case:
    """One input: `change` edits cells and the bundle's directory, or gives other cells; `edit` the written file."""

    name: str
    is_refused: bool
    says: str = ""
    """Pattern of what steval says."""
    change: Callable[[ad.AnnData, Path], ad.AnnData | None] = lambda cells, bundle: None
    edit: Callable[[h5py.File], None] | None = None

    def write(self, directory: Path) -> tuple[Path, Path]:
        """The predictions' file and the bundle's directory."""
        bundle, path = write_lists(directory / "bundle"), directory / "pred.h5ad"
        cells = predictions()
        changed = self.change(cells, bundle)
        (cells if changed is None else changed).write_h5ad(path)
        if self.edit is not None:
            with h5py.File(path, "r+") as handle:
                self.edit(handle)
        return path, bundle


def _value(row: int, column: int | slice, value: float) -> Callable[[ad.AnnData, Path], ad.AnnData]:
    def change(cells: ad.AnnData, bundle: Path) -> ad.AnnData:
        dense = cells.X.toarray().astype(np.float64)
        dense[row, column] = value
        cells.X = sp.csr_matrix(dense)
        return cells

    return change


def _label(column: str, row: int | slice, value: str | float) -> Callable[[ad.AnnData, Path], None]:
    def change(cells: ad.AnnData, bundle: Path) -> None:
        values = cells.obs[column].astype(object).to_numpy()
        values[row] = value
        cells.obs[column] = values

    return change


def _guides(cells: ad.AnnData, bundle: Path) -> None:
    cells.obs["target_gene"] = [f"{name}-1" for name in cells.obs["target_gene"]]


def _file(name: str, text: str | None) -> Callable[[ad.AnnData, Path], None]:
    def change(cells: ad.AnnData, bundle: Path) -> None:
        if text is None:
            (bundle / name).unlink()
        else:
            (bundle / name).write_text(text)

    return change


def _without(column: str) -> Callable[[ad.AnnData, Path], None]:
    def change(cells: ad.AnnData, bundle: Path) -> None:
        del cells.obs[column]

    return change


def _empty_perturbation(cells: ad.AnnData, bundle: Path) -> None:
    cells.X = sp.csr_matrix(sp.diags((cells.obs["target_gene"] != "GENE3").to_numpy().astype(np.float32)) @ cells.X)


def _repeated_gene(cells: ad.AnnData, bundle: Path) -> None:
    cells.var_names = [*GENES[:-1], GENES[0]]


def _extra_gene(cells: ad.AnnData, bundle: Path) -> ad.AnnData:
    more = ad.AnnData(np.ones((cells.n_obs, 1), np.float32), cells.obs[[]], pd.DataFrame(index=["MORE"]))
    return ad.concat([cells, more], axis=1, merge="first")


def _lognorm(cells: ad.AnnData, bundle: Path) -> None:
    cells.X.data = np.log1p(cells.X.data)


def _with_controls(cells: ad.AnnData, bundle: Path) -> ad.AnnData:
    more = cells[:5].copy()
    more.obs["target_gene"] = "non-targeting"
    more.obs_names = [f"control{number}" for number in range(5)]
    return ad.concat([cells, more])


def _cast(cells: ad.AnnData, dtype: object) -> None:
    cells.X = cells.X.astype(dtype)


def _densify(cells: ad.AnnData, bundle: Path) -> None:
    cells.X = cells.X.toarray()


def _by_columns(cells: ad.AnnData, bundle: Path) -> None:
    cells.X = sp.csc_matrix(cells.X)


def _more_than_x(cells: ad.AnnData, bundle: Path) -> None:
    cells.layers["raw"], cells.uns["note"], cells.obsm["X_pca"] = cells.X.copy(), "mine", np.zeros((cells.n_obs, 2))


def _backwards(handle: h5py.File) -> None:
    handle["X/indptr"][3] = handle["X/indptr"][5]


def _beyond(handle: h5py.File) -> None:
    handle["X/indices"][7] = len(GENES)


def _slack(handle: h5py.File) -> None:
    for name, value in (("data", np.nan), ("indices", 0)):
        stored = np.append(handle[f"X/{name}"][:], value).astype(handle[f"X/{name}"].dtype)
        del handle[f"X/{name}"]
        handle[f"X/{name}"] = stored


def _split_value(handle: h5py.File) -> None:
    """A value of the first cell stored in two parts."""
    data, indices = handle["X/data"][:], handle["X/indices"][:]
    place = int(np.flatnonzero(data[: handle["X/indptr"][1]] > 1)[0])
    del handle["X/data"], handle["X/indices"]
    handle["X/data"] = np.insert(np.where(np.arange(len(data)) == place, data - 1, data), place, 1).astype(np.float32)
    handle["X/indices"] = np.insert(indices, place, indices[place])
    handle["X/indptr"][1:] = handle["X/indptr"][1:] + 1


def _no_matrix(handle: h5py.File) -> None:
    del handle["X"]


def _largest_total(cells: ad.AnnData, bundle: Path) -> ad.AnnData:
    return _value(30, 3, 1_000_000 - float(cells.X[30].sum() - cells.X[30, 3]))(cells, bundle)


_TWO_CONTEXTS = "target_gene,context,n_cells\n" + "\n".join(f"{name},{c},20" for c in "AB" for name in PERTURBATIONS)
_WITH_CONTROL = (
    "target_gene,n_cells\n\nnon-targeting,900\n" + "\n".join(f"{name},20" for name in PERTURBATIONS) + "\n\n"
)
_SOME_NUMBERS = "target_gene,n_cells\n" + "\n".join(f"{name},{20 if name > 'GENE3' else ''}" for name in PERTURBATIONS)

CASES = (
    Case("as it should be", False),
    Case("counts that are not whole", True, "no whole number", _value(30, 3, 2.5)),
    Case("lognorm in place of counts", True, "no whole number", _lognorm),
    Case("a count below 0", True, "below 0", _value(30, 3, -3)),
    Case("NaN", True, "NaN or infinite", _value(30, 3, np.nan)),
    Case("infinite", True, "NaN or infinite", _value(30, 3, np.inf)),
    Case("a total above 1,000,000", True, "more than 1,000,000 counts", _value(30, 3, 1_000_001)),
    Case("a perturbation without counts", True, "without a single count: GENE3", _empty_perturbation),
    Case("control cells inside", True, "5 control cells", _with_controls),
    Case(
        "a context missing", True, "context C has no cells", lambda cells, _: cells[cells.obs["context"] != "C"].copy()
    ),
    Case("an unknown context", True, "unknown contexts D", _label("context", slice(0, NUM_CELLS), "D")),
    Case("no context column", True, "no obs column 'context'", _without("context")),
    Case("no perturbation column", True, "no obs column 'target_gene'", _without("target_gene")),
    Case("a cell without a label", True, "no value in obs column 'target_gene'", _label("target_gene", 7, np.nan)),
    Case(
        "19 cells of 20",
        True,
        r"context A: wrong numbers of cells: GENE0 19 \(wanted 20\)",
        lambda cells, _: cells[1:].copy(),
    ),
    Case(
        "21 cells of 20",
        True,
        "wrong numbers of cells",
        lambda cells, _: ad.concat([cells, cells[:1]], index_unique="-"),
    ),
    Case(
        "a perturbation missing",
        True,
        "1 perturbation missing: GENE5",
        lambda cells, _: cells[cells.obs["target_gene"] != "GENE5"].copy(),
    ),
    Case("a perturbation too many", True, "1 unknown perturbation: OTHER", _label("target_gene", 7, "OTHER")),
    Case("names of guides", True, "names of guides", _guides),
    Case(
        "a blank at the end of a name",
        True,
        "unknown perturbation",
        _label("target_gene", slice(0, NUM_CELLS), "GENE0 "),
    ),
    Case("a gene missing", True, "1 gene of the list missing: G31", lambda cells, _: cells[:, :-1].copy()),
    Case("a gene too many", True, "1 gene not in the list: MORE", _extra_gene),
    Case("a gene twice", True, "1 gene more than once: GENE0", _repeated_gene),
    Case("no cells", True, "no cells", lambda cells, _: cells[:0].copy()),
    Case("no matrix", True, "no X matrix", edit=_no_matrix),
    Case("row pointers that decrease", True, "damaged", edit=_backwards),
    Case("a column beyond the genes", True, "damaged", edit=_beyond),
    Case("an empty gene list", True, "holds no gene names", _file("gene_names.csv", "gene_name\n")),
    Case(
        "a gene list that names one twice",
        True,
        "more than once: G01",
        _file("gene_names.csv", "\n".join([*GENES, "G01"])),
    ),
    Case("no gene list", True, "no such gene list", _file("gene_names.csv", None)),
    Case(
        "a perturbation list without its column",
        True,
        "no column target_gene",
        _file("pert_counts.csv", "gene\nGENE0\n"),
    ),
    Case(
        "a perturbation list of the control alone",
        True,
        "names no perturbation",
        _file("pert_counts.csv", "target_gene\nnon-targeting\n"),
    ),
    Case(
        "a perturbation list for two contexts", True, "no line for context C", _file("pert_counts.csv", _TWO_CONTEXTS)
    ),
    Case(
        "numbers not in the list: 400 are asked for",
        True,
        "wanted 400",
        _file("pert_counts.csv", "target_gene\n" + "\n".join(PERTURBATIONS)),
    ),
    Case("no manifest", True, "which contexts", _file("manifest.json", None)),
    Case("a manifest without contexts", True, "which contexts", _file("manifest.json", '{"contexts": []}')),
    Case("genes in another order", False, change=lambda cells, _: cells[:, ::-1].copy()),
    Case(
        "cells in another order",
        False,
        change=lambda cells, _: cells[np.random.default_rng(1).permutation(cells.n_obs)].copy(),
    ),
    Case("a total of 1,000,000", False, change=_largest_total),
    Case("one cell without counts", False, change=_value(30, slice(None), 0)),
    Case("integers", False, change=lambda cells, _: _cast(cells, np.int32)),
    Case("float64", False, change=lambda cells, _: _cast(cells, np.float64)),
    Case("a dense matrix", False, change=_densify),
    Case("a matrix by columns", False, change=_by_columns),
    Case("layers, uns and obsm beside X", False, change=_more_than_x),
    Case("values behind the last row", False, edit=_slack),
    Case("a value stored in two parts", False, edit=_split_value),
    Case("a gene list without a header", False, change=_file("gene_names.csv", "\n".join(GENES))),
    Case("a perturbation list with the control and blank lines", False, change=_file("pert_counts.csv", _WITH_CONTROL)),
    Case("a perturbation list without some numbers", False, change=_file("pert_counts.csv", _SOME_NUMBERS)),
)


def write_screen_and_bundle(directory: Path) -> None:
    """`screen.h5ad`, counts of two measured contexts, and `controls.zip`, the control bundle of three others; 120 genes in all."""
    screen = generate(
        num_genes=120, num_perturbations=8, cells_per_perturbation=NUM_CELLS, num_controls=60,
        cell_types=("K562", "RPE1", *CONTEXTS), affected_genes=(5, 30), counts_per_cell=2_000.0, seed=3,
    ).cells  # fmt: skip
    is_ours = screen.obs["cell_type"].isin(["K562", "RPE1"]).to_numpy()
    screen[is_ours].copy().write_h5ad(directory / "screen.h5ad")
    names = sorted(set(screen.obs["target_gene"].astype(str)) - {"non-targeting"})
    with zipfile.ZipFile(directory / "controls.zip", "w") as archive:
        archive.writestr("bundle/gene_names.csv", "\n".join(["gene_name", *screen.var_names]) + "\n")
        archive.writestr(
            "bundle/pert_counts.csv", "\n".join(["target_gene,n_cells", *(f"{n},{NUM_CELLS}" for n in names)])
        )
        archive.writestr("bundle/manifest.json", json.dumps({"contexts": list(CONTEXTS), "panel_id": "small"}))
        for context in CONTEXTS:
            chosen = (screen.obs["cell_type"] == context) & (screen.obs["target_gene"] == "non-targeting")
            controls = screen[chosen.to_numpy()].copy()
            controls.obs = pd.DataFrame({"target_gene": "non-targeting", "context": context}, index=controls.obs_names)
            controls.uns = {}
            path = directory / "controls.h5ad"
            controls.write_h5ad(path)
            archive.write(path, f"bundle/controls_{context}.h5ad")
            path.unlink()
