"""A base and an adapter as one checkpoint."""

from pathlib import Path

from steval.checkpoints.adapters.given import load_given
from steval.checkpoints.location import locate_checkpoint
from steval.checkpoints.store import Checkpoint, save_checkpoint
from steval.data.outputs import require_output


def merge(base: Path, adapter: Path, out: Path) -> Checkpoint:
    """Write the checkpoint that `base` and `adapter` make to `out`, and return it; errors as `load_adapted`."""
    base = locate_checkpoint(base)
    require_output(out, {"the base": base, "the adapter": adapter}, suffixes=(".safetensors",))
    checkpoint = load_given(base, adapter)
    save_checkpoint(
        out,
        manifest=checkpoint.manifest,
        weights=checkpoint.weights,
        features=checkpoint.features,
        controls=checkpoint.controls,
        effects=checkpoint.effects,
    )
    return checkpoint
