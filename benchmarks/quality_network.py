"""Rows of quality.py about trained networks: `steval finetune quick-cpu` as users give it, and its seeds together."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from quality_simple import Row, decoded, rows_of, told
from quality_tasks import Task, write_task

from steval.checkpoints.store import load_checkpoint
from steval.data.cells.cellfile import CellFile
from steval.data.columns import ColumnOptions
from steval.data.effects.decoding import DecodingSettings
from steval.predictor.cells.decoding import network_effects
from steval.predictor.cells.predicted import PredictedSet
from steval.predictor.controls import cell_controls
from steval.predictor.engine import Predictor
from steval.predictor.requests import PredictionRequest, RequestItem
from steval.workflows.checkpoints.calibrate import mean_profile
from steval.workflows.checkpoints.calibration import HeldOutPairs

NETWORK_DRAWS = 3
"""Of cells that the network puts out."""


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
    write_task(task, data)
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
