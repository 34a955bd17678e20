"""Answers as bytes: exact numbers, negotiation, and streams that tell whether they are whole."""

import json

import numpy as np
import pytest
import zstandard

from steval.errors import NotFiniteError, ServiceError
from steval.service.forms import ARROW, H5AD, choose_format, wants_zstd
from steval.service.http.encoding import ArrowStream, compress, json_numbers, json_object
from steval.service.received import whole_table


def test_json_numbers_read_back_to_the_same_float32():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.lognormal(0, 8, 5000), [0, 1e-30, 3e38, 1e-7, 0.1, 16777216]]).astype(np.float32)
    read = np.array(json.loads(json_numbers(values)), dtype=np.float32)
    assert (read == values).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(NotFiniteError, match="not finite") as caught:
        json_numbers(np.array([1.0, value], dtype=np.float32))
    assert (caught.value.http_status, caught.value.code) == (422, "not_finite")
    with pytest.raises(NotFiniteError, match="not finite"):
        stream(2).batch({"perturbation": ["a"], "cell_type": ["b"]}, np.array([[1.0, value]]))


def test_raw_parts_make_one_json_object():
    whole = json.loads(json_object({"a": "ü\n"}, {"b": b"[1,2]"}))
    assert whole == {"a": "ü\n", "b": [1, 2]}


@pytest.mark.parametrize(
    ("accept", "output", "expected"),
    [
        ("", "mean", "json"),
        ("*/*", "mean", "json"),
        ("*/*", "cells", "h5ad"),
        (ARROW, "cells", "arrow"),
        (H5AD, "mean", "h5ad"),
        (f"application/json;q=0.5, {ARROW}", "mean", "arrow"),
        ("text/html, application/*;q=0.8", "cells", "h5ad"),
        ("application/json, */*;q=0.1", "cells", "h5ad"),
    ],
)
def test_accept_decides(accept, output, expected):
    assert choose_format(accept, output) == expected


@pytest.mark.parametrize(
    ("accept", "output"),
    [("application/json", "cells"), ("text/html", "mean"), (f"{ARROW};q=0", "mean"), (";;,q", "mean")],
)
def test_what_cannot_be_made_is_406(accept, output):
    with pytest.raises(ServiceError) as caught:
        choose_format(accept, output)
    assert caught.value.http_status == 406


def test_zstd_is_used_where_it_is_asked_for():
    assert wants_zstd("gzip, zstd;q=0.5")
    assert not wants_zstd("gzip, zstd;q=0")
    assert not wants_zstd("")
    assert zstandard.ZstdDecompressor().decompress(compress(b"abc" * 100)) == b"abc" * 100


def stream(num_genes: int) -> ArrowStream:
    return ArrowStream(num_genes, {"genes": ["g"] * num_genes}, with_control_cell=False)


def test_a_whole_arrow_stream_is_told_from_one_that_was_cut_off():
    made = stream(3)
    cells = np.arange(12, dtype=np.float32).reshape(4, 3)
    pieces = [made.batch({"perturbation": ["a", "b"], "cell_type": ["H1"] * 2}, cells[i : i + 2]) for i in (0, 2)]
    end = made.end()
    table = whole_table(b"".join([*pieces, end]))
    assert np.array_equal(np.array(table["expression"].to_pylist(), dtype=np.float32), cells)
    for cut in (pieces[0], b"".join(pieces), pieces[0] + end, pieces[0][:-10]):
        with pytest.raises(ServiceError, match="cut off"):
            whole_table(cut)
