"""Checkpoints of a model hub, `hf://owner/repo@revision/path`, through `huggingface_hub` (the extra `hub`) and its cache on disk.

A revision is settled to a commit first and files are taken of that commit, so that what is used can be named for ever
(`location.pinned_reference`). What is in the cache needs no network. A `Path` of such a reference has lost a slash; both forms
are read.
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar
from urllib.parse import quote, unquote

from steval import __version__
from steval.checkpoints.hub.transfer import download
from steval.errors import CheckpointError, ConfigError
from steval.wording import needs_extra

T = TypeVar("T")
FORM = "hf://owner/repo@revision/path"
_NOT_A_HUB = "the answer is not that of a hub (HF_ENDPOINT says whose it is)"
_REFERENCE = re.compile(r"hf:/+(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/@]+))?(/(?P<path>.*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_REVISION = re.compile(r"\.\.|[\x00-\x20\x7f~^:?*\[\\]|//|^[/.-]|/\.|[/.]$")
"""What git allows in no name of a branch or tag, and would lead out of the cache."""


@dataclass(frozen=True)
class HubReference:
    """A file or directory of a repository of models; `path` empty: all of it; `revision` None: the default branch."""

    repo: str
    revision: str | None
    path: str

    @classmethod
    def parse(cls, text: str | Path) -> Self:
        """Raises `CheckpointError` for what has another form."""
        found = _REFERENCE.fullmatch(str(text))
        parts = PurePosixPath((found["path"] or "") if found else "").parts
        revision = unquote(found["revision"]) if found and found["revision"] else None
        if found is None or ".." in parts or (revision is not None and _NO_REVISION.search(revision)):
            raise CheckpointError(
                f"{text} is no reference to a hub: write {FORM}, such as hf://arcinstitute/ST-Tahoe@main (a revision that holds a "
                "slash as refs%2Fpr%2F1)"
            )
        return cls(found["repo"], revision, "/".join(parts))

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"hf://{self.repo}{revision}" + (f"/{self.path}" if self.path else "")


@dataclass(frozen=True)
class HubRepository:
    """A repository at one commit. `asked` is what was given, for messages."""

    repo: str
    commit: str
    asked: HubReference

    @classmethod
    def open(cls, reference: HubReference) -> Self:
        """Settle the revision to a commit, by asking the hub, else by the cache. Raises `CheckpointError`, `ConfigError`."""
        hub = _hub()
        is_offline = hub.constants.is_offline_mode()
        commit = _asked(
            reference,
            lambda: hub.HfApi().resolve_revision(
                reference.repo, revision=reference.revision, local_files_only=is_offline
            ),
        )
        settled = commit.resolved  # `commit` itself is the text that was asked for
        if not isinstance(settled, str) or not _COMMIT.fullmatch(settled):
            raise CheckpointError(f"{reference}: {_NOT_A_HUB}: the commit {settled!r}")
        return cls(reference.repo, settled, reference)

    @classmethod
    def create(cls, reference: HubReference, *, private: bool) -> Self:
        """As `open`, of a repository that is made where it is not there; a branch must be. Errors as `open`."""
        hub = _hub()
        _asked(reference, lambda: hub.HfApi().create_repo(reference.repo, private=private, exist_ok=True))
        return cls.open(reference)

    def commit_files(self, files: Mapping[str, Path | bytes]) -> str:
        """Put files, by their paths in the repository, on the branch that was asked for; returns the commit. Errors as `open`."""
        hub = _hub()
        operations = [
            hub.CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
            for name, content in files.items()
        ]
        message = f"{', '.join(files)} by steval {__version__}"
        made = _asked(
            self.asked,
            lambda: hub.HfApi().create_commit(
                self.repo, operations, revision=self.asked.revision, commit_message=message, parent_commit=self.commit
            ),
        )
        return str(made.oid)

    def names(self) -> list[str]:
        """Paths of all files at the commit, sorted; without a network those that the cache has."""
        hub = _hub()
        cached = self._cached()
        if hub.constants.is_offline_mode():
            return cached
        try:
            return sorted(hub.HfApi().list_repo_files(self.repo, revision=self.commit))
        except Exception as error:
            if cached and isinstance(error, _unreachable(hub)):
                return cached
            raise _explained(error, self.asked) from error

    def fetch(self, name: str) -> Path:
        """The file in the cache, fetched where it is not there. Raises `CheckpointError`, also where what came is damaged."""
        hub = _hub()
        cached = _asked(self.asked, lambda: hub.try_to_load_from_cache(self.repo, name, revision=self.commit))
        if isinstance(cached, str):
            return Path(cached)
        return _asked(self.asked, lambda: download(hub, self.repo, name, self.commit))

    def reference(self, path: str) -> HubReference:
        """Another place in it, at this commit."""
        return replace(self.asked, revision=self.commit, path=path)

    def _cached(self) -> list[str]:
        hub = _hub()
        folder = hub.file_download.repo_folder_name(repo_id=self.repo, repo_type="model")
        snapshot = Path(hub.constants.HF_HUB_CACHE).expanduser() / folder / "snapshots" / self.commit
        return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())


def _hub() -> Any:
    """The package; a `ConfigError` where it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.file_download
        import huggingface_hub.utils
    except ImportError as error:
        raise ConfigError(needs_extra("an hf:// reference", "huggingface_hub", "hub")) from error
    except ValueError as error:  # it reads the environment as it is imported
        raise ConfigError(f"HF_ENDPOINT is no address of a hub: {_first_line(error)}") from error
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    return huggingface_hub


def _asked(reference: HubReference, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except Exception as error:
        raise _explained(error, reference) from error


def _unreachable(hub: Any) -> tuple[type[Exception], ...]:
    import httpx2

    return httpx2.TransportError, hub.errors.OfflineModeIsEnabled, hub.errors.LocalEntryNotFoundError


def _explained(error: Exception, reference: HubReference) -> Exception:
    """What went wrong at the hub, in our words; any other error as it is."""
    hub = _hub()
    errors = hub.errors
    if isinstance(error, ImportError):  # of what a SOCKS proxy needs
        return ConfigError(
            f"{reference}: the proxy that the environment names (ALL_PROXY, HTTPS_PROXY) cannot be used: {_first_line(error)}"
        )
    if isinstance(error, UnicodeEncodeError):
        return ConfigError(f"{reference}: HF_TOKEN holds characters outside ASCII, which no token has")
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{reference}: the repository is gated: accept its terms on the hub, then log in with hf auth login, or set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"{reference}: there is no repository {reference.repo}, or it is private: look at the name; for a private one log in "
            "with hf auth login, or set HF_TOKEN"
        )
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return CheckpointError(
            f"{reference}: the hub does not let you: log in with hf auth login, or set HF_TOKEN, as one who may read or write it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{reference}: {reference.repo} has no revision {reference.revision!r}")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return CheckpointError(f"{reference}: there is no such file in {reference.repo}")
    if isinstance(error, (errors.RevisionResolutionError, *_unreachable(hub))):
        why = "HF_HUB_OFFLINE is set" if hub.constants.is_offline_mode() else "the hub cannot be reached"
        return CheckpointError(
            f"{reference}: {why}, and the cache ({hub.constants.HF_HUB_CACHE}) does not have it: fetch it once with a network, or "
            "copy the cache and name that with HF_HUB_CACHE"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return error  # the disk's, not the hub's
    if isinstance(error, errors.HFValidationError | errors.HfHubHTTPError | errors.FileMetadataError | OSError):
        return CheckpointError(f"{reference}: the hub refused: {_first_line(error)}")
    if isinstance(error, _unreadable()):
        return CheckpointError(f"{reference}: {_NOT_A_HUB}: {_first_line(error)}")
    return error


def _unreadable() -> tuple[type[Exception], ...]:
    """What the package raises where an answer has not the form that it takes for granted."""
    import httpx2

    return httpx2.HTTPError, AssertionError, AttributeError, KeyError, TypeError, ValueError


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
