"""Writes the report: one HTML file of all runs in a folder that needs nothing beside it."""

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
from attnmosaic.reporting.gallery import UNSEEN_FIRST, gallery
from attnmosaic.reporting.run_section import RunSection, charts_of, seed_of
from attnmosaic.reporting.spread import spread
from attnmosaic.runs.discovery import last_written, read_plan, some_runs, sweep_of
from attnmosaic.runs.rows import dig
from attnmosaic.runs.run import CONFIG, HYDRA, STATES, Run
from attnmosaic.tables.reproduced import reproduce
from attnmosaic.tables.table import VERDICTS, Table

MOSAICS = 240
"""How many mosaics a page shows, all runs together: they are most of its size."""

MOST_WITH_ALL_CONFUSIONS = 6
"""With more runs of two outputs than these, the confusions of held-out images alone are shown."""


class Environments(NamedTuple):
    """Device, versions and seeds: what all runs share, and by run what they do not."""

    shared: dict[str, str]
    differing: list[str]
    by_run: list[tuple[RunSection, dict[str, str]]]


def write_report(folder: Path, out: Path) -> None:
    """Writes a page about every run in a folder or below it.

    Args:
        folder: of a run, of a sweep, or of several.
        out: the file to write.

    Raises:
        UserError: there is no such folder, or no run in it.
        OSError: the file cannot be written.
    """
    page = render(folder, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(page.encode("utf-8", "replace"))  # names of folders may hold what is no text


def render(folder: Path, out: Path) -> str:
    """Returns the page; links in it lead from the folder of `out`."""
    runs = some_runs(folder)
    tables = reproduce(runs)
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
        made=time.time(),
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
        # Files of ours, and nothing of the user's: the only text that is not escaped.
        style=Markup(_text("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _text(name: str) -> str:
    return (files("attnmosaic.reporting") / "templates" / name).read_text(encoding="utf-8")


def _sections(runs: list[Run], tables: list[Table], folders: tuple[Path, Path]) -> list[RunSection]:
    """Lays the runs out; `folders` are the report's subject and the folder that the page will lie in."""
    names = _names(tables)
    records = {i: record for i, run in enumerate(runs) if (record := run.snapshots) is not None}
    galleries = {i: gallery(record, MOSAICS // len(records)) for i, record in records.items()}
    few = sum(bool(run.outputs) for run in runs) <= MOST_WITH_ALL_CONFUSIONS
    splits = UNSEEN_FIRST if few else UNSEEN_FIRST[:1]
    sections = []
    for i, run in enumerate(runs):
        confusions = [found for output in run.outputs for split in splits if (found := run.confusion(output, split))]
        anchor, charts = f"run-{i + 1}", charts_of(run)
        sections.append(RunSection(run, anchor, *names[run.folder], galleries.get(i), charts, confusions, *folders))
    return sections


def _names(tables: list[Table]) -> dict[Path, tuple[Mapping[str, str], str]]:
    """Returns, by the folder of each run, the values that its table varies and its label among the runs."""
    names: dict[Path, tuple[Mapping[str, str], str]] = {}
    for table in tables:
        for row in table.rows:
            several = len({seed_of(run) for run in row.runs}) > 1
            for run in row.runs:
                seed = [f"seed {seed_of(run)}"] if several and seed_of(run) else []
                called = ", ".join([table.label(row), *seed])
                is_told = table.varied or not table.published.rows
                names[run.folder] = (row.varied, called) if is_told else ({}, run.name)
    return names


def _title(folder: Path, tables: list[Table]) -> str:
    table = tables[0]
    if len(tables) == 1 and table.published.rows:
        return table.published.title
    if len(tables) == 1 and table.varied:
        return f"{table.published.title} by {', '.join(table.varied)}"
    return folder.absolute().name


def _span(runs: list[Run]) -> tuple[float, float] | None:
    """Returns when the first of the runs began and when the last one wrote, as seconds since 1970."""
    begun, written = [], []
    for run in runs:
        if times := [at for file in run.own_files if (at := last_written(file))]:
            begun.append(last_written(run.folder / HYDRA) or last_written(run.folder / CONFIG) or min(times))
            written.append(max(times))
    return (min(begun), max(written)) if begun else None


def _commands(runs: list[Run]) -> list[str]:
    """Returns the commands of all sweeps, and of runs that are jobs of none."""
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
    facts = {key: dig(result, key) for key in ("device", "threads", "config_hash")}
    facts |= {f"seed.{key}": value for key, value in (dig(result, "seed") or {}).items()}
    return {key: str(value) for key, value in (facts | (dig(result, "versions") or {})).items()}
