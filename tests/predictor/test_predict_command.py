"""`steval predict` on the command line: files, exit codes, one clear message for each bad input."""

import json
import subprocess
import sys

import anndata as ad
import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from steval.data.example import example_path

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(app, ["predict", *map(str, arguments)])


def test_names_cells_and_seed(checkpoint, tmp_path):
    out = tmp_path / "p.h5ad"
    result = run(checkpoint.path, "-o", out, "--perturbations", "STAT1,SRC", "-p", "TET1", "--cells", 20, "--seed", 1)
    assert result.exit_code == 0, result.output
    assert "60 cells of 3 perturbations, 100 measured controls beside them" in result.stdout
    written = ad.read_h5ad(out)
    counts = written.obs["target_gene"].value_counts().to_dict()
    assert counts == {"non-targeting": 100, "STAT1": 20, "SRC": 20, "TET1": 20}


def test_json_alone_on_stdout_of_a_real_process(checkpoint, tmp_path):
    command = [sys.executable, "-m", "steval", "predict", str(checkpoint.path), "-o", str(tmp_path / "p.h5ad")]
    options = ["-p", "SRC", "--cells", "5", "--output", "mean", "--json", "--threads", "1", "--layout", "dense"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    assert (found["cells"], found["rows"], found["controls"], found["perturbations"]) == (5, 2, 100, 1)
    assert "cells/s" in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        pytest.param(["-p", "STAT11"], 4, "'STAT11': nearest known STAT1", id="unknown name"),
        pytest.param(["-p", "SRC", "--all"], 2, "in one way, got", id="two requests"),
        pytest.param(["-p", "SRC", "--dtype", "fp8"], 2, "dtype: Input should be 'float32' or 'bf16'", id="dtype"),
        pytest.param(["-p", "SRC", "--clip", "3"], 2, "LOW:HIGH", id="clip"),
        pytest.param(["-p", "SRC", "--cell-type", "K562"], 2, "they hold: H1", id="cell type"),
        pytest.param(["-p", "SRC", "--controls", "no.h5ad"], 4, "no such data file: no.h5ad", id="no controls"),
        pytest.param(["-p", "SRC", "--controls", example_path()], 4, "use steval prepare", id="raw counts"),
        pytest.param(["-p", "SRC", "--control", "NT"], 2, "no file with control cells", id="control label"),
        pytest.param(["--request", "no.csv"], 4, "no such request file", id="no request"),
        pytest.param(["-p", "SRC", "--seed", "-1"], 2, "seed", id="seed"),
        pytest.param(["-p", "SRC", "--min-cells", "9", "--max-cells", "3"], 2, "more than --max-cells", id="limits"),
        pytest.param(["-p", "SRC", "--attention", "sideways"], 2, "attention", id="attention"),
    ],
)
def test_bad_input_gives_one_message_and_no_file(checkpoint, tmp_path, options, code, message):
    result = run(checkpoint.path, "-o", tmp_path / "p.h5ad", *options)
    assert result.exit_code == code
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x80\x04."])
def test_checkpoints_that_are_none(tmp_path, content):
    (tmp_path / "c.safetensors").write_bytes(content)
    result = run(tmp_path / "c.safetensors", "-o", tmp_path / "p.h5ad", "-p", "SRC")
    assert result.exit_code == 3
    assert not (tmp_path / "p.h5ad").exists()


def test_damaged_controls(checkpoint, cells_path, tmp_path):
    damaged = tmp_path / "damaged.h5ad"
    damaged.write_bytes(cells_path.read_bytes()[:5000])
    result = run(checkpoint.path, "-o", tmp_path / "p.h5ad", "-p", "SRC", "--controls", damaged)
    assert result.exit_code == 4
    assert "not a readable h5ad file" in result.output


def test_output_where_nothing_can_be_written(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(checkpoint.path, "-o", tmp_path / "file" / "p.h5ad", "-p", "SRC", "--cells", 2)
    assert result.exit_code in (2, 4)
    assert "cannot" in result.output


def test_a_service_decides_its_own_options(checkpoint, tmp_path):
    result = run("--url", "http://127.0.0.1:9", "-o", tmp_path / "p.h5ad", "--dtype", "bf16", checkpoint.path)
    assert result.exit_code == 2
    text = " ".join(result.output.replace("│", " ").split())
    assert "a service decides these itself: " in text
    assert "--dtype" in text
    assert "checkpoint" in text


def test_no_checkpoint_and_no_service(tmp_path):
    result = run("-o", tmp_path / "p.h5ad", "-p", "SRC")
    assert result.exit_code == 2
    assert "name the checkpoint, or a running service with --url" in " ".join(result.output.replace("│", " ").split())
