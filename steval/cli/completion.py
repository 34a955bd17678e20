"""What a shell is told as a value is typed: recipes, metrics, columns of files, names of the checkpoint.

A shell asks while a person waits and throws away what goes wrong: an answer that cannot be given is no answer, and nothing is
printed. Files are opened for their headers alone.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

MOST = 200
"""Suggestions at once."""


def quietly(function: Callable[[Any], Iterable[str]]) -> Callable[[Any, str], list[str]]:
    """A completion of one value that begins with what was typed; nothing where the names cannot be had."""

    def complete(ctx: Any, incomplete: str) -> list[str]:
        return _begun(function, ctx, incomplete)

    return complete


def listed(function: Callable[[Any], Iterable[str]]) -> Callable[[Any, str], list[str]]:
    """As `quietly`, for names with commas between."""

    def complete(ctx: Any, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in _begun(function, ctx, last)]

    return complete


def _begun(function: Callable[[Any], Iterable[str]], ctx: Any, start: str) -> list[str]:
    try:
        names = list(function(ctx))
    except Exception:  # noqa: BLE001 (a shell cannot show it, and the command itself will say it)
        return []
    return [name for name in names if name.startswith(start)][:MOST]


@quietly
def recipes(ctx: Any) -> Iterable[str]:
    """Names of the shipped recipes."""
    from steval.trainer.recipes import recipe_names

    return recipe_names()


@listed
def metrics(ctx: Any) -> Iterable[str]:
    """Names of the metrics."""
    from steval.evaluator.metrics.catalog import CATALOG

    return CATALOG


@listed
def perturbations(ctx: Any) -> Iterable[str]:
    """Names that the checkpoint knows."""
    manifest = _manifest(ctx)
    return [name for name in manifest.perturbation_names if name != manifest.control]


@quietly
def cell_types(ctx: Any) -> Iterable[str]:
    """Cell types of the checkpoint."""
    return [*_manifest(ctx).cell_types, "all"]


@quietly
def batches(ctx: Any) -> Iterable[str]:
    """Batches of the checkpoint."""
    return _manifest(ctx).batches


@quietly
def obs_columns(ctx: Any) -> Iterable[str]:
    """Columns of the cells of a file that was named before."""
    from steval.data.cells.cellfile import CellFile

    path = next(path for path in _given(ctx) if path.suffix == ".h5ad" and path.is_file())
    with CellFile.open(path, with_obs=False) as cells:
        return cells.column_names()


def _given(ctx: Any) -> list[Path]:
    values = [value for value in ctx.params.values() if value is not None]
    flat = [one for value in values for one in (value if isinstance(value, list | tuple) else [value])]
    return [Path(value) for value in flat if isinstance(value, str | Path)]


def _manifest(ctx: Any) -> Any:
    from steval.checkpoints.manifest import read_manifest

    return read_manifest(next(path for path in _given(ctx) if path.suffix == ".safetensors"))
