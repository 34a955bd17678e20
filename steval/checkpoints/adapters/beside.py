"""Adapters on a base that is in memory: they share its tensors, and their matrices stay beside them in place of being added."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from steval.checkpoints.adapters.adapter_file import read_adapter, require_fitting
from steval.checkpoints.adapters.record import digest_of_both
from steval.checkpoints.manifest import Manifest
from steval.checkpoints.store import Checkpoint, assembled, verify
from steval.model.lora import split_pairs


@dataclass(frozen=True)
class SharedBase:
    """A verified checkpoint in memory, of which adapters take what they do not change."""

    path: Path
    manifest: Manifest
    digest: str
    tensors: Mapping[str, Tensor]
    """All tensors of its file by name; weights may be on a device and in its dtype."""


def load_beside(base: SharedBase, path: Path) -> Checkpoint:
    """The checkpoint that `base` and the adapter file `path` make, with the base's own tensors wherever the adapter has none.

    Its network computes what that of `load_adapted` does, to rounding: `W x + B (A x)` in place of `(W + B A) x`. Raises
    `CheckpointError` as that does.
    """
    record, own, digest = read_adapter(path)
    record.require_base(base.manifest, base.path, path)
    rest, pairs = split_pairs(own)
    require_fitting(record, pairs, base.tensors, path)
    whole = {name: base.tensors[name] for name in record.needed} | rest
    digests = record.needed | {name: record.tensors[name] for name in rest}
    manifest = record.manifest.model_copy(update={"tensors": digests})
    verify(whole, manifest, path, digests)
    beside = {name: pair.scaled(record.lora.scale) for name, pair in pairs.items()}
    return replace(assembled(path, whole, manifest, digest_of_both(base.digest, digest)), beside=beside)
