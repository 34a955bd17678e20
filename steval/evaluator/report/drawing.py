"""How figures are drawn: SVG text of matplotlib's object interface (no global state, no backend), in the report's colours.

Colours are placeholders that `Drawing` turns into CSS variables, so that one drawing suits a light and a dark page.
"""

import re
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from steval.data.files import atomic_path
from steval.errors import ConfigError, EvaluationError
from steval.evaluator.reference.baselines import BASELINES
from steval.evaluator.report.report import PREDICTION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ink": ("#1b1f24", "#e8ebef"),
        "muted": ("#6b7480", "#9aa4b0"),
        "grid": ("#d9dee4", "#2d343c"),
        PREDICTION: ("#1f5fbf", "#6fa8ff"),
        "ceiling": ("#2a8a57", "#58c08a"),
        **{kind: baseline.colours for kind, baseline in BASELINES.items()},
    }
)
"""Name → colour on a light and on a dark page."""
_PLACEHOLDERS = {name: f"#{number:02x}{number:02x}{number:02x}" for number, name in enumerate(COLOURS, start=1)}
"""Colours that no figure has otherwise."""
WIDTH = 7.2
FORMATS = ("svg", "png", "pdf")
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
LONGEST_LABEL = 40
MOST_TICKS = 5
"""Steps of an axis; ticks take more time to draw than anything else."""
_LIGHT: ContextVar[bool] = ContextVar("_LIGHT", default=False)
"""Whether colours are those of a light page instead of placeholders, while a figure is made."""
_LONG_NUMBER = re.compile(r"(?<![\d.])([1-9]\d*\.\d\d)\d+")
"""Coordinates to a hundredth of a point are enough; scale factors below 1 keep their digits."""


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG text with placeholder colours."""

    svg: str

    def themed(self) -> str:
        """With CSS variables, for a page that defines them."""
        return self._coloured(lambda name, light: f"var(--{name}, {light})")

    def plain(self) -> str:
        """With the colours of a light page, for use elsewhere."""
        return self._coloured(lambda _, light: light)

    def _coloured(self, choose: Callable[[str, str], str]) -> str:
        text = self.svg
        for name, (light, _) in COLOURS.items():
            text = text.replace(_PLACEHOLDERS[name], choose(name, light))
        return text


def draw(make: "Callable[[], Figure | None]", number: int, title: str) -> Drawing | None:
    """SVG of the figure that `make` gives, without XML head; None where it gives none.

    Identifiers start with `number`, so that several fit on one page. A user's matplotlib settings (fonts, LaTeX) do not apply.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with _own_settings():
        figure = make()
        if figure is None:
            return None
        buffer = StringIO()
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    return Drawing(_embeddable(buffer.getvalue(), number, title))


def load_ahead() -> None:
    """Import what draws, in a thread, while numbers are computed; an import that fails fails again, and is told, in `draw`."""

    def load() -> None:
        with suppress(Exception):
            from matplotlib.backends.backend_svg import FigureCanvasSVG
            from matplotlib.figure import Figure

            FigureCanvasSVG(Figure())

    Thread(target=load, name="load-matplotlib", daemon=True).start()


@dataclass(frozen=True)
class Plot:
    """A figure for a notebook: shows itself, and is saved by `save("name.svg")` (or .png, .pdf)."""

    figure: "Figure"
    """matplotlib's, to be changed as one likes."""

    def save(self, path: Path | str) -> Path:
        """Write it in the format that the name ends in; returns the path."""
        kind = Path(path).suffix.removeprefix(".")
        if kind not in FORMATS:
            raise ConfigError(f"a figure is saved as {', '.join(FORMATS)}, got {Path(path).name!r}")
        with atomic_path(Path(path)) as partial:
            partial.write_bytes(self._drawn(kind))
        return Path(path)

    def _repr_png_(self) -> bytes:
        return self._drawn("png")

    def _drawn(self, kind: str) -> bytes:
        buffer = BytesIO()
        with _own_settings():
            self.figure.savefig(buffer, format=kind, dpi=144, facecolor="white")
        return buffer.getvalue()


def plot(make: "Callable[[], Figure | None]", nothing: str) -> Plot:
    """The figure that `make` gives in the colours of a light page; an `EvaluationError` that says `nothing` where it gives none."""
    token = _LIGHT.set(True)
    try:
        with _own_settings():
            figure = make()
    finally:
        _LIGHT.reset(token)
    if figure is None:
        raise EvaluationError(nothing)
    return Plot(figure)


@contextmanager
def _own_settings() -> Generator[None]:
    """matplotlib's defaults, whatever the user's settings are; text in SVG stays text."""
    import matplotlib

    defaults: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with warnings.catch_warnings(), matplotlib.rc_context(defaults):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in another script is drawn as boxes
        matplotlib.rcParams["svg.fonttype"] = "none"
        yield


def _embeddable(text: str, number: int, title: str) -> str:
    text = text[text.index("<svg") :]
    identifiers = dict.fromkeys(re.findall(r'\bid="([^"]+)"', text))
    renamed = {name: f"f{number}-{index}" for index, name in enumerate(identifiers)}
    text = re.sub(r'\bid="([^"]+)"', lambda m: f'id="{renamed[m[1]]}"', text)
    text = re.sub(r'(url\(#|href="#)([^")]+)', lambda m: m[1] + renamed.get(m[2], m[2]), text)
    text = _LONG_NUMBER.sub(r"\1", text)
    return re.sub(r"<svg ", lambda _: f'<svg role="img" aria-label="{escape(title)}" ', text, count=1).strip()


def plain(label: str) -> str:
    """A user's label as matplotlib draws it letter by letter: no formula, no control characters, not too long."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in label)
    shown = shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 1]}…"
    return shown.replace("$", r"\$")


def colour(name: str) -> str:
    """Placeholder colour of a predictor or part; one that is not known (of another version of steval) is muted."""
    if _LIGHT.get():
        return COLOURS.get(name, COLOURS["muted"])[0]
    return _PLACEHOLDERS.get(name, _PLACEHOLDERS["muted"])


def new_figure(
    height: float,
    lines: int = 1,
    columns: int = 1,
    *,
    left: float = 0.55,
    top: float = 0.25,
    bottom: float = 0.45,
    gap: float = 0.35,
) -> "tuple[Figure, list[Axes]]":
    """A figure of `lines` × `columns` axes; height and margins in inches, `gap` between columns.

    Margins are set by hand: matplotlib's layout engine would draw everything twice.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    width_each = (WIDTH - left - 0.1 - gap * (columns - 1)) / columns
    height_each = (height - top - bottom - 0.5 * (lines - 1)) / lines
    figure.subplots_adjust(
        left=left / WIDTH,
        right=1 - 0.1 / WIDTH,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=gap / width_each,
        hspace=0.5 / height_each,
    )
    axes = [figure.add_subplot(lines, columns, index + 1) for index in range(lines * columns)]
    for each in axes:
        each.set_facecolor("none")
        each.locator_params(nbins=MOST_TICKS)
        each.tick_params(colors=colour("ink"), labelsize=7.5, length=2.5, width=0.6)
        each.xaxis.label.set(color=colour("ink"), fontsize=8)
        each.yaxis.label.set(color=colour("ink"), fontsize=8)
        each.title.set(color=colour("ink"), fontsize=8.5)
        each.grid(axis="x", color=colour("grid"), lw=0.6)
        each.set_axisbelow(True)
        for name, spine in each.spines.items():
            spine.set(visible=name in ("left", "bottom"), color=colour("muted"), lw=0.7)
    return figure, axes
