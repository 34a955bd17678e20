"""Tables, paired differences and units of work of quality.py."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from quality_simple import Row

from steval.evaluator.heldout import MEMBERS


def table(rows: Sequence[Row], title: str) -> str:
    """Markdown: means over perturbations and tasks for each predictor, best first."""
    frame = pd.DataFrame([row for row in rows if "leaderboard" in row])
    columns = ["leaderboard", *MEMBERS, "pearson_delta", "significant"]
    by_task = frame.groupby(["predictor", "task"])[columns].mean()
    mean = by_task.groupby("predictor").mean().sort_values("leaderboard", ascending=False)
    spread = by_task["leaderboard"].groupby("predictor").std()
    lines = [
        f"\n**{title}**\n",
        "| | score | MAE | discrimination | overlap | Pearson delta | significant |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in mean.iterrows():
        values = " | ".join(
            [f"{row['mae']:.4f}", *(f"{row[c]:.3f}" for c in columns[2:5]), f"{row['significant']:.0f}"]
        )
        lines.append(f"| {name} | {row['leaderboard']:.1f} ± {spread[name]:.1f} | {values} |")
    return "\n".join(lines)


def gain(rows: Sequence[Row], better: str, others: Sequence[str], column: str) -> Row:
    """Paired difference of `better` from the better of `others` (by mean of each task), with a bootstrap interval.

    Positive where `better` is better: an error counts the other way round. `standard_errors`: None where nothing differs.
    """
    frame = pd.DataFrame([row for row in rows if "leaderboard" in row])
    sign = -1.0 if column == "mae" else 1.0
    differences = []
    for _, part in frame.groupby("task"):
        wide = part.pivot_table(index="perturbation", columns="predictor", values=column)
        rival = max(others, key=lambda name: sign * wide[name].mean())
        differences.append(sign * (wide[better] - wide[rival]).dropna().to_numpy())
    found = np.concatenate(differences)
    generator = np.random.default_rng(0)
    means = [generator.choice(found, len(found)).mean() for _ in range(4000)]
    error = float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else 0.0
    return {
        "of": better, "over": "the better of " + " and ".join(others), "in": column, "mean": float(found.mean()),
        "interval": np.quantile(means, [0.025, 0.975]).tolist(),
        "standard_errors": float(found.mean() / error) if error else None, "pairs": len(found),
        "tasks_won": int(sum(one.mean() > 0 for one in differences)), "tasks": len(differences),
        "least": float(min(one.mean() for one in differences)),
    }  # fmt: skip


def best_of(rows: Sequence[Row], prefix: str) -> str:
    """The predictor with the highest mean score of those whose name begins with `prefix`."""
    frame = pd.DataFrame([row for row in rows if row["predictor"].startswith(prefix) and "leaderboard" in row])
    return str(frame.groupby("predictor")["leaderboard"].mean().idxmax())


def covered(rows: Sequence[Row]) -> Row:
    """What expected errors are worth: rank correlations with the errors found, and how many of the intervals hold them."""
    frame = pd.DataFrame(rows)
    held = (frame["mae"] >= frame["low"]) & (frame["mae"] <= frame["high"])
    ranks = frame.groupby("task")["rank_correlation"].first()
    return {
        "rank_correlation": ranks.mean(), "least": ranks.min(), "most": ranks.max(), "covered": held.mean(),
        "mae": frame["mae"].mean(), "told": frame["told"].mean(), "pairs": len(frame), "tasks": len(ranks),
    }  # fmt: skip


def kept(path: Path, make: Callable[[], list[Row]]) -> list[Row]:
    """The rows of a unit of work, made unless they are there."""
    if not path.exists():
        rows = make()
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(rows))
        partial.replace(path)
        print(f"done: {path.stem}", file=sys.stderr, flush=True)
    return json.loads(path.read_text())
