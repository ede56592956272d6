"""Foreground and background classes by name or index, and how user errors are reported."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from attnmosaic.config.classes import class_indices, split_classes
from attnmosaic.core.errors import UserError

ANIMALS = ("ant", "bee", "cat", "dog", "eel")
NUMERALS = ("9", "8", "7", "6")  # each named otherwise than its index


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [(["dog", "ant"], [3, 0]), ([4, 1], [4, 1]), (["eel", 0], [4, 0]), ([], [])],
    ids=["names", "indices", "mixed", "none"],
)
def test_names_and_indices_in_the_order_given(wanted: list[str | int], indices: list[int]) -> None:
    assert class_indices(wanted, ANIMALS, "data.foreground") == indices


def test_a_name_that_looks_like_an_index() -> None:
    assert class_indices(["7", "8"], NUMERALS, "data.foreground") == [2, 1]
    with pytest.raises(UserError, match="2, which may be a class's name or its index"):
        class_indices([2, 1], NUMERALS, "data.foreground")
    with pytest.raises(UserError, match=r"7, which may be .*\[\"7\"\]"):
        class_indices([7], NUMERALS, "data.foreground")
    with pytest.raises(UserError, match="class '1'"):
        class_indices(["1"], NUMERALS, "data.foreground")


@pytest.mark.parametrize("index", [5, -1])
def test_index_out_of_range(index: int) -> None:
    with pytest.raises(UserError) as caught:
        class_indices([index], ANIMALS, "data.background")
    assert str(caught.value).startswith(f"data.background: got class index {index}, ")


def test_unknown_name_shows_the_classes_and_suggests_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        class_indices(["Doge"], ANIMALS, "data.foreground")
    message = str(caught.value)
    assert "data.foreground" in message
    assert "'Doge'" in message
    assert ", ".join(ANIMALS) in message
    assert message.endswith("did you mean dog?")


def test_unlike_name_suggests_nothing_and_many_classes_are_cut_short() -> None:
    with pytest.raises(UserError) as caught:
        class_indices(["?"], [f"class_{i}" for i in range(1000)], "data.foreground")
    assert "did you mean" not in str(caught.value)
    assert "class_999" not in str(caught.value)
    assert "class_0" in str(caught.value)


@pytest.mark.parametrize("wanted", [["ant", "ant"], [1, 1], ["bee", 1]], ids=["name", "index", "both"])
def test_named_twice(wanted: list[str | int]) -> None:
    with pytest.raises(UserError, match=r"data\.foreground: .*twice"):
        class_indices(wanted, ANIMALS, "data.foreground")


def test_split() -> None:
    assert split_classes(["dog", "ant"], None, ANIMALS) == ([3, 0], [1, 2, 4])
    assert split_classes(["dog", "ant"], ["eel", "bee"], ANIMALS) == ([3, 0], [4, 1])


@pytest.mark.parametrize(
    ("foreground", "background", "said"),
    [
        ([], None, r"data\.foreground: got \[\], needs at least two.*data\.foreground=\[\"ant\",\"bee\"\]"),
        (["cat"], None, r"data\.foreground: got \['cat'\], needs at least two"),
        (["cat", "dog"], [], r"data\.background: got no class"),
        (list(ANIMALS), None, r"data\.background: got no class"),
        (["cat", "dog"], ["ant", 3], r"data\.background: dog is also in data\.foreground"),
        (["cat", "dog"], ["ant", "ant"], r"data\.background: .*twice"),
        (["cat", "dog"], ["aunt"], r"data\.background: got class 'aunt'.*did you mean ant"),
    ],
    ids=["no_foreground", "one_foreground", "no_background", "nothing_left", "overlap", "twice", "unknown"],
)
def test_split_refuses(foreground: list[str | int], background: list[str | int] | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        split_classes(foreground, background, ANIMALS)


READ_AS = [
    # What was typed, in a config file or on the command line; the classes; what to type instead.
    ("[true,false,unsure]", "cli", ["false", "other", "true", "unsure"], '["true","false","unsure"]'),
    ("[TRUE,a]", "cli", ["TRUE", "a", "b"], '["TRUE","a"]'),
    ("[yes,no]", "file", ["maybe", "no", "yes"], '["yes","no"]'),
    ("[null,a]", "cli", ["a", "b", "null"], '["null","a"]'),
    ("[~,a]", "file", ["a", "b", "~"], '["~","a"]'),
    ("[01,02]", "file", ["01", "02", "03"], '["01","02"]'),
    ("[010,011]", "file", ["010", "011", "9"], '["010","011"]'),
    ("[0x10,a]", "file", ["0x10", "a", "b"], '["0x10","a"]'),
    ("[1_000,a]", "cli", ["1_000", "a", "b"], '["1_000","a"]'),
    ("[1:30,a]", "file", ["1:30", "a", "b"], '["1:30","a"]'),
    ("[1.0,2.0]", "cli", ["1.0", "2.0", "3.0"], '["1.0","2.0"]'),
    ("[1e3,a]", "cli", ["1e3", "a", "b"], '["1e3","a"]'),
    ("[inf,nan]", "cli", ["a", "inf", "nan"], '["inf","nan"]'),
    ("[2024,2025]", "cli", ["2023", "2024", "2025"], '["2024","2025"]'),
    ("[1,10]", "cli", ["1", "10", "2", "3"], '["1","10"]'),
    ("[1.5,b]", "cli", ["a", "b", "c"], '["1.5","b"]'),
]


def _typed(text: str, where: str) -> list[Any]:
    if where == "file":
        return OmegaConf.to_container(OmegaConf.create(f"classes: {text}"))["classes"]  # type: ignore[call-overload]
    return OverridesParser.create().parse_override(f"classes={text}").value()  # type: ignore[return-value]


@pytest.mark.parametrize(("text", "where", "classes", "instead"), READ_AS, ids=[f"{t}, {w}" for t, w, *_ in READ_AS])
def test_a_name_that_was_read_as_something_else(text: str, where: str, classes: list[str], instead: str) -> None:
    """The command to type instead has every name in quotes."""
    with pytest.raises(UserError) as caught:
        class_indices(_typed(text, where), classes, "data.background")
    assert str(caught.value).startswith("data.background: got ")
    assert str(caught.value).endswith(f"'data.background={instead}'")
    names = _typed(instead, where)
    if {*names} <= {*classes}:
        assert [classes[i] for i in class_indices(names, classes, "data.background")] == names


@pytest.mark.parametrize("text", ["[01,02]", "[yes,no]", "[2024-01-01,0x10]", "[010,off]"])
def test_a_name_that_the_command_line_reads_as_a_name(text: str) -> None:
    names = text[1:-1].split(",")
    assert class_indices(_typed(text, "cli"), names, "data.foreground") == [0, 1]


@pytest.mark.parametrize(
    "classes",
    [[str(i) for i in range(10)], [f"{i} - digit" for i in range(10)], ["ant", "true", "1.5", "nan"] * 3],
    ids=["digits", "mnist", "no_whole_numbers"],
)
def test_an_index_where_no_name_says_otherwise(classes: list[str]) -> None:
    assert class_indices([7, 8], classes, "data.foreground") == [7, 8]


def test_a_suggestion_is_in_quotes_where_it_needs_them() -> None:
    with pytest.raises(UserError, match=r"type for example 'data\.foreground=\[\"false\",\"other\"\]'"):
        split_classes(["true"], None, ["false", "other", "true"])
