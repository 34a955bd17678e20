"""Another service in this process: the application's module once more, with settings of its own."""

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Generator
from pathlib import Path

import steval.service
from support.service_models import served_app, wait_until_ready


@contextlib.contextmanager
def second_service(**variables: str) -> Generator[str, None, None]:
    """Serves with these `STEVAL_` variables (named without the prefix, in small letters) and yields the address."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("STEVAL_")]:
        del os.environ[name]
    os.environ |= {f"STEVAL_{name.upper()}": value for name, value in variables.items()} | {
        "BENTOML_DO_NOT_TRACK": "True"
    }
    try:
        spec = importlib.util.spec_from_file_location(
            "steval.service.another_app", Path(steval.service.__file__).with_name("app.py")
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BentoML's own imports use what its dependencies deprecated
            spec.loader.exec_module(module)
        with served_app(module.StevalService.to_asgi()) as url:
            wait_until_ready(url)
            yield url
    finally:
        os.environ.clear()
        os.environ.update(before)
