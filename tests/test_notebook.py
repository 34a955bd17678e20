"""`import steval as sv`: what a notebook calls gives what the command line gives, shows itself, and writes nothing unasked."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from typer.testing import CliRunner

import steval as sv
from steval.cli.app import app
from steval.data.cells.record import read_record
from steval.errors import CheckpointError, ConfigError, DataError, EvaluationError, UnknownPerturbationError
from support.documented import ROOT, blocks

SMALL = {
    "recipe": "quick-cpu",
    "phases": {0: {"steps": 12}},
    "sets": {"size": 16, "per_batch": 4},
    "network": {"hidden_dim": 32},
    "checks": {"validate_every": 6},
}


@pytest.fixture(scope="module")
def parts() -> tuple[ad.AnnData, ad.AnnData]:
    return sv.hold_out(sv.prepare(sv.example(), cell_type_name="H1"), test=0.4)


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory) -> sv.Run:
    return sv.finetune(parts[0], SMALL, run_dir=tmp_path_factory.mktemp("runs") / "first", device="cpu")


@pytest.fixture(scope="module")
def pred(run, parts) -> ad.AnnData:
    return run.model.predict(parts[1])


@pytest.fixture(scope="module")
def report(pred, parts):
    return sv.score(pred, parts[1], train=parts[0], bootstrap=50)


def test_importing_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, steval as sv; heavy = {'torch', 'numpy', 'pandas', 'anndata', 'polars'} & set(sys.modules); "
        "assert not heavy, heavy; assert set(sv.__all__) <= set(dir(sv))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in sv.__all__:
        assert getattr(sv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'predicted'"):
        _ = sv.predicted


def test_what_type_checkers_are_told_is_what_there_is():
    stub = Path(sv.__file__).with_suffix(".pyi").read_text()
    listed = stub[stub.index("__all__") :]
    assert [name for name in sv.__all__ if f'"{name}"' not in listed] == []
    assert listed.count('"') == 2 * len(sv.__all__)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (source,) = blocks(ROOT / "README.md", "python")
    names: dict = {"SMALL": SMALL}
    *before, shown = source.replace('"quick-cpu"', "SMALL").strip().splitlines()
    exec("\n".join(before), names)
    assert eval(shown, names)._repr_png_()
    assert list(tmp_path.iterdir()) == []


def test_prepared_cells_are_those_of_the_command(parts, tmp_path):
    sv.example().write_h5ad(tmp_path / "in.h5ad")
    done = CliRunner().invoke(
        app, ["prepare", str(tmp_path / "in.h5ad"), "-o", str(tmp_path / "out.h5ad"), "--cell-type-name", "H1"]
    )
    assert done.exit_code == 0, done.output
    written, made = ad.read_h5ad(tmp_path / "out.h5ad"), sv.prepare(tmp_path / "in.h5ad", cell_type_name="H1")
    np.testing.assert_array_equal(written.X.toarray(), made.X.toarray())
    with pytest.warns(UserWarning, match="--target-sum"):
        sv.prepare(sv.example(), cell_type_name="H1", target_sum=10.0)


def test_cells_are_held_out_by_share_or_by_name(parts):
    train, test = parts
    controls = set(test.obs_names[test.obs["target_gene"] == "non-targeting"])
    assert set(train.obs_names) & set(test.obs_names) == controls
    whole = sv.prepare(sv.example(), cell_type_name="H1")
    train, test = sv.hold_out(whole, ["STAT1"])
    assert set(test.obs["target_gene"]) == {"STAT1", "non-targeting"}
    assert "STAT1" not in set(train.obs["target_gene"])
    with pytest.raises(DataError, match="no perturbation 'STAT9'"):
        sv.hold_out(whole, ["STAT9"])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        sv.hold_out(whole, 1.5)


def test_cells_without_a_label_are_in_no_part():
    whole = sv.prepare(sv.example(), cell_type_name="H1")
    labels = whole.obs["target_gene"].astype(object)
    labels.iloc[:3] = np.nan
    whole.obs["target_gene"] = labels
    for test in (0.4, ["STAT1"], ["nan"]):
        with pytest.raises(DataError, match="3 of 600 cells have no value"):
            sv.hold_out(whole, test)


def test_predictions_are_those_of_the_command(run, pred, parts, tmp_path):
    """Whatever was asked for: names, an AnnData, or a mean."""
    parts[1].write_h5ad(tmp_path / "test.h5ad")
    for arguments, made in (
        (["--request", str(tmp_path / "test.h5ad")], pred),
        (
            ["--perturbations", "STAT1,SRC", "--cells", "7", "--seed", "3"],
            run.model.predict(["STAT1", "SRC"], 7, seed=3),
        ),
        (["--perturbations", "STAT1", "--output", "mean"], run.model.predict("STAT1", output="mean")),
    ):
        out = tmp_path / "p.h5ad"
        done = CliRunner().invoke(app, ["predict", str(run.directory), "-o", str(out), *arguments, "--device", "cpu"])
        assert done.exit_code == 0, done.output
        written = ad.read_h5ad(out)
        np.testing.assert_array_equal(written.X.toarray(), made.X.toarray())
        assert written.obs.astype(str).equals(made.obs.astype(str))
        records = [read_record(cells.uns) for cells in (written, made)]
        assert records[0]["columns"] == records[1]["columns"]
        for fact in ("checkpoint_digest", "request_digest", "seed", "untrained"):
            assert records[0]["details"][fact] == records[1]["details"][fact], fact
    assert run.model.predict(cells=1, include_controls=False).n_obs == len(run.model.perturbations) == 5


def test_scores_are_those_of_the_command(run, pred, report, parts, tmp_path):
    for name, cells in (("pred", pred), ("real", parts[1]), ("train", parts[0])):
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [
        str(tmp_path / "pred.h5ad"),
        "--real",
        str(tmp_path / "real.h5ad"),
        "--train",
        str(tmp_path / "train.h5ad"),
    ]
    done = CliRunner().invoke(app, ["score", *files, "--bootstrap", "50"])
    assert done.exit_code == 0, done.output
    told = sv.read_score(tmp_path / "pred.score")
    for field in ("results", "breakdown", "overall", "baselines", "intervals"):
        assert getattr(told, field).equals(getattr(report, field)), field
    assert " ".join(report.verdict.split()) in " ".join(done.stdout.split())
    assert sv.write_score(report, tmp_path / "mine") == tmp_path / "mine"


def test_results_show_themselves(run, report):
    assert repr(report).splitlines()[1] == report.verdict
    assert "mae ↓" in repr(report)
    for one in (report, run, run.model):
        page = one._repr_html_()
        assert page.startswith("<div") and "<script" not in page
        assert len(repr(one)) < 2000
    assert "network" in repr(run)


def test_plots_are_figures_that_show_and_save_themselves(run, report, tmp_path):
    for made in (
        report.plot.members(), report.plot.distributions(), report.plot.overlap(), report.plot.changes("STAT1"), run.plot.curves(),
    ):  # fmt: skip
        assert made._repr_png_().startswith(b"\x89PNG")
    changes = report.plot.changes("STAT1", "SRC")
    text = changes.save(tmp_path / "c.svg").read_text()
    assert "STAT1" in text and "SRC" in text and "MED12" not in text
    with pytest.raises(DataError, match="nearest: STAT1"):
        report.plot.changes("STAT2")
    with pytest.raises(ConfigError, match="svg, png, pdf"):
        changes.save(tmp_path / "c.txt")
    with pytest.raises(DataError, match="not scored by cell type"):
        report.plot.members("H1")


def test_without_training_cells_there_are_no_members_to_draw(pred, parts):
    bare = sv.score(pred, parts[1], integrity="none")
    assert "No overall score" in bare.verdict
    with pytest.raises(EvaluationError, match="train="):
        bare.plot.members()


def test_nothing_is_written_unless_a_place_is_named(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    made = sv.finetune(parts[0], SMALL, device="cpu")
    report = sv.score(made.model.predict(parts[1]), parts[1], train=parts[0], bootstrap=0)
    _ = report._repr_html_(), report.plot.members()._repr_png_()
    assert made.save("kept.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name != "tmp"] == ["kept.safetensors"]
    del made, report
    import gc

    gc.collect()
    assert [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("steval")] == []
    assert len(sv.load("kept.safetensors").perturbations) == 5


def test_what_cannot_be_is_one_sentence(run, parts, tmp_path):
    with pytest.raises(UnknownPerturbationError, match="STAT1"):
        run.model.predict("STAT11")
    with pytest.raises(ConfigError, match="names of perturbations, an AnnData or an h5ad path, got int"):
        run.model.predict(7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="recipe called 'quick-cup'; did you mean 'quick-cpu'"):
        sv.finetune(parts[0], "quick-cup")
    with pytest.raises(ConfigError, match="no such run"):
        sv.open_run(tmp_path / "no")
    with pytest.raises(ConfigError, match="is not valid"):
        sv.score(parts[1], parts[1], bootstap=3)
    assert repr(sv.open_run(run.directory)) == repr(run)


def test_what_lies_where_a_notebook_writes_is_kept(run, parts, tmp_path, monkeypatch):
    """Cells that go beside the run take the place of no file unasked, nor of those of a run that is there; odd names are names."""
    kept = tmp_path / "r-cells.h5ad"
    kept.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"r-cells\.h5ad is there already"):
        sv.finetune(parts[0], SMALL, run_dir=tmp_path / "r", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["r-cells.h5ad"] and kept.read_bytes() == b"mine"
    beside = run.directory.with_name("first-cells.h5ad")
    before = beside.read_bytes()
    with pytest.raises(ConfigError, match="already holds a run"):
        sv.finetune(parts[0][:50].copy(), SMALL, run_dir=run.directory, device="cpu")
    with pytest.raises(ConfigError, match="recipe called"):
        sv.finetune(parts[0][:50].copy(), "quick-cup", run_dir=run.directory, overwrite=True)
    assert beside.read_bytes() == before
    with pytest.raises(ConfigError, match="would take its place"):
        run.save(run.best)
    with pytest.raises(CheckpointError, match="without checkpoints/best-val"):
        sv.open_run(tmp_path).save(tmp_path / "m.safetensors")
    odd = tmp_path / 'it\'s "a" [1] é\nx'
    odd.mkdir()
    few = {**SMALL, "phases": {0: {"steps": 1}}, "checks": {"validate_every": 1}}
    assert sv.finetune(parts[0], few, run_dir=odd / "r", device="cpu").best.is_file()
