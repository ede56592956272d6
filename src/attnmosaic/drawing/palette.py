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

CLASS_STYLES = ((BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), (PINK, "D"), (SKY, "v"), (RED, "P"))
"""Colour and marker of the foreground classes, in label order; from the seventh on they repeat."""
