"""Foreground and background classes by name or index, and what a slip is answered."""

import pytest

from attnmosaic.data.classes import class_indices, split_classes
from attnmosaic.errors import UserError

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
    assert class_indices([2, 1], NUMERALS, "data.foreground") == [2, 1]
    with pytest.raises(UserError, match="index 7"):
        class_indices([7], NUMERALS, "data.foreground")
    with pytest.raises(UserError, match="class '1'"):
        class_indices(["1"], NUMERALS, "data.foreground")


@pytest.mark.parametrize("index", [5, -1])
def test_index_out_of_range(index: int) -> None:
    with pytest.raises(UserError) as caught:
        class_indices([index], ANIMALS, "data.background")
    assert "data.background" in str(caught.value)
    assert str(index) in str(caught.value)
    assert "0 to 4" in str(caught.value)


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
        ([], None, r"data\.foreground: got \[\], needs at least two.*data\.foreground=\[ant,bee\]"),
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
