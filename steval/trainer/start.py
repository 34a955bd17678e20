"""What a run is started or resumed with: its configuration and weights, given or as its directory records them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steval.checkpoints.location import is_hub
from steval.errors import CheckpointError, ConfigError
from steval.trainer.config import FinetuneConfig
from steval.trainer.inputs import RunInputs, resumed_config
from steval.trainer.progress.rundir import RunDirectory
from steval.trainer.sources import Base


@dataclass(frozen=True)
class Start:
    """A configuration, weights to start from, and for a resumed run what is on record."""

    config: FinetuneConfig
    """What the run computes."""
    reading: FinetuneConfig
    """The same with files and workers as this attempt reads its data."""
    told: frozenset[str] = frozenset()
    """Settings in which `reading` was told to differ."""
    init_from: Path | None = None
    allow_mismatch: bool = False
    from_nothing: bool = False
    """Go on with a frozen backbone of random weights."""
    data_dirs: Sequence[Path] = ()
    """Where files that moved are looked for."""
    record: dict[str, Any] = field(default_factory=dict)
    """`run.json` of the run that is resumed; empty for a new one."""

    def read_base(self) -> Base | None:
        """The checkpoint that the run starts from; to resume, the same one, where it was or by name in `data_dirs`."""
        if self.init_from is None:
            return None
        recorded = self.record.get("base")
        if recorded is None:
            return Base.read(self.init_from)
        moved = [
            match
            for directory in self.data_dirs
            for match in sorted(directory.rglob("*"))
            if match.name == self.init_from.name
        ]
        # of a hub last: it may not be reached, and what --data-dir has is the same by its digest
        places = (*moved, self.init_from) if is_hub(self.init_from) else (self.init_from, *moved)
        existing = [path for path in places if is_hub(path) or path.exists()]
        for path in existing:
            base = Base.read(path)
            if _digest(base.source.name) == _digest(recorded):
                return base
        found = f"{existing[0]} has another content now" if existing else f"{self.init_from} is not there"
        raise CheckpointError(
            f"the run started from {recorded}, whose names and genes it still needs, and {found}. Restore it, name the directory "
            "that holds it with --data-dir or STEVAL_DATA_DIR, or start another run with --init-from the best checkpoint"
        )

    def inputs(self) -> RunInputs | None:
        """The files of the run that is resumed, where they are now; None for a new run, or one of before they were recorded."""
        known = RunInputs.recorded(self.record)
        return known.locate(self.reading.data, self.told, self.data_dirs) if known.data else None


def recorded_start(
    directory: RunDirectory,
    config: FinetuneConfig | None,
    init_from: Path | None,
    allow_mismatch: bool,
    data_dirs: Sequence[Path],
) -> Start:
    """The start of the run in `directory`, to resume it; a configuration or start that is another one is a `ConfigError`."""
    directory.require_resumable()
    if init_from is not None:
        raise ConfigError("--resume continues with the run's own weights; leave --init-from out")
    recorded, record = FinetuneConfig.load(directory.config_path), directory.read_record()
    reading, told = recorded, frozenset()
    if config is not None:
        reading, told = resumed_config(recorded, config.with_absolute_paths())
    stored = record.get("init_from")
    return Start(
        recorded, reading, told, Path(stored) if stored else None,
        allow_mismatch=allow_mismatch or bool(record.get("allow_mismatch")), from_nothing=True, data_dirs=data_dirs,
        record=record,
    )  # fmt: skip


def _digest(name: str) -> str:
    """Of a `WeightSource`'s name, `FILE sha256:DIGEST`; the file may be called something else by now."""
    return name.rpartition("sha256:")[2]
