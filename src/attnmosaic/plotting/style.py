"""Styles and saves figures, and draws the stages behind curves."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from attnmosaic.core.text import truncate
from attnmosaic.plotting.palette import SMOKE, SMOKE_COLOR, STAGES
from attnmosaic.runs.rows import Span

if TYPE_CHECKING:  # matplotlib is imported when a figure is drawn, not before
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

log = logging.getLogger(__name__)

FORMATS = ("png", "pdf", "svg")
DEFAULT_FORMATS = ("png", "pdf")

COLUMN, PAGE = 3.4, 7.0
"""Inches: the width of a figure in one column of a paper, and across two."""

SHADE = "0.92"
"""Behind the epochs in which Where alone learns."""

# Files drawn again from the same folder are the same, byte by byte.
_METADATA: dict[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


class PlottedFiles(NamedTuple):
    """The files that were written, and the names of the figures that failed."""

    paths: list[Path]
    failed: list[str]


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Applies the package's style to all figures drawn within, whatever the user's own settings are."""
    import matplotlib.style

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs every letter of a PDF
    with (
        as_file(files("attnmosaic.plotting") / "attnmosaic.mplstyle") as style,
        matplotlib.style.context(style, after_reset=True),
    ):
        yield


def draw_all(
    figures: Mapping[str, Callable[[], "Figure"]], folder: Path, formats: Iterable[str], smoke: bool = False
) -> PlottedFiles:
    """Draws and saves figures by their names; one that fails is logged, and the others are drawn."""
    drawn = PlottedFiles([], [])
    with styled():
        for name, draw in figures.items():
            try:
                drawn.paths.extend(save(draw(), folder, name, formats, smoke))
            except Exception:  # a picture that fails ends no run
                log.warning("%s: %s could not be drawn", folder, name, exc_info=True)
                drawn.failed.append(name)
    return drawn


def save(figure: "Figure", folder: Path, name: str, formats: Iterable[str], smoke: bool = False) -> list[Path]:
    """Writes ``<folder>/<name>.<format>`` in each format and returns the paths.

    Args:
        figure: the figure; it is laid out here, once for all formats.
        folder: where the files go.
        name: of the files.
        formats: some of `FORMATS`.
        smoke: puts a banner over it.
    """
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # "none" would have every format drawn twice
    box = _banner(figure) if smoke else None
    paths = []
    for form in formats:
        paths.append(folder / f"{name}.{form}")
        figure.savefig(paths[-1], format=form, bbox_inches=box, metadata=_METADATA[form])
    return paths


def _banner(figure: "Figure", height: float = 0.3) -> Any:
    """Puts a banner on top of a figure, outside of it, and returns the box (in inches) that holds both."""
    from matplotlib.patches import Rectangle
    from matplotlib.transforms import Bbox

    width, top = figure.get_size_inches()
    share = height / top
    box = Rectangle((0, 1), 1, share, transform=figure.transFigure, color=SMOKE_COLOR, linewidth=0, clip_on=False)
    figure.add_artist(box, clip=False)
    figure.text(0.5, 1 + share / 2, SMOKE, color="white", fontsize=10, weight="bold", ha="center", va="center")
    return Bbox.from_bounds(0, 0, width, top + height)


def over_epochs(panels: Iterable["Axes"], stages: Sequence[Span], epochs: int) -> None:
    """Prepares panels for curves over epochs; stages in which Where alone learns are shaded.

    A stage is shaded from what was measured before its first epoch to what was measured after its last. Where there
    is room, stages are named.
    """
    from matplotlib.ticker import MaxNLocator

    room = epochs / 12
    for axes in panels:
        for stage, start, end in stages:
            if stage == "where":
                axes.axvspan(start, end, color=SHADE, linewidth=0, zorder=0)
            if len(stages) > 1 and end - start >= room:
                axes.annotate(
                    stage.capitalize(), ((start + end) / 2, 1), (0, -4), va="top", ha="center", color="0.45",
                    xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=6,
                )  # fmt: skip
        axes.set(xlim=(0, max(1, epochs)))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))


def stage_key(stages: Sequence[Span]) -> list["Artist"]:
    """Returns the legend's entries for the stages; none where all epochs are of one."""
    from matplotlib.patches import Patch

    there = {span.stage for span in stages}
    if len(there) < 2:
        return []
    return [
        Patch(facecolor=SHADE if stage == "where" else "white", edgecolor="0.6", label=label)
        for stage, (label, _) in STAGES.items()
        if stage in there
    ]


def points_for(values: Sequence[Any]) -> str:
    """Returns a marker for each of few values, as one value has no line; none for many."""
    return "o" if len(values) <= 2 else ""


def literal(name: str, most: int = 16) -> str:
    """Returns a name as matplotlib is to be given it: no longer than its place, and no mathematics between dollars."""
    return truncate(name, most).replace("$", r"\$")


def key(figure: "Figure", handles: Sequence["Artist"], columns: int | None = None) -> None:
    """Puts a legend below all panels."""
    laid_out = figure.get_layout_engine() is not None
    place: Any = "outside lower center" if laid_out else "lower center"
    figure.legend(handles=[*handles], loc=place, ncols=columns or len(handles))


def entry(label: str, **style: Any) -> "Line2D":
    """Returns a legend's entry in this style."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)


def panels_in_inches(
    rows: int, columns: int, height: float, margins: tuple[float, float, float, float], gaps: tuple[float, float]
) -> tuple["Figure", Any]:
    """Returns a figure of panels at given places, which is faster than having them laid out.

    Args:
        rows: of panels.
        columns: of panels.
        height: of a panel, in inches.
        margins: left, right, below and above all panels, in inches.
        gaps: between columns and between rows, in inches.

    Returns:
        The figure, as wide as a page, and its panels ``[rows, columns]``.
    """
    from matplotlib.figure import Figure

    left, right, bottom, top = margins
    width = (PAGE - left - right - (columns - 1) * gaps[0]) / columns
    tall = bottom + top + rows * height + (rows - 1) * gaps[1]
    figure = Figure(figsize=(PAGE, tall))
    inside = {"left": left / PAGE, "right": 1 - right / PAGE, "bottom": bottom / tall, "top": 1 - top / tall}
    between = {"wspace": gaps[0] / width, "hspace": gaps[1] / height}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=inside | between)
