"""Names most like one that is not known, in milliseconds also among tens of thousands.

Likeness is `difflib`'s ratio. That takes 70 ms of Python for 18,000 names, so names are first bounded from above by the letters
that they share (numpy), and only those that could be among the nearest are compared.
"""

import heapq
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CUTOFF = 0.5
"""Least ratio of a suggestion."""
LONGEST = 512
"""Letters of a name that are looked at."""
_BUCKETS = 64
_FEW = 64
"""Names that are compared without a bound."""


def nearest_names(name: str, known: Sequence[str], limit: int = 3) -> list[str]:
    """The `limit` names of `known` most like `name`, letter case ignored, most alike first."""
    return Names(known).nearest(name, limit)


class Names:
    """Known names, prepared once for several unknown ones."""

    def __init__(self, known: Sequence[str]):
        self._by_folded = {candidate.casefold()[:LONGEST]: candidate for candidate in reversed(list(known))}
        self._folded = list(self._by_folded)
        self._counts = None if len(self._folded) <= _FEW else _letter_counts(self._folded)

    def nearest(self, name: str, limit: int = 3) -> list[str]:
        """See `nearest_names`."""
        wanted = name.casefold()[:LONGEST]
        matcher = SequenceMatcher()
        matcher.set_seq2(wanted)
        best: list[tuple[float, str]] = []
        for bound, position in self._in_order(wanted):
            if bound < (best[0][0] if len(best) == limit else CUTOFF):
                break
            matcher.set_seq1(self._folded[position])
            if matcher.quick_ratio() < CUTOFF or (ratio := matcher.ratio()) < CUTOFF:
                continue
            found = (ratio, self._folded[position])
            if len(best) < limit:
                heapq.heappush(best, found)
            else:
                heapq.heappushpop(best, found)
        return [self._by_folded[folded] for _, folded in sorted(best, reverse=True)]

    def _in_order(self, wanted: str) -> "list[tuple[float, int]]":
        """Positions that may be like `wanted`, with an upper bound of their ratio, the highest first."""
        if self._counts is None:
            return [(1.0, position) for position in range(len(self._folded))]
        import numpy as np

        own = _letter_counts([wanted])[0]
        shared = np.minimum(self._counts, own).sum(axis=1, dtype=np.int64)
        letters = self._counts.sum(axis=1, dtype=np.int64) + int(own.sum())
        bounds = np.where(letters > 0, 2.0 * shared / np.maximum(1, letters), 1.0)
        order = np.argsort(-bounds, kind="stable")
        return [(float(bounds[position]), int(position)) for position in order if bounds[position] >= CUTOFF]


def _letter_counts(names: Sequence[str]) -> "np.ndarray":
    """How often each letter occurs, `[n, _BUCKETS]` int16; letters may share a bucket, which only loosens the bound."""
    import numpy as np

    lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
    letters = np.frombuffer("".join(names).encode("utf-32-le", "surrogatepass"), dtype=np.uint32) % _BUCKETS
    rows = np.repeat(np.arange(len(names)), lengths)
    counts = np.bincount(rows * _BUCKETS + letters.astype(np.int64), minlength=len(names) * _BUCKETS)
    return counts.reshape(len(names), _BUCKETS).astype(np.int16)
