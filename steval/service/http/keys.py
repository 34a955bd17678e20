"""API keys: random, several, stored as sha256 only.

A key file has a line for each key, `NAME sha256:HEX`; blank lines and `#` comments are left out. Keys are 256 random bits,
so that a plain hash cannot be reversed by guessing.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from steval.errors import ConfigError

KEY_PREFIX = "stv_"
_LINE = re.compile(r"(?P<name>[A-Za-z0-9_.@-]{1,64})\s+sha256:(?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True)
class KeyRing:
    """Digests of the accepted keys by their names."""

    digests: dict[str, str]

    def owner(self, key: str) -> str | None:
        """Name of the key, None where it is not known; compares with every digest in constant time."""
        digest = _digest(key)
        found = None
        for name, known in self.digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


def read_keys(path: Path) -> KeyRing:
    """Read a key file; raises `ConfigError` with every bad line, or where there is no key."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the key file {path}: {error}") from error
    digests: dict[str, str] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            problems.append(f"line {number} is not `NAME sha256:HEX`")
        elif match["name"] in digests:
            problems.append(f"line {number}: the name {match['name']!r} occurs twice")
        else:
            digests[match["name"]] = match["digest"]
    if problems:
        raise ConfigError(f"the key file {path} is not valid; make keys with steval serve --new-key NAME", problems)
    if not digests:
        raise ConfigError(f"the key file {path} holds no key; make one with steval serve --new-key NAME")
    return KeyRing(digests)


def add_key(path: Path, name: str) -> str:
    """Append a new key to a key file (made where it is not there, readable by its owner alone) and return the key, which is
    shown this once."""
    path = Path(path)
    if not re.fullmatch(r"[A-Za-z0-9_.@-]{1,64}", name):
        raise ConfigError(f"a key's name takes up to 64 letters, digits and . _ - @; got {name!r}")
    if path.exists() and path.stat().st_size and name in read_keys(path).digests:
        raise ConfigError(f"{path} already has a key named {name!r}; choose another name, or delete its line first")
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


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
