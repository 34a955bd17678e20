"""`steval predict --url` against a running service: the file of a local prediction, or one message and no file."""

import anndata as ad
import numpy as np
import pytest
from typer.testing import CliRunner

from steval.checkpoints.store import load_checkpoint
from steval.cli.app import app
from steval.data.cells.record import read_record
from steval.service.http.access import AccessMiddleware
from steval.service.http.keys import add_key
from steval.service.routes import ROUTES
from support.service_models import free_port, served_app, write_checkpoint
from support.waiting import wait_until


def predict(*arguments, **environment):
    environment = {"STEVAL_API_KEY": "", **environment}
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], env=environment)


def both(tmp_path, checkpoint, url, *options) -> tuple[ad.AnnData, ad.AnnData]:
    """What `steval predict` writes here and by the service."""
    here, there = tmp_path / "here.h5ad", tmp_path / "there.h5ad"
    for place, out in ((checkpoint, here), (f"--url={url}", there)):
        result = predict(place, "-o", out, *options)
        assert result.exit_code == 0, result.output
    return ad.read_h5ad(here), ad.read_h5ad(there)


def comparable(record: dict) -> dict:
    """The record without what tells who wrote it and how many cells it computed together."""
    del record["made_by"], record["details"]["predictor"]["batch_cells"]
    return record


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["-p", "STAT1,TET1", "--cells", 20, "--seed", 3], id="names"),
        pytest.param(["--cells", 5], id="all that is known"),
        pytest.param(["--all", "--output", "mean", "--cells", 40, "--seed", 7], id="means"),
        pytest.param(["--request", "numbers.csv", "--seed", 2], id="table of numbers"),
        pytest.param(["--request", "challenge.csv", "--output", "mean"], id="challenge's table, means"),
        pytest.param(["--request", "names.tsv", "--cells", 7], id="table of names"),
        pytest.param(["--request", "batches.csv"], id="table with cell types and batches"),
        pytest.param(["--request", "numbers.csv", "--min-cells", 10, "--max-cells", 20], id="limits"),
        pytest.param(["-p", "SRC", "-p", "MED12", "--cell-type", "all", "--cells", 18], id="cell types"),
        pytest.param(["-p", "SRC", "--batch", "BATCH", "--cells", 18], id="batch"),
    ],
)
def test_the_file_is_that_of_a_local_prediction(
    service_url, tiny_checkpoint, service_cells, tmp_path, monkeypatch, options
):
    batches = sorted(set(service_cells.obs["batch"][service_cells.obs["target_gene"] == "non-targeting"].astype(str)))
    monkeypatch.chdir(tmp_path)
    tables = {
        "numbers.csv": "perturbation,num_cells\nTET1,33\nSTAT1,5\n",
        "challenge.csv": "target_gene,n_cells,median_umi_per_cell\nSRC,50,24000.5\nMED12,20,1000\n",
        "names.tsv": "perturbation\nTMSB4X\nSTAT1\n",
        "batches.csv": f"perturbation,num_cells,cell_type,batch\nSRC,9,H1,{batches[0]}\nSRC,8,,{batches[1]}\nTET1,4,,\n",
    }
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
    here, there = both(
        tmp_path, tiny_checkpoint, service_url, *(batches[0] if one == "BATCH" else one for one in options)
    )
    assert there.obs.equals(here.obs)
    assert there.var.equals(here.var)
    np.testing.assert_allclose(there.X.toarray(), here.X.toarray(), rtol=1e-5, atol=1e-6)
    assert comparable(read_record(there.uns)) == comparable(read_record(here.uns))
    assert there.obs["predicted"].sum() >= 2


def test_one_of_several_models_is_named(http, service_url, tmp_path, models_dir, service_cells):
    second = write_checkpoint(models_dir / "second.safetensors", service_cells, seed=5)
    try:
        wait_until(lambda: "second" in [one["name"] for one in http.get("/models").json()["models"]])
        asked = ["-p", "STAT1,TET1", "--cells", "20", "--seed", "3", "--output", "mean"]
        for name in ("second", load_checkpoint(second).digest[:12]):
            found = predict("--url", service_url, "--model", name, "-o", tmp_path / "there.h5ad", *asked)
            assert found.exit_code == 0, found.output
            assert predict(second, "-o", tmp_path / "here.h5ad", *asked).exit_code == 0
            here, there = (ad.read_h5ad(tmp_path / f"{place}.h5ad") for place in ("here", "there"))
            np.testing.assert_allclose(there.X.toarray(), here.X.toarray(), rtol=1e-5, atol=1e-6)
            assert comparable(read_record(there.uns)) == comparable(read_record(here.uns))
        unknown = predict("--url", service_url, "--model", "secnd", "-o", tmp_path / "none.h5ad", *asked)
        assert unknown.exit_code == 4
        assert "there is no model 'secnd'; nearest known second" in unknown.output
        assert not (tmp_path / "none.h5ad").exists()
    finally:
        second.unlink()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        pytest.param(["-p", "STAT11"], 4, "'STAT11': nearest known STAT1", id="unknown name"),
        pytest.param(["-p", "SRC", "--all"], 2, "in one way", id="two requests"),
        pytest.param(["--request", "bad.csv"], 2, "line 2: num_cells must be a whole number", id="bad table"),
        pytest.param(["--request", "gone.csv"], 4, "no such request file", id="no table"),
        pytest.param(["--request", "screen.h5ad"], 2, "a service starts from its own", id="h5ad"),
        pytest.param(["-p", "SRC", "--cells", 3000], 4, "the limit is 2,000 a request", id="too many cells"),
        pytest.param(["-p", "SRC", "--cell-type", "K562"], 4, "they hold: H1", id="cell type"),
        pytest.param(["-p", "SRC", "--output", "median"], 2, "'cells' or 'mean'", id="output"),
        pytest.param(["-p", "SRC", "--layout", "dense"], 2, "a service decides these itself", id="local option"),
        pytest.param(["-p", "non-targeting"], 4, "non-targeting", id="control"),
    ],
)
def test_bad_requests_give_one_message_and_no_file(service_url, tmp_path, monkeypatch, options, code, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("perturbation,num_cells\nSRC,many\n")
    result = predict("--url", service_url, "-o", "out/p.h5ad", *options)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


async def empty(scope, receive, send):
    raise AssertionError("a request without a key went through")


def test_no_key_or_a_wrong_one_is_one_line_and_no_file(tmp_path):
    key_file = tmp_path / "keys.txt"
    key = add_key(key_file, "lab")
    arguments = ["-o", tmp_path / "p.h5ad", "-p", "SRC"]
    with served_app(AccessMiddleware(empty, routes=ROUTES, key_file=key_file)) as url:
        missing = predict("--url", url, *arguments)
        wrong = predict("--url", url, *arguments, "--api-key", key[:-1])
        variable = predict("--url", url, *arguments, STEVAL_API_KEY="wrong")
    for result, words in ((missing, "an API key is needed"), (wrong, "not known"), (variable, "not known")):
        assert result.exit_code == 2
        assert words in result.output
        assert len(result.output.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [key_file]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        pytest.param("http://127.0.0.1:{port}", "no answer from the service", id="nobody there"),
        pytest.param("http://127.0.0.1:{port}/a/b", "no answer from the service", id="with a path"),
        pytest.param("127.0.0.1:{port}", "not the address of a service", id="no scheme"),
        pytest.param("ftp://127.0.0.1", "not the address of a service", id="another scheme"),
        pytest.param("http://", "not the address of a service", id="no host"),
        pytest.param("http://[::1", "not the address of a service", id="no address"),
    ],
)
def test_an_address_where_no_service_is_gives_one_line_and_no_file(tmp_path, url, words):
    result = predict("--url", url.format(port=free_port()), "-o", tmp_path / "p.h5ad", "-p", "SRC")
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert len(result.output.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def another_server(status: int, body: bytes, length: int | None = None):
    """An ASGI app that is no service of ours, or one that breaks off: it answers `body`, and claims `length` bytes."""

    async def answer(scope, receive, send):
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": (await receive())["type"] + ".complete"})
            return
        headers = [(b"content-type", b"text/html")]
        headers += [] if length is None else [(b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": length is not None})

    return answer


@pytest.mark.parametrize(
    ("server", "words"),
    [
        pytest.param(another_server(404, b"<h1>Not found</h1>"), "answered 404", id="another site"),
        pytest.param(
            another_server(200, b"<h1>Welcome</h1>"), "not a steval service", id="a site that likes everything"
        ),
        pytest.param(another_server(200, b"[1, 2]"), "not a steval service", id="another JSON"),
        pytest.param(another_server(502, b"bad gateway"), "answered 502", id="a proxy without its service"),
        pytest.param(another_server(200, b"{", 1000), "no answer from the service", id="an answer cut off"),
    ],
)
def test_another_server_is_told_from_a_service(tmp_path, server, words):
    with served_app(server) as url:
        result = predict("--url", url, "-o", tmp_path / "p.h5ad", "-p", "SRC")
    assert result.exit_code in (2, 4)
    assert words in result.output
    assert len(result.output.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
