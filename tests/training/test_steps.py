"""Fast ways of taking a step give the results of the plain way."""

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
# Not with Adam, which divides by the size of a gradient and so amplifies the rounding of gradients that should be 0,
# such as that of Where's last bias.
FOUR = ("schedule.k=2", "schedule.epochs=4", "trainer.check_val_every_n_epoch=2", "lr.what=0.1", "lr.where=0.1", *QUIET)
PLAIN = "optimizer.microbatches=1"
"""Override that turns off both fast ways."""

CASES = pytest.mark.parametrize(
    ("precision", "more"),
    [("float32", ()), ("float64", ()), ("float64", ("schedule=joint",)),
     ("float64", ("objective.entropy=0.3", "optimizer.clip_norm=0.01"))],
    ids=["float32", "float64", "joint", "entropy, clipped"],
)  # fmt: skip

CLOSE = {"float64": {"rtol": 0, "atol": 1e-10}, "float32": {"rtol": 1e-4, "atol": 1e-5}}


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def fit_and_count_scored(settings: DictConfig) -> tuple[StagewiseModule, list[int]]:
    """Trains a run; returns its module and the number of patches in each forward pass of Where while Where trains."""
    module, _ = build(settings)
    sizes: list[int] = []

    def look(where: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        if where.training and torch.is_grad_enabled():
            sizes.append(len(inputs[0]))

    module.pair.where.register_forward_hook(look)
    return fit(settings, module=module), sizes


@CASES
def test_scoring_the_pool_equals_scoring_the_patches_of_minibatches(
    config: Config, precision: str, more: tuple[str, ...]
) -> None:
    settings = (f"precision={precision}", "data.points=70", *more, *FOUR)
    fast, sizes = fit_and_count_scored(config(*settings))
    plain, plain_sizes = fit_and_count_scored(config(*settings, PLAIN))
    # A minibatch of 25 mosaics has 225 patches. The last minibatch has 90, of which 70 are more than two thirds.
    assert set(sizes) == {70, 90}
    assert set(plain_sizes) == {225, 90}
    torch.testing.assert_close(weights(fast), weights(plain), **CLOSE[precision])
    start, _ = build(config(*settings))
    assert (weights(fast) - weights(start)).abs().max() > 100 * CLOSE[precision]["atol"]


@CASES
def test_minibatch_in_pieces_equals_complete_minibatch(
    config: Config, precision: str, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece holds seven mosaics in a Where stage and 63 aggregates in a What stage, so both stages have pieces."""
    size = {"float64": 8, "float32": 4}[precision]
    monkeypatch.setitem(attention_cache.PIECE, "cpu", 7 * 9 * 64 * size)
    settings = (f"precision={precision}", "data=digits", "model=cnn", "compute.engine=eager", *more, *FOUR)
    fast, sizes = fit_and_count_scored(config(*settings))
    plain, plain_sizes = fit_and_count_scored(config(*settings, PLAIN))
    assert set(sizes) == {63, 36, 45}  # 25 mosaics: 7 + 7 + 7 + 4; 10: 5 + 5
    assert set(plain_sizes) == {225, 90}
    torch.testing.assert_close(weights(fast), weights(plain), **CLOSE[precision])
    for name in ("train/loss", "held_out/foreground_weight"):
        assert fast.epoch_metrics[name] == pytest.approx(plain.epoch_metrics[name], rel=1e-3)


class BatchNormed(nn.Module):
    """A network with batch normalisation, which uses statistics of the minibatch in training."""

    def __init__(self, in_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_shape[0])
        self.last = nn.Linear(in_shape[0], outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x))


class Dropping(BatchNormed):
    """A network with dropout, which samples for each patch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.dropout(x, training=self.training))


def largest(logits: Tensor, alpha: Tensor, label: Tensor) -> Tensor:
    """Returns the largest loss of the mosaics: an objective that is not a mean."""
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
def test_decomposes(where: nn.Module, what: nn.Module, objective: Any, expected: bool) -> None:
    pair = WhereWhat(where, what)
    torch.manual_seed(0)  # with other weights all outputs of a network can be equal
    for module in pair.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in pair.state_dict().items()}
    assert decomposes(pair, objective, (2,), 9) is expected
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in pair.state_dict().items())


def test_networks_of_the_mosaic_studies_decompose() -> None:
    assert decomposes(WhereWhat(ConvNet((3, 32, 32), 1), ConvNet((3, 32, 32), 3)), CrossEntropy(), (3, 32, 32), 9)


def test_networks_with_batch_norm_get_complete_minibatches(config: Config) -> None:
    model = ("model.where._target_=test_steps.BatchNormed", "~model.where.hidden")
    module, sizes = fit_and_count_scored(config("data.points=40", *model, *FOUR))
    plain, plain_sizes = fit_and_count_scored(config("data.points=40", *model, *FOUR, PLAIN))
    assert sizes == plain_sizes == [225, 225, 90] * 2
    assert torch.equal(weights(module), weights(plain))


# ---- steps as CUDA graphs


class Recorder:
    """Simulates a CUDA graph: repeats the captured step, and checks that the constants of a graph have not changed."""

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
        # A capture does not execute the step, so its effects are undone here.
        self.module.load_state_dict(before)
        for state, saved in zip(optimizers, momenta, strict=True):
            for key, values in saved.items():
                for name, value in values.items():
                    state["state"][key][name].copy_(value)

        def replay() -> None:
            assert self.constants() == fixed, "a graph would use the old constants"
            self.replayed += 1
            for output, value in zip(result, work(), strict=True):
                output.copy_(value)

        return result, replay

    def constants(self) -> list[Any]:
        """Returns the numbers and addresses that are constants of a graph."""
        rates = [optimizer.param_groups[0]["lr"] for optimizer in self.module.optimizers()]
        kept = [part.data_ptr() for part in self.module.frozen_where._kept.get("train", ())]
        return [self.module.stage, rates, kept if self.module.stage is Stage.WHAT else None]


class UseGraphs(pl.Callback):
    """Makes a module take its steps with simulated CUDA graphs."""

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
def test_replayed_steps_equal_eager_steps(config: Config, more: tuple[str, ...], captures: list[Stage]) -> None:
    """Eight epochs of ten minibatches, of which one is smaller, in blocks of eight, with evaluations between epochs."""
    settings = (
        "data.batch_size=6", "data.train_mosaics=57", "data.steps_per_block=8", "trainer.check_val_every_n_epoch=3",
        "lr.what=0.1", "lr.where=0.1", *more, "schedule.k=2", "schedule.epochs=8", *QUIET,
    )  # fmt: skip
    eager = fit(config(*settings))
    callback = UseGraphs()
    graphed = fit(config(*settings), callback)
    assert torch.equal(weights(graphed), weights(eager))
    assert graphed.epoch_metrics == eager.epoch_metrics
    assert callback.graphs.captured == captures
    # Eight steps of an epoch can be replayed; the last step of each of the two blocks goes through Lightning.
    assert callback.graphs.replayed == 8 * 8 - WARM_UP * len(captures)


class FailingRecorder(Recorder):
    """Simulates a CUDA graph whose capture fails."""

    def __call__(self, work: Callable[[], StepOutputs], stream: None) -> tuple[StepOutputs, Callable[[], None]]:
        raise RuntimeError("operation not permitted when stream is capturing")


def test_steps_that_cannot_be_captured_are_ordinary_steps(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    settings = ("data.batch_size=6", "data.steps_per_block=8", *FOUR)
    with caplog.at_level(logging.WARNING):
        graphed = fit(config(*settings), UseGraphs(FailingRecorder))
    (line,) = [record.message for record in caplog.records if record.name.startswith("attnmosaic")]
    assert line.endswith("cannot be captured: operation not permitted when stream is capturing")
    assert torch.equal(weights(graphed), weights(fit(config(*settings))))


# ---- defaults


def test_optimizers_are_fused_unless_the_config_chooses_a_way(config: Config) -> None:
    def fused(*overrides: str) -> list[Any]:
        module, _ = build(config(*overrides))
        return [optimizer.defaults.get("fused") for optimizer in module.configure_optimizers()[0]]

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
def test_size_of_blocks_depends_on_their_work(
    config: Config, overrides: tuple[str, ...], device: str, blocks: int
) -> None:
    """On a CPU a block holds about 2^26 values, for example 524 mosaics of 2,000 digits; on a GPU it holds all."""
    unset = [o for o in ("data.steps_per_block", "data.eval_batch_size") if not any(g.startswith(o) for g in overrides)]
    _, data = build(config(*(f"{o}=null" for o in unset), *overrides))
    strategy = type("Strategy", (), {"root_device": torch.device(device)})
    data.trainer = type("Trainer", (), {"strategy": strategy})  # type: ignore[assignment]
    assert len(data.train_dataloader()) == blocks
