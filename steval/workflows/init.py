"""`steval init`: a commented configuration for the data at hand, after looking at it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from steval.data.cells.cellfile import CellFile
from steval.data.cells.scale import ScaleRecord, resolve_scale, sample_indices
from steval.data.columns import ColumnOptions, Columns, resolve_columns
from steval.data.files import atomic_path
from steval.data.labels import label_codes
from steval.data.outputs import require_output
from steval.data.splits.assignment import SINGLE_CELL_TYPE
from steval.errors import ConfigError
from steval.settings import parse_yaml
from steval.trainer.config import FinetuneConfig
from steval.trainer.recipes import recipe_path, with_recipe
from steval.wording import counted

HELD_OUT = 0.1
"""Share of the perturbations that validates, and as large a one that tests."""
FEWEST = 10
"""With fewer perturbations none is held out as a whole: cells of each are."""
SET_SIZES = (64, 32, 16, 8)


@dataclass(frozen=True)
class Found:
    """What a file holds, as far as a configuration needs to know."""

    columns: Columns
    scale: ScaleRecord
    depth: float
    """Median total of a cell, on the file's own scale."""
    num_cells: int
    num_genes: int
    contexts: dict[str, tuple[str, ...]]
    """Cell type → its perturbations with cells, sorted, the control left out."""
    median_cells: int
    """Of a perturbation in a cell type."""


def look(path: Path, options: ColumnOptions | None = None) -> Found:
    """Look at an h5ad; raises `DataError` for columns that are not there or a scale that is ambiguous."""
    with CellFile.open(path) as cells:
        columns = resolve_columns(cells.obs, cells.record, options, source=str(path))
        cells = cells.labelled(columns, "perturbation")
        scale = resolve_scale(cells)
        totals = np.asarray(cells.rows(sample_indices(cells.num_cells)).sum(axis=1)).ravel()
        names, codes = label_codes(cells.obs[columns.perturbation])
        types = [SINGLE_CELL_TYPE] if columns.cell_type is None else label_codes(cells.obs[columns.cell_type])[0]
        type_codes = 0 * codes if columns.cell_type is None else label_codes(cells.obs[columns.cell_type])[1]
        contexts, counts = {}, []
        for number, name in enumerate(types):
            found, sizes = np.unique(codes[type_codes == number], return_counts=True)
            kept = [
                (names[code], size) for code, size in zip(found, sizes, strict=True) if names[code] != columns.control
            ]
            if kept:
                contexts[name] = tuple(sorted(perturbation for perturbation, _ in kept))
                counts += [size for _, size in kept]
        return Found(
            columns, scale, float(np.median(totals)), cells.num_cells, len(cells.genes), contexts,
            int(np.median(counts)) if counts else 0,
        )  # fmt: skip


def write_configuration(
    data: Path, out: Path, *, recipe: str = "quick-cpu", options: ColumnOptions | None = None, seed: int = 42,
    overwrite: bool = False,
) -> Found:  # fmt: skip
    """Look at `data` and write a configuration on top of `recipe` to `out`, atomically; it is read back before."""
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} is already there; name another file with -o, or replace it with --overwrite")
    require_output(out, {"the data": data})
    recipe_path(recipe)
    found = look(data, options)
    text = configuration_text(data, found, recipe, seed)
    FinetuneConfig.parse(with_recipe(parse_yaml(text, str(out)), str(out)), source=str(out))
    with atomic_path(out) as partial:
        partial.write_text(text, encoding="utf-8")
    return found


def configuration_text(data: Path, found: Found, recipe: str, seed: int) -> str:
    """The YAML with its comments."""
    columns, scale = found.columns, found.scale
    num = len({name for names in found.contexts.values() for name in names})
    lines = [
        f"# Made by steval init from {data.name}: {counted(found.num_cells, 'cell')}, "
        f"{counted(found.num_genes, 'gene')}, {counted(num, 'perturbation')} in "
        f"{counted(len(found.contexts), 'cell type')}",
        f"recipe: {recipe}                 # the base; keys here go on top (steval finetune {recipe} --print-config shows all)",
        "data:",
        f"  files: [{_quoted(str(data.absolute()))}]",
        "  columns:",
        f"    perturbation: {_quoted(columns.perturbation)}",
        f"    control: {_quoted(columns.control)}          # label of the unperturbed cells",
        f"    cell_type: {_quoted(columns.cell_type) if columns.cell_type else 'null   # no such column: cells of one type'}",
        f"    batch: {_quoted(columns.batch) if columns.batch else 'null       # no such column: one batch'}",
        *(["    drop_unlabelled: true"] if columns.drop_unlabelled else []),
        f"  scale: {scale.scale}              # {scale.describe()}",
    ]
    if scale.scale == "counts":
        lines.append(
            f"  target_sum: {round(found.depth) or 1}      # total per cell before log1p: here the median depth"
        )
    lines += _split_lines(found, seed)
    size = next((size for size in SET_SIZES if size <= found.median_cells), SET_SIZES[-1])
    lines += [
        "sets:",
        f"  size: {size}                  # cells of a set; a perturbation has {counted(found.median_cells, 'cell')} at the median",
    ]
    return "\n".join(lines) + "\n"


def _split_lines(found: Found, seed: int) -> list[str]:
    """Whole perturbations held out where there are enough, the same ones in every context; else cells of each."""
    names = sorted({name for names in found.contexts.values() for name in names})
    if len(names) < FEWEST:
        return [
            f"  # {counted(len(names), 'perturbation is', 'perturbations are')} too few to hold out whole ones: cells "
            "of each validate and test",
            "  split: {by: cells, val: 0.1, test: 0.1}",
        ]
    drawn = np.random.default_rng(seed).permutation(names)
    count = max(1, round(HELD_OUT * len(names)))
    parts = {"val": set(drawn[:count]), "test": set(drawn[count : 2 * count])}
    lines = [
        f"  # {counted(count, 'perturbation validates', 'perturbations validate')} and "
        f"{counted(count, 'tests', 'test')}, drawn with seed {seed}: their cells never train",
        *(
            [
                f"  # the same in all {counted(len(found.contexts), 'context')}: perturbations measured nowhere, for which the",
                "  # mean effect is what to expect; to predict one context from the others, leave only that context's lines below",
            ]
            if len(found.contexts) > 1
            else []
        ),
        "  split:",
        "    by: contexts",
    ]
    for part, held in parts.items():
        lines.append(f"    {part}:")
        for context, present in found.contexts.items():
            if chosen := [name for name in present if name in held]:
                lines.append(f"      {_quoted(context)}: {_listed(chosen)}")
    return lines


def _listed(names: Sequence[str]) -> str:
    return "[" + ", ".join(_quoted(name) for name in names) + "]"


def _quoted(value: Any) -> str:
    """A YAML string: quoted, whatever it looks like."""
    return yaml.safe_dump(str(value), default_style='"', allow_unicode=True, width=10**9).strip()
