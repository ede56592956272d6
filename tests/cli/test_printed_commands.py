"""Printed commands work when they are pasted: a shell and Hydra's parser read back the original values."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from helpers.commands import Cli
from helpers.fresh_process import answers
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from attnmosaic import collect, report
from attnmosaic.cli.command import how_to_resume
from attnmosaic.cli.hydra_errors import explain_error
from attnmosaic.config.classes import split_classes
from attnmosaic.config.resolution import flat, resolve
from attnmosaic.config.schema import conf_dir, register
from attnmosaic.core.errors import UserError, not_among, one_line
from attnmosaic.core.quoting import as_override, command, in_hydra_grammar, in_shell, path_word, typed_override
from attnmosaic.runs.run import CONFIG, Run
from attnmosaic.sweeps.hydra_callback import typed_command

NAMES = (
    "eq=1", "r/ünï", "a b", "a  b", "it's", "[x]", "[x", 'quo"te', "do$lar", "{b}", "{a:b}", "${x}", r"\${x}",
    r"back\slash", "end\\", "comma,s", "hash#tag", "null", "true", "1e3", "007", " lead", "trail ", "~", "-x", "!x",
    "f(x)", "glob(*)", "a;b&c|d<e>", "`id`", "猫",
)  # fmt: skip
PATHS = ("r/ünï", "[x", "[x]", 'quo"te\\', "a b")

PARSER = OverridesParser.create()
AS_TEXT = "; if the value is a text, type "


def words_of(text: str) -> list[str]:
    """Returns the words that a command receives from a shell line."""
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {text}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def value_of(word: str) -> Any:
    """Returns the value that an override sets in a config."""
    override = PARSER.parse_override(word)
    return OmegaConf.to_container(OmegaConf.create({"key": override.value()}), resolve=True)["key"]  # type: ignore[index,call-overload]


def test_a_shell_reads_back_printed_overrides() -> None:
    printed = " ".join(typed_override("data.root", name) for name in NAMES)
    assert one_line(printed) == printed, "errors are printed on one line"
    assert [value_of(word) for word in words_of(printed)] == [*NAMES]


SPECIAL = st.text(st.sampled_from("ab1e=,:;. \\'\"`$#~!*?&|<>()[]{}ü猫-_/+%@"), max_size=10) | st.text(max_size=10)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | SPECIAL,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), values),
    max_leaves=5,
)


@given(PLAIN)
@settings(deadline=None, max_examples=100)
def test_hydra_reads_back_any_value(value: Any) -> None:
    word = as_override("+key", value)
    if word.isprintable():
        assert shlex.split(in_shell(word)) == [word]
    assert value_of(word) == value


@given(st.lists(SPECIAL, min_size=1, max_size=3))
@settings(deadline=None, max_examples=100)
def test_a_sweep_reads_back_any_texts(texts: list[str]) -> None:
    """Hydra parses the swept values and writes a new override for each job."""
    (word,) = shlex.split(shlex.quote(f"key={','.join(map(in_hydra_grammar, texts))}"))
    swept = PARSER.parse_override(word)
    values = [*swept.sweep_string_iterator()] if swept.is_sweep_override() else [swept.get_value_element_as_str()]
    assert [value_of(f"key={value}") for value in values] == texts


@pytest.mark.parametrize("plain", ["outputs/gaussian/2024-01-01_10-00-00-000001", "mine", "a.b.C", "a+b", "../x-1"])
def test_plain_values_are_not_quoted(plain: str) -> None:
    assert typed_override("hydra.run.dir", plain) == f"hydra.run.dir={plain}"


@pytest.mark.parametrize(("key", "file"), [("hydra.run.dir", CONFIG), ("hydra.sweep.dir", "sweep.json")])
def test_advice_after_a_signal_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Path(name).mkdir(parents=True)
        Path(name, file).touch()
        assert value_of(advised_override(key, name)) == name


def advised_override(key: str, folder: str) -> str:
    line = how_to_resume(key, folder, True)
    (word,) = shlex.split(line.partition("the same command with ")[2])
    return word


def test_hydra_composes_the_advised_overrides(tmp_path: Path) -> None:
    folder = tmp_path / "eq=1, it's [é]"
    folder.mkdir()
    (folder / CONFIG).touch()
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        advised = [advised_override(key, str(folder)) for key in ("hydra.run.dir", "hydra.sweep.dir")]
        config = compose("train", advised, return_hydra_config=True)
    assert config.hydra.run.dir == config.hydra.sweep.dir == str(folder)


@pytest.fixture(scope="module")
def errors_by_path(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Returns for each path as ``data.root`` the error, and the error with the override that the first one advises."""
    folder = tmp_path_factory.mktemp("names")
    for image in (folder / name / label / "image.png" for name in PATHS for label in "ab"):
        image.parent.mkdir(parents=True)
        image.touch()
    other = ("data=image_folder", "data.foreground=[a,zebra]")
    first = [err for _, err, _ in answers("train", [(*other, f"data.root={name}") for name in PATHS], folder)]
    advised = [shlex.split(err.rpartition(AS_TEXT)[2]) if AS_TEXT in err else [] for err in first]
    second = [err for _, err, _ in answers("train", [(*other, *words) for words in advised], folder)]
    return dict(zip(PATHS, zip(first, second, strict=True), strict=True))


@pytest.mark.runs
@pytest.mark.parametrize("name", PATHS, ids=ascii)
def test_advised_override_for_a_special_path_reads_its_folder(
    errors_by_path: dict[str, tuple[str, str]], name: str
) -> None:
    """The error then lists the classes in the folder."""
    first, second = errors_by_path[name]
    assert ("quote lists" in first) == (name == "[x")
    if name == "[x]":  # a valid override, but with a list as its value
        assert "error: data.root: got" in first
        assert """type 'data.root="DIR"'""" in first
    else:
        assert "class 'zebra', allowed: a, b" in (first if name == "a b" else second)


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["data.root=${name}/ü", "data=image_folder"], r'data.root="${name}/ü"'),  # a valid interpolation
        (["data=image_folder", "paths.data=ü", "data.root=ü/ü"], 'paths.data="ü"'),
        (["+data.mine=a=b"], '+data.mine="a=b"'),
        (["data.root=ü", "lr.wat=1"], 'data.root="ü"'),  # the second override is wrong, too
        (["lr.what=ü"], None),  # a number is required
        (["lr.what=1,2"], None),
        (["experiment=gaussian,stagewise"], None),
    ],
)
def test_quoted_override_is_advised_only_if_it_works(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], word: str | None
) -> None:
    register()
    monkeypatch.setattr(sys, "argv", ["train"])
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            compose("train", overrides)
    except Exception as error:
        _, _, advised = explain_error(error, overrides).partition(AS_TEXT)
    assert shlex.split(advised) == ([word] if word else [])


@pytest.mark.parametrize(("program", "key"), [("train", "experiment"), ("predict", "image"), ("explain", "images")])
def test_word_without_a_key_gets_the_likely_key(monkeypatch: pytest.MonkeyPatch, program: str, key: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"attnmosaic/{program}.py"])
    with pytest.raises(OverrideParseException) as caught:
        PARSER.parse_overrides(["mine, ü"])
    assert shlex.split(explain_error(caught.value, []))[-1] == f'{key}="mine, ü"'


@pytest.mark.runs
def test_commands_that_a_sweep_prints_work(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep is in the folder with the special name; the printed commands and the saved command are valid."""
    name = "-r/ünï=1, it's [a  b]"

    def train(config: Any) -> dict[str, float]:
        Path(config.run_dir, CONFIG).write_text(OmegaConf.to_yaml(resolve(config)), encoding="utf-8")
        return {config.optimized_metric: 0.5}

    monkeypatch.setattr("attnmosaic.train.train", train)
    monkeypatch.chdir(tmp_path)
    arguments = ("scale=smoke", "seed.all=0,1", as_override("hydra.sweep.dir", name), "-m")
    code, out, err = cli("train", *arguments)
    assert code == 0, err
    assert {path.name for path in Path(name).iterdir()} >= {"0", "1", "sweep.json"}
    (saved,) = json.loads(Path(name, "sweep.json").read_text(encoding="utf-8"))["commands"]
    assert shlex.split(saved) == ["python", "-m", "attnmosaic.train", *arguments]
    lines = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    *_, folder = shlex.split(lines["TensorBoard"])
    assert Path(folder) == Path(name)
    *program, folder = shlex.split(lines["report"])
    assert program == ["python", "-m", "attnmosaic.report"]
    report.main([folder])
    assert Path(name, "report.html").exists()
    collect.main([folder])


@pytest.mark.parametrize("name", ["-x", "--help", "~", "~root", "it's"])
def test_path_word_is_not_an_option_or_home_folder(name: str) -> None:
    word = path_word(name)
    assert not word.startswith(("-", "~"))
    assert Path(word) == Path(name)


def test_shown_command_of_a_run_is_the_typed_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a report and in the plan of a sweep."""
    words = ["-m", "lr.what=tag(log, interval(0.1, 1))", "~callbacks.x", *(as_override("k", name) for name in NAMES)]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert words_of(typed_command().removeprefix("python -m attnmosaic.train ")) == words
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(words))
    shown = Run(tmp_path).command
    assert shown is not None
    assert words_of(shown.removeprefix("python -m attnmosaic.train ")) == words


@pytest.mark.parametrize("name", ["ünï", "it's", "a b", "no", "1e3", "x,y", 'quo"te', "${x}"])
def test_advised_foreground_has_the_names_of_the_classes(name: str) -> None:
    with pytest.raises(UserError) as caught:
        split_classes(["true"], None, [name, "other", "true"])
    (word,) = shlex.split(str(caught.value).rpartition("type for example ")[2])
    assert value_of(word) == [name, "other"]


def test_suggested_option_is_quoted() -> None:
    line = str(not_among("experiment", "my exq", ["my exp", "other"]))
    assert shlex.split(line.partition("did you mean ")[2].removesuffix("?")) == ["experiment=my exp"]
    assert (
        value_of(shlex.split(str(not_among("k", "e=2", ["e=1"])).partition("mean ")[2].removesuffix("?"))[0]) == "e=1"
    )


@pytest.mark.parametrize("name", ["eq=1", "it's", "r/ünï/last=1.ckpt"])
def test_explain_with_a_two_output_network_advises_predict(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from attnmosaic.inference import restore as restored

    saved = {"hyper_parameters": {"config": {"model": {"network": {}}}}}
    monkeypatch.setattr(restored, "read_saved", lambda path: saved)
    monkeypatch.setattr(restored, "networks_of", lambda config: ("network",))
    with pytest.raises(UserError) as caught:
        restored.restore_pair(name)
    *program, word, _, _ = shlex.split(str(caught.value).rpartition("; type ")[2])
    assert program == ["python", "-m", "attnmosaic.predict"]
    assert value_of(word) == name


def test_summary_of_an_unfinished_search_names_its_folder() -> None:
    from attnmosaic.search.summary import summarize

    search: Any = SimpleNamespace(
        study=SimpleNamespace(get_trials=lambda deepcopy: []),
        options=SimpleNamespace(direction="maximize", n_trials=3),
        metric="test/accuracy",
        space=SimpleNamespace(searched={}),
        folder=Path("eq=1/it's"),
    )
    *_, word = shlex.split(summarize(search)[-1])
    assert word == """hydra.sweep.dir="eq=1/it's\""""


@pytest.mark.parametrize(
    ("overrides", "key", "before", "advised"),
    [
        (["+optimizer.what.fused=false"], "optimizer.what.fused", {"optimizer.what.fused": None}, "{key}=null"),
        (["+optimizer.what.fused=false"], "optimizer.what.fused", {}, "~{key}"),
        ([], "optimizer.what.fused", {"optimizer.what.fused": False}, "+{key}=False"),
        ([], "optimizer.what.own", {"optimizer.what.own": ["a=1", "b c"]}, '+{key}=["a=1",b c]'),
    ],
)
def test_advised_override_restores_the_setting_of_the_checkpoint(
    config: Any, overrides: list[str], key: str, before: dict[str, Any], advised: str
) -> None:
    """A value of null, a missing key, or another value."""
    from attnmosaic.training.resume import _override_to_restore

    (word,) = shlex.split(
        _override_to_restore(key, before, flat(OmegaConf.to_container(config(*overrides), resolve=True)))
    )
    assert word == advised.format(key=key)
    now = flat(OmegaConf.to_container(config(*overrides, word), resolve=True))
    assert (key in now, now.get(key)) == (key in before, before.get(key))


def test_escaped_interpolation_is_refused() -> None:
    """In a saved config it would be read as an interpolation."""
    with pytest.raises(UserError, match=r"data\.root: got '\$\{x\}'"):
        resolve(OmegaConf.create({"data": {"root": r"\${x}"}}))


def test_command_quotes_its_words() -> None:
    assert command("report", path_word("-a b")) == "python -m attnmosaic.report './-a b'"
