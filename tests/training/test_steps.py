"""The fast ways of taking a step give what the plain way gives."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from helpers.small_runs import build, fit
from omegaconf import DictConfig
from torch import Tensor, nn

from attnmosaic.config.schedule import Stage
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.nn.networks import MLP, ConvNet
from attnmosaic.nn.objectives import CrossEntropy
from attnmosaic.training import attention_cache
from attnmosaic.training.cuda_graphs import WARM_UP, GraphedSteps
from attnmosaic.training.probes import decomposes
from attnmosaic.training.stagewise import StagewiseModule
from attnmosaic.training.steps import StepOutputs

Config = Callable[..., DictConfig]

QUIET = ("logger=none", "callbacks=default", "callbacks.progress=null", "callbacks.pictures=null")
# Not with Adam, which divides by a gradient's size and so blows up the rounding of one that should be 0, as that of a
# bias of Where's is.
FOUR = ("schedule.k=2", "schedule.epochs=4", "trainer.check_val_every_n_epoch=2", "lr.what=0.1", "lr.where=0.1", *QUIET)
PLAIN = "optimizer.microbatches=1"
"""Turns both fast ways off."""

CASES = pytest.mark.parametrize(
    ("precision", "more"),
    [("float32", ()), ("float64", ()), ("float64", ("schedule=joint",)),
     ("float64", ("objective.entropy=0.3", "optimizer.clip_norm=0.01"))],
    ids=["float32", "float64", "joint", "entropy, clipped"],
)  # fmt: skip

CLOSE = {"float64": {"rtol": 0, "atol": 1e-10}, "float32": {"rtol": 1e-4, "atol": 1e-5}}


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def scored(settings: DictConfig) -> tuple[StagewiseModule, list[int]]:
    """Trains, and tells how many patches Where scored in each pass of a step in which it learned."""
    module, _ = build(settings)
    sizes: list[int] = []

    def look(where: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        if where.training and torch.is_grad_enabled():
            sizes.append(len(inputs[0]))

    module.pair.where.register_forward_hook(look)
    return fit(settings, module=module), sizes


@CASES
def test_scoring_the_pool_instead_of_the_patches(config: Config, precision: str, more: tuple[str, ...]) -> None:
    settings = (f"precision={precision}", "data.points=70", *more, *FOUR)
    fast, sizes = scored(config(*settings))
    plain, plain_sizes = scored(config(*settings, PLAIN))
    assert set(sizes) == {
        70,
        90,
    }  # a minibatch of 25 has 225 patches; the last one 90, and 70 are over two thirds of them
    assert set(plain_sizes) == {225, 90}
    torch.testing.assert_close(weights(fast), weights(plain), **CLOSE[precision])
    start, _ = build(config(*settings))
    assert (weights(fast) - weights(start)).abs().max() > 100 * CLOSE[precision]["atol"]


@CASES
def test_computing_in_pieces(
    config: Config, precision: str, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images, of which a piece holds seven mosaics and What's piece 63 aggregates, so that both stages have some."""
    size = {"float64": 8, "float32": 4}[precision]
    monkeypatch.setitem(attention_cache.PIECE, "cpu", 7 * 9 * 64 * size)
    settings = (f"precision={precision}", "data=digits", "model=cnn", *more, *FOUR)
    fast, sizes = scored(config(*settings))
    plain, plain_sizes = scored(config(*settings, PLAIN))
    assert set(sizes) == {63, 36, 45}  # 25 mosaics: 7 + 7 + 7 + 4; 10: 5 + 5
    assert set(plain_sizes) == {225, 90}
    torch.testing.assert_close(weights(fast), weights(plain), **CLOSE[precision])
    for name in ("train/loss", "held_out/foreground_weight"):
        assert fast.epoch_metrics[name] == pytest.approx(plain.epoch_metrics[name], rel=1e-3)


class BatchNormed(nn.Module):
    """Mixes the patches of a minibatch while it trains."""

    def __init__(self, in_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_shape[0])
        self.last = nn.Linear(in_shape[0], outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x))


class Dropping(BatchNormed):
    """Draws anew for each patch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.dropout(x, training=self.training))


def largest(logits: Tensor, alpha: Tensor, label: Tensor) -> Tensor:
    """An objective that is no mean over mosaics."""
    return nn.functional.cross_entropy(logits, label, reduction="none").max()


@pytest.mark.parametrize(
    ("where", "what", "objective", "expected"),
    [
        (MLP((2,), 1, (4,)), MLP((2,), 3, (4,)), CrossEntropy(), True),
        (MLP((2,), 1, (4,)), MLP((2,), 3, (4,)), CrossEntropy(entropy=0.5), True),
        (BatchNormed((2,), 1), MLP((2,), 3, (4,)), CrossEntropy(), False),
        (MLP((2,), 1, (4,)), BatchNormed((2,), 3), CrossEntropy(), False),
        (Dropping((2,), 1), MLP((2,), 3, (4,)), CrossEntropy(), False),
        (MLP((2,), 1, (4,)), Dropping((2,), 3), CrossEntropy(), False),
        (MLP((2,), 1, (4,)), MLP((2,), 3, (4,)), largest, False),
    ],
)
def test_what_decomposes(where: nn.Module, what: nn.Module, objective: Any, expected: bool) -> None:
    pair = WhereWhat(where, what)
    torch.manual_seed(0)  # with other weights a network may be dead, and all its outputs equal
    for module in pair.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in pair.state_dict().items()}
    assert decomposes(pair, objective, (2,), 9) is expected
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in pair.state_dict().items())


def test_the_documents_networks_decompose() -> None:
    assert decomposes(WhereWhat(ConvNet((3, 32, 32), 1), ConvNet((3, 32, 32), 3)), CrossEntropy(), (3, 32, 32), 9)


def test_networks_that_mix_mosaics_see_whole_minibatches(config: Config) -> None:
    model = ("model.where._target_=test_steps.BatchNormed", "~model.where.hidden")
    module, sizes = scored(config("data.points=40", *model, *FOUR))
    plain, plain_sizes = scored(config("data.points=40", *model, *FOUR, PLAIN))
    assert sizes == plain_sizes == [225, 225, 90] * 2
    assert torch.equal(weights(module), weights(plain))


# ---- steps as graphs


class Recorder:
    """Stands in for a CUDA graph: repeats what it captured, and knows what a graph would not notice."""

    def __init__(self, module: StagewiseModule) -> None:
        self.module = module
        self.captured: list[Stage] = []
        self.replayed = 0

    def __call__(self, work: Callable[[], StepOutputs], stream: None) -> tuple[StepOutputs, Callable[[], None]]:
        self.captured.append(self.module.stage)
        fixed = self.constants()
        before = {key: value.clone() for key, value in self.module.state_dict().items()}
        optimizers = [optimizer.optimizer.state_dict() for optimizer in self.module.optimizers()]
        momenta = [{k: {n: v.clone() for n, v in s.items()} for k, s in o["state"].items()} for o in optimizers]
        result = StepOutputs(*(part.clone() for part in work()))
        # Capturing does nothing: what the step did is undone.
        self.module.load_state_dict(before)
        for state, saved in zip(optimizers, momenta, strict=True):
            for key, values in saved.items():
                for name, value in values.items():
                    state["state"][key][name].copy_(value)

        def replay() -> None:
            assert self.constants() == fixed, "a graph would have gone on with the old ones"
            self.replayed += 1
            for place, value in zip(result, work(), strict=True):
                place.copy_(value)

        return result, replay

    def constants(self) -> list[Any]:
        """Numbers and addresses that a graph holds."""
        rates = [optimizer.param_groups[0]["lr"] for optimizer in self.module.optimizers()]
        kept = [part.data_ptr() for part in self.module.frozen_where._kept.get("train", ())]
        return [self.module.stage, rates, kept if self.module.stage is Stage.WHAT else None]


class UseGraphs(pl.Callback):
    def __init__(self, recorder: type[Recorder] = Recorder) -> None:
        self.recorder = recorder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, StagewiseModule)
        self.graphs = self.recorder(pl_module)
        pl_module.graphed_steps = GraphedSteps(pl_module.steps, self.graphs)


HALVE = "{_target_: torch.optim.lr_scheduler.StepLR, step_size: 1, gamma: 0.5}"


@pytest.mark.parametrize(
    ("more", "captures"),
    [
        ((), [Stage.WHAT, Stage.WHERE] * 2),
        (("compute.cache_gb=0",), [Stage.WHAT, Stage.WHERE] * 2),
        ((f"scheduler.where={HALVE}",), [Stage.WHAT, Stage.WHERE, Stage.WHERE] * 2),
        (("schedule=joint", "trainer.check_val_every_n_epoch=1"), [Stage.JOINT]),
    ],
)
def test_replayed_steps_are_taken_steps(config: Config, more: tuple[str, ...], captures: list[Stage]) -> None:
    """With evaluations between; eight epochs of ten minibatches, one of them smaller, in blocks of eight."""
    settings = (
        "data.batch_size=6", "data.train_mosaics=57", "data.steps_per_block=8", "trainer.check_val_every_n_epoch=3",
        "lr.what=0.1", "lr.where=0.1", *more, "schedule.k=2", "schedule.epochs=8", *QUIET,
    )  # fmt: skip
    eager = fit(config(*settings))
    use = UseGraphs()
    graphed = fit(config(*settings), use)
    assert torch.equal(weights(graphed), weights(eager))
    assert graphed.epoch_metrics == eager.epoch_metrics
    assert use.graphs.captured == captures
    # Eight steps an epoch may be replayed: the last of each of the two blocks is Lightning's.
    assert use.graphs.replayed == 8 * 8 - WARM_UP * len(captures)


class Refusing(Recorder):
    def __call__(self, work: Callable[[], StepOutputs], stream: None) -> tuple[StepOutputs, Callable[[], None]]:
        raise RuntimeError("operation not permitted when stream is capturing")


def test_what_cannot_be_captured_is_stepped_as_ever(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    settings = ("data.batch_size=6", "data.steps_per_block=8", *FOUR)
    with caplog.at_level(logging.WARNING):
        graphed = fit(config(*settings), UseGraphs(Refusing))
    told = [record.message for record in caplog.records if record.name.startswith("attnmosaic")]
    assert told == [
        "steps cannot be captured as a CUDA graph and are taken one by one: "
        "operation not permitted when stream is capturing"
    ]
    assert torch.equal(weights(graphed), weights(fit(config(*settings))))


# ---- what is chosen by itself


def test_optimizers_update_in_one_call_unless_told_how(config: Config) -> None:
    def fused(*overrides: str) -> list[Any]:
        module, _ = build(config(*overrides))
        return [made.defaults.get("fused") for made in module.configure_optimizers()[0]]

    assert fused() == fused("optimizer=adam") == [True, True]
    assert fused("+optimizer.what.foreach=true", "+optimizer.where.fused=false") == [None, False]
    assert fused("optimizer.what._target_=torch.optim.RMSprop") == [None, True]


@pytest.mark.parametrize(
    ("overrides", "device", "blocks"),
    [
        (("data=digits", "data.patches=2000", "data.batch_size=100", "data.train_mosaics=1000"), "cpu", 2),
        (("data=digits", "data.patches=2000", "data.batch_size=100", "data.train_mosaics=1000"), "cuda", 1),
        (("data.train_mosaics=30000", "data.batch_size=250"), "cpu", 1),
        (("data.train_mosaics=30000", "data.batch_size=250", "data.steps_per_block=12"), "cpu", 10),
        (("data=digits", "data.patches=20000", "data.batch_size=100", "data.train_mosaics=200"), "cpu", 2),
        (("data.train_mosaics=10", "data.batch_size=250"), "cpu", 1),
        (("data.train_mosaics=1010", "data.batch_size=250"), "cpu", 1),
        (("data.train_mosaics=1010", "data.batch_size=250"), "cuda", 1),
    ],
)
def test_blocks_are_chosen_by_their_work(config: Config, overrides: tuple[str, ...], device: str, blocks: int) -> None:
    """A block holds about 2^26 values: 524 mosaics of 2,000 digits, five minibatches of 100; on a GPU all of them."""
    free = [o for o in ("data.steps_per_block", "data.eval_batch_size") if not any(g.startswith(o) for g in overrides)]
    _, data = build(config(*(f"{o}=null" for o in free), *overrides))
    strategy = type("Strategy", (), {"root_device": torch.device(device)})
    data.trainer = type("Trainer", (), {"strategy": strategy})  # type: ignore[assignment]
    assert len(data.train_dataloader()) == blocks
