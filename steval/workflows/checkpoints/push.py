"""A checkpoint put on a hub, with a card that says what it is."""

from dataclasses import dataclass, replace
from pathlib import Path

from steval.checkpoints.hub.card import model_card
from steval.checkpoints.hub.repository import HubReference, HubRepository
from steval.checkpoints.location import ADAPTER_SUFFIX, SUFFIX, local, locate_checkpoint
from steval.checkpoints.manifest import Manifest
from steval.errors import ConfigError

CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """Where the file is now, by its commit."""

    reference: HubReference
    has_card: bool
    """Whether the card was written; one that was there is left alone."""


def push(source: Path, target: str, *, private: bool = False, card: bool = False) -> Pushed:
    """Upload a checkpoint (a run's best one) or an adapter, verified first, to `hf://owner/repo@branch/path`.

    The repository is made where it is not there. A card is written where there is none, or with `card`. Raises `CheckpointError`,
    `ConfigError`.
    """
    asked = HubReference.parse(target)
    path = local(source) if str(source).endswith(ADAPTER_SUFFIX) else locate_checkpoint(source)
    name = asked.path or path.name
    if not name.endswith(SUFFIX):
        raise ConfigError(f"{target}: the path on the hub is the name of a file that ends in {SUFFIX}, or is left out")
    if path.name.endswith(ADAPTER_SUFFIX) != name.endswith(ADAPTER_SUFFIX):
        raise ConfigError(f"{target}: an adapter keeps the ending {ADAPTER_SUFFIX}, and a checkpoint has none")
    manifest = _verified(path)
    repository = HubRepository.create(asked, private=private)
    is_new = card or CARD not in repository.names()
    place = replace(asked, path=name)
    files: dict[str, Path | bytes] = {name: path}
    if is_new:
        files[CARD] = model_card(manifest, place).encode()
    return Pushed(replace(place, revision=repository.commit_files(files)), is_new)


def _verified(path: Path) -> Manifest:
    if path.name.endswith(ADAPTER_SUFFIX):
        from steval.checkpoints.adapters.adapter_file import read_adapter

        return read_adapter(path)[0].manifest
    from steval.checkpoints.store import load_checkpoint

    return load_checkpoint(path).manifest
