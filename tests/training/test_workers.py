"""Pieces of a minibatch on several threads give the results of one thread, and their errors are raised."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from helpers.small_runs import fit
from omegaconf import DictConfig
from torch import Tensor

from attnmosaic.training import workers
from attnmosaic.training.probes import flop_of
from attnmosaic.training.steps import add_up, gradients, with_gradients
from attnmosaic.training.workers import Workers

Config = Callable[..., DictConfig]
QUIET = ("logger=none", "precision=float64", "schedule.k=1", "schedule.epochs=2", "trainer.check_val_every_n_epoch=1")


@pytest.fixture
def three_workers() -> Iterator[Workers]:
    workers = Workers(3)
    yield workers
    workers.close()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Returns a function that sets torch's threads; even small work is split among them."""
    original = torch.get_num_threads()
    monkeypatch.setattr(workers, "WORTH_A_PIECE", 1.0)
    yield torch.set_num_threads
    torch.set_num_threads(original)


def test_results_keep_the_order_of_the_pieces(three_workers: Workers) -> None:
    together = threading.Barrier(3, timeout=30)  # passed only if three threads are running at once

    def work(piece: int) -> int:
        if piece < 3:
            together.wait()
        return piece**2

    assert three_workers.map(work, range(20)) == [piece**2 for piece in range(20)]


@pytest.mark.parametrize("bad", [0, 1, 7])
def test_error_of_a_piece_is_raised(three_workers: Workers, bad: int) -> None:
    def work(piece: int) -> int:
        if piece == bad:
            raise ValueError(f"piece {piece}")
        return piece

    with pytest.raises(ValueError, match=f"piece {bad}"):
        three_workers.map(work, range(9))
    assert three_workers.map(lambda piece: piece + 1, range(4)) == [1, 2, 3, 4], "the workers still work"


def test_call_within_a_call_uses_no_threads(three_workers: Workers) -> None:
    outer = three_workers.map(lambda piece: three_workers.map(lambda inner: (piece, inner), range(3)), range(4))
    assert outer == [[(piece, inner) for inner in range(3)] for piece in range(4)]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_threads_have_the_modes_of_the_caller(
    three_workers: Workers, grad: bool, inference: bool, autocast: bool
) -> None:
    together = threading.Barrier(3, timeout=30)
    x = torch.randn(4, 4)

    def work(_: int) -> tuple[bool, bool, torch.dtype]:
        together.wait()
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), (x @ x).dtype

    casts = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with torch.set_grad_enabled(grad), torch.inference_mode(inference), casts:
        modes = three_workers.map(work, range(3))
        assert modes == [(torch.is_grad_enabled(), inference, torch.bfloat16 if autocast else torch.float32)] * 3


def test_number_of_pieces_depends_on_work_and_threads() -> None:
    four, one = Workers(4), Workers(1)
    worth = workers.WORTH_A_PIECE
    assert [four.pieces(flop * worth) for flop in (0, 0.5, 1.9, 2, 3.5, 1000)] == [1, 1, 1, 2, 3, 4]
    assert four.pieces(1000 * worth, at_least=5) == 8, "the same number for each thread"
    assert four.pieces(0, at_least=5) == one.pieces(1000 * worth, at_least=5) == 5
    assert one.pieces(1000 * worth) == 1
    four.close()


def test_operations_are_counted() -> None:
    assert flop_of(lambda: torch.randn(3, 4) @ torch.randn(4, 5)) == 2 * 3 * 4 * 5


def test_torch_gets_its_threads_back(threads: Callable[[int], None]) -> None:
    threads(3)
    workers = Workers.instead_of_torch()
    assert (workers.count, torch.get_num_threads()) == (3, 1)
    workers.close()
    assert torch.get_num_threads() == 3


def test_backward_pass_gives_computed_gradients_once() -> None:
    weight, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    parts = [(3 * weight).sum(), (4 * weight).sum()]
    computed = add_up([gradients(part, [weight, other]) for part in parts])
    loss = with_gradients(torch.stack(parts).detach().sum(), [weight, other], computed)
    (0.5 * loss).backward()
    assert loss.item() == 14
    assert weight.grad.tolist() == [3.5, 3.5]
    assert other.grad is None


CNN = ("data=digits", "model=cnn", "data.train_mosaics=70", "data.batch_size=30", "data.steps_per_block=2")


@pytest.mark.parametrize(
    "settings",
    [
        ("schedule=what_then_where", "callbacks=gradients"),
        ("schedule=what_then_where", "compute.cache_gb=0"),
        ("schedule=joint", "objective.entropy=0.3", "optimizer.clip_norm=0.1"),
        ("schedule=joint", "optimizer.microbatches=3"),
    ],
    ids=" ".join,
)
def test_several_threads_give_the_results_of_one(
    config: Config, threads: Callable[[int], None], settings: tuple[str, ...]
) -> None:
    runs = []
    for count in (1, 3):
        threads(count)
        runs.append(fit(config(*CNN, *QUIET, *settings, run_dir=f"run{count}")))
        assert torch.get_num_threads() == count, "torch has its threads again"
    assert_same(*runs)


def test_pool_scored_in_pieces_gives_the_results_of_one_thread(config: Config, threads: Callable[[int], None]) -> None:
    """With few points Where scores the pool, and its gradient goes through the pieces of the pool."""
    runs = []
    for count in (1, 2, 4):
        threads(count)
        runs.append(fit(config("data.points=40", "schedule=joint", *QUIET, run_dir=f"run{count}")))
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


@pytest.mark.parametrize("experiment", ["mnist_product", "mnist_sum"])
def test_two_outputs_on_several_threads(config: Config, threads: Callable[[int], None], experiment: str) -> None:
    """The network of mnist_sum has dropout and batch normalisation, so that torch keeps its threads."""
    runs = []
    for count in (1, 2):
        threads(count)
        settings = (f"experiment={experiment}", "logger=none", "precision=float64", "schedule.epochs=2")
        thread_counts: list[int] = []
        runs.append(
            fit(config(*settings, "optimizer.clip_norm=0.1", run_dir=f"run{count}"), RecordThreads(thread_counts))
        )
        assert set(thread_counts) == {1 if experiment == "mnist_product" else count}
    if experiment == "mnist_product":
        assert_same(*runs)


def test_hooks_get_the_gradients_of_all_pieces(config: Config, threads: Callable[[int], None]) -> None:
    """A callback that runs after Lightning's backward pass gets the summed gradients of all pieces."""
    norms = []
    for count in (1, 3):
        threads(count)
        run_norms: list[float] = []
        fit(
            config(*CNN, *QUIET, "schedule=joint", "data.steps_per_block=1", run_dir=f"run{count}"),
            RecordNorms(run_norms),
        )
        norms.append(run_norms)
    assert len(norms[0]) == 6
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)
    assert min(norms[0]) > 0


def assert_same(one: Any, other: Any) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=1e-10)
    assert one.epoch_metrics == pytest.approx(other.epoch_metrics, rel=1e-9)


class RecordNorms(pl.Callback):
    """Adds the norm of all gradients to a list after each backward pass."""

    def __init__(self, norms: list[float]) -> None:
        self.norms = norms

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        grads: list[Tensor] = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())


class RecordThreads(pl.Callback):
    """Adds torch's number of threads to a list after each batch."""

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def on_train_batch_end(self, *_: Any) -> None:
        self.counts.append(torch.get_num_threads())
