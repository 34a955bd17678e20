"""`score --only-common`: what both sides have is scored as if there were no more, and what is left out is said."""

import json
from pathlib import Path

import anndata as ad
import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from steval.evaluator.tables import read_score_dir
from steval.workflows.demo import DemoResult


@pytest.fixture
def sides(demo: DemoResult, tmp_path: Path) -> dict[str, Path]:
    """The demo's predictions and real cells: whole, and each without a perturbation that the other one has."""
    whole = {"pred": demo.preds, "real": demo.directory / "data" / "evaluation.h5ad"}
    lacking = {"pred": ("STAT1",), "real": ("SRC",), "common": ("STAT1", "SRC")}
    paths = {}
    for side, path in whole.items():
        cells = ad.read_h5ad(path)
        for name, labels in (("few", lacking[side]), ("common", lacking["common"])):
            paths[f"{side} {name}"] = tmp_path / f"{side}-{name}.h5ad"
            cells[~cells.obs["target_gene"].isin(labels)].copy().write_h5ad(paths[f"{side} {name}"])
    return paths


def run(*arguments: object):
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def test_what_is_common_scores_as_if_there_were_no_more(sides, tmp_path):
    refused = run(sides["pred few"], "--real", sides["real few"])
    assert refused.exit_code == 4
    assert "--only-common scores the 3 that both have" in refused.stderr
    done = run(sides["pred few"], "--real", sides["real few"], "--only-common", "-o", tmp_path / "a")
    assert done.exit_code == 0, done.output
    told = " ".join(done.stdout.split())
    assert "1 perturbation of the predicted cells (40 cells) left out: SRC" in told
    assert "1 perturbation of the real cells (40 cells) left out: STAT1" in told
    run(sides["pred common"], "--real", sides["real common"], "-o", tmp_path / "b")
    first, second = (read_score_dir(tmp_path / name) for name in "ab")
    assert first.results.equals(second.results)
    assert len(json.loads((tmp_path / "a" / "score.json").read_text())["record"]["warnings"]) == 3


def test_where_all_is_common_it_changes_nothing(sides, tmp_path):
    for name, more in (("a", ()), ("b", ("--only-common",))):
        done = run(sides["pred common"], "--real", sides["real common"], "-o", tmp_path / name, *more)
        assert done.exit_code == 0, done.output
        assert "left out" not in done.stdout
    first, second = (read_score_dir(tmp_path / name) for name in "ab")
    assert first.results.equals(second.results)
    assert first.record["inputs"] == second.record["inputs"]


def test_nothing_in_common_is_refused(sides, tmp_path):
    cells = ad.read_h5ad(sides["real common"])
    other = cells[cells.obs["target_gene"].isin(["MED12", "non-targeting"])].copy()
    other.obs["target_gene"] = other.obs["target_gene"].astype(str).replace("MED12", "ELSE")
    other.write_h5ad(tmp_path / "other.h5ad")
    done = run(sides["pred common"], "--real", tmp_path / "other.h5ad", "--only-common")
    assert done.exit_code == 4
    assert "no perturbation is on both sides" in done.stderr
