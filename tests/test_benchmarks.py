"""The benchmarks run, on small data, and judge and compare rightly. What they measure is no test's concern."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import cases, growth, machine, project
from benchmarks.cases import OURS, PLAIN, QUIET, REFERENCE, SINGLE

pytestmark = pytest.mark.runs


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MOSAICS": 100, "BATCH": 10, "STEPS": 10, "K": 2, "STEPS_OF_REFERENCE": 1}.items():
        monkeypatch.setattr(cases, name, value)
    few = ("data.train_mosaics=100", "data.batch_size=10")
    monkeypatch.setattr(project, "IMAGES", (*project.IMAGES, "+data.images=50", *few))
    monkeypatch.setattr(project, "POINTS", (*project.POINTS, *few))


def test_images_and_points(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "ceilings", lambda device: {"copy": 1.0})
    path = tmp_path / "bench" / "now.json"
    arguments = ["benchmarks", "--only", "images", "points", "--repeats", "1", "--json", str(path), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmarks.main()
    written = json.loads(path.read_text())
    steps = {REFERENCE, PLAIN, SINGLE, OURS}
    images = ("what-step", "where-step", "what/where cycle, k = 5", "evaluate 30,000 mosaics", "draw 30,000 mosaics")
    assert {case: set(times) for case, times in written["times"].items()} == {
        **dict.fromkeys(images, steps),
        **{key: {PLAIN, SINGLE, OURS} for key in ("2-D what-epoch", "2-D where-epoch")},
    }
    assert all(value > 0 for times in written["times"].values() for values in times.values() for value in values)
    assert {"commit", "device", "cores", "threads", "versions", "ceilings"} <= set(written["machine"])
    out = capsys.readouterr().out
    assert all(case in out for case in written["times"])
    assert "x reference (>= 80)" in out


def test_a_busy_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run is measured beside no other process, then beside one that is gone afterwards."""
    beside: list[bool] = []

    @contextlib.contextmanager
    def busy() -> Iterator[None]:
        beside.append(True)
        yield
        beside.append(False)

    monkeypatch.setattr(cases.machine, "busy_core", busy)
    few = ("data.train_mosaics=30", "data.test_mosaics=30", "data.held_out_mosaics=30", "schedule.epochs=2")
    monkeypatch.setattr(cases, "RUNS", {"gaussian": few})
    monkeypatch.setattr(cases, "seconds_of_training", cache(cases.seconds_of_training))  # one run is enough
    times: cases.Times = {}
    cases.gather(cases.busy_cases(1), times)
    ((case, contenders),) = times.items()
    assert contenders.keys() == {QUIET, OURS}
    assert beside == [True, False]
    monkeypatch.setitem(benchmarks.TARGETS, case, {QUIET: 0.4})
    met = [verdict for _, verdict in benchmarks.verdicts(case, {QUIET: [2.0], OURS: [4.0]})]
    missed = [verdict for _, verdict in benchmarks.verdicts(case, {QUIET: [2.0], OURS: [6.0]})]
    assert (met, missed) == ([True], [False])


def test_a_core_is_kept_busy_meanwhile() -> None:
    with machine.busy_core():
        (spinning,) = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "-f", "while True"], capture_output=True, text=True
        ).stdout.split()
        assert Path("/proc", spinning).exists()
    assert not Path("/proc", spinning).exists()


@pytest.mark.parametrize(("given", "tf32"), [("highest", False), ("high", True)])
def test_all_contenders_compute_with_the_same_precision(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, given: str, tf32: bool
) -> None:
    """With that of a run; torch's own settings are others, and what is measured says which it was."""
    seen: dict[str, set[tuple[str, bool]]] = {}

    def noting(name: str, gives: Any) -> Callable[..., Any]:
        def measure(*_: Any, **__: Any) -> Any:
            setting = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
            seen.setdefault(name, set()).add(setting)
            return gives

        return measure

    epochs = SimpleNamespace(others={"what": [1.0], "where": [1.0]})
    contenders = ("reference_times", "plain_times", "our_times", "bare_epochs", "train")
    for name in contenders:
        module, gives = (project, (epochs, None)) if name == "train" else (cases, {})
        monkeypatch.setattr(module, name, noting(name, gives))
    monkeypatch.setattr(machine, "ceilings", lambda device: {})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    arguments = ["--only", "images", "points", "--repeats", "1", "--device", "cpu", "--matmul-precision", given]
    path = tmp_path / "now.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments, "--json", str(path)])
    benchmarks.main()
    assert seen == {name: {(given, tf32)} for name in contenders}
    described = json.loads(path.read_text())["machine"]
    assert (described["matmul_precision"], described["cudnn_tf32"]) == (given, tf32)
    assert f"matrix products: {given}, TF32 in convolutions: {tf32}" in capsys.readouterr().out
    assert torch.backends.cudnn.allow_tf32


def test_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "TESTED", ("data.test_mosaics=50", "data.held_out_mosaics=50"))
    untouched = {(kind, name): getattr(kind, name) for kind in project.LOGGING for name in dir(kind)}
    times = {contender: seconds for _, contender, seconds in cases.logging_cases(1)}
    assert 0 < times[OURS] < times["the whole run"]
    assert {key: getattr(*key) for key in untouched} == untouched


def test_a_stopwatch_counts_nested_calls_once() -> None:
    class Work:
        def outer(self) -> None:
            time.sleep(0.01)
            self.inner()

        def inner(self) -> None:
            time.sleep(0.01)

        def other(self) -> None:
            time.sleep(0.2)

    with project.Stopwatch({Work: ("outer", "inner")}) as watch:
        Work().outer()
        Work().other()
    assert 0.02 <= watch.seconds < 0.2
    before = watch.seconds
    Work().outer()
    assert watch.seconds == before


def test_verdicts() -> None:
    def judged(case: str, **times: float) -> list[tuple[str, bool | None]]:
        return list(benchmarks.verdicts(case, {name.replace("_", " "): [value] for name, value in times.items()}))

    assert judged("where-step", reference=1.0, plain=0.09, attnmosaic=0.1) == [
        ("10 x reference (>= 10)", True),
        ("0.9 x plain (>= 1)", False),
    ]
    (start,) = judged("start-up to the first step", imports_alone=7.0, attnmosaic=9.5)
    assert start == ("2.5 s beyond imports (<= 2 s)", False)
    assert judged("peak memory", imports_alone=0.8e9, attnmosaic=1.5e9) == [("0.7 GB beyond imports (<= 0.8 GB)", True)]
    assert judged("logging of a CIFAR run", the_whole_run=100.0, attnmosaic=4.0) == [
        ("4.00% of the whole run (<= 3%)", False)
    ]
    assert judged("--help", attnmosaic=2.1) == [("<= 2 s", False)]
    sweep = {"one after another": [16.0], "hydra/launcher=joblib": [10.0]}
    assert list(benchmarks.verdicts("sweep of ten 2-D runs", sweep)) == [("1.6 x one after another (>= 1.6)", True)]


def test_two_measurements_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seconds in (("old", [3.0, 1.0, 2.0]), ("new", [0.5])):
        content = {"machine": {"commit": name}, "times": {"where-step": {OURS: seconds}, name: {OURS: [1.0]}}}
        (tmp_path / name).write_text(json.dumps(content))
    sys_argv = ["benchmarks", "--compare", str(tmp_path / "old"), str(tmp_path / "new")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", sys_argv)
        benchmarks.main()
    out = capsys.readouterr().out
    assert "old against new" in out
    assert "2 s (1 to 3)" in out
    assert "4.00" in out


def test_growth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured = growth.one(mosaics=60, patches=4, batch=10, pool=20)
    assert set(measured) == set(growth.MEASURED)
    assert measured["where-epoch"] > 0
    assert growth.slope([1, 10, 100], [5, 1, 100]) == pytest.approx(2)
    columns = {name: [1.0, 2.0] for name in growth.MEASURED}
    growth.draw({varied: {"value": [1.0, 2.0], **columns} for varied in growth.VARIED}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_the_bare_loop_does_the_same_arithmetic() -> None:
    """As many rows as the package's epoch; it would be no yardstick otherwise."""
    data = project.make_data(*project.POINTS)
    assert set(cases.bare_epochs(data, torch.device("cpu"), 1)) == {"2-D what-epoch", "2-D where-epoch"}
    assert len(data.mosaics["train"]) == cases.MOSAICS
