"""Cells for training: one or many h5ad files behind one index, coded, split and gathered as dense expression."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import PositiveFloat

from steval.data.cells.genes import FillMissing, require_unique
from steval.data.cells.scale import Scale
from steval.data.columns import ColumnOptions, Columns
from steval.data.reference import DataReference, FileReference, Part
from steval.data.splits.assignment import PARTS, SHARED_CONTROL, Split, with_table
from steval.data.training.assembly import (
    assign_files,
    build_features,
    build_input_store,
    build_row_store,
    common_target_sum,
    labelled_cells,
    left_out_notes,
    merged_codes,
    require_same_columns,
)
from steval.data.training.audit import SplitAudit, audit_split
from steval.data.training.auxiliary import AuxiliaryEmbedding
from steval.data.training.files import expand_files, matrix_paths, read_labelled
from steval.data.training.obsm_store import ObsmStore
from steval.data.training.row_store import RowStore
from steval.limits import Gibibytes
from steval.settings import Settings
from steval.wording import counted


class CellsSettings(Settings):
    """What is read and how; the part of a training configuration that the data room understands."""

    files: tuple[str, ...] = ()
    """h5ad files or globs; may be left out where the split is a TOML file, which names them."""
    columns: ColumnOptions = ColumnOptions()
    """Names of the `obs` columns; none: as the first file or the built-in defaults say."""
    input_key: str | None = None
    """`obsm` key of the basal input; none: expression. `X_hvg` is built from X by `input_genes`."""
    auxiliary_key: str | None = None
    """`obsm` key of a cell embedding that is predicted beside expression while training (`loss.distil`, `loss.contrast`)."""
    scale: Scale | None = None
    """Scale of X in every file; none: as declared in the file, else measured."""
    target_sum: PositiveFloat | None = None
    """Total per cell before log1p; needed where a file holds counts."""
    fill_missing: FillMissing = "error"
    """What to do where a file lacks genes of the contract."""
    memory_gb: Gibibytes = 2.0
    """Data up to this size is kept in memory; larger data is read from disk."""
    cache_dir: str | None = None
    """Directory for plain copies by rows of files that are too large for memory and compressed or in CSC layout."""


@dataclass(frozen=True)
class NameOrder:
    """Names in code order that must come first (those of a checkpoint); names of the data that they lack follow, sorted."""

    perturbations: tuple[str, ...] = ()
    cell_types: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()


@dataclass
class TrainingCells:
    """N cells of one or many files: codes in memory, expression gathered on demand."""

    paths: tuple[Path, ...]
    columns: Columns
    genes: tuple[str, ...]
    """Gene contract of the target (and of the input, unless that is an embedding or `X_hvg`)."""
    input_genes: tuple[str, ...] | None
    """Gene contract of the input; none: an embedding."""
    input_key: str | None
    target_sum: float | None
    """Total per cell before log1p; none: unknown (lognorm files that do not tell)."""
    split: Split
    perturbations: tuple[str, ...]
    """Names in code order, the control among them."""
    cell_types: tuple[str, ...]
    batches: tuple[str, ...]
    perturbation_codes: np.ndarray
    """int32 `[N]`."""
    cell_type_codes: np.ndarray
    """int32 `[N]`."""
    batch_codes: np.ndarray
    """int32 `[N]`."""
    part_codes: np.ndarray
    """int8 `[N]`: 0 train, 1 val, 2 test, 3 control shared by all parts, -1 of no part."""
    features: np.ndarray
    """Perturbation features, float32 `[P, pert_dim]`, rows in the order of `perturbations`."""
    audit: SplitAudit | None
    """The proof that no perturbed cell is in two parts; none: nobody has looked."""
    store: RowStore
    input_store: "RowStore | ObsmStore | None"
    """Where the input comes from; none: from `store`."""
    notes: tuple[str, ...] = field(default=())
    """What was found and done while opening, for the preflight table."""
    scale: Scale = "lognorm"
    """Scale of everything that `gather` returns."""
    auxiliary_store: ObsmStore | None = None
    """Where the auxiliary embedding comes from; none: there is none."""

    @classmethod
    def open(
        cls,
        settings: CellsSettings,
        split: Split,
        *,
        genes: Sequence[str] | None = None,
        input_genes: Sequence[str] | None = None,
        perturbation_features: Mapping[str, Any] | None = None,
        features_source: str = "the perturbation features",
        needs_batch: bool = True,
        vocabulary: NameOrder | None = None,
        audited: bool = True,
    ) -> Self:
        """Open, check and audit all files; data within `memory_gb` is loaded, of larger data the labels are.

        `genes` is the contract (default: the genes of the first file), `input_genes` that of an `X_hvg` input.
        `perturbation_features` are vectors by name (none: one-hot codes); errors call them `features_source`.
        Without `needs_batch` a cell may lack its batch; not `audited`, no expression is read before it is asked for, for an
        estimate. Raises `DataError` or `ConfigError`.
        """
        vocabulary = vocabulary or NameOrder()
        split = with_table(split)
        paths, split = expand_files(settings.files, split)
        budget = int(settings.memory_gb * 2**30)
        cache_dir = None if settings.cache_dir is None else Path(settings.cache_dir).expanduser()
        matrices, found = matrix_paths(paths, budget, cache_dir)
        files = [
            read_labelled(p, settings, split.cell_type_key, m, needs_batch=needs_batch)
            for p, m in zip(paths, matrices, strict=True)
        ]
        require_same_columns(files)
        kept = labelled_cells(files)
        target_sum, sums = common_target_sum(files, settings.target_sum)
        contract = tuple(genes) if genes is not None else tuple(files[0].genes)
        require_unique(contract, "the gene contract")
        store, notes = build_row_store(files, sums, contract, settings.fill_missing, budget)
        input_store, input_contract = build_input_store(
            files, sums, contract, input_genes, settings.input_key, settings.fill_missing, budget
        )
        auxiliary_store = None
        if settings.auxiliary_key is not None:
            sizes = [f.num_cells for f in files]
            auxiliary_store = ObsmStore([f.path for f in files], sizes, settings.auxiliary_key, budget)
        perturbations, perturbation_codes = merged_codes([f.perturbation for f in files], vocabulary.perturbations)
        cell_types, cell_type_codes = merged_codes([f.cell_type for f in files], vocabulary.cell_types)
        batches, batch_codes = merged_codes([f.batch for f in files], vocabulary.batches)
        columns = files[0].columns
        parts, perturbed = assign_files(files, kept, split), perturbation_codes != perturbations.index(columns.control)
        labels = (perturbation_codes, cell_type_codes, batch_codes)
        audit = audit_split(paths, parts, perturbed, labels, store) if audited else None
        return cls(
            paths=tuple(paths), columns=columns, genes=contract, input_genes=input_contract, input_key=settings.input_key,
            target_sum=target_sum, split=split, perturbations=perturbations, cell_types=cell_types, batches=batches,
            perturbation_codes=perturbation_codes, cell_type_codes=cell_type_codes, batch_codes=batch_codes,
            part_codes=parts,
            features=build_features(perturbations, columns.control, perturbation_features, features_source),
            audit=audit, store=store, input_store=input_store,
            auxiliary_store=auxiliary_store, notes=(*found, *notes, *left_out_notes(files, kept)),
        )  # fmt: skip

    @property
    def num_cells(self) -> int:
        return len(self.part_codes)

    @property
    def input_dim(self) -> int:
        """Columns of the basal input."""
        if isinstance(self.input_store, ObsmStore):
            return self.input_store.dimension
        return len(self.genes if self.input_store is None else self.input_genes or ())

    @property
    def pert_dim(self) -> int:
        return int(self.features.shape[1])

    @property
    def input_is_target(self) -> bool:
        """Whether input and target are the same matrix (expression in, expression out)."""
        return self.input_store is None

    @property
    def control_code(self) -> int:
        return self.perturbations.index(self.columns.control)

    @cached_property
    def auxiliary(self) -> AuxiliaryEmbedding | None:
        """The auxiliary embedding, standardised over the cells that train; None where there is none."""
        if self.auxiliary_store is None:
            return None
        return AuxiliaryEmbedding(
            self.auxiliary_store, np.sort(np.concatenate([self.part("train"), self.controls("train")]))
        )

    @cached_property
    def is_control(self) -> np.ndarray:
        """bool `[N]`."""
        return self.perturbation_codes == self.control_code

    def part(self, name: Part) -> np.ndarray:
        """Numbers of the perturbed cells of a part, int64, ascending."""
        return np.flatnonzero((self.part_codes == PARTS.index(name)) & ~self.is_control)

    def controls(self, name: Part) -> np.ndarray:
        """Numbers of the control cells that are inputs in a part, int64, ascending."""
        allowed = (self.part_codes == PARTS.index(name)) | (self.part_codes == SHARED_CONTROL)
        return np.flatnonzero(allowed & self.is_control)

    def part_perturbations(self, name: Part) -> tuple[str, ...]:
        """Names of the perturbations that have cells in a part, sorted."""
        return tuple(sorted(self.perturbations[code] for code in np.unique(self.perturbation_codes[self.part(name)])))

    def gather(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Expression of cells, float32 lognorm `[n, G]` in the order of the contract; written to `out` where it is given."""
        return self.store.gather(indices, out)

    def gather_input(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Basal input of cells, float32 `[n, input_dim]`: expression, or the rows of the `obsm` embedding."""
        return (self.input_store or self.store).gather(indices, out)

    def reference(self, name: Part | None) -> DataReference:
        """Reference to the cells of a part (none: all cells): files with digests, columns, split."""
        return DataReference(
            files=self.file_references,
            columns=self.columns,
            scale=self.scale,
            target_sum=self.target_sum,
            perturbations=() if name is None else self.part_perturbations(name),
            part=name,
            split=self.split.as_dict(),
        )

    @cached_property
    def file_references(self) -> tuple[FileReference, ...]:
        """Paths and sha256 digests of the files; computed once, reads every byte."""
        return tuple(FileReference.of(path) for path in self.paths)

    def _place(self) -> str:
        if self.store.place != "disk":
            return "memory"
        needed = math.ceil(self.store.needed_bytes / 2**30 * 10) / 10
        return f"disk, set by set (data.memory_gb {needed:g} would hold them in the memory of each process)"

    def summary(self) -> dict[str, str]:
        """What was opened, for a preflight table: label → text."""
        rows = {
            "files": f"{len(self.paths)} ({counted(self.num_cells, 'cell')})",
            "cells are read from": self._place(),
            "genes": f"{len(self.genes):,}",
            "input": self.input_key or "expression",
            "scale": f"{self.scale}, target_sum {self.target_sum:.9g}"
            if self.target_sum
            else f"{self.scale}, target_sum unknown",
            "perturbations": f"{len(self.perturbations) - 1:,} and the control {self.columns.control!r}",
            "perturbation features": counted(self.pert_dim, "dimension"),
            "cell types": f"{len(self.cell_types):,}",
            "batches": f"{len(self.batches):,}",
        }
        for name in PARTS:
            rows[name] = (
                f"{counted(len(self.part(name)), 'cell')} of {counted(len(self.part_perturbations(name)), 'perturbation')}, "
                f"{counted(len(self.controls(name)), 'control cell')}"
            )
        rows["audit"] = self.audit.describe() if self.audit else "none"
        return rows | {f"note {number}": note for number, note in enumerate(self.notes, start=1)}
