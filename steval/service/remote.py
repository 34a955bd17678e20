"""`steval predict --url`: the request is made as for a prediction here, and a running service answers it."""

from pathlib import Path

from steval.data.cells.writer import H5AD_SUFFIXES
from steval.data.outputs import require_output
from steval.errors import ConfigError
from steval.predictor.asked import AskedPredictions, build_request
from steval.predictor.requests import PredictionRequest
from steval.service.client import ServiceClient


class RemoteJob(AskedPredictions):
    """What `steval predict --url` can be asked for; checkpoint, control cells and device are the service's."""

    out: Path


def run_remote(job: RemoteJob, service: ServiceClient) -> PredictionRequest:
    """Write what the service predicts to `job.out` and return the request it was asked for.

    Raises what `ServiceClient.save_predictions` raises, and for a bad request what a prediction here would.
    """
    if job.request is not None and job.request.suffix == ".h5ad":
        raise ConfigError(
            f"predictions as in {job.request} start from the control cells of that file, and a service starts from its own; "
            "ask with a table (perturbation,num_cells), or predict from the checkpoint"
        )
    require_output(job.out, {"--request": job.request}, suffixes=H5AD_SUFFIXES)
    request = build_request(job, service.vocabulary())
    items = [item.model_dump(mode="json", exclude_none=True) for item in request.items]
    service.save_predictions(job.out, items, seed=job.seed, batch=job.batch, output=job.output, decoding=job.decoding)
    return request
