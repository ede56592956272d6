"""How steps are captured as CUDA graphs, and what is done where they cannot be; CUDA's streams are stood in for."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.fake_cuda import CUDA, fake_cuda, zero_gradients
from helpers.small_runs import fit
from omegaconf import DictConfig
from torch import Tensor, nn

from attnmosaic.config.schedule import Stage
from attnmosaic.core.errors import RunError
from attnmosaic.training.cuda_graphs import WARM_UP, GraphedSteps, cuda_graph, set_capturable
from attnmosaic.training.steps import StepOutputs

Config = Callable[..., DictConfig]


class Stream:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: "Stream") -> None:
        pass


class StandIn:
    """Stands in for torch.cuda: which stream is the current one, how it answers waits, and what was captured.

    Attributes:
        streams: those that were made.
        current: the current stream.
        mode: "default", or "warn" while waits are reported.
        modes: every mode that was set.
        refuses: what ends a capture with an error, if anything does.
        leaves: whether a capture that failed leaves its stream, as it does not in torch <= 2.12.
    """

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.first = self.current = Stream(CUDA)
        self.mode: Any = "default"
        self.modes: list[Any] = []
        self.captured: list[Stream] = []
        self.refuses: Exception | None = None
        self.leaves = False

    def make_stream(self, device: torch.device) -> Stream:
        self.streams.append(Stream(device))
        return self.streams[-1]

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def set_mode(self, mode: Any) -> None:
        self.mode = mode
        self.modes.append(mode)

    def waits(self) -> None:
        """Is called where an operation waits for the device."""
        if self.mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        self.captured.append(stream)
        yield
        if self.refuses is not None:
            if self.leaves:
                self.current = before
            raise self.refuses
        self.current = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stands_in = StandIn()
    for name, value in {
        "Stream": stands_in.make_stream,
        "stream": stands_in.stream,
        "current_stream": lambda device: stands_in.current,
        "get_sync_debug_mode": lambda: stands_in.mode,
        "set_sync_debug_mode": stands_in.set_mode,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph": stands_in.graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return stands_in


class Steps:
    """Stands in for `attnmosaic.training.steps.Steps` on a GPU.

    Args:
        also: what a step does, called with the optimizers.
    """

    def __init__(self, also: Callable[[Any], object] = lambda optimizers: None) -> None:
        self.mosaics = SimpleNamespace(index=SimpleNamespace(device=CUDA))
        self.also = also
        self.taken = 0

    def __call__(self, rows: Tensor, stage: Stage, optimizers: Any, learning: Any) -> StepOutputs:
        self.taken += 1
        self.also(optimizers)
        return StepOutputs(rows, rows.sum(), rows, rows)


ROWS = torch.arange(4)


def take(graphed: GraphedSteps, steps: int, *optimizers: Any) -> list[StepOutputs]:
    return [graphed(ROWS, Stage.WHAT, optimizers, [[] for _ in optimizers]) for _ in range(steps)]


def test_one_stream_of_the_rows_device_serves_warm_up_and_capture(cuda: StandIn) -> None:
    on: list[Stream] = []
    steps = Steps(lambda _: on.append(cuda.current))
    graphed = GraphedSteps(steps, cuda_graph)
    take(graphed, 5)
    graphed(ROWS[:3], Stage.WHAT, [], [])  # another size is captured anew
    (side,) = cuda.streams
    assert side.device == CUDA
    assert on == [side] * (WARM_UP + 1 + 1)
    assert cuda.captured == [side]
    assert cuda.current is cuda.first
    assert steps.taken == WARM_UP + 1 + 1, "a replayed step is not taken again"


def test_the_last_warm_up_step_alone_reports_waits(cuda: StandIn) -> None:
    modes: list[Any] = []
    take(GraphedSteps(Steps(lambda _: modes.append(cuda.mode)), cuda_graph), 5)
    assert modes == ["default"] * (WARM_UP - 1) + ["warn", "default"]
    assert cuda.modes == ["warn", "default"]


def test_a_mode_that_was_set_before_is_set_again(cuda: StandIn) -> None:
    cuda.mode = 2
    take(GraphedSteps(Steps(), cuda_graph), WARM_UP)
    assert cuda.mode == 2


def test_a_step_that_raises_leaves_mode_and_stream_as_they_were(cuda: StandIn) -> None:
    def raises(_: Any) -> None:
        if cuda.mode == "warn":
            raise ValueError("a bug in an objective")

    graphed = GraphedSteps(Steps(raises), cuda_graph)
    with pytest.raises(ValueError, match="a bug"):
        take(graphed, 5)
    assert (cuda.mode, cuda.current) == ("default", cuda.first)


def test_steps_that_wait_are_found_without_a_capture(cuda: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    """The step itself counts, and is not taken twice; the log names the line that waits."""
    steps = Steps(lambda _: cuda.waits())
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = take(GraphedSteps(steps, cuda_graph), 6)
    assert not cuda.captured
    assert (steps.taken, len(seen)) == (6, 6)
    (line,) = [record.message for record in caplog.records]
    assert "are taken one by one: waiting for the GPU at" in line
    assert Path(__file__).name in line


@pytest.mark.parametrize("leaves", [False, True])
def test_a_capture_that_cuda_refuses_ends_the_run_in_one_line(cuda: StandIn, leaves: bool) -> None:
    refused = "CUDA error: operation failed due to a previous error during capture\nCUDA kernel errors might be ..."
    cuda.refuses, cuda.leaves = torch.AcceleratorError(refused), leaves
    with pytest.raises(RunError, match=r"^compute\.engine: got auto.*previous error.*type compute\.engine=eager$"):
        take(GraphedSteps(Steps(), cuda_graph), 5)
    assert cuda.current is cuda.first, "no work may go to the stream of the failed capture"


def test_what_python_refuses_is_taken_one_by_one(cuda: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    cuda.refuses = RuntimeError("Attempting CUDA graph capture of step() for an instance of Mine")
    steps = Steps()
    with caplog.at_level(logging.WARNING):
        assert len(take(GraphedSteps(steps, cuda_graph), 6)) == 6
    assert "taken one by one: Attempting" in caplog.text
    assert cuda.current is cuda.first
    assert len(cuda.captured) == 1


# ---- optimizers


class Counting(torch.optim.SGD):
    """Counts its steps in a Python number."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["step"] = self.state[parameter].get("step", 0) + 1


CAPTURABLE = ("ASGD", "Adadelta", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop")


def optimizer(name: str, parameters: Any, **settings: Any) -> torch.optim.Optimizer:
    kind = Counting if name == "Counting" else getattr(torch.optim, name)
    return kind(parameters, lr=0.01, **settings)


@pytest.mark.parametrize("name", [*CAPTURABLE, "SGD", "Adagrad", "Counting"])
def test_which_optimizers_are_captured(
    cuda: StandIn, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph would not see a count of steps on the host change: rates that follow from it would stand still."""
    network = nn.Linear(2, 3)

    def step(optimizers: Any) -> None:
        zero_gradients(list(network.parameters()))
        optimizers[0].step()

    with fake_cuda(monkeypatch), caplog.at_level(logging.WARNING):
        network.to(CUDA)
        stepping = (
            optimizer(name, network.parameters(), foreach=True)
            if name == "SGD"
            else optimizer(name, network.parameters())
        )
        set_capturable(stepping, graphs=True)
        graphed = GraphedSteps(Steps(step), cuda_graph)
        for _ in range(5):
            graphed(torch.arange(4).to(CUDA), Stage.WHAT, [stepping], [[]])
    if name in ("Adagrad", "Counting"):
        assert f"{name} counts its steps outside the GPU" in caplog.text
        assert not cuda.captured
    else:
        assert not caplog.records
        assert len(cuda.captured) == 1


def stepped(optimizer: torch.optim.Optimizer, network: nn.Module, seeds: range) -> list[Tensor]:
    """Steps on gradients that follow from seeds."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach().clone() for parameter in network.parameters()]


@pytest.mark.parametrize("name", CAPTURABLE)
@pytest.mark.parametrize("saved_on", ["cpu", "cuda"])
def test_optimizers_move_between_devices(name: str, saved_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their state from a run on the CPU is stepped on, captured, on a GPU; that of a captured run on the CPU."""
    network = nn.Linear(2, 3)
    begun = optimizer(name, network.parameters())
    stepped(begun, network, range(2))
    state = copy.deepcopy(begun.state_dict())
    if saved_on == "cuda":
        other = nn.Linear(2, 3)
        other.load_state_dict(network.state_dict())
        resumed = optimizer(name, other.parameters())
        for group in state["param_groups"]:  # as a run on a GPU saves it
            group["capturable"] = True
        resumed.load_state_dict(state)
        set_capturable(resumed, graphs=False)
        for one, another in zip(
            stepped(begun, network, range(2, 5)), stepped(resumed, other, range(2, 5)), strict=True
        ):
            assert torch.equal(one, another)
        return
    with fake_cuda(monkeypatch):
        network.to(CUDA)
        resumed = optimizer(name, network.parameters())
        resumed.load_state_dict(state)
        set_capturable(resumed, graphs=True)
        zero_gradients(list(network.parameters()))
        resumed.step()
        assert {value.device for kept in resumed.state.values() for value in kept.values()} == {CUDA}


def test_an_eager_run_counts_steps_on_the_host_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """But a fused optimizer does not, and what a config says of it stays."""
    network = nn.Linear(2, 3)
    with fake_cuda(monkeypatch):
        network.to(CUDA)
        found = {}
        for name, settings in {"plain": {}, "fused": {"fused": True}, "asked": {"capturable": True}}.items():
            zero_gradients(list(network.parameters()))
            captured = torch.optim.Adam(network.parameters(), **settings)
            set_capturable(captured, graphs=True)
            captured.step()
            assert {state["step"].device for state in captured.state.values()} == {CUDA}
            set_capturable(captured, graphs=False)
            found[name] = {state["step"].device.type for state in captured.state.values()}
        assert found == {"plain": {"cpu"}, "fused": {"cuda"}, "asked": {"cuda"}}


def test_a_run_of_a_gpu_is_resumed_on_the_cpu(config: Config, tmp_path: Path) -> None:
    """Its checkpoint says of the optimizers what steps on a GPU wanted; the weights are those of one run on the CPU."""
    rms = [f"optimizer.{name}._target_=torch.optim.RMSprop" for name in ("what", "where")]
    settings = (
        *rms,
        "callbacks.cycle._target_=helpers.small_runs.EveryEpoch",
        "schedule.k=1",
        "schedule.epochs=4",
        "logger=none",
        "callbacks.pictures=null",
    )
    whole = fit(config(*settings))
    (path,) = tmp_path.rglob("epoch-0002.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    for state in checkpoint["optimizer_states"]:
        for group in state["param_groups"]:
            assert group["capturable"] is False
            group["capturable"] = True
    torch.save(checkpoint, tmp_path / "gpu.ckpt")
    resumed = fit(config(*settings, run_dir="resumed"), ckpt_path=tmp_path / "gpu.ckpt", weights_only=True)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "captures"),
    [
        (lambda group: None, 1),
        (lambda group: group.update(lr=group["lr"].clone()), 1),  # the same numbers
        (lambda group: group["lr"].mul_(0.5), 2),  # a number on the host, which a graph holds
        (lambda group: group.update(lr=torch.tensor([0.5, 0.5])), 2),
        (lambda group: group.update(betas=(torch.tensor(0.8), torch.tensor(0.9))), 2),
        (lambda group: group.update(weight_decay=0.1), 2),
    ],
)
def test_settings_that_are_tensors(cuda: StandIn, change: Callable[[Any], object], captures: int) -> None:
    group = {"params": [], "lr": torch.tensor([0.1, 0.1]), "betas": (0.9, 0.99), "weight_decay": 0.0}
    stands_in = SimpleNamespace(param_groups=[group], state={})
    graphed = GraphedSteps(Steps(), cuda_graph)
    take(graphed, 5, stands_in)
    change(group)
    take(graphed, 5, stands_in)
    assert len(cuda.captured) == captures


def test_settings_on_the_device_are_compared_without_asking_for_them(
    cuda: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph reads them each time, so that only another place in memory matters."""
    graphed = GraphedSteps(Steps(), cuda_graph)
    with fake_cuda(monkeypatch):
        rate = torch.tensor(0.1).to(CUDA)
        monkeypatch.setattr(type(rate), "data_ptr", lambda tensor: id(tensor))
        group = {"params": [], "lr": rate}
        stands_in = SimpleNamespace(param_groups=[group], state={})
        for now, captures in ((rate, 1), (rate.mul_(2), 1), (rate.clone(), 2)):
            group["lr"] = now
            take(graphed, 5, stands_in)
            assert len(cuda.captured) == captures
