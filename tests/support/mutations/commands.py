"""Valid inputs of every command, and the lines that use them; what the tests of mutations start from."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

from steval.checkpoints.store import save_checkpoint
from steval.data.cells.scale import lognorm
from steval.data.example import example
from tests.support.golden_models import GOLDEN
from tests.support.mutations.forking import CommandServer, Started
from tests.support.predictor_models import NUM_GENES, lognorm_cells, tiny_config, write_checkpoint

KEY_LINE = "first sha256:" + "0123456789abcdef" * 4
TINY = (
    "--set", "phases.0.steps=2", "--set", "sets.size=8", "--set", "sets.per_batch=2", "--set", "checks.validate_every=1",
    "--set", "network.hidden_dim=16", "--set", "network.num_layers=1", "--set", "loggers=[csv]",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A command line that ends with exit code 0 as it stands; words with `<` name inputs, with `>` outputs."""

    words: tuple[str, ...]
    weight: float = 1
    """How often it is drawn: less where it takes long."""
    code: int = 0
    """How it ends as it stands: 2 for a service that finds its port taken (it does not go on to serve)."""

    @property
    def command(self) -> str:
        """Its first word."""
        return self.words[0]

    @property
    def inputs(self) -> list[str]:
        """Names of files and directories that it reads."""
        return [word[1:] for word in self.words if word.startswith("<")]

    @property
    def outputs(self) -> list[str]:
        """Names of those that it makes."""
        return [word[1:] for word in self.words if word.startswith(">")]


def _line(text: str, weight: float = 1, *more: str, code: int = 0) -> Line:
    return Line((*text.split(), *more), weight, code)


LINES = (
    _line("prepare <counts.h5ad -o >out.h5ad", 2),
    _line("prepare <counts.h5ad -o >out.h5ad --genes <genes.txt --min-counts 10 --target-sum 1000"),
    _line("init <cells.h5ad -o >new.yaml", 2),
    _line("predict <m.safetensors -o >out.h5ad -n 8", 2),
    _line("predict <m.safetensors -o >out.h5ad --request <request.csv --controls <cells.h5ad"),
    _line("predict <m.safetensors -o >out.h5ad --request <cells.h5ad --max-cells 8", 2),
    _line("predict <f.safetensors -o >out.h5ad -p STAT1,NEW --features <features.npz -n 5 --scale counts"),
    _line("predict <run -o >out.h5ad -p STAT1 --output mean"),
    _line("score <preds.h5ad --real <cells.h5ad -o >scored --metrics-only", 2),
    _line("score <m.safetensors <preds.h5ad --real <cells.h5ad --train <train.h5ad -o >scored --metrics mae,pearson_delta"),
    _line("score <preds.h5ad --real <cells.h5ad -o >scored --profile minimal --by cell_type --bootstrap 20"),
    _line("score <m.safetensors >made.h5ad --predict --real <cells.h5ad -o >scored --metrics-only"),
    _line("pack <preds.h5ad -o >out.vcc", 2),
    _line("pack <preds.h5ad -o >out.vcc --genes <genes.txt --with-cell-type"),
    _line("inspect <m.safetensors --verify", 2),
    _line("inspect <arc"),
    _line("inspect <run"),
    _line("convert <arc -o >out.safetensors"),
    _line(
        "convert <arc/checkpoints/final.ckpt -o >out.safetensors --genes <arc-genes.txt "
        "--perturbation-map <arc/pert_onehot_map.pt"
    ),
    _line("merge <run/checkpoints/best-val.safetensors <adapter.safetensors -o >out.safetensors"),
    _line("metrics", 0.2),
    _line("metrics --json", 0.2),
    _line("calibrate <m.safetensors --real <cells.h5ad -o >out.safetensors"),
    _line("doctor <config.yaml"),
    _line("doctor <run"),
    _line("doctor <run/metrics.csv"),
    _line("doctor <arc/config.yaml"),
    _line("compare <s1 <s2"),
    _line("compare <run <run2 -o >out.png", 0.5),
    _line("compare <s1 <s2 -o >out.html", 0.5),
    _line("finetune <config.yaml --run >made-run", 1),
    _line("finetune <config.yaml --dry-run", 2),
    _line("finetune <config.yaml --print-config"),
    _line(
        "finetune quick-cpu --run >made-run --init-from <m.safetensors --dry-run", 1,
        "--set", "network={}", *TINY[:8], "--set", "data.files=[cells.h5ad]",
    ),
    _line("finetune quick-cpu --dry-run", 1, *TINY, "--set", "data.files=[cells.h5ad]"),
    _line("finetune --from-arc-config <arc/config.yaml --print-config"),
    _line("batch <night.yaml --dry-run -o >night", 2),
    _line("sweep <rates.yaml --dry-run", 1),
    _line("batch <night.yaml -o >night", 0.1),
    _line("demo -o >demo", 0.05, "--set", "phases.0.steps=1", "--set", "phases.1.steps=1", "--set", "loggers=[csv]"),
    _line("serve <m.safetensors --controls <cells.h5ad --api-key-file <keys.txt --port TAKEN", 1, code=2),
    _line("serve --new-key second --api-key-file >new-keys.txt"),
    _line("predict -o >out.h5ad --url http://127.0.0.1:9 -p STAT1", 1, code=2),
    _line("load http://127.0.0.1:9 -p STAT1 -o >out.svg", 0.5, code=2),
)  # fmt: skip
"""Every command of `steval --help`, by each kind of input that it takes."""


def write_valid_inputs(place: Path, server: CommandServer, environment: dict[str, str]) -> None:
    """Everything that `LINES` reads, in the directory `place`."""
    cells = lognorm_cells()[::4].copy()
    cells.obs["cell_type"] = "H1"
    cells.write_h5ad(place / "cells.h5ad")
    cells[::2].copy().write_h5ad(place / "train.h5ad")
    counts = example()[::4, :NUM_GENES].copy()
    counts.obs["cell_type"] = "H1"
    counts.write_h5ad(place / "counts.h5ad")
    preds = cells.copy()
    preds.X = lognorm(counts.X.tocsr()[np.random.default_rng(0).permutation(counts.n_obs)], 10_000.0)
    preds.write_h5ad(place / "preds.h5ad")
    known = write_checkpoint(place / "m.safetensors", tiny_config(), cells)
    described = torch.randn(known.features.shape, generator=torch.Generator().manual_seed(0))
    save_checkpoint(
        place / "f.safetensors",
        manifest=known.manifest,
        weights=known.weights,
        features=described,
        controls=known.controls,
    )
    np.savez(place / "features.npz", NEW=np.ones(6, dtype=np.float32))
    shutil.copytree(GOLDEN / "arc_run", place / "arc")
    texts = {
        "genes.txt": "\n".join(cells.var_names),
        "arc-genes.txt": "\n".join(f"g{number}" for number in range(24)),
        "request.csv": "perturbation,num_cells\nSTAT1,6\nSRC,3\n",
        "keys.txt": KEY_LINE + "\n",
        "rates.yaml": yaml.safe_dump({"config": "config.yaml", "space": {"seed": [1, 2]}, "trials": 2}, sort_keys=False),
        "night.yaml": yaml.safe_dump(
            {
                "checkpoints": [{"path": "m.safetensors", "name": "first"}],
                "data": [{"real": "cells.h5ad", "columns": {"batch": "batch"}}],
                "requests": [{"name": "two", "perturbations": ["STAT1", "SRC"], "cells": 4, "seed": 1}],
                "score": {"profile": "minimal", "bootstrap": 0, "integrity": "basic"}, "chunk": 2, "run": {"workers": 1},
            }
        ),
        "config.yaml": yaml.safe_dump(
            {
                "data": {
                    "files": ["cells.h5ad"], "split": {"by": "cells", "val": 0.2, "test": 0.2},
                    "columns": {"perturbation": "target_gene"},
                },
                "network": {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "head": "plain"},
                "loss": {"kind": "energy"},
                "phases": [
                    {"name": "all", "trains": "all", "steps": 2, "rates": {"encoders": 1e-3, "outputs": 1e-3, "backbone": 1e-3}}
                ],
                "optimiser": {"weight_decay": 0.001, "clip": 1.0},
                "sets": {"size": 8, "per_batch": 2}, "checks": {"validate_every": 1, "log_every": 1}, "loggers": ["csv"],
            },
            sort_keys=False,
        ),
    }  # fmt: skip
    for name, text in texts.items():
        (place / name).write_text(text, "utf-8")
    adapters = {"rank": 2, "alpha": 6, "dropout": 0.0, "targets": ["attention", "mlp"]}
    phases = [{"name": "lora", "trains": [], "lora": adapters, "steps": 2, "rates": {"adapters": 1e-2}}]
    (place / "adapters.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load(texts["config.yaml"]), "phases": phases}, sort_keys=False), "utf-8"
    )
    best = "run/checkpoints/best-val.safetensors"
    for words in (
        ("score", "preds.h5ad", "--real", "cells.h5ad", "-o", "s1", "--metrics-only"),
        ("score", "cells.h5ad", "--real", "cells.h5ad", "-o", "s2", "--metrics-only"),
        ("finetune", "config.yaml", "--run", "run"),
        ("finetune", "config.yaml", "--run", "run2", "--set", "loss.kind=mse"),
        ("finetune", "adapters.yaml", "--run", "adapted", "--init-from", best),
    ):
        ended = server.run(Started(words, str(place), environment))
        assert ended.code == 0, (words, ended)
    shutil.move(place / "adapted" / "checkpoints" / "best-val.adapter.safetensors", place / "adapter.safetensors")
    shutil.rmtree(place / "adapted")


def draw_line(rng: random.Random) -> Line:
    """One of `LINES`, by its weight."""
    return rng.choices(LINES, [line.weight for line in LINES])[0]
