"""Runs in an environment with arc-state: its model on given cell sets, and run directories of other network sizes.

python predict_peer.py forward RUN_DIR SETS.npz OUT.npy      predictions [cells, genes] of its predict_step
python predict_peer.py resize RUN_DIR OUT_DIR KEY=VALUE ...   the run with a network of another size, random weights; the keys
    are those of `model.kwargs` in a run's config.yaml, of its backbone too; VALUE none takes arc-state's default
"""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from state.tx.models.state_transition import StateTransitionPerturbationModel


def forward(run_dir: Path, sets_path: Path, out: Path) -> None:
    """Predict the sets of `SETS.npz` (`controls [B, S, G]`, `features [B, P]`), one batch; report the seconds."""
    model = StateTransitionPerturbationModel.load_from_checkpoint(
        run_dir / "checkpoints" / "final.ckpt", map_location="cpu", weights_only=False
    ).eval()
    sets = np.load(sets_path)
    controls, features = torch.from_numpy(sets["controls"]), torch.from_numpy(sets["features"])
    num_sets, set_size, _ = controls.shape
    model.cell_sentence_len = set_size
    batch = {
        "ctrl_cell_emb": controls.flatten(0, 1),
        "pert_emb": features[:, None].expand(-1, set_size, -1).flatten(0, 1),
        "pert_name": ["p"] * (num_sets * set_size),
        "batch": torch.zeros(num_sets * set_size, dtype=torch.long),
    }
    started = time.perf_counter()
    with torch.no_grad():
        predicted = model.predict_step(batch, 0, padded=True)["preds"]
    print(f"{time.perf_counter() - started:.3f}")
    np.save(out, predicted.reshape(num_sets * set_size, -1).numpy())


def resize(run_dir: Path, out_dir: Path, changes: dict[str, int | None]) -> None:
    """Copy the run's maps and configuration beside a checkpoint of random weights whose network has the settings of `changes`."""
    shutil.copytree(run_dir, out_dir, ignore=shutil.ignore_patterns("checkpoints", "version_*"), dirs_exist_ok=True)
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["model"]["kwargs"] = _changed(config["model"]["kwargs"], changes)
    (out_dir / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    stored = torch.load(run_dir / "checkpoints" / "final.ckpt", map_location="cpu", weights_only=False, mmap=True)
    values = _changed(dict(stored["hyper_parameters"]), changes)
    torch.manual_seed(0)
    model = StateTransitionPerturbationModel(**values)
    (out_dir / "checkpoints").mkdir(exist_ok=True)
    content = {key: value for key, value in stored.items() if key not in ("state_dict", "optimizer_states")}
    content |= {"state_dict": model.state_dict(), "hyper_parameters": values, "optimizer_states": []}
    torch.save(content, out_dir / "checkpoints" / "final.ckpt")
    print(sum(parameter.numel() for parameter in model.parameters()))


def _changed(settings: dict[str, Any], changes: dict[str, int | None]) -> dict[str, Any]:
    """Model settings with `changes`, in the backbone's own where the key belongs there; None leaves a key out."""
    backbone = dict(settings["transformer_backbone_kwargs"])
    changed = {**settings, "transformer_backbone_kwargs": backbone}
    for key, value in changes.items():
        place = backbone if key in backbone else changed
        place.pop(key, None) if value is None else place.update({key: value})
    return changed


if __name__ == "__main__":
    command, first, second, *rest = sys.argv[1:]
    if command == "forward":
        forward(Path(first), Path(second), Path(rest[0]))
    else:
        pairs = (item.split("=") for item in rest)
        resize(Path(first), Path(second), {key: None if value == "none" else int(value) for key, value in pairs})
