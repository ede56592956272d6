"""Summarizes a search: a table of its trials, and the command that trains the best trial again."""

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from attnmosaic.core.console import render_text
from attnmosaic.core.quoting import command, typed_override
from attnmosaic.runs.run import Run

if TYPE_CHECKING:
    from attnmosaic.search.search import Search

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "stopped"}


def summarize(search: "Search") -> list[str]:
    """Returns the texts to print: a table of all trials, the best trial's metrics and command, and how to resume."""
    trials = search.study.get_trials(deepcopy=False)
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    finished.sort(key=lambda trial: trial.value or 0, reverse=search.options.direction == "maximize")
    others = [trial for trial in trials if trial.state.name != "COMPLETE"]
    count = f"{len(trials)} of {search.options.n_trials} trials, {len(finished)} finished"
    texts = [f"{search.metric}, {search.options.direction}d; {count}\n{_table(search, [*finished, *others])}"]
    if finished:
        texts += _best(search, finished[0])
    if len(trials) < search.options.n_trials or any(trial.state.name == "RUNNING" for trial in trials):
        texts.append(f"to resume: type the same command with {typed_override('hydra.sweep.dir', str(search.folder))}")
    return texts


def _table(search: "Search", trials: list[Any]) -> str:
    table = Table(box=SIMPLE, padding=0)
    for name in ("trial", search.metric, *search.space.searched):
        table.add_column(name, justify="right")
    table.add_column("state")
    for trial in trials:
        value = f"{trial.value:.4f}" if trial.state.name == "COMPLETE" else ""
        params = [trial.params.get(key, "") for key in search.space.searched]
        shown = [f"{param:.4g}" if isinstance(param, float) else str(param) for param in params]
        table.add_row(str(trial.number), value, *shown, _state(search, trial))
    return "\n".join([*(line.rstrip() for line in render_text(table).strip("\n").rstrip().splitlines()), ""])


def _state(search: "Search", trial: Any) -> str:
    run = Run(search.folder / str(trial.number))
    state = STATES[trial.state.name]
    if state not in ("pruned", "stopped") or run.config is None:
        return state
    return f"{state} after epoch {run.epochs_done} of {run.config['schedule']['epochs']}"


def _best(search: "Search", trial: Any) -> list[str]:
    selected, _, metric = search.metric.partition("/")
    metrics = (Run(search.folder / str(trial.number)).result or {}).get("metrics", {})
    splits = ("train", "test", "held_out")
    shown = [f"{split} {metrics[key]:.4f}" for split in splits if (key := f"{split}/{metric}") in metrics]
    return [
        f"best: trial {trial.number}, {metric} {', '.join(shown)}; selected on {selected}",
        f"to train the best trial again: {command('train', *search.space.overrides(trial.params))}",
    ]
