"""Where output goes: never over an input, through links, never onto what is no plain file; for every command that writes."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from tests.support.predictor_models import NUM_GENES, lognorm_cells, tiny_config, write_checkpoint

RUNNER = CliRunner()


def run(*arguments: object):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    cells = lognorm_cells()[::3].copy()
    cells.obs["cell_type"] = "H1"
    cells.write_h5ad(tmp_path / "cells.h5ad")
    write_checkpoint(tmp_path / "m.safetensors", tiny_config(), cells)
    (tmp_path / "genes.txt").write_text("\n".join(cells.var_names))
    (tmp_path / "request.csv").write_text("perturbation,num_cells\nSTAT1,2\n")
    np.savez(tmp_path / "features.npz", NEW=np.ones(6))
    return tmp_path


WRITERS = {
    "prepare": ("prepare", "cells.h5ad", "-o"),
    "pack": ("pack", "cells.h5ad", "--genes", "genes.txt", "-o"),
    "predict": ("predict", "m.safetensors", "--controls", "cells.h5ad", "--request", "request.csv", "-o"),
}
SUFFIX = {"prepare": ".h5ad", "pack": ".vcc", "predict": ".h5ad"}


def digests(place: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(place.iterdir()) if path.is_file()
    }


@pytest.mark.parametrize("way", ["path", "hard link", "link", "link in a linked directory"])
@pytest.mark.parametrize("command", WRITERS)
def test_an_output_is_no_input(place: Path, command: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    source = Path("cells" + SUFFIX[command])
    if not source.exists():
        Path("cells.h5ad").rename(source)
    arguments = [str(source) if part == "cells.h5ad" else part for part in WRITERS[command]]
    out = source
    if way == "hard link":
        out = Path("other" + SUFFIX[command])
        os.link(source, out)
    elif way.startswith("link"):
        out = Path("other" + SUFFIX[command])
        out.symlink_to(source)
        if way.endswith("directory"):
            Path("here").symlink_to(".")
            out = Path("here") / out
    before = digests(place)
    result = run(*arguments, out)
    assert result.exit_code == 2, result.output
    assert "would take its place" in result.stderr
    assert digests(place) == before


@pytest.mark.parametrize("command", WRITERS)
def test_links_stay_and_lead_to_the_output(place: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    Path("deep").mkdir()
    for name, target in (("new", "deep/new"), ("old", "deep/old")):
        Path(name + SUFFIX[command]).symlink_to(target + SUFFIX[command])
    Path("deep/old" + SUFFIX[command]).write_text("old")
    for name in ("new", "old"):
        result = run(*WRITERS[command], name + SUFFIX[command])
        assert result.exit_code == 0, result.output
        assert Path(name + SUFFIX[command]).is_symlink()
        assert Path(f"deep/{name}{SUFFIX[command]}").stat().st_size > 1000
    assert {path.name for path in Path("deep").iterdir()} == {"new" + SUFFIX[command], "old" + SUFFIX[command]}


@pytest.mark.parametrize("kind", ["pipe", "directory", "loop", "device"])
@pytest.mark.parametrize("command", WRITERS)
def test_what_is_no_file_is_not_written(place: Path, command: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    out = Path("o" + SUFFIX[command])
    if kind == "pipe":
        os.mkfifo(out)
    elif kind == "directory":
        out.mkdir()
    else:
        out.symlink_to(out if kind == "loop" else "/dev/null")
    result = run(*WRITERS[command], out)
    assert result.exit_code == 4, result.output
    assert result.stderr.count("error: ") == 1
    assert "cannot write" in result.stderr
    assert {"pipe": out.is_fifo(), "directory": out.is_dir()}.get(kind, out.is_symlink())
    assert not list(place.glob(".*.part"))


@pytest.mark.parametrize(
    ("command", "name"), [("prepare", "o.zarr"), ("predict", "o.txt"), ("predict", "o"), ("pack", "o.h5ad")]
)
def test_a_name_that_promises_another_format_is_refused(place: Path, command: str, name: str, monkeypatch) -> None:
    monkeypatch.chdir(place)
    result = run(*WRITERS[command], name)
    assert result.exit_code == 2, result.output
    assert f"what is written is {SUFFIX[command]}" in result.stderr
    assert not Path(name).exists()


def test_a_score_takes_the_place_of_no_input(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    score = ("score", "cells.h5ad", "--real", "cells.h5ad", "--metrics-only", "-o")
    Path("held").mkdir()
    Path("scores").symlink_to("held")
    for _ in range(2):
        result = run(*score, "scores")
        assert result.exit_code == 0, result.output
        assert Path("scores").is_symlink()
        assert (Path("held") / "score.json").is_file()
    Path("cells.h5ad").rename("held/cells.h5ad")
    before = digests(place / "held")
    result = run("score", "held/cells.h5ad", "--real", "held/cells.h5ad", "--metrics-only", "-o", "scores")
    assert result.exit_code == 2
    assert "lies in scores" in result.stderr
    assert digests(place / "held") == before
    os.mkfifo("pipe")
    assert run("score", "held/cells.h5ad", "--real", "held/cells.h5ad", "--metrics-only", "-o", "pipe").exit_code == 2


def test_a_model_is_not_converted_over_itself(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for out in ("m.safetensors", "genes.txt", "other.ckpt"):
        result = run("convert", "m.safetensors", "--genes", "genes.txt", "-o", out)
        assert result.exit_code == 2, result.output
    assert len((place / "genes.txt").read_text().split()) == NUM_GENES


def test_a_run_does_not_clear_what_it_starts_from(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    Path("r/checkpoints").mkdir(parents=True)
    Path("m.safetensors").rename("r/checkpoints/best-val.safetensors")
    result = run(
        "finetune", "quick-cpu", "--set", "data.files=[cells.h5ad]", "--init-from", "r/checkpoints/best-val.safetensors",
        "--run", "r", "--overwrite",
    )  # fmt: skip
    assert result.exit_code == 2, result.output
    assert "lies in r" in result.stderr
    assert Path("r/checkpoints/best-val.safetensors").is_file()
    Path("r/events").mkdir()
    os.link("cells.h5ad", "r/events/cells.h5ad")
    for files, start in (("r/events/cells.h5ad", ()), ("r/events/*.h5ad", ()), ("cells.h5ad", ("--init-from", "r"))):
        result = run("finetune", "quick-cpu", "--set", f"data.files=['{files}']", *start, "--run", "r", "--overwrite")
        assert result.exit_code == 2, result.output
        assert "lies in r" in result.stderr
    assert Path("r/events/cells.h5ad").is_file()


def test_a_run_does_not_take_the_place_of_its_configuration(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    Path("r").mkdir()
    text = "# mine\nrecipe: quick-cpu\ndata: {files: [cells.h5ad]}\n"
    Path("r/config.yaml").write_text(text)
    for more in ((), ("--overwrite",)):
        result = run("finetune", "r/config.yaml", "--run", "r", *more)
        assert result.exit_code == 2 and "would take its place" in result.stderr
    assert Path("r/config.yaml").read_text() == text and len(list(Path("r").iterdir())) == 1


def test_a_checkpoint_made_of_others_takes_the_place_of_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run directory stands for its best checkpoint; a configuration for data does not take the place of the data."""
    monkeypatch.chdir(place)
    Path("r/checkpoints").mkdir(parents=True)
    best = Path("r/checkpoints/best-val.safetensors")
    os.link("m.safetensors", best)
    Path("m.adapter.safetensors").write_bytes(b"an adapter")
    before = digests(place)
    for arguments in (
        ("merge", "m.safetensors", "m.adapter.safetensors", "-o", "m.safetensors"),
        ("merge", "r", "m.adapter.safetensors", "-o", best),
        ("merge", "r", "m.adapter.safetensors", "-o", "m.adapter.safetensors"),
        ("calibrate", "m.safetensors", "--real", "cells.h5ad", "-o", "cells.h5ad"),
        ("calibrate", "r", "--real", "cells.h5ad", "-o", best),
        ("calibrate", "r", "--real", "cells.h5ad", "-o", "new.h5ad"),
        ("convert", "r", "--adapter", "m.adapter.safetensors", "-o", "m.adapter.safetensors"),
        ("init", "cells.h5ad", "-o", "cells.h5ad", "--overwrite"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert result.stderr.count("error: ") == 1
    assert digests(place) == before


def test_a_comparison_takes_the_place_of_no_report(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By any name; a report that was not compared may be replaced, and so may an earlier comparison."""
    monkeypatch.chdir(place)
    for name in ("s1", "s2", "other"):
        assert run("score", "cells.h5ad", "--real", "cells.h5ad", "--metrics-only", "-o", name).exit_code == 0
    Path("link.html").symlink_to("s2/report.html")
    Path("here").symlink_to(".")
    os.link("s1/report.html", "hard.html")
    before = [digests(place / name) for name in ("s1", "s2")]
    for out in ("s1/report.html", "./s2/../s1/report.html", "link.html", "hard.html", "here/s2/report.html"):
        result = run("compare", "s1", "s2", "-o", out)
        assert result.exit_code == 2, result.output
        assert "would take its place" in result.stderr
    for out, code in (("s1/score.json", 2), ("s1", 2), ("s1/results.parquet", 2), ("s1/breakdown.csv", 2)):
        assert run("compare", "s1", "s2", "-o", out).exit_code == code
    assert [digests(place / name) for name in ("s1", "s2")] == before
    for _ in range(2):
        assert run("compare", "s1", "s2", "-o", "other/report.html").exit_code == 0
    Path("made.html").symlink_to("deep.html")
    assert run("compare", "s1", "s2", "-o", "made.html").exit_code == 0
    assert Path("made.html").is_symlink() and Path("deep.html").is_file()
    os.mkfifo("pipe.html")
    assert run("compare", "s1", "s2", "-o", "pipe.html").exit_code == 4
