"""How much each key has used: buckets that fill evenly, in files that all workers of a service share.

A bucket holds what a rate allows at once. Requests, cells and jobs are taken before the work and refused (429, with the seconds
until there is enough) where the bucket holds too little; bytes are known afterwards, so they are taken then, and the next
request waits.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from steval.errors import ServiceError
from steval.service.http.tenants import BYTES, Rate, Tenant


class Quotas:
    """The buckets below `directory`, which is made when it is first needed."""

    def __init__(self, directory: Callable[[], Path], clock: Callable[[], float] = time.time):
        self._find_directory = directory
        self._directory: Path | None = None
        self._clock = clock

    def take(self, tenant: Tenant, kind: str, amount: int = 1) -> None:
        """Use `amount`, or raise a `ServiceError`: 429 with the time to wait, 413 for more than there can ever be."""
        rate = tenant.rates.get(kind)
        if rate is None:
            return
        if amount > rate.amount:
            raise ServiceError(
                f"the request needs {amount} {kind}; this key has {rate} in all: ask for less",
                status=413,
                code="over_quota",
            )
        self._change(tenant, kind, rate, amount, needed=amount)

    def require(self, tenant: Tenant, kind: str) -> None:
        """A `ServiceError` 429 where what was used before is still over the rate."""
        if (rate := tenant.rates.get(kind)) is not None:
            self._change(tenant, kind, rate, 0, needed=1)

    def charge(self, tenant: Tenant, kind: str, amount: int) -> None:
        """Use `amount` whatever is left; a negative one gives back."""
        if amount and (rate := tenant.rates.get(kind)) is not None:
            self._change(tenant, kind, rate, amount, needed=None)

    def _change(self, tenant: Tenant, kind: str, rate: Rate, amount: int, needed: int | None) -> None:
        path = self._path(tenant, kind)
        with path.open("a+", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            handle.seek(0)
            now = self._clock()
            level = _level(handle.read(), rate, now)
            if needed is not None and level < needed:
                wait = (needed - level) * rate.seconds / rate.amount
                raise ServiceError(
                    f"this key has used its {kind}: {rate} are allowed; come back after the time in Retry-After",
                    status=429,
                    code="quota_used",
                    retry_after=wait,
                )
            handle.seek(0)
            handle.truncate()
            handle.write(json.dumps([min(float(rate.amount), level - amount), now]))

    def _path(self, tenant: Tenant, kind: str) -> Path:
        if self._directory is None:
            self._directory = self._find_directory()
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._directory / f"{hashlib.sha256(tenant.name.encode()).hexdigest()[:32]}-{kind}"


class Charge:
    """A tenant with the service's buckets: what a request's handlers charge to."""

    def __init__(self, quotas: Quotas, tenant: Tenant):
        self._quotas = quotas
        self._tenant = tenant

    @contextmanager
    def taken(self, amounts: Mapping[str, int]) -> Generator[None]:
        """Takes each amount as `Quotas.take`, or none of them; an error within gives all of them back."""
        done: dict[str, int] = {}
        try:
            for kind, amount in amounts.items():
                self._quotas.take(self._tenant, kind, amount)
                done[kind] = amount
            yield
        except BaseException:
            for kind, amount in done.items():
                self._quotas.charge(self._tenant, kind, -amount)
            raise

    def used_bytes(self, amount: int) -> None:
        """Bytes of a request and its answer, known at its end."""
        self._quotas.charge(self._tenant, BYTES, amount)


def taken(charge: Charge | None, amounts: Mapping[str, int]) -> AbstractContextManager[None]:
    """See `Charge.taken`; nothing where the service has no tenants."""
    return nullcontext() if charge is None else charge.taken(amounts)


def _level(text: str, rate: Rate, now: float) -> float:
    """What a bucket holds now; a new one, and one whose record was damaged, is full."""
    try:
        level, at = json.loads(text)
        return min(float(rate.amount), float(level) + max(0.0, now - float(at)) * rate.amount / rate.seconds)
    except (ValueError, TypeError):
        return float(rate.amount)
