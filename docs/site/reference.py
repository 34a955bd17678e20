"""Pages that are made of the program itself when the site is built: commands, configuration keys, metrics, notebooks."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

WIDTH = 100
NOT_GIVEN = frozenset({"table"})
"""Fields that are read from a file which another field names."""


def commands_page() -> str:
    """Every command with what `--help` says."""
    from steval.cli.app import COMMANDS, app
    from steval.cli.help import help_lines

    group: Any = typer.main.get_command(app)
    parts = ["# Commands", "", "What `steval COMMAND --help` says, in 100 columns."]
    for name in COMMANDS:
        command = group.commands[name]
        context = command.make_context(f"steval {name}", [], resilient_parsing=True)
        text = "\n".join(help_lines(command, context, WIDTH)).strip("\n")
        parts += ["", f"## steval {name}", "", "```text", text, "```"]
    return "\n".join(parts) + "\n"


def configuration_page() -> str:
    """Every key of the files and options that settings models stand behind."""
    from steval.batch.settings import BatchManifest
    from steval.data.cells.prepare import PrepareSettings
    from steval.evaluator.settings import ScoreSettings
    from steval.service.settings import ServiceSettings
    from steval.trainer.config import FinetuneConfig

    sections = (
        (
            "Fine-tuning",
            "The YAML of `steval finetune`; `--set data.target_sum=5000` changes one key.",
            FinetuneConfig,
            str,
        ),
        (
            "Scoring",
            "`steval.score(…, KEY=…)`, options of `steval score`, `score` in a batch manifest.",
            ScoreSettings,
            str,
        ),
        ("Preparing", "`steval.prepare(…, KEY=…)` and the options of `steval prepare`.", PrepareSettings, str),
        ("Batches", "The manifest of `steval batch`.", BatchManifest, str),
        ("Service", "Environment variables of `steval serve`.", ServiceSettings, lambda key: f"STEVAL_{key.upper()}"),
    )
    parts = ["# Configuration", "", "Every key with its type, its default and what it means."]
    for title, sentence, model, named in sections:
        parts += ["", f"## {title}", "", sentence, "", "| key | type | default | meaning |", "|---|---|---|---|"]
        parts += [
            f"| `{named(key)}` | {kind} | {default} | {meaning} |".replace("||", "\\|\\|")
            for key, kind, default, meaning in keys_of(model)
        ]
    return "\n".join(parts) + "\n"


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and meaning of every field, those of inner sections after their own."""
    for name, field in model.model_fields.items():
        if name in NOT_GIVEN:
            continue
        key = f"{prefix}{field.alias or name}"
        yield key, _kind(field), _default(field), _cell(field.description or "")
        for inner, place in _sections(field.annotation, key):
            yield from keys_of(inner, f"{place}.")


def metrics_page() -> str:
    """Every metric and profile of the catalog."""
    from steval.evaluator.metrics.catalog import CATALOG, with_arrow
    from steval.evaluator.metrics.metric import GOOD
    from steval.evaluator.metrics.profiles import PROFILES, profile_metrics

    parts = ["# Metrics", "", "↑ high is good, ↓ low is good. [How they become a score](../scoring.md).", ""]
    parts += ["| metric | values | is | no value where |", "|---|---|---|---|"]
    parts += [
        f"| `{with_arrow(one.name)}` | {one.limits}; {GOOD[one.best]} | {_cell(one.description)} | {_cell(one.undefined)} |"
        for one in CATALOG.values()
    ]
    parts += ["", "## Profiles", "", "| profile | for | metrics |", "|---|---|---|"]
    parts += [
        f"| `{name}` | {_cell(one.sentence)} | {', '.join(profile_metrics(name))} |" for name, one in PROFILES.items()
    ]
    return "\n".join(parts) + "\n"


def notebook_page(path: Path) -> str:
    """A notebook as a page: its texts, its code, a link to the file."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join([*parts, f"[The notebook]({path.name})"]) + "\n"


def _sections(annotation: Any, key: str) -> Iterator[tuple[type[BaseModel], str]]:
    """Models inside a type; those of a list are `key[]`, of a mapping `key.NAME`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, key
        return
    origin = get_origin(annotation)
    arguments = [one for one in get_args(annotation) if one not in (NoneType, Ellipsis)]
    if origin in (tuple, list):
        key = f"{key}[]"
    elif origin is dict or (isinstance(origin, type) and issubclass(origin, dict)):
        key, arguments = f"{key}.NAME", arguments[1:]
    seen: set[Any] = set()
    for one in arguments:
        for model, place in _sections(one, key):
            if model not in seen:
                seen.add(model)
                yield model, place


def _kind(field: FieldInfo) -> str:
    limits = [text for one in field.metadata if (text := _limit(one))]
    return _cell(" ".join([_named(field.annotation), *limits]))


def _limit(rule: Any) -> str | None:
    for kind, sign in ((Ge, "≥"), (Gt, ">"), (Le, "≤"), (Lt, "<")):
        if isinstance(rule, kind):
            limit = getattr(rule, kind.__name__.lower())
            return f"{sign} {limit:,}" if isinstance(limit, int) else f"{sign} {limit:g}"
    return None


def _named(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in get_args(annotation))
    if origin in (Union, UnionType):
        return " or ".join("none" if one is NoneType else _named(one) for one in get_args(annotation))
    if origin in (tuple, list):
        return f"list of {_named(get_args(annotation)[0])}"
    if origin is not None and hasattr(annotation, "__metadata__"):
        return _named(get_args(annotation)[0])
    if isinstance(origin, type) and issubclass(origin, dict):
        return f"mapping to {_named(get_args(annotation)[1])}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", dict: "mapping"}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple | list) and any(isinstance(one, BaseModel) for one in value):
        return ""
    return "none" if value is None else f"`{_cell(json.dumps(value, default=str))}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
