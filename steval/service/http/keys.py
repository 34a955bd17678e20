"""API keys: random, several, stored as sha256 only.

A key file has a line for each tenant, `NAME sha256:HEX` with rules behind it (`tenants`); blank lines and `#` comments are left
out. While a key is changed its line has two hashes, `NAME sha256:OLD sha256:NEW`. Keys are 256 random bits, so that a plain
hash cannot be reversed by guessing. The file is read again when it changes.
"""

import hashlib
import hmac
import logging
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from steval.data.files import atomic_path, read_text
from steval.data.outputs import destination
from steval.errors import ConfigError, DataError
from steval.service.http.tenants import Tenant, read_rules
from steval.wording import counted

log = logging.getLogger(__name__)

KEY_PREFIX = "stv_"
LOOK_SECONDS = 1.0
"""How often the file is looked at, at most."""
_LINE = re.compile(r"(?P<name>[A-Za-z0-9_.@-]{1,64})(?P<digests>(\s+sha256:[0-9a-f]{64}){1,2})(?P<rules>(\s+[^\s:]+)*)")


@dataclass(frozen=True)
class KeyRing:
    """Digests of the accepted keys with who holds them."""

    digests: dict[str, Tenant]

    def tenant(self, key: str) -> Tenant | None:
        """Who holds a key, None where it is not known; compares with every digest in constant time."""
        digest = _digest(key)
        found = None
        for known, tenant in self.digests.items():
            if hmac.compare_digest(digest, known):
                found = tenant
        return found

    def owner(self, key: str) -> str | None:
        """The name of who holds a key."""
        tenant = self.tenant(key)
        return None if tenant is None else tenant.name

    @property
    def names(self) -> set[str]:
        """All tenants."""
        return {tenant.name for tenant in self.digests.values()}


class KeyFile:
    """The keys of a file as it is now. A file that cannot be read leaves the keys that were; one without keys leaves none."""

    def __init__(self, path: Path):
        self.path = path
        self._ring = read_keys(path)
        self._signature = _signature(path)
        self._looked = time.monotonic()

    def ring(self) -> KeyRing:
        """The keys; looks at the file once a second at most."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._look()
        return self._ring

    def _look(self) -> None:
        signature = _signature(self.path)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._ring = _parse(self.path)
        except ConfigError as error:
            log.error("the key file has changed and cannot be read; the keys from before stay valid: %s", error)
        else:
            log.info("the key file was read again: %s", counted(len(self._ring.names), "tenant"))


def read_keys(path: Path) -> KeyRing:
    """Read a key file; raises `ConfigError` with every bad line, or where there is no key."""
    ring = _parse(path)
    if not ring.digests:
        raise ConfigError(f"the key file {path} holds no key; make one with steval serve --new-key NAME")
    return ring


def _parse(path: Path) -> KeyRing:
    try:
        lines = read_text(path, "key file").splitlines()
    except DataError as error:
        raise ConfigError(str(error)) from error
    digests: dict[str, Tenant] = {}
    names: set[str] = set()
    problems = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            problems.append(f"line {number} is not `NAME sha256:HEX`, with rules behind it or without")
            continue
        if match["name"] in names:
            problems.append(f"line {number}: the name {match['name']!r} occurs twice")
            continue
        names.add(match["name"])
        try:
            tenant = read_rules(match["name"], match["rules"].split())
        except ConfigError as error:
            problems.append(f"line {number}: {error}")
            continue
        for digest in match["digests"].split():
            if digests.setdefault(digest.removeprefix("sha256:"), tenant) is not tenant:
                problems.append(f"line {number}: another name has the same key")
    if problems:
        raise ConfigError(f"the key file {path} is not valid; make keys with steval serve --new-key NAME", problems)
    return KeyRing(digests)


def add_key(path: Path, name: str) -> str:
    """Append a new key to a key file (made where it is not there, readable by its owner alone) and return the key, which is
    shown this once."""
    path = Path(path)
    if not re.fullmatch(r"[A-Za-z0-9_.@-]{1,64}", name):
        raise ConfigError(f"a key's name takes up to 64 letters, digits and . _ - @; got {name!r}")
    if path.exists() and path.stat().st_size and name in read_keys(path).names:
        raise ConfigError(
            f"{path} already has a key named {name!r}; choose another name, delete its line first, or change it with --rotate-key"
        )
    destination(path)
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    try:
        path.touch(mode=0o600, exist_ok=True)
        whole = path.read_bytes()
        with path.open("a", encoding="utf-8") as handle:
            handle.write("\n" if whole and not whole.endswith(b"\n") else "")
            handle.write(f"{name} sha256:{_digest(key)}\n")
    except OSError as error:
        raise ConfigError(f"cannot write the key file {path}: {error.strerror or error}") from error
    return key


def rotate_key(path: Path, name: str) -> str:
    """Give a tenant a second key beside the present one and return it; the line's first hash goes where it had two already."""
    path = Path(path)
    if name not in (known := read_keys(path).names):
        raise ConfigError(f"{path} has no key named {name!r}; it has {', '.join(sorted(known))}")
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    lines = read_text(path, "key file").splitlines()
    for position, line in enumerate(lines):
        match = _LINE.fullmatch(line.strip())
        if match is not None and match["name"] == name:
            digests = [*match["digests"].split(), f"sha256:{_digest(key)}"][-2:]
            lines[position] = " ".join([name, *digests, *match["rules"].split()])
    mode = path.stat().st_mode
    with atomic_path(path) as partial:
        partial.touch(mode=0o600)
        partial.chmod(mode)
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return key


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
