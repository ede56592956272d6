"""Training one network with two outputs: its examples, its metrics, and resumed runs."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers.settings import ALL_CHECKPOINTS
from helpers.small_runs import AfterEpoch, build, fit
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from attnmosaic.config.digit_operations import OPERATIONS
from attnmosaic.core.errors import RunError, UserError
from attnmosaic.data.datamodule import SPLITS
from attnmosaic.training.two_outputs import TwoOutputModule

pytestmark = pytest.mark.runs

Config = Callable[..., DictConfig]
Train = Callable[..., dict[str, float]]
SUM, PRODUCT = "experiment=mnist_sum", "experiment=mnist_product"
QUIET = ("logger=none", *(f"callbacks.{name}=null" for name in ("last", "cycle", "tables", "pictures")))
EVERY_EPOCH = "callbacks.cycle._target_=helpers.small_runs.EveryEpoch"


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("experiment", [SUM, PRODUCT])
def test_both_outputs_are_trained(config: Config, experiment: str) -> None:
    """Every weight changes, the training loss falls, and digits are predicted far better than by chance."""
    training = ("schedule.epochs=8", "trainer.check_val_every_n_epoch=1", "lr.network=0.01", "data.train_images=200")
    settings = config(experiment, *training, *QUIET)
    module, _ = build(settings)
    before = {name: value.clone() for name, value in module.network.named_parameters()}
    losses = []
    fit(settings, AfterEpoch(lambda _, m: losses.append(m.epoch_metrics["train/loss"])), module=module)
    for name, value in module.network.named_parameters():
        assert not torch.equal(value, before[name]), name
    assert losses[-1] < 0.8 * losses[0]
    assert all(module.epoch_metrics[f"{split}/digit_accuracy"] > 0.5 for split in SPLITS)


@pytest.mark.parametrize("experiment", [SUM, PRODUCT])
def test_metrics_equal_a_plain_recount(config: Config, experiment: str) -> None:
    """Computes the metrics after each epoch from the network's outputs with numpy."""
    operation = OPERATIONS[experiment.removeprefix("experiment=mnist_")]
    compared = []

    def look(epoch: int, module: TwoOutputModule) -> None:
        network = module.network.eval()
        for split in SPLITS:
            examples = module.examples[split]
            digit = examples.pool.labels.numpy()
            number = examples.number.numpy()
            value = digit + number if operation.name == "sum" else digit * number
            pixels = torch.from_numpy(examples.pool.patches.numpy()).permute(0, 3, 1, 2).double() / 255 * 2 - 1
            with torch.no_grad():
                logits = [part.numpy() for part in network(pixels, examples.number)]
            predicted = logits[1].argmax(axis=1)
            assert module.epoch_metrics[f"{split}/digit_accuracy"] == (logits[0].argmax(axis=1) == digit).mean()
            correct = np.array([operation.values[i] for i in predicted]) == value
            assert module.epoch_metrics[f"{split}/{operation.name}_accuracy"] == correct.mean()
            probabilities = [np.exp(part) / np.exp(part).sum(axis=1, keepdims=True) for part in logits]
            classes = np.array([operation.values.index(v) for v in value])
            rows = np.arange(len(digit))
            loss = -np.log(probabilities[0][rows, digit]).mean() - np.log(probabilities[1][rows, classes]).mean()
            assert module.epoch_metrics[f"{split}/loss"] == pytest.approx(loss, rel=1e-6)
            compared.append(split)

    fit(
        config(experiment, "precision=float64", "schedule.epochs=2", "trainer.check_val_every_n_epoch=1", *QUIET),
        AfterEpoch(look),
    )
    assert len(compared) == 6


class Watched(nn.Module):
    """A tiny network that records its outputs, images and numbers in training."""

    def __init__(self, in_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.digit = nn.Linear(28 * 28, 10)
        self.result = nn.Linear(28 * 28 + 10, outputs)
        self.recorded: list[tuple[Tensor, ...]] = []

    def forward(self, image: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        pixels = image.flatten(1)
        digit = self.digit(pixels)
        result = self.result(torch.cat([pixels, nn.functional.one_hot(number, 10).to(pixels)], dim=1))
        if self.training:
            self.recorded.append((digit.detach(), result.detach(), image, number))
        return digit, result


WATCHED = ("model.network._target_=test_two_output_module.Watched", "~model.network.dropout")


def test_running_metrics_are_of_the_outputs_of_training_steps(config: Config) -> None:
    """The outputs are from before each update, of minibatches of different sizes (25, 25 and 10)."""

    def look(epoch: int, module: TwoOutputModule) -> None:
        recorded, module.network.recorded = module.network.recorded, []
        assert [len(digit) for digit, *_ in recorded] == [25, 25, 10]
        digit, result, image, number = (torch.cat(part) for part in zip(*recorded, strict=True))
        pool = module.examples["train"].pool
        images = pool.gather(torch.arange(60), torch.float32)
        row = (image.flatten(1)[:, None] == images.flatten(1)[None]).all(dim=2).int().argmax(dim=1)
        true = pool.labels[row]
        metrics = module.epoch_metrics
        assert metrics["running/digit_accuracy"] == pytest.approx((digit.argmax(1) == true).double().mean().item())
        assert metrics["running/sum_accuracy"] == pytest.approx(
            (result.argmax(1) == true + number).double().mean().item()
        )
        entropy = nn.functional.cross_entropy
        loss = entropy(digit, true).item() + entropy(result, true + number).item()
        assert metrics["running/loss"] == pytest.approx(loss, rel=1e-5)

    fit(config(SUM, *WATCHED, "schedule.epochs=3", *QUIET), AfterEpoch(look))


@pytest.mark.parametrize("redraw", [False, True])
def test_numbers_change_in_each_epoch_only_with_redraw(config: Config, redraw: bool) -> None:
    """Evaluation always uses the numbers that were sampled first."""
    trained, evaluated = [], []

    def look(epoch: int, module: TwoOutputModule) -> None:
        order = np.random.default_rng([0, epoch, 1]).permutation(60)
        numbers = torch.cat([number for *_, number in module.network.recorded])
        module.network.recorded = []
        trained.append(numbers[torch.from_numpy(np.argsort(order))].tolist())
        evaluated.append(module.examples["train"].number.tolist())

    fit(config(SUM, *WATCHED, f"data.redraw={redraw}", "schedule.epochs=3", *QUIET), AfterEpoch(look))
    assert len({tuple(numbers) for numbers in trained}) == (3 if redraw else 1)
    assert evaluated[0] == evaluated[1] == evaluated[2]
    assert (trained[0] == evaluated[0]) is not redraw


SHORT = ("schedule.epochs=2", *QUIET)


CHANGES = ("seed.data=1", "seed.init=1", "seed.order=1", "lr.network=0.1", "data.redraw=true", "optimizer=sgd")
NO_CHANGES = ("data.eval_batch_size=7", "lr.what=3", "trainer.check_val_every_n_epoch=1", "seed.all=0", "schedule.k=9")


def test_settings_that_change_the_weights(config: Config) -> None:
    """The state of the global random generator before a run has no effect."""
    torch.manual_seed(5)
    one = weights(fit(config(SUM, *SHORT)))
    for change in (*CHANGES, *NO_CHANGES):
        torch.manual_seed(6)
        assert torch.equal(one, weights(fit(config(SUM, *SHORT, change)))) == (change in NO_CHANGES), change


def test_gradient_clipping_limits_a_step(config: Config) -> None:
    """With plain SGD and a learning rate of 1, a step is as long as the clipped gradient."""
    for fused, precision in ((True, "float64"), (False, "bfloat16")):
        settings = config(
            SUM, "optimizer.network={_target_: torch.optim.SGD}", f"+optimizer.network.fused={fused}", "lr.network=1",
            "optimizer.clip_norm=0.001", "data.batch_size=60", "schedule.epochs=1", f"precision={precision}", *QUIET,
        )  # fmt: skip
        module, _ = build(settings)
        before = weights(module)
        fit(settings, module=module)
        assert (weights(module) - before).norm() == pytest.approx(0.001, rel=1e-3)


PLATEAU = "scheduler.network={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, patience: 0, threshold: 0.9}"
HALVE = "scheduler.network={_target_: torch.optim.lr_scheduler.StepLR, step_size: 1, gamma: 0.5}"


@pytest.mark.parametrize(("scheduler", "rates"), [(HALVE, [0.5, 0.25, 0.125]), (PLATEAU, [1, 0.1, 0.01])])
def test_schedulers_step_once_after_each_epoch(config: Config, scheduler: str, rates: list[float]) -> None:
    """With this threshold the loss must fall to a tenth, so that every epoch except the first is a plateau."""
    epoch_rates = []
    look = AfterEpoch(lambda _, module: epoch_rates.append(module.optimizers().param_groups[0]["lr"]))
    fit(config(SUM, scheduler, "schedule.epochs=3", *QUIET), look)
    assert epoch_rates == pytest.approx([0.001 * rate for rate in rates])


# ---- resuming


def check_same(reference: Path, resumed: Path) -> None:
    names = sorted(path.name for path in reference.glob("*.csv"))
    assert len(names) == 7
    for name in names:
        assert (reference / name).read_text() == (resumed / name).read_text(), name
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (reference, resumed)]
    one, other = (state["state_dict"] for state in states)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    results = [json.loads((folder / "result.json").read_text()) for folder in (reference, resumed)]
    for key in ("metrics", "epochs", "config_hash", "seed"):
        assert results[0][key] == results[1][key], key


@pytest.mark.parametrize(
    "settings",
    [
        (SUM, "scheduler=cosine", "data.redraw=true"),
        (SUM, PLATEAU, "precision=float64", "data.redraw=true"),
        (PRODUCT, "precision=bfloat16", "optimizer=sgd"),
    ],
    ids=["float32", "float64", "bfloat16"],
)
def test_resumed_run_equals_uninterrupted_run(train: Train, tmp_path: Path, settings: tuple[str, ...]) -> None:
    """Bit-identical, with dropout, running statistics and numbers that change in each epoch."""
    settings = (*settings, "schedule.epochs=4", "trainer.check_val_every_n_epoch=2", "logger=none", "lr.network=0.01")
    metrics = train(*settings, EVERY_EPOCH, "callbacks.pictures=null", run_dir="whole")
    for epoch in (1, 2):
        checkpoint = tmp_path / "whole" / "checkpoints" / f"epoch-{epoch:04}.ckpt"
        resumed = (f"ckpt_path={checkpoint}", "callbacks.pictures=null")
        assert train(*settings, *resumed, run_dir=f"from{epoch}") == metrics
        check_same(tmp_path / "whole", tmp_path / f"from{epoch}")


def test_checkpoint_that_does_not_fit_the_run_is_refused(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = ("schedule.epochs=2", "logger=none", "callbacks.pictures=null")
    train(SUM, *short, run_dir="first")
    last = f"ckpt_path={tmp_path / 'first' / 'checkpoints' / 'last.ckpt'}"
    for change in ("lr.network=0.5", "optimizer=sgd", "scheduler=cosine"):
        with pytest.raises(UserError, match=r"network.* saved optimizers"):
            train(SUM, *short, last, "schedule.epochs=3", change)
    with pytest.raises(UserError, match="another architecture"):
        train(PRODUCT, *short, last, "schedule.epochs=3")
    with pytest.raises(UserError, match="another architecture"):
        train(*short, last, "schedule.epochs=3")
    # Settings of networks that this run does not have are ignored.
    caplog.clear()
    train(SUM, *short, last, "schedule.epochs=3", "lr.what=7", "+optimizer.where.eps=1", "scheduler.what=1")
    lines = [record.message for record in caplog.records if "resuming with another" in record.message]
    assert [line.split()[3].rstrip(":") for line in lines] == ["schedule.epochs", "trainer.max_epochs"]


# ---- failures


class Spoil(pl.Callback):
    """Makes a gradient not a number right before the optimizer's n-th step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.left -= 1
        if self.left == 0:
            optimizer.param_groups[0]["params"][0].grad.fill_(float("nan"))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (5, r"the loss became nan in epoch 2, step 3 of 3 .*lr\.network"),
        (6, r"a weight became infinite in epoch 2, step 3 of 3 .*lr\.network"),
    ],
)
def test_failed_run_keeps_its_last_good_checkpoint(config: Config, step: int, message: str) -> None:
    settings = config(SUM, "schedule.epochs=4", "logger=none", "trainer.check_val_every_n_epoch=1", *ALL_CHECKPOINTS)
    with pytest.raises(RunError, match=message):
        fit(settings, Spoil(step))
    checkpoint = torch.load(f"{settings.run_dir}/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


class OneOutput(nn.Module):
    """A network with one output instead of two."""

    def forward(self, image: Tensor, number: Tensor) -> Tensor:
        return image.flatten(1)[:, :10]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.image_size=20",), r"model\.network: .*SumNet cannot be built with .*in_shape=\(1, 20, 20\).*SumNet"),
        (("model.network.dropout=2.0",), r"model\.network: .*dropout"),
        (
            ("data.train_images=51",),
            r"data\.batch_size: got 25, .*51 training examples.*=26",
        ),
        (("data.batch_size=1",), r"data\.batch_size: got 1, .*60 training examples.*=2"),
        (
            ("model.network._target_=test_two_output_module.OneOutput", "~model.network.dropout"),
            r"OneOutput must give two outputs, of 10 and of 19 logits",
        ),
        (("optimizer.network=null",), r"optimizer\.network: got None, needs a _target_"),
        (("objective=cross_entropy",), r"objective: .*CrossEntropy fails"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    config: Config, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(config(SUM, *overrides))


def test_last_minibatch_can_have_one_image_without_batch_normalisation(config: Config) -> None:
    fit(config(PRODUCT, "data.train_images=51", "schedule.epochs=1", *QUIET))


def test_confusion_tables_are_of_the_final_weights(train: Train, tmp_path: Path) -> None:
    """Each table sums to the number of the split's images, its diagonal to the correct ones; rows are true values."""
    metrics = train(PRODUCT, "schedule.epochs=3", "logger=none", "lr.network=0.01")
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    _, data = build(OmegaConf.create(checkpoint["hyper_parameters"]["config"]))
    for split, n in zip(SPLITS, (60, 60, 30), strict=True):
        examples = data.examples[split]
        digit, product = examples.pool.labels.tolist(), (examples.pool.labels * examples.number).tolist()
        for name, true, values in (("digit", digit, range(10)), ("product", product, OPERATIONS["product"].values)):
            with (tmp_path / "run" / f"confusion_{name}_{split}.csv").open(newline="") as file:
                (_, *header), *rows = csv.reader(file)
            assert header == [row[0] for row in rows] == [str(value) for value in values]
            counts = np.array([row[1:] for row in rows], dtype=int)
            assert counts.sum() == n
            assert counts.sum(axis=1).tolist() == [true.count(value) for value in values]
            assert counts.trace() / n == metrics[f"{split}/{name}_accuracy"]
