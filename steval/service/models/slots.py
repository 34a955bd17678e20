"""The models of a shelf by name: the file behind each, what answers under it, and which checkpoint an adapter belongs to.

Whoever reads or changes them holds the shelf's lock.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from steval.errors import ServiceError, nearest_names
from steval.service.models.below import Found
from steval.service.models.memory import Held
from steval.service.schemas import ModelItem
from steval.wording import counted

SHORTEST_DIGEST = 12
"""Letters of a digest that name a model."""


@dataclass(eq=False)
class Slot:
    """A name, the file behind it, and what answers under it."""

    found: Found
    held: Held | None = None
    loading: "Future[None] | None" = None
    problem: str | None = None
    """Why the file as it is now does not answer; an older one may."""
    failed_at: float = 0.0
    deferred_until: float = 0.0
    """Before which a changed file is not tried again: there was no memory for it beside the models in use."""
    used_at: float = field(default_factory=time.monotonic)

    @property
    def is_lost(self) -> bool:
        """Whether it is an adapter whose base is not there as a file; what is in memory may answer all the same."""
        return self.found.is_lost

    @property
    def problem_now(self) -> str | None:
        """`problem`, or that it is lost."""
        return self.problem or (no_base(self.found) if self.is_lost else None)

    @property
    def state(self) -> Literal["loaded", "loading", "available", "broken"]:
        """As `GET /models` says it."""
        if self.held is not None:
            return "loaded"
        if self.loading is not None:
            return "loading"
        return "available" if self.problem_now is None else "broken"


class Slots:
    """Slots by name; iteration goes over the slots, in the order they came."""

    def __init__(self, default_name: str | None):
        self.default_name = default_name
        self._slots: dict[str, Slot] = {}

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._slots.values()))

    @property
    def names(self) -> list[str]:
        """All of them."""
        return list(self._slots)

    def get(self, name: str) -> Slot | None:
        """The slot called so."""
        return self._slots.get(name)

    def put(self, found: Found) -> None:
        """A new file, not loaded."""
        slot = self._slots[found.name] = Slot(found, problem=found.problem)
        if found.record is None:
            self.bind()
        else:
            slot.found = self.bound(found)

    def pop(self, name: str) -> Slot:
        """Take a slot out."""
        return self._slots.pop(name)

    def clear(self) -> None:
        """Take all out."""
        self._slots.clear()

    def find(self, reference: str | None, adapter: str | None = None) -> Slot:
        """What is meant by a name, a digest, or nothing, or by an adapter to that; raises `ServiceError` 404, 422 or 503."""
        if adapter is not None:
            return self._find_adapter(reference, adapter)
        if reference is not None:
            return _named(reference, self._slots, "model")
        checkpoints = [name for name, slot in self._slots.items() if slot.found.record is None]
        names = checkpoints if self.default_name is None else [self.default_name]
        if len(names) == 1:
            return self._slots[names[0]]
        if not names:
            raise ServiceError("there is no model to serve yet", status=503, code="not_ready", retry_after=5)
        raise ServiceError(
            f"this service has {counted(len(names), 'model')}: name one as model (--model at the command line; GET "
            "/models lists them)",
            status=422,
            code="breaks_a_rule",
        )

    def bind(self) -> None:
        """Give each adapter the checkpoint that it belongs to, as far as that is there."""
        for slot in self:
            slot.found = self.bound(slot.found)

    def bound(self, found: Found) -> Found:
        """An adapter with the first checkpoint that has what it needs, or with none; anything else as it is."""
        base = self.base_of(found)
        return dataclasses.replace(found, base=None if base is None else base.found)

    def base_of(self, found: Found) -> Slot | None:
        """See `bound`."""
        if found.record is None:
            return None
        return next((slot for slot in self if slot.found.is_base_of(found.record)), None)

    def bytes_beside(self, slot: Slot, found: Found) -> int:
        """Memory of what stays while `found` of `slot` is in it: its base, the default model, of that the version that answers."""
        default = None if self.default_name is None else self._slots.get(self.default_name)
        base = self.base_of(found)
        total = slot.held.num_bytes if slot is default and slot.held is not None else 0
        for other in {id(one): one for one in (default, base) if one is not None and one is not slot}.values():
            total += other.found.num_bytes if other.held is None else other.held.num_bytes
        return total

    def items(self, places: Sequence[Path]) -> list[ModelItem]:
        """Every model, by name; `places` are directories that nobody outside is told."""
        return [_item(name, slot, name == self.default_name, places) for name, slot in sorted(self._slots.items())]

    def _find_adapter(self, reference: str | None, adapter: str) -> Slot:
        """An adapter by name or digest; to the model that is named beside it, if any is."""
        slot = _named(adapter, {name: one for name, one in self._slots.items() if one.found.record}, "adapter")
        base = slot.found.base
        if reference is None or base is None:
            return slot
        named = self.find(reference).found
        if named.name == base.name or (named.digest is not None and named.digest == base.digest):  # a copy of it
            return slot
        raise ServiceError(
            f"the model {reference[:100]!r} has no adapter {adapter[:100]!r}: that belongs to {base.name!r}; "
            "GET /models lists them",
            status=404,
            code="unknown_adapter",
        )


def no_base(found: Found) -> str:
    """Why an adapter cannot be loaded whose base is not there."""
    assert found.record is not None
    return f"its base is not among the models: it was trained from {found.record.base}"


def _named(reference: str, slots: Mapping[str, Slot], what: str) -> Slot:
    """The slot of a name, or of a digest; what there is none of is a `ServiceError` 404."""
    if (slot := slots.get(reference)) is not None:
        return slot
    if len(reference) >= SHORTEST_DIGEST:
        matching = [slot for slot in slots.values() if (slot.found.digest or "").startswith(reference)]
        if matching:
            return matching[0]
    near = nearest_names(reference, list(slots), 3)
    hint = f"; nearest known {', '.join(near)}" if near else ""
    raise ServiceError(
        f"there is no {what} {reference[:100]!r}{hint}; GET /models lists them", status=404, code=f"unknown_{what}"
    )


def _item(name: str, slot: Slot, is_default: bool, places: Sequence[Path]) -> ModelItem:
    found, manifest = slot.found, slot.found.manifest
    problem = slot.problem_now or ""
    for place in places:
        problem = problem.replace(f"{place}/", "")
    return ModelItem(
        name=name,
        checkpoint=found.digest,
        state=slot.state,
        default=is_default,
        adapter=found.record is not None,
        base=None if found.base is None else found.base.name,
        problem=problem or None,
        num_genes=None if manifest is None else len(manifest.output_genes or ()) or manifest.model.prediction_dim,
        num_perturbations=None if manifest is None else len(manifest.perturbations) - 1,
        created=None if manifest is None else manifest.created,
    )
