"""Every command of docs/vcc2026.md runs, in order, on a bundle of the challenge's shape; and what the commands refuse."""

import json
import zipfile
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from steval.data.challenge.bundle import prepare_bundle, prepared_contexts
from steval.errors import ConfigError, DataError
from steval.predictor.contexts import context_files
from support.challenge import CONTEXTS, NUM_CELLS, write_screen_and_bundle
from support.documented import ROOT, commands_to_run

PAGE = ROOT / "docs" / "vcc2026.md"
SHORT = {"finetune": ["--set", "phases.0.steps=4", "--set", "checks.validate_every=4"]}
"""What makes a command of the page quick."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Where all commands of the page have run."""
    place = tmp_path_factory.mktemp("challenge")
    write_screen_and_bundle(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert len(commands_to_run(PAGE)) == 6
        for program, command, *arguments in commands_to_run(PAGE):
            assert program == "steval"
            result = CliRunner().invoke(app, [command, *arguments, *SHORT.get(command, [])])
            assert result.exit_code == 0, f"{command} {arguments}: {result.output}"
    return place


def test_the_submission_is_that_of_the_challenge(directory):
    with zipfile.ZipFile(directory / "controls.zip") as archive:
        genes = archive.read("bundle/gene_names.csv").decode().split()[1:]
    cells = ad.read_h5ad(directory / "preds.h5ad")
    assert (directory / "out.vcc").stat().st_size > 0
    assert list(cells.var_names) == genes
    assert cells.obs.groupby(["context", "target_gene"], observed=True).size().tolist() == [NUM_CELLS] * 24
    assert cells.uns["steval"]["scale"] == "counts"
    details = json.loads(cells.uns["steval"]["details"])
    assert details["output"]["count_sampling"] == "rounded"
    assert set(details["controls"]) == set(CONTEXTS)


def test_counts_have_the_totals_of_each_context_s_controls(directory):
    cells = ad.read_h5ad(directory / "preds.h5ad")
    totals = np.asarray(cells.X.sum(axis=1)).ravel()
    assert (cells.X.data == np.rint(cells.X.data)).all() and (cells.X.data > 0).all()
    for context in CONTEXTS:
        with zipfile.ZipFile(directory / "controls.zip") as archive:
            archive.extract(f"bundle/controls_{context}.h5ad", directory / "measured")
        controls = ad.read_h5ad(directory / "measured" / "bundle" / f"controls_{context}.h5ad")
        own = dict(zip(controls.obs_names, np.asarray(controls.X.sum(axis=1)).ravel(), strict=True))
        of_context = (cells.obs["context"] == context).to_numpy()
        wanted = [own[name] for name in cells.obs["control_cell"][of_context]]
        np.testing.assert_array_equal(totals[of_context], wanted)


def test_a_context_s_cells_do_not_depend_on_the_others(directory, tmp_path):
    asked = ["predict", str(directory / "runs" / "challenge"), "--scale", "counts", "--seed", "1"]
    asked += ["--request", str(directory / "bundle" / "pert_counts.csv"), "-o", str(tmp_path / "b.h5ad")]
    result = CliRunner().invoke(app, [*asked, "--contexts", f"B={directory / 'bundle' / 'controls-B.h5ad'}"])
    assert result.exit_code == 0, result.output
    alone, together = ad.read_h5ad(tmp_path / "b.h5ad"), ad.read_h5ad(directory / "preds.h5ad")
    same = together[(together.obs["context"] == "B").to_numpy()]
    assert (alone.X != same.X).nnz == 0
    assert alone.obs["control_cell"].tolist() == same.obs["control_cell"].tolist()


def test_mean_profiles_and_one_control_file_do_not_go_with_contexts(directory, tmp_path):
    run, bundle = str(directory / "runs" / "challenge"), str(directory / "bundle")
    for more in (["--output", "mean"], ["--controls", str(directory / "bundle" / "controls-A.h5ad")]):
        result = CliRunner().invoke(app, ["predict", run, "-o", str(tmp_path / "p.h5ad"), "--contexts", bundle, *more])
        assert result.exit_code == 2, result.output
        assert "--contexts" in result.output
    assert not list(tmp_path.iterdir())


def test_contexts_are_named_with_files_or_by_a_bundle(directory, tmp_path):
    bundle = directory / "bundle"
    assert context_files([str(bundle)]) == prepared_contexts(bundle)
    assert context_files(["X=a=b.h5ad", "Y=c.h5ad"]) == {"X": Path("a=b.h5ad"), "Y": Path("c.h5ad")}
    with pytest.raises(ConfigError, match=r"context A is named twice"):
        context_files([str(bundle), "A=a.h5ad"])
    with pytest.raises(ConfigError, match=r"'a.h5ad': neither NAME=FILE nor a directory"):
        context_files(["a.h5ad", "=b"])
    with pytest.raises(DataError, match="no prepared control bundle"):
        context_files([str(tmp_path)])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("no manifest", r"it lacks manifest\.json"),
        ("no cells", "it lacks an h5ad with control cells"),
        ("a context without cells", "no control cells of context D"),
        ("twice", "more than one file"),
        ("two lists", r"two files gene_names\.csv"),
        ("damaged", "damaged"),
        ("cut", "damaged"),
        ("a context that leads elsewhere", "context 'a/../../../../elsewhere' cannot be part of a file's name"),
        ("a context that is none", r"context '\\ud800' cannot be part"),
    ],
)
def test_what_a_bundle_lacks(directory, tmp_path, change, says):
    source = tmp_path / "bundle.zip"
    with zipfile.ZipFile(directory / "controls.zip") as given, zipfile.ZipFile(source, "w") as archive:
        for name in given.namelist():
            content = given.read(name)
            if (change == "no manifest" and "manifest" in name) or (change == "no cells" and name.endswith("h5ad")):
                continue
            if change == "a context without cells" and "manifest" in name:
                content = json.dumps({"contexts": ["A", "B", "C", "D"]}).encode()
            if change.startswith("a context that") and "manifest" in name:
                odd = "a/../../../../elsewhere" if "leads" in change else "\ud800"
                content = json.dumps({"contexts": ["A", odd]}).encode()
            archive.writestr(name, content)
        if change == "twice":
            archive.writestr("more/again.h5ad", given.read("bundle/controls_A.h5ad"))
        if change == "two lists":
            archive.writestr("other/gene_names.csv", "A\n")
    if change == "damaged":
        content = bytearray(source.read_bytes())
        content[len(content) // 3 : len(content) // 3 + 2000] = bytes(2000)
        source.write_bytes(content)
    if change == "cut":
        source.write_bytes(source.read_bytes()[5000:])
    with pytest.raises(DataError, match=says):
        prepare_bundle(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.zip"]


def test_a_bundle_with_damage_anywhere_is_refused_or_read(directory, tmp_path):
    """Compressed, so that the damage meets the unpacker too; whatever it meets, one sentence and nothing half unpacked."""
    source, rng = tmp_path / "bundle.zip", np.random.default_rng(5)
    with (
        zipfile.ZipFile(directory / "controls.zip") as given,
        zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in given.namelist():
            archive.writestr(name, given.read(name))
    whole, refused = source.read_bytes(), 0
    for number in range(24):
        content = bytearray(whole)
        place = int(rng.integers(len(content))) if number % 2 else -int(rng.integers(1, 600))
        content[place] ^= 1 << int(rng.integers(8))
        source.write_bytes(content)
        try:
            prepare_bundle(source, tmp_path / f"out{number}")
        except DataError:
            refused += 1
            assert not (tmp_path / f"out{number}").exists()
    assert refused > 8
    assert not list(tmp_path.glob(".*"))


def test_a_bundle_takes_the_place_of_nothing(directory, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        prepare_bundle(directory / "controls.zip", tmp_path / "out")
