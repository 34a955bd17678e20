"""Answers as bytes: JSON summaries, Arrow streams, zstd.

JSON numbers are short decimals that read back to the same float32. An Arrow stream ends with an empty batch whose
metadata holds the number of rows, so that a reader can tell a whole answer from one that was cut off.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

from steval.errors import NotFiniteError
from steval.service.forms import ARROW_KEY, END_KEY

ZSTD_LEVEL = 1


def json_numbers(values: np.ndarray) -> bytes:
    """A JSON list of float32 `[n]`, each a short decimal that reads back to it; not-finite values are a `NotFiniteError`."""
    _require_finite(values)
    import polars as pl  # here: clients that write no JSON import this module too

    row = pl.Series("", np.ascontiguousarray(values, dtype=np.float32).reshape(1, -1))
    text = row.to_frame().write_json()  # a third of the time of Arrow's text and a join, and the GIL is free meanwhile
    return text.removeprefix('[{"":').removesuffix("}]").encode()


def json_object(fields: dict[str, Any], raw: dict[str, bytes]) -> bytes:
    """A JSON object of `fields` and of values that are JSON already."""
    parts = [_text(name) + b":" + _text(value) for name, value in fields.items()]
    parts += [_text(name) + b":" + value for name, value in raw.items()]
    return b"{" + b",".join(parts) + b"}"


def json_array(items: Sequence[bytes]) -> bytes:
    """A JSON list of values that are JSON already."""
    return b"[" + b",".join(items) + b"]"


def _require_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise NotFiniteError(
            "the model predicts values that are not finite for this request: what was asked, or the features of its perturbations, "
            "lead its network out of range"
        )


def _text(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


class ArrowStream:
    """Arrow IPC stream with a row for each cell (or mean profile), made batch by batch.

    Columns: `perturbation`, `cell_type`, `control_cell` (where rows are cells) and `expression`, a fixed-size list of
    float32 in the order of the genes in the schema's metadata under `steval`.
    """

    def __init__(self, num_genes: int, metadata: dict[str, Any], *, with_control_cell: bool):
        fields = [pa.field("perturbation", pa.string()), pa.field("cell_type", pa.string())]
        if with_control_cell:
            fields.append(pa.field("control_cell", pa.string()))
        fields.append(pa.field("expression", pa.list_(pa.float32(), num_genes)))
        self._schema = pa.schema(fields, metadata={ARROW_KEY: _text(metadata)})
        self._num_genes = num_genes
        self._sink = _Pieces()
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._sink, mode="w"), self._schema)
        self.num_rows = 0

    def batch(self, labels: Mapping[str, Sequence[str]], expression: np.ndarray) -> bytes:
        """The bytes of one more batch: `expression [n, num_genes]`, `labels` with n values a column."""
        _require_finite(expression)
        flat = pa.array(np.ascontiguousarray(expression, dtype=np.float32).ravel())
        columns: list[pa.Array] = [pa.array(list(labels[field.name]), pa.string()) for field in list(self._schema)[:-1]]
        columns.append(pa.FixedSizeListArray.from_arrays(flat, self._num_genes))
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self.num_rows += len(expression)
        return self._sink.take()

    def end(self) -> bytes:
        """The end marker: an empty batch that says how many rows came before."""
        empty = self._schema.empty_table().to_batches() or [pa.RecordBatch.from_pylist([], schema=self._schema)]
        self._writer.write_batch(empty[0], custom_metadata={END_KEY: str(self.num_rows).encode()})
        self._writer.close()
        return self._sink.take()


class _Pieces:
    """A file to write to whose content is taken piece by piece."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is open."""


async def compressed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """`pieces` as one zstd frame; every piece can be read as soon as it has come."""
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()
    async for piece in pieces:
        yield compressor.compress(piece) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    yield compressor.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH)


def compress(data: bytes) -> bytes:
    """`data` as one zstd frame."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)
