"""Odd cells: changes to an AnnData in memory, and to the HDF5 file that holds one."""

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

ODD_NAMES = (
    "", " ", "nan", "NA", "None", "0012", "1.10", "true", "é", "e\u0301", "名前", "=1+1", "$\\foo$", "a/b", "a,b", "a b",
    'a"b', "a'b", "a;b", "a\tb", "a\nb", "\x1b[31mred", "\u202ertl", "x" * 3000, " STAT1", "STAT1 ", "non-targeting ", "..", "-1",
    "*", "[a]", "%s", "{0}", "\x00", "\U0001f9ec", "stat1",
)  # fmt: skip
"""Texts that somebody has called a perturbation, a cell type or a gene, or could."""
COLUMNS = ("target_gene", "cell_type", "batch")

MOST_DRAWN = 20

CellChange = Callable[[ad.AnnData, random.Random], ad.AnnData | None]


def some_missing(cells: ad.AnnData, rng: random.Random) -> None:
    """A few labels without a value, of any of the kinds that pandas knows."""
    column = rng.choice(COLUMNS)
    values = cells.obs[column].astype(str).astype(object)
    nothing = rng.choice([None, np.nan, pd.NA, "", "  "])
    values.iloc[rng.sample(range(len(values)), min(len(values), rng.choice([1, 3, 10_000])))] = nothing
    cells.obs[column] = rng.choice([values, pd.Categorical(values.where(values.notna(), None))])


def odd_labels(cells: ad.AnnData, rng: random.Random) -> None:
    """One label becomes another text, everywhere or in half of its cells."""
    column = rng.choice(COLUMNS)
    values = cells.obs[column].astype(str).astype(object)
    which = np.flatnonzero((values == rng.choice(sorted(set(values)))).to_numpy())
    values.iloc[which[:: rng.choice([1, 2])]] = rng.choice(ODD_NAMES).replace("\x00", "")
    cells.obs[column] = values


def label_type(cells: ad.AnnData, rng: random.Random) -> None:
    """A label column of another type."""
    column = rng.choice(COLUMNS)
    text = cells.obs[column].astype(str)
    codes = pd.Series(pd.factorize(text)[0], index=text.index)
    cells.obs[column] = rng.choice(
        [
            codes, codes.astype(float), codes.astype("Int64"), codes > 1, text.astype("string"), codes / 7,
            pd.Categorical(text, categories=[*sorted(set(text)), "never seen"], ordered=True), codes.astype("boolean"),
            pd.Categorical(codes), pd.Categorical.from_codes([-1] * len(text), categories=["a"]),
        ]
    )  # fmt: skip


def columns_changed(cells: ad.AnnData, rng: random.Random) -> None:
    """A column that is gone, renamed, or called as the index is."""
    column = rng.choice(COLUMNS)
    if rng.random() < 0.3:
        cells.obs["index" if rng.random() < 0.5 else rng.choice(ODD_NAMES[3:20])] = range(cells.n_obs)
    elif rng.random() < 0.5:
        del cells.obs[column]
    else:
        cells.obs = cells.obs.rename(columns={column: rng.choice(("index", "_index", "Target_Gene", "gene", "obs/x"))})


def cell_names(cells: ad.AnnData, rng: random.Random) -> None:
    """Names of cells that repeat, or are of an odd kind."""
    odd = rng.choice(ODD_NAMES).replace("\x00", "")
    names = rng.choice([["c"] * cells.n_obs, [odd, *cells.obs_names[1:]], [str(n) for n in range(cells.n_obs)]])
    cells.obs_names = names[: cells.n_obs]


def gene_names(cells: ad.AnnData, rng: random.Random) -> None:
    """Genes that repeat, lack a name, or have an odd one."""
    names = list(cells.var_names)
    place = rng.randrange(max(1, len(names)))
    if names:
        names[place] = rng.choice([names[0], names[-1], *(name.replace("\x00", "") for name in ODD_NAMES)])
    cells.var_names = names


def some_cells(cells: ad.AnnData, rng: random.Random) -> ad.AnnData:
    """Few cells, none, one label alone, without controls."""
    label = cells.obs[COLUMNS[0]].astype(str)
    keep = rng.choice(
        [np.arange(0), np.arange(1), np.arange(2), label == rng.choice(sorted(set(label)) or [""]), label != "non-targeting",
         np.arange(cells.n_obs)[::-1], np.repeat(np.arange(cells.n_obs), 2)]
    )  # fmt: skip
    return cells[np.asarray(keep)].copy()


def some_genes(cells: ad.AnnData, rng: random.Random) -> ad.AnnData:
    """Few genes, none, others, in another order."""
    order = list(range(cells.n_vars))
    rng.shuffle(order)
    return cells[:, rng.choice([[], order[:1], order, order[: max(1, len(order) - 3)], [*order, *order[:2]]])].copy()


def odd_values(cells: ad.AnnData, rng: random.Random) -> None:
    """Values that are no expression, or expression on another scale."""
    matrix = sparse.csr_matrix(cells.X, dtype=np.float64)
    if matrix.nnz:
        value = rng.choice([np.nan, np.inf, -np.inf, -1.0, 1e38, 1e300, 0.0, 1e-45])
        matrix.data[rng.sample(range(matrix.nnz), min(matrix.nnz, rng.choice([1, 7, 10**9])))] = value
    scaled = rng.choice(
        [
            matrix,
            -matrix,
            matrix * 0,
            matrix * 1e6,
            matrix.power(2),
            matrix.multiply(1 / np.log(2)).tocsr(),
            np.expm1(matrix),
        ]
    )
    cells.X = rng.choice([matrix, matrix, scaled])  # fmt: skip


def value_type(cells: ad.AnnData, rng: random.Random) -> None:
    """X in another type, layout or order."""
    kinds = [
        np.float16,
        np.float64,
        np.int8,
        np.uint8,
        np.int16,
        np.int32,
        np.int64,
        np.uint64,
        bool,
        ">f4",
        ">i4",
        np.complex64,
    ]
    with np.errstate(all="ignore"):
        matrix = sparse.csr_matrix(cells.X).astype(rng.choice(kinds))
    layout = rng.choice(["csr", "csc", "dense", "fortran", "unsorted", "wide index"])
    if layout == "csc":
        matrix = matrix.tocsc()
    elif layout in ("dense", "fortran"):
        matrix = np.asarray(matrix.todense(), order="F" if layout == "fortran" else "C")
    elif layout == "wide index":
        matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    elif layout == "unsorted":
        for start, end in zip(matrix.indptr, matrix.indptr[1:], strict=False):
            matrix.indices[start:end] = matrix.indices[start:end][::-1].copy()
            matrix.data[start:end] = matrix.data[start:end][::-1].copy()
        matrix.has_sorted_indices = False
    cells.X = matrix


def elsewhere(cells: ad.AnnData, rng: random.Random) -> ad.AnnData | None:
    """X in a layer or raw, or nowhere; matrices beside it."""
    if rng.random() < 0.4:
        moved = ad.AnnData(obs=cells.obs, var=cells.var, uns=cells.uns)
        if rng.random() < 0.7:
            moved.layers["counts"] = cells.X
        return moved
    cells.raw = cells.copy()
    kinds = [
        np.zeros((cells.n_obs, 2)),
        sparse.csr_matrix((cells.n_obs, 3)),
        np.full((cells.n_obs, 2), np.nan),
        pd.DataFrame({"a": ["x"] * cells.n_obs}, index=cells.obs_names),
        np.zeros((cells.n_obs, 2, 2)),
        np.zeros((cells.n_obs, 0)),
    ]
    cells.obsm[rng.choice(["X_hvg", "X_state", "X pca"])] = rng.choice(kinds)  # fmt: skip
    return cells


def odd_record(cells: ad.AnnData, rng: random.Random) -> None:
    """What the file says about itself, and should not."""
    record = dict(cells.uns.get("steval", {}))
    if record and rng.random() < 0.6:
        odd = rng.choice(
            ["", "counts", "log2", -1, 0, float("nan"), 10**12, [], [1, 2], {"a": 1}, True, "1e4", np.zeros(3)]
        )
        record[rng.choice([*record, "scale", "target_sum", "columns"])] = odd
        cells.uns["steval"] = record
    else:
        cells.uns["steval"] = rng.choice(
            ["text", 3, [], {}, {"scale": "lognorm"}, {"scale": "counts"}, np.zeros((2, 2))]
        )
    if rng.random() < 0.4:
        cells.uns["log1p"] = rng.choice(
            [{"base": 2.0}, {"base": "e"}, {"base": np.nan}, {"base": 0}, {}, "x", {"base": [2, 3]}]
        )


CHANGES: tuple[CellChange, ...] = (
    some_missing, odd_labels, odd_labels, label_type, columns_changed, cell_names, gene_names, some_cells, some_genes,
    odd_values, odd_values, value_type, value_type, elsewhere, odd_record,
)  # fmt: skip


def change_cells(path: Path, rng: random.Random) -> str:
    """One or two changes of what an h5ad holds; those that AnnData does not write are drawn again. Returns what was done."""
    for _ in range(MOST_DRAWN):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cells = ad.read_h5ad(path)
            changes = rng.sample(CHANGES, rng.choice([1, 1, 2]))
            try:
                for change in changes:
                    cells = change(cells, rng) or cells
                cells.write_h5ad(path.with_suffix(".new"), compression=rng.choice([None, None, "gzip", "lzf"]))
            except Exception:  # noqa: BLE001  no file comes of it, so no command can meet it
                path.with_suffix(".new").unlink(missing_ok=True)
                continue
        path.with_suffix(".new").replace(path)
        return f"{path.name}: {', '.join(change.__name__ for change in changes)}"
    return "nothing"


def change_hdf5(path: Path, rng: random.Random) -> str:
    """One change below AnnData: a member removed, replaced, linked elsewhere, an attribute changed."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        way = rng.choice(["remove", "replace", "link", "attribute", "attribute", "shorten"])
        if way == "attribute":
            target = rng.choice([file, file[name]])
            keys = list(target.attrs)
            key = rng.choice(keys or ["encoding-type"])
            odd = rng.choice(["", "csr_matrix", "csc_matrix", "dataframe", "array", "9.9.9", 7, np.zeros(2), None])
            if odd is None and keys:
                del target.attrs[key]
            elif odd is not None:
                target.attrs[key] = odd
            return f"{path.name}: attribute {key} of {target.name} = {odd!r}"
        value = file[name]
        if way == "shorten" and isinstance(value, h5py.Dataset) and value.ndim and value.shape[0]:
            content = value[: value.shape[0] // 2]
            attributes = dict(value.attrs)
            del file[name]
            file[name] = content
            file[name].attrs.update(attributes)
            return f"{path.name}: {name} shortened"
        del file[name]
        if way == "replace":
            file[name] = rng.choice(
                [np.zeros(3), 5, "text", np.array([[1, 2]]), np.array([b"\xff\xfe"]), h5py.Empty("f")]
            )
        elif way == "link":
            file[name] = rng.choice(
                [
                    h5py.SoftLink("/nowhere"), h5py.SoftLink(f"/{name}"), h5py.ExternalLink("other.h5", "/X"),
                    h5py.ExternalLink("/etc/passwd", "/"),
                ]
            )  # fmt: skip
        return f"{path.name}: {way} {name}"
