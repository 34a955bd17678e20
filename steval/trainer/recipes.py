"""The recipes that ship with the package: configurations without data, to be copied and bent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steval.errors import ConfigError, nearest_names
from steval.settings import read_yaml

_DIRECTORY = Path(__file__).with_name("recipes")


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in _DIRECTORY.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a recipe; an unknown name is a `ConfigError` with the nearest."""
    path = _DIRECTORY / f"{name}.yaml"
    if not path.is_file():
        near = nearest_names(name, recipe_names())
        raise ConfigError(
            f"no configuration file and no recipe called {name!r}"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + f" Recipes: {', '.join(recipe_names())}"
        )
    return path


def config_path(name: str | Path) -> Path:
    """A configuration file as given, or the recipe of that name."""
    path = Path(name)
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    return recipe_path(str(name))


def with_recipe(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`values` laid over the recipe that their key `recipe` names; without the key, as they are.

    Sections are merged key by key, except where they are of another kind (`split: {by: ...}`). Of a list (`phases`), a mapping
    changes the items that its keys name (`phases: {A: {steps: 100}}`), by `name` or number; a list takes the place of the whole.
    """
    own = dict(values)
    name = own.pop("recipe", None)
    if name is None:
        return own
    if not isinstance(name, str):
        raise ConfigError(f"{source}: recipe takes a name, one of {', '.join(recipe_names())}, got {name!r}")
    return _merged(read_yaml(recipe_path(name)), own, source, "")


def _merged(base: Any, own: Any, source: str, place: str) -> Any:
    if isinstance(base, Mapping) and isinstance(own, Mapping):
        if own.get("by", base.get("by")) != base.get("by"):
            return own
        return {**base, **{key: _merged(base.get(key), value, source, f"{place}{key}.") for key, value in own.items()}}
    if isinstance(base, list) and isinstance(own, Mapping) and base:
        items = list(base)
        names = [
            str(item.get("name", number)) if isinstance(item, Mapping) else str(number)
            for number, item in enumerate(items)
        ]
        for key, value in own.items():
            if str(key) not in names and not (isinstance(key, int) and 0 <= key < len(items)):
                raise ConfigError(f"{source}: {place}{key}: the recipe has {', '.join(names)}")
            number = names.index(str(key)) if str(key) in names else int(key)
            items[number] = _merged(items[number], value, source, f"{place}{key}.")
        return items
    return own
