"""Foreground and background classes by name or index, and the messages for user errors."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from attnmosaic.config.classes import class_indices, split_classes
from attnmosaic.core.errors import UserError

ANIMALS = ("ant", "bee", "cat", "dog", "eel")
NUMERALS = ("9", "8", "7", "6")  # no name is equal to its index


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [(["dog", "ant"], [3, 0]), ([4, 1], [4, 1]), (["eel", 0], [4, 0]), ([], [])],
    ids=["names", "indices", "mixed", "none"],
)
def test_indices_keep_the_order_of_the_list(wanted: list[str | int], indices: list[int]) -> None:
    assert class_indices(wanted, ANIMALS, "data.foreground") == indices


def test_names_that_look_like_indices_need_quotes() -> None:
    assert class_indices(["7", "8"], NUMERALS, "data.foreground") == [2, 1]
    with pytest.raises(UserError, match=r"2, .*ambiguous"):
        class_indices([2, 1], NUMERALS, "data.foreground")
    with pytest.raises(UserError, match=r"7, .*ambiguous.*\[\"7\"\]"):
        class_indices([7], NUMERALS, "data.foreground")
    with pytest.raises(UserError, match="class '1'"):
        class_indices(["1"], NUMERALS, "data.foreground")


@pytest.mark.parametrize("index", [5, -1])
def test_index_out_of_range_is_a_user_error(index: int) -> None:
    with pytest.raises(UserError) as caught:
        class_indices([index], ANIMALS, "data.background")
    assert str(caught.value).startswith(f"data.background: got class index {index}, ")


def test_unknown_name_lists_the_classes_and_suggests_the_most_similar() -> None:
    with pytest.raises(UserError) as caught:
        class_indices(["Doge"], ANIMALS, "data.foreground")
    message = str(caught.value)
    assert "data.foreground" in message
    assert "'Doge'" in message
    assert ", ".join(ANIMALS) in message
    assert message.endswith("did you mean dog?")


def test_name_without_a_similar_class_gets_no_suggestion_and_a_shortened_list() -> None:
    with pytest.raises(UserError) as caught:
        class_indices(["?"], [f"class_{i}" for i in range(1000)], "data.foreground")
    assert "did you mean" not in str(caught.value)
    assert "class_999" not in str(caught.value)
    assert "class_0" in str(caught.value)


@pytest.mark.parametrize("wanted", [["ant", "ant"], [1, 1], ["bee", 1]], ids=["name", "index", "both"])
def test_class_listed_twice_is_a_user_error(wanted: list[str | int]) -> None:
    with pytest.raises(UserError, match=r"data\.foreground: .*twice"):
        class_indices(wanted, ANIMALS, "data.foreground")


def test_split_into_foreground_and_background() -> None:
    assert split_classes(["dog", "ant"], None, ANIMALS) == ([3, 0], [1, 2, 4])
    assert split_classes(["dog", "ant"], ["eel", "bee"], ANIMALS) == ([3, 0], [4, 1])


@pytest.mark.parametrize(
    ("foreground", "background", "message"),
    [
        ([], None, r"data\.foreground: got \[\], needs at least two.*data\.foreground=\[\"ant\",\"bee\"\]"),
        (["cat"], None, r"data\.foreground: got \['cat'\], needs at least two"),
        (["cat", "dog"], [], r"data\.background: got no class"),
        (list(ANIMALS), None, r"data\.background: got no class"),
        (["cat", "dog"], ["ant", 3], r"data\.background: .*data\.foreground \(dog\)"),
        (["cat", "dog"], ["ant", "ant"], r"data\.background: .*twice"),
        (["cat", "dog"], ["aunt"], r"data\.background: got class 'aunt'.*did you mean ant"),
    ],
    ids=["no_foreground", "one_foreground", "no_background", "nothing_left", "overlap", "twice", "unknown"],
)
def test_wrong_split_is_a_user_error(
    foreground: list[str | int], background: list[str | int] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        split_classes(foreground, background, ANIMALS)


READ_AS = [
    # The list as typed, in a config file or on the command line; the classes; the list to type instead.
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


def _parsed(text: str, source: str) -> list[Any]:
    if source == "file":
        return OmegaConf.to_container(OmegaConf.create(f"classes: {text}"))["classes"]  # type: ignore[call-overload]
    return OverridesParser.create().parse_override(f"classes={text}").value()  # type: ignore[return-value]


@pytest.mark.parametrize(("text", "source", "classes", "instead"), READ_AS, ids=[f"{t}, {s}" for t, s, *_ in READ_AS])
def test_name_read_as_another_value_is_a_user_error(text: str, source: str, classes: list[str], instead: str) -> None:
    """The advised list has all names in quotes."""
    with pytest.raises(UserError) as caught:
        class_indices(_parsed(text, source), classes, "data.background")
    assert str(caught.value).startswith("data.background: got ")
    assert str(caught.value).endswith(f"'data.background={instead}'")
    names = _parsed(instead, source)
    if {*names} <= {*classes}:
        assert [classes[i] for i in class_indices(names, classes, "data.background")] == names


@pytest.mark.parametrize("text", ["[01,02]", "[yes,no]", "[2024-01-01,0x10]", "[010,off]"])
def test_names_that_the_command_line_reads_as_text_are_accepted(text: str) -> None:
    names = text[1:-1].split(",")
    assert class_indices(_parsed(text, "cli"), names, "data.foreground") == [0, 1]


@pytest.mark.parametrize(
    "classes",
    [[str(i) for i in range(10)], [f"{i} - digit" for i in range(10)], ["ant", "true", "1.5", "nan"] * 3],
    ids=["digits", "mnist", "no_whole_numbers"],
)
def test_index_is_accepted_if_no_other_class_has_the_number_as_its_name(classes: list[str]) -> None:
    assert class_indices([7, 8], classes, "data.foreground") == [7, 8]


def test_suggested_names_are_in_quotes() -> None:
    with pytest.raises(UserError, match=r"'data\.foreground=\[\"false\",\"other\"\]'"):
        split_classes(["true"], None, ["false", "other", "true"])
