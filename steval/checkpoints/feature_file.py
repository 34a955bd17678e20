"""Perturbation feature files (ESM2 embeddings and the like): `.pt`, `.npz` or `.parquet`, name → vector."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from steval.checkpoints.arc_maps import read_feature_map
from steval.errors import CheckpointError, ConfigError

MAX_FEATURE_BYTES = 16 * 2**30
"""Largest unpacked feature file: 20,000 genes of 5,120 float64 numbers are 0.8 GB."""
MAX_UNPACKING = 1000
"""Largest ratio of unpacked to packed size: more is a zip bomb, not numbers."""
TORCH_SUFFIXES = (".pt", ".torch", ".pkl")


def read_features(path: Path) -> Mapping[str, Tensor]:
    """Name → float32 vector, all of one length, finite.

    `.pt`: a mapping of names to tensors. `.npz`: one array per name, or arrays `names [P]` and `features [P, D]`.
    `.parquet`: one text column with the names, and either one list column or numeric columns in order.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no such perturbation feature file: {path}")
    if path.suffix in TORCH_SUFFIXES:
        features = read_feature_map(path)
    elif path.suffix == ".npz":
        features = _read_npz(path)
    elif path.suffix == ".parquet":
        features = _read_parquet(path)
    else:
        raise ConfigError(f"{path}: perturbation features are read from .pt, .npz or .parquet, not {path.suffix!r}")
    broken = [name for name, vector in features.items() if not torch.isfinite(vector).all()]
    if broken:
        raise CheckpointError(f"{path}: NaN or infinite features of {', '.join(broken[:5])}")
    return features


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
        if declared > min(MAX_FEATURE_BYTES, MAX_UNPACKING * path.stat().st_size):
            raise CheckpointError(f"{path} would unpack to {declared:,} bytes; refused as a zip bomb")
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


def _read_parquet(path: Path) -> dict[str, Tensor]:
    try:
        if sum(_unpacked_sizes(path)) > MAX_FEATURE_BYTES:
            raise CheckpointError(f"{path} would unpack to more than {MAX_FEATURE_BYTES:,} bytes; refused")
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CheckpointError(f"{path} is not a readable Parquet file: {error}") from error
    text = [
        field.name for field in table.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    rest = [field for field in table.schema if field.name not in text]
    if len(text) != 1 or not rest:
        raise CheckpointError(
            f"{path} must have one text column with the perturbation names and the features beside it; it has "
            f"{len(text)} text columns ({', '.join(text[:5])}) and {len(rest)} others"
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


def _unpacked_sizes(path: Path) -> list[int]:
    metadata = pq.read_metadata(path)
    return [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _from_matrix(names: list[str], matrix: np.ndarray, path: Path) -> dict[str, Tensor]:
    if matrix.ndim != 2 or len(matrix) != len(names) or matrix.dtype.kind not in "fiu":
        raise CheckpointError(
            f"{path}: expected a matrix of numbers [names, length] for {len(names)} names, got {matrix.dtype} of shape "
            f"{list(matrix.shape)}"
        )
    if len(set(names)) != len(names):
        raise CheckpointError(f"{path}: a perturbation name occurs more than once")
    rows = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))
    return dict(zip(names, rows, strict=True))
