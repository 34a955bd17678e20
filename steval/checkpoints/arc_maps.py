"""Names and codes that an arc-state run directory keeps beside its weights: perturbations, batches, cell types, genes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steval.checkpoints.safe_load import check_tensors, load_foreign
from steval.data.columns import DEFAULT_BATCH, DEFAULT_CELL_TYPE, DEFAULT_CONTROL, DEFAULT_PERTURBATION, Columns
from steval.errors import CheckpointError, ConfigError
from steval.settings import read_yaml_document

_SUFFIXES = (".torch", ".pt", ".pkl")


@dataclass(frozen=True)
class ArcVocabulary:
    """Names of one model. `features`: perturbation → `[pert_dim]` float32, in file order; names by code elsewhere."""

    features: Mapping[str, Tensor] = field(default_factory=dict)
    batches: tuple[str, ...] = ()
    cell_types: tuple[str, ...] = ()
    genes: tuple[str, ...] = ()
    """The gene names that the files record, of whatever space; empty: none."""
    columns: Columns = field(default_factory=Columns)
    run_config: Mapping[str, Any] = field(default_factory=dict)
    """`config.yaml`, as JSON types."""
    notes: tuple[str, ...] = ()


def read_vocabulary(run_dir: Path | None, hyper: Mapping[str, Any]) -> ArcVocabulary:
    """Read the maps of `run_dir` (None: a bare checkpoint, whose hyper-parameters may still name genes and control).

    Raises `CheckpointError` for a map that cannot be trusted or does not make sense.
    """
    genes = _names(hyper.get("gene_names"), "gene_names of the hyper-parameters")
    if run_dir is None:
        return ArcVocabulary(genes=genes, columns=_columns({}, hyper))
    run_config = _read_config(run_dir / "config.yaml")
    settings = _data_settings(run_dir, run_config)
    notes = []
    var_dims_path = run_dir / "var_dims.pkl"
    if var_dims_path.is_file():
        var_dims = load_foreign(var_dims_path)
        if not isinstance(var_dims, Mapping):
            raise CheckpointError(f"{var_dims_path} must hold a mapping, got {type(var_dims).__name__}")
        genes = genes or _names(var_dims.get("gene_names"), f"gene_names of {var_dims_path}")
    batches, cell_types = (_read_codes(run_dir, stem) for stem in ("batch_onehot_map", "cell_type_onehot_map"))
    features_path = _find(run_dir, "pert_onehot_map")
    if not settings:
        notes.append("the run directory has no config.yaml: the names of the obs columns are the defaults")
    return ArcVocabulary(
        features={} if features_path is None else read_feature_map(features_path),
        batches=batches,
        cell_types=cell_types,
        genes=genes,
        columns=_columns(settings, hyper),
        run_config=run_config,
        notes=tuple(notes),
    )


def read_feature_map(path: Path) -> dict[str, Tensor]:
    """A map perturbation → vector (`pert_onehot_map.pt`, an ESM2 feature file): float32 `[pert_dim]`, all of one length."""
    content = load_foreign(path)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} must hold a mapping of perturbation names to vectors, and is empty or no mapping"
        )
    check_tensors(content, str(path))
    lengths = {tuple(tensor.shape) for tensor in content.values()}
    if len(lengths) != 1 or len(next(iter(lengths))) != 1:
        raise CheckpointError(f"{path}: its vectors have different shapes: {sorted(lengths)[:5]}")
    return {name: tensor.to(torch.float32) for name, tensor in content.items()}


def _find(run_dir: Path, stem: str) -> Path | None:
    found = [run_dir / f"{stem}{suffix}" for suffix in _SUFFIXES if (run_dir / f"{stem}{suffix}").is_file()]
    return found[0] if found else None


def _read_codes(run_dir: Path, stem: str) -> tuple[str, ...]:
    """Names in code order from a map name → one-hot vector or number; every code from 0 must occur once."""
    path = _find(run_dir, stem)
    if path is None:
        return ()
    content = load_foreign(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} must hold a mapping of names to codes, got {type(content).__name__}")
    codes = {}
    for name, value in content.items():
        if isinstance(value, Tensor) and value.dim() == 1 and value.numel() == len(content):
            if int((value != 0).sum()) != 1:
                raise CheckpointError(f"{path}: the vector of {name!r} is not one-hot")
            codes[int(value.nonzero())] = str(name)
        elif isinstance(value, int) and not isinstance(value, bool):
            codes[value] = str(name)
        else:
            raise CheckpointError(f"{path}: {name!r} has neither a code nor a one-hot vector of length {len(content)}")
    if sorted(codes) != list(range(len(content))):
        raise CheckpointError(f"{path}: its codes are not 0 to {len(content) - 1}, each once")
    return tuple(codes[code] for code in range(len(content)))


def _names(value: Any, source: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"the {source} are not a list of names")
    return tuple(value)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = read_yaml_document(path)
        return json.loads(json.dumps(values, default=str)) if isinstance(values, dict) else {}
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _data_settings(run_dir: Path, run_config: Mapping[str, Any]) -> dict[str, Any]:
    """The data module's settings: `data.kwargs` of config.yaml, else `data_module.torch`."""
    data = run_config.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("kwargs"), Mapping):
        return dict(data["kwargs"])
    path = run_dir / "data_module.torch"
    content = load_foreign(path) if path.is_file() else {}
    return dict(content) if isinstance(content, Mapping) else {}


def _columns(settings: Mapping[str, Any], hyper: Mapping[str, Any]) -> Columns:
    def choose(key: str, default: str) -> str:
        value = settings.get(key)
        return value if isinstance(value, str) and value else default

    control = hyper.get("control_pert")
    return Columns(
        perturbation=choose("pert_col", DEFAULT_PERTURBATION),
        control=choose("control_pert", control if isinstance(control, str) and control else DEFAULT_CONTROL),
        cell_type=choose("cell_type_key", DEFAULT_CELL_TYPE),
        batch=choose("batch_col", DEFAULT_BATCH),
    )
