"""Which proxy a request to a service goes through, by the environment's variables; never one for this machine's own addresses.

HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY (small letters too, which come first) mean what they mean to curl: NO_PROXY holds
`*`, host names (which stand for everything below them), addresses and networks, each with or without a port.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit, urlunsplit

from steval.errors import ConfigError

SCHEMES = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True)
class ProxyChoice:
    """The proxy to use and the variable that names it."""

    variable: str
    url: str
    used: bool
    """False where the service is on this machine, or NO_PROXY excepts it."""

    @property
    def shown(self) -> str:
        """The variable and the proxy's address, without the password that it may hold."""
        return f"{self.variable}={without_secrets(self.url)}"


def choose_proxy(scheme: str, host: str, port: int | None, environment: Mapping[str, str]) -> ProxyChoice | None:
    """The proxy that the environment names for `scheme`, or None; an address that no proxy can have is a `ConfigError`."""
    variable, url = next(
        (
            (name, value)
            for kind in (scheme, "all")
            for name in (f"{kind}_proxy", f"{kind}_proxy".upper())
            if (value := environment.get(name, "").strip())
        ),
        ("", ""),
    )
    if not url:
        return None
    exceptions = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if is_loopback(host) or _is_excepted(host, port, exceptions):
        return ProxyChoice(variable, url, used=False)
    url = url if "://" in url else f"http://{url}"
    parts = _split(url)
    if parts is None or parts.scheme not in SCHEMES or not parts.hostname:
        raise ConfigError(
            f"{variable} is not the address of a proxy such as http://proxy:3128 or socks5://proxy:1080; mend or unset it, or put "
            f"{host} into NO_PROXY"
        )
    return ProxyChoice(variable, url, used=True)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def without_secrets(url: str) -> str:
    """A URL without user name and password."""
    parts = _split(url)
    if parts is None or "@" not in parts.netloc:
        return url if parts is not None and "@" not in url else "(an address that cannot be read)"
    return urlunsplit(parts._replace(netloc="…@" + parts.netloc.rpartition("@")[2]))


def _is_excepted(host: str, port: int | None, exceptions: str) -> bool:
    name = host.strip("[]").rstrip(".").lower()
    return any(
        _excepts(entry.strip().lower(), name, port) for entry in exceptions.replace(" ", ",").split(",") if entry
    )


def _excepts(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of NO_PROXY stands for a host; one that nobody can read stands for none."""
    if entry == "*":
        return True
    entry = entry.split("://", 1)[-1]
    address = _address(host)
    network = _network(entry.strip("[]"))
    if network is not None:
        return address is not None and address in network
    entry, with_port, its_port = (
        entry.rpartition(":") if ":" in entry and entry.rpartition(":")[2].isdigit() else (entry, "", "")
    )
    if with_port and str(port) != its_port:
        return False
    if address is not None:
        return _address(entry.strip("[]")) == address
    entry = entry.removeprefix("*").strip(".")
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # a port that is no number is noticed only when asked for
    except ValueError:
        return None
    return parts
