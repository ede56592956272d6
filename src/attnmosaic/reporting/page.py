"""Everything a page shows is gathered here, and written as one HTML file that needs nothing beside it."""

import base64
import hashlib
import time
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attnmosaic.drawing import palette
from attnmosaic.record import RECORD, Record, read_record
from attnmosaic.reporting.comparison import MARKS, Comparison, compare
from attnmosaic.reporting.details import Details, details
from attnmosaic.reporting.gallery import gallery, share_out
from attnmosaic.reporting.reading import Troubles, dig, span
from attnmosaic.runs import Run, read_plan, some_runs, sweep_of
from attnmosaic.tables.reproduced import Reproduced, reproduce

MOSAICS = 240
"""How many mosaics a page shows, all runs together: they are most of its size."""

STATES = ("finished", "running", "stopped", "failed", "missing")


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
    troubles = Troubles()
    tables = [compare(table) for table in _tables(runs, troubles)]
    two_outputs = sum(dig(run.config, "model", "network") not in (None, {}) for run in runs)
    shown = [details(run, i, folder, out.parent, troubles, two_outputs <= 6) for i, run in enumerate(runs, 1)]
    _add_galleries(shown, troubles)
    script = _text("report.js")
    environment = Environment(
        loader=PackageLoader("attnmosaic.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fixed": _fixed, "signed": _signed, "short": _short, "when": _when, "lasted": _lasted}
    environment.filters |= {"clamped": lambda share: min(100.0, max(0.0, share)), "zipped": zip}
    template = environment.get_template("page.html.j2")
    lone = folder.absolute() == runs[0].folder.absolute()
    return template.render(
        title=_title(folder, tables, shown, lone),
        folder=str(folder),
        lone=lone,
        commands=_commands(runs, shown),
        span=span(runs),
        made=time.time(),
        version=version("attnmosaic"),
        states={state: count for state in STATES if (count := sum(run.state == state for run in shown))},
        verdicts=_verdicts(tables),
        marks=MARKS,
        smoke=sum(run.smoke for run in shown),
        tables=tables,
        runs=shown,
        environments=_environments(shown),
        troubles=list(dict.fromkeys(troubles)),
        palette=_palette(),
        classes=palette.CLASS_STYLES,
        # Our own files, and nothing of the user's: the only text that is not escaped.
        style=Markup(_text("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _text(name: str) -> str:
    return (files("attnmosaic.reporting") / "templates" / name).read_text()


def _tables(runs: list[Run], troubles: Troubles) -> list[Reproduced]:
    """Returns the tables of all runs; of those that can be placed in one, if some are too odd."""
    try:
        return reproduce(runs)
    except Exception:
        sound = [run for run in runs if troubles.attempt(run.folder, lambda run=run: reproduce([run]), [])]  # type: ignore[misc]
        return troubles.attempt("tables", lambda: reproduce(sound), [])


def _add_galleries(shown: list[Details], troubles: Troubles) -> None:
    records: dict[int, Record] = {}
    for i, run in enumerate(shown):
        if (file := run.run.folder / RECORD).exists():
            record = troubles.attempt(file, lambda file=file: read_record(file), None)  # type: ignore[misc]
            if record is not None:
                records[i] = record
    given = share_out({i: sum(map(len, record.final.values())) for i, record in records.items()}, MOSAICS)
    for i, record in records.items():
        what = shown[i].run.folder / RECORD
        made = troubles.attempt(what, lambda record=record, i=i: gallery(record, given[i]), None)  # type: ignore[misc]
        shown[i].gallery = made


def _title(folder: Path, tables: list[Comparison], shown: list[Details], lone: bool) -> str:
    if lone:
        return shown[0].name
    published = [table for table in tables if table.key != "runs"]
    if len(tables) == len(published) == 1:
        return tables[0].table.published.title
    return folder.absolute().name


def _commands(runs: list[Run], shown: list[Details]) -> list[str]:
    """Returns the commands of all sweeps, and of runs that are jobs of none."""
    sweeps = dict.fromkeys(sweep for run in runs if run.planned is not None and (sweep := sweep_of(run.folder)))
    commands = [str(command) for sweep in sweeps for command in read_plan(sweep)["commands"]]
    commands += [run.command for run in shown if run.run.planned is None and run.command is not None]
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


def _palette() -> dict[str, str]:
    names = ("green", "blue", "orange", "red", "grey", "pink", "sky")
    return {name: getattr(palette, name.upper()) for name in names}


# ---- how numbers are written


def _fixed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _short(text: Any, most: int = 80) -> str:
    """Cuts a name in its middle, which is where long ones say least."""
    text = str(text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 + 1 :]}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _lasted(seconds: float | None) -> str:
    """Writes a duration: 2.8 s, 4 min 05 s, 3 h 20 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
