"""What depends on one side alone, kept on disk: content digest + parameters + versions → one checked file.

A file is written beside its name and moved into place, so processes and users may share a directory; it carries a checksum of
its arrays, and an entry that does not match is removed and computed again. Nothing that goes wrong here fails a command.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from steval import __version__
from steval.data.files import atomic_tensors
from steval.errors import StevalError
from steval.evaluator.cells.sides import Cells, StoredCells
from steval.evaluator.measure.de import DifferentialExpression
from steval.evaluator.measure.engine import HOST, Engine
from steval.evaluator.measure.scan import Needs, SideTables, scan
from steval.settings import json_digest

logger = logging.getLogger(__name__)

FORMAT = 1

T = TypeVar("T")


def cached_scan(
    directory: Path | None,
    side: Cells,
    column: str,
    control: str,
    genes: tuple[str, ...],
    needs: Needs,
    threads: int,
    engine: Engine = HOST,
) -> tuple[SideTables, bool]:
    """`scan` through what `side` has computed already and the cache: the tables, and whether they came from `directory`."""
    for wanted in _sufficient(needs):
        if (control, genes, wanted) in side.tables:
            return side.tables[control, genes, wanted], False
    tables, found = _read(directory, side, column, control, genes, needs, threads, engine)
    side.tables[control, genes, needs] = tables
    return tables, found


def _read(
    directory: Path | None,
    side: Cells,
    column: str,
    control: str,
    genes: tuple[str, ...],
    needs: Needs,
    threads: int,
    engine: Engine = HOST,
) -> tuple[SideTables, bool]:
    if directory is None or not isinstance(side, StoredCells):
        return scan(side, control, genes, needs, threads, engine), False
    content = cache_content(side, column, control)
    if engine is not HOST:
        content["engine"] = engine.name
    for wanted in _sufficient(needs):
        found = load_tables(entry_path(directory, content, asdict(wanted)))
        if found is not None:
            return found, True
    tables = scan(side, control, genes, needs, threads, engine)
    keep(lambda: store_tables(entry_path(directory, content, asdict(needs)), tables))
    return tables, False


def cache_content(side: StoredCells, column: str, control: str) -> dict[str, str]:
    """Which cells an entry is of."""
    return {"content": side.digest(), "subset": side.subset, "column": column, "control": control}


def entry_path(directory: Path, content: Mapping[str, str], needs: Mapping[str, Any]) -> Path:
    """The file of one side and one set of needs."""
    versions = {"steval": __version__, "format": FORMAT, "numpy": np.__version__, "numba": version("numba")}
    return Path(directory) / f"{json_digest({**content, 'needs': needs, 'versions': versions})}.safetensors"


def store_tables(path: Path, tables: SideTables) -> None:
    """Write an entry atomically."""
    arrays = {"means": tables.means}
    described: dict[str, Any] = {"names": tables.names, "single": bool(tables.single), "de": None}
    if tables.energy is not None:
        arrays["energy"] = tables.energy
    if tables.de is not None:
        de = tables.de
        described["de"] = {
            "names": de.names,
            "genes": de.genes,
            "num_controls": de.num_controls,
            "epsilon": de.epsilon,
        }
        for name in ("memberships", "target_mean", "reference_mean", "statistic", "p_value"):
            arrays[f"de.{name}"] = getattr(de, name)
    store_entry(path, described, arrays)


def load_tables(path: Path) -> SideTables | None:
    """An entry, or None where there is none or it cannot be read; a damaged one is removed."""
    return load_entry(path, _tables)


def store_entry(path: Path, described: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write arrays and what is said of them (plain JSON types) atomically, with a checksum of both."""
    text = json.dumps(described)
    with atomic_tensors(path) as partial:
        save_file(arrays, partial, metadata={"tables": text, "sha256": _checksum(text, arrays)})


def load_entry(path: Path, build: Callable[[dict[str, Any], dict[str, np.ndarray]], T]) -> T | None:
    """What `build` makes of an entry, or None where there is none or it cannot be read; a damaged one is removed."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        return None
    except OSError as error:  # another user's, perhaps: it stays
        logger.info("cache entry %s cannot be read (%s); it is computed again", path.name, error.strerror or error)
        return None
    try:
        with safe_open(path, framework="numpy") as handle:
            metadata = handle.metadata() or {}
            arrays = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dictionary
        text = metadata["tables"]
        if metadata["sha256"] != _checksum(text, arrays):
            raise ValueError("its checksum does not match")
        return build(json.loads(text), arrays)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        logger.warning("cache entry %s is damaged (%s); it is computed again", path.name, error)
        with suppress(OSError):
            path.unlink()
        return None


def keep(what: Callable[[], None]) -> None:
    """Write to the cache; where that fails, say so and go on."""
    try:
        what()
    except (StevalError, OSError) as error:
        logger.warning("the scoring cache could not be written, results are not affected: %s", error)


def _tables(described: dict[str, Any], arrays: dict[str, np.ndarray]) -> SideTables:
    de = described["de"]
    if de is not None:
        de = DifferentialExpression(
            tuple(de["names"]),
            tuple(de["genes"]),
            arrays["de.memberships"],
            de["num_controls"],
            arrays["de.target_mean"],
            arrays["de.reference_mean"],
            arrays["de.statistic"],
            arrays["de.p_value"],
            de["epsilon"],
        )
    return SideTables(tuple(described["names"]), arrays["means"], described["single"], de, arrays.get("energy"))


def _sufficient(needs: Needs) -> list[Needs]:
    """What was kept for these needs or for more."""
    more = [
        Needs(de=de, epsilon=needs.epsilon, energy=energy)
        for de in (False, True)
        for energy in (False, True)
        if de >= needs.de and energy >= needs.energy
    ]
    return [needs, *(candidate for candidate in more if candidate != needs)]


def _checksum(text: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
