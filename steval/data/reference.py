"""References to data by path, digest and selection, so that a checkpoint can say what it was trained and is to be scored on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from steval.data.columns import Columns
from steval.data.files import files_named, sha256_file
from steval.data.outputs import real_path
from steval.errors import DataError, MissingReferenceError
from steval.settings import Settings

Part = Literal["train", "val", "test"]


class FileReference(Settings):
    """One file as it was when it was read."""

    path: str
    """Absolute path at the time."""
    sha256: str
    num_bytes: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Reference an existing file, computing its digest."""
        path = real_path(path)
        return cls(path=str(path), sha256=sha256_file(path), num_bytes=path.stat().st_size)

    def locate(self, data_dirs: Sequence[Path] = ()) -> Path:
        """The file at its recorded path, else one of the same name below `data_dirs`, with the same content.

        A file that is nowhere is a `MissingReferenceError`, one whose digest differs a `DataError`.
        """
        recorded = Path(self.path)
        existing = [path for path in (recorded, *files_named(recorded.name, data_dirs)) if path.is_file()]
        if not existing:
            raise MissingReferenceError(
                f"the data file {self.path} that the checkpoint records is not there. Give the file by its option, "
                "or name the directory that holds it with --data-dir or STEVAL_DATA_DIR"
            )
        for path in existing:
            if path.stat().st_size == self.num_bytes and sha256_file(path) == self.sha256:
                return path
        raise DataError(
            f"{existing[0]} is not the file that the checkpoint records: its content has changed (sha256 "
            f"{sha256_file(existing[0])[:12]}…, recorded {self.sha256[:12]}…). Restore it, or give the data by its option"
        )


class DataReference(Settings):
    """Cells in one or more files: everything a later command needs to read the same cells again."""

    files: tuple[FileReference, ...]
    columns: Columns
    scale: str
    target_sum: float | None = None
    perturbations: tuple[str, ...] = ()
    """The perturbations of this part; empty: all in the files."""
    part: Part | None = None
    """Which part of `split`; none: every cell of the files."""
    split: dict[str, Any] | None = None
    """The split settings (see `splits`) that select the cells of `part`."""
