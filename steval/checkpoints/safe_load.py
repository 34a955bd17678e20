"""Reading other tools' `.ckpt`, `.pt`, `.torch` and `.pkl` files without running a byte of them.

A pickle is a program. Here it may name only what `ALLOWED` lists, and most of that is replaced by inert stand-ins: numpy
scalars become plain Python values, `torch.nn.MSELoss` becomes an `InertObject`. torch archives are scanned for the names
they use and for what they would unpack to, then go through `torch.load(weights_only=True)`; plain pickles and torch's
older stream format (magic number, pickles, storages) go through a restricted unpickler. Anything else raises
`CheckpointError` with the offending name. Nothing is executed, nothing is written.
"""

import io
import pickle
import struct
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch

from steval.checkpoints.location import require_plain
from steval.checkpoints.pickle_scan import names_used
from steval.checkpoints.stand_ins import DTypeName, InertObject, encode_latin1, make_scalar, rebuild_tensor
from steval.errors import CheckpointError
from steval.wording import counted

MAX_ARCHIVE_BYTES = 64 * 2**30
"""Largest torch archive that is opened (a 160 M parameter network with its optimiser is under 2 GB)."""
MAX_PICKLE_BYTES = 2 * 2**30
"""Largest plain pickle, and largest pickle within an archive."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_REPLACED: dict[str, Any] = {
    "numpy.dtype": DTypeName,
    "numpy.core.multiarray.scalar": make_scalar,
    "numpy._core.multiarray.scalar": make_scalar,
    "torch.nn.modules.loss.MSELoss": InertObject,
}
_PLAIN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
    "_codecs.encode": encode_latin1,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
}
ALLOWED = frozenset(_REPLACED) | frozenset(_PLAIN) | {f"torch.{name}" for name in _STORAGES}
"""Every name that a foreign file may use (`torch.storage._load_from_bytes` too, in plain pickles)."""

_BYTES_LOADER = "torch.storage._load_from_bytes"
_MALFORMED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)
_SCOPE = threading.Lock()


def load_foreign(path: Path) -> Any:
    """What the file holds: dicts, lists, numbers, strings and CPU tensors (memory-mapped where the format allows).

    Raises `CheckpointError` for a missing, truncated or malformed file, for one that would unpack to more than its own
    size or the limits above, and for any type outside `ALLOWED`, named.
    """
    path = Path(path)
    if not require_plain(path).exists():
        raise CheckpointError(f"no such file: {path}")
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
        if head[:4] == b"PK\x03\x04":
            return _load_archive(path)
        if head[257:262] == b"ustar":
            raise CheckpointError(
                f"{path} is in torch's legacy tar format, which steval does not read: open it with the torch release "
                "that wrote it and save it again"
            )
        size = path.stat().st_size
        if size > MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"{path}: a pickle of {counted(size, 'byte')} is over the limit of {MAX_PICKLE_BYTES:,}"
            )
        return _load_stream(path.read_bytes(), str(path))
    except CheckpointError:
        raise
    except _MALFORMED as error:
        raise CheckpointError(
            f"{path} cannot be read as a torch or pickle file: {type(error).__name__}: {_short(error)}; "
            "it may be truncated: compare its size or digest with the original"
        ) from error


def _load_archive(path: Path) -> Any:
    """A zip written by `torch.save`: checked by directory and names first, then loaded with `weights_only=True`."""
    with zipfile.ZipFile(path) as archive:
        pickle_name = _check_directory(path, archive.infolist())
        _check_names(archive.read(pickle_name), str(path), ALLOWED)
    allowed: list[Any] = [(stand_in, name) for name, stand_in in _REPLACED.items()]
    with _SCOPE, torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _check_directory(path: Path, entries: list[zipfile.ZipInfo]) -> str:
    """The name of the archive's pickle; a directory that torch would not have written is refused."""
    size = path.stat().st_size
    if size > MAX_ARCHIVE_BYTES:
        raise CheckpointError(
            f"{path}: an archive of {counted(size, 'byte')} is over the limit of {MAX_ARCHIVE_BYTES:,}"
        )
    declared = sum(entry.file_size for entry in entries)
    compressed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if compressed or declared > size:
        raise CheckpointError(
            f"{path} declares {counted(declared, 'byte')} in an archive of {size:,} "
            f"({counted(len(compressed), 'compressed entry', 'compressed entries')}); "
            "torch stores its archives uncompressed, so this is not a file of torch's, or a zip bomb"
        )
    names = [entry.filename for entry in entries]
    folders = {name.partition("/")[0] for name in names}
    pickles = [name for name in names if name.endswith(".pkl")]
    if len(set(names)) != len(names) or len(folders) != 1 or pickles != [f"{min(folders)}/data.pkl"]:
        raise CheckpointError(
            f"{path} is not an archive of torch.save: it must hold one folder with one data.pkl and no entry twice "
            f"(found folders {sorted(folders)[:5]!r}, pickles {pickles[:5]!r})"
        )
    pickle_size = next(entry.file_size for entry in entries if entry.filename == pickles[0])
    if pickle_size > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path}: its pickle of {counted(pickle_size, 'byte')} is over the limit of {MAX_PICKLE_BYTES:,}"
        )
    return pickles[0]


def _check_names(data: bytes, source: str, allowed: Set[str]) -> None:
    foreign = names_used(data, source) - allowed
    if foreign:
        raise _refusal(source, sorted(foreign))


def _refusal(source: str, names: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{source} holds {', '.join(repr(name) for name in names)}, which steval does not load: a pickle may run code. "
        f"Allowed are tensors, plain Python values and {', '.join(sorted(_REPLACED))}. Nothing of the file was "
        "executed; if you trust it, export its tensors and settings with the tool that wrote it"
    )


class _RestrictedUnpickler(pickle.Unpickler):
    """Finds only the allowed names, and the storages of a legacy torch stream."""

    def __init__(self, stream: io.BytesIO, source: str, nested: bool):
        super().__init__(stream, encoding="utf-8")
        self.source = source
        self.nested = nested
        self.size = stream.getbuffer().nbytes
        self.storages: dict[str, torch.UntypedStorage] = {}

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name == _BYTES_LOADER and not self.nested:
            return _BytesLoader(self.source)
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        for table in (_REPLACED, _PLAIN):
            if full_name in table:
                return table[full_name]
        raise _refusal(self.source, [full_name])

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # an nn.Module's class with its source text, which nobody reads here
            return pid[1]
        kind, dtype, key, _, num_elements, view = pid
        if kind != "storage" or view is not None or not isinstance(dtype, torch.dtype):
            raise CheckpointError(f"{self.source}: persistent reference {kind!r} is not a tensor storage; refused")
        num_bytes = int(num_elements) * dtype.itemsize
        if not 0 <= num_bytes <= self.size:
            raise CheckpointError(
                f"{self.source}: a tensor of {counted(num_bytes, 'byte')} in a file of {self.size:,}; refused"
            )
        if str(key) not in self.storages:
            if sum(storage.nbytes() for storage in self.storages.values()) + num_bytes > self.size:
                raise CheckpointError(f"{self.source}: its tensors are larger than the file; refused")
            self.storages[str(key)] = torch.UntypedStorage(num_bytes)
        return torch.TypedStorage(wrap_storage=self.storages[str(key)], dtype=dtype, _internal=True)


class _BytesLoader:
    """`torch.storage._load_from_bytes`, which a plainly pickled tensor calls, through this module's own reader."""

    __slots__ = ("source",)

    def __init__(self, source: str):
        self.source = source

    def __call__(self, data: bytes) -> Any:
        if not isinstance(data, bytes):
            raise CheckpointError(f"{self.source}: nested tensor data is not a torch stream; refused")
        return _load_stream(data, self.source, nested=True)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


def _load_stream(data: bytes, source: str, nested: bool = False) -> Any:
    """A plain pickle, or torch's legacy stream: magic, protocol, system, object, storage keys, storages."""
    stream = io.BytesIO(data)
    first = _unpickle(stream, data, source, nested)
    if first.value != _LEGACY_MAGIC:
        if nested:
            raise CheckpointError(f"{source}: nested tensor data is not a torch stream; refused")
        return first.value
    _unpickle(stream, data, source, nested)
    _unpickle(stream, data, source, nested)
    content = _unpickle(stream, data, source, nested)
    for key in _unpickle(stream, data, source, nested).value:
        storage = content.storages[str(key)]
        (num_elements,) = struct.unpack("<q", stream.read(8))
        raw = stream.read(storage.nbytes())
        if len(raw) != storage.nbytes() or num_elements < 0:
            raise CheckpointError(f"{source} is truncated: tensor data ends early")
        if raw:
            torch.tensor([], dtype=torch.uint8).set_(storage).copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
    return content.value


class _Unpickled:
    def __init__(self, value: Any, storages: dict[str, torch.UntypedStorage]):
        self.value = value
        self.storages = storages


def _unpickle(stream: io.BytesIO, data: bytes, source: str, nested: bool) -> _Unpickled:
    """The next pickle of the stream, its opcodes walked before it is read."""
    _check_names(data[stream.tell() :], source, ALLOWED if nested else ALLOWED | {_BYTES_LOADER})
    unpickler = _RestrictedUnpickler(stream, source, nested)
    return _Unpickled(unpickler.load(), unpickler.storages)


def check_tensors(tensors: Mapping[str, Any], source: str) -> None:
    """Refuse what is not a tensor, and a tensor whose declared shape is larger than the data behind it.

    A view with stride 0 costs nothing to store and everything to copy.
    """
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{source}: {name!r} holds {type(tensor).__name__}, not a tensor under a name")
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{source}: {name!r} of shape {tuple(tensor.shape)} is larger than its data; refused")


def _short(error: BaseException, limit: int = 200) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]}…"
