"""What users do wrong: one clear line, its exit code, no traceback, no output file."""

from pathlib import Path

import anndata as ad
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from steval.cli.app import app
from steval.data.cells.cellfile import read_anndata
from steval.workflows.demo import DemoResult

RUNNER = CliRunner()


def run(*arguments: object):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def assert_refused(result, code: int, *phrases: str) -> None:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stderr.count("error: ") == 1
    for phrase in phrases:
        assert phrase in result.stderr


@pytest.fixture
def evaluation(demo: DemoResult) -> ad.AnnData:
    return read_anndata(demo.directory / "data" / "evaluation.h5ad")


def test_missing_predictions_say_how_to_make_them(demo: DemoResult, tmp_path: Path):
    result = run("score", demo.checkpoint, tmp_path / "no.h5ad", "-o", tmp_path / "out")
    assert_refused(result, 4, "no such predictions file", "steval predict", "--predict")
    assert list(tmp_path.iterdir()) == []


def test_predict_makes_missing_predictions_when_asked(demo: DemoResult, tmp_path: Path):
    preds = tmp_path / "preds.h5ad"
    result = run("score", demo.checkpoint, preds, "--predict", "--metrics-only")
    assert result.exit_code == 0, result.output
    assert (read_anndata(preds).X != read_anndata(demo.preds).X).nnz == 0


def test_without_checkpoint_real_cells_are_required(demo: DemoResult, tmp_path: Path):
    assert_refused(run("score", demo.preds, "-o", tmp_path / "out"), 2, "--real")


def test_a_text_file_named_h5ad(demo: DemoResult, tmp_path: Path):
    text = tmp_path / "text.h5ad"
    text.write_text("hello")
    assert_refused(run("score", demo.checkpoint, text, "-o", tmp_path / "out"), 4, "not a readable h5ad")
    assert_refused(run("prepare", text, "-o", tmp_path / "out.h5ad"), 4, "not a readable h5ad")
    assert list(tmp_path.iterdir()) == [text]


def test_a_wrong_perturbation_column_lists_those_that_exist(demo: DemoResult, tmp_path: Path):
    real = demo.directory / "data" / "evaluation.h5ad"
    result = run("score", demo.preds, "--real", real, "--pert-col", "gene", "-o", tmp_path / "out")
    assert_refused(result, 4, "no obs column 'gene'", "target_gene")
    assert not (tmp_path / "out").exists()


def test_raw_counts_where_lognorm_is_declared(demo: DemoResult, evaluation: ad.AnnData, tmp_path: Path):
    evaluation.X.data = np.round(np.expm1(evaluation.X.data)) + 1
    evaluation.write_h5ad(tmp_path / "counts.h5ad")
    assert_refused(
        run("score", demo.preds, "--real", tmp_path / "counts.h5ad", "-o", tmp_path / "out"), 4, "declared as lognorm"
    )
    assert_refused(
        run("predict", demo.checkpoint, "-o", tmp_path / "p.h5ad", "--controls", tmp_path / "counts.h5ad"),
        4, "declared as lognorm", "steval prepare",
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["counts.h5ad"]


def test_an_unknown_perturbation_lists_the_nearest(demo: DemoResult, tmp_path: Path):
    result = run("predict", demo.checkpoint, "-o", tmp_path / "p.h5ad", "--perturbations", "STAT2,MED21")
    assert_refused(result, 4, "'STAT2': nearest known STAT1", "'MED21': nearest known MED12")
    assert list(tmp_path.iterdir()) == []


def test_missing_genes_are_listed(demo: DemoResult, evaluation: ad.AnnData, tmp_path: Path):
    evaluation[:, 3:].copy().write_h5ad(tmp_path / "few.h5ad")
    result = run("predict", demo.checkpoint, "-o", tmp_path / "p.h5ad", "--controls", tmp_path / "few.h5ad")
    assert_refused(result, 4, "lacks 3 of the 1,000 genes", "CCNL2, SSU72, SKI")
    result = run("score", demo.preds, "--real", tmp_path / "few.h5ad", "-o", tmp_path / "out")
    assert_refused(result, 4, "genes")
    assert [path.name for path in tmp_path.iterdir()] == ["few.h5ad"]


def test_shuffled_genes_are_aligned_by_name(demo: DemoResult, evaluation: ad.AnnData, tmp_path: Path):
    order = np.random.default_rng(0).permutation(evaluation.n_vars)
    evaluation[:, order].copy().write_h5ad(tmp_path / "shuffled.h5ad")
    shuffled = tmp_path / "p.h5ad"
    result = run(
        "predict", demo.checkpoint, "-o", shuffled, "--perturbations", "STAT1", "--cells", 20,
        "--controls", tmp_path / "shuffled.h5ad",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    plain = tmp_path / "q.h5ad"
    run(
        "predict", demo.checkpoint, "-o", plain, "--perturbations", "STAT1", "--cells", 20,
        "--controls", demo.directory / "data" / "evaluation.h5ad",
    )  # fmt: skip
    assert list(read_anndata(shuffled).var_names) == list(read_anndata(plain).var_names)
    assert (read_anndata(shuffled).X != read_anndata(plain).X).nnz == 0
    result = run("score", demo.preds, "--real", tmp_path / "shuffled.h5ad", "-o", tmp_path / "out", "--metrics-only")
    assert result.exit_code == 0, result.output
    # Sums over genes in another order round differently in float32, on some processors to another last digit (4e-9 of 0.06).
    again, before = (pl.read_csv(directory / "results.csv") for directory in (tmp_path / "out", demo.score_dir))
    assert_frame_equal(again, before, abs_tol=3e-8, rel_tol=0)


@pytest.mark.parametrize("keep", [100, 0.5, 0.999], ids=["header", "half", "end"])
def test_a_truncated_checkpoint(demo: DemoResult, tmp_path: Path, keep: float):
    whole = demo.checkpoint.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    assert_refused(run("predict", cut, "-o", tmp_path / "p.h5ad"), 3, "cut.safetensors")
    assert_refused(run("score", cut, demo.preds, "-o", tmp_path / "out"), 3, "cut.safetensors")
    assert list(tmp_path.iterdir()) == [cut]


def test_evaluation_data_that_moved_is_found_and_that_changed_is_refused(
    demo: DemoResult, evaluation: ad.AnnData, tmp_path: Path
):
    recorded = demo.directory / "data" / "evaluation.h5ad"
    mounted = tmp_path / "mounted" / "deep"
    mounted.mkdir(parents=True)
    recorded.rename(mounted / "evaluation.h5ad")
    try:
        arguments = ("score", demo.checkpoint, demo.preds, "-o", tmp_path / "out", "--metrics-only")
        assert_refused(run(*arguments), 4, "is not there", "--data-dir")
        result = run(*arguments, "--data-dir", tmp_path / "mounted")
        assert result.exit_code == 0, result.output
        evaluation.obs["new"] = 1
        evaluation.write_h5ad(tmp_path / "changed.h5ad")
        (tmp_path / "changed.h5ad").rename(recorded)
        assert_refused(run(*arguments), 4, "its content has changed")
    finally:
        (mounted / "evaluation.h5ad").replace(recorded)


@pytest.mark.parametrize("option", [("--profile", "no such"), ("--metrics", "mae,no such")])
def test_unknown_metrics_are_said_before_anything_is_predicted(
    demo: DemoResult, tmp_path: Path, option: tuple[str, str]
):
    result = run("score", demo.checkpoint, tmp_path / "p.h5ad", "--predict", "-o", tmp_path / "out", *option)
    assert_refused(result, 2, "no such")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_no_score_is_said_before_anything_is_predicted(demo: DemoResult, tmp_path: Path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    result = run("score", demo.checkpoint, tmp_path / "p.h5ad", "--predict", "-o", tmp_path / "own")
    assert_refused(result, 2, "holds no score")
    assert list(tmp_path.iterdir()) == [tmp_path / "own"]
