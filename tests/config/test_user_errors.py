"""User errors of commands: one line that says what to type instead, exit code 2, no heavy imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import Cli, check_line
from helpers.fresh_process import LARGE, answers
from helpers.settings import SMALL

pytestmark = pytest.mark.runs

LIGHT = {
    ("experiment=stagwise",): r"experiment: got 'stagwise', allowed: .*stagewise.*did you mean experiment=stagewise",
    ("expirement=stagewise",): r"expirement: there is no such config key; did you mean experiment",
    ("data.patchs=4", "data=digits"): r"data\.patchs: there is no such config key; did you mean data\.patches",
    ("lr.what=abc",): r"lr\.what: Value 'abc' of type 'str' could not be converted to Float",
    ("data.foreground=[1,2",): r"data\.foreground=\[1,2: is not a valid override",
    ("+model.attention=a,b", "-m"): r"model\.attention: got a, but nothing reads this key, allowed: model\.where",
    ("seed=1",): r"seed: .*section.*seed\.all=1",
    ("lr.what=0.1,0.2",): r"lr\.what.*add -m to run one job for each value",
    ("stagewise",): r"stagewise: .*key=value.*experiment=stagewise",
    ("logger=null",): r"logger=null: .*group.*logger=none",
    ("--config-dir=own", "experiment=zeros", "data.root=zeros"): r"data\.foreground: got 1, .*=\[\"01\",\"02\"\]'",
    ("objective.entrpy=1",): r"objective\.entrpy: .*did you mean objective\.entropy.* an argument of its _target_\)$",
    ("data=image_folder",): r"data\.\w+: required; type data\.\w+=",
}


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, str, list[str]]]:
    """Runs all commands in one new process; returns exit code, standard error and heavy imports of each."""
    folder = tmp_path_factory.mktemp("errors")
    for name in ("01", "02", "03"):
        (folder / "zeros" / name).mkdir(parents=True)
        (folder / "zeros" / name / "image.png").touch()
    (folder / "own" / "experiment").mkdir(parents=True)
    (folder / "own" / "experiment" / "zeros.yaml").write_text(
        "# @package _global_\ndefaults: [override /data: image_folder]\nname: zeros\ndata: {foreground: [01, 02]}\n"
    )
    return dict(zip(LIGHT, answers("train", LIGHT, folder, (*LARGE, "numpy")), strict=True))


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_user_error_is_reported_before_heavy_imports(
    reported: dict[tuple[str, ...], tuple[int, str, list[str]]], arguments: tuple[str, ...]
) -> None:
    code, err, heavy = reported[arguments]
    check_line(code, err, LIGHT[arguments])
    assert heavy == []


def test_run_that_cannot_be_instantiated_is_a_user_error(cli: Cli, tmp_path: Path) -> None:
    """The log in its folder has the same line."""
    code, _, err = cli("train", "+objective.foo=1", "hydra.run.dir=run")
    check_line(code, err, r"objective: .*foo")
    assert err.removeprefix("error: ").strip() in (tmp_path / "run" / "train.log").read_text()
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.rglob("result.json"))


def test_user_errors_of_evaluate(cli: Cli, tmp_path: Path) -> None:
    check_line(*cli("evaluate", "ckpt_pth=no.ckpt")[::2], r"ckpt_pth: there is no such .*did you mean ckpt_path\?")
    check_line(*cli("evaluate")[::2], r"ckpt_path: .*type ckpt_path=outputs")
    check_line(*cli("evaluate", "ckpt_path=no.ckpt")[::2], r"ckpt_path: 'no\.ckpt' does not exist")
    (tmp_path / "text.ckpt").write_text("hello")
    check_line(*cli("evaluate", "ckpt_path=text.ckpt")[::2], r"'text\.ckpt' is not .* checkpoint")


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("evaluate", "+compute.thread=1", r"compute\.thread: got 1, .*did you mean compute\.threads\?"),
        ("explain", "+grids=3", r"grids: got 3, .*did you mean grid\?"),
        ("predict", "+inverted=true", r"inverted: got True, .*did you mean invert\?"),
    ],
)
def test_key_that_a_command_does_not_read_is_a_user_error(
    cli: Cli, tmp_path: Path, command: str, override: str, message: str
) -> None:
    (tmp_path / "some.ckpt").touch()
    arguments = {"explain": ["images=."], "predict": ["image=x.png", "number=5"]}.get(command, [])
    check_line(*cli(command, "ckpt_path=some.ckpt", *arguments, override)[::2], message)


def test_key_that_only_hydras_section_reads_is_accepted(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("train", "+x=mine", "hydra.run.dir=runs/${x}", *SMALL, "schedule.k=1", "schedule.epochs=1")
    assert (code, err) == (0, "")
    assert (tmp_path / "runs" / "mine" / "result.json").exists()


def test_stack_trace_is_printed_on_request(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attnmosaic.train", "schedule.k=0"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"HYDRA_FULL_ERROR": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "UserError: schedule.k" in done.stderr
