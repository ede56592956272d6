"""Finds out from a run's metrics whether its networks learned, and names what to try.

Each finding is one line: what the metrics show, with its numbers and epochs, then what to try. High accuracy with low
focus is a result and no finding.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from attnmosaic.config.schedule import ORDERS

Config = Mapping[str, Any]
Row = Mapping[str, Any]
Rows = Sequence[Row]
Metrics = Mapping[str, float]

UNCHANGED = 1e-7
"""Change of a running metric that rounding alone explains: each epoch takes the mosaics in other minibatches. A loss,
which is added up in float32, may change by ten times that, relative to its size. In the plateau before Where begins to
focus a stage may change no digit more of the loss, but it does move the weights."""

EQUAL = 3e-7
"""How far the entropy of equal weights lies below its maximum, as a fraction of it: rounding. (A where network of the
documents begins at 7e-7.)"""

UNIFORM = 0.01
"""The same for weights that are called uniform."""


@dataclass(frozen=True)
class Chance:
    """The accuracy of predictions without having learned anything.

    Attributes:
        share: fraction of the most frequent class.
        examples: how many examples the accuracy is measured on.
    """

    share: float
    examples: int

    @property
    def hardly_better(self) -> float:
        """The largest accuracy called hardly better than chance: a tenth of the way from chance to 1."""
        return self.share + 0.1 * (1 - self.share)

    def compared(self, accuracy: float) -> str:
        """Returns in words that an accuracy is up to `hardly_better`; within three standard deviations it is chance."""
        deviations = min(0.05, 3 * math.sqrt(self.share * (1 - self.share) / self.examples))
        how = "no better" if accuracy <= self.share + deviations else "hardly better"
        return f"{how} than chance ({self.share:.3f}, the most frequent class)"


def findings(config: Config, rows: Rows, final: Metrics, chances: Mapping[str, Chance]) -> tuple[str, ...]:
    """Returns a line for each sign that a finished run did not learn; none of a smoke run.

    Args:
        config: the run's resolved config.
        rows: those of ``metrics.csv`` with numbers as numbers; without any, the final metrics alone are judged.
        final: the final metrics, ``{"<split>/<metric>": value}``.
        chances: of each accuracy that has one, by ``<split>/<metric>``.
    """
    if config["scale"] == "smoke":
        return ()
    differs = [*_differs_in_evaluation(config, rows, final)]
    causes = [*_untrained(config, rows), *_stalled_at_end(config, rows), *differs]
    if differs:  # the final accuracy is no measure of what was learned
        return tuple(causes)
    at_chance = [*_at_chance(config, rows, final, chances, explained=bool(causes))]
    lines = [*at_chance, *causes] or [*_unfocused(config, rows, final)]
    return (*lines, *_not_carried_over(final, chances))


def is_idle(config: Config, stage: Rows) -> bool:
    """Returns whether `stalled` may find something in a run that ends with this stage."""
    return _is_still(stage) or _is_dead(config, stage)


def stalled(config: Config, rows: Rows) -> str | None:
    """Returns a line if the stage that ends with the last row changed nothing; None if it did, or of a smoke run."""
    if not rows or config["scale"] == "smoke" or not is_idle(config, last := _stages(config, rows)[-1]):
        return None
    names = _learners(last[0])
    if _is_dead(config, last) and (line := _died(config, rows)):
        return line
    if not _is_still(last) or _has_learned(last[-1], names):
        return None
    return (
        f"nothing changed while {_spoken(names)} learned in epochs {last[0]['epoch']} to {last[-1]['epoch']}: the loss "
        f"is {last[-1]['running/loss']:.6g} throughout; {_reason_of_stall(config, rows, last, names)}"
    )


def _is_still(stage: Rows) -> bool:
    """Returns whether a stage of two epochs or more changed nothing: neither the loss nor what else was measured."""
    losses = [row["running/loss"] for row in stage]
    beside = [name for name in stage[0] if name.startswith("running/") and name != "running/loss"]
    changes = [_spread([row[name] for row in stage]) for name in beside]
    return len(stage) > 1 and _spread(losses) <= 10 * UNCHANGED * max(map(abs, losses)) and max(changes) <= UNCHANGED


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _is_dead(config: Config, stage: Rows) -> bool:
    """Returns whether Where learned in a stage and gave all patches the same weight throughout."""
    return "where" in _learners(stage[0]) and all(_is_equal(config, row) for row in stage)


def _is_equal(config: Config, row: Row) -> bool:
    return row["running/entropy"] >= (1 - EQUAL) * _most(config) > 0


def _stages(config: Config, rows: Rows) -> list[Rows]:
    """Returns the rows of each stage; where one stage is all there is, those of every k epochs, 2 at least."""
    schedule = config["schedule"]
    span = schedule["k"] if len(ORDERS[schedule["order"]]) > 1 else max(2, schedule["k"])
    groups = groupby(rows, key=lambda row: (_learners(row), (row["epoch"] - 1) // span))
    return [list(group) for _, group in groups]


def _learners(row: Row) -> tuple[str, ...]:
    """Returns the names of the networks that learned in an epoch."""
    stage = row.get("stage", "network")
    return ("what", "where") if stage == "joint" else (stage,)


def _spoken(names: Sequence[str]) -> str:
    return " and ".join({"what": "What", "where": "Where", "network": "the network"}[name] for name in names)


def _rates(config: Config, names: Sequence[str]) -> str:
    return " and ".join(f"lr.{name} (it was {config['lr'][name]:g})" for name in names)


def _has_learned(row: Row, names: Sequence[str]) -> bool:
    """Returns whether there is little left to learn for some networks."""
    accuracies = [value for name, value in row.items() if name.startswith("running/") and name.endswith("accuracy")]
    return min(accuracies) >= 0.99 or (names == ("where",) and row["running/focus"] >= 0.9)


def _most(config: Config) -> float:
    """Returns the entropy of equal weights, in nats."""
    return math.log(config["data"]["patches"])


# ---- stages that change nothing


def _stalled_at_end(config: Config, rows: Rows) -> Iterator[str]:
    """Yields what `stalled` finds in the last stage of each kind that has two epochs or more."""
    last: dict[tuple[str, ...], int] = {}
    done = 0
    for stage in _stages(config, rows):
        done += len(stage)
        if len(stage) > 1 or config["schedule"]["k"] == 1:
            last[_learners(stage[0])] = done
    yield from filter(None, (stalled(config, rows[:end]) for end in last.values()))


def _died(config: Config, rows: Rows) -> str | None:
    """Returns a line if Where, whose weights are equal in its last epochs, distinguished patches before."""
    most = _most(config)
    learned = [i for i, row in enumerate(rows) if "where" in _learners(row)]
    alive = max((i for i in learned if not _is_equal(config, rows[i])), default=-1)
    dead = next(i for i in learned if i > alive)
    best = min(rows[: dead + 1], key=lambda row: row["running/entropy"])
    if best["running/entropy"] > (1 - UNIFORM) * most:
        return None
    first = rows[dead]["epoch"]
    return (
        f"Where died: its weights had entropy {best['running/entropy']:.3f} (of at most {most:.3f}) in epoch "
        f"{best['epoch']}, and since epoch {first} all patches weigh the same; try a smaller lr.where (it was "
        f"{config['lr']['where']:g}), another seed.init or an activation that is nowhere flat (LeakyReLU)"
        f"{_checkpoint_before(config, first)}"
    )


def _checkpoint_before(config: Config, epoch: int) -> str:
    """Returns the words that name the last checkpoint of a cycle from before an epoch, if there is one."""
    cycle = config["schedule"]["k"] * len(ORDERS[config["schedule"]["order"]])
    kept = max(0, epoch - 2) // cycle * cycle  # the epoch before may be the one in which it happened
    if not kept or not (config.get("callbacks") or {}).get("cycle"):
        return ""
    return f"; checkpoints/epoch-{kept:04}.ckpt is from before"


def _reason_of_stall(config: Config, rows: Rows, last: Rows, names: Sequence[str]) -> str:
    if names == ("where",) and last[-1]["running/entropy"] < UNIFORM * _most(config):
        return (
            "its weights are all on one patch of each mosaic, where they have no gradient; try a smaller "
            f"{_rates(config, names)}, another seed.init or schedule=what_then_where"
        )
    before = [stage for stage in _stages(config, rows)[:-1] if _learners(stage[0]) == names]
    learned = any(not _is_still(stage) for stage in before)
    return f"try a {'smaller' if learned else 'larger'} {_rates(config, names)}, or another seed.init"


def _untrained(config: Config, rows: Rows) -> Iterator[str]:
    """Yields a line for each network whose first stage the run did not come to."""
    schedule = config["schedule"]
    trained = {name for row in rows for name in _learners(row)}
    for place, stage in enumerate(ORDERS[schedule["order"]]):
        if rows and "network" not in trained and not trained & {*stage.learners}:
            first = place * schedule["k"] + 1
            yield (
                f"{_spoken(stage.learners)} was not trained: its first stage begins with epoch {first} and the run "
                f"has {rows[-1]['epoch']}; try schedule.epochs={2 * schedule['k']} or more, or a smaller schedule.k"
            )


# ---- accuracy and focus at the end


def _at_chance(
    config: Config, rows: Rows, final: Metrics, chances: Mapping[str, Chance], *, explained: bool
) -> Iterator[str]:
    for name, chance in chances.items():
        if not name.startswith("train/") or final[name] > chance.hardly_better:
            continue
        epochs = f" after epoch {rows[-1]['epoch']}" if rows else ""
        line = f"{name} is {final[name]:.3f}{epochs}, {chance.compared(final[name])}{_where_at_chance(config, final)}"
        running = f"running/{name.partition('/')[2]}"
        best = max(rows[:-1], key=lambda row: row[running], default={running: 0.0})
        lost = best[running] > chance.hardly_better + 0.1  # and no chance of one epoch
        if lost:
            line += f"; it was {best[running]:.3f} in epoch {best['epoch']}"
        yield line if explained else f"{line}; {_advice(config, rows, final, lost=lost)}"


def _where_at_chance(config: Config, final: Metrics) -> str:
    """Returns what the weights are like, in words; nothing if the data give them or there are none."""
    if "train/entropy" not in final or config["data"].get("weights") is not None:
        return ""
    entropy = f"entropy {final['train/entropy']:.3f} of at most {_most(config):.3f}"
    if _is_uniform(config, final["train/entropy"]):
        return f", and the attention weights are uniform ({entropy})"
    by_chance = 1 / config["data"]["patches"]
    focus = f"{final['train/focus']:.3f} of the mosaics ({by_chance:.3f} by chance; {entropy})"
    return f", and the largest weight is on the foreground in {focus}"


def _is_uniform(config: Config, entropy: float) -> bool:
    return entropy >= (1 - UNIFORM) * _most(config) > 0


def _advice(config: Config, rows: Rows, final: Metrics, *, lost: bool) -> str:
    found = {name for row in rows for name in _learners(row)}
    names = [name for name in ("what", "where", "network") if name in found]
    losses = [row["running/loss"] for row in rows]
    hardly_moved = bool(rows) and _spread(losses) < 0.01 * max(map(abs, losses))
    size = "a smaller" if lost else "a larger" if hardly_moved else "another"
    words = [f"{size} {_rates(config, names)}"] if names else []
    if any(str((config["optimizer"][name] or {}).get("_target_")).endswith(".SGD") for name in names):
        words.append("optimizer=adam")
    if "where" in names and _is_uniform(config, final["train/entropy"]) and config["objective"].get("entropy") == 0:
        words.append("objective.entropy=0.1 for sharper weights")
    return f"try {', '.join([*words, 'more epochs'])} or another seed.all"


def _unfocused(config: Config, rows: Rows, final: Metrics) -> Iterator[str]:
    """Yields a line if Where learned, and its weights were uniform throughout."""
    learned = [row for row in rows if "where" in _learners(row)]
    entropies = [final["train/entropy"], *(row["running/entropy"] for row in learned)] if learned else []
    if learned and all(_is_uniform(config, entropy) for entropy in entropies):
        sharper = " or objective.entropy=0.1" if config["objective"].get("entropy") == 0 else ""
        yield (
            f"Where learned for {len(learned)} epochs and its weights stayed uniform (entropy "
            f"{entropies[0]:.3f} of at most {_most(config):.3f}, focus {final['train/focus']:.3f}): What sees plain "
            f"averages; try a larger {_rates(config, ['where'])}, more epochs{sharper}"
        )


def _not_carried_over(final: Metrics, chances: Mapping[str, Chance]) -> Iterator[str]:
    """Yields a line for each accuracy that is much better in training and no better than chance on unseen examples."""
    for name, chance in chances.items():
        metric = name.partition("/")[2]
        seen = final[f"train/{metric}"]
        if name.startswith("held_out/") and final[name] <= min(chance.hardly_better, seen - 0.2):
            yield (
                f"{name} is {final[name]:.3f}, {chance.compared(final[name])}, and train/{metric} {seen:.3f}: what was "
                "learned does not carry over to unseen examples; try more of them to train on or smaller networks"
            )


# ---- networks that do otherwise in evaluation


def _differs_in_evaluation(config: Config, rows: Rows, final: Metrics) -> Iterator[str]:
    """Yields a line if final metrics are far from those of the last epochs of training.

    An epoch's mean is from before its last steps, so that it differs from the final value while a run still learns,
    but hardly by more than one epoch's does from the next.
    """
    seen = []
    learned = [row for row in rows if "where" in _learners(row)][-5:]  # a network that rests is in evaluation already
    if learned and _apart(learned, "entropy", final) > _most(config) / 4:
        seen.append(_apart_in_words(learned[-1], "entropy", final))
    last = _stages(config, rows)[-1] if rows else []
    last = last if len(last) > 1 else rows[-5:]
    for metric in [name.partition("/")[2] for name in final if name.startswith("train/") and name.endswith("accuracy")]:
        if _apart(last, metric, final) > 0.1 and final[f"train/{metric}"] < last[-1][f"running/{metric}"]:
            seen.append(_apart_in_words(last[-1], metric, final))
    if seen:
        yield (
            f"{', '.join(seen)}: networks with batch normalisation or dropout do otherwise in evaluation than while "
            "they train; try LayerNorm or GroupNorm instead, or without either smaller learning rates"
        )


def _apart(rows: Rows, metric: str, final: Metrics) -> float:
    """Returns how far a final value is from the last running one; 0 if no further than twice what two epochs differ."""
    running = [row[f"running/{metric}"] for row in rows]
    if len(running) < 2:
        return 0
    apart = abs(running[-1] - final[f"train/{metric}"])
    return apart if apart > 2 * max(abs(after - before) for before, after in pairwise(running)) else 0


def _apart_in_words(row: Row, metric: str, final: Metrics) -> str:
    now = final[f"train/{metric}"]
    return f"train/{metric} was {row[f'running/{metric}']:.3f} while training in epoch {row['epoch']} and is {now:.3f}"
