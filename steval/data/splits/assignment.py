"""Which cell belongs to train, val or test; and the audit's rule that no perturbed cell belongs to two.

Three ways (docs/architecture.md, Vocabulary: split): `cells` (seeded fractions within each cell type and perturbation),
`contexts` (lists of perturbations by context) and `toml` (cell-load's split file). A context is a value of
`cell_type_key`, by default the cell type column. Controls are inputs in every part; as targets they appear in training only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd

from steval.data.columns import Columns
from steval.data.labels import labels_of, labels_or
from steval.data.splits.settings import ALL, CellSplit, ContextSplit, Split, SplitSettings, TomlSplit, parse_split
from steval.data.splits.toml import read_split_toml
from steval.errors import ConfigError, DataError, nearest_names
from steval.wording import listed

__all__ = ["CellSplit", "ContextSplit", "Split", "SplitSettings", "TomlSplit", "parse_split"]

PARTS = ("train", "val", "test")
TRAIN, VAL, TEST = 0, 1, 2
SHARED_CONTROL = 3
"""A control cell that is an input in every part."""
UNUSED = -1
"""A cell of no part (in a data set that the split file does not train on)."""


@dataclass(frozen=True)
class CellLabels:
    """Labels of N cells as integer codes."""

    perturbations: tuple[str, ...]
    perturbation_codes: np.ndarray
    """`[N]` into `perturbations`."""
    contexts: tuple[str, ...]
    context_codes: np.ndarray
    """`[N]` into `contexts`."""
    control: str

    @property
    def is_control(self) -> np.ndarray:
        """`[N]` bool."""
        code = self.perturbations.index(self.control) if self.control in self.perturbations else -1
        return self.perturbation_codes == code

    @classmethod
    def of(
        cls, obs: pd.DataFrame, columns: Columns, cell_type_key: str | None = None, source: str = "the data"
    ) -> "CellLabels":
        """Code the columns of an `obs`; a context column that is not there, or a cell without a label, is a `DataError`."""
        if cell_type_key is not None and cell_type_key not in obs.columns:
            raise absent_context_column(cell_type_key, list(obs.columns))
        perturbation = pd.Categorical(labels_of(obs, columns.perturbation, source))
        context = pd.Categorical(labels_or(obs, cell_type_key or columns.cell_type, SINGLE_CELL_TYPE, source))
        return cls(
            tuple(perturbation.categories), perturbation.codes.astype(np.int32),
            tuple(context.categories), context.codes.astype(np.int32), columns.control,
        )  # fmt: skip


SINGLE_CELL_TYPE = "all cells"
"""The cell type of cells whose data has no such column."""


def absent_context_column(key: str, existing: Sequence[str]) -> DataError:
    """The error for a `cell_type_key` that the data lacks."""
    return DataError(
        f"the data has no obs column {key!r} (cell_type_key of the split); its columns are: {listed(existing, 30)}"
    )


def assign_parts(obs: pd.DataFrame, columns: Columns, settings: Split, dataset: str | None = None) -> np.ndarray:
    """Part of each cell of one file, int8 `[N]`: 0 train, 1 val, 2 test, 3 control shared by all, -1 of no part.

    `dataset` is the file's name in the TOML, needed where that names several. A listed perturbation or context that the
    data lacks, or one in two parts, and an empty part are a `DataError`.
    """
    labels = CellLabels.of(obs, columns, settings.cell_type_key)
    settings = with_table(settings)
    require_known(settings, [(dataset, labels)])
    codes = assign_labels(labels, settings, dataset)
    require_parts(codes, settings)
    return codes


def with_table(settings: Split) -> Split:
    """The same settings; a TOML split with the content of its file."""
    if isinstance(settings, TomlSplit) and settings.table is None:
        return settings.model_copy(update={"table": read_split_toml(Path(settings.path))})
    return settings


def assign_labels(labels: CellLabels, settings: Split, dataset: str | None = None) -> np.ndarray:
    """As `assign_parts` for coded labels of one file, without the checks."""
    is_control = labels.is_control
    if isinstance(settings, CellSplit):
        codes = _by_fractions(labels, np.ones(len(is_control), dtype=bool), settings.seed, settings.val, settings.test)
        codes[is_control & (settings.controls == "shared")] = SHARED_CONTROL
        return codes
    table = _table(labels, _rules(settings, dataset))
    codes = table[labels.context_codes, labels.perturbation_codes]
    used = (codes != UNUSED) & is_control
    codes[used] = SHARED_CONTROL
    if settings.controls == "split":
        codes[used] = _by_fractions(labels, used, settings.seed, settings.control_val, settings.control_test)[used]
    return codes


def require_parts(codes: np.ndarray, settings: Split) -> None:
    """Raise a `DataError` where train, val or a declared test has no cell."""
    counts = {part: int((codes == number).sum()) for number, part in enumerate(PARTS)}
    needed = ["train", "val", *(["test"] if declares_test(settings) else [])]
    empty = [part for part in needed if not counts[part]]
    if empty:
        found = ", ".join(f"{part} {count}" for part, count in counts.items())
        raise DataError(
            f"the split leaves no perturbed cells in {' and '.join(empty)} (cells by part: {found}). An empty part is never "
            f"replaced by another: change the split (now by {settings.by})"
        )


def declares_test(settings: Split) -> bool:
    """Whether the split is meant to have a test part."""
    if isinstance(settings, TomlSplit):
        table = settings.table
        return table is not None and table.declares("test")
    return bool(settings.test)


def require_known(settings: Split, files: Sequence[tuple[str | None, CellLabels]]) -> None:
    """Raise one `DataError` that lists every context and perturbation of the split that the files (data set, labels) lack."""
    if isinstance(settings, CellSplit):
        return
    problems = []
    datasets = sorted({dataset for dataset, _ in files}, key=str)
    for dataset in datasets:
        present = _present([labels for name, labels in files if name == dataset])
        problems += _unknown(_rules(settings, dataset), present)
    if isinstance(settings, TomlSplit) and settings.table is not None and None not in datasets:
        problems += [
            f"data set {name!r} has no file" for name in settings.table.datasets_used() if name not in datasets
        ]
    if problems:
        raise DataError("the split names what the data lacks, or one thing twice", problems)


@dataclass(frozen=True)
class _Rules:
    """Part by context and perturbation; `default` is the part of a context that no rule names."""

    default: int
    contexts: dict[str, int]
    """Whole contexts."""
    perturbations: dict[str, dict[str, tuple[str, ...]]]
    """Part → context → perturbations."""


def _rules(settings: ContextSplit | TomlSplit, dataset: str | None) -> _Rules:
    if isinstance(settings, ContextSplit):
        by_part = {"val": settings.val, "test": settings.test}
        return _Rules(
            default=TRAIN,
            contexts={
                context: PARTS.index(part)
                for part, lists in by_part.items()
                for context, names in lists.items()
                if names == ALL
            },
            perturbations={
                part: {context: tuple(names) for context, names in lists.items() if names != ALL}
                for part, lists in by_part.items()
            },
        )
    if settings.table is None:
        raise ConfigError("a TOML split is used before its file is read")
    rules = settings.table.of(dataset)
    return _Rules(
        default=TRAIN if rules.trains else UNUSED,
        contexts={context: PARTS.index(part) for context, part in rules.zeroshot.items()},
        perturbations={
            part: {c: lists[part] for c, lists in rules.fewshot.items() if part in lists} for part in ("val", "test")
        },
    )


def _table(labels: CellLabels, rules: _Rules) -> np.ndarray:
    """Part of each (context, perturbation), int8 `[C, P]`."""
    context_code = {name: code for code, name in enumerate(labels.contexts)}
    perturbation_code = {name: code for code, name in enumerate(labels.perturbations)}
    table = np.full((len(context_code), len(perturbation_code)), rules.default, dtype=np.int8)
    for context, part in rules.contexts.items():
        if context in context_code:
            table[context_code[context]] = part
    listed = {context for lists in rules.perturbations.values() for context in lists}
    for context in listed & set(context_code) - set(rules.contexts):
        table[context_code[context]] = TRAIN
    for part, lists in rules.perturbations.items():
        for context, names in lists.items():
            known = [perturbation_code[name] for name in names if name in perturbation_code]
            if context in context_code:
                table[context_code[context], known] = PARTS.index(part)
    return table


def _present(files: Sequence[CellLabels]) -> tuple[dict[str, set[str]], str]:
    present: dict[str, set[str]] = {}
    for labels in files:
        pairs = np.unique(labels.context_codes.astype(np.int64) * len(labels.perturbations) + labels.perturbation_codes)
        for pair in pairs.tolist():
            context, perturbation = divmod(pair, len(labels.perturbations))
            present.setdefault(labels.contexts[context], set()).add(labels.perturbations[perturbation])
    return present, files[0].control


def _unknown(rules: _Rules, data: tuple[dict[str, set[str]], str]) -> list[str]:
    present, control = data
    problems = []
    listed = [*rules.contexts, *(context for lists in rules.perturbations.values() for context in lists)]
    for context in dict.fromkeys(listed):
        if context not in present:
            problems.append(f"context {context!r} is not in the data; it has: {_shown(context, present)}")
            continue
        seen: dict[str, str] = {}
        for part, lists in rules.perturbations.items():
            for name in lists.get(context, ()):
                if name == control:
                    problems.append(
                        f"{part}: {name!r} in {context!r} is the control; controls are inputs in every part"
                    )
                elif name not in present[context]:
                    problems.append(
                        f"{part}: perturbation {name!r} has no cell in context {context!r}{_near(name, present[context])}"
                    )
                if seen.setdefault(name, part) != part:
                    problems.append(f"perturbation {name!r} of context {context!r} is in {seen[name]} and in {part}")
        if context in rules.contexts and any(context in lists for lists in rules.perturbations.values()):
            problems.append(f"context {context!r} is held out as a whole and by perturbation; keep one of the two")
    return problems


def _near(name: str, known: set[str]) -> str:
    near = nearest_names(name, sorted(known))
    return f"; nearest: {listed(near)}" if near else ""


def _shown(name: str, present: Mapping[str, Any]) -> str:
    near = nearest_names(name, sorted(present))
    names = near or sorted(present)
    return listed(names, 8)


def _by_fractions(labels: CellLabels, wanted: np.ndarray, seed: int, val: float, test: float) -> np.ndarray:
    """Seeded fractions within each (context, perturbation) of the `wanted` cells, int8 `[N]`; other cells are UNUSED.

    Each group has its own generator, so that another perturbation in the file changes nothing for the rest.
    """
    codes = np.full(len(wanted), UNUSED, dtype=np.int8)
    rows = np.flatnonzero(wanted)
    group = labels.context_codes[rows].astype(np.int64) * len(labels.perturbations) + labels.perturbation_codes[rows]
    order = np.argsort(group, kind="stable")
    edges = np.flatnonzero(np.diff(group[order], prepend=-1, append=-1))
    for first, last in pairwise(edges):
        context, perturbation = divmod(int(group[order[first]]), len(labels.perturbations))
        name = f"{labels.contexts[context]}\0{labels.perturbations[perturbation]}"
        draw = np.random.default_rng([seed, crc32(name.encode())]).permutation(rows[order[first:last]])
        num_val, num_test = _part_sizes(len(draw), val, test)
        codes[draw] = TRAIN
        codes[draw[:num_val]] = VAL
        codes[draw[num_val : num_val + num_test]] = TEST
    return codes


def _part_sizes(num_cells: int, val: float, test: float) -> tuple[int, int]:
    """Cells of val and test: rounded, at least one each where three cells allow it, training never empty."""
    if num_cells < 3:
        return 0, 0
    num_val = max(round(num_cells * val), 1) if val else 0
    num_test = max(round(num_cells * test), 1) if test else 0
    return num_val, min(num_test, num_cells - 1 - num_val)
