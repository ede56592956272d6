"""Finds signs in a run's metrics that its networks did not learn, and advises what to change.

Each finding is one line: the metrics with their values and epochs, then the advice. High accuracy with low focus is a
valid result, so it is not a finding.
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
"""Largest change of a running metric that rounding alone explains, as each epoch has other minibatches.

For a loss, which is summed in float32, the limit is ten times larger and relative to the loss. Before Where begins to
focus, the loss of a stage can stay below this limit while other metrics still change.
"""

EQUAL = 3e-7
"""Weights are called equal if their entropy is below its maximum by this fraction or less, which rounding explains.

The where network of the mosaic studies starts at 7e-7.
"""

UNIFORM = 0.01
"""Weights are called uniform if their entropy is below its maximum by this fraction or less."""


@dataclass(frozen=True)
class Chance:
    """The accuracy of a classifier that always predicts the most frequent class.

    Attributes:
        fraction: fraction of examples that belong to the most frequent class.
        examples: number of examples that the accuracy is measured on.
    """

    fraction: float
    examples: int

    @property
    def hardly_better(self) -> float:
        """The largest accuracy called hardly better than chance: a tenth of the way from chance to 1."""
        return self.fraction + 0.1 * (1 - self.fraction)

    def describe(self, accuracy: float) -> str:
        """Returns a phrase such as "hardly better than chance (0.333)" for an accuracy of at most `hardly_better`.

        An accuracy within three standard deviations of chance is "no better" than chance.
        """
        margin = min(0.05, 3 * math.sqrt(self.fraction * (1 - self.fraction) / self.examples))
        how = "no better" if accuracy <= self.fraction + margin else "hardly better"
        return f"{how} than chance ({self.fraction:.3f} for always predicting the most frequent class)"


def findings(config: Config, rows: Rows, final: Metrics, chances: Mapping[str, Chance]) -> tuple[str, ...]:
    """Returns a line for each sign that a finished run did not learn; a smoke run has no findings.

    Args:
        config: the run's resolved config.
        rows: the rows of ``metrics.csv``, with numbers parsed; if empty, only the final metrics are judged.
        final: the final metrics, ``{"<split>/<metric>": value}``.
        chances: the chance level of accuracies, by ``<split>/<metric>``.
    """
    if config["scale"] == "smoke":
        return ()
    differs = [*_differs_in_evaluation(config, rows, final)]
    causes = [*_untrained(config, rows), *_stalled_at_end(config, rows), *differs]
    if differs:  # The final accuracy does not show whether the networks learned in training.
        return tuple(causes)
    at_chance = [*_at_chance(config, rows, final, chances, explained=bool(causes))]
    lines = [*at_chance, *causes] or [*_unfocused(config, rows, final)]
    return (*lines, *_not_generalized(final, chances))


def is_idle(config: Config, stage: Rows) -> bool:
    """Returns whether `stalled` can have a finding for a run whose last stage this is.

    Unlike `stalled`, this check needs the rows of one stage only.
    """
    return _is_constant(stage) or _has_equal_weights(config, stage)


def stalled(config: Config, rows: Rows) -> str | None:
    """Returns a line if training had no effect in the last stage of these rows, otherwise None.

    A smoke run has no findings.
    """
    if not rows or config["scale"] == "smoke" or not is_idle(config, last := _stages(config, rows)[-1]):
        return None
    names = _trained(last[0])
    if _has_equal_weights(config, last) and (line := _became_equal(config, rows)):
        return line
    if not _is_constant(last) or _has_learned(last[-1], names):
        return None
    return (
        f"the loss stayed {last[-1]['running/loss']:.6g} and no other metric changed while {_in_words(names)} trained "
        f"in epochs {last[0]['epoch']} to {last[-1]['epoch']}; {_advice_after_stall(config, rows, last, names)}"
    )


def _is_constant(stage: Rows) -> bool:
    """Returns whether neither the loss nor any other running metric changed in a stage of two epochs or more."""
    losses = [row["running/loss"] for row in stage]
    metrics = [name for name in stage[0] if name.startswith("running/") and name != "running/loss"]
    changes = [_range([row[name] for row in stage]) for name in metrics]
    return len(stage) > 1 and _range(losses) <= 10 * UNCHANGED * max(map(abs, losses)) and max(changes) <= UNCHANGED


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _has_equal_weights(config: Config, stage: Rows) -> bool:
    """Returns whether Where trained in a stage and gave all patches the same weight in all its epochs."""
    return "where" in _trained(stage[0]) and all(_is_equal(config, row) for row in stage)


def _is_equal(config: Config, row: Row) -> bool:
    return row["running/entropy"] >= (1 - EQUAL) * _max_entropy(config) > 0


def _stages(config: Config, rows: Rows) -> list[Rows]:
    """Returns the rows of each stage; a schedule with a single stage is split every k epochs, at least every 2."""
    schedule = config["schedule"]
    length = schedule["k"] if len(ORDERS[schedule["order"]]) > 1 else max(2, schedule["k"])
    groups = groupby(rows, key=lambda row: (_trained(row), (row["epoch"] - 1) // length))
    return [list(group) for _, group in groups]


def _trained(row: Row) -> tuple[str, ...]:
    """Returns the names of the networks that trained in an epoch."""
    stage = row.get("stage", "network")
    return ("what", "where") if stage == "joint" else (stage,)


def _in_words(names: Sequence[str]) -> str:
    return " and ".join({"what": "What", "where": "Where", "network": "the network"}[name] for name in names)


def _rates(config: Config, names: Sequence[str]) -> str:
    return " and ".join(f"lr.{name} (it was {config['lr'][name]:g})" for name in names)


def _has_learned(row: Row, names: Sequence[str]) -> bool:
    """Returns whether networks have little left to learn: high accuracy or, for Where alone, high focus."""
    accuracies = [value for name, value in row.items() if name.startswith("running/") and name.endswith("accuracy")]
    return min(accuracies) >= 0.99 or (names == ("where",) and row["running/focus"] >= 0.9)


def _max_entropy(config: Config) -> float:
    """Returns the entropy of equal weights, in nats."""
    return math.log(config["data"]["patches"])


# ---- stages without any change


def _stalled_at_end(config: Config, rows: Rows) -> Iterator[str]:
    """Yields the finding of `stalled` for the last stage of each kind with two epochs or more."""
    ends: dict[tuple[str, ...], int] = {}
    done = 0
    for stage in _stages(config, rows):
        done += len(stage)
        if len(stage) > 1 or config["schedule"]["k"] == 1:
            ends[_trained(stage[0])] = done
    yield from filter(None, (stalled(config, rows[:end]) for end in ends.values()))


def _became_equal(config: Config, rows: Rows) -> str | None:
    """Returns a line if Where gave patches different weights earlier; in its last stage its weights are equal."""
    most = _max_entropy(config)
    where_rows = [i for i, row in enumerate(rows) if "where" in _trained(row)]
    last_unequal = max((i for i in where_rows if not _is_equal(config, rows[i])), default=-1)
    first_equal = next(i for i in where_rows if i > last_unequal)
    best = min(rows[: first_equal + 1], key=lambda row: row["running/entropy"])
    if best["running/entropy"] > (1 - UNIFORM) * most:
        return None
    first = rows[first_equal]["epoch"]
    return (
        f"Where has given all patches the same weight since epoch {first}; in epoch {best['epoch']} the weights had "
        f"entropy {best['running/entropy']:.3f} (of at most {most:.3f}); try a smaller lr.where (it was "
        f"{config['lr']['where']:g}), another seed.init or an activation with a gradient everywhere, such as LeakyReLU"
        f"{_earlier_checkpoint(config, first)}"
    )


def _earlier_checkpoint(config: Config, epoch: int) -> str:
    """Returns a clause with the last cycle before an epoch; empty if there is none, or if cycles have no checkpoints.

    Only cycles that end long enough after the previous checkpoint have one; the finding must not depend on that.
    """
    cycle = config["schedule"]["k"] * len(ORDERS[config["schedule"]["order"]])
    kept = max(0, epoch - 2) // cycle * cycle  # The weights can have become equal in the epoch before.
    if not kept or not (config.get("callbacks") or {}).get("cycle"):
        return ""
    return f"; the last cycle before that ended with epoch {kept} (checkpoints/epoch-{kept:04}.ckpt, if it was kept)"


def _advice_after_stall(config: Config, rows: Rows, last: Rows, names: Sequence[str]) -> str:
    if names == ("where",) and last[-1]["running/entropy"] < UNIFORM * _max_entropy(config):
        return (
            "all attention weight is on one patch of each mosaic, so the weights have no gradient; try a smaller "
            f"{_rates(config, names)}, another seed.init or schedule=what_then_where"
        )
    earlier = [stage for stage in _stages(config, rows)[:-1] if _trained(stage[0]) == names]
    had_effect = any(not _is_constant(stage) for stage in earlier)
    return f"try a {'smaller' if had_effect else 'larger'} {_rates(config, names)}, or another seed.init"


def _untrained(config: Config, rows: Rows) -> Iterator[str]:
    """Yields a line for each network whose first stage begins after the run's last epoch."""
    schedule = config["schedule"]
    trained = {name for row in rows for name in _trained(row)}
    for index, stage in enumerate(ORDERS[schedule["order"]]):
        if rows and "network" not in trained and not trained & {*stage.training_networks}:
            first = index * schedule["k"] + 1
            yield (
                f"{_in_words(stage.training_networks)} was not trained: its first stage begins with epoch {first}, and "
                f"the run ended after epoch {rows[-1]['epoch']}; try schedule.epochs={2 * schedule['k']} or more, or a "
                "smaller schedule.k"
            )


# ---- accuracy and focus at the end


def _at_chance(
    config: Config, rows: Rows, final: Metrics, chances: Mapping[str, Chance], *, explained: bool
) -> Iterator[str]:
    for name, chance in chances.items():
        if not name.startswith("train/") or final[name] > chance.hardly_better:
            continue
        epochs = f" after epoch {rows[-1]['epoch']}" if rows else ""
        line = f"{name} is {final[name]:.3f}{epochs}, {chance.describe(final[name])}{_weights_in_words(config, final)}"
        running = f"running/{name.partition('/')[2]}"
        best = max(rows[:-1], key=lambda row: row[running], default={running: 0.0})
        lost = best[running] > chance.hardly_better + 0.1  # 0.1 more than random changes between epochs
        if lost:
            line += f"; it was higher before ({best[running]:.3f} in epoch {best['epoch']})"
        yield line if explained else f"{line}; {_advice(config, rows, final, lost=lost)}"


def _weights_in_words(config: Config, final: Metrics) -> str:
    """Describes a where network's attention weights; empty for fixed weights and for runs without attention."""
    if "train/entropy" not in final or config["data"].get("weights") is not None:
        return ""
    entropy = f"entropy {final['train/entropy']:.3f} of at most {_max_entropy(config):.3f}"
    if _is_uniform(config, final["train/entropy"]):
        return f", and the attention weights are uniform ({entropy})"
    by_chance = 1 / config["data"]["patches"]
    focus = f"{final['train/focus']:.3f} of the mosaics ({by_chance:.3f} by chance; {entropy})"
    return f", and the largest weight is on the foreground in {focus}"


def _is_uniform(config: Config, entropy: float) -> bool:
    return entropy >= (1 - UNIFORM) * _max_entropy(config) > 0


def _advice(config: Config, rows: Rows, final: Metrics, *, lost: bool) -> str:
    """Returns the advice for an accuracy at chance; `lost` if it was higher in an earlier epoch."""
    trained = {name for row in rows for name in _trained(row)}
    names = [name for name in ("what", "where", "network") if name in trained]
    losses = [row["running/loss"] for row in rows]
    is_flat = bool(rows) and _range(losses) < 0.01 * max(map(abs, losses))
    size = "a smaller" if lost else "a larger" if is_flat else "another"
    changes = [f"{size} {_rates(config, names)}"] if names else []
    if any(str((config["optimizer"][name] or {}).get("_target_")).endswith(".SGD") for name in names):
        changes.append("optimizer=adam")
    if "where" in names and _is_uniform(config, final["train/entropy"]) and config["objective"].get("entropy") == 0:
        changes.append("objective.entropy=0.1 for sharper weights")
    return f"try {', '.join([*changes, 'more epochs'])} or another seed.all"


def _unfocused(config: Config, rows: Rows, final: Metrics) -> Iterator[str]:
    """Yields a line if Where trained and its weights were uniform in all epochs."""
    where_rows = [row for row in rows if "where" in _trained(row)]
    entropies = [final["train/entropy"], *(row["running/entropy"] for row in where_rows)] if where_rows else []
    if where_rows and all(_is_uniform(config, entropy) for entropy in entropies):
        sharper = " or objective.entropy=0.1" if config["objective"].get("entropy") == 0 else ""
        yield (
            f"Where trained for {len(where_rows)} epochs and its weights stayed uniform (entropy "
            f"{entropies[0]:.3f} of at most {_max_entropy(config):.3f}, focus {final['train/focus']:.3f}), so What "
            f"classifies plain averages; try a larger {_rates(config, ['where'])}, more epochs{sharper}"
        )


def _not_generalized(final: Metrics, chances: Mapping[str, Chance]) -> Iterator[str]:
    """Yields a line for each accuracy that is near chance on held_out and much higher on train."""
    for name, chance in chances.items():
        metric = name.partition("/")[2]
        train = final[f"train/{metric}"]
        if name.startswith("held_out/") and final[name] <= min(chance.hardly_better, train - 0.2):
            yield (
                f"{name} is {final[name]:.3f}, {chance.describe(final[name])}, but train/{metric} is {train:.3f}: the "
                "run does not generalize to unseen examples; try more training examples or smaller networks"
            )


# ---- final metrics that differ from those during training


def _differs_in_evaluation(config: Config, rows: Rows, final: Metrics) -> Iterator[str]:
    """Yields a line if final metrics are far from the running metrics of the last epochs.

    A running metric is a mean over an epoch, so it lags behind the final value while a run still learns, but hardly by
    more than the difference between two consecutive epochs.
    """
    differences = []
    # A frozen network is in eval mode, so only epochs in which Where trained can show a difference.
    where_rows = [row for row in rows if "where" in _trained(row)][-5:]
    if where_rows and _distance(where_rows, "entropy", final) > _max_entropy(config) / 4:
        differences.append(_difference_in_words(where_rows[-1], "entropy", final))
    last = _stages(config, rows)[-1] if rows else []
    last = last if len(last) > 1 else rows[-5:]
    for metric in [name.partition("/")[2] for name in final if name.startswith("train/") and name.endswith("accuracy")]:
        if _distance(last, metric, final) > 0.1 and final[f"train/{metric}"] < last[-1][f"running/{metric}"]:
            differences.append(_difference_in_words(last[-1], metric, final))
    if differences:
        yield (
            f"{', '.join(differences)}: batch normalisation and dropout compute other outputs in evaluation than in "
            "training; try LayerNorm or GroupNorm instead, or smaller learning rates if the networks have neither"
        )


def _distance(rows: Rows, metric: str, final: Metrics) -> float:
    """Returns how far a final value is from the last running value.

    Returns 0 if that is at most twice the largest difference between two consecutive epochs.
    """
    running = [row[f"running/{metric}"] for row in rows]
    if len(running) < 2:
        return 0
    distance = abs(running[-1] - final[f"train/{metric}"])
    return distance if distance > 2 * max(abs(after - before) for before, after in pairwise(running)) else 0


def _difference_in_words(row: Row, metric: str, final: Metrics) -> str:
    running = f"{row[f'running/{metric}']:.3f} during training in epoch {row['epoch']}"
    return f"train/{metric} was {running} and is {final[f'train/{metric}']:.3f} in the final evaluation"
