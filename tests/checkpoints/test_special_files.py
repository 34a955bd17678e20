"""A pipe, a device or a directory in a checkpoint's place is refused at once: opening a pipe waits for ever."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steval.checkpoints.arc import read_arc
from steval.checkpoints.manifest import read_header
from steval.checkpoints.safe_load import load_foreign
from steval.cli.app import app
from steval.errors import CheckpointError

COMMANDS = {
    "inspect": ("inspect", "{}"),
    "predict": ("predict", "{}", "-o", "out.h5ad"),
    "score": ("score", "{}", "cells.h5ad", "-o", "out"),
    "serve": ("serve", "{}"),
    "convert": ("convert", "{}", "-o", "out.safetensors"),
    "finetune": ("finetune", "quick-cpu", "--init-from", "{}", "--set", "data.files=[cells.h5ad]", "--run", "out"),
}


@pytest.fixture(autouse=True)
def no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise AssertionError("it hangs")

    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def special(kind: str, name: str) -> str:
    if kind == "device":
        return "/dev/zero"
    os.mkfifo(name) if kind == "pipe" else Path(name).mkdir()
    return name


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_it(command: str, kind: str, name: str) -> None:
    place = special(kind, name)
    Path("cells.h5ad").touch()
    result = CliRunner().invoke(app, [part.format(place) for part in COMMANDS[command]])
    assert (result.exit_code, result.stdout) == (3, "")
    assert place in result.stderr
    assert not any(Path(out).exists() for out in ("out", "out.h5ad", "out.safetensors"))


@pytest.mark.parametrize("read", [read_header, read_arc, load_foreign])
def test_every_reader_refuses_a_pipe(read) -> None:
    with pytest.raises(CheckpointError, match="is a pipe or device, not a checkpoint file"):
        read(Path(special("pipe", "model.safetensors")))
