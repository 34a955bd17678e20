"""Sweeps: what is tried, what is given up, what goes on after an interruption; trials are processes that leave run directories."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from steval.cli.app import app
from steval.data.locks import DirectoryLock
from steval.errors import ConfigError, DataError
from steval.workflows.sweep.outcome import draw_parallel, short_names
from steval.workflows.sweep.run import sweep
from steval.workflows.sweep.space import Parameter, SweepSpace
from steval.workflows.sweep.study import TrialRecord
from support.fake_hub import fake_hub, use_hub
from support.service_models import lognorm_cells
from support.tiny_runs import tiny_config

pytest.importorskip("optuna")
STAND_IN = Path(__file__).parents[1] / "support" / "quick_trial.py"


def quick(arguments) -> list[str]:
    """In place of `steval finetune`: a run whose loss is a function of its settings, in hundredths of a second."""
    return [sys.executable, str(STAND_IN), *arguments]


@pytest.fixture
def space(tmp_path: Path):
    """Makes spaces over a small configuration; losses are 100 × |rate - 0.003| + 0.01 × the size of a set."""
    config = tmp_path / "config.yaml"
    config.write_text(tiny_config(tmp_path / "none.h5ad").to_yaml())

    def make(**changes) -> SweepSpace:
        values = {
            "config": str(config),
            "space": {
                "phases.0.rates.encoders": {"low": 1e-4, "high": 1e-2, "log": True},
                "sets.size": [8, 16],
                "phases.1.trains": [["encoders", "outputs"], "all"],
                "phases.0.steps": {"low": 4, "high": 8, "step": 2},
            },
            "trials": 6,
            "threads": 1,
            "prune": None,
        }
        return SweepSpace.parse({**values, **changes}, source="test")

    return make


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: whole.replace(b"\n", b"\ngarbage\n", 1), id="a line"),
        pytest.param(lambda whole: b"\x00\xff" * 50 + b"\n" + whole, id="no text"),
        pytest.param(lambda whole: whole.replace(b"op_code", b"op", 1), id="an entry without its kind"),
    ],
)
def test_a_damaged_study_is_a_sentence(space, tmp_path: Path, damage):
    sweep(space(trials=1), tmp_path / "out", steval=quick)
    study = tmp_path / "out" / "study.journal"
    study.write_bytes(damage(study.read_bytes()))
    with pytest.raises(DataError, match=r"study\.journal is damaged .*--out"):
        sweep(space(trials=2), tmp_path / "out", steval=quick)


def test_a_sweep_goes_on_from_an_entry_that_was_not_written_to_its_end(space, tmp_path: Path):
    sweep(space(trials=2), tmp_path / "out", steval=quick)
    study = tmp_path / "out" / "study.journal"
    study.write_bytes(study.read_bytes()[:-20])
    result = sweep(space(trials=4), tmp_path / "out", steval=quick)
    assert sum(record.state == "complete" for record in result.records) >= 3
    sweep(space(trials=5), tmp_path / "out", steval=quick)


def test_trials_are_runs_and_the_best_comes_first(space, tmp_path: Path):
    said: list[str] = []
    result = sweep(space(workers=3), tmp_path / "out", tell=said.append, steval=quick)
    assert [one.state for one in result.records] == ["complete"] * 6
    assert sorted(one.number for one in result.records) == list(range(6))
    values = [one.value for one in result.records]
    assert values == sorted(values)
    for one in result.records:
        record = json.loads((result.run_of(one) / "run.json").read_text())
        given = yaml.safe_load((tmp_path / "out" / "configs" / f"{one.number:04d}.yaml").read_text())
        assert record["best"]["value"] == one.value
        assert given["phases"][0]["rates"]["encoders"] == one.chosen["phases.0.rates.encoders"]
        assert given["sets"]["size"] == one.chosen["sets.size"] in (8, 16)
        trains = one.chosen["phases.1.trains"]
        assert trains in (["encoders", "outputs"], "all")
        assert len(given["phases"][1]["trains"]) == (5 if trains == "all" else 2)
        assert one.chosen["phases.0.steps"] in (4, 6, 8)
    with (tmp_path / "out" / "trials.csv").open() as handle:
        table = list(csv.DictReader(handle))
    assert [row["trial"] for row in table] == [str(one.number) for one in result.records]
    assert (tmp_path / "out" / "parallel.png").read_bytes()[:4] == b"\x89PNG"
    assert sum("ended: val/gene" in one for one in said) == 6


def test_the_same_seed_tries_the_same_and_a_sweep_goes_on_where_it_was(space, tmp_path: Path):
    whole = sweep(space(trials=3), tmp_path / "whole", steval=quick)
    assert sweep(space(trials=3), tmp_path / "again", steval=quick).records == whole.records
    more = sweep(space(trials=5, workers=2), tmp_path / "whole", steval=quick)
    assert {one.number: one for one in whole.records}.items() <= {one.number: one for one in more.records}.items()
    assert len(more.records) == 5
    with pytest.raises(ConfigError, match=r"another space \(seed changed\)"):
        sweep(space(trials=5, seed=1), tmp_path / "whole", steval=quick)
    config = Path(space().config)
    config.write_text(tiny_config(tmp_path / "none.h5ad", "seed=5").to_yaml())
    with pytest.raises(ConfigError, match=r"another space \(config changed\)"):
        sweep(space(trials=5), tmp_path / "whole", steval=quick)


def test_a_trial_that_falls_behind_is_given_up(space, tmp_path: Path):
    slow = {"QUICK_TRIAL_SECONDS": "4"}
    parameters = {"phases.0.rates.encoders": [0.003, 0.003, 0.9]}  # as far from the best as can be
    pruning = {"startup_trials": 1, "warmup_steps": 0}
    os.environ.update(slow)
    try:
        result = sweep(space(space=parameters, prune=pruning, trials=6), tmp_path / "out", steval=quick)
    finally:
        for name in slow:
            del os.environ[name]
    bad = [one for one in result.records if one.chosen["phases.0.rates.encoders"] == 0.9]
    good = [one for one in result.records if one.chosen["phases.0.rates.encoders"] == 0.003]
    assert {one.state for one in good} == {"complete"}
    assert "pruned" in {one.state for one in bad}
    assert all(
        json.loads((result.run_of(one) / "run.json").read_text())["status"] == "stopped"
        for one in bad
        if one.state == "pruned"
    )
    assert result.best is not None
    assert result.best.chosen["phases.0.rates.encoders"] == 0.003


def test_a_trial_that_fails_says_why_and_stops_no_other(space, tmp_path: Path):
    parameters = {
        "seed": {"low": 12, "high": 13},
        "phases.0.rates.encoders": {"low": 1e-4, "high": 1e-2},
    }  # 13 is what fails
    result = sweep(space(space=parameters, trials=8), tmp_path / "out", steval=quick)
    failed = [one for one in result.records if one.state == "failed"]
    assert {one.chosen["seed"] for one in failed} == {13}
    assert {one.error for one in failed} == {"error: unlucky"}
    assert {one.state for one in result.records if one not in failed} == {"complete"}


def test_an_interrupted_sweep_lets_its_trials_save_and_takes_them_up_again(space, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("QUICK_TRIAL_SECONDS", "20")
    interrupt = threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    interrupt.start()
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        sweep(space(trials=2, workers=2), tmp_path / "out", tell=said.append, steval=quick)
    assert said[-1] == "2 trials save their state; the same command goes on"
    runs = sorted((tmp_path / "out" / "trials").iterdir())
    assert [json.loads((run / "run.json").read_text())["status"] for run in runs] == ["stopped"] * 2
    monkeypatch.setenv("QUICK_TRIAL_SECONDS", "0")
    with DirectoryLock(runs[0]), pytest.raises(ConfigError, match="is in use by another steval command"):
        sweep(space(trials=2, workers=2), tmp_path / "out", steval=quick)
    result = sweep(space(trials=2, workers=2), tmp_path / "out", steval=quick)
    assert [one.state for one in result.records] == ["complete"] * 2
    assert all(json.loads((run / "run.json").read_text())["resumed"] for run in runs)


def test_every_trial_starts_from_the_commit_that_the_first_found(space, tmp_path: Path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    given, started = "hf://lab/st@main/m.safetensors", []

    def start_of(arguments) -> list[str]:
        started.append(arguments[arguments.index("--init-from") + 1])
        return quick(arguments)

    with fake_hub() as server:
        use_hub(monkeypatch, server, tmp_path)
        first = server.put("lab/st", {"m.safetensors": b"one"})
        sweep(space(init_from=given, trials=1), tmp_path / "out", steval=start_of)
        server.put("lab/st", {"m.safetensors": b"another"})
        sweep(space(init_from=given, trials=2), tmp_path / "out", steval=start_of)
    assert started == [f"hf://lab/st@{first}/m.safetensors"] * 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"space": {"sets.size": {"low": 0, "high": 8}, "loss.knd": [1, "x"]}}, "loss.knd", id="key"),
        pytest.param({"space": {"sets.size": {"low": 0, "high": 8}}}, "sets.size", id="value"),
        pytest.param({"space": {"sets.size": {"low": 8, "high": 8}}}, "a greater high", id="range"),
        pytest.param({"space": {"sets.size": {"choices": [1], "low": 2}}}, "give choices", id="both"),
        pytest.param({"space": {"seed": {"low": 0, "high": 8, "log": True}}}, "log needs low above 0", id="log"),
        pytest.param({"space": {}}, "at least 1 item", id="empty"),
        pytest.param({"init_from": "no.safetensors"}, "init_from: there is no no.safetensors", id="start"),
    ],
)
def test_a_space_that_cannot_be_is_refused_before_anything_is_made(space, tmp_path: Path, changes, words):
    with pytest.raises(ConfigError, match=words):
        sweep(space(**changes), tmp_path / "out", steval=quick)
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_extra_is_named(space, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"needs optuna.*'\.\[sweep\]'"):
        sweep(space(), tmp_path / "out", steval=quick)


def test_the_figure_has_an_axis_for_each_setting_and_the_outcome():
    chosen = [{"rate": 1e-4, "kind": "a"}, {"rate": 1e-2, "kind": "b"}, {"rate": 1e-3, "kind": "a"}]
    records = [TrialRecord(row, "complete", float(row), one) for row, one in enumerate(chosen)]
    figure = draw_parallel("val/gene", ["rate", "kind"], records, minimise=True)
    (axes,) = figure.axes
    heights = [line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 3]
    assert sorted(round(float(one), 3) for one in heights) == [0.0, 0.5, 1.0]  # even in the logarithm
    assert [label.get_text() for label in axes.get_xticklabels()] == ["rate", "kind", "val/gene"]
    assert Parameter(low=1, high=3).is_whole
    assert not Parameter(low=1.0, high=3).is_whole


def test_names_are_as_short_as_tells_them_apart():
    names = ["phases.0.rates.encoders", "phases.1.rates.encoders", "phases.0.rates.backbone", "sets.size", "seed"]
    assert short_names(names) == ["0.rates.encoders", "1.rates.encoders", "rates.backbone", "sets.size", "seed"]


def test_the_command_sweeps_real_runs(tmp_path: Path):
    config, screen = tmp_path / "tiny.yaml", tmp_path / "screen.h5ad"
    lognorm_cells().write_h5ad(screen)
    config.write_text(tiny_config(screen, "checks.calibrate=false").to_yaml())
    path = tmp_path / "rates.yaml"
    path.write_text(
        yaml.safe_dump({"config": str(config), "space": {"phases.0.rates.encoders": [1e-3, 1e-5]}, "device": "cpu"})
    )
    run = CliRunner().invoke(app, ["sweep", str(path), "--dry-run"])
    assert (run.exit_code, "20 trials over 1 setting, by val/gene" in run.output) == (0, True), run.output
    command = [
        sys.executable,
        "-m",
        "steval",
        "sweep",
        str(path),
        "--trials",
        "2",
        "--workers",
        "2",
        "--threads",
        "1",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for trial in found["trials"]:
        assert (Path(trial["run"]) / "checkpoints" / "best-val.safetensors").is_file()
