"""Ranks and energy distances by torch against those of the processors: U and ties to the last bit, p to 1e-12."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from steval.data.columns import Columns
from steval.errors import ConfigError, DeviceMemoryError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.cells.sides import StoredCells
from steval.evaluator.measure.cache import cached_scan
from steval.evaluator.measure.distances import ControlDistances
from steval.evaluator.measure.engine import HOST, Engine
from steval.evaluator.measure.groups import Group
from steval.evaluator.measure.scan import Needs, scan
from steval.evaluator.scoring import score
from steval.workflows.device_measures import DeviceDistances, DeviceEngine
from steval.workflows.score import ScoreRequest, _engine
from support.engine_screens import CONTROL, screen

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def gene_major(dense: np.ndarray) -> Group:
    """A group of the rows of `dense [n, G]`."""
    columns = sp.csc_matrix(dense)
    empty = np.zeros(dense.shape[1])
    return Group("group", len(dense), columns.indptr.astype(np.int64), columns.data.copy(), empty, empty, None)


def ranks(engine: Engine, perturbed: np.ndarray, control: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with ThreadPoolExecutor(1) as pool:
        return engine.ranks(gene_major(control), pool).rank(gene_major(perturbed))


def assert_same_ranks(engine: Engine, perturbed: np.ndarray, control: np.ndarray) -> None:
    statistic, p_value = ranks(engine, perturbed, control)
    expected_u, expected_p = ranks(HOST, perturbed, control)
    np.testing.assert_array_equal(statistic, expected_u)
    np.testing.assert_allclose(p_value, expected_p, rtol=1e-12, atol=1e-300)


values = st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.25, 7.0]), min_size=1, max_size=60)
kinds = st.sampled_from([np.float32, np.float64])


@settings(max_examples=80, deadline=None)
@given(values, values, kinds, kinds)
def test_any_ties_and_zeros_of_either_precision(
    perturbed: list[float], control: list[float], perturbed_kind: type, control_kind: type
) -> None:
    assert_same_ranks(
        DeviceEngine(CPU),
        np.array(perturbed, dtype=perturbed_kind)[:, None],
        np.array(control, dtype=control_kind)[:, None],
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("memory", [1 << 30, 200_000], ids=["at once", "gene by gene"])
def test_many_genes_of_many_cells(device: str, kind: type, memory: int) -> None:
    generator = np.random.default_rng(0)
    control = generator.gamma(1.0, size=(500, 23)).astype(kind)
    perturbed = generator.gamma(1.5, size=(411, 23)).astype(kind)
    control[generator.random(control.shape) < 0.4] = 0
    perturbed[generator.random(perturbed.shape) < 0.3] = 0
    perturbed[:200, 7] = control[:200, 7]
    control[:, 3], perturbed[:, 4], control[:, 5], perturbed[:, 5], perturbed[:, 0] = 0, 0, 0, 0, 0
    assert_same_ranks(DeviceEngine(torch.device(device), memory), perturbed, control)


def test_values_too_near_for_float32_are_told_apart() -> None:
    near = 1.0 + np.arange(40.0) * 1e-12
    assert_same_ranks(DeviceEngine(CPU), near[::2, None] + 3e-13, near[::3, None])
    assert_same_ranks(DeviceEngine(CPU), near[::2, None], near[::3, None].astype(np.float32))


def test_a_double_perturbation_after_single_ones_is_ranked_by_its_own_values() -> None:
    generator = np.random.default_rng(1)
    control = generator.gamma(1.0, size=(60, 4)).astype(np.float32)
    groups = [control[:30].astype(np.float64), control[10:50], generator.gamma(1.0, size=(31, 4))]
    with ThreadPoolExecutor(1) as pool:
        device, host = DeviceEngine(CPU).ranks(gene_major(control), pool), HOST.ranks(gene_major(control), pool)
    for group in [control[5:25], *groups]:
        for found, expected in zip(device.rank(gene_major(group)), host.rank(gene_major(group)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_controls_that_do_not_fit_the_memory_given_are_refused_by_size() -> None:
    with pytest.raises(ConfigError, match=r"the controls' 2,000 values need 31\.2 KiB of the device.*--device cpu"):
        ranks(DeviceEngine(CPU, 1000), np.ones((3, 20)), np.ones((100, 20)))


@pytest.mark.parametrize("operation", ["sort", "searchsorted"], ids=["sorting the controls", "ranking among them"])
def test_a_device_that_runs_out_of_memory_says_what_to_lower(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor if operation == "sort" else torch, operation, full)
    with pytest.raises(DeviceMemoryError, match=r"Lower --device-memory \(now 1\.0 GiB\).*--device cpu"):
        ranks(DeviceEngine(CPU, 1 << 30), np.ones((3, 2)), np.ones((5, 2)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("memory", [1 << 30, 1], ids=["kept", "block by block"])
def test_energy_distances_are_those_of_the_processors(device: str, kind: type, sparse: bool, memory: int) -> None:
    generator = np.random.default_rng(0)
    control = generator.gamma(1.0, size=(90, 200)).astype(kind)
    cells = generator.gamma(1.2, size=(31, 200)).astype(kind)
    cells[:3], cells[generator.random(cells.shape) < 0.5] = control[:3], 0
    made = sp.csr_matrix if sparse else np.asarray
    found = DeviceDistances(made(control), torch.device(device), memory, Lock()).energy(made(cells))
    expected = ControlDistances(made(control)).energy(made(cells))
    assert found == pytest.approx(expected, abs=4e-6 if kind == np.float32 else 1e-12)


def test_many_pairs_are_averaged_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    control, cells = generator.gamma(1.0, size=(90, 50)), generator.gamma(1.2, size=(31, 50))
    monkeypatch.setattr("steval.workflows.device_measures.PAIRS_AT_ONCE", 10)
    found = DeviceDistances(control, CPU, 1000, Lock()).energy(cells)
    assert found == pytest.approx(ControlDistances(control).energy(cells), abs=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_a_side_scanned_by_a_device_has_the_tables_of_the_processors(device: str) -> None:
    adata = screen(num_perturbations=3)[0]
    with Pair.build(adata, adata, Columns(control=CONTROL)) as pair:
        needs = Needs(de=True, energy=True)
        tables = [
            scan(pair.real, pair.control, pair.genes, needs, 2, engine)
            for engine in (HOST, DeviceEngine(torch.device(device)))
        ]
    host, found = tables
    assert host.de is not None and found.de is not None and host.energy is not None and found.energy is not None
    np.testing.assert_array_equal(found.means, host.means)
    np.testing.assert_array_equal(found.de.statistic, host.de.statistic)
    np.testing.assert_array_equal(found.de.target_mean, host.de.target_mean)
    np.testing.assert_allclose(found.de.p_value, host.de.p_value, rtol=1e-12)
    np.testing.assert_allclose(found.energy, host.energy, atol=4e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_scores_by_a_device_are_those_of_the_processors_and_cached_apart(device: str, tmp_path: Path) -> None:
    real, pred = screen(num_perturbations=4)
    how = {
        "columns": Columns(control=CONTROL),
        "metrics_only": True,
        "metrics": ("mae", "overlap_at_N", "de_spearman_sig"),
    }
    reports = [
        score(pred, real, engine=engine, **how)  # type: ignore[arg-type]
        for engine in (HOST, DeviceEngine(torch.device(device)))
    ]
    assert_frame_equal(*(report.results for report in reports), rel_tol=1e-9)
    with Pair.build(pred, real, Columns(control=CONTROL)) as pair:
        assert isinstance(pair.real, StoredCells)
        for engine in (HOST, DeviceEngine(torch.device(device)), DeviceEngine(torch.device(device), 1 << 30)):
            pair.real.tables.clear()
            cached_scan(tmp_path, pair.real, "target_gene", CONTROL, pair.genes, Needs(de=True), 1, engine)
    assert len(list(tmp_path.iterdir())) == 2


def test_score_takes_a_device_by_name_alone(tmp_path: Path) -> None:
    assert _engine(ScoreRequest(tmp_path)) is HOST
    assert _engine(ScoreRequest(tmp_path, device="cpu")) is HOST
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA"):
            _engine(ScoreRequest(tmp_path, device="cuda"))


@pytest.mark.gpu
def test_score_gives_a_gpu_the_memory_asked_for(tmp_path: Path) -> None:
    engine = _engine(ScoreRequest(tmp_path, device="cuda", device_memory=0.5))
    assert isinstance(engine, DeviceEngine) and engine.memory_bytes == 1 << 29 and engine.device.type == "cuda"
