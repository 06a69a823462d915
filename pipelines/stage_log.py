"""What KFP's local runner prints, sorted: everything into a file, the stages' own lines to the terminal."""

from __future__ import annotations

import io
import re
from collections import deque
from typing import TextIO

_STAGE_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING|ERROR) ")
_STATUS = re.compile(r"stage=(\w+) status=(started|failed|done)")


class StageLog(io.TextIOBase):
    """A stream to stand in for standard output while the runner works.

    Args:
        file: Gets every line.
        terminal: Gets the lines that stages log, and their errors.
    """

    def __init__(self, file: TextIO, terminal: TextIO) -> None:
        self._file, self._terminal = file, terminal
        self._pending = ""
        self._stage = ""
        self._error = ""
        self._tail: deque[str] = deque(maxlen=15)

    def writable(self) -> bool:
        """True: it takes text."""
        return True

    def write(self, text: str) -> int:
        """Takes text; complete lines are passed on at once."""
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            self._line(line.removeprefix("    ").rstrip())
        return len(text)

    def _line(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()
        if line:
            self._tail.append(line)
        if match := _STATUS.search(line):
            self._stage = "" if match.group(2) == "done" else match.group(1)
        if line.startswith("error: "):
            self._error = line.removeprefix("error: ")
        elif _STAGE_LINE.match(line):
            self._terminal.write(line + "\n")
            self._terminal.flush()

    def failure(self) -> str:
        """Why the pipeline stopped: the stage's own message, or the end of what it printed."""
        stage = f"stage {self._stage} failed" if self._stage else "the pipeline failed"
        return f"{stage}: {self._error}" if self._error else stage + ":\n" + "\n".join(self._tail)
