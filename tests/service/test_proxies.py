"""Proxies of the environment: never for this machine, exceptions of every form, passwords never shown."""

import pytest

from steval.errors import ConfigError, ServiceError
from steval.service.client import ServiceClient
from steval.service.proxies import choose_proxy, is_loopback, without_secrets
from support.service_models import free_port

PROXY = "http://proxy.example:3128"


def used(host: str, *, port: int | None = None, scheme: str = "http", **variables: str) -> str | None:
    choice = choose_proxy(scheme, host, port, variables)
    return choice.url if choice is not None and choice.used else None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST.", "a.localhost"])
def test_this_machine_is_asked_directly(host):
    assert is_loopback(host)
    assert used(host, ALL_PROXY="socks5://127.0.0.1:9", HTTP_PROXY=PROXY) is None


@pytest.mark.parametrize("host", ["localhost.evil.example", "128.0.0.1", "10.0.0.1", "notlocalhost", "::2"])
def test_others_go_through_the_proxy(host):
    assert not is_loopback(host)
    assert used(host, HTTP_PROXY=PROXY) == PROXY


def test_the_scheme_decides_and_small_letters_come_first():
    both = {"http_proxy": "http://small:1", "HTTP_PROXY": "http://large:1", "ALL_PROXY": "http://all:1"}
    assert used("lab", **both) == "http://small:1"
    assert used("lab", scheme="https", **both) == "http://all:1"
    assert used("lab", HTTP_PROXY="proxy:3128") == "http://proxy:3128"
    assert used("lab", HTTP_PROXY=" ") is None


@pytest.mark.parametrize(
    ("exceptions", "host", "port", "excepted"),
    [
        pytest.param("*", "lab.example", None, True, id="all"),
        pytest.param("lab.example", "lab.example", None, True, id="a name"),
        pytest.param(".example", "lab.example", None, True, id="a domain"),
        pytest.param("*.example", "lab.example", None, True, id="a domain with a star"),
        pytest.param("ample", "lab.example", None, False, id="the end of a name"),
        pytest.param("lab.example:3000", "lab.example", 3000, True, id="its port"),
        pytest.param("lab.example:3000", "lab.example", 4000, False, id="another port"),
        pytest.param("10.0.0.0/8", "10.1.2.3", None, True, id="a network"),
        pytest.param("10.0.0.0/8", "11.1.2.3", None, False, id="another network"),
        pytest.param("fd00::/8,localhost", "fd00::7", None, True, id="a network of IPv6"),
        pytest.param("::1,[fd00::7]", "fd00::7", None, True, id="IPv6 in brackets"),
        pytest.param("[fd00::7]:3000", "fd00::7", 3000, True, id="IPv6 with a port"),
        pytest.param("300.1.2.3/99,http://[::,;", "lab.example", None, False, id="what nobody can read"),
        pytest.param(" a , lab.example", "lab.example", None, True, id="spaces"),
    ],
)
def test_exceptions(exceptions, host, port, excepted):
    assert (used(host, port=port, HTTP_PROXY=PROXY, NO_PROXY=exceptions) is None) == excepted


@pytest.mark.parametrize("value", ["http://", "ftp://proxy:1", "http://proxy:port", "http://[::1", "://"])
def test_what_is_no_proxy_is_refused_by_its_variable(value):
    with pytest.raises(ConfigError, match=r"ALL_PROXY is not the address of a proxy.*NO_PROXY"):
        choose_proxy("http", "lab.example", None, {"ALL_PROXY": value})


def test_a_socks_proxy_without_its_package_and_a_dead_proxy_are_named(monkeypatch):
    for name in ("http_proxy", "all_proxy", "no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@127.0.0.1:9")
    with pytest.raises(ConfigError, match="SOCKS proxy") as socks:
        ServiceClient("http://lab.example:3000")
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@127.0.0.1:{free_port()}")
    with ServiceClient("http://lab.example:3000") as client, pytest.raises(ServiceError, match="HTTP_PROXY") as dead:
        client.model()
    with ServiceClient(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(ServiceError, match="directly"):
        client.model()
    assert "secret" not in str(socks.value) + str(dead.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@lab:1",
        "http://secret@lab",
        "http://me:secret@[::1",
        "me:secret@lab:x",
        "http://a:secret@b@lab:p",
    ],
)
def test_addresses_are_shown_without_passwords(url):
    assert "secret" not in without_secrets(url)
    try:
        shown = ServiceClient(url).url
    except ConfigError as error:
        shown = str(error)
    assert "secret" not in shown
