"""Renders tables as plain text, limited to the characters that the terminal can show."""

from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from attnmosaic.core.text import substituted

WIDTH = 110
"""Width of tables in characters, independent of the terminal's width."""


class _PlainConsole(Console):
    """Console that replaces unsupported characters before it computes the layout, so columns stay aligned."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(substituted(text), **options)


def render_text(*parts: RenderableType, width: int = WIDTH) -> str:
    """Returns tables and lines as plain text; rich uses ASCII frames if standard output's encoding is not UTF."""
    console = _PlainConsole(width=width, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as text:
        for part in parts:
            console.print(part)
    return text.get()
