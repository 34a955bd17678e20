"""Every `sh` and `python` block of docs/service.md runs, in order.

`curl` asks the tests' service; `steval serve` runs up to where it hands over to BentoML."""

import json
import os
import shlex
import shutil
import subprocess
import time

import anndata as ad
import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from support.adapters import write_adapter_to
from support.documented import ROOT, blocks, commands_to_run
from support.service_models import free_port, write_checkpoint

PAGE = ROOT / "docs" / "service.md"
SERVICE = "http://127.0.0.1:3000"


class Handed(Exception):
    """`steval serve` has checked everything and hands over to BentoML."""


@pytest.fixture
def directory(tiny_checkpoint, service_cells, models_dir, tmp_path, monkeypatch):
    """The files that the page names; the service in this process finds the model `tahoe/v2` and the adapter `thp1` too."""
    for name in (
        "best.safetensors",
        "best-val.safetensors",
        "base.safetensors",
        "steval-demo/run/checkpoints/best-val.safetensors",
    ):
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_checkpoint, place)
    (tmp_path / "models").mkdir()
    for name in ("preds.h5ad", "real.h5ad"):
        service_cells[::3].copy().write_h5ad(tmp_path / name)
    write_checkpoint(models_dir / "tahoe" / "v2.safetensors", service_cells, seed=2)
    for number, name in enumerate(("thp1", "k562")):
        write_adapter_to(tiny_checkpoint, tmp_path / f"{name}.adapter.safetensors", seed=number)
    found = models_dir / "thp1.adapter.safetensors"
    shutil.copy(tmp_path / found.name, found)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    shutil.rmtree(models_dir / "tahoe")
    found.unlink()


def ask(words: list[str], url: str, last_job: str) -> str:
    """What `curl` answers; `ID` is the job submitted before."""
    line = [word.replace(SERVICE, url).replace("/ID", f"/{last_job}") for word in words]
    done = subprocess.run([*line, "--fail-with-body", "--max-time", "60"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(line)}: {done.stdout}{done.stderr}"
    return done.stdout


def wait_for(http, job: str) -> None:
    for _ in range(600):
        if http.get(job).json()["state"] not in ("queued", "running"):
            return
        time.sleep(0.1)
    raise AssertionError(f"{job} does not end")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_command_of_the_page_runs(directory, service_url, http, monkeypatch):
    def hand_over(program, command, environment):
        raise Handed(command[3])

    monkeypatch.setattr(os, "execve", hand_over)
    job = ""
    for program, *arguments in commands_to_run(PAGE):
        if program == "curl":
            if arguments[-1].endswith("h5ad"):
                wait_for(http, f"/predictions/{job}")
            answer = ask([program, *arguments], service_url, job)
            job = json.loads(answer).get("id", job) if answer else job
            continue
        assert program == "steval"
        if "--url" in arguments or arguments[0] == "load":
            here = {
                "https://st.example/": service_url,
                "1,8,32": "1,2",
                "30": "1",
            }  # of `load`: shorter than the page's
            words = [here.get(word, word).replace(SERVICE, service_url) for word in arguments]
            asked = CliRunner().invoke(app, words)
            assert asked.exit_code == 0, f"{arguments}: {asked.output}"
            continue
        keys = "--new-key" in arguments
        bare = {name: None for name in os.environ if name.startswith("STEVAL_")}  # those of the service in this process
        result = CliRunner().invoke(app, [*arguments, *([] if keys else ["--port", str(free_port())])], env=bare)
        assert result.exit_code == (0 if keys else 1), f"{arguments}: {result.output}"
        assert keys or "Handed: serve" in result.output
    assert ad.read_h5ad(directory / "screen.h5ad").obs["predicted"].sum() == 5 * 400
    assert http.delete(f"/score/{job}").is_success


def test_the_python_of_the_page_runs(directory, service_url, capsys):
    (source,) = blocks(PAGE, "python")
    exec(source.replace(SERVICE, service_url).replace('profile="vcc"', 'profile="minimal", metrics_only=True'), {})
    assert "None" in capsys.readouterr().out
    assert ad.read_h5ad(directory / "screen.h5ad").n_obs >= 5 * 400
