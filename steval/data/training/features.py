"""Perturbation features: one-hot, or vectors from a file or mapping; a control without a vector is the zero vector.

Files: `.npz` (a vector under each name, or arrays `names` and `features`), `.csv` and `.parquet` (first column or index:
names). A `.pt` file is a mapping that the caller loads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from steval.data.files import require_file
from steval.errors import ConfigError, DataError, nearest_names

FORMATS = (".npz", ".parquet", ".csv")


def one_hot(num_names: int) -> np.ndarray:
    """float32 `[P, P]`: row p is 1 at p."""
    return np.eye(num_names, dtype=np.float32)


def feature_rows(
    names: Sequence[str], control: str, vectors: Mapping[str, Any], source: str = "the perturbation features"
) -> np.ndarray:
    """Features of `names` in order, float32 `[P, pert_dim]`; a missing control is zero, other missing names are a `DataError`."""
    if not vectors:
        raise DataError(f"{source} holds no vectors")
    arrays = {name: np.asarray(vectors[name], dtype=np.float32) for name in names if name in vectors}
    missing = [name for name in names if name not in arrays and name != control]
    problems = []
    for name in missing:
        near = nearest_names(name, [str(known) for known in vectors])
        problems.append(f"{name!r} has no vector" + (f"; nearest: {', '.join(near)}" if near else ""))
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or any(len(shape) != 1 or not shape[0] for shape in shapes):
        problems.append(f"vectors must be one-dimensional and of one length, got shapes {sorted(shapes)}")
    problems += [
        f"the vector of {name!r} is not finite" for name, array in arrays.items() if not np.isfinite(array).all()
    ]
    if problems or not arrays:
        raise DataError(f"{source} does not fit the perturbations of the data ({len(names)} names)", problems)
    (dimension,) = shapes.pop()
    zero = np.zeros(dimension, dtype=np.float32)
    return np.stack([arrays.get(name, zero) for name in names])


def read_features(path: Path) -> dict[str, np.ndarray]:
    """Name → float32 vector from a `.npz`, `.parquet` or `.csv` file; a damaged or other file is an error."""
    path = require_file(Path(path), "perturbation feature file")
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"{path}: perturbation features are read from {', '.join(FORMATS)} (and .pt by the trainer), got {path.suffix!r}"
        )
    try:
        if path.suffix == ".npz":
            return _read_npz(path)
        frame = pd.read_csv(path, index_col=0) if path.suffix == ".csv" else pd.read_parquet(path)
        if path.suffix == ".parquet" and not _is_text(frame.index):
            frame = frame.set_index(frame.columns[0])
        values = frame.to_numpy(dtype=np.float32)
    except (OSError, ValueError, KeyError, IndexError, BadZipFile) as error:
        raise DataError(f"{path} cannot be read as perturbation features: {error}") from error
    names = [str(name) for name in frame.index]
    _require_unique(names, path)
    return dict(zip(names, values, strict=True))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        if set(archive.files) == {"names", "features"}:
            names = [str(name) for name in archive["names"]]
            _require_unique(names, path)
            return dict(zip(names, archive["features"].astype(np.float32), strict=True))
        return {name: archive[name].astype(np.float32) for name in archive.files}


def _is_text(index: pd.Index) -> bool:
    return bool(pd.api.types.is_object_dtype(index) or pd.api.types.is_string_dtype(index))


def _require_unique(names: Sequence[str], path: Path) -> None:
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if list(names).count(name) > 1})
        raise DataError(f"{path} has more than one vector for: {', '.join(repeated[:10])}")
