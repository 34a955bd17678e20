"""Perturbation features: one-hot, or vectors by name; a control without a vector is the zero vector.

Files of vectors are read by `checkpoints.feature_file`, which may need torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steval.errors import DataError, nearest_names
from steval.wording import counted, listed


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
        problems.append(f"{name!r} has no vector" + (f"; nearest: {listed(near)}" if near else ""))
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or any(len(shape) != 1 or not shape[0] for shape in shapes):
        problems.append(f"vectors must be one-dimensional and of one length, got shapes {sorted(shapes)}")
    problems += [
        f"the vector of {name!r} is not finite" for name, array in arrays.items() if not np.isfinite(array).all()
    ]
    if problems or not arrays:
        raise DataError(
            f"{source} does not fit the perturbations of the data ({counted(len(names), 'name')})", problems
        )
    (dimension,) = shapes.pop()
    zero = np.zeros(dimension, dtype=np.float32)
    return np.stack([arrays.get(name, zero) for name in names])
