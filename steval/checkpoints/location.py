"""Where a checkpoint may be given from: its file, the directory of a run, a hub. A new source is an entry in `SOURCES`.

Torch-free, and nothing is opened: only names and the directory are looked at, and files of a hub fetched.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from steval.data.outputs import real_path
from steval.errors import CheckpointError

P = TypeVar("P", bound=PurePath)
_SNAPSHOT = re.compile(
    r".*/models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})(?P<path>/.+)?"
)
"""A file in the cache of `huggingface_hub`, or all of a repository there."""
ARC_SUFFIXES = (".ckpt", ".pt", ".pth")
"""Suffixes of arc-state's (and Lightning's) files."""
ARC_PREFERRED = ("best.ckpt", "final.ckpt", "last.ckpt")
"""Of the checkpoints in arc-state's run directory, the first that is there."""
BEST_NAME = "best-val.safetensors"
"""The checkpoint of a run that is the one to use."""
SUFFIX = ".safetensors"
"""Ends the name of a checkpoint."""
ADAPTER_SUFFIX = f".adapter{SUFFIX}"
"""Ends the name of an adapter file, which is no checkpoint without its base."""
ADAPTER_NAME = BEST_NAME.replace(SUFFIX, ADAPTER_SUFFIX)
"""The adapter file of a run."""
CHECKPOINTS_NAME = "checkpoints"
"""Its directory, in the run's."""
SEEDS_NAME = "seeds.json"
"""What tells a directory that holds the runs of several seeds."""


@dataclass(frozen=True)
class CheckpointSource:
    """One way to name a checkpoint."""

    name: str
    claims: Callable[[str], bool]
    """Whether a reference is of this kind; the first source that claims it finds it."""
    find: Callable[[str], Path]
    """The `.safetensors` file that it means; raises `CheckpointError`."""


def locate_checkpoint(reference: str | Path) -> Path:
    """The file that `reference` means: a path to a checkpoint, a run directory, which means its best checkpoint, or
    `hf://owner/repo@revision/path`, either of them on a hub.

    A path that does not exist is returned as it is, for the reader to refuse. Raises `CheckpointError` for arc-state's
    models (with the command that converts them), for `last.ckpt`, and for directories that hold no checkpoint.
    """
    text = str(reference)
    return next(source for source in SOURCES if source.claims(text)).find(text)


def local(reference: str | Path) -> Path:
    """The path itself; of a reference to a hub the file, or the arc-state run directory, that it means, fetched."""
    if not is_hub(reference):
        return Path(reference)
    from steval.checkpoints.hub.models import fetch

    return fetch(reference)


def is_hub(reference: str | Path) -> bool:
    """Whether a reference means a hub; a `Path` of one has lost a slash."""
    return str(reference).startswith("hf:/")


def shown(path: str | Path) -> str:
    """What to call a checkpoint in a record: its absolute path, links followed, or where it came from a hub its reference with the
    commit."""
    pinned = pinned_reference(path)
    return str(real_path(path)) if pinned is None else pinned


def pinned_reference(path: str | Path) -> str | None:
    """The reference, with its commit, of a file or a repository in the cache of a hub; None for any other path."""
    found = _SNAPSHOT.fullmatch(str(path))
    return f"hf://{found['owner']}/{found['name']}@{found['commit']}{found['path'] or ''}" if found else None


def require_plain(path: Path) -> Path:
    """`path` unless it is there and no plain file: opening a pipe or device waits for ever. Raises `CheckpointError`."""
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "a pipe or device"
        raise CheckpointError(f"{path} is {kind}, not a checkpoint file; write the checkpoint to a file and give that")
    return path


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory of `steval finetune` (or its `checkpoints`) with a best checkpoint."""
    return any(best.is_file() for best in best_paths(Path(path)))


def holds_seeds(path: Path) -> bool:
    """Whether `path` is a directory of `steval finetune --seeds`: a run directory for each."""
    return (Path(path) / SEEDS_NAME).is_file()


def is_arc(path: Path) -> bool:
    """Whether `path` is to be read as an arc-state model: a directory that is no run of ours, or one of its files."""
    path = Path(path)
    return path.suffix in ARC_SUFFIXES if not path.is_dir() else not is_run(path)


def best_paths(directory: P) -> tuple[P, P]:
    """Where a run directory, or its `checkpoints`, has its best checkpoint."""
    return directory / CHECKPOINTS_NAME / BEST_NAME, directory / BEST_NAME


def _best_of_run(reference: str) -> Path:
    return next(best for best in best_paths(Path(reference)) if best.is_file())


def _no_checkpoint(reference: str) -> Path:
    path = Path(reference)
    if not path.is_dir():
        require_plain(path)
        raise CheckpointError(
            f"{path} is a file of arc-state or of a run's trainer state, not a steval checkpoint. An arc-state model "
            f"becomes one by: steval convert {path} -o OUT.safetensors; of a run of ours, give its directory"
        )
    if (path / "config.yaml").is_file() and any(path.glob(f"{CHECKPOINTS_NAME}/*.ckpt")):
        if (path / "run.json").is_file():
            raise CheckpointError(
                f"{path} is a run that has no best checkpoint yet (not validated before it stopped): go on with "
                f"steval finetune --resume {path}"
            )
        raise CheckpointError(
            f"{path} is a directory of arc-state, not a steval checkpoint: convert it with steval convert {path} -o OUT.safetensors"
        )
    if holds_seeds(path):
        runs = " ".join(str(best.parent.parent) for best in sorted(path.glob(f"*/{CHECKPOINTS_NAME}/{BEST_NAME}")))
        raise CheckpointError(
            f"{path} holds runs of several seeds, not one checkpoint: give one of them, or to steval predict all together: {runs}"
        )
    inside = sorted(one.name for one in path.glob("*.safetensors"))
    hint = f"; it holds {', '.join(inside[:5])}: name one of them" if inside else ""
    raise CheckpointError(
        f"{path} is a directory without {CHECKPOINTS_NAME}/{BEST_NAME}: give a .safetensors file or a run directory{hint}"
    )


def _adapter(reference: str) -> Path:
    raise CheckpointError(
        f"{reference} is an adapter, which is no checkpoint without its base: give the base and --adapter {reference}, or make "
        f"one of both with steval merge BASE {reference} -o OUT.safetensors"
    )


def _of_hub(reference: str) -> Path:
    path = local(reference)
    if is_arc(path):
        raise CheckpointError(
            f"{reference} is a model of arc-state, not a steval checkpoint: convert it with steval convert {reference} "
            "-o OUT.safetensors"
        )
    return locate_checkpoint(path)


SOURCES: tuple[CheckpointSource, ...] = (
    CheckpointSource("hub", is_hub, _of_hub),
    CheckpointSource("run directory", lambda text: is_run(Path(text)), _best_of_run),
    CheckpointSource("adapter", lambda text: text.endswith(ADAPTER_SUFFIX), _adapter),
    CheckpointSource(
        "no checkpoint", lambda text: Path(text).is_dir() or Path(text).suffix in ARC_SUFFIXES, _no_checkpoint
    ),
    CheckpointSource("file", lambda text: True, lambda text: require_plain(Path(text))),
)
