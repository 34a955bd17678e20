"""Perturbation feature files: the same vectors from every format, names as they are written."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from steval.checkpoints.feature_file import read_features
from steval.errors import CheckpointError, ConfigError

VECTORS = {"STAT1": [1.0, 2.0], "IRF1": [3.0, 4.0], "TP53": [5.0, 6.0]}
GUESSED = ["NA", "null", "None", "nan", "0012", "1.10", "2", "True", "1e5", "", " A", "B,C"]
"""Names that table readers like to take for something else."""
KINDS = [
    "pt",
    "csv",
    "csv with mark",
    "parquet index",
    "parquet column",
    "parquet categories",
    "npz by name",
    "npz arrays",
]


def write(vectors: dict[str, list[float]], directory: Path, kind: str) -> Path:
    frame = pd.DataFrame.from_dict(vectors, orient="index", columns=pd.Index(["a", "b"]))
    path = directory / f"features.{kind.split()[0]}"
    if kind == "pt":
        torch.save({name: torch.tensor(vector) for name, vector in vectors.items()}, path)
    elif kind.startswith("csv"):
        frame.to_csv(path, encoding="utf-8-sig" if "mark" in kind else "utf-8")
    elif kind == "parquet index":
        frame.to_parquet(path)
    elif kind.startswith("parquet"):
        table = frame.reset_index(names="gene")
        table.astype({"gene": "category"} if "categories" in kind else {}).to_parquet(path)
    elif kind == "npz by name":
        np.savez(path, **{name: np.array(vector) for name, vector in vectors.items()})
    else:
        np.savez(path, names=np.array(list(vectors)), features=np.array(list(vectors.values())))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names",
    [list(VECTORS), GUESSED, ["0012", "0013"], ["1.10", "2", "1e5"], ["True", "False"], ["2026-01-02", "0"]],
    ids=["genes", "names that readers guess at", "numbers alone", "floats alone", "truths alone", "dates"],
)
def test_every_format_reads_the_same(tmp_path: Path, kind: str, names: list[str]) -> None:
    vectors = {name: [float(number), number + 0.5] for number, name in enumerate(names) if name or "npz" not in kind}
    found = read_features(write(vectors, tmp_path, kind))
    assert {name: vector.tolist() for name, vector in found.items()} == vectors
    assert {vector.dtype for vector in found.values()} == {np.dtype(np.float32)}


def test_files_that_cannot_be_used_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such perturbation feature file"):
        read_features(tmp_path / "none.csv")
    for suffix in ("npz", "parquet", "pt"):
        (tmp_path / f"broken.{suffix}").write_text("nothing of the kind")
        with pytest.raises(CheckpointError, match=f"broken.{suffix}"):
            read_features(tmp_path / f"broken.{suffix}")
    for name, text, message in [
        ("text", "name,a\nSTAT1,x\n", "not a table of a name and numbers"),
        ("twice", "name,a\nSTAT1,1\nSTAT1,2\n", "more than one vector for: 'STAT1'"),
        ("ragged", "name,a\nSTAT1,1\nIRF1,1,2\n", "not a table"),
        ("hole", "name,a,b\nSTAT1,1,2\nIRF1,,3\n", "not a table"),
        ("endless", "name,a\nSTAT1,inf\n", "NaN or infinite features of STAT1"),
        ("bare", "name\nSTAT1\n", "expected a matrix"),
        ("empty", "", "not a table"),
        ("header", "name,a\n", "holds no features"),
    ]:
        (tmp_path / f"{name}.csv").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_features(tmp_path / f"{name}.csv")
    (tmp_path / "features.xlsx").touch()
    with pytest.raises(ConfigError, match=r"\.pt, \.npz, \.parquet or \.csv, not '\.xlsx'"):
        read_features(tmp_path / "features.xlsx")


def test_a_pickle_inside_an_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", STAT1=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CheckpointError, match="plain numbers"):
        read_features(tmp_path / "p.npz")
