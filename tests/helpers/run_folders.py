"""Writes folders of runs for tests of reports and tables, and parses HTML pages."""

import csv
import json
from collections.abc import Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from attnmosaic.config.schedule import Schedule
from attnmosaic.config.schema import METRICS, conf_dir, register
from attnmosaic.runs.snapshots import KINDS, Plane, PredictedMosaics, Record
from attnmosaic.tables.varied import comparable

SPLITS = ("train", "test", "held_out")
COUNTS = {"train": (600, 200, 150, 50), "test": (60, 20, 15, 5), "held_out": (50, 30, 15, 5)}
"""Counts of each split's last evaluation: focus true and false with a right prediction, then with a wrong one."""


@cache
def _composed(experiment: str, *overrides: str) -> str:
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", [f"experiment={experiment}", *overrides, "run_dir=RUN"])
    return json.dumps(OmegaConf.to_container(config, resolve=True))


def config_of(experiment: str, *overrides: str, seed: int = 0) -> dict[str, Any]:
    """Returns the resolved config of an experiment."""
    config = json.loads(_composed(experiment, *overrides))
    config["seed"] = dict.fromkeys(("all", "data", "init", "order"), seed)
    config["data"]["seed"] = config["data"]["order_seed"] = seed
    return config


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Writes a run's ``config.yaml`` as JSON, which is valid YAML and faster to write."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")


def write_plan(folder: Path, jobs: dict[str, dict[str, Any]], commands: Sequence[str] = ()) -> None:
    """Writes the plan of a sweep; ``jobs`` has the config of each job by the job's folder."""
    planned = {
        job: {key: config[key] for key in ("name", "scale", "schedule", "seed")} | {"settings": comparable(config)}
        for job, config in jobs.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"commands": [*commands], "jobs": planned}))


def pair_metrics(**accuracies: float) -> dict[str, float]:
    """Returns the final metrics of a pair: the given accuracies by split, and 0.5 for all others."""
    metrics = {f"{split}/{metric}": 0.5 for split in SPLITS for metric in METRICS}
    return metrics | {f"{split}/accuracy": value for split, value in accuracies.items()}


def write_run(
    folder: Path,
    experiment: str = "table1/row1",
    seed: int = 0,
    metrics: dict[str, float] | None = None,
    record: Record | None = None,
    overrides: tuple[str, ...] = (),
    epochs: int | None = None,
) -> Path:
    """Writes the folder of a run of a pair; the run is finished if ``metrics`` are given, otherwise stopped."""
    config = config_of(experiment, *overrides, seed=seed)
    write_config(folder, config)
    (folder / "train.log").write_text("begun\n")
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([f"experiment={experiment}", *overrides]))
    total = epochs or config["schedule"]["epochs"]
    schedule = Schedule(**config["schedule"])
    heading = ["epoch", "stage", "running/loss", *(f"{s}/{m}" for s in SPLITS for m in ("loss", "accuracy", "focus"))]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, heading)
        writer.writeheader()
        for epoch in range(1, total + 1):
            row: dict[str, Any] = {"epoch": epoch, "stage": schedule.stage(epoch - 1).name.lower()}
            row["running/loss"] = 2.0 / epoch
            if epoch % 5 == 0:
                row |= {f"{s}/loss": 2.5 / epoch for s in SPLITS}
                row |= {f"{s}/{m}": epoch / (total + 5) for s in SPLITS for m in ("accuracy", "focus")}
            writer.writerow(row)
    for split, (ftpt, ffpt, ftpf, ffpf) in COUNTS.items():
        n = ftpt + ffpt + ftpf + ffpf
        rows = [[epoch, n // 4, n - n // 4, ftpt, ffpt, ftpf, ffpf] for epoch in range(5, total + 1, 5)]
        with (folder / f"focus_vs_pred_{split}.csv").open("w", newline="") as file:
            sides = [f"focus_{f}_pred_{p}" for p in ("true", "false") for f in ("true", "false")]
            csv.writer(file).writerows([["epochs", "argmax > 0.5", "argmax < 0.5", *sides], *rows])
    if record is not None:
        record.save(folder / "mosaics.npz")
    if metrics is not None:
        result = {
            "metrics": metrics, "name": config["name"], "scale": config["scale"], "epochs": total, "seconds": 125.0,
            "seed": config["seed"], "config_hash": f"hash{seed}", "device": "cpu (a fine one)", "threads": 2,
            "versions": {"python": "3.11.0", "torch": "2.9"},
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def image_record(classes: tuple[str, ...] = ("horse", "ship", "truck"), each: int = 2, side: int = 8) -> Record:
    """Returns snapshots of image mosaics, with ``each`` mosaics of each kind for each split."""
    rng = np.random.default_rng(0)
    final = {}
    for split in SPLITS:
        n = each * len(KINDS)
        foreground, label = np.arange(n) % 9, np.arange(n) % 3
        alpha = np.full((n, 9), 0.05, dtype=np.float32)
        probabilities = np.full((n, 3), 0.1, dtype=np.float32)
        for i, kind in enumerate(np.repeat(KINDS, each)):
            alpha[i, (foreground[i] + (kind[1] == "f")) % 9] = 0.6
            probabilities[i, (label[i] + (kind[3] == "f")) % 3] = 0.8
        small = rng.integers(256, size=(n, 9, 4, 4, 3), dtype=np.uint8)
        patches = small.repeat(side // 4, axis=2).repeat(side // 4, axis=3)
        final[split] = PredictedMosaics(100 + np.arange(n), patches, foreground, label, alpha, probabilities)
    counts = {s: dict(zip(("ftpt", "ffpt", "ftpf", "ffpf"), COUNTS[s], strict=True)) for s in SPLITS}
    return Record(classes, (*classes, "cat"), np.arange(3), {}, final, counts)


def point_record() -> Record:
    """Returns snapshots of 2-D mosaics."""
    images = image_record()
    rng = np.random.default_rng(1)
    final = {
        split: PredictedMosaics(
            mosaics.rows, rng.uniform(-1, 1, (len(mosaics), 9, 2)).astype(np.float32), mosaics.foreground,
            mosaics.label, mosaics.alpha, mosaics.probabilities,
        )
        for split, mosaics in images.final.items()
    }  # fmt: skip
    plane = Plane(
        extent=np.array([-1.0, 1.0, -1.0, 1.0]),
        regions=np.repeat(np.arange(3, dtype=np.uint8), 4)[None].repeat(12, axis=0),
        scores=np.zeros((12, 12), dtype=np.float32),
        points=rng.uniform(-1, 1, (20, 2)).astype(np.float32),
        point_classes=np.arange(20) % 4,
        aggregates=np.zeros((4, 2), dtype=np.float32),
        label=np.zeros(4, dtype=int),
        held_out_aggregates=np.zeros((4, 2), dtype=np.float32),
        held_out_label=np.zeros(4, dtype=int),
    )
    return Record(images.classes, images.all_classes, images.epochs, {}, final, images.counts, plane)


PLAIN = {ord("\N{MINUS SIGN}"): "-", ord("\N{EN DASH}"): "-"}


class Page(HTMLParser):
    """A parsed HTML page; minus signs and dashes are replaced by hyphens.

    Attributes:
        tags: all tags with their attributes, in the order of the page.
        rows: texts of the cells of each table row.
        texts: all texts, without styles and scripts.
        data: (type, content) of each script and style.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.data: list[tuple[str, str]] = []
        self._inside: list[str] = []
        self._in_cell = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: (value or "").translate(PLAIN) for name, value in attrs}))
        if tag in ("script", "style"):
            self._inside.append(tag)
            self.data.append((dict(attrs).get("type") or tag, ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside.pop()
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            kind, text = self.data[-1]
            self.data[-1] = (kind, text + data)
            return
        data = data.translate(PLAIN)
        self.texts.append(data)
        if self._in_cell:
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def row(self, *first: str) -> list[str]:
        """Returns the row that begins with the given cells."""
        (match,) = {tuple(row) for row in self.rows if row[: len(first)] == list(first)}
        return list(match)

    def having(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """Returns the attributes of all tags that have the given attributes; ``class_`` means one of the classes."""

        def matches(tag_attributes: dict[str, str]) -> bool:
            for name, value in attributes.items():
                actual = tag_attributes.get(name.strip("_").replace("_", "-"), "")
                if value not in actual.split() and value != actual:
                    return False
            return True

        return [tag_attributes for name, tag_attributes in self.tags if name == tag and matches(tag_attributes)]
