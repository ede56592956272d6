"""A run's folder: state, files and lock; finding runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from attnmosaic.core.errors import BusyError, UserError
from attnmosaic.runs.discovery import find_runs, sweep_of
from attnmosaic.runs.rows import curve
from attnmosaic.runs.run import ERROR, Run, lock_run


def test_lock_allows_one_process_in_a_folder(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from attnmosaic.runs.run import lock_run\n"
    code += "with lock_run(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        (folder / "config.yaml").write_text("schedule: {epochs: 6}")
        assert Run(folder).state == "running"
        with pytest.raises(BusyError, match=r"^hydra\.run\.dir: another process"), lock_run(folder):
            pass
        other.kill()
    assert Run(folder).state == "stopped"
    (folder / ERROR).touch()
    with lock_run(folder):
        assert not (folder / ERROR).exists()  # A new attempt removes the error of the last one.


def test_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^hydra\.run\.dir: cannot write"), lock_run(tmp_path / "file" / "run"):
        pass


def test_states_of_damaged_folders(tmp_path: Path) -> None:
    assert Run(tmp_path / "nowhere").state == "missing"
    (tmp_path / "config.yaml").write_text("name: [")
    (tmp_path / "result.json").write_text('{"metrics": ')
    assert Run(tmp_path).state == "stopped"
    (tmp_path / "config.yaml").write_text("name: a")
    assert Run(tmp_path).state == "stopped"
    assert Run(tmp_path).config is None
    assert Run(tmp_path).epochs_done == 0


def test_damaged_files_are_listed_as_problems(tmp_path: Path) -> None:
    """Valid rows of a damaged file are still read, and a missing file is not a problem."""
    (tmp_path / "config.yaml").write_text("name: [")
    (tmp_path / "result.json").write_text('{"metrics": {"train/accuracy": "much"}}')
    (tmp_path / "metrics.csv").write_text("epoch,stage,train/focus\n1,what,\n2,what,0.5\n3,where,nan\n4,wh")
    (tmp_path / "gradients.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "confusion_digit_test.csv").write_text("true digit,0,1,scale\n0,3,1,smoke\n")
    run = Run(tmp_path)
    assert (run.config, run.result, run.snapshots, run.rows("gradients")) == (None, None, None, [])
    assert run.rows("focus_vs_pred_train") == []
    assert run.confusion("digit", "test") is run.confusion("digit", "train") is None
    assert run.error is None
    assert curve(run.metrics, "train/focus") == ([2], [0.5])
    assert run.stages == [("what", 0, 2), ("where", 2, 3)]
    assert run.epochs_done == 3
    reasons = {
        "config.yaml": "not a complete config", "result.json": "metric", "metrics.csv": "1 of 4 rows",
        "gradients.csv": "UnicodeDecodeError", "confusion_digit_test.csv": "not a square matrix",
    }  # fmt: skip
    assert run.problems.keys() == reasons.keys()
    assert all(word in run.problems[name] for name, word in reasons.items())


def test_invalid_config_and_result_count_as_missing(tmp_path: Path) -> None:
    for content in (b'{"metrics": {"train/acc', b"seed: [", b"\xff\xfe\x00", b""):
        (tmp_path / "config.yaml").write_bytes(content)
        (tmp_path / "result.json").write_bytes(content)
        run = Run(tmp_path)
        assert (run.config, run.result, run.state) == (None, None, "stopped")
        assert run.problems.keys() == {"config.yaml", "result.json"}


def test_confusion_matrix_is_read(tmp_path: Path) -> None:
    (tmp_path / "confusion_sum_test.csv").write_text(
        "true sum,0,1,9,scale\n0,3,1,0,smoke\n1,0,0,0,smoke\n9,0,2,2,smoke\n"
    )
    confusion = Run(tmp_path).confusion("sum", "test")
    assert confusion is not None
    assert (confusion.values, confusion.examples, confusion.accuracy) == (["0", "1", "9"], 8, 5 / 8)
    assert confusion.fractions == [[0.75, 0.25, 0], [0, 0, 0], [0, 0.5, 0.5]]


def test_find_runs_returns_started_and_planned_runs(tmp_path: Path) -> None:
    for folder in ("a", "sweep/b/seed0"):
        (tmp_path / folder / "checkpoints").mkdir(parents=True)
        (tmp_path / folder / "config.yaml").write_text("name: a")
    (tmp_path / "a" / "inner").mkdir()
    (tmp_path / "a" / "inner" / "config.yaml").write_text("")  # not a run, as a run contains no runs
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "config.yaml").write_text("")
    plan = {"commands": [], "jobs": {"b/seed0": {"name": "b"}, "b/seed1": {"name": "b"}}}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(plan))
    states = {str(run.folder.relative_to(tmp_path)): run.state for run in find_runs(tmp_path)}
    assert states == {"a": "stopped", "sweep/b/seed0": "stopped", "sweep/b/seed1": "missing"}
    assert sweep_of(tmp_path / "sweep" / "b" / "seed0") == tmp_path / "sweep"
    assert sweep_of(tmp_path / "a") is None
