"""`steval metrics`."""

from typing import Annotated

import typer

from steval.cli import options
from steval.cli.output import print_facts, print_json, print_table, say_wrapped


def metrics(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Metrics or profiles; all where none is named.", show_default=False),
    ] = None,
    json: options.JsonFlag = False,
) -> None:
    """What each metric of a score means: what it measures, which values it can have, which direction is better.

    Example: `steval metrics` or `steval metrics mae pr_auc` or `steval metrics vcc`
    """
    from steval.evaluator.metrics.catalog import CATALOG, with_arrow
    from steval.evaluator.metrics.metric import GOOD
    from steval.evaluator.metrics.profiles import PROFILES, profile_metrics, resolve

    chosen = {metric.name: metric for name in names or list(CATALOG) for metric in resolve(name)}
    if json:
        print_json([metric.as_dict() for metric in chosen.values()])
        return
    if names:
        for metric in chosen.values():
            print_facts(
                metric.name,
                [
                    ("is", metric.description),
                    ("values", f"{metric.limits}; {GOOD[metric.best]}"),
                    ("no value where", metric.undefined),
                    ("options", ", ".join(f"{name}={value}" for name, value in metric.options.items()) or None),
                ],
            )
        return
    rows = [(with_arrow(metric.name), metric.limits, metric.description) for metric in chosen.values()]
    print_table("Metrics (↑ high is good, ↓ low is good)", ["metric", "values", "is"], rows)
    profiles = [(name, len(profile_metrics(name)), profile.sentence) for name, profile in PROFILES.items()]
    print_table("Profiles", ["profile", "metrics", "is"], profiles)
    say_wrapped("One metric with its options: steval metrics NAME. How metrics become a score: docs/scoring.md.")
