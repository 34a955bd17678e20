"""Settings from the environment and back."""

import pytest

from steval.errors import ConfigError
from steval.service.settings import ServiceSettings


def test_settings_survive_the_environment(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    settings = ServiceSettings.parse(
        {
            "checkpoint": tmp_path / "c.safetensors",
            "data_dir": [tmp_path / "a", tmp_path / "b"],
            "cors_origins": ["https://a.example", "https://b.example"],
            "no_auth": True,
            "max_cells": 7,
            "linger_ms": 0.5,
        }
    )
    assert ServiceSettings.from_environment(settings.to_environment()) == settings


def test_bad_values_name_their_place(tmp_path):
    variables = {"STEVAL_MAX_CELLS": "many", "STEVAL_WORKERS": "0", "STEVAL_DTYPE": "float8"}
    with pytest.raises(ConfigError) as caught:
        ServiceSettings.from_environment(variables)
    assert {problem.split(":")[0] for problem in caught.value.problems} == {"max_cells", "workers", "dtype"}


def test_what_is_not_there_is_listed(tmp_path):
    variables = {"STEVAL_DATA_DIR": str(tmp_path / "gone"), "STEVAL_API_KEY_FILE": str(tmp_path / "keys")}
    with pytest.raises(ConfigError, match="gone") as caught:
        ServiceSettings.from_environment(variables)
    assert len(caught.value.problems) == 2


def test_jobs_do_not_lie_where_every_key_may_name_files(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    apart = {"STEVAL_DATA_DIR": str(tmp_path / "data"), "STEVAL_JOB_DIR": str(tmp_path / "jobs")}
    assert ServiceSettings.from_environment(apart).job_dir == tmp_path / "jobs"
    for inside in ("data", "data/jobs", "link/jobs"):
        with pytest.raises(ConfigError, match="every key may name"):
            ServiceSettings.from_environment(apart | {"STEVAL_JOB_DIR": str(tmp_path / inside)})


def test_other_variables_are_left_alone():
    assert ServiceSettings.from_environment({"STEVAL_UNKNOWN": "1", "PATH": "/bin"}) == ServiceSettings()
