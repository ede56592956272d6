"""Commands: the files they write, and that jobs of a sweep do not affect each other."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.commands import Cli
from helpers.configs import composed
from helpers.finished_runs import result
from helpers.settings import ALL_CHECKPOINTS, ROOT, SMALL, SMALL_NUMBERS
from helpers.user_code import TINY_CIFAR10
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import attnmosaic
from attnmosaic.config.schema import METRICS

pytestmark = pytest.mark.runs

SHORT = ("schedule.k=2", "schedule.epochs=8")
SHORTER = ("schedule.k=1", "schedule.epochs=2")
SPLITS = ("train", "test", "held_out")


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def run_folder(tmp_path: Path, name: str = "gaussian") -> Path:
    (folder,) = (tmp_path / "outputs" / name).iterdir()
    return folder


@pytest.mark.pictures
def test_files_of_a_run(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("train", *SMALL, *SHORT, *ALL_CHECKPOINTS, "lr.what=0.1")
    assert code == 0
    folder = run_folder(tmp_path)
    assert {p.name for p in folder.iterdir() if not p.name.startswith("events.out.tfevents.")} == {
        ".hydra", ".lock", "config.yaml", "checkpoints", "train.log", "metrics.csv", "result.json",
        "mosaics.npz", "gradients.csv", *(f"focus_vs_pred_{split}.csv" for split in SPLITS),
        "focus_vs_pred.png", "mosaics.png",
    }  # fmt: skip
    final = result(folder)
    assert set(final["metrics"]) == {f"{split}/{metric}" for split in SPLITS for metric in METRICS}
    assert final["epochs"] == 8
    assert final["seconds"] > 0
    assert {"config_hash", "seed", "versions", "device"} <= set(final)
    assert set(final["versions"]) == {"python", "attnmosaic", "torch", "pytorch-lightning", "numpy"}
    assert final["versions"]["attnmosaic"] == attnmosaic.__version__
    for value in ("train/accuracy", "held_out/ftpt"):
        assert f"{final['metrics'][value]:.4f}" in out
    assert str(folder) in out
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["run_dir"] == str(folder)
    assert "${" not in (folder / "config.yaml").read_text()

    # Epochs count from 1. The fifth is evaluated during training, the last in the final pass.
    table = rows(folder / "metrics.csv")
    assert [(row["epoch"], row["stage"]) for row in table] == [
        (str(e + 1), stage) for e, stage in enumerate(["what", "what", "where", "where"] * 2)
    ]
    assert [row["epoch"] for row in table if row["test/accuracy"]] == ["5", "8"]
    assert float(table[-1]["test/accuracy"]) == final["metrics"]["test/accuracy"]
    for split, n in zip(SPLITS, (60, 30, 30), strict=True):
        row, end = rows(folder / f"focus_vs_pred_{split}.csv")
        assert end["epochs"] == "8"
        assert int(end["argmax > 0.5"]) == round(n * final["metrics"][f"{split}/confident"])
        assert list(row) == [
            "epochs", "argmax > 0.5", "argmax < 0.5", "focus_true_pred_true", "focus_false_pred_true",
            "focus_true_pred_false", "focus_false_pred_false",
        ]  # fmt: skip
        counts = [int(value) for value in row.values()]
        assert counts[0] == 5
        assert sum(counts[1:3]) == sum(counts[3:]) == n
        assert counts[3] + counts[4] == round(n * float(table[4][f"{split}/accuracy"]))

    names = {p.name for p in (folder / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "before_last.ckpt", "epoch-0004.ckpt", "epoch-0008.ckpt"}
    for name in names:
        checkpoint = torch.load(folder / "checkpoints" / name, weights_only=True)
        assert checkpoint["hyper_parameters"]["config"]["lr"] == {"what": 0.1, "where": 0.01, "network": 0.001}
    check_tensorboard(folder)


def check_tensorboard(folder: Path) -> None:
    """Checks that TensorBoard's scalars equal a run's tables."""
    events = EventAccumulator(str(folder)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"{prefix}/{m}" for prefix in ("running", *SPLITS) for m in METRICS} | {"stage"} <= tags
    assert [(e.step, e.value) for e in events.Scalars("stage")] == [
        (epoch + 1, value) for epoch, value in enumerate([0, 0, 1, 1] * 2)
    ]
    table = rows(folder / "metrics.csv")
    assert [e.step for e in events.Scalars("running/loss")] == list(range(1, 9))
    assert [e.value for e in events.Scalars("running/loss")] == pytest.approx(
        [float(row["running/loss"]) for row in table]
    )
    assert [e.step for e in events.Scalars("test/accuracy")] == [5, 8]
    for name, value in result(folder)["metrics"].items():
        assert events.Scalars(name)[-1].value == pytest.approx(value)


def test_evaluation_equals_the_result_of_the_run(cli: Cli, tmp_path: Path) -> None:
    # Threads and precision differ from the defaults, because evaluate must use those of the run.
    settings = (
        "precision=float64",
        "compute.threads=2",
        "lr.what=0.1",
        "lr.where=0.1",
        "trainer.check_val_every_n_epoch=2",
        *ALL_CHECKPOINTS,
    )
    cli("train", *SMALL, "schedule.k=1", "schedule.epochs=4", "data=digits", "model=cnn", *settings)
    folder = run_folder(tmp_path)
    code, out, _ = cli("evaluate", f"ckpt_path={folder / 'checkpoints' / 'last.ckpt'}")
    assert code == 0
    again = json.loads((run_folder(tmp_path, "evaluate") / "evaluation.json").read_text())
    assert again == result(folder)["metrics"]
    assert f"{again['test/accuracy']:.4f}" in out
    earlier = folder / "checkpoints" / "epoch-0002.ckpt"
    cli("evaluate", f"ckpt_path={earlier}", "hydra.run.dir=earlier")
    measured = json.loads((tmp_path / "earlier" / "evaluation.json").read_text())
    row = rows(folder / "metrics.csv")[1]
    assert measured == {name: float(row[name]) for name in measured}
    assert measured != again
    cli("evaluate", f"ckpt_path={earlier}", "+data.test_mosaics=77", "hydra.run.dir=more")
    more = json.loads((tmp_path / "more" / "evaluation.json").read_text())
    assert {name for name in more if more[name] != measured[name]} <= {name for name in more if "test/" in name}
    assert more != measured


@pytest.mark.pictures
def test_files_of_a_run_of_two_outputs(cli: Cli, tmp_path: Path) -> None:
    """Evaluating its checkpoints gives the same numbers."""
    settings = ("experiment=mnist_sum", "precision=float64", "lr.network=0.01", "trainer.check_val_every_n_epoch=2")
    code, out, err = cli("train", *SMALL_NUMBERS, *settings, *ALL_CHECKPOINTS, "schedule.k=2", "schedule.epochs=5")
    assert code == 0, err
    folder = run_folder(tmp_path, "mnist_sum")
    assert {p.name for p in folder.iterdir() if not p.name.startswith("events.out.tfevents.")} == {
        ".hydra", ".lock", "config.yaml", "checkpoints", "train.log", "metrics.csv", "result.json",
        "accuracy.png",
        *(f"confusion_{output}_{split}.csv" for output in ("digit", "sum") for split in SPLITS),
    }  # fmt: skip
    metrics = ("loss", "digit_accuracy", "sum_accuracy")
    final = result(folder)
    assert list(final["metrics"]) == [f"{split}/{metric}" for split in SPLITS for metric in metrics]
    for value in final["metrics"].values():
        assert f"{value:.4f}" in out
    log = (folder / "train.log").read_text()
    assert "epoch 4/5 (network): digit_accuracy train 0." in log
    table = rows(folder / "metrics.csv")
    assert [*table[0]] == ["epoch", *(f"{p}/{m}" for p in ("running", *SPLITS) for m in metrics)]
    assert [row["epoch"] for row in table if row["test/loss"]] == ["2", "4", "5"]
    assert {name: float(table[-1][name]) for name in final["metrics"]} == final["metrics"]
    names = {p.name for p in (folder / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "before_last.ckpt", "epoch-0002.ckpt", "epoch-0004.ckpt"}
    events = EventAccumulator(str(folder)).Reload()
    assert {f"{prefix}/{m}" for prefix in ("running", *SPLITS) for m in metrics} <= set(events.Tags()["scalars"])
    assert "stage" not in events.Tags()["scalars"]
    for name, value in final["metrics"].items():
        assert events.Scalars(name)[-1].value == pytest.approx(value)
    for name, row in (("last", table[-1]), ("epoch-0004", table[3])):
        code, out, err = cli("evaluate", f"ckpt_path={folder / 'checkpoints' / name}.ckpt", f"hydra.run.dir={name}")
        assert code == 0, err
        measured = json.loads((tmp_path / name / "evaluation.json").read_text())
        assert measured == {key: float(row[key]) for key in final["metrics"]}


def test_same_seed_same_numbers(train: Callable[..., dict[str, float]], tmp_path: Path) -> None:
    metrics = train(*SHORTER, run_dir="one")
    assert train(*SHORTER, run_dir="two") == metrics
    assert result(tmp_path / "one")["config_hash"] == result(tmp_path / "two")["config_hash"]
    assert train(*SHORTER, "seed.all=1", run_dir="three") != metrics
    assert result(tmp_path / "three")["config_hash"] != result(tmp_path / "one")["config_hash"]


def global_state() -> list[Any]:
    return [
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        # Without Python's random state, because the shape checks of these tests use it.
    ]


def test_jobs_of_a_sweep_share_nothing(cli: Cli, tmp_path: Path) -> None:
    """The second job has the same results as alone, although the first job set other globals."""
    cli("train", *SMALL, *SHORTER)  # imports torch and Lightning, which change globals
    before = global_state()
    others = ("compute.matmul_precision=medium", "+trainer.deterministic=true", "seed.all=1")
    code, _, _ = cli("train", *SMALL, *SHORTER, *others, "precision=float64,float32", "-m")
    assert code == 0
    assert global_state() == before
    (sweep,) = (tmp_path / "outputs" / "sweeps" / "gaussian").iterdir()
    overrides = yaml.safe_load((sweep / "1" / ".hydra" / "overrides.yaml").read_text())
    cli("train", *overrides, "hydra.run.dir=alone")
    assert result(tmp_path / "alone")["metrics"] == result(sweep / "1")["metrics"]
    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (tmp_path / "alone", sweep / "1")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_failed_job_does_not_stop_the_sweep(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("train", *SMALL, *SHORTER, "data.patches=1,4", "-m")
    assert code == 2
    assert "data.patches: got 1" in err
    (sweep,) = (tmp_path / "outputs" / "sweeps" / "gaussian").iterdir()
    assert not (sweep / "0" / "result.json").exists()
    assert (sweep / "1" / "result.json").exists()


def test_sweep_of_one_run(cli: Cli, tmp_path: Path) -> None:
    """The command is ``experiment=stagewise lr.what=0.001 -m``, here on stand-in images and few mosaics."""
    code, _, _ = cli("train", *SMALL, *SHORTER, *TINY_CIFAR10, "experiment=stagewise", "lr.what=0.001", "-m")
    assert code == 0
    (sweep,) = (tmp_path / "outputs" / "sweeps" / "stagewise").iterdir()
    checkpoint = torch.load(sweep / "0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["config"]["lr"] == {"what": 0.001, "where": 0.01, "network": 0.001}


CONF = ROOT / "conf" / "experiment"
# Rows of tables on images are tested as sweeps (test_sweep.py).
SWEPT = ("table1/", "table2/", "averages/", "mnist/")
EXPERIMENTS = sorted(
    name
    for name in (p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.rglob("*.yaml"))
    if not name.startswith(SWEPT)
)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment(train: Callable[..., dict[str, float]], tmp_path: Path, experiment: str) -> None:
    """Runs each experiment file, with few mosaics or images and two epochs."""
    stand_in = TINY_CIFAR10 if "train_set" in composed("train", f"experiment={experiment}").data else ()
    train(f"experiment={experiment}", *stand_in, *SHORTER)
    assert result(tmp_path / "run")["epochs"] == 2
    assert result(tmp_path / "run")["name"] == experiment


@pytest.mark.parametrize("debug", sorted(p.stem for p in (ROOT / "conf" / "debug").glob("*.yaml")))
def test_every_debug_config(train: Callable[..., dict[str, float]], tmp_path: Path, debug: str) -> None:
    few = ("schedule.epochs=100",) if debug == "overfit" else ()
    metrics = train(f"debug={debug}", "model=mlp_50", *few, small=False)
    if debug == "overfit":
        assert metrics["train/accuracy"] > 0.95
    if debug == "profiler":
        assert "training_step" in next((tmp_path / "run").glob("*profile*.txt")).read_text()


def test_run_that_fails_in_its_last_step_has_no_result(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also no incomplete one: only finished runs have a ``result.json``."""
    replace = os.replace

    def replace_on_full_disk(source: Path, target: Path) -> None:
        if Path(target).name == "result.json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("attnmosaic.core.files.os.replace", replace_on_full_disk)
    code, _, err = cli("train", *SMALL, *SHORTER, "hydra.run.dir=run")
    assert code == 1
    assert "run/result.json' (No space left on device)" in err
    assert not [p.name for p in (tmp_path / "run").iterdir() if "result" in p.name]
