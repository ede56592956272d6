"""No step mixes devices or waits for the GPU; tested without a GPU, on tensors without values."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fake_cuda import CUDA, NoWaits, Waits, bfloat16, fake_cuda, on_fake_cuda, zero_gradients
from helpers.small_runs import build
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorDeviceMismatchError

from attnmosaic.callbacks.attention_gradients import mean_alpha_gradients
from attnmosaic.callbacks.snapshots import predict
from attnmosaic.config.schedule import Stage
from attnmosaic.data.images import DigitsMosaics
from attnmosaic.data.pool import Pool
from attnmosaic.data.sources import Images, image_pool
from attnmosaic.nn.networks import ConvNet
from attnmosaic.training.base import mean_loss
from attnmosaic.training.stagewise import StagewiseModule
from attnmosaic.training.steps import StepOutputs

Config = Callable[..., DictConfig]

# Fake tensors do not support fused SGD, CUDA streams or the query of free memory.
EAGER = ("compute.engine=eager", "compute.pool=device", "+optimizer.what.foreach=true", "+optimizer.where.foreach=true")
CNN = ("data=digits", "model=cnn")


class ColourDigits(DigitsMosaics):
    """The digits in three channels, which have different means and standard deviations."""

    def load_pools(self) -> tuple[Pool, Pool]:
        def coloured(pool: Pool) -> Pool:
            pixels = np.repeat(pool.patches.numpy(), 3, axis=3)
            images = Images(torch.from_numpy(pixels), pool.labels.numpy(), pool.classes)
            return image_pool(images, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))

        train, held_out = super().load_pools()
        return coloured(train), coloured(held_out)


COLOUR = (*CNN, "data._target_=test_fake_cuda.ColourDigits")

FAMILIES = {
    "points": (),
    "images": CNN,
    "colour, means and deviations by channel": COLOUR,
    "the same on pieces of a minibatch": (*COLOUR, "optimizer.microbatches=3"),
    "pieces, clipped, with entropy": (
        *CNN, "optimizer.microbatches=3", "optimizer.clip_norm=0.1", "objective.entropy=0.3"
    ),
    "nothing kept": (*CNN, "compute.cache_gb=0"),
    "Adam": (*CNN, "optimizer=adam"),
    "RMSprop": (*CNN, "optimizer.what._target_=torch.optim.RMSprop", "optimizer.where._target_=torch.optim.RMSprop"),
    "float64": (*CNN, "precision=float64"),
    "fixed attention weights": ("experiment=weighted_average", "data=digits", "data.foreground=[7,8,9]"),
}  # fmt: skip


def step(module: StagewiseModule, stage: Stage, rows: Tensor) -> StepOutputs:
    """Takes a step as `StagewiseModule.training_step` does."""
    module.pair.requires_grad_(False)
    networks = [getattr(module.pair, name).requires_grad_(True) for name in stage.training_networks]
    trained = [list(network.parameters()) for network in networks]
    optimizers = [module.make_optimizers[name](p) for name, p in zip(stage.training_networks, trained, strict=True)]
    parameters = [p for network in networks for p in network.parameters()]
    outputs = module.steps(rows, stage, optimizers, trained, lambda _: zero_gradients(parameters))
    assert {part.device for part in outputs} == {CUDA}
    return outputs


def train_and_measure(module: StagewiseModule) -> None:
    """Takes two steps in every stage, of which the second must not wait; then evaluates like a run with callbacks."""
    rows = torch.arange(25).to(CUDA)
    for stage in (Stage.WHAT, Stage.WHERE, Stage.JOINT):
        if module.pair.where is None and stage is not Stage.WHAT:
            continue
        module.frozen_where.keep("train") if stage is Stage.WHAT else module.frozen_where.clear()
        first = step(module, stage, rows)
        with NoWaits():
            second = step(module, stage, rows)
        data = module.mosaics["train"]
        module.running.update(
            mean_loss([first.loss, second.loss], [25, 25]),
            second.logits,
            second.alpha,
            data.label[rows],
            data.foreground[rows],
        )
    module.frozen_where.clear()
    for number, split in enumerate(module.evaluations):
        with torch.no_grad():
            module.validation_step(torch.arange(16).to(CUDA), 0, number)
        assert {value.device for value in module.evaluations[split].compute().values()} == {CUDA}
        module.frozen_where.clear()
    predict(module, module.mosaics["held_out"], torch.arange(8).to(CUDA))
    for mosaics in (20, None):
        assert mean_alpha_gradients(module, mosaics).device == CUDA


@pytest.fixture
def stepped(config: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns a function that trains and measures a run on the fake GPU."""

    def train(*overrides: str, precision: Any = nullcontext) -> None:
        module, data = build(config(*overrides, *EAGER))
        with fake_cuda(monkeypatch), precision():
            on_fake_cuda(module, data)
            train_and_measure(module)

    return train


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        *((family, nullcontext) for family in FAMILIES),
        *((family, bfloat16) for family in ("points", "images", "pieces, clipped, with entropy", "Adam")),
    ],
)
def test_no_step_waits_or_mixes_devices(stepped: Callable[..., None], family: str, precision: Any) -> None:
    stepped(*FAMILIES[family], precision=precision)


def test_bfloat16_is_in_effect() -> None:
    layer = nn.Linear(2, 3)
    with pytest.MonkeyPatch.context() as patch, fake_cuda(patch):
        layer, images = layer.to(CUDA), torch.zeros(4, 2).to(CUDA)
        with bfloat16():
            assert layer(images).dtype == torch.bfloat16
        assert layer(images).dtype == torch.float32


@pytest.mark.parametrize(
    ("experiment", "precision", "more"),
    [
        ("mnist_sum", nullcontext, ()),
        ("mnist_sum", bfloat16, ("optimizer.clip_norm=0.1",)),
        ("mnist_product", nullcontext, ("optimizer.clip_norm=0.1",)),
        ("mnist_product", bfloat16, ()),
    ],
)
def test_no_step_with_two_outputs_waits_or_mixes_devices(
    config: Config, monkeypatch: pytest.MonkeyPatch, experiment: str, precision: Any, more: tuple[str, ...]
) -> None:
    module, data = build(config(f"experiment={experiment}", "compute.pool=device", *more))
    with fake_cuda(monkeypatch), precision():
        on_fake_cuda(module, data)
        module.on_train_epoch_start()
        optimizer: Any = module.configure_optimizers()
        rows = torch.arange(25).to(CUDA)
        for waits in (nullcontext(), NoWaits()):
            with waits:
                optimizer.zero_grad()
                assert module.training_step(rows, 0).device == CUDA
                zero_gradients(list(module.network.parameters()))
                module.on_after_backward()
                module.configure_gradient_clipping(optimizer)
                optimizer.step()


# ---- these checks find faults


def scaled_on_the_host(self: Pool, patches: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales channels with means and deviations that are copied to the device in every call."""
    std = (picked := patches.to(dtype)).new_tensor(self.std)
    return picked.mul_(1 / (255 * std)).sub_(picked.new_tensor(self.mean) / std).movedim(-1, -3)


def test_means_copied_at_every_gather_are_found(stepped: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "scaled", scaled_on_the_host)
    with pytest.raises(Waits, match="_to_copy"):
        stepped(*COLOUR)


class Waiting(ConvNet):
    """A network that reads a number on the host and so waits for the GPU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / max(1.0, x.max().item())


class Mixing(ConvNet):
    """A network that adds a tensor which is no parameter or buffer and so stays on the host."""

    def __init__(self, in_shape: tuple[int, ...], outputs: int, **sizes: Any) -> None:
        super().__init__(in_shape, outputs, **sizes)
        self.offset = torch.zeros(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.offset


@pytest.mark.parametrize("network", ["where", "what"])
@pytest.mark.parametrize(
    ("fault", "error"), [(Waiting, DataDependentOutputException), (Mixing, FakeTensorDeviceMismatchError)]
)
def test_faults_of_a_network_are_found(
    stepped: Callable[..., None], network: str, fault: type, error: type[Exception]
) -> None:
    with pytest.raises(error):
        stepped(*CNN, f"model.{network}._target_=test_fake_cuda.{fault.__name__}")


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.new_tensor((0.1, 0.2, 0.3)),
        lambda x: torch.tensor(1.0, device="cuda"),
        lambda x: x.sum().cpu(),
        lambda x: x.cpu(),
        lambda x: x[torch.arange(2)],
        lambda x: x.index_select(0, torch.arange(2)),
        lambda x: x + torch.zeros(3),
        lambda x: x.copy_(torch.zeros(3)),
    ],
)
def test_waits_and_mixed_devices_are_found(work: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch):
        on_device = torch.zeros(3).to(CUDA)
        with NoWaits():
            assert (2 * on_device + torch.tensor(1.0)).device == CUDA, "a number on the host is no wait"
            with pytest.raises(RuntimeError):
                work(on_device)
