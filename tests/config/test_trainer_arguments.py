"""Arguments of Lightning's `Trainer` have their documented effect or are refused; and runs that end early."""

import csv
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from helpers.commands import Cli, check_line
from helpers.settings import SMALL, SMALL_NUMBERS
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

from attnmosaic.config.resolution import resolve, with_scale
from attnmosaic.config.schema import conf_dir, processes_of, register
from attnmosaic.config.trainer_arguments import REFUSED, RESTRICTED, SUPPORTED, check_trainer
from attnmosaic.config.validation import check
from attnmosaic.core.errors import UserError
from attnmosaic.core.processes import RankInfo
from attnmosaic.training.fit import fit
from attnmosaic.training.trainer import build_trainer

Config = Callable[..., DictConfig]
Train = Callable[..., dict[str, float]]
SHORT = (*SMALL, "schedule.k=1", "schedule.epochs=4", "logger=none")
REFUSED_VALUES: dict[str, Any] = {
    "accumulate_grad_batches": 2, "barebones": True, "callbacks": [], "enable_autolog_hparams": False,
    "enable_checkpointing": False, "enable_progress_bar": True, "fast_dev_run": True, "gradient_clip_algorithm": "norm",
    "gradient_clip_val": 1.0, "limit_predict_batches": 2, "limit_test_batches": 1, "limit_train_batches": 0.5,
    "limit_val_batches": 0, "logger": True, "max_steps": 10, "min_steps": 10, "model_registry": "mine",
    "num_sanity_val_steps": 2, "overfit_batches": 1, "precision": "64-true", "use_distributed_sampler": True,
}  # fmt: skip
"""For each refused argument a value that is not Lightning's default."""


CHANGED_DEFAULTS = {"num_sanity_val_steps", "use_distributed_sampler"}
"""Arguments whose defaults in Lightning are refused; ``conf/trainer/default.yaml`` sets other values."""


def result(tmp_path: Path, run: str = "run") -> dict[str, Any]:
    return json.loads((tmp_path / run / "result.json").read_text())


def rows(tmp_path: Path, run: str = "run") -> list[dict[str, str]]:
    with (tmp_path / run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_argument_of_lightning_is_in_one_list() -> None:
    """Fails if a new version of Lightning has new arguments, which must then be added to a list."""
    arguments = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    assert arguments == SUPPORTED | REFUSED.keys() | RESTRICTED
    assert len(arguments) == len(SUPPORTED) + len(REFUSED) + len(RESTRICTED)


def test_defaults_of_lightning_are_accepted() -> None:
    signature = inspect.signature(pl.Trainer.__init__).parameters
    check_trainer({key: signature[key].default for key in REFUSED.keys() - CHANGED_DEFAULTS}, 10)
    for key, (allowed, _) in REFUSED.items():
        for value in allowed:
            check_trainer({key: value}, 10)


@pytest.mark.parametrize("key", REFUSED)
def test_argument_without_documented_effect_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"^trainer\.{key}: got .*(type|remove)"):
        check_trainer({key: REFUSED_VALUES[key]}, 10)


@pytest.fixture(scope="module")
def composed() -> Callable[..., DictConfig]:
    """Returns a function that changes trainer arguments in a config that is composed only once."""
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        configs = {name: compose("train", [*SHORT, f"trainer={name}", "run_dir=run"]) for name in ("default", "ddp")}

    def make(arguments: Mapping[str, Any], name: str = "default") -> DictConfig:
        config = configs[name].copy()
        with open_dict(config):
            config.trainer.update(arguments)
        return config

    return make


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_steps", 10, r"got 10, .*type schedule\.epochs=N"),
        ("max_epochs", 3, r"got 3, .*\(4\); type schedule\.epochs=3"),
        ("max_time", "rubbish", r"got rubbish, needs .*DD:HH:MM:SS"),
        ("max_time", 60, r"got 60, needs"),
        ("max_time", {"fortnights": 1}, r"got .*fortnights"),
        ("min_epochs", 5, r"got 5, needs a whole number from 0 to schedule\.epochs \(4\)"),
        ("strategy", "fsdp", r"got fsdp, allowed: auto, ddp"),
        ("deterministic", "maybe", r"got maybe, needs true, false or warn"),
        ("benchmark", 2, r"got 2, needs true or false"),
        ("inference_mode", "abc", r"got abc, needs true or false"),
        ("sync_batchnorm", "yes", r"got yes, needs true or false"),
        ("log_every_n_steps", 0, r"got 0, needs"),
        ("devices", 3, r"type trainer=ddp trainer\.devices=3"),
        ("devices", [0, 1], r"type trainer=ddp trainer\.devices=2"),
        ("num_nodes", 2, r"got 2, .*torchrun --nnodes=2"),
    ],
)
def test_wrong_argument_is_refused_before_training(
    composed: Callable[..., DictConfig], key: str, value: Any, message: str
) -> None:
    with pytest.raises(UserError, match=rf"trainer\.{key}: .*{message}"):
        check(composed({key: value}))


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("auto", r"got auto, needs a number"),
        (-1, r"got -1, needs a number"),
        (26, r"got 26, .*minibatches of 25"),
    ],
)
def test_wrong_devices_are_refused_with_several_processes(
    composed: Callable[..., DictConfig], devices: Any, message: str
) -> None:
    with pytest.raises(UserError, match=rf"trainer\.devices: .*{message}"):
        check(composed({"devices": devices}, "ddp"))


def test_number_of_processes(composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the number of ``trainer.devices``, or the number of processes that torchrun has started."""

    def processes(arguments: Mapping[str, Any], name: str = "ddp") -> int:
        config = composed(arguments, name)
        check(config)
        return processes_of(config)

    assert processes({"devices": 1}, "default") == 1
    assert processes({}) == 2
    assert processes({"devices": 3}) == 3
    assert processes({"devices": [0, 2]}) == 2
    for name, value in RankInfo(0, 4, 0, 2, "localhost", 1).environ().items():
        monkeypatch.setenv(name, value)
    assert processes({}) == 4
    for arguments, name in (({"devices": 2}, "ddp"), ({"devices": [0, 1, 2, 3]}, "ddp"), ({}, "default")):
        with pytest.raises(UserError, match=r"trainer\.devices: got .*started 4 processes"):
            processes(arguments, name)


def test_sync_batchnorm_on_the_cpu_is_refused(composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match=r"trainer\.sync_batchnorm: .*GPUs"):
        build_trainer(resolve(composed({"sync_batchnorm": True})), "32-true")


def test_wrong_argument_is_refused_for_two_outputs(config: Config) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        check(config("experiment=mnist_sum", "+trainer.max_steps=10"))


@pytest.mark.runs
def test_wrong_argument_is_refused_in_evaluate(cli: Cli, train: Train, tmp_path: Path) -> None:
    train(*SHORT, "schedule.epochs=1")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    code, _, err = cli("evaluate", f"ckpt_path={last}", "+trainer.limit_val_batches=1")
    check_line(code, err, r"trainer\.limit_val_batches")


@pytest.mark.runs
def test_arguments_that_do_not_change_numbers(train: Train) -> None:
    """Arguments that can be combined are tested together."""
    expected = train(*SHORT)
    for number, arguments in enumerate((
        ("+trainer.deterministic=true", "+trainer.detect_anomaly=true", "+trainer.inference_mode=false",
         "+trainer.max_steps=-1", "+trainer.min_epochs=2"),
        ("+trainer.deterministic=warn", "+trainer.benchmark=true", "+trainer.reload_dataloaders_every_n_epochs=1",
         "+trainer.max_time={hours:3}", "trainer.num_sanity_val_steps=0"),
    )):  # fmt: skip
        assert train(*SHORT, *arguments, run_dir=f"other{number}") == expected


@pytest.mark.runs
def test_profiler_and_model_summary_are_shown(cli: Cli) -> None:
    code, out, _ = cli(
        "train", *SHORT, "trainer.profiler=simple", "trainer.enable_model_summary=true", "hydra.run.dir=run"
    )
    assert code == 0
    assert "Profiler Report" in out
    assert "Trainable params" in out


class StopWithin(pl.Callback):
    """Requests the end of the run in the first block of an epoch; the first epoch is 1."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop |= trainer.current_epoch + 1 == self.epoch


FAMILIES = {"pair": SHORT, "two outputs": ("experiment=mnist_sum", "schedule.epochs=4", "logger=none")}
STOPPING = "+callbacks.stop={_target_: test_trainer_arguments.StopWithin, epoch: 2}"


@pytest.mark.runs
@pytest.mark.parametrize("family", FAMILIES)
def test_run_completes_the_epoch_in_which_a_callback_requests_its_end(
    cli: Cli, train: Train, tmp_path: Path, family: str
) -> None:
    settings = (*FAMILIES[family], "trainer.check_val_every_n_epoch=2")
    train(*settings, run_dir="complete")
    few = SMALL_NUMBERS if family == "two outputs" else ()
    code, out, _ = cli("train", *few, *settings, STOPPING, "hydra.run.dir=run", "progress=quiet")
    assert code == 0
    assert "ended after epoch 2 of 4: " in out
    assert rows(tmp_path) == rows(tmp_path, "complete")[:2]
    assert result(tmp_path)["epochs"] == 2
    assert "callback" in result(tmp_path)["ended_early"]
    assert result(tmp_path, "complete")["ended_early"] is None


@pytest.mark.runs
@pytest.mark.parametrize("timer", [(), ("callbacks.timer=null",), ("+callbacks.timer.interval=epoch",)])
def test_max_time_ends_a_run(train: Train, tmp_path: Path, timer: tuple[str, ...]) -> None:
    """All its epochs are complete; without attnmosaic's timer, Lightning adds its own."""
    few = ("schedule.epochs=1000000", "callbacks.cycle=null", "callbacks.gradients=null", "callbacks.dashboards=null")
    train(*SHORT, *few, *timer, "+trainer.max_time=00:00:00:01")
    assert 0 < result(tmp_path)["epochs"] == len(rows(tmp_path)) < 1000000
    assert "time limit" in result(tmp_path)["ended_early"]
    assert all(row["running/accuracy"] for row in rows(tmp_path))


@pytest.mark.runs
def test_early_stopping_waits_for_min_epochs(train: Train, tmp_path: Path) -> None:
    stop = "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: running/loss, stopping_threshold: 100, "
    stop += "check_on_train_epoch_end: true}"
    train(*SHORT, f"+callbacks.stop={stop}", "+trainer.min_epochs=3")
    assert result(tmp_path)["epochs"] == 3
    assert result(tmp_path)["ended_early"].startswith("Stopping threshold reached: running/loss")


class BatchNormed(pl.LightningModule):
    """What network with batch normalisation."""

    def __init__(self, in_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        from torch import nn

        self.layers = nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(), nn.LazyLinear(outputs))

    def forward(self, x: Any) -> Any:
        return self.layers(x)


def no_scalar(logits: Any, alpha: Any, label: Any) -> Any:
    return logits.sum(dim=1)


def failing_loss(logits: Any, alpha: Any, label: Any) -> Any:
    raise KeyError("nothing")


class Logs(pl.Callback):
    """Callback of a user that logs another metric."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("mine/score", float(trainer.current_epoch))


def callback(name: str, **arguments: Any) -> str:
    text = "".join(f", {key}: {value}" for key, value in arguments.items())
    return f"+callbacks.extra={{_target_: pytorch_lightning.callbacks.{name}{text}}}"


BN = ("model.what._target_=test_trainer_arguments.BatchNormed",)
FAILING: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown metric": (
        (callback("EarlyStopping", monitor="test/acuracy"),),
        r"callbacks\.extra\.monitor: got 'test/acuracy', .*did you mean .*test/accuracy",
    ),
    "unknown metric of a checkpoint": (
        (callback("ModelCheckpoint", monitor="val_loss"),), r"callbacks\.extra\.monitor: got 'val_loss', allowed",
    ),
    "metric that is not measured in every epoch": (
        (callback("EarlyStopping", monitor="test/accuracy", check_on_train_epoch_end="true"),),
        r"callbacks\.extra\.monitor: got test/accuracy, .*5 epochs.*check_on_train_epoch_end=false",
    ),
    "callback that supports one optimizer": (
        (callback("StochasticWeightAveraging", swa_lrs=0.1),), r"trainer: SWA currently works with 1 `optimizer`",
    ),
    "callback for automatic optimization": (
        (callback("GradientAccumulationScheduler", scheduling="{1: 2}"),),
        r"callbacks: GradientAccumulationScheduler ",
    ),
    "callback that needs a missing attribute": ((callback("BackboneFinetuning"),), r"callbacks: BackboneFinetuning "),
    "callback that needs a logger": ((callback("LearningRateMonitor"),), r"trainer: Cannot use `LearningRateMonitor`"),
    "optimizer that needs a closure": (
        ("optimizer.what._target_=torch.optim.LBFGS",), r"optimizer\.what: torch\.optim\.LBFGS .*closure",
    ),
    "optimizer that needs sparse gradients": (
        ("optimizer.where._target_=torch.optim.SparseAdam",), r"optimizer\.where: .*SparseAdam ",
    ),
    "scheduler with too few steps": (
        ("scheduler.what={_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.1, total_steps: 1}",),
        r"scheduler\.what: fails after 1 of the 2 epochs",
    ),
    "last minibatch with one example": (
        (*BN, "data.batch_size=59"),
        r"data\.batch_size: got 59, .*BatchNormed .*type data\.batch_size=60",
    ),
    "minibatches with one example": ((*BN, "data.batch_size=1"), r"data\.batch_size: got 1, .*type data\.batch_size=2"),
    "microbatches with one example": (
        (*BN, "optimizer.microbatches=25"), r"data\.batch_size: got 25, .*type optimizer\.microbatches=null",
    ),
    "an objective that is no scalar": (
        ("objective._target_=test_trainer_arguments.no_scalar", "+objective._partial_=true"),
        r"objective: test_trainer_arguments\.no_scalar returns \[2\] for logits \[2, 3\]",
    ),
    "objective that raises an error": (
        ("objective._target_=test_trainer_arguments.failing_loss", "+objective._partial_=true"),
        r"objective: test_trainer_arguments\.failing_loss .*\[2, 3\], .*nothing",
    ),
}  # fmt: skip


@pytest.mark.runs
@pytest.mark.parametrize("case", FAILING)
def test_setting_that_would_fail_in_training_is_a_user_error(config: Config, tmp_path: Path, case: str) -> None:
    overrides, message = FAILING[case]
    with pytest.raises(UserError, match=message) as error:
        fit(resolve(with_scale(config(*SHORT, *overrides))))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").glob("checkpoints/*")), "no epoch was trained"


@pytest.mark.runs
def test_minibatches_with_one_example_are_refused_only_if_a_network_fails_on_them(train: Train) -> None:
    train(*SHORT, "schedule.epochs=1", *BN, "data.batch_size=30")
    train(*SHORT, "schedule.epochs=1", "data.batch_size=59", run_dir="other")


@pytest.mark.runs
def test_metric_of_a_user_can_be_monitored(train: Train, tmp_path: Path) -> None:
    stop = callback(
        "EarlyStopping", monitor="mine/score", stopping_threshold=0.5, mode="max", check_on_train_epoch_end="true"
    )
    train(*SHORT, "+callbacks.logs={_target_: test_trainer_arguments.Logs}", stop)
    assert result(tmp_path)["epochs"] == 2


@pytest.mark.runs
@pytest.mark.parametrize("logging", ["disabled", "stdout"])
def test_logging_options_of_hydra_work(cli: Cli, tmp_path: Path, logging: str) -> None:
    code, _, err = cli("train", *SHORT, "schedule.epochs=1", f"hydra/job_logging={logging}", "hydra.run.dir=run")
    assert code == 0, err
    assert (tmp_path / "run" / "result.json").exists()
    check_line(*cli("train", *SHORT, f"hydra/job_logging={logging}", "data.batch_size=0")[::2], "batch_size")
