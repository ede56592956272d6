"""Every config gives a run or a user error in one line: the train command with random overrides."""

import shutil
import string
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers.bounds import bounded
from helpers.commands import Cli
from helpers.configs import composed, set_values
from helpers.settings import SMALL, SMALL_NUMBERS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from attnmosaic.cli import hydra_errors
from attnmosaic.cli.command import line_and_code
from attnmosaic.core.errors import UserError, one_line
from attnmosaic.train import train

pytestmark = pytest.mark.faults

CONFIGS, COMMANDS = 40, 5
"""Number of random configs and commands; Hydra needs half a second to compose the config of a command."""

BASES = (
    ("data=gaussian", *SMALL),
    ("experiment=gaussian_type5", "optimizer=adam", "scheduler=cosine", *SMALL),
    ("experiment=stagewise", "data=digits", *SMALL),
    ("experiment=weighted_average", "data=digits", "data.foreground=[1,2,3]", *SMALL),
    ("experiment=mnist_sum", *SMALL_NUMBERS),
)


@cache
def keys_of(base: tuple[str, ...]) -> list[str]:
    """Returns all keys of a config except output paths, which the test sets itself."""
    keys = hydra_errors.keys_of(composed("train", *base))
    return [key for key in keys if not key.startswith(("run_dir", "paths")) and not key.endswith(("folder", "dirpath"))]


GROUPS = (
    "data",
    "model",
    "schedule",
    "objective",
    "optimizer",
    "scheduler",
    "trainer",
    "logger",
    "callbacks",
    "experiment",
    "scale",
    "debug",
    "data/weights",
)
CHOICES = ("none", "null", "mlp", "cnn", "digits", "joint", "x", "[a,b]", "''")

NUMBERS = st.one_of(
    st.integers(-3, 70).map(str),
    st.sampled_from(
        ["1e3", "1e30", "-1e400", "nan", "inf", "-inf", "0.0", "-0.5", "1e-320", "0x10", "1_000", "2147483647"]
    ),
    st.integers(0, 40).map(lambda n: str(10**n)),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
)
WORDS = st.one_of(
    st.sampled_from(
        [
            "null",
            "true",
            "false",
            "''",
            "abc",
            "???",
            "NULL",
            "~",
            "what_only",
            "torch.nn.ReLU",
            "high",
            "'[1,2]'",
            "${lr.what}",
            "${oc.env:HOME}",
            "${oc.env:NO_SUCH}",
            "${nothing}",
            "${hydra:job.num}",
            "${row:${name}}",
            "${name}",
            "'${', '",
            "${model}",
            "${run_dir}",
            "${oc.create:[1]}",
            "../../x",
            "/dev/null",
            "a b",
            "%s",
            "{x}",
            "torch.nn.Linear",
            "os.getcwd",
            "attnmosaic.data.weights.RandomPatch",
        ]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12).map(
        lambda t: "'" + t.replace("'", "") + "'"
    ),
    st.text(string.printable.replace("\0", ""), max_size=8),
)
PLAIN = st.one_of(NUMBERS, WORDS)
VALUES = st.one_of(
    PLAIN,
    st.lists(PLAIN, max_size=3).map(lambda v: f"[{','.join(v)}]"),
    st.lists(st.lists(NUMBERS, max_size=3).map(lambda v: f"[{','.join(v)}]"), max_size=3).map(
        lambda v: f"[{','.join(v)}]"
    ),
    st.dictionaries(st.sampled_from(["a", "_target_", "split", "weights"]), PLAIN, max_size=2).map(
        lambda d: "{" + ",".join(f"{k}:{v}" for k, v in d.items()) + "}"
    ),
)


@st.composite
def commands(draw: st.DrawFn, groups: bool = False) -> tuple[tuple[str, ...], list[str]]:
    """Samples the first overrides of a command and one or two more overrides, mostly of existing keys."""
    base = draw(st.sampled_from(BASES))
    known = st.sampled_from(keys_of(base))
    set_to = st.tuples(known, VALUES).map("=".join)
    added = st.tuples(known, st.sampled_from(["new", "_target_", "lr", "a.b", "_partial_", "_args_"]), VALUES).map(
        lambda parts: f"+{parts[0]}.{parts[1]}={parts[2]}"
    )
    removed = known.map("~{}".format)
    forced = st.tuples(known, PLAIN).map(lambda parts: f"++{parts[0]}={parts[1]}")
    junk = st.text(string.printable.replace("\0", ""), max_size=12).filter(lambda text: not text.startswith("-"))
    other = st.tuples(st.sampled_from(GROUPS), st.sampled_from(CHOICES)).map("=".join)
    kinds = [set_to, set_to, set_to, set_to, added, removed, forced, junk, *([other] * 3 if groups else [])]
    return base, draw(st.lists(st.one_of(kinds), min_size=1, max_size=2))


class TrainCommand:
    """Train command that instantiates all parts of a run but does not train."""

    def __init__(self, cli: Cli, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        import pytorch_lightning as pl

        from attnmosaic.config.schema import metrics_of
        from attnmosaic.training import results

        self.cli, self.monkeypatch, self.folder, self.runs = cli, monkeypatch, folder, 0

        def fit(trainer: pl.Trainer, module: Any, **_: Any) -> None:
            self.runs += 1

        def finish(config: Any, trainer: Any, module: Any) -> dict[str, float]:
            return {f"{split}/{name}": 0.0 for split in ("train", "test", "held_out") for name in metrics_of(config)}

        monkeypatch.setattr(pl.Trainer, "fit", fit)
        monkeypatch.setattr(pl.Trainer, "validate", lambda *_, **__: None)
        monkeypatch.setattr(results, "finish_run", finish)
        monkeypatch.setattr(results, "final_table", lambda *_: "")

    def command(self, base: tuple[str, ...], overrides: list[str]) -> None:
        """Runs the overrides as a command line, including Hydra."""
        named = any("name=" in override for override in overrides)
        with bounded():
            code, out, err = self.cli(
                "train", *base, *overrides, *(() if named else (f"hydra.run.dir={self.folder}/run",))
            )
        if code == 0:
            assert "Traceback" not in out + err
            return
        assert code == 2, err
        assert err.startswith("error: "), err
        check_message(err.removeprefix("error: ").removesuffix("\n"))

    def config(self, base: tuple[str, ...], overrides: list[str]) -> None:
        """Applies the overrides to a composed config and calls `train`, without a command line."""
        self.monkeypatch.setattr(sys, "argv", ["attnmosaic.train", *base, *overrides])
        config = composed("train", *base)
        config.run_dir = str(self.folder / "run")
        try:
            with bounded():
                try:
                    set_values(config, *overrides)
                except (TypeError, ValueError) as error:
                    if not isinstance(error, OmegaConfBaseException):
                        return  # on a command line, Hydra reports these errors before `train` is called
                    raise
                train(config)
        except Exception as error:
            line = line_and_code(error)
            if line is None:
                raise
            assert line[1] == 2, line
            check_message(one_line(line[0]))


def check_message(line: str) -> None:
    assert line.isprintable(), line
    assert 5 < len(line) < 3000, line
    assert "Traceback" not in line


@pytest.fixture
def train_command(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TrainCommand:
    return TrainCommand(cli, monkeypatch, tmp_path)


def try_many(
    train_command: TrainCommand, check: Callable[..., None], sampled: st.SearchStrategy[Any], examples: int
) -> None:
    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=[*HealthCheck],
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(sampled)
    def try_one(command: tuple[tuple[str, ...], list[str]]) -> None:
        shutil.rmtree(train_command.folder / "run", ignore_errors=True)
        check(*command)

    try_one()
    assert train_command.runs > examples / 20, "some configs must be valid"


def test_random_command_is_a_run_or_a_user_error(train_command: TrainCommand) -> None:
    try_many(train_command, train_command.command, commands(groups=True), COMMANDS)


def test_random_config_is_a_run_or_a_user_error(train_command: TrainCommand) -> None:
    try_many(train_command, train_command.config, commands(), CONFIGS)


@pytest.mark.parametrize("weight", ["1e999999999", "inf", "nan", "1/0", "x"])
def test_wrong_foreground_weight_is_refused_quickly(weight: str) -> None:
    from attnmosaic.data.weights import FixedWeights

    with (
        bounded(20),
        pytest.raises(UserError, match=r"foreground weight: got .*, needs "),
    ):
        FixedWeights(weight)
