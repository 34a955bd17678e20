"""Submissions: the same archive, member for member, as `cell-eval prep` makes with its external programs."""

import argparse
import gc
import io
import resource
import shutil
import tarfile

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zstandard

from steval.data.columns import Columns
from steval.data.example import example
from steval.errors import ConfigError, DataError, EvaluationError, OutputError
from steval.evaluator.submission import pack


@pytest.fixture
def counts():
    cells = example()[:, :40].copy()
    cells.obs["cell_type"] = "H1"
    return cells


@pytest.fixture
def lognorm(counts):
    cells = counts.copy()
    totals = np.asarray(cells.X.sum(axis=1))
    cells.X = sp.csr_matrix(np.log1p(cells.X.toarray() / np.maximum(totals, 1) * 1e3).astype(np.float32))
    return cells


def write(cells, path):
    cells.write_h5ad(path)
    return path


def unpack(path):
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(members["pred.h5ad.zst"])).read()
    target = path.with_suffix(".unpacked.h5ad")
    target.write_bytes(plain)
    return list(members), members["watermark.txt"], ad.read_h5ad(target)


def upstream(source, genes, target, **changes):
    from cell_eval._cli._prep import parse_args_prep, run_prep

    listing = target.with_suffix(".genes")
    listing.write_text("\n".join(genes))
    parser = argparse.ArgumentParser()
    parse_args_prep(parser)
    args = parser.parse_args(["-i", str(source), "-g", str(listing), "-o", str(target)])
    for name, value in changes.items():
        setattr(args, name, value)
    run_prep(args)
    return unpack(target)


needs_programs = pytest.mark.skipif(
    not (shutil.which("zstd") and shutil.which("tar")), reason="cell-eval prep needs zstd and tar"
)


@pytest.mark.peer
@needs_programs
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lognorm", "counts", "dense", "reordered", "cell-type", "float64"])
def test_same_archive_as_cell_eval_prep(tmp_path, counts, lognorm, kind):
    cells = counts if kind == "counts" else lognorm
    if kind == "dense":
        cells.X = cells.X.toarray()
    source = write(cells, tmp_path / "in.h5ad")
    genes = list(cells.var_names)[::-1] if kind == "reordered" else list(cells.var_names)
    encoding = 64 if kind == "float64" else 32
    changes = {"celltype_col": "cell_type"} if kind == "cell-type" else {}
    expected = upstream(source, genes, tmp_path / "theirs.vcc", encoding=encoding, **changes)
    submission = pack(source, tmp_path / "ours.vcc", genes=genes, with_cell_type=kind == "cell-type", encoding=encoding)
    ours = unpack(submission.path)
    assert ours[0] == expected[0] == ["pred.h5ad.zst", "watermark.txt"]
    assert ours[1] == expected[1] == b"vcc-prep"
    assert type(ours[2].X) is type(expected[2].X)
    assert ours[2].X.dtype == expected[2].X.dtype
    np.testing.assert_allclose(ours[2].X.toarray(), expected[2].X.toarray(), rtol=1e-6, atol=1e-7)
    pd.testing.assert_frame_equal(ours[2].obs, expected[2].obs)
    pd.testing.assert_frame_equal(ours[2].var, expected[2].var)
    assert (submission.reordered, submission.normalised) == (kind == "reordered", kind == "counts")
    assert (submission.num_cells, submission.num_genes, submission.num_perturbations) == (600, 40, 5)
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_another_column_and_label(tmp_path, lognorm):
    lognorm.obs["gene"] = lognorm.obs["target_gene"].astype(str).replace("non-targeting", "ctrl")
    source = write(lognorm, tmp_path / "in.h5ad")
    submission = pack(
        source, tmp_path / "out.vcc", columns=Columns(perturbation="gene", control="ctrl", cell_type="no")
    )
    assert "ctrl" in set(unpack(submission.path)[2].obs["target_gene"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"genes": ["A", "B"]}, DataError, "2 missing: A, B"),
        ({"max_cells": 599}, EvaluationError, "at most 599"),
        ({"encoding": 16}, ConfigError, "32 or 64 bits"),
        ({"columns": Columns(perturbation="nope")}, DataError, "no obs column 'nope'"),
        ({"columns": Columns(control="ctrl", cell_type=None, batch=None)}, DataError, "no control cells"),
        ({"with_cell_type": True, "columns": Columns(cell_type="nope")}, DataError, "no obs column 'nope'"),
    ],
)
def test_what_cannot_be_packed_leaves_no_file(tmp_path, lognorm, change, error, message):
    source = write(lognorm, tmp_path / "in.h5ad")
    with pytest.raises(error, match=message):
        pack(source, tmp_path / "out.vcc", **change)
    assert not (tmp_path / "out.vcc").exists()


@pytest.mark.parametrize("limit", [100, 20_000], ids=["at once", "later"])
def test_a_full_disk_is_one_error_that_leaves_nothing(lognorm, tmp_path, capfd, limit):
    (tmp_path / "in").mkdir()
    lognorm.write_h5ad(tmp_path / "in" / "pred.h5ad")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*out\.vcc: File too large$"):
            pack(tmp_path / "in" / "pred.h5ad", tmp_path / "out.vcc")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert capfd.readouterr().err == ""  # h5py's tracebacks of objects that it cannot close


def test_a_byte_order_mark_is_no_part_of_the_first_gene(lognorm, tmp_path):
    listing = tmp_path / "genes.csv"
    listing.write_text("\n".join(lognorm.var_names), encoding="utf-8-sig")
    source = write(lognorm, tmp_path / "cells.h5ad")
    assert pack(source, tmp_path / "ours.vcc", genes=listing).num_genes == 40
