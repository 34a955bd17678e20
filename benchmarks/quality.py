#!/usr/bin/env python
"""What a prediction is worth beside simple models: leaderboard scores on held-out pairs, on four kinds of data.

    python benchmarks/quality.py --work quality --screens screens/*.h5ad --kang kang.h5ad --thp1 thp1.h5ad --features go.parquet

Files hold raw counts. `--screens`: screens of several cell types (labels `target_gene`, `cell_type`); the cell type and the
perturbations that validate (8) and test (15) are drawn by the place in the list. `--kang`: IFN-β in many cell types, each
with 40 cells on each side is held out once. `--thp1`: docs/quality.md. `--features`: vectors by gene symbol, for `unseen`
and `ridge`. Parts, chosen with --parts:

    simple   mean, control, additive (as of commit 6b50d96 and now), simple models, and the default with the network at 0,
             calibrated on each screen's own training and validation pairs; ten draws of control cells
    kang     the same on held-out cell types, three draws
    ridge    regressions of a screen's effects on features of the perturbed gene, and on effects in the other cell types
    unseen   ten perturbations of each screen measured in no cell type: told from features against the mean effect
    expected how wrong predictions are expected to be, beside how wrong they were: rank correlation, coverage of 90 % intervals
    network  `steval finetune quick-cpu` as shipped on the first --network-screens screens, with each of --seeds: what the
             network puts out, its effect carried, the default, the default with the network at 0 and at a quarter, and the
             seeds together; minutes for each
    arc      arc-state (--arc: its `state` command) on the first --arc-screens screens and --arc-types of Kang's cell types

Every unit of work is a JSON file under --work and is not repeated. Differences are paired by perturbation; intervals are 95 %
bootstrap intervals over perturbations of all screens.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from quality_arc import arc_rows
from quality_network import ensemble_rows, network_rows
from quality_simple import DRAWS, Row, expected_rows, ridge_rows, simple_rows, unseen_rows
from quality_tables import best_of, covered, gain, kept, table
from quality_tasks import kang_tasks, screen_task, thp1_task

from steval.evaluator.heldout import MEMBERS

RIVALS = ("additive, 6b50d96", "additive")
AT_0 = "default, network at 0"
KANG_DRAWS = 3


class Bench:
    """Units of work under --work, and the results of each part."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.work = options, options.work
        self.results: dict[str, Any] = {}

    def on_screens(self, part: str, make: Callable[[Path, int], list[Row]], limit: int | None = None) -> list[Row]:
        """Rows of a part for each of the first `limit` screens."""
        rows: list[Row] = []
        for number, path in list(enumerate(self.options.screens))[:limit]:
            rows += kept(self.work / f"{part}-{path.stem}.json", lambda p=path, n=number: make(p, n))
        return rows

    def simple_on_screens(self, limit: int | None = None) -> list[Row]:
        """Rows of the simple models."""
        return self.on_screens("simple", lambda path, number: simple_rows(screen_task(path, number), DRAWS), limit)

    def simple(self) -> None:
        """Screens and THP-1."""
        if self.options.screens:
            rows = self.simple_on_screens()
            print(table(rows, f"{len(self.options.screens)} screens"))
            best = best_of(rows, "carried: ")
            self.results["screens"] = [
                *(gain(rows, AT_0, RIVALS, name) for name in ("leaderboard", *MEMBERS, "pearson_delta")),
                gain(rows, AT_0, (best,), "leaderboard"),
            ]  # fmt: skip
        if self.options.thp1:
            rows = kept(self.work / "simple-thp1.json", lambda: simple_rows(thp1_task(self.options.thp1), DRAWS))
            print(table(rows, "THP-1, test"))

    def kang(self) -> None:
        """Each cell type held out."""
        rows = [
            row
            for task in kang_tasks(self.options.kang)
            for row in kept(self.work / f"{task.name}.json", lambda task=task: simple_rows(task, KANG_DRAWS))
        ]
        print(table(rows, "Kang, each cell type held out"))
        members = ("mae", "overlap_at_N", "pearson_delta")
        self.results["kang"] = [gain(rows, AT_0, RIVALS, name) for name in members]

    def ridge(self) -> None:
        """Regressions beside the default."""
        features = self.features()
        rows = self.on_screens("ridge", lambda path, number: ridge_rows(screen_task(path, number), features))
        print(table(rows, "Ridge regressions"))
        at_0 = [row for row in self.simple_on_screens() if row["predictor"] == AT_0]
        names = sorted({row["predictor"] for row in rows})
        self.results["ridge"] = [gain([*rows, *at_0], AT_0, (name,), "leaderboard") for name in names]

    def unseen(self) -> None:
        """Perturbations measured nowhere."""
        features = self.features()
        assert features is not None
        rows = self.on_screens(
            "unseen", lambda path, number: unseen_rows(screen_task(path, number, unseen=True), features)
        )
        print(table(rows, "Perturbations measured nowhere"))
        self.results["unseen"] = [
            gain(rows, "unseen: features", (f"unseen: mean effect {of}",), "pearson_delta")
            for of in ("of all training pairs", "in this cell type")
        ]

    def expected(self) -> None:
        """Expected errors beside those found."""
        rows = self.on_screens("expected", lambda path, number: expected_rows(screen_task(path, number)))
        self.results["expected"] = [covered(rows)]

    def network(self) -> None:
        """Trained networks, each seed and the seeds together."""
        o, rows = self.options, []
        for seed in o.seeds:
            for number, path in list(enumerate(o.screens))[: o.network_screens]:
                rows += kept(
                    self.work / f"network-{path.stem}-{seed}.json",
                    lambda p=path, n=number, s=seed: network_rows(screen_task(p, n), s, self.work),
                )
        if len(o.seeds) > 1:
            rows += self.on_screens(
                "ensemble",
                lambda path, number: ensemble_rows(screen_task(path, number), o.seeds, self.work),
                o.network_screens,
            )
        print(table(rows, "quick-cpu as shipped"))
        rivals = [row for row in self.simple_on_screens(o.network_screens) if row["predictor"] in RIVALS]
        self.results["network"] = [
            *(gain([*rows, *rivals], "default", RIVALS, name) for name in ("leaderboard", *MEMBERS, "pearson_delta")),
            gain(rows, "default", (AT_0,), "leaderboard"), gain(rows, "default", ("network",), "leaderboard"),
        ]  # fmt: skip

    def arc(self) -> None:
        """arc-state beside the default with the network at 0, on the same pairs."""
        o, tasks = self.options, []
        tasks += [screen_task(path, number) for number, path in list(enumerate(o.screens))[: o.arc_screens]]
        tasks += [task for task in kang_tasks(o.kang) if task.context in o.arc_types] if o.kang else []
        for task in tasks:
            path = self.work / f"arc-{task.name}.json"
            rows = kept(path, lambda task=task: arc_rows(task, o.arc, o.arc_steps, self.work))
            is_kang = task.name.startswith("kang-")
            place = self.work / (f"{task.name}.json" if is_kang else f"simple-{task.name}.json")
            beside = kept(place, lambda t=task, k=is_kang: simple_rows(t, KANG_DRAWS if k else DRAWS))
            both = [*rows, *(row for row in beside if row["predictor"] in (AT_0, *RIVALS))]
            print(table(both, f"arc-state, {task.name}"))
            self.results.setdefault("arc", []).append(gain(both, AT_0, ("arc-state 0.11.1",), "leaderboard"))

    def features(self) -> Mapping[str, np.ndarray] | None:
        """Vectors by gene symbol, where the file is given."""
        if self.options.features is None:
            return None
        table_of = pd.read_parquet(self.options.features)
        return {str(name): table_of.loc[name].to_numpy(dtype=np.float64) for name in table_of.index}


NEEDS = {
    "simple": (), "kang": ("kang",), "ridge": ("screens",), "unseen": ("screens", "features"), "expected": ("screens",),
    "network": ("screens",), "arc": ("arc",),
}  # fmt: skip
"""Parts, and the options without which each is left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("quality"))
    parser.add_argument("--screens", type=Path, nargs="*", default=[])
    parser.add_argument("--kang", type=Path)
    parser.add_argument("--thp1", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--arc", type=Path, help="The `state` command of an environment with arc-state.")
    parser.add_argument("--parts", nargs="+", choices=NEEDS, default=list(NEEDS))
    parser.add_argument("--network-screens", type=int, default=2, help="So many of the screens, with --parts network.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--arc-screens", type=int, default=1)
    parser.add_argument("--arc-types", nargs="*", default=["CD14 Mono", "CD4 Naive T", "B"])
    parser.add_argument("--arc-steps", type=int, default=400)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    for part in options.parts:
        if all(getattr(options, need) for need in NEEDS[part]):
            getattr(bench, part)()
    print(json.dumps(bench.results, indent=1))


if __name__ == "__main__":
    main()
