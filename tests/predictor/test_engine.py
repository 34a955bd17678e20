"""The engine gives what the network gives on the sets that it names, whatever the batching."""

import dataclasses

import numpy as np
import pytest
import torch

from steval.checkpoints.store import Checkpoint
from steval.data.cells.cellfile import CellFile
from steval.errors import ConfigError, UnknownPerturbationError
from steval.predictor import engine
from steval.predictor.controls import cell_controls, checkpoint_controls
from steval.predictor.engine import Predictor
from steval.predictor.requests import request_names
from support.predictor_models import NUM_GENES, tiny_config, write_checkpoint


def predict(checkpoint: Checkpoint, names=("STAT1", "SRC", "TET1"), num_cells=40, seed=3, **options):
    request = request_names(names, num_cells, seed=seed)
    return list(Predictor(checkpoint, **options).predict(request, checkpoint_controls(checkpoint)))


def test_each_set_is_the_networks_forward_pass_alone(checkpoint):
    network = checkpoint.network()
    for one in predict(checkpoint):
        control = torch.from_numpy(checkpoint.controls.cells[one.control_indices].toarray())
        with torch.inference_mode():
            expected = network(control[None], checkpoint.feature_rows([one.perturbation])).output_BSG[0].numpy()
        assert one.cells.dtype == np.float32
        np.testing.assert_allclose(one.cells, expected, rtol=1e-4, atol=1e-6)


def test_sets_come_in_request_order_and_only_the_last_is_smaller(checkpoint):
    found = [(one.perturbation, one.planned.number, len(one.cells)) for one in predict(checkpoint)]
    sizes = [(0, 16), (1, 16), (2, 8)]
    assert found == [(name, number, size) for name in ("STAT1", "SRC", "TET1") for number, size in sizes]


@pytest.mark.parametrize("batch_cells", [1, 17, 48, 10_000])
def test_batch_size_changes_neither_controls_nor_cells(checkpoint, batch_cells):
    for one, other in zip(predict(checkpoint), predict(checkpoint, batch_cells=batch_cells), strict=True):
        np.testing.assert_array_equal(one.control_indices, other.control_indices)
        np.testing.assert_allclose(one.cells, other.cells, rtol=1e-4, atol=1e-6)


def test_the_same_request_is_bit_equal(checkpoint):
    for one, other in zip(predict(checkpoint), predict(checkpoint), strict=True):
        np.testing.assert_array_equal(one.cells, other.cells)


@pytest.mark.parametrize(("dtype", "native", "told"), [("bf16", False, 1), ("bf16", True, 0), ("float32", False, 0)])
def test_bf16_is_told_to_be_slow_where_the_cpu_lacks_it(checkpoint, monkeypatch, caplog, dtype, native, told):
    monkeypatch.setattr(engine, "has_native_bf16", lambda device: native)
    with caplog.at_level("WARNING", logger="steval"):
        Predictor(checkpoint, device="cpu", dtype=dtype)
    assert [record.message.count("no bfloat16 instructions") for record in caplog.records] == [1] * told


def test_order_and_neighbours_change_no_controls(checkpoint):
    together = {(one.perturbation, one.planned.number): one.control_indices for one in predict(checkpoint)}
    alone = predict(checkpoint, names=["TET1"])
    reversed_order = predict(checkpoint, names=["TET1", "SRC", "STAT1"])
    for one in [*alone, *reversed_order]:
        np.testing.assert_array_equal(one.control_indices, together[one.perturbation, one.planned.number])


def test_more_cells_keep_the_sets_of_fewer(checkpoint):
    few, many = predict(checkpoint, num_cells=20), predict(checkpoint, num_cells=60)
    whole = {(one.perturbation, one.planned.number): one.control_indices for one in many}
    for one in few:
        expected = whole[one.perturbation, one.planned.number][: len(one.cells)]
        np.testing.assert_array_equal(one.control_indices, expected)


def test_seed_and_perturbation_change_the_controls(checkpoint):
    first, second = predict(checkpoint, seed=3), predict(checkpoint, seed=4)
    assert not np.array_equal(first[0].control_indices, second[0].control_indices)
    assert not np.array_equal(first[0].control_indices, first[3].control_indices)


def test_a_set_draws_no_control_twice(checkpoint):
    for one in predict(checkpoint):
        assert len(set(one.control_indices.tolist())) == len(one.control_indices)


def test_unknown_names_are_all_reported_with_the_nearest(checkpoint):
    with pytest.raises(UnknownPerturbationError, match="STAT1") as caught:
        predict(checkpoint, names=["STAT11", "SRC", "Tet-1"])
    assert caught.value.unknown == ("STAT11", "Tet-1")


def test_unknown_device_is_refused(checkpoint):
    with pytest.raises(ConfigError, match="allowed: auto, cpu, cuda"):
        Predictor(checkpoint, device="gpu")


def test_bf16_is_near_float32(checkpoint):
    for one, other in zip(predict(checkpoint), predict(checkpoint, dtype="bf16"), strict=True):
        assert other.cells.dtype == np.float32
        assert np.abs(one.cells - other.cells).max() < 0.05 * np.abs(one.cells).max()


def test_more_controls_than_fit_are_encoded_in_waves(checkpoint, monkeypatch):
    monkeypatch.setattr(engine, "ENCODED_BYTES", 20 * 4 * (32 + NUM_GENES // 8))
    encoded = []
    original = Predictor._encode
    monkeypatch.setattr(
        Predictor, "_encode", lambda self, pool, rows: encoded.append(rows) or original(self, pool, rows)
    )
    waves = predict(checkpoint)
    assert len(encoded) > 1
    assert max(len(rows) for rows in encoded) <= 20
    monkeypatch.undo()
    for one, other in zip(waves, predict(checkpoint), strict=True):
        np.testing.assert_array_equal(one.control_indices, other.control_indices)
        np.testing.assert_allclose(one.cells, other.cells, rtol=1e-4, atol=1e-6)


def test_encoded_controls_serve_many_requests(checkpoint):
    pool = checkpoint_controls(checkpoint)
    predictor = Predictor(checkpoint)
    encoded = predictor.encode(pool)
    for name in ("SRC", "STAT1"):
        request = request_names([name], 20)
        for one, other in zip(predictor.predict(request, encoded), predictor.predict(request, pool), strict=True):
            np.testing.assert_allclose(one.cells, other.cells, rtol=1e-4, atol=1e-6)


def test_sets_of_several_requests_go_through_together(checkpoint):
    pool = checkpoint_controls(checkpoint)
    predictor = Predictor(checkpoint)
    requests = [request_names(["SRC"], 20, seed=1), request_names(["SRC", "TET1"], 9, seed=2)]
    planned = [one for request in requests for one in predictor.plan(request, pool).sets()]
    together = [one for block in predictor.predict_blocks(planned, pool) for one in block.split()]
    alone = [one for request in requests for one in predictor.predict(request, pool)]
    for one, other in zip(together, alone, strict=True):
        assert one.planned.seed == other.planned.seed
        np.testing.assert_allclose(one.cells, other.cells, rtol=1e-4, atol=1e-6)


FORMS = {
    "plain residual": {"head": "plain"},
    "no residual": {"predict_residual": False},
    "gene output": {"output_space": "gene"},
    "batch encoder": {"batch_encoder": True, "batch_dim": 48},
    "batch and confidence tokens": {"batch_token": True, "batch_dim": 48, "confidence_token": True},
    "own token only": {"mask_attn": True},
    "causal": {"attention": "causal-rope"},
    "deep encoders": {"num_encoder_layers": 4, "num_decoder_layers": 1},
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_the_network(cells, tmp_path, name):
    form = write_checkpoint(tmp_path / "form.safetensors", tiny_config(**FORMS[name]), cells)
    network = form.network()
    codes = {batch: code for code, batch in enumerate(form.manifest.batches)}
    for one in predict(form, names=["SRC", "TET1"], num_cells=20):
        control = torch.from_numpy(form.controls.cells[one.control_indices].toarray())
        batch = torch.tensor([[codes[label] for label in form.controls.batches[one.control_indices]]])
        with torch.inference_mode():
            expected = network(control[None], form.feature_rows([one.perturbation]), batch).output_BSG[0].numpy()
        np.testing.assert_allclose(one.cells, expected, rtol=1e-4, atol=2e-6)


def test_unknown_batches_of_a_batch_encoder_are_listed(cells, tmp_path):
    config = tiny_config(**FORMS["batch encoder"])
    form = write_checkpoint(tmp_path / "form.safetensors", config, cells)
    renamed = cells.copy()
    renamed.obs["batch"] = "new batch"
    pool = cell_controls(CellFile.wrap(renamed), form.manifest)
    with pytest.raises(ConfigError, match="1 that it does not know: 'new batch'"):
        Predictor(form).plan(request_names(["SRC"], 4), pool)


def test_attention_is_overridden(checkpoint):
    causal = predict(checkpoint, attention="causal")
    bidirectional = predict(checkpoint)
    assert not np.allclose(causal[0].cells, bidirectional[0].cells, rtol=1e-3)
    with pytest.raises(ConfigError):
        predict(checkpoint, attention="sideways")


def test_set_size_is_overridden(checkpoint):
    assert {len(one.cells) for one in predict(checkpoint, num_cells=40, set_size=20)} == {20}


@pytest.mark.parametrize("compile", [False, True])
def test_no_path_builds_a_graph(checkpoint, monkeypatch, compile):
    """Also where gradients are on and features ask for them; what would be compiled is run as it is here."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    asking = dataclasses.replace(checkpoint, features=checkpoint.features.clone().requires_grad_())
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one.shape), lambda shape: shape):
        found = predict(asking, compile=compile)
        assert not saved
        checkpoint.network()(torch.ones(1, 2, NUM_GENES), torch.eye(6)[:1])
        assert saved, "the hook sees graphs where there are some"
    np.testing.assert_array_equal(found[0].cells, predict(checkpoint)[0].cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_equals_plain(checkpoint):
    for one, other in zip(
        predict(checkpoint, names=["SRC"]), predict(checkpoint, names=["SRC"], compile=True), strict=True
    ):
        np.testing.assert_allclose(one.cells, other.cells, rtol=1e-4, atol=2e-6)


def test_a_compiler_that_fails(checkpoint, monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    def fails(function):
        def run(*arguments):
            raise TorchDynamoException("no C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler.*leave --compile out"):
        predict(checkpoint, compile=True)
