"""`steval load`."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steval.cli import options
from steval.cli.output import Tenths, print_json, print_table, say, say_wrapped
from steval.errors import ConfigError, ServiceError
from steval.wording import counted, whole_number

if TYPE_CHECKING:
    from steval.service.load.measure import Level
    from steval.service.load.plan import LoadPlan

SOURCE = "what was asked of steval load"
HONESTY = (
    "Each client sends its next request when it has its answer (a closed loop): a stall is one slow request for each client, not "
    "for each request that would have come meanwhile. Latencies are of good answers, measured here, network included."
)


def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="The running service, such as http://127.0.0.1:3000.")],
    concurrency: Annotated[
        str, typer.Option("--concurrency", "-c", help="Numbers of clients at once, a measurement each.")
    ] = "1,2,4,8,16,32",
    seconds: Annotated[float, typer.Option("--seconds", help="Length of each measurement.")] = 10.0,
    warmup: Annotated[float, typer.Option("--warmup", help="Seconds before each that do not count.")] = 2.0,
    perturbations: Annotated[
        list[str] | None,
        typer.Option(
            "--perturbations", "-p", help="Names A,B, one a request in turn.", show_default="all that the model knows"
        ),
    ] = None,
    cells: Annotated[int, typer.Option("--cells", "-n", min=1, help="Cells of each request.")] = 100,
    output: Annotated[str, typer.Option("--output", help="cells as Arrow, or mean: a mean profile as JSON.")] = "mean",
    model: Annotated[
        str | None, typer.Option("--model", help="Name or digest of the model.", show_default="the service's own")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", metavar="NAME", help="Name or digest of an adapter to the model.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Of the first request; each has the next one.", show_default="drawn"),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="STEVAL_API_KEY", help="Key of the service.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also draw latencies against clients at once (.svg, .png, .pdf)."),
    ] = None,
    json: options.JsonFlag = False,
) -> None:
    """How quickly a running service answers predictions, and how many at once.

    Example: `steval load http://127.0.0.1:3000 --concurrency 1,8,32 --seconds 10 -o load.svg`
    """
    from steval.data.outputs import require_output
    from steval.evaluator.report.drawing import FORMATS
    from steval.service.client import Connection, ServiceClient
    from steval.service.load.measure import measure
    from steval.service.load.picture import write_picture
    from steval.service.load.plan import SEEDS, LoadPlan

    asked = {
        "concurrency": _numbers(concurrency),
        "seconds": seconds,
        "warmup": warmup,
        "perturbations": tuple(name for text in perturbations or () for name in text.split(",") if name),
        "cells": cells,
        "output": output,
        "model": model,
        "adapter": adapter,
        "seed": secrets.randbelow(SEEDS) if seed is None else seed,
    }
    plan = LoadPlan.parse(asked, source=SOURCE)
    if out is not None:
        require_output(out, {}, suffixes=[f".{kind}" for kind in FORMATS])
    with ServiceClient(url, api_key, model=model, adapter=adapter) as service:
        card = service.model()
        plan = plan.checked(service)
    levels = measure(Connection(url, api_key), plan)
    if not any(level.answers for level in levels):
        said = ", ".join(dict.fromkeys(code for level in levels for code in level.errors)) or "none was sent"
        raise ServiceError(f"no request of the measurements was answered: {said}", status=503, code="unanswered")
    written = write_picture(levels, out) if out is not None else None
    if json:
        service_facts = {name: card.get(name) for name in ("name", "checkpoint", "steval_version", "device", "dtype")}
        asked = plan.as_dict() | {"perturbations": len(plan.perturbations)}
        print_json(
            {"service": service_facts, "asked": asked, "levels": [one.as_dict() for one in levels], "picture": written}
        )
        return
    _print(plan, levels)
    if written is not None:
        say(f"-> {written}")


def _numbers(text: str) -> tuple[int, ...]:
    found = [whole_number(part.strip()) for part in text.split(",")]
    if not all(found):
        raise ConfigError(f"--concurrency takes numbers of clients such as 1,8,32, got {text!r}")
    return tuple(one for one in found if one)


def _print(plan: "LoadPlan", levels: "list[Level]") -> None:
    from steval.service.load.measure import BUSY

    what = "mean profiles of " if plan.output == "mean" else ""
    title = f"{what}{counted(plan.cells, 'cell')}, one perturbation a request; seeds from {plan.seed}"
    columns = ("clients", "answers", "requests/s", "cells/s", "p50 ms", "p95 ms", "p99 ms", "errors")
    rows = [
        (
            *(one.concurrency, one.answers, Tenths(one.requests_per_second), round(one.cells_per_second)),
            *(None if value is None else Tenths(value) for value in (one.p50_ms, one.p95_ms, one.p99_ms)),
            ", ".join(f"{count} {code}" for code, count in one.errors.items()) or "0",
        )
        for one in levels
    ]
    print_table(title, columns, rows)
    say_wrapped(HONESTY)
    busy = [str(one.concurrency) for one in levels if one.client_cpu > BUSY]
    if busy:
        say_wrapped(
            f"With {', '.join(busy)} clients this program itself kept a processor busy: those numbers are rather its own than "
            "the service's. Ask from several machines, or for more cells a request."
        )
