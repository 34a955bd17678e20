"""Search in a checkpoint's perturbation names."""

from collections.abc import Sequence

from steval.checkpoints.manifest import Manifest, PerturbationEntry
from steval.errors import nearest_names
from steval.service.schemas import PerturbationItem, PerturbationList


def search_perturbations(manifest: Manifest, search: str, limit: int, offset: int) -> PerturbationList:
    """Names that hold `search` (letter case ignored): exact first, then those that begin with it, then the others.

    The control is left out. Where nothing matches, `nearest` has the names most like it.
    """
    entries = [entry for entry in manifest.perturbations if entry.name != manifest.control]
    matching = _matching(entries, search.strip().casefold())
    shown = matching[offset : offset + limit]
    return PerturbationList(
        total=len(entries),
        matching=len(matching),
        perturbations=[PerturbationItem(name=entry.name, trained=entry.trained) for entry in shown],
        nearest=nearest_names(search.strip(), [entry.name for entry in entries], 5) if not matching else [],
    )


def _matching(entries: Sequence[PerturbationEntry], wanted: str) -> list[PerturbationEntry]:
    if not wanted:
        return list(entries)
    ranked = []
    for position, entry in enumerate(entries):
        name = entry.name.casefold()
        if wanted in name:
            ranked.append((name != wanted, not name.startswith(wanted), position))
    return [entries[position] for *_, position in sorted(ranked)]
