"""`steval predict` on the command line: files, exit codes, one clear message for each bad input."""

import json
import signal
import subprocess
import sys
import time

import anndata as ad
import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from steval.cli.app import app
from steval.data.example import example_path
from steval.model.inference import InferenceNetwork

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


def refused(tmp_path, code, message, *arguments):
    out = tmp_path / "new" / "p.h5ad"
    result = run("-o", out, *arguments)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_memory_that_runs_out_half_way_says_what_to_lower_and_leaves_no_file(checkpoint, tmp_path, monkeypatch):
    """The memory is asked of torch's own allocator, for more than any machine has."""
    windows = []

    def predict(self, *arguments):
        windows.append(torch.empty(1 << 60 if windows else 1, dtype=torch.uint8))
        return compute(self, *arguments)

    compute = InferenceNetwork.predict
    monkeypatch.setattr(InferenceNetwork, "predict", predict)
    options = ["--all", "--cells", 64, "--batch-cells", 64, "--decoding", "network"]
    refused(tmp_path, 2, "the device ran out of memory. Lower --batch-cells (now 64)", checkpoint.path, *options)
    assert len(windows) == 1


CELLS = object()
"""Stands for the file of lognorm cells."""


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
        pytest.param(["-p", "SRC", "--controls", CELLS, "--pert-col", "gene"], 4, "no obs column 'gene'", id="column"),
        pytest.param(["--request", CELLS, "--pert-col", "gene"], 4, "no obs column 'gene'", id="column of a request"),
        pytest.param(["-p", "SRC", "--controls", "."], 4, "not a data file but a directory", id="directory"),
    ],
)
def test_bad_input_gives_one_message_and_no_file(checkpoint, cells_path, tmp_path, options, code, message):
    options = [cells_path if one is CELLS else one for one in options]
    refused(tmp_path, code, message, checkpoint.path, *options)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x80\x04."])
def test_checkpoints_that_are_none(tmp_path, content):
    (tmp_path / "c.safetensors").write_bytes(content)
    result = run(tmp_path / "c.safetensors", "-o", tmp_path / "p.h5ad", "-p", "SRC")
    assert result.exit_code == 3
    assert not (tmp_path / "p.h5ad").exists()


def edited(name, change):
    """Damage to one array of an h5ad."""

    def edit(path):
        with h5py.File(path, "a") as handle:
            handle[name][...] = change(handle[name][:])

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda path: path.write_bytes(b""), "not a readable h5ad file", id="empty"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:5000]), "not a readable h5ad", id="truncated"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-200]), "not a readable h5ad", id="nearly whole"),
        pytest.param(edited("X/indices", lambda old: old + 1000), "holds values outside its 120 columns", id="columns"),
        pytest.param(
            edited("X/indices", lambda old: old - 1000), "holds values outside its 120 columns", id="negative"
        ),
        pytest.param(edited("X/indptr", lambda old: old[::-1].copy()), "is damaged", id="pointers fall"),
        pytest.param(edited("X/indptr", lambda old: old * 2), "is damaged", id="pointers beyond the end"),
        pytest.param(edited("X/data", lambda old: old * np.nan), "NaN or infinite", id="NaN"),
        pytest.param(edited("X/data", lambda old: -old), "negative values", id="negative values"),
    ],
)
def test_damaged_controls(checkpoint, cells_path, tmp_path, damage, message):
    damaged = tmp_path / "damaged.h5ad"
    damaged.write_bytes(cells_path.read_bytes())
    damage(damaged)
    refused(tmp_path, 4, message, checkpoint.path, "-p", "SRC", "--controls", damaged)


def test_genes_missing_or_in_another_order(checkpoint, cells, cells_path, tmp_path):
    fewer, shuffled = tmp_path / "fewer.h5ad", tmp_path / "shuffled.h5ad"
    cells[:, 5:].copy().write_h5ad(fewer)
    refused(tmp_path, 4, "lacks 5 of the 120 genes", checkpoint.path, "-p", "SRC", "--controls", fewer)
    cells[:, np.random.default_rng(0).permutation(120)].copy().write_h5ad(shuffled)
    written = []
    for controls in (cells_path, shuffled):
        result = run(checkpoint.path, "-o", tmp_path / "p.h5ad", "-p", "SRC", "--cells", 20, "--controls", controls)
        assert result.exit_code == 0, result.output
        written.append(ad.read_h5ad(tmp_path / "p.h5ad"))
    assert list(written[0].var_names) == list(written[1].var_names)
    np.testing.assert_array_equal(written[0].X.toarray(), written[1].X.toarray())


def test_an_input_is_not_overwritten(checkpoint, cells_path, tmp_path):
    before = cells_path.read_bytes()
    for option in ("--request", "--controls"):
        result = run(checkpoint.path, "-o", cells_path, option, cells_path)
        assert result.exit_code == 2
        assert "the output would take its place" in " ".join(result.output.split())
    assert cells_path.read_bytes() == before


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from steval.cli import main
sys.argv[1:] = sys.argv[2:]
main()
"""
"""steval with a limit to the size of files, which it meets as it would a full disk."""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("limit", [0, 50_000, 1_500_000])
def test_a_full_disk_is_one_line_and_no_file(checkpoint, tmp_path, layout, limit):
    command = [sys.executable, "-c", LIMITED, str(limit), "--quiet", "predict", str(checkpoint.path)]
    options = ["-o", str(tmp_path / "p.h5ad"), "-p", "SRC", "--cells", "6000", "--layout", layout, "--threads", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stderr
    assert done.stderr == f"error: cannot write {tmp_path / 'p.h5ad'}: File too large\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_while_cells_are_written_leave_nothing(checkpoint, tmp_path, number, code, word):
    command = [
        sys.executable,
        "-m",
        "steval",
        "--quiet",
        "predict",
        str(checkpoint.path),
        "-o",
        str(tmp_path / "p.h5ad"),
    ]
    options = ["-p", "SRC", "--cells", "1000000", "--threads", "1"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 1_000_000 for path in tmp_path.iterdir()):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(60) == code
        assert process.stderr.read().startswith(f"{word}; nothing half-written was left")
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_on_one_output_leave_one_whole_file(checkpoint, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from steval.predictor.job import PredictionJob, run_job

    def predict(name):
        values = {"checkpoint": checkpoint.path, "out": tmp_path / "p.h5ad", "perturbations": [name], "cells": 3000}
        return run_job(PredictionJob.parse(values)).num_cells

    with ThreadPoolExecutor(2) as both:
        assert list(both.map(predict, ["SRC", "TET1"])) == [3000, 3000]
    labels = ad.read_h5ad(tmp_path / "p.h5ad").obs["target_gene"].astype(str).value_counts().to_dict()
    assert labels in ({"SRC": 3000, "non-targeting": 100}, {"TET1": 3000, "non-targeting": 100})
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad"]


def test_a_directory_under_the_outputs_name_is_found_before_anything_is_computed(checkpoint, tmp_path):
    (tmp_path / "p.h5ad").mkdir()
    result = run(checkpoint.path, "-o", tmp_path / "p.h5ad", "-p", "SRC")
    assert result.exit_code == 4
    assert "it is a directory" in " ".join(result.output.split())


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


def test_a_model_is_named_of_a_service_alone(checkpoint, tmp_path):
    for place in ([checkpoint.path], []):
        result = run(*place, "-o", tmp_path / "p.h5ad", "-p", "SRC", "--model", "tahoe")
        assert result.exit_code == 2
        assert "--model (here tahoe) names a model of a running service: say where that is with --url" in " ".join(
            result.output.split()
        )
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint_and_no_service(tmp_path):
    result = run("-o", tmp_path / "p.h5ad", "-p", "SRC")
    assert result.exit_code == 2
    assert "name the checkpoint, or a running service with --url" in " ".join(result.output.replace("│", " ").split())
