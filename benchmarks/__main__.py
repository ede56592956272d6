"""Measures, prints a table with every ratio, and writes it as JSON.

``python -m benchmarks`` measures everything (about ten minutes on two cores); ``python -m benchmarks --compare OLD.json
NEW.json`` sets two measurements, of two commits say, side by side.
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
from benchmarks import cases, machine
from benchmarks.cases import OURS, PLAIN, QUIET, REFERENCE, Times

GROUPS = ("images", "points", "commands", "busy", "memory", "sweep", "logging")

TARGETS: dict[str, dict[str, float]] = {
    "where-step": {REFERENCE: 10, PLAIN: 1},
    "what-step": {REFERENCE: 80, PLAIN: 1},
    "what/where cycle, k = 5": {REFERENCE: 18, PLAIN: 1.7},
    "evaluate 30,000 mosaics": {REFERENCE: 20, PLAIN: 1},
    "draw 30,000 mosaics": {REFERENCE: 1, PLAIN: 1},
    "2-D what-epoch": {PLAIN: 1 / 1.15},
    "2-D where-epoch": {PLAIN: 1 / 1.15},
    "sweep of ten 2-D runs": {"one after another": 1.6},
    **{f"one core busy: {name}": {QUIET: 1 / 2.5} for name in cases.RUNS},
}
"""How many times as fast as each contender the package has to be."""

ABOVE_IMPORTS = {"start-up to the first step": 2.0, "peak memory": 0.8e9}
"""What it may take beyond importing torch, torchvision and Lightning: seconds, bytes."""

SHARES = {"logging of a CIFAR run": 0.03}
"""Share of a whole that a part of it may take."""

AT_MOST = {"--help": 2.0, "--cfg job": 2.0, "a slip answered": 2.0}
"""Seconds that an answer may take."""


def measure(groups: list[str], repeats: int, device: torch.device) -> Times:
    """Runs the groups of cases and returns seconds (bytes, for memory) by case and contender."""
    measured: dict[str, Iterator[tuple[str, str, float]]] = {
        "images": cases.image_cases(repeats, device),
        "points": cases.point_cases(repeats, device),
        "commands": cases.command_cases(repeats),
        "busy": cases.busy_cases(repeats),
        "memory": cases.memory_cases(),
        "sweep": cases.sweep_cases(repeats),
        "logging": cases.logging_cases(1),
    }
    times: Times = {}
    for group in groups:
        cases.gather(measured[group], times)
    return times


def shown(case: str, values: list[float]) -> str:
    """Returns the median and, of several values, the smallest and largest, in a unit that suits them."""
    if case == "peak memory":
        scale, unit = 1e-9, "GB"
    else:
        scale, unit = (1e3, "ms") if statistics.median(values) < 1 else (1, "s")

    def number(value: float) -> str:
        return f"{value * scale:.0f}" if value * scale >= 100 else f"{value * scale:.3g}"

    spread = f" ({number(min(values))} to {number(max(values))})" if len(values) > 1 else ""
    return f"{number(statistics.median(values))} {unit}{spread}"


def verdicts(case: str, times: dict[str, list[float]]) -> Iterator[tuple[str, bool | None]]:
    """Yields what each target of a case comes to, and whether it is met (None: there is no target)."""
    medians = {contender: statistics.median(values) for contender, values in times.items()}
    for contender, median in medians.items():
        if contender == OURS or OURS not in medians:
            continue
        if case in SHARES:
            share = medians[OURS] / median
            yield f"{share:.2%} of {contender} (<= {SHARES[case]:.0%})", share <= SHARES[case]
            continue
        if case in ABOVE_IMPORTS:
            if contender == "imports alone":
                beyond = medians[OURS] - median
                limit = ABOVE_IMPORTS[case]
                yield f"{shown(case, [beyond])} beyond imports (<= {shown(case, [limit])})", beyond <= limit
            continue
        ratio, target = median / medians[OURS], TARGETS.get(case, {}).get(contender)
        wanted = f" (>= {target:.3g})" if target else ""
        yield f"{ratio:.3g} x {contender}{wanted}", None if target is None else ratio >= target
    if case in AT_MOST:
        yield f"<= {AT_MOST[case]:.0f} s", medians[OURS] <= AT_MOST[case]
    if "one after another" in medians:
        ratio, target = (
            medians["one after another"] / medians["hydra/launcher=joblib"],
            TARGETS[case]["one after another"],
        )
        yield f"{ratio:.3g} x one after another (>= {target})", ratio >= target


def table(times: Times) -> Table:
    """Draws all measurements: medians, smallest and largest, and ratios."""
    drawn = Table(title="median (smallest to largest) of each, and how many times as fast", title_justify="left")
    for name in ("case", "contender", "time", "attnmosaic against it"):
        drawn.add_column(name)
    for case, contenders in times.items():
        lines = [(name, shown(case, values)) for name, values in contenders.items()]
        judged = [
            f"[{'red' if met is False else 'green' if met else 'default'}]{text}{' MISSED' if met is False else ''}[/]"
            for text, met in verdicts(case, contenders)
        ]
        for i in range(max(len(lines), len(judged))):
            name, time_ = lines[i] if i < len(lines) else ("", "")
            drawn.add_row(case if i == 0 else "", name, time_, judged[i] if i < len(judged) else "")
        drawn.add_section()
    return drawn


def compare(old: Path, new: Path) -> Table:
    """Draws two measurements side by side."""
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (old, new))
    drawn = Table(title=f"{before['machine']['commit']} against {after['machine']['commit']}", title_justify="left")
    for name in ("case", "contender", "before", "after", "times as fast"):
        drawn.add_column(name)
    for case, contenders in after["times"].items():
        for contender, values in contenders.items():
            earlier = before["times"].get(case, {}).get(contender)
            if earlier is not None:
                ratio = statistics.median(earlier) / statistics.median(values)
                drawn.add_row(case, contender, shown(case, earlier), shown(case, values), f"{ratio:.2f}")
    return drawn


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS), help="measure these groups alone")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; contenders take turns in each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--matmul-precision", default="highest", choices=("highest", "high", "medium"))
    parser.add_argument("--json", type=Path, help="where to write; default: outputs/benchmarks/TIME.json")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="show two measurements")
    given = parser.parse_args()
    use_substitutes()
    console = Console(width=150)
    if given.compare:
        console.print(compare(*given.compare))
        return
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    device = torch.device(given.device)
    # For all contenders alike what `attnmosaic.train` sets: torch by itself leaves TF32 on for convolutions.
    with job_globals(0, None, given.matmul_precision):
        described = machine.describe(device)
        times = measure(given.only, given.repeats, device)
    path = given.json or Path("outputs", "benchmarks", time.strftime("%Y-%m-%d_%H-%M-%S.json"))
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
