"""Lays out one run: its line among the others, its curves, its mosaics or confusions, its files."""

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
from attnmosaic.runs.rows import Confusion, Rows, curve, dig, number
from attnmosaic.runs.run import CONFIG, Run, seed_name

Links = list[tuple[str, str]]
"""Names and addresses of files."""


@dataclass(frozen=True)
class RunSection:
    """A run as the page shows it.

    Attributes:
        run: the run itself.
        anchor: the name of its section.
        varied: its value of each key that the runs of its table vary.
        called: its label among the others: the varied values, its seed; its name where these say nothing.
        gallery: its mosaics, if it kept any.
        charts: groups of curves, by their heading.
        confusions: of two outputs.
        root: the report's subject.
        page_folder: the folder that the page will lie in.
    """

    run: Run
    anchor: str
    varied: Mapping[str, str]
    called: str
    gallery: Gallery | None
    charts: dict[str, list[Chart]]
    confusions: list[Confusion]
    root: Path
    page_folder: Path

    @property
    def label(self) -> str:
        """The run's folder, relative to the report's subject."""
        return "" if self.run.folder == self.root else os.path.relpath(self.run.folder, self.root)

    @property
    def link(self) -> str:
        """The address of the run's folder, relative to the page; empty if it is not there."""
        return relative_link(self.run.folder, self.page_folder) + "/" if self.run.folder.is_dir() else ""

    @property
    def texts(self) -> Links:
        """The run's settings, log and numbers."""
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
    def words(self) -> str:
        """The words that the page's filter finds the run by."""
        values = [f"{key}={value}" for key, value in self.varied.items()]
        return " ".join([self.run.name, self.label, *values, f"seed={self.seed}", self.run.state])

    @property
    def epochs(self) -> tuple[int, int]:
        """Epochs done, and how many there are to be."""
        return (self.run.result or {}).get("epochs", self.run.epochs_done), planned_epochs(self.run)

    def metric(self, name: str) -> float | None:
        """Returns a final metric, None if it was not measured."""
        return number(dig(self.run.result, "metrics", name))

    def accuracies(self, split: str) -> list[float]:
        """Returns a split's final accuracy; of two outputs both."""
        names = [f"{output}_accuracy" for output in self.run.outputs] or ["accuracy"]
        found = [self.metric(f"{split}/{name}") for name in names]
        return [value for value in found if value is not None]

    @property
    def error(self) -> str:
        return (self.run.error or "").strip()

    @property
    def config_text(self) -> str:
        return self.run.text(CONFIG)


def seed_of(run: Run) -> str:
    """Returns the seed of a run or of a planned job, empty if it is not known."""
    seed = dig(run.config or run.planned, "seed")
    return seed_name(seed) if seed else ""


def planned_epochs(run: Run) -> int:
    """Returns how many epochs a run or a planned job is to have, 0 if that is not known."""
    return dig(run.config or run.planned, "schedule", "epochs") or 0


def relative_link(target: Path, start: Path) -> str:
    """Returns the address of a file or folder, relative to a folder and percent-encoded."""
    path = os.fsencode(os.path.relpath(target.absolute(), start.absolute()))
    return quote(path.replace(os.sep.encode(), b"/"), safe="/")


# ---- curves


def charts_of(run: Run) -> dict[str, list[Chart]]:
    """Returns groups of a run's curves, by their heading."""
    rows = run.metrics
    stages = [span._replace(stage=truncate(span.stage.capitalize(), 20)) for span in run.stages]
    every: dict[str, Any] = {"stages": stages, "epochs": planned_epochs(run)}

    def by_split(metric: str) -> list[Line]:
        return [_line(split, spec, _points(rows, f"{split}/{metric}")) for split, spec in SPLITS.items()]

    def with_running(metric: str) -> list[Line]:
        return [Line("running", "grey", ":", _points(rows, f"running/{metric}")), *by_split(metric)]

    loss = chart("Loss", with_running("loss"), log=True, note="running: mean during the epoch", **every)
    if run.outputs:
        accuracies = [
            chart(f"Accuracy of the {output}", with_running(f"{output}_accuracy"), share=True, **every)
            for output in run.outputs
        ]
        return {"Curves": curves} if (curves := _there(*accuracies, loss)) else {}
    tables = {split: run.rows(f"focus_vs_pred_{split}") for split in SPLITS}
    above = [_line(split, SPLITS[split], _fractions(tables[split], LARGEST_WEIGHT)["confident"]) for split in SPLITS]
    kinds: dict[str, Any] = {"share": True, "note": "share of mosaics", **every}
    groups = {
        "Focus against prediction": _there(
            *(chart(f"Focus and prediction, {split}", _kinds(tables[split]), **kinds) for split in SPLITS)
        ),
        "Accuracy, focus, loss": _there(
            chart("Accuracy", by_split("accuracy"), share=True, **every),
            chart("Focus", by_split("focus"), share=True, note="largest weight on the foreground", **every),
            loss,
        ),
        "Weights": _there(
            chart("Largest weight above one half", above, share=True, note="the rest: below", **every),
            *_gradients(run.rows("gradients"), every),
        ),
    }
    return {heading: charts for heading, charts in groups.items() if charts}


def _there(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _line(name: str, spec: Curve, points: Points) -> Line:
    return Line(name, COLOR_NAMES[spec.color], spec.line, points)


def _kinds(rows: Rows) -> list[Line]:
    fractions = _fractions(rows, FOCUS_PREDICTION)
    return [_line(spec.label, spec, fractions[kind]) for kind, spec in FOCUS_PREDICTION.items()]


def _fractions(rows: Rows, plot: Mapping[str, Curve]) -> dict[str, Points]:
    """Returns the curves of a published plot as fractions of all mosaics."""
    counts = {name: dict(_points(rows, spec.column, "epochs")) for name, spec in plot.items()}
    totals = {epoch: sum(of.get(epoch, 0) for of in counts.values()) for of in counts.values() for epoch in of}
    return {
        name: [(epoch, count / totals[epoch]) for epoch, count in of.items() if totals[epoch] > 0]
        for name, of in counts.items()
    }


def _gradients(rows: Rows, every: dict[str, Any]) -> list[Chart]:
    names = {"foreground": "foreground", "background": "background (sum)"}
    lines = [_line(names[side], spec, _points(rows, spec.column)) for side, spec in GRADIENTS.items()]
    sizes = [line._replace(points=[(x, abs(y)) for x, y in line.points if y]) for line in lines]
    mosaics = number(rows[-1].get("mosaics")) if rows else None
    over = "mean of train" if mosaics is None else f"mean of {mosaics:,.0f} training mosaics"
    return _there(
        chart("Gradient of the loss by the weights", lines, zero=True, note=over, **every),
        chart("The gradient's size", sizes, log=True, **every),
    )


def _points(rows: Rows, column: str, epoch: str = "epoch") -> Points:
    return list(zip(*curve(rows, column, epoch), strict=True))
