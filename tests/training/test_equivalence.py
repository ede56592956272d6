"""In float64 the package computes the same as a plain loop written from the stage-wise study (docs/sources.md)."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.compilers import needs_compiler
from omegaconf import DictConfig

from attnmosaic.config.resolution import resolve
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.pool import Pool
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.nn.kernels import vectors_of_cpu
from attnmosaic.training import convolutions
from attnmosaic.training.factory import build_module, build_network
from attnmosaic.training.trainer import build_trainer
from benchmarks import reference

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class RandomImages(MosaicDataModule):
    """Data module with 60 random colour images of 32 x 32 pixels in ten classes."""

    def load_pools(self) -> tuple[Pool, Pool]:
        def pool(rng: np.random.Generator) -> Pool:
            images = rng.integers(256, size=(60, 32, 32, 3), dtype=np.uint8)
            classes = tuple("abcdefghij")
            return Pool(torch.from_numpy(images), torch.arange(60) % 10, classes)

        return pool(self.rng(10)), pool(self.rng(11))


def materialise(pool: Pool, index: torch.Tensor) -> torch.Tensor:
    """Returns float64 mosaics ``[N, P, C, H, W]``, scaled like torchvision's ToTensor and Normalize."""
    pixels = pool.patches.permute(0, 3, 1, 2).double() / 255
    return ((pixels - 0.5) / 0.5)[index]


def networks(config: DictConfig) -> tuple[WhereWhat, reference.Cnn, reference.Cnn]:
    pair = WhereWhat(
        build_network(config.model.where, "where", (3, 32, 32), 1, seed=3),
        build_network(config.model.what, "what", (3, 32, 32), 3, seed=3),
    ).double()
    pair = pair.to(memory_format=torch.channels_last)
    where = reference.take_weights(reference.Cnn(1).double(), pair.where)
    what = reference.take_weights(reference.Cnn(3).double(), pair.what)
    return pair, where, what


def data(**changes: int) -> RandomImages:
    settings = {
        "patches": 9, "train_mosaics": 30, "test_mosaics": 5, "held_out_mosaics": 5, "batch_size": 12,
        "steps_per_block": 2, "eval_batch_size": 4, "seed": 0, "order_seed": 0,
    } | changes  # fmt: skip
    module = RandomImages(foreground=[7, 8, 9], background=None, **settings)
    module.setup()
    return module


def test_outputs_attention_weights_and_gradients_equal_the_reference(config: Callable[..., DictConfig]) -> None:
    mosaics = data().mosaics["train"]
    pair, where, what = networks(config("experiment=stagewise"))
    logits, alpha = pair(mosaics.patches(torch.arange(30), torch.float64))
    F.cross_entropy(logits, mosaics.label).backward()

    expected_alpha, average = reference.attend(where, materialise(mosaics.pool, mosaics.index))
    expected_logits = what(average)
    F.cross_entropy(expected_logits, mosaics.label).backward()

    exact = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(logits, expected_logits, **exact)
    torch.testing.assert_close(alpha, expected_alpha, **exact)
    for network, reference_network in ((pair.where, where), (pair.what, what)):
        for (name, value), expected in zip(network.named_parameters(), reference_network.parameters(), strict=True):
            # Softmax ignores a shift of all scores, so the gradient of Where's last bias is zero except for rounding.
            shifts_all_scores = network is pair.where and name.endswith("layers.3.bias")
            assert shifts_all_scores or expected.grad.abs().max() > 0
            torch.testing.assert_close(value.grad, expected.grad, **exact)


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
@pytest.mark.parametrize("vectors", ["eager", *(pytest.param(name, marks=needs_compiler) for name in vectors_of_cpu())])
def test_stagewise_training_equals_the_reference(
    config: Callable[..., DictConfig], cache_gb: float, vectors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares the weights after five epochs of both stages, with and without kept aggregates."""
    monkeypatch.setattr(convolutions, "vectors_of_cpu", lambda: (vectors,))
    engine = "eager" if vectors == "eager" else "auto"
    settings = config(
        "experiment=stagewise", "precision=float64", "schedule.k=2", "schedule.epochs=5", "lr.what=0.5", "lr.where=0.3",
        "seed.all=3",
        f"compute.cache_gb={cache_gb}", f"compute.engine={engine}", "data.batch_size=12",
        "trainer.check_val_every_n_epoch=2",
    )  # fmt: skip
    images = data(seed=3, order_seed=3)
    module = build_module(resolve(settings), images)
    pair, where, what = networks(settings)
    build_trainer(settings, "64-true").fit(module, datamodule=images)
    assert module.convolutions == ("eager" if vectors == "eager" else f"fused-{vectors}")

    mosaics = images.mosaics["train"]
    rates = {"what": 0.5, "where": 0.3}  # large, so that each weight changes far more than the tolerance
    orders = [np.random.default_rng([3, epoch, 1]).permutation(30).tolist() for epoch in range(5)]
    reference.train(
        where, what, materialise(mosaics.pool, mosaics.index), mosaics.label, orders, k=2, batch=12, lr=rates
    )
    start = pair.state_dict()
    for name, value in module.pair.named_parameters():
        # Softmax ignores a shift of all scores, so Where's last bias has no gradient.
        assert value.dim() == 1 or (value - start[name]).abs().max() > 1e-6, "training changed nothing"
    for network, reference_network in ((module.pair.where, where), (module.pair.what, what)):
        for value, expected in zip(network.parameters(), reference_network.parameters(), strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)
