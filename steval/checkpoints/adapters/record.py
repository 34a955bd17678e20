"""What an adapter file says of itself, and whether a checkpoint is its base: read from headers alone, without torch."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from steval.checkpoints.manifest import Manifest, read_header
from steval.errors import CheckpointError, ConfigError
from steval.model.lora_settings import LoraSettings
from steval.settings import Settings

ADAPTER_KEY = "steval_adapter"
DIGEST_KEY = "steval_adapter_sha256"
_MOST_NAMED = 5


class AdapterRecord(Settings):
    """What an adapter file says of itself."""

    format_version: Literal[1] = 1
    base: str
    """Name and digest of the checkpoint that the run started from."""
    lora: LoraSettings
    adapted: dict[str, str]
    """Weights of the base with matrices beside them, and their sha256."""
    borrowed: dict[str, str]
    """Tensors taken from the base as they are, and their sha256."""
    tensors: dict[str, str]
    """sha256 of each tensor of this file."""
    manifest: Manifest
    """Of the checkpoint that base and adapter make; without digests of tensors."""

    @property
    def needed(self) -> dict[str, str]:
        """Tensors that the base must have, and their sha256."""
        return {**self.borrowed, **self.adapted}

    def is_for(self, manifest: Manifest) -> bool:
        """Whether a checkpoint of `manifest` is the base."""
        return not self._others(manifest)

    def require_base(self, manifest: Manifest, base_path: Path, path: Path) -> None:
        """Raise `CheckpointError` unless the checkpoint of `manifest` is the base of this record, of the file `path`."""
        wrong = self._others(manifest)
        if wrong:
            shown = ", ".join(wrong[:_MOST_NAMED]) + (" …" if len(wrong) > _MOST_NAMED else "")
            raise CheckpointError(
                f"{path} is not for {base_path}: {len(wrong)} of the {len(self.needed)} tensors that it takes from its base are "
                f"others there ({shown}). It was trained from {self.base}: give that checkpoint"
            )

    def _others(self, manifest: Manifest) -> list[str]:
        """Needed tensors that a checkpoint of `manifest` lacks, or has with other values."""
        return [name for name, digest in self.needed.items() if manifest.tensors.get(name) != digest]


def read_record(path: Path) -> tuple[AdapterRecord, str, dict[str, Any]]:
    """Record, digest and header of an adapter file; its tensors are not looked at. Raises `CheckpointError`."""
    path = Path(path)
    header = read_header(path)
    found = header.get("__metadata__")
    metadata = found if isinstance(found, dict) else {}
    text = metadata.get(ADAPTER_KEY)
    if not isinstance(text, str):
        raise CheckpointError(f"{path} is no adapter of steval: its metadata lacks the key {ADAPTER_KEY!r}")
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    if digest != metadata.get(DIGEST_KEY):
        raise CheckpointError(f"{path}: the metadata does not match its own digest; the file was altered or damaged")
    try:
        record = AdapterRecord.parse(json.loads(text), source=f"the metadata of {path}")
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the metadata is not a JSON mapping ({error})") from error
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return record, digest, header


def digest_of_both(base: str, adapter: str) -> str:
    """The digest of the checkpoint that a base and an adapter of these digests make."""
    return hashlib.sha256(f"{base} {adapter}".encode()).hexdigest()
