"""A checkpoint as a command is given it: by its reference, with an adapter beside it or without."""

from pathlib import Path

from steval.checkpoints.adapters.adapter_file import load_adapted
from steval.checkpoints.location import local, locate_checkpoint, require_plain
from steval.checkpoints.store import Checkpoint, load_checkpoint


def load_given(reference: str | Path, adapter: str | Path | None = None) -> Checkpoint:
    """The checkpoint that `reference` means; with `adapter`, its base. Raises `CheckpointError`."""
    path = locate_checkpoint(reference)
    return load_checkpoint(path) if adapter is None else load_adapted(path, require_plain(local(adapter)))
