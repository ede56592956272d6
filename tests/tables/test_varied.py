"""Tables of runs outside published tables: columns for the varied keys, as the user typed them."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.run_folders import Page
from omegaconf import OmegaConf

from attnmosaic.collect import collect, main
from attnmosaic.reporting.page import render
from attnmosaic.runs.discovery import run_of
from attnmosaic.tables.render import as_csv, latex, markdown, terminal
from attnmosaic.tables.table import Table
from attnmosaic.tables.varied import comparable, label, sort_key
from attnmosaic.training.tensorboard import hparams_summaries, hyperparameters

CLASSES = {"digits": "DigitsMosaics", "gaussian": "GaussianMosaics"}
DECIDED_BY_PUBLISHED = ("published", "difference", "verdict", "other settings")


def config(overrides: Sequence[str], name: str = "mine", seed: int = 0) -> dict[str, Any]:
    """Returns a resolved config with few keys."""
    settings = OmegaConf.create({
        "name": name, "scale": "full", "seed": dict.fromkeys(("all", "data", "init", "order"), seed),
        "lr": {"what": 0.01, "where": 0.01}, "schedule": {"order": "joint", "k": 5, "epochs": 10},
        "data": {"_target_": "attnmosaic.data.GaussianMosaics", "patches": 9}, "compute": {"threads": 1},
        "model": {"where": {"_target_": "nn.MLP", "hidden": [4, 8]}, "what": {"_target_": "nn.MLP"}},
        "optimizer": {"what": {"momentum": 0.9}}, "scheduler": {}, "objective": {"entropy": 0.0},
        "precision": "float32", "trainer": {"max_epochs": 10}, "callbacks": {}, "run_dir": "RUN",
    })  # fmt: skip
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key == "data":
            settings.data = {"_target_": f"attnmosaic.data.{CLASSES[value]}", "patches": 9, "more": value}
        elif override.startswith("~"):
            OmegaConf.update(settings, key, None, force_add=True)
        elif key not in ("experiment", "name"):
            OmegaConf.update(settings, key, yaml.safe_load(value), force_add=True)
    settings.trainer.max_epochs = settings.schedule.epochs
    plain: Any = OmegaConf.to_container(settings)
    return plain


def write(folder: Path, *overrides: str, seed: int = 0, test: float | None = 0.5, name: str = "mine",
          typed: bool = True) -> Path:  # fmt: skip
    """Writes the folder of a run with these overrides; ``typed`` is false for a run started from Python."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(overrides, name, seed), sort_keys=False))
    if test is not None:
        metrics = {
            f"{split}/{metric}": test for split in ("train", "test", "held_out") for metric in ("accuracy", "ftpt")
        }
        (folder / "result.json").write_text(json.dumps({"metrics": metrics, "name": name, "seed": {"all": seed}}))
    if typed:
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*overrides, f"seed.all={seed}"]))
        choices = {"data": "gaussian", "hydra/launcher": "basic"}
        choices |= dict(text.split("=") for text in overrides if text.startswith(("data=", "experiment=")))
        (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"runtime": {"choices": choices}}}))
    return folder


def plan(folder: Path, jobs: dict[str, Sequence[str]], swept: Sequence[str], name: str = "mine") -> None:
    """Writes a sweep's plan, as `attnmosaic.sweeps.hydra_callback.SweepPlan` does."""
    planned = {
        job: {
            "name": name, "scale": "full", "schedule": {"order": "joint", "k": 5, "epochs": 10},
            "overrides": [*overrides], "choices": {"data": "gaussian"}, "settings": comparable(config(overrides, name)),
            "swept": [*swept],
        }
        for job, overrides in jobs.items()
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"commands": ["python -m ..."], "jobs": planned}))


def table(folder: Path) -> Table:
    (only,) = collect(folder)
    return only


def varied_values(folder: Path) -> list[tuple[str, ...]]:
    return [tuple(row.varied.values()) for row in table(folder).rows]


@pytest.fixture
def two_keys(tmp_path: Path) -> Path:
    """A sweep of two keys and three seeds."""
    jobs = {}
    for number, (lr, k, seed) in enumerate((lr, k, s) for lr in ("0.1", "0.003") for k in (10, 5) for s in range(3)):
        given = (f"lr.what={lr}", f"schedule.k={k}", "schedule.epochs=4")
        write(tmp_path / "sweep" / str(number), *given, seed=seed, test=float(lr) + seed / 10)
        jobs[str(number)] = [*given, f"seed.all={seed}"]
    plan(tmp_path / "sweep", jobs, ("lr.what", "schedule.k", "seed.all"))
    return tmp_path / "sweep"


def test_rows_of_two_swept_keys_average_the_seeds(two_keys: Path) -> None:
    result = table(two_keys)
    assert result.title == "Runs of mine"
    assert result.varied == ("lr.what", "schedule.k")
    assert varied_values(two_keys) == [("0.003", "5"), ("0.003", "10"), ("0.1", "5"), ("0.1", "10")]  # numbers by size
    assert result.label(result.rows[0]) == "lr.what=0.003, schedule.k=5"
    assert {row.state for row in result.rows} == {"3 finished"}
    assert dict(result.shared) == {"schedule.epochs": "4"}


@pytest.mark.parametrize("form", [terminal, markdown, as_csv, latex])
def test_every_format_has_a_column_for_each_key_and_no_empty_column(
    two_keys: Path, form: Callable[[Table], str]
) -> None:
    text = form(table(two_keys))
    assert "lr.what" in text
    assert "schedule.k" in text
    assert not any(word in text for word in DECIDED_BY_PUBLISHED)
    assert "no published" not in text
    if form is as_csv:
        lines = [*csv.reader(io.StringIO(text))]
        assert lines[0] == ["table", "row", "lr.what", "schedule.k", "runs", "metric", "mean", "std", "n"]
    else:
        marks = {terminal: None, markdown: "|", latex: "&"}
        selected = [line for line in text.splitlines() if "3 finished" in line]
        assert len(selected) == 4
        lines = [line.strip("|\\ ").split(marks[form]) for line in selected]
        assert lines[0][0].strip() == "0.003"
    assert all(cell.strip() for line in lines for cell in line)


@pytest.mark.parametrize("width", [110, 80, 60])
def test_terminals_of_any_width_show_the_varied_keys(two_keys: Path, width: int) -> None:
    text = terminal(table(two_keys), width=width)
    assert "…" not in text
    assert "0.003" in text
    assert max(map(len, text.splitlines())) <= width


def test_report_names_runs_by_the_varied_keys(two_keys: Path) -> None:
    page = Page(render(two_keys, two_keys / "report.html"))
    assert page.row("lr.what")[:2] == ["lr.what", "schedule.k"]
    assert page.row("0.003", "5")[-1] == "3 finished"
    assert page.row("mine 3", "0.1", "5")[3] == "0"  # the seed, in the list of runs
    assert "Runs of mine by lr.what, schedule.k" in page.text
    assert "lr.what=0.003, schedule.k=10, seed 2" in page.text
    assert "In all runs: schedule.epochs=4" in page.text
    assert not any(word in page.text for word in DECIDED_BY_PUBLISHED if word != "published")
    assert "Published" not in page.text
    strips = [tag["data-tip"] for tag in page.having("g", role="img") if "data-tip" in tag]
    assert strips[0].startswith("lr.what=0.003, schedule.k=5: seed 0 ")
    words = [tag["data-words"] for tag in page.having("tr") if "data-words" in tag]
    assert "lr.what=0.1 schedule.k=10 seed=0" in words[0]


def test_hparams_list_the_swept_keys_first(two_keys: Path) -> None:
    run = run_of(two_keys / "4")
    assert run.config is not None
    params, differ, shown = hyperparameters(run.config, run)
    assert differ == {"lr.what", "schedule.k", "seed.all"}
    assert shown == differ | {"schedule.epochs"}
    assert [params[key] for key in ("lr.what", "schedule.k", "seed.all")] == [0.1, 5, 1]
    assert [*params][:3] == ["lr.what", "schedule.k", "seed.all"]
    _, start, _ = hparams_summaries(params, {"test/accuracy": 0.5}, differ, shown)
    assert start.value


def test_hparams_have_typed_keys_of_any_kind(tmp_path: Path) -> None:
    given = (
        "data=digits",
        "model.where.hidden=[4]",
        "optimizer.what.momentum=0.5",
        "+trainer.limit=3",
        "paths.output=x",
    )
    run = run_of(write(tmp_path / "lone", *given))
    assert run.config is not None
    params, differ, shown = hyperparameters(run.config, run)
    assert differ == {"data", "model.where.hidden", "optimizer.what.momentum", "trainer.limit", "seed.all"}
    assert params["data"] == "digits"
    assert params["model.where.hidden"] == "[4]"
    assert params["optimizer.what.momentum"] == 0.5
    assert {"lr.what", "schedule.k"} <= shown  # Other runs on the page can differ in any of these keys.


def test_values_of_swept_config_groups_and_lists_are_as_typed(tmp_path: Path) -> None:
    for i, data in enumerate(("digits", "gaussian")):
        for j, hidden in enumerate(("[4,8]", "[10]", "[4]")):
            write(tmp_path / f"{i}{j}", f"data={data}", f"model.where.hidden={hidden}")
    assert table(tmp_path).varied == ("data", "model.where.hidden")
    assert varied_values(tmp_path) == [(d, h) for d in ("digits", "gaussian") for h in ("[4]", "[4,8]", "[10]")]


def test_runs_of_single_commands(tmp_path: Path) -> None:
    """A run without a typed key has the value of its config."""
    write(tmp_path / "a", "lr.what=0.03", "callbacks.pictures=null")
    write(tmp_path / "b")
    write(tmp_path / "c", "data=digits", "lr.what=0.03")
    assert table(tmp_path).varied == ("lr.what", "data")
    assert varied_values(tmp_path) == [("0.01", "gaussian"), ("0.03", "digits"), ("0.03", "gaussian")]


def test_runs_started_from_python(tmp_path: Path) -> None:
    """No key was typed: the columns are the settings that differ and do not follow from others."""
    write(tmp_path / "a", typed=False)
    write(tmp_path / "b", "lr.what=0.03", "schedule.epochs=20", typed=False)
    write(tmp_path / "c", "data=digits", typed=False)
    assert table(tmp_path).varied == ("data", "lr.what", "schedule.epochs")
    assert varied_values(tmp_path) == [
        ("DigitsMosaics", "0.01", "10"), ("GaussianMosaics", "0.01", "10"), ("GaussianMosaics", "0.03", "20"),
    ]  # fmt: skip


def test_added_and_removed_keys(tmp_path: Path) -> None:
    write(tmp_path / "a", "+trainer.limit=3")
    write(tmp_path / "b")
    write(tmp_path / "c", "~objective.entropy")
    assert table(tmp_path).varied == ("trainer.limit", "objective.entropy")
    assert varied_values(tmp_path) == [("3", "0.0"), ("not set", "0.0"), ("not set", "null")]


def test_runs_that_differ_in_seed_or_machine_share_a_row(tmp_path: Path) -> None:
    write(tmp_path / "a", "seed.data=1", "compute.threads=2", seed=0)
    write(tmp_path / "b", "seed.init=1", "progress=quiet", seed=1)
    (row,) = table(tmp_path).rows
    assert (dict(row.varied), row.state) == ({}, "2 finished")


def test_two_sweeps_with_planned_jobs_in_one_folder(tmp_path: Path) -> None:
    """A planned job has its planned values, also for keys that only the other sweep varies."""
    write(tmp_path / "first" / "0", "lr.what=0.1")
    write(tmp_path / "first" / "1", "lr.what=0.3", test=None)
    plan(tmp_path / "first", {"0": ["lr.what=0.1"], "1": ["lr.what=0.3"], "2": ["lr.what=0.3"], "3": ["lr.what=0.5"]},
         ["lr.what"])  # fmt: skip
    plan(tmp_path / "second", {"0": ["schedule.k=2"], "1": ["schedule.k=10"]}, ["schedule.k"])
    result = table(tmp_path)
    assert result.varied == ("lr.what", "schedule.k")
    assert [(*row.varied.values(), row.state) for row in result.rows] == [
        ("0.01", "2", "1 missing"),
        ("0.01", "10", "1 missing"),
        ("0.1", "5", "1 finished"),
        ("0.3", "5", "1 stopped after epoch 0 of 10, 1 missing"),
        ("0.5", "5", "1 missing"),
    ]
    for text in (terminal(result), markdown(result), latex(result), as_csv(result)):
        assert "0.5" in text
    page = Page(render(tmp_path, tmp_path / "report.html"))
    assert page.row("mine first/3", "0.5", "5")[4] == "missing"


def test_job_that_failed_before_it_had_a_config(tmp_path: Path) -> None:
    plan(tmp_path, {"0": ["lr.what=0.1"], "1": ["lr.what=-1"]}, ["lr.what"])
    write(tmp_path / "0", "lr.what=0.1")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "error.txt").write_text("lr.what: got -1")
    assert [(row.varied["lr.what"], row.state) for row in table(tmp_path).rows] == [
        ("-1", "1 failed (lr.what: got -1)"), ("0.1", "1 finished"),
    ]  # fmt: skip


def test_several_experiments(tmp_path: Path) -> None:
    for name in ("one", "two"):
        for lr in ("0.1", "0.3"):
            write(tmp_path / name / lr, f"experiment={name}", f"lr.what={lr}", name=name)
    result = table(tmp_path)
    assert (result.title, result.varied) == ("Other runs", ("lr.what",))
    assert [result.label(row) for row in result.rows] == [
        f"{n}, lr.what={lr}" for n in ("one", "two") for lr in (0.1, 0.3)
    ]
    assert "experiment" not in result.shared


def test_experiments_of_one_name(tmp_path: Path) -> None:
    write(tmp_path / "a", "experiment=one", "lr.what=0.1")
    write(tmp_path / "b", "experiment=two")
    assert table(tmp_path).varied == ("experiment", "lr.what")


def test_search_has_a_row_for_each_trial(tmp_path: Path) -> None:
    sampled = (0.06700000000000001, 0.009084512345678)
    plan(tmp_path, {str(i): [f"lr.what={lr}"] for i, lr in enumerate(sampled)}, ["lr.what", "lr.where"])
    for i, lr in enumerate(sampled):
        write(tmp_path / str(i), f"lr.what={lr}", "lr.where=0.02")
    result = table(tmp_path)
    assert result.varied == ("lr.what", "lr.where")  # also a searched key with a single value so far
    assert [result.label(row) for row in result.rows] == ["lr.what=0.009085", "lr.what=0.067"]
    assert "0.009084512345678" in as_csv(result)
    assert " 0.009085 " in terminal(result)


def test_table_without_a_finished_run(tmp_path: Path) -> None:
    write(tmp_path / "a", "lr.what=0.1", test=None)
    write(tmp_path / "b", "lr.what=0.2", test=None)
    result = table(tmp_path)
    assert result.measured == []
    assert markdown(result).splitlines()[2] == "| lr.what | n | runs |"
    assert len(as_csv(result).splitlines()) == 3


def test_several_tables_are_one_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", "lr.what=0.1")
    write(tmp_path / "b", "lr.what=0.2")
    write(tmp_path / "c", name="mnist/sum")
    main([str(tmp_path), "--format", "csv"])
    lines = [*csv.reader(io.StringIO(capsys.readouterr().out.strip()))]
    assert {"lr.what", "published", "verdict"} <= {*lines[0]}
    assert {len(line) for line in lines} == {len(lines[0])}


def test_smoke_runs_are_marked_in_a_csv(tmp_path: Path) -> None:
    write(tmp_path / "a", "scale=smoke", "lr.what=0.1")
    write(tmp_path / "b", "scale=smoke", "lr.what=0.2")
    result = table(tmp_path)
    assert result.varied == ("lr.what",)
    assert {line["scale"] for line in csv.DictReader(io.StringIO(as_csv(result)))} == {"smoke"}
    assert result.title.startswith("SMOKE")
    write(tmp_path / "c", "lr.what=0.1")
    assert varied_values(tmp_path) == [("full", "0.1"), ("smoke", "0.1"), ("smoke", "0.2")]


def test_label_of_many_keys_is_short() -> None:
    assert label({"lr.what": "0.03", "schedule.k": "5"}) == "lr.what=0.03, schedule.k=5"
    assert label(dict.fromkeys("abcdef", "1")) == "a=1 and 5 more"


def test_values_are_sorted_by_size() -> None:
    values = ["0.1", "not set", "1e-3", "[10]", "10", "[4,8]", "2", "[4]"]
    assert sorted(values, key=sort_key) == ["1e-3", "0.1", "2", "10", "not set", "[4]", "[4,8]", "[10]"]
