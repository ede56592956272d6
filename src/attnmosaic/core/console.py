"""Renders tables as text in letters that the terminal has."""

from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from attnmosaic.core.text import substituted

WIDTH = 110
"""Columns of tables, whatever the terminal's width."""


class _PlainConsole(Console):
    """A console that lays strings out with the substitutes of letters that a terminal lacks."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(substituted(text), **options)


def render_text(*parts: RenderableType, width: int = WIDTH) -> str:
    """Returns tables and lines as plain text; rich draws frames in ASCII where standard output's encoding is no UTF."""
    console = _PlainConsole(width=width, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as text:
        for part in parts:
            console.print(part)
    return text.get()
