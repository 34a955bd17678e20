"""`steval convert` and `inspect` as a user runs them, and the probe that decides the attention regime."""

import json
import pickle
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from steval.checkpoints.arc import read_arc
from steval.checkpoints.conversion import ConversionOptions
from steval.checkpoints.store import load_checkpoint
from steval.cli.app import app
from steval.data.cells.prepare import PrepareSettings, prepare
from steval.data.example import example
from steval.errors import ConfigError, DataError
from steval.model.network import StateTransition
from steval.workflows.checkpoints.convert import convert
from steval.workflows.checkpoints.probe import ProbeReport

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
KEYLESS = GOLDEN / "regimes" / "keyless.ckpt"
NUM_CELLS = 1024
REGIMES = ("bidirectional", "causal", "causal-rope")


@pytest.fixture(scope="module")
def h1(tmp_path_factory) -> Path:
    """The packaged real cells, lognorm."""
    folder = tmp_path_factory.mktemp("convert")
    example().write_h5ad(folder / "counts.h5ad")
    prepare(
        folder / "counts.h5ad", folder / "h1.h5ad", settings=PrepareSettings(target_sum=10_000, cell_type_name="H1")
    )
    return folder / "h1.h5ad"


def keyless_options(tmp_path: Path, **more) -> ConversionOptions:
    names = ["P0", "P1", "P2", "P3", "P4", "P5", "non-targeting"]
    torch.save(dict(zip(names, torch.eye(7), strict=True)), tmp_path / "map.pt")
    (tmp_path / "genes.txt").write_text("\n".join(f"G{i}" for i in range(60)))
    return ConversionOptions(perturbation_map=tmp_path / "map.pt", genes=(tmp_path / "genes.txt",), **more)


def cells_of_regime(tmp_path: Path, regime: str) -> Path:
    """Perturbed cells that are the keyless network's own predictions under `regime`, with their control cells."""
    model = read_arc(KEYLESS, regime)
    network = StateTransition(model.config).eval()
    network.load_state_dict(model.weights)
    rng = torch.Generator().manual_seed(5)
    controls = 1.4 * torch.rand(NUM_CELLS, 60, generator=rng)
    rows, labels = [controls], ["non-targeting"] * NUM_CELLS
    for index in range(6):
        order = torch.randperm(NUM_CELLS, generator=rng)
        sets = controls[order].reshape(-1, 16, 60)
        with torch.no_grad():
            rows.append(network(sets, torch.eye(7)[[index] * len(sets)]).output_BSG.flatten(0, 1))
        labels += [f"P{index}"] * NUM_CELLS
    cells = ad.AnnData(
        torch.cat(rows).numpy(), obs=pd.DataFrame({"target_gene": labels}, index=map(str, range(len(labels))))
    )
    cells.var_names = [f"G{i}" for i in range(60)]
    path = tmp_path / "cells.h5ad"
    cells.uns["steval"] = {"scale": "lognorm", "target_sum": 10_000.0}
    cells.write_h5ad(path)
    return path


@pytest.mark.parametrize("regime", REGIMES)
def test_the_probe_finds_the_regime_that_made_the_cells(tmp_path, regime):
    cells = cells_of_regime(tmp_path, regime)
    report, probed = convert(KEYLESS, tmp_path / "out.safetensors", keyless_options(tmp_path), probe=cells)
    assert probed.best == regime
    assert set(probed.losses) == set(REGIMES)
    assert load_checkpoint(tmp_path / "out.safetensors").manifest.model.attention == regime
    notes = [note for note in report.manifest.notes if note.startswith("attention ")]
    assert len(notes) == 1
    assert all(f"{loss:.6g}" in notes[0] for loss in probed.losses.values())


def test_the_probe_says_when_the_cells_do_not_tell(h1, tmp_path):
    report, probed = convert(GOLDEN / "arc_run", tmp_path / "out.safetensors", ConversionOptions(), probe=h1)
    assert not probed.is_clear  # twelve steps of training: the regimes hardly differ
    assert report.manifest.model.attention == "bidirectional"  # as the file records
    assert "within the noise" in probed.describe()
    assert probed.num_perturbations == 5
    clear = ProbeReport({"bidirectional": 1.0, "causal": 2.0}, 4, 2, is_clear=True)
    assert (clear.best, "noise" in clear.describe()) == ("bidirectional", False)


def test_a_probe_without_cells_or_beside_attention_is_an_error(h1, tmp_path):
    out = tmp_path / "out.safetensors"
    with pytest.raises(ConfigError, match="give one of them"):
        convert(GOLDEN / "arc_run", out, ConversionOptions(attention="causal"), probe=h1)
    controls = ad.read_h5ad(h1)
    controls = controls[controls.obs["target_gene"] == "non-targeting"]
    controls.write_h5ad(tmp_path / "controls.h5ad")
    with pytest.raises(DataError, match="no cell set to probe with"):
        convert(GOLDEN / "arc_run", out, ConversionOptions(), probe=tmp_path / "controls.h5ad")
    assert not out.exists()


def test_default_controls_come_from_the_users_cells(h1, tmp_path):
    convert(GOLDEN / "arc_run", tmp_path / "out.safetensors", ConversionOptions(), controls=h1)
    checkpoint = load_checkpoint(tmp_path / "out.safetensors")
    cells = ad.read_h5ad(h1)
    expected = cells[cells.obs["target_gene"] == "non-targeting", list(checkpoint.manifest.input_genes)].X.toarray()
    assert checkpoint.manifest.num_controls == {"H1": 100}
    assert np.array_equal(checkpoint.controls.cells.toarray(), expected)
    assert set(checkpoint.controls.batches) <= set(checkpoint.manifest.batches)


def run(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_convert_inspect_predict_from_the_command_line(h1, tmp_path):
    out, preds = tmp_path / "model.safetensors", tmp_path / "preds.h5ad"
    code, text, _ = run("convert", GOLDEN / "arc_run", "-o", out, "--controls", h1, "--target-sum", 10_000, "--json")
    assert code == 0
    assert json.loads(text)["controls"] == {"H1": 100}
    code, text, _ = run("inspect", out, "--json")
    assert code == 0
    assert json.loads(text)["parameters"]["total"] == 343_357
    code, text, _ = run("inspect", GOLDEN / "arc_run")
    assert code == 0
    assert "llama, 2 blocks" in text
    code, _, errors = run("predict", out, "-o", preds, "--perturbations", "TET1,SRC", "--cells", 32)
    assert code == 0, errors
    predicted = ad.read_h5ad(preds)
    assert (predicted.obs["target_gene"] == "TET1").sum() == 32
    assert list(predicted.var_names) == list(load_checkpoint(out).manifest.output_genes)


def test_predictions_of_the_converted_file_are_the_networks_own(h1, tmp_path):
    """`steval predict` with one whole set: the arc network itself on the same control cells."""
    out, preds = tmp_path / "model.safetensors", tmp_path / "preds.h5ad"
    cells = ad.read_h5ad(h1)
    controls = cells[cells.obs["target_gene"] == "non-targeting"][:16]
    controls.write_h5ad(tmp_path / "controls.h5ad")
    assert run("convert", GOLDEN / "arc_run", "-o", out, "--controls", tmp_path / "controls.h5ad")[0] == 0
    assert run("predict", out, "-o", preds, "--perturbations", "STAT1", "--cells", 16)[0] == 0
    model = read_arc(GOLDEN / "arc_run")
    network = StateTransition(model.config).eval()
    network.load_state_dict(model.weights)
    genes = list(model.vocabulary.genes)
    with torch.no_grad():
        basal = torch.from_numpy(controls[:, genes].X.toarray())[None]
        expected = network(basal, model.vocabulary.features["STAT1"][None]).output_BSG[0].numpy()
    predicted = ad.read_h5ad(preds)
    predicted = predicted[predicted.obs["target_gene"] == "STAT1", genes].X
    found = predicted if isinstance(predicted, np.ndarray) else predicted.toarray()
    order = [np.argsort(rows.sum(axis=1)) for rows in (found, expected)]
    assert np.abs(found[order[0]] - expected[order[1]]).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["convert", KEYLESS, "-o", "OUT"], 2, "--perturbation-map"),
        (["convert", "nowhere", "-o", "OUT"], 3, "no such checkpoint"),
        (["convert", GOLDEN / "arc_run", "-o", "OUT", "--attention", "sideways"], 2, "sideways"),
        (["inspect", "nowhere"], 3, "no such checkpoint"),
        (["inspect", Path(__file__)], 3, "not a whole safetensors file"),
    ],
)
def test_errors_have_their_exit_code_and_leave_no_file(tmp_path, arguments, exit_code, words):
    arguments = [tmp_path / "out.safetensors" if argument == "OUT" else argument for argument in arguments]
    code, _, errors = run(*arguments)
    assert code == exit_code
    assert words in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "executed"))


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/final.ckpt",
        "pert_onehot_map.pt",
        "batch_onehot_map.torch",
        "batch_onehot_map.pkl",
        "cell_type_onehot_map.torch",
        "var_dims.pkl",
        "data_module.torch",
    ],
)
@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_a_payload_in_any_file_of_a_run_is_refused_and_never_runs(tmp_path, name, command):
    run_dir, marker, out = tmp_path / "run", tmp_path / "marker", tmp_path / "out.safetensors"
    shutil.copytree(GOLDEN / "arc_run", run_dir, copy_function=shutil.copyfile)
    if name == "data_module.torch":
        (run_dir / "config.yaml").unlink()  # otherwise nobody reads it
    (run_dir / Path(name).with_suffix(".torch")).unlink(missing_ok=True)
    if name.endswith(".pkl"):
        (run_dir / name).write_bytes(pickle.dumps({"deep": [{"deeper": Payload(marker)}]}))
    else:
        torch.save({"state_dict": {}, "hyper_parameters": {"x": Payload(marker)}}, run_dir / name)
    code, _, errors = run(*([command, run_dir] + (["-o", out] if command == "convert" else [])))
    assert code == 3
    assert "Nothing of the file was executed" in errors
    assert not marker.exists()
    assert not out.exists()


def test_yaml_of_a_run_runs_nothing(tmp_path):
    run_dir, marker = tmp_path / "run", tmp_path / "marker"
    shutil.copytree(GOLDEN / "arc_run", run_dir, copy_function=shutil.copyfile)
    (run_dir / "config.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {marker}']")
    code, _, errors = run("inspect", run_dir)
    assert code == 3
    assert "config.yaml" in errors
    assert not marker.exists()


def test_every_option_of_convert(tmp_path):
    options = keyless_options(tmp_path)
    out = tmp_path / "out.safetensors"
    given = ["--perturbation-map", options.perturbation_map, "--genes", options.genes[0], "--licence", "CC0-1.0"]
    code, text, errors = run("convert", KEYLESS, "-o", out, *given, "--attention", "causal", "--scale", "counts")
    assert code == 0, errors
    assert "attention causal: given by --attention" in text
    manifest = load_checkpoint(out).manifest
    assert (manifest.model.attention, manifest.licence, manifest.scale) == ("causal", "CC0-1.0", "counts")
    code, text, errors = run("convert", KEYLESS, "-o", out, *given)
    assert code == 0, errors
    assert "lacks the key bidirectional_attention" in text
    assert load_checkpoint(out).manifest.model.attention == "bidirectional"
    cells = cells_of_regime(tmp_path, "causal-rope")
    code, text, errors = run("convert", KEYLESS, "-o", out, *given, "--probe", cells, "--seed", 1)
    assert code == 0, errors
    assert [line.split()[3].rstrip(":") for line in text.splitlines()[:3]] == list(REGIMES)
    assert text.splitlines()[2].endswith("<- taken")


def test_features_of_unseen_perturbations_from_the_command_line(tmp_path):
    torch.save({name: torch.rand(7) for name in ("P0", "non-targeting")}, tmp_path / "map.pt")
    torch.save({"BRD4": torch.rand(7)}, tmp_path / "esm2.pt")
    (tmp_path / "genes.txt").write_text("\n".join(f"G{i}" for i in range(60)))
    out = tmp_path / "out.safetensors"
    given = ["--perturbation-map", tmp_path / "map.pt", "--genes", tmp_path / "genes.txt"]
    code, text, errors = run(
        "convert", KEYLESS, "-o", out, *given, "--perturbation-features", tmp_path / "esm2.pt", "--json"
    )
    assert code == 0, errors
    assert json.loads(text)["untrained"] == 1
    code, text, _ = run("inspect", out, "--verify")
    assert code == 0
    assert "untrained perturbations" in text
