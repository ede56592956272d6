"""Everything a page shows is gathered here, and written as one HTML file that needs nothing beside it."""

import base64
import hashlib
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attnmosaic import __version__
from attnmosaic.plotting import palette
from attnmosaic.reporting.comparison import MARKS, Comparison, compare
from attnmosaic.reporting.formatting import FILTERS
from attnmosaic.reporting.gallery import gallery, share_out
from attnmosaic.reporting.problems import Problems
from attnmosaic.reporting.run_section import Details, details
from attnmosaic.runs.discovery import last_written, read_plan, some_runs, sweep_of
from attnmosaic.runs.rows import dig
from attnmosaic.runs.run import CONFIG, HYDRA, Run
from attnmosaic.runs.snapshots import RECORD
from attnmosaic.tables.reproduced import Reproduced, reproduce

MOSAICS = 240
"""How many mosaics a page shows, all runs together: they are most of its size."""

MOST_WITH_ALL_CONFUSIONS = 6
"""With more runs of two outputs than these, only what held-out images are taken for is shown."""

STATES = ("finished", "running", "stopped", "pruned", "failed", "missing")


@dataclass(frozen=True)
class Environments:
    """On what runs ran: what all share, and by run what they do not."""

    shared: dict[str, str]
    differing: list[str]
    by_run: list[tuple[Details, dict[str, str]]]


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
    # Names of folders may hold what is no text.
    out.write_bytes(page.encode("utf-8", "replace"))


def render(folder: Path, out: Path) -> str:
    """Returns the page; links in it lead from where ``out`` lies."""
    runs = some_runs(folder)
    problems = Problems()
    tables = [compare(table) for table in _tables(runs, problems)]
    few = sum(bool(run.outputs) for run in runs) <= MOST_WITH_ALL_CONFUSIONS
    shown = []
    for i, run in enumerate(runs, 1):
        laid_out = problems.attempt(run.folder, None, details, run, i, folder, out.parent, few)
        if laid_out is not None:
            shown.append(laid_out)
    _name_runs(shown, tables)
    _add_galleries(shown, problems)
    problems += [f"{run.run.folder / name}: {what}" for run in shown for name, what in run.run.problems.items()]
    script = _text("report.js")
    environment = Environment(
        loader=PackageLoader("attnmosaic.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    template = environment.get_template("page.html.j2")
    lone = len(shown) == 1
    return template.render(
        title=_title(folder, tables, shown, lone),
        folder=str(shown[0].run.folder if lone else folder),
        lone=lone,
        commands=_commands(shown),
        span=_span([run.run for run in shown]),
        made=time.time(),
        version=__version__,
        states={state: count for state in STATES if (count := sum(run.state == state for run in shown))},
        verdicts=_verdicts(tables),
        marks=MARKS,
        smoke=sum(run.run.smoke for run in shown),
        tables=tables,
        spread=[table for table in tables if table.is_spread],
        varied=list(dict.fromkeys(key for run in shown for key in run.varied)),
        runs=shown,
        environments=_environments(shown),
        problems=list(dict.fromkeys(problems)),
        palette=palette.COLORS,
        classes=palette.CLASS_STYLES,
        # Our own files, and nothing of the user's: the only text that is not escaped.
        style=Markup(_text("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _text(name: str) -> str:
    return (files("attnmosaic.reporting") / "templates" / name).read_text(encoding="utf-8")


def _tables(runs: list[Run], problems: Problems) -> list[Reproduced]:
    """Returns the tables of all runs; of those that can be placed in one, if some are too odd."""
    try:
        return reproduce(runs)
    except Exception:
        nothing: list[Reproduced] = []
        sound = [run for run in runs if problems.attempt(run.folder, nothing, reproduce, [run])]
        return problems.attempt("tables", nothing, reproduce, sound)


def _name_runs(shown: list[Details], tables: list[Comparison]) -> None:
    """Gives each run the values that its table's runs vary, and a heading that tells it from the others."""
    rows = {run.folder: (row, table.table) for table in tables for row in table.table.rows for run in row.runs}
    for run in shown:
        row, table = rows.get(run.run.folder, (None, None))
        run.called = run.name
        if row is not None and table is not None and (table.varied or not table.published.rows):
            run.varied = row.varied
            several = len({other.seed for other in shown if rows.get(other.run.folder, (None,))[0] is row}) > 1
            run.called = ", ".join([table.label(row), *([f"seed {run.seed}"] if several and run.seed else [])])


def _add_galleries(shown: list[Details], problems: Problems) -> None:
    records = {i: record for i, run in enumerate(shown) if (record := run.run.snapshots) is not None}
    given = share_out({i: sum(map(len, record.final.values())) for i, record in records.items()}, MOSAICS)
    for i, record in records.items():
        shown[i].gallery = problems.attempt(shown[i].run.folder / RECORD, None, gallery, record, given[i])


def _title(folder: Path, tables: list[Comparison], shown: list[Details], lone: bool) -> str:
    if lone:
        return shown[0].name
    if len(tables) != 1:
        return folder.absolute().name
    (table,) = (comparison.table for comparison in tables)
    if table.published.rows:
        return table.published.title
    if not table.varied:
        return folder.absolute().name
    return f"{table.published.title} by {', '.join(table.varied)}"


def _span(runs: list[Run]) -> tuple[float, float] | None:
    """Returns when the first of the runs began and when the last one wrote, as seconds since 1970."""
    begun, written = [], []
    for run in runs:
        if times := [at for file in run.own_files if (at := last_written(file))]:
            begun.append(last_written(run.folder / HYDRA) or last_written(run.folder / CONFIG) or min(times))
            written.append(max(times))
    return (min(begun), max(written)) if begun else None


def _commands(shown: list[Details]) -> list[str]:
    """Returns the commands of all sweeps, and of runs that are jobs of none."""
    jobs = [run.run.folder for run in shown if run.run.planned is not None]
    sweeps = dict.fromkeys(sweep for folder in jobs if (sweep := sweep_of(folder)))
    commands = [str(command) for sweep in sweeps for command in read_plan(sweep)["commands"]]
    commands += [run.run.command for run in shown if run.run.planned is None and run.run.command is not None]
    return list(dict.fromkeys(commands))


def _verdicts(tables: list[Comparison]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for table in tables:
        for word, n in table.table.verdicts.items():
            counts[word] = counts.get(word, 0) + n
    return counts


def _environments(shown: list[Details]) -> Environments:
    by_run = []
    for run in shown:
        result = run.run.result
        if result is None:
            continue
        told = {key: str(dig(result, key))[:200] for key in ("device", "threads", "config_hash")}
        told |= {f"seed.{key}": str(value)[:40] for key, value in (dig(result, "seed") or {}).items()}
        told |= {str(key)[:60]: str(value)[:60] for key, value in (dig(result, "versions") or {}).items()}
        by_run.append((run, told))
    keys = list(dict.fromkeys(key for _, told in by_run for key in told))
    shared = {key: values.pop() for key in keys if len(values := {told.get(key, "") for _, told in by_run}) == 1}
    return Environments(shared, [key for key in keys if key not in shared], by_run)
