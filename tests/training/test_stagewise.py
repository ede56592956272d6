"""Stage-wise training: which network changes, which is frozen, and which settings do not change the result."""

from collections.abc import Callable

import pytest
import pytorch_lightning as pl
import torch
from helpers.settings import ALL_CHECKPOINTS
from helpers.small_runs import NORMED, AfterEpoch, build, fit
from omegaconf import DictConfig
from torch import Tensor, nn

from attnmosaic.config.schedule import ORDERS
from attnmosaic.core.errors import RunError
from attnmosaic.data.pool import Pool
from attnmosaic.training.stagewise import StagewiseModule

Config = Callable[..., DictConfig]
NO_OBSERVERS = tuple(f"callbacks.{name}=null" for name in ("record", "gradients", "dashboards", "pictures"))
"""Turns off the callbacks that compute the networks' outputs."""

QUIET = ("logger=none", *(f"callbacks.{name}=null" for name in ("last", "cycle", "tables")), *NO_OBSERVERS)


def state(module: StagewiseModule, name: str) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in getattr(module.pair, name).state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("experiment", ["gaussian", "mnist_sum"])
def test_data_are_copied_to_the_device_once(
    train: Callable[..., dict[str, float]], monkeypatch: pytest.MonkeyPatch, experiment: str
) -> None:
    """The evaluation at the end of a run uses the two pools that training has copied."""
    copied: list[Pool] = []
    to = Pool.to
    monkeypatch.setattr(Pool, "to", lambda pool, *where: (copied.append(pool), to(pool, *where))[1])
    train(f"experiment={experiment}", "data=digits_and_number" if experiment == "mnist_sum" else "data=gaussian",
          "schedule.epochs=2", "logger=none")  # fmt: skip
    assert len(copied) == 2


@pytest.mark.parametrize("order", ORDERS)
def test_only_training_networks_change(config: Config, order: str) -> None:
    """Parameters, BatchNorm statistics and gradients of the frozen network do not change."""
    settings = config(f"schedule={order}", "schedule.k=2", "schedule.epochs=6", *NORMED, *QUIET)
    module, _ = build(settings)
    before = {name: state(module, name) for name in ("what", "where")}
    gradients = []

    def look(epoch: int, module: StagewiseModule) -> None:
        for name in ("what", "where"):
            after = state(module, name)
            trains = name in module.schedule.stage(epoch).training_networks
            assert same(after, before[name]) is not trains, (epoch, name)
            before[name] = after
        gradients.append({n: p.grad for n, p in module.pair.named_parameters()})

    fit(settings, AfterEpoch(look), module=module)
    if order == "what_only":
        assert all(g is None for epoch in gradients for name, g in epoch.items() if name.startswith("where"))
    assert all(p.requires_grad for p in module.parameters())


def test_momentum_is_kept_while_a_network_is_frozen(config: Config) -> None:
    buffers: list[Tensor] = []

    def look(epoch: int, module: StagewiseModule) -> None:
        what = module.optimizers()[0].optimizer
        buffers.append(what.state[next(module.pair.what.parameters())]["momentum_buffer"].clone())

    fit(config("schedule.k=1", "schedule.epochs=3", *QUIET), AfterEpoch(look))
    assert buffers[0].abs().max() > 0
    assert torch.equal(buffers[0], buffers[1])
    assert not torch.equal(buffers[1], buffers[2])


def weights(module: StagewiseModule) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


FOUR = ("schedule.k=1", "schedule.epochs=4", *QUIET)


NO_CHANGES = ("data.steps_per_block=1", "data.steps_per_block=50", "data.eval_batch_size=7", "seed.data=0")
CHANGES = ("seed.data=1", "seed.init=1", "seed.order=1", "lr.what=0.02", "lr.where=0.02")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_settings_that_change_the_weights(config: Config, precision: str) -> None:
    """With bfloat16, autocast must not keep its rounded weights from one step to the next."""
    four = (*FOUR, f"precision={precision}")
    one = weights(fit(config(*four)))
    for change in (*NO_CHANGES, *(CHANGES if precision == "float32" else ())):
        assert torch.equal(one, weights(fit(config(*four, change)))) == (change in NO_CHANGES), change


def test_settings_that_change_the_weights_by_rounding_only(config: Config) -> None:
    exact = ("precision=float64", *FOUR)
    one = weights(fit(config(*exact)))
    for change in ("optimizer.microbatches=3", "compute.cache_gb=0", "optimizer.clip_norm=1e6"):
        torch.testing.assert_close(one, weights(fit(config(*exact, change))), rtol=0, atol=1e-12)


def test_gradient_clipping_limits_a_step(config: Config) -> None:
    """Without momentum and with a learning rate of 1, a step is the clipped gradient."""
    settings = config(
        "schedule=joint", "schedule.epochs=1", "data.batch_size=60", "lr.what=1", "lr.where=1",
        "optimizer.what.momentum=0", "optimizer.where.momentum=0", "optimizer.clip_norm=0.001", *QUIET,
    )  # fmt: skip
    module, _ = build(settings)
    before = {
        name: nn.utils.parameters_to_vector(getattr(module.pair, name).parameters()) for name in ("what", "where")
    }
    before = {name: value.detach().clone() for name, value in before.items()}
    fit(settings, module=module)
    for name, start in before.items():
        change = (nn.utils.parameters_to_vector(getattr(module.pair, name).parameters()) - start).norm()
        assert 0.0009 < change <= 0.00101, name


def test_schedulers_step_after_their_networks_epochs(config: Config) -> None:
    rates = []

    def look(epoch: int, module: StagewiseModule) -> None:
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in module.optimizers()])

    halve = "{_target_: torch.optim.lr_scheduler.StepLR, step_size: 1, gamma: 0.5}"
    fit(config(f"scheduler.what={halve}", "schedule.k=2", "schedule.epochs=6", *QUIET), AfterEpoch(look))
    assert [what for what, _ in rates] == [0.005, 0.0025, 0.0025, 0.0025, 0.00125, 0.000625]
    assert {where for _, where in rates} == {0.01}


def test_frozen_where_scores_each_patch_of_a_pool_once(config: Config) -> None:
    """In a What stage of three epochs with evaluations, Where scores each pool once."""
    settings = config(
        "schedule.k=3", "schedule.epochs=3", "data.points=40", "trainer.check_val_every_n_epoch=1", *QUIET
    )
    module, _ = build(settings)
    scored = []

    def note(where: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        if where is module.pair.where:  # not a copy that is tested before training
            scored.append(len(inputs[0]))

    module.pair.where.register_forward_hook(note)
    fit(settings, module=module)
    assert scored == [40, 40]  # the training pool and the held-out pool


def test_scores_are_not_kept_after_where_has_changed(config: Config) -> None:
    """The module's metrics equal a plain evaluation of its weights after every epoch of every stage."""

    def look(epoch: int, module: StagewiseModule) -> None:
        mosaics = module.mosaics["train"]
        module.pair.eval()
        with torch.no_grad():
            logits, alpha = module.pair(mosaics.patches(torch.arange(len(mosaics)), torch.float32))
        accuracy = (logits.argmax(1) == mosaics.label).float().mean().item()
        assert module.epoch_metrics["train/accuracy"] == pytest.approx(accuracy)
        weight = alpha.gather(1, mosaics.foreground[:, None]).mean().item()
        assert module.epoch_metrics["train/foreground_weight"] == pytest.approx(weight, rel=1e-5)

    rates = ("lr.what=0.3", "lr.where=0.3")  # large, so that each epoch changes the metrics
    fit(
        config("schedule.k=2", "schedule.epochs=8", "trainer.check_val_every_n_epoch=1", *rates, *QUIET),
        AfterEpoch(look),
    )


def test_aggregates_are_kept_only_within_the_budget(config: Config) -> None:
    kept = {}

    def look(epoch: int, module: StagewiseModule) -> None:
        kept["train"] = "train" in module.frozen_where._kept

    one_stage = ("schedule.k=1", "schedule.epochs=1", *QUIET)
    bytes_needed = 60 * (9 + 2) * 4  # weights and aggregates
    for budget, is_kept in ((bytes_needed, True), (bytes_needed - 1, False)):
        fit(config(*one_stage, f"compute.cache_gb={budget / 1e9:.10f}"), AfterEpoch(look))
        assert kept["train"] is is_kept


class SpoilLastStep(pl.Callback):
    """Makes gradients not a number in the last optimizer step of epoch 2, whose loss is finite."""

    steps = 0

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.steps += 1
        if self.steps == 6:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad.fill_(float("nan"))


def test_infinite_weights_after_the_last_step_end_the_run(config: Config) -> None:
    """The loss of that step is still finite; the earlier checkpoint is kept."""
    settings = config(
        "schedule.k=2",
        "schedule.epochs=8",
        "logger=none",
        "trainer.check_val_every_n_epoch=1",
        "data.steps_per_block=1",
        *ALL_CHECKPOINTS,
    )
    with pytest.raises(RunError, match=r"weight .*epoch 2, step 3 of 3 .*what"):
        fit(settings, SpoilLastStep())
    checkpoint = torch.load(f"{settings.run_dir}/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


class Explodes(nn.Module):
    """Cross-entropy that becomes infinite after ``after`` calls."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def forward(self, logits: Tensor, alpha: Tensor, label: Tensor) -> Tensor:
        self.left -= 1
        loss = nn.functional.cross_entropy(logits, label)
        return loss if self.left >= 0 else loss * float("inf")


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (6, r"the loss became inf in epoch 3, step 1 of 3 .*lr\.where"),
        (7, r"the loss became inf in epoch 3, step 2 of 3 .*lr\.where"),
        (8, r"in epoch 3, step 3 of 3 .*lr\.where"),
    ],
)
def test_infinite_loss_ends_the_run_and_keeps_the_last_good_checkpoint(
    config: Config, after: int, message: str
) -> None:
    """An epoch has three steps: the eighth step is step 2 of epoch 3, a Where epoch with k = 2."""
    steps = ("schedule.k=2", "schedule.epochs=8", "logger=none", "trainer.check_val_every_n_epoch=100")
    settings = config(*steps, *NO_OBSERVERS, *ALL_CHECKPOINTS)
    settings.objective = {"_target_": "test_stagewise.Explodes", "after": after}
    with pytest.raises(RunError, match=message):
        fit(settings)
    checkpoint = torch.load(f"{settings.run_dir}/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 1
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_initial_weights_depend_only_on_name_and_init_seed(config: Config) -> None:
    """Where's initial weights do not depend on What's size, on other seeds or on the global generator."""
    torch.manual_seed(1)
    first, _ = build(config())
    torch.manual_seed(2)
    second, _ = build(config("model.what.hidden=[17]", "seed.data=5", "seed.order=6"))
    assert same(state(first, "where"), state(second, "where"))
    other, _ = build(config("seed.init=1"))
    assert not same(state(first, "where"), state(other, "where"))
