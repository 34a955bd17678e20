"""The models of a hub's repository: which one a reference means, and the files that it needs.

Layouts seen: steval's files; run directories of ours; one of arc-state's at the root (ST-Tahoe), or one for each split and cell
line (`fewshot/k562/`, ST-SE-Replogle), with `eval_best.ckpt/`, a directory of results that is called like a checkpoint.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from steval.checkpoints.hub.repository import HubReference, HubRepository
from steval.checkpoints.location import (
    ADAPTER_SUFFIX,
    ARC_PREFERRED,
    ARC_SUFFIXES,
    BEST_NAME,
    CHECKPOINTS_NAME,
    SUFFIX,
    best_paths,
)
from steval.errors import CheckpointError
from steval.wording import counted, listed

ARC_CHECKPOINT = ".ckpt"
MAP_SUFFIXES = (".yaml", ".pkl", ".pt", ".torch")
"""Of the files beside arc-state's checkpoints that say what its numbers stand for."""
_SHOWN = 20


def fetch(text: str | Path) -> Path:
    """The local file, or the directory of an arc-state run, that a reference means. Raises `CheckpointError`, `ConfigError`."""
    reference = HubReference.parse(text)
    repository = HubRepository.open(reference)
    if reference.path.endswith(SUFFIX):
        return repository.fetch(reference.path)
    names = repository.names()
    if reference.path in names:
        return _fetch_file(repository, names, reference.path)
    inside = [name for name in names if not reference.path or name.startswith(f"{reference.path}/")]
    models = models_of(inside)
    if reference.path in models or len(models) == 1:
        return _fetch_model(repository, names, reference.path if reference.path in models else models[0])
    if not models:
        raise CheckpointError(
            f"{reference}: there is no model there; {reference.repo} has: {listed(models_of(names), _SHOWN)}"
        )
    shown = [str(repository.reference(model)) for model in models]
    raise CheckpointError(f"{reference} holds {counted(len(models), 'model')}: name one of {listed(shown, _SHOWN)}")


def models_of(names: Sequence[str]) -> list[str]:
    """Places of models among files: run directories (`""`: the repository itself), steval's files outside of them, sorted."""
    bests = {name for name in names if PurePosixPath(name).name == BEST_NAME}
    runs = {_run_of(name) for name in names if name in bests or name.endswith(ARC_CHECKPOINT)}
    files = {name for name in names if name.endswith(SUFFIX) and not name.endswith(ADAPTER_SUFFIX)} - bests
    return sorted(runs | {name for name in files if PurePosixPath(name).parent.name != CHECKPOINTS_NAME})


def _run_of(name: str) -> str:
    """The directory of the run that a checkpoint belongs to."""
    folder = PurePosixPath(name).parent
    return _text(folder.parent if folder.name == CHECKPOINTS_NAME else folder)


def _text(folder: PurePosixPath) -> str:
    return "" if str(folder) == "." else str(folder)


def _fetch_model(repository: HubRepository, names: Sequence[str], model: str) -> Path:
    if model.endswith(SUFFIX):
        return repository.fetch(model)
    bests = [str(best) for best in best_paths(PurePosixPath(model)) if str(best) in names]
    if bests:
        return repository.fetch(bests[0])
    checkpoint = choose_arc(names, model)
    place = repository.fetch(checkpoint).parent
    _fetch_maps(repository, names, model)
    return place.parent if PurePosixPath(checkpoint).parent.name == CHECKPOINTS_NAME else place


def choose_arc(names: Sequence[str], run: str) -> str:
    """The checkpoint of an arc-state run directory, as `arc.read_arc` chooses it."""
    folders = [PurePosixPath(run) / CHECKPOINTS_NAME, PurePosixPath(run)]
    preferred = [str(folder / name) for name in ARC_PREFERRED for folder in folders]
    others = [name for folder in folders for name in sorted(names) if PurePosixPath(name).parent == folder]
    return next(name for name in (*preferred, *others) if name in names and name.endswith(ARC_CHECKPOINT))


def _fetch_file(repository: HubRepository, names: Sequence[str], name: str) -> Path:
    """A file that is named itself, with the maps of its run where it is a checkpoint of arc-state."""
    path = repository.fetch(name)
    if path.suffix in ARC_SUFFIXES:
        for folder in {_run_of(name), _text(PurePosixPath(name).parent)}:
            _fetch_maps(repository, names, folder)
    return path


def _fetch_maps(repository: HubRepository, names: Sequence[str], run: str) -> None:
    for name in names:
        if name.endswith(MAP_SUFFIXES) and _text(PurePosixPath(name).parent) == run:
            repository.fetch(name)
