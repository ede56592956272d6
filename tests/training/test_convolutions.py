"""How a run computes convolutions: chosen when it begins, recorded, and kept when it resumes or is evaluated."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import edited
from helpers.compilers import needs_compiler
from helpers.small_runs import fit
from omegaconf import DictConfig

from attnmosaic.core.errors import RunError
from attnmosaic.evaluate import evaluate
from attnmosaic.nn.kernels import vectors_of_cpu
from attnmosaic.nn.networks import kernel_of
from attnmosaic.training import convolutions
from attnmosaic.training.stagewise import StagewiseModule

Config = Callable[..., DictConfig]
Train = Callable[..., dict[str, float]]

RUN = (
    "experiment=stagewise", "data=digits", "data.train_mosaics=60", "data.batch_size=20", "schedule.k=1",
    "schedule.epochs=3", "lr.what=0.3", "lr.where=0.3", "logger=none", "callbacks=default",
    "callbacks.progress=null", "callbacks.pictures=null", "callbacks.cycle._target_=helpers.small_runs.EveryEpoch",
)  # fmt: skip
BEST = f"fused-{vectors_of_cpu()[0]}"
OTHER = [f"model.{network}._target_=helpers.small_runs.OtherNet" for network in ("where", "what")]


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the compilers, and the kernels that they have compiled."""
    monkeypatch.setenv("CC", "no_such_compiler")
    monkeypatch.setattr(convolutions, "FOLDER", Path("none_yet"))


def recorded(folder: Path) -> Any:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    result = json.loads((folder / "result.json").read_text())
    assert checkpoint["convolutions"] == result["convolutions"]
    return result["convolutions"]


def weights(folder: Path) -> torch.Tensor:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return torch.cat([value.flatten() for value in checkpoint["state_dict"].values()])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param((), BEST, marks=needs_compiler),
        pytest.param(("precision=float64",), BEST, marks=needs_compiler),
        (("compute.engine=eager",), "eager"),
        (("precision=bfloat16",), "eager"),
        (OTHER, None),
        (("model=mlp",), None),
    ],
    ids=["float32", "float64", "engine=eager", "bfloat16", "other networks", "without convolutions"],
)
def test_choice(config: Config, settings: tuple[str, ...], expected: str | None) -> None:
    module = fit(config(*RUN, "schedule.epochs=1", *settings))
    assert module.convolutions == expected
    for network in (module.pair.where, module.pair.what):
        assert (kernel_of(network) is not None) == (expected == BEST)


@needs_compiler
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("schedule=joint", "objective.entropy=0.2"),
        ("callbacks=gradients", "callbacks.pictures=null", "callbacks.progress=null"),
        ("optimizer.microbatches=3", "compute.cache_gb=0"),
        ("data.mean=[0.3]", "data.std=0.2", "data.batch_size=7"),
        ("+data/weights=fixed", "data.weights.foreground=0.4", "schedule=what_only"),
    ],
    ids=["stages", "joint", "gradient curves", "pieces", "other scaling", "fixed weights"],
)
def test_fused_and_eager_runs_are_equal(train: Train, tmp_path: Path, settings: tuple[str, ...]) -> None:
    """In float64, whose rounding no metric shows; each file of numbers is compared."""
    metrics = {}
    for engine in ("auto", "eager"):
        metrics[engine] = train(*RUN, "precision=float64", *settings, f"compute.engine={engine}", run_dir=engine)
    assert recorded(tmp_path / "auto") == BEST
    assert metrics["auto"] == pytest.approx(metrics["eager"], rel=1e-9, abs=1e-12)
    torch.testing.assert_close(weights(tmp_path / "auto"), weights(tmp_path / "eager"), rtol=0, atol=1e-10)
    for file in (tmp_path / "auto").glob("*.csv"):
        for one, other in zip(file.open(), (tmp_path / "eager" / file.name).open(), strict=True):
            for a, b in zip(one.strip().split(","), other.strip().split(","), strict=True):
                assert a == b or float(a) == pytest.approx(float(b), rel=1e-6, abs=1e-9), file.name


@needs_compiler
@pytest.mark.parametrize("network", ["what", "where"])
def test_a_loss_that_is_not_finite_ends_a_fused_run(config: Config, network: str) -> None:
    with pytest.raises(RunError, match=f"training: .*{network}"):
        fit(
            config(
                *RUN, f"lr.{network}=1e30", f"schedule={'what_then_where' if network == 'what' else 'where_then_what'}"
            )
        )


def test_without_a_compiler_torch_computes_and_one_line_reports_it(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_compiler(monkeypatch)
    caplog.set_level(logging.INFO)
    assert fit(config(*RUN)).convolutions == "eager"
    (line,) = [record.message for record in caplog.records if "convolutions" in record.message]
    assert "no C compiler found, tried no_such_compiler; install gcc" in line


# ---- runs that resume, and evaluations


@pytest.fixture
def finished(train: Train, tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that trains a run; its argument is how it computes convolutions."""

    def make(choice: str, run_dir: str = "before") -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convolutions, "vectors_of_cpu", lambda: (choice.removeprefix("fused-"),))
            train(*RUN, f"compute.engine={'eager' if choice == 'eager' else 'auto'}", run_dir=run_dir)
        assert recorded(tmp_path / run_dir) == choice
        return tmp_path / run_dir

    return make


def resumed(folder: Path, epoch: int = 1) -> str:
    return f"ckpt_path={folder / 'checkpoints' / f'epoch-{epoch:04}.ckpt'}"


CHOICES = pytest.mark.parametrize(
    "choice", ["eager", *(pytest.param(f"fused-{name}", marks=needs_compiler) for name in vectors_of_cpu())]
)


@pytest.mark.runs
@CHOICES
def test_a_resumed_run_keeps_its_way_and_its_bits(
    train: Train, finished: Callable[..., Path], tmp_path: Path, choice: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = finished(choice)
    caplog.clear()
    train(*RUN, resumed(before), run_dir="resumed")
    assert recorded(tmp_path / "resumed") == choice
    assert torch.equal(weights(before), weights(tmp_path / "resumed"))
    lines = [record for record in caplog.records if "convolutions" in record.message]
    assert not [record for record in lines if record.levelno >= logging.WARNING]


@pytest.mark.runs
@needs_compiler
@pytest.mark.parametrize("why", ["narrower CPU", "no compiler", "engine=eager"])
def test_a_way_that_cannot_be_kept_is_reported_in_one_line(
    train: Train,
    finished: Callable[..., Path],
    tmp_path: Path,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = finished(BEST)
    settings = []
    if why == "narrower CPU":
        monkeypatch.setattr(convolutions, "vectors_of_cpu", lambda: ("generic",))
    elif why == "no compiler":
        without_compiler(monkeypatch)
    else:
        settings = ["compute.engine=eager"]
    caplog.clear()
    caplog.set_level(logging.WARNING)
    train(*RUN, resumed(before), *settings, run_dir="resumed")
    now = "fused-generic" if why == "narrower CPU" else "eager"
    assert recorded(tmp_path / "resumed") == now
    (line,) = [record.message for record in caplog.records if "convolutions" in record.message]
    assert f"{BEST} before, {now} now" in line
    assert not torch.equal(weights(before), weights(tmp_path / "resumed")), "the way must matter in this test"
    torch.testing.assert_close(weights(before), weights(tmp_path / "resumed"), rtol=1e-3, atol=1e-4)


@pytest.mark.runs
@CHOICES
def test_an_evaluation_computes_like_the_run(
    config: Config, finished: Callable[..., Path], choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = finished(choice) / "checkpoints" / "last.ckpt"
    used: list[str | None] = []
    step = StagewiseModule.validation_step

    def observed(module: StagewiseModule, *rest: Any) -> Any:
        used.append(module.convolutions)
        return step(module, *rest)

    monkeypatch.setattr(StagewiseModule, "validation_step", observed)
    evaluate(config(f"ckpt_path={last}", "trainer.accelerator=cpu", name="evaluate", small=False, run_dir="evaluated"))
    assert set(used) == {choice}


@pytest.mark.runs
@needs_compiler
def test_code_is_not_loaded_from_a_folder_that_a_checkpoint_names(
    config: Config, finished: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "FOLDER", Path("kernels"))
    last = finished(BEST) / "checkpoints" / "last.ckpt"

    def change(contents: dict[str, Any]) -> None:
        contents["hyper_parameters"]["config"]["paths"]["cache"] = str(tmp_path / "elsewhere")

    path = edited(last, tmp_path / "edited.ckpt", change)
    evaluate(config(f"ckpt_path={path}", "trainer.accelerator=cpu", name="evaluate", small=False, run_dir="evaluated"))
    assert not (tmp_path / "elsewhere").exists()
    assert [*(tmp_path / "cache" / "kernels").glob("fused-*.so")]
