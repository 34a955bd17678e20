"""Cells without a label: every command refuses them with their number, or leaves them out when told, where the label is used."""

from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zstandard
from typer.testing import CliRunner

from steval.cli.app import app
from tests.support.predictor_models import lognorm_cells, tiny_config, write_checkpoint

RUNNER = CliRunner()
FORMS = {
    "no category": lambda labels, mask: pd.Categorical(labels.where(~mask)),
    "empty text": lambda labels, mask: labels.where(~mask, ""),
    "nullable": lambda labels, mask: pd.array(labels.where(~mask, None), dtype="string"),
}


def run(*arguments: object):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("unlabelled")
    write_checkpoint(directory / "m.safetensors", tiny_config(), lognorm_cells())
    cells().write_h5ad(directory / "whole.h5ad")
    return directory


def cells() -> ad.AnnData:
    """30 cells of each label, half of them of each of two types."""
    whole = lognorm_cells()
    labels = whole.obs["target_gene"].astype(str)
    chosen = np.concatenate([np.flatnonzero(labels == name)[:30] for name in sorted(set(labels))])
    few = whole[chosen].copy()
    few.obs["cell_type"] = pd.Categorical(np.tile(["K", "L"], few.n_obs // 2))
    few.obs["target_gene"] = few.obs["target_gene"].astype(str)
    return few


def without(column: str, form: str, directory: Path, every: int = 6, only: str | None = None) -> Path:
    """The cells on disk, each sixth (of label `only`) without its value in `column`."""
    adata = cells()
    mask = pd.Series(np.arange(adata.n_obs) % every == 0, index=adata.obs_names)
    if only is not None:
        mask &= adata.obs["target_gene"] == only
    adata.obs[column] = FORMS[form](adata.obs[column].astype(object), mask)
    path = directory / "unlabelled.h5ad"
    with ad.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(path)
    return path


def commands(place: Path, path: Path, out: Path) -> dict[str, tuple[object, ...]]:
    """What is done with perturbed cells, by the command that does it."""
    checkpoint = place / "m.safetensors"
    return {
        "prepare": ("prepare", path, "-o", out / "o.h5ad"),
        "pack": ("pack", path, "-o", out / "o.vcc"),
        "score, real": ("score", place / "whole.h5ad", "--real", path, "-o", out / "s", "--metrics-only"),
        "score, predicted": ("score", path, "--real", place / "whole.h5ad", "-o", out / "s", "--metrics-only"),
        "score, training": ("score", place / "whole.h5ad", "--real", place / "whole.h5ad", "--train", path, "-o", out / "s"),
        "predict --request": ("predict", checkpoint, "-o", out / "o.h5ad", "--request", path),
        "predict --controls": (
            "predict", checkpoint, "-o", out / "o.h5ad", "-p", "STAT1", "-n", 2, "--cell-type", "K", "--controls", path,
        ),
        "finetune": (
            "finetune", "quick-cpu", "--set", f"data.files=['{path}']", "--run", out / "r",
            "--set", "phases.0.steps=1", "--set", "sets.size=4",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("command", list(commands(Path(), Path(), Path())))
def test_cells_without_a_perturbation(place: Path, tmp_path: Path, command: str, form: str) -> None:
    path = without("target_gene", form, tmp_path)
    result = run(*commands(place, path, tmp_path / "out")[command])
    assert result.exit_code == 4, result.output
    assert "30 of 180 cells have no value in obs column 'target_gene'" in result.stderr
    assert "--drop-unlabelled" in result.stderr
    assert not list((tmp_path / "out").glob("*"))
    if form == "no category":
        told = run(*commands(place, path, tmp_path / "out")[command], "--drop-unlabelled")
        assert told.exit_code == 0, told.output


def test_packed_cells_have_a_label(place: Path, tmp_path: Path) -> None:
    path = without("target_gene", "no category", tmp_path)
    assert run("pack", path, "-o", tmp_path / "o.vcc", "--drop-unlabelled").exit_code == 0
    packed = (tmp_path / "o.vcc").read_bytes()
    start = packed.index(zstandard.MAGIC_NUMBER.to_bytes(4, "little"))
    (tmp_path / "u.h5ad").write_bytes(zstandard.ZstdDecompressor().decompressobj().decompress(packed[start:]))
    labels = ad.read_h5ad(tmp_path / "u.h5ad").obs["target_gene"]
    assert labels.notna().all()
    assert len(labels) == 150
    assert sorted(labels.unique()) == sorted(set(cells().obs["target_gene"]))


USING_TYPE = {
    "score --by": ("score, real", ("--by", "cell_type"), None),
    "training": ("score, training", (), None),
    "request": ("predict --request", (), "STAT1"),
    "controls": ("predict --controls", (), "non-targeting"),
    "finetune": ("finetune", (), None),
}


@pytest.mark.parametrize("use", USING_TYPE)
def test_cells_without_a_type_where_the_type_is_used(place: Path, tmp_path: Path, use: str) -> None:
    command, more, only = USING_TYPE[use]
    path = without("cell_type", "no category", tmp_path, only=only)
    result = run(*commands(place, path, tmp_path / "out")[command], *more)
    assert result.exit_code == 4, result.output
    assert "have no value in obs column 'cell_type'" in result.stderr
    assert not list((tmp_path / "out").glob("*"))
    told = run(*commands(place, path, tmp_path / "out")[command], *more, "--drop-unlabelled")
    assert told.exit_code == 0, told.output


@pytest.mark.parametrize("command", ["prepare", "pack", "score, real", "predict --controls"])
def test_cells_without_a_type_where_it_is_not_used(place: Path, tmp_path: Path, command: str) -> None:
    path = without("cell_type", "no category", tmp_path, only="STAT1")
    result = run(*commands(place, path, tmp_path / "out")[command])
    assert result.exit_code == 0, result.output
    if command == "prepare":
        kept = ad.read_h5ad(tmp_path / "out" / "o.h5ad").obs["cell_type"]
        assert kept.isna().sum() == ad.read_h5ad(path).obs["cell_type"].isna().sum() > 0
        assert sorted(kept.cat.categories) == ["K", "L"]


def test_cells_without_a_batch_matter_where_batches_are_used(place: Path, tmp_path: Path) -> None:
    path = without("batch", "no category", tmp_path)
    command = commands(place, path, tmp_path / "out")["finetune"]
    refused = run(*command, "--set", "sets.mapping=batch")
    assert refused.exit_code == 4
    assert "30 of 180 cells have no value in obs column 'batch'" in refused.stderr
    assert run(*command).exit_code == 0


def test_a_type_called_nan_cannot_be_asked_for(place: Path, tmp_path: Path) -> None:
    path = without("cell_type", "no category", tmp_path, only="non-targeting")
    result = run(
        "predict", place / "m.safetensors", "-o", tmp_path / "o.h5ad", "-p", "STAT1", "--controls", path, "--cell-type",
        "nan", "--drop-unlabelled",
    )  # fmt: skip
    assert result.exit_code in (2, 4)
    assert not (tmp_path / "o.h5ad").exists()


def test_genes_without_a_name(tmp_path: Path) -> None:
    adata = cells()
    adata.var["symbol"] = [None, "", *adata.var_names[2:]]
    adata.X = adata.X.expm1().rint()
    del adata.uns["steval"]
    path = tmp_path / "counts.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as handle:
        handle["var/_index" if "_index" in handle["var"] else f"var/{handle['var'].attrs['_index']}"][3] = ""
    for more in ((), ("--gene-col", "symbol"), ("--gene-col", "symbol", "--duplicate-genes", "sum")):
        result = run("prepare", path, "-o", tmp_path / "o.h5ad", *more)
        assert result.exit_code == 4
        assert f"{2 if more else 1} of 120 genes have no name" in result.stderr
        told = run("prepare", path, "-o", tmp_path / "o.h5ad", *more, "--drop-unlabelled")
        assert told.exit_code == 0, told.output
        assert ad.read_h5ad(tmp_path / "o.h5ad").n_vars == (118 if more else 119)
        (tmp_path / "o.h5ad").unlink()
