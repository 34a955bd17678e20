"""`NAME.adapter.safetensors`: LoRA matrices and whatever else differs from a base checkpoint, bound to that base by digests.

The file holds the matrices, the tensors that are not the base's (trained heads, features, controls, training effects), and the
whole description of the fine-tuned checkpoint (docs/checkpoints.md, Adapters). With its base it makes that checkpoint again.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from steval.checkpoints.adapters.record import ADAPTER_KEY, DIGEST_KEY, AdapterRecord, digest_of_both, read_record
from steval.checkpoints.manifest import Manifest, read_manifest
from steval.checkpoints.store import (
    Checkpoint,
    assembled,
    packed,
    read_tensors,
    require_finite_tensors,
    stored_tensors,
    tensor_digests,
    verify,
)
from steval.data.files import atomic_tensors
from steval.errors import CheckpointError
from steval.model.lora import LoraPair, merged, named, split_pairs
from steval.model.lora_settings import LoraSettings, can_be_adapted, is_transposed


def write_adapter(
    path: Path,
    checkpoint: Checkpoint,
    pairs: Mapping[str, LoraPair],
    settings: LoraSettings,
    base: str,
    base_digests: Mapping[str, str],
) -> AdapterRecord:
    """Write what `checkpoint`, in which `pairs` are merged, has beside its base; `base_digests` are those of the base's tensors."""
    tensors, manifest = packed(
        path, checkpoint.manifest, checkpoint.weights, checkpoint.features, checkpoint.controls, checkpoint.effects
    )
    digests = manifest.tensors
    borrowed = {
        name: digest for name, digest in digests.items() if base_digests.get(name) == digest and name not in pairs
    }
    own = {name: tensor for name, tensor in tensors.items() if name not in borrowed and name not in pairs}
    own |= {name: tensor.detach().to("cpu").contiguous() for name, tensor in named(pairs).items()}
    record = AdapterRecord(
        base=base,
        lora=settings,
        adapted={name: base_digests[name] for name in pairs},
        borrowed=borrowed,
        tensors=tensor_digests(own),
        manifest=manifest.model_copy(update={"tensors": {}}),
    )
    text = json.dumps(record.as_dict(), sort_keys=True, separators=(",", ":"))
    metadata = {ADAPTER_KEY: text, DIGEST_KEY: hashlib.sha256(text.encode()).hexdigest(), "format": "pt"}
    with atomic_tensors(path) as partial:
        save_file(own, partial, metadata=metadata)
    return record


def rewrite_adapter(path: Path, checkpoint: Checkpoint) -> None:
    """The adapter file of a checkpoint whose description has changed since (its decoding was chosen); its matrices stay."""
    record, own, _ = read_adapter(path)
    pairs = split_pairs(own)[1]
    write_adapter(path, checkpoint, pairs, record.lora, record.base, {**record.borrowed, **record.adapted})


def read_adapter(path: Path) -> tuple[AdapterRecord, dict[str, torch.Tensor], str]:
    """Record, tensors and digest of an adapter file, each tensor against its digest. Raises `CheckpointError`."""
    record, digest, header = read_record(path)
    own = stored_tensors(path, header)
    digests = tensor_digests(own)
    wrong = sorted(
        name for name in digests.keys() | record.tensors.keys() if digests.get(name) != record.tensors.get(name)
    )
    if wrong:
        raise CheckpointError(f"{path} cannot be trusted", [f"{name} does not match its digest" for name in wrong[:20]])
    require_finite_tensors(own, path)
    return record, own, digest


def load_adapted(base_path: Path, adapter_path: Path) -> Checkpoint:
    """The checkpoint that a base and an adapter make, the adapter's matrices added; verified as `load_checkpoint`.

    Raises `CheckpointError` for an adapter that cannot be trusted or belongs to another base.
    """
    tensors, base_manifest, base_digest = read_tensors(Path(base_path))
    record, own, adapter_digest = read_adapter(adapter_path)
    record.require_base(base_manifest, Path(base_path), Path(adapter_path))
    rest, pairs = split_pairs(own)
    require_fitting(record, pairs, tensors, Path(adapter_path))
    added = merged({name: tensors[name] for name in pairs}, pairs, record.lora.scale)
    whole = {name: tensors[name] for name in record.borrowed} | rest | added
    digests = record.borrowed | {name: record.tensors[name] for name in rest} | tensor_digests(added)
    manifest = record.manifest.model_copy(update={"tensors": digests})
    verify(whole, manifest, Path(adapter_path), digests)
    return assembled(Path(adapter_path), whole, manifest, digest_of_both(base_digest, adapter_digest))


def require_its_base(path: Path, base_path: Path) -> Manifest:
    """The manifest of what adapter and base make; raises `CheckpointError` where the base is another. No weights are read."""
    record, _, _ = read_adapter(path)
    record.require_base(read_manifest(Path(base_path)), Path(base_path), Path(path))
    return record.manifest


def describe_adapter(path: Path) -> dict[str, Any]:
    """What `steval inspect` prints of an adapter file."""
    record, own, digest = read_adapter(path)
    pairs = split_pairs(own)[1]
    return {
        "path": str(path),
        "format": "steval adapter",
        "size_bytes": Path(path).stat().st_size,
        "sha256": digest,
        "base": record.base,
        "lora": record.lora.as_dict(),
        "matrices": sorted(pairs),
        "own_tensors": sorted(set(own) - set(named(pairs))),
        "perturbations": len(record.manifest.perturbations),
        "decoding": record.manifest.decoding.as_dict(),
    }


def require_fitting(
    record: AdapterRecord, pairs: Mapping[str, LoraPair], base: Mapping[str, torch.Tensor], path: Path
) -> None:
    """Raise `CheckpointError` unless the matrices are those of the record and suit the tensors of the base."""
    problems = [
        f"{name}: matrices that the record does not name" for name in sorted(pairs.keys() - record.adapted.keys())
    ]
    problems += [f"{name}: its matrices are missing" for name in sorted(record.adapted.keys() - pairs.keys())]
    rank = record.lora.rank
    for name, pair in pairs.items():
        if name not in record.adapted:
            continue
        if not can_be_adapted(name) or base[name].dim() != 2:
            problems.append(f"{name} is no matrix that can have an adapter")
            continue
        outputs, inputs = base[name].shape[::-1] if is_transposed(name) else base[name].shape
        shapes = tuple(pair.a_RI.shape), tuple(pair.b_OR.shape)
        if shapes != ((rank, inputs), (outputs, rank)):
            problems.append(f"{name}: matrices of shapes {shapes} beside {tuple(base[name].shape)} at rank {rank}")
        if not (pair.a_RI.is_floating_point() and pair.b_OR.is_floating_point()):
            problems.append(f"{name}: matrices that are not floating point numbers")
    if problems:
        raise CheckpointError(f"{path} cannot be trusted", problems[:20])
