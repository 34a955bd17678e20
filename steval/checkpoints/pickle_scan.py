"""A look at a pickle's opcodes without running them: which names it uses, and whether it would break the reader."""

import pickle
import pickletools
from typing import Any

from steval.errors import CheckpointError
from steval.wording import counted

MAX_TUPLE_DEPTH = 100
"""Tuples nested deeper are no data: hashing one as a key recurses in C until the process dies."""

_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_MARK = -1


def names_used(data: bytes, source: str) -> set[str]:
    """Fully qualified names that the first pickle of `data` looks up by GLOBAL or INST.

    (STACK_GLOBAL takes its name from the stack; the unpickler that finds classes has to judge those.) Raises
    `CheckpointError` for memo numbers beyond the pickle's length, which ask for memory, and for tuples nested beyond
    reason; `ValueError` or `UnpicklingError` for malformed pickles.
    """
    names: set[str] = set()
    depths = _TupleDepths()
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", "."))
        elif opcode.name in _PUTS and int(argument or 0) > len(data):
            raise CheckpointError(
                f"{source}: memo number {argument} in a pickle of {counted(len(data), 'byte')}; refused"
            )
        if depths.step(opcode, argument) > MAX_TUPLE_DEPTH:
            raise CheckpointError(f"{source}: tuples nested more than {MAX_TUPLE_DEPTH} deep; refused")
    return names


class _TupleDepths:
    """The unpickler's stack with nesting depths in place of values; only tuples nest (and can be keys)."""

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._memo: dict[int, int] = {}

    def step(self, opcode: Any, argument: Any) -> int:
        """Carry out one opcode; the depth of what is on top then."""
        if opcode.name in _GETS:
            self._stack.append(self._memo.get(int(argument), 0))
        elif opcode.name in _PUTS:
            self._memo[int(argument)] = self._top()
        elif opcode.name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif opcode.name == "DUP":
            self._stack.append(self._top())
        elif opcode.name == "MARK":
            self._stack.append(_MARK)
        else:
            taken = self._take(opcode)
            is_tuple = opcode.name.startswith("TUPLE")
            self._stack += [1 + max(taken, default=0) if is_tuple else 0] * len(opcode.stack_after)
        return self._stack[-1] if self._stack else 0

    def _top(self) -> int:
        if not self._stack:
            raise pickle.UnpicklingError("an opcode needs a value where the stack is empty")
        return self._stack[-1]

    def _take(self, opcode: Any) -> list[int]:
        """Remove what the opcode takes: some values, or all above the last mark and what lies before it."""
        before = list(opcode.stack_before)
        taken: list[int] = []
        if pickletools.markobject in before:
            while self._stack and self._stack[-1] != _MARK:
                taken.append(self._stack.pop())
            if not self._stack:
                raise pickle.UnpicklingError("an opcode needs a mark that is not there")
            self._stack.pop()
            before = before[: before.index(pickletools.markobject)]
        if len(before) > len(self._stack):
            raise pickle.UnpicklingError("an opcode needs a value where the stack is empty")
        return taken + [self._stack.pop() for _ in before]
