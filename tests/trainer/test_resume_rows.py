"""Killed after any logged row of any phase of any recipe, and resumed: rows and weights of a run that never stopped.

In CI some rows of the recipes with several phases; every row of every recipe with STEVAL_KILL_AT=every, of one with its name there.
"""

import os
from pathlib import Path

from steval.settings import apply_overrides, read_yaml
from steval.trainer.config import FinetuneConfig
from steval.trainer.recipes import config_path, recipe_names
from support.tiny_runs import assert_same_run, run, run_killed

STEPS = 4
ROWS = STEPS + 1
"""Of a phase: one before its first step, one after each."""
CHOSEN = {"raw-staged": (2 * ROWS - 1, 4 * ROWS - 2), "embedding-rounds": (2 * ROWS - 1,), "lora": (ROWS - 1,)}
"""Rows in later phases that have found a better best by then, and no state has been saved in the phase; and one of adapters."""


def small(name: str, screen_path: Path, save_every: int) -> FinetuneConfig:
    """A recipe on a network of five blocks that learns fast, with a row and a validation at every step."""
    values = read_yaml(config_path(name))
    overrides = [
        f"data.files=['{screen_path}']",
        "sets.size=8",
        "sets.per_batch=2",
        "loggers=[csv]",
        "network.num_layers=5",
    ]
    overrides += ["network.hidden_dim=16", "network.num_heads=2", "network.intermediate_dim=32"]
    overrides += ["checks.log_every=1", "checks.validate_every=1", f"checks.save_every={save_every}"]
    for number in range(len(values["phases"])):
        overrides += [f"phases.{number}.steps={STEPS}"]
        moved = "adapters" if name == "lora" else "backbone"
        overrides += [f"phases.{number}.rates={{encoders: 3.0e-3, outputs: 3.0e-3, {moved}: 1.0e-3}}"]
    if name == "embedding-rounds":
        overrides += ["data.input_key=X_pca", "network.gene_decoder=[8]"]
    return FinetuneConfig.parse(apply_overrides(values, overrides))


def test_a_run_killed_at_a_row_resumes_to_the_same_end(screen_path: Path, tmp_path: Path) -> None:
    asked = os.environ.get("STEVAL_KILL_AT")
    every = recipe_names() if asked == "every" else (asked,) if asked else ()
    start = run(small("full", screen_path, 1000), tmp_path / "start").best
    runs = []
    for name in every or CHOSEN:
        for save_every in (1000, 3) if every else (1000,):
            config = small(name, screen_path, save_every)
            rows = range(1, len(config.phases) * ROWS + 1) if every else CHOSEN[name]
            place = tmp_path / f"{name}-{save_every}"
            runs.append(
                {
                    "config": config.as_dict(),
                    "whole": str(place / "whole"),
                    "options": {"allow_mismatch": name == "embedding-rounds"},
                    "start": str(start) if name == "lora" else None,
                    "scenarios": [{"row": row, "run_dir": str(place / str(row))} for row in rows],
                }
            )
    run_killed(runs, tmp_path)
    killed = [
        (Path(planned["whole"]), Path(scenario["run_dir"])) for planned in runs for scenario in planned["scenarios"]
    ]
    for whole, run_dir in killed:
        assert_same_run(whole, run_dir)
    phases = sum(len(read_yaml(config_path(name))["phases"]) for name in every)
    assert len(killed) == (2 * ROWS * phases if every else 4)
