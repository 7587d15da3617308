"""One line of text that is being edited, and the lines before it."""

from __future__ import annotations

from typing import Final

MAX_LINE: Final = 4_096
"""Characters of a line."""
MAX_HISTORY: Final = 500


class Editor:
    """A line that is being edited, and those before it.

    Attributes:
        text: the line.
        position: where the next character goes.
    """

    def __init__(self) -> None:
        self.text = ""
        self.position = 0
        self._history: list[str] = []
        self._place = 0

    def insert(self, text: str) -> bool:
        """Insert at the position; False where the line would become too long."""
        if len(self.text) + len(text) > MAX_LINE:
            return False
        self.text = self.text[: self.position] + text + self.text[self.position :]
        self.position += len(text)
        return True

    def delete(self, start: int, end: int) -> None:
        """Delete from one position to another; those past the ends do nothing."""
        start, end = max(0, start), min(len(self.text), end)
        self.text, self.position = self.text[:start] + self.text[end:], start

    def move(self, position: int) -> None:
        """Go to a position."""
        self.position = min(max(0, position), len(self.text))

    def word_start(self) -> int:
        """Where the word before the position begins."""
        return self.text[: self.position].rstrip().rfind(" ") + 1

    def recall(self, step: int) -> None:
        """Go to an earlier or a later line of the history."""
        place = self._place + step
        if 0 <= place <= len(self._history):
            self._place = place
            self.text = (*self._history, "")[place]
            self.position = len(self.text)

    def take(self) -> str:
        """Take the line, and begin a new one."""
        line = self.text
        if line.strip() and self._history[-1:] != [line]:
            self._history.append(line)
            del self._history[:-MAX_HISTORY]
        self.clear()
        return line

    def clear(self) -> None:
        """Begin a new line."""
        self.text, self.position, self._place = "", 0, len(self._history)

    def drawn(self, prompt: str, width: int) -> str:
        """What draws the line over the one that the cursor is in."""
        room = max(8, width - len(prompt) - 1)
        start = max(0, self.position - room)
        back = len(self.text[start : start + room]) - (self.position - start)
        cursor = f"\x1b[{back}D" if back else ""
        return f"\r{prompt}{self.text[start : start + room]}\x1b[K{cursor}"
