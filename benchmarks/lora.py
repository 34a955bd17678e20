"""LoRA adapters beside other ways to adapt a checkpoint: validation loss, what trains, what is kept for it, and file sizes.

    python benchmarks/lora.py SCREEN.h5ad --seeds 3 [--steps 200]

SCREEN holds raw counts with `target_gene` and `replicate` columns (two replicates or more). A small network is pre-trained on all
replicates but the last; each way then adapts it to the last one with the same number of steps, on the same cells.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import anndata as ad

from steval.data.cells.prepare import PrepareSettings, prepare
from steval.trainer.config import FinetuneConfig
from steval.trainer.progress.state import load_state
from steval.trainer.run import finetune

HEADS = ["encoders", "outputs"]
LORA = {"rank": 4, "alpha": 8, "targets": ["attention", "mlp"]}
WAYS: dict[str, list[dict[str, Any]]] = {
    "adapters alone": [{"trains": [], "lora": LORA}],
    "adapters and heads": [{"trains": HEADS, "lora": LORA}],
    "frozen backbone": [{"trains": HEADS}],
    "staged": [{"trains": HEADS}, {"trains": "all"}],
    "full": [{"trains": "all"}],
}


def config(path: Path, phases: list[dict[str, Any]], steps: int, seed: int) -> FinetuneConfig:
    """A run of `steps` in all; rates are alike for every way."""
    rates = {"encoders": 3e-4, "outputs": 3e-4, "backbone": 3e-4, "adapters": 1e-3}
    each = steps // len(phases)
    named = [{"name": f"p{row}", "steps": each, "rates": rates, **phase} for row, phase in enumerate(phases)]
    return FinetuneConfig.parse(
        {
            "data": {"files": [str(path)], "split": {"by": "cells", "val": 0.2, "test": 0.1}},
            "network": {"hidden_dim": 128, "num_layers": 4, "num_heads": 4},
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


def measured(run_dir: Path, value: float) -> dict[str, float]:
    """Loss, megabytes of the optimiser's moments and of the files to keep."""
    checkpoints = run_dir / "checkpoints"
    moments = load_state(checkpoints / "last.ckpt")["optimiser"]["state"].values()
    adapter = checkpoints / "best-val.adapter.safetensors"
    kept = adapter if adapter.exists() else checkpoints / "best-val.safetensors"
    return {
        "val/gene": value,
        "trainable": sum(state["exp_avg"].numel() for state in moments),
        "moments MB": sum(2 * 4 * state["exp_avg"].numel() for state in moments) / 1e6,
        "file MB": kept.stat().st_size / 1e6,
    }


def main() -> None:
    """Pre-train once, adapt in each way with each seed, print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        cells = ad.read_h5ad(options.screen)
        last = sorted(cells.obs["replicate"].unique())[-1]
        parts = {"base": cells[cells.obs["replicate"] != last], "new": cells[cells.obs["replicate"] == last]}
        for name, part in parts.items():
            part.copy().write_h5ad(place / f"{name}-counts.h5ad")
            prepare(place / f"{name}-counts.h5ad", place / f"{name}.h5ad", settings=PrepareSettings(target_sum=200))
        base = finetune(config(place / "base.h5ad", WAYS["full"], options.steps, 1), place / "base", device="cpu").best
        for way, phases in WAYS.items():
            found = []
            for seed in range(options.seeds):
                run = finetune(
                    config(place / "new.h5ad", phases, options.steps, seed),
                    place / f"{way}-{seed}",
                    init_from=base,
                    device="cpu",
                )
                found.append(measured(run.run_dir, run.best_record["value"]))
            shown = {key: statistics.median(one[key] for one in found) for key in found[0]}
            spread = [round(one["val/gene"], 4) for one in found]
            facts = "  ".join(f"{key} {value:,.4g}" for key, value in shown.items())
            print(f"{way:<20} {facts}  (val/gene: {spread})", flush=True)


if __name__ == "__main__":
    main()
