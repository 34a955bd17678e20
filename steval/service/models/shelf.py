"""The models of a worker: loaded on first use, the least recently used one goes when memory is short, files are watched.

An adapter is a model as any other that shares the tensors of its base: it is bound to the first checkpoint that has what it
needs, brings that into memory, and keeps it there for as long as it is there itself.

A request holds a `Lease` of the model that answers it. A changed file is loaded beside the model that answers, predicts once
(its warm-up), and takes its place; the old one finishes its requests. A file that cannot be served replaces nothing. Models
are loaded one at a time, by a thread of the shelf's.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import MappingProxyType

from steval.errors import CheckpointError, ServiceError, StevalError
from steval.service.http.telemetry import ServiceMetrics
from steval.service.models.below import Found, Signature, checkpoints_below, look_at, name_of, signature_of
from steval.service.models.loaded import Model
from steval.service.models.memory import Held, ModelMemory
from steval.service.models.slots import Slot, Slots, no_base
from steval.service.models.threads import PassingThread
from steval.service.schemas import ModelItem

log = logging.getLogger(__name__)

Load = Callable[[Found, Model | None], Model]
"""Loads a file; the second argument is the base of an adapter, loaded."""
RETRY_SECONDS = 30.0
"""After which a file that could not be loaded is tried again, where it is asked for."""


class Lease:
    """A model that stays in memory until `close`, which may be called twice and from any thread."""

    def __init__(self, shelf: "Shelf", held: Held):
        self._shelf = shelf
        self._held: Held | None = held
        self.model = held.model

    def close(self) -> None:
        """The model may go."""
        held, self._held = self._held, None
        if held is not None:
            self._shelf.give_back(held)


class Shelf:
    """The models below `directory`, the one of `default`, and `adapters` to it by name; the latter two are always there.

    `max_bytes` bounds what is in memory, None does not; `patience` is how long loading waits for models in use.
    """

    def __init__(
        self,
        load: Load,
        metrics: ServiceMetrics,
        *,
        default: Path | None = None,
        adapters: Mapping[str, Path] = MappingProxyType({}),
        directory: Path | None = None,
        max_bytes: int | None = None,
        patience: float = 10.0,
    ):
        self._load = load
        self._metrics = metrics
        self._patience = patience
        self._default = default
        self._directory = directory
        self._changed = threading.Condition()
        """Guards all below."""
        self._memory = ModelMemory(self._changed, metrics, max_bytes, patience)
        self._slots = Slots(None if default is None else name_of(default, directory))
        self._seen: dict[str, Signature | None] = {}
        """Signatures of changed files at the last look: what is still being written differs at the next."""
        self._stopping = threading.Event()
        self._loader = PassingThread("steval-loader")
        given = {} if default is None else {name_of(default, directory): default}
        for name, path in {**given, **adapters}.items():
            self._slots.put(look_at(name, path))
        self._given = (*given, *adapters)
        """Names that stay, whatever is below the directory."""
        self._places = [
            place for place in (directory, *(path.parent for path in (*given.values(), *adapters.values()))) if place
        ]

    def find(self, reference: str | None, adapter: str | None = None) -> Found:
        """What a request means by a name, a digest, or nothing, or by an adapter to that; raises `ServiceError` 404, 422 or 503."""
        with self._changed:
            slot = self._slots.find(reference, adapter)
            if slot.is_lost:
                raise _broken(slot)
            return slot.found

    def lease(self, reference: str | None, adapter: str | None = None) -> Lease | None:
        """A model in memory, for the caller to close; None where it is to be loaded first. Raises as `find` does."""
        with self._changed:
            slot = self._slots.find(reference, adapter)
            slot.used_at = time.monotonic()
            if slot.held is None:
                return None
            slot.held.users += 1
            return Lease(self, slot.held)

    def load(self, reference: str | None, adapter: str | None = None) -> "Future[None]":
        """Begin to load a model, or go on; the future ends well once `lease` finds it, or with a `ServiceError`."""
        with self._changed:
            slot = self._slots.find(reference, adapter)
            if slot.loading is None:
                failed_lately = slot.problem is not None and time.monotonic() - slot.failed_at < RETRY_SECONDS
                if failed_lately or slot.is_lost:
                    raise _broken(slot)
                slot.loading = self._loader.submit(partial(self._bring_asked, slot, slot.found))
            return slot.loading

    def bring_given(self) -> None:
        """Load the default model and the adapters given to it, and wait; raises why one cannot be loaded (`StevalError`)."""
        for name in self._given:
            slot = self._slots.get(name)
            assert slot is not None
            self._loader.submit(partial(self._bring, slot, slot.found)).result()

    def give_back(self, held: Held) -> None:
        """See `Lease.close`."""
        with self._changed:
            self._memory.give_back(held)

    def items(self) -> list[ModelItem]:
        """Every model, by name."""
        with self._changed:
            return self._slots.items(self._places)

    @property
    def serves_any(self) -> bool:
        """Whether there is a file that can be served."""
        with self._changed:
            return any(
                slot.held is not None or (slot.found.manifest is not None and not slot.is_lost) for slot in self._slots
            )

    def watch(self, seconds: float) -> None:
        """Look at the directory every `seconds` until `close`, from a thread of its own."""
        if self._directory is not None:
            threading.Thread(target=self._watch, args=(seconds,), name="steval-models", daemon=True).start()

    def refresh(self) -> None:
        """Look at the directory once. What changed since the last look is taken when it is the same at the next."""
        if self._directory is None:
            return
        try:
            paths = checkpoints_below(self._directory)
        except OSError as error:
            log.error("the directory of models cannot be read, what was there stays: %s", error)
            return
        for name, path in paths.items():
            self._look(name, path)
        with self._changed:
            gone = [name for name in self._slots.names if name not in paths and name not in self._given]
            for name in gone:
                if self._is_settled(name, None):
                    self._forget(name)
            self._slots.bind()

    def close(self) -> None:
        """Load nothing more, finish what was accepted, let everything go."""
        self._stopping.set()
        self._memory.wait_no_more()
        self._loader.close()
        with self._changed:
            models = [slot.held.model for slot in self._slots if slot.held is not None]
            self._slots.clear()
        for model in models:
            model.close()

    def _watch(self, seconds: float) -> None:
        while not self._stopping.wait(seconds):
            try:
                self.refresh()
            except Exception:
                log.exception("the directory of models could not be looked at; the next look tries again")

    def _look(self, name: str, path: Path) -> None:
        """Take notice of a file: a new one, or one that has changed and is whole."""
        signature = signature_of(path)
        with self._changed:
            slot = self._slots.get(name)
            if slot is not None and (slot.found.signature == signature or slot.found.path != path):
                self._seen.pop(name, None)
                return
            if slot is not None and not self._is_settled(name, signature):
                return
        found = look_at(name, path)
        with self._changed:
            if slot is None:
                self._slots.put(found)
                return
            found = self._slots.bound(found)
            if slot.held is None:
                slot.found, slot.problem = found, found.problem
            elif found.problem is not None:
                # what is in memory is older than the file, and stays what answers
                slot.found = dataclasses.replace(slot.found, signature=found.signature)
                self._failed(slot, found.problem)
            elif found.is_lost:
                # looked at again until its base is there; what answers stays till then
                slot.problem = no_base(found)
            elif slot.loading is None and time.monotonic() >= slot.deferred_until:
                slot.loading = self._loader.submit(partial(self._bring, slot, found))

    def _is_settled(self, name: str, signature: Signature | None) -> bool:
        """Whether a change was there at the last look too."""
        settled = name in self._seen and self._seen[name] == signature
        self._seen[name] = signature
        return settled

    def _bring_asked(self, slot: Slot, found: Found) -> None:
        """As `_bring`, for requests that wait: where it fails they hear nothing of the service's files."""
        try:
            self._bring(slot, found)
        except ServiceError:
            raise
        except Exception as error:
            raise _broken(slot) from error

    def _bring(self, slot: Slot, found: Found) -> None:
        """Load a file and let it answer under its name; in the loader's thread."""
        with self._changed:
            below = self._slots.base_of(found)
            is_there = slot.held is not None and slot.held.base is (None if below is None else below.held)
            if is_there and slot.problem is None and slot.found.signature == found.signature:
                slot.loading = None  # it came with an adapter on it meanwhile
                return
            try:
                self._memory.require_room(found, self._slots.bytes_beside(slot, found))
            except ServiceError as error:
                self._not_loaded(slot, found, error)
                raise
        base = self._take_base(slot, found)
        try:
            self._bring_on(slot, found, base)
        except BaseException:
            if base is not None:
                self.give_back(base)
            raise

    def _take_base(self, slot: Slot, found: Found) -> Held | None:
        """The base of an adapter, loaded where it was not, with a user more; None for a checkpoint."""
        if found.record is None:
            return None
        try:
            with self._changed:
                below = self._slots.base_of(found)
            if below is not None and below.held is None:
                self._bring(below, below.found)
            with self._changed:
                if below is None or below.held is None:
                    raise CheckpointError(no_base(found))
                below.held.users += 1
                return below.held
        except Exception as error:
            with self._changed:
                self._not_loaded(slot, found, error, "its base cannot be loaded: ")
            raise

    def _bring_on(self, slot: Slot, found: Found, base: Held | None) -> None:
        """Load a file, of an adapter on its base, and let it answer under its name."""
        try:
            self._memory.reserve(found, partial(self._drop_oldest, slot))
        except ServiceError as error:
            with self._changed:
                self._not_loaded(slot, found, error)
            raise
        try:
            model = self._load(found, None if base is None else base.model)
        except Exception as error:
            if not isinstance(error, StevalError):
                log.exception("the model %r could not be loaded", found.name)
            problem = str(error) if isinstance(error, StevalError) else f"internal error: {type(error).__name__}"
            with self._changed:
                self._memory.free(found.num_bytes)
                self._not_loaded(slot, found, problem)
            raise
        with self._changed:
            old, slot.held = slot.held, Held(model, found.num_bytes, base=base)
            slot.found = dataclasses.replace(found, loaded_digest=model.predictor.digest, manifest=model.manifest)
            slot.problem, slot.loading = None, None
            self._slots.bind()
            if self._slots.get(found.name) is not slot:  # the file was removed meanwhile
                self._memory.retire(slot.held)
            if old is not None:
                self._memory.retire(old)
                self._move_adapters(old)
            self._metrics.model_loaded("ok")
            self._changed.notify_all()
        log.info("the model %r is loaded: %s", found.name, model.predictor.digest)

    def _move_adapters(self, old: Held) -> None:
        """Put the adapters on a base that has been loaded anew onto that, where it is theirs still; `changed` is held."""
        for slot in self._slots:
            if slot.held is not None and slot.held.base is old and not slot.is_lost and slot.loading is None:
                slot.loading = self._loader.submit(partial(self._bring, slot, slot.found))

    def _not_loaded(self, slot: Slot, found: Found, why: Exception | str, what: str = "") -> None:
        """Write down that a file is not loaded: for good, or, where there will be room for it, until later; `changed` is held."""
        slot.loading = None
        if isinstance(why, ServiceError) and why.retry_after is not None:
            if slot.held is not None:
                slot.deferred_until = time.monotonic() + self._patience
                log.warning("the changed file of the model %r waits, and the old one answers: %s", found.name, why)
            return
        slot.found = dataclasses.replace(slot.found, signature=found.signature)
        self._failed(slot, f"{what}{why}")

    def _failed(self, slot: Slot, problem: str) -> None:
        slot.problem, slot.failed_at = problem, time.monotonic()
        self._metrics.model_loaded("failed")
        log.error("the model %r is not loaded: %s", slot.found.name, problem)

    def _drop_oldest(self, wanted: Slot) -> bool:
        """Let a model go that nobody uses and that can be loaded again; False where there is none.

        The least recently used one; then one whose changed file waits its turn; last the old one of `wanted`, whose new file there
        would be no room for beside it.
        """
        idle = [
            slot
            for slot in self._slots
            if slot.held is not None
            and not slot.held.users
            and (slot is wanted or slot.problem_now is None)
            and slot.found.name != self._slots.default_name
        ]
        if not idle:
            return False
        slot = min(idle, key=lambda one: (one is wanted, one.loading is not None, one.used_at))
        assert slot.held is not None
        self._memory.retire(slot.held)
        slot.held = None
        log.info("the model %r leaves the memory", slot.found.name)
        return True

    def _forget(self, name: str) -> None:
        self._seen.pop(name, None)
        slot = self._slots.pop(name)
        if slot.held is not None:
            self._memory.retire(slot.held)
        log.info("the file of the model %r is gone", name)


def _broken(slot: Slot) -> ServiceError:
    return ServiceError(
        f"the model {slot.found.name!r} cannot be loaded; GET /models says why, and whoever runs the service can mend it",
        status=503,
        code="bad_model",
    )
