"""A pipe, a directory or an endless device in the place of any input is refused at once: nothing waits or fills the memory."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from steval.checkpoints.store import save_checkpoint
from steval.cli.app import app
from tests.support.predictor_models import lognorm_cells, tiny_config, write_checkpoint

FINETUNE = ("finetune", "quick-cpu", "--set", "data.files=[cells.h5ad]")
LINES = {
    "yaml of finetune": ("finetune", "{}.yaml", "--dry-run"),
    "yaml of batch": ("batch", "{}.yaml", "--dry-run"),
    "yaml of doctor": ("doctor", "{}.yaml"),
    "arc-state's yaml": ("finetune", "--from-arc-config", "{}.yaml", "--print-config"),
    "split file": (*FINETUNE, "--set", "data.split={{by: toml, path: {}.toml}}", "--dry-run"),
    "genes of prepare": ("prepare", "cells.h5ad", "-o", "out.h5ad", "--genes", "{}.txt"),
    "genes of pack": ("pack", "cells.h5ad", "-o", "out.vcc", "--genes", "{}.txt"),
    "genes of finetune": (*FINETUNE, "--set", "data.gene_list={}.txt", "--dry-run"),
    "keys": ("serve", "m.safetensors", "--api-key-file", "{}.keys"),
    "keys to add to": ("serve", "--new-key", "one", "--api-key-file", "{}.keys"),
    "request": ("predict", "m.safetensors", "-o", "out.h5ad", "--request", "{}.csv"),
    "cells of a request": ("predict", "m.safetensors", "-o", "out.h5ad", "--request", "{}.h5ad"),
    "features": ("predict", "f.safetensors", "-o", "out.h5ad", "--features", "{}.npz", "-p", "NEW"),
    "curves": ("doctor", "{}.csv"),
    "cells": ("init", "{}.h5ad", "-o", "out.yaml"),
    "a run": ("doctor", "{}"),
    "a score": ("compare", "{}", "{}"),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    def give_up(*_: object) -> None:
        raise AssertionError("it hangs")

    monkeypatch.chdir(tmp_path)
    cells = lognorm_cells()[::12].copy()
    cells.obs["cell_type"] = "H1"
    cells.write_h5ad("cells.h5ad")
    known = write_checkpoint(tmp_path / "m.safetensors", tiny_config(), cells)
    save_checkpoint(
        tmp_path / "f.safetensors", manifest=known.manifest, weights=known.weights,
        features=torch.randn(known.features.shape, generator=torch.Generator().manual_seed(0)), controls=known.controls,
    )  # fmt: skip
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("line", LINES)
def test_what_is_no_file_is_refused_at_once(place: Path, line: str) -> None:
    for kind in ("pipe", "device", "folder", "loop"):
        arguments = [word.format(kind) for word in LINES[line]]
        told = next(word for word, pattern in zip(arguments, LINES[line], strict=True) if word != pattern)
        name = Path(re.findall(r"[\w.]+", told)[-1])
        if kind == "pipe":
            os.mkfifo(name)
        elif kind == "folder":
            name.mkdir()
        else:
            name.symlink_to("/dev/zero" if kind == "device" else name.name)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in (2, 3, 4), (kind, result.output)
        assert "internal error" not in result.stderr
        assert result.stderr.lower().count("error: ") == 1
        assert name.name in result.stderr
    assert not list(place.glob("out*"))
