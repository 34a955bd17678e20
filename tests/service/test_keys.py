"""API keys: hashed, several, read strictly; who is answered with and without them."""

import asyncio

import pytest

from steval.errors import ConfigError
from steval.service.http.access import AccessMiddleware
from steval.service.http.keys import add_key, read_keys
from steval.service.routes import ROUTES


@pytest.fixture
def key_file(tmp_path):
    return tmp_path / "keys.txt"


def test_keys_are_known_by_their_hash_alone(key_file):
    one, two = add_key(key_file, "lab-a"), add_key(key_file, "lab-b")
    ring = read_keys(key_file)
    assert (ring.owner(one), ring.owner(two)) == ("lab-a", "lab-b")
    assert ring.owner(one[:-1]) is None
    assert ring.owner("") is None
    assert one not in key_file.read_text()
    assert key_file.stat().st_mode & 0o077 == 0


def test_a_name_is_used_once(key_file):
    add_key(key_file, "lab")
    with pytest.raises(ConfigError, match="already has a key"):
        add_key(key_file, "lab")
    with pytest.raises(ConfigError, match="name takes"):
        add_key(key_file, "a name")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# a comment\n\n", "holds no key"),
        ("secret\n", "line 1 is not"),
        ("a sha256:00\n", "line 1 is not"),
        (f"a sha256:{'0' * 64}\na sha256:{'1' * 64}\n", "occurs twice"),
    ],
)
def test_bad_key_files_say_which_line(key_file, text, message):
    key_file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_keys(key_file)


def test_a_byte_order_mark_is_no_part_of_the_first_name(key_file):
    key = add_key(key_file, "lab")
    key_file.write_text(key_file.read_text(), encoding="utf-8-sig")
    assert read_keys(key_file).owner(key) == "lab"


def status(
    middleware: AccessMiddleware, path: str = "/model", method: str = "GET", client: str = "127.0.0.1", **headers
):
    """What the middleware answers; 200 where it lets the request through."""
    sent = []
    raw = [
        (name.replace("_", "-").encode(), value.encode())
        for name, value in {"host": "localhost:3000", **headers}.items()
    ]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "client": (client, 1), "query_string": b""}

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        sent.append(message)

    asyncio.run(middleware(scope, receive, send))
    return sent[0]["status"]


async def through(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def keyed(key_file):
    key = add_key(key_file, "lab")
    return key, AccessMiddleware(through, routes=ROUTES, key_file=key_file)


def test_a_key_opens_from_anywhere(keyed):
    key, middleware = keyed
    assert status(middleware, client="203.0.113.5", authorization=f"Bearer {key}") == 200
    assert status(middleware, client="203.0.113.5", x_api_key=key) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic abc"},
        {"authorization": "Bearer "},
        {"x_api_key": ""},
    ],
)
def test_no_key_or_a_wrong_one_is_401_also_on_this_machine(keyed, headers):
    assert status(keyed[1], **headers) == 401


def test_health_the_page_and_options_need_no_key(keyed):
    for path in ("/livez", "/readyz", "/", "/page/app.js", "/openapi.json"):
        assert status(keyed[1], path) == 200
    assert status(keyed[1], method="OPTIONS") == 200


@pytest.mark.parametrize(
    ("client", "headers", "expected"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {"host": "[::1]:3000"}, 200),
        ("127.0.0.1", {"host": "127.0.0.1:3000"}, 200),
        ("192.168.1.7", {}, 401),
        ("127.0.0.1", {"host": "evil.example"}, 401),
        ("127.0.0.1", {"host": "localhost.evil.example"}, 401),
        ("127.0.0.1", {"host": "localhost"}, 200),
        ("127.0.0.1", {"host": "LOCALHOST:3000"}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("127.0.0.1", {"x_request_id": "a", "x_api_key": "unused", "accept": "*/*"}, 200),
        ("127.0.0.1", {"host": "testserver"}, 401),
        ("testclient", {"host": "testclient"}, 401),
        ("testclient", {}, 401),
        ("127.0.0.1", {"host": ""}, 401),
        ("127.0.0.1", {"host": "localhost:3000, evil.example"}, 401),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example"}, 401),
        ("127.0.0.1", {"host": "a@localhost"}, 401),
        ("127.0.0.1", {"host": "localhost.:80"}, 401),
        ("127.0.0.1", {"host": "[::1"}, 401),
        ("127.0.0.1", {"host": "0.0.0.0:3000"}, 401),
        *(
            ("127.0.0.1", {name: "10.0.0.1"}, 401)
            for name in (
                *("x_forwarded_for", "x_forwarded_proto", "x_forwarded_host", "x_forwarded_port", "x_forwarded_server"),
                *("forwarded", "via", "x_real_ip", "cf_connecting_ip", "cf_ray", "true_client_ip", "x_client_ip"),
                *(
                    "x_cluster_client_ip",
                    "fastly_client_ip",
                    "x_original_host",
                    "x_amzn_trace_id",
                    "x_envoy_external_address",
                ),
                *("cdn_loop", "proxy_connection", "x_azure_clientip", "x_appengine_user_ip", "x_forward_for"),
            )
        ),
    ],
)
def test_without_keys_only_this_machine_is_answered(client, headers, expected):
    assert status(AccessMiddleware(through, routes=ROUTES), client=client, **headers) == expected


def test_no_auth_answers_anybody():
    assert (
        status(AccessMiddleware(through, routes=ROUTES, no_auth=True), client="203.0.113.5", host="service.example")
        == 200
    )


def test_other_origins_are_refused_unless_they_are_allowed():
    assert status(AccessMiddleware(through, routes=ROUTES), origin="http://localhost:3000") == 200
    assert status(AccessMiddleware(through, routes=ROUTES), origin="http://localhost:9999") == 403
    assert status(AccessMiddleware(through, routes=ROUTES), origin="null") == 403
    allowed = AccessMiddleware(through, routes=ROUTES, origins=("https://lab.example",))
    assert status(allowed, origin="https://lab.example") == 200
