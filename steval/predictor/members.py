"""What checkpoints must have in common to predict together; torch-free, for who plans predictions that others compute."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steval.checkpoints.manifest import Manifest
from steval.data.effects.decoding import DecodingChoice, DecodingSettings

ALIKE = ("output_genes", "input_genes", "scale", "target_sum", "control")
"""What the manifests of an ensemble have in common."""
READ_ALIKE = ("input_key", "input_dim")
"""What their networks have in common: all start from the same cells, as the first one reads them."""


@dataclass(frozen=True)
class Member:
    """One checkpoint of an ensemble."""

    path: str
    digest: str
    manifest: Manifest


def misfits(members: Sequence[Member]) -> list[str]:
    """Every way in which `members` cannot be one ensemble, whatever is asked of it."""
    first = members[0]
    problems = [
        f"{member.path} and {first.path} differ in {name.replace('_', ' ')}"
        for member in members[1:]
        for name in (*ALIKE, *READ_ALIKE)
        if _fact(member.manifest, name) != _fact(first.manifest, name)
    ]
    digests = [member.digest for member in members]
    return problems + [
        f"{member.path} is given twice" for row, member in enumerate(members) if member.digest in digests[:row]
    ]


def not_carried(decodings: Sequence[tuple[str, DecodingSettings]], asked: DecodingChoice) -> list[str]:
    """Those of the checkpoints (path, decoding) that have no effects to average where `asked` is asked for."""
    return [
        f"{path} is decoded as the network puts its cells out"
        for path, decoding in decodings
        if decoding.chosen(asked).kind != "carried"
    ]


def _fact(manifest: Manifest, name: str) -> Any:
    if name in ALIKE:
        return getattr(manifest, name)
    by_name = name == "input_key" and manifest.model.input_is_genes  # genes are found by name, whatever the key
    return None if by_name else getattr(manifest.model, name)
