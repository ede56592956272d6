"""What two outputs take for what, as tables."""

import csv
from pathlib import Path

import numpy as np

from attnmosaic.metrics.two_outputs import TwoOutputMetrics


def _matrices(metrics: TwoOutputMetrics) -> dict[str, tuple[np.ndarray, tuple[int, ...]]]:
    """Returns for either output its counts (true in rows, predicted in columns) and the values of its classes."""
    counts = {"digit": metrics.digit, metrics.operation.name: metrics.result}
    values = {"digit": tuple(range(10)), metrics.operation.name: metrics.operation.values}
    return {name: (counts[name].cpu().numpy(), values[name]) for name in counts}


def write_confusion(folder: Path, split: str, metrics: TwoOutputMetrics, scale: str = "full") -> None:
    """Writes ``confusion_<output>_<split>.csv``: raw counts, a row for each true value, a column for each predicted."""
    for name, (counts, values) in _matrices(metrics).items():
        with (folder / f"confusion_{name}_{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            stamp = [scale] if scale == "smoke" else []
            writer.writerow([f"true {name}", *values, *(["scale"] if stamp else [])])
            writer.writerows([value, *row, *stamp] for value, row in zip(values, counts.tolist(), strict=True))
