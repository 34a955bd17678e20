"""Weights to start from, with the names that give their rows and columns a meaning: a steval checkpoint or arc-state's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steval.checkpoints.arc import read_arc
from steval.checkpoints.arc_maps import ArcVocabulary
from steval.checkpoints.location import is_arc, local, locate_checkpoint, pinned_reference
from steval.checkpoints.store import load_checkpoint
from steval.data.files import sha256_file
from steval.errors import CheckpointError
from steval.model.config import Attention, ModelConfig

Genes = tuple[str, ...] | None


@dataclass(frozen=True)
class Vocabulary:
    """What rows and columns of the weights stand for; None or empty: not known.

    `features [P, pert_dim]` in the order of `perturbations`; genes in column order, `batches` in code order.
    """

    perturbations: tuple[str, ...]
    features: Tensor | None
    control: str
    batches: tuple[str, ...] = ()
    input_genes: Genes = None
    output_genes: Genes = None


@dataclass(frozen=True)
class WeightSource:
    """Weights alone: no optimiser, no training state. `name` is the file and its digest, for the record."""

    name: str
    config: ModelConfig
    weights: Mapping[str, Tensor]
    vocabulary: Vocabulary
    notes: tuple[str, ...] = ()


def read_weight_source(path: Path, attention: Attention | None = None) -> WeightSource:
    """What `--init-from` is given: a checkpoint or run directory of ours, or an arc-state run directory or file.

    `attention` overrides the recorded regime. Raises `CheckpointError`.
    """
    path = local(path)
    if is_arc(path):
        model = read_arc(path, attention)
        return WeightSource(
            name=_named(model.checkpoint_path, sha256_file(model.checkpoint_path)),
            config=model.config,
            weights=model.weights,
            vocabulary=_arc_vocabulary(model.vocabulary, model.config),
            notes=model.notes,
        )
    path = locate_checkpoint(path)
    checkpoint = load_checkpoint(path)
    manifest = checkpoint.manifest
    config = manifest.model if attention is None else manifest.model.model_copy(update={"attention": attention})
    return WeightSource(
        name=_named(path, checkpoint.digest),
        config=config,
        weights=checkpoint.weights,
        vocabulary=Vocabulary(
            perturbations=tuple(manifest.perturbation_names),
            features=checkpoint.features,
            control=manifest.control,
            batches=manifest.batches,
            input_genes=manifest.input_genes,
            output_genes=manifest.output_genes,
        ),
        notes=manifest.notes,
    )


def _named(path: Path, digest: str) -> str:
    return f"{pinned_reference(path) or path.name} sha256:{digest}"


def gene_names(genes: tuple[str, ...], config: ModelConfig) -> tuple[Genes, Genes]:
    """(input, output) gene names where the recorded list has their length; None where it cannot be theirs."""
    output_dim = config.gene_decoder.gene_dim if config.gene_decoder else config.output_dim
    has_gene_output = config.gene_decoder is not None or config.input_is_genes
    return (
        genes if config.input_is_genes and len(genes) == config.input_dim else None,
        genes if has_gene_output and len(genes) == output_dim else None,
    )


def _arc_vocabulary(vocabulary: ArcVocabulary, config: ModelConfig) -> Vocabulary:
    input_genes, output_genes = gene_names(vocabulary.genes, config)
    features = torch.stack(list(vocabulary.features.values())) if vocabulary.features else None
    if features is not None and features.shape[1] != config.pert_dim:
        raise CheckpointError(
            f"the perturbation map has vectors of length {features.shape[1]}, the network takes {config.pert_dim}: "
            "the map and the checkpoint are not of one run"
        )
    return Vocabulary(
        perturbations=tuple(vocabulary.features),
        features=features,
        control=vocabulary.columns.control,
        batches=vocabulary.batches,
        input_genes=input_genes,
        output_genes=output_genes,
    )
