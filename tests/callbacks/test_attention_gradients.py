"""Gradient curves: their definition, the files they are written to, and that training stays the same."""

import copy
import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from helpers.small_runs import NORMED, AfterEpoch, EveryEpoch, build, fit
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from attnmosaic.callbacks.attention_gradients import COLUMNS, mean_alpha_gradients
from attnmosaic.config.schedule import ORDERS
from attnmosaic.training import attention_cache
from attnmosaic.training.stagewise import StagewiseModule

pytestmark = pytest.mark.runs

Config = Callable[..., DictConfig]
Train = Callable[..., dict[str, float]]

FIVE = ("schedule.k=2", "schedule.epochs=5", "lr.what=0.1", "lr.where=0.1")
PLAIN = ("callbacks.progress=null", "callbacks.pictures=null")
QUIET = (*PLAIN, "callbacks=gradients", "logger=none")
EVERY_EPOCH = "callbacks.cycle._target_=helpers.small_runs.EveryEpoch"
DIGITS = ("experiment=stagewise", "data=digits")


def table(folder: Path) -> list[list[str]]:
    with (folder / "gradients.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == list(COLUMNS)
    return rows


def numbers(folder: Path) -> Tensor:
    return torch.tensor([[float(value) for value in row[3:]] for row in table(folder)], dtype=torch.float64)


def by_definition(module: StagewiseModule) -> Tensor:
    """Returns both sums of the 2-D gradient study, divided by N, computed for one mosaic and one weight at a time."""
    pair, objective, data = copy.deepcopy(module.pair).eval(), module.objective, module.mosaics["train"]
    dtype = next(pair.parameters()).dtype
    foreground = background = 0.0
    for i in range(len(data)):
        patches = data.pool.gather(data.index[i], dtype)
        alpha = pair.where(patches).flatten().softmax(0).detach()
        weights = [a.clone().requires_grad_() for a in alpha]
        aggregate = sum(a * x for a, x in zip(weights, patches, strict=True))
        loss = objective(pair.what(aggregate[None]), torch.stack(weights)[None], data.label[i : i + 1])
        loss.backward()
        for p, weight in enumerate(weights):
            if p == int(data.foreground[i]):
                foreground += weight.grad.item()
            else:
                background += weight.grad.item()
    return torch.tensor([foreground, background], dtype=torch.float64) / len(data)


class Definition(pl.Callback):
    """Measures `by_definition` before training and after every epoch."""

    def __init__(self) -> None:
        self.measured: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.measured.append(by_definition(pl_module))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.measured.append(by_definition(pl_module))


@pytest.mark.parametrize(
    ("order", "more"),
    [
        *((order, ()) for order in ORDERS),
        ("what_then_where", ("objective.entropy=0.3", "trainer.check_val_every_n_epoch=1")),
        ("where_then_what", ("compute.cache_gb=0", "trainer.check_val_every_n_epoch=2", *NORMED)),
        ("joint", ("experiment=stagewise", "data=digits", "objective.entropy=0.1")),
    ],
    ids=[*ORDERS, "entropy", "dropout", "images"],
)
def test_gradients_follow_the_definition(config: Config, tmp_path: Path, order: str, more: tuple[str, ...]) -> None:
    """In every stage, and independent of kept scores."""
    definition = Definition()
    fit(config(*more, f"schedule={order}", *FIVE, *QUIET, "precision=float64"), definition)
    expected = torch.stack(definition.measured)
    assert len(expected) == 6
    assert (expected[1:] - expected[:-1]).abs().min() > 1e-8, "each epoch must change the gradients in this test"
    torch.testing.assert_close(numbers(tmp_path / "run"), expected, rtol=0, atol=1e-10)


def test_rows_have_epoch_and_stage(config: Config, tmp_path: Path) -> None:
    fit(config(*FIVE, *QUIET))
    stages = [(row[0], row[1]) for row in table(tmp_path / "run")]
    assert stages == [("0", ""), ("1", "what"), ("2", "what"), ("3", "where"), ("4", "where"), ("5", "what")]


@pytest.mark.parametrize("data", [(), DIGITS], ids=["points", "images"])
def test_gradients_do_not_depend_on_the_size_of_pieces(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: tuple[str, ...]
) -> None:
    """Pieces of all, of 7 (the last one is smaller) and of single mosaics give the same in float64."""
    module, _ = build(config(*data, *FIVE, *QUIET, "precision=float64"))
    sizes: list[int] = []

    def note_size(what: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        sizes.append(len(inputs[0]))

    results = []

    def compare(epoch: int, module: StagewiseModule) -> None:
        handle = module.pair.what.register_forward_hook(note_size)
        # A fused kernel writes the aggregate of a mosaic only.
        patch = 8 * (9 * 2 if not data else 9 * 64 if module.frozen_where.kernel is None else 64)
        for size in (10**9, 7 * patch, patch):
            monkeypatch.setitem(attention_cache.PIECE, "cpu", size)
            results.append(mean_alpha_gradients(module))
        handle.remove()

    fit(config(*data, *FIVE, *QUIET, "schedule.epochs=1", "precision=float64"), AfterEpoch(compare), module=module)
    assert sorted(sizes) == sorted([60, *[7] * 8, 4, *[1] * 60]), "several threads process pieces in any order"
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("order", "more"),
    [("what_then_where", ()), ("joint", tuple(NORMED)), ("where_then_what", ("precision=bfloat16",)),
     ("what_then_where", DIGITS)],
    ids=["points", "dropout", "bfloat16", "images"],
)  # fmt: skip
def test_training_is_the_same_without_gradients(config: Config, order: str, more: tuple[str, ...]) -> None:
    """Every bit of the weights, running statistics and metrics of each epoch."""
    settings = (*more, f"schedule={order}", *FIVE, "trainer.check_val_every_n_epoch=2")
    metrics: list[list[dict[str, float]]] = [[], []]
    modules = [
        fit(config(*settings, *quiet), AfterEpoch(lambda _, module, to=to: to.append(dict(module.epoch_metrics))))
        for to, quiet in zip(metrics, (QUIET, (*QUIET, "callbacks.gradients=null")), strict=True)
    ]
    assert metrics[0] == metrics[1]
    first, second = (module.state_dict() for module in modules)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_measuring_does_not_change_the_module(config: Config) -> None:
    """Checks modes, gradients, weights and random state, in each stage and with dropout."""

    def state(module: StagewiseModule) -> list[object]:
        grads = [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in module.parameters()]
        return [[m.training for m in module.modules()], grads, torch.get_rng_state().tolist()]

    def measure(epoch: int, module: StagewiseModule) -> None:
        assert module.pair.what.training is (epoch % 2 == 0)
        assert module.pair.where.training is (epoch % 2 == 1)
        before, values = state(module), copy.deepcopy(module.pair.state_dict())
        module.frozen_where.clear()
        mean_alpha_gradients(module)
        assert state(module) == before
        assert all(torch.equal(value, values[name]) for name, value in module.pair.state_dict().items())

    fit(config(*FIVE, *NORMED, *QUIET, "schedule.k=1"), AfterEpoch(measure))


@pytest.mark.parametrize("order", ["what_then_where", "joint"])
def test_file_of_a_resumed_run_equals_an_uninterrupted_one(train: Train, tmp_path: Path, order: str) -> None:
    """Also if the stopped run had written rows after the checkpoint."""
    settings = (f"schedule={order}", *FIVE, *QUIET, "objective.entropy=0.2")
    train(*settings, EVERY_EPOCH, run_dir="uninterrupted")
    uninterrupted = table(tmp_path / "uninterrupted")
    assert [row[0] for row in uninterrupted] == list("012345")
    for epoch in (1, 4):
        checkpoint = tmp_path / "uninterrupted" / "checkpoints" / f"epoch-{epoch:04}.ckpt"
        (tmp_path / f"from{epoch}").mkdir()
        (tmp_path / f"from{epoch}" / "gradients.csv").write_text("rows of the stopped run\n")
        train(*settings, f"ckpt_path={checkpoint}", run_dir=f"from{epoch}")
        assert table(tmp_path / f"from{epoch}") == uninterrupted


def test_curves_begin_at_a_checkpoint_without_gradients(config: Config, train: Train, tmp_path: Path) -> None:
    """The stopped run had no such callback; the first row is measured with the weights of the checkpoint."""
    settings = (*FIVE, *QUIET)
    fit(config(*settings, "callbacks.gradients=null", "callbacks.cycle=null"), EveryEpoch(dirpath=tmp_path / "kept"))
    train(*settings, f"ckpt_path={tmp_path / 'kept' / 'epoch-0003.ckpt'}", run_dir="resumed")
    train(*settings, run_dir="uninterrupted")
    assert [row[:2] for row in table(tmp_path / "resumed")] == [["3", "where"], ["4", "where"], ["5", "what"]]
    assert table(tmp_path / "resumed") == table(tmp_path / "uninterrupted")[3:]


def test_tensorboard_has_the_gradients(train: Train, tmp_path: Path) -> None:
    train(*FIVE, *QUIET, "logger=tensorboard")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    for column, side in enumerate(("foreground", "background"), start=3):
        scalars = events.Scalars(f"gradient/{side}")
        rows = table(tmp_path / "run")
        assert [event.step for event in scalars] == [int(row[0]) for row in rows] == list(range(6))
        assert [event.value for event in scalars] == pytest.approx([float(row[column]) for row in rows])
