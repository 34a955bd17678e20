"""The models of a worker: loaded on first use, the least recently used one goes when memory is short, files are watched.

A request holds a `Lease` of the model that answers it. A changed file is loaded beside the model that answers, predicts once
(its warm-up), and takes its place; the old one finishes its requests. A file that cannot be served replaces nothing. Models
are loaded one at a time, by a thread of the shelf's.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from steval.errors import ServiceError, StevalError, nearest_names
from steval.service.http.telemetry import ServiceMetrics
from steval.service.models.below import Found, Signature, checkpoints_below, look_at, name_of, signature_of
from steval.service.models.loaded import Model
from steval.service.models.memory import Held, ModelMemory
from steval.service.schemas import ModelItem

log = logging.getLogger(__name__)

Load = Callable[[Found], Model]
SHORTEST_DIGEST = 12
"""Letters of a digest that name a model."""
RETRY_SECONDS = 30.0
"""After which a file that could not be loaded is tried again, where it is asked for."""


@dataclass(eq=False)
class _Slot:
    """A name, the file behind it, and what answers under it."""

    found: Found
    held: Held | None = None
    loading: "Future[None] | None" = None
    problem: str | None = None
    """Why the file as it is now does not answer; an older one may."""
    failed_at: float = 0.0
    used_at: float = field(default_factory=time.monotonic)


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
    """The models below `directory`, and the one of `default`, which is always there.

    `max_bytes` bounds what is in memory, None does not; `patience` is how long loading waits for models in use.
    """

    def __init__(
        self,
        load: Load,
        metrics: ServiceMetrics,
        *,
        default: Path | None = None,
        directory: Path | None = None,
        max_bytes: int | None = None,
        patience: float = 10.0,
    ):
        self._load = load
        self._metrics = metrics
        self._default = default
        self._directory = directory
        self._changed = threading.Condition()
        """Guards all below."""
        self._memory = ModelMemory(self._changed, metrics, max_bytes, patience)
        self._slots: dict[str, _Slot] = {}
        self._seen: dict[str, Signature | None] = {}
        """Signatures of changed files at the last look: what is still being written differs at the next."""
        self._stopping = threading.Event()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="steval-loader")
        self._default_name: str | None = None
        if default is not None:
            self._default_name = name_of(default, directory)
            self._slots[self._default_name] = _slot(look_at(self._default_name, default))

    def find(self, reference: str | None) -> Found:
        """What a request means by a name, a digest, or nothing; raises `ServiceError` 404, 422 or 503."""
        with self._changed:
            return self._find(reference).found

    def lease(self, reference: str | None) -> Lease | None:
        """A model in memory, for the caller to close; None where it is to be loaded first. Raises as `find` does."""
        with self._changed:
            slot = self._find(reference)
            slot.used_at = time.monotonic()
            if slot.held is None:
                return None
            slot.held.users += 1
            return Lease(self, slot.held)

    def load(self, reference: str | None) -> "Future[None]":
        """Begin to load a model, or go on; the future ends well once `lease` finds it, or with a `ServiceError`."""
        with self._changed:
            slot = self._find(reference)
            if slot.loading is None:
                if slot.problem is not None and time.monotonic() - slot.failed_at < RETRY_SECONDS:
                    raise _broken(slot)
                slot.loading = self._loader.submit(self._bring_asked, slot, slot.found)
            return slot.loading

    def bring_default(self) -> None:
        """Load the default model and wait; raises why it cannot be loaded (`StevalError`)."""
        assert self._default_name is not None
        slot = self._slots[self._default_name]
        self._loader.submit(self._bring, slot, slot.found).result()

    def give_back(self, held: Held) -> None:
        """See `Lease.close`."""
        with self._changed:
            self._memory.give_back(held)

    def items(self) -> list[ModelItem]:
        """Every model, by name."""
        with self._changed:
            return [self._item(name, slot) for name, slot in sorted(self._slots.items())]

    @property
    def serves_any(self) -> bool:
        """Whether there is a file that can be served."""
        with self._changed:
            return any(slot.found.manifest is not None or slot.held is not None for slot in self._slots.values())

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
            gone = [name for name in self._slots if name not in paths and name != self._default_name]
            for name in gone:
                if self._is_settled(name, None):
                    self._forget(name)

    def close(self) -> None:
        """Load nothing more, finish what was accepted, let everything go."""
        self._stopping.set()
        self._memory.wait_no_more()
        self._loader.shutdown(cancel_futures=True)
        with self._changed:
            models = [slot.held.model for slot in self._slots.values() if slot.held is not None]
            self._slots.clear()
        for model in models:
            model.close()

    def _find(self, reference: str | None) -> _Slot:
        if reference is None:
            names = [self._default_name] if self._default_name is not None else list(self._slots)
            if len(names) == 1 and names[0] is not None:
                return self._slots[names[0]]
            if not names:
                raise ServiceError("there is no model to serve yet", status=503, code="not_ready", retry_after=5)
            raise ServiceError(
                f"this service has {len(names)} models: name one as model (GET /models lists them)",
                status=422,
                code="breaks_a_rule",
            )
        if (slot := self._slots.get(reference)) is not None:
            return slot
        if len(reference) >= SHORTEST_DIGEST:
            matching = [slot for slot in self._slots.values() if (slot.found.digest or "").startswith(reference)]
            if matching:
                return matching[0]
        near = nearest_names(reference, list(self._slots), 3)
        hint = f"; nearest known {', '.join(near)}" if near else ""
        raise ServiceError(
            f"there is no model {reference[:100]!r}{hint}; GET /models lists them", status=404, code="unknown_model"
        )

    def _item(self, name: str, slot: _Slot) -> ModelItem:
        found, manifest = slot.found, slot.found.manifest
        if slot.held is not None:
            state = "loaded"
        elif slot.loading is not None:
            state = "loading"
        else:
            state = "available" if slot.problem is None else "broken"
        return ModelItem(
            name=name,
            checkpoint=found.digest,
            state=state,
            default=name == self._default_name,
            problem=None if slot.problem is None else self._without_places(slot.problem),
            num_genes=None if manifest is None else len(manifest.output_genes or ()) or manifest.model.prediction_dim,
            num_perturbations=None if manifest is None else len(manifest.perturbations) - 1,
            created=None if manifest is None else manifest.created,
        )

    def _without_places(self, problem: str) -> str:
        """A problem without the service's directories."""
        for place in (self._directory, self._default.parent if self._default is not None else None):
            if place is not None:
                problem = problem.replace(f"{place}/", "")
        return problem

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
                self._slots[name] = _slot(found)
                return
            if slot.held is None:
                slot.found, slot.problem = found, found.problem
            elif found.problem is not None:
                # what is in memory is older than the file, and stays what answers
                slot.found = dataclasses.replace(slot.found, signature=found.signature)
                self._failed(slot, found.problem)
            elif slot.loading is None:
                slot.loading = self._loader.submit(self._bring, slot, found)

    def _is_settled(self, name: str, signature: Signature | None) -> bool:
        """Whether a change was there at the last look too."""
        settled = name in self._seen and self._seen[name] == signature
        self._seen[name] = signature
        return settled

    def _bring_asked(self, slot: _Slot, found: Found) -> None:
        """As `_bring`, for requests that wait: where it fails they hear nothing of the service's files."""
        try:
            self._bring(slot, found)
        except ServiceError:
            raise
        except Exception as error:
            raise _broken(slot) from error

    def _bring(self, slot: _Slot, found: Found) -> None:
        """Load a file and let it answer under its name; in the loader's thread."""
        try:
            self._memory.reserve(found, self._drop_oldest)
        except ServiceError as error:
            with self._changed:
                slot.loading = None
                if error.retry_after is None:
                    slot.found = dataclasses.replace(slot.found, signature=found.signature)
                    self._failed(slot, str(error))
            raise
        try:
            model = self._load(found)
        except Exception as error:
            if not isinstance(error, StevalError):
                log.exception("the model %r could not be loaded", found.name)
            problem = str(error) if isinstance(error, StevalError) else f"internal error: {type(error).__name__}"
            with self._changed:
                self._memory.free(found.num_bytes)
                slot.loading = None
                slot.found = dataclasses.replace(slot.found, signature=found.signature)
                self._failed(slot, problem)
            raise
        with self._changed:
            old, slot.held = slot.held, Held(model, found.num_bytes)
            slot.found = dataclasses.replace(found, digest=model.predictor.digest, manifest=model.manifest)
            slot.problem, slot.loading = None, None
            if self._slots.get(found.name) is not slot:  # the file was removed meanwhile
                self._memory.retire(slot.held)
            if old is not None:
                self._memory.retire(old)
            self._metrics.model_loaded("ok")
            self._changed.notify_all()
        log.info("the model %r is loaded: %s", found.name, model.predictor.digest)

    def _failed(self, slot: _Slot, problem: str) -> None:
        slot.problem, slot.failed_at = problem, time.monotonic()
        self._metrics.model_loaded("failed")
        log.error("the model %r is not loaded: %s", slot.found.name, problem)

    def _drop_oldest(self) -> bool:
        """Let the least recently used model go that nobody uses and that can be loaded again; False where there is none."""
        idle = [
            slot
            for slot in self._slots.values()
            if slot.held is not None
            and not slot.held.users
            and slot.problem is None
            and slot.loading is None
            and slot.found.name != self._default_name
        ]
        if not idle:
            return False
        slot = min(idle, key=lambda one: one.used_at)
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


def _slot(found: Found) -> _Slot:
    return _Slot(found, problem=found.problem)


def _broken(slot: _Slot) -> ServiceError:
    return ServiceError(
        f"the model {slot.found.name!r} cannot be loaded; GET /models says why, and whoever runs the service can mend it",
        status=503,
        code="bad_model",
    )
