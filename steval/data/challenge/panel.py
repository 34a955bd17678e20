"""What a submission of 2026 must hold, as the organisers' control bundle says it: genes, perturbations, cells, contexts.

`gene_names.csv` has a gene a line (a header or none), `pert_counts.csv` a column `target_gene` and perhaps `context` and
`n_cells`, `manifest.json` beside them the contexts of the phase and the panel's name. Read as `vcc prep` of vcc-cli 0.3.0 does.
"""

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steval.data.cells.genes import read_genes
from steval.data.files import read_text
from steval.errors import ConfigError, DataError
from steval.wording import listed

PERTURBATION, CONTROL, CONTEXT, NUM_CELLS = "target_gene", "non-targeting", "context", "n_cells"
"""Columns of the bundle's files and its control label; those of predictions may be called otherwise."""
GENES_FILE, PERTURBATIONS_FILE, MANIFEST_FILE = "gene_names.csv", "pert_counts.csv", "manifest.json"
CELLS_EACH = 400
"""Cells of each perturbation where the list has no numbers of its own."""
LARGEST_MANIFEST = 1 << 18


@dataclass(frozen=True)
class Manifest:
    """Contexts that a phase of the challenge scores, and the name of its panel."""

    contexts: tuple[str, ...]
    panel: str | None
    path: Path


@dataclass(frozen=True)
class Panel:
    """What a submission must hold."""

    genes: tuple[str, ...]
    """In this order."""
    contexts: tuple[str, ...]
    perturbations: Mapping[str, Mapping[str, int | None]]
    """Cells of each perturbation by context; None: any number. A context that the list does not know is not here."""
    fingerprint: str
    """Of the names in the perturbation list, whatever else its file holds."""
    name: str | None
    """The panel's name, where the manifest of these contexts gives it."""


def read_panel(genes: Path, perturbations: Path, contexts: Sequence[str] | None = None) -> Panel:
    """The panel of a gene list and a perturbation list; `contexts` None: those of `manifest.json` beside either.

    Raises `DataError` for a list that cannot be read or is empty, `ConfigError` where no contexts are named.
    """
    names = read_genes(genes)
    cells = _read_perturbations(perturbations)
    manifest = find_manifest(perturbations, genes)
    if contexts is None:
        if manifest is None:
            raise ConfigError(
                f"which contexts must the submission hold? No {MANIFEST_FILE} that names contexts lies beside {perturbations} "
                f"or {genes}; keep it there, or name them with --contexts A,B,C"
            )
        contexts = manifest.contexts
    wanted = {name: found for name in contexts if (found := cells.get(name, cells.get(None))) is not None}
    is_same = manifest is not None and set(manifest.contexts) == set(contexts)
    panel = manifest.panel if manifest is not None and is_same else None
    return Panel(tuple(names), tuple(contexts), wanted, _fingerprint(perturbations), panel)


def find_manifest(*near: Path) -> Manifest | None:
    """The manifest that lies beside the first of these files that has a readable one."""
    for path in near:
        place = Path(path).resolve().parent / MANIFEST_FILE
        if place.is_file() and (found := read_manifest(place)) is not None:
            return found
    return None


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in `path`; None where it is not one that names contexts."""
    if path.stat().st_size > LARGEST_MANIFEST:
        return None
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    contexts = found.get("contexts") if isinstance(found, dict) else None
    if not isinstance(contexts, list) or not contexts or not all(isinstance(c, str) and c.strip() for c in contexts):
        return None
    panel = found.get("panel_id")
    return Manifest(tuple(c.strip() for c in contexts), panel if isinstance(panel, str) and panel else None, path)


def _read_perturbations(path: Path) -> dict[str | None, dict[str, int | None]]:
    """Cells of each perturbation by context; under None where the list has no contexts."""
    header, rows = _table(path)
    has_numbers, has_contexts = NUM_CELLS in header, CONTEXT in header
    found: dict[str | None, dict[str, int | None]] = {}
    for row in rows:
        name = row.get(PERTURBATION, "").strip()
        if not name or name == CONTROL:
            continue
        context = row.get(CONTEXT, "").strip() if has_contexts else None
        found.setdefault(context, {})[name] = _number(row.get(NUM_CELLS, "")) if has_numbers else CELLS_EACH
    if not found:
        raise DataError(f"the perturbation list {path} names no perturbation")
    return found


def _fingerprint(path: Path) -> str:
    names = sorted({row.get(PERTURBATION, "").strip() for row in _table(path)[1]} - {""})
    return "sha256:" + hashlib.sha256("\n".join(names).encode()).hexdigest()


def _number(text: str) -> int | None:
    """A whole number of cells above 0; None where the list does not give one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if math.isfinite(value) and value >= 1 else None


def _table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    text = read_text(path, "perturbation list")
    try:
        header, *rows = [row for row in csv.reader(text.splitlines()) if row] or [[]]
    except csv.Error as error:
        raise DataError(f"the perturbation list {path} is no table: {error}") from error
    if PERTURBATION not in header:
        raise DataError(
            f"the perturbation list {path} has no column {PERTURBATION}; its columns are: {listed(header, 30)}"
        )
    return header, [dict(zip(header, row, strict=False)) for row in rows]
