"""Tables of runs and published numbers, from run folders that the tests write."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.run_folders import config_of, write_config, write_plan
from omegaconf import OmegaConf

from attnmosaic.collect import collect
from attnmosaic.core.errors import UserError
from attnmosaic.tables.published import Published
from attnmosaic.tables.render import HEADINGS, as_csv, latex, markdown, terminal
from attnmosaic.tables.table import Cell, Row, Table

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a run's folder as a run does, without training."""

    def run(experiment: str, seed: int, metrics: dict[str, float] | None, *overrides: str, **files: str) -> Path:
        folder = tmp_path / "runs" / "-".join([experiment, *overrides, str(seed)]).replace("/", "-")
        config = config_of(experiment, *overrides, seed=seed)
        write_config(folder, config)
        if metrics is not None:
            (folder / "result.json").write_text(json.dumps({"metrics": metrics, "name": config["name"]}))
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text)
        return folder

    return run


def row1(train: float, test: float) -> dict[str, float]:
    return {"train/accuracy": train, "test/accuracy": test, "held_out/accuracy": 0.5, "train/ftpt": 0.4}


def cells(row: Row) -> dict[str, Cell]:
    return {cell.metric: cell for cell in row.cells}


def test_mean_std_and_difference() -> None:
    cell = Cell("test/accuracy", (0.7, 0.8, 0.9), 0.81)
    assert cell.mean == pytest.approx(0.8)
    assert cell.std == pytest.approx(0.1)
    assert cell.difference == pytest.approx(-0.01)
    assert Cell("a", (0.7,)).std is None
    assert Cell("a", ()).mean is None


@pytest.mark.parametrize(
    ("values", "published", "verdict"),
    [
        ((0.7, 0.9), 0.81, "within the seeds' range"),
        ((0.7, 0.9), 0.7, "within the seeds' range"),
        ((0.70, 0.72), 0.73, "within 0.05"),
        ((0.81,), 0.81, "within 0.05"),  # one seed has no range
        ((0.76,), 0.81, "within 0.05"),
        ((0.759,), 0.81, "outside"),
        ((0.86, 0.9), 0.81, "outside"),
        ((0.8,), None, ""),
        ((), 0.8, ""),
    ],
)
def test_verdict(values: tuple[float, ...], published: float | None, verdict: str) -> None:
    assert Cell("a", values, published).verdict == verdict


def test_row_averages_its_seeds(write: Write, tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.80, 0.82, 0.84)):
        write("table1/row1", seed, row1(0.9, accuracy))
    write("table1/row2", 0, None)
    (table,) = collect(tmp_path / "runs")
    assert table.published.key == "table1"
    assert [row.name for row in table.rows] == [f"table1/row{i}" for i in range(1, 9)]
    first, second, third = table.rows[:3]
    assert (first.state, first.notes, first.data) == ("3 finished", (), "CIFAR10")
    assert cells(first)["test/accuracy"].values == (0.80, 0.82, 0.84)
    assert cells(first)["test/accuracy"].published == 0.81
    assert cells(first)["test/accuracy"].verdict == "within the seeds' range"
    assert cells(first)["train/accuracy"].verdict == "outside"
    assert cells(first)["held_out/accuracy"].published is None
    assert second.state == "1 stopped after epoch 0 of 200"
    assert (third.state, cells(third)["test/accuracy"].values) == ("missing", ())
    assert table.summary == "16 published cells: 1 within the seeds' range, 1 outside, 14 without a finished run"


def test_terminal_truncates_nothing(write: Write, tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.80, 0.82, 0.84)):
        write("gradients/what_then_where", seed, row1(0.9, accuracy))
        write("gradients/type1", seed, row1(1 - seed / 10, accuracy))
    (table,) = collect(tmp_path / "runs")
    text = terminal(table, width=110)
    assert "…" not in text
    assert "what_then_where 3 finished" in " ".join(text.split())
    assert "within the seeds' range" in text


def test_run_with_other_settings_is_a_row_without_a_verdict(write: Write, tmp_path: Path) -> None:
    write("table1/row1", 0, row1(0.96, 0.81))
    write("table1/row1", 1, row1(0.5, 0.5), "lr.what=0.02")
    (table,) = collect(tmp_path / "runs")
    rows = [row for row in table.rows if row.name == "table1/row1"]
    published, other = sorted(rows, key=lambda row: row.notes)
    assert cells(published)["test/accuracy"].values == (0.81,)
    assert other.notes == ("lr.what=0.02, not 0.01",)
    assert other.verdict(cells(other)["test/accuracy"]) == "other settings"
    assert other.difference(cells(other)["test/accuracy"]) is None
    assert "lr.what=0.02, not 0.01" in terminal(table)
    assert "2 within 0.05" in table.summary


def test_swept_key_of_a_published_row_is_a_column(write: Write, tmp_path: Path) -> None:
    """Only the row with the published value is compared with the published numbers."""
    for k in (1, 5):
        write("table1/row2", 0, row1(0.96, 0.81), f"schedule.k={k}")
    write("table1/row1", 0, row1(0.96, 0.81))
    (table,) = collect(tmp_path / "runs")
    swept = [row for row in table.rows if row.name == "table1/row2"]
    assert table.varied == ("schedule.k",)
    assert {row.varied["schedule.k"]: row.kind for row in swept}["1"] == "other settings"
    assert all(row.varied["schedule.k"] not in ("", "?") for row in table.rows)  # also in rows without runs
    assert {table.label(row) for row in swept} == {"2, schedule.k=1", "2, schedule.k=5"}
    assert "schedule.k" in as_csv(table).splitlines()[0]
    for width in (140, 110, 80):
        assert "…" not in terminal(table, width=width)


def test_unpublished_setting_of_all_rows_is_shown_once(write: Write, tmp_path: Path) -> None:
    for i in (1, 2):
        write(f"table1/row{i}", 0, row1(0.96, 0.81), "lr.what=0.02")
    (table,) = collect(tmp_path / "runs")
    assert (table.varied, dict(table.shared)) == ((), {"lr.what": "0.02"})
    assert [table.label(row) for row in table.rows][:3] == ["1, lr.what=0.02", "2, lr.what=0.02", "3"]
    assert "In all runs: lr.what=0.02" in terminal(table)


def test_two_runs_with_the_same_seed_count_once(write: Write, tmp_path: Path) -> None:
    write("table1/row1", 0, row1(0.96, 0.81)).rename(tmp_path / "runs" / "again")
    write("table1/row1", 0, row1(0.96, 0.81))
    (table,) = collect(tmp_path / "runs")
    assert cells(table.rows[0])["test/accuracy"].values == (0.81,)


def test_copy_of_the_images_is_the_same_experiment(write: Write, tmp_path: Path) -> None:
    """The row shows the images' folder; its runs are not averaged with those on other images."""
    (tmp_path / "copy").mkdir()
    for name in ("horse", "ship", "truck", "cat"):
        (tmp_path / "copy" / name).mkdir()
        (tmp_path / "copy" / name / "1.png").touch()
    write("table1/row1", 0, row1(0.96, 0.81))
    copy = ("data=image_folder", f"data.root={tmp_path / 'copy'}")
    write("table1/row1", 1, row1(0.90, 0.75), *copy)
    (table,) = collect(tmp_path / "runs")
    assert table.summary == "16 published cells: 2 within 0.05, 14 without a finished run"
    rows = [row for row in table.rows if row.name == "table1/row1"]
    assert {row.data for row in rows} == {"CIFAR10", f"images in {tmp_path / 'copy'}"}
    assert all(row.notes == () for row in rows)
    assert all(len(cells(row)["test/accuracy"].values) == 1 for row in rows)


CALLBACK = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "running/loss"}


@pytest.mark.parametrize(
    ("row", "changes", "note"),
    [
        ("table1/row1", {"trainer.limit_train_batches": 0.1}, "trainer.limit_train_batches=0.1, not None"),
        ("table1/row1", {"trainer.max_epochs": 3}, "trainer.max_epochs=3, not 180"),
        ("table1/row1", {"callbacks.stop": CALLBACK}, "callbacks.stop._target_="),
        (
            "table1/row1",
            {"callbacks.timer": CALLBACK | {"_target_": "Timer", "duration": 9}},
            "callbacks.timer._target_=",
        ),
        ("table1/row1", {"began_otherwise": {"schedule.k": 3}}, "began_otherwise."),
        ("averages/dataset5", {"data.weights": None}, "data.weights"),
        ("averages/dataset5", {"data.weights.foreground": "4/9"}, "data.weights.foreground=4/9, not 5/9"),
        ("table1/row1", {"data.image_size": 8}, "data.image_size=8, not None"),
        ("table1/row1", {"data.color": False}, "data.color=False, not None"),
        ("table1/row1", {"data.image_size": None, "data.color": True, "data.held_out_share": 0.3}, None),
        ("table1/row1", {"trainer.accelerator": "cpu", "compute.threads": 1, "data.steps_per_block": 1}, None),
    ],
)
def test_settings_that_decide_numbers_are_noted(
    write: Write, tmp_path: Path, row: str, changes: dict[str, Any], note: str | None
) -> None:
    metrics = row1(0.96, 0.81) | {f"dataset_{i}/accuracy": 0.5 for i in range(1, 11)}
    config = OmegaConf.create(config_of(row))
    for key, value in changes.items():
        OmegaConf.update(config, key, value, merge=False)
    OmegaConf.save(config, write(row, 0, metrics) / "config.yaml")
    (table,) = collect(tmp_path / "runs")
    (written,) = (candidate for candidate in table.rows if candidate.name == row)
    assert bool(written.notes) == (note is not None)
    assert note is None or written.notes[0].startswith(note)


def test_planned_runs_join_the_row_of_their_scale(write: Write, tmp_path: Path) -> None:
    write("table1/row1", 0, row1(0.3, 0.3), "scale=smoke")
    planned = {name: config_of("table1/row1", f"scale={scale}") for name, scale in (("a", "full"), ("b", "smoke"))}
    write_plan(tmp_path / "runs", planned)
    (table,) = collect(tmp_path / "runs")
    rows = [row for row in table.rows if row.name == "table1/row1"]
    assert {(row.smoke, row.state) for row in rows} == {(True, "1 finished, 1 missing"), (False, "1 missing")}
    assert table.title.startswith("SMOKE RUNS")
    write("table1/row1", 0, row1(0.96, 0.81))
    (table,) = collect(tmp_path / "runs")
    assert table.title.startswith("Table 1")  # The table now has a full run, too.
    assert "1 (SMOKE)" in [table.label(row) for row in table.rows]


def test_damaged_folders_do_not_break_a_table(write: Write, tmp_path: Path) -> None:
    write("table1/row1", 0, row1(0.96, 0.81))
    for name, file, text in (
        ("torn", "config.yaml", "foo: 1"), ("empty", "error.txt", ""), ("odd", "error.txt", "in [/tmp/x]: type [a,b]"),
    ):  # fmt: skip
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / file).write_text(text)
    write("gaussian", 0, row1(0.9, 0.9), "name='k=5'")
    first, other = collect(tmp_path / "runs")
    assert first.published.key == "table1"
    assert {row.name: row.state for row in other.rows} == {
        "torn": "1 stopped", "empty": "1 failed", "odd": "1 failed (in [/tmp/x]: type [a,b])", "k=5": "1 finished",
    }  # fmt: skip
    assert "in [/tmp/x]: type [a,b]" in " ".join(terminal(other, width=200).split())


def test_smoke_and_failed_runs_are_marked(write: Write, tmp_path: Path) -> None:
    write("table1/row1", 0, row1(0.96, 0.81), "scale=smoke")
    write("table1/row2", 0, None, error_txt="the loss became nan\n")
    (table,) = collect(tmp_path / "runs")
    smoke, failed = table.rows[:2]
    assert smoke.smoke
    assert smoke.verdict(smoke.cells[0]) == "smoke"
    assert failed.state == "1 failed (the loss became nan)"
    assert table.summary == "16 published cells: 16 without a finished run"
    for text in (terminal(table), markdown(table), latex(table)):
        assert "SMOKE RUNS, NO RESULT" in text
    assert ",smoke\n" in as_csv(table)


def test_runs_outside_published_tables(write: Write, tmp_path: Path) -> None:
    write("gaussian", 0, row1(0.9, 0.9))
    (table,) = collect(tmp_path / "runs")
    assert table.title == "Runs of gaussian"
    assert [row.name for row in table.rows] == ["gaussian"]
    assert cells(table.rows[0])["train/accuracy"].values == (0.9,)
    assert table.summary == "no published cells"


def test_folder_without_runs_is_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no runs"):
        collect(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        collect(tmp_path / "nowhere")
    from attnmosaic.collect import main

    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "nowhere")])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


# ---- formats


@pytest.fixture
def averages() -> Table:
    published = Published(
        "averages", "A & B", "nowhere", ("dataset_1/accuracy", "dataset_2/accuracy"),
        {"averages/dataset1": {"dataset_1/accuracy": 0.5, "dataset_2/accuracy": 0.9}, "averages/dataset2": {}},
        True, ("1", "2"),
    )  # fmt: skip
    cells = (Cell("dataset_1/accuracy", (0.52, 0.54), 0.5), Cell("dataset_2/accuracy", (0.9, 0.8), 0.9))
    return Table(published, (Row("averages/dataset1", cells, "2 finished"), Row("averages/dataset2", (), "missing")))


def test_markdown_matrices(averages: Table) -> None:
    text = markdown(averages)
    assert "|  | 1 | 2 |\n| --- | --- | --- |\n| 1 | 0.53 | 0.85 |\n| 2 |  |  |" in text
    assert "published:\n\n|  | 1 | 2 |\n| --- | --- | --- |\n| 1 | 0.50 | 0.90 |" in text
    assert "| 1 | +0.03 | -0.05 |" in text
    assert "| 1 | 0.014 | 0.071 |" in text
    assert "2 published cells: 1 within the seeds' range, 1 within 0.05" in text


def test_csv_has_every_digit(averages: Table) -> None:
    first, second, missing = csv.DictReader(io.StringIO(as_csv(averages)))
    assert list(first) == ["table", *HEADINGS]
    assert (float(first["mean"]), float(first["published"]), first["n"]) == (0.53, 0.5, "2")
    assert float(first["std"]) == Cell("", (0.52, 0.54)).std
    assert second["verdict"] == "within the seeds' range"
    assert (missing["row"], missing["runs"], missing["mean"]) == ("averages/dataset2", "missing", "")


def test_latex_is_escaped_and_balanced(averages: Table) -> None:
    text = latex(averages)
    assert r"A \& B" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 4
    assert r"1 & 0.53 & 0.85 \\" in text


def test_terminal_is_not_too_wide(averages: Table) -> None:
    assert max(map(len, terminal(averages).splitlines())) <= 110


def test_heat_maps_show_the_cells_of_the_table(averages: Table, tmp_path: Path) -> None:
    """A row without runs is blank."""
    import numpy as np

    from attnmosaic.plotting.heatmaps import draw_losses, draw_matrix, draw_tables
    from attnmosaic.runs.run import Run

    figure = draw_matrix(averages)
    drawn = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert np.ma.getmaskarray(drawn[1])[1].all()
    values = np.ma.filled(np.ma.stack(drawn), np.nan)
    assert values[0][0].tolist() == [0.5, 0.9]
    assert values[1][0] == pytest.approx([0.53, 0.85])
    assert values[2][0] == pytest.approx([0.03, -0.05])
    other = replace(averages, rows=(replace(averages.rows[0], notes=("lr.what=1, not 0.01",)),))
    first, _, differences, *_ = draw_matrix(other).axes
    assert np.ma.getmaskarray(differences.images[0].get_array()).all()
    assert [text.get_text() for text in differences.texts] == ["nothing to compare"]
    assert first.get_yticklabels()[0].get_text() == "1 (other settings)"
    assert "| 1 (other settings) |  |  |" in markdown(other)
    assert r"lr.what=1, not 0.01" in latex(other)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: averages/dataset1")
    (folder / "metrics.csv").write_text("epoch,running/loss\n1,0.9\n2,0.5\n")
    trained = replace(averages, rows=(replace(averages.rows[0], runs=(Run(folder),)), averages.rows[1]))
    (line,) = draw_losses(trained).axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [0.9, 0.5])
    cells = [(text.get_text(), text.get_position()) for text in figure.axes[2].texts]
    assert cells == [("+3", (0, 0)), ("-5", (1, 0))]
    drawn = draw_tables([trained], tmp_path)
    assert not drawn.failed
    assert [path.name for path in drawn.paths] == [
        f"averages_{name}.{form}" for name in ("heat_map", "training_loss") for form in ("png", "pdf")
    ]
    assert all(path.stat().st_size > 5_000 for path in drawn.paths)
