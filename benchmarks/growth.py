"""Measures how time and memory grow with the numbers of mosaics, patches, mosaics per step and images in the pool.

``python -m benchmarks.growth`` measures (ten minutes), prints a table and plots ``docs/img/growth.png``. Each point is
a run in its own process, on random 8 x 8 colour images.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from attnmosaic.core.text import use_substitutes
from benchmarks.cases import command, last_number
from benchmarks.first_step import peak_memory

DEFAULTS = {"mosaics": 10_000, "patches": 9, "batch": 250, "pool": 10_000}
VARIED = {
    "mosaics": (1_000, 3_000, 10_000, 30_000, 100_000, 300_000),
    "patches": (4, 9, 25, 50, 100),
    "batch": (25, 50, 100, 250, 1_000, 2_500),
    "pool": (1_000, 10_000, 50_000, 200_000),
}
NAMES = {
    "mosaics": "mosaics", "patches": "patches per mosaic", "batch": "mosaics per step", "pool": "images in the pool",
}  # fmt: skip
MEASURED = ("where-epoch", "what-epoch", "evaluation", "memory")


def measure_run(mosaics: int, patches: int, batch: int, pool: int) -> dict[str, float]:
    """Measures a run in this process: seconds of an epoch of each stage and of an evaluation, and bytes of memory."""
    from benchmarks import project

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    imports = peak_memory()
    settings = (
        *project.IMAGES, "++data.side=8", f"++data.images={pool}", f"data.train_mosaics={mosaics}",
        f"data.patches={patches}", f"data.batch_size={batch}", "schedule.k=3", "schedule.epochs=6",
        "trainer.accelerator=cpu",
    )  # fmt: skip
    epochs, trainer = project.train(*settings)
    return {
        "where-epoch": float(np.min(epochs.others["where"])),
        "what-epoch": float(np.min(epochs.others["what"])),
        "evaluation": project.validate(trainer),
        "memory": peak_memory() - imports,
    }


def slope(xs: list[float], ys: list[float]) -> float:
    """Returns the exponent with which y grows with x, between the two largest values of x."""
    return float(np.log(ys[-1] / ys[-2]) / np.log(xs[-1] / xs[-2]))


def measure() -> dict[str, dict[str, list[float]]]:
    """Returns the values of each varied quantity and the measurements for each value."""
    measurements = {}
    for varied, values in VARIED.items():
        points = []
        for value in values:
            setting = json.dumps(DEFAULTS | {varied: value})
            printed = command("-m", "benchmarks.growth", "--one", setting)[1]
            points.append({name: last_number(rf'"{name}": ([\d.e+-]+)', printed) for name in MEASURED})
            print(f"  {NAMES[varied]} {value}: {points[-1]}", flush=True)
        measurements[varied] = {"value": list(map(float, values))} | {m: [p[m] for p in points] for m in MEASURED}
    return measurements


def table(measurements: dict[str, dict[str, list[float]]]) -> Table:
    """Returns the table of exponents of growth at the largest values; 1 is proportional growth."""
    result = Table(title="exponent of growth between the two largest values (1: proportional)", title_justify="left")
    result.add_column("varied")
    for name in MEASURED:
        result.add_column(name, justify="right")
    for varied, columns in measurements.items():
        exponents = (slope(columns["value"], columns[name]) for name in MEASURED)
        result.add_row(NAMES[varied], *(f"{exponent:.2f}" for exponent in exponents))
    return result


def plot(measurements: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Plots times in the upper row and memory in the lower row, with lines of proportional growth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    panels: Any = figure.subplots(2, len(measurements), sharex="col", sharey="row")
    styles = (("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", "-.", "^"))
    for column, (varied, columns) in enumerate(measurements.items()):
        xs = np.array(columns["value"])
        above, below = panels[:, column]
        for name, (color, line, marker) in zip(MEASURED, styles, strict=False):
            above.plot(xs, columns[name], line, color=color, marker=marker, label=name)
        below.plot(xs, np.array(columns["memory"]) / 1e9, "-", color="#000000", marker="o", label="peak above imports")
        for panel, last in ((above, columns["where-epoch"][-1]), (below, columns["memory"][-1] / 1e9)):
            panel.plot(xs, last * xs / xs[-1], ":", color="0.6", label="proportional")
            panel.set(xscale="log", yscale="log")
            panel.grid(color="0.92")
        below.set_xlabel(NAMES[varied])
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("GB")
    for row in panels:
        row[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--one", type=json.loads, help="measure a single run with these settings in this process")
    parser.add_argument("--plot", type=Path, default=Path("docs/img/growth.png"), help="file of the plot")
    options = parser.parse_args()
    use_substitutes()
    if options.one:
        print(json.dumps(measure_run(**options.one)))
        return
    measurements = measure()
    Console(width=120).print(table(measurements))
    plot(measurements, options.plot)


if __name__ == "__main__":
    main()
