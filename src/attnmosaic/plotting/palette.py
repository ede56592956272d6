"""Colours, and the style of each curve, class, split and stage, for all pictures of a run.

Colour-blind readers tell the colours apart, by Okabe and Ito (2008); line styles and markers do so in grey.
"""

from typing import Any, NamedTuple

COLORS = {
    "green": "#009E73",
    "blue": "#0072B2",
    "orange": "#E69F00",
    "red": "#D55E00",
    "grey": "#999999",
    "pink": "#CC79A7",
    "sky": "#56B4E9",
}
GREEN, BLUE, ORANGE, RED, GREY, PINK, SKY = COLORS.values()
COLOR_NAMES = {color: name for name, color in COLORS.items()}

FRAME = ORANGE
"""Of the true foreground patch."""


class Curve(NamedTuple):
    """The style of a curve.

    Attributes:
        label: its name in a legend.
        color: of line and markers.
        line: line style, as matplotlib writes it.
        marker: likewise.
        column: that has its values, in a table of the run.
    """

    label: str
    color: str
    line: str
    marker: str
    column: str = ""

    @property
    def style(self) -> dict[str, Any]:
        """Matplotlib's arguments for it, but for the label."""
        return {"color": self.color, "linestyle": self.line, "marker": self.marker}


LARGEST_WEIGHT = {
    "confident": Curve("largest weight ≥ 0.5", BLUE, "-", "o", "argmax > 0.5"),
    "not_confident": Curve("largest weight < 0.5", ORANGE, "--", "s", "argmax < 0.5"),
}
"""The published plot of how sharp attention is, by metric: columns of ``focus_vs_pred_<split>.csv``."""

FOCUS_PREDICTION = {
    "ftpt": Curve("focus, right", GREEN, "-", "o", "focus_true_pred_true"),
    "ffpt": Curve("no focus, right", BLUE, "--", "s", "focus_false_pred_true"),
    "ftpf": Curve("focus, wrong", ORANGE, "-.", "^", "focus_true_pred_false"),
    "ffpf": Curve("no focus, wrong", RED, ":", "D", "focus_false_pred_false"),
}
"""The published plot of focus against prediction, likewise."""

GRADIENTS = {
    "foreground": Curve("foreground patch", GREEN, "-", "", "foreground"),
    "background": Curve("background patches, their sum", RED, "--", "", "background"),
}
"""Columns of ``gradients.csv``."""

SPLITS = {
    "train": Curve("train", BLUE, "-", "o"),
    "test": Curve("test", GREEN, "--", "s"),
    "held_out": Curve("held out", RED, "-.", "^"),
}

STAGES = {"what": ("What learns", BLUE), "where": ("Where learns", ORANGE), "joint": ("both learn", GREEN)}
"""Label of each stage, and its colour where it has one; behind curves Where's are grey, the others white."""

CLASS_STYLES = ((BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), (PINK, "D"), (SKY, "v"), (RED, "P"))
"""Colour and marker of the foreground classes, in label order; from the seventh on they repeat."""

SMOKE, SMOKE_COLOR = "SMOKE RUN: no result", RED
"""Banner of all pictures of a smoke run, so that none is taken for a result."""


def class_style(label: int) -> tuple[str, str]:
    """Returns colour and marker of a foreground class."""
    return CLASS_STYLES[label % len(CLASS_STYLES)]
