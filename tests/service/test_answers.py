"""Messages over HTTP: the words of a request, not of the command line; what a full disk is allowed to say."""

import errno

import pytest

from steval.errors import ConfigError, DeviceMemoryError, OutputError
from steval.service.http.answers import disk_answer, error_answer, over_http


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "hold 2 cell types (a, b); choose with --cell-type NAME or all",
            "hold 2 cell types (a, b); name one as cell_type",
        ),
        ("name it with --cell-type-col", "name it as cell_type_column"),
        ("the columns are: a (--pert-col)", "the columns are: a (perturbation_column)"),
        ("give the real cells with --real REAL.h5ad", "give the real cells with real"),
        ("settle it with --scale", "settle it with scale"),
        ("--batch-size is another option, and so is --scales", "--batch-size is another option, and so is --scales"),
        ("steval score --metrics mse", "steval score --metrics mse"),
    ],
)
def test_options_are_named_as_fields(said, expected):
    assert over_http(said) == expected


def test_problems_are_worded_so_too():
    answer = error_answer(ConfigError("the controls cannot serve this", ["choose with --cell-type NAME or all"]))
    assert b"--" not in answer.body


def test_memory_that_is_full_is_no_mistake_of_the_client():
    answer = error_answer(DeviceMemoryError("the device ran out of memory. Lower --batch-cells (now 512)"))
    assert answer.status_code == 503
    assert b'"out_of_memory"' in answer.body


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EACCES, 503)])
def test_a_file_that_cannot_be_written_is_told_without_its_path(number, status):
    for error in (OSError(number, "no", "/secret/place"), OutputError("cannot write /secret/place: no")):
        if isinstance(error, OutputError):
            error.__cause__ = OSError(number, "no", "/secret/place")
        told = disk_answer(error)
        assert told.http_status == status
        assert "secret" not in str(told)
