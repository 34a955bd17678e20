"""API keys are stripped, checked and never shown: not in messages, tracebacks, logs, representations or answers."""

import io
import logging
import socket
import threading
import traceback

import httpx
import pytest
from typer.testing import CliRunner

from steval.cli.app import app
from steval.errors import ConfigError, StevalError
from steval.service.client import ServiceClient, usable_key
from steval.service.http.keys import add_key
from support.service_models import free_port, served_process, wait_until_ready

SECRET = "topsecret123"
ODD_KEYS = [
    *(f"stv_{SECRET}\n", f" {SECRET} ", f"{SECRET}\r\nX-Other: 1", f"{SECRET}\x00"),
    *(f"schlüssel-{SECRET}", f"{SECRET} two", f"{SECRET}\x7f", "\udcff" + SECRET),
]


@pytest.mark.parametrize("key", [" stv_a \n", "\tstv_a", "stv_a\r\n"])
def test_white_space_around_a_key_is_not_part_of_it(key):
    assert usable_key(key) == "stv_a"


@pytest.mark.parametrize("key", [None, "", " \n"])
def test_nothing_is_no_key(key):
    assert usable_key(key) is None


def answers_once(status: bytes) -> tuple[str, socket.socket]:
    """A server that answers every connection with `status`."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", listener


@pytest.mark.parametrize("key", ODD_KEYS)
@pytest.mark.parametrize("where", ["nobody", "401", "garbage", "no service"])
def test_a_key_is_never_in_what_the_client_says(tmp_path, key, where):
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    url, listener = answers_once({"401": b"401 Unauthorized", "garbage": b"2OO What"}.get(where, b"200 OK"))
    if where == "nobody":
        url = f"http://127.0.0.1:{free_port()}"
    said = []
    try:
        try:
            with ServiceClient(url, key) as client:
                said.append(f"{client!r} {client._http.headers!r}")
                client.model()
        except StevalError:
            said.append(traceback.format_exc())
        arguments = ["predict", "--url", url, "-o", str(tmp_path / "p.h5ad"), "-p", "A"]
        for given, variables in (
            ([], {"STEVAL_API_KEY": key}),
            (["--api-key", key], {}),
            (["--debug"], {"STEVAL_API_KEY": key}),
        ):
            if "\x00" in key or "\udcff" in key:
                continue  # neither an argument nor a variable can hold it
            result = CliRunner().invoke(app, [*arguments, *given], env=variables)
            said.append(result.output + "".join(traceback.format_exception(result.exception)))
            assert result.exit_code in (1, 2) if "--debug" in given else result.exit_code == 2, result.output
    finally:
        listener.close()
        logging.getLogger().removeHandler(handler)
    assert said
    assert SECRET not in "".join(said) + log.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_no_message_shows_a_key_that_is_refused():
    for key in ODD_KEYS[2:]:
        with pytest.raises(ConfigError) as refused:
            usable_key(key)
        assert SECRET not in str(refused.value)


@pytest.mark.slow
def test_a_service_never_logs_or_answers_a_key(tiny_checkpoint, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text(f"# by hand, without a line break at the end\nold sha256:{'0' * 64}")
    key = add_key(keys, "lab")
    said = []
    with served_process(str(tiny_checkpoint), "--api-key-file", str(keys)) as (url, process):
        wait_until_ready(url)
        for headers in (
            {"authorization": f"Bearer {key}"}, {"authorization": f"Bearer {key}x"}, {"authorization": f"Basic {key}"},
            {"x-api-key": key}, {"x-api-key": f"{key} {key}"}, {"authorization": f"Bearer {key}", "x-request-id": key[:8]},
        ):  # fmt: skip
            for path in ("/model", "/predict", "/nothing", "/metrics", "/score/x"):
                for method in ("GET", "POST"):
                    answer = httpx.request(method, url + path, headers=headers, content=b"{")
                    assert answer.status_code < 500, answer.text
                    said += [answer.text, str(answer.headers)]
        assert httpx.get(url + "/model", headers={"x-api-key": key}).status_code == 200
    text = "".join(said) + "".join(process.log)
    assert key not in text
    assert key.removeprefix("stv_") not in text
