"""Styles and saves figures, and marks the stages behind curves."""

import contextlib
import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from attnmosaic.core.text import truncate
from attnmosaic.plotting.palette import SMOKE, SMOKE_COLOR, STAGES
from attnmosaic.runs.rows import Span

if TYPE_CHECKING:  # matplotlib is imported only when a figure is plotted
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

log = logging.getLogger(__name__)

FORMATS = ("png", "pdf", "svg")
DEFAULT_FORMATS = ("png", "pdf")
"""File formats that the commands `draw` and `collect` write without other instructions."""

COLUMN, PAGE = 3.4, 7.0
"""Width of a figure in inches: in one column of a paper, and across two columns."""

SHADE = "0.92"
"""Grey behind the epochs in which only Where trains."""

# Without dates, figures plotted again from the same folder are the same files byte by byte. The fastest compression of
# a PNG takes a third less time than the default, for files that are a seventh larger.
_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"pil_kwargs": {"compress_level": 1}},
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None}},
}


class PlottedFiles(NamedTuple):
    """Paths of the written files, and names of the failed figures."""

    paths: list[Path]
    failed: list[str]


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Applies the package's style to all figures within the context, independent of the user's matplotlib settings."""
    import matplotlib.style

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs every letter of a PDF
    with (
        as_file(files("attnmosaic.plotting") / "attnmosaic.mplstyle") as style,
        matplotlib.style.context(style, after_reset=True),
    ):
        yield


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Stops the collection of unreachable objects, which would visit all objects of a training process repeatedly."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def draw_all(
    figures: Mapping[str, Callable[[], "Figure"]], folder: Path, formats: Iterable[str], smoke: bool = False
) -> PlottedFiles:
    """Plots and saves figures by name; logs and skips figures that fail."""
    drawn = PlottedFiles([], [])
    with styled():
        for name, draw in figures.items():
            try:
                drawn.paths.extend(save(draw(), folder, name, formats, smoke))
            except Exception:  # a failed picture must not end the run
                log.warning("%s: %s could not be plotted", folder, name, exc_info=True)
                drawn.failed.append(name)
    return drawn


def save(figure: "Figure", folder: Path, name: str, formats: Iterable[str], smoke: bool = False) -> list[Path]:
    """Writes ``<folder>/<name>.<format>`` in each format and returns the paths.

    Args:
        figure: the figure; its layout is computed here, once for all formats.
        folder: folder of the files.
        name: file name without a suffix.
        formats: file formats, from `FORMATS`.
        smoke: whether to add the banner of smoke runs.
    """
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # "none" would draw every format twice
    box = _banner(figure) if smoke else None
    paths = []
    for form in formats:
        paths.append(folder / f"{name}.{form}")
        figure.savefig(paths[-1], format=form, bbox_inches=box, **_OPTIONS[form])
    return paths


def _banner(figure: "Figure", height: float = 0.3) -> Any:
    """Adds a banner above a figure and returns the box, in inches, that holds both."""
    from matplotlib.patches import Rectangle
    from matplotlib.transforms import Bbox

    width, top = figure.get_size_inches()
    fraction = height / top
    box = Rectangle((0, 1), 1, fraction, transform=figure.transFigure, color=SMOKE_COLOR, linewidth=0, clip_on=False)
    figure.add_artist(box, clip=False)
    figure.text(0.5, 1 + fraction / 2, SMOKE, color="white", fontsize=10, weight="bold", ha="center", va="center")
    return Bbox.from_bounds(0, 0, width, top + height)


def set_up_epoch_axes(panels: Iterable["Axes"], stages: Sequence[Span], epochs: int) -> None:
    """Prepares panels for curves over epochs; stages in which only Where trains are shaded.

    A stage is shaded from the evaluation before its first epoch to the evaluation after its last. A stage that is wide
    enough is named.
    """
    from matplotlib.ticker import MaxNLocator

    shortest_named = epochs / 12
    where = [(start, end) for stage, start, end in stages if stage == "where"]
    for axes in panels:
        _shade(axes, where)
        for stage, start, end in stages:
            if len(stages) > 1 and end - start >= shortest_named:
                axes.annotate(
                    stage.capitalize(), ((start + end) / 2, 1), (0, -4), va="top", ha="center", color="0.45",
                    xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=6,
                )  # fmt: skip
        axes.set(xlim=(0, max(1, epochs)))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))


def _shade(axes: "Axes", ranges: Sequence[tuple[int, int]]) -> None:
    """Shades ranges of epochs with a single artist, which is faster than `axvspan` for each of many stages."""
    from matplotlib.collections import PolyCollection

    corners = [[(start, 0), (start, 1), (end, 1), (end, 0)] for start, end in ranges]
    shades = PolyCollection(
        corners, transform=axes.get_xaxis_transform(), facecolor=SHADE, linewidth=0, antialiased=False, zorder=0
    )
    axes.add_collection(shades, autolim=False)


def stage_entries(stages: Sequence[Span]) -> list["Artist"]:
    """Returns the legend entries of the stages; none if all epochs are of one stage."""
    from matplotlib.patches import Patch

    present = {span.stage for span in stages}
    if len(present) < 2:
        return []
    return [
        Patch(facecolor=SHADE if stage == "where" else "white", edgecolor="0.6", label=label)
        for stage, (label, _) in STAGES.items()
        if stage in present
    ]


def marker_for(values: Sequence[Any]) -> str:
    """Returns a marker for a curve of at most two values, otherwise none: a single value has no line."""
    return "o" if len(values) <= 2 else ""


def label_text(name: str, most: int = 16) -> str:
    """Returns a shortened name with escaped dollar signs, which matplotlib would take for mathematics."""
    return truncate(name, most).replace("$", r"\$")


def add_legend(figure: "Figure", handles: Sequence["Artist"], columns: int | None = None) -> None:
    """Adds a legend below all panels."""
    has_layout = figure.get_layout_engine() is not None
    location: Any = "outside lower center" if has_layout else "lower center"
    figure.legend(handles=[*handles], loc=location, ncols=columns or len(handles))


def legend_entry(label: str, **style: Any) -> "Line2D":
    """Returns a legend entry in the given style."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)


def panels_in_inches(
    rows: int, columns: int, height: float, margins: tuple[float, float, float, float], gaps: tuple[float, float]
) -> tuple["Figure", Any]:
    """Returns a figure with panels of fixed size and position, which is faster than matplotlib's automatic layout.

    Args:
        rows: number of rows of panels.
        columns: number of columns of panels.
        height: height of a panel, in inches.
        margins: space to the left of, to the right of, below and above all panels, in inches.
        gaps: space between columns and between rows, in inches.

    Returns:
        The figure, which has the width of a page, and its panels ``[rows, columns]``.
    """
    from matplotlib.figure import Figure

    left, right, bottom, top = margins
    width = (PAGE - left - right - (columns - 1) * gaps[0]) / columns
    tall = bottom + top + rows * height + (rows - 1) * gaps[1]
    figure = Figure(figsize=(PAGE, tall))
    inside = {"left": left / PAGE, "right": 1 - right / PAGE, "bottom": bottom / tall, "top": 1 - top / tall}
    between = {"wspace": gaps[0] / width, "hspace": gaps[1] / height}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=inside | between)
