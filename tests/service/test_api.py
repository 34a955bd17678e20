"""The HTTP interface in one process: what is answered, and how every kind of bad request is refused."""

import io
import json
import socket
import threading
import time

import anndata as ad
import httpx
import numpy as np
import pytest

from steval.checkpoints.store import load_checkpoint
from steval.data.cells.record import read_record
from steval.predictor.controls import checkpoint_controls
from steval.predictor.engine import Predictor
from steval.predictor.job import predict_into
from steval.predictor.requests import request_names

JSON = {"content-type": "application/json"}
ARROW = "application/vnd.apache.arrow.stream"
H5AD = "application/x-hdf5"


def post(http: httpx.Client, body: object, accept: str = "application/json") -> httpx.Response:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return http.post("/predict", content=content, headers={**JSON, "accept": accept})


def error_of(response: httpx.Response, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code == response.headers["x-error-code"]
    assert error["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return error


@pytest.fixture(scope="module")
def reference(tiny_checkpoint, tmp_path_factory):
    """The cells that `steval predict` writes for STAT1 and TET1 (40 cells, seed 3)."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    path = tmp_path_factory.mktemp("reference") / "preds.h5ad"
    request = request_names(["STAT1", "TET1"], 40, seed=3)
    predict_into(path, Predictor(checkpoint, device="cpu"), request, checkpoint_controls(checkpoint))
    return ad.read_h5ad(path)


REQUEST = {"perturbations": ["STAT1", "TET1"], "cells": 40, "seed": 3}


def test_json_means_are_those_of_steval_predict(http, reference):
    response = post(http, REQUEST)
    assert response.status_code == 200
    answer = response.json()
    assert answer["genes"] == list(reference.var_names)
    assert (answer["seed"], answer["scale"], answer["target_sum"]) == (3, "lognorm", 10_000.0)
    for profile in answer["predictions"]:
        rows = reference[(reference.obs["target_gene"] == profile["perturbation"]).to_numpy()]
        expected = rows.X.toarray().mean(axis=0, dtype=np.float64)
        assert profile["num_cells"] == rows.n_obs == 40
        np.testing.assert_allclose(profile["mean"], expected, rtol=1e-4, atol=1e-6)
    controls = reference[(~reference.obs["predicted"]).to_numpy()]
    assert answer["controls"][0]["num_cells"] == controls.n_obs
    np.testing.assert_allclose(answer["controls"][0]["mean"], controls.X.toarray().mean(axis=0), rtol=1e-4, atol=1e-6)


def test_h5ad_is_the_file_of_steval_predict(http, reference):
    response = post(http, {**REQUEST, "output": "cells"}, H5AD)
    assert response.headers["content-type"] == H5AD
    served = ad.read_h5ad(io.BytesIO(response.content))
    assert served.obs.equals(reference.obs)
    assert abs(served.X - reference.X).max() < 1e-5
    assert served.uns["steval"]["scale"] == "lognorm"


@pytest.mark.parametrize("decoding", ["network", "carried"])
def test_a_decoding_that_is_asked_for_is_that_of_steval_predict(http, tiny_checkpoint, tmp_path, monkeypatch, decoding):
    monkeypatch.setattr("steval.predictor.cells.decoding.ITEMS_AT_ONCE", 1)  # the queue is asked more than once
    served = ad.read_h5ad(io.BytesIO(post(http, {**REQUEST, "output": "cells", "decoding": decoding}, H5AD).content))
    checkpoint = load_checkpoint(tiny_checkpoint)
    request = request_names(["STAT1", "TET1"], 40, seed=3).model_copy(update={"decoding": decoding})
    path = tmp_path / "preds.h5ad"
    predict_into(path, Predictor(checkpoint, device="cpu"), request, checkpoint_controls(checkpoint))
    expected = ad.read_h5ad(path)
    record = read_record(served.uns)["details"]
    assert record["predictor"]["decoding"]["kind"] == decoding
    assert record["request_digest"] == request.digest()
    np.testing.assert_allclose(served.X.toarray(), expected.X.toarray(), rtol=1e-4, atol=1e-5)
    means = post(http, {**REQUEST, "decoding": decoding}).json()["predictions"]
    for profile in means:
        rows = expected[(expected.obs["target_gene"] == profile["perturbation"]).to_numpy()]
        np.testing.assert_allclose(profile["mean"], rows.X.toarray().mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoding", ["identity", "zstd"])
def test_arrow_cells_are_those_of_steval_predict(http, reference, encoding):
    from steval.service.client import ServiceClient

    with ServiceClient(str(http.base_url)) as client:
        client._http.headers["accept-encoding"] = encoding
        cells = client.predict_cells(["STAT1", "TET1"], 40, seed=3)
    predicted = reference[reference.obs["predicted"].to_numpy()]
    assert cells.perturbations == predicted.obs["target_gene"].tolist()
    assert cells.control_cells == predicted.obs["control_cell"].tolist()
    np.testing.assert_allclose(cells.cells, predicted.X.toarray(), rtol=1e-4, atol=1e-6)


def test_the_same_seed_answers_the_same_and_another_does_not(http):
    one, again, other = (
        post(http, {"perturbations": ["SRC"], "cells": 5, "seed": seed}).json()["predictions"] for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_unknown_and_near_miss_names_are_404_with_the_nearest(http):
    error = error_of(post(http, {"perturbations": ["STAT1", "stat2", "zzzzz"]}), 404, "unknown_perturbation")
    assert error["nearest"] == {"stat2": ["STAT1"], "zzzzz": []}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("{", id="not JSON"),
        pytest.param("", id="empty"),
        pytest.param(b"\xff\xfe\x00", id="not UTF-8"),
        pytest.param("[]", id="a list"),
        pytest.param("null", id="null"),
        pytest.param("{}", id="nothing asked"),
        pytest.param('{"perturbations": "STAT1"}', id="text for a list"),
        pytest.param('{"perturbations": [1]}', id="a number for a name"),
        pytest.param('{"perturbations": [{"num_cells": 3}]}', id="an entry without a name"),
        pytest.param('{"perturbations": [{"perturbation": "SRC", "cells": 3}]}', id="an unknown key in an entry"),
        pytest.param('{"perturbations": [{"perturbation": "SRC", "num_cells": "3"}]}', id="text for its number"),
        pytest.param('{"perturbations": [{"perturbation": "SRC", "median_umi": NaN}]}', id="NaN in an entry"),
        pytest.param('{"perturbations": ["STAT1"], "cells": "20"}', id="text for a number"),
        pytest.param('{"perturbations": ["STAT1"], "cells": 1.5}', id="a fraction of a cell"),
        pytest.param('{"perturbations": ["STAT1"], "cells": true}', id="true for a number"),
        pytest.param('{"perturbations": ["STAT1"], "cells": NaN}', id="NaN"),
        pytest.param('{"perturbations": ["STAT1"], "seed": Infinity}', id="infinity"),
        pytest.param('{"perturbations": ["STAT1"], "cells": 1e999}', id="a huge float"),
        pytest.param('{"perturbations": ["STAT1"], "sed": 1}', id="an unknown key"),
        pytest.param("[" * 100_000, id="deeply nested"),
    ],
)
def test_malformed_bodies_are_400(http, body):
    error_of(post(http, body), 400, "bad_request")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"perturbations": []}, id="no names"),
        pytest.param({"perturbations": [""]}, id="an empty name"),
        pytest.param({"perturbations": ["x" * 1000]}, id="a long name"),
        pytest.param({"perturbations": ["STAT1"], "cells": 0}, id="no cells"),
        pytest.param({"perturbations": [{"perturbation": "SRC", "num_cells": 0}]}, id="an entry of no cells"),
        pytest.param({"perturbations": [{"perturbation": "SRC", "num_cells": 10**30}]}, id="a huge entry"),
        pytest.param({"perturbations": [{"perturbation": "SRC", "cell_type": "K562"}]}, id="its cell type"),
        pytest.param({"perturbations": ["STAT1"], "cells": -5}, id="negative"),
        pytest.param({"perturbations": ["STAT1"], "cells": 10**30}, id="a huge number"),
        pytest.param({"perturbations": ["STAT1"], "seed": 2**63}, id="a huge seed"),
        pytest.param({"perturbations": ["STAT1"], "output": "median"}, id="an unknown output"),
        pytest.param({"perturbations": ["STAT1", "STAT1"]}, id="twice"),
        pytest.param({"perturbations": ["STAT1", {"perturbation": "STAT1"}]}, id="twice in two forms"),
        pytest.param({"perturbations": ["STAT1"], "cell_type": "K562"}, id="a cell type the controls lack"),
        pytest.param({"perturbations": ["STAT1"], "batch": "nowhere"}, id="a batch the controls lack"),
    ],
)
def test_broken_rules_are_422(http, body):
    error_of(post(http, body), 422, "breaks_a_rule")


def test_ten_thousand_perturbations_are_413(http):
    names = [f"GENE{number}" for number in range(10_000)]
    error = error_of(post(http, {"perturbations": names, "cells": 1}), 413, "too_many_cells")
    assert "10,000 cells" in error["message"]


def test_cells_of_single_entries_count_too(http):
    names = [{"perturbation": name, "num_cells": 1001} for name in ("SRC", "STAT1")]
    assert "2,002 cells" in error_of(post(http, {"perturbations": names, "cells": 1}), 413, "too_many_cells")["message"]


def test_entries_may_have_numbers_and_batches_of_their_own(http, reference):
    asked = [{"perturbation": "STAT1", "num_cells": 40}, {"perturbation": "SRC", "batch": "BATCH"}, "MED12"]
    batch = http.get("/model").json()["batches"][0]
    asked[1]["batch"] = batch
    answer = post(http, {"perturbations": asked, "cells": 7, "seed": 3}).json()
    found = [(one["perturbation"], one["num_cells"], one["batch"]) for one in answer["predictions"]]
    assert found == [("STAT1", 40, None), ("SRC", 7, batch), ("MED12", 7, None)]
    assert answer["cells"] is None
    alone = post(http, {"perturbations": ["STAT1"], "cells": 40, "seed": 3}).json()
    np.testing.assert_allclose(answer["predictions"][0]["mean"], alone["predictions"][0]["mean"], rtol=1e-4, atol=1e-6)


def test_bodies_over_the_limit_are_413_also_without_a_length(http):
    whole = b'{"perturbations": ["' + b"x" * (3 * 2**20) + b'"]}'
    error_of(post(http, whole), 413, "too_large")

    def pieces():
        for _ in range(30):
            yield b"x" * 100_000

    response = http.post("/predict", content=pieces(), headers=JSON)
    error_of(response, 413, "too_large")


@pytest.mark.parametrize(
    "media_type",
    [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        *("application/x-pickle", "application/vnd.bentoml+pickle", "application/octet-stream"),
    ],
)
def test_other_media_types_are_415(http, media_type):
    response = http.post("/predict", content=b"\x80\x04N.", headers={"content-type": media_type})
    error_of(response, 415, "unsupported_media_type")


def test_a_missing_type_and_an_encoding_are_415(http):
    error_of(http.post("/predict", content=b"{}"), 415, "unsupported_media_type")
    response = http.post("/predict", content=b"{}", headers={**JSON, "content-encoding": "gzip"})
    error_of(response, 415, "unsupported_media_type")


def test_cells_as_json_are_406(http):
    error_of(post(http, {**REQUEST, "output": "cells"}), 406, "not_acceptable")


def test_other_methods_and_addresses(http):
    error_of(http.get("/predict"), 405, "method_not_allowed")
    assert http.get("/predict").headers["allow"] == "POST"
    error_of(http.delete("/model"), 405, "method_not_allowed")
    for path in (
        "/nothing",
        "/static_content/main.js",
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/docs.json",
        "/schema.json",
    ):
        error_of(http.get(path), 404, "not_found")


@pytest.mark.parametrize("media_type", ["application/json", "application/x-pickle", "text/plain"])
def test_an_address_with_a_line_break_is_not_the_address(http, media_type):
    response = http.post("/predict%0A", content=b"{}", headers={"content-type": media_type})
    error_of(response, 404, "not_found")


def test_a_client_that_sends_slowly_is_408(service_url):
    host, port = service_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as one:
        one.sendall(
            b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"
        )
        assert b"408" in one.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize("accept", [ARROW, H5AD])
def test_clients_that_vanish_give_their_cells_back_and_leave_no_file(http, service_url, accept):
    from steval.service.app import SITE

    host, port = service_url.removeprefix("http://").split(":")
    body = json.dumps({"perturbations": ["STAT1"], "cells": 2000, "output": "cells"}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\ncontent-type: application/json\r\n"
    for _ in range(8):
        with socket.create_connection((host, int(port)), timeout=20) as one:
            one.sendall(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    deadline = time.monotonic() + 30
    while "steval_queued_cells 0.0" not in http.get("/metrics").text:
        assert time.monotonic() < deadline, "cells stay reserved"
        time.sleep(0.2)
    while list(SITE.state.runtime.scratch.iterdir()):
        assert time.monotonic() < deadline, "files stay behind"
        time.sleep(0.2)
    assert post(http, REQUEST).status_code == 200


def test_thousands_of_unknown_names_whose_clients_left_hold_nobody_up(http, service_url):
    host, port = service_url.removeprefix("http://").split(":")
    names = [f"GEEN{number}" for number in range(2000)]
    body = json.dumps({"perturbations": names, "cells": 1}).encode()
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=20) as one:
            one.sendall(head + b"content-length: " + str(len(body)).encode() + b"\r\n\r\n" + body)
    assert http.get("/livez", timeout=10).status_code == 200
    error = error_of(post(http, body), 404, "unknown_perturbation")
    assert (len(error["nearest"]), error["problems"][-1]) == (10, "and 1,990 more unknown names")
    assert post(http, REQUEST).status_code == 200


def test_requests_at_once_get_their_own_answers(http, service_url):
    def mean_of(client: httpx.Client, name: str) -> list[float]:
        return post(client, {"perturbations": [name], "cells": 20}).json()["predictions"][0]["mean"]

    expected = {name: mean_of(http, name) for name in ("SRC", "TET1")}
    failures = []

    def ask(name: str) -> None:
        with httpx.Client(base_url=service_url, timeout=60) as client:
            for _ in range(5):
                if not np.allclose(mean_of(client, name), expected[name], rtol=1e-4, atol=1e-6):
                    failures.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("SRC", "TET1") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_perturbations_are_searched_and_paged(http):
    assert http.get("/perturbations").json()["total"] == 5
    found = http.get("/perturbations", params={"search": "t1"}).json()
    assert [one["name"] for one in found["perturbations"]] == ["STAT1", "TET1"]
    assert http.get("/perturbations", params={"search": "tet"}).json()["perturbations"][0]["name"] == "TET1"
    page = http.get("/perturbations", params={"limit": 2, "offset": 1}).json()
    assert [one["name"] for one in page["perturbations"]] == ["SRC", "STAT1"]
    assert http.get("/perturbations", params={"search": "STAT9"}).json()["nearest"] == ["STAT1"]
    error_of(http.get("/perturbations", params={"limit": "many"}), 400, "bad_request")
    error_of(http.get("/perturbations", params={"limit": 0}), 422, "breaks_a_rule")


def test_the_model_card(http, tiny_checkpoint):
    card = http.get("/model").json()
    assert card["name"] == tiny_checkpoint.name
    assert card["checkpoint"] == load_checkpoint(tiny_checkpoint).digest
    assert (card["num_genes"], card["num_perturbations"], card["control"]) == (120, 5, "non-targeting")


def test_request_ids_are_kept_where_they_are_plain(http):
    assert http.get("/model", headers={"x-request-id": "abc-123"}).headers["x-request-id"] == "abc-123"
    forged = http.get("/model", headers={"x-request-id": 'a" {"level"'}).headers["x-request-id"]
    assert len(forged) == 16


def test_metric_labels_are_bounded(http):
    for number in range(20):
        http.get(f"/wander/{number}")
        http.get(f"/score/{number:032x}")
    text = http.get("/metrics").text
    assert "wander" not in text
    assert f"{3:032x}" not in text
    assert 'route="other"' in text
    assert 'route="/score/{id}"' in text


def test_the_page_and_its_files_come_with_a_strict_policy(http):
    page = http.get("/")
    assert "text/html" in page.headers["content-type"]
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("app.js", "chart.js", "style.css", "icon.svg"):
        assert f"/page/{name}" in page.text or name == "chart.js"
        assert http.get(f"/page/{name}").status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_health(http):
    assert http.get("/livez").status_code == http.get("/readyz").status_code == 200


def test_pages_of_other_origins_are_refused(http):
    error_of(http.get("/model", headers={"origin": "https://evil.example"}), 403, "forbidden_origin")
    own = {"origin": str(http.base_url).rstrip("/")}
    response = http.get("/model", headers=own)
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "headers",
    [{"host": "rebound.example"}, {"x-forwarded-for": "203.0.113.9"}, {"forwarded": "for=203.0.113.9"}],
    ids=["another host name", "through a proxy", "through a proxy, RFC 7239"],
)
def test_without_keys_only_this_machine_is_answered(http, headers):
    error_of(http.get("/model", headers=headers), 401, "unauthorised")
