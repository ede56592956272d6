"""What a search tells when it ends: its trials by value, and how to train the best one again."""

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from attnmosaic.core.console import drawn
from attnmosaic.core.quoting import command, to_type
from attnmosaic.runs.run import Run

if TYPE_CHECKING:
    from attnmosaic.search.search import Search

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "stopped"}


def search_told(search: "Search") -> list[str]:
    """Returns what to print: a table of all trials and, if one was finished, the best one's settings and command."""
    trials = search.study.get_trials(deepcopy=False)
    most = search.options.direction == "maximize"
    finished = sorted(
        (trial for trial in trials if trial.state.name == "COMPLETE"),
        key=lambda trial: (-(trial.value or 0) if most else trial.value, trial.number),
    )
    others = [trial for trial in trials if trial.state.name != "COMPLETE"]
    count = f"{len(trials)} of {search.options.n_trials} trials, {len(finished)} finished"
    shown = [_table(search, [*finished, *others], f"{search.metric}, {search.options.direction}d; {count}")]
    if finished:
        shown += _best(search, finished[0])
    if len(trials) < search.options.n_trials or any(trial.state.name == "RUNNING" for trial in trials):
        shown.append(f"go on: the same command, with {to_type('hydra.sweep.dir', str(search.folder))}")
    return shown


def _table(search: "Search", trials: list[Any], title: str) -> str:
    table = Table(box=SIMPLE, padding=0)
    table.add_column("trial", justify="right")
    table.add_column(search.metric, justify="right")
    for key in search.space.searched:
        table.add_column(key, justify="right")
    table.add_column("state")
    for trial in trials:
        value = f"{trial.value:.4f}" if trial.state.name == "COMPLETE" else ""
        values = (trial.params.get(key, "") for key in search.space.searched)
        told = [f"{one:.4g}" if isinstance(one, float) else str(one) for one in values]
        table.add_row(str(trial.number), value, *told, _state(search, trial))
    # A title of the table's own would be broken to its width.
    return "\n".join([title, *(line.rstrip() for line in drawn(table).strip("\n").rstrip().splitlines()), ""])


def _state(search: "Search", trial: Any) -> str:
    run = Run(search.folder / str(trial.number))
    state = STATES.get(trial.state.name, trial.state.name.lower())
    if state not in ("pruned", "stopped") or run.config is None:
        return state
    return f"{state} after epoch {run.epochs_done} of {run.config['schedule']['epochs']}"


def _best(search: "Search", trial: Any) -> list[str]:
    result = Run(search.folder / str(trial.number)).result or {}
    metric = search.metric.partition("/")[2]
    values = result.get("metrics", {})
    told = [
        f"{split} {values[key]:.4f}"
        for split in ("train", "test", "held_out")
        if (key := f"{split}/{metric}") in values
    ]
    return [
        f"best: trial {trial.number}, {metric} {', '.join(told)}; selected on {search.metric.partition('/')[0]}",
        f"again: {command('train', *search.space.overrides(trial.params))}",
    ]
