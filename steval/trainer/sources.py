"""What a run starts from: its cells opened by the checkpoint's contract, its weights, its manifest."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from steval.checkpoints.feature_file import read_features
from steval.checkpoints.location import is_arc, local, locate_checkpoint
from steval.checkpoints.manifest import Manifest, PerturbationEntry, read_manifest
from steval.checkpoints.store import ControlSet, choose_controls
from steval.checkpoints.transplant import TransplantReport, one_hot_columns, transplant
from steval.checkpoints.weight_source import Vocabulary, WeightSource, read_weight_source
from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import read_genes
from steval.data.cells.scale import resolve_scale
from steval.data.columns import DEFAULT_CONTROL, Columns
from steval.data.reference import DataReference, FileReference
from steval.data.training.cells import NameOrder, TrainingCells
from steval.model.config import ModelConfig
from steval.model.network import StateTransition
from steval.trainer.config import DataSettings

BLOCK_ROWS = 512
"""Control cells that are held densely at once."""
_WEIGHTS, _CONTROLS = 1, 2
"""Streams of random numbers under the run's seed."""


@dataclass(frozen=True)
class Base:
    """What `--init-from` was given."""

    path: Path
    source: WeightSource
    manifest: Manifest | None
    """None for an arc-state file."""

    @classmethod
    def read(cls, path: Path) -> "Base":
        """Read and verify; raises `CheckpointError`."""
        path = local(path)
        if is_arc(path):
            return cls(path, read_weight_source(path), None)
        path = locate_checkpoint(path)
        return cls(path, read_weight_source(path), read_manifest(path))

    def without_weights(self) -> "Base":
        """The same for the record, its tensors let go."""
        return replace(self, source=replace(self.source, weights={}))


def open_cells(
    settings: DataSettings, base: Base | None, *, needs_batch: bool = True, audited: bool = True
) -> TrainingCells:
    """The training cells on the gene contract: the list that is named, else the checkpoint's, else the first file's.

    Without `needs_batch` a cell may lack its batch; not `audited`, no expression is read.
    """
    known = base.source.vocabulary if base else None
    target_sum = settings.target_sum or (base.manifest.target_sum if base and base.manifest else None)
    genes = read_genes(Path(settings.gene_list)) if settings.gene_list else known.output_genes if known else None
    input_genes = (
        read_genes(Path(settings.input_gene_list)) if settings.input_gene_list else known.input_genes if known else None
    )
    features: Mapping[str, Any] | None = None
    if settings.features:
        features = read_features(Path(settings.features).expanduser())
    elif known is not None:
        features = _dense_features(known, settings.columns.control)
    return TrainingCells.open(
        settings.model_copy(update={"target_sum": target_sum}),
        settings.split,
        genes=genes,
        input_genes=input_genes,
        perturbation_features=features,
        features_source=settings.features or "the checkpoint's perturbation features",
        vocabulary=NameOrder(perturbations=settings.extra_perturbations),
        needs_batch=needs_batch,
        audited=audited,
    )


def _dense_features(known: Vocabulary, control: str | None) -> dict[str, Any] | None:
    """The checkpoint's feature vectors by name, where they are vectors and not one-hot; its control under our label too."""
    if known.features is None or one_hot_columns(known.features, known.perturbations) is not None:
        return None
    vectors: dict[str, Any] = dict(zip(known.perturbations, known.features.numpy(), strict=True))
    if known.control in vectors:
        vectors.setdefault(control or DEFAULT_CONTROL, vectors[known.control])
    return vectors


def initial_weights(
    model: ModelConfig, cells: TrainingCells, base: Base | None, seed: int
) -> tuple[dict[str, Tensor], TransplantReport | None]:
    """A complete state dict: drawn from `seed`, or the checkpoint's where it fits, with the report."""
    generator = torch.Generator().manual_seed(seed * 1000 + _WEIGHTS)
    if base is None:
        with torch.device("meta"):
            network = StateTransition(model)
        network = network.to_empty(device="cpu")
        network.reset(generator)
        return {name: tensor.detach() for name, tensor in network.state_dict().items()}, None
    vocabulary = Vocabulary(
        perturbations=cells.perturbations,
        features=torch.from_numpy(cells.features),
        control=cells.columns.control,
        batches=cells.batches,
        input_genes=cells.input_genes,
        output_genes=cells.genes,
    )
    return transplant(base.source, model, vocabulary, generator)


def default_controls(cells: TrainingCells, seed: int) -> ControlSet:
    """At most 512 control cells of each cell type from the training part, in the network's input space."""
    rows = cells.controls("train")
    types = np.array(cells.cell_types, dtype=object)[cells.cell_type_codes[rows]]
    chosen = choose_controls(types, np.random.default_rng([seed, _CONTROLS]))
    blocks = np.split(rows[chosen], range(BLOCK_ROWS, len(chosen), BLOCK_ROWS))
    return ControlSet(
        cells=sp.vstack([sp.csr_matrix(cells.gather_input(block)) for block in blocks], format="csr"),
        cell_types=types[chosen],
        batches=np.array(cells.batches, dtype=object)[cells.batch_codes[rows[chosen]]],
    )


def build_manifest(
    cells: TrainingCells,
    model: ModelConfig,
    settings: DataSettings,
    evaluation: FileReference | None,
    base: Base | None,
) -> Manifest:
    """All of the manifest but the training record; `evaluation` is the file named for evaluation."""
    trained = {cells.columns.control, *cells.part_perturbations("train")}
    has_genes = model.output_is_genes or model.gene_decoder is not None
    return Manifest(
        made_by="steval finetune",
        model=model,
        input_genes=cells.input_genes,
        output_genes=(cells.genes if model.gene_decoder or cells.input_is_target else cells.input_genes)
        if has_genes
        else None,
        scale=cells.scale if has_genes else "embedding",
        target_sum=cells.target_sum,
        perturbations=tuple(PerturbationEntry(name=name, trained=name in trained) for name in cells.perturbations),
        columns=cells.columns,
        cell_types=cells.cell_types,
        batches=cells.batches,
        evaluation=_evaluation(cells, settings, evaluation),
        training_data=cells.reference("train"),
        licence=base.manifest.licence if base and base.manifest else None,
        notes=base.source.notes if base else (),
    )


def _evaluation(cells: TrainingCells, settings: DataSettings, file_of_it: FileReference | None) -> DataReference:
    """The file named for evaluation, else the held-out cells: the test part, or validation where there is none."""
    if settings.evaluation_file is None:
        return cells.reference("test" if len(cells.part("test")) else "val")
    path = Path(settings.evaluation_file)
    with CellFile.open(path) as file:
        scale = resolve_scale(file, settings.scale)
        columns = _present(cells.columns, file)
    return DataReference(
        files=(file_of_it or FileReference.of(path),), columns=columns, scale=scale.scale, target_sum=scale.target_sum
    )


def _present(columns: Columns, file: CellFile) -> Columns:
    """`columns` without the optional ones that `file` lacks."""
    optional: dict[str, Any] = {
        field: name if name in file.obs.columns else None
        for field, name in (("cell_type", columns.cell_type), ("batch", columns.batch))
    }
    return columns.model_copy(update=optional)
