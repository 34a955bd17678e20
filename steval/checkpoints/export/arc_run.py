"""A checkpoint as an arc-state run directory, for `state tx infer`: what steval has and arc-state has no place for is named."""

import os
import pickle
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from steval.checkpoints.export.arc_arguments import arc_arguments, arc_state_dict
from steval.checkpoints.manifest import Manifest
from steval.checkpoints.store import Checkpoint
from steval.data.files import partial_beside, remove, require_directory
from steval.data.outputs import require_output_directory
from steval.errors import CheckpointError, ConfigError, OutputError

ARC_VERSION = "0.11.1"
"""The release whose files these are."""
_LIGHTNING = "2.6.6"
"""Lightning's loader wants a version in the file and brings older ones up to date by it."""
INPUT_GENES = "input_genes.txt"
OUTPUT_GENES = "output_genes.txt"


@dataclass(frozen=True)
class ArcExport:
    """The directory that was written, its files, and what of the checkpoint is not in them."""

    path: Path
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    command: str
    """How arc-state predicts with it."""

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "path": str(self.path),
            "files": list(self.files),
            "left_out": list(self.left_out),
            "command": self.command,
        }


def write_arc_run(checkpoint: Checkpoint, directory: Path) -> ArcExport:
    """Write `directory` as arc-state 0.11.1 takes one, as a whole or not at all. Its pickles hold plain types alone.

    Raises `CheckpointError` for what arc-state cannot express (named), `ConfigError` for a directory that is there and not
    empty.
    """
    manifest = checkpoint.manifest
    arguments = arc_arguments(manifest.model, manifest.control, _recorded_genes(manifest))
    arguments["batch_dim"] = arguments["batch_dim"] or max(len(manifest.batches), 1)
    _require_float32(checkpoint.weights)
    target = require_output_directory(directory, {"the checkpoint": checkpoint.path})
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(f"{directory} is there and not empty; an arc-state run directory is written to a new one")
    require_directory(target.parent)
    partial = partial_beside(target)
    try:
        (partial / "checkpoints").mkdir(parents=True)
        _write_files(partial, checkpoint, arguments)
        files = tuple(sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()))
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {directory}: {os.strerror(error.errno or 0)}") from error
    finally:
        remove(partial)
    return ArcExport(Path(directory), files, tuple(_left_out(manifest)), _infer_command(Path(directory), manifest))


def _write_files(directory: Path, checkpoint: Checkpoint, arguments: Mapping[str, Any]) -> None:
    manifest = checkpoint.manifest
    torch.save(
        {
            "epoch": 0,
            "global_step": manifest.training.step if manifest.training else 0,
            "pytorch-lightning_version": _LIGHTNING,
            "state_dict": arc_state_dict(manifest.model, checkpoint.weights),
            "hparams_name": "kwargs",
            "hyper_parameters": dict(arguments),
        },
        directory / "checkpoints" / "final.ckpt",
    )
    names = manifest.perturbation_names
    rows = checkpoint.features.to(torch.float32)
    torch.save({name: rows[row].clone() for row, name in enumerate(names)}, directory / "pert_onehot_map.pt")
    torch.save(_one_hot(manifest.batches), directory / "batch_onehot_map.torch")
    torch.save(_one_hot(manifest.cell_types), directory / "cell_type_onehot_map.torch")
    dims = {key: arguments[key] for key in ("input_dim", "gene_dim", "hvg_dim", "output_dim", "pert_dim", "batch_dim")}
    dims |= {"gene_names": arguments["gene_names"], "pert_names": names}
    (directory / "var_dims.pkl").write_bytes(pickle.dumps(dims, protocol=4))
    text = yaml.safe_dump(_run_config(manifest, arguments), sort_keys=False, allow_unicode=True)
    (directory / "config.yaml").write_text(text, encoding="utf-8")
    for name, genes in _gene_files(manifest).items():
        (directory / name).write_text("".join(f"{gene}\n" for gene in genes), encoding="utf-8")


def _infer_command(directory: Path, manifest: Manifest) -> str:
    """`state tx infer` asks for the perturbations' column and the input's key, whatever the run directory says."""
    options = {"--model-dir": str(directory), "--adata": "CELLS.h5ad", "--pert-col": manifest.columns.perturbation}
    if manifest.model.input_key is not None:
        options["--embed-key"] = manifest.model.input_key
    return " ".join(["state tx infer", *(f"{name} {shlex.quote(value)}" for name, value in options.items())])


def _one_hot(names: tuple[str, ...]) -> dict[str, Tensor]:
    """Name → its own one-hot vector, as arc-state keeps codes."""
    return {name: row.clone() for name, row in zip(names, torch.eye(len(names)), strict=True)}


def _run_config(manifest: Manifest, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`config.yaml`: where data is read, and the network's arguments, under the keys that arc-state's commands read."""
    columns = manifest.columns
    own = {"input_dim", "output_dim", "pert_dim", "gene_dim", "hvg_dim", "gene_names", "control_pert", "embed_key"}
    own |= {"output_space", "decoder_cfg", "lr"}
    return {
        "data": {
            "name": "PerturbationDataModule",
            "kwargs": {
                "toml_config_path": None,
                "embed_key": manifest.model.input_key,
                "output_space": manifest.model.output_space,
                "pert_rep": "onehot",
                "basal_rep": "sample",
                "num_workers": 0,
                "pin_memory": False,
                "n_basal_samples": 1,
                "basal_mapping_strategy": arguments["basal_mapping_strategy"],
                "should_yield_control_cells": True,
                "pert_col": columns.perturbation,
                "control_pert": columns.control,
                "cell_type_key": columns.cell_type,
                "batch_col": columns.batch,
                "map_controls": True,
                "perturbation_features_file": None,
                "store_raw_basal": False,
                "int_counts": manifest.scale == "counts",
                "barcode": True,
            },
            "output_dir": None,
            "debug": True,
        },
        "model": {
            "name": "state",
            "checkpoint": None,
            "kwargs": {key: value for key, value in arguments.items() if key not in own},
        },
        "training": {"batch_size": 16, "lr": arguments["lr"], "train_seed": 42},
        "name": "steval",
        "output_dir": ".",
        "use_wandb": False,
        "overwrite": False,
    }


def _recorded_genes(manifest: Manifest) -> tuple[str, ...] | None:
    """The one list of gene names that arc-state's files have: the predicted genes."""
    return manifest.output_genes or manifest.input_genes


def _gene_files(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Gene lists that the one list cannot hold, as text files that `steval convert --genes` takes."""
    recorded = _recorded_genes(manifest)
    lists = {INPUT_GENES: manifest.input_genes, OUTPUT_GENES: manifest.output_genes}
    return {name: genes for name, genes in lists.items() if genes is not None and genes != recorded}


def _require_float32(weights: Mapping[str, Tensor]) -> None:
    others = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()} - {"float32"})
    if others:
        raise CheckpointError(
            f"the checkpoint's weights are {', '.join(others)}; arc-state's models are float32, and a wider copy would no "
            "longer be these weights"
        )


def _left_out(manifest: Manifest) -> list[str]:
    """What the checkpoint says and an arc-state run directory does not."""
    genes = ", ".join(_gene_files(manifest))
    untrained = [entry.name for entry in manifest.perturbations if not entry.trained]
    facts = {
        f"decoding {manifest.decoding.kind}: arc-state puts out the network's cells, as --decoding network does": (
            manifest.decoding.kind != "network"
        ),
        "training effects, which the decoding reads": manifest.training_effects is not None,
        "default control cells: give arc-state's commands an --adata with controls": bool(manifest.num_controls),
        f"the scale of the data ({manifest.scale}"
        + (f", target_sum {manifest.target_sum:g})" if manifest.target_sum else ")"): True,
        f"which perturbations are untrained: {len(untrained)} of {len(manifest.perturbations)}": bool(untrained),
        "the evaluation and training data on record": bool(manifest.evaluation or manifest.training_data),
        "the training record but its step": manifest.training is not None,
        f"licence {manifest.licence!r}": manifest.licence is not None,
        f"gene names of both ends in one list: {genes} stands beside, for steval convert --genes": bool(genes),
    }
    return [text for text, there in facts.items() if there]
