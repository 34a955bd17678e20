"""A client of the service, for Python and for `steval predict --url`.

    with ServiceClient("http://127.0.0.1:3000") as service:
        means = service.predict_means(["STAT1"], cells=200, seed=1)

Errors of the service come back as steval's own: `ConfigError` (400, 401, 403, 406), `DataError` (404, 413, 415, 422) with the
service's words, `ServiceError` for the rest. Where the service is busy, requests are repeated as `Retry-After` says.

This module is also the distribution `steval-client` (`client/` of the repository), for people without torch: it imports httpx
and nothing else that is not Python's own; what gives arrays imports numpy, and pyarrow for single cells, when it is called.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx

from steval.data.files import atomic_path, require_file
from steval.errors import ConfigError, DataError, ServiceError, StevalError
from steval.service.forms import ARROW, H5AD, JSON, MOST_LISTED
from steval.service.proxies import choose_proxy, without_secrets
from steval.service.received import (
    PredictedCells,
    PredictedMeans,
    cells_of,
    means_of,
    require_for_cells,
    require_for_means,
)
from steval.wording import whole_number

if TYPE_CHECKING:
    from steval.predictor.requests import PredictionVocabulary

DEFAULT_TIMEOUT = 600.0
PATIENCE = 60.0
"""Seconds that a busy service is asked again."""
POLL_SECONDS = 1.0
Asked = Sequence[str | Mapping[str, Any]]
"""Names, or mappings with the fields of `schemas.PredictItem`."""
_CONFIG_STATUS = frozenset({400, 401, 403, 406})
_DATA_STATUS = frozenset({404, 413, 415, 422})


class Connection:
    """How a service is reached: its address, the key, and the proxy that the environment names."""

    def __init__(self, url: str, api_key: str | None = None):
        key = usable_key(api_key)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.shown = without_secrets(url)
        """The address for messages."""
        self.address = _address(url, self.shown)
        self.proxy = choose_proxy(self.address.scheme, self.address.host, self.address.port, os.environ)

    def options(self, timeout: float) -> dict[str, Any]:
        """Of an httpx client, synchronous or not."""
        # proxies are chosen here: httpx, left to read the environment, ends over an entry of NO_PROXY or a SOCKS proxy
        return {
            "base_url": self.address,
            "headers": self._headers,
            "timeout": timeout,
            "proxy": self.proxy.url if self.proxy is not None and self.proxy.used else None,
            "trust_env": False,
            "verify": httpx.create_ssl_context(),
        }


class ServiceClient:
    """Calls a running service at `url`; a context manager."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        model: str | None = None,
        adapter: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        patience: float = PATIENCE,
    ):
        """`model`, `adapter`: name or digest of the model that all calls mean, where the service has several, and of an adapter to
        it."""
        way = Connection(url, api_key)
        self.url, self._proxy = way.shown, way.proxy
        try:
            self._http = httpx.Client(**way.options(timeout))
        except ImportError as error:
            assert self._proxy is not None
            raise ConfigError(
                f"{self._proxy.shown} is a SOCKS proxy, which needs one more package: pip install 'httpx[socks]'; or put "
                f"{way.address.host} into NO_PROXY"
            ) from error
        self._patience = patience
        self._model = {name: value for name, value in (("model", model), ("adapter", adapter)) if value is not None}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def model(self) -> dict[str, Any]:
        """The model card."""
        return self._json("GET", "/model", ("name",), params=self._model)

    def models(self) -> list[dict[str, Any]]:
        """The models of the service, see `schemas.ModelItem`."""
        return self._json("GET", "/models", ("models",))["models"]

    def perturbations(self, search: str = "", limit: int = MOST_LISTED, offset: int = 0) -> dict[str, Any]:
        """Names that match, see `GET /perturbations`."""
        asked = {"search": search, "limit": limit, "offset": offset, **self._model}
        return self._json("GET", "/perturbations", ("total", "perturbations"), params=asked)

    def vocabulary(self) -> "PredictionVocabulary":
        """What can be asked for: the whole vocabulary, page by page, with the control and its cell types.

        It is the command line's own, so steval is needed; `perturbations` lists names without it.
        """
        from steval.predictor.requests import PredictionVocabulary

        fields = ("control", "cell_types", "num_perturbations")
        card = self._json("GET", "/model", fields, params=self._model)
        names: list[str] = []
        while len(names) < card["num_perturbations"]:
            page = self.perturbations(limit=MOST_LISTED, offset=len(names))["perturbations"]
            if not page:
                break
            names += [entry["name"] for entry in page]
        return PredictionVocabulary([*names, card["control"]], card["control"], card["cell_types"])

    def predict(
        self,
        perturbations: Asked,
        cells: int = 100,
        *,
        seed: int = 0,
        cell_type: str | None = None,
        batch: str | None = None,
    ) -> dict[str, Any]:
        """Mean profiles as the service's JSON says them: `genes`, `predictions` (each with `perturbation` and `mean`, a list of
        numbers in the order of the genes), `controls`, and the facts of `PredictedMeans`."""
        body = _body(perturbations, cells, seed, cell_type, batch, "mean") | self._model
        return self._json("POST", "/predict", ("predictions", "genes"), json=body, headers={"Accept": JSON})

    def predict_means(
        self,
        perturbations: Asked,
        cells: int = 100,
        *,
        seed: int = 0,
        cell_type: str | None = None,
        batch: str | None = None,
    ) -> PredictedMeans:
        """A mean profile for each perturbation; the same as `steval predict --output mean` with these options."""
        require_for_means()
        return means_of(self.predict(perturbations, cells, seed=seed, cell_type=cell_type, batch=batch))

    def predict_cells(
        self,
        perturbations: Asked,
        cells: int = 100,
        *,
        seed: int = 0,
        cell_type: str | None = None,
        batch: str | None = None,
    ) -> PredictedCells:
        """Every predicted cell; an answer that was cut off is a `ServiceError`."""
        require_for_cells()
        body = _body(perturbations, cells, seed, cell_type, batch, "cells") | self._model
        return cells_of(self._call("POST", "/predict", json=body, headers={"Accept": ARROW}).content)

    def save_predictions(
        self,
        path: Path,
        perturbations: Asked,
        cells: int = 100,
        *,
        seed: int = 0,
        cell_type: str | None = None,
        batch: str | None = None,
        output: str = "cells",
        decoding: str = "checkpoint",
    ) -> Path:
        """The h5ad that `steval predict` would write with these options; nothing is under `path` until it is whole."""
        body = _body(perturbations, cells, seed, cell_type, batch, output) | self._model
        if decoding != "checkpoint":
            body["decoding"] = decoding
        content = self._call("POST", "/predict", json=body, headers={"Accept": H5AD}).content
        with atomic_path(path) as partial:
            partial.write_bytes(content)
        return Path(path)

    def submit_prediction(self, perturbations: Asked = (), cells: int = 100, **options: Any) -> str:
        """Submit a prediction in the background and return its id; no names mean all. `options` are the fields of
        `schemas.PredictionsBody`."""
        body = {"perturbations": list(perturbations), "cells": cells, **self._model, **options}
        return self._call("POST", "/predictions", json=body).json()["id"]

    def prediction_job(self, job_id: str) -> dict[str, Any]:
        """State and progress of a prediction in the background, see `schemas.PredictionJob`."""
        return self._call("GET", f"/predictions/{job_id}").json()

    def save_prediction_job(self, job_id: str, path: Path, timeout: float = 3600.0) -> Path:
        """Wait for a prediction in the background and write its file; one that failed raises what it failed with."""
        self._wait_for(lambda: self.prediction_job(job_id), f"the prediction {job_id}", timeout)
        with self._http.stream("GET", f"/predictions/{job_id}/result") as response:
            if response.is_error:
                response.read()
                raise _error(response)
            with atomic_path(path) as partial, partial.open("wb") as handle:
                for piece in response.iter_bytes():
                    handle.write(piece)
        return Path(path)

    def remove_prediction(self, job_id: str) -> None:
        """Cancel a prediction in the background, or remove one that has ended."""
        self._call("DELETE", f"/predictions/{job_id}")

    def submit_score(
        self,
        predictions: Path | str,
        real: Path | str | None = None,
        train: Path | str | None = None,
        *,
        on_server: bool = False,
        **options: Any,
    ) -> str:
        """Submit a scoring job and return its id. Files are uploaded, or with `on_server` named in the service's data
        directories; `options` are the fields of `schemas.ScoreBody`."""
        options = self._model | options
        given = {"predictions": predictions, "real": real, "train": train}
        files = {role: Path(path) for role, path in given.items() if path is not None}
        if on_server:
            body = {role: str(path) for role, path in files.items()} | options
            return self._call("POST", "/score", json=body).json()["id"]
        with ExitStack() as stack:
            handles = {
                role: (f"{role}.h5ad", stack.enter_context(require_file(path).open("rb")), H5AD)
                for role, path in files.items()
            }
            fields = {name: _form_value(value) for name, value in options.items() if value is not None}
            return self._send("POST", "/score", files=handles, data=fields).json()["id"]

    def score_job(self, job_id: str) -> dict[str, Any]:
        """Status of a scoring job, see `schemas.ScoreJob`."""
        return self._call("GET", f"/score/{job_id}").json()

    def wait_for_score(self, job_id: str, timeout: float = 3600.0) -> dict[str, Any]:
        """The result (`score.json`) of a job when it is done; a job that failed raises what it failed with."""
        self._wait_for(lambda: self.score_job(job_id), f"the scoring job {job_id}", timeout)
        return self._call("GET", f"/score/{job_id}/result").json()

    def save_score_file(self, job_id: str, name: str, path: Path) -> Path:
        """Download one file of the score directory."""
        content = self._call("GET", f"/score/{job_id}/files/{name}").content
        with atomic_path(path) as partial:
            partial.write_bytes(content)
        return Path(path)

    def remove_score(self, job_id: str) -> None:
        """Cancel a job, or remove one that has ended."""
        self._call("DELETE", f"/score/{job_id}")

    def _wait_for(self, ask: Callable[[], dict[str, Any]], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while (job := ask())["state"] in ("queued", "running"):
            if time.monotonic() > deadline:
                raise ServiceError(f"{what} is still {job['state']} after {timeout:g} s", status=504, code="timeout")
            time.sleep(POLL_SECONDS)
        if job["state"] == "failed":
            raise DataError(job["error"]["message"], job["error"].get("problems", ()))

    def _json(self, method: str, path: str, fields: Sequence[str], **options: Any) -> dict[str, Any]:
        """A JSON answer that has `fields`; anything else comes from another server than ours."""
        response = self._call(method, path, **options)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or any(field not in answer for field in fields):
            raise ConfigError(f"what answers at {self.url} is not a steval service: {path} gives no JSON of ours")
        return answer

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """As `_send`, again while the service is busy."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return self._send(method, path, **options)
            except ServiceError as error:
                wait = error.retry_after
                if error.http_status not in (429, 503) or wait is None or time.monotonic() + wait > deadline:
                    raise
                time.sleep(wait)

    def _way(self) -> str:
        """For messages: through what the request went, where the environment names a proxy."""
        if self._proxy is None:
            return ""
        if self._proxy.used:
            return f" through the proxy {self._proxy.shown} (NO_PROXY makes exceptions)"
        return f", asked directly, not through the proxy {self._proxy.shown}"

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServiceError(
                f"no answer from the service at {self.url}{self._way()}: {error or type(error).__name__}",
                status=502,
                code="unreachable",
            ) from error
        if response.is_error:
            raise _error(response)
        return response


def usable_key(text: str | None) -> str | None:
    """An API key without the white space around it (files end with a line break); a `ConfigError` where no key looks so.

    No message of ours ever shows a key.
    """
    key = (text or "").strip()
    if not key:
        return None
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(
            "the API key holds characters that no key has: spaces or line breaks inside, or others than ASCII. It is read from "
            "--api-key or STEVAL_API_KEY, and is what steval serve --new-key printed, such as stv_…"
        )
    return key


def _address(url: str, shown: str) -> httpx.URL:
    wrong = ConfigError(f"{shown!r} is not the address of a service, such as http://127.0.0.1:3000")
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise wrong from error
    if address.scheme not in ("http", "https") or not address.host:
        raise wrong
    return address


def _body(
    perturbations: Asked, cells: int, seed: int, cell_type: str | None, batch: str | None, output: str
) -> dict[str, Any]:
    values: dict[str, Any] = {"perturbations": list(perturbations), "cells": cells, "seed": seed, "output": output}
    return values | {name: value for name, value in (("cell_type", cell_type), ("batch", batch)) if value is not None}


def _form_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _error(response: httpx.Response) -> StevalError:
    try:
        detail: Mapping[str, Any] = response.json()["error"]
        message, problems, code = str(detail["message"]), list(detail.get("problems", ())), str(detail["code"])
    except (ValueError, KeyError, TypeError):
        message, problems, code = f"the service answered {response.status_code}", [], "error"
    if response.status_code in _CONFIG_STATUS:
        return ConfigError(message, problems)
    if response.status_code in _DATA_STATUS:
        return DataError(message, problems)
    after = response.headers.get("retry-after", "")
    return ServiceError(
        "\n".join([message, *problems]),
        status=response.status_code,
        code=code,
        retry_after=whole_number(after),
    )
