"""One run, laid out: its line among the others, its curves, its mosaics or confusions, its files."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnmosaic.plotting import palette
from attnmosaic.reporting.charts import Chart, Line, chart
from attnmosaic.reporting.gallery import Gallery
from attnmosaic.reporting.reading import (
    Points,
    TableRows,
    Troubles,
    command_of,
    dig,
    number,
    points,
    read_rows,
    read_text,
    relative_link,
)
from attnmosaic.runs.run import CONFIG, ERROR, RESULT, Run, seed_name

SPLITS = ("train", "test", "held_out")

_NAMES = {getattr(palette, name.upper()): name for name in ("green", "blue", "orange", "red")}
"""What the palette's colours are called in the page."""

SPLIT_STYLES = {
    "running": ("grey", ":"),
    **{split: (_NAMES[color], line) for split, (_, color, line, _) in palette.SPLIT_STYLES.items()},
}
CELL_STYLES = {kind: _NAMES[color] for kind, (_, color, _) in palette.CELLS.items()}

COUNTS = {"ftpt": "true_pred_true", "ffpt": "false_pred_true", "ftpf": "true_pred_false", "ffpf": "false_pred_false"}
"""What the published tables call the four kinds, behind ``focus_``."""

STAGES = {"what": "What", "where": "Where", "joint": "joint"}

LARGEST_MATRIX = 100


@dataclass(frozen=True)
class Confusion:
    """What is taken for what: a row of counts for each true value, and each row's shares."""

    output: str
    split: str
    values: list[str]
    counts: list[list[int]]

    @property
    def accuracy(self) -> float:
        total = sum(map(sum, self.counts))
        return sum(row[i] for i, row in enumerate(self.counts)) / total if total else 0.0

    @property
    def shares(self) -> list[list[float]]:
        return [[count / max(1, sum(row)) for count in row] for row in self.counts]


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
    def smoke(self) -> bool:
        return "smoke" in {dig(told, "scale") for told in (self.run.config, self.run.planned, self.run.result)}

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

    @property
    def outputs(self) -> tuple[str, str] | None:
        """Names of a run's two outputs; None of a pair."""
        return outputs_of(self.run)

    def metric(self, name: str) -> float | None:
        """Returns a final metric, None if it was not measured."""
        return number(dig(self.run.result, "metrics", name))

    def accuracies(self, split: str) -> list[float]:
        """Returns a split's final accuracy; of two outputs both."""
        names = [f"{output}_accuracy" for output in self.outputs] if self.outputs else ["accuracy"]
        found = [self.metric(f"{split}/{name}") for name in names]
        return [value for value in found if value is not None]

    @property
    def error(self) -> str:
        return "" if self.run.error is None else read_text(self.run.folder / ERROR, 8000).strip()

    @property
    def command(self) -> str | None:
        return command_of(self.run)

    @property
    def config_text(self) -> str:
        return read_text(self.run.folder / CONFIG)


def outputs_of(run: Run) -> tuple[str, str] | None:
    """Returns the names of a run's two outputs; None of a pair."""
    if not dig(run.config, "model", "network"):
        return None
    return "digit", str(dig(run.config, "data", "operation") or "sum")


def details(run: Run, place: int, root: Path, page_folder: Path, troubles: Troubles, all_confusions: bool) -> Details:
    """Lays a run out, all but its gallery.

    Args:
        run: the run.
        place: its number in the report.
        root: what the report is about.
        page_folder: where the page will lie.
        troubles: gets what cannot be read.
        all_confusions: whether to show what is taken for what of each split; else of held-out images alone.
    """
    label = "" if run.folder == root else os.path.relpath(run.folder, root)

    def links(files: Iterable[Path]) -> list[tuple[str, str]]:
        return [(file.name, relative_link(file, page_folder)) for file in files if file.exists()]

    texts = [run.folder / name for name in (CONFIG, "train.log", "metrics.csv", RESULT, ERROR)]
    shown = Details(
        run=run,
        anchor=f"run-{place}",
        label=label,
        link=relative_link(run.folder, page_folder) + "/" if run.folder.is_dir() else "",
        texts=links(texts),
        plots=links(sorted(run.folder.glob("*.png"))),
    )
    if run.result is None and (run.folder / RESULT).exists():
        troubles.append(f"{run.folder / RESULT}: is not the whole of a result, so the run counts as unfinished")
    if run.config is None and (run.folder / CONFIG).exists():
        troubles.append(f"{run.folder / CONFIG}: is not the whole of a config")
    nothing: dict[str, list[Chart]] = {}
    groups = troubles.attempt(run.folder, nothing, _charts, shown, troubles)
    shown.charts = {heading: charts for heading, charts in groups.items() if charts}
    if shown.outputs:
        splits = SPLITS[::-1] if all_confusions else SPLITS[-1:]
        for output in shown.outputs:
            for split in splits:
                if found := _confusion(run.folder, output, split, troubles):
                    shown.confusions.append(found)
    return shown


def _charts(shown: Details, troubles: Troubles) -> dict[str, list[Chart]]:
    folder = shown.run.folder
    rows = read_rows(folder / "metrics.csv", troubles)
    stages = [(x, STAGES.get(row["stage"], row["stage"][:20])) for row in rows
              if row.get("stage") and (x := number(row.get("epoch"))) is not None]  # fmt: skip
    every: dict[str, Any] = {"stages": stages, "epochs": shown.epochs[1]}

    def by_split(metric: str, splits: Sequence[str] = SPLITS) -> list[Line]:
        return [Line(split, *SPLIT_STYLES[split], points(rows, f"{split}/{metric}")) for split in splits]

    loss = chart(
        "Loss", by_split("loss", ("running", *SPLITS)), log=True, note="running: mean during the epoch", **every
    )
    if shown.outputs:
        accuracies = [
            chart(
                f"Accuracy of the {output}", by_split(f"{output}_accuracy", ("running", *SPLITS)), share=True, **every
            )
            for output in shown.outputs
        ]
        return {"Curves": _there(*accuracies, loss)}
    counts = {split: read_rows(folder / f"focus_vs_pred_{split}.csv", troubles) for split in SPLITS}
    above = [Line(split, *SPLIT_STYLES[split], _above(counts[split])) for split in SPLITS]
    kinds: dict[str, Any] = {"share": True, "note": "share of mosaics", **every}
    return {
        "Focus against prediction": _there(
            *(chart(f"Focus and prediction, {split}", _kinds(counts[split]), **kinds) for split in SPLITS)
        ),
        "Accuracy, focus, loss": _there(
            chart("Accuracy", by_split("accuracy"), share=True, **every),
            chart("Focus", by_split("focus"), share=True, note="largest weight on the foreground", **every),
            loss,
        ),
        "Weights": _there(
            chart("Largest weight above one half", above, share=True, note="the rest: below", **every),
            *_gradients(read_rows(folder / "gradients.csv", troubles), every),
        ),
    }


def _there(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _kinds(rows: TableRows) -> list[Line]:
    lines = []
    for kind, (label, _, style) in palette.CELLS.items():
        counts = points(rows, f"focus_{COUNTS[kind]}", "epochs")
        lines.append(Line(label, CELL_STYLES[kind], style, _over(counts, [_total(row) for row in rows])))
    return lines


def _above(rows: TableRows) -> Points:
    return _over(points(rows, "argmax > 0.5", "epochs"), [_total(row) for row in rows])


def _over(counts: Points, totals: list[float]) -> Points:
    if len(counts) != len(totals):  # a column that holds no numbers
        return []
    return [(epoch, count / total) for (epoch, count), total in zip(counts, totals, strict=True) if total > 0]


def _total(row: dict[str, str]) -> float:
    return sum(number(row.get(f"focus_{column}")) or 0 for column in COUNTS.values())


def _gradients(rows: TableRows, every: dict[str, Any]) -> list[Chart]:
    sides = (("foreground", "green", "-"), ("background", "red", "--"))
    lines = [Line(f"{side}{' (sum)' * (side == 'background')}", color, style, points(rows, side))
             for side, color, style in sides]  # fmt: skip
    sizes = [Line(line.name, line.color, line.style, [(x, abs(y)) for x, y in line.points if y]) for line in lines]
    mosaics = number(rows[-1].get("mosaics")) if rows else None
    over = "mean of train" if mosaics is None else f"mean of {mosaics:,.0f} training mosaics"
    return _there(
        chart("Gradient of the loss by the weights", lines, zero=True, note=over, **every),
        chart("The gradient's size", sizes, log=True, **every),
    )


def _confusion(folder: Path, output: str, split: str, troubles: Troubles) -> Confusion | None:
    file = folder / f"confusion_{output}_{split}.csv"
    if not file.exists():
        return None

    def read() -> Confusion:
        with file.open(newline="", encoding="utf-8") as opened:
            heading, *rows = csv.reader(opened)
        values = [value for value in heading[1:] if value != "scale"][:LARGEST_MATRIX]
        counts = [[int(count) for count in row[1 : 1 + len(values)]] for row in rows]
        if [len(row) for row in counts] != [len(values)] * len(values):
            raise ValueError("is not square; cut short?")
        return Confusion(output, split, values, counts)

    return troubles.attempt(file, None, read)
