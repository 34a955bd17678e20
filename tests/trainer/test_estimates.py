"""Estimates of memory: activations as autograd keeps them, peaks as measured, what each choice saves, and the command."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from steval.data.cells.cellfile import write_anndata
from steval.data.cells.record import KEY, steval_record
from steval.data.cells.scale import lognorm
from steval.data.columns import Columns
from steval.data.synthetic import generate
from steval.model.config import ModelConfig
from steval.model.network import StateTransition
from steval.trainer.estimates import Choice, NetworkSize, device_memory, kept_values
from steval.trainer.run import estimate
from support.tiny_runs import tiny_config

LLAMA = {
    "kind": "llama", "hidden_size": 32, "intermediate_size": 128, "num_layers": 4, "num_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip
GPT2 = {"kind": "gpt2", "hidden_size": 32, "intermediate_size": 128, "num_layers": 3, "num_heads": 4}
DECODER = {"latent_dim": 60, "gene_dim": 300, "hidden_dims": [128, 64]}


def model_of(**changes: Any) -> ModelConfig:
    base = {
        "input_dim": 400,
        "output_dim": 400,
        "pert_dim": 9,
        "hidden_dim": 32,
        "backbone": LLAMA,
        "cell_set_size": 16,
    }
    return ModelConfig.parse(base | changes)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model_of(), id="llama"),
        pytest.param(model_of(use_basal_projection=False, num_decoder_layers=4), id="linear encoder, four layers out"),
        pytest.param(model_of(head="plain", backbone={**LLAMA, "num_layers": 9}), id="plain head, nine blocks"),
        pytest.param(model_of(backbone=GPT2, attention="causal"), id="gpt2"),
        pytest.param(
            model_of(input_dim=60, output_dim=60, input_key="X_e", output_space="embedding", gene_decoder=DECODER),
            id="embedding with decoder",
        ),
    ],
)
def test_activations_are_those_that_autograd_keeps(model: ModelConfig) -> None:
    found = kept_values(model, recompute=False) * 4 * model.cell_set_size
    assert found == pytest.approx(_saved_bytes(model, 2) - _saved_bytes(model, 1), rel=0.15)


def test_a_recomputed_block_keeps_its_input_alone_and_one_is_whole_at_a_time() -> None:
    few, many = model_of(), model_of(backbone={**LLAMA, "num_layers": 10})
    assert kept_values(many, recompute=True) - kept_values(few, recompute=True) == 6 * 32
    assert kept_values(few, recompute=True) < kept_values(few, recompute=False)


def test_the_peak_of_a_run_is_within_a_third_of_the_estimate(tmp_path: Path) -> None:
    """Once with much network, once with many cells; from the first phase's start on, when the weights are there."""
    growth = {}
    for sets, hidden in ((8, 512), (32, 128)):
        place = tmp_path / str(sets)
        place.mkdir()
        settings = (f"sets.per_batch={sets}", f"network.hidden_dim={hidden}", "network.num_layers=4")
        config = _wide(place, *settings)
        (place / "c.yaml").write_text(config.to_yaml())
        told: list[Any] = []
        estimate(config, device="cpu", report=told.append)
        assert "in MiB" in told[0].title
        row = dict(zip(told[0].columns, told[0].rows[0], strict=True))
        growth[place] = (float(row["total"]) - float(row["weights"])) * 2**20
    script = Path(__file__).parents[1] / "support" / "peak_memory.py"
    command = [sys.executable, str(script), *map(str, growth)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for place, estimated in growth.items():
        measured = float((place / "peak").read_text())
        assert 0.75 < measured / estimated < 1.33, (measured / 2**20, estimated / 2**20)


def test_sharing_takes_less_of_each_device_and_mixed_precision_less_for_activations() -> None:
    config, model = tiny_config(Path("x.h5ad")), model_of(backbone={**LLAMA, "num_layers": 12})
    size = NetworkSize.of(config, model)
    whole, halved, mixed = (
        device_memory(config, model, size, choice, on_gpu=True)
        for choice in (Choice("32", False), Choice("32", False, 2), Choice("bf16-mixed", False))
    )
    assert size.total == sum(p.numel() for p in StateTransition(model).parameters())
    assert (whole.weights, whole.gradients, whole.optimiser) == (size.total * 4, size.trainable * 4, size.trainable * 8)
    assert halved.optimiser == whole.optimiser / 2 and halved.activations == whole.activations
    assert mixed.activations < whole.activations and mixed.optimiser == whole.optimiser


def test_no_expression_is_read_for_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steval.data.training.row_store import RowStore

    config = _wide(tmp_path)
    monkeypatch.setattr(RowStore, "load", lambda self: pytest.fail("cells were read"))
    monkeypatch.setattr(RowStore, "gather", lambda self, *_: pytest.fail("cells were read"))
    told: list[Any] = []
    estimate(config, device="cpu", report=told.append)
    assert [notice.title.split(" ")[0] for notice in told] == ["Memory", "Beside"]


def _wide(directory: Path, *overrides: str) -> Any:
    """A tiny run on 2,000 genes, one phase of two steps."""
    path = directory / "wide.h5ad"
    screen = generate(num_genes=2000, num_perturbations=4, cells_per_perturbation=40, num_controls=60, seed=0).cells
    screen.X = lognorm(screen.X, 1000.0)
    screen.uns[KEY] = steval_record(made_by="tests", scale="lognorm", target_sum=1000.0, columns=Columns())
    write_anndata(screen, path)
    phases = [{"name": "all", "trains": "all", "steps": 2, "rates": {"encoders": 1e-3, "outputs": 1e-3}}]
    settings = ("sets.size=32", "network.dropout=0.1", "network.num_heads=4", *overrides)
    return tiny_config(path, *settings, phases=phases)


def _saved_bytes(model: ModelConfig, num_sets: int) -> int:
    kept: dict[int, tuple[int, Any]] = {}
    with torch.device("meta"):
        network = StateTransition(model).train()
        cells = torch.empty(num_sets, model.cell_set_size, model.input_dim)
        features = torch.empty(num_sets, model.pert_dim)
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), cells)}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        prediction = network(cells, features)
    assert prediction is not None
    return sum(size for size, _ in kept.values())
