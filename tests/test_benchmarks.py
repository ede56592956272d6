"""Benchmarks on small data: they run, check targets and compare measurements. The measured times are not tested."""

import contextlib
import io
import json
import logging
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
from helpers.configs import composed

from benchmarks import __main__ as benchmarks
from benchmarks import bare, cases, epoch, growth, machine, project, replicas, small
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
    images = ("what-step", "where-step", "what/where cycle, k = 5", "evaluate 30,000 mosaics", "sample 30,000 mosaics")
    assert {case: set(times) for case, times in written["times"].items()} == {
        **dict.fromkeys(images, steps),
        "Table 1, one seed of eight rows (computed)": {SINGLE, OURS},
        **{key: {PLAIN, SINGLE, OURS} for key in ("2-D what-epoch", "2-D where-epoch")},
    }
    assert all(value > 0 for times in written["times"].values() for values in times.values() for value in values)
    assert {"commit", "device", "cores", "threads", "versions", "ceilings"} <= set(written["machine"])
    out = capsys.readouterr().out
    assert all(case in out for case in written["times"])
    assert "x reference (>= 80)" in out


def test_computed_time_of_table_1() -> None:
    """It counts the epochs and evaluations of the configs of Table 1's rows."""
    configs = [composed("train", f"experiment=table1/row{row}") for row in range(1, 9)]
    epochs = [config.schedule.epochs for config in configs]
    assert sum(epochs) == cases.TABLE_1["epochs"]
    assert all(n % (2 * config.schedule.k) == 0 for n, config in zip(epochs, configs, strict=True)), "half each"
    evaluations = [n // config.trainer.check_val_every_n_epoch for n, config in zip(epochs, configs, strict=True)]
    assert sum(evaluations) == cases.TABLE_1["evaluations"]
    data = configs[0].data
    assert data.train_mosaics + data.test_mosaics + data.held_out_mosaics == cases.TABLE_1["mosaics"]


def test_avx2_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are measured by a program in an environment that limits torch, its libraries and the fused kernels."""
    limits: list[dict[str, str]] = []

    def command(_: str, program: str, **environment: str) -> tuple[float, str]:
        limits.append(environment)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(program)
        return 1.0, printed.getvalue()

    monkeypatch.setattr(cases, "command", command)
    times: cases.Times = {}
    cases.gather(cases.avx2_cases(2), times)
    assert limits == [cases.AVX2] * 2
    targets = {case for case in benchmarks.TARGETS if case.startswith("AVX2")}
    assert len(targets) == 4
    for case in targets:
        assert {name: len(values) for name, values in times[case].items()} == {PLAIN: 2, OURS: 2}
    code = "import torch; from attnmosaic.nn.kernels import vectors_of_cpu; print(vectors_of_cpu())"
    limited = subprocess.run([sys.executable, "-c", code], env=os.environ | cases.AVX2, capture_output=True, text=True)
    assert "avx512" not in limited.stdout


def test_busy_core_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run is measured first without another process, then with one that keeps a core busy."""
    busy_states: list[bool] = []

    @contextlib.contextmanager
    def busy() -> Iterator[None]:
        busy_states.append(True)
        yield
        busy_states.append(False)

    monkeypatch.setattr(cases.machine, "busy_core", busy)
    few = ("data.train_mosaics=30", "data.test_mosaics=30", "data.held_out_mosaics=30", "schedule.epochs=2")
    monkeypatch.setattr(cases, "RUNS", {"gaussian": few})
    monkeypatch.setattr(cases, "seconds_of_training", cache(cases.seconds_of_training))  # one run is enough
    times: cases.Times = {}
    cases.gather(cases.busy_cases(1), times)
    ((case, contenders),) = times.items()
    assert contenders.keys() == {QUIET, OURS}
    assert busy_states == [True, False]
    monkeypatch.setitem(benchmarks.TARGETS, case, {QUIET: 0.4})
    met = [verdict for _, verdict in benchmarks.verdicts(case, {QUIET: [2.0], OURS: [4.0]})]
    missed = [verdict for _, verdict in benchmarks.verdicts(case, {QUIET: [2.0], OURS: [6.0]})]
    assert (met, missed) == ([True], [False])


def test_core_is_busy_only_in_the_block() -> None:
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
    """It is the precision of a run and not torch's default; the measurement contains it."""
    settings: dict[str, set[tuple[str, bool]]] = {}

    def recording(name: str, result: Any) -> Callable[..., Any]:
        def measure(*_: Any, **__: Any) -> Any:
            setting = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
            settings.setdefault(name, set()).add(setting)
            return result

        return measure

    epochs = SimpleNamespace(others={"what": [1.0], "where": [1.0]})
    modules = {"train": project, "epoch_seconds": bare}
    contenders = ("reference_times", "plain_times", "our_times", *modules)
    for name in contenders:
        result = (epochs, None) if name == "train" else {}
        monkeypatch.setattr(modules.get(name, cases), name, recording(name, result))
    monkeypatch.setattr(machine, "ceilings", lambda device: {})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    arguments = ["--only", "images", "points", "--repeats", "1", "--device", "cpu", "--matmul-precision", given]
    path = tmp_path / "now.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments, "--json", str(path)])
    benchmarks.main()
    assert settings == {name: {(given, tf32)} for name in contenders}
    described = json.loads(path.read_text())["machine"]
    assert (described["matmul_precision"], described["cudnn_tf32"]) == (given, tf32)
    assert f"matrix products: {given}, TF32 in convolutions: {tf32}" in capsys.readouterr().out
    assert torch.backends.cudnn.allow_tf32


def test_logging_case_restores_the_timed_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "TESTED", ("data.test_mosaics=50", "data.held_out_mosaics=50"))
    untouched = {(kind, name): getattr(kind, name) for kind in project.LOGGING for name in dir(kind)}
    times = {contender: seconds for _, contender, seconds in cases.logging_cases(1)}
    assert 0 < times[OURS] < times["the whole run"]
    assert {key: getattr(*key) for key in untouched} == untouched


def test_stopwatch_counts_nested_calls_once() -> None:
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
        ("0.9 x plain (>= 2.4)", False),
    ]
    (start,) = judged("start-up to the first step", imports_alone=7.0, attnmosaic=9.5)
    assert start == ("2.5 s above imports alone (<= 2 s)", False)
    assert judged("peak memory", imports_alone=0.8e9, attnmosaic=1.5e9) == [
        ("0.7 GB above imports alone (<= 0.8 GB)", True)
    ]
    assert judged("logging of a CIFAR run", the_whole_run=100.0, attnmosaic=4.0) == [
        ("4.00% of the whole run (<= 1.4%)", False)
    ]
    assert judged("--help", attnmosaic=2.1) == [("attnmosaic <= 2 s", False)]
    sweep = {"one after another": [16.0], "hydra/launcher=joblib": [10.0]}
    assert list(benchmarks.verdicts("sweep of ten 2-D runs", sweep)) == [
        ("hydra/launcher=joblib <= 14 s", True),
        ("1.6 x one after another (>= 1.6)", True),
    ]
    (tiny,) = judged("2-D epoch of one step", plain=0.001, attnmosaic=0.005)
    assert tiny == ("4 ms above plain (<= 3 ms)", False)


def test_small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case has a target, and each contender of a case takes time."""
    for name, value in {"EPOCHS": 2, "TINY_EPOCHS": 2, "K": 1, "EVERY": 1, "SEEDS": 2, "SWEEP_EPOCHS": 1}.items():
        monkeypatch.setattr(small, name, value)
    times: cases.Times = {}
    cases.gather(small.run_cases(1), times)
    cases.gather(small.hundred_cases(), times)
    assert len(times) == 6
    for case, contenders in times.items():
        assert OURS in contenders
        assert all(value > 0 for values in contenders.values() for value in values)
        assert any(met is not None for _, met in benchmarks.verdicts(case, contenders)), case


def test_parts_of_an_epoch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each takes time, and they take less than the whole."""
    for name, value in {"EPOCHS": 2, "TINY_EPOCHS": 2}.items():
        monkeypatch.setattr(epoch, name, value)
    parts = epoch.measure("schedule.epochs=2", "schedule.k=1", "trainer.check_val_every_n_epoch=1", *epoch.TINY)
    assert all(value > 0 for value in parts.values()), parts
    monkeypatch.setattr(logging, "disable", lambda _: None)
    epoch.main()
    assert "Lightning alone" in capsys.readouterr().out


def test_replicas_take_the_steps_of_single_runs() -> None:
    for network, (together, one_by_one, difference) in replicas.measure(3).items():
        assert difference < 1e-5, network
        assert min(together, one_by_one) > 0


def test_bare_loop_trains_one_network_at_a_time() -> None:
    """Its losses fall like those of a run, and the frozen network keeps its weights."""
    loop = bare.BareLoop(project.make_data("experiment=gaussian"), torch.device("cpu"))
    before = {name: value.clone() for name, value in loop.pair.state_dict().items()}
    losses = [loop.epoch("what")[0] for _ in range(3)]
    changed = {name.split(".")[0] for name, value in loop.pair.state_dict().items() if not value.equal(before[name])}
    assert changed == {"what"}
    losses += [loop.epoch("where")[0] for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    assert [len(measured) for measured in loop.evaluate()] == [7, 7, 7]


def test_comparison_of_two_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    measured = growth.measure_run(mosaics=60, patches=4, batch=10, pool=20)
    assert set(measured) == set(growth.MEASURED)
    assert measured["where-epoch"] > 0
    assert growth.slope([1, 10, 100], [5, 1, 100]) == pytest.approx(2)
    columns = {name: [1.0, 2.0] for name in growth.MEASURED}
    growth.plot({varied: {"value": [1.0, 2.0], **columns} for varied in growth.VARIED}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_plain_loop_has_as_many_mosaics_as_the_package() -> None:
    data = project.make_data(*project.POINTS)
    assert set(bare.epoch_seconds(data, torch.device("cpu"), 1)) == {"2-D what-epoch", "2-D where-epoch"}
    assert len(data.mosaics["train"]) == cases.MOSAICS
