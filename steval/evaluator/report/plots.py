"""The figures of a report one by one, for notebooks: `report.plot.members()`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steval.errors import DataError, nearest_names
from steval.evaluator.report.drawing import Plot, plot
from steval.evaluator.report.figures import draw_changes, draw_distributions, draw_members, draw_overlap
from steval.evaluator.report.report import ScoreReport, of_type

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ScorePlots:
    """What can be drawn of a report. `cell_type` chooses one where it was scored by cell type; None: the first."""

    report: ScoreReport

    def members(self, cell_type: str | None = None) -> Plot:
        """Every metric between the ends of its scale (`ScoreReport.ends`), with intervals and the simple models."""
        return self._plot(
            draw_members, cell_type, "without simple models there are no members to draw: score with train="
        )

    def distributions(self, cell_type: str | None = None) -> Plot:
        """Values of each metric over perturbations, beside the simple models'."""
        return self._plot(draw_distributions, cell_type, "no metric of this report has a value for each perturbation")

    def overlap(self, cell_type: str | None = None) -> Plot:
        """Overlap of significant genes against their number."""
        return self._plot(draw_overlap, cell_type, "this report has no metric of significant genes (overlap_at_N)")

    def changes(self, *perturbations: str, cell_type: str | None = None) -> Plot:
        """Predicted against real change of each perturbation that is named; else of a few, spread over the size of the effect."""
        kept = of_type(self.report.changes, self._type(cell_type))["perturbation"].unique(maintain_order=True).to_list()
        if unknown := [name for name in perturbations if name not in kept]:
            near = nearest_names(unknown[0], kept)
            raise DataError(
                f"the report holds no changes of {', '.join(map(repr, unknown))}"
                + (f"; nearest: {', '.join(near)}" if near else "")
                + f". It holds {len(kept)}: {', '.join(kept[:8])}{', …' if len(kept) > 8 else ''}"
            )
        return self._plot(
            lambda report, of: draw_changes(report, of, perturbations),
            cell_type,
            "this report holds no changes to draw",
        )

    def _plot(
        self, draw: "Callable[[ScoreReport, str | None], Figure | None]", cell_type: str | None, nothing: str
    ) -> Plot:
        chosen = self._type(cell_type)
        return plot(lambda: draw(self.report, chosen), nothing)

    def _type(self, cell_type: str | None) -> str | None:
        types = self.report.breakdown["cell_type"].unique(maintain_order=True).to_list()
        if cell_type is None:
            return types[0]
        if cell_type not in types:
            names = ", ".join(str(name) for name in types if name is not None) or "(it was not scored by cell type)"
            raise DataError(f"the report has no cell type {cell_type!r}; it has: {names}")
        return cell_type
