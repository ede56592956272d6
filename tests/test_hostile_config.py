"""Any config at all is a run or a slip told in one line: overrides drawn at random through the train command."""

import re
import string
from pathlib import Path
from typing import Any

import pytest
from cli import Cli
from conftest import SMALL, SMALL_NUMBERS
from hostile import bounded
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from attnmosaic.cli import _keys
from attnmosaic.config import conf_dir

FEW, MANY = 25, 400
"""Commands tried by every run of the tests, and by ``make test-faults``."""

BASES = (
    ("data=gaussian", *SMALL),
    ("experiment=gaussian_type5", "optimizer=adam", "scheduler=cosine", *SMALL),
    ("experiment=stagewise", "data=digits", *SMALL),
    ("experiment=weighted_average", "data=digits", "data.foreground=[1,2,3]", *SMALL),
    ("experiment=mnist_sum", *SMALL_NUMBERS),
)


def _known() -> list[str]:
    """Returns every key of a config of each kind."""
    from hydra import compose, initialize_config_dir

    from attnmosaic.config import register

    register()
    found: set[str] = set()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for base in BASES:
            found.update(_keys(compose("train", [*base])))
    # Where a run writes is the user's own choice, and the test's.
    return sorted(key for key in found if not key.startswith(("run_dir", "paths")) and not key.endswith(("folder", "dirpath")))


KEYS = _known()
GROUPS = ("data", "model", "schedule", "objective", "optimizer", "scheduler", "trainer", "logger", "callbacks", "experiment",
          "scale", "debug", "data/weights")  # fmt: skip

NUMBERS = st.one_of(
    st.integers(-3, 70).map(str),
    st.sampled_from(["1e3", "1e30", "-1e400", "nan", "inf", "-inf", "0.0", "-0.5", "1e-320", "0x10", "1_000", "2147483647"]),
    st.integers(0, 40).map(lambda n: str(10**n)),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
)
WORDS = st.one_of(
    st.sampled_from(["null", "true", "false", "''", "abc", "???", "NULL", "~", "what_only", "torch.nn.ReLU", "high", "'[1,2]'",
                     "${lr.what}", "${oc.env:HOME}", "${oc.env:NO_SUCH}", "${nothing}", "${hydra:job.num}", "${row:${name}}",
                     "${name}", "'${', '", "${model}", "${run_dir}", "${oc.create:[1]}", "../../x", "/dev/null", "a b", "%s",
                     "{x}", "torch.nn.Linear", "os.getcwd", "attnmosaic.data.weights.RandomPatch"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12).map(lambda t: "'" + t.replace("'", "") + "'"),
    st.text(string.printable.replace("\0", ""), max_size=8),
)  # fmt: skip
PLAIN = st.one_of(NUMBERS, WORDS)
VALUES = st.one_of(
    PLAIN,
    st.lists(PLAIN, max_size=3).map(lambda v: f"[{','.join(v)}]"),
    st.lists(st.lists(NUMBERS, max_size=3).map(lambda v: f"[{','.join(v)}]"), max_size=3).map(lambda v: f"[{','.join(v)}]"),
    st.dictionaries(st.sampled_from(["a", "_target_", "split", "weights"]), PLAIN, max_size=2).map(
        lambda d: "{" + ",".join(f"{k}:{v}" for k, v in d.items()) + "}"
    ),
)
OVERRIDES = st.one_of(
    st.tuples(st.sampled_from(KEYS), VALUES).map("=".join),
    st.tuples(st.sampled_from(KEYS), VALUES).map("=".join),
    st.tuples(st.sampled_from(KEYS), VALUES).map("=".join),
    st.tuples(st.sampled_from(KEYS), st.sampled_from(["new", "_target_", "lr", "a.b", "_partial_", "_args_"]), VALUES).map(
        lambda parts: f"+{parts[0]}.{parts[1]}={parts[2]}"
    ),
    st.sampled_from(KEYS).map("~{}".format),
    st.sampled_from(KEYS).map("++{}=1".format),
    st.tuples(st.sampled_from(GROUPS), st.sampled_from(["none", "null", "mlp", "cnn", "digits", "joint", "x", "[a,b]", "''"])).map(
        "=".join
    ),
    st.text(string.printable.replace("\0", ""), max_size=12).filter(lambda t: not t.startswith("-")),
)
COMMANDS = st.tuples(st.sampled_from(BASES), st.lists(OVERRIDES, min_size=1, max_size=2))


class Door:
    """The train command up to the first step of training: everything is built, nothing is trained."""

    def __init__(self, cli: Cli, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        import pytorch_lightning as pl

        import attnmosaic.training.outcome as outcome
        from attnmosaic.config import metrics_of

        self.cli, self.folder, self.built = cli, folder, 0

        def fit(trainer: pl.Trainer, module: Any, **_: Any) -> None:
            self.built += 1

        def finish(config: Any, trainer: Any, module: Any) -> dict[str, float]:
            return {f"{split}/{name}": 0.0 for split in ("train", "test", "held_out") for name in metrics_of(config)}

        monkeypatch.setattr(pl.Trainer, "fit", fit)
        monkeypatch.setattr(pl.Trainer, "validate", lambda *_, **__: None)
        monkeypatch.setattr(outcome, "finish_run", finish)
        monkeypatch.setattr(outcome, "final_table", lambda *_: "")

    def check(self, *overrides: str) -> None:
        self.tried = overrides
        where = () if any("name=" in override for override in overrides) else (f"hydra.run.dir={self.folder}/run",)
        with bounded():
            code, out, err = self.cli("train", *overrides, *where)
        told = [line for line in err.splitlines() if not re.match(r"\[?\d|.*Warning", line)]
        if code == 0:
            assert "Traceback" not in out + err
            return
        assert code == 2, err
        assert err.count("\n") == 1, err
        assert err.startswith("error: "), told
        assert err.removesuffix("\n").isprintable(), err
        assert len(err) < 3000, err


@pytest.fixture
def door(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Door:
    return Door(cli, monkeypatch, tmp_path)


def try_many(door: Door, examples: int) -> None:
    import shutil

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=[*HealthCheck],
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(COMMANDS)
    def one(command: tuple[tuple[str, ...], list[str]]) -> None:
        shutil.rmtree(door.folder / "run", ignore_errors=True)
        base, overrides = command
        door.check(*base, *overrides)

    one()
    assert door.built > examples / 20, "some are to be runs"


def test_random_commands(door: Door) -> None:
    try_many(door, FEW)


@pytest.mark.faults
def test_many_random_commands(door: Door) -> None:
    try_many(door, MANY)
