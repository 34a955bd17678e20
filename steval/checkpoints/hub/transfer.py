"""A file on its way from a hub into the cache: what the hub may call it, how many bytes may come, and what they must be.

`huggingface_hub` takes the hub at its word: a file is kept under the name that the hub gives for its content, wherever that
leads, and read for as long as something comes. Here both are looked at first.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from steval.data.files import sha256_file
from steval.errors import CheckpointError
from steval.wording import memory_size

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_NAME = re.compile(r"[\w+=-][\w.+=-]{0,199}", re.ASCII)
"""What a hub may call a content: large files by their sha256, small ones by git's name of them; no path."""


def download(hub: Any, repo: str, name: str, commit: str) -> Path:
    """The file in the cache, fetched there. `hub` is the package.

    Raises `CheckpointError` for an answer that is not to be trusted and for bytes that are not those announced; what
    `huggingface_hub` raises is left as it is.
    """
    announced = hub.HfApi().get_hf_file_metadata(url=hub.hf_hub_url(repo, name, revision=commit))
    _require_sound(announced, name, commit, Path(hub.constants.HF_HUB_CACHE).expanduser())
    is_counted = announced.xet_file_data is None  # the other way of transfer verifies what it takes
    bar = _bounded_bar(hub.utils.tqdm, name, announced.size) if is_counted else None
    path = Path(hub.hf_hub_download(repo, name, revision=commit, tqdm_class=bar))
    _require_whole(path, announced.etag)
    return path


def _require_sound(announced: Any, name: str, commit: str, cache: Path) -> None:
    """What the hub says of a file, all problems together."""
    problems = []
    if announced.commit_hash != commit:
        problems.append(f"it is of the commit {announced.commit_hash!r}, asked for was {commit}")
    if announced.etag is None or not _CONTENT_NAME.fullmatch(announced.etag):
        problems.append(f"its content is called {announced.etag!r}, which is no digest")
    if announced.size is None or announced.size < 0:
        problems.append(f"its size is {announced.size!r}, a number of bytes is needed")
    elif announced.size > (free := _free_bytes(cache)):
        problems.append(
            f"it takes {memory_size(announced.size)}, and the disk of the cache ({cache}) has {memory_size(free)}"
        )
    if problems:
        raise CheckpointError(f"{name} is not fetched, for what the hub says of it", problems)


def _free_bytes(cache: Path) -> int:
    """Of the disk that the directory is on or will be."""
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(there).free


def _bounded_bar(bar: Any, name: str, size: int) -> Any:
    """A progress bar that ends a transfer which brings more than `size` bytes; it is told of every one of them."""

    class Bounded(bar):
        """Counts also where nothing is drawn."""

        counted = 0.0

        def update(self, n: float | None = 1) -> bool | None:
            self.counted += n or 0
            if self.counted > size:
                raise CheckpointError(
                    f"{name}: the hub announced {size:,} bytes and goes on sending: it is not fetched"
                )
            return super().update(n)

    return Bounded


def _require_whole(path: Path, announced: str) -> None:
    """Large files are kept under their sha256: what came must have it, and be what was announced. What has not is removed."""
    blob = Path(os.path.realpath(path))
    if not _SHA256.fullmatch(announced):
        return
    found = sha256_file(blob)
    if found != announced:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path.name} came damaged from the hub: its sha256 is {found}, not {announced}; try again"
        )
