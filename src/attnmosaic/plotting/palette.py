"""Defines colours, and the style of each curve, class, split and stage, for all pictures of a run.

Colour-blind readers can distinguish the colours (Okabe and Ito, 2008). In grey, line styles and markers distinguish the
curves.
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
"""Colour of the frame around the true foreground patch."""


class Curve(NamedTuple):
    """Label, colour, line style, marker and CSV column of a curve.

    Attributes:
        label: text in a legend.
        color: colour of line and markers.
        line: matplotlib's line style.
        marker: matplotlib's marker.
        column: the column with the values, in a CSV file of the run.
    """

    label: str
    color: str
    line: str
    marker: str
    column: str = ""

    @property
    def style(self) -> dict[str, Any]:
        """Matplotlib's arguments for the curve, without the label."""
        return {"color": self.color, "linestyle": self.line, "marker": self.marker}


LARGEST_WEIGHT = {
    "confident": Curve("largest weight ≥ 0.5", BLUE, "-", "o", "argmax > 0.5"),
    "not_confident": Curve("largest weight < 0.5", ORANGE, "--", "s", "argmax < 0.5"),
}
"""Curves of the published plot of the largest weight, by metric; columns of ``focus_vs_pred_<split>.csv``."""

FOCUS_PREDICTION = {
    "ftpt": Curve("focus, right", GREEN, "-", "o", "focus_true_pred_true"),
    "ffpt": Curve("no focus, right", BLUE, "--", "s", "focus_false_pred_true"),
    "ftpf": Curve("focus, wrong", ORANGE, "-.", "^", "focus_true_pred_false"),
    "ffpf": Curve("no focus, wrong", RED, ":", "D", "focus_false_pred_false"),
}
"""Curves of the published plot of focus against prediction, by metric; columns of the same files."""

GRADIENTS = {
    "foreground": Curve("foreground patch", GREEN, "-", "", "foreground"),
    "background": Curve("background patches, summed", RED, "--", "", "background"),
}
"""Curves of the gradients, by column of ``gradients.csv``."""

SPLITS = {
    "train": Curve("train", BLUE, "-", "o"),
    "test": Curve("test", GREEN, "--", "s"),
    "held_out": Curve("held out", RED, "-.", "^"),
}

STAGES = {
    "what": ("What network trains", BLUE),
    "where": ("Where network trains", ORANGE),
    "joint": ("both networks train", GREEN),
}
"""Label and colour of each stage. Behind curves, stages of Where are grey and all others white."""

CLASS_STYLES = ((BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), (PINK, "D"), (SKY, "v"), (RED, "P"))
"""Colour and marker of each foreground class, in label order; they repeat from the seventh class on."""

SMOKE, SMOKE_COLOR = "SMOKE RUN: no result", RED
"""Text and colour of the banner on all pictures of a smoke run."""


def class_style(label: int) -> tuple[str, str]:
    """Returns colour and marker of a foreground class."""
    return CLASS_STYLES[label % len(CLASS_STYLES)]
