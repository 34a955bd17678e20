import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from steval.cli.app import app
from steval.errors import ConfigError
from steval.trainer.recipes import recipe_names, recipe_path
from steval.workflows.demo import DemoResult
from steval.workflows.doctor import diagnose

ARC_CONFIG = Path(__file__).parents[1] / "data" / "golden" / "arc_run" / "config.yaml"


def topics(path: Path) -> list[str]:
    return [finding.topic for finding in diagnose(path)]


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_have_nothing_but_the_published_mismatch(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = ["representation mismatch"] if name == "embedding-rounds" else []
    assert topics(recipe_path(name)) == topics(Path(name)) == expected


RUN = {"status": "finished", "step": 10, "init_from": None, "best": {"metric": "val/gene", "value": 1.0, "step": 6}}


def run_directory(place: Path, phases: list[dict], **record: object) -> Path:
    place.mkdir()
    (place / "config.yaml").write_text(yaml.safe_dump({"data": {"files": ["x.h5ad"]}, "phases": phases}))
    (place / "run.json").write_text(json.dumps(RUN | record))
    return place


def test_a_run_tells_how_it_began_and_ended(tmp_path: Path):
    frozen, whole = {"name": "A", "trains": ["encoders", "outputs"], "steps": 5}, {"name": "B", "steps": 5}
    (finding,) = diagnose(run_directory(tmp_path / "random", [frozen, whole]))
    assert (finding.severity, finding.topic) == ("problem", "frozen random backbone")
    assert "phase A (5 of 10 steps) freezes top, middle, lower" in finding.evidence
    assert topics(run_directory(tmp_path / "good", [frozen, whole], init_from="tahoe.safetensors")) == []
    assert topics(run_directory(tmp_path / "whole", [whole])) == []
    assert topics(run_directory(tmp_path / "unstaged", [whole], init_from="tahoe.safetensors")) == [
        "no staged unfreezing"
    ]
    best = {"metric": "val/gene", "value": 1.0, "step": 10}
    assert topics(run_directory(tmp_path / "last", [whole], best=best)) == ["best is the last step"]
    for number, record in enumerate(({"status": "stopped", "step": 4}, {"status": "running", "step": None})):
        assert topics(run_directory(tmp_path / str(number), [whole], **record)) == ["not finished"]


def test_findings_are_read_in_whole_lines(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run = run_directory(
        tmp_path / "run", [{"name": "A", "trains": ["encoders", "outputs"], "steps": 5}, {"name": "B", "steps": 5}]
    )
    (finding,) = diagnose(run)
    said = CliRunner().invoke(app, ["doctor", str(run)]).output.splitlines()
    assert said[0] == f"{run}: 1 finding"
    assert said[2] == "problem: frozen random backbone"
    indented = [line.removeprefix("found").removeprefix("change").strip() for line in said[3:]]
    assert " ".join(indented).split() == f"{finding.evidence} {finding.change}".split()
    assert max(map(len, said[3:])) <= 80
    assert len(said[3:]) <= 4 + len(finding.evidence + finding.change) // 50  # no narrow column


def test_a_config_with_every_mistake_has_each_named_with_its_setting(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(
        """
data: {files: [x.h5ad], input_key: X_state}
optimiser: {clip: 10, weight_decay: 0}
phases:
  - {name: A, trains: [top], steps: 5, warmup_fraction: 0}
  - {name: B, trains: all, steps: 5, start: last, rates: {backbone: 1.0e-3}}
"""
    )
    findings = {finding.topic: finding for finding in diagnose(path)}
    assert set(findings) == {
        "clip above 1 to 5", "no effective weight decay", "representation mismatch", "no warm-up",
        "outputs frozen at the start", "starts from the last checkpoint", "backbone rate is high",
    }  # fmt: skip
    assert findings["starts from the last checkpoint"].change == "set phases.1.start to best"
    assert (
        "0.2" in findings["representation mismatch"].evidence and "5.7" in findings["representation mismatch"].evidence
    )


def test_arc_states_configuration_and_its_dead_keys():
    findings = diagnose(ARC_CONFIG)
    named = [finding.topic for finding in findings]
    assert {"clip above 1 to 5", "no effective weight decay", "dead key"} <= set(named)
    dead = " ".join(finding.evidence for finding in findings if finding.topic == "dead key")
    for key in ("training.loss_fn", "training.weight_decay", "ckpt_every_n_steps", "use_rotary_embeddings"):
        assert key in dead


def test_a_run_is_read_with_its_configuration(demo: DemoResult):
    result = CliRunner().invoke(app, ["doctor", str(demo.directory / "run"), "--json"])
    assert result.exit_code == 0, result.output
    assert '"findings"' in result.stdout


def test_what_is_neither_is_a_config_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="neither"):
        diagnose(tmp_path)
    with pytest.raises(ConfigError, match="no such"):
        diagnose(tmp_path / "nowhere")
    result = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert result.exit_code == 2


def test_what_is_not_carried_over_from_arc_states_configuration(tmp_path: Path):
    values = yaml.safe_load(ARC_CONFIG.read_text())
    values["training"]["devices"] = 4
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    (lost,) = [finding.evidence for finding in diagnose(path) if finding.topic == "not carried over"]
    assert lost == "training.devices: 4: here it is compute.devices"


@pytest.mark.parametrize("odd", [[[]], "x", 7, None, {"kwargs": [1]}, {"kwargs": "x"}])
@pytest.mark.parametrize("section", ["data", "model", "training"])
def test_sections_of_another_kind_in_arc_states_configuration(tmp_path, section, odd):
    values = yaml.safe_load(ARC_CONFIG.read_text())
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values | {section: odd}))
    try:
        diagnose(path)
    except ConfigError as error:
        assert "config.yaml" in str(error)
    else:
        assert isinstance(odd, dict)
