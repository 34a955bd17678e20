"""The checkpoints and data sets of a manifest, found, opened and described; nothing is computed from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from steval import __version__
from steval.batch.jobs import Stamp, model_digest
from steval.batch.places import find, is_url, local_copy, plain_name, unique_names
from steval.batch.settings import BatchManifest, DataEntry
from steval.checkpoints.adapters.record import read_record
from steval.checkpoints.location import ADAPTER_SUFFIX, SUFFIX, is_hub, locate_checkpoint, shown
from steval.checkpoints.manifest import DIGEST_KEY, Manifest, parse_metadata, read_header
from steval.data.cells.cellfile import CellFile
from steval.data.cells.scale import require_scale, sample_indices
from steval.data.outputs import real_path
from steval.data.splits.selection import open_reference
from steval.errors import DataError, StevalError
from steval.machine import package_versions
from steval.predictor.members import Member, misfits
from steval.wording import counted

RESULT_PACKAGES = (
    "anndata", "cell-eval", "h5py", "numba", "numpy", "pdex", "polars", "scikit-learn", "scipy", "torch",
)  # fmt: skip
"""Their versions are part of a job's identity."""
SCALE_CELLS = 200
ENSEMBLE_NAME = "ensemble"
"""Of checkpoints that predict together, where the manifest gives no name."""
Digest = Callable[[str], Stamp]
"""Place → the file as it is now."""


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint whose metadata could be read, whole or a base with an adapter; the first of an ensemble."""

    name: str
    stamp: Stamp
    manifest: Manifest
    """Of an adapter: that of the checkpoint which it makes with its base."""
    path: Path
    adapter: Stamp | None = None
    others: tuple["FoundCheckpoint", ...] = ()
    """The rest of the ensemble."""

    @property
    def digest(self) -> str:
        """Digest of the checkpoint, or of what it makes with the adapter."""
        return model_digest(self.stamp, self.adapter)

    @property
    def members(self) -> tuple["FoundCheckpoint", ...]:
        """All that predict together."""
        return self, *self.others

    @property
    def described(self) -> Member:
        """As a member of an ensemble."""
        return Member(str(self.path), self.digest, self.manifest)


@dataclass(frozen=True)
class FoundData:
    """A data set as the manifest names it; `stamp` None: what each checkpoint records."""

    name: str
    entry: DataEntry
    stamp: Stamp | None
    train: Stamp | None
    path: Path | None


@dataclass
class Sources:
    """Finds what a manifest names; problems are collected, not raised."""

    manifest: BatchManifest
    base: Path
    cache: Path
    digest: Digest
    problems: list[str] = field(default_factory=list)

    @cached_property
    def data_dirs(self) -> tuple[Path, ...]:
        """`data_dirs`, absolute."""
        directories = tuple(real_path(self.base / directory) for directory in self.manifest.data_dirs)
        self.problems += [f"data_dirs: no such directory: {one}" for one in directories if not one.is_dir()]
        return directories

    def checkpoints(self) -> list[FoundCheckpoint]:
        """All checkpoints, each once, and the ensembles after them."""
        entries = [
            (entry.path, entry.adapter, entry.name)
            for entry in self.manifest.checkpoints
            if isinstance(entry.path, str)
        ]
        found = self._read(self._expand(entries, "checkpoints"))
        for entry in self.manifest.checkpoints:
            together = None if isinstance(entry.path, str) else self._ensemble(entry.path, entry.name)
            found += [] if together is None else [together]
        names = [one.name for one in found]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            self.problems.append(f"checkpoints: more than one is named {', '.join(repeated)}; give names (name: ...)")
        return found

    def _read(self, places: Mapping[str, tuple[str, str | None]], of: str = "") -> list[FoundCheckpoint]:
        """Those of the checkpoints, by their names, that can be read; what cannot is a problem. `of`: begins their names there."""
        found = []
        for name, (place, adapter) in places.items():
            try:
                found.append(self._checkpoint(name, place, adapter))
            except (StevalError, OSError) as error:
                self.problems.append(f"checkpoint {of}{name}: {error}")
        return found

    def _checkpoint(self, name: str, place: str, adapter: str | None) -> FoundCheckpoint:
        if is_hub(place):
            path = locate_checkpoint(place)
            place = shown(path)
        elif is_url(place):
            path = local_copy(place, self.cache)
        else:
            path = locate_checkpoint(place)
            place = str(path)
        metadata = read_header(path).get("__metadata__") or {}
        manifest = parse_metadata(metadata, path)
        found = FoundCheckpoint(name, _stamp(place, path, metadata[DIGEST_KEY]), manifest, path)
        if adapter is None:
            return found
        adapter_path = local_copy(adapter, self.cache)
        adapter = shown(adapter_path) if is_hub(adapter) else adapter
        record, digest, _ = read_record(adapter_path)
        record.require_base(manifest, path, adapter_path)
        return replace(found, manifest=record.manifest, adapter=_stamp(adapter, adapter_path, digest))

    def _ensemble(self, paths: Sequence[str], name: str | None) -> FoundCheckpoint | None:
        """The checkpoints that all `paths` find, as one; what does not fit together is a problem."""
        own = plain_name(name or ENSEMBLE_NAME)
        places = self._expand([(path, None, None) for path in paths], f"checkpoints {own}")
        members = self._read(places, f"{own}: ")
        if len(members) < len(places) or not members:
            return None
        described = [one.described for one in members]
        self.problems += [f"checkpoint {own}: {problem}" for problem in misfits(described)]
        return replace(members[0], name=own, others=tuple(members[1:]))

    def data_sets(self) -> list[FoundData]:
        """All data sets, each once."""
        found: list[FoundData] = []
        seen: set[tuple[str, str]] = set()
        for entry in self.manifest.data:
            train = self._stamp(entry.train, f"train of {entry.name or entry.real}") if entry.train else None
            if entry.recorded:
                found.append(FoundData(plain_name(entry.name or "recorded"), entry, None, train, None))
                continue
            assert entry.real is not None
            how = entry.model_copy(update={"real": None}).digest()
            for name, (place, _) in self._expand([(entry.real, None, entry.name)], "data").items():
                if (place, how) in seen:
                    continue
                seen.add((place, how))
                stamp = self._stamp(place, f"data {name}")
                if stamp is not None:
                    found.append(FoundData(name, entry, stamp, train, local_copy(place, self.cache)))
        names = [one.name for one in found]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            self.problems.append(
                f"data: sets need names of their own (name: ...); more than once: {', '.join(repeated)}"
            )
        return found

    def stamp_file(self, place: str, what: str) -> Stamp | None:
        """Another file that a job needs, by its path relative to the manifest."""
        return self._stamp(place, what)

    def open_data(self, data: FoundData, checkpoint: FoundCheckpoint) -> CellFile:
        """The real cells for this checkpoint; raises `StevalError`."""
        if data.path is not None:
            return CellFile.open(data.path)
        manifest = checkpoint.manifest
        if manifest.evaluation is None:
            raise DataError(f"{checkpoint.path} records no evaluation data; name the data set with real: FILE.h5ad")
        return open_reference(manifest.evaluation, self.data_dirs, manifest.output_genes)

    def _stamp(self, place: str, what: str) -> Stamp | None:
        try:
            return self.digest(find(place, self.base)[0])
        except IndexError:
            self.problems.append(f"{what}: nothing matches {place}")
        except (StevalError, OSError) as error:
            self.problems.append(f"{what}: {error}")
        return None

    def _expand(
        self, entries: Sequence[tuple[str, str | None, str | None]], what: str
    ) -> dict[str, tuple[str, str | None]]:
        """Name → place, and the adapter's; of patterns, adapters and names. The same file, or both, are taken once."""
        found: dict[tuple[str, str | None], str | None] = {}
        for pattern, adapter, name in entries:
            places = find(pattern, self.base)
            if not places:
                self.problems.append(f"{what}: nothing matches {pattern}")
            adapters = [None] if adapter is None else find(adapter, self.base)
            if len(adapters) != 1:
                self.problems.append(f"{what}: the adapter {adapter} is {counted(len(adapters), 'file')}; name one")
                continue
            beside = adapters[0]
            for number, place in enumerate(places, 1):
                own = None if name is None else plain_name(name if len(places) == 1 else f"{name}-{number}")
                found[place, beside] = own or found.get((place, beside))
        unnamed = [place for place, name in found.items() if name is None]
        # an adapter's own name says more than its base's, which others stand on too
        short = unique_names([(beside or place).replace(ADAPTER_SUFFIX, SUFFIX) for place, beside in unnamed])
        given = dict(zip(unnamed, short, strict=True))
        named = {place: name or given[place] for place, name in found.items()}
        names = list(named.values())
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            self.problems.append(f"{what}: more than one is named {', '.join(repeated)}; give names (name: ...)")
        return {name: place for place, name in named.items()}


def _stamp(place: str, path: Path, digest: str) -> Stamp:
    status = path.stat()
    modified_ns = 0 if is_url(place) else status.st_mtime_ns
    return Stamp(place=place, num_bytes=status.st_size, modified_ns=modified_ns, sha256=digest)


def check_scale(cells: CellFile, option: str | None) -> None:
    """Real cells must be lognorm, by declaration or by a few of them."""
    sample = cells.select(sample_indices(cells.num_cells, SCALE_CELLS))
    require_scale(sample, "lognorm", "lognorm" if option == "lognorm" else None)


def result_versions() -> dict[str, str]:
    """Versions that results depend on."""
    return {"steval": __version__, **package_versions(RESULT_PACKAGES)}
