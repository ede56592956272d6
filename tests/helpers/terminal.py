"""A terminal screen for tests."""

import re


class Screen:
    """The screen of a terminal with a certain width; supports the control codes of progress bars.

    Attributes:
        wrapped: number of lines that were too long.
    """

    def __init__(self, columns: int = 80) -> None:
        self.columns = columns
        self.wrapped = 0
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0

    def write(self, text: str) -> None:
        """Writes a text with control codes to the screen."""
        for code, command, character in re.findall(r"\x1b\[([\d;?]*)([A-Za-z])|(.)", text, flags=re.S):
            if command:
                self._control(code, command)
            elif character == "\r":
                self._column = 0
            elif character == "\n":
                self._go_down()
            else:
                if self._column == self.columns:
                    self.wrapped += 1
                    self._go_down()
                row = self._rows[self._row]
                row += " " * (self._column - len(row))
                row[self._column : self._column + 1] = character
                self._column += 1

    def lines(self) -> list[str]:
        """Returns the lines on the screen."""
        return ["".join(row).rstrip() for row in self._rows]

    def _go_down(self) -> None:
        self._row, self._column = self._row + 1, 0
        if self._row == len(self._rows):
            self._rows.append([])

    def _control(self, code: str, command: str) -> None:
        if command == "A":
            self._row -= int(code or 1)
        elif command == "K":
            assert code == "2"
            self._rows[self._row].clear()
        else:
            assert command in "mhl", command  # colours, and whether the cursor is visible
