"""Directories and files whose names look like patterns: every command reads and writes what was named, and nothing else."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from steval.evaluator.comparison import compare_scores
from steval.evaluator.tables import read_score_dir
from tests.support.in_process import run_in_process
from tests.support.predictor_models import lognorm_cells, tiny_config, write_checkpoint

RUNNER = CliRunner()


def run(*arguments: object) -> None:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scores, `s1` and `s[1]`, of different predictions, and what they were made of, below `lab [x]`."""
    place = tmp_path_factory.mktemp("odd") / "lab [x] ?*"
    place.mkdir()
    cells = lognorm_cells()
    cells.obs["cell_type"] = "H1"
    cells.write_h5ad(place / "real[1].h5ad")
    write_checkpoint(place / "m[1].safetensors", tiny_config(), cells)
    other = cells.copy()
    other.X.data *= 0.5
    other.write_h5ad(place / "pred.h5ad")
    for preds, out in (("real[1].h5ad", "s1"), ("pred.h5ad", "s[1]")):
        run("score", place / preds, "--real", place / "real[1].h5ad", "-o", place / out, "--metrics-only")
    return place


def test_scores_are_those_that_were_named(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mean(name: str) -> float:
        frame = read_score_dir(scored / name).breakdown
        return float(frame.filter(frame["metric"] == "mae")["value"][0])

    assert mean("s1") == 0 < mean("s[1]")
    monkeypatch.chdir(scored)
    table = compare_scores("s1", "s[1]")
    assert float(table.filter(table["metric"] == "mae")["difference"][0]) == pytest.approx(mean("s[1]"))
    run("compare", "s1", "s[1]")


def test_cells_and_checkpoints_are_those_that_were_named(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(scored, tmp_path / "[ab] copy"))
    monkeypatch.chdir(place)
    run("inspect", "m[1].safetensors")
    run("predict", "m[1].safetensors", "-o", "p[1].h5ad", "--request", "real[1].h5ad")
    run("prepare", "real[1].h5ad", "-o", "o[1].h5ad")
    run("pack", "p[1].h5ad", "-o", "p[1].vcc")
    finetune = ("finetune", "quick-cpu", "--set", "phases.0.steps=2", "--set", "sets.size=8", "--set", "loggers=[csv]")
    run(*finetune, "--set", "data.files=['real[1].h5ad']", "--run", "r[1]")
    run(*finetune, "--set", "data.files=['re*.h5ad']", "--run", "r[2]")
    run("doctor", "r[1]")
    (place / "moved [y]").mkdir()
    (place / "real[1].h5ad").rename(place / "moved [y]" / "real[1].h5ad")
    best = "r[1]/checkpoints/best-val.safetensors"
    run("score", best, "q.h5ad", "--predict", "--metrics-only", "--data-dir", "moved [y]")
    assert {path.name for path in place.iterdir()} >= {"p[1].h5ad", "o[1].h5ad", "p[1].vcc", "r[1]", "r[2]", "q.score"}


def test_batches_find_what_their_manifest_names(scored: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(scored, tmp_path / "[ab] batch"))
    score = "{profile: vcc, bootstrap: 0, integrity: basic}"
    for number, (checkpoint, real) in enumerate(
        (("'m[1].safetensors'", "'real[1].h5ad'"), ("'*.safetensors'", "'re*.h5ad'"))
    ):
        manifest = place / f"n[{number}].yaml"
        manifest.write_text(
            f"checkpoints: [{checkpoint}]\ndata: [{{real: {real}}}]\nout: out[{number}]\n"
            f"requests: [{{name: all, perturbations: [STAT1]}}]\nscore: {score}\n"
        )
        counts = run_in_process(manifest)
        assert (len(counts.finished), counts.failed) == (1, {})
