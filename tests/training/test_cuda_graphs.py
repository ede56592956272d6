"""Steps are captured as CUDA graphs, or taken as ordinary steps if they cannot be; CUDA is simulated."""

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
    """A simulated CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: "Stream") -> None:
        pass


class FakeCuda:
    """Simulates the parts of torch.cuda that captures use.

    Attributes:
        streams: all created streams.
        current: the current stream.
        mode: the sync debug mode: "default", or "warn" while waits are reported.
        modes: every mode that was set.
        captured: the stream of each capture.
        error: error that a capture raises, or None.
        restores_stream: whether a failed capture restores the current stream; torch <= 2.12 does not.
    """

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.first = self.current = Stream(CUDA)
        self.mode: Any = "default"
        self.modes: list[Any] = []
        self.captured: list[Stream] = []
        self.error: Exception | None = None
        self.restores_stream = False

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
        """Simulates an operation that waits for the device."""
        if self.mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        self.captured.append(stream)
        yield
        if self.error is not None:
            if self.restores_stream:
                self.current = before
            raise self.error
        self.current = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for name, value in {
        "Stream": fake.make_stream,
        "stream": fake.stream,
        "current_stream": lambda device: fake.current,
        "get_sync_debug_mode": lambda: fake.mode,
        "set_sync_debug_mode": fake.set_mode,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph": fake.graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return fake


class Steps:
    """Simulates `attnmosaic.training.steps.Steps` on a GPU.

    Args:
        work: function that each step calls with the optimizers.
    """

    def __init__(self, work: Callable[[Any], object] = lambda optimizers: None) -> None:
        self.mosaics = SimpleNamespace(index=SimpleNamespace(device=CUDA))
        self.work = work
        self.taken = 0

    def __call__(self, rows: Tensor, stage: Stage, optimizers: Any, trained: Any) -> StepOutputs:
        self.taken += 1
        self.work(optimizers)
        return StepOutputs(rows, rows.sum(), rows, rows)


ROWS = torch.arange(4)


def take(graphed: GraphedSteps, steps: int, *optimizers: Any) -> list[StepOutputs]:
    return [graphed(ROWS, Stage.WHAT, optimizers, [[] for _ in optimizers]) for _ in range(steps)]


def test_warm_up_and_capture_use_one_stream_on_the_device_of_the_rows(cuda: FakeCuda) -> None:
    step_streams: list[Stream] = []
    steps = Steps(lambda _: step_streams.append(cuda.current))
    graphed = GraphedSteps(steps, cuda_graph)
    take(graphed, 5)
    graphed(ROWS[:3], Stage.WHAT, [], [])  # another size is captured again
    (side,) = cuda.streams
    assert side.device == CUDA
    assert step_streams == [side] * (WARM_UP + 1 + 1)
    assert cuda.captured == [side]
    assert cuda.current is cuda.first
    assert steps.taken == WARM_UP + 1 + 1, "a replayed step is not taken again"


def test_only_the_last_warm_up_step_reports_waits(cuda: FakeCuda) -> None:
    modes: list[Any] = []
    take(GraphedSteps(Steps(lambda _: modes.append(cuda.mode)), cuda_graph), 5)
    assert modes == ["default"] * (WARM_UP - 1) + ["warn", "default"]
    assert cuda.modes == ["warn", "default"]


def test_earlier_sync_debug_mode_is_restored(cuda: FakeCuda) -> None:
    cuda.mode = 2
    take(GraphedSteps(Steps(), cuda_graph), WARM_UP)
    assert cuda.mode == 2


def test_step_that_raises_restores_mode_and_stream(cuda: FakeCuda) -> None:
    def raises(_: Any) -> None:
        if cuda.mode == "warn":
            raise ValueError("a bug in an objective")

    graphed = GraphedSteps(Steps(raises), cuda_graph)
    with pytest.raises(ValueError, match="a bug"):
        take(graphed, 5)
    assert (cuda.mode, cuda.current) == ("default", cuda.first)


def test_steps_that_wait_for_the_gpu_are_never_captured(cuda: FakeCuda, caplog: pytest.LogCaptureFixture) -> None:
    """The step that finds the wait is not taken twice, and the log names the line that waits."""
    steps = Steps(lambda _: cuda.waits())
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = take(GraphedSteps(steps, cuda_graph), 6)
    assert not cuda.captured
    assert (steps.taken, len(outputs)) == (6, 6)
    (line,) = [record.message for record in caplog.records]
    assert "cannot be captured: waiting for the GPU at" in line
    assert Path(__file__).name in line


@pytest.mark.parametrize("restores_stream", [False, True])
def test_cuda_error_in_a_capture_ends_the_run_in_one_line(cuda: FakeCuda, restores_stream: bool) -> None:
    message = "CUDA error: operation failed due to a previous error during capture\nCUDA kernel errors might be ..."
    cuda.error, cuda.restores_stream = torch.AcceleratorError(message), restores_stream
    with pytest.raises(RunError, match=r"^compute\.engine: got auto.*previous error.*type compute\.engine=eager$"):
        take(GraphedSteps(Steps(), cuda_graph), 5)
    assert cuda.current is cuda.first, "no later work uses the stream of the failed capture"


def test_other_error_in_a_capture_falls_back_to_ordinary_steps(
    cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.error = RuntimeError("Attempting CUDA graph capture of step() for an instance of Mine")
    steps = Steps()
    with caplog.at_level(logging.WARNING):
        assert len(take(GraphedSteps(steps, cuda_graph), 6)) == 6
    assert "cannot be captured: Attempting" in caplog.text
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
def test_optimizers_that_count_steps_on_the_host_are_not_captured(
    cuda: FakeCuda, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph would keep the first count of steps on the host, so that rates that depend on it would not change."""
    network = nn.Linear(2, 3)

    def step(optimizers: Any) -> None:
        zero_gradients(list(network.parameters()))
        optimizers[0].step()

    with fake_cuda(monkeypatch), caplog.at_level(logging.WARNING):
        network.to(CUDA)
        tested = (
            optimizer(name, network.parameters(), foreach=True)
            if name == "SGD"
            else optimizer(name, network.parameters())
        )
        set_capturable(tested, graphs=True)
        graphed = GraphedSteps(Steps(step), cuda_graph)
        for _ in range(5):
            graphed(torch.arange(4).to(CUDA), Stage.WHAT, [tested], [[]])
    if name in ("Adagrad", "Counting"):
        assert f"{name} counts its steps outside the GPU" in caplog.text
        assert not cuda.captured
    else:
        assert not caplog.records
        assert len(cuda.captured) == 1


def stepped(optimizer: torch.optim.Optimizer, network: nn.Module, seeds: range) -> list[Tensor]:
    """Takes a step with random gradients for each seed, and returns the parameters."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach().clone() for parameter in network.parameters()]


@pytest.mark.parametrize("name", CAPTURABLE)
@pytest.mark.parametrize("saved_on", ["cpu", "cuda"])
def test_optimizer_states_move_between_devices(name: str, saved_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state from the CPU is used for captured steps on a GPU, and a state from captured steps on the CPU."""
    network = nn.Linear(2, 3)
    original = optimizer(name, network.parameters())
    stepped(original, network, range(2))
    state = copy.deepcopy(original.state_dict())
    if saved_on == "cuda":
        other = nn.Linear(2, 3)
        other.load_state_dict(network.state_dict())
        resumed = optimizer(name, other.parameters())
        for group in state["param_groups"]:  # the value that a run on a GPU saves
            group["capturable"] = True
        resumed.load_state_dict(state)
        set_capturable(resumed, graphs=False)
        for one, another in zip(
            stepped(original, network, range(2, 5)), stepped(resumed, other, range(2, 5)), strict=True
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


def test_eager_run_counts_steps_on_the_host_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused optimizers and those with ``capturable`` in their config still count on the device."""
    network = nn.Linear(2, 3)
    with fake_cuda(monkeypatch):
        network.to(CUDA)
        devices = {}
        for name, settings in {"plain": {}, "fused": {"fused": True}, "capturable": {"capturable": True}}.items():
            zero_gradients(list(network.parameters()))
            captured = torch.optim.Adam(network.parameters(), **settings)
            set_capturable(captured, graphs=True)
            captured.step()
            assert {state["step"].device for state in captured.state.values()} == {CUDA}
            set_capturable(captured, graphs=False)
            devices[name] = {state["step"].device.type for state in captured.state.values()}
        assert devices == {"plain": {"cpu"}, "fused": {"cuda"}, "capturable": {"cuda"}}


def test_run_from_a_gpu_resumes_on_the_cpu(config: Config, tmp_path: Path) -> None:
    """The checkpoint has optimizer settings of a GPU; the final weights equal those of an uninterrupted CPU run."""
    rms = [f"optimizer.{name}._target_=torch.optim.RMSprop" for name in ("what", "where")]
    settings = (
        *rms,
        "callbacks.cycle._target_=helpers.small_runs.EveryEpoch",
        "schedule.k=1",
        "schedule.epochs=4",
        "logger=none",
        "callbacks.pictures=null",
    )
    reference = fit(config(*settings))
    (path,) = tmp_path.rglob("epoch-0002.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    for state in checkpoint["optimizer_states"]:
        for group in state["param_groups"]:
            assert group["capturable"] is False
            group["capturable"] = True
    torch.save(checkpoint, tmp_path / "gpu.ckpt")
    resumed = fit(config(*settings, run_dir="resumed"), ckpt_path=tmp_path / "gpu.ckpt", weights_only=True)
    for one, other in zip(reference.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "captures"),
    [
        (lambda group: None, 1),
        (lambda group: group.update(lr=group["lr"].clone()), 1),  # the same numbers
        (lambda group: group["lr"].mul_(0.5), 2),  # a number on the host, which is constant in a graph
        (lambda group: group.update(lr=torch.tensor([0.5, 0.5])), 2),
        (lambda group: group.update(betas=(torch.tensor(0.8), torch.tensor(0.9))), 2),
        (lambda group: group.update(weight_decay=0.1), 2),
    ],
)
def test_changed_optimizer_settings_are_captured_again(
    cuda: FakeCuda, change: Callable[[Any], object], captures: int
) -> None:
    group = {"params": [], "lr": torch.tensor([0.1, 0.1]), "betas": (0.9, 0.99), "weight_decay": 0.0}
    fake_optimizer = SimpleNamespace(param_groups=[group], state={})
    graphed = GraphedSteps(Steps(), cuda_graph)
    take(graphed, 5, fake_optimizer)
    change(group)
    take(graphed, 5, fake_optimizer)
    assert len(cuda.captured) == captures


def test_settings_on_the_device_are_compared_by_address(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph reads the value in each replay, so only a changed address needs another capture."""
    graphed = GraphedSteps(Steps(), cuda_graph)
    with fake_cuda(monkeypatch):
        rate = torch.tensor(0.1).to(CUDA)
        monkeypatch.setattr(type(rate), "data_ptr", lambda tensor: id(tensor))
        group = {"params": [], "lr": rate}
        fake_optimizer = SimpleNamespace(param_groups=[group], state={})
        for new_rate, captures in ((rate, 1), (rate.mul_(2), 1), (rate.clone(), 2)):
            group["lr"] = new_rate
            take(graphed, 5, fake_optimizer)
            assert len(cuda.captured) == captures
