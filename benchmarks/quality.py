#!/usr/bin/env python
"""What a prediction is worth beside simple models: leaderboard scores on held-out pairs, on four kinds of data.

    python benchmarks/quality.py --work quality --screens screens/*.h5ad --kang kang.h5ad --thp1 thp1.h5ad --features go.parquet

Files hold raw counts. `--screens`: screens of several cell types (labels `target_gene`, `cell_type`); the cell type and the
perturbations that validate (8) and test (15) are drawn by the place in the list. `--kang`: IFN-β in many cell types, each
with 40 cells on each side is held out once. `--thp1`: docs/quality.md. `--features`: vectors by gene symbol, for `unseen`.
Parts, chosen with --parts:

    simple   mean, control, additive (as of commit 6b50d96 and now), simple models, and the default with the network at 0,
             calibrated on each screen's own training and validation pairs; ten draws of control cells
    kang     the same on held-out cell types, one draw
    unseen   ten perturbations of each screen measured in no cell type: told from features against the mean effect
    expected how wrong predictions are expected to be, beside how wrong they were: rank correlation, coverage of 90 % intervals
    network  `steval finetune quick-cpu` as shipped on the first --network-screens screens, with each of --seeds: what the
             network puts out, its effect carried, the default, the default with the network at 0 and at a quarter, and the
             seeds together; minutes for each

Every unit of work is a JSON file under --work and is not repeated. Differences are paired by perturbation; intervals are 95 %
bootstrap intervals over perturbations of all screens.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from additive_6b50d96 import shifted
from quality_tasks import Task, kang_tasks, screen_task, thp1_task

from steval.checkpoints.store import load_checkpoint
from steval.data.cells.cellfile import CellFile, write_anndata
from steval.data.cells.record import steval_record
from steval.data.columns import ColumnOptions
from steval.data.effects.anchors import SIMPLE_MODELS, Anchors, AnchorSettings
from steval.data.effects.carry import carry, mean_of_cells
from steval.data.effects.decoding import DecodingSettings
from steval.data.effects.expected import effect_sizes, rank_correlation, training_cells
from steval.data.effects.measure import measure_file
from steval.data.effects.record import TrainingEffects
from steval.evaluator.heldout import MEMBERS, HeldOutScores, leaderboard_parts
from steval.predictor.cells.decoding import network_effects
from steval.predictor.cells.predicted import PredictedSet
from steval.predictor.controls import cell_controls
from steval.predictor.engine import Predictor
from steval.predictor.requests import PredictionRequest, RequestItem
from steval.workflows.checkpoints.calibrate import error_model, mean_profile, pairs_of
from steval.workflows.checkpoints.calibration import HeldOutPairs, choose_anchor, simple_effects

DRAWS = 10
NETWORK_DRAWS = 3
"""Of cells that the network puts out."""
DEFAULT = DecodingSettings(kind="carried", network_weight=0.0, anchor=AnchorSettings())
Row = dict[str, Any]


def told(record: TrainingEffects, settings: AnchorSettings, pairs: HeldOutPairs) -> np.ndarray:
    return Anchors(record, settings).effects(pairs.names, pairs.context, pairs.control_mean, pairs.hidden)


def simple_rows(task: Task, draws: int) -> list[Row]:
    """A row for each predictor and test perturbation: members, part in the leaderboard score, Pearson delta, means over draws."""
    record, _ = measure_file(CellFile.wrap(task.training()), task.columns)
    baseline = mean_profile(record)
    pairs = task.pairs(task.test, baseline)
    decoding = calibrated(task, record, baseline)
    anchor = decoding.anchor or AnchorSettings()
    additive = told(record, SIMPLE_MODELS["additive"], pairs)
    makers: dict[str, Callable[[sp.csr_matrix, int, np.random.Generator], sp.csr_matrix]] = {
        "control": lambda cells, row, generator: cells,
        "additive, 6b50d96": lambda cells, row, generator: shifted(cells, additive[row]),
        "additive": lambda cells, row, generator: (
            carry(cells, mean_of_cells(cells) + additive[row], generator, target_sum=task.target_sum).cells
        ),
    }
    carried = {f"carried: {name}": told(record, settings, pairs) for name, settings in SIMPLE_MODELS.items()}
    carried["default, network at 0"] = told(record, anchor, pairs)
    for name, effects in carried.items():
        makers[name] = lambda cells, row, generator, effects=effects: (
            decoding.carried(cells, pairs.control_mean, effects[row], generator, task.target_sum).cells
        )
    rows = [mean_row(task, pairs)]
    for name, make in makers.items():
        rows += scored(task, name, pairs, make, draws)
    return [*rows, {"task": task.name, "predictor": "chosen", "decoding": decoding.as_dict()}]


def calibrated(task: Task, record: TrainingEffects, baseline: np.ndarray) -> DecodingSettings:
    """What a run's calibration chooses with the network at 0: on training pairs and on those that validate."""
    return choose_anchor(record, None, calibration_pairs(task, baseline), DEFAULT).decoding


def calibration_pairs(task: Task, baseline: np.ndarray) -> list[HeldOutPairs]:
    """Training pairs, each hidden from the training effects, and those that validate."""
    generator = np.random.default_rng(0)
    file = CellFile.wrap(task.training())
    training = [
        replace(one, hidden=one.names) for one in pairs_of(file, task.columns, task.target_sum, baseline, generator)
    ]
    if not task.validation:
        return training
    held = CellFile.wrap(task.part(task.validation))
    return [*training, *pairs_of(held, task.columns, task.target_sum, baseline, generator)]


def scored(task: Task, name: str, pairs: HeldOutPairs, make: Callable[..., sp.csr_matrix], draws: int) -> list[Row]:
    """Rows of a predictor that makes cells of drawn controls; the same draws for every predictor."""
    found = []
    for draw in range(draws):
        cells = {}
        for row, perturbation in enumerate(pairs.names):
            generator = np.random.default_rng([draw, row])
            wanted, available = pairs.real.num_cells[perturbation], pairs.controls.shape[0]
            chosen = np.concatenate([generator.permutation(available) for _ in range(-(-wanted // available))])
            cells[perturbation] = make(pairs.controls[chosen[:wanted]], row, generator)
        found.append(pairs.real.scores(cells))
    return rows_of(task, name, pairs, found)


def rows_of(task: Task, name: str, pairs: HeldOutPairs, found: Sequence[HeldOutScores]) -> list[Row]:
    """A row for each perturbation, means over the draws that were `found`."""
    members = [one.members for one in found]
    deltas = np.mean([one.pearson_delta for one in found], axis=0)
    numbers = np.mean([one.num_significant for one in found], axis=0)
    mean = np.mean(members, axis=0)
    parts = leaderboard_parts(mean, pairs.baseline)
    spread = float(np.std([leaderboard_parts(one, pairs.baseline).mean() for one in members]))
    return [
        {
            "task": task.name, "predictor": name, "perturbation": perturbation, "leaderboard": float(parts[row]),
            **dict(zip(MEMBERS, mean[row].tolist(), strict=True)), "pearson_delta": float(np.nan_to_num(deltas[row])),
            "significant": float(numbers[row]), "spread_over_draws": spread,
        }
        for row, perturbation in enumerate(pairs.names)
    ]  # fmt: skip


def expected_rows(task: Task) -> list[Row]:
    """Expected errors of the test pairs, with the decoding that calibration chose, beside the errors they turned out to have."""
    record, _ = measure_file(CellFile.wrap(task.training()), task.columns)
    baseline = mean_profile(record)
    decoding = calibrated(task, record, baseline)
    assert decoding.anchor is not None
    anchors = Anchors(record, decoding.anchor)
    model = error_model(record, anchors, decoding, calibration_pairs(task, baseline), 0)
    if model is None:
        return []
    pairs = task.pairs(task.test, baseline)
    effects = simple_effects(anchors, pairs)
    told = model.told(effect_sizes(effects), training_cells(record, pairs.names))
    found = decoded(task, "default, network at 0", pairs, decoding, np.zeros_like(effects), effects)
    errors = np.array([row["mae"] for row in found])
    ranks = rank_correlation(told[:, 0], errors)
    return [
        {"task": task.name, "perturbation": row["perturbation"], "mae": error, "told": mae, "low": low, "high": high,
         "rank_correlation": ranks}
        for row, error, (mae, low, high) in zip(found, errors.tolist(), told.tolist(), strict=True)
    ]  # fmt: skip


def mean_row(task: Task, pairs: HeldOutPairs) -> Row:
    values = dict(zip(MEMBERS, pairs.baseline.tolist(), strict=True))
    return {
        "task": task.name,
        "predictor": "mean",
        "perturbation": "",
        "leaderboard": 0.0,
        "pearson_delta": 0.0,
        **values,
    }


def unseen_rows(task: Task, features: Mapping[str, np.ndarray]) -> list[Row]:
    """Pearson delta and MAE of perturbations that were measured nowhere, in every cell type: with features, and without."""
    record, _ = measure_file(CellFile.wrap(task.training()), task.columns)
    baseline, rows = mean_profile(record), []
    models = {
        "mean effect of all training pairs": Anchors(record, SIMPLE_MODELS["mean"]),
        "mean effect in this cell type": Anchors(record, AnchorSettings()),
        "features": Anchors(record, AnchorSettings(), features),
    }
    for context in sorted(set(task.contexts)):
        pairs = task.pairs(task.unseen, baseline, context)
        for name, anchors in models.items():
            effects = anchors.effects(pairs.names, context, pairs.control_mean)

            def make(
                cells: sp.csr_matrix,
                row: int,
                generator: np.random.Generator,
                pairs: Any = pairs,
                effects: Any = effects,
            ) -> sp.csr_matrix:
                return DEFAULT.carried(cells, pairs.control_mean, effects[row], generator, task.target_sum).cells

            found = scored(task, f"unseen: {name}", pairs, make, 2)
            rows += [{**row, "perturbation": f"{row['perturbation']} in {context}"} for row in found]
    return rows


def network_rows(task: Task, seed: int, work: Path) -> list[Row]:
    """The command as users give it; then the test pairs by its checkpoint, with the draws of `simple_rows`.

    The network's effects are kept beside the run, for `ensemble_rows`.
    """
    directory = trained(task, seed, work)
    checkpoint = load_checkpoint(directory / "checkpoints" / "best-val.safetensors")
    assert checkpoint.effects is not None
    pairs = task.pairs(task.test, mean_profile(checkpoint.effects))
    part = CellFile.wrap(task.part(task.test))
    own = Predictor(checkpoint, device="cpu", decoding=DecodingSettings())
    pool = cell_controls(part, checkpoint.manifest, columns=ColumnOptions.parse(task.columns.as_dict()))

    def asked(num_cells: Mapping[str, int], draw: int) -> PredictionRequest:
        items = tuple(
            RequestItem(perturbation=name, cell_type=task.context, num_cells=num_cells[name]) for name in pairs.names
        )
        return PredictionRequest(items=items, seed=draw)

    plan = own.plan(asked(dict.fromkeys(pairs.names, 1), 0), pool)
    told_by = network_effects(
        plan, DecodingSettings(kind="carried"), lambda inner, _: own.predict_blocks(inner.sets(), inner.pool)
    )
    network = np.stack([told_by[item.position] for item in plan.items])
    np.save(directory / "network.npy", network.astype(np.float32))
    chosen = checkpoint.manifest.decoding
    record = json.loads((directory / "run.json").read_text())
    rows: list[Row] = [{"task": task.name, "seed": seed, "predictor": "calibration", **record["calibration"]}]
    found = scored_sets(
        task, "network", pairs, [own.predict(asked(pairs.real.num_cells, draw), pool) for draw in range(NETWORK_DRAWS)]
    )
    found += decoded(task, "network, carried", pairs, DecodingSettings(kind="carried"), network, None)
    simple = told(checkpoint.effects, chosen.anchor, pairs) if chosen.anchor is not None else None
    found += decoded(task, "default", pairs, chosen, network, simple)
    if chosen.network_weight < 1:
        at_0 = chosen.model_copy(update={"network_weight": 0.0})
        found += decoded(task, "default, network at 0", pairs, at_0, network, simple)
        quarter = chosen.model_copy(update={"network_weight": 0.25})
        found += decoded(task, "a quarter network", pairs, quarter, network, simple)
    return [*rows, *({**row, "seed": seed} for row in found)]


def ensemble_rows(task: Task, seeds: Sequence[int], work: Path) -> list[Row]:
    """Checkpoints of several seeds together: the mean of what their decodings carry, as `steval predict A B` has it."""
    effects, pairs = [], None
    for seed in seeds:
        directory = work / f"{task.name}-{seed}"
        checkpoint = load_checkpoint(directory / "checkpoints" / "best-val.safetensors")
        assert checkpoint.effects is not None
        pairs = pairs or task.pairs(task.test, mean_profile(checkpoint.effects))
        chosen = checkpoint.manifest.decoding
        simple = told(checkpoint.effects, chosen.anchor, pairs) if chosen.anchor is not None else None
        network = np.load(directory / "network.npy").astype(np.float64)
        effects.append((chosen.combined(network, simple), network))
    assert pairs is not None
    carried = DecodingSettings(kind="carried")
    rows = decoded(
        task, f"ensemble of {len(seeds)}", pairs, carried, np.mean([one for one, _ in effects], axis=0), None
    )
    networks = np.mean([network for _, network in effects], axis=0)
    return rows + decoded(task, f"networks of {len(seeds)} seeds, carried", pairs, carried, networks, None)


def trained(task: Task, seed: int, work: Path) -> Path:
    """The run directory of `steval finetune quick-cpu` on a task."""
    directory = work / f"{task.name}-{seed}"
    data = work / f"{task.name}.h5ad"
    if not data.exists():
        cells = task.cells.copy()
        cells.uns["steval"] = steval_record(
            made_by="benchmark", scale="lognorm", target_sum=task.target_sum, columns=task.columns
        )
        write_anndata(cells, data)
    split = {
        "by": "contexts", "cell_type_key": task.columns.cell_type,
        "val": {task.context: list(task.validation)}, "test": {task.context: list(task.test)},
    }  # fmt: skip
    if not (directory / "calibrated").exists():
        command = ["finetune", "quick-cpu", "--run", str(directory), "--overwrite", "--json"]
        values = (f"data.files=['{data}']", f"data.split={json.dumps(split)}", f"seed={seed}", "loggers=[csv]")
        columns = (f"data.columns.cell_type={task.columns.cell_type}",)
        run_steval(*command, *(part for value in (*values, *columns) for part in ("--set", value)))
        (directory / "calibrated").touch()
        (directory / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
    return directory


def decoded(
    task: Task,
    name: str,
    pairs: HeldOutPairs,
    decoding: DecodingSettings,
    network: np.ndarray,
    simple: np.ndarray | None,
) -> list[Row]:
    """Rows of a decoding of the network's and the simple model's effects."""
    effects = decoding.combined(network, simple)

    def make(cells: sp.csr_matrix, row: int, generator: np.random.Generator) -> sp.csr_matrix:
        return decoding.carried(cells, pairs.control_mean, effects[row], generator, task.target_sum).cells

    return scored(task, name, pairs, make, DRAWS)


def scored_sets(task: Task, name: str, pairs: HeldOutPairs, draws: Sequence[Iterable[PredictedSet]]) -> list[Row]:
    """Rows of cells that a network puts out."""
    found = []
    for sets in draws:
        cells: dict[str, list[np.ndarray]] = {}
        for one in sets:
            cells.setdefault(one.perturbation, []).append(one.cells)
        found.append(pairs.real.scores({key: sp.csr_matrix(np.concatenate(parts)) for key, parts in cells.items()}))
    return rows_of(task, name, pairs, found)


def run_steval(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "steval", *arguments], check=True, stdout=subprocess.DEVNULL)


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


def gain(rows: Sequence[Row], better: str, others: Sequence[str], column: str, lower_is_better: bool = False) -> Row:
    """Paired difference of `better` from the better of `others` (by mean of each task), with a bootstrap interval."""
    frame = pd.DataFrame([row for row in rows if "leaderboard" in row])
    sign = -1.0 if lower_is_better else 1.0
    differences = []
    for _, part in frame.groupby("task"):
        wide = part.pivot_table(index="perturbation", columns="predictor", values=column)
        rival = max(others, key=lambda name: sign * wide[name].mean())
        differences.append(sign * (wide[better] - wide[rival]).dropna().to_numpy())
    found = np.concatenate(differences)
    generator = np.random.default_rng(0)
    means = [generator.choice(found, len(found)).mean() for _ in range(4000)]
    error = float(found.std(ddof=1) / np.sqrt(len(found)))
    return {
        "of": better, "over": "the better of " + " and ".join(others), "in": column, "mean": float(found.mean()),
        "interval": np.quantile(means, [0.025, 0.975]).tolist(), "standard_errors": float(found.mean() / error),
        "pairs": len(found), "tasks_won": int(sum(one.mean() > 0 for one in differences)), "tasks": len(differences),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("quality"))
    parser.add_argument("--screens", type=Path, nargs="*", default=[])
    parser.add_argument("--kang", type=Path)
    parser.add_argument("--thp1", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--parts", nargs="+", default=["simple", "kang", "unseen", "expected", "network"])
    parser.add_argument("--network-screens", type=int, default=2, help="So many of the screens, with --parts network.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    o = parser.parse_args()
    o.work.mkdir(parents=True, exist_ok=True)
    rivals = ("additive, 6b50d96", "additive")
    results: dict[str, Any] = {}
    if "simple" in o.parts and o.screens:
        rows = [
            row
            for number, path in enumerate(o.screens)
            for row in kept(
                o.work / f"simple-{path.stem}.json", lambda p=path, n=number: simple_rows(screen_task(p, n), DRAWS)
            )
        ]
        print(table(rows, f"{len(o.screens)} screens"))
        results["screens"] = [
            gain(rows, "default, network at 0", rivals, "leaderboard"),
            gain(rows, "default, network at 0", rivals, "mae", lower_is_better=True),
            *(gain(rows, "default, network at 0", rivals, name) for name in (*MEMBERS[1:], "pearson_delta")),
        ]
    if "simple" in o.parts and o.thp1:
        print(table(kept(o.work / "simple-thp1.json", lambda: simple_rows(thp1_task(o.thp1), DRAWS)), "THP-1, test"))
    if "kang" in o.parts and o.kang:
        rows = [
            row
            for task in kang_tasks(o.kang)
            for row in kept(o.work / f"{task.name}.json", lambda task=task: simple_rows(task, 3))
        ]
        print(table(rows, "Kang, each cell type held out"))
        results["kang"] = [
            gain(rows, "default, network at 0", rivals, "mae", lower_is_better=True),
            *(gain(rows, "default, network at 0", rivals, name) for name in (MEMBERS[2], "pearson_delta")),
        ]
    if "unseen" in o.parts and o.screens and o.features:
        table_of = pd.read_parquet(o.features)
        features = {str(name): table_of.loc[name].to_numpy(dtype=np.float64) for name in table_of.index}
        rows = [
            row
            for number, path in enumerate(o.screens)
            for row in kept(
                o.work / f"unseen-{path.stem}.json",
                lambda p=path, n=number: unseen_rows(screen_task(p, n, unseen=True), features),
            )
        ]
        print(table(rows, "Perturbations measured nowhere"))
        results["unseen"] = [
            gain(rows, "unseen: features", (f"unseen: mean effect {of}",), "pearson_delta")
            for of in ("of all training pairs", "in this cell type")
        ]
    if "expected" in o.parts and o.screens:
        rows = [
            row
            for number, path in enumerate(o.screens)
            for row in kept(
                o.work / f"expected-{path.stem}.json", lambda p=path, n=number: expected_rows(screen_task(p, n))
            )
        ]
        frame = pd.DataFrame(rows)
        covered = (frame["mae"] >= frame["low"]) & (frame["mae"] <= frame["high"])
        ranks = frame.groupby("task")["rank_correlation"].first()
        results["expected"] = [
            {"rank_correlation": ranks.mean(), "least": ranks.min(), "most": ranks.max(), "covered": covered.mean(),
             "mae": frame["mae"].mean(), "told": frame["told"].mean(), "pairs": len(frame), "tasks": len(ranks)}
        ]  # fmt: skip
    if "network" in o.parts and o.screens:
        rows = []
        chosen = list(enumerate(o.screens))[: o.network_screens]
        for seed in o.seeds:
            for number, path in chosen:
                rows += kept(
                    o.work / f"network-{path.stem}-{seed}.json",
                    lambda p=path, n=number, seed=seed: network_rows(screen_task(p, n), seed, o.work),
                )
        for number, path in chosen if len(o.seeds) > 1 else ():
            rows += kept(
                o.work / f"ensemble-{path.stem}.json",
                lambda p=path, n=number: ensemble_rows(screen_task(p, n), o.seeds, o.work),
            )
        print(table(rows, "quick-cpu as shipped"))
        simple = [
            row
            for number, path in chosen
            for row in kept(
                o.work / f"simple-{path.stem}.json", lambda p=path, n=number: simple_rows(screen_task(p, n), DRAWS)
            )
            if row["predictor"] in rivals
        ]
        results["network"] = [
            gain([*rows, *simple], "default", rivals, "leaderboard"),
            gain(rows, "default", ("default, network at 0",), "leaderboard"),
            gain(rows, "default", ("network",), "leaderboard"),
        ]
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
