"""One run, laid out: its line among the others, its curves, its mosaics or confusions, its files."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attnmosaic.core.text import cut
from attnmosaic.plotting.palette import COLOR_NAMES, FOCUS_PREDICTION, GRADIENTS, LARGEST_WEIGHT, SPLITS, Curve
from attnmosaic.reporting.charts import Chart, Line, Points, chart
from attnmosaic.reporting.gallery import Gallery
from attnmosaic.runs.rows import Confusion, Rows, curve, dig, number
from attnmosaic.runs.run import CONFIG, Run, seed_name

LONGEST = 60_000
"""Characters of a file that the report shows, at most."""


@dataclass
class Details:
    """A run as the page shows it; ``anchor`` is its place there.

    Attributes:
        run: the run itself.
        anchor: the name of its section.
        label: its folder, relative to the report's subject.
        link: the address of its folder, relative to the page; empty if it is not there.
        texts: (name, address) of its settings, log and numbers.
        plots: the same of its pictures.
        charts: groups of curves, by their heading.
        gallery: its mosaics, if it kept any.
        confusions: of two outputs.
        varied: its value of each key that the runs of its table vary.
        called: what tells it from the others: what was varied, its seed; its name where that says nothing.
    """

    run: Run
    anchor: str
    label: str
    link: str
    texts: list[tuple[str, str]]
    plots: list[tuple[str, str]]
    charts: dict[str, list[Chart]] = field(default_factory=dict)
    gallery: Gallery | None = None
    confusions: list[Confusion] = field(default_factory=list)
    varied: Mapping[str, str] = field(default_factory=dict)
    called: str = ""

    @property
    def name(self) -> str:
        return str(dig(self.run.config, "name") or dig(self.run.planned, "name") or self.run.folder.name)

    @property
    def state(self) -> str:
        return self.run.state

    @property
    def seed(self) -> str:
        seed = dig(self.run.config, "seed") or dig(self.run.result, "seed") or self.run.from_plan("seed")
        return seed_name(seed) if isinstance(seed, dict) else ""

    @property
    def words(self) -> str:
        """What the page's filter finds it by."""
        values = [f"{key}={value}" for key, value in self.varied.items()]
        return " ".join([self.name, self.label, *values, f"seed={self.seed}", self.state])

    @property
    def epochs(self) -> tuple[int, int]:
        """Epochs done, and how many there are to be."""
        planned = number(dig(self.run.config or self.run.planned, "schedule", "epochs")) or 0
        done = number(dig(self.run.result, "epochs"))
        return int(self.run.epochs_done if done is None else done), int(planned)

    @property
    def seconds(self) -> float | None:
        return number(dig(self.run.result, "seconds"))

    @property
    def device(self) -> str:
        return str(dig(self.run.result, "device") or "")

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
        return excerpt(self.run.error or "", 8000).strip()

    @property
    def config_text(self) -> str:
        return excerpt(self.run.text(CONFIG))


def excerpt(text: str, most: int = LONGEST) -> str:
    """Returns a text, its middle left out if it is long."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n[... {len(text) - most} characters left out ...]\n{text[-most // 2 :]}"


def relative_link(target: Path, start: Path) -> str:
    """Returns the address of a file or folder, relative to a folder and percent-encoded."""
    path = os.fsencode(os.path.relpath(target.absolute(), start.absolute()))
    return quote(path.replace(os.sep.encode(), b"/"), safe="/")


def details(run: Run, place: int, root: Path, page_folder: Path, all_confusions: bool) -> Details:
    """Lays a run out, all but its gallery.

    Args:
        run: the run.
        place: its number in the report.
        root: what the report is about.
        page_folder: where the page will lie.
        all_confusions: whether to show what is taken for what of each split; else of held-out images alone.
    """
    label = "" if run.folder == root else os.path.relpath(run.folder, root)

    def links(files: Iterable[Path]) -> list[tuple[str, str]]:
        return [(file.name, relative_link(file, page_folder)) for file in files if file.exists()]

    shown = Details(
        run=run,
        anchor=f"run-{place}",
        label=label,
        link=relative_link(run.folder, page_folder) + "/" if run.folder.is_dir() else "",
        texts=links(run.own_files),
        plots=links(sorted(run.folder.glob("*.png"))),
    )
    shown.charts = {heading: charts for heading, charts in _charts(run, shown.epochs[1]).items() if charts}
    splits = [*reversed(SPLITS)] if all_confusions else ["held_out"]
    found = [run.confusion(output, split) for output in run.outputs for split in splits]
    shown.confusions = [confusion for confusion in found if confusion is not None]
    return shown


def _charts(run: Run, epochs: int) -> dict[str, list[Chart]]:
    rows = run.metrics
    stages = [span._replace(stage=cut(span.stage.capitalize(), 20)) for span in run.stages]
    every: dict[str, Any] = {"stages": stages, "epochs": epochs}

    def by_split(metric: str) -> list[Line]:
        return [_line(split, drawn, _points(rows, f"{split}/{metric}")) for split, drawn in SPLITS.items()]

    def with_running(metric: str) -> list[Line]:
        return [Line("running", "grey", ":", _points(rows, f"running/{metric}")), *by_split(metric)]

    loss = chart("Loss", with_running("loss"), log=True, note="running: mean during the epoch", **every)
    if run.outputs:
        accuracies = [
            chart(f"Accuracy of the {output}", with_running(f"{output}_accuracy"), share=True, **every)
            for output in run.outputs
        ]
        return {"Curves": _there(*accuracies, loss)}
    tables = {split: run.rows(f"focus_vs_pred_{split}") for split in SPLITS}
    above = [
        _line(split, drawn, _fractions(tables[split], LARGEST_WEIGHT)["confident"]) for split, drawn in SPLITS.items()
    ]
    kinds: dict[str, Any] = {"share": True, "note": "share of mosaics", **every}
    return {
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


def _there(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _line(name: str, drawn: Curve, points: Points) -> Line:
    return Line(name, COLOR_NAMES[drawn.color], drawn.line, points)


def _kinds(rows: Rows) -> list[Line]:
    fractions = _fractions(rows, FOCUS_PREDICTION)
    return [_line(drawn.label, drawn, fractions[kind]) for kind, drawn in FOCUS_PREDICTION.items()]


def _fractions(rows: Rows, plot: Mapping[str, Curve]) -> dict[str, Points]:
    """Returns the curves of a published plot as fractions of all mosaics."""
    counts = {name: dict(_points(rows, drawn.column, "epochs")) for name, drawn in plot.items()}
    totals = {epoch: sum(of.get(epoch, 0) for of in counts.values()) for of in counts.values() for epoch in of}
    return {
        name: [(epoch, count / totals[epoch]) for epoch, count in of.items() if totals[epoch] > 0]
        for name, of in counts.items()
    }


def _gradients(rows: Rows, every: dict[str, Any]) -> list[Chart]:
    lines = [
        _line(f"{side}{' (sum)' * (side == 'background')}", drawn, _points(rows, drawn.column))
        for side, drawn in GRADIENTS.items()
    ]
    sizes = [replace(line, points=[(x, abs(y)) for x, y in line.points if y]) for line in lines]
    mosaics = number(rows[-1].get("mosaics")) if rows else None
    over = "mean of train" if mosaics is None else f"mean of {mosaics:,.0f} training mosaics"
    return _there(
        chart("Gradient of the loss by the weights", lines, zero=True, note=over, **every),
        chart("The gradient's size", sizes, log=True, **every),
    )


def _points(rows: Rows, column: str, epoch: str = "epoch") -> Points:
    return list(zip(*curve(rows, column, epoch), strict=True))
