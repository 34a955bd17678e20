"""Prediction on a GPU: the processors' cells in float32, near them in bfloat16, whole files and the service's warm-up included."""

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

from steval.checkpoints.store import Checkpoint
from steval.errors import DeviceMemoryError
from steval.predictor.controls import checkpoint_controls
from steval.predictor.engine import Predictor
from steval.predictor.job import predict_into
from steval.predictor.output import OutputOptions
from steval.predictor.requests import request_names

pytestmark = pytest.mark.gpu
NAMES = ["STAT1", "SRC", "TET1"]


def cells(checkpoint: Checkpoint, **options: object) -> np.ndarray:
    predictor = Predictor(checkpoint, **options)  # type: ignore[arg-type]
    return np.concatenate(
        [one.cells for one in predictor.predict(request_names(NAMES, 40, seed=3), checkpoint_controls(checkpoint))]
    )


@pytest.mark.parametrize("attention", ["bidirectional", "causal", "causal-rope"])
@pytest.mark.parametrize("batch_cells", [16, 1024])
def test_cells_are_the_processors(checkpoint: Checkpoint, attention: str, batch_cells: int) -> None:
    expected = cells(checkpoint, device="cpu", attention=attention)
    scale = expected.max()
    found = cells(checkpoint, device="cuda", attention=attention, batch_cells=batch_cells)
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale)
    rounded = cells(checkpoint, device="cuda", attention=attention, batch_cells=batch_cells, dtype="bf16")
    np.testing.assert_allclose(rounded, expected, atol=5e-2 * scale)


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_files_hold_the_processors_cells_in_their_order(checkpoint: Checkpoint, tmp_path: Path, layout: str) -> None:
    files = []
    for device in ("cpu", "cuda"):
        predictor = Predictor(checkpoint, device=device, batch_cells=32)
        path = tmp_path / f"{device}.h5ad"
        options = OutputOptions(layout=layout)  # type: ignore[arg-type]
        predict_into(path, predictor, request_names(NAMES, 70), checkpoint_controls(checkpoint), options)
        files.append(ad.read_h5ad(path))
    expected, found = files
    assert (expected.obs == found.obs).all(axis=None)
    dense = [file.X.toarray() if layout == "csr" else file.X for file in files]
    np.testing.assert_allclose(dense[1], dense[0], atol=1e-5 * dense[0].max())


def test_running_out_of_memory_says_what_to_lower_and_leaves_no_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """So many cells at once that their output alone is more than may be used."""
    predictor = Predictor(checkpoint, device="cuda", batch_cells=1 << 17)
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + (1 << 25)
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(DeviceMemoryError, match="Lower --batch-cells"):
            predict_into(tmp_path / "p.h5ad", predictor, request_names(NAMES, 40_000), checkpoint_controls(checkpoint))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_the_services_warm_up_agrees_with_a_record_made_on_the_processors(checkpoint: Checkpoint, dtype: str) -> None:
    from steval.service.predict.warmup import warm_up
    from steval.workflows.finetune import warmup_record

    record = warmup_record(checkpoint)
    assert record is not None
    known = replace(checkpoint, manifest=checkpoint.manifest.model_copy(update={"warmup": record}))
    predictor = Predictor(known, device="cuda", dtype=dtype)  # type: ignore[arg-type]
    pool = checkpoint_controls(known)
    warm_up(predictor, predictor.encode(pool), compare=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_predicts_the_same(checkpoint: Checkpoint) -> None:
    expected = cells(checkpoint, device="cpu")
    np.testing.assert_allclose(cells(checkpoint, device="cuda", compile=True), expected, atol=2e-5 * expected.max())
