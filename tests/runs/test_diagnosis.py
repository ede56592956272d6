"""Findings on runs that do not learn, from rows that the tests write."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Cli
from helpers.run_folders import pair_metrics, write_run

from attnmosaic.collect import collect
from attnmosaic.reporting.page import render
from attnmosaic.runs.diagnosis import Chance, findings, stalled
from attnmosaic.tables.render import FORMATS

MAX_ENTROPY = math.log(9)
CHANCES = {f"{split}/accuracy": Chance(1 / 3, 3000) for split in ("train", "held_out")}


def config(order: str = "what_then_where", k: int = 5, **other: Any) -> dict[str, Any]:
    sgd = {"_target_": "torch.optim.SGD"}
    cycle = {"_target_": "CycleCheckpoint"}
    return {
        "scale": "full", "schedule": {"order": order, "k": k, "epochs": 100}, "lr": dict.fromkeys(NETWORKS, 0.01),
        "data": {"patches": 9, "weights": None}, "objective": {"entropy": 0.0}, "callbacks": {"cycle": cycle},
        "optimizer": dict.fromkeys(NETWORKS, sgd), **other,
    }  # fmt: skip


NETWORKS = ("what", "where", "network")


def row(
    epoch: int, stage: str, loss: float, accuracy: float = 0.34, entropy: float = 2.19, focus: float = 0.12
) -> dict[str, Any]:
    values = {"loss": loss, "accuracy": accuracy, "entropy": entropy, "focus": focus, "foreground_weight": entropy / 20}
    return {"epoch": epoch, "stage": stage, **{f"running/{name}": value for name, value in values.items()}}


def rows_of(*stages: tuple[str, Sequence[tuple[float, ...]]]) -> list[dict[str, Any]]:
    """Returns the rows of stages; a stage is its name with, for each epoch, the arguments of `row` from the loss on."""
    epochs = [(stage, values) for stage, every in stages for values in every]
    return [row(epoch, stage, *values) for epoch, (stage, values) in enumerate(epochs, 1)]


def changing(n: int = 5, start: float = 1.1, accuracy: float = 0.34, entropy: float = 2.19) -> list[tuple[float, ...]]:
    """Returns epochs in which loss and entropy change a little."""
    return [(start - 1e-5 * i, accuracy, entropy - 1e-5 * i) for i in range(n)]


def final_metrics(
    accuracy: float = 0.9, entropy: float = 0.5, focus: float = 0.9, held_out: float = 0.8
) -> dict[str, float]:
    return {
        "train/accuracy": accuracy, "train/entropy": entropy, "train/focus": focus, "held_out/accuracy": held_out,
    }  # fmt: skip


def findings_of(settings: dict[str, Any], rows: list[dict[str, Any]], final: dict[str, float]) -> tuple[str, ...]:
    return findings(settings, rows, final, CHANCES)


def test_chance_with_uniform_weights_is_one_line() -> None:
    rows = rows_of(*[(stage, changing()) for stage in ["what", "where"] * 6])
    (line,) = findings_of(config(), rows, final_metrics(0.339, 2.1972, 0.11, 0.33))
    for part in ("epoch 60", "0.339", "chance (0.333", "uniform", "larger lr.what", "lr.where", "objective.entropy"):
        assert part in line
    assert findings_of(config(scale="smoke"), rows, final_metrics(0.339, 2.1972, 0.11)) == ()


def test_chance_with_sharp_weights_reports_focus() -> None:
    (line,) = findings_of(
        config(),
        rows_of(("what", changing()), ("where", changing(entropy=0.01))),
        final_metrics(0.33, 0.01, 0.12, 0.33),
    )
    assert "foreground in 0.120" in line
    assert "0.111 by chance" in line
    assert "uniform" not in line
    fixed_weights = config("what_only", data={"patches": 9, "weights": {"_target_": "FixedWeights"}})
    (line,) = findings_of(fixed_weights, rows_of(("what", changing())), final_metrics(0.33, 2.19, 0.12, 0.33))
    assert "weights" not in line
    assert "lr.where" not in line


def test_high_accuracy_with_low_focus_is_a_result() -> None:
    for accuracy, entropy, focus in ((0.99, 0.01, 0.11), (0.99, 1.5, 0.0), (0.6, 0.5, 0.3), (0.96, 0.8, 0.8)):
        rows = rows_of(("what", changing()), ("where", changing(accuracy=accuracy, entropy=entropy)))
        assert findings_of(config(), rows, final_metrics(accuracy, entropy, focus)) == ()


def test_lost_accuracy_is_reported_with_its_epoch() -> None:
    rows = rows_of(("what", changing(accuracy=0.82)), ("where", changing()), ("what", changing()))
    (line,) = findings_of(config(), rows, final_metrics(0.33, 2.0, 0.12, 0.33))
    assert "0.820 in epoch" in line
    assert "smaller lr.what" in line
    noise = rows_of(("what", changing(accuracy=0.42)), ("where", changing()), ("what", changing()))
    assert "0.420" not in str(findings_of(config(), noise, final_metrics(0.33, 2.19, 0.12, 0.33)))


def test_chance_is_the_fraction_of_the_most_frequent_class() -> None:
    rows = rows_of(("what", changing()), ("where", changing(entropy=0.6)))
    uneven = {"train/accuracy": Chance(0.8, 30_000)}
    assert "no better than chance (0.800" in findings(config(), rows, final_metrics(0.805), uneven)[0]
    assert "hardly better than chance (0.800" in findings(config(), rows, final_metrics(0.819), uneven)[0]
    assert findings(config(), rows, final_metrics(0.9), uneven) == ()
    assert (
        findings_of(config(), rows, final_metrics(0.46)) == ()
    )  # the lowest accuracy of Table 1's and the averages' runs


def test_where_whose_weights_became_equal() -> None:
    unequal, equal = [(0.9 - n / 10, 0.6, 1.2 - n / 10) for n in range(5)], [(1.0986, 0.4, MAX_ENTROPY, 0.11)] * 5
    rows = rows_of(
        ("what", changing()), ("where", unequal), ("what", changing(accuracy=0.7, entropy=0.8)), ("where", equal)
    )
    line = stalled(config(), rows)
    assert line is not None
    for part in ("same weight since epoch 16", "entropy 0.800", "epoch 15", "smaller lr.where", "epoch-0010.ckpt"):
        assert part in line
    rows += rows_of(("what", changing(accuracy=0.5, entropy=MAX_ENTROPY)))
    for i, later in enumerate(rows[-5:], 21):
        later["epoch"] = i
    assert findings_of(config(), rows, final_metrics(0.6, MAX_ENTROPY, 0.11)) == (line,)
    assert "epoch-" not in str(stalled(config(callbacks={"cycle": None}), rows[:20]))
    one = rows_of(
        *[(stage, [values]) for stage, values in zip(["what", "where"] * 2, (*unequal[:3], equal[0]), strict=True)]
    )
    assert "same weight" in str(stalled(config(k=1), one))


def test_equal_weights_at_the_beginning_are_no_finding() -> None:
    """Where's first epochs on images are slow, and a Where with equal weights can learn later."""
    slow = [(1.0982604 - 1e-8 * i, 0.34, MAX_ENTROPY * (1 - 7e-7), 0.028 + i / 600) for i in range(5)]
    assert stalled(config(), rows_of(("what", changing()), ("where", slow))) is None
    equal, unequal = [(1.0986, 0.34, MAX_ENTROPY, 0.11)] * 5, changing(accuracy=0.9, entropy=0.5)
    rows = rows_of(("what", changing()), ("where", equal), ("what", changing()), ("where", unequal))
    assert findings_of(config(), rows, final_metrics()) == ()


@pytest.mark.parametrize(
    ("order", "stages", "key"),
    [
        ("what_then_where", ["what", "where"], "lr.where"),
        ("where_then_what", ["where", "what"], "lr.what"),
        ("joint", ["joint"], "lr.what (it was 0.01) and lr.where"),
        ("joint", ["network"], "lr.network"),
    ],
)
def test_stage_without_any_change(order: str, stages: list[str], key: str) -> None:
    constant = [(0.7, 0.6, 1.3)] * 5
    rows = rows_of(*[(stage, changing()) for stage in stages[:-1]], (stages[-1], constant))
    assert f"larger {key}" in str(stalled(config(order), rows))
    rows = rows_of(*[(stage, changing()) for stage in stages * 2][:-1], (stages[-1], constant))
    assert f"smaller {key}" in str(stalled(config(order), rows))
    good = rows_of(*[(stage, changing()) for stage in stages[:-1]], (stages[-1], [(1e-9, 1.0, 0.0, 1.0)] * 5))
    assert stalled(config(order), good) is None


def test_where_with_all_weight_on_one_patch() -> None:
    rows = rows_of(("where", [(1.09, 0.4, 1e-9, 0.0)] * 5), ("what", changing(accuracy=0.6)))
    (line,) = findings_of(config("where_then_what"), rows, final_metrics(0.6, 1e-9, 0.0))
    assert "on one patch" in line
    assert "schedule=what_then_where" in line


def test_network_that_was_not_trained() -> None:
    (line,) = findings_of(config(), rows_of(("what", changing())), final_metrics(0.5, 2.1, 0.1))
    assert "Where was not trained" in line
    assert "epoch 6" in line
    assert "schedule.epochs=10" in line
    (line,) = findings_of(
        config("where_then_what"), rows_of(("where", changing(3, entropy=1.1))), final_metrics(0.5, 1.1, 0.1)
    )
    assert "What was not trained" in line
    assert findings_of(config("what_only"), rows_of(("what", changing())), final_metrics(0.5, MAX_ENTROPY, 0.1)) == ()


def test_where_with_uniform_weights_in_all_epochs() -> None:
    rows = rows_of(("what", changing(accuracy=0.7)), ("where", changing(accuracy=0.7)))
    (line,) = findings_of(config(), rows, final_metrics(0.7, 2.19, 0.13))
    assert "Where trained for 5 epochs" in line
    assert "larger lr.where" in line


def test_final_metrics_far_from_running_metrics() -> None:
    rows = rows_of(("what", changing(accuracy=0.9)), ("where", [(0.3, 0.9, 0.67 - i / 100) for i in range(5)]))
    (line,) = findings_of(config(), rows, final_metrics(0.35, MAX_ENTROPY, 0.11, 0.33))
    for part in ("train/entropy", "0.630", "2.197", "train/accuracy", "0.900", "0.350", "batch normalisation"):
        assert part in line
    learning = rows_of(("what", changing()), ("where", [(0.9, 0.4 + i / 10, 2.1 - i / 3) for i in range(5)]))
    assert findings_of(config(), learning, final_metrics(0.85, 0.2)) == ()


def test_held_out_accuracy_at_chance() -> None:
    rows = rows_of(("what", changing()), ("where", changing(entropy=0.1)))
    (line,) = findings_of(config(), rows, final_metrics(0.99, 0.1, 0.9, 0.35))
    assert "held_out/accuracy is 0.350" in line
    assert "unseen" in line


def test_each_of_two_outputs_is_judged() -> None:
    rows = [{"epoch": e, "running/loss": 4 - e / 10, "running/digit_accuracy": 0.8, "running/sum_accuracy": 0.1}
            for e in (1, 2)]  # fmt: skip
    final = {"train/digit_accuracy": 0.85, "train/sum_accuracy": 0.1}
    chances = {name: Chance(0.1, 1000) for name in final}
    (line,) = findings(config("joint"), rows, final, chances)
    assert line.startswith("train/sum_accuracy is 0.100 after epoch 2")
    assert "lr.network" in line


def test_final_metrics_are_judged_without_rows() -> None:
    (line,) = findings_of(config(), [], final_metrics(0.33, 2.19, 0.1, 0.33))
    assert "chance" in line
    assert "more epochs" in line


# ---- tables and reports


def write_run_with_warnings(folder: Path, seed: int, *lines: str, experiment: str = "table1/row1") -> None:
    write_run(folder / f"seed{seed}", experiment, seed=seed, metrics=pair_metrics())
    result = json.loads((folder / f"seed{seed}" / "result.json").read_text(encoding="utf-8"))
    (folder / f"seed{seed}" / "result.json").write_text(json.dumps(result | {"warnings": [*lines]}))


@pytest.mark.parametrize("experiment", ["table1/row1", "averages/dataset1", "gaussian"])
def test_every_table_shows_the_findings_of_its_runs(tmp_path: Path, experiment: str) -> None:
    write_run_with_warnings(tmp_path, 0, experiment=experiment)
    write_run_with_warnings(tmp_path, 1, "Where [died]_", experiment=experiment)
    write_run(tmp_path / "older", experiment, seed=2, metrics=pair_metrics())  # a result without the key "warnings"
    (table,) = collect(tmp_path)
    (line,) = table.warnings
    assert line.endswith("seed 1: Where [died]_")
    for form in ("terminal", "markdown"):
        assert FORMATS[form]([table]).count("Where [died]_") == 1
    assert FORMATS["latex"]([table]).count(r"Where [died]\_") == 1
    assert len({len(cells) for cells in csv.reader(io.StringIO(FORMATS["csv"]([table])))}) == 1


def test_same_finding_of_several_runs_is_one_line(tmp_path: Path) -> None:
    write_run_with_warnings(
        tmp_path, 0, "accuracy is 0.31; try a larger lr.what (it was 0.01)", "Where died in epoch 7"
    )
    write_run_with_warnings(tmp_path, 1, "accuracy is 0.334; try a larger lr.what (it was 0.01)")
    write_run_with_warnings(tmp_path, 2, "accuracy is 0.3; try a larger lr.what (it was 0.03)")
    (table,) = collect(tmp_path)
    several, alone = table.warnings
    assert several.startswith("3 runs, ")
    assert "seed 0: accuracy is 0.31;" in several
    assert alone.endswith("seed 0: Where died in epoch 7")


def test_csv_format_prints_findings_on_standard_error(cli: Cli, tmp_path: Path) -> None:
    write_run_with_warnings(tmp_path / "runs", 1, "Where died")
    code, out, err = cli("collect", "runs", "--format", "csv")
    assert (code, "Where died" in out, "seed 1: Where died" in err) == (0, False, True)


def test_findings_are_escaped_in_a_report(tmp_path: Path) -> None:
    write_run_with_warnings(tmp_path, 0, "<b>two")
    html = render(tmp_path, tmp_path / "report.html")
    assert "<b>two" not in html
    assert html.count("&lt;b&gt;two") == 2  # below the table, and in the run's section
