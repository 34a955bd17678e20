"""The recipes that ship with the package: configurations without data, to be copied and bent."""

from pathlib import Path

from steval.errors import ConfigError, nearest_names

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
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" Recipes: {', '.join(recipe_names())}"
        )
    return path


def config_path(name: str | Path) -> Path:
    """A configuration file as given, or the recipe of that name."""
    path = Path(name)
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    return recipe_path(str(name))
