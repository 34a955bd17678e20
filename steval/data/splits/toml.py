"""cell-load's split file: which contexts and perturbations of which data set train, validate and test.

    [datasets]                       name = directory, file or glob of h5ad files ({a,b} expands)
    [training]                       name = "train"
    [zeroshot]                       "name.context" = "val" | "test": the whole context
    [fewshot."name.context"]         val = [perturbations], test = [perturbations]; the rest of the context trains

What a data set of `[training]` holds beyond these trains; one that is not under `[training]` gives only its named
contexts. Perturbed cells go where cell-load 0.10 puts them. What it passes over in silence is an error here: a context or
perturbation that the data lacks, one perturbation in val and in test, a context under `[zeroshot]` and `[fewshot]`, and
the control in a list.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from steval.data.files import matching, read_text
from steval.errors import ConfigError, DataError
from steval.settings import Settings
from steval.wording import counted

HeldOut = Literal["val", "test"]
SECTIONS = ("datasets", "training", "zeroshot", "fewshot")


class DatasetRules(Settings):
    """What the split file says of one data set."""

    trains: bool
    """Whether contexts that are not named train."""
    zeroshot: dict[str, HeldOut] = Field(default_factory=dict)
    """Whole contexts → their part."""
    fewshot: dict[str, dict[HeldOut, tuple[str, ...]]] = Field(default_factory=dict)
    """Context → part → perturbations; the rest of the context trains."""


class SplitTable(Settings):
    """The content of a split file."""

    datasets: dict[str, str]
    """Name → path or glob."""
    rules: dict[str, DatasetRules]

    def of(self, dataset: str | None) -> DatasetRules:
        """Rules of one data set; `dataset` may be left out where the file names one."""
        if dataset is None:
            if len(self.rules) != 1:
                raise ConfigError(
                    f"the split file names {counted(len(self.rules), 'data set')} ({', '.join(self.rules)}); say which is meant"
                )
            return next(iter(self.rules.values()))
        if dataset not in self.rules:
            raise ConfigError(
                f"the split file does not name the data set {dataset!r}; it names: {', '.join(self.rules)}"
            )
        return self.rules[dataset]

    def declares(self, part: HeldOut) -> bool:
        """Whether any context or perturbation is given to `part`."""
        return any(
            part in rules.zeroshot.values() or any(lists.get(part) for lists in rules.fewshot.values())
            for rules in self.rules.values()
        )

    def datasets_used(self) -> list[str]:
        """The data sets that give any cell."""
        return [name for name, rules in self.rules.items() if rules.trains or rules.zeroshot or rules.fewshot]

    def files(self) -> dict[str, list[Path]]:
        """The h5ad files of each used data set, sorted; one without files is a `DataError`."""
        found = {name: dataset_files(self.datasets[name]) for name in self.datasets_used()}
        empty = [f"{name}: {self.datasets[name]}" for name, paths in found.items() if not paths]
        if empty:
            raise DataError("the split file names data sets without any h5ad file", empty)
        return found


def read_split_toml(path: Path) -> SplitTable:
    """Read and check a split file; every problem of it is in one `ConfigError`."""
    try:
        content = tomllib.loads(read_text(path, "split file"))
    except DataError as error:
        raise ConfigError(str(error)) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a readable TOML split file: {error}") from error
    return parse_split_toml(content, str(path))


def parse_split_toml(content: Mapping[str, Any], source: str) -> SplitTable:
    """As `read_split_toml` for parsed content."""
    problems = [f"unknown section [{name}]; allowed: {', '.join(SECTIONS)}" for name in content if name not in SECTIONS]
    no_tables = [name for name in SECTIONS if not isinstance(content.get(name, {}), Mapping)]
    if no_tables:
        problems += [f"{name} must be a table, [{name}], got {type(content[name]).__name__}" for name in no_tables]
        raise ConfigError(f"{source} is not a valid split file", problems)
    datasets = content.get("datasets", {})
    if not datasets or not all(isinstance(value, str) for value in datasets.values()):
        raise ConfigError(f"{source}: [datasets] must name at least one data set with a path", problems)
    for name, part in content.get("training", {}).items():
        if name not in datasets:
            problems.append(f"[training] {name}: no such data set in [datasets] ({', '.join(datasets)})")
        if part != "train":
            problems.append(f'[training] {name} = {part!r}: the value is always "train"')
    values: dict[str, Any] = {
        name: {"trains": name in content.get("training", {}), "zeroshot": {}, "fewshot": {}} for name in datasets
    }
    for section in ("zeroshot", "fewshot"):
        for key, value in content.get(section, {}).items():
            name = _dataset_of(key, datasets)
            if name is None:
                problems.append(
                    f'[{section}] {key!r} is not "dataset.context" of a data set in [datasets] ({", ".join(datasets)})'
                )
                continue
            values[name][section][key[len(name) + 1 :]] = value
    if problems:
        raise ConfigError(f"{source} is not a valid split file", problems)
    return SplitTable.parse({"datasets": dict(datasets), "rules": values}, source=source)


def dataset_files(place: str) -> list[Path]:
    """h5ad (and h5) files of a directory, a file, a glob, or `{a,b}` alternatives, sorted; a name that exists is no pattern."""
    found: set[Path] = set()
    for pattern in [place] if Path(place).expanduser().exists() else _alternatives(place):
        path = Path(pattern).expanduser()
        if path.is_dir():
            found.update(match for suffix in ("*.h5ad", "*.h5") for match in path.glob(suffix))
        else:
            found.update(matching(pattern))
    return sorted(found)


def _alternatives(pattern: str) -> list[str]:
    start, end = pattern.find("{"), pattern.find("}")
    if start < 0 or end < start:
        return [pattern]
    head, tail = pattern[:start], pattern[end + 1 :]
    return [
        full for choice in pattern[start + 1 : end].split(",") for full in _alternatives(head + choice.strip() + tail)
    ]


def _dataset_of(key: str, datasets: Mapping[str, str]) -> str | None:
    """The data set of `dataset.context`; names may hold dots, the longest that fits wins."""
    fitting = [name for name in datasets if key.startswith(f"{name}.") and len(key) > len(name) + 1]
    return max(fitting, key=len, default=None)
