"""What a checkpoint holds, as JSON types: ours from its header alone (no torch, no weights read), arc-state's by safe reading."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from steval.checkpoints.evidence import evidence_sentence
from steval.checkpoints.location import ADAPTER_SUFFIX, is_arc, local, locate_checkpoint, pinned_reference
from steval.checkpoints.manifest import CONTROLS, EFFECTS, FEATURES, Manifest, parse_metadata, read_header
from steval.errors import CheckpointError


def inspect_checkpoint(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """Describe a checkpoint (or a run's best one), an arc-state run directory or a `.ckpt`; nothing of it is executed.

    With `verify` the weights of a steval checkpoint are read and their digests, shapes and values checked (arc-state's
    files have no digests). Raises `CheckpointError`.
    """
    path = local(path)
    if path.name.endswith(ADAPTER_SUFFIX):
        from steval.checkpoints.adapters.adapter_file import describe_adapter

        return describe_adapter(path)
    if is_arc(path):
        return _describe_arc(path)
    path = locate_checkpoint(path)
    header = read_header(path)
    manifest = parse_metadata(header.get("__metadata__"), path)
    if verify:
        from steval.checkpoints.store import load_checkpoint

        load_checkpoint(path)
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return {
        "path": pinned_reference(path) or str(path),
        "format": "steval",
        "verified": verify,
        "size_bytes": path.stat().st_size,
        "sha256": header["__metadata__"]["steval_sha256"],
        **_describe_manifest(manifest),
        "parameters": count_parameters(
            {
                name: shape
                for name, shape in shapes.items()
                if name != FEATURES and not name.startswith((CONTROLS, EFFECTS))
            }
        ),
    }


def count_parameters(shapes: Mapping[str, Iterable[int]]) -> dict[str, Any]:
    """Numbers of parameters: `total` and `by_module` (first part of the name), largest first."""
    modules: dict[str, int] = {}
    for name, shape in shapes.items():
        module = name.partition(".")[0]
        modules[module] = modules.get(module, 0) + math.prod(shape)
    ordered = dict(sorted(modules.items(), key=lambda item: (-item[1], item[0])))
    return {"total": sum(ordered.values()), "by_module": ordered}


def _describe_manifest(manifest: Manifest) -> dict[str, Any]:
    values = manifest.as_dict()
    trained = [entry.name for entry in manifest.perturbations if entry.trained]
    return {
        "format_version": manifest.format_version,
        "created": manifest.created,
        "made_by": manifest.made_by,
        "licence": manifest.licence,
        "attention": manifest.model.attention,
        "model": values["model"],
        "scale": manifest.scale,
        "target_sum": manifest.target_sum,
        "genes": {"input": values["input_genes"], "output": values["output_genes"]},
        "perturbations": {
            "control": manifest.control,
            "trained": trained,
            "untrained": [entry.name for entry in manifest.perturbations if not entry.trained],
        },
        "cell_types": list(manifest.cell_types),
        "batches": list(manifest.batches),
        "columns": values["columns"],
        "controls": manifest.num_controls,
        "decoding": values["decoding"],
        "calibration": values["calibration"],
        "evidence": evidence_sentence(manifest),
        "training_effects": values["training_effects"],
        "training": values["training"],
        "evaluation": values["evaluation"],
        "training_data": values["training_data"],
        "notes": list(manifest.notes),
    }


def _describe_arc(path: Path) -> dict[str, Any]:
    from steval.checkpoints.arc import read_arc
    from steval.checkpoints.weight_source import gene_names

    if not path.exists():
        raise CheckpointError(f"no such checkpoint or run directory: {path}")
    model = read_arc(path)
    vocabulary = model.vocabulary
    input_genes, output_genes = gene_names(vocabulary.genes, model.config)
    return {
        "path": str(path),
        "format": "arc-state",
        "verified": False,
        "size_bytes": model.checkpoint_path.stat().st_size,
        "licence": None,
        "attention": model.regime.attention,
        "attention_recorded": model.regime.recorded,
        "attention_reason": model.regime.reason,
        "model": model.config.as_dict(),
        "scale": None,
        "target_sum": None,
        "genes": {"input": _listed(input_genes), "output": _listed(output_genes)},
        "perturbations": {"control": vocabulary.columns.control, "trained": list(vocabulary.features), "untrained": []},
        "cell_types": list(vocabulary.cell_types),
        "batches": list(vocabulary.batches),
        "columns": vocabulary.columns.as_dict(),
        "controls": {},
        "training": model.training.as_dict(),
        "evaluation": None,
        "training_data": None,
        "notes": list(model.notes),
        "unused_tensors": list(model.dropped),
        "adapters": model.adapters.as_dict() if model.adapters else None,
        "parameters": count_parameters({name: tuple(tensor.shape) for name, tensor in model.weights.items()}),
    }


def _listed(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)
