"""What `steval load` asks of a service, and the bodies of its requests."""

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator

from steval.errors import ConfigError
from steval.limits import Count
from steval.service.client import ServiceClient
from steval.settings import Settings

MOST_CONCURRENT = 1024
SEEDS = 2**32


class LoadPlan(Settings):
    """So many clients at once, one number after another; each sends its next request when it has its answer."""

    concurrency: tuple[Count, ...] = Field(default=(1, 2, 4, 8, 16, 32), min_length=1)
    """Clients at once, a measurement each."""
    seconds: PositiveFloat = 10.0
    """Of each measurement."""
    warmup: NonNegativeFloat = 2.0
    """Seconds before each, whose requests do not count."""
    perturbations: tuple[str, ...] = ()
    """Names, one a request in turn; none: all that the model knows."""
    cells: Count = 100
    """Of each request."""
    output: Literal["mean", "cells"] = "mean"
    """`mean` as JSON, or `cells` as an Arrow stream."""
    model: str | None = None
    """Name or digest; none: the default."""
    adapter: str | None = None
    """Name or digest of an adapter to it."""
    seed: int = Field(ge=0, lt=SEEDS)
    """Of the first request; each has the next one, so that none is answered from what was computed before."""

    @field_validator("concurrency")
    @classmethod
    def _in_bounds(cls, concurrency: tuple[int, ...]) -> tuple[int, ...]:
        if max(concurrency) > MOST_CONCURRENT:
            raise ValueError(f"at most {MOST_CONCURRENT} clients at once, got {max(concurrency)}")
        return concurrency

    def body(self, number: int) -> dict[str, Any]:
        """Of request `number`."""
        name = self.perturbations[number % len(self.perturbations)]
        seed = (self.seed + number) % SEEDS
        body = {"perturbations": [name], "cells": self.cells, "seed": seed, "output": self.output}
        named = {"model": self.model, "adapter": self.adapter}
        return body | {key: value for key, value in named.items() if value is not None}

    def checked(self, service: ServiceClient) -> Self:
        """The plan with its perturbations named, after a request that shows that it can be answered; raises what that raises."""
        from steval.predictor.requests import require_known

        vocabulary = service.vocabulary()
        names = self.perturbations or tuple(name for name in vocabulary.names if name != vocabulary.control)
        if not names:
            raise ConfigError(f"the model at {service.url} knows no perturbation")
        require_known(names, vocabulary.names, vocabulary.control)
        ask = service.predict_means if self.output == "mean" else service.predict_cells
        ask([names[0]], self.cells, seed=(self.seed - 1) % SEEDS)
        return self.model_copy(update={"perturbations": names})
