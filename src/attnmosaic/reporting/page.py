"""Writes the report: one self-contained HTML file on all runs in a folder."""

import base64
import hashlib
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attnmosaic import __version__
from attnmosaic.plotting import palette
from attnmosaic.reporting.formatting import FILTERS
from attnmosaic.reporting.gallery import HELD_OUT_FIRST, gallery
from attnmosaic.reporting.run_section import RunSection, charts_of, seed_of
from attnmosaic.reporting.spread import spread
from attnmosaic.runs.discovery import last_written, read_plan, require_runs, sweep_of
from attnmosaic.runs.rows import nested_value
from attnmosaic.runs.run import CONFIG, HYDRA, STATES, Run
from attnmosaic.tables.reproduced import build_tables
from attnmosaic.tables.table import VERDICTS, Table

MOSAICS = 240
"""The most mosaics on a page, summed over all runs, as they take most of its size."""

MOST_WITH_ALL_CONFUSIONS = 6
"""The most runs with two outputs for which all confusion matrices are shown; more runs show only held_out."""


class Environments(NamedTuple):
    """Device, versions and seeds: the values that all runs share, the keys that differ, and each run's values."""

    shared: dict[str, str]
    differing: list[str]
    by_run: list[tuple[RunSection, dict[str, str]]]


def write_report(folder: Path, out: Path) -> None:
    """Writes a page on all runs in a folder or below it.

    Args:
        folder: folder of a run, of a sweep, or of several of them.
        out: the file to write.

    Raises:
        UserError: the folder does not exist or contains no run.
        OSError: the file cannot be written.
    """
    page = render(folder, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(page.encode("utf-8", "replace"))  # Names of folders can contain bytes that are not valid text.


def render(folder: Path, out: Path) -> str:
    """Returns the page's HTML; links are relative to the folder of `out`."""
    runs = require_runs(folder)
    tables = build_tables(runs)
    sections = _sections(runs, tables, (folder, out.parent))
    lone = len(runs) == 1
    script = _text("report.js")
    environment = Environment(
        loader=PackageLoader("attnmosaic.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template("page.html.j2").render(
        title=runs[0].name if lone else _title(folder, tables),
        folder=str(runs[0].folder if lone else folder),
        lone=lone,
        commands=_commands(runs),
        span=_span(runs),
        written=time.time(),
        version=__version__,
        states={state: count for state in STATES if (count := sum(run.state == state for run in runs))},
        verdicts=_verdicts(tables),
        marks=dict(zip(VERDICTS, ("in", "near", "out"), strict=True)),
        smoke=sum(run.smoke for run in runs),
        tables=tables,
        spread=[(table, strips) for table in tables if (strips := spread(table))],
        varied=list(dict.fromkeys(key for section in sections for key in section.varied)),
        runs=sections,
        environments=_environments(sections),
        problems=[f"{run.folder / name}: {reason}" for run in runs for name, reason in run.problems.items()],
        palette=palette.COLORS,
        classes=palette.CLASS_STYLES,
        # Files of this package without any text of the user; all other text is escaped.
        style=Markup(_text("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _text(name: str) -> str:
    return (files("attnmosaic.reporting") / "templates" / name).read_text(encoding="utf-8")


def _sections(runs: list[Run], tables: list[Table], folders: tuple[Path, Path]) -> list[RunSection]:
    """Prepares the sections of the runs; `folders` are the report's folder and the folder of the page."""
    names = _names(tables)
    records = {i: record for i, run in enumerate(runs) if (record := run.snapshots) is not None}
    galleries = {i: gallery(record, MOSAICS // len(records)) for i, record in records.items()}
    few = sum(bool(run.outputs) for run in runs) <= MOST_WITH_ALL_CONFUSIONS
    splits = HELD_OUT_FIRST if few else HELD_OUT_FIRST[:1]
    sections = []
    for i, run in enumerate(runs):
        confusions = [matrix for output in run.outputs for split in splits if (matrix := run.confusion(output, split))]
        anchor, charts = f"run-{i + 1}", charts_of(run)
        sections.append(RunSection(run, anchor, *names[run.folder], galleries.get(i), charts, confusions, *folders))
    return sections


def _names(tables: list[Table]) -> dict[Path, tuple[Mapping[str, str], str]]:
    """Returns, by the folder of each run, its values of the keys that vary in its table, and its heading."""
    names: dict[Path, tuple[Mapping[str, str], str]] = {}
    for table in tables:
        for row in table.rows:
            several = len({seed_of(run) for run in row.runs}) > 1
            for run in row.runs:
                seed = [f"seed {seed_of(run)}"] if several and seed_of(run) else []
                heading = ", ".join([table.label(row), *seed])
                has_values = table.varied or not table.published.rows
                names[run.folder] = (row.varied, heading) if has_values else ({}, run.name)
    return names


def _title(folder: Path, tables: list[Table]) -> str:
    table = tables[0]
    if len(tables) == 1 and table.published.rows:
        return table.published.title
    if len(tables) == 1 and table.varied:
        return f"{table.published.title} by {', '.join(table.varied)}"
    return folder.absolute().name


def _span(runs: list[Run]) -> tuple[float, float] | None:
    """Returns the start of the first run and the time of the last written file, in seconds since 1970."""
    starts, ends = [], []
    for run in runs:
        if times := [written for file in run.own_files if (written := last_written(file))]:
            starts.append(last_written(run.folder / HYDRA) or last_written(run.folder / CONFIG) or min(times))
            ends.append(max(times))
    return (min(starts), max(ends)) if starts else None


def _commands(runs: list[Run]) -> list[str]:
    """Returns the commands of all sweeps, and of all runs that are not jobs of a sweep."""
    sweeps = dict.fromkeys(sweep for run in runs if run.planned is not None and (sweep := sweep_of(run.folder)))
    commands = [command for sweep in sweeps for command in read_plan(sweep)["commands"]]
    commands += [run.command for run in runs if run.planned is None and run.command is not None]
    return list(dict.fromkeys(commands))


def _verdicts(tables: list[Table]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for table in tables:
        for verdict, n in table.verdicts.items():
            counts[verdict] = counts.get(verdict, 0) + n
    return counts


def _environments(sections: list[RunSection]) -> Environments:
    by_run = [(section, _facts(section.run.result)) for section in sections if section.run.result is not None]
    keys = list(dict.fromkeys(key for _, facts in by_run for key in facts))
    shared = {key: values.pop() for key in keys if len(values := {facts.get(key, "") for _, facts in by_run}) == 1}
    return Environments(shared, [key for key in keys if key not in shared], by_run)


def _facts(result: dict[str, Any]) -> dict[str, str]:
    facts = {key: nested_value(result, key) for key in ("device", "threads", "convolutions", "config_hash")}
    facts |= {f"seed.{key}": value for key, value in (nested_value(result, "seed") or {}).items()}
    return {key: str(value) for key, value in (facts | (nested_value(result, "versions") or {})).items()}
