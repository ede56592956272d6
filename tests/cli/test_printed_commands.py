"""Every command that is printed works when pasted: a shell and Hydra's parser read it back as what was meant."""

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
from attnmosaic.core.quoting import as_override, command, in_grammar, in_shell, path_word, typed_override
from attnmosaic.runs.run import CONFIG, Run
from attnmosaic.sweeps.hydra_callback import typed_command

NAMES = (
    "eq=1", "r/ünï", "a b", "a  b", "it's", "[x]", "[x", 'quo"te', "do$lar", "{b}", "{a:b}", "${x}", r"\${x}",
    r"back\slash", "end\\", "comma,s", "hash#tag", "null", "true", "1e3", "007", " lead", "trail ", "~", "-x", "!x",
    "f(x)", "glob(*)", "a;b&c|d<e>", "`id`", "猫",
)  # fmt: skip
PATHS = ("r/ünï", "[x", "[x]", 'quo"te\\', "a b")

PARSER = OverridesParser.create()


def taken(text: str) -> list[str]:
    """Returns the words that a command receives."""
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {text}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def value_of(word: str) -> Any:
    """Returns what an override gives its key, as a config has it."""
    read = PARSER.parse_override(word)
    return OmegaConf.to_container(OmegaConf.create({"key": read.value()}), resolve=True)["key"]  # type: ignore[index,call-overload]


def test_a_shell_takes_what_was_meant() -> None:
    printed = " ".join(typed_override("data.root", name) for name in NAMES)
    assert one_line(printed) == printed  # as part of an error
    assert [value_of(word) for word in taken(printed)] == [*NAMES]


NASTY = st.text(st.sampled_from("ab1e=,:;. \\'\"`$#~!*?&|<>()[]{}ü猫-_/+%@"), max_size=10) | st.text(max_size=10)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NASTY,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), values),
    max_leaves=5,
)


@given(PLAIN)
@settings(deadline=None, max_examples=100)
def test_any_value_is_read_back(value: Any) -> None:
    word = as_override("+key", value)
    if word.isprintable():
        assert shlex.split(in_shell(word)) == [word]
    assert value_of(word) == value


@given(st.lists(NASTY, min_size=1, max_size=3))
@settings(deadline=None, max_examples=100)
def test_a_sweep_reads_any_texts_back(texts: list[str]) -> None:
    """Hydra writes each job's override anew from what it has read."""
    (word,) = shlex.split(shlex.quote(f"key={','.join(map(in_grammar, texts))}"))
    read = PARSER.parse_override(word)
    values = [*read.sweep_string_iterator()] if read.is_sweep_override() else [read.get_value_element_as_str()]
    assert [value_of(f"key={value}") for value in values] == texts


@pytest.mark.parametrize("plain", ["outputs/gaussian/2024-01-01_10-00-00-000001", "mine", "a.b.C", "a+b", "../x-1"])
def test_no_quotes_without_need(plain: str) -> None:
    assert typed_override("hydra.run.dir", plain) == f"hydra.run.dir={plain}"


@pytest.mark.parametrize(("key", "file"), [("hydra.run.dir", CONFIG), ("hydra.sweep.dir", "sweep.json")])
def test_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, file: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Path(name).mkdir(parents=True)
        Path(name, file).touch()
        assert value_of(offered_after_a_stop(key, name)) == name


def offered_after_a_stop(key: str, folder: str) -> str:
    line = how_to_resume(key, folder, True)
    (word,) = shlex.split(line.removeprefix("; the same command with ").removesuffix(" resumes"))
    return word


def test_hydra_composes_it(tmp_path: Path) -> None:
    folder = tmp_path / "eq=1, it's [é]"
    folder.mkdir()
    (folder / CONFIG).touch()
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        given = [offered_after_a_stop(key, str(folder)) for key in ("hydra.run.dir", "hydra.sweep.dir")]
        config = compose("train", given, return_hydra_config=True)
    assert config.hydra.run.dir == config.hydra.sweep.dir == str(folder)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What is answered to each path as the folder of images, and then to the override that was offered."""
    folder = tmp_path_factory.mktemp("names")
    for image in (folder / name / label / "image.png" for name in PATHS for label in "ab"):
        image.parent.mkdir(parents=True)
        image.touch()
    other = ("data=image_folder", "data.foreground=[a,zebra]")
    first = [err for _, err, _ in answers("train", [(*other, f"data.root={name}") for name in PATHS], folder)]
    offered = [shlex.split(err.rpartition("; as text: ")[2]) if "; as text: " in err else [] for err in first]
    then = [err for _, err, _ in answers("train", [(*other, *words) for words in offered], folder)]
    return dict(zip(PATHS, zip(first, then, strict=True), strict=True))


@pytest.mark.runs
@pytest.mark.parametrize("name", PATHS, ids=ascii)
def test_a_path_that_is_no_override(answered: dict[str, tuple[str, str]], name: str) -> None:
    """Only who has listed the folder can tell its classes."""
    first, then = answered[name]
    assert ("quote lists" in first) == (name == "[x")
    if name == "[x]":  # an override, of something else
        assert "error: data.root: got" in first
        assert """type 'data.root="DIR"'""" in first
    else:
        assert "class 'zebra', allowed: a, b" in (first if name == "a b" else then)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["data.root=${name}/ü", "data=image_folder"], r'data.root="${name}/ü"'),  # an interpolation that there is
        (["data=image_folder", "paths.data=ü", "data.root=ü/ü"], 'paths.data="ü"'),
        (["+data.mine=a=b"], '+data.mine="a=b"'),
        (["data.root=ü", "lr.wat=1"], 'data.root="ü"'),  # also wrong, which is another line's
        (["lr.what=ü"], None),  # is no text
        (["lr.what=1,2"], None),
        (["experiment=gaussian,stagewise"], None),
    ],
)
def test_what_is_advised(monkeypatch: pytest.MonkeyPatch, given: list[str], word: str | None) -> None:
    """An override is offered where it would do, and no other."""
    register()
    monkeypatch.setattr(sys, "argv", ["train"])
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            compose("train", given)
    except Exception as error:
        _, _, advised = explain_error(error, given).partition("; as text: ")
    assert shlex.split(advised) == ([word] if word else [])


@pytest.mark.parametrize(("door", "key"), [("train", "experiment"), ("predict", "image"), ("explain", "images")])
def test_a_word_without_a_key(monkeypatch: pytest.MonkeyPatch, door: str, key: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"attnmosaic/{door}.py"])
    with pytest.raises(OverrideParseException) as caught:
        PARSER.parse_overrides(["mine, ü"])
    assert shlex.split(explain_error(caught.value, []).removesuffix(" say"))[-1] == f'{key}="mine, ü"'


@pytest.mark.runs
def test_what_a_sweep_prints(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is the one that was named; its report can be made, and its command given again."""
    name = "-r/ünï=1, it's [a  b]"

    def train(config: Any) -> dict[str, float]:
        Path(config.run_dir, CONFIG).write_text(OmegaConf.to_yaml(resolve(config)), encoding="utf-8")
        return {config.optimized_metric: 0.5}

    monkeypatch.setattr("attnmosaic.train.train", train)
    monkeypatch.chdir(tmp_path)
    given = ("scale=smoke", "seed.all=0,1", as_override("hydra.sweep.dir", name), "-m")
    code, out, err = cli("train", *given)
    assert code == 0, err
    assert {path.name for path in Path(name).iterdir()} >= {"0", "1", "sweep.json"}
    (again,) = json.loads(Path(name, "sweep.json").read_text(encoding="utf-8"))["commands"]
    assert shlex.split(again) == ["python", "-m", "attnmosaic.train", *given]
    lines = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    *_, where = shlex.split(lines["TensorBoard"])
    assert Path(where) == Path(name)
    *program, where = shlex.split(lines["report"])
    assert program == ["python", "-m", "attnmosaic.report"]
    report.main([where])
    assert Path(name, "report.html").exists()
    collect.main([where])


@pytest.mark.parametrize("name", ["-x", "--help", "~", "~root", "it's"])
def test_a_path_is_no_option(name: str) -> None:
    word = path_word(name)
    assert not word.startswith(("-", "~"))
    assert Path(word) == Path(name)


def test_the_command_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a report, and in a sweep's plan."""
    words = ["-m", "lr.what=tag(log, interval(0.1, 1))", "~callbacks.x", *(as_override("k", name) for name in NAMES)]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert taken(typed_command().removeprefix("python -m attnmosaic.train ")) == words
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(words))
    shown = Run(tmp_path).command
    assert shown is not None
    assert taken(shown.removeprefix("python -m attnmosaic.train ")) == words


@pytest.mark.parametrize("name", ["ünï", "it's", "a b", "no", "1e3", "x,y", 'quo"te', "${x}"])
def test_classes_that_are_offered(name: str) -> None:
    with pytest.raises(UserError) as caught:
        split_classes(["true"], None, [name, "other", "true"])
    (word,) = shlex.split(str(caught.value).rpartition("type for example ")[2])
    assert value_of(word) == [name, "other"]


def test_an_option_that_is_offered() -> None:
    line = str(not_among("experiment", "my exq", ["my exp", "other"]))
    assert shlex.split(line.partition("did you mean ")[2].removesuffix("?")) == ["experiment=my exp"]
    assert (
        value_of(shlex.split(str(not_among("k", "e=2", ["e=1"])).partition("mean ")[2].removesuffix("?"))[0]) == "e=1"
    )


@pytest.mark.parametrize("name", ["eq=1", "it's", "r/ünï/last=1.ckpt"])
def test_a_network_that_explain_was_given(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from attnmosaic.inference import restore as restored

    saved = {"hyper_parameters": {"config": {"model": {"network": {}}}}}
    monkeypatch.setattr(restored, "read_saved", lambda path: saved)
    monkeypatch.setattr(restored, "networks_of", lambda config: ("network",))
    with pytest.raises(UserError) as caught:
        restored.restore_pair(name)
    *program, word, _, _ = shlex.split(str(caught.value).rpartition("; type ")[2])
    assert program == ["python", "-m", "attnmosaic.predict"]
    assert value_of(word) == name


def test_a_search_that_is_not_done() -> None:
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
    ("given", "key", "before", "offered"),
    [
        (["+optimizer.what.fused=false"], "optimizer.what.fused", {"optimizer.what.fused": None}, "{key}=null"),
        (["+optimizer.what.fused=false"], "optimizer.what.fused", {}, "~{key}"),
        ([], "optimizer.what.fused", {"optimizer.what.fused": False}, "+{key}=False"),
        ([], "optimizer.what.own", {"optimizer.what.own": ["a=1", "b c"]}, '+{key}=["a=1",b c]'),
    ],
)
def test_a_setting_as_it_was(config: Any, given: list[str], key: str, before: dict[str, Any], offered: str) -> None:
    """Composed with what is offered, it is again as in the checkpoint: null, missing, there."""
    from attnmosaic.training.resume import _override_to_restore

    (word,) = shlex.split(_override_to_restore(key, before, flat(OmegaConf.to_container(config(*given), resolve=True))))
    assert word == offered.format(key=key)
    now = flat(OmegaConf.to_container(config(*given, word), resolve=True))
    assert (key in now, now.get(key)) == (key in before, before.get(key))


def test_text_that_would_be_an_interpolation() -> None:
    """No saved config has one, so no run may."""
    with pytest.raises(UserError, match=r"data\.root: got '\$\{x\}'"):
        resolve(OmegaConf.create({"data": {"root": r"\${x}"}}))


def test_a_command_with_its_words() -> None:
    assert command("report", path_word("-a b")) == "python -m attnmosaic.report './-a b'"
