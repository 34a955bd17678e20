"""Inert stand-ins for the few callables that a foreign pickle may name; none of them runs the file's code.

They keep no state that a file could change (`__setstate__` refuses or ignores), so nothing of one load outlives it.
"""

import pickle
import re
from typing import Any

import numpy as np
import torch

from steval.wording import counted

_NUMPY_CODE = re.compile(r"[biufUS]\d{1,5}|\?")


class InertObject:
    """Takes the place of an object whose content does not matter, such as a loss; its state is dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        return None


class DTypeName:
    """A numpy dtype as written in a pickle: code (`i8`, `U12`, ...) and byte order; never an object dtype."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, align: Any = False, copy: Any = True):
        if not isinstance(code, str) or not _NUMPY_CODE.fullmatch(code):
            raise pickle.UnpicklingError(f"numpy dtype {code!r} is not a plain number or string type")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"numpy byte order {order!r}")
        self.order = order


class _Function:
    """A callable without state: a pickle that tries to give it one is refused."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


class _MakeScalar(_Function):
    __slots__ = ()

    def __call__(self, dtype: DTypeName, raw: bytes | str = b"") -> Any:
        """`numpy.core.multiarray.scalar`, giving the plain Python value."""
        if type(dtype) is not DTypeName:
            raise pickle.UnpicklingError("a numpy scalar without a numpy dtype")
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        numpy_type = np.dtype(dtype.order + dtype.code)
        if len(data) != numpy_type.itemsize:
            raise pickle.UnpicklingError(f"a numpy scalar of {counted(len(data), 'byte')} for dtype {dtype.code}")
        return np.frombuffer(data, dtype=numpy_type)[0].item() if data else numpy_type.type().item()


class _EncodeLatin1(_Function):
    __slots__ = ()

    def __call__(self, text: str, encoding: str = "latin1") -> bytes:
        """`_codecs.encode` as protocol 2 uses it for bytes; any other codec is refused."""
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"codec {encoding!r}")
        return text.encode("latin1")


class _RebuildTensor(_Function):
    __slots__ = ()

    def __call__(self, storage: Any, offset: int, size: Any, stride: Any, requires_grad: Any, hooks: Any) -> Any:
        """`torch._utils._rebuild_tensor_v2` without gradient and hooks; torch checks the bounds."""
        if not isinstance(storage, torch.TypedStorage):
            raise pickle.UnpicklingError("a tensor without a storage")
        empty = torch.empty(0, dtype=storage.dtype)
        return empty.set_(storage._untyped_storage, offset, tuple(size), tuple(stride))


make_scalar = _MakeScalar()
encode_latin1 = _EncodeLatin1()
rebuild_tensor = _RebuildTensor()
