"""`steval calibrate`, and the end of every fine-tuning run: choose the decoding of a checkpoint and write it into the file.

Two kinds of pairs are predicted. Validation pairs, whose cells neither network nor training effects have seen, choose the simple
model and the network's share. Training pairs, each hidden from the training effects, choose the simple model too: they need no
network, and there are many; they are left out where validation holds other cells of pairs that were trained on. At most
`MOST_PAIRS` pairs of each kind with `MOST_CELLS` cells each are scored: a minute at most for screens of some thousand genes, a few
for 18,080.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from steval.checkpoints.location import ADAPTER_NAME, BEST_NAME, locate_checkpoint, pinned_reference
from steval.checkpoints.manifest import Manifest
from steval.checkpoints.store import Checkpoint, load_checkpoint, save_checkpoint
from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import align
from steval.data.cells.scale import as_lognorm
from steval.data.columns import Columns
from steval.data.effects.anchors import Anchors, AnchorSettings
from steval.data.effects.decoding import DecodingSettings
from steval.data.effects.expected import ExpectedErrorModel, effect_sizes, fit_expected_error, training_cells
from steval.data.effects.measure import measure_file
from steval.data.effects.record import TrainingEffects
from steval.data.labels import labels_of, labels_or
from steval.data.outputs import require_output
from steval.data.splits.assignment import SINGLE_CELL_TYPE
from steval.data.splits.selection import open_reference
from steval.errors import ConfigError, DataError, MissingReferenceError
from steval.evaluator.heldout import HeldOut
from steval.predictor.cells.decoding import network_effects, vectors
from steval.predictor.controls import cell_controls
from steval.predictor.engine import Predictor
from steval.predictor.requests import PredictionRequest, RequestItem
from steval.trainer.progress.notices import Notice
from steval.wording import counted
from steval.workflows.checkpoints.calibration import (
    DRAWS,
    Choice,
    HeldOutPairs,
    choose_anchor,
    choose_weight,
    parts_of,
    simple_effects,
)
from steval.workflows.checkpoints.unseen import evaluation_cells, require_unseen

log = logging.getLogger(__name__)

MOST_PAIRS = 64
MOST_CELLS = 64
MOST_CONTROLS = 2048
"""Control cells of a context that pairs are scored and carried with."""
FEWEST_CELLS = 8
"""Pairs of fewer cells are too noisy to choose by."""
FOLD = 16
"""Pairs of a context that are hidden together at most, as held-out ones are."""


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` chose."""

    decoding: DecodingSettings
    effects: TrainingEffects | None
    record: dict[str, Any]
    """Candidates, scores, numbers of pairs and the expected score, as the checkpoint keeps it."""


def calibrate(
    path: Path, real: Path | None, out: Path | None, *, data_dirs: Sequence[Path] = (), seed: int = 0
) -> Calibrated:
    """Choose the decoding of the checkpoint `path` and write the checkpoint with it to `out` (default: `calibrated_path`).

    `real` holds validation cells with their controls, none that trained or that the recorded split keeps for the test; without it,
    the validation part of the training data that the checkpoint records. Without training data (a converted checkpoint) the network
    alone is carried. Raises `ConfigError` for a checkpoint that does not predict genes on the lognorm scale, or where there is
    nothing to choose by.
    """
    path = locate_checkpoint(path)
    out = calibrated_path(path) if out is None else out
    require_output(out, {"the checkpoint": path, "--real": real}, suffixes=(".safetensors",))
    checkpoint = load_checkpoint(path)
    found = calibrated(checkpoint, real, data_dirs=data_dirs, seed=seed)
    write_calibrated(checkpoint, found, out)
    return found


def calibrated_path(path: Path) -> Path:
    """Where a calibrated checkpoint goes by default: beside the one it was made from."""
    path = locate_checkpoint(path)
    if pinned_reference(path) is not None:
        raise ConfigError(f"{path} lies in the cache of a hub: say where the calibrated checkpoint goes with --out")
    return path.with_name(f"{path.stem}.calibrated.safetensors")


def write_calibrated(checkpoint: Checkpoint, found: Calibrated, path: Path) -> None:
    """The checkpoint with what was chosen, written atomically; its warm-up prediction is made anew."""
    from steval.workflows.finetune import warmup_record

    manifest = checkpoint.manifest.model_copy(
        update={
            "decoding": found.decoding,
            "calibration": found.record,
            "training_effects": None if found.effects is None else found.effects.to_arrays()[1],
        }
    )
    new = dataclasses.replace(checkpoint, manifest=manifest, effects=found.effects)
    if manifest.warmup is not None:
        manifest = manifest.model_copy(update={"warmup": warmup_record(new)})
    save_checkpoint(
        path,
        manifest=manifest,
        weights=checkpoint.weights,
        features=checkpoint.features,
        controls=checkpoint.controls,
        effects=found.effects,
    )
    adapter = Path(path).with_name(ADAPTER_NAME)
    if Path(path).name == BEST_NAME and adapter.exists():
        from steval.checkpoints.adapters.adapter_file import rewrite_adapter

        rewrite_adapter(adapter, dataclasses.replace(new, manifest=manifest))


def can_be_carried(manifest: Manifest) -> bool:
    """Whether a checkpoint predicts what the control cells that it carries can bear: the genes of its input, lognorm."""
    same_genes = manifest.output_genes is not None and manifest.input_genes == manifest.output_genes
    return same_genes and manifest.model.input_is_genes and manifest.scale == "lognorm"


def calibrated(
    checkpoint: Checkpoint, real: Path | None = None, *, data_dirs: Sequence[Path] = (), seed: int = 0
) -> Calibrated:
    """What `calibrate` chooses, without writing."""
    manifest = checkpoint.manifest
    if not can_be_carried(manifest):
        raise ConfigError(
            f"{checkpoint.path} does not predict, on the lognorm scale, the genes that its own control cells have: they "
            "cannot carry effects, and its predictions stay as the network puts them out"
        )
    with ExitStack() as stack:
        train = _opened(manifest, "train", data_dirs, stack)
        held = _given(real, manifest, stack) if real else _opened(manifest, "val", data_dirs, stack)
        if held is not None and real is not None:
            tests = [_opened(manifest, "test", data_dirs, stack), evaluation_cells(manifest, data_dirs, stack)]
            require_unseen(held, manifest.columns, {"train": [train], "test": tests})
        effects = checkpoint.effects
        if effects is None and train is not None:
            effects, notes = measure_file(train, manifest.columns)
            for note in notes:
                log.info("%s", note)
        if effects is None and held is None:
            raise ConfigError("there is nothing to choose by: give validation cells with --real VAL.h5ad")
        baseline = None if effects is None else mean_profile(effects)
        generator = np.random.default_rng(seed)
        validation = (
            [] if held is None else list(pairs_of(held, manifest.columns, manifest.target_sum, baseline, generator))
        )
        if real is not None and not validation:
            raise ConfigError(
                f"{real} holds nothing to choose by: a pair needs {FEWEST_CELLS} cells of a perturbation and two control cells "
                f"({manifest.columns.control!r} in {manifest.columns.perturbation!r}) of its context"
            )
        training = []
        if train is not None and effects is not None and not _were_seen(effects, validation):
            training = [
                _hidden(one) for one in pairs_of(train, manifest.columns, manifest.target_sum, baseline, generator)
            ]
        start = DecodingSettings(kind="carried")
        choice = Choice(start, (), 0)
        if effects is not None:
            start = DecodingSettings(kind="carried", network_weight=0.0, anchor=AnchorSettings())
            choice = choose_anchor(effects, vectors(checkpoint), [*training, *validation], start, seed)
        record: dict[str, Any] = {"simple_model": _told(choice)}
        decoding = choice.decoding
        if validation and effects is not None:
            assert held is not None
            weighed = _weigh(checkpoint, effects, held, validation, decoding, seed)
            record["network"], decoding = _told(weighed), weighed.decoding
        record["expected"] = _expected(
            checkpoint, effects, validation or training, decoding, held, bool(validation), seed
        )
        if effects is not None and decoding.anchor is not None:
            anchors = Anchors(effects, decoding.anchor, vectors(checkpoint))
            error = error_model(effects, anchors, decoding, [*training, *validation], seed)
            record |= {} if error is None else {"expected_error": error.as_dict()}
    return Calibrated(decoding, effects, record)


def error_model(
    effects: TrainingEffects, anchors: Anchors, decoding: DecodingSettings, pairs: Sequence[HeldOutPairs], seed: int
) -> ExpectedErrorModel | None:
    """How wrong predictions are, told from held-out `pairs` with the simple model's part; None for too few of them."""
    simple = decoding.model_copy(update={"network_weight": 0.0})
    sizes, seen, errors, measured = [], [], [], []
    for one in pairs:
        told = simple_effects(anchors, one)
        sizes.append(effect_sizes(told))
        seen.append(training_cells(effects, one.names, [(name, one.context) for name in one.hidden]))
        drawn = [
            one.score(simple.effect_scale * told, simple, seed + 2000 + draw).members[:, 0] for draw in range(DRAWS)
        ]
        errors.append(np.mean(drawn, axis=0))
        measured += [one.real.num_cells[name] for name in one.names]
    if not errors:
        return None
    return fit_expected_error(*map(np.concatenate, (sizes, seen, errors)), measured_cells=int(np.median(measured)))


def calibration_notice(found: Calibrated) -> Notice:
    """What was chosen, for people."""
    rows = [(name, _shown(value)) for name, value in found.decoding.as_dict().items() if name != "anchor"]
    if found.decoding.anchor is not None:
        rows += [(f"simple model: {name}", _shown(v)) for name, v in found.decoding.anchor.as_dict().items()]
    expected = found.record.get("expected")
    if expected is not None:
        error = "" if expected["standard_error"] is None else f" ± {expected['standard_error']:.1f}"
        pairs = counted(expected["pairs"], "pair")
        text = f"{expected['leaderboard']:.1f}{error} of 100 ({pairs} that chose it: {expected['kind']})"
        rows.append(("expected score or less", text))
    return Notice("Calibration: how predictions become cells", ("setting", "value"), tuple(rows))


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def mean_profile(effects: TrainingEffects) -> np.ndarray:
    """cell-eval's mean baseline `[G]`: mean over the mean profiles of perturbations (of all their cells) and of the control."""
    totals = np.zeros((len(effects.perturbations), effects.num_genes))
    profiles = effects.effects + effects.control_means[effects.context_codes]
    np.add.at(totals, effects.perturbation_codes, profiles * effects.num_cells[:, None])
    cells = np.bincount(effects.perturbation_codes, weights=effects.num_cells, minlength=len(totals))
    control = np.average(effects.control_means, axis=0, weights=effects.num_controls)
    return np.vstack([totals / cells[:, None], control]).mean(axis=0)


def _opened(manifest: Manifest, part: str, data_dirs: Sequence[Path], stack: ExitStack) -> CellFile | None:
    """A part of the training data on record; None where there is none, or where its files are not at hand."""
    if manifest.training_data is None or manifest.training_data.part != "train":
        return None
    reference = manifest.training_data
    if part != "train":
        reference = reference.model_copy(update={"part": part, "perturbations": ()})
    try:
        return stack.enter_context(open_reference(reference, data_dirs, manifest.output_genes))
    except MissingReferenceError as error:
        log.warning("the %s cells cannot be used: %s", part, error)
    except DataError as error:
        if part == "train" or "no perturbed cell belongs" not in str(error):
            raise
    return None


def _given(path: Path, manifest: Manifest, stack: ExitStack) -> CellFile:
    """The cells of a file, lognorm, in the checkpoint's genes."""
    cells = as_lognorm(stack.enter_context(CellFile.open(path)), manifest.target_sum)
    assert manifest.output_genes is not None
    alignment = align(cells.genes, manifest.output_genes, what=str(path))
    return cells.transformed(alignment.apply, manifest.output_genes, cells.uns, cells.name)


def pairs_of(
    cells: CellFile,
    columns: Columns,
    target_sum: float | None,
    baseline: np.ndarray | None,
    generator: np.random.Generator,
) -> Iterator[HeldOutPairs]:
    """Pairs of a file by context, at most `FOLD` that are predicted together and `MOST_PAIRS` in all; lognorm.

    `baseline`: profile `[G]` of the mean baseline; none: that of the controls.
    """
    labels = labels_of(cells.obs, columns.perturbation, cells.name)
    contexts = labels_or(cells.obs, columns.cell_type, SINGLE_CELL_TYPE, cells.name)
    folds = []
    for context in sorted(set(contexts.tolist())):
        here = contexts == context
        controls = np.flatnonzero(here & (labels == columns.control))
        names, counts = np.unique(labels[here & (labels != columns.control)].astype(str), return_counts=True)
        names = generator.permutation(names[counts >= FEWEST_CELLS])
        if len(controls) < 2 or not len(names):
            continue
        number = max(-(-len(names) // FOLD), 2 if len(names) > 3 else 1)
        folds += [(fold, context, controls, names[fold::number]) for fold in range(number)]
    left = MOST_PAIRS
    for _, context, controls, names in sorted(folds, key=lambda one: (one[0], one[1])):
        if left <= 0:
            return
        left -= len(names)
        perturbed = {str(name): np.flatnonzero((labels == name) & (contexts == context)) for name in names}
        yield _read_pairs(cells, context, controls, perturbed, target_sum, baseline, generator)


def _were_seen(effects: TrainingEffects, pairs: Sequence[HeldOutPairs]) -> bool:
    """Whether training had other cells of most of the pairs: then hidden pairs are another task, and no guide."""
    known = set(effects.pairs())
    seen = [(name, one.context) in known for one in pairs for name in one.names]
    return bool(seen) and 2 * sum(seen) > len(seen)


def _hidden(pairs: HeldOutPairs) -> HeldOutPairs:
    return dataclasses.replace(pairs, hidden=pairs.names)


def _read_pairs(
    cells: CellFile, context: str, controls: np.ndarray, perturbed: Mapping[str, np.ndarray], target_sum: float | None,
    baseline: np.ndarray | None, generator: np.random.Generator,
) -> HeldOutPairs:  # fmt: skip
    def some(rows: np.ndarray, most: int) -> sp.csr_matrix:
        return cells.rows(np.sort(generator.permutation(rows)[:most]))

    pool = some(controls, MOST_CONTROLS)
    held = HeldOut(pool, {name: some(rows, MOST_CELLS) for name, rows in perturbed.items()}, cells.genes)
    profile = held.control_mean if baseline is None else baseline
    return HeldOutPairs(context, held, pool, held.mean_baseline(profile), target_sum)


def _weigh(
    checkpoint: Checkpoint, effects: TrainingEffects, held: CellFile, pairs: Sequence[HeldOutPairs], decoding: DecodingSettings,
    seed: int,
) -> Choice:  # fmt: skip
    assert decoding.anchor is not None
    anchors = Anchors(effects, decoding.anchor, vectors(checkpoint))
    told = _network(checkpoint, held, pairs, decoding, seed)
    return choose_weight(pairs, decoding, lambda one: simple_effects(anchors, one), lambda one: told[id(one)], seed)


def _network(
    checkpoint: Checkpoint, held: CellFile, pairs: Sequence[HeldOutPairs], decoding: DecodingSettings, seed: int
) -> dict[int, np.ndarray]:
    """The network's effects `[n, G]` of each set of pairs, from all control cells of the file."""
    predictor = Predictor(checkpoint, device="cpu", decoding=DecodingSettings())
    pool = cell_controls(held, checkpoint.manifest)
    told = {}
    for one in pairs:
        cell_type = one.context if one.context in pool.cell_type_names else None
        items = tuple(RequestItem(perturbation=name, cell_type=cell_type, num_cells=1) for name in one.names)
        plan = predictor.plan(PredictionRequest(items=items, seed=seed), pool)
        found = network_effects(plan, decoding, lambda inner, _: predictor.predict_blocks(inner.sets(), inner.pool))
        told[id(one)] = np.stack([found[item.position] for item in plan.items])
    return told


def _expected(
    checkpoint: Checkpoint, effects: TrainingEffects | None, pairs: Sequence[HeldOutPairs], decoding: DecodingSettings,
    held: CellFile | None, by_network: bool, seed: int,
) -> dict[str, Any] | None:  # fmt: skip
    """The score that predictions of pairs like these can expect; other draws of cells than those of the choice."""
    if not pairs or (decoding.asks_network and not by_network):
        return None
    anchors = None
    if effects is not None and decoding.anchor is not None:
        anchors = Anchors(effects, decoding.anchor, vectors(checkpoint))
    told = {}
    if decoding.asks_network:
        assert held is not None
        told = _network(checkpoint, held, pairs, decoding, seed)

    def combined(one: HeldOutPairs) -> np.ndarray:
        return decoding.combined(told.get(id(one)), None if anchors is None else simple_effects(anchors, one))

    parts = parts_of(pairs, decoding, combined, seed + 1000)
    error = float(parts.std(ddof=1) / np.sqrt(len(parts))) if len(parts) > 1 else None
    return {
        "leaderboard": round(float(parts.mean()), 2),
        "standard_error": None if error is None else round(error, 2),
        "pairs": len(parts),
        "kind": "validation" if by_network else "training pairs, each told from the others",
    }


def _told(choice: Choice) -> dict[str, Any]:
    return {
        "pairs": choice.num_pairs,
        "candidates": [
            {
                **trial.change,
                "leaderboard": round(trial.score, 2),
                "difference": round(trial.difference, 2),
                "standard_error": None if np.isnan(trial.standard_error) else round(trial.standard_error, 2),
                "chosen": trial.chosen,
            }
            for trial in choice.trials
        ],
    }
