"""Every `sh` block of docs/coming-from-arc-state.md runs, in order; its tables name the flags that arc-state has."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from steval.data.example import example
from support.documented import ROOT, commands_to_run

PAGE = ROOT / "docs" / "coming-from-arc-state.md"
INFER = """
--checkpoint --adata --embed-key --pert-col --output --model-dir --celltype-col --celltypes --batch-col --control-pert --seed
--max-set-len --quiet --tsv --all-perts --virtual-cells-per-pert --min-cells --max-cells
"""
PREDICT = """
--output-dir --toml --checkpoint --test-time-finetune --profile --predict-only --skip-adatas --shared-only --eval-train-data
--pseudobulk
"""
"""Options that the help of arc-state 0.11.1 lists."""
COMMANDS = "train predict infer preprocess_train --adata --output --num_hvgs fit transform query preprocess eval"
"""Of `state tx` and `state emb`, with the options of those that have no section of their own."""
TRAIN = """
--help name output_dir use_wandb overwrite return_adatas pred_adata_path true_adata_path hydra init_from model data training wandb
lora max_steps lr batch_size gradient_accumulation_steps gradient_clip_val val_freq train_seed devices strategy use_mfu mfu_kwargs
cumulative_flops_use_backward wandb_track entity project local_wandb_dir tags
"""
"""Keys of its `config.yaml`: all of the top level and of `wandb`, and those of `training` that the list of keys without effect
(tests/cli/test_finetuning_page.py) does not have."""


def section(title: str) -> str:
    return PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    ("title", "options"),
    [
        ("Commands", COMMANDS),
        ("`state tx train`", TRAIN),
        ("`state tx infer`", INFER),
        ("`state tx predict`", PREDICT),
    ],
)
def test_every_flag_of_the_peer_has_a_line(title: str, options: str) -> None:
    first = " ".join(line.split("|")[1] for line in section(title).splitlines() if line.startswith("|"))
    assert [option for option in options.split() if not re.search(rf"(?<![\w-]){option}\b(?!-)", first)] == []


def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "tests" / "data" / "golden" / "arc_run", tmp_path / "arc_run")
    example().write_h5ad(tmp_path / "counts.h5ad")
    monkeypatch.chdir(tmp_path)
    lines = commands_to_run(PAGE)
    assert len(lines) >= 10
    for program, *arguments in lines:
        assert program == "steval"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
    assert (tmp_path / "back" / "checkpoints" / "final.ckpt").is_file()
