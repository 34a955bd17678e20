"""Perturbation feature files (ESM2 embeddings and the like): name → vector, from `.pt`, `.npz`, `.parquet` or `.csv`.

The one reader of `convert`, `predict --features` and `finetune` (`data.features`). torch is imported where a `.pt` is opened.
"""

import csv
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from steval.errors import CheckpointError, ConfigError
from steval.wording import counted

MAX_FEATURE_BYTES = 16 * 2**30
"""Largest unpacked feature file: 20,000 genes of 5,120 float64 numbers are 0.8 GB."""
MAX_UNPACKING = 1000
"""Largest ratio of unpacked to packed size: more is a zip bomb, not numbers."""

Features = dict[str, np.ndarray]


def read_features(path: Path) -> Features:
    """Name → float32 vector, all of one length, finite. Names are text as written: `NA`, `0012` and `1.10` are names.

    `.pt` (`.torch`, `.pkl`): a mapping of names to tensors. `.npz`: one array per name, or arrays `names [P]` and
    `features [P, D]`. `.parquet`: one text column with the names, and either one list column or numeric columns in order.
    `.csv`: a header, names in the first column. A file that is not there or of another kind is a `ConfigError`, a damaged or
    untrusted one a `CheckpointError`.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no such perturbation feature file: {path}")
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise ConfigError(
            f"{path}: perturbation features are read from .pt, .npz, .parquet or .csv, not {path.suffix!r}"
        )
    features = reader(path)
    broken = [name for name, vector in features.items() if not np.isfinite(vector).all()]
    if broken:
        raise CheckpointError(f"{path}: NaN or infinite features of {', '.join(broken[:5])}")
    return features


def _read_torch(path: Path) -> Features:
    from steval.checkpoints.arc_maps import read_feature_map

    return {str(name): tensor.numpy() for name, tensor in read_feature_map(path).items()}


def _read_npz(path: Path) -> Features:
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
        if declared > min(MAX_FEATURE_BYTES, MAX_UNPACKING * path.stat().st_size):
            raise CheckpointError(f"{path} would unpack to {counted(declared, 'byte')}; refused as a zip bomb")
        with np.load(path, allow_pickle=False) as arrays:
            if {"names", "features"} == set(arrays.files):
                return _from_matrix([str(name) for name in arrays["names"]], arrays["features"], path)
            names = list(arrays.files)
            vectors = [arrays[name] for name in names]
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, MemoryError) as error:
        raise CheckpointError(f"{path} is not a readable .npz of plain numbers: {error}") from error
    if len({vector.shape for vector in vectors}) != 1:
        raise CheckpointError(f"{path} must hold vectors of one length under the perturbation names")
    return _from_matrix(names, np.stack(vectors), path)


def _read_parquet(path: Path) -> Features:
    try:
        with pq.ParquetFile(path) as stored:
            groups = range(stored.metadata.num_row_groups)
            if sum(stored.metadata.row_group(group).total_byte_size for group in groups) > MAX_FEATURE_BYTES:
                raise CheckpointError(f"{path} would unpack to more than {MAX_FEATURE_BYTES:,} bytes; refused")
            table = stored.read()
    except (pa.ArrowException, OSError) as error:
        raise CheckpointError(f"{path} is not a readable Parquet file: {error}") from error
    text = [field.name for field in table.schema if _is_text(field.type)]
    rest = [field for field in table.schema if field.name not in text]
    if len(text) != 1 or not rest:
        raise CheckpointError(
            f"{path} must have one text column with the perturbation names and the features beside it; it has "
            f"{counted(len(text), 'text column')} ({', '.join(text[:5])}) and {counted(len(rest), 'other')}"
        )
    names = [str(name) for name in table[text[0]].to_pylist()]
    try:
        if len(rest) == 1 and not _is_number(rest[0].type):
            matrix = np.array(table[rest[0].name].to_pylist(), dtype=np.float32)
        else:
            matrix = np.stack([table[field.name].to_numpy() for field in rest], axis=1).astype(np.float32)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: the features are not numbers of one length per name ({error})") from error
    return _from_matrix(names, matrix, path)


def _read_csv(path: Path) -> Features:
    try:
        frame = pd.read_csv(path, index_col=0, converters={0: str}, na_filter=False, encoding="utf-8-sig")
        matrix = frame.to_numpy(dtype=np.float32)
        # pandas makes numbers of an index whose labels all look like some, whatever the converter gave
        with path.open(encoding="utf-8-sig", newline="") as handle:
            _, *names = [row[0] for row in csv.reader(handle) if row]
    except (OSError, ValueError, csv.Error, pd.errors.ParserError, IndexError) as error:
        raise CheckpointError(f"{path} is not a table of a name and numbers in each line: {error}") from error
    if len(names) != len(matrix):
        raise CheckpointError(
            f"{path} is not a table of a name and numbers in each line: "
            f"{counted(len(names), 'name')}, {counted(len(matrix), 'row')}"
        )
    return _from_matrix(names, matrix, path)


_READERS: dict[str, Callable[[Path], Features]] = {
    ".pt": _read_torch,
    ".torch": _read_torch,
    ".pkl": _read_torch,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _from_matrix(names: Sequence[str], matrix: np.ndarray, path: Path) -> Features:
    if not names:
        raise CheckpointError(f"{path} holds no features")
    if matrix.ndim != 2 or len(matrix) != len(names) or not matrix.shape[1] or matrix.dtype.kind not in "fiu":
        raise CheckpointError(
            f"{path}: expected a matrix of numbers [names, length] for {counted(len(names), 'name')}, got {matrix.dtype} of shape "
            f"{list(matrix.shape)}"
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise CheckpointError(f"{path} has more than one vector for: {', '.join(map(repr, repeated[:10]))}")
    return dict(zip(names, np.ascontiguousarray(matrix, dtype=np.float32), strict=True))
