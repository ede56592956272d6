"""Prepares one run for the report: its row in the list of runs, curves, mosaics or confusion matrices, and files."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attnmosaic.core.text import truncate
from attnmosaic.plotting.palette import COLOR_NAMES, FOCUS_PREDICTION, GRADIENTS, LARGEST_WEIGHT, SPLITS, Curve
from attnmosaic.reporting.charts import Chart, Line, Points, chart
from attnmosaic.reporting.gallery import Gallery
from attnmosaic.runs.rows import Confusion, Rows, curve, nested_value, number
from attnmosaic.runs.run import CONFIG, Run, seed_name

Links = list[tuple[str, str]]
"""Names of files, with their addresses relative to the page."""


@dataclass(frozen=True)
class RunSection:
    """The section about one run in the HTML report: heading, curves, mosaics, files.

    Attributes:
        run: the run.
        anchor: HTML id of the run's section.
        varied: the run's value for each key that varies in its table.
        heading: heading of the section: the varied values and the seed or, if nothing varies, the run's name.
        gallery: the run's mosaics; None without ``mosaics.npz``.
        charts: the run's charts, by the heading of their group.
        confusions: confusion matrices of a run with two outputs.
        root: the folder that the report is on.
        page_folder: the folder of the page.
    """

    run: Run
    anchor: str
    varied: Mapping[str, str]
    heading: str
    gallery: Gallery | None
    charts: dict[str, list[Chart]]
    confusions: list[Confusion]
    root: Path
    page_folder: Path

    @property
    def relative_folder(self) -> str:
        """The run's folder, relative to the folder that the report is on; empty if they are the same."""
        return "" if self.run.folder == self.root else os.path.relpath(self.run.folder, self.root)

    @property
    def link(self) -> str:
        """The address of the run's folder, relative to the page; empty if the folder does not exist."""
        return relative_link(self.run.folder, self.page_folder) + "/" if self.run.folder.is_dir() else ""

    @property
    def text_files(self) -> Links:
        """Links to the run's config, log, metrics and result."""
        return self._links(self.run.own_files)

    @property
    def plots(self) -> Links:
        return self._links(sorted(self.run.folder.glob("*.png")))

    def _links(self, files: Iterable[Path]) -> Links:
        return [(file.name, relative_link(file, self.page_folder)) for file in files if file.exists()]

    @property
    def seed(self) -> str:
        return seed_of(self.run)

    @property
    def filter_words(self) -> str:
        """The words by which the page's filter finds the run."""
        values = [f"{key}={value}" for key, value in self.varied.items()]
        return " ".join([self.run.name, self.relative_folder, *values, f"seed={self.seed}", self.run.state])

    @property
    def epochs(self) -> tuple[int, int]:
        """The numbers of finished and of planned epochs."""
        return (self.run.result or {}).get("epochs", self.run.epochs_done), planned_epochs(self.run)

    def metric(self, name: str) -> float | None:
        """Returns a final metric; None if it was not measured."""
        return number(nested_value(self.run.result, "metrics", name))

    def accuracies(self, split: str) -> list[float]:
        """Returns the final accuracy on a split, one value for each output."""
        names = [f"{output}_accuracy" for output in self.run.outputs] or ["accuracy"]
        values = [self.metric(f"{split}/{name}") for name in names]
        return [value for value in values if value is not None]

    @property
    def error(self) -> str:
        return (self.run.error or "").strip()

    @property
    def config_text(self) -> str:
        return self.run.text(CONFIG)


def seed_of(run: Run) -> str:
    """Returns the seed of a run or of a planned job; empty if it is not known."""
    seed = nested_value(run.config or run.planned, "seed")
    return seed_name(seed) if seed else ""


def planned_epochs(run: Run) -> int:
    """Returns the planned number of epochs of a run or a planned job; 0 if it is not known."""
    return nested_value(run.config or run.planned, "schedule", "epochs") or 0


def relative_link(target: Path, start: Path) -> str:
    """Returns the percent-encoded address of a file or folder, relative to the folder `start`."""
    path = os.fsencode(os.path.relpath(target.absolute(), start.absolute()))
    return quote(path.replace(os.sep.encode(), b"/"), safe="/")


# ---- curves


def charts_of(run: Run) -> dict[str, list[Chart]]:
    """Returns a run's charts, by the heading of their group."""
    rows = run.metrics
    stages = [span._replace(stage=truncate(span.stage.capitalize(), 20)) for span in run.stages]
    common: dict[str, Any] = {"stages": stages, "epochs": planned_epochs(run)}

    def by_split(metric: str) -> list[Line]:
        return [_line(split, spec, _points(rows, f"{split}/{metric}")) for split, spec in SPLITS.items()]

    def with_running(metric: str) -> list[Line]:
        return [Line("running", "grey", ":", _points(rows, f"running/{metric}")), *by_split(metric)]

    loss = chart("Loss", with_running("loss"), log=True, note="running: mean during the epoch", **common)
    if run.outputs:
        accuracies = [
            chart(f"Accuracy of the {output}", with_running(f"{output}_accuracy"), fraction=True, **common)
            for output in run.outputs
        ]
        return {"Curves": curves} if (curves := _without_none(*accuracies, loss)) else {}
    tables = {split: run.rows(f"focus_vs_pred_{split}") for split in SPLITS}
    above = [_line(split, SPLITS[split], _fractions(tables[split], LARGEST_WEIGHT)["confident"]) for split in SPLITS]
    mosaics: dict[str, Any] = {"fraction": True, "note": "fraction of mosaics", **common}
    focused = "fraction of mosaics with the largest weight on the foreground"
    groups = {
        "Focus against prediction": _without_none(
            *(chart(f"Focus and prediction, {split}", _kinds(tables[split]), **mosaics) for split in SPLITS)
        ),
        "Accuracy, focus, loss": _without_none(
            chart("Accuracy", by_split("accuracy"), fraction=True, **common),
            chart("Focus", by_split("focus"), fraction=True, note=focused, **common),
            loss,
        ),
        "Attention weights": _without_none(
            chart("Largest weight above one half", above, **mosaics),
            *_gradients(run.rows("gradients"), common),
        ),
    }
    return {heading: charts for heading, charts in groups.items() if charts}


def _without_none(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _line(name: str, spec: Curve, points: Points) -> Line:
    return Line(name, COLOR_NAMES[spec.color], spec.line, points)


def _kinds(rows: Rows) -> list[Line]:
    fractions = _fractions(rows, FOCUS_PREDICTION)
    return [_line(spec.label, spec, fractions[kind]) for kind, spec in FOCUS_PREDICTION.items()]


def _fractions(rows: Rows, plot: Mapping[str, Curve]) -> dict[str, Points]:
    """Returns the curves of a plot of counts as fractions of all mosaics."""
    counts = {name: dict(_points(rows, spec.column, "epochs")) for name, spec in plot.items()}
    epochs = {epoch for by_epoch in counts.values() for epoch in by_epoch}
    totals = {epoch: sum(by_epoch.get(epoch, 0) for by_epoch in counts.values()) for epoch in epochs}
    return {
        name: [(epoch, count / totals[epoch]) for epoch, count in by_epoch.items() if totals[epoch] > 0]
        for name, by_epoch in counts.items()
    }


def _gradients(rows: Rows, common: dict[str, Any]) -> list[Chart]:
    names = {"foreground": "foreground", "background": "background (sum)"}
    lines = [_line(names[side], spec, _points(rows, spec.column)) for side, spec in GRADIENTS.items()]
    sizes = [line._replace(points=[(x, abs(y)) for x, y in line.points if y]) for line in lines]
    mosaics = number(rows[-1].get("mosaics")) if rows else None
    number_of = "" if mosaics is None else f"{mosaics:,.0f} "
    note = f"with respect to attention weights; mean over {number_of}training mosaics"
    return _without_none(
        chart("Gradient of the loss", lines, zero=True, note=note, **common),
        chart("Absolute gradient of the loss", sizes, log=True, **common),
    )


def _points(rows: Rows, column: str, epoch: str = "epoch") -> Points:
    return list(zip(*curve(rows, column, epoch), strict=True))
