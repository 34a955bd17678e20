"""Frozen settings: pydantic models that forbid unknown keys, read from YAML with `a.b=c` overrides."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from steval.errors import ConfigError, nearest_names
from steval.wording import counted, whole_number

MAX_YAML_BYTES = 4 * 2**20
"""Largest YAML document that is read."""
MAX_YAML_SIZE = 16 * 2**20
"""Most values and characters of one with its aliases written out; without any, the largest document has half as many."""


class Settings(BaseModel):
    """A frozen configuration; unknown keys are errors that name the nearest key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "configuration") -> Self:
        """Validate `values`; raise one `ConfigError` that lists every problem with its place."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{source} is not valid", [_problem(cls, item) for item in error.errors()]) from error

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, apply `a.b=c` overrides, validate."""
        return cls.parse_with(read_yaml(path), overrides, source=str(path))

    @classmethod
    def parse_with(cls, values: Mapping[str, Any], overrides: Sequence[str], source: str) -> Self:
        """Validate `values` with `a.b=c` applied; an error is said of them where `values` alone are valid."""
        try:
            return cls.model_validate(apply_overrides(values, overrides))
        except ValidationError as error:
            problems = [_problem(cls, item) for item in error.errors()]
            if overrides and cls._takes(values):
                source = _named(overrides, problems)
            raise ConfigError(f"{source} is not valid", problems) from error

    @classmethod
    def _takes(cls, values: Mapping[str, Any]) -> bool:
        try:
            cls.model_validate(values)
        except ValidationError:
            return False
        return True

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, every default resolved."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved settings as YAML that `load` reads back."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)

    def digest(self) -> str:
        """sha256 of the resolved settings; equal settings have equal digests."""
        return json_digest(self.as_dict())


def json_digest(value: Any) -> str:
    """sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain values as `a.b` → value; items of a list are numbered where any of them is a mapping."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = [(str(number), item) for number, item in enumerate(value)]
    else:
        return {prefix: value}
    return {
        key: found
        for name, item in items
        for key, found in flatten(item, f"{prefix}.{name}" if prefix else name).items()
    }


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file; an unreadable, too large or other document is a `ConfigError`."""
    values = read_yaml_document(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, got {type(values).__name__}")
    return values


def read_yaml_document(path: Path) -> Any:
    """As `read_yaml`, of any type."""
    path = Path(path)
    try:
        if not path.is_file() and path.exists():
            raise ConfigError(
                f"{path} is {'a directory' if path.is_dir() else 'a pipe or device'}, not a configuration file"
            )
        with path.open("rb") as handle:
            content = handle.read(MAX_YAML_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"no such configuration file: {path}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if len(content) > MAX_YAML_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_YAML_BYTES:,} bytes, which no configuration needs")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML document, as plain types; `source` names it in the `ConfigError` for what is none.

    Aliases are counted as if written out before anything is built: a few hundred bytes can mean 10^10 values.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > MAX_YAML_SIZE:
            raise ConfigError(
                f"{source} is refused: with its aliases (*name) written out it has more than {MAX_YAML_SIZE:,} values and "
                "characters, or is without end; write what it needs without them"
            )
        return loader.construct_document(node)
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        AttributeError,
    ) as error:  # the last three: `!!int ''` and its like
        raise ConfigError(f"{source} is not YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{source} is not a readable YAML document: it is nested too deeply") from error


def _written_out(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Values and characters below `node`, each alias counted in full; no more than one over the limit is counted."""
    if id(node) in sizes:
        return sizes[id(node)]
    sizes[id(node)] = MAX_YAML_SIZE + 1  # met again from within: without end
    if isinstance(node, yaml.ScalarNode):
        size = len(node.value)
    elif isinstance(node, yaml.MappingNode):
        size = sum(_written_out(part, sizes) for pair in node.value for part in pair)
    else:
        size = sum(_written_out(part, sizes) for part in node.value)
    sizes[id(node)] = min(size, MAX_YAML_SIZE) + 1
    return sizes[id(node)]


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with each `a.b=c` applied; `c` is read as YAML, list items are addressed by number."""
    result = json.loads(json.dumps(values, default=str))
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set takes KEY.SUBKEY=VALUE, got {override!r}")
        _assign(result, path.split("."), parse_yaml(text, f"--set {override}"), override)
    return result


def _assign(node: Any, keys: list[str], value: Any, override: str) -> None:
    for depth, key in enumerate(keys):
        place: str | int = _number_in(node, key, ".".join(keys[:depth]), override) if isinstance(node, list) else key
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override}: {'.'.join(keys[:depth])} is {node!r}, which has nothing inside")
        if depth == len(keys) - 1:
            node[place] = value
            return
        if isinstance(node, dict) and node.get(place) is None:
            node[place] = {}
        node = node[place]


def _number_in(items: list[Any], key: str, place: str, override: str) -> int:
    number = whole_number(key)
    if number is None or number >= len(items):
        last = f": {place}.0" + (f" to {place}.{len(items) - 1}" if len(items) > 1 else "") if items else ""
        raise ConfigError(f"--set {override}: {place} is a list of {counted(len(items), 'entry', 'entries')}{last}")
    return number


def _named(overrides: Sequence[str], problems: Sequence[str]) -> str:
    """The overrides whose places the problems name; all where they name none."""
    places = [f"{problem.partition(':')[0]}." for problem in problems]
    named = [one for one in overrides if any(place.startswith(f"{one.partition('=')[0]}.") for place in places)]
    return " ".join(f"--set {one}" for one in named or overrides)


def _problem(model: type[BaseModel], item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] != "extra_forbidden":
        received = item.get("input")
        shown = "" if isinstance(received, dict | list | BaseModel) else f" (got {received!r})"
        return f"{place}: {message}{shown}" if place else message
    known = sorted(_known_keys(model, item["loc"][:-1]))
    near = nearest_names(str(item["loc"][-1]), known)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
    return f"{place}: unknown key; {hint}"


def _known_keys(model: Any, place: Sequence[Any]) -> set[str]:
    """Field names allowed at `place` under `model`, through nested models, lists and unions."""
    models = _models_in(model)
    for part in place:
        inner = [m.model_fields[part].annotation for m in models if isinstance(part, str) and part in m.model_fields]
        if inner:
            models = [nested for annotation in inner for nested in _models_in(annotation)]
        else:  # a number, or which of a union's models is meant
            models = [m for m in models if part in _constants(m)] or models
    return {name for m in models for name in m.model_fields}


def _constants(model: type[BaseModel]) -> set[Any]:
    """Values that a field of the model has to have."""
    return {
        value
        for field in model.model_fields.values()
        if get_origin(field.annotation) is Literal
        for value in get_args(field.annotation)
    }


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]
