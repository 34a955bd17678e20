"""The files that a run reads, as they were when it was started: recorded in `run.json`, and found again, by content, to resume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from steval.data.files import sha256_file
from steval.data.outputs import real_path
from steval.data.reference import FileReference
from steval.data.splits.assignment import CellSplit, Split, parse_split
from steval.data.training.cells import TrainingCells
from steval.data.training.files import expand_files
from steval.errors import ConfigError, DataError, MissingReferenceError
from steval.settings import flatten
from steval.trainer.config import DataSettings, FinetuneConfig

SIDE_FILES = ("features", "gene_list", "input_gene_list", "evaluation_file")
"""Settings of `data` that name one file each."""
RESUMABLE = (
    "data.files", *(f"data.{name}" for name in SIDE_FILES), "data.memory_gb", "data.cache_dir", "compute.workers",
)  # fmt: skip
"""Settings that may be given anew to a run that is resumed: where things lie and how they are read, never what is computed."""


@dataclass(frozen=True)
class RunInputs:
    """Everything that a run was given to read, by content."""

    data: tuple[FileReference, ...]
    """The data files, in the order of their cells."""
    side_files: Mapping[str, FileReference]
    """By their names in `SIDE_FILES`."""
    split: Split | None
    """With the content of its file; none: not on record."""

    @classmethod
    def of(cls, cells: TrainingCells, settings: DataSettings) -> Self:
        """As they are now; reads every byte of the side files."""
        paths = {name: getattr(settings, name) for name in SIDE_FILES}
        return cls(
            cells.file_references,
            {name: FileReference.of(Path(path)) for name, path in paths.items() if path is not None},
            cells.split,
        )

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> Self:
        """From `run.json`; what an earlier version did not write there is not known."""
        side_files, split = record.get("side_files") or {}, record.get("split")
        return cls(
            tuple(FileReference.parse(item, "run.json") for item in record.get("data") or ()),
            {name: FileReference.parse(item, "run.json") for name, item in side_files.items()},
            parse_split(split) if split else None,
        )

    def as_record(self) -> dict[str, Any]:
        """For `run.json`."""
        return {
            "data": [reference.as_dict() for reference in self.data],
            "side_files": {name: reference.as_dict() for name, reference in self.side_files.items()},
            "split": self.split.as_dict() if self.split else None,
        }

    def locate(self, given: DataSettings, told: frozenset[str], data_dirs: Sequence[Path]) -> "RunInputs":
        """The same files where they are now: among those of `given` whose settings (`data.files`, ...) are `told`, else where
        they were, else by name in `data_dirs`. One `DataError` lists all that are not there or have another content.
        """
        problems: list[str] = []

        def find(reference: FileReference, candidates: list[Path] | None) -> FileReference:
            try:
                path = _take(reference, candidates) if candidates is not None else reference.locate(data_dirs)
            except DataError as error:
                missing = isinstance(error, MissingReferenceError)
                problems.append(f"{reference.path}: {'is not there' if missing else 'has another content'}")
                return reference
            return reference.model_copy(update={"path": str(real_path(path))})

        files = (
            [real_path(path) for path in expand_files(given.files, CellSplit())[0]] if "data.files" in told else None
        )
        located = replace(
            self,
            data=tuple(find(reference, files) for reference in self.data),
            side_files={
                name: find(reference, [Path(getattr(given, name))] if f"data.{name}" in told else None)
                for name, reference in self.side_files.items()
            },
        )
        if problems:
            raise DataError(
                "data has moved or has changed since the run was started; a resumed run must see the same cells. Name the "
                "directory that holds files that moved with --data-dir or STEVAL_DATA_DIR, or give them with --set "
                "data.files=[...]; restore files that changed, or start another run with --init-from the best checkpoint",
                problems,
            )
        return located

    def settings(self, recorded: DataSettings) -> DataSettings:
        """`recorded` with the files where they are now, and the split as it was read."""
        changed: dict[str, Any] = {name: reference.path for name, reference in self.side_files.items()}
        if self.data:
            changed["files"] = tuple(reference.path for reference in self.data)
        if self.split is not None:
            changed["split"] = self.split
        return recorded.model_copy(update=changed)


def resumed_config(recorded: FinetuneConfig, given: FinetuneConfig) -> tuple[FinetuneConfig, frozenset[str]]:
    """`recorded` with what `given` may change of it, and the names of those settings; another difference is a `ConfigError`."""
    differing = _differences(recorded, given)
    refused = [
        f"{key}: it was started with {was!r}, now given {now!r}"
        for key, (was, now) in differing.items()
        if key not in RESUMABLE or (key.removeprefix("data.") in SIDE_FILES and None in (was, now))
    ]
    if refused:
        raise ConfigError(
            "the configuration differs from the one that the run was started with. Leave these settings out, or start another "
            f"run with --init-from; a resumed run takes {', '.join(RESUMABLE)} alone",
            refused,
        )
    changes: dict[str, dict[str, Any]] = {"data": {}, "compute": {}}
    for key in differing:
        section, name = key.split(".")
        changes[section][name] = getattr(getattr(given, section), name)
    data, compute = (getattr(recorded, section).model_copy(update=changes[section]) for section in ("data", "compute"))
    return recorded.model_copy(update={"data": data, "compute": compute}), frozenset(differing)


def _differences(recorded: FinetuneConfig, given: FinetuneConfig) -> dict[str, tuple[Any, Any]]:
    """Setting → (recorded, given) where the two differ; of network and files only what `given` names."""
    was, now = flatten(recorded.as_dict()), flatten(given.as_dict())
    unnamed = {key for key in now if key.startswith("network.") and not _names(given, key)}
    unnamed |= set() if given.data.files else {"data.files"}
    keys = dict.fromkeys([*was, *now])
    return {key: (was.get(key), now.get(key)) for key in keys if key not in unnamed and was.get(key) != now.get(key)}


def _names(given: FinetuneConfig, key: str) -> bool:
    """Whether `given` says anything of a setting of the network; the record has them all, from checkpoint and data."""
    name = key.removeprefix("network.")
    return name in given.network.model_fields_set and getattr(given.network, name) is not None


def _take(reference: FileReference, candidates: list[Path]) -> Path:
    """The first candidate with the referenced content, no longer a candidate then; none is a `DataError`."""
    for path in candidates:
        if path.is_file() and path.stat().st_size == reference.num_bytes and sha256_file(path) == reference.sha256:
            candidates.remove(path)
            return path
    raise DataError(f"no file that was given has the content of {reference.path}")
