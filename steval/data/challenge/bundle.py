"""`steval prepare BUNDLE.zip`: the organisers' control bundle as a directory for `steval predict --contexts` and `steval pack`."""

import lzma
import struct
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from steval.data.cells.cellfile import CellFile
from steval.data.cells.genes import read_genes
from steval.data.cells.prepare import PrepareReport, PrepareSettings, prepare_cells
from steval.data.cells.scale import Scale
from steval.data.challenge.panel import (
    CONTEXT,
    GENES_FILE,
    MANIFEST_FILE,
    PERTURBATIONS_FILE,
    read_manifest,
)
from steval.data.columns import ColumnOptions
from steval.data.files import partial_beside, remove, require_directory, require_file
from steval.data.labels import labels_of
from steval.data.outputs import require_output_directory
from steval.errors import ConfigError, DataError, OutputError
from steval.wording import listed

LONGEST_NAME = 200
"""Bytes; a file system takes 255, and parts of files have longer names."""
_LISTS = (GENES_FILE, PERTURBATIONS_FILE, MANIFEST_FILE)
_DAMAGED = (
    OSError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, ValueError, LookupError,
)  # fmt: skip
"""What `zipfile` raises on damaged, encrypted or unknown content."""


def controls_file(directory: Path, context: str) -> Path:
    """Where the prepared control cells of a context lie in a prepared bundle; a name that would lead elsewhere is a `DataError`."""
    name = f"controls-{context}.h5ad"
    if "/" in context or not context.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise DataError(f"the context {context[:80]!r} cannot be part of a file's name")
    return Path(directory) / name


def prepared_contexts(directory: Path) -> dict[str, Path]:
    """The control files of a prepared bundle by context, in the order of its manifest; a `DataError` where it is none."""
    place = Path(directory) / MANIFEST_FILE
    manifest = read_manifest(place) if place.is_file() else None
    if manifest is None:
        raise DataError(
            f"{directory} is no prepared control bundle: it has no {MANIFEST_FILE} that names contexts. Make it with: "
            "steval prepare BUNDLE.zip -o DIRECTORY"
        )
    return {name: controls_file(directory, name) for name in manifest.contexts}


def is_bundle(path: Path) -> bool:
    """Whether `path` is a zip archive."""
    return Path(path).is_file() and zipfile.is_zipfile(path)


def prepare_bundle(
    source: Path,
    out: Path,
    *,
    options: ColumnOptions | None = None,
    scale: Scale | None = None,
    settings: PrepareSettings | None = None,
) -> dict[str, PrepareReport]:
    """Unpack the zip `source` into the new directory `out`: its lists, and each context's control cells as lognorm.

    The cells of each context get it as their cell type where the file names none, and the genes of the list in its order. The
    directory appears when it is whole. Raises `DataError` for what the bundle lacks or a broken file, `ConfigError` for a
    directory that is there already.
    """
    target = require_output_directory(out, {"the bundle": require_file(source, "control bundle")})
    if target.exists():
        raise ConfigError(f"{out} is there already; name a new directory with --out")
    require_directory(target.parent)
    partial = partial_beside(target)
    try:
        partial.mkdir()
        with _opened(source) as archive:
            members = _members(archive, source)
            for name in _LISTS:
                _extract(archive, members[name], partial / name)
            reports = _prepare_contexts(archive, members, partial, options, scale, settings or PrepareSettings())
        partial.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        remove(partial)
    return reports


def _members(archive: zipfile.ZipFile, source: Path) -> dict[str, zipfile.ZipInfo]:
    """The lists and cell files of the bundle by their bare names, wherever in it they lie."""
    wanted: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        is_wanted = path.name in _LISTS or path.suffix == ".h5ad"
        if member.is_dir() or not is_wanted or path.name.startswith(".") or "__MACOSX" in path.parts:
            continue
        if path.name in wanted:
            raise DataError(f"{source} holds two files {path.name}")
        wanted[path.name] = member
    missing = [name for name in _LISTS if name not in wanted]
    if not any(name.endswith(".h5ad") for name in wanted):
        missing.append("an h5ad with control cells")
    if missing:
        raise DataError(f"{source} is no control bundle of the challenge: it lacks {listed(missing)}")
    return wanted


def _prepare_contexts(
    archive: zipfile.ZipFile,
    members: dict[str, zipfile.ZipInfo],
    directory: Path,
    options: ColumnOptions | None,
    scale: Scale | None,
    settings: PrepareSettings,
) -> dict[str, PrepareReport]:
    manifest = read_manifest(directory / MANIFEST_FILE)
    if manifest is None:
        raise DataError(f"{MANIFEST_FILE} of the bundle names no contexts")
    places = {context: controls_file(directory, context) for context in manifest.contexts}
    genes = read_genes(directory / GENES_FILE)
    reports: dict[str, PrepareReport] = {}
    for name in sorted(name for name in members if name.endswith(".h5ad")):
        with _extracted(archive, members[name], directory) as path, CellFile.open(path) as cells:
            cells.name = name
            contexts = _contexts(cells)
            for context in sorted(set(contexts.tolist()) & set(manifest.contexts)):
                if context in reports:
                    raise DataError(f"control cells of context {context} lie in more than one file of the bundle")
                chosen = cells.select(np.flatnonzero(contexts == context))
                named = _named(chosen, context, settings, options)
                reports[context] = prepare_cells(
                    chosen, name, places[context], options=options, scale=scale, genes=genes, settings=named
                )
    if lacking := [context for context in manifest.contexts if context not in reports]:
        raise DataError(f"the bundle holds no control cells of context {listed(lacking)}")
    return {context: reports[context] for context in manifest.contexts}


def _named(cells: CellFile, context: str, settings: PrepareSettings, options: ColumnOptions | None) -> PrepareSettings:
    """The settings, with the context as the cells' type where no column has one."""
    column = (options.cell_type if options else None) or "cell_type"
    if settings.cell_type_name is not None or column in cells.obs.columns:
        return settings
    return settings.model_copy(update={"cell_type_name": context})


def _contexts(cells: CellFile) -> np.ndarray:
    if CONTEXT not in cells.obs.columns:
        raise DataError(f"{cells.name} has no obs column {CONTEXT!r}; its columns are: {listed(cells.obs.columns, 30)}")
    return labels_of(cells.obs, CONTEXT, cells.name)


@contextmanager
def _extracted(archive: zipfile.ZipFile, member: zipfile.ZipInfo, directory: Path) -> Generator[Path]:
    path = directory / "extracted.h5ad"
    try:
        _extract(archive, member, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    with _reading(archive):
        source = archive.open(member)
    with source, path.open("wb") as target:
        while piece := _piece(source, archive):
            target.write(piece)


def _piece(source: IO[bytes], archive: zipfile.ZipFile) -> bytes:
    with _reading(archive):
        return source.read(1 << 20)


def _opened(source: Path) -> zipfile.ZipFile:
    with _reading(source):
        return zipfile.ZipFile(source)


@contextmanager
def _reading(source: Path | zipfile.ZipFile) -> Generator[None]:
    """Within, damage is a `DataError`."""
    try:
        yield
    except _DAMAGED as error:
        name = source.filename if isinstance(source, zipfile.ZipFile) else source
        raise DataError(f"{name} is damaged or locked: {error}") from error
