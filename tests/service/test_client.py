"""The Python client: the service's errors as steval's own, patience with a busy service, files written whole."""

import anndata as ad
import numpy as np
import pytest

from steval.errors import ConfigError, DataError, ServiceError
from steval.service.client import ServiceClient
from support.service_models import free_port, served_app


@pytest.fixture(scope="module")
def client(service_url):
    with ServiceClient(service_url) as made:
        yield made


def test_means_and_cells_agree(client):
    means = client.predict_means(["SRC", "STAT1"], 40, seed=5)
    cells = client.predict_cells(["SRC", "STAT1"], 40, seed=5)
    assert means.genes == cells.genes
    assert means.means.dtype == cells.cells.dtype == np.float32
    for row, name in enumerate(means.perturbations):
        members = np.array(cells.perturbations) == name
        np.testing.assert_allclose(means.means[row], cells.cells[members].mean(axis=0), rtol=1e-4, atol=1e-6)
    assert set(means.controls) == {"H1"}


def test_files_are_whole_or_not_there(client, tmp_path):
    path = client.save_predictions(tmp_path / "means.h5ad", ["SRC"], 20, output="mean")
    means = ad.read_h5ad(path)
    assert sorted(means.obs["target_gene"]) == ["SRC", "non-targeting"]
    with pytest.raises(DataError):
        client.save_predictions(tmp_path / "none.h5ad", ["nobody"], 20)
    assert [one.name for one in tmp_path.iterdir()] == ["means.h5ad"]


def test_errors_are_steval_errors_with_the_words_of_the_service(client):
    with pytest.raises(DataError, match="nearest known STAT1"):
        client.predict_means(["STAT2"])
    with pytest.raises(DataError, match="greater than or equal to 1"):
        client.predict_means(["STAT1"], 0)
    with pytest.raises(ConfigError, match="valid integer"):
        client.predict_means(["STAT1"], 1.5)
    with pytest.raises(DataError, match="no scoring job"):
        client.score_job("0" * 32)
    with pytest.raises(DataError, match="no such file"):
        client.submit_score("gone.h5ad")


def test_nobody_at_the_address():
    with ServiceClient(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(ServiceError, match="no answer"):
        client.model()


def test_a_busy_service_is_asked_again_as_long_as_patience_lasts():
    asked = []

    async def busy_once(scope, receive, send):
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": (await receive())["type"] + ".complete"})
            return
        asked.append(scope["path"])
        busy = len(asked) == 1
        headers = [(b"retry-after", b"1")] if busy else []
        body = b'{"error": {"code": "busy", "message": "the queue is full"}}' if busy else b'{"name": "x"}'
        await send({"type": "http.response.start", "status": 503 if busy else 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    with served_app(busy_once) as url:
        with ServiceClient(url) as client:
            assert client.model() == {"name": "x"}
        assert len(asked) == 2
        asked.clear()
        with ServiceClient(url, patience=0.5) as client, pytest.raises(ServiceError, match="queue is full"):
            client.model()
