"""Rows of quality.py that need no network: simple models, ridge regressions, expected errors, unseen perturbations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from additive_6b50d96 import shifted
from quality_tasks import Task

from steval.data.cells.cellfile import CellFile
from steval.data.effects.anchors import SIMPLE_MODELS, Anchors, AnchorSettings
from steval.data.effects.carry import carry, mean_of_cells
from steval.data.effects.decoding import DecodingSettings
from steval.data.effects.expected import effect_sizes, rank_correlation, training_cells
from steval.data.effects.measure import measure_file
from steval.data.effects.record import TrainingEffects
from steval.data.effects.unseen import fit_features
from steval.evaluator.heldout import MEMBERS, HeldOutScores, leaderboard_parts
from steval.workflows.checkpoints.calibrate import error_model, mean_profile, pairs_of
from steval.workflows.checkpoints.calibration import HeldOutPairs, choose_anchor, simple_effects

DRAWS = 10
DEFAULT = DecodingSettings(kind="carried", network_weight=0.0, anchor=AnchorSettings())
PENALTIES = np.logspace(-3, 3, 25)
"""Of ridge regression, times the mean of the kernel's diagonal."""
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
    expected = model.told(effect_sizes(effects), training_cells(record, pairs.names))
    found = decoded(task, "default, network at 0", pairs, decoding, np.zeros_like(effects), effects)
    errors = np.array([row["mae"] for row in found])
    ranks = rank_correlation(expected[:, 0], errors)
    return [
        {"task": task.name, "perturbation": row["perturbation"], "mae": error, "told": mae, "low": low, "high": high,
         "rank_correlation": ranks}
        for row, error, (mae, low, high) in zip(found, errors.tolist(), expected.tolist(), strict=True)
    ]  # fmt: skip


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


def ridge_rows(task: Task, features: Mapping[str, np.ndarray] | None) -> list[Row]:
    """Regressions fitted on the effects that are measured in the task's context, carried as predictions are.

    On `features` of the perturbed gene as the package has it for unseen perturbations, and on the mean effect of the same
    perturbation in the other contexts (a linear map from effects to effects).
    """
    record, _ = measure_file(CellFile.wrap(task.training()), task.columns)
    pairs = task.pairs(task.test, mean_profile(record))
    here = record.contexts.index(task.context)
    seen = {
        record.perturbations[record.perturbation_codes[row]]: record.effects[row].astype(np.float64)
        for row in np.flatnonzero(record.context_codes == here)
    }
    elsewhere = {
        name: record.effects[(record.context_codes != here) & (record.perturbation_codes == code)].mean(axis=0)
        for code, name in enumerate(record.perturbations)
    }
    targets = np.stack(list(seen.values()))
    inputs, asked = (np.stack([elsewhere[name] for name in names]).astype(np.float64) for names in (seen, pairs.names))
    effects_of = {"ridge on effects in other contexts": ridge(inputs, targets, asked)}
    if features is not None:
        model = fit_features(seen, features)
        guesses = {name: None if model is None else model.predict(name) for name in pairs.names}
        mean = targets.mean(axis=0)
        effects_of["ridge on features"] = np.stack([mean if guess is None else guess for guess in guesses.values()])
    nothing = np.zeros_like(asked)
    return [
        row for name, effects in effects_of.items() for row in decoded(task, name, pairs, DEFAULT, nothing, effects)
    ]


def ridge(inputs: np.ndarray, targets: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Linear ridge regression of `targets [m, G]` on `inputs [m, D]`, told for `asked [n, D]`; penalty by leaving one out."""
    centre, mean = inputs.mean(axis=0), targets.mean(axis=0)
    known, centred = inputs - centre, targets - mean
    kernel = known @ known.T
    scale, same = np.trace(kernel) / len(kernel), np.eye(len(kernel))

    def left_out(penalty: float) -> float:
        hat = np.linalg.solve(kernel + penalty * scale * same, kernel).T + 1 / len(kernel)
        return float((((centred - hat @ centred) / (1 - np.diag(hat))[:, None]) ** 2).sum())

    penalty = min(PENALTIES, key=left_out)
    weights = np.linalg.solve(kernel + penalty * scale * same, centred)
    return mean + (asked - centre) @ known.T @ weights
