"""Fine-tuning beside arc-state's `state tx train`: wall time, steps a second, memory and disk, same network and data, in one run.

    python benchmarks/finetune.py large DATA.h5ad --peer STATE [--steps 24] [--repeats 3]
    python benchmarks/finetune.py small DATA.h5ad --peer STATE [--steps 300] [--repeats 3]

DATA holds lognorm expression with `target_gene`, `cell_type` and `batch` columns (one cell type is enough); STATE is the
`state` command of an environment with arc-state. `large`: arc-state's own `state_sm` network, sets of 64, 4 sets a step, a
validation and a checkpoint in the middle and at the end, in float32 and in bf16-mixed; arc-state's resolved configuration
is translated by `--from-arc-config`, so that both train the same network. `small`: hidden size 128, 2 layers, 256 cells a
step. Steps a second are those of the difference between a run of `--steps` and one of a third of them, so that start and
end cancel (one validation and checkpoint are in it); the wall time is that of whole processes, `first step` the
time until the first optimiser step is done, `writing` the seconds of checkpoints and resumable state. Runs take turns; medians are
printed.
`--precisions 32` leaves out bf16-mixed, which a CPU without bfloat16 instructions runs several times slower than float32.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL_NETWORK = [
    "model.kwargs.hidden_dim=128", "model.kwargs.transformer_backbone_kwargs.hidden_size=128",
    "model.kwargs.transformer_backbone_kwargs.intermediate_size=512",
    "model.kwargs.transformer_backbone_kwargs.num_hidden_layers=2",
    "model.kwargs.transformer_backbone_kwargs.num_attention_heads=4",
    "model.kwargs.transformer_backbone_kwargs.num_key_value_heads=4", "model.kwargs.transformer_backbone_kwargs.head_dim=32",
]  # fmt: skip
WATCH = """
import json, os, time
from torch.optim.optimizer import register_optimizer_step_post_hook
from lightning.pytorch import Trainer

seen = {"first step s": None, "writing s": 0.0}

def keep():
    with open(os.environ["WATCH"], "w") as file:
        json.dump(seen, file)

def stepped(*_):
    if seen["first step s"] is None:
        seen["first step s"] = time.time() - float(os.environ["WATCH_STARTED"])
        keep()

def save(self, *arguments, **options):
    started = time.time()
    saved(self, *arguments, **options)
    seen["writing s"] += time.time() - started
    keep()

register_optimizer_step_post_hook(stepped)
saved, Trainer.save_checkpoint = Trainer.save_checkpoint, save
"""
"""Python imports this (as `sitecustomize`) before either program: it notes the first step, and Lightning's checkpoints."""
NAMES = {"32": "steval, float32", "bf16-mixed": "steval, bf16-mixed"}


def main() -> None:
    options = _options()
    results: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        work = Path(directory)
        toml = _split_file(options.data, work)
        _peer(options, work, toml, steps=1)
        arc_config = work / "peer" / "r" / "config.yaml"
        shutil.copy(arc_config, work / "arc.yaml")
        for repeat in range(options.repeats):
            for steps in (options.steps, max(options.steps // 3, 1)):
                place = "long" if steps == options.steps else "short"
                results.setdefault(f"arc-state|{place}", []).append(_peer(options, work, toml, steps))
                for precision in options.precisions:
                    measured = _steval(options, work, steps, precision)
                    results.setdefault(f"{NAMES[precision]}|{place}", []).append(measured)
            print(f"repeat {repeat + 1} of {options.repeats} done", file=sys.stderr)
    _report(options, results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=("large", "small"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer", required=True, help="the `state` command of an environment with arc-state")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--work", type=Path, help="directory for scratch files (default: the system's)")
    return parser.parse_args()


def _split_file(data: Path, work: Path) -> Path:
    """One validation and one test perturbation in the last cell type, the rest trains; the data as cell-load can read it."""
    from steval.data.cells.cellfile import read_anndata, write_anndata
    from steval.data.columns import Columns

    (work / "data").mkdir()
    columns, cells = Columns(), read_anndata(data)
    cells.var = cells.var.iloc[:, :0].assign(gene_name=list(cells.var_names)).rename_axis(None)
    write_anndata(cells, work / "data" / "cells.h5ad", compression=None)
    context = sorted(cells.obs[columns.cell_type].astype(str).unique())[-1]
    names = sorted(set(cells.obs[columns.perturbation].astype(str)) - {columns.control})
    path = work / "split.toml"
    path.write_text(
        f'[datasets]\nm = "{work / "data"}"\n[training]\nm = "train"\n[zeroshot]\n'
        f'[fewshot."m.{context}"]\nval = ["{names[0]}"]\ntest = ["{names[1]}"]\n'
    )
    return path


def _validate_every(options: argparse.Namespace, steps: int) -> int:
    """In the middle and at the end of a long run; once, at the end, of a short one."""
    return max(steps // 2, 1) if steps == options.steps else steps


def _peer(options: argparse.Namespace, work: Path, toml: Path, steps: int) -> dict[str, float]:
    out = work / "peer"
    shutil.rmtree(out, ignore_errors=True)
    columns = ["pert_col=target_gene", "batch_col=batch", "control_pert=non-targeting", "cell_type_key=cell_type"]
    every = _validate_every(options, steps)
    command = [
        options.peer, "tx", "train", f"data.kwargs.toml_config_path={toml}", *(f"data.kwargs.{item}" for item in columns),
        "data.kwargs.num_workers=0", "use_wandb=false", "model=state_sm", "model.kwargs.cell_set_len=64",
        "training.batch_size=4", f"training.max_steps={steps}", f"training.val_freq={every}",
        f"training.ckpt_every_n_steps={every}", f"output_dir={out}", "name=r",
        *(SMALL_NETWORK if options.size == "small" else ()),
    ]  # fmt: skip
    measured = _timed(command, work)
    weights = [path.stat().st_size for path in (out / "r" / "checkpoints").glob("*.ckpt")]
    return measured | {"checkpoint GB": max(weights) / 2**30}


def _steval(options: argparse.Namespace, work: Path, steps: int, precision: str) -> dict[str, float]:
    out = work / "ours"
    every = _validate_every(options, steps)
    command = [
        sys.executable, "-m", "steval", "finetune", "--from-arc-config", str(work / "arc.yaml"), "--device", "cpu",
        "--run", str(out), "--overwrite", "--json", "--set", f"phases.0.steps={steps}", "--set", f"checks.validate_every={every}",
        "--set", f"checks.save_every={every}", "--set", f"compute.precision={precision}", "--set", "data.scale=lognorm",
    ]  # fmt: skip
    measured = _timed(command, work)
    record = json.loads((out / "run.json").read_text())
    weights = (out / "checkpoints" / "best-val.safetensors").stat().st_size
    waiting = record["waiting_seconds"] / record["training_seconds"]
    return measured | {
        "checkpoint GB": weights / 2**30,
        "waiting for data": waiting,
        "writing s": record["writing_seconds"],
    }


def _timed(command: list[str], work: Path) -> dict[str, float]:
    """Wall seconds, peak memory and first step of a process; its output is shown when it fails."""
    watch = work / "watch"
    watch.mkdir(exist_ok=True)
    (watch / "sitecustomize.py").write_text(WATCH)
    (watch / "seen.json").unlink(missing_ok=True)
    environment = {"WANDB_MODE": "disabled", "PYTHONPATH": str(watch), "WATCH": str(watch / "seen.json")}
    environment["WATCH_STARTED"] = str(time.time())
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command[:4])} ... exited {process.returncode}:\n{log.read()[-4000:]}")
    wall = time.perf_counter() - started
    return {"wall s": wall, "peak GB": usage.ru_maxrss / 2**20, **json.loads((watch / "seen.json").read_text())}


def _report(options: argparse.Namespace, results: dict[str, list[dict[str, float]]]) -> None:
    def median(name: str, key: str) -> float:
        return statistics.median(run[key] for run in results[name])

    names = sorted({name.partition("|")[0] for name in results})
    peer_wall = median("arc-state|long", "wall s")
    difference = options.steps - max(options.steps // 3, 1)
    rates = {
        name: difference / max(median(f"{name}|long", "wall s") - median(f"{name}|short", "wall s"), 1e-9)
        for name in names
    }
    print(f"{options.size}, {options.steps} steps of 256 cells, medians of {options.repeats}")
    for name in names:
        walls = [run["wall s"] for run in results[f"{name}|long"]]
        print(
            f"{name:20s} wall {median(f'{name}|long', 'wall s'):7.1f} s ({min(walls):.1f} to {max(walls):.1f}, "
            f"{peer_wall / median(f'{name}|long', 'wall s'):.2f} x)  {rates[name]:7.2f} steps/s "
            f"({rates[name] / rates['arc-state']:.2f} x)  peak {median(f'{name}|long', 'peak GB'):.1f} GB  "
            f"checkpoint {median(f'{name}|long', 'checkpoint GB'):.2f} GB"
            f"  first step {median(f'{name}|long', 'first step s'):.1f} s  writing {median(f'{name}|long', 'writing s'):.1f} s"
            + (
                ""
                if name == "arc-state"
                else f"  waiting for data {100 * median(f'{name}|long', 'waiting for data'):.1f} %"
            )
        )


if __name__ == "__main__":
    main()
