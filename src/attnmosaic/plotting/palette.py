"""Colours that colour-blind readers tell apart, by Okabe and Ito (2008); line styles and markers do so in grey."""

GREEN, BLUE, ORANGE, RED, GREY = "#009E73", "#0072B2", "#E69F00", "#D55E00", "#999999"
PINK, SKY = "#CC79A7", "#56B4E9"

FRAME = ORANGE
"""Of the true foreground patch."""

CELLS = {
    "ftpt": ("focus, right", GREEN, "-"),
    "ffpt": ("no focus, right", BLUE, "--"),
    "ftpf": ("focus, wrong", ORANGE, "-."),
    "ffpf": ("no focus, wrong", RED, ":"),
}
"""Label, colour and line style of the four focus/prediction shares."""

CELL_MARKERS = {"ftpt": "o", "ffpt": "s", "ftpf": "^", "ffpf": "D"}

CLASS_STYLES = ((BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), (PINK, "D"), (SKY, "v"), (RED, "P"))
"""Colour and marker of the foreground classes, in label order; from the seventh on they repeat."""

STAGES = {"what": ("What learns", BLUE), "where": ("Where learns", ORANGE), "joint": ("both learn", GREEN)}
"""What is said of each stage, and its colour where it has one; behind curves Where's are grey, the others white."""

SPLIT_STYLES = {
    "train": ("train", BLUE, "-", "o"),
    "test": ("test", GREEN, "--", "s"),
    "held_out": ("held out", RED, "-.", "^"),
}
"""Label, colour, line style and marker of each split."""

SMOKE, SMOKE_COLOR = "SMOKE RUN: no result", RED
"""What stands over all that is drawn of a smoke run, so that it can never be taken for a result."""
