"""The network of a run: the data's columns, the checkpoint's sizes, the settings that were named."""

from pathlib import Path

import pytest

from steval.data.splits.assignment import CellSplit
from steval.data.training.cells import CellsSettings, TrainingCells
from steval.trainer.config import NetworkSettings
from steval.trainer.settings.network import describe_network, plan_network


@pytest.fixture(scope="module")
def cells(screen_path: Path) -> TrainingCells:
    return TrainingCells.open(CellsSettings(files=(str(screen_path),)), CellSplit())


@pytest.fixture(scope="module")
def embedded(screen_path: Path) -> TrainingCells:
    return TrainingCells.open(CellsSettings(files=(str(screen_path),), input_key="X_pca"), CellSplit())


def test_fresh_sizes_come_from_settings_and_data(cells: TrainingCells) -> None:
    settings = NetworkSettings(hidden_dim=24, num_heads=3, num_layers=5, batch_encoder=True, head="plain")
    model = plan_network(settings, cells, 8, None)
    assert (model.input_dim, model.output_dim, model.pert_dim, model.batch_dim) == (48, 48, 5, 2)
    assert (model.backbone.head_dim, model.backbone.intermediate_size, model.backbone.num_layers) == (8, 96, 5)
    assert (model.head, model.cell_set_size, model.gene_decoder) == ("plain", 8, None)


def test_an_embedding_leads_to_genes_through_a_decoder(embedded: TrainingCells) -> None:
    model = plan_network(NetworkSettings(gene_decoder=(8, 4)), embedded, 8, None)
    assert (model.input_dim, model.input_key, model.output_dim) == (16, "X_pca", 16)
    assert model.gene_decoder.hidden_dims == (8, 4)
    assert (model.gene_decoder.latent_dim, model.gene_decoder.gene_dim) == (16, 48)


def test_the_checkpoint_gives_what_is_not_named(cells: TrainingCells, embedded: TrainingCells) -> None:
    source = plan_network(
        NetworkSettings(hidden_dim=24, num_heads=3, gene_decoder=(8,), dropout=0.3), embedded, 8, None
    )
    model = plan_network(NetworkSettings(dropout=0.0), cells, 64, source)
    assert (model.hidden_dim, model.backbone, model.dropout) == (24, source.backbone, 0.0)
    assert (model.input_dim, model.input_key, model.gene_decoder, model.output_space) == (48, None, None, "all")
    kept = plan_network(NetworkSettings(), embedded, 8, source)
    assert kept == source


def test_a_described_network_is_planned_again(cells: TrainingCells) -> None:
    source = plan_network(NetworkSettings(hidden_dim=24, num_heads=3, head_dim=4, head="plain"), cells, 8, None)
    described = describe_network(source, NetworkSettings())
    assert plan_network(described, cells, 8, None) == source
    assert plan_network(NetworkSettings.parse(described.as_dict()), cells, 8, source) == source
