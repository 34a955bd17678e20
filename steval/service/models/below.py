"""The checkpoints below a directory: names, digests, what of each can be read without loading it."""

import os
from dataclasses import dataclass
from pathlib import Path

from steval.checkpoints.location import BEST_NAME, CHECKPOINTS_NAME, is_run, locate_checkpoint
from steval.checkpoints.manifest import DIGEST_KEY, Manifest, parse_metadata, read_header
from steval.data.outputs import same_file
from steval.errors import StevalError
from steval.service.models.loaded import ENCODED_BYTES

SUFFIX = ".safetensors"
MOST_MODELS = 1000
"""Below one directory; it is looked through every few seconds."""

Signature = tuple[int, int, int]
"""Inode, bytes and time of the last change: a file with the same has not changed."""


@dataclass(frozen=True)
class Found:
    """A checkpoint file and what its header says."""

    name: str
    path: Path
    signature: Signature | None
    digest: str | None = None
    manifest: Manifest | None = None
    problem: str | None = None
    """Why it cannot be served; then there is no manifest."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes once it is loaded, about: its tensors, and its encoded control cells."""
        if self.manifest is None or self.signature is None:
            return 0
        model = self.manifest.model
        encoded = 4 * sum(self.manifest.num_controls.values()) * (model.input_dim + model.hidden_dim)
        return self.signature[1] + (encoded if encoded <= ENCODED_BYTES else 0)

    @property
    def recorded_files(self) -> list[str]:
        """Paths of the data files that the checkpoint records: what a scoring job may read beside its own."""
        references = [self.manifest.evaluation, self.manifest.training_data] if self.manifest is not None else []
        return [str(file.path) for reference in references if reference is not None for file in reference.files]


def checkpoints_below(directory: Path) -> dict[str, Path]:
    """Files by their names: a run directory's best checkpoint under the directory's name, any other file under its path without
    the suffix, both relative to `directory`. Hidden files are left out. Raises `OSError` where the directory cannot be read.
    """
    found: dict[str, Path] = {}

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(directory, onerror=refuse):
        here = Path(place)
        relative = here.relative_to(directory)
        if is_run(here):
            found[relative.as_posix() if relative.parts else here.name] = locate_checkpoint(here)
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith(".") or not name.endswith(SUFFIX):
                continue
            plain = (relative / name.removesuffix(SUFFIX)).as_posix()
            # a file and a run directory may be called alike: then the file keeps its suffix
            found[(relative / name).as_posix() if (directory / plain).is_dir() else plain] = here / name
    return dict(sorted(found.items())[:MOST_MODELS])


def name_of(path: Path, directory: Path | None) -> str:
    """The name of a checkpoint that was given by its path: the one that it has below `directory`, where it lies there."""
    for name, other in checkpoints_below(directory).items() if directory is not None else ():
        if same_file(other, path):
            return name
    is_best = path.name == BEST_NAME and path.absolute().parent.name == CHECKPOINTS_NAME
    return path.absolute().parents[1].name if is_best else path.stem


def signature_of(path: Path) -> Signature | None:
    """See `Signature`; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def look_at(name: str, path: Path) -> Found:
    """What the header of a checkpoint says; a file that cannot be served has a `problem`."""
    signature = signature_of(path)
    try:
        metadata = read_header(path).get("__metadata__") or {}
        manifest = parse_metadata(metadata, path)
    except (StevalError, OSError) as error:
        return Found(name, path, signature, problem=str(error))
    return Found(name, path, signature, digest=metadata[DIGEST_KEY], manifest=manifest)
