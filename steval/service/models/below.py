"""The checkpoints and adapters below a directory: names, digests, what of each can be read without loading it."""

import os
from dataclasses import dataclass
from pathlib import Path

from steval.checkpoints.adapters.record import AdapterRecord, digest_of_both, read_record
from steval.checkpoints.location import ADAPTER_SUFFIX, BEST_NAME, CHECKPOINTS_NAME, SUFFIX, is_run, locate_checkpoint
from steval.checkpoints.manifest import DIGEST_KEY, Manifest, parse_metadata, read_header
from steval.data.outputs import same_file
from steval.errors import StevalError
from steval.service.models.loaded import ENCODED_BYTES

MOST_MODELS = 1000
"""Below one directory; it is looked through every few seconds."""

Signature = tuple[int, int, int]
"""Inode, bytes and time of the last change: a file with the same has not changed."""


@dataclass(frozen=True)
class Found:
    """A checkpoint or adapter file and what its header says."""

    name: str
    path: Path
    signature: Signature | None
    file_digest: str | None = None
    """Of its metadata, and so of each tensor in it."""
    manifest: Manifest | None = None
    """Of an adapter: that of the checkpoint which it makes with its base."""
    problem: str | None = None
    """Why it cannot be served; then there is no manifest."""
    record: AdapterRecord | None = None
    """None where it is no adapter."""
    base: "Found | None" = None
    """Of an adapter: the checkpoint that it belongs to; None where that is not there."""
    loaded_digest: str | None = None
    """What was found when it was loaded: the file may have changed since the look at it."""

    @property
    def digest(self) -> str | None:
        """sha256 that names the model; of an adapter, of both its file and its base."""
        if self.record is None or self.loaded_digest is not None:
            return self.loaded_digest or self.file_digest
        if self.base is None or self.base.digest is None or self.file_digest is None:
            return None
        return digest_of_both(self.base.digest, self.file_digest)

    @property
    def is_lost(self) -> bool:
        """Whether it is an adapter whose base is not there."""
        return self.record is not None and self.base is None

    def is_base_of(self, record: AdapterRecord) -> bool:
        """Whether this checkpoint has what an adapter takes from its base."""
        return self.record is None and self.manifest is not None and record.is_for(self.manifest)

    @property
    def checkpoint_path(self) -> Path:
        """Its own file, or its base's."""
        return self.path if self.base is None else self.base.path

    @property
    def adapter_path(self) -> Path | None:
        """Its file, where it is an adapter."""
        return None if self.record is None else self.path

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
    the suffix (adapters without `.adapter` too, unless a checkpoint is called so), both relative to `directory`. Hidden files are
    left out. Raises `OSError` where the directory cannot be read.
    """
    found: dict[str, Path] = {}
    adapters: dict[str, Path] = {}

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
            if name.endswith(ADAPTER_SUFFIX):
                adapters[(relative / name.removesuffix(ADAPTER_SUFFIX)).as_posix()] = here / name
                continue
            plain = (relative / name.removesuffix(SUFFIX)).as_posix()
            # a file and a run directory may be called alike: then the file keeps its suffix
            found[(relative / name).as_posix() if (directory / plain).is_dir() else plain] = here / name
    # a directory of runs' checkpoints has a best-val and its adapter: the checkpoint has the name
    found |= {name if name not in found else f"{name}.adapter": path for name, path in adapters.items()}
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
    """What the header of a checkpoint or adapter says; a file that cannot be served has a `problem`."""
    signature = signature_of(path)
    try:
        if path.name.endswith(ADAPTER_SUFFIX):
            record, digest, _ = read_record(path)
            return Found(name, path, signature, file_digest=digest, manifest=record.manifest, record=record)
        metadata = read_header(path).get("__metadata__") or {}
        manifest = parse_metadata(metadata, path)
    except (StevalError, OSError) as error:
        return Found(name, path, signature, problem=str(error))
    return Found(name, path, signature, file_digest=metadata[DIGEST_KEY], manifest=manifest)
