"""LoRA adapters beside other ways to adapt a checkpoint.

    python benchmarks/lora.py adapt SCREEN.h5ad --work DIR [--seeds 3] [--steps 300] [--minutes 4.5]
    python benchmarks/lora.py large --work DIR [--steps 6]

`adapt`: SCREEN holds raw counts with `target_gene` and `replicate` columns (two replicates or more). A small network is
pre-trained on all replicates but the last; each way then adapts it to the last one with the same number of steps, on the same
cells. Printed are medians over seeds: validation loss, score of the held-out cells, what trains, the optimiser's moments, and the
size of the file to keep.

`large`: processor seconds of a step (with one thread those of the clock, on an idle machine) and peak memory, each way in a
process of its own, with the network of arc-state's `state_sm` at 18,080 genes
(137 M parameters; arc-state's file has 159 M with a vocabulary that nothing reads) on generated cells: every weight, adapters of
attention and MLP alone, and these with whole encoders and outputs.

What is done stands in DIR and is not done again: the same command goes on, and with `--minutes` it ends in time for a shared
machine.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata as ad

from steval.data.cells.prepare import PrepareSettings, prepare
from steval.data.synthetic import generate
from steval.trainer.config import FinetuneConfig
from steval.trainer.progress.state import Progress, load_state
from steval.trainer.run import finetune
from steval.workflows.score import ScoreRequest, score_predictions

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
from network import network_settings

HEADS = ["encoders", "outputs"]
LORA = {"rank": 4, "alpha": 8, "targets": ["attention", "mlp"]}
WAYS: dict[str, list[dict[str, Any]]] = {
    "adapters alone": [{"trains": [], "lora": LORA}],
    "adapters and heads": [{"trains": HEADS, "lora": LORA}],
    "frozen backbone": [{"trains": HEADS}],
    "staged": [{"trains": HEADS}, {"trains": "all"}],
    "full": [{"trains": "all"}],
}
LARGE_WAYS = ("full", "adapters alone", "adapters and heads")
KEPT = "results.json"


def config(path: Path, phases: list[dict[str, Any]], steps: int, seed: int, network: dict[str, Any]) -> FinetuneConfig:
    """A run of `steps` in all; rates are alike for every way."""
    rates = {"encoders": 3e-4, "outputs": 3e-4, "backbone": 3e-4, "adapters": 1e-3}
    each = steps // len(phases)
    named = [{"name": f"p{row}", "steps": each, "rates": rates, **phase} for row, phase in enumerate(phases)]
    return FinetuneConfig.parse(
        {
            "data": {"files": [str(path)], "split": {"by": "cells", "val": 0.2, "test": 0.2}},
            "network": network,
            "phases": named,
            "sets": {"size": 32, "per_batch": 8},
            "checks": {
                "validate_every": max(each // 4, 1),
                "save_every": each,
                "calibrate": False,
                "validation_sets": 2,
            },
            "loggers": ["csv"],
            "seed": seed,
        }
    )


class Kept:
    """Results by name in a file; what is there is not measured again."""

    def __init__(self, work: Path, minutes: float):
        work.mkdir(parents=True, exist_ok=True)
        self.path = work / KEPT
        self.found: dict[str, dict[str, float]] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self._end = time.monotonic() + 60 * minutes
        self._longest = 0.0

    def measure(self, name: str, measure: Any) -> None:
        """Measure and keep; the program ends where the time is too short for another like those before."""
        if name in self.found:
            return
        if time.monotonic() + self._longest > self._end:
            raise SystemExit(f"{len(self.found)} results are in {self.path}; the same command goes on")
        started = time.monotonic()
        self.found[name] = measure()
        self._longest = max(self._longest, time.monotonic() - started)
        self.path.write_text(json.dumps(self.found, indent=1))
        print(name, self.found[name], flush=True)

    def table(self, names: list[str]) -> None:
        """Medians of the results whose names begin with each of `names`, with their range where there are several."""
        for name in names:
            found = [values for key, values in self.found.items() if key.partition("|")[0] == name]
            shown = []
            for key in found[0]:
                values = [one[key] for one in found]
                spread = f" ({min(values):.4g} to {max(values):.4g})" if min(values) < max(values) else ""
                shown.append(f"{key} {statistics.median(values):,.4g}{spread}")
            print(f"{name:<20} {'  '.join(shown)}", flush=True)


def adapt(options: argparse.Namespace) -> None:
    """Pre-train once, adapt in each way with each seed."""
    kept, work = Kept(options.work, options.minutes), options.work
    network = {"hidden_dim": 128, "num_layers": 4, "num_heads": 4}
    if not (work / "new.h5ad").exists():
        cells = ad.read_h5ad(options.screen)
        last = sorted(cells.obs["replicate"].unique())[-1]
        for name, part in (("base", cells.obs["replicate"] != last), ("new", cells.obs["replicate"] == last)):
            cells[part].copy().write_h5ad(work / f"{name}-counts.h5ad")
            prepare(work / f"{name}-counts.h5ad", work / f"{name}.h5ad", settings=PrepareSettings(target_sum=200))
    base = work / "base" / "checkpoints" / "best-val.safetensors"

    def pretrain() -> dict[str, float]:
        settings = config(work / "base.h5ad", WAYS["full"], options.steps, 1, network)
        run = finetune(settings, work / "base", device="cpu", overwrite=True)
        return {"val/gene": run.best_record["value"]}

    def adapted(way: str, seed: int) -> dict[str, float]:
        settings = config(work / "new.h5ad", WAYS[way], options.steps, seed, network)
        run_dir = work / f"{way}-{seed}".replace(" ", "-")
        run = finetune(settings, run_dir, init_from=base, device="cpu", overwrite=True)
        request = ScoreRequest(
            preds=run_dir / "preds.h5ad", checkpoint=run.best, predict=True, out=run_dir / "score", device="cpu"
        )
        report, _ = score_predictions(request)
        scores = {row["metric"]: row["value"] for row in report.breakdown.iter_rows(named=True)}
        overall = report.overall.row(0, named=True)["overall"]
        return {"val/gene": run.best_record["value"], "overall": overall, "mae": scores["mae"], **footprint(run_dir)}

    kept.measure("pre-trained", pretrain)
    for seed in range(options.seeds):
        for way in WAYS:
            kept.measure(f"{way}|{seed}", lambda way=way, seed=seed: adapted(way, seed))
    kept.table(list(WAYS))


def footprint(run_dir: Path) -> dict[str, float]:
    """Numbers that train at the end, megabytes of the optimiser's moments and of the file to keep."""
    checkpoints = run_dir / "checkpoints"
    state = load_state(checkpoints / "last.ckpt")
    moments = [entry["exp_avg"].numel() for entry in state["optimiser"]["state"].values()]
    adapter = checkpoints / "best-val.adapter.safetensors"
    kept = adapter if adapter.exists() else checkpoints / "best-val.safetensors"
    total = sum(tensor.numel() for tensor in state["weights"].values())
    return {
        "trainable %": 100 * sum(moments) / total,
        "moments MB": 2 * 4 * sum(moments) / 1e6,
        "file MB": kept.stat().st_size / 1e6,
    }


def large(options: argparse.Namespace) -> None:
    """Each way in a process of its own, after a base was made."""
    kept, work = Kept(options.work, options.minutes), options.work
    cells_path = work / "cells.h5ad"
    if not cells_path.exists():
        cells = generate(
            num_genes=18_080, num_perturbations=4, cells_per_perturbation=200, num_controls=400, affected_genes=(50, 200),
            cell_types=("A",), counts_per_cell=8000.0, seed=1,
        ).cells  # fmt: skip
        cells.write_h5ad(work / "counts.h5ad")
        prepare(work / "counts.h5ad", cells_path, settings=PrepareSettings(target_sum=10_000))
    for way in ("base", *LARGE_WAYS):
        kept.measure(way, lambda way=way: in_process(options, way))
    kept.table(list(LARGE_WAYS))


def in_process(options: argparse.Namespace, way: str) -> dict[str, float]:
    """What `large_run` prints, and the peak memory of its process."""
    command = [
        sys.executable,
        __file__,
        "large",
        "--work",
        str(options.work),
        "--steps",
        str(options.steps),
        "--way",
        way,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} exited {process.returncode}")
    return {**json.loads(said.splitlines()[-1]), "peak GB": usage.ru_maxrss / 2**20}


def large_run(work: Path, way: str, steps: int) -> None:
    """Fine-tune; prints the processor seconds of a step (the median without the first), and what is kept, as JSON."""
    stamps: list[float] = []

    def on_step(progress: Progress) -> None:
        stamps.append(time.process_time())

    base = work / "base" / "checkpoints" / "best-val.safetensors"
    phases, steps = (WAYS["full"], 1) if way == "base" else (WAYS[way], steps)
    run_dir = work / way.replace(" ", "-")
    run = finetune(
        config(work / "cells.h5ad", phases, steps, 0, network_settings(small=False)),
        run_dir,
        init_from=None if way == "base" else base,
        from_nothing=way == "base",
        device="cpu",
        overwrite=True,
        on_step=on_step,
    )
    assert run.finished
    between = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    measured = {} if way == "base" else {"CPU s a step": statistics.median(between[1:]), **footprint(run_dir)}
    (run_dir / "checkpoints" / "last.ckpt").unlink()
    if way != "base":
        run.best.unlink()
    print(json.dumps(measured))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    for name, run, steps in (("adapt", adapt, 300), ("large", large, 6)):
        part = parts.add_parser(name)
        if name == "adapt":
            part.add_argument("screen", type=Path)
            part.add_argument("--seeds", type=int, default=3)
        part.add_argument("--work", type=Path, required=True, help="where runs and results are kept")
        part.add_argument("--steps", type=int, default=steps)
        part.add_argument("--minutes", type=float, default=1e6, help="end when about so many have passed")
        part.add_argument("--way", help=argparse.SUPPRESS)
        part.set_defaults(run=run)
    options = parser.parse_args()
    if options.way:
        large_run(options.work, options.way, options.steps)
    else:
        options.run(options)


if __name__ == "__main__":
    main()
