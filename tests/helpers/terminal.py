"""A terminal that tests can look at."""

import re


class Screen:
    """Does with what is written to it what a terminal of a certain width does, as far as bars need it.

    Attributes:
        wrapped: how many lines were too long.
    """

    def __init__(self, columns: int = 80) -> None:
        self.columns = columns
        self.wrapped = 0
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0

    def write(self, text: str) -> None:
        """Shows a text."""
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
        """Returns what is to be seen."""
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
            assert command in "mhl", command  # colours, and whether there is a cursor
