"""DE of a few perturbations of one side, for work that is divided over processes or machines.

The false discovery rate is corrected within each perturbation, so tables of chunks put together equal the table of the whole:
hand them to `score(de_pred=..., de_real=...)`.
"""

from collections.abc import Sequence
from typing import Literal

import polars as pl

from steval.errors import EvaluationError
from steval.evaluator.cells.pair import Pair
from steval.evaluator.measure.de_tables import REQUIRED
from steval.evaluator.measure.scan import Needs, scan


def de_chunk(
    pair: Pair, which: Literal["pred", "real"], perturbations: Sequence[str], threads: int = 1
) -> pl.DataFrame:
    """pdex's table, the columns that scoring reads, of `perturbations` against the controls of one side."""
    side = pair.side(which)
    unknown = sorted(set(perturbations) - set(pair.perturbations))
    if unknown:
        raise EvaluationError(f"the {side.name} cells hold no perturbation {', '.join(unknown[:10])}")
    groups = {name: side.groups[name] for name in (*perturbations, pair.control)}
    part = side.regrouped(groups, f"{side.subset}/{','.join(sorted(perturbations))}")
    de = scan(part, pair.control, pair.genes, Needs(de=True), threads).de
    assert de is not None
    return de.frame().select(REQUIRED)
