import json
import random
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from steval.errors import ConfigError, DataError
from steval.workflows.compare import compare
from steval.workflows.demo import DemoResult
from steval.workflows.figures.comparison import write_comparison


@pytest.fixture(scope="module")
def runs(demo: DemoResult, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo's run, and a copy with another width and a better validation loss."""
    other = tmp_path_factory.mktemp("runs") / "other"
    shutil.copytree(demo.directory / "run", other)
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("hidden_dim: 128", "hidden_dim: 64"))
    return demo.directory / "run", other


def test_runs_side_by_side(runs: tuple[Path, Path], demo: DemoResult, tmp_path: Path):
    comparison = compare(runs)
    settings = {row["setting"]: (row["run"], row["other"]) for row in comparison.settings.to_dicts()}
    assert settings == {"network.hidden_dim": ("128", "64")}
    assert comparison.best["last step"].to_list() == [24, 24]
    by_metric = {row["metric"]: row["run"] for row in comparison.metrics.to_dicts()}
    breakdown = {row["metric"]: row["value"] for row in demo.report.breakdown.to_dicts()}
    assert by_metric["mae"] == pytest.approx(breakdown["mae"])
    for name, start in (("c.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("c.html", b"<!doctype html>")):
        result = CliRunner().invoke(app, ["compare", *map(str, runs), "-o", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        assert (tmp_path / name).read_bytes().startswith(start)


def test_the_report_of_a_runs_score_is_kept(runs: tuple[Path, Path], demo: DemoResult, tmp_path: Path):
    placed = [tmp_path / path.name for path in runs]
    for source, copy in zip(runs, placed, strict=True):
        shutil.copytree(source, copy)
    shutil.copytree(demo.score_dir, placed[0] / "scored")
    report = placed[0] / "scored" / "report.html"
    before = report.read_bytes()
    result = CliRunner().invoke(app, ["compare", *map(str, placed), "-o", str(report)])
    assert result.exit_code == 2 and "would take its place" in result.output
    assert report.read_bytes() == before


def test_scores_side_by_side_with_a_paired_test(demo: DemoResult, tmp_path: Path):
    other = tmp_path / "other.score"
    shutil.copytree(demo.score_dir, other)
    result = CliRunner().invoke(app, ["compare", str(demo.score_dir), str(other), "--json"])
    assert result.exit_code == 0, result.output
    tables = json.loads(result.stdout)
    assert len(tables["Metrics"]) == 3
    tests = tables["Paired tests (over perturbations)"]
    assert tests and all(row["difference"] == 0 for row in tests)
    shown = CliRunner().invoke(app, ["compare", str(demo.score_dir), str(other)], env={"COLUMNS": "160"}).stdout
    assert f"a = {demo.score_dir.name}, b = other.score" in shown
    assert "0.0000 to 0.0000" in shown and "mae ↓" in shown  # the interval is one column, the better direction is said
    narrow = CliRunner().invoke(app, ["compare", str(demo.score_dir), str(other)], env={"COLUMNS": "80"}).stdout
    rows = [line for line in narrow.split("Paired tests")[1].splitlines() if line.startswith("mae ↓")]
    assert len(rows) == 1 and "0.0000 to 0.0000" in rows[0]  # a row is a line, and told once
    assert narrow.count("no difference beyond the choice of perturbations") == narrow.count("Paired tests")
    result = CliRunner().invoke(app, ["compare", str(demo.score_dir), str(other), "-o", str(tmp_path / "s.html")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "s.html").read_text()
    assert page.count("<svg") == 2  # members beside each other, perturbations of one against the other
    assert "var(--prediction" in page and "prefers-color-scheme: dark" in page
    assert "<img" not in page


def test_damage_anywhere_in_a_score_is_one_sentence(demo: DemoResult, tmp_path: Path):
    """Whatever is read: a damaged directory is refused, or compared where the damage lies in what is not read."""
    chance, refused, directory = random.Random(3), 0, tmp_path / "s.score"
    names = sorted(path.name for path in demo.score_dir.iterdir() if path.suffix in (".parquet", ".csv", ".json"))
    shutil.copytree(demo.score_dir, directory)
    for number in range(80):
        place = directory / names[number % len(names)]
        whole = place.read_bytes()
        content = bytearray(whole)
        for _ in range(chance.choice([1, 1, 5, 40])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        place.write_bytes(content if number % 5 else content[: chance.randrange(len(content))])
        try:
            comparison = compare([demo.score_dir, directory])
            if number % 15 == 0:
                write_comparison(comparison, tmp_path / "page.html")
        except (DataError, ConfigError) as error:
            refused += 1
            assert directory.name in str(error)
        place.write_bytes(whole)
    assert 15 < refused < 80
    for odd in ("[1]", "null", '"a"', "[" * 100_000, '{"format": 1, "record": 3}'):
        (directory / "score.json").write_text(odd)
        with pytest.raises(DataError, match="damaged"):
            compare([demo.score_dir, directory])


def test_what_cannot_be_compared(demo: DemoResult, tmp_path: Path):
    run = demo.directory / "run"
    with pytest.raises(ConfigError, match="at least two"):
        compare([run])
    with pytest.raises(ConfigError, match="given twice"):
        compare([run, run])
    with pytest.raises(ConfigError, match=r"no such run or score directory: .*absent$"):
        compare([demo.score_dir, tmp_path / "absent"])
    with pytest.raises(ConfigError, match="not both"):
        compare([run, demo.score_dir])
    with pytest.raises(ConfigError, match="no such run"):
        compare([run, tmp_path / "no"])
    result = CliRunner().invoke(app, ["compare", str(run), str(demo.score_dir)])
    assert result.exit_code == 2
