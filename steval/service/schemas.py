"""Request bodies and answers as pydantic models; `/openapi.json` is made from them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints

from steval.data.effects.decoding import DecodingChoice
from steval.evaluator.metrics.profiles import ProfileName
from steval.evaluator.settings import ScoreChoice
from steval.predictor.requests import DEFAULT_CELLS, LARGEST_SEED, MOST_CELLS, PredictionRequest, require_unique
from steval.service.forms import LONGEST_NAME
from steval.settings import Settings

MOST_NAMES = 10_000
Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME, strict=True)]


class PredictItem(Settings):
    """A perturbation with a cell number, cell type or batch of its own; a line of a request table."""

    perturbation: Name
    num_cells: Annotated[int, Field(ge=1, le=MOST_CELLS, strict=True)] | None = None
    """None: the request's `cells`."""
    cell_type: Name | None = None
    """None: the request's."""
    batch: Name | None = None
    """None: the request's."""
    median_umi: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] | None = None
    """The challenge's `median_umi_per_cell`: kept in the record alone, as for every prediction that is not of counts."""


def _named(value: Any) -> Any:
    return {"perturbation": value} if isinstance(value, str) else value


Asked = Annotated[PredictItem, BeforeValidator(_named, json_schema_input_type=Name | PredictItem)]
"""A name stands for an item that leaves the rest to the request."""


class PredictBody(Settings):
    """What `POST /predict` takes; the same as the options of `steval predict`."""

    model_config = ConfigDict(json_schema_extra={"example": {"perturbations": ["STAT1"], "cells": 100, "seed": 0}})

    perturbations: list[Asked] = Field(min_length=1, max_length=MOST_NAMES)
    """Names of the checkpoint's vocabulary (see `GET /perturbations`), or objects with more than the name; each once for a cell
    type and batch."""
    cells: int = Field(default=DEFAULT_CELLS, ge=1, le=MOST_CELLS, strict=True)
    """Cells to predict for each perturbation."""
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, strict=True)
    """Decides which control cells the prediction starts from; the same seed gives the same answer."""
    cell_type: Name | None = None
    """Needed where the controls hold several cell types (see `GET /model`)."""
    batch: Name | None = None
    """Start from control cells of this batch alone."""
    output: Literal["mean", "cells"] = "mean"
    """`mean`: a profile for each perturbation; `cells`: every predicted cell (as Arrow or h5ad)."""
    model: Name | None = None
    """Name or digest of a model (see `GET /models`); none: the default."""
    adapter: Name | None = None
    """Name or digest of an adapter (see `GET /models`) to the model; none: the model as it is."""
    decoding: DecodingChoice = "checkpoint"
    """How predictions become cells: as the checkpoint says, as the network puts them out, or carried by control cells."""

    @property
    def num_cells(self) -> int:
        """Cells to predict in all."""
        return sum(one.num_cells or self.cells for one in self.perturbations)

    def items(self) -> list[PredictItem]:
        """What is asked for, with the request's cell number and cell type where an entry has none."""
        return [
            one.model_copy(
                update={"num_cells": one.num_cells or self.cells, "cell_type": one.cell_type or self.cell_type}
            )
            for one in self.perturbations
        ]

    def to_request(self) -> PredictionRequest:
        """The predictor's request; a name given twice is a `ConfigError`."""
        items = [one.as_dict() for one in self.items()]
        values = {
            "items": items,
            "seed": self.seed,
            "batch": self.batch,
            "output": self.output,
            "decoding": self.decoding,
        }
        request = PredictionRequest.parse(values, source="the request")
        require_unique(request.items, "the request")
        return request


class PredictionsBody(PredictBody):
    """What `POST /predictions` takes: as `POST /predict`, with more cells, and with all perturbations where none is named."""

    model_config = ConfigDict(json_schema_extra={"example": {"cells": 100, "seed": 0, "output": "cells"}})

    perturbations: list[Asked] = Field(default_factory=list, max_length=MOST_NAMES)
    """As in `POST /predict`; empty: every perturbation that the model knows."""
    output: Literal["mean", "cells"] = "cells"
    form: Literal["h5ad", "arrow"] = "h5ad"
    """The file of the result: what `steval predict` writes, or an Arrow stream as `POST /predict` makes it."""

    def for_all(self, names: Sequence[str]) -> "PredictionsBody":
        """The same with `names` where none is named."""
        every = [PredictItem(perturbation=name) for name in names]
        return self if self.perturbations else self.model_copy(update={"perturbations": every})


class ExpectedError(Settings):
    """How wrong a predicted mean is expected to be, from held-out pairs; lognorm."""

    mae: float
    """Mean absolute error over genes."""
    low: float
    """Lower end of its 90 % interval."""
    high: float


class PredictedProfile(Settings):
    """One predicted perturbation."""

    perturbation: str
    cell_type: str
    batch: str | None
    """The batch that was asked for."""
    num_cells: int
    mean: list[float]
    """Mean over the predicted cells, float32, in the order of `genes`, on `scale`."""
    expected_error: ExpectedError | None
    """None where the checkpoint was not calibrated for it, or another decoding was asked for."""


class ControlProfile(Settings):
    """The measured control cells of a cell type."""

    cell_type: str
    num_cells: int
    mean: list[float]


class PredictAnswer(Settings):
    """JSON answer of `POST /predict`."""

    checkpoint: str
    """sha256 over the checkpoint's metadata and weights."""
    scale: str
    target_sum: float | None
    seed: int
    cells: int | None
    """Cells of each perturbation; none where their numbers differ."""
    genes: list[str]
    controls: list[ControlProfile]
    """Empty where the controls' expression is not known."""
    predictions: list[PredictedProfile]


class PerturbationItem(Settings):
    """One name of the vocabulary."""

    name: str
    trained: bool
    """False where only its features are known."""


class PerturbationList(Settings):
    """Answer of `GET /perturbations`."""

    total: int
    """Names in the vocabulary, the control left out."""
    matching: int
    """Names that match the search."""
    perturbations: list[PerturbationItem]
    nearest: list[str] = Field(default_factory=list)
    """Where nothing matches: the names most like the search."""


class ModelItem(Settings):
    """One model of the service."""

    name: str
    checkpoint: str | None
    """sha256 over the checkpoint's metadata and weights; 12 letters of it are enough to name the model."""
    state: Literal["loaded", "loading", "available", "broken"]
    """`available`: it is loaded when it is first asked for."""
    default: bool
    """Whether requests that name no model mean this one."""
    adapter: bool
    """Whether it is an adapter, which shares the memory of its base."""
    base: str | None = None
    """Of an adapter: the name of the model that it belongs to; none: that is not there."""
    problem: str | None = None
    """Why the file as it is now does not answer; where the state is `loaded`, an older one does."""
    num_genes: int | None = None
    num_perturbations: int | None = None
    created: str | None = None


class ModelList(Settings):
    """Answer of `GET /models`."""

    models: list[ModelItem]


class ModelCard(Settings):
    """Answer of `GET /model`."""

    name: str
    checkpoint: str
    base: str | None
    """Of an adapter: the digest of its base; none: the model is a checkpoint of its own."""
    made_by: str
    created: str
    steval_version: str
    scale: str
    target_sum: float | None
    num_genes: int
    num_perturbations: int
    control: str
    cell_types: list[str]
    batches: list[str]
    num_controls: int
    set_size: int
    attention: str
    parameters: int
    dtype: str
    device: str
    architecture: dict[str, Any]
    training: dict[str, Any] | None
    has_evaluation_data: bool
    licence: str | None
    evidence: str
    """How good its predictions are, as far as it is on record."""
    notes: list[str]
    limits: dict[str, int]


class ScoreBody(ScoreChoice):
    """What `POST /score` takes: as JSON with paths on the server, or as form fields beside uploaded files."""

    predictions: str | None = Field(default=None, max_length=4096)
    """Path of an h5ad on the server, inside one of its data directories; none where the file is uploaded."""
    real: str | None = Field(default=None, max_length=4096)
    """Path of the real cells, likewise; none: uploaded, or the evaluation data that the checkpoint records."""
    train: str | None = Field(default=None, max_length=4096)
    """Path of the training cells for baselines, likewise; none: uploaded, or those that the checkpoint records."""
    model: Name | None = None
    """Name or digest of the model whose recorded data and columns are used; none: the default."""
    adapter: Name | None = None
    """Name or digest of an adapter to the model, whose recorded data and columns are used then."""
    profile: ProfileName = "vcc"
    perturbation_column: Name | None = None
    control: Name | None = None
    cell_type_column: Name | None = None
    drop_unlabelled: bool = False
    """Leave out cells without a label in a column that is used, in place of refusing them."""
    scale: Literal["counts", "lognorm"] | None = None
    seed: int = Field(default=0, ge=0, le=2**32 - 1)


JobState = Literal["queued", "running", "done", "failed", "cancelled"]


class Job(Settings):
    """Status of a job in the background."""

    id: str
    state: JobState
    created: str
    started: str | None = None
    finished: str | None = None
    trace_id: str | None = None
    """The trace that the submission belonged to, as log lines name it."""
    expires: str | None = None
    """When a finished job will be removed."""
    error: dict[str, Any] | None = None
    """Where it failed: code, message, problems."""
    files: list[str] = Field(default_factory=list)
    """Where it is done: the names of its files."""


class ScoreJob(Job):
    """Status of a scoring job; files are for `GET /score/{id}/files/{name}`."""


class PredictionJob(Job):
    """Status of a prediction in the background."""

    model: str = ""
    """Name of the model."""
    cells: int = 0
    """Cells that were asked for."""
    cells_done: int = 0
    """Cells that are computed: while it runs about so many, all when it is done, 0 in any other state."""
    form: Literal["h5ad", "arrow"] = "h5ad"


class ScoreJobs(Settings):
    """Answer of `GET /score`: the key's own jobs, the newest first."""

    jobs: list[ScoreJob]


class PredictionJobs(Settings):
    """Answer of `GET /predictions`: the key's own, the newest first."""

    jobs: list[PredictionJob]


class BatchItem(Settings):
    """A batch that `steval batch` ran in one of the service's data directories."""

    id: str
    name: str
    """Of its directory."""
    changed: str
    """When its leaderboard was written."""


class BatchList(Settings):
    """Answer of `GET /batches`, the newest first."""

    batches: list[BatchItem]


class BatchRow(Settings):
    """A line of a leaderboard; the columns of its `leaderboard.csv` that have these names."""

    rank: int | None = None
    checkpoint: str
    data: str
    request: str
    state: str
    overall: float | None = None
    overall_low: float | None = None
    overall_high: float | None = None
    above_simple: float | None = None
    """Leaderboard score less that of the best simple model."""
    above_simple_low: float | None = None
    above_simple_high: float | None = None
    flags: str | None = None
    error: str | None = None
    job: str | None = None
    """For `GET /batches/{id}/{job}/report`, where the job was scored."""


class BatchBoard(Settings):
    """Answer of `GET /batches/{id}`: the leaderboard, best first."""

    id: str
    name: str
    rows: list[BatchRow]


class ErrorDetail(Settings):
    """What broke."""

    code: str
    message: str
    problems: list[str] = Field(default_factory=list)
    nearest: dict[str, list[str]] | None = None
    """For unknown perturbations: the nearest known names of each."""
    request_id: str | None = None


class ErrorAnswer(Settings):
    """Every answer that is no success."""

    error: ErrorDetail
