"""The one-file checkpoint: what was written comes back; what was altered, damaged or forged is a clear error."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from steval.checkpoints.manifest import DIGEST_KEY, FEATURES, METADATA_KEY, Manifest, PerturbationEntry, read_manifest
from steval.checkpoints.store import Checkpoint, ControlSet, load_checkpoint, save_checkpoint
from steval.data.columns import Columns
from steval.errors import CheckpointError, ConfigError
from steval.model.config import LlamaConfig, ModelConfig
from steval.model.network import StateTransition

GENES = tuple("abcdefghij")


def make_manifest(**changes) -> Manifest:
    backbone = LlamaConfig(
        hidden_size=8, intermediate_size=12, num_layers=1, num_heads=2, num_key_value_heads=1, head_dim=4
    )
    model = ModelConfig(input_dim=10, output_dim=10, pert_dim=3, hidden_dim=8, backbone=backbone)
    values = {
        "made_by": "test",
        "model": model,
        "input_genes": GENES,
        "output_genes": GENES,
        "scale": "lognorm",
        "perturbations": tuple(PerturbationEntry(name=name) for name in ("A", "B", "non-targeting")),
        "columns": Columns(),
        "cell_types": ("K562", "H1"),
        "batches": ("b0",),
    }
    return Manifest(**{**values, **changes})


def make_weights(model: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    network = StateTransition(model)
    network.reset(torch.Generator().manual_seed(seed))
    return network.state_dict()


def make_controls() -> ControlSet:
    cells = sp.random(5, 10, density=0.4, format="csr", dtype=np.float32, random_state=0)
    return ControlSet(cells, np.array(["H1", "H1", "K562", "H1", "K562"], object), np.array(["b0"] * 5, object))


@pytest.fixture
def written(tmp_path) -> Path:
    path, manifest = tmp_path / "model.safetensors", make_manifest()
    save_checkpoint(
        path,
        manifest=manifest,
        weights=make_weights(manifest.model),
        features=torch.eye(3),
        controls=make_controls(),
    )
    return path


def forge(path: Path, *, drop=(), metadata=None, **tensors) -> Path:
    """The same checkpoint with other tensors, its digests made to fit: a deliberate forgery, not an accident."""
    state = {name: tensor for name, tensor in load_file(path).items() if name not in drop} | tensors
    manifest = read_manifest(path).as_dict() | (metadata or {})
    manifest["tensors"] = {
        name: hashlib.sha256(t.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest() for name, t in state.items()
    }
    text = json.dumps(manifest)
    save_file(state, path, metadata={METADATA_KEY: text, DIGEST_KEY: hashlib.sha256(text.encode()).hexdigest()})
    return path


def test_what_was_written_comes_back(written):
    checkpoint = load_checkpoint(written)
    expected = make_weights(make_manifest().model)
    assert all(torch.equal(checkpoint.weights[name], tensor) for name, tensor in expected.items())
    assert checkpoint.weights.keys() == expected.keys()
    assert checkpoint.manifest.num_controls == {"H1": 3, "K562": 2}
    controls = make_controls()
    assert (checkpoint.controls.cells != controls.cells).nnz == 0
    assert checkpoint.controls.cell_types.tolist() == controls.cell_types.tolist()
    assert read_manifest(written) == checkpoint.manifest
    assert torch.equal(checkpoint.feature_rows(["B"]), torch.eye(3)[[1]])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 2**32), cells=st.integers(1, 9))
def test_saving_and_loading_gives_equal_bytes_of_output(tmp_path, seed, cells):
    manifest = make_manifest()
    weights, path = make_weights(manifest.model, seed), tmp_path / "model.safetensors"
    save_checkpoint(path, manifest=manifest, weights=weights, features=torch.eye(3))
    control = torch.rand(1, cells, 10, generator=torch.Generator().manual_seed(seed))
    before = Checkpoint(path, manifest, weights, torch.eye(3), None, "").network()
    with torch.no_grad():
        outputs = [
            network(control, torch.eye(3)[[1]]).output_BSG for network in (before, load_checkpoint(path).network())
        ]
    assert torch.equal(*outputs)


def test_the_file_obeys_the_umask_and_leaves_nothing_beside_it(written):
    plain = written.with_name("plain")
    plain.touch()
    assert written.stat().st_mode == plain.stat().st_mode
    assert sorted(path.name for path in written.parent.iterdir()) == ["model.safetensors", "plain"]


def _alter_header(path: Path, change) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = change(header) or data[8 + length :]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _overlap(header):
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]


def _grow(header):
    name = next(name for name in header if name.endswith("weight"))
    header[name]["shape"] = [10**9, 10**9]


def _reshape(shape):
    def change(header):
        header["basal_encoder.0.bias"]["shape"] = shape

    return change


def _set(key, value):
    def change(header):
        header[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(_overlap, "overlaps", id="overlapping-tensors"),
        pytest.param(_grow, "wrong size", id="oversized-shape"),
        pytest.param(lambda header: b"short", "truncated", id="missing-data"),
        pytest.param(_set("x", 5), "cannot be read", id="entry-is-a-number"),
        pytest.param(_set("x", {"dtype": "F32"}), "cannot be read", id="entry-without-shape"),
        pytest.param(_set("x", {"dtype": "Q9", "shape": [0], "data_offsets": [0, 0]}), "cannot be read", id="dtype"),
        pytest.param(_reshape([2, 4.0]), "not a readable safetensors file", id="fraction-in-shape"),
        pytest.param(_reshape([-2, -4]), "not a readable safetensors file", id="negative-shape"),
        pytest.param(_reshape("8"), "not a readable safetensors file", id="shape-is-text"),
        pytest.param(_set("__metadata__", {}), "not a steval checkpoint", id="no-metadata"),
        pytest.param(_set("__metadata__", [1]), "not a steval checkpoint", id="metadata-is-a-list"),
        pytest.param(_set("__metadata__", {METADATA_KEY: 5}), "not a steval checkpoint", id="metadata-is-a-number"),
        pytest.param(_set("__metadata__", {METADATA_KEY: "{}"}), "its own digest", id="metadata-without-digest"),
    ],
)
def test_altered_headers_are_clear_errors(written, change, message):
    _alter_header(written, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(written)
    if change.__qualname__.startswith("_reshape"):
        return  # the manifest is whole; only reading the tensor shows that
    with pytest.raises(CheckpointError):
        read_manifest(written)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "not a whole safetensors file", id="empty"),
        pytest.param(struct.pack("<Q", 2**62) + b"{}", "header claims", id="huge-header"),
        pytest.param(struct.pack("<Q", 2) + b"[]" + bytes(8), "no mapping", id="list"),
        pytest.param(struct.pack("<Q", 200_000) + b"[" * 200_000, "not JSON", id="nested"),
        pytest.param(b"PK\x03\x04" + bytes(60), "header", id="zip"),
    ],
)
def test_other_files_are_clear_errors(tmp_path, data, message):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize("kept", [4, 8, 100, 0.5, -1])
def test_truncated_files_are_clear_errors(written, kept):
    data = written.read_bytes()
    written.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(written)


def test_one_changed_bit_of_a_weight_is_found(written):
    data = bytearray(written.read_bytes())
    data[-10] ^= 1
    written.write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its digest"):
        load_checkpoint(written)


@pytest.mark.parametrize(
    ("forgery", "message"),
    [
        pytest.param({"basal_encoder.0.bias": torch.zeros(9)}, r"has shape \[9\]", id="shape"),
        pytest.param({"drop": ["basal_encoder.0.bias"]}, "missing tensor basal_encoder.0.bias", id="missing"),
        pytest.param({"intruder": torch.zeros(1)}, "unexpected tensor intruder", id="unexpected"),
        pytest.param({"intruder": torch.tensor(1.0)}, "unexpected tensor intruder", id="a-number-alone"),
        pytest.param({"intruder": torch.zeros(0, 3)}, "unexpected tensor intruder", id="no-numbers"),
        pytest.param({"basal_encoder.0.bias": torch.full((8,), torch.nan)}, "NaN or infinite", id="nan"),
        pytest.param({FEATURES: torch.full((3, 3), torch.inf)}, "NaN or infinite", id="infinite-features"),
        pytest.param({"basal_encoder.0.bias": torch.zeros(8, dtype=torch.int64)}, "not floating point", id="integers"),
        pytest.param({FEATURES: torch.eye(4)}, "perturbation/features has shape", id="features"),
        pytest.param({"drop": ["controls/data"]}, "default control set", id="controls-part-missing"),
        pytest.param({"drop": ["controls/indptr"]}, "default control set", id="controls-indptr-missing"),
        pytest.param({"controls/cell_type": torch.full((5,), 7, dtype=torch.int32)}, "not a valid sparse", id="codes"),
        pytest.param({"controls/batch": torch.full((5,), -1, dtype=torch.int32)}, "not a valid sparse", id="negative"),
        pytest.param({"controls/indices": torch.zeros(2, dtype=torch.int32)}, "not a valid sparse", id="indices"),
        pytest.param({"controls/data": torch.zeros(2, 2)}, "default control set", id="controls-matrix"),
        pytest.param({"metadata": {"input_genes": list("abc")}}, "input_genes has 3 names", id="genes"),
        pytest.param({"metadata": {"output_genes": ["a"] * 10}}, "output_genes holds a name twice", id="twice"),
        pytest.param({"metadata": {"columns": {"control": "DMSO"}}}, "'DMSO' is not among", id="control"),
        pytest.param({"metadata": {"format_version": 9}}, "checkpoint format 9", id="version"),
        pytest.param({"metadata": {"surprise": 1}}, "surprise", id="unknown-key"),
    ],
)
def test_forgeries_are_clear_errors(written, forgery, message):
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(forge(written, **forgery))
    assert raised.value.exit_code == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": {"num_layers": 1000}}, "too few"),
        ({"num_encoder_layers": 1000}, "too few"),
        ({"backbone": {"head_dim": 10**7}}, "the model config says"),
        ({"backbone": {"num_layers": 10**8}}, "num_layers: Input should be less than or equal to 1024"),
        ({"backbone": {"head_dim": 2**62}}, "head_dim: Input should be less than or equal to 16777216"),
    ],
    ids=["blocks", "layers", "heads", "too many blocks", "overflow"],
)
def test_a_model_config_out_of_all_proportion_is_not_built(written, change, message):
    model = read_manifest(written).as_dict()["model"]
    model = {**model, **change, "backbone": {**model["backbone"], **change.get("backbone", {})}}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(forge(written, metadata={"model": model}))


def test_contradictions_and_nan_are_not_written(tmp_path):
    manifest, path = make_manifest(), tmp_path / "model.safetensors"
    weights = make_weights(manifest.model)
    with pytest.raises(CheckpointError, match="input_genes has 2 names"):
        save_checkpoint(path, manifest=make_manifest(input_genes=("a", "b")), weights=weights, features=torch.eye(3))
    with pytest.raises(CheckpointError, match="NaN"):
        save_checkpoint(path, manifest=manifest, weights=weights, features=torch.full((3, 3), torch.nan))
    assert list(tmp_path.iterdir()) == []


def test_a_regime_that_the_network_cannot_compute_is_refused(written):
    checkpoint = load_checkpoint(written)
    assert checkpoint.network("causal").config.attention == "causal"
    with pytest.raises(ConfigError, match="sideways"):
        checkpoint.network("sideways")


def test_tensors_are_read_into_memory_of_their_own(written):
    """Aligned as torch allocates, whatever the file's layout, and independent of the file."""
    checkpoint = load_checkpoint(written)
    written.write_bytes(bytes(len(written.read_bytes())))
    assert all(tensor.data_ptr() % 64 == 0 for tensor in checkpoint.weights.values())
    expected = make_weights(make_manifest().model)
    assert all(torch.equal(checkpoint.weights[name], tensor) for name, tensor in expected.items())
