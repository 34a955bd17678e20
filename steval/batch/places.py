"""Where files are: paths, globs and fsspec URLs; a URL is fetched once to each machine that reads it."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steval.checkpoints.location import is_hub, local
from steval.data.files import atomic_path, matching, require_directory
from steval.data.outputs import real_path
from steval.errors import ConfigError, DataError
from steval.settings import json_digest

_PLAIN = re.compile(r"[^A-Za-z0-9._+-]+")


def is_url(place: str) -> bool:
    """Whether fsspec opens it rather than the file system."""
    return "://" in place


def find(place: str, base: Path) -> list[str]:
    """Absolute paths or URLs that `place` means, sorted; one that is no glob is itself, whether it exists or not."""
    if not is_url(place):
        if not glob.has_magic(place):
            return [str(_without_dots(base / Path(place).expanduser()))]
        return [str(_without_dots(path)) for path in matching(place, base)]
    if is_hub(place) or not glob.has_magic(place):
        return [place]
    filesystem, path = _filesystem(place)
    try:
        if filesystem.exists(path):
            return [place]
        return sorted(filesystem.unstrip_protocol(found) for found in filesystem.glob(path))
    except OSError as error:
        raise ConfigError(f"cannot list {place}: {error}") from error


def _without_dots(path: Path) -> Path:
    """The same place without `..`; links in its last part stay."""
    return real_path(path.parent) / path.name if ".." in path.parts else path


def local_copy(place: str, cache: Path) -> Path:
    """The file itself, or for a URL its copy under `cache`, fetched when it is not there or the remote file is another."""
    if not is_url(place):
        return Path(place)
    if is_hub(place):
        return local(place)
    filesystem, path = _filesystem(place)
    try:
        target = cache / json_digest([place, str(filesystem.ukey(path))])[:16] / Path(path).name
        if not target.exists():
            require_directory(target.parent)
            with atomic_path(target) as partial:
                filesystem.get_file(path, str(partial))
    except FileNotFoundError as error:
        raise DataError(f"no such file: {place}") from error
    except OSError as error:
        raise DataError(f"cannot read {place}: {error}") from error
    return target


def unique_names(places: Sequence[str]) -> list[str]:
    """A short name for each place: the file's stem, with directories in front where stems are alike."""
    parts = [_parts(place) for place in places]
    depth = 1
    names = ["-".join(part[-depth:]) for part in parts]
    while len(set(names)) < len(set(places)) and depth < max(map(len, parts)):
        depth += 1
        names = ["-".join(part[-depth:]) for part in parts]
    return names


def plain_name(name: str) -> str:
    """`name` fit for a directory: letters, digits and `._+-`."""
    return _PLAIN.sub("-", name).strip("-.") or "unnamed"


def _parts(place: str) -> list[str]:
    path = Path(place.split("://", 1)[-1])
    return [plain_name(part) for part in (*path.parent.parts, path.stem) if plain_name(part) != "unnamed"]


def _filesystem(place: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(place)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"cannot open {place}: {error}") from error
    return filesystem, path
