"""`steval pack`: the season that the predictions are for, column names from the file's record, then the evaluator's packing."""

from collections.abc import Sequence
from pathlib import Path

from steval.data.cells.cellfile import CellFile
from steval.data.cells.scale import Scale, resolve_scale
from steval.data.challenge.panel import CONTEXT
from steval.data.columns import ColumnOptions, resolve_columns
from steval.errors import ConfigError
from steval.evaluator.challenge.packed import Season, Submission
from steval.evaluator.challenge.season2026 import pack_counts
from steval.evaluator.submission import MOST_CELLS, pack
from steval.limits import Count
from steval.settings import Settings


class PackOptions(Settings):
    """How predictions are packed."""

    season: Season | None = None
    """None: 2026 for counts with a context for each cell, and where one of its options is given; else 2025."""
    genes: Path | None = None
    columns: ColumnOptions = ColumnOptions()
    perts: Path | None = None
    """The challenge's list of perturbations (2026)."""
    contexts: tuple[str, ...] | None = None
    """Those that must be there (2026). None: as the manifest beside the lists says."""
    context_col: str | None = None
    """obs column with the context (2026)."""
    with_cell_type: bool = False
    """Keep the cell types (2025)."""
    max_cells: Count | None = None
    """Refuse more cells (2025)."""
    scale: Scale | None = None
    """Of predictions that do not declare it (2025)."""

    def given(self, fields: Sequence[str]) -> list[str]:
        """Options, of those named, that say anything, as they are spelled on the command line."""
        return [f"--{name.replace('_', '-')}" for name in fields if getattr(self, name) not in (None, False)]


_ONLY_IN = {2025: ("with_cell_type", "max_cells", "scale"), 2026: ("perts", "contexts", "context_col")}


def pack_predictions(preds: Path, out: Path, options: PackOptions) -> tuple[Submission, str]:
    """Pack the h5ad `preds` as the submission `out`; also says why for this season. Errors of `pack` and `pack_counts`."""
    season, reason = _season(preds, options)
    others = options.given(_ONLY_IN[2025 if season == 2026 else 2026])
    if others:
        raise ConfigError(
            f"not for the season {season}: {', '.join(others)}; leave that out, or name the other season with --season"
        )
    if season == 2026:
        if options.genes is None or options.perts is None:
            raise ConfigError(
                "a submission of 2026 is checked against the organisers' lists: name them with --genes and --perts"
            )
        submission = pack_counts(
            preds, out, genes=options.genes, perturbations=options.perts, contexts=options.contexts, columns=options.columns,
            context_column=options.context_col or CONTEXT,
        )  # fmt: skip
        return submission, reason
    with CellFile.open(preds) as cells:
        columns = resolve_columns(cells.obs, cells.record, options.columns, source=str(preds))
    submission = pack(
        preds, out, columns=columns, genes=options.genes, with_cell_type=options.with_cell_type,
        max_cells=options.max_cells or MOST_CELLS, scale=options.scale,
    )  # fmt: skip
    return submission, reason


def _season(preds: Path, options: PackOptions) -> tuple[Season, str]:
    if options.season is not None:
        return options.season, "as asked for"
    if given := options.given(_ONLY_IN[2026]):
        return 2026, f"as {', '.join(given)} says"
    with CellFile.open(preds) as cells:
        if CONTEXT not in cells.obs.columns:
            return 2025, f"since its cells have no column {CONTEXT!r}"
        scale = resolve_scale(cells, options.scale).scale
    return (2026 if scale == "counts" else 2025), f"since its cells are {scale} and have a column {CONTEXT!r}"
