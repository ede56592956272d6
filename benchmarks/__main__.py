"""Runs the benchmarks, prints a table of times and ratios, and writes the times to a JSON file.

``python -m benchmarks`` measures everything, in about half an hour on two cores. ``python -m benchmarks --compare
OLD.json NEW.json`` compares two measurements, for example of two commits.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from attnmosaic.core.files import write_atomically
from attnmosaic.core.text import use_substitutes
from attnmosaic.training.runtime import job_globals
from benchmarks import cases, machine, small
from benchmarks.cases import OURS, PARALLEL, PLAIN, QUIET, REFERENCE, Times

GROUPS = ("images", "avx2", "points", "small", "commands", "busy", "memory", "sweep", "hundred", "logging")

TARGETS: dict[str, dict[str, float]] = {
    "where-step": {REFERENCE: 10, PLAIN: 2.4},
    "what-step": {REFERENCE: 80, PLAIN: 10},
    "what/where cycle, k = 5": {REFERENCE: 30, PLAIN: 3},
    "evaluate 30,000 mosaics": {REFERENCE: 20, PLAIN: 7},
    "AVX2: where-step": {PLAIN: 2.4},
    "AVX2: what-step": {PLAIN: 10},
    "AVX2: what/where cycle, k = 5": {PLAIN: 3},
    "AVX2: evaluate 30,000 mosaics": {PLAIN: 7},
    "sample 30,000 mosaics": {REFERENCE: 1, PLAIN: 1},
    "2-D what-epoch": {PLAIN: 1 / 1.15},
    "2-D where-epoch": {PLAIN: 1 / 1.15},
    "2-D run: training": {PLAIN: 1 / 1.5},
    "sweep of ten 2-D runs": {"one after another": 1.6},
    **{f"one core busy: {name}": {QUIET: 1 / 2.5} for name in cases.RUNS},
}
"""Required speed-up of the package against each contender, by case."""

ABOVE: dict[str, tuple[str, float]] = {
    "start-up to the first step": ("imports alone", 2.0),
    "2-D run: command to prompt": ("its imports", 2.0),
    "2-D epoch of one step": (PLAIN, 0.003),
    "peak memory": ("imports alone", 0.8e9),
}
"""A contender and the maximum cost of the package in addition to it, by case: seconds or bytes."""

FRACTIONS = {"logging of a CIFAR run": 0.014}
"""Maximum fraction of the whole run's time, by case."""

AT_MOST: dict[str, tuple[str, float]] = {
    "--help": (OURS, 2.0),
    "--cfg job": (OURS, 2.0),
    "user error": (OURS, 2.0),
    "2-D run: imports": (OURS, 3.5),
    "2-D run: closing figures": (OURS, 0.8),
    "sweep of ten 2-D runs": (PARALLEL, 14.0),
    "sweep of a hundred 2-D runs": (OURS, 360.0),
    "Table 1, one seed of eight rows (computed)": (OURS, 3.5 * 3600),
}
"""A contender and its maximum seconds on two cores, by case."""


def measure(groups: list[str], repeats: int, device: torch.device) -> Times:
    """Runs groups of cases; returns the seconds (bytes for memory) by case and contender."""
    measurements: dict[str, Iterator[tuple[str, str, float]]] = {
        "images": cases.image_cases(repeats, device),
        "avx2": cases.avx2_cases(repeats),
        "points": cases.point_cases(repeats, device),
        "small": small.run_cases(repeats),
        "commands": cases.command_cases(repeats),
        "busy": cases.busy_cases(repeats),
        "memory": cases.memory_cases(),
        "sweep": cases.sweep_cases(repeats),
        "hundred": small.hundred_cases(),
        "logging": cases.logging_cases(1),
    }
    times: Times = {}
    for group in groups:
        cases.gather(measurements[group], times)
    return times


def shown(case: str, values: list[float]) -> str:
    """Returns the text for measured values: their median and, for several values, the smallest and largest."""
    if case == "peak memory":
        scale, unit = 1e-9, "GB"
    else:
        scale, unit = (1e3, "ms") if statistics.median(values) < 1 else (1, "s")

    def number(value: float) -> str:
        return f"{value * scale:.0f}" if value * scale >= 100 else f"{value * scale:.3g}"

    spread = f" ({number(min(values))} to {number(max(values))})" if len(values) > 1 else ""
    return f"{number(statistics.median(values))} {unit}{spread}"


def verdicts(case: str, times: dict[str, list[float]]) -> Iterator[tuple[str, bool | None]]:
    """Yields for each comparison of a case its text, and whether its target is met (None without a target)."""
    medians = {contender: statistics.median(values) for contender, values in times.items()}
    for contender, median in medians.items():
        if contender == OURS or OURS not in medians:
            continue
        if case in FRACTIONS:
            fraction = medians[OURS] / median
            yield f"{fraction:.2%} of {contender} (<= {FRACTIONS[case]:.1%})", fraction <= FRACTIONS[case]
            continue
        if case in ABOVE:
            other, limit = ABOVE[case]
            if contender == other:
                above = medians[OURS] - median
                yield f"{shown(case, [above])} above {contender} (<= {shown(case, [limit])})", above <= limit
            continue
        ratio, target = median / medians[OURS], TARGETS.get(case, {}).get(contender)
        target_text = f" (>= {target:.3g})" if target else ""
        yield f"{ratio:.3g} x {contender}{target_text}", None if target is None else ratio >= target
    if case in AT_MOST:
        contender, limit = AT_MOST[case]
        yield f"{contender} <= {shown(case, [limit])}", medians[contender] <= limit
    if "one after another" in medians:
        ratio, target = medians["one after another"] / medians[PARALLEL], TARGETS[case]["one after another"]
        yield f"{ratio:.3g} x one after another (>= {target})", ratio >= target


def table(times: Times) -> Table:
    """Returns the table of all measurements: medians, smallest and largest values, and ratios."""
    result = Table(title="median (smallest to largest), and speed-up of attnmosaic", title_justify="left")
    for name in ("case", "contender", "time", "speed-up of attnmosaic"):
        result.add_column(name)
    for case, contenders in times.items():
        lines = [(name, shown(case, values)) for name, values in contenders.items()]
        judged = [
            f"[{'red' if met is False else 'green' if met else 'default'}]{text}{' MISSED' if met is False else ''}[/]"
            for text, met in verdicts(case, contenders)
        ]
        for i in range(max(len(lines), len(judged))):
            name, time_ = lines[i] if i < len(lines) else ("", "")
            result.add_row(case if i == 0 else "", name, time_, judged[i] if i < len(judged) else "")
        result.add_section()
    return result


def compare(old: Path, new: Path) -> Table:
    """Returns the table that compares two measurements."""
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (old, new))
    result = Table(title=f"{before['machine']['commit']} against {after['machine']['commit']}", title_justify="left")
    for name in ("case", "contender", "before", "after", "speed-up"):
        result.add_column(name)
    for case, contenders in after["times"].items():
        for contender, values in contenders.items():
            earlier = before["times"].get(case, {}).get(contender)
            if earlier is not None:
                ratio = statistics.median(earlier) / statistics.median(values)
                result.add_row(case, contender, shown(case, earlier), shown(case, values), f"{ratio:.2f}")
    return result


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS), help="measure only these groups")
    parser.add_argument(
        "--repeats", type=int, default=3, help="number of rounds; each round measures every contender once"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--matmul-precision", default="highest", choices=("highest", "high", "medium"))
    parser.add_argument("--json", type=Path, help="file to write; default: outputs/benchmarks/TIME.json")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="compare two measurements")
    options = parser.parse_args()
    use_substitutes()
    console = Console(width=150)
    if options.compare:
        console.print(compare(*options.compare))
        return
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    device = torch.device(options.device)
    # All contenders get the settings of `attnmosaic.train`; torch's default leaves TF32 on for convolutions.
    with job_globals(0, None, options.matmul_precision):
        described = machine.describe(device)
        times = measure(options.only, options.repeats, device)
    path = options.json or Path("outputs", "benchmarks", time.strftime("%Y-%m-%d_%H-%M-%S.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"machine": described, "times": times}, indent=2))
    console.print(table(times))
    console.print(f"{described['device']}, {described['threads']} threads, torch {described['versions']['torch']}")
    console.print(f"matrix products: {described['matmul_precision']}, TF32 in convolutions: {described['cudnn_tf32']}")
    for name, value in described["ceilings"].items():
        console.print(f"  {name}: {value:.3g}")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
